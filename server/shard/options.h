/* Options of shardfc-shard, from one table (proto/base/options.h). */
#ifndef SFC_SHARD_OPTIONS_H
#define SFC_SHARD_OPTIONS_H

#include "proto/base/options.h"

struct sfc_shard_options {
    const char *scheduler;
    const char *listen;
    const char *advertise; /* NULL: the host of listen with the bound port */
    const char *state;     /* NULL: none */
    const char *backend;
    uint64_t memory;  /* 0: a share of what is free now */
    uint64_t threads; /* 0: number of processors */
};

extern const struct sfc_program sfc_shard_program;

#endif
