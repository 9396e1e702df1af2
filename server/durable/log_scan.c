#include "server/durable/log_scan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct scanner {
    const struct sfc_log_source *source;
    uint64_t size; /* bytes that are there and count */
    struct sfc_log_scan *out;
    struct sfc_error *err;
    uint8_t *buffer;
    uint64_t buffer_at, buffer_size; /* which bytes it holds */
    struct sfc_digest *digest;
    uint64_t flushed; /* greatest `flushed` of a whole record */
};

/* size bytes from offset on, 64 at most: from the buffer, which moves forward in large steps. */
static int peek(struct scanner *s, uint64_t offset, size_t size, const uint8_t **out)
{
    if (offset < s->buffer_at || offset + size > s->buffer_at + s->buffer_size) {
        uint64_t left = s->size - offset;
        size_t n = left < SFC_LOG_SCAN_BUFFER ? (size_t)left : SFC_LOG_SCAN_BUFFER;
        s->buffer_size = 0;
        int code = s->source->read(s->source->ctx, offset, s->buffer, n, s->err);
        if (code != SFC_OK) {
            return code;
        }
        s->buffer_at = offset;
        s->buffer_size = n;
    }
    *out = s->buffer + (offset - s->buffer_at);
    return SFC_OK;
}

static int add_entry(struct scanner *s, const struct sfc_log_record *record,
                     const struct sfc_log_commit *commit)
{
    struct sfc_log_scan *out = s->out;
    if (out->count == out->room) {
        size_t room = out->room + out->room / 2 + 4;
        struct sfc_log_entry *entries = realloc(out->entries, room * sizeof *entries);
        if (entries == NULL) {
            return sfc_fail(s->err, SFC_ENOMEM, "out of memory for %zu log records", room);
        }
        out->entries = entries;
        out->room = room;
    }
    out->entries[out->count++] = (struct sfc_log_entry){.record = *record, .commit = *commit};
    s->flushed = record->flushed > s->flushed ? record->flushed : s->flushed;
    return SFC_OK;
}

/* A stretch that continues the one before is the same stretch. */
static void add_bad(struct scanner *s, uint64_t offset, uint64_t end, uint64_t step,
                    const char *why)
{
    struct sfc_log_scan *out = s->out;
    size_t last = out->bad_count - 1;
    if (out->bad_count > 0 && last < SFC_LOG_SCAN_BAD && out->bad[last].end == offset) {
        out->bad[last].end = end;
        return;
    }
    if (out->bad_count < SFC_LOG_SCAN_BAD) {
        struct sfc_log_bad *bad = &out->bad[out->bad_count];
        *bad = (struct sfc_log_bad){.offset = offset, .end = end, .step = step};
        snprintf(bad->why, sizeof bad->why, "%.127s", why);
    }
    out->bad_count++;
}

/* XXH3-64 of a body; *copy (may be NULL): where its first bytes go, at most copy_size. */
static int body_checksum(struct scanner *s, uint64_t offset, uint64_t size, uint8_t *copy,
                         size_t copy_size, uint64_t *out)
{
    sfc_digest_reset(s->digest);
    for (uint64_t done = 0; done < size;) {
        uint64_t at = offset + done;
        if (at < s->buffer_at || at >= s->buffer_at + s->buffer_size) {
            const uint8_t *ignored;
            int code = peek(s, at, 1, &ignored);
            if (code != SFC_OK) {
                return code;
            }
        }
        uint64_t held = s->buffer_at + s->buffer_size - at;
        size_t n = (size_t)(held < size - done ? held : size - done);
        const uint8_t *piece = s->buffer + (at - s->buffer_at);
        sfc_digest_update(s->digest, piece, n);
        if (done < copy_size) {
            size_t rest = copy_size - (size_t)done;
            memcpy(copy + done, piece, n < rest ? n : rest);
        }
        done += n;
    }
    *out = sfc_digest_final64(s->digest);
    return SFC_OK;
}

/* The record whose header is whole. *next: where the scan goes on. */
static int scan_body(struct scanner *s, const struct sfc_log_record *record, uint64_t *next)
{
    uint64_t at = record->offset + SFC_LOG_RECORD_HEADER;
    uint64_t checksum;
    uint8_t small[SFC_LOG_COMMIT_BODY] = {0};
    struct sfc_log_commit commit = {0};
    struct sfc_error why = {.text = "the checksum of a record's body is wrong"};
    *next = at;
    if (record->body_size > s->size - at) {
        add_bad(s, record->offset, at, record->step, "the record is longer than the file");
        return SFC_OK;
    }
    *next = at + sfc_log_padded(record->body_size);
    int code = body_checksum(s, at, record->body_size, small, sizeof small, &checksum);
    if (code != SFC_OK) {
        return code;
    }
    bool whole = checksum == record->body_checksum;
    if (whole && record->type == SFC_LOG_COMMIT) {
        whole = sfc_log_decode_commit(record, small, &commit, &why) == SFC_OK;
    }
    if (!whole) {
        add_bad(s, record->offset, *next, record->step, why.text);
        return SFC_OK;
    }
    return add_entry(s, record, &commit);
}

