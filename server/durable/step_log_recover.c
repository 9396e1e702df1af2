/* Opening a step log that a crash left. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/log_scan.h"
#include "server/durable/step_log_internal.h"

/* Dense blocks come and go: is the set one that this shard has had? */
static bool had_blocks(const struct sfc_step_log_config *config, uint64_t digest)
{
    for (size_t i = 0; i < config->former_count; i++) {
        if (config->former[i] == digest) {
            return true;
        }
    }
    return false;
}

static int check_geometry(const struct sfc_log_geometry *file,
                          const struct sfc_step_log_config *config, struct sfc_error *err)
{
    const struct sfc_log_geometry *own = &config->geometry;
    if (file->batch != own->batch || file->micro_batch != own->micro_batch ||
        file->dim != own->dim) {
        return sfc_fail(
            err, SFC_ESTALE, "has batch %u, micro-batch %u, dim %u; this run has %u, %u, %u",
            file->batch, file->micro_batch, file->dim, own->batch, own->micro_batch, own->dim);
    }
    if (file->dense_blocks != own->dense_blocks && had_blocks(config, file->dense_blocks)) {
        return SFC_OK;
    }
    if (file->dense_floats != own->dense_floats || file->dense_blocks != own->dense_blocks) {
        return sfc_fail(err, SFC_ESTALE,
                        "was written by a shard that owned other backbone blocks (%" PRIu64
                        " floats; this shard owns %" PRIu64
                        "): start each shard with its own --state folder",
                        file->dense_floats, own->dense_floats);
    }
    if (file->dense_halves != own->dense_halves) {
        return sfc_fail(err, SFC_ESTALE,
                        "keeps %" PRIu64 " of %" PRIu64
                        " dense sums as bf16; this run keeps %" PRIu64,
                        file->dense_halves, file->dense_floats, own->dense_halves);
    }
    return SFC_OK;
}

/* Every whole header must be of this run; a format that this version doesn't know is no damage. */
static int check_owner(const struct sfc_step_log *log, const struct sfc_log_file *file,
                       struct sfc_error *err)
{
    const struct sfc_log_scan *scan = &file->scan;
    char name[SFC_LOG_NAME_SIZE];
    int code = SFC_OK;
    if (file->place == SFC_LOG_VOID) {
        return SFC_OK;
    }
    if (scan->header_code == SFC_EUNSUPPORTED) {
        code = sfc_fail(err, SFC_EUNSUPPORTED, "%s", scan->why);
    } else if (scan->header_code == SFC_OK) {
        code = sfc_run_identity_check(&scan->header.identity, &log->config.identity, err);
        if (code == SFC_OK) {
            code = check_geometry(&scan->header.geometry, &log->config, err);
        }
    }
    sfc_log_name(file->number, name);
    return code == SFC_OK ? SFC_OK : (sfc_prefix(err, "%s/%s", log->folder->path, name), code);
}

/* How much of a segment is on the disk for certain: of the newest what its records say. */
static uint64_t certain(const struct sfc_log_file *file, bool newest)
{
    const struct sfc_log_scan *scan = &file->scan;
    bool sure = !newest || SFC_PLANT_BUG == 3; /* bug 3: trusts the page cache */
    return sure || scan->flushed > scan->good_end ? scan->good_end : scan->flushed;
}

static bool is_void(const struct sfc_step_log_recovery *recovery,
                    const struct sfc_log_record *record)
{
    const struct sfc_lineage *x = recovery->lineage;
    return x != NULL && sfc_lineage_void(x->returns, x->count, record->step, record->round);
}

/* The records of one segment up to where it counts. What was prepared above the last commit is void
 * and keeps no segment alive. */
