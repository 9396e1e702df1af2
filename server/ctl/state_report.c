#include "server/ctl/state_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/ctl/given_up.h"
#include "server/durable/log_index.h"
#include "server/durable/dense_list.h"
#include "server/durable/log_limit.h"
#include "server/durable/log_scan.h"
#include "server/durable/snapshot_store.h"

struct report {
    struct sfc_folder *folder;
    bool records;
    json_t *root, *segments, *record_list, *bad, *snapshots, *dense_lists;
    struct sfc_log_chain chain;
    struct sfc_log_index index;
    struct sfc_run_identity identity;
    bool has_identity;
    struct sfc_round_facts facts;
    struct found *found; /* snapshots without damage; later only those that count */
    size_t found_count;
    json_int_t problems;
};

struct found {
    struct sfc_snapshot_key key;
    json_t *object; /* borrowed from the list */
};

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* Of the first file that has one, which are the segments of the log. */
static int note_identity(struct report *r, const struct sfc_run_identity *identity,
                         struct sfc_error *why)
{
    if (r->has_identity) {
        return sfc_run_identity_check(identity, &r->identity, why);
    }
    r->identity = *identity;
    r->has_identity = true;
    return SFC_OK;
}

enum { WHY = 96 };

/* What shows that this does not count, "" if nothing does; dropped: by the shard at its next start.
 */
static void find_against(const struct report *r, uint64_t step, struct sfc_attempt round,
                         bool dropped, char why[WHY])
{
    const struct sfc_round_fact *against = sfc_round_facts_against(&r->facts, step, round);
    if (against != NULL) {
        snprintf(why, WHY, "step %" PRIu64 " came again in round %" PRIu64 ".%" PRIu64,
                 against->step, against->round.incarnation, against->round.counter);
    } else {
        snprintf(why, WHY, "%s", dropped ? "behind a torn stretch" : "");
    }
}

static void mark(json_t *object, const char *why)
{
    json_object_set_new(object, "void", json_boolean(why[0] != '\0'));
    json_object_set_new(object, "why", json_string(why));
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

static bool counts(const struct sfc_log_file *file, const struct sfc_log_record *record)
{
    return file->place == SFC_LOG_CHAINED && record->offset < file->scan.good_end;
}

static int note_rounds(struct report *r, const struct sfc_log_file *file, struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i < file->scan.count && code == SFC_OK; i++) {
        const struct sfc_log_record *record = &file->scan.entries[i].record;
        if (counts(file, record)) {
            code = sfc_round_facts_add(&r->facts, record->step, record->round, err);
        }
    }
    return code;
}

static int index_record(struct report *r, const struct sfc_log_file *file,
                        const struct sfc_log_entry *entry, struct sfc_error *err)
{
    const struct sfc_log_record *record = &entry->record;
    int code = sfc_log_index_reserve(&r->index, err);
    if (code != SFC_OK) {
        return code;
    }
    if (record->type == SFC_LOG_COMMIT) {
        sfc_log_index_commit(&r->index, &entry->commit);
    } else {
        struct sfc_log_place_of place = {.type = record->type,
                                         .step = record->step,
                                         .round = record->round,
                                         .segment = file->number};
        sfc_log_index_prepare(&r->index, &place);
    }
    return SFC_OK;
}

struct tally { /* of a segment: steps of the records that count, and how many don't */
    uint64_t first, last, given_up;
};

/* The records that count go into the index. */
static int add_records(struct report *r, const char *name, const struct sfc_log_file *file,
                       struct tally *tally, struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i < file->scan.count && code == SFC_OK; i++) {
        const struct sfc_log_entry *entry = &file->scan.entries[i];
        uint64_t step = entry->record.step;
        char why[WHY];
        find_against(r, step, entry->record.round, !counts(file, &entry->record), why);
        if (r->records) {
            json_t *object = describe_record(name, entry);
            mark(object, why);
            json_array_append_new(r->record_list, object);
        }
        if (why[0] != '\0') {
            tally->given_up++;
            continue;
        }
        tally->first = tally->first == 0 || step < tally->first ? step : tally->first;
        tally->last = step > tally->last ? step : tally->last;
        code = index_record(r, file, entry, err);
    }
    return code;
}

