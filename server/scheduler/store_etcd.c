/* The state store in etcd. docs/FORMATS.md has the keys. Each write is one transaction that only
 * the leader can make (etcd_lead.h); so between two of them nothing changes but by us. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limits.h"
#include "proto/unpack.h"
#include "server/scheduler/etcd_lead.h"
#include "server/scheduler/etcd_records.h"
#include "server/scheduler/store_impl.h"

#define FORMAT "1"

enum {
    STANDBY_MS = 250, /* between two looks at who leads */
    KEY_MAX = SFC_ETCD_PREFIX + 96,
    PIECE = 1 << 20, /* etcd takes requests of 1.5 MiB */
    BLOB_MAX = SFC_LIMIT_HEAD,
    RUNS_KEPT = 8,
    MAPS_KEPT = 2,
    COMMITS_KEPT = 100000,  /* of a run */
    COMMITS_TRIMMED = 1000, /* at a time */
    EVENTS_KEPT = 10000,
    EVENTS_TRIMMED = 100,
    PAGE_FIRST = 4, /* keys of the first page of a long read, doubled from page to page */
    PAGE_MAX = 512
};

struct etcd_store {
    struct sfc_store base;
    struct sfc_etcd *etcd;
    struct sfc_lead *lead;
    /* What the newest keys are; 0: not read yet. */
    uint64_t commits_run, last_step; /* of this run the newest record is of last_step */
    uint64_t last_event;
    bool events_known;
};

static struct etcd_store *etcd_of(struct sfc_store *base)
{
    return (struct etcd_store *)base; /* its first member */
}

/* ---- keys */

static void key_of(const struct etcd_store *s, char out[KEY_MAX], const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void key_of(const struct etcd_store *s, char out[KEY_MAX], const char *format, ...)
{
    int size = snprintf(out, KEY_MAX, "%s/", sfc_etcd_prefix(s->etcd));
    va_list args;
    va_start(args, format);
    vsnprintf(out + size, KEY_MAX - (size_t)size, format, args);
    va_end(args);
}

/* So that keys sort like numbers. */
#define NUMBER "%020" PRIu64

/* The first key behind all that begin with `folder`, which ends with '/'. */
static void end_of(char out[KEY_MAX], const char *folder)
{
    size_t size = strlen(folder);
    memcpy(out, folder, size + 1);
    out[size - 1] = '/' + 1;
}

/* Part `back` of a key, counted from its end, 0: the last one. */
static uint64_t number_in(const Etcdserverpb__KeyValue *kv, unsigned back)
{
    char text[KEY_MAX];
    size_t size = kv->key.len < KEY_MAX ? kv->key.len : KEY_MAX - 1;
    memcpy(text, kv->key.data, size);
    text[size] = '\0';
    char *slash = strrchr(text, '/');
    for (; slash && back > 0; back--) {
        *slash = '\0';
        slash = strrchr(text, '/');
    }
    return slash ? strtoull(slash + 1, NULL, 10) : 0;
}

/* ---- reading */

static const Etcdserverpb__RangeResponse *reply_of(const struct sfc_answer *answer)
{
    return (const Etcdserverpb__RangeResponse *)answer->message;
}

/* One value; free the answer. SFC_ENOTFOUND: there is none. */
static int read_one(struct etcd_store *s, const char *key, struct sfc_answer *answer,
                    ProtobufCBinaryData *value, const char *what, struct sfc_error *err)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r.key = sfc_etcd_text(key);
    int code = sfc_lead_read(s->lead, &r, answer, what, err);
    if (code == SFC_OK && reply_of(answer)->n_kvs != 1) {
        sfc_answer_free(answer);
        return sfc_fail(err, SFC_ENOTFOUND, "%s: etcd has no %s", what, key);
    }
    if (code == SFC_OK)
        *value = reply_of(answer)->kvs[0]->value;
    return code;
}

/* The message under a key; free it with sfc_stored_free. */
static int read_message(struct etcd_store *s, const char *key,
                        const ProtobufCMessageDescriptor *type, void *out, const char *what,
                        struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    int code = read_one(s, key, &answer, &value, what, err);
    if (code == SFC_OK)
        code = sfc_stored_unpack(value, type, key, out, err);
    sfc_answer_free(&answer);
    return code;
}

/* Keys from `from` to before `end`, at most `limit`; backwards: the highest. */
static int read_range(struct etcd_store *s, const char *from, const char *end, size_t limit,
                      bool backwards, struct sfc_answer *answer, const char *what,
                      struct sfc_error *err)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r.key = sfc_etcd_text(from);
    r.range_end = sfc_etcd_text(end);
    r.limit = (int64_t)limit;
    r.sort_order = backwards ? ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND
                             : ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE; /* ascending */
    return sfc_lead_read(s->lead, &r, answer, what, err);
}

/* A long range, page by page: take is called for each key, ascending, until it says false. */
static int walk(struct etcd_store *s, const char *from, const char *end,
                int (*take)(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                            struct sfc_error *err),
                void *ctx, const char *what, struct sfc_error *err)
{
    char at[KEY_MAX + 1];
    bool more = true;
    snprintf(at, sizeof at, "%s", from);
    for (size_t page = PAGE_FIRST; more; page = page < PAGE_MAX ? 2 * page : page) {
        struct sfc_answer answer = {0};
        int code = read_range(s, at, end, page, false, &answer, what, err);
        if (code != SFC_OK)
            return code;
        const Etcdserverpb__RangeResponse *r = reply_of(&answer);
        for (size_t i = 0; i < r->n_kvs && more && code == SFC_OK; i++) {
            const Etcdserverpb__KeyValue *kv = r->kvs[i];
            code = take(kv, ctx, &more, err);
            /* the next key that there can be */
            snprintf(at, sizeof at, "%.*s!", (int)kv->key.len, (const char *)kv->key.data);
        }
        more = more && r->more && r->n_kvs > 0;
        sfc_answer_free(&answer);
        if (code != SFC_OK)
            return code;
    }
    return SFC_OK;
}