static int take_segment(struct sfc_step_log *log, const struct sfc_log_file *file, bool newest,
                        const struct sfc_step_log_recovery *recovery,
                        struct sfc_step_log_report *report, struct sfc_error *err)
{
    uint64_t last = recovery->has_last ? recovery->last.step : 0;
    const struct sfc_log_scan *scan = &file->scan;
    const struct sfc_log_geometry *g = &scan->header.geometry;
    int code = sfc_step_log_reserve_part(log, err);
    struct sfc_log_part part = {.number = file->number, .length = certain(file, newest)};
    for (size_t i = 0; i < scan->count && code == SFC_OK; i++) {
        const struct sfc_log_record *record = &scan->entries[i].record;
        if (record->offset >= scan->good_end) {
            report->torn_records++;
            continue;
        }
        if (is_void(recovery, record)) {
            report->void_records++;
            continue;
        }
        code = sfc_log_index_reserve(&log->index, err);
        if (code != SFC_OK) {
            break;
        }
        if (record->step <= last && record->step > part.max_step) {
            part.max_step = record->step;
        }
        report->records++;
        if (record->type == SFC_LOG_COMMIT && record->offset >= part.length &&
            record->step <= last) {
            code = sfc_step_log_append_commit(log, &scan->entries[i].commit, err);
        } else if (record->type == SFC_LOG_COMMIT) {
            sfc_log_index_commit(&log->index, &scan->entries[i].commit);
        } else {
            struct sfc_log_place_of place = {.type = record->type,
                                             .step = record->step,
                                             .round = record->round,
                                             .segment = file->number,
                                             .offset = record->offset,
                                             .checksum = record->body_checksum,
                                             .dense_floats = g->dense_floats,
                                             .dense_halves = g->dense_halves,
                                             .dense_blocks = g->dense_blocks};
            sfc_log_index_prepare(&log->index, &place);
        }
    }
    if (code == SFC_OK && part.length < scan->good_end) {
        log->carry_segment = part.number;
        log->carry_from = part.length;
        log->carry_geometry = *g;
    }
    if (code == SFC_OK && scan->header_code == SFC_OK && part.length > SFC_LOG_SEGMENT_HEADER) {
        log->parts[log->part_count++] = part;
    }
    return code;
}

static int take_chain(struct sfc_step_log *log, const struct sfc_log_chain *chain,
                      const struct sfc_step_log_recovery *recovery,
                      struct sfc_step_log_report *report, struct sfc_error *err)
{
    const struct sfc_log_file *newest = sfc_log_chain_newest(chain);
    int code = SFC_OK;
    for (size_t i = 0; i < chain->count && code == SFC_OK; i++) {
        const struct sfc_log_file *file = &chain->files[i];
        code = check_owner(log, file, err);
        if (code == SFC_OK && file->place == SFC_LOG_CHAINED) {
            code = take_segment(log, file, file == newest, recovery, report, err);
            report->torn_bytes += file->scan.end - file->scan.good_end;
            report->torn_records += file->scan.good_end < file->scan.end;
        } else if (code == SFC_OK && file->place == SFC_LOG_UNFINISHED) {
            report->torn_bytes += file->bytes;
        }
        log->next_number = file->number + 1;
    }
    sfc_log_chain_bad(chain, true, report->damage, sizeof report->damage);
    sfc_log_chain_bad(chain, false, report->torn, sizeof report->torn);
    return code;
}

/* Can step `step` be done again? */
static bool have_step(const struct sfc_step_log *log, uint64_t step)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&log->index, step);
    return commit != NULL &&
           (!commit->apply || sfc_log_index_find(&log->index, step, commit->round) != NULL);
}

static uint64_t oldest_segment(const struct sfc_log_chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        if (chain->files[i].place == SFC_LOG_CHAINED) {
            return chain->files[i].number;
        }
    }
    return 0;
}

/* Where the files are whole and a step is not there all the same. */
static void say_gap(const struct sfc_step_log *log, const struct sfc_log_chain *chain,
                    uint64_t step, struct sfc_step_log_report *report)
{
    struct sfc_step_log_state state;
    char given_up[96] = "";
    sfc_step_log_state(log, &state);
    if (report->void_records > 0) {
        snprintf(given_up, sizeof given_up,
                 "; %" PRIu64 " of its records are of what the run gave up", report->void_records);
    }
    if (oldest_segment(chain) == 0) {
        snprintf(report->gap, sizeof report->gap, "segments are gone: the log holds none");
    } else if (state.last_step <= step) { /* equal: prepared there, and its commit is not */
        snprintf(report->gap, sizeof report->gap,
                 "the log ends at step %" PRIu64
                 ": the folder is an old copy, or newer segments are gone%s",
                 state.last_step < step ? state.last_step : step - 1, given_up);
    } else {
        snprintf(report->gap, sizeof report->gap,
                 "segments are gone: the log begins with segment %" PRIu64 "%s",
                 oldest_segment(chain), given_up);
    }
}

