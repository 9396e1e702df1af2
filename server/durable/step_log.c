#include "server/durable/step_log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/step_log_internal.h"

#define DEFAULT_SEGMENT (128ull << 20)
#define LARGEST_SEGMENT (8ull << 30) /* offsets are stored in 32 bits, in units of 8 */
#define LIMIT_STEPS     16u
#define LEAST_STEPS     4u
#define COMMIT_BYTES    (SFC_LOG_RECORD_HEADER + SFC_LOG_COMMIT_BODY)
/* Parts of a write besides the pieces of features and LSE: segment header, commits, record header,
 * lr, labels, padding, attempts, sums, padding. */
#define FIXED_PARTS 9u

_Static_assert(COMMIT_BYTES % 8 == 0, "records begin at multiples of 8");

/* ---- sizes */

uint64_t sfc_step_log_step_bytes(const struct sfc_log_geometry *geometry)
{
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(geometry, &layout);
    return SFC_LOG_RECORD_HEADER + layout.size + COMMIT_BYTES;
}

uint64_t sfc_step_log_default_limit(const struct sfc_log_geometry *geometry, uint64_t free_space)
{
    uint64_t least = LIMIT_STEPS * sfc_step_log_step_bytes(geometry);
    return free_space / 5 > least ? free_space / 5 : least;
}

int sfc_step_log_check_limit(const struct sfc_log_geometry *geometry, uint64_t limit,
                             struct sfc_error *err)
{
    uint64_t step = sfc_step_log_step_bytes(geometry), least = LEAST_STEPS * step;
    if (limit != 0 && limit < least) {
        return sfc_fail(err, SFC_EINVAL,
                        "step log: a limit of %" PRIu64 " bytes; a step takes %" PRIu64
                        ", so at least %" PRIu64 " are needed (--log-limit)",
                        limit, step, least);
    }
    return SFC_OK;
}

/* An eighth of the limit at most, so that trimming gets somewhere. */
static uint64_t segment_bytes(const struct sfc_step_log *log)
{
    uint64_t bytes = log->config.segment_bytes == 0 ? DEFAULT_SEGMENT : log->config.segment_bytes;
    uint64_t eighth = log->config.limit_bytes / 8;
    if (log->config.limit_bytes != 0 && bytes > eighth) {
        bytes = eighth;
    }
    return bytes > LARGEST_SEGMENT ? LARGEST_SEGMENT : bytes;
}

static uint64_t log_bytes(const struct sfc_step_log *log)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < log->part_count; i++) {
        bytes += log->parts[i].length;
    }
    return bytes;
}

/* ---- opening, closing */

static int allocate(struct sfc_step_log *log, struct sfc_error *err)
{
    size_t pieces = FIXED_PARTS + 2 * (size_t)sfc_log_micro_batches(&log->config.geometry);
    log->gather = calloc(pieces, sizeof *log->gather);
    log->digest = sfc_digest_new();
    if (log->gather == NULL || log->digest == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the step log");
    }
    return SFC_OK;
}

int sfc_step_log_new(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                     struct sfc_step_log **out, struct sfc_error *err)
{
    int code = sfc_log_geometry_check(&config->geometry, err);
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_step_log *log = calloc(1, sizeof *log);
    if (log == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the step log");
    }
    log->folder = folder;
    log->config = *config;
    log->next_number = 1;
    log->step_bytes = sfc_step_log_step_bytes(&config->geometry);
    sfc_log_prepare_layout(&config->geometry, &log->layout);
    code = allocate(log, err);
    if (code == SFC_OK) {
        code = sfc_step_log_check_limit(&config->geometry, config->limit_bytes, err);
    }
    if (code != SFC_OK) {
        sfc_step_log_close(log);
        return code;
    }
    *out = log;
    return SFC_OK;
}

static int refuse_segment(void *arg, const char *name, struct sfc_error *err)
{
    const struct sfc_folder *folder = arg;
    uint64_t number;
    return sfc_log_parse_name(name, &number)
               ? sfc_fail(err, SFC_EEXIST, "%s/%s: there is a step log already", folder->path, name)
               : SFC_OK;
}

