/* The shard's compute executor: one thread that owns the backend and the blocks of the run, and
 * runs jobs from a queue in order. Logits (and gradients) that wait side by side are joined into
 * one backend call, which changes no bit of any answer (kernels/backend.h, I8). Where they came
 * side by side the last time, the first waits a little for the others of its step.
 *
 * Threads: every function here is called from the loop thread. A job is owned by its submitter
 * again when its done callback runs, on the loop thread; buffers named by a job must stay valid
 * until then. */
#ifndef SFC_SHARD_COMPUTE_H
#define SFC_SHARD_COMPUTE_H

#include "kernels/backend.h"
#include "proto/base/spans.h"
#include "server/run/run_setup.h"
#include "server/shard/dense_sums.h"

struct sfc_compute;

enum sfc_compute_kind {
    SFC_COMPUTE_OPEN,  /* allocate and initialise the blocks of a run (closes the one before) */
    SFC_COMPUTE_CLOSE, /* free them */
    SFC_COMPUTE_PLAN,
    SFC_COMPUTE_PREFETCH, /* plan.step, plan.labels: of a later step */
    SFC_COMPUTE_LOGITS,
    SFC_COMPUTE_GRADIENT,
    SFC_COMPUTE_PUSH,
    SFC_COMPUTE_PREPARE,
    SFC_COMPUTE_COMMIT,
    SFC_COMPUTE_PULL,
    SFC_COMPUTE_READ,
    SFC_COMPUTE_WRITE,
    SFC_COMPUTE_STAGE,  /* blocks that are to come, beside those of the run: every number is to be
                           written */
    SFC_COMPUTE_DROP,   /* frees them */
    SFC_COMPUTE_CHANGE, /* staged blocks become the run's, others leave it */
    SFC_COMPUTE_CALL    /* a function of the submitter, on the blocks of the run */
};

/* HISTORY: the learning rates of the run (momentum mode dense). */
enum sfc_compute_block { SFC_COMPUTE_CLASS, SFC_COMPUTE_DENSE, SFC_COMPUTE_HISTORY };

struct sfc_compute_job {
    enum sfc_compute_kind kind;
    void (*done)(struct sfc_compute_job *job); /* on the loop thread */
    void *owner;                               /* for done */
    int code;                                  /* result */
    struct sfc_error error;
    uint64_t ns;          /* how long it took; of joined jobs its share */
    struct sfc_span span; /* phase (0: not recorded), step, micro_batch, rows, bytes; the rest
                             is private */
    struct sfc_compute_job *next; /* private */
    union {
        struct {
            const struct sfc_run_setup *setup;
            const uint64_t *class_blocks;
            size_t class_count;
            const uint64_t *dense_blocks;
            size_t dense_count;
            struct sfc_dense_set mirrored; /* dense blocks whose gradients come here too */
        } open;
        struct {
            uint64_t step;
            const uint64_t *labels;
            uint64_t sampled; /* out */
        } plan;
        struct sfc_head_logits_item logits;
        struct sfc_head_gradient_item gradient;
        struct {
            uint32_t slot;
            const float *slice; /* of own and mirrored blocks */
        } push;
        struct {
            const uint32_t *slots;
            uint64_t step;
            double lr;
            struct sfc_dense_sum *sums; /* out, one per own dense block */
            void *dense_sums; /* out: sfc_dense_sums of own and mirrored blocks; NULL: not wanted */
            bool head_finite; /* out */
        } prepare;
        struct {
            const uint32_t *slots;
            double clip_scale;
            double lr;
            uint64_t step;
            bool apply; /* false: the step is over, and nothing changes */
        } commit;
        struct {
            float *out; /* NULL: nothing to do, only keeps its place in the queue */
        } pull;
        struct {
            enum sfc_compute_block kind;
            uint64_t block;
            enum sfc_block_part part;
            uint64_t offset, count;
            float *out;          /* READ */
            const float *values; /* WRITE */
        } block;
        struct {
            const struct sfc_run_setup *setup;
            const uint64_t *class_blocks, *dense_blocks;
            size_t class_count, dense_count;
            uint64_t classes; /* not 0: the run grows to so many. STAGE: the blocks are as the seed
                                 makes them; CHANGE: those that leave do so before others come */
            /* out of STAGE, in of DROP and CHANGE, which leave NULL; of the compute thread. dense:
             * NULL without any */
            struct sfc_head *head;
            struct sfc_dense *dense;
            bool other_mirrored; /* CHANGE: these are mirrored from now on beside these own ones */
            struct sfc_dense_set own, mirrored;
        } change; /* CHANGE: the lists are of those that leave */
        struct {
            int (*fn)(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err); /* dense: NULL where the run has no backbone */
            void *ctx;
        } call;
    } u;
};

/* Runs fn(ctx) on the loop thread; from any thread. */
typedef void (*sfc_compute_post)(void *post_ctx, void (*fn)(void *ctx), void *ctx);

/* backend: as in sfc_backend_open. It is opened here, so that a missing device is found at start.
 */
int sfc_compute_start(const char *backend, unsigned threads, sfc_compute_post post, void *post_ctx,
                      struct sfc_compute **out, struct sfc_error *err);
/* Finishes the jobs in the queue, joins the thread and frees the blocks. Done callbacks that are
 * not yet delivered are delivered from here. NULL is fine. */
void sfc_compute_stop(struct sfc_compute *compute);
/* After stop, and after the loop has run what was posted to it. NULL is fine. */
void sfc_compute_free(struct sfc_compute *compute);

/* Before the first job: where spans of jobs go, borrowed; NULL: nowhere. */
void sfc_compute_record(struct sfc_compute *compute, struct sfc_spans *spans);

/* Before the first job: sfc_backend_set_store. */
int sfc_compute_set_store(struct sfc_compute *compute, const char *dir, struct sfc_error *err);

/* For memory plans and names only (those calls don't touch state that the thread uses). */
const struct sfc_backend *sfc_compute_backend(const struct sfc_compute *compute);

/* The job at work has a known size (a step's, or a read or write) and takes longer than this, or
 * the next job has waited so long for the thread to take it, though nothing is at work; 0: any time
 * is fine. */
bool sfc_compute_late(struct sfc_compute *compute, uint64_t ms);

/* Never blocks. */
void sfc_compute_submit(struct sfc_compute *compute, struct sfc_compute_job *job);

#endif
