/* Attempts of one step at a shard: slots, idempotency keys, digests.
 *
 *   logits:   NONE -> RUNNING -> DONE      a repeat with the same digest gets the stored answer,
 * another gradient: the same, after logits       digest is a conflict; a failed job makes it NONE
 * again dense:    the same, any time
 *
 * Slots are J + 2 side by side. When they run out, an attempt is evicted that has a newer one of
 * its micro-batch (the one that comes, too): one that is not complete rather than one that is, for
 * the latter may be the one that counts; then one of the same micro-batch; then the oldest. One
 * with a running job is waited for, before one that is complete goes. Two attempts at a micro-batch
 * may count at a time (tickets.h), as long as no more were granted than there are slots. */
#ifndef SFC_CORE_ATTEMPTS_H
#define SFC_CORE_ATTEMPTS_H

#include "server/core/types.h"

enum sfc_call { SFC_CALL_LOGITS, SFC_CALL_GRADIENT, SFC_CALL_DENSE, SFC_CALL_COUNT };
extern const char *const sfc_call_names[SFC_CALL_COUNT];
enum sfc_call_state { SFC_CALL_NONE, SFC_CALL_RUNNING, SFC_CALL_DONE };

struct sfc_slot {
    bool used;
    bool dead; /* void, but a job still runs on it */
    uint32_t j;
    struct sfc_attempt attempt;
    enum sfc_call_state state[SFC_CALL_COUNT];
    uint64_t digest[SFC_CALL_COUNT];    /* of the payload */
    struct sfc_head_digest head_digest; /* after gradient */
    uint64_t *dense_digests;            /* [own dense blocks], after dense */
};

struct sfc_attempts {
    uint64_t step; /* 0 = none */
    uint32_t slot_count;
    uint32_t micro_batches;
    uint32_t dense_blocks; /* own */
    struct sfc_slot *slots;
    uint64_t *digests;
};

int sfc_attempts_init(struct sfc_attempts *a, uint32_t micro_batches, uint32_t slots,
                      uint32_t dense_blocks, struct sfc_error *err);
void sfc_attempts_free(struct sfc_attempts *a);
/* Forgets everything; slots with a running job stay as dead until it ends. */
void sfc_attempts_reset(struct sfc_attempts *a, uint64_t step);
/* UINT32_MAX: not here. */
uint32_t sfc_attempts_find(const struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt);
/* A slot for a new attempt. UINT32_MAX with *busy: a candidate has a running job, try later; with
 * !*busy: newer attempts of j fill the slots. */
uint32_t sfc_attempts_take(struct sfc_attempts *a, uint32_t j, struct sfc_attempt attempt,
                           bool *busy);
bool sfc_slot_running(const struct sfc_slot *slot);
/* Everything is here that a commit needs. */
bool sfc_slot_complete(const struct sfc_slot *slot, uint32_t own_dense_blocks);

#endif