int sfc_step_log_create(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                        struct sfc_step_log **out, struct sfc_error *err)
{
    int code = folder->ops->list(folder, refuse_segment, folder, err);
    return code == SFC_OK ? sfc_step_log_new(folder, config, out, err) : code;
}

static void close_reading(struct sfc_step_log *log)
{
    log->folder->ops->close_file(log->reading);
    log->reading = NULL;
}

void sfc_step_log_close(struct sfc_step_log *log)
{
    if (log == NULL) {
        return;
    }
    close_reading(log);
    log->folder->ops->close_file(log->file);
    sfc_log_index_free(&log->index);
    sfc_digest_free(log->digest);
    free(log->parts);
    free(log->waiting);
    free(log->gather);
    free(log->commit_bytes);
    free(log);
}

/* ---- segments */

int sfc_step_log_reserve_part(struct sfc_step_log *log, struct sfc_error *err)
{
    if (log->part_count == log->part_room) {
        size_t room = 2 * log->part_room + 8;
        struct sfc_log_part *parts = realloc(log->parts, room * sizeof *parts);
        if (parts == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu log segments", room);
        }
        log->parts = parts;
        log->part_room = room;
    }
    return SFC_OK;
}

static struct sfc_log_part *open_part(const struct sfc_step_log *log)
{
    return &log->parts[log->part_count - 1];
}

static void close_segment(struct sfc_step_log *log)
{
    log->folder->ops->close_file(log->file);
    log->file = NULL;
    log->headless = false;
    log->durable = 0;
    log->waiting_written = 0;
}

/* Everything in the open segment is durable. */
static void note_durable(struct sfc_step_log *log)
{
    log->durable = open_part(log)->length;
    if (log->waiting_written > 0) {
        log->waiting_count -= log->waiting_written;
        memmove(log->waiting, log->waiting + log->waiting_written,
                log->waiting_count * sizeof *log->waiting);
    }
    log->waiting_written = 0;
}

static int sync_segment(struct sfc_step_log *log, struct sfc_error *err)
{
    int code = log->folder->ops->sync(log->file, err);
    if (code == SFC_OK && !log->name_durable) {
        code = log->folder->ops->sync_names(log->folder, err);
        log->name_durable = code == SFC_OK;
    }
    if (code == SFC_OK) {
        note_durable(log);
    }
    return code;
}

/* The open segment is never written again: it counts up to its last durable record, and a segment
 * with none goes. What is behind is cut off; where that fails, the header of the next segment says
 * that it doesn't count. */
static void give_up_segment(struct sfc_step_log *log)
{
    struct sfc_log_part *part = open_part(log);
    log->failures++;
    uint64_t dropped = sfc_log_index_drop(&log->index, part->number, log->durable);
    log->lost = log->lost || dropped <= log->committed;
    if (log->durable > SFC_LOG_SEGMENT_HEADER) {
        part->length = log->durable;
        (void)log->folder->ops->resize(log->file, log->durable, NULL);
        close_segment(log);
        return;
    }
    char name[SFC_LOG_NAME_SIZE];
    sfc_log_name(part->number, name);
    close_segment(log);
    log->part_count--;
    (void)log->folder->ops->remove(log->folder, name, NULL);
}

/* Makes the open segment durable; when that fails it is given up. */
static int make_durable(struct sfc_step_log *log, struct sfc_error *err)
{
    if (log->file == NULL || log->durable == open_part(log)->length) {
        return SFC_OK;
    }
    int code = sync_segment(log, err);
    if (code != SFC_OK) {
        give_up_segment(log);
    }
    return code;
}

static void encode_header(const struct sfc_step_log *log, uint8_t out[SFC_LOG_SEGMENT_HEADER])
{
    struct sfc_log_segment segment = {.identity = log->config.identity,
                                      .geometry = log->headless ? log->carry_geometry
                                                                : log->config.geometry,
                                      .number = open_part(log)->number};
    if (log->part_count > 1) {
        segment.previous = log->parts[log->part_count - 2].number;
        segment.previous_length = log->parts[log->part_count - 2].length;
    }
    sfc_log_encode_segment(&segment, out);
}

