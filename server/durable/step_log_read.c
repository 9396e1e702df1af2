/* Records and commits that are in a step log. */
#include <inttypes.h>
#include <stdlib.h>

#include "server/durable/step_log_internal.h"

#define BODY_ALIGN 64u /* features go into the products from here */

void sfc_log_close_reading(struct sfc_step_log *log)
{
    log->folder->ops->close_file(log->reading);
    log->reading = NULL;
}

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

static bool is_one_of(uint64_t digest, const uint64_t *digests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (digests[i] == digest) {
            return true;
        }
    }
    return false;
}

uint64_t sfc_step_log_sums_since(const struct sfc_step_log *log, const uint64_t *digests,
                                 size_t count)
{
    const struct sfc_log_index *x = &log->index;
    for (size_t i = x->commit_count; i > 0; i--) {
        const struct sfc_log_commit *c = &x->commits[i - 1];
        bool counts = i == x->commit_count || x->commits[i].step != c->step;
        if (!counts || !c->apply) { /* of several commits of a step the last counts */
            continue;
        }
        const struct sfc_log_place_of *place = sfc_log_index_find(x, c->step, c->round);
        if (place == NULL || place->type != SFC_LOG_PREPARE ||
            !is_one_of(place->dense_blocks, digests, count)) {
            return c->step;
        }
    }
    return 0;
}

size_t sfc_log_body_size_at(const struct sfc_log_geometry *geometry,
                            const struct sfc_log_place_of *place)
{
    struct sfc_log_geometry there = sfc_log_geometry_at(geometry, place);
    struct sfc_log_layout layout;
    there = sfc_log_body_geometry(&there, place->type);
    sfc_log_prepare_layout(&there, &layout);
    return (size_t)layout.size;
}

int sfc_log_body_room(struct sfc_log_body *body, size_t size, struct sfc_error *err)
{
    size_t rounded = (size + BODY_ALIGN - 1) / BODY_ALIGN * BODY_ALIGN;
    if (size <= body->size) {
        return SFC_OK;
    }
    sfc_log_body_free(body);
    body->data = rounded < size ? NULL : aligned_alloc(BODY_ALIGN, rounded);
    if (body->data == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a step of the log, %zu bytes", size);
    }
    body->size = size;
    return SFC_OK;
}

void sfc_log_body_free(struct sfc_log_body *body)
{
    free(body->data);
    *body = (struct sfc_log_body){0};
}

size_t sfc_step_log_body_size(const struct sfc_step_log *log)
{
    uint64_t size = log->layout.size;
    for (size_t i = 0; i < log->index.prepare_count; i++) {
        size_t own = sfc_log_body_size_at(&log->config.geometry, &log->index.prepares[i]);
        size = own > size ? own : size;
    }
    return (size_t)size;
}

int sfc_log_file_of(struct sfc_step_log *log, uint64_t segment, struct sfc_file **out,
                    struct sfc_error *err)
{
    if (log->file != NULL && sfc_log_open_part(log)->number == segment) {
        *out = log->file;
        return SFC_OK;
    }
    if (log->reading == NULL || log->reading_number != segment) {
        char name[SFC_LOG_NAME_SIZE];
        sfc_log_close_reading(log);
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

int sfc_log_read_record(struct sfc_file *file, const struct sfc_log_geometry *geometry,
                        const struct sfc_log_place_of *place, struct sfc_log_body *body,
                        struct sfc_log_prepare_view *out, struct sfc_error *err)
{
    struct sfc_log_geometry there = sfc_log_geometry_at(geometry, place);
    uint8_t header[SFC_LOG_RECORD_HEADER];
    struct sfc_log_record record;
    bool whole = false;
    size_t size = sfc_log_body_size_at(geometry, place);
    int code = sfc_log_body_room(body, size, err);
    if (code == SFC_OK) {
        code = read_exactly(file, place->offset, header, sizeof header, &whole, err);
    }
    if (code == SFC_OK && whole) {
        code = read_exactly(file, place->offset + sizeof header, body->data, size, &whole, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    if (!whole ||
        sfc_log_decode_record(header, sizeof header, place->offset, &there, &record, NULL) !=
            SFC_OK ||
        record.type != place->type || record.body_checksum != place->checksum ||
        sfc_digest64(body->data, size) != place->checksum) {
        return damaged(file->folder, place, err);
    }
    sfc_log_view_prepare(&there, place->type, body->data, out);
    return SFC_OK;
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
                      struct sfc_log_body *body, struct sfc_log_prepare_view *out,
                      struct sfc_error *err)
{
    struct sfc_log_place_of place;
    struct sfc_file *file;
    int code = sfc_step_log_find(log, step, round, &place, err);
    if (code == SFC_OK) {
        code = sfc_log_file_of(log, place.segment, &file, err);
    }
    return code == SFC_OK ? sfc_log_read_record(file, &log->config.geometry, &place, body, out, err)
                          : code;
}

int sfc_step_log_read_at(struct sfc_folder *folder, const struct sfc_log_geometry *geometry,
                         const struct sfc_log_place_of *place, struct sfc_log_body *body,
                         struct sfc_log_prepare_view *out, struct sfc_error *err)
{
    char name[SFC_LOG_NAME_SIZE];
    struct sfc_file *file;
    sfc_log_name(place->segment, name);
    int code = folder->ops->open(folder, name, false, &file, err);
    if (code == SFC_OK) {
        code = sfc_log_read_record(file, geometry, place, body, out, err);
        folder->ops->close_file(file);
    }
    return code;
}
