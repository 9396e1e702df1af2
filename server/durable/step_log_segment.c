/* The open segment of a step log: made, synced, given up. */
#include <stdlib.h>
#include <string.h>

#include "server/durable/step_log_internal.h"

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

struct sfc_log_part *sfc_log_open_part(const struct sfc_step_log *log)
{
    return &log->parts[log->part_count - 1];
}

void sfc_log_close_segment(struct sfc_step_log *log)
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
    log->durable = sfc_log_open_part(log)->length;
    if (log->waiting_written > 0) {
        log->waiting_count -= log->waiting_written;
        memmove(log->waiting, log->waiting + log->waiting_written,
                log->waiting_count * sizeof *log->waiting);
    }
    log->waiting_written = 0;
}

int sfc_log_sync_segment(struct sfc_step_log *log, struct sfc_error *err)
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

void sfc_log_give_up_segment(struct sfc_step_log *log)
{
    struct sfc_log_part *part = sfc_log_open_part(log);
    log->failures++;
    uint64_t dropped = sfc_log_index_drop(&log->index, part->number, log->durable);
    log->lost = log->lost || dropped <= log->committed;
    if (log->durable > SFC_LOG_SEGMENT_HEADER) {
        part->length = log->durable;
        (void)log->folder->ops->resize(log->file, log->durable, NULL);
        sfc_log_close_segment(log);
        return;
    }
    char name[SFC_LOG_NAME_SIZE];
    sfc_log_name(part->number, name);
    sfc_log_close_segment(log);
    log->part_count--;
    (void)log->folder->ops->remove(log->folder, name, NULL);
}

int sfc_log_make_durable(struct sfc_step_log *log, struct sfc_error *err)
{
    if (log->file == NULL || log->durable == sfc_log_open_part(log)->length) {
        return SFC_OK;
    }
    int code = sfc_log_sync_segment(log, err);
    if (code != SFC_OK) {
        sfc_log_give_up_segment(log);
    }
    return code;
}

void sfc_log_encode_header(const struct sfc_step_log *log, uint8_t out[SFC_LOG_SEGMENT_HEADER])
{
    struct sfc_log_segment segment = {.identity = log->config.identity,
                                      .geometry = log->headless ? log->carry_geometry
                                                                : log->config.geometry,
                                      .number = sfc_log_open_part(log)->number};
    if (log->part_count > 1) {
        segment.previous = log->parts[log->part_count - 2].number;
        segment.previous_length = log->parts[log->part_count - 2].length;
    }
    sfc_log_encode_segment(&segment, out);
}

int sfc_log_open_segment(struct sfc_step_log *log, struct sfc_error *err)
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