/* The highest number under a folder; 0: nothing is there. */
static int read_last(struct etcd_store *s, const char *folder, uint64_t *out, const char *what,
                     struct sfc_error *err)
{
    char end[KEY_MAX];
    struct sfc_answer answer = {0};
    end_of(end, folder);
    int code = read_range(s, folder, end, 1, true, &answer, what, err);
    if (code == SFC_OK)
        *out = reply_of(&answer)->n_kvs ? number_in(reply_of(&answer)->kvs[0], 0) : 0;
    sfc_answer_free(&answer);
    return code;
}

/* ---- writing */

static int write_text(struct etcd_store *s, const char *key, const char *text, const char *what,
                      struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    sfc_lead_put(&w, key, (struct sfc_bytes){(const uint8_t *)text, strlen(text)});
    return sfc_lead_commit(s->lead, &w, what, err);
}

static int write_message(struct etcd_store *s, const char *key, const void *message,
                         const char *what, struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    int code = sfc_stored_pack(message, &bytes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        code = sfc_lead_commit(s->lead, &w, what, err);
    }
    free((void *)(uintptr_t)bytes.data);
    return code;
}

/* ---- long values, in pieces. They count when a later write names their size. */

enum { PIECE_KEY_MAX = KEY_MAX + 24 };

static void piece_key(char out[PIECE_KEY_MAX], const char *folder, size_t i)
{
    snprintf(out, PIECE_KEY_MAX, "%s" NUMBER, folder, (uint64_t)i);
}

static int write_pieces(struct etcd_store *s, const char *folder, const uint8_t *data, size_t size,
                        const char *what, struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i * PIECE < size && code == SFC_OK; i++) {
        char key[PIECE_KEY_MAX];
        struct sfc_lead_write w = {.count = 0};
        size_t left = size - i * PIECE;
        piece_key(key, folder, i);
        sfc_lead_put(&w, key, (struct sfc_bytes){data + i * PIECE, left < PIECE ? left : PIECE});
        code = sfc_lead_commit(s->lead, &w, what, err);
    }
    return code;
}

static int read_piece(struct etcd_store *s, const char *folder, size_t i, uint8_t *to, size_t size,
                      const char *what, struct sfc_error *err)
{
    char key[PIECE_KEY_MAX];
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    piece_key(key, folder, i);
    int code = read_one(s, key, &answer, &value, what, err);
    if (code == SFC_ENOTFOUND || (code == SFC_OK && value.len != size))
        code =
            sfc_fail(err, SFC_ECORRUPT,
                     "%s: etcd lacks a part of it, %s; restore etcd from a backup, or begin with "
                     "another prefix",
                     what, key);
    if (code == SFC_OK)
        memcpy(to, value.data, size);
    sfc_answer_free(&answer);
    return code;
}

/* *out is the caller's to free. */
static int read_pieces(struct etcd_store *s, const char *folder, uint64_t size, uint8_t **out,
                       const char *what, struct sfc_error *err)
{
    if (size > BLOB_MAX)
        return sfc_fail(err, SFC_ECORRUPT, "%s: etcd says that it has %" PRIu64 " bytes", what,
                        size);
    uint8_t *data = malloc(size ? size : 1);
    int code = data ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "%s: %" PRIu64 " bytes", what, size);
    for (size_t i = 0; i * PIECE < size && code == SFC_OK; i++) {
        size_t left = size - i * PIECE;
        code = read_piece(s, folder, i, data + i * PIECE, left < PIECE ? left : PIECE, what, err);
    }
    if (code == SFC_OK)
        *out = data;
    else
        free(data);
    return code;
}

/* ---- incarnation */

static int etcd_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[KEY_MAX], text[32] = "0";
    key_of(s, key, "incarnation");
    int code = read_one(s, key, &answer, &value, "new incarnation", err);
    if (code == SFC_OK && value.len < sizeof text) {
        memcpy(text, value.data, value.len);
        text[value.len] = '\0';
    }
    sfc_answer_free(&answer);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    uint64_t next = strtoull(text, NULL, 10) + 1;
    snprintf(text, sizeof text, "%" PRIu64, next);
    code = write_text(s, key, text, "new incarnation", err);
    if (code == SFC_OK)
        *out = next;
    return code;
}

/* ---- runs */

static void run_key(const struct etcd_store *s, char key[KEY_MAX], uint64_t run_id)
{
    key_of(s, key, "runs/" NUMBER, run_id);
}

static void map_folder(const struct etcd_store *s, char out[KEY_MAX], uint64_t run_id,
                       uint64_t version)
{
    key_of(s, out, "maps/" NUMBER "/" NUMBER "/", run_id, version);
}

/* Runs that are too old, with all that they have. */
static int forget_runs(struct etcd_store *s, uint64_t newest, struct sfc_error *err)
{
    static const char *const folders[] = {"runs",  "configs", "maps",  "commits",
                                          "drops", "returns", "goals", "lr"};
    enum { FOLDERS = sizeof folders / sizeof *folders };
    char from[FOLDERS][KEY_MAX], end[FOLDERS][KEY_MAX];
    struct sfc_lead_write w = {.count = 0};
    if (newest <= RUNS_KEPT)
        return SFC_OK;
    for (size_t i = 0; i < FOLDERS; i++) {
        key_of(s, from[i], "%s/", folders[i]);
        key_of(s, end[i], "%s/" NUMBER, folders[i], newest - RUNS_KEPT + 1);
        sfc_lead_delete(&w, from[i], end[i]);
    }
    return sfc_lead_commit(s->lead, &w, "forget old runs", err);
}