static int open_segment(struct sfc_step_log *log, struct sfc_error *err)
{
    char name[SFC_LOG_NAME_SIZE];
    int code = sfc_step_log_reserve_part(log, err);
    if (code != SFC_OK) {
        return code;
    }
    sfc_log_name(log->next_number, name);
    code = log->folder->ops->create(log->folder, name, &log->file, err);
    if (code != SFC_OK) {
        log->failures++;
        return code;
    }
    log->parts[log->part_count++] = (struct sfc_log_part){.number = log->next_number++};
    log->durable = 0;
    log->name_durable = false;
    return SFC_OK;
}

/* ---- one write: segment header where there is none yet, commits that wait, a Prepare */

struct gather {
    struct sfc_bytes *parts;
    size_t count;
    uint64_t size;
};

static void put(struct gather *g, const void *data, size_t size)
{
    g->parts[g->count++] = (struct sfc_bytes){data, size};
    g->size += size;
}

static int reserve_commit_bytes(struct sfc_step_log *log, struct sfc_error *err)
{
    size_t need = log->waiting_count * COMMIT_BYTES;
    if (need > log->commit_room) {
        uint8_t *bytes = realloc(log->commit_bytes, need);
        if (bytes == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu commits", log->waiting_count);
        }
        log->commit_bytes = bytes;
        log->commit_room = need;
    }
    return SFC_OK;
}

static void put_commits(struct sfc_step_log *log, struct gather *g, uint64_t start)
{
    size_t first = log->waiting_written;
    for (size_t i = first; i < log->waiting_count; i++) {
        sfc_log_encode_commit(&log->waiting[i], start + g->size + (i - first) * COMMIT_BYTES,
                              log->durable, log->commit_bytes + (i - first) * COMMIT_BYTES);
    }
    if (log->waiting_count > first) {
        put(g, log->commit_bytes, (log->waiting_count - first) * COMMIT_BYTES);
    }
}

static void put_padding(struct gather *g, uint64_t size)
{
    static const uint8_t zeros[8];
    if (sfc_log_padded(size) != size) {
        put(g, zeros, (size_t)(sfc_log_padded(size) - size));
    }
}

/* dense_bytes: 0 where the record has no sums. */
static void put_body(const struct sfc_log_geometry *geometry, uint64_t dense_bytes,
                     struct gather *g, const struct sfc_log_prepare *p)
{
    uint32_t pieces = sfc_log_micro_batches(geometry);
    size_t rows = geometry->micro_batch;
    put(g, &p->lr, sizeof p->lr);
    put(g, p->labels, geometry->batch * sizeof *p->labels);
    for (uint32_t j = 0; j < pieces; j++) {
        put(g, p->features[j], rows * geometry->dim * sizeof **p->features);
    }
    put_padding(g, 4ull * geometry->batch * geometry->dim);
    put(g, p->attempts, pieces * sizeof *p->attempts);
    for (uint32_t j = 0; j < pieces; j++) {
        put(g, p->lse[j], rows * sizeof **p->lse);
    }
    if (dense_bytes > 0) {
        put(g, p->dense, (size_t)dense_bytes);
        put_padding(g, dense_bytes);
    }
}