static int missing_step(const struct sfc_step_log *log, uint64_t step,
                        const struct sfc_step_log_report *report, struct sfc_error *err)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&log->index, step);
    const char *lacks = commit == NULL ? "commit" : "record";
    const char *bad = report->damage[0] != '\0' ? report->damage : report->torn;
    return sfc_fail(
        err, SFC_ECORRUPT,
        "%s: the %s of step %" PRIu64 ", which was committed, is not in the step log; %s%s; "
        "`shardfc log DIR` lists the damage: restore the run from a checkpoint, or this "
        "folder from a copy",
        log->folder->path, lacks, step, bad[0] != '\0' ? "damaged: " : "",
        bad[0] != '\0' ? bad : report->gap);
}

static int check_steps(const struct sfc_step_log *log, const struct sfc_log_chain *chain,
                       const struct sfc_step_log_recovery *recovery,
                       struct sfc_step_log_report *report, struct sfc_error *err)
{
    uint64_t last = recovery->has_last ? recovery->last.step : 0;
    for (uint64_t step = recovery->from; step <= last; step++) {
        if (have_step(log, step)) {
            continue;
        }
        if (report->missing++ == 0) {
            report->first_missing = step;
            say_gap(log, chain, step, report);
        }
        if (!recovery->peers) {
            return missing_step(log, step, report, err);
        }
    }
    return SFC_OK;
}

/* Remains of failed segments and of trims. They never count again, so an error is no harm. While a
 * segment may be in the page cache only they stay: the one before it may be the one that counts. */
static void remove_void(const struct sfc_step_log *log, const struct sfc_log_chain *chain)
{
    for (size_t i = 0; i < chain->count && log->carry_segment == 0; i++) {
        if (chain->files[i].place != SFC_LOG_CHAINED) {
            char name[SFC_LOG_NAME_SIZE];
            sfc_log_name(chain->files[i].number, name);
            (void)log->folder->ops->remove(log->folder, name, NULL);
        }
    }
}

/* The scheduler knows the last commit; the log may not. */
static int take_last_commit(struct sfc_step_log *log, const struct sfc_step_log_recovery *recovery,
                            struct sfc_error *err)
{
    const struct sfc_log_commit *last = &recovery->last;
    if (!recovery->has_last) {
        return SFC_OK;
    }
    const struct sfc_log_commit *known = sfc_log_index_commit_of(&log->index, last->step);
    if (known != NULL && known->apply == last->apply &&
        sfc_attempt_compare(known->round, last->round) == 0) {
        return SFC_OK;
    }
    return sfc_step_log_append_commit(log, last, err);
}

static int recover(struct sfc_step_log *log, const struct sfc_log_chain *chain,
                   const struct sfc_step_log_recovery *recovery, struct sfc_step_log_report *report,
                   struct sfc_error *err)
{
    int code = take_chain(log, chain, recovery, report, err);
    if (code == SFC_OK) {
        code = take_last_commit(log, recovery, err);
    }
    if (code == SFC_OK) {
        code = check_steps(log, chain, recovery, report, err);
    }
    if (code == SFC_OK) {
        remove_void(log, chain);
        struct sfc_step_log_state state;
        sfc_step_log_state(log, &state);
        report->first_step = state.first_step;
        report->last_step = state.last_step;
        report->bytes = state.bytes;
        report->segments = state.segments;
    }
    return code;
}

int sfc_step_log_recover(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                         const struct sfc_step_log_recovery *recovery, struct sfc_step_log **out,
                         struct sfc_step_log_report *report, struct sfc_error *err)
{
    struct sfc_step_log *log;
    struct sfc_log_chain chain = {0};
    struct sfc_step_log_report found = {0};
    int code = sfc_step_log_new(folder, config, &log, err);
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_log_chain_read(folder, &chain, err);
    if (code == SFC_OK) {
        code = recover(log, &chain, recovery, &found, err);
        sfc_log_chain_free(&chain);
    }
    if (code != SFC_OK) {
        sfc_step_log_close(log);
        return code;
    }
    *out = log;
    *report = found;
    return SFC_OK;
}