static void lr_key(const struct etcd_store *s, char key[KEY_MAX], uint64_t run_id)
{
    key_of(s, key, "lr/" NUMBER, run_id);
}

/* Its pieces are there already. */
static int write_run(struct etcd_store *s, uint64_t id, const struct sfc_store_run *run,
                     struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0}, changes = {NULL, 0};
    char key[KEY_MAX], changes_key[KEY_MAX];
    Shardfc__Stored__Run m;
    sfc_stored_from_run(run, &m);
    run_key(s, key, id);
    lr_key(s, changes_key, id);
    int code = sfc_stored_pack(&m, &bytes, err);
    if (code == SFC_OK)
        code = sfc_stored_pack_lr(run->lr_changes, run->lr_change_count, &changes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        sfc_lead_put(&w, changes_key, changes);
        code = sfc_lead_commit(s->lead, &w, "add run", err);
    }
    free((void *)(uintptr_t)bytes.data);
    free((void *)(uintptr_t)changes.data);
    return code;
}

static int etcd_add_run(struct sfc_store *base, const struct sfc_store_run *run, uint64_t *run_id,
                        struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    char folder[KEY_MAX];
    uint64_t id = 0;
    key_of(s, folder, "runs/");
    int code = read_last(s, folder, &id, "add run", err);
    if (code == SFC_OK)
        code = forget_runs(s, ++id, err);
    key_of(s, folder, "configs/" NUMBER "/", id);
    if (code == SFC_OK)
        code = write_pieces(s, folder, run->config, run->config_size, "add run", err);
    map_folder(s, folder, id, run->map_version);
    if (code == SFC_OK)
        code = write_pieces(s, folder, run->map, run->map_size, "add run", err);
    if (code == SFC_OK)
        code = write_run(s, id, run, err);
    if (code == SFC_OK)
        *run_id = id;
    return code;
}

static int read_run(struct etcd_store *s, uint64_t run_id, Shardfc__Stored__Run **out,
                    const char *what, struct sfc_error *err)
{
    char key[KEY_MAX];
    run_key(s, key, run_id);
    int code = read_message(s, key, &shardfc__stored__run__descriptor, out, what, err);
    return code == SFC_ENOTFOUND ? sfc_fail(err, SFC_ENOTFOUND, "no run %" PRIu64, run_id) : code;
}

static int etcd_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                              bool paused, const char *reason, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    struct sfc_store_run run = {0};
    char key[KEY_MAX];
    int code = read_run(s, run_id, &m, "set run state", err);
    if (code != SFC_OK)
        return code;
    Shardfc__Stored__Run changed = *m;
    snprintf(run.state, sizeof run.state, "%s", state);
    snprintf(run.reason, sizeof run.reason, "%s", reason);
    changed.state = run.state;
    changed.paused = paused;
    changed.reason = run.reason;
    run_key(s, key, run_id);
    code = write_message(s, key, &changed, "set run state", err);
    sfc_stored_free(m);
    return code;
}

static int etcd_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                 struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    char key[KEY_MAX];
    int code = read_run(s, run_id, &m, "set the run's numerics", err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK; /* as an UPDATE of no row */
    if (code != SFC_OK)
        return code;
    Shardfc__Stored__Run changed = *m;
    changed.numerics = (char *)(uintptr_t)numerics;
    run_key(s, key, run_id);
    code = write_message(s, key, &changed, "set the run's numerics", err);
    sfc_stored_free(m);
    return code;
}

/* SFC_OK: it is the run's map already. SFC_ENOTFOUND: it is newer than that. */
static int compare_map(struct etcd_store *s, const Shardfc__Stored__Run *m,
                       const struct sfc_store_map *map, struct sfc_error *err)
{
    char folder[KEY_MAX];
    uint8_t *there = NULL;
    if (map->version > m->map_version)
        return SFC_ENOTFOUND;
    int code = SFC_OK;
    bool same =
        map->version == m->map_version && map->step == m->map_step && map->size == m->map_size;
    map_folder(s, folder, map->run_id, map->version);
    if (same)
        code = read_pieces(s, folder, m->map_size, &there, "write map", err);
    same = same && code == SFC_OK && memcmp(there, map->bytes, map->size) == 0;
    free(there);
    if (code == SFC_OK && !same)
        code = sfc_fail(err, SFC_ECONFLICT,
                        "map %" PRIu64 " of run %" PRIu64 " is there already, another one",
                        m->map_version, map->run_id);
    return code;
}

