/* Options of shardfc-shard, from one table (proto/base/options.h). */
#ifndef SFC_SHARD_OPTIONS_H
#define SFC_SHARD_OPTIONS_H

#include "proto/base/options.h"
#include "proto/peer_limits.h"
#include "proto/security.h"

struct sfc_shard_options {
    const char *scheduler;
    const char *listen;
    const char *advertise; /* NULL: the host of listen with the bound port */
    struct sfc_security security;
    struct sfc_peer_limits peers;
    const char *http;         /* NULL: no pages */
    const char *state;        /* NULL only with durable off */
    int durable;              /* enum sfc_durable */
    uint64_t recovery_target; /* ms */
    uint64_t log_limit;       /* bytes; 0: a share of the free space */
    uint64_t snapshot_rate;   /* bytes per second */
    const char *snapshot_compression;
    const char *backend;
    const char *store_dir; /* NULL: class blocks live in memory */
    uint64_t memory;       /* 0: a share of what is free now */
    uint64_t threads;      /* 0: number of processors */
    int join;              /* enum sfc_join */
};

enum sfc_durable { SFC_DURABLE_ON, SFC_DURABLE_OFF };
enum sfc_join { SFC_JOIN_MANUAL, SFC_JOIN_AUTO };

extern const struct sfc_program sfc_shard_program;

/* Level of zstd for snapshots, 0: none. SFC_EINVAL: neither none nor zstd:LEVEL. */
int sfc_shard_compression(const struct sfc_shard_options *options, int *level,
                          struct sfc_error *err);
/* What the table can't say. */
int sfc_shard_options_check(const struct sfc_shard_options *options, struct sfc_error *err);

#endif