static void put_prepare(struct sfc_step_log *log, struct gather *g, uint64_t start,
                        enum sfc_log_type type, const struct sfc_log_prepare *p,
                        uint8_t header[SFC_LOG_RECORD_HEADER], struct sfc_log_place_of *place)
{
    struct sfc_log_geometry geometry = sfc_log_body_geometry(&log->config.geometry, type);
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(&geometry, &layout);
    struct sfc_log_record record = {.type = type,
                                    .step = p->step,
                                    .round = p->round,
                                    .offset = start + g->size,
                                    .flushed = log->durable,
                                    .body_size = layout.size};
    put(g, header, SFC_LOG_RECORD_HEADER);
    size_t body = g->count;
    put_body(&geometry, layout.dense_bytes, g, p);
    sfc_digest_reset(log->digest);
    for (size_t i = body; i < g->count; i++) {
        sfc_digest_update(log->digest, g->parts[i].data, g->parts[i].size);
    }
    record.body_checksum = sfc_digest_final64(log->digest);
    sfc_log_encode_record(&record, header);
    *place = (struct sfc_log_place_of){.type = type,
                                       .step = p->step,
                                       .round = p->round,
                                       .segment = open_part(log)->number,
                                       .offset = record.offset,
                                       .checksum = record.body_checksum,
                                       .dense_floats = log->config.geometry.dense_floats,
                                       .dense_halves = log->config.geometry.dense_halves,
                                       .dense_blocks = log->config.geometry.dense_blocks};
}

/* A failed write leaves what was appended before intact, so that is still made durable. */
static int write_parts(struct sfc_step_log *log, const struct gather *g, struct sfc_error *err)
{
    struct sfc_log_part *part = open_part(log);
    int code = log->folder->ops->write(log->file, part->length, g->parts, g->count, err);
    if (code == SFC_OK) {
        part->length += g->size;
        return SFC_OK;
    }
    if (part->length > log->durable && !log->headless) {
        (void)sync_segment(log, NULL);
    }
    give_up_segment(log);
    return code;
}

static void note_steps(struct sfc_step_log *log, const struct sfc_log_prepare *prepare)
{
    struct sfc_log_part *part = open_part(log);
    for (size_t i = log->waiting_written; i < log->waiting_count; i++) {
        if (log->waiting[i].step > part->max_step) {
            part->max_step = log->waiting[i].step;
        }
    }
    if (prepare != NULL && prepare->step > part->max_step) {
        part->max_step = prepare->step;
    }
    log->waiting_written = log->waiting_count;
}