/* The pieces count when the run names them. */
static int change_map(struct etcd_store *s, const Shardfc__Stored__Run *m,
                      const struct sfc_store_map *map, struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char folder[KEY_MAX], key[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    Shardfc__Stored__Run changed = *m;
    changed.map_version = map->version;
    changed.map_size = map->size;
    changed.map_step = map->step;
    changed.map_order = map->order;
    map_folder(s, folder, map->run_id, map->version);
    int code = write_pieces(s, folder, map->bytes, map->size, "write map", err);
    if (code == SFC_OK)
        code = sfc_stored_pack(&changed, &bytes, err);
    if (code != SFC_OK)
        return code;
    run_key(s, key, map->run_id);
    sfc_lead_put(&w, key, bytes);
    if (map->version >= MAPS_KEPT) {
        key_of(s, from, "maps/" NUMBER "/", map->run_id);
        map_folder(s, end, map->run_id, map->version - MAPS_KEPT + 1);
        sfc_lead_delete(&w, from, end);
    }
    code = sfc_lead_commit(s->lead, &w, "write map", err);
    free((void *)(uintptr_t)bytes.data);
    return code;
}

static int etcd_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                        struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    int code = read_run(s, map->run_id, &m, "write map", err);
    if (code == SFC_OK)
        code = compare_map(s, m, map, err);
    if (code == SFC_ENOTFOUND && m)
        code = change_map(s, m, map, err);
    sfc_stored_free(m);
    return code;
}

static int etcd_last_run(struct sfc_store *base, struct sfc_store_run *out, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    struct sfc_store_run run = {0};
    char folder[KEY_MAX];
    key_of(s, folder, "runs/");
    int code = read_last(s, folder, &run.run_id, "read run", err);
    if (code == SFC_OK && run.run_id == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "there is no run");
    if (code == SFC_OK)
        code = read_run(s, run.run_id, &m, "read run", err);
    if (code != SFC_OK)
        return code;
    sfc_stored_to_run(m, &run);
    run.config_size = m->config_size;
    run.map_size = m->map_size;
    key_of(s, folder, "configs/" NUMBER "/", run.run_id);
    code = read_pieces(s, folder, m->config_size, &run.config, "the run's configuration", err);
    map_folder(s, folder, run.run_id, run.map_version);
    if (code == SFC_OK)
        code = read_pieces(s, folder, m->map_size, &run.map, "the run's block map", err);
    sfc_stored_free(m);
    if (code == SFC_OK)
        *out = run;
    else
        sfc_store_run_close(&run);
    return code;
}

/* ---- commits. A key has the records that became durable together, under the step of the last. */

static void commits_folder(const struct etcd_store *s, char out[KEY_MAX], uint64_t run_id)
{
    key_of(s, out, "commits/" NUMBER "/", run_id);
}

static void commit_key(const struct etcd_store *s, char out[KEY_MAX], uint64_t run_id,
                       uint64_t step)
{
    key_of(s, out, "commits/" NUMBER "/" NUMBER, run_id, step);
}

static int know_last(struct etcd_store *s, uint64_t run_id, struct sfc_error *err)
{
    char folder[KEY_MAX];
    uint64_t last = 0;
    if (s->commits_run == run_id)
        return SFC_OK;
    commits_folder(s, folder, run_id);
    int code = read_last(s, folder, &last, "read last commit", err);
    if (code == SFC_OK) {
        s->commits_run = run_id;
        s->last_step = last;
    }
    return code;
}

struct history {
    uint64_t run_id, after_step;
    size_t limit, count;
    struct sfc_store_commit *out;
};

static int take_records(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                        struct sfc_error *err)
{
    struct history *h = ctx;
    Shardfc__Stored__Commits *m = NULL;
    int code = sfc_stored_unpack(kv->value, &shardfc__stored__commits__descriptor,
                                 "a commit record", &m, err);
    for (size_t i = 0; code == SFC_OK && i < m->n_commits && h->count < h->limit; i++)
        if (m->commits[i]->step > h->after_step)
            sfc_stored_to_commit(m->commits[i], h->run_id, &h->out[h->count++]);
    sfc_stored_free(m);
    *more = h->count < h->limit;
    return code;
}

static int etcd_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                        struct sfc_store_commit *out, size_t *count, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct history h = {.run_id = run_id, .after_step = after_step, .limit = limit, .out = out};
    char folder[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    int code = SFC_OK;
    commits_folder(s, folder, run_id);
    end_of(end, folder);
    if (after_step < UINT64_MAX && limit > 0) {
        commit_key(s, from, run_id, after_step + 1);
        code = walk(s, from, end, take_records, &h, "read history", err);
    }
    if (code == SFC_OK)
        *count = h.count;
    return code;
}

static int etcd_last_commit(struct sfc_store *base, uint64_t run_id, struct sfc_store_commit *out,
                            struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    size_t count = 0;
    int code = know_last(s, run_id, err);
    if (code == SFC_OK && s->last_step == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "nothing is committed yet");
    if (code == SFC_OK)
        code = etcd_history(base, run_id, s->last_step - 1, 1, out, &count, err);
    if (code == SFC_OK && count != 1)
        code = sfc_fail(err, SFC_ECORRUPT,
                        "etcd: the record of step %" PRIu64 " is not under its key", s->last_step);
    return code;
}

