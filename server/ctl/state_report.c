#include "server/ctl/state_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/log_index.h"
#include "server/durable/log_limit.h"
#include "server/durable/log_scan.h"
#include "server/durable/snapshot_store.h"

struct report {
    struct sfc_folder *folder;
    bool records;
    json_t *root, *segments, *record_list, *bad, *snapshots;
    struct sfc_log_chain chain;
    struct sfc_log_index index;
    struct sfc_run_identity identity;
    bool has_identity;
    struct sfc_snapshot_key *whole; /* snapshots without damage */
    size_t whole_count;
    json_int_t problems;
};

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static void note_identity(struct report *r, const struct sfc_run_identity *identity)
{
    if (!r->has_identity) {
        r->identity = *identity;
        r->has_identity = true;
    } else if (sfc_run_identity_check(identity, &r->identity, NULL) != SFC_OK) {
        r->problems++;
    }
}

/* ---- step log */

static const char *state_of(const struct sfc_log_file *file)
{
    switch (file->place) {
    case SFC_LOG_VOID:
        return "void";
    case SFC_LOG_UNFINISHED:
        return file->scan.corrupt ? "corrupt" : "unfinished";
    default:
        return file->scan.corrupt ? "corrupt" : file->scan.bad_count > 0 ? "torn" : "ok";
    }
}

static void add_bad(struct report *r, const char *name, const struct sfc_log_file *file)
{
    const struct sfc_log_scan *scan = &file->scan;
    if (file->place == SFC_LOG_VOID) {
        return;
    }
    if (scan->header_code != SFC_OK) {
        json_array_append_new(r->bad,
                              json_pack("{s:s, s:i, s:o, s:i, s:s, s:s}", "file", name, "offset", 0,
                                        "end", number(file->bytes), "step", 0, "state",
                                        scan->corrupt ? "corrupt" : "torn", "why", scan->why));
        r->problems++;
    }
    for (size_t i = 0; i < scan->bad_count && i < SFC_LOG_SCAN_BAD; i++) {
        const struct sfc_log_bad *bad = &scan->bad[i];
        json_array_append_new(r->bad,
                              json_pack("{s:s, s:o, s:o, s:o, s:s, s:s}", "file", name, "offset",
                                        number(bad->offset), "end", number(bad->end), "step",
                                        number(bad->step), "state",
                                        bad->proven ? "corrupt" : "torn", "why", bad->why));
    }
    r->problems += (json_int_t)scan->bad_count;
}

static json_t *describe_record(const char *name, const struct sfc_log_entry *entry)
{
    const struct sfc_log_record *record = &entry->record;
    char round[48];
    snprintf(round, sizeof round, "%" PRIu64 ".%" PRIu64, record->round.incarnation,
             record->round.counter);
    static const char *const types[] = {
        [SFC_LOG_PREPARE] = "prepare", [SFC_LOG_COMMIT] = "commit", [SFC_LOG_FETCHED] = "fetched"};
    bool commit = record->type == SFC_LOG_COMMIT;
    json_t *object =
        json_pack("{s:s, s:o, s:o, s:s, s:o, s:s}", "file", name, "offset", number(record->offset),
                  "bytes", number(SFC_LOG_RECORD_HEADER + sfc_log_padded(record->body_size)),
                  "type", types[record->type], "step", number(record->step), "round", round);
    if (commit) {
        json_object_set_new(object, "apply", json_boolean(entry->commit.apply));
        json_object_set_new(object, "lr", json_real(entry->commit.lr));
        json_object_set_new(object, "clip_scale", json_real(entry->commit.clip_scale));
    }
    return object;
}

