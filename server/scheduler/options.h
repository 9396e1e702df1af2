/* Options of shardfc-scheduler, from one table (proto/base/options.h). */
#ifndef SFC_SCHEDULER_OPTIONS_H
#define SFC_SCHEDULER_OPTIONS_H

#include "proto/base/options.h"
#include "proto/peer_limits.h"
#include "proto/security.h"

struct sfc_scheduler_options {
    const char *listen;
    const char *advertise; /* NULL: the host of listen */
    const char *state;
    struct sfc_security security;
    struct sfc_peer_limits peers;
    const char *http; /* NULL: no pages */
    uint64_t lease_ms;
    uint64_t move_rate; /* bytes per second, 0 = no limit */
};

extern const struct sfc_program sfc_scheduler_program;

#endif
