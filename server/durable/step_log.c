#include "server/durable/step_log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/step_log_internal.h"

#define DEFAULT_SEGMENT (128ull << 20)
#define LARGEST_SEGMENT (8ull << 30) /* offsets are stored in 32 bits, in units of 8 */
#define LIMIT_STEPS     16u
#define LEAST_STEPS     4u

/* ---- sizes */

uint64_t sfc_step_log_step_bytes(const struct sfc_log_geometry *geometry)
{
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(geometry, &layout);
    return SFC_LOG_RECORD_HEADER + layout.size + SFC_LOG_COMMIT_BYTES;
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
    size_t pieces = SFC_LOG_FIXED_PARTS + 2 * (size_t)sfc_log_micro_batches(&log->config.geometry);
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

void sfc_step_log_close(struct sfc_step_log *log)
{
    if (log == NULL) {
        return;
    }
    sfc_log_close_reading(log);
    log->folder->ops->close_file(log->file);
    sfc_log_index_free(&log->index);
    sfc_digest_free(log->digest);
    free(log->parts);
    free(log->waiting);
    free(log->gather);
    free(log->commit_bytes);
    free(log);
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

static int append(struct sfc_step_log *log, enum sfc_log_type type,
                  const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    int code = sfc_log_carry_over(log, err);
    return code == SFC_OK ? sfc_log_append_raw(log, type, prepare, err) : code;
}

static int append_inputs(struct sfc_step_log *log, enum sfc_log_type type,
                         const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    int code = check_limits(log, prepare->step, err);
    if (code == SFC_OK && log->file != NULL &&
        sfc_log_open_part(log)->length + log->step_bytes > segment_bytes(log) &&
        sfc_log_open_part(log)->length > SFC_LOG_SEGMENT_HEADER) {
        code = sfc_log_make_durable(log, err);
        if (code == SFC_OK) {
            sfc_log_close_segment(log);
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
        code = sfc_log_make_durable(log, err);
    }
    return code;
}

void sfc_step_log_set_geometry(struct sfc_step_log *log, const struct sfc_log_geometry *geometry)
{
    (void)sfc_log_make_durable(log, NULL);
    if (log->file != NULL) {
        sfc_log_close_segment(log);
    }
    log->config.geometry = *geometry;
    log->step_bytes = sfc_step_log_step_bytes(geometry);
    sfc_log_prepare_layout(geometry, &log->layout);
}

/* The open segment can go too when everything in it is durable and old. */
static void close_if_old(struct sfc_step_log *log, uint64_t floor)
{
    if (log->file != NULL && log->durable == sfc_log_open_part(log)->length &&
        sfc_log_open_part(log)->max_step <= floor) {
        sfc_log_close_segment(log);
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
            sfc_log_close_reading(log);
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