/* SFC_OK: there is a record of this step and it says the same. SFC_ENOTFOUND: there is none. */
static int compare_commit(struct etcd_store *s, const struct sfc_store_commit *c,
                          struct sfc_error *err)
{
    char folder[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    struct sfc_answer answer = {0};
    Shardfc__Stored__Commits *m = NULL;
    if (c->step > s->last_step)
        return SFC_ENOTFOUND;
    commits_folder(s, folder, c->run_id);
    end_of(end, folder);
    commit_key(s, from, c->run_id, c->step);
    int code = read_range(s, from, end, 1, false, &answer, "write commit record", err);
    if (code == SFC_OK && reply_of(&answer)->n_kvs == 1)
        code = sfc_stored_unpack(reply_of(&answer)->kvs[0]->value,
                                 &shardfc__stored__commits__descriptor, from, &m, err);
    sfc_answer_free(&answer);
    if (code == SFC_OK)
        code = SFC_ENOTFOUND;
    for (size_t i = 0; m && i < m->n_commits && code == SFC_ENOTFOUND; i++)
        if (m->commits[i]->step == c->step)
            code = sfc_stored_same_commit(m->commits[i], c)
                       ? SFC_OK
                       : sfc_fail(err, SFC_ECONFLICT,
                                  "step %" PRIu64 " of run %" PRIu64
                                  " is already committed with other inputs",
                                  c->step, c->run_id);
    sfc_stored_free(m);
    return code;
}

/* A thousand steps at a time, of those that are too old. */
static void trim_commits(const struct etcd_store *s, struct sfc_lead_write *w, uint64_t run_id,
                         uint64_t step, char from[KEY_MAX], char end[KEY_MAX])
{
    uint64_t before = s->last_step / COMMITS_TRIMMED, now = step / COMMITS_TRIMMED;
    if (before == now || step <= COMMITS_KEPT)
        return;
    commits_folder(s, from, run_id);
    commit_key(s, end, run_id, step - COMMITS_KEPT + 1);
    sfc_lead_delete(w, from, end);
}

static int put_lineage(const struct etcd_store *s, struct sfc_lead_write *w, uint64_t run_id,
                       const struct sfc_lineage *lineage, char key[KEY_MAX],
                       struct sfc_bytes *bytes, struct sfc_error *err)
{
    int code = lineage ? sfc_stored_pack_lineage(lineage, bytes, err) : SFC_OK;
    if (code != SFC_OK || !lineage)
        return code;
    key_of(s, key, "returns/" NUMBER, run_id);
    sfc_lead_put(w, key, *bytes);
    return SFC_OK;
}

/* Records from `first` on are new: those before it are there and say the same. */
static int count_known(struct etcd_store *s, const struct sfc_store_commit *commits, size_t count,
                       size_t *first, struct sfc_error *err)
{
    int code = know_last(s, commits[0].run_id, err);
    size_t i = 0;
    while (code == SFC_OK && i < count && (code = compare_commit(s, &commits[i], err)) == SFC_OK)
        i++;
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    *first = i;
    return SFC_OK;
}

static int etcd_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                            size_t count, const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes records = {NULL, 0}, returns = {NULL, 0};
    char key[KEY_MAX], returns_key[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    size_t first = 0;
    if (count == 0)
        return SFC_OK;
    uint64_t run_id = commits[0].run_id, last = commits[count - 1].step;
    int code = count_known(s, commits, count, &first, err);
    if (code == SFC_OK && first < count)
        code = sfc_stored_pack_commits(commits + first, count - first, &records, err);
    if (code == SFC_OK && first < count) {
        commit_key(s, key, run_id, last);
        sfc_lead_put(&w, key, records);
        trim_commits(s, &w, run_id, last, from, end);
    }
    if (code == SFC_OK)
        code = put_lineage(s, &w, run_id, lineage, returns_key, &returns, err);
    if (code == SFC_OK && w.count > 0)
        code = sfc_lead_commit(s->lead, &w, "write commit records", err);
    if (code == SFC_OK && last > s->last_step)
        s->last_step = last;
    free((void *)(uintptr_t)records.data);
    free((void *)(uintptr_t)returns.data);
    return code;
}

/* ---- learning rate */

static int read_lr(struct etcd_store *s, uint64_t run_id, Shardfc__Stored__LrChanges **out,
                   const char *what, struct sfc_error *err)
{
    char key[KEY_MAX];
    lr_key(s, key, run_id);
    return read_message(s, key, &shardfc__stored__lr_changes__descriptor, out, what, err);
}

/* Those of before `step`, and `change` behind them (NULL: nothing). */
static int change_lr(struct etcd_store *s, uint64_t run_id, uint64_t step,
                     const struct sfc_store_lr *change, struct sfc_bytes *out,
                     struct sfc_error *err)
{
    Shardfc__Stored__LrChanges *m = NULL;
    int code = read_lr(s, run_id, &m, "set the learning rate", err);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    size_t all = m ? m->n_changes : 0, count = 0;
    struct sfc_store_lr *changes = calloc(all + 1, sizeof *changes);
    for (; changes && count < all && m->changes[count]->from_step < step; count++)
        changes[count] = (struct sfc_store_lr){m->changes[count]->from_step, m->changes[count]->lr};
    if (changes && change)
        changes[count++] = *change;
    code = changes ? sfc_stored_pack_lr(changes, count, out, err)
                   : sfc_fail(err, SFC_ENOMEM, "set the learning rate");
    free(changes);
    sfc_stored_free(m);
    return code;
}

static int etcd_put_lr(struct sfc_store *base, uint64_t run_id, const struct sfc_store_lr *change,
                       struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char key[KEY_MAX];
    lr_key(s, key, run_id);
    int code = change_lr(s, run_id, change->from_step, change, &bytes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        code = sfc_lead_commit(s->lead, &w, "set the learning rate", err);
    }
    free((void *)(uintptr_t)bytes.data);
    return code;
}

static int etcd_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
                           struct sfc_store_lr *out, size_t *count, struct sfc_error *err)
{
    Shardfc__Stored__LrChanges *m = NULL;
    int code = read_lr(etcd_of(base), run_id, &m, "read learning rates", err);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    size_t n = 0;
    for (; m && n < m->n_changes && n < limit; n++)
        out[n] = (struct sfc_store_lr){m->changes[n]->from_step, m->changes[n]->lr};
    sfc_stored_free(m);
    *count = n;
    return SFC_OK;
}

/* ---- back to an earlier step */

