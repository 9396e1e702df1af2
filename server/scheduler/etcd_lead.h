/* Who of several schedulers leads: the one whose lease holds the key PREFIX/leader in etcd.
 *
 * Every write is a transaction on the condition that this key is still the one of our election
 * (its create revision), so a scheduler that lost its lease, whether it knows or not, can write
 * nothing. A second condition, on the number of the last write (PREFIX/writes), makes each write
 * happen once, also where an answer was lost and the call had to be repeated: a copy of it that
 * arrives late finds another number.
 *
 * A thread renews the lease. A lease that has ended, and one that could not be renewed for long,
 * end the leadership: lost is called and every further write fails. */
#ifndef SFC_SCHEDULER_ETCD_LEAD_H
#define SFC_SCHEDULER_ETCD_LEAD_H

#include "proto/limits.h"
#include "server/scheduler/etcd_client.h"

struct sfc_lead;

struct sfc_lead_owner {
    const char *address; /* where this scheduler serves: what others are told. Kept by reference */
    /* At most once, from a thread of the leadership; NULL: nobody is told. */
    void (*lost)(void *ctx, const char *why);
    void *ctx;
};

/* Tries once to become the leader. SFC_ESTATE: another one is; its address is written to `leader`.
 * SFC_EUNAVAILABLE: etcd does not answer. etcd must outlive the leadership. */
int sfc_lead_try(struct sfc_etcd *etcd, const struct sfc_lead_owner *owner, struct sfc_lead **out,
                 char leader[SFC_LIMIT_ADDRESS + 1], struct sfc_error *err);
/* Gives it to the next one. NULL is fine. */
void sfc_lead_free(struct sfc_lead *lead);

enum { SFC_LEAD_OPS = 8 };

/* What one write changes; keys and values are borrowed. */
struct sfc_lead_write {
    Etcdserverpb__RequestOp ops[SFC_LEAD_OPS + 1];
    Etcdserverpb__PutRequest puts[SFC_LEAD_OPS + 1];
    Etcdserverpb__DeleteRangeRequest deletes[SFC_LEAD_OPS];
    size_t count; /* 0 at first */
};
void sfc_lead_put(struct sfc_lead_write *write, const char *key, struct sfc_bytes value);
/* All keys from `key` to before `end`, which no put of the same write is among. */
void sfc_lead_delete(struct sfc_lead_write *write, const char *key, const char *end);

/* All of it is written, durably and once. Blocks until etcd has decided: where it does not answer,
 * until it does or the leadership has ended. SFC_ESTALE: we lead no more, and nobody knows whether
 * this was written. Other codes: etcd refused it, nothing was written. One thread at a time. */
int sfc_lead_commit(struct sfc_lead *lead, struct sfc_lead_write *write, const char *what,
                    struct sfc_error *err);
/* The same of a read. */
int sfc_lead_read(struct sfc_lead *lead, const Etcdserverpb__RangeRequest *request,
                  struct sfc_answer *out, const char *what, struct sfc_error *err);

#endif
