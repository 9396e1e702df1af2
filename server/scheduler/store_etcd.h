/* Private to server/scheduler/store_etcd*.c: the state in etcd as keys and values
 * (docs/FORMATS.md). Functions that can fail do so as sfc_lead_read and sfc_lead_commit do. */
#ifndef SFC_SCHEDULER_STORE_ETCD_H
#define SFC_SCHEDULER_STORE_ETCD_H

#include <inttypes.h>

#include "server/scheduler/etcd_lead.h"
#include "server/scheduler/etcd_records.h"
#include "server/scheduler/store_impl.h"

enum { SFC_KV_KEY = SFC_ETCD_PREFIX + 96, SFC_KV_RUNS = 8 /* that are kept */ };

struct sfc_etcd_store {
    struct sfc_store base;
    struct sfc_etcd *etcd;
    struct sfc_lead *lead;
    /* What the newest keys are; 0: not read yet. */
    uint64_t commits_run, last_step; /* of this run the newest record is of last_step */
    uint64_t last_event;
    bool events_known;
};

static inline struct sfc_etcd_store *etcd_of(struct sfc_store *base)
{
    return (struct sfc_etcd_store *)base; /* its first member */
}

/* ---- etcd_kv.c */

/* So that keys sort like numbers. */
#define SFC_KV_NUMBER "%020" PRIu64

/* The prefix, and a name behind it. */
void sfc_kv_key(const struct sfc_etcd_store *s, char out[SFC_KV_KEY], const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The first key behind all that begin with `folder`, which ends with '/'. */
void sfc_kv_end(char out[SFC_KV_KEY], const char *folder);
/* Part `back` of a key, counted from its end, 0: the last one. */
uint64_t sfc_kv_number(const Etcdserverpb__KeyValue *kv, unsigned back);

/* One value; free the answer. SFC_ENOTFOUND: there is none. */
int sfc_kv_read(struct sfc_etcd_store *s, const char *key, struct sfc_answer *answer,
                ProtobufCBinaryData *value, const char *what, struct sfc_error *err);
/* The message under a key; free it with sfc_stored_free. */
int sfc_kv_read_message(struct sfc_etcd_store *s, const char *key,
                        const ProtobufCMessageDescriptor *type, void *out, const char *what,
                        struct sfc_error *err);
/* Keys from `from` to before `end`, at most `limit`; backwards: the highest. */
int sfc_kv_range(struct sfc_etcd_store *s, const char *from, const char *end, size_t limit,
                 bool backwards, struct sfc_answer *answer, const char *what,
                 struct sfc_error *err);
const Etcdserverpb__RangeResponse *sfc_kv_reply(const struct sfc_answer *answer);
/* A long range, page by page: take is called for each key, ascending, until it says false. */
int sfc_kv_walk(struct sfc_etcd_store *s, const char *from, const char *end,
                int (*take)(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                            struct sfc_error *err),
                void *ctx, const char *what, struct sfc_error *err);
/* The highest number under a folder; 0: nothing is there. */
int sfc_kv_last(struct sfc_etcd_store *s, const char *folder, uint64_t *out, const char *what,
                struct sfc_error *err);

int sfc_kv_write_text(struct sfc_etcd_store *s, const char *key, const char *text, const char *what,
                      struct sfc_error *err);
int sfc_kv_write_message(struct sfc_etcd_store *s, const char *key, const void *message,
                         const char *what, struct sfc_error *err);

/* Long values, in pieces under `folder`. They count when a later write names their size. */
int sfc_kv_write_pieces(struct sfc_etcd_store *s, const char *folder, const uint8_t *data,
                        size_t size, const char *what, struct sfc_error *err);
/* *out is the caller's to free. */
int sfc_kv_read_pieces(struct sfc_etcd_store *s, const char *folder, uint64_t size, uint8_t **out,
                       const char *what, struct sfc_error *err);

/* ---- store_etcd_runs.c, store_etcd_steps.c: functions of the table */
void sfc_etcd_lr_key(const struct sfc_etcd_store *s, char key[SFC_KV_KEY], uint64_t run_id);
int sfc_etcd_store_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err);
int sfc_etcd_store_add_run(struct sfc_store *base, const struct sfc_store_run *run,
                           uint64_t *run_id, struct sfc_error *err);
int sfc_etcd_store_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                                 bool paused, const char *reason, struct sfc_error *err);
int sfc_etcd_store_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                    struct sfc_error *err);
int sfc_etcd_store_run_before(struct sfc_store *base, uint64_t run_id, struct sfc_store_run *out,
                              struct sfc_error *err);
int sfc_etcd_store_last_run(struct sfc_store *base, struct sfc_store_run *out,
                            struct sfc_error *err);
int sfc_etcd_store_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                           struct sfc_error *err);
int sfc_etcd_store_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal,
                            size_t size, struct sfc_error *err);
int sfc_etcd_store_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                        struct sfc_error *err);
int sfc_etcd_store_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                               size_t count, const struct sfc_lineage *lineage,
                               struct sfc_error *err);
int sfc_etcd_store_last_commit(struct sfc_store *base, uint64_t run_id,
                               struct sfc_store_commit *out, struct sfc_error *err);
int sfc_etcd_store_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                          const struct sfc_store_commit *commits, size_t count,
                          const struct sfc_lineage *lineage, struct sfc_error *err);
int sfc_etcd_store_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                           struct sfc_error *err);
int sfc_etcd_store_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step,
                           size_t limit, struct sfc_store_commit *out, size_t *count,
                           struct sfc_error *err);
int sfc_etcd_store_put_drop(struct sfc_store *base, uint64_t run_id,
                            const struct sfc_store_drop *drop, struct sfc_error *err);
int sfc_etcd_store_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                         struct sfc_store_drop *out, size_t *count, struct sfc_error *err);
int sfc_etcd_store_put_lr(struct sfc_store *base, uint64_t run_id,
                          const struct sfc_store_lr *change, struct sfc_error *err);
int sfc_etcd_store_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
                              struct sfc_store_lr *out, size_t *count, struct sfc_error *err);

#endif