static int etcd_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                        struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    Shardfc__Stored__Lineage *m = NULL;
    struct sfc_error why = {0};
    char key[KEY_MAX];
    key_of(s, key, "returns/" NUMBER, run_id);
    int code = read_message(s, key, &shardfc__stored__lineage__descriptor, &m, "read returns", err);
    if (code == SFC_ENOTFOUND) {
        *out = (struct sfc_lineage){0};
        return SFC_OK;
    }
    if (code == SFC_OK && sfc_stored_to_lineage(m, out, &why) != SFC_OK)
        code =
            sfc_fail(err, SFC_ECORRUPT, "etcd: %s: %s; restore etcd from a backup", key, why.text);
    sfc_stored_free(m);
    return code;
}

/* Of the records that lie under one key with later ones, those up to `step`: they get a key of
 * their own. Nothing to do: out->data is NULL. */
static int cut_records(struct etcd_store *s, uint64_t run_id, uint64_t step, struct sfc_bytes *out,
                       struct sfc_error *err)
{
    char folder[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    struct sfc_answer answer = {0};
    Shardfc__Stored__Commits *m = NULL;
    commits_folder(s, folder, run_id);
    end_of(end, folder);
    commit_key(s, from, run_id, step);
    int code = read_range(s, from, end, 1, false, &answer, "rewind the run", err);
    if (code == SFC_OK && reply_of(&answer)->n_kvs == 1)
        code = sfc_stored_unpack(reply_of(&answer)->kvs[0]->value,
                                 &shardfc__stored__commits__descriptor, from, &m, err);
    sfc_answer_free(&answer);
    if (code != SFC_OK || !m)
        return code;
    size_t all = m->n_commits, kept = 0;
    while (kept < all && m->commits[kept]->step <= step)
        kept++;
    m->n_commits = kept;
    if (kept > 0 && kept < all)
        code = sfc_stored_pack(m, out, err);
    m->n_commits = all;
    sfc_stored_free(m);
    return code;
}

struct way_back {
    char commits_from[KEY_MAX], commits_end[KEY_MAX], drops_from[KEY_MAX], drops_end[KEY_MAX];
    char cut_key[KEY_MAX], added_key[KEY_MAX], returns_key[KEY_MAX], folder[KEY_MAX];
    char lr_key[KEY_MAX];
    struct sfc_bytes cut, added, returns, lr;
};

static void delete_later(const struct etcd_store *s, struct sfc_lead_write *w, struct way_back *b,
                         uint64_t run_id, uint64_t step)
{
    commits_folder(s, b->folder, run_id);
    end_of(b->commits_end, b->folder);
    commit_key(s, b->commits_from, run_id, step + 1);
    sfc_lead_delete(w, b->commits_from, b->commits_end);
    key_of(s, b->folder, "drops/" NUMBER "/", run_id);
    end_of(b->drops_end, b->folder);
    key_of(s, b->drops_from, "drops/" NUMBER "/" NUMBER "/", run_id, step + 1);
    sfc_lead_delete(w, b->drops_from, b->drops_end);
}

/* Records of `commits` up to `step` that are not there yet. */
static int add_records(struct etcd_store *s, struct sfc_lead_write *w, struct way_back *b,
                       uint64_t step, const struct sfc_store_commit *commits, size_t count,
                       struct sfc_error *err)
{
    size_t first = 0, n = 0;
    while (n < count && commits[n].step <= step)
        n++;
    int code = n > 0 ? count_known(s, commits, n, &first, err) : SFC_OK;
    if (code != SFC_OK || first >= n)
        return code;
    code = sfc_stored_pack_commits(commits + first, n - first, &b->added, err);
    if (code != SFC_OK)
        return code;
    commit_key(s, b->added_key, commits[0].run_id, commits[n - 1].step);
    sfc_lead_put(w, b->added_key, b->added);
    return SFC_OK;
}

static int etcd_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                       const struct sfc_store_commit *commits, size_t count,
                       const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct way_back b = {.cut = {NULL, 0}};
    delete_later(s, &w, &b, run_id, step);
    int code = cut_records(s, run_id, step, &b.cut, err);
    if (code == SFC_OK && b.cut.data) {
        commit_key(s, b.cut_key, run_id, step);
        sfc_lead_put(&w, b.cut_key, b.cut);
    }
    if (code == SFC_OK)
        code = add_records(s, &w, &b, step, commits, count, err);
    if (code == SFC_OK)
        code = change_lr(s, run_id, step + 1, NULL, &b.lr, err);
    if (code == SFC_OK) {
        lr_key(s, b.lr_key, run_id);
        sfc_lead_put(&w, b.lr_key, b.lr);
        code = put_lineage(s, &w, run_id, lineage, b.returns_key, &b.returns, err);
    }
    if (code == SFC_OK)
        code = sfc_lead_commit(s->lead, &w, "rewind the run", err);
    s->commits_run = 0; /* what its newest record is has to be read again */
    free((void *)(uintptr_t)b.cut.data);
    free((void *)(uintptr_t)b.added.data);
    free((void *)(uintptr_t)b.returns.data);
    free((void *)(uintptr_t)b.lr.data);
    return code;
}

/* ---- dropped micro-batches */

static int etcd_put_drop(struct sfc_store *base, uint64_t run_id, const struct sfc_store_drop *drop,
                         struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    char key[KEY_MAX];
    key_of(s, key, "drops/" NUMBER "/" NUMBER "/" NUMBER, run_id, drop->step,
           (uint64_t)drop->micro_batch);
    return write_text(s, key, "", "write drop", err);
}

struct drops {
    size_t limit, count;
    struct sfc_store_drop *out;
};