/* prepare: NULL, only commits. Room in the index has been reserved. */
static int append_raw(struct sfc_step_log *log, enum sfc_log_type type,
                      const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    uint8_t segment_header[SFC_LOG_SEGMENT_HEADER], record_header[SFC_LOG_RECORD_HEADER];
    struct sfc_log_place_of place;
    struct gather g = {.parts = log->gather};
    int code = reserve_commit_bytes(log, err);
    if (code == SFC_OK && log->file == NULL) {
        code = open_segment(log, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    uint64_t start = open_part(log)->length;
    if (start == 0) {
        encode_header(log, segment_header);
        put(&g, segment_header, sizeof segment_header);
    }
    put_commits(log, &g, start);
    if (prepare != NULL) {
        put_prepare(log, &g, start, type, prepare, record_header, &place);
    }
    code = write_parts(log, &g, err);
    if (code != SFC_OK) {
        return code;
    }
    note_steps(log, prepare);
    if (prepare != NULL) {
        sfc_log_index_prepare(&log->index, &place);
    }
    return SFC_OK;
}

static int carry_over(struct sfc_step_log *log, struct sfc_error *err);

static int append(struct sfc_step_log *log, enum sfc_log_type type,
                  const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    int code = carry_over(log, err);
    return code == SFC_OK ? append_raw(log, type, prepare, err) : code;
}

/* ---- limits */

static int check_limits(const struct sfc_step_log *log, uint64_t step, struct sfc_error *err)
{
    uint64_t used = log_bytes(log), free_space;
    uint64_t need = log->step_bytes + SFC_LOG_SEGMENT_HEADER;
    if (!log->unlimited && log->config.limit_bytes != 0 && used + need > log->config.limit_bytes) {
        uint64_t oldest = log->index.prepare_count > 0 ? log->index.prepares[0].step : step;
        return sfc_fail(err, SFC_ELIMIT,
                        "%s: the step log has %" PRIu64 " of its %" PRIu64
                        " bytes and step %" PRIu64 " needs %" PRIu64
                        "; it is kept from step %" PRIu64
                        " on until every block has newer snapshots: wait for them, or give more "
                        "with --log-limit",
                        log->folder->path, used, log->config.limit_bytes, step, need, oldest);
    }
    int code = log->folder->ops->free_space(log->folder, &free_space, err);
    if (code == SFC_OK && free_space < log->config.reserve_bytes + need) {
        code = sfc_fail(err, SFC_ELIMIT,
                        "%s: no space for step %" PRIu64 ": %" PRIu64 " bytes are free, %" PRIu64
                        " are kept in reserve and %" PRIu64 " are needed; make room on this disk",
                        log->folder->path, step, free_space, log->config.reserve_bytes, need);
    }
    return code;
}

/* ---- what the caller does */

bool sfc_step_log_lost(const struct sfc_step_log *log)
{
    return log->lost;
}

void sfc_step_log_without_limit(struct sfc_step_log *log, bool without)
{
    log->unlimited = without;
}

static int append_inputs(struct sfc_step_log *log, enum sfc_log_type type,
                         const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    int code = check_limits(log, prepare->step, err);
    if (code == SFC_OK && log->file != NULL &&
        open_part(log)->length + log->step_bytes > segment_bytes(log) &&
        open_part(log)->length > SFC_LOG_SEGMENT_HEADER) {
        code = make_durable(log, err);
        if (code == SFC_OK) {
            close_segment(log);
        }
    }
    if (code == SFC_OK) {
        code = sfc_log_index_reserve(&log->index, err);
    }
    return code == SFC_OK ? append(log, type, prepare, err) : code;
}

int sfc_step_log_append_prepare(struct sfc_step_log *log, const struct sfc_log_prepare *prepare,
                                struct sfc_error *err)
{
    return append_inputs(log, SFC_LOG_PREPARE, prepare, err);
}

int sfc_step_log_append_fetched(struct sfc_step_log *log, const struct sfc_log_prepare *prepare,
                                struct sfc_error *err)
{
    return append_inputs(log, SFC_LOG_FETCHED, prepare, err);
}

int sfc_step_log_append_commit(struct sfc_step_log *log, const struct sfc_log_commit *commit,
                               struct sfc_error *err)
{
    int code = sfc_log_index_reserve(&log->index, err);
    if (code == SFC_OK && log->waiting_count == log->waiting_room) {
        size_t room = 2 * log->waiting_room + 8;
        struct sfc_log_commit *waiting = realloc(log->waiting, room * sizeof *waiting);
        if (waiting == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu commits", room);
        }
        log->waiting = waiting;
        log->waiting_room = room;
    }
    if (code == SFC_OK) {
        log->committed = commit->step > log->committed ? commit->step : log->committed;
        log->waiting[log->waiting_count++] = *commit;
        sfc_log_index_commit(&log->index, commit);
    }
    return code;
}

int sfc_step_log_flush(struct sfc_step_log *log, struct sfc_error *err)
{
    int code = SFC_OK;
    if (log->waiting_count > log->waiting_written) {
        code = append(log, SFC_LOG_PREPARE, NULL, err);
    }
    if (code == SFC_OK && SFC_PLANT_BUG != 1) { /* bug 1: Ready before the record is durable */
        code = make_durable(log, err);
    }
    return code;
}

void sfc_step_log_set_geometry(struct sfc_step_log *log, const struct sfc_log_geometry *geometry)
{
    (void)make_durable(log, NULL);
    if (log->file != NULL) {
        close_segment(log);
    }
    log->config.geometry = *geometry;
    log->step_bytes = sfc_step_log_step_bytes(geometry);
    sfc_log_prepare_layout(geometry, &log->layout);
}

/* The open segment can go too when everything in it is durable and old. */
static void close_if_old(struct sfc_step_log *log, uint64_t floor)
{
    if (log->file != NULL && log->durable == open_part(log)->length &&
        open_part(log)->max_step <= floor) {
        close_segment(log);
    }
}

int sfc_step_log_trim(struct sfc_step_log *log, uint64_t floor, struct sfc_error *err)
{
    int code = SFC_OK;
    size_t gone = 0;
#if SFC_PLANT_BUG == 2 /* one step too many */
    floor++;
#endif
    close_if_old(log, floor);
    size_t closed = log->part_count - (log->file != NULL ? 1 : 0);
    for (; gone < closed && log->parts[gone].max_step <= floor; gone++) {
        char name[SFC_LOG_NAME_SIZE];
        sfc_log_name(log->parts[gone].number, name);
        if (log->reading != NULL && log->reading_number == log->parts[gone].number) {
            close_reading(log);
        }
        code = log->folder->ops->remove(log->folder, name, err);
        if (code != SFC_OK && code != SFC_ENOTFOUND) {
            break;
        }
        code = SFC_OK;
    }
    if (gone > 0 && log->parts[gone - 1].number >= log->carry_segment) {
        log->carry_segment = 0;
    }
    if (gone > 0) {
        uint64_t kept_from = log->parts[gone - 1].number + 1;
        log->part_count -= gone;
        memmove(log->parts, log->parts + gone, log->part_count * sizeof *log->parts);
        sfc_log_index_trim(&log->index, kept_from, floor);
    }
    return code;
}

/* ---- reading */

int sfc_step_log_commit_of(const struct sfc_step_log *log, uint64_t step,
                           struct sfc_log_commit *out, struct sfc_error *err)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&log->index, step);
    if (commit == NULL) {
        return sfc_fail(err, SFC_ENOTFOUND, "%s: the step log has no commit of step %" PRIu64,
                        log->folder->path, step);
    }
    *out = *commit;
    return SFC_OK;
}

