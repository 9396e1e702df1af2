/* The scheduler's durable state: what must survive its death. The commit record of a step is the
 * truth about that step (docs/PROTOCOL.md, "Commit"); a step without one never happened.
 *
 * A store is opened exclusively: a second scheduler on the same store is refused. Every function
 * that writes returns after the data is durable. One thread uses a store at a time; calls may come
 * from different threads one after another. Numbers are kept as 64-bit words, so the whole u64
 * range is fine. */
#ifndef SFC_SCHEDULER_STATE_STORE_H
#define SFC_SCHEDULER_STATE_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "server/durable/lineage.h"

struct sfc_store;

/* From a step on another number takes the place of the configuration's lr. */
struct sfc_store_lr {
    uint64_t from_step;
    double lr; /* 0: the configuration's again */
};

/* A run as it was created, plus where it stands. Blobs are packed protocol messages. */
struct sfc_store_run {
    uint64_t run_id;
    uint64_t nonce;      /* drawn when it was created */
    uint64_t start_step; /* step of the checkpoint it began from, 0 = fresh */
    bool load;           /* blocks come from outside before it starts */
    uint64_t rewind_window;
    uint32_t durable_every;
    bool elastic;              /* shards that want to become part of it do so by themselves */
    uint32_t mirrors, grace_s; /* RunKeeping */
    uint64_t map_version;
    char state[16]; /* see sfc_store_set_run_state */
    bool paused;    /* by a person, whatever the state */
    char reason[512];
    char numerics[128]; /* class of its workers; "" until the first one joined */
    uint8_t *config;    /* RunConfig; owned by the struct, see sfc_store_run_close */
    size_t config_size;
    uint8_t *map; /* BlockMap; on read the newest one, as map_version is */
    size_t map_size;
    uint64_t map_step, map_order; /* of that one, see below; 0 for the map it was created with */
    const struct sfc_store_lr *lr_changes; /* it begins with; borrowed (NULL on read) */
    size_t lr_change_count;
};

/* A later map of a run. */
struct sfc_store_map {
    uint64_t run_id;
    uint64_t version;
    uint64_t step;        /* it holds for the steps after this one */
    uint64_t order;       /* that made it */
    const uint8_t *bytes; /* packed BlockMap; borrowed */
    size_t size;
};

/* The commit record of one step. */
struct sfc_store_commit {
    uint64_t run_id;
    uint64_t step;
    double clip_scale;
    bool applied; /* false: not finite, skipped everywhere */
    double loss;
    double lr;
    double images_per_s;
    double norm; /* of the dense gradient before clipping */
    uint64_t round_incarnation,
        round_counter; /* of the Prepare that every shard answered with ready */
    uint32_t zero_features;
    uint32_t skipped_in_row;
    uint64_t skipped_total;
    uint64_t classes; /* C of this step */
    uint64_t map_version;
    uint64_t time_us;  /* when it was decided, since 1970 */
    uint64_t position; /* first position of the sample sequence after this step */
    const uint8_t
        *attempts; /* packed PrepareRequest: attempts and digests; borrowed (NULL on read) */
    size_t attempts_size;
};

/* A micro-batch that a person dropped. */
struct sfc_store_drop {
    uint64_t step;
    uint32_t micro_batch;
};

struct sfc_store_shard {
    uint64_t shard;
    char address[256];
};

/* What happened, when, because of whom. */
struct sfc_store_event {
    uint64_t id;     /* ascending; chosen by the store */
    int64_t time_ms; /* since 1970 */
    uint64_t run_id; /* 0: of no run */
    char who[64];    /* who caused it: "scheduler", or the address of who asked for it */
    char text[512];  /* what, and why */
};

/* where: a folder, made with mode 0700 if it does not exist, or "etcd://HOST:PORT,...[/PREFIX]"
 * (etcds:// with TLS).
 * SFC_ESTATE: another scheduler has it open. SFC_ECORRUPT: the file is damaged, or not ours, or of
 * a newer schema; the message names the file and says what to do. SFC_EUNAVAILABLE: etcd does not
 * answer. */
int sfc_store_open(const char *where, struct sfc_store **out, struct sfc_error *err);

/* A state in etcd is shared by several schedulers, of which one leads: it has the store open. */
bool sfc_store_shared(const char *where);
struct sfc_store_owner {
    const char *address;                 /* where this scheduler serves; outlives the store */
    const struct sfc_security *security; /* of connections to etcd; NULL: plaintext on loopback */
    /* While another one leads, or nobody knows: whenever the reason changes. */
    void (*waits)(void *ctx, const char *why);
    /* At most once, from another thread, until the store is closed: this scheduler leads no more.
     * Every write fails with SFC_ESTALE from now on. */
    void (*lost)(void *ctx, const char *why);
    void *ctx;
    atomic_bool stop; /* SFC_ECANCELED soon after it is set */
};
/* Opens a shared state as soon as this scheduler leads: may take for ever. owner outlives the
 * store. */
int sfc_store_open_shared(const char *where, struct sfc_store_owner *owner, struct sfc_store **out,
                          struct sfc_error *err);
void sfc_store_close(struct sfc_store *store); /* NULL is fine */

/* Adds one to the incarnation, durably, and returns the new one (first: 1). */
int sfc_store_next_incarnation(struct sfc_store *store, uint64_t *out, struct sfc_error *err);

/* Adds a run; its id is chosen here (ascending, never used twice). run->run_id is ignored. In etcd
 * the newest 8 runs are kept. */
int sfc_store_add_run(struct sfc_store *store, const struct sfc_store_run *run, uint64_t *run_id,
                      struct sfc_error *err);
