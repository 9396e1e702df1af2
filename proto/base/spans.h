/* What a process does for steps, as spans of time: the newest ones in a ring of fixed size, from
 * which a trace is read afterwards, and all of them in one histogram per phase, for metrics.
 * Recording is always on: some tens of nanoseconds for a span, from any thread, without a lock and
 * without memory. So a step that is traced does nothing that another one doesn't. */
#ifndef SFC_BASE_SPANS_H
#define SFC_BASE_SPANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/histogram.h"
#include "proto/base/status.h"

/* Phases travel on the wire: never renumber them. */
#define SFC_SPAN_MAP(X)                                                                            \
    /* scheduler; compute, prepare and record follow one another and make up a step */             \
    X(COMPUTE, 1, "compute", "from the commit before to the last Done")                            \
    X(PREPARE_ALL, 2, "prepare", "from Prepare to the last shard's Ready")                         \
    X(RECORD, 3, "record", "the commit record is made durable")                                    \
    X(ASK_PLAN, 4, "ask_plan", "Plan, until a shard has sampled")                                  \
    X(ASK_COMMIT, 5, "ask_commit", "Commit, until a shard has applied it")                         \
    X(ASK_PREPARE, 6, "ask_prepare", "Prepare, until a shard is ready")                            \
    /* scheduler: what keeps a step from being computed, one at a time */                          \
    X(AWAY, 7, "away", "a shard is gone, until it has registered again")                           \
    X(RECOVERY, 8, "recovery", "a shard that was lost opens the run and recovers")                 \
    X(ABORT, 9, "abort", "a void attempt is dropped at every shard")                               \
    X(BOUNDARY, 10, "boundary", "a new block map waits for what is at work to be durable")         \
    X(TAKE, 11, "take", "last changes of blocks for a new map come onto the disk")                 \
    X(WRITE_MAP, 12, "write_map", "a new block map is made durable")                               \
    X(SET_MAP, 13, "set_map", "a new block map, until the last shard goes by it")                  \
    /* shard: compute thread and disk */                                                           \
    X(QUEUE, 16, "queue", "a job waits for the compute thread")                                    \
    X(PLAN, 17, "plan", "classes are sampled")                                                     \
    X(PREFETCH, 18, "prefetch", "rows of a later step are read ahead")                             \
    X(LOGITS, 19, "logits", "logits and sums of exponentials")                                     \
    X(GRADIENT, 20, "gradient", "gradient of the features")                                        \
    X(PUSH, 21, "push", "a gradient of dense blocks is kept")                                      \
    X(PREPARE, 22, "prepare", "gradients are added and checked")                                   \
    X(COMMIT, 23, "commit", "the step is applied to the blocks")                                   \
    X(PULL, 24, "pull", "dense blocks are copied for workers")                                     \
    X(FLUSH, 25, "flush", "the step's inputs are written and flushed")                             \
    X(COPY, 26, "copy", "a block is copied for its snapshot")                                      \
    X(SWEEP, 27, "sweep", "a piece of a snapshot is written")                                      \
    X(OPEN, 28, "open", "memory and files of a run are opened")                                    \
    X(RESTORE, 29, "restore", "blocks are read from snapshots")                                    \
    X(REPLAY, 30, "replay", "steps of the log are gone through again")                             \
    X(TAKE_MAP, 31, "take_map", "blocks come and go by a new block map")                           \
    /* worker: lanes, then readers */                                                              \
    X(TICKET, 32, "ticket", "a lane waits for something to compute")                               \
    X(PARAMETERS, 33, "parameters", "parameters are fetched, or waited for")                       \
    X(ROWS, 34, "rows", "decoded rows are waited for")                                             \
    X(FORWARD, 35, "forward", "the backbone's forward pass")                                       \
    X(ASK_LOGITS, 36, "logits", "Logits, until the last shard's answer")                           \
    X(ASK_GRADIENT, 37, "gradient", "Gradient, until the last shard's answer")                     \
    X(BACKWARD, 38, "backward", "the backbone's backward pass")                                    \
    X(ASK_PUSH, 39, "push", "PushDense, until the last shard's answer")                            \
    X(DONE, 40, "done", "Done, until the scheduler's answer")                                      \
    X(LOSS, 41, "loss", "loss and gradient of the features, from the shards' sums")                \
    X(DATA_TICKET, 42, "data_ticket", "a reader waits for something to read")                      \
    X(READ, 43, "read", "rows are read, decoded and augmented")                                    \
    X(ANNOUNCE, 44, "announce", "Announce, until the scheduler's answer")                          \
    X(GIVE_UP, 45, "give_up", "GiveUp of what failed, until the scheduler's answer")               \
    X(BACK_OFF, 46, "back_off", "a pause after what failed")                                       \
    X(MAP, 47, "map", "a new block map is fetched, its shards are connected")                      \
    X(JOIN, 48, "join", "the worker joins the run again")                                          \
    /* shard: compute thread, blocks on their way */                                               \
    X(STAGE, 49, "stage", "memory is made for blocks that come")                                   \
    X(LEND, 50, "lend", "a block, or its changes, are copied for another shard")                   \
    X(LAND, 51, "land", "rows of a block that comes are written")