static int scan_records(struct scanner *s)
{
    uint64_t at = SFC_LOG_SEGMENT_HEADER;
    while (at < s->size) {
        const uint8_t *bytes;
        struct sfc_log_record record;
        struct sfc_error why;
        size_t n =
            s->size - at < SFC_LOG_RECORD_HEADER ? (size_t)(s->size - at) : SFC_LOG_RECORD_HEADER;
        int code = peek(s, at, n, &bytes);
        if (code != SFC_OK) {
            return code;
        }
        uint64_t next = n < 8 ? s->size : at + 8;
        if (sfc_log_decode_record(bytes, n, at, &s->out->header.geometry, &record, &why) ==
            SFC_OK) {
            code = scan_body(s, &record, &next);
        } else {
            add_bad(s, at, next, 0, why.text);
        }
        if (code != SFC_OK) {
            return code;
        }
        at = next;
    }
    return SFC_OK;
}

/* Below a whole record's `flushed` everything was on disk once. */
static void judge(struct scanner *s)
{
    struct sfc_log_scan *out = s->out;
    out->good_end = out->end;
    out->flushed = s->flushed;
    size_t kept = out->bad_count < SFC_LOG_SCAN_BAD ? out->bad_count : SFC_LOG_SCAN_BAD;
    for (size_t i = kept; i-- > 0;) {
        struct sfc_log_bad *bad = &out->bad[i];
        bad->proven = bad->proven || bad->offset < s->flushed;
        out->corrupt = out->corrupt || bad->proven;
        if (!bad->proven || out->bad_count > SFC_LOG_SCAN_BAD) {
            out->good_end = bad->offset;
        }
    }
}

/* Without a header nothing says what the records are; whether one of them was written after the
 * header was durable is all that can be known. */
static int look_for_proof(struct scanner *s)
{
    for (uint64_t at = 0; at + SFC_LOG_RECORD_HEADER <= s->size; at += 8) {
        const uint8_t *bytes;
        int code = peek(s, at, SFC_LOG_RECORD_HEADER, &bytes);
        if (code != SFC_OK) {
            return code;
        }
        if (sfc_log_record_flushed(bytes, at) > 0) {
            s->out->corrupt = true;
            break;
        }
    }
    return SFC_OK;
}

int sfc_log_scan_header(const struct sfc_log_source *source, struct sfc_log_scan *out,
                        struct sfc_error *err)
{
    uint8_t bytes[SFC_LOG_SEGMENT_HEADER];
    size_t size = source->size < sizeof bytes ? (size_t)source->size : sizeof bytes;
    *out = (struct sfc_log_scan){0};
    int code = source->read(source->ctx, 0, bytes, size, err);
    if (code == SFC_OK) {
        struct sfc_error why = {.text = ""};
        out->header_code = sfc_log_decode_segment(bytes, size, &out->header, &why);
        snprintf(out->why, sizeof out->why, "%.127s", why.text);
    }
    return code;
}

int sfc_log_scan(const struct sfc_log_source *source, uint64_t end, struct sfc_log_scan *out,
                 struct sfc_error *err)
{
    struct scanner s = {.source = source, .out = out, .err = err};
    int code = sfc_log_scan_header(source, out, err);
    if (code != SFC_OK) {
        return code;
    }
    s.size = end < source->size ? end : source->size;
    s.buffer = malloc(s.size < SFC_LOG_SCAN_BUFFER ? (size_t)s.size + 1 : SFC_LOG_SCAN_BUFFER);
    s.digest = sfc_digest_new();
    if (s.buffer == NULL || s.digest == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for reading the step log");
    } else if (out->header_code == SFC_OK) {
        code = scan_records(&s);
    } else {
        code = look_for_proof(&s);
    }
    out->end = s.size;
    if (code == SFC_OK && end > source->size) {
        add_bad(&s, source->size, end, 0, "the file ends here");
        if (out->bad_count <= SFC_LOG_SCAN_BAD) {
            out->bad[out->bad_count - 1].proven = true;
        }
        out->corrupt = true;
    }
    judge(&s);
    sfc_digest_free(s.digest);
    free(s.buffer);
    if (code != SFC_OK) {
        sfc_log_scan_free(out);
    }
    return code;
}

void sfc_log_scan_free(struct sfc_log_scan *scan)
{
    free(scan->entries);
    scan->entries = NULL;
    scan->count = scan->room = 0;
}
