#include "server/core/attempts.h"

#include <stdlib.h>
#include <string.h>

const char *const sfc_call_names[SFC_CALL_COUNT] = {"Logits", "Gradient", "PushDense"};

int sfc_attempts_init(struct sfc_attempts *a, uint32_t micro_batches, uint32_t slots,
                      uint32_t dense_blocks, struct sfc_error *err)
{
    struct sfc_attempts n = {
        .slot_count = slots, .micro_batches = micro_batches, .dense_blocks = dense_blocks};
    n.slots = calloc(slots, sizeof(*n.slots));
    n.digests = calloc((size_t)slots * dense_blocks + 1, sizeof(*n.digests));
    if (!n.slots || !n.digests) {
        sfc_attempts_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "%u slots", slots);
    }
    for (uint32_t i = 0; i < slots; i++)
        n.slots[i].dense_digests = n.digests + (size_t)i * dense_blocks;
    *a = n;
    return SFC_OK;
}

void sfc_attempts_free(struct sfc_attempts *a)
{
    free(a->slots);
    free(a->digests);
    memset(a, 0, sizeof(*a));
}

bool sfc_slot_running(const struct sfc_slot *slot)
{
    for (int c = 0; c < SFC_CALL_COUNT; c++)
        if (slot->state[c] == SFC_CALL_RUNNING)
            return true;
    return false;
}

bool sfc_slot_complete(const struct sfc_slot *slot, uint32_t own_dense_blocks)
{
    return slot->used && !slot->dead && slot->state[SFC_CALL_LOGITS] == SFC_CALL_DONE &&
           slot->state[SFC_CALL_GRADIENT] == SFC_CALL_DONE &&
           (own_dense_blocks == 0 || slot->state[SFC_CALL_DENSE] == SFC_CALL_DONE);
}

void sfc_attempts_reset(struct sfc_attempts *a, uint64_t step)
{
    a->step = step;
    for (uint32_t i = 0; i < a->slot_count; i++) {
        struct sfc_slot *s = &a->slots[i];
        s->dead = s->used && sfc_slot_running(s);
        s->used = s->dead;
    }
}

uint32_t sfc_attempts_find(const struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt)
{
    for (uint32_t i = 0; i < a->slot_count; i++) {
        const struct sfc_slot *s = &a->slots[i];
        if (s->used && !s->dead && s->j == j && sfc_attempt_compare(s->attempt, attempt) == 0)
            return i;
    }
    return UINT32_MAX;
}

static bool has_newer(const struct sfc_attempts *a, const struct sfc_slot *slot)
{
    for (uint32_t i = 0; i < a->slot_count; i++) {
        const struct sfc_slot *s = &a->slots[i];
        if (s->used && !s->dead && s->j == slot->j &&
            sfc_attempt_compare(s->attempt, slot->attempt) > 0)
            return true;
    }
    return false;
}

/* May give its place to this attempt: void, or a newer one of its micro-batch is here or comes. */
static bool replaceable(const struct sfc_attempts *a, const struct sfc_slot *slot, uint32_t j,
                        struct sfc_attempt attempt)
{
    if (slot->dead)
        return true;
    if (slot->j == j)
        return sfc_attempt_compare(slot->attempt, attempt) < 0;
    return has_newer(a, slot);
}

/* The oldest that is complete or not, one of the same micro-batch first; UINT32_MAX: none that is
 * idle. *busy: there is one with a running job. */
static uint32_t oldest(const struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt,
                       bool complete, bool *busy)
{
    uint32_t best = UINT32_MAX;
    bool best_own = false;
    for (uint32_t i = 0; i < a->slot_count; i++) {
        const struct sfc_slot *s = &a->slots[i];
        if (!replaceable(a, s, j, attempt) || sfc_slot_complete(s, a->dense_blocks) != complete)
            continue;
        bool own = s->j == j;
        if (sfc_slot_running(s))
            *busy = true;
        else if (best == UINT32_MAX || own > best_own ||
                 (own == best_own && sfc_attempt_compare(s->attempt, a->slots[best].attempt) < 0)) {
            best = i;
            best_own = own;
        }
    }
    return best;
}

/* Rather one that is not complete: a complete one may be the one that counts. So where one of the
 * former still has a running job, that is waited for. */
static uint32_t victim(const struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt,
                       bool *busy)
{
    uint32_t slot = oldest(a, j, attempt, false, busy);
    return slot != UINT32_MAX || *busy ? slot : oldest(a, j, attempt, true, busy);
}

uint32_t sfc_attempts_take(struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt,
                           bool *busy)
{
    uint32_t slot = UINT32_MAX;
    *busy = false;
    for (uint32_t i = 0; i < a->slot_count && slot == UINT32_MAX; i++)
        if (!a->slots[i].used)
            slot = i;
    if (slot == UINT32_MAX)
        slot = victim(a, j, attempt, busy);
    if (slot == UINT32_MAX)
        return slot;
    struct sfc_slot *s = &a->slots[slot];
    uint64_t *digests = s->dense_digests;
    *s = (struct sfc_slot){.used = true, .j = j, .attempt = attempt, .dense_digests = digests};
    return slot;
}
