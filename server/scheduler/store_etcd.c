/* The state store in etcd: open and close, shards, events. Each write is one transaction that only
 * the leader can make (etcd_lead.h); so between two of them nothing changes but by us. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limits.h"
#include "server/scheduler/store_etcd.h"

#define FORMAT "1"

enum {
    STANDBY_MS = 250, /* between two looks at who leads */
    EVENTS_KEPT = 10000,
    EVENTS_TRIMMED = 100
};

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
    shard->shard = sfc_kv_number(kv, 0);
    snprintf(shard->address, sizeof shard->address, "%.*s", (int)kv->value.len,
             (const char *)kv->value.data);
    *more = x->count < x->limit;
    return SFC_OK;
}

static int etcd_shards(struct sfc_store *base, struct sfc_store_shard *out, size_t limit,
                       size_t *count, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct shards x = {.limit = limit, .out = out};
    char folder[SFC_KV_KEY], end[SFC_KV_KEY];
    int code = SFC_OK;
    sfc_kv_key(s, folder, "shards/");
    sfc_kv_end(end, folder);
    if (limit > 0)
        code = sfc_kv_walk(s, folder, end, take_shard, &x, "read shards", err);
    if (code == SFC_OK)
        *count = x.count;
    return code;
}

static int etcd_put_shard(struct sfc_store *base, uint64_t shard, const char *address,
                          struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_store_shard *known = calloc(SFC_LIMIT_SHARDS, sizeof *known);
    char key[SFC_KV_KEY];
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
    sfc_kv_key(s, key, "shards/" SFC_KV_NUMBER, shard);
    return sfc_kv_write_text(s, key, address, "register shard", err);
}

static int etcd_drop_shard(struct sfc_store *base, uint64_t shard, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    char key[SFC_KV_KEY], end[SFC_KV_KEY + 1];
    sfc_kv_key(s, key, "shards/" SFC_KV_NUMBER, shard);
    snprintf(end, sizeof end, "%s!", key);
    sfc_lead_delete(&w, key, end);
    return sfc_lead_commit(s->lead, &w, "forget shard", err);
}

/* ---- events */

static int know_events(struct sfc_etcd_store *s, struct sfc_error *err)
{
    char folder[SFC_KV_KEY];
    if (s->events_known)
        return SFC_OK;
    sfc_kv_key(s, folder, "events/");
    int code = sfc_kv_last(s, folder, &s->last_event, "log event", err);
    s->events_known = code == SFC_OK;
    return code;
}

static int etcd_put_event(struct sfc_store *base, const struct sfc_store_event *event,
                          struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char key[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
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
    sfc_kv_key(s, key, "events/" SFC_KV_NUMBER, number);
    sfc_lead_put(&w, key, bytes);
    if (number % EVENTS_TRIMMED == 0 && number > EVENTS_KEPT) {
        sfc_kv_key(s, from, "events/");
        sfc_kv_key(s, end, "events/" SFC_KV_NUMBER, number - EVENTS_KEPT + 1);
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
        .id = sfc_kv_number(kv, 0), .time_ms = m->time_ms, .run_id = m->run_id};
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
    struct sfc_etcd_store *s = etcd_of(base);
    struct events x = {.limit = limit, .out = out};
    char folder[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    int code = know_events(s, err);
    sfc_kv_key(s, folder, "events/");
    sfc_kv_end(end, folder);
    if (newest && s->last_event > limit && after < s->last_event - limit)
        after = s->last_event - limit;
    if (code == SFC_OK && after < UINT64_MAX && limit > 0) {
        sfc_kv_key(s, from, "events/" SFC_KV_NUMBER, after + 1);
        code = sfc_kv_walk(s, from, end, take_event, &x, "read events", err);
    }
    if (code == SFC_OK)
        *count = x.count;
    return code;
}

/* ---- open and close */

static void etcd_close(struct sfc_store *base)
{
    struct sfc_etcd_store *s = etcd_of(base);
    sfc_lead_free(s->lead);
    sfc_etcd_free(s->etcd);
    free(s);
}

static const struct sfc_store_ops etcd_ops = {
    .close = etcd_close,
    .next_incarnation = sfc_etcd_store_next_incarnation,
    .add_run = sfc_etcd_store_add_run,
    .set_run_state = sfc_etcd_store_set_run_state,
    .set_run_numerics = sfc_etcd_store_set_run_numerics,
    .last_run = sfc_etcd_store_last_run,
    .run_before = sfc_etcd_store_run_before,
    .put_map = sfc_etcd_store_put_map,
    .put_commits = sfc_etcd_store_put_commits,
    .last_commit = sfc_etcd_store_last_commit,
    .rewind = sfc_etcd_store_rewind,
    .lineage = sfc_etcd_store_lineage,
    .history = sfc_etcd_store_history,
    .put_drop = sfc_etcd_store_put_drop,
    .drops = sfc_etcd_store_drops,
    .put_lr = sfc_etcd_store_put_lr,
    .lr_changes = sfc_etcd_store_lr_changes,
    .put_shard = etcd_put_shard,
    .drop_shard = etcd_drop_shard,
    .shards = etcd_shards,
    .put_goal = sfc_etcd_store_put_goal,
    .goal = sfc_etcd_store_goal,
    .put_event = etcd_put_event,
    .events = etcd_events,
};

/* What is there is ours to understand; where nothing is, it gets our format. */
static int check_format(struct sfc_etcd_store *s, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[SFC_KV_KEY];
    sfc_kv_key(s, key, "format");
    int code = sfc_kv_read(s, key, &answer, &value, "open state", err);
    if (code == SFC_ENOTFOUND)
        return sfc_kv_write_text(s, key, FORMAT, "create state", err);
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
static int wait_lead(struct sfc_etcd_store *s, const struct sfc_lead_owner *who,
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
    struct sfc_etcd_store *s = calloc(1, sizeof *s);
    err = err ? err : &own;
    if (!s)
        return sfc_fail(err, SFC_ENOMEM, "open state");
    s->base.ops = &etcd_ops;
    if (owner)
        who = (struct sfc_lead_owner){owner->address, owner->lost, owner->ctx};
    int code = sfc_etcd_new(where, owner ? owner->security : NULL, &s->etcd, err);
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