enum sfc_phase {
#define X(name, number, text, help) SFC_SPAN_##name = number,
    SFC_SPAN_MAP(X)
#undef X
        SFC_SPAN_PHASES = 64
};
/* "forward"; NULL: a number that is no phase. */
const char *sfc_phase_name(unsigned phase);
const char *sfc_phase_help(unsigned phase);

/* Who did it: a kind of thread, and which of them. */
enum sfc_span_thread {
    SFC_THREAD_LOOP,
    SFC_THREAD_STORE,
    SFC_THREAD_COMPUTE,
    SFC_THREAD_LOG,
    SFC_THREAD_SNAPSHOTS,
    SFC_THREAD_LANE,
    SFC_THREAD_READER,
    SFC_THREADS
};
const char *sfc_thread_name(unsigned thread); /* "lane"; NULL: a number that is none */

struct sfc_span {
    uint64_t begin_ns, end_ns; /* of sfc_spans_now */
    uint64_t step;
    uint64_t bytes;
    uint32_t rows;
    uint32_t micro_batch; /* UINT32_MAX: of the whole step */
    uint32_t index;       /* of its thread */
    uint8_t phase;        /* enum sfc_phase */
    uint8_t thread;       /* enum sfc_span_thread */
};

enum { SFC_SPANS_KEPT = 1 << 14 };

struct sfc_spans;

int sfc_spans_new(struct sfc_spans **out, struct sfc_error *err);
void sfc_spans_free(struct sfc_spans *spans); /* NULL is fine */

/* Nanoseconds of the monotonic clock. */
uint64_t sfc_spans_now(void);

/* Any thread; spans NULL: nothing. A span whose place another thread still writes is counted in the
 * histogram only. */
void sfc_spans_add(struct sfc_spans *spans, const struct sfc_span *span);

/* A thread that does one thing after another: each span begins where the one before ended. */
struct sfc_lap {
    struct sfc_spans *spans; /* NULL: nothing is recorded */
    struct sfc_span span;    /* step, micro_batch, rows, thread and index of the spans to come */
};
void sfc_lap_begin(struct sfc_lap *lap); /* now; NULL is fine, here and below */
/* What was done since then was this phase; `bytes` were moved. */
void sfc_lap_end(struct sfc_lap *lap, enum sfc_phase phase, uint64_t bytes);
/* The same, but it was over at this time, and what followed has another name. */
void sfc_lap_end_at(struct sfc_lap *lap, enum sfc_phase phase, uint64_t bytes, uint64_t at_ns);

/* Copies the spans of steps first..last that are still there, oldest first, up to `room` of them,
 * and returns their number. *gone: some of these steps may be missing: they were overwritten, or
 * there was no room. Any thread. */
size_t sfc_spans_take(const struct sfc_spans *spans, uint64_t first, uint64_t last,
                      struct sfc_span *out, size_t room, bool *gone);

/* What was recorded so far is of another run, or of steps that a run gave up: no longer taken. */
void sfc_spans_forget(struct sfc_spans *spans);
/* When that was, or the start. */
uint64_t sfc_spans_since(const struct sfc_spans *spans);

/* From one call: when it was sent and answered by our clock, and when it was received and replied
 * to by theirs. *offset: theirs minus ours; *uncertainty: how wrong that may be; both only if this
 * call knows it better than *uncertainty does (UINT64_MAX: nothing is known yet). */
void sfc_clock_estimate(uint64_t sent, uint64_t received, uint64_t replied, uint64_t answered,
                        int64_t *offset, uint64_t *uncertainty);

/* All spans of a phase since the start. Any thread. */
void sfc_spans_histogram(const struct sfc_spans *spans, enum sfc_phase phase,
                         struct sfc_histogram *out);

#endif
