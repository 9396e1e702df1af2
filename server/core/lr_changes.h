/* Learning rates that people set while a run lives. A change takes the place of the schedule's `lr`
 * from a step on, until the next change; the factors of warm-up and decay stay. The rate of a step
 * is a function of the schedule and of the changes alone, so a step that comes again has it again.
 */
#ifndef SFC_CORE_LR_CHANGES_H
#define SFC_CORE_LR_CHANGES_H

#include "server/core/schedule.h"

#define SFC_CORE_LR_CHANGES 1000u /* of a run */
#define SFC_CORE_LR_MAX     1e6   /* as for the schedule's (proto/run_config.c) */

struct sfc_lr_change {
    uint64_t from_step; /* 1-based */
    double lr;          /* 0: the schedule's own again */
};

struct sfc_lr_changes {
    struct sfc_lr_change *items; /* [SFC_CORE_LR_CHANGES], steps ascending */
    uint32_t count;
};

/* Copies. SFC_EINVAL: one is not what sfc_lr_change_check allows, their steps don't ascend, or
 * there are too many. */
int sfc_lr_changes_init(struct sfc_lr_changes *changes, const struct sfc_lr_change *items,
                        size_t count, const struct sfc_schedule *schedule, struct sfc_error *err);
void sfc_lr_changes_free(struct sfc_lr_changes *changes); /* all zero is fine */

/* A step of the run, and a rate that a schedule may have. SFC_EINVAL says which is not so. */
int sfc_lr_change_check(const struct sfc_lr_change *change, const struct sfc_schedule *schedule,
                        struct sfc_error *err);
/* Is there room to set it? SFC_ELIMIT. */
int sfc_lr_changes_room(const struct sfc_lr_changes *changes, const struct sfc_lr_change *change,
                        struct sfc_error *err);
/* From its step on this rate, whatever was said of its step and of later ones. There is room. */
void sfc_lr_changes_set(struct sfc_lr_changes *changes, const struct sfc_lr_change *change);
/* Whether setting it would change nothing. */
bool sfc_lr_changes_has(const struct sfc_lr_changes *changes, const struct sfc_lr_change *change);
/* Those that begin after the step are gone. */
void sfc_lr_changes_cut(struct sfc_lr_changes *changes, uint64_t step);
/* step: as for sfc_schedule_lr. */
double sfc_lr_of_step(const struct sfc_lr_changes *changes, const struct sfc_schedule *schedule,
                      uint64_t step);

#endif
