/* A trace of steps across processes, on one clock, and where the time of a step went: the way back
 * from its commit over what was waited for. Pure. */
#ifndef SFC_CTL_TRACE_PATH_H
#define SFC_CTL_TRACE_PATH_H

#include "proto/base/spans.h"

enum sfc_trace_kind { SFC_TRACE_SCHEDULER, SFC_TRACE_SHARD, SFC_TRACE_WORKER };

struct sfc_trace_process {
    enum sfc_trace_kind kind;
    uint64_t id; /* of the shard or worker */
    char name[320];
    uint32_t place;         /* of a shard in the map; UINT32_MAX: none */
    struct sfc_span *spans; /* owned; on the common clock */
    size_t count;
    int64_t offset_ns;       /* the common clock minus the process's */
    uint64_t uncertainty_ns; /* of that */
    char missing[320];       /* what is not here, and why; "": nothing */
};

struct sfc_trace {
    uint64_t first, last;
    struct sfc_trace_process *processes; /* owned; the first one is the scheduler */
    size_t count, room;
};

void sfc_trace_close(struct sfc_trace *trace);
/* One more, all zero but for kind and id; NULL: no memory. Valid until the next one. */
struct sfc_trace_process *sfc_trace_add(struct sfc_trace *trace, enum sfc_trace_kind kind,
                                        uint64_t id);

/* A piece of the way. */
struct sfc_trace_piece {
    uint64_t begin_ns, end_ns;
    enum sfc_trace_kind kind; /* of whom it was waited for */
    size_t process;
    uint8_t phase;
};

enum { SFC_TRACE_ROWS = 48 };

/* From the commit before to the commit. */
struct sfc_trace_path {
    uint64_t step, begin_ns, end_ns;
    struct sfc_trace_piece *pieces; /* owned; in order, none over another */
    size_t count;
    uint64_t known_ns; /* of all pieces; the rest is between them */
    struct {
        enum sfc_trace_kind kind;
        uint8_t phase;
        uint64_t ns;
    } rows[SFC_TRACE_ROWS]; /* by phase, in the order in which they come */
    size_t row_count;
};

/* The scheduler's phases compute, prepare and record are the step. Within compute it is the way of
 * the lane whose Done came last; within prepare that of the shard that was ready last. While that
 * lane waits, or does nothing that it has recorded, and the scheduler knows what keeps the step
 * from being computed (a shard is away or recovers, a block map changes), it is that, and what the
 * shard does of it. Where a process's spans are missing, the scheduler's phase stands for them.
 * SFC_ENOTFOUND: the
 * scheduler's phases of the step are not there (the step before was not timed: a pause, a return).
 */
int sfc_trace_path(const struct sfc_trace *trace, uint64_t step, struct sfc_trace_path *out,
                   struct sfc_error *err);
void sfc_trace_path_close(struct sfc_trace_path *path);

const char *sfc_trace_kind_name(enum sfc_trace_kind kind); /* "worker" */

#endif
