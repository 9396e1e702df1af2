#include "server/scheduler/etcd_lead.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limits.h"

enum {
    LEASE_S = 3,         /* etcd may grant more: it has a least number of its own */
    RENEW_PARTS = 3,     /* renewals in the time of a lease */
    PATIENCE_LEASES = 2, /* so long without a renewal: somebody else may lead by now */
    LEASE_DEADLINE_MS = 1000,
    DEADLINE_MS = 2000, /* of a call with little in it, at one member */
    BYTES_PER_MS = 256, /* and of one with more */
    RETRY_MS = 100,
    COMPACT_MS = 60000, /* the history that etcd keeps of our keys: one to two of these */
    KEY_MAX = SFC_ETCD_PREFIX + 16,
    TOKEN_MAX = 48
};

struct sfc_lead {
    struct sfc_etcd *etcd;
    struct sfc_lead_owner owner;
    char leader_key[KEY_MAX], writes_key[KEY_MAX];
    int64_t lease;
    uint64_t lease_ms;
    int64_t created;       /* revision of our leader key */
    uint64_t writes;       /* number of the newest write that was begun */
    char token[TOKEN_MAX]; /* of the last one that is known to be there */
    pthread_t thread;
    bool running;
    /* guarded by lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closing, lost;
    char why[256];    /* lost */
    int64_t revision; /* of etcd, at our last write */
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- the end of a leadership */

static void lose(struct sfc_lead *lead, const char *why)
{
    pthread_mutex_lock(&lead->lock);
    bool first = !lead->lost && !lead->closing;
    if (first) {
        lead->lost = true;
        snprintf(lead->why, sizeof lead->why, "%s", why);
    }
    pthread_cond_broadcast(&lead->changed);
    pthread_mutex_unlock(&lead->lock);
    if (first && lead->owner.lost)
        lead->owner.lost(lead->owner.ctx, why);
}

/* Waits so long, or until the leadership ends. false: it has ended. */
static bool wait_ms(struct sfc_lead *lead, uint64_t ms)
{
    uint64_t until = now_ms() + ms;
    struct timespec t = {.tv_sec = (time_t)(until / 1000),
                         .tv_nsec = (long)(until % 1000) * 1000000};
    pthread_mutex_lock(&lead->lock);
    int rc = 0;
    while (!lead->closing && !lead->lost && rc == 0)
        rc = pthread_cond_timedwait(&lead->changed, &lead->lock, &t);
    bool on = !lead->closing && !lead->lost;
    pthread_mutex_unlock(&lead->lock);
    return on;
}

static int check_leads(struct sfc_lead *lead, const char *what, struct sfc_error *err)
{
    int code = SFC_OK;
    pthread_mutex_lock(&lead->lock);
    if (lead->lost)
        code = sfc_fail(err, SFC_ESTALE, "%s: this scheduler leads no more: %s", what, lead->why);
    pthread_mutex_unlock(&lead->lock);
    return code;
}

/* ---- the lease */

/* What etcd still has of our lease, in seconds; 0: nothing. */
static int renew(struct sfc_lead *lead, int64_t *ttl, struct sfc_error *err)
{
    Etcdserverpb__LeaseKeepAliveRequest r = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    struct sfc_answer answer = {0};
    r.id = lead->lease;
    int code =
        sfc_etcd_call(lead->etcd, SFC_ETCD_LEASE_KEEP_ALIVE, &r, LEASE_DEADLINE_MS, &answer, err);
    if (code == SFC_OK)
        *ttl = ((const Etcdserverpb__LeaseKeepAliveResponse *)answer.message)->ttl;
    sfc_answer_free(&answer);
    return code;
}

/* etcd keeps every version of every key until it is told that nobody asks for old ones. */
static void compact(struct sfc_lead *lead, int64_t revision)
{
    Etcdserverpb__CompactionRequest r = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    struct sfc_answer answer = {0};
    r.revision = revision;
    /* Somebody else may have compacted more; and there is a next time. */
    (void)sfc_etcd_call(lead->etcd, SFC_ETCD_COMPACT, &r, DEADLINE_MS, &answer, NULL);
    sfc_answer_free(&answer);
}

struct compaction {
    uint64_t at_ms;
    int64_t revision; /* of the time before */
};

static void compact_sometimes(struct sfc_lead *lead, struct compaction *c)
{
    if (now_ms() - c->at_ms < COMPACT_MS)
        return;
    pthread_mutex_lock(&lead->lock);
    int64_t revision = lead->revision;
    pthread_mutex_unlock(&lead->lock);
    if (c->revision > 0)
        compact(lead, c->revision);
    *c = (struct compaction){now_ms(), revision};
}

static void *keep_alive(void *arg)
{
    struct sfc_lead *lead = arg;
    uint64_t renewed = now_ms(), pause = lead->lease_ms / RENEW_PARTS;
    struct compaction compaction = {.at_ms = renewed};
    char why[256];
    while (wait_ms(lead, pause)) {
        struct sfc_error err = {0};
        uint64_t asked = now_ms();
        int64_t ttl = 0;
        int code = renew(lead, &ttl, &err);
        if (code == SFC_OK && ttl > 0) {
            renewed = asked;
            pause = lead->lease_ms / RENEW_PARTS;
            compact_sometimes(lead, &compaction);
        } else if (code == SFC_OK) {
            lose(lead, "its lease has ended (it, or etcd, stood still for longer than that)");
        } else {
            pause = RETRY_MS;
            snprintf(why, sizeof why, "its lease could not be renewed for %.1f s: %.180s",
                     (double)(now_ms() - renewed) / 1000, err.text);
            if (now_ms() - renewed > PATIENCE_LEASES * lead->lease_ms)
                lose(lead, why);
        }
    }
    return NULL;
}

static int grant_lease(struct sfc_lead *lead, struct sfc_error *err)
{
    Etcdserverpb__LeaseGrantRequest r = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    struct sfc_answer answer = {0};
    r.ttl = LEASE_S;
    int code = sfc_etcd_call(lead->etcd, SFC_ETCD_LEASE_GRANT, &r, LEASE_DEADLINE_MS, &answer, err);
    if (code != SFC_OK)
        return code;
    const Etcdserverpb__LeaseGrantResponse *reply = (const void *)answer.message;
    if (reply->id == 0 || reply->ttl <= 0) {
        code = sfc_fail(err, SFC_EIO, "etcd grants no lease: %s", reply->error);
    } else {
        lead->lease = reply->id;
        lead->lease_ms = (uint64_t)reply->ttl * 1000;
    }
    sfc_answer_free(&answer);
    return code;
}

static void revoke_lease(struct sfc_lead *lead)
{
    Etcdserverpb__LeaseRevokeRequest r = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    struct sfc_answer answer = {0};
    r.id = lead->lease;
    /* Without an answer the lease ends by itself. */
    (void)sfc_etcd_call(lead->etcd, SFC_ETCD_LEASE_REVOKE, &r, LEASE_DEADLINE_MS, &answer, NULL);
    sfc_answer_free(&answer);
}

/* ---- reading */

static Etcdserverpb__RangeRequest range_of(const char *key)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r.key = sfc_etcd_text(key);
    return r;
}

