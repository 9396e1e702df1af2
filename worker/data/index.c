/* The text index beside a record file. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/recordio.h"

struct cursor {
    const char *text;
    size_t length, at;
};

/* A decimal number without sign; false: none here, or above 64 bits. */
static bool number(struct cursor *c, uint64_t *out)
{
    uint64_t value = 0;
    size_t start = c->at;
    while (c->at < c->length && c->text[c->at] >= '0' && c->text[c->at] <= '9') {
        if (__builtin_mul_overflow(value, 10U, &value) ||
            __builtin_add_overflow(value, (uint64_t)(c->text[c->at] - '0'), &value))
            return false;
        c->at++;
    }
    *out = value;
    return c->at > start;
}

static bool line_end(struct cursor *c)
{
    if (c->at < c->length && c->text[c->at] == '\r')
        c->at++;
    if (c->at == c->length)
        return true;
    return c->text[c->at++] == '\n';
}

static size_t count_lines(const char *text, size_t length)
{
    size_t lines = 0;
    for (const char *p = text, *end = text + length; p < end; lines++) {
        const char *next = memchr(p, '\n', (size_t)(end - p));
        p = next != NULL ? next + 1 : end;
    }
    return lines;
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = ((const struct sfc_index_entry *)a)->key;
    uint64_t y = ((const struct sfc_index_entry *)b)->key;
    return x < y ? -1 : x > y;
}

static int check_distinct(const struct sfc_index_entry *entries, size_t count,
                          struct sfc_error *err)
{
    size_t i = 1;
    while (i < count && entries[i - 1].key < entries[i].key)
        i++;
    if (i >= count)
        return SFC_OK; /* ascending */
    struct sfc_index_entry *sorted = malloc(count * sizeof *sorted);
    if (sorted == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu index entries", count);
    memcpy(sorted, entries, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_key);
    int rc = SFC_OK;
    for (i = 1; i < count && rc == SFC_OK; i++)
        if (sorted[i - 1].key == sorted[i].key)
            rc = sfc_fail(err, SFC_ECORRUPT, "key %" PRIu64 " stands twice", sorted[i].key);
    free(sorted);
    return rc;
}

static int parse_line(struct cursor *c, size_t line, uint64_t file_size,
                      struct sfc_index_entry *entry, struct sfc_error *err)
{
    if (!number(c, &entry->key) || c->at >= c->length || c->text[c->at++] != '\t' ||
        !number(c, &entry->offset) || !line_end(c))
        return sfc_fail(err, SFC_ECORRUPT, "line %zu is not \"key<TAB>offset\"", line);
    if (entry->offset >= file_size || entry->offset % 4 != 0)
        return sfc_fail(err, SFC_ECORRUPT,
                        "line %zu: offset %" PRIu64 " of key %" PRIu64
                        " is not inside the record file of %" PRIu64
                        " bytes, or not a multiple of 4",
                        line, entry->offset, entry->key, file_size);
    return SFC_OK;
}

int sfc_index_parse(const char *text, size_t length, uint64_t file_size,
                    struct sfc_index_entry **entries, size_t *count, struct sfc_error *err)
{
    size_t lines = count_lines(text, length);
    if (lines == 0)
        return sfc_fail(err, SFC_ECORRUPT, "the index is empty");
    struct sfc_index_entry *out = malloc(lines * sizeof *out);
    if (out == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu index entries", lines);
    struct cursor c = {text, length, 0};
    int rc = SFC_OK;
    for (size_t i = 0; i < lines && rc == SFC_OK; i++)
        rc = parse_line(&c, i + 1, file_size, &out[i], err);
    if (rc == SFC_OK)
        rc = check_distinct(out, lines, err);
    if (rc != SFC_OK) {
        free(out);
        return rc;
    }
    *entries = out;
    *count = lines;
    return SFC_OK;
}