static size_t body_size_at(const struct sfc_log_geometry *geometry,
                           const struct sfc_log_place_of *place)
{
    struct sfc_log_geometry there = sfc_log_geometry_at(geometry, place);
    struct sfc_log_layout layout;
    there = sfc_log_body_geometry(&there, place->type);
    sfc_log_prepare_layout(&there, &layout);
    return (size_t)layout.size;
}

size_t sfc_step_log_body_size(const struct sfc_step_log *log)
{
    uint64_t size = log->layout.size;
    for (size_t i = 0; i < log->index.prepare_count; i++) {
        size_t own = body_size_at(&log->config.geometry, &log->index.prepares[i]);
        size = own > size ? own : size;
    }
    return (size_t)size;
}

static int file_of(struct sfc_step_log *log, uint64_t segment, struct sfc_file **out,
                   struct sfc_error *err)
{
    if (log->file != NULL && open_part(log)->number == segment) {
        *out = log->file;
        return SFC_OK;
    }
    if (log->reading == NULL || log->reading_number != segment) {
        char name[SFC_LOG_NAME_SIZE];
        close_reading(log);
        sfc_log_name(segment, name);
        int code = log->folder->ops->open(log->folder, name, false, &log->reading, err);
        if (code != SFC_OK) {
            log->reading = NULL;
            return code;
        }
        log->reading_number = segment;
    }
    *out = log->reading;
    return SFC_OK;
}

static int damaged(const struct sfc_folder *folder, const struct sfc_log_place_of *place,
                   struct sfc_error *err)
{
    char name[SFC_LOG_NAME_SIZE];
    sfc_log_name(place->segment, name);
    return sfc_fail(err, SFC_ECORRUPT,
                    "%s/%s: byte %" PRIu64 ": the record of step %" PRIu64
                    " is not what was written; `shardfc log %s` lists the damage; restore the run "
                    "from a checkpoint, or this folder from a copy",
                    folder->path, name, place->offset, place->step, folder->path);
}

static int read_exactly(struct sfc_file *file, uint64_t offset, void *out, size_t size, bool *whole,
                        struct sfc_error *err)
{
    size_t got;
    int code = file->folder->ops->read(file, offset, out, size, &got, err);
    if (code == SFC_OK) {
        *whole = got == size;
    }
    return code;
}

