/* Private to server/scheduler/store*.c: what a kind of store has to do. The contract of each
 * function is that of its namesake in state_store.h. To add one: here, in store.c, and in every
 * store_KIND.c. */
#ifndef SFC_SCHEDULER_STORE_IMPL_H
#define SFC_SCHEDULER_STORE_IMPL_H

#include "server/scheduler/state_store.h"

struct sfc_store_ops {
    void (*close)(struct sfc_store *store);
    int (*next_incarnation)(struct sfc_store *store, uint64_t *out, struct sfc_error *err);
    int (*add_run)(struct sfc_store *store, const struct sfc_store_run *run, uint64_t *run_id,
                   struct sfc_error *err);
    int (*set_run_state)(struct sfc_store *store, uint64_t run_id, const char *state, bool paused,
                         const char *reason, struct sfc_error *err);
    int (*set_run_numerics)(struct sfc_store *store, uint64_t run_id, const char *numerics,
                            struct sfc_error *err);
    int (*last_run)(struct sfc_store *store, struct sfc_store_run *out, struct sfc_error *err);
    int (*run_before)(struct sfc_store *store, uint64_t run_id, struct sfc_store_run *out,
                      struct sfc_error *err);
    int (*put_map)(struct sfc_store *store, const struct sfc_store_map *map, struct sfc_error *err);
    int (*put_commits)(struct sfc_store *store, const struct sfc_store_commit *commits,
                       size_t count, const struct sfc_lineage *lineage, struct sfc_error *err);
    int (*last_commit)(struct sfc_store *store, uint64_t run_id, struct sfc_store_commit *out,
                       struct sfc_error *err);
    int (*rewind)(struct sfc_store *store, uint64_t run_id, uint64_t step,
                  const struct sfc_store_commit *commits, size_t count,
                  const struct sfc_lineage *lineage, struct sfc_error *err);
    int (*lineage)(struct sfc_store *store, uint64_t run_id, struct sfc_lineage *out,
                   struct sfc_error *err);
    int (*history)(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                   struct sfc_store_commit *out, size_t *count, struct sfc_error *err);
    int (*put_drop)(struct sfc_store *store, uint64_t run_id, const struct sfc_store_drop *drop,
                    struct sfc_error *err);
    int (*drops)(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                 struct sfc_store_drop *out, size_t *count, struct sfc_error *err);
    int (*put_lr)(struct sfc_store *store, uint64_t run_id, const struct sfc_store_lr *change,
                  struct sfc_error *err);
    int (*lr_changes)(struct sfc_store *store, uint64_t run_id, size_t limit,
                      struct sfc_store_lr *out, size_t *count, struct sfc_error *err);
    int (*put_shard)(struct sfc_store *store, uint64_t shard, const char *address,
                     struct sfc_error *err);
    int (*drop_shard)(struct sfc_store *store, uint64_t shard, struct sfc_error *err);
    int (*shards)(struct sfc_store *store, struct sfc_store_shard *out, size_t limit, size_t *count,
                  struct sfc_error *err);
    int (*put_goal)(struct sfc_store *store, uint64_t run_id, const uint8_t *goal, size_t size,
                    struct sfc_error *err);
    int (*goal)(struct sfc_store *store, uint64_t run_id, uint8_t **out, size_t *size,
                struct sfc_error *err);
    int (*put_event)(struct sfc_store *store, const struct sfc_store_event *event,
                     struct sfc_error *err);
    int (*events)(struct sfc_store *store, uint64_t after, bool newest, size_t limit,
                  struct sfc_store_event *out, size_t *count, struct sfc_error *err);
};

/* Every kind of store begins with this. */
struct sfc_store {
    const struct sfc_store_ops *ops;
};

int sfc_store_open_sqlite(const char *folder, struct sfc_store **out, struct sfc_error *err);
/* owner NULL: tries once. */
int sfc_store_open_etcd(const char *where, struct sfc_store_owner *owner, struct sfc_store **out,
                        struct sfc_error *err);

#endif
