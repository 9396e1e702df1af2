/* A bounded set of equal buffers, each holding what belongs to one (step, micro-batch): decoded
 * micro-batches, and parameters (micro-batch 0). Several threads may want the same one: the first
 * fills it, the others wait for that.
 *
 * All memory is allocated at creation. A thread holds at most one slot of a cache at a time and
 * there are more slots than threads, so a slot can always be had: an unused one of a committed
 * step, or else the one that is needed last (greatest step, then micro-batch). What is lost that
 * way is read again, to the same bits. Every function may be called from any thread. */
#ifndef SFC_WORKER_SLOT_CACHE_H
#define SFC_WORKER_SLOT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_slot_cache;

struct sfc_slot {
    uint64_t step;
    uint32_t micro_batch;
    float *values;    /* [values], 64-byte aligned */
    uint64_t *labels; /* [rows] */
    uint32_t *broken; /* [rows], the first broken_count count */
    uint32_t broken_count;
    struct sfc_error error; /* code SFC_OK, or why the first broken row could not be read */
};

/* slots: more than the threads that use the cache. */
int sfc_slot_cache_new(size_t slots, uint32_t rows, size_t values, struct sfc_slot_cache **out,
                       struct sfc_error *err);
void sfc_slot_cache_free(struct sfc_slot_cache *cache); /* NULL is fine */
/* Bytes of one slot. */
uint64_t sfc_slot_bytes(uint32_t rows, size_t values);

/* The slot of (step, micro_batch), held until close. *fill: the caller must fill it and then call
 * filled or close (which forgets it). Never NULL. */
struct sfc_slot *sfc_slot_open(struct sfc_slot_cache *cache, uint64_t step, uint32_t micro_batch,
                               bool *fill);
void sfc_slot_filled(struct sfc_slot_cache *cache, struct sfc_slot *slot);
void sfc_slot_close(struct sfc_slot_cache *cache, struct sfc_slot *slot);
/* The contents are not to be used again; those who hold it may go on. */
void sfc_slot_forget(struct sfc_slot_cache *cache, struct sfc_slot *slot);
/* Everything of steps up to `step` may go. */
void sfc_slot_cache_committed(struct sfc_slot_cache *cache, uint64_t step);
/* The run went back to this step: what is there of later ones is not used any more. */
void sfc_slot_cache_rewind(struct sfc_slot_cache *cache, uint64_t step);
/* Slots that hold something (tests, status). */
size_t sfc_slot_cache_used(struct sfc_slot_cache *cache);

#endif
