#include "server/ctl/reach.h"

#include <inttypes.h>
#include <stdio.h>

#define STUCK_S 5.0 /* without a step: why? */

static void show_why(struct sfc_reach *r, struct sfc_cluster *cluster, uint64_t step,
                     uint64_t at_step)
{
    char why[200], text[256];
    sfc_cluster_why(cluster, why, sizeof why);
    if (step < at_step) {
        snprintf(text, sizeof text, "at step %" PRIu64 "/%" PRIu64 ": %s", step, at_step, why);
    } else {
        snprintf(text, sizeof text, "until the run stands still: %s", why);
    }
    sfc_command_waiting(&r->waiting, text);
}

void sfc_reach_show(struct sfc_reach *r, struct sfc_cluster *cluster, uint64_t step,
                    uint64_t at_step)
{
    double now = sfc_command_clock();
    if (r->moved == 0 || step != r->seen) {
        r->seen = step;
        r->moved = now;
    }
    if (step < at_step && now - r->moved < STUCK_S) {
        r->steps.what = "training reaches";
        r->steps.unit = "steps";
        sfc_command_waited(&r->waiting);
        sfc_command_progress(&r->steps, step, at_step);
    } else {
        show_why(r, cluster, step, at_step);
    }
}

void sfc_reach_end(struct sfc_reach *r)
{
    sfc_command_waited(&r->waiting);
    sfc_command_progress_end(&r->steps);
}