static int take_drop(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more, struct sfc_error *err)
{
    struct drops *d = ctx;
    (void)err;
    d->out[d->count++] = (struct sfc_store_drop){number_in(kv, 1), (uint32_t)number_in(kv, 0)};
    *more = d->count < d->limit;
    return SFC_OK;
}

static int etcd_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                      struct sfc_store_drop *out, size_t *count, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct drops d = {.limit = limit, .out = out};
    char folder[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    int code = SFC_OK;
    key_of(s, folder, "drops/" NUMBER "/", run_id);
    end_of(end, folder);
    if (after_step < UINT64_MAX && limit > 0) {
        key_of(s, from, "drops/" NUMBER "/" NUMBER "/", run_id, after_step + 1);
        code = walk(s, from, end, take_drop, &d, "read drops", err);
    }
    if (code == SFC_OK)
        *count = d.count;
    return code;
}

/* ---- shards */

struct shards {
    size_t limit, count;
    struct sfc_store_shard *out;
};

static int take_shard(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                      struct sfc_error *err)
{
    struct shards *x = ctx;
    struct sfc_store_shard *shard = &x->out[x->count++];
    (void)err;
    shard->shard = number_in(kv, 0);
    snprintf(shard->address, sizeof shard->address, "%.*s", (int)kv->value.len,
             (const char *)kv->value.data);
    *more = x->count < x->limit;
    return SFC_OK;
}

static int etcd_shards(struct sfc_store *base, struct sfc_store_shard *out, size_t limit,
                       size_t *count, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct shards x = {.limit = limit, .out = out};
    char folder[KEY_MAX], end[KEY_MAX];
    int code = SFC_OK;
    key_of(s, folder, "shards/");
    end_of(end, folder);
    if (limit > 0)
        code = walk(s, folder, end, take_shard, &x, "read shards", err);
    if (code == SFC_OK)
        *count = x.count;
    return code;
}

static int etcd_put_shard(struct sfc_store *base, uint64_t shard, const char *address,
                          struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_store_shard *known = calloc(SFC_LIMIT_SHARDS, sizeof *known);
    char key[KEY_MAX];
    size_t count = 0;
    bool there = false;
    if (!known)
        return sfc_fail(err, SFC_ENOMEM, "register shard");
    int code = etcd_shards(base, known, SFC_LIMIT_SHARDS, &count, err);
    for (size_t i = 0; i < count; i++)
        there = there || known[i].shard == shard || strcmp(known[i].address, address) == 0;
    free(known);
    if (code != SFC_OK || there)
        return code;
    key_of(s, key, "shards/" NUMBER, shard);
    return write_text(s, key, address, "register shard", err);
}

static int etcd_drop_shard(struct sfc_store *base, uint64_t shard, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    char key[KEY_MAX], end[KEY_MAX + 1];
    key_of(s, key, "shards/" NUMBER, shard);
    snprintf(end, sizeof end, "%s!", key);
    sfc_lead_delete(&w, key, end);
    return sfc_lead_commit(s->lead, &w, "forget shard", err);
}

/* ---- goals */

static int etcd_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal, size_t size,
                         struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    char key[KEY_MAX];
    key_of(s, key, "goals/" NUMBER, run_id);
    sfc_lead_put(&w, key, (struct sfc_bytes){goal, size});
    return sfc_lead_commit(s->lead, &w, "note the goal", err);
}

static int etcd_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                     struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[KEY_MAX];
    key_of(s, key, "goals/" NUMBER, run_id);
    int code = read_one(s, key, &answer, &value, "read the goal", err);
    uint8_t *copy = value.len ? malloc(value.len) : NULL;
    if (value.len && !copy)
        code = sfc_fail(err, SFC_ENOMEM, "read the goal");
    if (copy)
        memcpy(copy, value.data, value.len);
    sfc_answer_free(&answer);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    *out = copy;
    *size = copy ? value.len : 0;
    return SFC_OK;
}

/* ---- events */

static int know_events(struct etcd_store *s, struct sfc_error *err)
{
    char folder[KEY_MAX];
    if (s->events_known)
        return SFC_OK;
    key_of(s, folder, "events/");
    int code = read_last(s, folder, &s->last_event, "log event", err);
    s->events_known = code == SFC_OK;
    return code;
}

