#include "server/core/lr_changes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

int sfc_lr_change_check(const struct sfc_lr_change *change, const struct sfc_schedule *schedule,
                        struct sfc_error *err)
{
    struct sfc_schedule with = *schedule;
    if (change->from_step < 1 || change->from_step > schedule->steps)
        return sfc_fail(err, SFC_EINVAL, "from step %llu: the run has steps 1 to %llu",
                        (ull)change->from_step, (ull)schedule->steps);
    if (change->lr == 0)
        return SFC_OK;
    if (change->lr > SFC_CORE_LR_MAX)
        return sfc_fail(err, SFC_EINVAL, "lr: %g is more than %g", change->lr, SFC_CORE_LR_MAX);
    with.lr = change->lr;
    return sfc_schedule_check(&with, err);
}

static int check_all(const struct sfc_lr_change *items, size_t count,
                     const struct sfc_schedule *schedule, struct sfc_error *err)
{
    if (count > SFC_CORE_LR_CHANGES)
        return sfc_fail(err, SFC_EINVAL, "%zu changes of the learning rate, at most %u", count,
                        SFC_CORE_LR_CHANGES);
    for (size_t i = 0; i < count; i++) {
        int rc = sfc_lr_change_check(&items[i], schedule, err);
        if (rc != SFC_OK)
            return sfc_prefix(err, "change %zu of the learning rate", i);
        if (i > 0 && items[i].from_step <= items[i - 1].from_step)
            return sfc_fail(err, SFC_EINVAL,
                            "changes of the learning rate: step %llu comes after step %llu",
                            (ull)items[i].from_step, (ull)items[i - 1].from_step);
    }
    return SFC_OK;
}

int sfc_lr_changes_init(struct sfc_lr_changes *changes, const struct sfc_lr_change *items,
                        size_t count, const struct sfc_schedule *schedule, struct sfc_error *err)
{
    int rc = check_all(items, count, schedule, err);
    if (rc != SFC_OK)
        return rc;
    struct sfc_lr_change *copy = calloc(SFC_CORE_LR_CHANGES, sizeof(*copy));
    if (!copy)
        return sfc_fail(err, SFC_ENOMEM, "changes of the learning rate");
    if (count > 0)
        memcpy(copy, items, count * sizeof(*copy));
    *changes = (struct sfc_lr_changes){.items = copy, .count = (uint32_t)count};
    return SFC_OK;
}

void sfc_lr_changes_free(struct sfc_lr_changes *changes)
{
    free(changes->items);
    memset(changes, 0, sizeof(*changes));
}

void sfc_lr_changes_cut(struct sfc_lr_changes *changes, uint64_t step)
{
    while (changes->count > 0 && changes->items[changes->count - 1].from_step > step)
        changes->count--;
}

static uint32_t count_before(const struct sfc_lr_changes *changes, uint64_t step)
{
    uint32_t count = changes->count;
    while (count > 0 && changes->items[count - 1].from_step >= step)
        count--;
    return count;
}

int sfc_lr_changes_room(const struct sfc_lr_changes *changes, const struct sfc_lr_change *change,
                        struct sfc_error *err)
{
    if (count_before(changes, change->from_step) < SFC_CORE_LR_CHANGES)
        return SFC_OK;
    return sfc_fail(
        err, SFC_ELIMIT,
        "the learning rate of this run was changed %u times, which is all that is kept; "
        "a run that `shardfc restore` starts from a checkpoint keeps only what it needs",
        SFC_CORE_LR_CHANGES);
}

void sfc_lr_changes_set(struct sfc_lr_changes *changes, const struct sfc_lr_change *change)
{
    uint32_t stay = count_before(changes, change->from_step);
    assert(stay < SFC_CORE_LR_CHANGES);
    changes->items[stay] = *change;
    changes->count = stay + 1;
}

/* The last one that begins at or before the step; 0: none. */
static double set_at(const struct sfc_lr_changes *changes, uint64_t step)
{
    for (uint32_t i = changes->count; i > 0; i--)
        if (changes->items[i - 1].from_step <= step)
            return changes->items[i - 1].lr;
    return 0;
}

bool sfc_lr_changes_has(const struct sfc_lr_changes *changes, const struct sfc_lr_change *change)
{
    bool last =
        changes->count == 0 || changes->items[changes->count - 1].from_step <= change->from_step;
    return last && set_at(changes, change->from_step) == change->lr;
}

double sfc_lr_of_step(const struct sfc_lr_changes *changes, const struct sfc_schedule *schedule,
                      uint64_t step)
{
    struct sfc_schedule with = *schedule;
    double lr = set_at(changes, step);
    if (lr != 0)
        with.lr = lr;
    return sfc_schedule_lr(&with, step);
}
