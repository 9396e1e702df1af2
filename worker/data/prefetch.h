/* Reader threads behind a lane: they decode the samples of a micro-batch into one planar buffer
 * ahead of its use. All buffers are allocated at creation and reused; nothing grows afterwards.
 *
 * Life of a batch: submit -> (threads decode) -> ready -> take -> release. A ready batch keeps its
 * buffer until it is released, so a worker may announce its labels first and compute it later. What
 * is read depends only on (set, augment, seed, epoch, sample): never on threads or order.
 *
 * Every function may be called from any thread. */
#ifndef SFC_WORKER_DATA_PREFETCH_H
#define SFC_WORKER_DATA_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "worker/data/dataset.h"

struct sfc_prefetch;

struct sfc_prefetch_options {
    uint32_t threads;           /* reading threads, 1..64 */
    uint32_t slots;             /* batches held at once (queued, decoding, ready), 1..1024 */
    uint32_t rows;              /* rows per batch, at most 65,536 */
    struct sfc_augment augment; /* all 0: as stored */
    uint64_t seed;
    /* true: a broken sample gets label SFC_LABEL_NONE and an image of zeros and is counted; false:
     * its batch fails with the sample's error. */
    bool skip_broken;
    /* Called once per submitted batch that becomes ready (or failed), from a reader thread, without
     * a lock held: must not block (uv_async_send). NULL: nobody is told. */
    void (*on_ready)(void *arg, uint64_t step, uint32_t micro);
    void *arg;
};

/* A decoded micro-batch. Read-only for the taker, valid until release. */
struct sfc_batch {
    uint64_t step;
    uint32_t micro;
    uint32_t rows;           /* as submitted */
    const float *images;     /* [rows, channels, height, width], 64-byte aligned */
    const uint64_t *samples; /* [rows] */
    const uint64_t *labels;  /* [rows]; SFC_LABEL_NONE (kernels/backend.h) for a broken row */
    uint32_t broken;         /* rows that could not be read */
    uint32_t broken_row;     /* the first of them, its sample and why (broken > 0) */
    uint64_t broken_sample;
    struct sfc_error cause;
    struct sfc_error error; /* code SFC_OK, or cause when skip_broken is off */
};

/* The set must outlive the prefetcher. */
int sfc_prefetch_new(const struct sfc_dataset *set, const struct sfc_prefetch_options *options,
                     struct sfc_prefetch **out, struct sfc_error *err);
/* Stops and joins the threads. Taken batches become invalid. NULL is fine. */
void sfc_prefetch_free(struct sfc_prefetch *p);
/* Bytes of the batch buffers, for a limit before creation. */
uint64_t sfc_prefetch_memory(const struct sfc_dataset_info *info,
                             const struct sfc_prefetch_options *options);

/* Queues micro-batch (step, micro): samples[i] of epoch epochs[i], rows <= options.rows. Copies
 * both lists. SFC_ELIMIT: no free slot (release something, ask again); SFC_EEXIST: (step, micro) is
 * already queued or ready; SFC_EINVAL: a sample outside the set. */
int sfc_prefetch_submit(struct sfc_prefetch *p, uint64_t step, uint32_t micro,
                        const uint64_t *samples, const uint64_t *epochs, uint32_t rows,
                        struct sfc_error *err);
/* The batch when it is ready. wait_ms 0: look only; otherwise blocks up to that long.
 * SFC_ETIMEOUT: still decoding; SFC_ENOTFOUND: never submitted, or dropped; SFC_ECANCELED: the
 * prefetcher is being freed. A batch whose error is set (skip_broken false) is handed out like any
 * other: look at batch->error. It may be taken several times; one release ends it. */
int sfc_prefetch_take(struct sfc_prefetch *p, uint64_t step, uint32_t micro, uint32_t wait_ms,
                      const struct sfc_batch **out, struct sfc_error *err);
/* Frees the slot of (step, micro), whether queued, decoding (freed when the reader comes back; its
 * on_ready is not called), ready or taken. Unknown: nothing. */
void sfc_prefetch_release(struct sfc_prefetch *p, uint64_t step, uint32_t micro);
/* Releases every batch of a step below `step` (after a commit). */
void sfc_prefetch_release_before(struct sfc_prefetch *p, uint64_t step);

struct sfc_prefetch_counters {
    uint64_t images, broken; /* decoded, unreadable */
    double decode_seconds;   /* over all threads */
    uint32_t queued, decoding, ready;
};
void sfc_prefetch_counters(struct sfc_prefetch *p, struct sfc_prefetch_counters *out);

#endif