static int etcd_put_event(struct sfc_store *base, const struct sfc_store_event *event,
                          struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char key[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    Shardfc__Stored__Event m = SHARDFC__STORED__EVENT__INIT;
    m.time_ms = event->time_ms;
    m.run_id = event->run_id;
    m.who = (char *)(uintptr_t)event->who;
    m.text = (char *)(uintptr_t)event->text;
    int code = know_events(s, err);
    if (code == SFC_OK)
        code = sfc_stored_pack(&m, &bytes, err);
    if (code != SFC_OK)
        return code;
    uint64_t number = s->last_event + 1;
    key_of(s, key, "events/" NUMBER, number);
    sfc_lead_put(&w, key, bytes);
    if (number % EVENTS_TRIMMED == 0 && number > EVENTS_KEPT) {
        key_of(s, from, "events/");
        key_of(s, end, "events/" NUMBER, number - EVENTS_KEPT + 1);
        sfc_lead_delete(&w, from, end);
    }
    code = sfc_lead_commit(s->lead, &w, "log event", err);
    if (code == SFC_OK)
        s->last_event = number;
    free((void *)(uintptr_t)bytes.data);
    return code;
}

struct events {
    size_t limit, count;
    struct sfc_store_event *out;
};

static int take_event(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                      struct sfc_error *err)
{
    struct events *x = ctx;
    Shardfc__Stored__Event *m = NULL;
    int code =
        sfc_stored_unpack(kv->value, &shardfc__stored__event__descriptor, "an event", &m, err);
    if (code != SFC_OK)
        return code;
    struct sfc_store_event *e = &x->out[x->count++];
    *e = (struct sfc_store_event){
        .id = number_in(kv, 0), .time_ms = m->time_ms, .run_id = m->run_id};
    snprintf(e->who, sizeof e->who, "%s", m->who);
    snprintf(e->text, sizeof e->text, "%s", m->text);
    *more = x->count < x->limit;
    sfc_stored_free(m);
    return SFC_OK;
}

/* Numbers have no gaps but where the oldest were trimmed. */
static int etcd_events(struct sfc_store *base, uint64_t after, bool newest, size_t limit,
                       struct sfc_store_event *out, size_t *count, struct sfc_error *err)
{
    struct etcd_store *s = etcd_of(base);
    struct events x = {.limit = limit, .out = out};
    char folder[KEY_MAX], from[KEY_MAX], end[KEY_MAX];
    int code = know_events(s, err);
    key_of(s, folder, "events/");
    end_of(end, folder);
    if (newest && s->last_event > limit && after < s->last_event - limit)
        after = s->last_event - limit;
    if (code == SFC_OK && after < UINT64_MAX && limit > 0) {
        key_of(s, from, "events/" NUMBER, after + 1);
        code = walk(s, from, end, take_event, &x, "read events", err);
    }
    if (code == SFC_OK)
        *count = x.count;
    return code;
}

/* ---- open and close */

static void etcd_close(struct sfc_store *base)
{
    struct etcd_store *s = etcd_of(base);
    sfc_lead_free(s->lead);
    sfc_etcd_free(s->etcd);
    free(s);
}

static const struct sfc_store_ops etcd_ops = {
    .close = etcd_close,
    .next_incarnation = etcd_next_incarnation,
    .add_run = etcd_add_run,
    .set_run_state = etcd_set_run_state,
    .set_run_numerics = etcd_set_run_numerics,
    .last_run = etcd_last_run,
    .put_map = etcd_put_map,
    .put_commits = etcd_put_commits,
    .last_commit = etcd_last_commit,
    .rewind = etcd_rewind,
    .lineage = etcd_lineage,
    .history = etcd_history,
    .put_drop = etcd_put_drop,
    .drops = etcd_drops,
    .put_lr = etcd_put_lr,
    .lr_changes = etcd_lr_changes,
    .put_shard = etcd_put_shard,
    .drop_shard = etcd_drop_shard,
    .shards = etcd_shards,
    .put_goal = etcd_put_goal,
    .goal = etcd_goal,
    .put_event = etcd_put_event,
    .events = etcd_events,
};

/* What is there is ours to understand; where nothing is, it gets our format. */
static int check_format(struct etcd_store *s, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[KEY_MAX];
    key_of(s, key, "format");
    int code = read_one(s, key, &answer, &value, "open state", err);
    if (code == SFC_ENOTFOUND)
        return write_text(s, key, FORMAT, "create state", err);
    if (code == SFC_OK && (value.len != strlen(FORMAT) || memcmp(value.data, FORMAT, value.len)))
        code = sfc_fail(err, SFC_ECORRUPT,
                        "etcd: %s is '%.*s', this program knows " FORMAT
                        "; use the program that wrote it, or another prefix",
                        key, (int)(value.len < 40 ? value.len : 40), (const char *)value.data);
    sfc_answer_free(&answer);
    return code;
}

static void tell_waits(struct sfc_store_owner *owner, const char *why, char last[512])
{
    if (strcmp(why, last) == 0)
        return;
    snprintf(last, 512, "%s", why);
    owner->waits(owner->ctx, why);
}

/* Until we lead. */
static int wait_lead(struct etcd_store *s, const struct sfc_lead_owner *who,
                     struct sfc_store_owner *owner, struct sfc_error *err)
{
    const struct timespec pause = {.tv_nsec = STANDBY_MS * 1000000L};
    char leader[SFC_LIMIT_ADDRESS + 1], last[512] = "";
    while (!atomic_load(&owner->stop)) {
        int code = sfc_lead_try(s->etcd, who, &s->lead, leader, err);
        if (code == SFC_OK)
            return code;
        tell_waits(owner, err->text, last);
        nanosleep(&pause, NULL);
    }
    return sfc_fail(err, SFC_ECANCELED, "stopped while another scheduler leads");
}

int sfc_store_open_etcd(const char *where, struct sfc_store_owner *owner, struct sfc_store **out,
                        struct sfc_error *err)
{
    struct sfc_error own;
    struct sfc_lead_owner who = {.address = "?"};
    char leader[SFC_LIMIT_ADDRESS + 1];
    struct etcd_store *s = calloc(1, sizeof *s);
    err = err ? err : &own;
    if (!s)
        return sfc_fail(err, SFC_ENOMEM, "open state");
    s->base.ops = &etcd_ops;
    if (owner)
        who = (struct sfc_lead_owner){owner->address, owner->lost, owner->ctx};
    int code = sfc_etcd_new(where, &s->etcd, err);
    if (code == SFC_OK)
        code = owner ? wait_lead(s, &who, owner, err)
                     : sfc_lead_try(s->etcd, &who, &s->lead, leader, err);
    if (code == SFC_OK)
        code = check_format(s, err);
    if (code == SFC_OK)
        *out = &s->base;
    else
        etcd_close(&s->base);
    return code;
}