/* state: loading | running | paused | blocked | finished | failed | stopped. */
int sfc_store_set_run_state(struct sfc_store *store, uint64_t run_id, const char *state,
                            bool paused, const char *reason, struct sfc_error *err);
int sfc_store_set_run_numerics(struct sfc_store *store, uint64_t run_id, const char *numerics,
                               struct sfc_error *err);
/* The newest run. SFC_ENOTFOUND: there is none. Release with sfc_store_run_close. */
int sfc_store_last_run(struct sfc_store *store, struct sfc_store_run *out, struct sfc_error *err);
/* The newest run before this one (UINT64_MAX: of all), for lists: id, start step, state, reason,
 * pause and configuration. SFC_ENOTFOUND: there is none. Release with sfc_store_run_close. */
int sfc_store_run_before(struct sfc_store *store, uint64_t run_id, struct sfc_store_run *out,
                         struct sfc_error *err);
void sfc_store_run_close(struct sfc_store_run *run);

/* From now on the run has this map (sfc_store_last_run). The newest 64 are kept (in etcd 2).
 * SFC_ECONFLICT: a map of this version exists and is another one, or in etcd there is a newer one;
 * the same again is fine. */
int sfc_store_put_map(struct sfc_store *store, const struct sfc_store_map *map,
                      struct sfc_error *err);

/* SFC_ECONFLICT: a record of this (run, step) exists and says something else; the same again is
 * fine. In etcd the records of the newest 100,000 steps of a run are kept. */
int sfc_store_put_commit(struct sfc_store *store, const struct sfc_store_commit *commit,
                         struct sfc_error *err);
/* The same of several, in one transaction, which also puts the lineage of their run in the place of
 * the one before; NULL: leaves it. */
int sfc_store_put_commits(struct sfc_store *store, const struct sfc_store_commit *commits,
                          size_t count, const struct sfc_lineage *lineage, struct sfc_error *err);
/* The record of the highest step. SFC_ENOTFOUND: none yet. */
int sfc_store_last_commit(struct sfc_store *store, uint64_t run_id, struct sfc_store_commit *out,
                          struct sfc_error *err);
/* The record of one step. SFC_ENOTFOUND: it has none. */
int sfc_store_commit_of(struct sfc_store *store, uint64_t run_id, uint64_t step,
                        struct sfc_store_commit *out, struct sfc_error *err);
/* The run goes back to a step: records, drops and changes of the learning rate of later ones are
 * gone, in one transaction, which also adds the records of `commits` that are not after it, and
 * puts the lineage in the place of the one before (NULL: leaves it). Again is fine. */
int sfc_store_rewind(struct sfc_store *store, uint64_t run_id, uint64_t step,
                     const struct sfc_store_commit *commits, size_t count,
                     const struct sfc_lineage *lineage, struct sfc_error *err);
/* Where the run went back. SFC_ECORRUPT: not ascending, or more than there can be. */
int sfc_store_lineage(struct sfc_store *store, uint64_t run_id, struct sfc_lineage *out,
                      struct sfc_error *err);
/* Records with step > after_step, ascending, at most limit; *count says how many were written. */
int sfc_store_history(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                      struct sfc_store_commit *out, size_t *count, struct sfc_error *err);

/* Again is fine. */
int sfc_store_put_drop(struct sfc_store *store, uint64_t run_id, const struct sfc_store_drop *drop,
                       struct sfc_error *err);
/* Drops of steps > after_step, ascending, at most limit. */
int sfc_store_drops(struct sfc_store *store, uint64_t run_id, uint64_t after_step, size_t limit,
                    struct sfc_store_drop *out, size_t *count, struct sfc_error *err);

/* Takes the place of every change that begins at its step or later. Again is fine. */
int sfc_store_put_lr(struct sfc_store *store, uint64_t run_id, const struct sfc_store_lr *change,
                     struct sfc_error *err);
/* By ascending step, at most limit. */
int sfc_store_lr_changes(struct sfc_store *store, uint64_t run_id, size_t limit,
                         struct sfc_store_lr *out, size_t *count, struct sfc_error *err);

/* The shards that are known. An address has one id; putting it again, or dropping what is not
 * there, is fine. */
int sfc_store_put_shard(struct sfc_store *store, uint64_t shard, const char *address,
                        struct sfc_error *err);
/* At most limit, by ascending id. */
int sfc_store_drop_shard(struct sfc_store *store, uint64_t shard, struct sfc_error *err);
int sfc_store_shards(struct sfc_store *store, struct sfc_store_shard *out, size_t limit,
                     size_t *count, struct sfc_error *err);

/* Which shards the run is to have: a packed ScaleRequest, or nothing (size 0). Takes the place of
 * the one before. */
int sfc_store_put_goal(struct sfc_store *store, uint64_t run_id, const uint8_t *goal, size_t size,
                       struct sfc_error *err);
/* *out: to be freed; NULL and *size 0 without a goal. */
int sfc_store_goal(struct sfc_store *store, uint64_t run_id, uint8_t **out, size_t *size,
                   struct sfc_error *err);

/* Appends to the log of events (kept: the newest 10,000). Its id is ignored. */
int sfc_store_put_event(struct sfc_store *store, const struct sfc_store_event *event,
                        struct sfc_error *err);
/* Events with id > after, ascending: the first `limit` of them, or with `newest` the last. */
int sfc_store_events(struct sfc_store *store, uint64_t after, bool newest, size_t limit,
                     struct sfc_store_event *out, size_t *count, struct sfc_error *err);

#endif