/* The records that count go into the index. */
static int add_records(struct report *r, const char *name, const struct sfc_log_file *file,
                       uint64_t *first, uint64_t *last, struct sfc_error *err)
{
    const struct sfc_log_scan *scan = &file->scan;
    for (size_t i = 0; i < scan->count; i++) {
        const struct sfc_log_record *record = &scan->entries[i].record;
        if (r->records) {
            json_array_append_new(r->record_list, describe_record(name, &scan->entries[i]));
        }
        if (record->offset >= scan->good_end) {
            continue;
        }
        int code = sfc_log_index_reserve(&r->index, err);
        if (code != SFC_OK) {
            return code;
        }
        *first = i == 0 || record->step < *first ? record->step : *first;
        *last = record->step > *last ? record->step : *last;
        if (record->type == SFC_LOG_COMMIT) {
            sfc_log_index_commit(&r->index, &scan->entries[i].commit);
        } else {
            struct sfc_log_place_of place = {.type = record->type,
                                             .step = record->step,
                                             .round = record->round,
                                             .segment = file->number};
            sfc_log_index_prepare(&r->index, &place);
        }
    }
    return SFC_OK;
}

static int add_log(struct report *r, struct sfc_error *err)
{
    int code = sfc_log_chain_read(r->folder, &r->chain, err);
    for (size_t i = r->chain.count; i-- > 0 && code == SFC_OK;) { /* the newest names the run */
        const struct sfc_log_file *file = &r->chain.files[i];
        if (file->place == SFC_LOG_CHAINED && file->scan.header_code == SFC_OK) {
            note_identity(r, &file->scan.header.identity);
        }
    }
    for (size_t i = 0; i < r->chain.count && code == SFC_OK; i++) {
        const struct sfc_log_file *file = &r->chain.files[i];
        char name[SFC_LOG_NAME_SIZE];
        uint64_t first = 0, last = 0;
        sfc_log_name(file->number, name);
        if (file->place == SFC_LOG_CHAINED) {
            code = add_records(r, name, file, &first, &last, err);
        }
        add_bad(r, name, file);
        json_array_append_new(
            r->segments, json_pack("{s:s, s:o, s:o, s:s, s:o, s:o, s:o}", "file", name, "bytes",
                                   number(file->bytes), "counted", number(file->scan.good_end),
                                   "state", state_of(file), "records", number(file->scan.count),
                                   "first", number(first), "last", number(last)));
    }
    return code;
}

/* The limit that the run began with; a run of an earlier version has none. */
static int add_limit(struct report *r, struct sfc_error *err)
{
    struct sfc_error why = {0};
    uint64_t limit = 0;
    int code = sfc_log_limit_load(r->folder, &r->identity, &limit, &why);
    json_object_set_new(r->root, "log_limit", code == SFC_OK ? number(limit) : json_null());
    if (code == SFC_OK || code == SFC_ENOTFOUND) {
        return SFC_OK;
    }
    if (code != SFC_ECORRUPT && code != SFC_ESTALE && code != SFC_EUNSUPPORTED) {
        return sfc_fail(err, code, "%s", why.text);
    }
    r->problems++;
    json_array_append_new(r->bad, json_pack("{s:s, s:o, s:o, s:s, s:s}", "file", SFC_LOG_LIMIT_FILE,
                                            "offset", number(0), "end", number(SFC_LOG_LIMIT_BYTES),
                                            "state", "corrupt", "why", why.text));
    return SFC_OK;
}

/* ---- snapshots */

static int add_snapshot(void *arg, const char *name, struct sfc_error *err)
{
    static const char *const kinds[SFC_SNAPSHOT_KINDS] = {"class", "dense", "history"};
    struct report *r = arg;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_header header;
    struct sfc_error why = {.text = ""};
    if (!sfc_snapshot_parse_name(name, &key)) {
        return SFC_OK;
    }
    struct sfc_snapshot_key *whole = reallocarray(r->whole, r->whole_count + 1, sizeof *r->whole);
    if (whole == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for listing snapshots");
    }
    r->whole = whole;
    int code = sfc_snapshot_check(r->folder, name, &header, &why);
    uint64_t bytes = 0, raw = 0;
    if (code == SFC_OK) {
        note_identity(r, &header.identity);
        bytes = sfc_snapshot_offset(&header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS);
        raw = sfc_snapshot_file_bytes(&header.shape);
        r->whole[r->whole_count++] = key;
    } else {
        r->problems++;
    }
    json_array_append_new(r->snapshots,
                          json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:b, s:s}", "file", name,
                                    "kind", kinds[key.kind], "block", number(key.block), "step",
                                    number(key.step), "bytes", number(bytes), "raw_bytes",
                                    number(raw), "ok", code == SFC_OK, "why", why.text));
    return SFC_OK;
}

