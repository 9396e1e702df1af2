/* The state store in etcd: what a run has of its steps, and the way back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_etcd.h"

enum {
    COMMITS_KEPT = 100000, /* of a run */
    COMMITS_TRIMMED = 1000 /* at a time */
};

/* ---- commits. A key has the records that became durable together, under the step of the last. */

static void commits_folder(const struct sfc_etcd_store *s, char out[SFC_KV_KEY], uint64_t run_id)
{
    sfc_kv_key(s, out, "commits/" SFC_KV_NUMBER "/", run_id);
}

static void commit_key(const struct sfc_etcd_store *s, char out[SFC_KV_KEY], uint64_t run_id,
                       uint64_t step)
{
    sfc_kv_key(s, out, "commits/" SFC_KV_NUMBER "/" SFC_KV_NUMBER, run_id, step);
}

static int know_last(struct sfc_etcd_store *s, uint64_t run_id, struct sfc_error *err)
{
    char folder[SFC_KV_KEY];
    uint64_t last = 0;
    if (s->commits_run == run_id)
        return SFC_OK;
    commits_folder(s, folder, run_id);
    int code = sfc_kv_last(s, folder, &last, "read last commit", err);
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

int sfc_etcd_store_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step,
                           size_t limit, struct sfc_store_commit *out, size_t *count,
                           struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct history h = {.run_id = run_id, .after_step = after_step, .limit = limit, .out = out};
    char folder[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    int code = SFC_OK;
    commits_folder(s, folder, run_id);
    sfc_kv_end(end, folder);
    if (after_step < UINT64_MAX && limit > 0) {
        commit_key(s, from, run_id, after_step + 1);
        code = sfc_kv_walk(s, from, end, take_records, &h, "read history", err);
    }
    if (code == SFC_OK)
        *count = h.count;
    return code;
}

int sfc_etcd_store_last_commit(struct sfc_store *base, uint64_t run_id,
                               struct sfc_store_commit *out, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    size_t count = 0;
    int code = know_last(s, run_id, err);
    if (code == SFC_OK && s->last_step == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "nothing is committed yet");
    if (code == SFC_OK)
        code = sfc_etcd_store_history(base, run_id, s->last_step - 1, 1, out, &count, err);
    if (code == SFC_OK && count != 1)
        code = sfc_fail(err, SFC_ECORRUPT,
                        "etcd: the record of step %" PRIu64 " is not under its key", s->last_step);
    return code;
}

/* SFC_OK: there is a record of this step and it says the same. SFC_ENOTFOUND: there is none. */
static int compare_commit(struct sfc_etcd_store *s, const struct sfc_store_commit *c,
                          struct sfc_error *err)
{
    char folder[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    struct sfc_answer answer = {0};
    Shardfc__Stored__Commits *m = NULL;
    if (c->step > s->last_step)
        return SFC_ENOTFOUND;
    commits_folder(s, folder, c->run_id);
    sfc_kv_end(end, folder);
    commit_key(s, from, c->run_id, c->step);
    int code = sfc_kv_range(s, from, end, 1, false, &answer, "write commit record", err);
    if (code == SFC_OK && sfc_kv_reply(&answer)->n_kvs == 1)
        code = sfc_stored_unpack(sfc_kv_reply(&answer)->kvs[0]->value,
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
static void trim_commits(const struct sfc_etcd_store *s, struct sfc_lead_write *w, uint64_t run_id,
                         uint64_t step, char from[SFC_KV_KEY], char end[SFC_KV_KEY])
{
    uint64_t before = s->last_step / COMMITS_TRIMMED, now = step / COMMITS_TRIMMED;
    if (before == now || step <= COMMITS_KEPT)
        return;
    commits_folder(s, from, run_id);
    commit_key(s, end, run_id, step - COMMITS_KEPT + 1);
    sfc_lead_delete(w, from, end);
}

static int put_lineage(const struct sfc_etcd_store *s, struct sfc_lead_write *w, uint64_t run_id,
                       const struct sfc_lineage *lineage, char key[SFC_KV_KEY],
                       struct sfc_bytes *bytes, struct sfc_error *err)
{
    int code = lineage ? sfc_stored_pack_lineage(lineage, bytes, err) : SFC_OK;
    if (code != SFC_OK || !lineage)
        return code;
    sfc_kv_key(s, key, "returns/" SFC_KV_NUMBER, run_id);
    sfc_lead_put(w, key, *bytes);
    return SFC_OK;
}

/* Records from `first` on are new: those before it are there and say the same. */
static int count_known(struct sfc_etcd_store *s, const struct sfc_store_commit *commits,
                       size_t count, size_t *first, struct sfc_error *err)
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

int sfc_etcd_store_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                               size_t count, const struct sfc_lineage *lineage,
                               struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes records = {NULL, 0}, returns = {NULL, 0};
    char key[SFC_KV_KEY], returns_key[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
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

static int read_lr(struct sfc_etcd_store *s, uint64_t run_id, Shardfc__Stored__LrChanges **out,
                   const char *what, struct sfc_error *err)
{
    char key[SFC_KV_KEY];
    sfc_etcd_lr_key(s, key, run_id);
    return sfc_kv_read_message(s, key, &shardfc__stored__lr_changes__descriptor, out, what, err);
}

/* Those of before `step`, and `change` behind them (NULL: nothing). */
static int change_lr(struct sfc_etcd_store *s, uint64_t run_id, uint64_t step,
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

int sfc_etcd_store_put_lr(struct sfc_store *base, uint64_t run_id,
                          const struct sfc_store_lr *change, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char key[SFC_KV_KEY];
    sfc_etcd_lr_key(s, key, run_id);
    int code = change_lr(s, run_id, change->from_step, change, &bytes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        code = sfc_lead_commit(s->lead, &w, "set the learning rate", err);
    }
    free((void *)(uintptr_t)bytes.data);
    return code;
}

int sfc_etcd_store_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
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

int sfc_etcd_store_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                           struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Lineage *m = NULL;
    struct sfc_error why = {0};
    char key[SFC_KV_KEY];
    sfc_kv_key(s, key, "returns/" SFC_KV_NUMBER, run_id);
    int code =
        sfc_kv_read_message(s, key, &shardfc__stored__lineage__descriptor, &m, "read returns", err);
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
static int cut_records(struct sfc_etcd_store *s, uint64_t run_id, uint64_t step,
                       struct sfc_bytes *out, struct sfc_error *err)
{
    char folder[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    struct sfc_answer answer = {0};
    Shardfc__Stored__Commits *m = NULL;
    commits_folder(s, folder, run_id);
    sfc_kv_end(end, folder);
    commit_key(s, from, run_id, step);
    int code = sfc_kv_range(s, from, end, 1, false, &answer, "rewind the run", err);
    if (code == SFC_OK && sfc_kv_reply(&answer)->n_kvs == 1)
        code = sfc_stored_unpack(sfc_kv_reply(&answer)->kvs[0]->value,
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
    char commits_from[SFC_KV_KEY], commits_end[SFC_KV_KEY], drops_from[SFC_KV_KEY],
        drops_end[SFC_KV_KEY];
    char cut_key[SFC_KV_KEY], added_key[SFC_KV_KEY], returns_key[SFC_KV_KEY], folder[SFC_KV_KEY];
    char rates_key[SFC_KV_KEY];
    struct sfc_bytes cut, added, returns, lr;
};

static void delete_later(const struct sfc_etcd_store *s, struct sfc_lead_write *w,
                         struct way_back *b, uint64_t run_id, uint64_t step)
{
    commits_folder(s, b->folder, run_id);
    sfc_kv_end(b->commits_end, b->folder);
    commit_key(s, b->commits_from, run_id, step + 1);
    sfc_lead_delete(w, b->commits_from, b->commits_end);
    sfc_kv_key(s, b->folder, "drops/" SFC_KV_NUMBER "/", run_id);
    sfc_kv_end(b->drops_end, b->folder);
    sfc_kv_key(s, b->drops_from, "drops/" SFC_KV_NUMBER "/" SFC_KV_NUMBER "/", run_id, step + 1);
    sfc_lead_delete(w, b->drops_from, b->drops_end);
}

/* Records of `commits` up to `step` that are not there yet. */
static int add_records(struct sfc_etcd_store *s, struct sfc_lead_write *w, struct way_back *b,
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

int sfc_etcd_store_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                          const struct sfc_store_commit *commits, size_t count,
                          const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
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
        sfc_etcd_lr_key(s, b.rates_key, run_id);
        sfc_lead_put(&w, b.rates_key, b.lr);
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

int sfc_etcd_store_put_drop(struct sfc_store *base, uint64_t run_id,
                            const struct sfc_store_drop *drop, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    char key[SFC_KV_KEY];
    sfc_kv_key(s, key, "drops/" SFC_KV_NUMBER "/" SFC_KV_NUMBER "/" SFC_KV_NUMBER, run_id,
               drop->step, (uint64_t)drop->micro_batch);
    return sfc_kv_write_text(s, key, "", "write drop", err);
}

struct drops {
    size_t limit, count;
    struct sfc_store_drop *out;
};

static int take_drop(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more, struct sfc_error *err)
{
    struct drops *d = ctx;
    (void)err;
    d->out[d->count++] =
        (struct sfc_store_drop){sfc_kv_number(kv, 1), (uint32_t)sfc_kv_number(kv, 0)};
    *more = d->count < d->limit;
    return SFC_OK;
}

int sfc_etcd_store_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                         struct sfc_store_drop *out, size_t *count, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct drops d = {.limit = limit, .out = out};
    char folder[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    int code = SFC_OK;
    sfc_kv_key(s, folder, "drops/" SFC_KV_NUMBER "/", run_id);
    sfc_kv_end(end, folder);
    if (after_step < UINT64_MAX && limit > 0) {
        sfc_kv_key(s, from, "drops/" SFC_KV_NUMBER "/" SFC_KV_NUMBER "/", run_id, after_step + 1);
        code = sfc_kv_walk(s, from, end, take_drop, &d, "read drops", err);
    }
    if (code == SFC_OK)
        *count = d.count;
    return code;
}
