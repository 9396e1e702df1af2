/* One write: a segment header where there is none yet, commits that wait, a Prepare. */
#include <stdlib.h>

#include "server/durable/step_log_internal.h"

void sfc_log_put(struct sfc_log_gather *g, const void *data, size_t size)
{
    g->parts[g->count++] = (struct sfc_bytes){data, size};
    g->size += size;
}

static int reserve_commit_bytes(struct sfc_step_log *log, struct sfc_error *err)
{
    size_t need = log->waiting_count * SFC_LOG_COMMIT_BYTES;
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

static void put_commits(struct sfc_step_log *log, struct sfc_log_gather *g, uint64_t start)
{
    size_t first = log->waiting_written;
    for (size_t i = first; i < log->waiting_count; i++) {
        sfc_log_encode_commit(&log->waiting[i],
                              start + g->size + (i - first) * SFC_LOG_COMMIT_BYTES, log->durable,
                              log->commit_bytes + (i - first) * SFC_LOG_COMMIT_BYTES);
    }
    if (log->waiting_count > first) {
        sfc_log_put(g, log->commit_bytes, (log->waiting_count - first) * SFC_LOG_COMMIT_BYTES);
    }
}

static void put_padding(struct sfc_log_gather *g, uint64_t size)
{
    static const uint8_t zeros[8];
    if (sfc_log_padded(size) != size) {
        sfc_log_put(g, zeros, (size_t)(sfc_log_padded(size) - size));
    }
}

/* dense_bytes: 0 where the record has no sums. */
static void put_body(const struct sfc_log_geometry *geometry, uint64_t dense_bytes,
                     struct sfc_log_gather *g, const struct sfc_log_prepare *p)
{
    uint32_t pieces = sfc_log_micro_batches(geometry);
    size_t rows = geometry->micro_batch;
    sfc_log_put(g, &p->lr, sizeof p->lr);
    sfc_log_put(g, p->labels, geometry->batch * sizeof *p->labels);
    for (uint32_t j = 0; j < pieces; j++) {
        sfc_log_put(g, p->features[j], rows * geometry->dim * sizeof **p->features);
    }
    put_padding(g, 4ull * geometry->batch * geometry->dim);
    sfc_log_put(g, p->attempts, pieces * sizeof *p->attempts);
    for (uint32_t j = 0; j < pieces; j++) {
        sfc_log_put(g, p->lse[j], rows * sizeof **p->lse);
    }
    if (dense_bytes > 0) {
        sfc_log_put(g, p->dense, (size_t)dense_bytes);
        put_padding(g, dense_bytes);
    }
}

static void put_prepare(struct sfc_step_log *log, struct sfc_log_gather *g, uint64_t start,
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
    sfc_log_put(g, header, SFC_LOG_RECORD_HEADER);
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
                                       .segment = sfc_log_open_part(log)->number,
                                       .offset = record.offset,
                                       .checksum = record.body_checksum,
                                       .dense_floats = log->config.geometry.dense_floats,
                                       .dense_halves = log->config.geometry.dense_halves,
                                       .dense_blocks = log->config.geometry.dense_blocks};
}

int sfc_log_write_parts(struct sfc_step_log *log, const struct sfc_log_gather *g,
                        struct sfc_error *err)
{
    struct sfc_log_part *part = sfc_log_open_part(log);
    int code = log->folder->ops->write(log->file, part->length, g->parts, g->count, err);
    if (code == SFC_OK) {
        part->length += g->size;
        return SFC_OK;
    }
    if (part->length > log->durable && !log->headless) {
        (void)sfc_log_sync_segment(log, NULL);
    }
    sfc_log_give_up_segment(log);
    return code;
}

static void note_steps(struct sfc_step_log *log, const struct sfc_log_prepare *prepare)
{
    struct sfc_log_part *part = sfc_log_open_part(log);
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

int sfc_log_append_raw(struct sfc_step_log *log, enum sfc_log_type type,
                       const struct sfc_log_prepare *prepare, struct sfc_error *err)
{
    uint8_t segment_header[SFC_LOG_SEGMENT_HEADER], record_header[SFC_LOG_RECORD_HEADER];
    struct sfc_log_place_of place;
    struct sfc_log_gather g = {.parts = log->gather};
    int code = reserve_commit_bytes(log, err);
    if (code == SFC_OK && log->file == NULL) {
        code = sfc_log_open_segment(log, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    uint64_t start = sfc_log_open_part(log)->length;
    if (start == 0) {
        sfc_log_encode_header(log, segment_header);
        sfc_log_put(&g, segment_header, sizeof segment_header);
    }
    put_commits(log, &g, start);
    if (prepare != NULL) {
        put_prepare(log, &g, start, type, prepare, record_header, &place);
    }
    code = sfc_log_write_parts(log, &g, err);
    if (code != SFC_OK) {
        return code;
    }
    note_steps(log, prepare);
    if (prepare != NULL) {
        sfc_log_index_prepare(&log->index, &place);
    }
    return SFC_OK;
}