static int by_block(const void *a, const void *b)
{
    const struct sfc_snapshot_key *x = a, *y = b;
    if (x->kind != y->kind) {
        return x->kind < y->kind ? -1 : 1;
    }
    if (x->block != y->block) {
        return x->block < y->block ? -1 : 1;
    }
    return x->step > y->step ? -1 : x->step < y->step;
}

struct stamps {
    uint64_t floor;          /* least second-newest */
    uint64_t oldest, newest; /* of each block's newest */
};

static struct stamps read_stamps(struct report *r)
{
    struct stamps s = {0};
    if (r->whole_count > 0) {
        qsort(r->whole, r->whole_count, sizeof *r->whole, by_block);
        s.floor = s.oldest = UINT64_MAX;
    }
    for (size_t i = 0; i < r->whole_count;) {
        const struct sfc_snapshot_key *newest = &r->whole[i];
        size_t n = 1;
        while (i + n < r->whole_count && newest[n].kind == newest->kind &&
               newest[n].block == newest->block) {
            n++;
        }
        uint64_t second = newest[n > 1 ? 1 : 0].step;
        s.floor = second < s.floor ? second : s.floor;
        s.oldest = newest->step < s.oldest ? newest->step : s.oldest;
        s.newest = newest->step > s.newest ? newest->step : s.newest;
        i += n;
    }
    return s;
}

/* ---- what can be given back */

static bool has_prepare(const struct report *r, uint64_t step)
{
    for (size_t i = 0; i < r->index.prepare_count; i++) {
        if (r->index.prepares[i].step == step) {
            return true;
        }
    }
    return false;
}

static bool has_step(const struct report *r, uint64_t step)
{
    const struct sfc_log_commit *commit = sfc_log_index_commit_of(&r->index, step);
    return commit != NULL &&
           (!commit->apply || sfc_log_index_find(&r->index, step, commit->round) != NULL);
}

/* Replay begins behind the oldest of the blocks' newest snapshots (without any: the seed, step 0)
 * and must get at least to the newest of them. */
static json_t *recoverable(struct report *r, const struct stamps *stamps)
{
    uint64_t to = stamps->oldest;
    while (has_step(r, to + 1)) {
        to++;
    }
    bool prepared = has_prepare(r, to + 1);
    if (to + (prepared ? 1 : 0) < stamps->newest ||
        (r->whole_count == 0 && r->index.prepare_count > 0 && to == 0 && !prepared)) {
        r->problems++;
        return json_null();
    }
    uint64_t from = stamps->newest > to ? to + 1 : stamps->newest;
    return json_pack("{s:o, s:o, s:o}", "from", number(from), "to", number(to > from ? to : from),
                     "prepared", number(prepared ? to + 1 : 0));
}

static void describe_run(struct report *r)
{
    char config[2 * SFC_DIGEST_SIZE + 1];
    sfc_hex(r->identity.config_digest, SFC_DIGEST_SIZE, config);
    json_object_set_new(r->root, "run", number(r->identity.run_id));
    json_object_set_new(r->root, "numerics", json_string(r->identity.numerics));
    json_object_set_new(r->root, "config", json_string(config));
}

