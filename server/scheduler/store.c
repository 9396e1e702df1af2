/* The state store, of whatever kind: calls go to the functions of its kind. */
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_impl.h"

bool sfc_store_shared(const char *where)
{
    return strncmp(where, "etcd://", 7) == 0 || strncmp(where, "etcds://", 8) == 0;
}

int sfc_store_open(const char *where, struct sfc_store **out, struct sfc_error *err)
{
    return sfc_store_shared(where) ? sfc_store_open_etcd(where, NULL, out, err)
                                   : sfc_store_open_sqlite(where, out, err);
}

int sfc_store_open_shared(const char *where, struct sfc_store_owner *owner, struct sfc_store **out,
                          struct sfc_error *err)
{
    return sfc_store_open_etcd(where, owner, out, err);
}

void sfc_store_close(struct sfc_store *store)
{
    if (store)
        store->ops->close(store);
}

int sfc_store_next_incarnation(struct sfc_store *store, uint64_t *out, struct sfc_error *err)
{
    return store->ops->next_incarnation(store, out, err);
}

/* ---- runs */

int sfc_store_add_run(struct sfc_store *store, const struct sfc_store_run *run, uint64_t *run_id,
                      struct sfc_error *err)
{
    return store->ops->add_run(store, run, run_id, err);
}

int sfc_store_set_run_state(struct sfc_store *store, uint64_t run_id, const char *state,
                            bool paused, const char *reason, struct sfc_error *err)
{
    return store->ops->set_run_state(store, run_id, state, paused, reason, err);
}

int sfc_store_set_run_numerics(struct sfc_store *store, uint64_t run_id, const char *numerics,
                               struct sfc_error *err)
{
    return store->ops->set_run_numerics(store, run_id, numerics, err);
}

int sfc_store_last_run(struct sfc_store *store, struct sfc_store_run *out, struct sfc_error *err)
{
    return store->ops->last_run(store, out, err);
}

int sfc_store_run_before(struct sfc_store *store, uint64_t run_id, struct sfc_store_run *out,
                         struct sfc_error *err)
{
    return store->ops->run_before(store, run_id, out, err);
}

int sfc_store_put_map(struct sfc_store *store, const struct sfc_store_map *map,
                      struct sfc_error *err)
{
    return store->ops->put_map(store, map, err);
}

void sfc_store_run_close(struct sfc_store_run *run)
{
    free(run->config);
    free(run->map);
    memset(run, 0, sizeof *run);
}

/* ---- commits */

int sfc_store_put_commit(struct sfc_store *store, const struct sfc_store_commit *commit,
                         struct sfc_error *err)
{
    return store->ops->put_commits(store, commit, 1, NULL, err);
}

int sfc_store_put_commits(struct sfc_store *store, const struct sfc_store_commit *commits,
                          size_t count, const struct sfc_lineage *lineage, struct sfc_error *err)
{
    return store->ops->put_commits(store, commits, count, lineage, err);
}

int sfc_store_last_commit(struct sfc_store *store, uint64_t run_id, struct sfc_store_commit *out,
                          struct sfc_error *err)
{
    return store->ops->last_commit(store, run_id, out, err);
}

int sfc_store_commit_of(struct sfc_store *store, uint64_t run_id, uint64_t step,
                        struct sfc_store_commit *out, struct sfc_error *err)
{
    struct sfc_store_commit c;
    size_t count = 0;
    if (step == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "step 0 has no commit record");
    int code = sfc_store_history(store, run_id, step - 1, 1, &c, &count, err);
    if (code == SFC_OK && (count == 0 || c.step != step))
        code = sfc_fail(err, SFC_ENOTFOUND, "run %llu has no commit record of step %llu",
                        (unsigned long long)run_id, (unsigned long long)step);
    if (code == SFC_OK)
        *out = c;
    return code;
}

int sfc_store_rewind(struct sfc_store *store, uint64_t run_id, uint64_t step,
                     const struct sfc_store_commit *commits, size_t count,
                     const struct sfc_lineage *lineage, struct sfc_error *err)
{
    return store->ops->rewind(store, run_id, step, commits, count, lineage, err);
}

int sfc_store_lineage(struct sfc_store *store, uint64_t run_id, struct sfc_lineage *out,
                      struct sfc_error *err)
{
    return store->ops->lineage(store, run_id, out, err);
}

int sfc_store_history(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                      struct sfc_store_commit *out, size_t *count, struct sfc_error *err)
{
    return store->ops->history(store, run_id, after_step, limit, out, count, err);
}

/* ---- dropped micro-batches, learning rate, shards, goals, events */

int sfc_store_put_drop(struct sfc_store *store, uint64_t run_id, const struct sfc_store_drop *drop,
                       struct sfc_error *err)
{
    return store->ops->put_drop(store, run_id, drop, err);
}

int sfc_store_drops(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                    struct sfc_store_drop *out, size_t *count, struct sfc_error *err)
{
    return store->ops->drops(store, run_id, after_step, limit, out, count, err);
}

int sfc_store_put_lr(struct sfc_store *store, uint64_t run_id, const struct sfc_store_lr *change,
                     struct sfc_error *err)
{
    return store->ops->put_lr(store, run_id, change, err);
}

int sfc_store_lr_changes(struct sfc_store *store, uint64_t run_id, size_t limit,
                         struct sfc_store_lr *out, size_t *count, struct sfc_error *err)
{
    return store->ops->lr_changes(store, run_id, limit, out, count, err);
}

int sfc_store_put_shard(struct sfc_store *store, uint64_t shard, const char *address,
                        struct sfc_error *err)
{
    return store->ops->put_shard(store, shard, address, err);
}

int sfc_store_drop_shard(struct sfc_store *store, uint64_t shard, struct sfc_error *err)
{
    return store->ops->drop_shard(store, shard, err);
}

int sfc_store_shards(struct sfc_store *store, struct sfc_store_shard *out, size_t limit,
                     size_t *count, struct sfc_error *err)
{
    return store->ops->shards(store, out, limit, count, err);
}

int sfc_store_put_goal(struct sfc_store *store, uint64_t run_id, const uint8_t *goal, size_t size,
                       struct sfc_error *err)
{
    return store->ops->put_goal(store, run_id, goal, size, err);
}

int sfc_store_goal(struct sfc_store *store, uint64_t run_id, uint8_t **out, size_t *size,
                   struct sfc_error *err)
{
    return store->ops->goal(store, run_id, out, size, err);
}

int sfc_store_put_event(struct sfc_store *store, const struct sfc_store_event *event,
                        struct sfc_error *err)
{
    return store->ops->put_event(store, event, err);
}

int sfc_store_events(struct sfc_store *store, uint64_t after, bool newest, size_t limit,
                     struct sfc_store_event *out, size_t *count, struct sfc_error *err)
{
    return store->ops->events(store, after, newest, limit, out, count, err);
}
