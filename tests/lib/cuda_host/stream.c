#include "tests/lib/cuda_host/internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One record of an event: waits are for the record that was the last when they were asked for. */
struct mark {
    unsigned users;
    bool done;
    double milliseconds;
};

struct work {
    struct work *next;
    struct mark *records, *waits; /* else: run */
    void (*run)(void *arg);
    void (*drop)(void *arg);
    void *arg;
};

struct CUstream_st {
    struct CUstream_st *next;
    bool blocking; /* waits for work without a stream, and it for this one */
    struct work *head, **tail;
};

struct CUevent_st {
    struct CUevent_st *next;
    struct mark *mark; /* NULL: never recorded */
};

static struct CUstream_st *streams;
static struct CUevent_st *events;

static void *zeroed(size_t size)
{
    void *p = calloc(1, size);
    if (!p)
        sfc_host_die("no memory");
    return p;
}

static struct mark *use(struct mark *mark)
{
    if (mark)
        mark->users++;
    return mark;
}

static void drop_mark(struct mark *mark)
{
    if (mark && --mark->users == 0)
        free(mark);
}

static void check_stream(cudaStream_t stream, const char *what)
{
    const struct CUstream_st *s = streams;
    while (s && s != stream)
        s = s->next;
    if (!s)
        sfc_host_die("%s with a stream that does not exist", what);
}

static void check_event(cudaEvent_t event, const char *what)
{
    const struct CUevent_st *e = events;
    while (e && e != event)
        e = e->next;
    if (!e)
        sfc_host_die("%s with an event that does not exist", what);
}

/* ---- work is done */

static void finish(struct mark *mark)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    mark->done = true;
    mark->milliseconds = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static void do_work(struct work *work)
{
    if (work->records)
        finish(work->records);
    if (work->run) {
        sfc_host_device_begin();
        work->run(work->arg);
        sfc_host_device_end();
        work->drop(work->arg);
    }
    drop_mark(work->records);
    drop_mark(work->waits);
    free(work);
}

static bool can_go_on(const struct CUstream_st *stream)
{
    return stream->head && (!stream->head->waits || stream->head->waits->done);
}

/* The first piece of one of the streams that can go on; false where none can. */
static bool do_one(void)
{
    uint64_t able = 0;
    for (struct CUstream_st *s = streams; s; s = s->next)
        able += can_go_on(s);
    if (able == 0)
        return false;
    uint64_t chosen = sfc_host_in_order() ? 0 : sfc_host_random() % able;
    struct CUstream_st *s = streams;
    while (!can_go_on(s) || chosen-- > 0)
        s = s->next;
    struct work *work = s->head;
    s->head = work->next;
    if (!s->head)
        s->tail = &s->head;
    do_work(work);
    return true;
}

static void go_on(const char *what)
{
    if (!do_one())
        sfc_host_die("%s: all streams wait for each other", what);
}

void sfc_host_drain(cudaStream_t stream)
{
    if (stream) {
        check_stream(stream, "synchronisation");
        while (stream->head)
            go_on("synchronisation");
        return;
    }
    for (struct CUstream_st *s = streams; s; s = s->next)
        sfc_host_drain(s);
}

static void drain_blocking(void)
{
    for (struct CUstream_st *s = streams; s; s = s->next)
        if (s->blocking)
            sfc_host_drain(s);
}

/* ---- work is asked for */

static void append(cudaStream_t stream, struct work *work)
{
    if (!stream) { /* the stream of those who have none */
        drain_blocking();
        do_work(work);
        return;
    }
    *stream->tail = work;
    stream->tail = &work->next;
    if (sfc_host_in_order())
        sfc_host_drain(NULL);
}

cudaError_t sfc_host_enqueue(cudaStream_t stream, void (*run)(void *arg), void (*drop)(void *arg),
                             void *arg)
{
    if (stream)
        check_stream(stream, "work");
    struct work *work = zeroed(sizeof *work);
    *work = (struct work){.run = run, .drop = drop, .arg = arg};
    append(stream, work);
    return cudaSuccess;
}

static void record(cudaEvent_t event, cudaStream_t stream)
{
    check_event(event, "cudaEventRecord");
    if (stream)
        check_stream(stream, "cudaEventRecord");
    drop_mark(event->mark);
    event->mark = use(zeroed(sizeof *event->mark));
    struct work *work = zeroed(sizeof *work);
    work->records = use(event->mark);
    append(stream, work);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc)
        record(event, stream);
    return sfc_host_return(rc);
}

static void wait_for(cudaStream_t stream, cudaEvent_t event)
{
    check_event(event, "cudaStreamWaitEvent");
    check_stream(stream, "cudaStreamWaitEvent");
    if (!event->mark)
        return;
    struct work *work = zeroed(sizeof *work);
    work->waits = use(event->mark);
    append(stream, work);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc)
        wait_for(stream, event);
    return sfc_host_return(rc);
}

/* ---- streams */

static void new_stream(cudaStream_t *out, unsigned flags)
{
    struct CUstream_st *s = zeroed(sizeof *s);
    *s = (struct CUstream_st){.next = streams, .blocking = !(flags & cudaStreamNonBlocking)};
    s->tail = &s->head;
    streams = s;
    sfc_host_count(0, 0, 1, 0, 0);
    *out = s;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc)
        new_stream(out, flags);
    return sfc_host_return(rc);
}

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    return cudaStreamCreateWithFlags(out, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(out, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    check_stream(stream, "cudaStreamDestroy");
    sfc_host_drain(stream);
    struct CUstream_st **link = &streams;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    free(stream);
    sfc_host_count(0, 0, -1, 0, 0);
    return sfc_host_return(rc);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    if (stream)
        sfc_host_drain(stream);
    else
        drain_blocking();
    return sfc_host_return(rc);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    check_stream(stream, "cudaStreamQuery");
    do_one();
    return sfc_host_return(rc ? rc : stream->head ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    sfc_host_drain(NULL);
    return sfc_host_return(rc);
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc) {
        struct CUevent_st *e = zeroed(sizeof *e);
        e->next = events;
        events = e;
        sfc_host_count(0, 0, 0, 1, 0);
        *out = e;
    }
    return sfc_host_return(rc);
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    check_event(event, "cudaEventDestroy");
    struct CUevent_st **link = &events;
    while (*link != event)
        link = &(*link)->next;
    *link = event->next;
    drop_mark(event->mark);
    free(event);
    sfc_host_count(0, 0, 0, -1, 0);
    return sfc_host_return(rc);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    check_event(event, "cudaEventSynchronize");
    while (event->mark && !event->mark->done)
        go_on("cudaEventSynchronize");
    return sfc_host_return(rc);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    check_event(event, "cudaEventQuery");
    do_one();
    bool done = !event->mark || event->mark->done;
    return sfc_host_return(rc ? rc : done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    check_event(begin, "cudaEventElapsedTime");
    check_event(end, "cudaEventElapsedTime");
    if (!rc && (!begin->mark || !end->mark))
        rc = cudaErrorInvalidResourceHandle;
    if (!rc && (!begin->mark->done || !end->mark->done))
        rc = cudaErrorNotReady;
    if (!rc)
        *milliseconds = (float)(end->mark->milliseconds - begin->mark->milliseconds);
    return sfc_host_return(rc);
}