static int fill(struct report *r, struct sfc_error *err)
{
    int code = add_log(r, err);
    if (code == SFC_OK) {
        code = r->folder->ops->list(r->folder, add_snapshot, r, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    if (r->chain.count + json_array_size(r->snapshots) == 0) {
        return sfc_fail(
            err, SFC_ENOTFOUND,
            "%s: no step log, no snapshots, no checkpoint: name the --state folder of a "
            "shard, a run-ID folder in it, or what `shardfc checkpoint --out` made",
            r->folder->path);
    }
    if (r->has_identity && (code = add_limit(r, err)) != SFC_OK) {
        return code;
    }
    struct stamps stamps = read_stamps(r);
    describe_run(r);
    json_object_set_new(r->root, "floor", number(stamps.floor));
    json_object_set_new(r->root, "recoverable", recoverable(r, &stamps));
    json_object_set_new(r->root, "problems", json_integer(r->problems));
    return SFC_OK;
}

int sfc_state_report(struct sfc_folder *folder, bool records, json_t **out, struct sfc_error *err)
{
    struct report r = {.folder = folder,
                       .records = records,
                       .root = json_object(),
                       .segments = json_array(),
                       .record_list = json_array(),
                       .bad = json_array(),
                       .snapshots = json_array()};
    json_object_set_new(r.root, "folder", json_string(folder->path));
    json_object_set_new(r.root, "segments", r.segments);
    json_object_set_new(r.root, "records", r.record_list);
    json_object_set_new(r.root, "bad", r.bad);
    json_object_set_new(r.root, "snapshots", r.snapshots);
    int code = fill(&r, err);
    sfc_log_chain_free(&r.chain);
    sfc_log_index_free(&r.index);
    free(r.whole);
    if (code != SFC_OK) {
        json_decref(r.root);
        return code;
    }
    *out = r.root;
    return SFC_OK;
}

/* ---- text */

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static uint64_t number_of(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static void print_log(const json_t *report, FILE *file)
{
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(report, "segments"), i, o)
    {
        fprintf(file,
                "%s  %12" PRIu64 " bytes  %6" PRIu64 " records  steps %" PRIu64 "-%" PRIu64
                "  %s\n",
                text_of(o, "file"), number_of(o, "bytes"), number_of(o, "records"),
                number_of(o, "first"), number_of(o, "last"), text_of(o, "state"));
    }
    json_array_foreach(json_object_get(report, "records"), i, o)
    {
        fprintf(file,
                "  %s  byte %12" PRIu64 "  %-7s  step %" PRIu64 "  round %s  %" PRIu64
                " bytes  ok\n",
                text_of(o, "file"), number_of(o, "offset"), text_of(o, "type"),
                number_of(o, "step"), text_of(o, "round"), number_of(o, "bytes"));
    }
    json_array_foreach(json_object_get(report, "bad"), i, o)
    {
        fprintf(file, "%s: %s: bytes %" PRIu64 " to %" PRIu64 ": %s%s\n", text_of(o, "state"),
                text_of(o, "file"), number_of(o, "offset"), number_of(o, "end"), text_of(o, "why"),
                strcmp(text_of(o, "state"), "torn") == 0
                    ? " (dropped at the next start, if no step there was committed)"
                    : "");
    }
}

void sfc_state_report_print(const json_t *report, FILE *file)
{
    size_t i;
    json_t *o;
    fprintf(file, "%s: run %" PRIu64 ", numerics '%s', configuration %s\n",
            text_of(report, "folder"), number_of(report, "run"), text_of(report, "numerics"),
            text_of(report, "config"));
    print_log(report, file);
    json_array_foreach(json_object_get(report, "snapshots"), i, o)
    {
        bool ok = json_is_true(json_object_get(o, "ok"));
        uint64_t bytes = number_of(o, "bytes"), raw = number_of(o, "raw_bytes");
        fprintf(file, "%s  %12" PRIu64 " bytes  ", text_of(o, "file"), bytes);
        if (bytes != raw) {
            fprintf(file, "zstd, %.1f %% of %" PRIu64 "  ", 100.0 * (double)bytes / (double)raw,
                    raw);
        }
        fprintf(file, "%s\n", ok ? "ok" : text_of(o, "why"));
    }
    fprintf(file, "floor: the log is needed from step %" PRIu64 " on\n",
            number_of(report, "floor") + 1);
    const json_t *range = json_object_get(report, "recoverable");
    if (json_is_null(range)) {
        fprintf(file,
                "NOT recoverable: the log does not reach from the snapshots to one step; restore "
                "the run from a checkpoint, or this folder from a copy\n");
    } else {
        fprintf(file, "recoverable: steps %" PRIu64 " to %" PRIu64, number_of(range, "from"),
                number_of(range, "to"));
        uint64_t prepared = number_of(range, "prepared");
        if (prepared > number_of(range, "to")) {
            fprintf(file, ", and step %" PRIu64 " if the scheduler committed it", prepared);
        }
        fprintf(file, "\n");
    }
    fprintf(file, "%" PRIu64 " problems\n", number_of(report, "problems"));
}