static const Etcdserverpb__KeyValue *only(const Etcdserverpb__RangeResponse *r)
{
    return r && r->n_kvs == 1 ? r->kvs[0] : NULL;
}

int sfc_lead_read(struct sfc_lead *lead, const Etcdserverpb__RangeRequest *request,
                  struct sfc_answer *out, const char *what, struct sfc_error *err)
{
    for (;;) {
        struct sfc_error why = {0};
        int code = check_leads(lead, what, err);
        if (code != SFC_OK)
            return code;
        code = sfc_etcd_call(lead->etcd, SFC_ETCD_RANGE, request, DEADLINE_MS, out, &why);
        if (code == SFC_OK)
            return SFC_OK;
        if (code != SFC_EUNAVAILABLE)
            return sfc_fail(err, code, "%s: %s", what, why.text);
        wait_ms(lead, RETRY_MS);
    }
}

/* ---- writing */

void sfc_lead_put(struct sfc_lead_write *w, const char *key, struct sfc_bytes value)
{
    Etcdserverpb__PutRequest *put = &w->puts[w->count];
    Etcdserverpb__RequestOp *op = &w->ops[w->count++];
    etcdserverpb__put_request__init(put);
    etcdserverpb__request_op__init(op);
    put->key = sfc_etcd_text(key);
    put->value = (ProtobufCBinaryData){value.size, (uint8_t *)(uintptr_t)value.data};
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    op->request_put = put;
}