/* Reads it all; what counts is known when the snapshots are read as well. */
static int read_log(struct report *r, struct sfc_error *err)
{
    int code = sfc_log_chain_read(r->folder, &r->chain, err);
    for (size_t i = r->chain.count; i-- > 0 && code == SFC_OK;) { /* the newest names the run */
        const struct sfc_log_file *file = &r->chain.files[i];
        if (file->place != SFC_LOG_CHAINED || file->scan.header_code != SFC_OK) {
            continue;
        }
        struct sfc_error why;
        if (note_identity(r, &file->scan.header.identity, &why) != SFC_OK) {
            char name[SFC_LOG_NAME_SIZE];
            sfc_log_name(file->number, name);
            r->problems++;
            json_array_append_new(r->bad,
                                  json_pack("{s:s, s:i, s:i, s:i, s:s, s:s}", "file", name,
                                            "offset", 0, "end", SFC_LOG_SEGMENT_HEADER, "step", 0,
                                            "state", "foreign", "why", why.text));
        }
        code = note_rounds(r, file, err);
    }
    return code;
}

static int add_log(struct report *r, struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i < r->chain.count && code == SFC_OK; i++) {
        const struct sfc_log_file *file = &r->chain.files[i];
        char name[SFC_LOG_NAME_SIZE];
        struct tally tally = {0};
        sfc_log_name(file->number, name);
        if (file->place == SFC_LOG_CHAINED) {
            code = add_records(r, name, file, &tally, err);
        }
        add_bad(r, name, file);
        json_array_append_new(
            r->segments, json_pack("{s:s, s:o, s:o, s:s, s:o, s:o, s:o, s:o}", "file", name,
                                   "bytes", number(file->bytes), "counted",
                                   number(file->scan.good_end), "state", state_of(file), "records",
                                   number(file->scan.count), "void", number(tally.given_up),
                                   "first", number(tally.first), "last", number(tally.last)));
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

/* Which dense blocks the sums in segments are of. */
static int add_dense_list(void *arg, const char *name, struct sfc_error *err)
{
    struct report *r = arg;
    struct sfc_error why = {.text = ""};
    struct sfc_dense_list list = {0};
    uint64_t digest;
    if (!sfc_dense_list_parse_name(name, &digest)) {
        return SFC_OK;
    }
    int code = sfc_dense_list_read(r->folder, name, &r->identity, &list, &why);
    if (code == SFC_ENOMEM) {
        return sfc_fail(err, code, "%s", why.text);
    }
    if (code == SFC_ENOTFOUND) { /* removed since it was listed */
        return SFC_OK;
    }
    json_array_append_new(r->dense_lists,
                          json_pack("{s:s, s:o, s:b, s:s}", "file", name, "blocks",
                                    number(list.count), "ok", code == SFC_OK, "why", why.text));
    r->problems += code != SFC_OK;
    free(list.blocks);
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
    struct found *found = reallocarray(r->found, r->found_count + 1, sizeof *r->found);
    if (found == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for listing snapshots");
    }
    r->found = found;
    int code = sfc_snapshot_check(r->folder, name, &header, &why);
    if (code == SFC_ENOTFOUND) { /* removed since it was listed */
        return SFC_OK;
    }
    uint64_t bytes = 0, raw = 0;
    if (code == SFC_OK) {
        bytes = sfc_snapshot_offset(&header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS);
        raw = sfc_snapshot_file_bytes(&header.shape);
        code = note_identity(r, &header.identity, &why);
    }
    json_t *object = json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:b, s:b, s:s}", "file", name,
                               "kind", kinds[key.kind], "block", number(key.block), "step",
                               number(key.step), "bytes", number(bytes), "raw_bytes", number(raw),
                               "ok", code == SFC_OK, "void", 0, "why", why.text);
    json_array_append_new(r->snapshots, object);
    if (code != SFC_OK) {
        r->problems++;
        return SFC_OK;
    }
    r->found[r->found_count++] = (struct found){.key = header.key, .object = object};
    return sfc_round_facts_add(&r->facts, key.step, header.key.round, err);
}

static int by_block(const void *a, const void *b)
{
    const struct sfc_snapshot_key *x = &((const struct found *)a)->key;
    const struct sfc_snapshot_key *y = &((const struct found *)b)->key;
    if (x->kind != y->kind) {
        return x->kind < y->kind ? -1 : 1;
    }
    if (x->block != y->block) {
        return x->block < y->block ? -1 : 1;
    }
    return x->step > y->step ? -1 : x->step < y->step;
}

/* Only those that count stay, block by block, newest first. */
static void choose_snapshots(struct report *r)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->found_count; i++) {
        const struct sfc_snapshot_key *key = &r->found[i].key;
        char why[WHY];
        find_against(r, key->step, key->round, false, why);
        mark(r->found[i].object, why);
        if (why[0] == '\0') {
            r->found[kept++] = r->found[i];
        }
    }
    r->found_count = kept;
    if (kept > 0) {
        qsort(r->found, kept, sizeof *r->found, by_block);
    }
}

struct stamps {
    uint64_t floor;          /* least second-newest */
    uint64_t oldest, newest; /* of each block's newest */
};

