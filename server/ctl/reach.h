/* What a command shows while it waits until the run is at a step: how far the training is, or why
 * it does not get on. */
#ifndef SFC_CTL_REACH_H
#define SFC_CTL_REACH_H

#include "server/ctl/command.h"

struct sfc_reach { /* all zero at first */
    struct sfc_command_progress steps;
    struct sfc_command_waiting waiting;
    uint64_t seen;
    double moved; /* seconds, monotonic: when `seen` was new */
};

/* The run is at `step` and at_step is waited for. Not above step: until the run stands still. */
void sfc_reach_show(struct sfc_reach *reach, struct sfc_cluster *cluster, uint64_t step,
                    uint64_t at_step);
void sfc_reach_end(struct sfc_reach *reach);

#endif
