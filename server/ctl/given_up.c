#include "server/ctl/given_up.h"

#include <inttypes.h>
#include <stdlib.h>

int sfc_round_facts_add(struct sfc_round_facts *x, uint64_t step, struct sfc_attempt round,
                        struct sfc_error *err)
{
    if (x->count == x->room) {
        size_t room = x->room == 0 ? 256 : 2 * x->room;
        struct sfc_round_fact *more = reallocarray(x->facts, room, sizeof *more);
        if (more == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for the rounds of %zu records", room);
        }
        x->facts = more;
        x->room = room;
    }
    x->facts[x->count++] = (struct sfc_round_fact){.step = step, .round = round};
    return SFC_OK;
}

static int by_step(const void *a, const void *b)
{
    const struct sfc_round_fact *x = a, *y = b;
    if (x->step != y->step) {
        return x->step < y->step ? -1 : 1;
    }
    return sfc_attempt_compare(x->round, y->round);
}

/* Only those stay that are newer than all before them: steps and rounds then both ascend. */
void sfc_round_facts_order(struct sfc_round_facts *x)
{
    size_t kept = 0;
    if (x->count == 0) {
        return;
    }
    qsort(x->facts, x->count, sizeof *x->facts, by_step);
    for (size_t i = 0; i < x->count; i++) {
        if (kept == 0 || sfc_attempt_compare(x->facts[i].round, x->facts[kept - 1].round) > 0) {
            x->facts[kept++] = x->facts[i];
        }
    }
    x->count = kept;
}

const struct sfc_round_fact *sfc_round_facts_against(const struct sfc_round_facts *x, uint64_t step,
                                                     struct sfc_attempt round)
{
    size_t low = 0, high = x->count; /* the last of a step <= step has the newest round */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (x->facts[middle].step <= step) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low > 0 && sfc_attempt_compare(x->facts[low - 1].round, round) > 0 ? &x->facts[low - 1]
                                                                              : NULL;
}

void sfc_round_facts_free(struct sfc_round_facts *x)
{
    free(x->facts);
    *x = (struct sfc_round_facts){0};
}