static int read_record(struct sfc_file *file, const struct sfc_log_geometry *geometry,
                       const struct sfc_log_place_of *place, uint8_t *body,
                       struct sfc_log_prepare_view *out, struct sfc_error *err)
{
    struct sfc_log_geometry there = sfc_log_geometry_at(geometry, place);
    uint8_t header[SFC_LOG_RECORD_HEADER];
    struct sfc_log_record record;
    bool whole = false;
    size_t size = body_size_at(geometry, place);
    int code = read_exactly(file, place->offset, header, sizeof header, &whole, err);
    if (code == SFC_OK && whole) {
        code = read_exactly(file, place->offset + sizeof header, body, size, &whole, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    if (!whole ||
        sfc_log_decode_record(header, sizeof header, place->offset, &there, &record, NULL) !=
            SFC_OK ||
        record.type != place->type || record.body_checksum != place->checksum ||
        sfc_digest64(body, size) != place->checksum) {
        return damaged(file->folder, place, err);
    }
    sfc_log_view_prepare(&there, place->type, body, out);
    return SFC_OK;
}

/* ---- what the process before wrote last */

/* Is this a record behind carry_from that replay may need? */
static bool is_carried(const struct sfc_step_log *log, const struct sfc_log_place_of *place)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&log->index, place->step);
    return place->segment == log->carry_segment && place->offset >= log->carry_from &&
           commit != NULL && commit->apply && sfc_attempt_compare(commit->round, place->round) == 0;
}

/* Writes the record at *place again; *place says where, then. */
static int carry_record(struct sfc_step_log *log, uint8_t *body, struct sfc_log_place_of *place,
                        struct sfc_error *err)
{
    uint8_t record_header[SFC_LOG_RECORD_HEADER];
    size_t size = body_size_at(&log->config.geometry, place);
    struct sfc_log_prepare_view view;
    struct sfc_file *file;
    struct gather g = {.parts = log->gather};
    int code = file_of(log, place->segment, &file, err);
    if (code == SFC_OK) {
        code = read_record(file, &log->config.geometry, place, body, &view, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_log_part *part = open_part(log);
    place->segment = part->number;
    place->offset = part->length;
    struct sfc_log_record record = {.type = place->type,
                                    .step = place->step,
                                    .round = place->round,
                                    .offset = place->offset,
                                    .flushed = log->durable,
                                    .body_size = size,
                                    .body_checksum = place->checksum};
    sfc_log_encode_record(&record, record_header);
    put(&g, record_header, sizeof record_header);
    put(&g, body, size);
    part->max_step = place->step > part->max_step ? place->step : part->max_step;
    return write_parts(log, &g, err);
}

/* A segment whose header comes last, when what it stands for is durable: until then the segment
 * before it is the newest one, with all that it has. */
static int begin_carry(struct sfc_step_log *log, struct sfc_error *err)
{
    int code = open_segment(log, err);
    if (code == SFC_OK) {
        open_part(log)->length = SFC_LOG_SEGMENT_HEADER;
        log->headless = true;
    }
    return code;
}

static int end_carry(struct sfc_step_log *log, struct sfc_error *err)
{
    uint8_t header[SFC_LOG_SEGMENT_HEADER];
    struct sfc_bytes bytes = {header, sizeof header};
    const struct sfc_folder_ops *ops = log->folder->ops;
    encode_header(log, header);
    int code = ops->sync(log->file, err);
    if (code == SFC_OK) {
        code = ops->write(log->file, 0, &bytes, 1, err);
    }
    if (code != SFC_OK) {
        give_up_segment(log);
        return code;
    }
    log->headless = false;
    code = make_durable(log, err);
    if (code == SFC_OK && log->carry_geometry.dense_blocks != log->config.geometry.dense_blocks) {
        close_segment(log); /* what comes now is of other dense blocks */
    }
    return code;
}

static int carry_records(struct sfc_step_log *log, uint8_t *body, struct sfc_log_place_of *places,
                         struct sfc_error *err)
{
    struct sfc_log_index *x = &log->index;
    int code = begin_carry(log, err);
    if (code == SFC_OK && log->waiting_count > 0) {
        code = append_raw(log, SFC_LOG_PREPARE, NULL, err);
    }
    for (size_t i = 0; i < x->prepare_count && code == SFC_OK; i++) {
        places[i] = x->prepares[i];
        if (is_carried(log, &places[i])) {
            code = carry_record(log, body, &places[i], err);
        }
    }
    if (code == SFC_OK) {
        code = end_carry(log, err);
    } else if (log->file != NULL) {
        give_up_segment(log);
    }
    if (code == SFC_OK && x->prepare_count > 0) {
        memcpy(x->prepares, places, x->prepare_count * sizeof *places);
    }
    return code;
}

static bool anything_to_carry(const struct sfc_step_log *log)
{
    bool any = log->waiting_count > 0;
    for (size_t i = 0; i < log->index.prepare_count && !any; i++) {
        any = is_carried(log, &log->index.prepares[i]);
    }
    return any;
}

/* Once, before the first write of this process, together with the commits that were there. The old
 * records stay where they are until the new
 * ones are durable, and until a recovery finds that they don't count. */
static int carry_over(struct sfc_step_log *log, struct sfc_error *err)
{
    if (log->carry_segment == 0 || !anything_to_carry(log)) {
        log->carry_segment = 0;
        return SFC_OK;
    }
    uint8_t *body = malloc(sfc_step_log_body_size(log));
    struct sfc_log_place_of *places = calloc(log->index.prepare_count + 1, sizeof *places);
    int code = body == NULL || places == NULL
                   ? sfc_fail(err, SFC_ENOMEM, "out of memory for the last step of the log")
                   : carry_records(log, body, places, err);
    free(body);
    free(places);
    if (code == SFC_OK) {
        log->carry_segment = 0;
    }
    return code;
}

int sfc_step_log_find(const struct sfc_step_log *log, uint64_t step, struct sfc_attempt round,
                      struct sfc_log_place_of *out, struct sfc_error *err)
{
    const struct sfc_log_place_of *place = sfc_log_index_find(&log->index, step, round);
    if (place == NULL) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "%s: the step log has no record of step %" PRIu64 ", round %" PRIu64
                        ".%" PRIu64,
                        log->folder->path, step, round.incarnation, round.counter);
    }
    *out = *place;
    return SFC_OK;
}

