/* What the process before wrote last is written again. */
#include <stdlib.h>
#include <string.h>

#include "server/durable/step_log_internal.h"

/* Is this a record behind carry_from that replay may need? */
static bool is_carried(const struct sfc_step_log *log, const struct sfc_log_place_of *place)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&log->index, place->step);
    return place->segment == log->carry_segment && place->offset >= log->carry_from &&
           commit != NULL && commit->apply && sfc_attempt_compare(commit->round, place->round) == 0;
}

/* Writes the record at *place again; *place says where, then. */
static int carry_record(struct sfc_step_log *log, struct sfc_log_body *body,
                        struct sfc_log_place_of *place, struct sfc_error *err)
{
    uint8_t record_header[SFC_LOG_RECORD_HEADER];
    size_t size = sfc_log_body_size_at(&log->config.geometry, place);
    struct sfc_log_prepare_view view;
    struct sfc_file *file;
    struct sfc_log_gather g = {.parts = log->gather};
    int code = sfc_log_file_of(log, place->segment, &file, err);
    if (code == SFC_OK) {
        code = sfc_log_read_record(file, &log->config.geometry, place, body, &view, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_log_part *part = sfc_log_open_part(log);
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
    sfc_log_put(&g, record_header, sizeof record_header);
    sfc_log_put(&g, body->data, size);
    part->max_step = place->step > part->max_step ? place->step : part->max_step;
    return sfc_log_write_parts(log, &g, err);
}

/* A segment whose header comes last, when what it stands for is durable: until then the segment
 * before it is the newest one, with all that it has. */
static int begin_carry(struct sfc_step_log *log, struct sfc_error *err)
{
    int code = sfc_log_open_segment(log, err);
    if (code == SFC_OK) {
        sfc_log_open_part(log)->length = SFC_LOG_SEGMENT_HEADER;
        log->headless = true;
    }
    return code;
}

static int end_carry(struct sfc_step_log *log, struct sfc_error *err)
{
    uint8_t header[SFC_LOG_SEGMENT_HEADER];
    struct sfc_bytes bytes = {header, sizeof header};
    const struct sfc_folder_ops *ops = log->folder->ops;
    sfc_log_encode_header(log, header);
    int code = ops->sync(log->file, err);
    if (code == SFC_OK) {
        code = ops->write(log->file, 0, &bytes, 1, err);
    }
    if (code != SFC_OK) {
        sfc_log_give_up_segment(log);
        return code;
    }
    log->headless = false;
    code = sfc_log_make_durable(log, err);
    if (code == SFC_OK && log->carry_geometry.dense_blocks != log->config.geometry.dense_blocks) {
        sfc_log_close_segment(log); /* what comes now is of other dense blocks */
    }
    return code;
}

static int carry_records(struct sfc_step_log *log, struct sfc_log_body *body,
                         struct sfc_log_place_of *places, struct sfc_error *err)
{
    struct sfc_log_index *x = &log->index;
    int code = begin_carry(log, err);
    if (code == SFC_OK && log->waiting_count > 0) {
        code = sfc_log_append_raw(log, SFC_LOG_PREPARE, NULL, err);
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
        sfc_log_give_up_segment(log);
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

int sfc_log_carry_over(struct sfc_step_log *log, struct sfc_error *err)
{
    if (log->carry_segment == 0 || !anything_to_carry(log)) {
        log->carry_segment = 0;
        return SFC_OK;
    }
    struct sfc_log_body body = {0};
    struct sfc_log_place_of *places = calloc(log->index.prepare_count + 1, sizeof *places);
    int code = places == NULL
                   ? sfc_fail(err, SFC_ENOMEM, "out of memory for the last step of the log")
                   : carry_records(log, &body, places, err);
    sfc_log_body_free(&body);
    free(places);
    if (code == SFC_OK) {
        log->carry_segment = 0;
    }
    return code;
}
