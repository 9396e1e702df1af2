/* Who is there: shards and workers with leases. Time comes in with each event.
 *
 *   worker:  (unknown) --JOIN--> alive --LEAVE, LOST, lease over--> (unknown; its id never returns)
 *   shard:   (unknown) --REGISTER--> ready <--SEEN-- gone
 *                                      '---LOST, lease over--> gone --REGISTER--> ready
 *
 * A shard is known by its address and keeps its id. A REGISTER with another boot id is a restart:
 * its memory is lost. When max_shards are known, a new address takes the place of the gone shard
 * that was silent for longest, unless that one is kept: every restart on a port that the kernel
 * chooses is a new address. */
#ifndef SFC_CORE_MEMBERSHIP_H
#define SFC_CORE_MEMBERSHIP_H

#include "server/core/types.h"

struct sfc_membership_config {
    uint64_t incarnation; /* of the scheduler, < 2^32: worker ids are incarnation << 32 | n */
    uint32_t max_workers; /* alive at once */
    uint32_t max_shards;  /* known at once, <= SFC_CORE_MAX_SHARDS */
    uint64_t worker_lease_ms;
    uint64_t shard_lease_ms;
};

struct sfc_worker_member {
    uint64_t id; /* 0 = free entry */
    char name[128];
    uint32_t lanes;
    uint64_t seen_ms;
};

struct sfc_shard_member {
    uint64_t id; /* 1-based; 0 = free entry */
    char address[256];
    uint64_t boot_id;
    bool registered; /* since our start: the scheduler knows what it holds */
    bool ready;
    bool kept; /* blocks of the present run are there: not to be forgotten */
    uint64_t seen_ms;
};

struct sfc_membership {
    struct sfc_membership_config config;
    struct sfc_worker_member *workers; /* [max_workers], read-only for callers */
    struct sfc_shard_member *shards;   /* [max_shards] */
    uint32_t worker_count;
    uint32_t shard_count;
    uint64_t next_worker;
    uint64_t last_shard; /* greatest id ever given: none is given twice */
};

enum sfc_member_event_type {
    SFC_MEMBER_WORKER_JOIN,    /* name, lanes */
    SFC_MEMBER_WORKER_SEEN,    /* id */
    SFC_MEMBER_WORKER_LEAVE,   /* id */
    SFC_MEMBER_WORKER_LOST,    /* id: the transport says that its heartbeat call broke */
    SFC_MEMBER_SHARD_REGISTER, /* address, boot_id */
    SFC_MEMBER_SHARD_SEEN,     /* id, boot_id */
    SFC_MEMBER_SHARD_LOST,     /* id, boot_id */
    SFC_MEMBER_TICK,
};

struct sfc_member_event {
    enum sfc_member_event_type type;
    uint64_t now_ms;
    uint64_t id;
    uint64_t boot_id;
    const char *name; /* worker's name or shard's address; copied */
    uint32_t lanes;
};

enum sfc_member_action_type {
    SFC_MEMBER_WORKER_JOINED,   /* id is new */
    SFC_MEMBER_WORKER_DIED,     /* id is void: return its tickets */
    SFC_MEMBER_SHARD_JOINED,    /* a new address */
    SFC_MEMBER_SHARD_REJOINED,  /* known address, same boot id: its memory is intact */
    SFC_MEMBER_SHARD_RESTARTED, /* known address, other boot id: its memory is lost */
    SFC_MEMBER_SHARD_GONE,      /* silent for its lease */
    SFC_MEMBER_SHARD_FORGOTTEN, /* a new one takes its place: its id is void */
};

struct sfc_member_action {
    enum sfc_member_action_type type;
    uint64_t id;
};

struct sfc_member_actions {
    struct sfc_member_action *items; /* [capacity], owned */
    size_t count;
    size_t capacity;
};

int sfc_membership_init(struct sfc_membership *m, const struct sfc_membership_config *config,
                        struct sfc_error *err);
void sfc_membership_free(struct sfc_membership *m);
/* Room for whatever one event can cause. */
int sfc_member_actions_init(struct sfc_member_actions *actions, const struct sfc_membership *m,
                            struct sfc_error *err);
void sfc_member_actions_free(struct sfc_member_actions *actions);

/* After a restart of the scheduler: a shard of the durable record, gone until it registers. boot_id
 * 0: not known; then any boot id at the next REGISTER counts as the same (the shard's own words
 * about its run decide). */
int sfc_membership_restore_shard(struct sfc_membership *m, uint64_t id, const char *address,
                                 uint64_t boot_id, struct sfc_error *err);

/* Shards that hold blocks of the present run; ids of others are ignored. */
void sfc_membership_keep_shards(struct sfc_membership *m, const uint64_t *ids, size_t count);

/* The scheduler itself stood still for so long: what came meanwhile waits to be read, so it counts
 * as nobody's silence. */
void sfc_membership_stood_still(struct sfc_membership *m, uint64_t ms);

/* Fills actions (emptied first). SFC_ENOTFOUND: unknown id, or a shard's boot id that isn't the
 * registered one: the member must join or register again. SFC_ELIMIT: too many members. SFC_EINVAL:
 * an empty or too long name. The state is unchanged on failure. */
int sfc_membership_step(struct sfc_membership *m, const struct sfc_member_event *event,
                        struct sfc_member_actions *actions, struct sfc_error *err);

const struct sfc_worker_member *sfc_membership_worker(const struct sfc_membership *m, uint64_t id);
const struct sfc_shard_member *sfc_membership_shard(const struct sfc_membership *m, uint64_t id);

#endif