void sfc_lead_delete(struct sfc_lead_write *w, const char *key, const char *end)
{
    Etcdserverpb__DeleteRangeRequest *d = &w->deletes[w->count];
    Etcdserverpb__RequestOp *op = &w->ops[w->count++];
    etcdserverpb__delete_range_request__init(d);
    etcdserverpb__request_op__init(op);
    d->key = sfc_etcd_text(key);
    d->range_end = sfc_etcd_text(end);
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    op->request_delete_range = d;
}

struct txn {
    Etcdserverpb__TxnRequest request;
    Etcdserverpb__Compare compare[2], *compares[2];
    Etcdserverpb__RequestOp *success[SFC_LEAD_OPS + 1];
    Etcdserverpb__RangeRequest ranges[2];
    Etcdserverpb__RequestOp failure[2], *failures[2];
};

/* If the conditions don't hold: who leads, and which write was the last. */
static void txn_init(struct txn *t, const char *leader_key, const char *writes_key)
{
    const char *keys[] = {leader_key, writes_key};
    etcdserverpb__txn_request__init(&t->request);
    for (int i = 0; i < 2; i++) {
        etcdserverpb__compare__init(&t->compare[i]);
        t->compare[i].key = sfc_etcd_text(keys[i]);
        t->compares[i] = &t->compare[i];
        t->ranges[i] = range_of(keys[i]);
        etcdserverpb__request_op__init(&t->failure[i]);
        t->failure[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        t->failure[i].request_range = &t->ranges[i];
        t->failures[i] = &t->failure[i];
    }
    t->request.compare = t->compares;
    t->request.success = t->success;
    t->request.failure = t->failures;
    t->request.n_failure = 2;
}

static void txn_ops(struct txn *t, struct sfc_lead_write *w)
{
    for (size_t i = 0; i < w->count; i++)
        t->success[i] = &w->ops[i];
    t->request.n_success = w->count;
}

static void compare_created(struct txn *t, int64_t revision)
{
    t->compare[0].target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    t->compare[0].target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    t->compare[0].create_revision = revision;
    t->request.n_compare = 1;
}

static void compare_token(struct txn *t, const char *token)
{
    t->compare[1].target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
    t->compare[1].target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
    t->compare[1].value = sfc_etcd_text(token);
    t->request.n_compare = 2;
}

/* Number i of what was read because the conditions did not hold; NULL: the key is not there. */
static const Etcdserverpb__KeyValue *found(const Etcdserverpb__TxnResponse *r, size_t i)
{
    return r->n_responses == 2 && r->responses[i]->response_case ==
                                      ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE
               ? only(r->responses[i]->response_range)
               : NULL;
}

static bool is_text(const Etcdserverpb__KeyValue *kv, const char *text)
{
    return kv && kv->value.len == strlen(text) && memcmp(kv->value.data, text, kv->value.len) == 0;
}

static void next_token(struct sfc_lead *lead, char token[TOKEN_MAX])
{
    snprintf(token, TOKEN_MAX, "%" PRIx64 ":%" PRIu64, (uint64_t)lead->lease, ++lead->writes);
}

static int refused(struct sfc_lead *lead, const Etcdserverpb__TxnResponse *r, const char *token,
                   const char *what, struct sfc_error *err)
{
    const Etcdserverpb__KeyValue *leader = found(r, 0);
    char why[256];
    if (leader && leader->create_revision == lead->created) {
        if (is_text(found(r, 1), token))
            return SFC_OK; /* an earlier try of this very write */
        lose(lead, "an earlier write of it was refused and is there");
    } else {
        snprintf(why, sizeof why, leader ? "%.*s leads now" : "its lease has ended",
                 leader ? (int)leader->value.len : 0,
                 leader ? (const char *)leader->value.data : "");
        lose(lead, why);
    }
    return check_leads(lead, what, err);
}

static unsigned deadline_of(const struct sfc_lead_write *w)
{
    size_t bytes = 0;
    for (size_t i = 0; i < w->count; i++)
        if (w->ops[i].request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
            bytes += w->puts[i].value.len;
    return DEADLINE_MS + (unsigned)(bytes / BYTES_PER_MS);
}

int sfc_lead_commit(struct sfc_lead *lead, struct sfc_lead_write *w, const char *what,
                    struct sfc_error *err)
{
    struct txn t;
    char token[TOKEN_MAX];
    unsigned deadline_ms = deadline_of(w);
    next_token(lead, token);
    sfc_lead_put(w, lead->writes_key, (struct sfc_bytes){(const uint8_t *)token, strlen(token)});
    txn_init(&t, lead->leader_key, lead->writes_key);
    txn_ops(&t, w);
    compare_created(&t, lead->created);
    compare_token(&t, lead->token);
    for (;;) {
        struct sfc_answer answer = {0};
        struct sfc_error why = {0};
        int code = check_leads(lead, what, err);
        if (code != SFC_OK)
            return code;
        code = sfc_etcd_call(lead->etcd, SFC_ETCD_TXN, &t.request, deadline_ms, &answer, &why);
        if (code == SFC_EUNAVAILABLE) {
            wait_ms(lead, RETRY_MS);
            continue;
        }
        if (code != SFC_OK)
            return sfc_fail(err, code, "%s: %s", what, why.text);
        const Etcdserverpb__TxnResponse *reply = (const void *)answer.message;
        if (!reply->succeeded)
            code = refused(lead, reply, token, what, err);
        if (code == SFC_OK)
            memcpy(lead->token, token, sizeof token);
        pthread_mutex_lock(&lead->lock);
        if (reply->header && code == SFC_OK)
            lead->revision = reply->header->revision;
        pthread_mutex_unlock(&lead->lock);
        sfc_answer_free(&answer);
        return code;
    }
}

/* ---- election */

static void take_address(const Etcdserverpb__KeyValue *kv, char out[SFC_LIMIT_ADDRESS + 1])
{
    size_t size = kv->value.len < SFC_LIMIT_ADDRESS ? kv->value.len : SFC_LIMIT_ADDRESS;
    memcpy(out, kv->value.data, size);
    out[size] = '\0';
}

static int led_by(const Etcdserverpb__KeyValue *kv, char leader[SFC_LIMIT_ADDRESS + 1],
                  struct sfc_error *err)
{
    take_address(kv, leader);
    return sfc_fail(err, SFC_ESTATE, "another scheduler, at %s, leads with this state", leader);
}

/* SFC_OK: nobody leads. */
static int ask_leader(struct sfc_lead *lead, char leader[SFC_LIMIT_ADDRESS + 1],
                      struct sfc_error *err)
{
    Etcdserverpb__RangeRequest r = range_of(lead->leader_key);
    struct sfc_answer answer = {0};
    int code = sfc_etcd_call(lead->etcd, SFC_ETCD_RANGE, &r, LEASE_DEADLINE_MS, &answer, err);
    if (code == SFC_OK) {
        const Etcdserverpb__KeyValue *kv = only((const void *)answer.message);
        code = kv ? led_by(kv, leader, err) : SFC_OK;
    }
    sfc_answer_free(&answer);
    return code;
}

/* One transaction: the key is there, of our lease, if nobody else has it. Again is fine. */
static int take_key(struct sfc_lead *lead, char leader[SFC_LIMIT_ADDRESS + 1],
                    struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_answer answer = {0};
    struct txn t;
    const char *address = lead->owner.address ? lead->owner.address : "";
    sfc_lead_put(&w, lead->leader_key,
                 (struct sfc_bytes){(const uint8_t *)address, strlen(address)});
    sfc_lead_put(&w, lead->writes_key,
                 (struct sfc_bytes){(const uint8_t *)lead->token, strlen(lead->token)});
    w.puts[0].lease = lead->lease;
    txn_init(&t, lead->leader_key, lead->writes_key);
    txn_ops(&t, &w);
    compare_created(&t, 0);
    int code = sfc_etcd_call(lead->etcd, SFC_ETCD_TXN, &t.request, LEASE_DEADLINE_MS, &answer, err);
    if (code == SFC_OK) {
        const Etcdserverpb__TxnResponse *r = (const void *)answer.message;
        const Etcdserverpb__KeyValue *kv = found(r, 0);
        if (r->succeeded && r->header)
            lead->created = lead->revision = r->header->revision;
        else if (kv && kv->lease == lead->lease) /* an earlier try */
            lead->created = lead->revision = kv->create_revision;
        else
            code = kv ? led_by(kv, leader, err)
                      : sfc_fail(err, SFC_EUNAVAILABLE, "etcd: the election was undecided");
    }
    sfc_answer_free(&answer);
    return code;
}

static int lead_start(struct sfc_lead *lead, struct sfc_error *err)
{
    lead->running = pthread_create(&lead->thread, NULL, keep_alive, lead) == 0;
    return lead->running ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no thread for the lease");
}

static int lead_new(struct sfc_etcd *etcd, const struct sfc_lead_owner *owner,
                    struct sfc_lead **out, struct sfc_error *err)
{
    pthread_condattr_t clock;
    struct sfc_lead *lead = calloc(1, sizeof *lead);
    if (!lead)
        return sfc_fail(err, SFC_ENOMEM, "no memory for an election");
    lead->etcd = etcd;
    lead->owner = *owner;
    snprintf(lead->leader_key, sizeof lead->leader_key, "%s/leader", sfc_etcd_prefix(etcd));
    snprintf(lead->writes_key, sizeof lead->writes_key, "%s/writes", sfc_etcd_prefix(etcd));
    pthread_mutex_init(&lead->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&lead->changed, &clock);
    pthread_condattr_destroy(&clock);
    *out = lead;
    return SFC_OK;
}

int sfc_lead_try(struct sfc_etcd *etcd, const struct sfc_lead_owner *owner, struct sfc_lead **out,
                 char leader[SFC_LIMIT_ADDRESS + 1], struct sfc_error *err)
{
    struct sfc_lead *lead = NULL;
    int code = lead_new(etcd, owner, &lead, err);
    if (code != SFC_OK)
        return code;
    code = ask_leader(lead, leader, err);
    if (code == SFC_OK)
        code = grant_lease(lead, err);
    if (code == SFC_OK) {
        next_token(lead, lead->token);
        code = take_key(lead, leader, err);
    }
    if (code == SFC_OK)
        code = lead_start(lead, err);
    if (code == SFC_OK)
        *out = lead;
    else
        sfc_lead_free(lead);
    return code;
}

void sfc_lead_free(struct sfc_lead *lead)
{
    if (!lead)
        return;
    pthread_mutex_lock(&lead->lock);
    lead->closing = true;
    pthread_cond_broadcast(&lead->changed);
    pthread_mutex_unlock(&lead->lock);
    if (lead->running)
        pthread_join(lead->thread, NULL);
    if (lead->lease)
        revoke_lease(lead);
    pthread_cond_destroy(&lead->changed);
    pthread_mutex_destroy(&lead->lock);
    free(lead);
}
