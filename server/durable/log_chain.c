/* The segments of a folder as one log: the newest segment whose header is whole says which segment
 * is before it and how much of that counts, and so on back to the oldest. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/log_scan.h"

static int add_file(void *arg, const char *name, struct sfc_error *err)
{
    struct sfc_log_chain *chain = arg;
    uint64_t number;
    if (!sfc_log_parse_name(name, &number)) {
        return SFC_OK;
    }
    struct sfc_log_file *files = realloc(chain->files, (chain->count + 1) * sizeof *files);
    if (files == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu log segments", chain->count + 1);
    }
    chain->files = files;
    files[chain->count++] = (struct sfc_log_file){.number = number};
    return SFC_OK;
}

static int by_number(const void *a, const void *b)
{
    const struct sfc_log_file *x = a, *y = b;
    return x->number < y->number ? -1 : x->number > y->number;
}

struct opened {
    struct sfc_folder *folder;
    struct sfc_file *file;
    const char *name;
};

static int read_exactly(void *ctx, uint64_t offset, void *out, size_t size, struct sfc_error *err)
{
    const struct opened *o = ctx;
    size_t got;
    int code = o->folder->ops->read(o->file, offset, out, size, &got, err);
    if (code == SFC_OK && got != size) {
        return sfc_fail(err, SFC_EIO, "read %s/%s: the file became shorter", o->folder->path,
                        o->name);
    }
    return code;
}

/* What the walk from the newest segment backwards expects next. */
struct walk {
    bool started;      /* the newest whole header was found */
    bool ended;        /* nothing older counts */
    uint64_t expected; /* number, 0: whatever is there */
    uint64_t length;   /* bytes of it that count */
};

static void check_number(struct sfc_log_file *file)
{
    if (file->scan.header_code == SFC_OK && file->scan.header.number != file->number) {
        file->scan.header_code = SFC_ECORRUPT;
        snprintf(file->scan.why, sizeof file->scan.why, "this is segment %" PRIu64,
                 file->scan.header.number);
    }
}

/* Decides what the file is. *end: bytes to scan. */
static void place_file(struct walk *walk, struct sfc_log_file *file, uint64_t *end)
{
    *end = file->bytes;
    if (walk->ended || (walk->expected != 0 && file->number > walk->expected)) {
        file->place = SFC_LOG_VOID;
        return;
    }
    if (!walk->started && file->scan.header_code != SFC_OK) {
        file->place = SFC_LOG_UNFINISHED;
        return;
    }
    if (walk->expected != 0 && file->number < walk->expected) {
        walk->ended = true; /* the expected one is gone, and with it the way to what is older */
        file->place = SFC_LOG_VOID;
        return;
    }
    file->place = SFC_LOG_CHAINED;
    *end = walk->expected != 0 ? walk->length : file->bytes;
    walk->started = true;
    walk->expected = 0;
    if (file->scan.header_code == SFC_OK) {
        walk->expected = file->scan.header.previous;
        walk->length = file->scan.header.previous_length;
        walk->ended = walk->expected == 0;
    }
}

static int scan_file(struct sfc_folder *folder, struct walk *walk, struct sfc_log_file *file,
                     struct sfc_error *err)
{
    char name[SFC_LOG_NAME_SIZE];
    struct opened opened = {.folder = folder, .name = name};
    struct sfc_log_source source = {.read = read_exactly, .ctx = &opened};
    sfc_log_name(file->number, name);
    int code = folder->ops->open(folder, name, false, &opened.file, err);
    if (code != SFC_OK) {
        return code;
    }
    uint64_t end;
    code = folder->ops->size(opened.file, &source.size, err);
    file->bytes = source.size;
    if (code == SFC_OK) {
        code = sfc_log_scan_header(&source, &file->scan, err);
    }
    if (code == SFC_OK) {
        check_number(file);
        place_file(walk, file, &end);
        if (file->place != SFC_LOG_VOID) {
            code = sfc_log_scan(&source, end, &file->scan, err);
            check_number(file);
        }
    }
    folder->ops->close_file(opened.file);
    return code;
}

/* In a segment that another one follows every byte that counts was durable. */
static void prove(struct sfc_log_file *file)
{
    struct sfc_log_scan *scan = &file->scan;
    for (size_t i = 0; i < scan->bad_count && i < SFC_LOG_SCAN_BAD; i++) {
        scan->bad[i].proven = true;
    }
    scan->corrupt = scan->bad_count > 0 || scan->header_code != SFC_OK;
    scan->good_end = scan->end;
}

static void drop_file(struct sfc_log_chain *chain, size_t i)
{
    sfc_log_scan_free(&chain->files[i].scan);
    chain->count--;
    memmove(chain->files + i, chain->files + i + 1, (chain->count - i) * sizeof *chain->files);
}

int sfc_log_chain_read(struct sfc_folder *folder, struct sfc_log_chain *out, struct sfc_error *err)
{
    struct sfc_log_chain chain = {0};
    struct walk walk = {0};
    int code = folder->ops->list(folder, add_file, &chain, err);
    if (chain.count > 0) {
        qsort(chain.files, chain.count, sizeof *chain.files, by_number);
    }
    for (size_t i = chain.count; i-- > 0 && code == SFC_OK;) {
        bool newest = !walk.started;
        code = scan_file(folder, &walk, &chain.files[i], err);
        if (code == SFC_ENOTFOUND) { /* removed since it was listed */
            drop_file(&chain, i);
            code = SFC_OK;
        } else if (code == SFC_OK && !newest && chain.files[i].place == SFC_LOG_CHAINED) {
            prove(&chain.files[i]);
        }
    }
    if (code != SFC_OK) {
        sfc_log_chain_free(&chain);
        return code;
    }
    chain.absent = walk.expected;
    *out = chain;
    return SFC_OK;
}

void sfc_log_chain_free(struct sfc_log_chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        sfc_log_scan_free(&chain->files[i].scan);
    }
    free(chain->files);
    *chain = (struct sfc_log_chain){0};
}

const struct sfc_log_file *sfc_log_chain_newest(const struct sfc_log_chain *chain)
{
    for (size_t i = chain->count; i-- > 0;) {
        if (chain->files[i].place == SFC_LOG_CHAINED) {
            return &chain->files[i];
        }
    }
    return NULL;
}

static bool file_bad(const struct sfc_log_file *file, bool proven, char *out, size_t size)
{
    char name[SFC_LOG_NAME_SIZE];
    const struct sfc_log_scan *scan = &file->scan;
    sfc_log_name(file->number, name);
    if (scan->header_code != SFC_OK && scan->corrupt == proven) {
        snprintf(out, size, "%s: byte 0: %s", name, scan->why);
        return true;
    }
    for (size_t i = 0; i < scan->bad_count && i < SFC_LOG_SCAN_BAD; i++) {
        const struct sfc_log_bad *bad = &scan->bad[i];
        char step[32] = "";
        if (bad->proven != proven) {
            continue;
        }
        if (bad->step != 0) {
            snprintf(step, sizeof step, " of step %" PRIu64, bad->step);
        }
        snprintf(out, size, "%s: bytes %" PRIu64 " to %" PRIu64 "%s: %s", name, bad->offset,
                 bad->end, step, bad->why);
        return true;
    }
    return false;
}

bool sfc_log_chain_bad(const struct sfc_log_chain *chain, bool proven, char *out, size_t size)
{
    for (size_t i = 0; i < chain->count; i++) {
        if (chain->files[i].place != SFC_LOG_VOID &&
            file_bad(&chain->files[i], proven, out, size)) {
            return true;
        }
    }
    return false;
}