int sfc_step_log_read(struct sfc_step_log *log, uint64_t step, struct sfc_attempt round,
                      uint8_t *body, struct sfc_log_prepare_view *out, struct sfc_error *err)
{
    struct sfc_log_place_of place;
    struct sfc_file *file;
    int code = sfc_step_log_find(log, step, round, &place, err);
    if (code == SFC_OK) {
        code = file_of(log, place.segment, &file, err);
    }
    return code == SFC_OK ? read_record(file, &log->config.geometry, &place, body, out, err) : code;
}

int sfc_step_log_read_at(struct sfc_folder *folder, const struct sfc_log_geometry *geometry,
                         const struct sfc_log_place_of *place, uint8_t *body,
                         struct sfc_log_prepare_view *out, struct sfc_error *err)
{
    char name[SFC_LOG_NAME_SIZE];
    struct sfc_file *file;
    sfc_log_name(place->segment, name);
    int code = folder->ops->open(folder, name, false, &file, err);
    if (code == SFC_OK) {
        code = read_record(file, geometry, place, body, out, err);
        folder->ops->close_file(file);
    }
    return code;
}

void sfc_step_log_state(const struct sfc_step_log *log, struct sfc_step_log_state *out)
{
    const struct sfc_log_index *x = &log->index;
    *out = (struct sfc_step_log_state){
        .first_step = x->prepare_count > 0 ? x->prepares[0].step : 0,
        .last_step = x->prepare_count > 0 ? x->prepares[x->prepare_count - 1].step : 0,
        .bytes = log_bytes(log),
        .limit_bytes = log->config.limit_bytes,
        .segments = log->part_count,
        .failures = log->failures,
    };
}