static struct stamps read_stamps(const struct report *r)
{
    struct stamps s = {0};
    if (r->found_count > 0) {
        s.floor = s.oldest = UINT64_MAX;
    }
    for (size_t i = 0; i < r->found_count;) {
        const struct found *newest = &r->found[i];
        size_t n = 1;
        while (i + n < r->found_count && newest[n].key.kind == newest->key.kind &&
               newest[n].key.block == newest->key.block) {
            n++;
        }
        uint64_t second = newest[n > 1 ? 1 : 0].key.step;
        s.floor = second < s.floor ? second : s.floor;
        s.oldest = newest->key.step < s.oldest ? newest->key.step : s.oldest;
        s.newest = newest->key.step > s.newest ? newest->key.step : s.newest;
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
        (r->found_count == 0 && r->index.prepare_count > 0 && to == 0 && !prepared)) {
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
    int code = read_log(r, err);
    if (code == SFC_OK) {
        code = r->folder->ops->list(r->folder, add_snapshot, r, err);
    }
    if (code == SFC_OK) {
        sfc_round_facts_order(&r->facts);
        choose_snapshots(r);
        code = add_log(r, err);
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
    if (r->has_identity && (code = add_limit(r, err)) == SFC_OK) {
        code = r->folder->ops->list(r->folder, add_dense_list, r, err);
    }
    if (code != SFC_OK) {
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
                       .snapshots = json_array(),
                       .dense_lists = json_array()};
    json_object_set_new(r.root, "folder", json_string(folder->path));
    json_object_set_new(r.root, "segments", r.segments);
    json_object_set_new(r.root, "records", r.record_list);
    json_object_set_new(r.root, "bad", r.bad);
    json_object_set_new(r.root, "dense_lists", r.dense_lists);
    json_object_set_new(r.root, "snapshots", r.snapshots);
    int code = fill(&r, err);
    sfc_log_chain_free(&r.chain);
    sfc_log_index_free(&r.index);
    sfc_round_facts_free(&r.facts);
    free(r.found);
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

static void print_segment(const json_t *segment, FILE *file)
{
    uint64_t given_up = number_of(segment, "void"), last = number_of(segment, "last");
    fprintf(file, "%s  %12" PRIu64 " bytes  %6" PRIu64 " records  ", text_of(segment, "file"),
            number_of(segment, "bytes"), number_of(segment, "records"));
    if (last > 0) {
        fprintf(file, "steps %" PRIu64 "-%" PRIu64 "  ", number_of(segment, "first"), last);
    }
    if (given_up > 0) {
        fprintf(file, "%" PRIu64 " void  ", given_up);
    }
    fprintf(file, "%s\n", text_of(segment, "state"));
}

/* Of a record or snapshot that is whole. */
static void print_state(const json_t *object, FILE *file)
{
    bool is_void = json_is_true(json_object_get(object, "void"));
    fprintf(file, "%s%s\n", is_void ? "void: " : "ok", is_void ? text_of(object, "why") : "");
}

static void print_log(const json_t *report, FILE *file)
{
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(report, "segments"), i, o)
    {
        print_segment(o, file);
    }
    json_array_foreach(json_object_get(report, "records"), i, o)
    {
        fprintf(file,
                "  %s  byte %12" PRIu64 "  %-7s  step %" PRIu64 "  round %s  %" PRIu64 " bytes  ",
                text_of(o, "file"), number_of(o, "offset"), text_of(o, "type"),
                number_of(o, "step"), text_of(o, "round"), number_of(o, "bytes"));
        print_state(o, file);
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

static void print_dense_lists(const json_t *report, FILE *file)
{
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(report, "dense_lists"), i, o)
    {
        if (json_is_true(json_object_get(o, "ok"))) {
            fprintf(file, "%s  %" PRIu64 " dense blocks  ok\n", text_of(o, "file"),
                    number_of(o, "blocks"));
        } else {
            fprintf(file,
                    "corrupt: %s: %s: sums in segments that name it are of unknown blocks; put it "
                    "back from a copy of this folder\n",
                    text_of(o, "file"), text_of(o, "why"));
        }
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
    print_dense_lists(report, file);
    json_array_foreach(json_object_get(report, "snapshots"), i, o)
    {
        bool ok = json_is_true(json_object_get(o, "ok"));
        uint64_t bytes = number_of(o, "bytes"), raw = number_of(o, "raw_bytes");
        fprintf(file, "%s  %12" PRIu64 " bytes  ", text_of(o, "file"), bytes);
        if (bytes != raw) {
            fprintf(file, "zstd, %.1f %% of %" PRIu64 "  ", 100.0 * (double)bytes / (double)raw,
                    raw);
        }
        if (ok) {
            print_state(o, file);
        } else {
            fprintf(file, "%s\n", text_of(o, "why"));
        }
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
