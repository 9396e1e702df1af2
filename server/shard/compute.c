#include "server/shard/compute.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/shard/dense_mirror.h"

enum { JOIN_MAX = 64 };

/* A pass over the rows costs nearly the same for one micro-batch as for all of a step, so a pass
 * that had company the last time waits for it: at most this share of what the pass then took. */
#define COMPANY_SHARE (1.0 / 16)

struct company {
    bool came;      /* others were there at its start or came while it ran */
    double seconds; /* that the last pass took */
};

struct job_list {
    struct sfc_compute_job *head;
    struct sfc_compute_job **tail;
};

struct sfc_compute {
    struct sfc_backend *backend;
    struct sfc_spans *spans; /* NULL: none are recorded */
    sfc_compute_post post;
    void *post_ctx;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stopping;         /* under mutex */
    bool delivery_posted;  /* under mutex: a deliver call is on its way to the loop */
    struct job_list queue; /* under mutex */
    struct job_list ready; /* under mutex */
    bool busy;             /* under mutex: a job is at work, or waits to be taken or delivered */
    double bounded_since;  /* under mutex: seconds; since then it has owed the next job's beginning,
                            * or the end of one of a known size; 0: it owes nothing */
    /* of the compute thread */
    struct sfc_head *head;
    struct sfc_dense *dense;
    struct sfc_dense_mirror *mirror; /* NULL: no dense block is mirrored here */
    uint32_t micro_batch, dim, micro_batches;
    struct company logits, gradient;
};

static void list_init(struct job_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static void list_push(struct job_list *list, struct sfc_compute_job *job)
{
    job->next = NULL;
    *list->tail = job;
    list->tail = &job->next;
}

static struct sfc_compute_job *list_pop(struct job_list *list)
{
    struct sfc_compute_job *job = list->head;
    if (!job)
        return NULL;
    list->head = job->next;
    if (!list->head)
        list->tail = &list->head;
    job->next = NULL;
    return job;
}

/* ---- the work of one job */

static void close_run(struct sfc_compute *c)
{
    sfc_head_free(c->head);
    sfc_dense_free(c->dense);
    sfc_dense_mirror_free(c->mirror);
    c->head = NULL;
    c->dense = NULL;
    c->mirror = NULL;
}

static int set_mirrored(struct sfc_compute *c, const struct sfc_run_setup *setup,
                        struct sfc_dense_set own, struct sfc_dense_set mirrored,
                        struct sfc_error *err)
{
    sfc_dense_mirror_free(c->mirror);
    c->mirror = NULL;
    return mirrored.count ? sfc_dense_mirror_new(c->backend, setup, own, mirrored, &c->mirror, err)
                          : SFC_OK;
}

static int open_run(struct sfc_compute *c, struct sfc_compute_job *job)
{
    close_run(c);
    const struct sfc_run_setup *setup = job->u.open.setup;
    c->micro_batch = setup->head.micro_batch;
    c->micro_batches = setup->micro_batches;
    c->logits = c->gradient = (struct company){0};
    c->dim = setup->head.dim;
    int code = sfc_head_new(c->backend, &setup->head, job->u.open.class_blocks,
                            job->u.open.class_count, &c->head, &job->error);
    if (code == SFC_OK && setup->dense_blocks > 0)
        code = sfc_dense_new(c->backend, &setup->dense, job->u.open.dense_blocks,
                             job->u.open.dense_count, &c->dense, &job->error);
    struct sfc_dense_set own = {job->u.open.dense_blocks, job->u.open.dense_count};
    if (code == SFC_OK)
        code = set_mirrored(c, setup, own, job->u.open.mirrored, &job->error);
    if (code != SFC_OK)
        close_run(c);
    return code;
}

static int no_head(struct sfc_compute_job *job)
{
    return sfc_fail(&job->error, SFC_ESTATE, "this shard has no run open");
}

/* NULL: there is nothing of the backbone here, and nothing is pushed or summed. */
static struct sfc_dense *own_dense(const struct sfc_compute *c)
{
    return c->dense && sfc_dense_length(c->dense) > 0 ? c->dense : NULL;
}

static int prepare(struct sfc_compute *c, struct sfc_compute_job *job)
{
    struct sfc_dense *dense = own_dense(c);
    if (!c->head)
        return no_head(job);
    job->u.prepare.head_finite = sfc_head_finite(c->head, job->u.prepare.slots, job->u.prepare.lr);
    int code = dense ? sfc_dense_prepare(dense, job->u.prepare.step, job->u.prepare.lr,
                                         job->u.prepare.slots, job->u.prepare.sums, &job->error)
                     : SFC_OK;
    if (code == SFC_OK && c->mirror)
        return sfc_dense_mirror_prepare(c->mirror, dense, job->u.prepare.step, job->u.prepare.lr,
                                        job->u.prepare.slots, job->u.prepare.dense_sums,
                                        &job->error);
    if (code == SFC_OK && dense && job->u.prepare.dense_sums)
        code = sfc_dense_sums(dense, job->u.prepare.dense_sums, &job->error);
    return code;
}

static int commit(struct sfc_compute *c, struct sfc_compute_job *job)
{
    if (!c->head)
        return no_head(job);
    if (!job->u.commit.apply)
        return sfc_head_skip(c->head, job->u.commit.step, &job->error);
    int code = sfc_head_commit(c->head, job->u.commit.slots, job->u.commit.lr, &job->error);
    if (code == SFC_OK && own_dense(c))
        code = sfc_dense_commit(c->dense, job->u.commit.clip_scale, job->u.commit.lr, &job->error);
    return code;
}

static int push(struct sfc_compute *c, struct sfc_compute_job *job)
{
    struct sfc_dense *dense = own_dense(c);
    uint32_t slot = job->u.push.slot;
    if (c->mirror)
        return sfc_dense_mirror_push(c->mirror, dense, slot, job->u.push.slice, &job->error);
    return dense ? sfc_dense_push(dense, slot, job->u.push.slice, &job->error) : SFC_OK;
}

/* ---- blocks come and go */

static void drop(struct sfc_compute_job *job)
{
    sfc_head_free(job->u.change.head);
    sfc_dense_free(job->u.change.dense);
    job->u.change.head = NULL;
    job->u.change.dense = NULL;
}

static int stage(struct sfc_compute *c, struct sfc_compute_job *job)
{
    const struct sfc_run_setup *setup = job->u.change.setup;
    job->u.change.head = NULL;
    job->u.change.dense = NULL;
    int (*make)(struct sfc_backend *, const struct sfc_head_config *, const uint64_t *, size_t,
                struct sfc_head **, struct sfc_error *) =
        job->u.change.classes ? sfc_head_new : sfc_head_new_blank;
    int code = make(c->backend, &setup->head, job->u.change.class_blocks, job->u.change.class_count,
                    &job->u.change.head, &job->error);
    if (code == SFC_OK && job->u.change.dense_count > 0)
        code = sfc_dense_new_blank(c->backend, &setup->dense, job->u.change.dense_blocks,
                                   job->u.change.dense_count, &job->u.change.dense, &job->error);
    if (code != SFC_OK)
        drop(job);
    return code;
}

static int attach(struct sfc_compute *c, struct sfc_compute_job *job)
{
    int code = SFC_OK;
    if (job->u.change.head)
        code = sfc_head_attach(c->head, job->u.change.head, &job->error);
    if (code == SFC_OK)
        job->u.change.head = NULL;
    if (code == SFC_OK && job->u.change.dense)
        code = sfc_dense_attach(c->dense, job->u.change.dense, &job->error);
    if (code == SFC_OK)
        job->u.change.dense = NULL;
    return code;
}

static int remove_classes(struct sfc_compute *c, struct sfc_compute_job *job)
{
    return job->u.change.class_count == 0 ? SFC_OK
                                          : sfc_head_remove(c->head, job->u.change.class_blocks,
                                                            job->u.change.class_count, &job->error);
}

static int change(struct sfc_compute *c, struct sfc_compute_job *job)
{
    uint64_t classes = job->u.change.classes;
    if (!c->head) {
        drop(job);
        return no_head(job);
    }
    int code = SFC_OK;
    if (classes) /* a block that gets more rows leaves and comes */
        code = remove_classes(c, job);
    if (code == SFC_OK && classes)
        code = sfc_head_grow(c->head, classes, &job->error);
    if (code == SFC_OK)
        code = attach(c, job);
    if (code == SFC_OK && !classes)
        code = remove_classes(c, job);
    if (code == SFC_OK && job->u.change.dense_count > 0)
        code = sfc_dense_remove(c->dense, job->u.change.dense_blocks, job->u.change.dense_count,
                                &job->error);
    if (code == SFC_OK && job->u.change.other_mirrored)
        code = set_mirrored(c, job->u.change.setup, job->u.change.own, job->u.change.mirrored,
                            &job->error);
    if (code != SFC_OK) /* what could not be attached */
        drop(job);
    return code;
}

static int no_block(const struct sfc_compute *c, struct sfc_compute_job *job)
{
    if (job->u.block.kind != SFC_COMPUTE_DENSE)
        return c->head ? SFC_OK : no_head(job);
    return c->dense ? SFC_OK
                    : sfc_fail(&job->error, SFC_ENOTFOUND, "this shard owns no dense blocks");
}

static int block_read(struct sfc_compute *c, struct sfc_compute_job *job)
{
    uint64_t block = job->u.block.block, offset = job->u.block.offset, count = job->u.block.count;
    enum sfc_block_part part = job->u.block.part;
    int code = no_block(c, job);
    if (code != SFC_OK)
        return code;
    switch (job->u.block.kind) {
    case SFC_COMPUTE_DENSE:
        return sfc_dense_read(c->dense, block, part, offset, count, job->u.block.out, &job->error);
    case SFC_COMPUTE_HISTORY:
        return sfc_head_read_rates(c->head, offset, count, job->u.block.out, &job->error);
    default:
        return sfc_head_read(c->head, block, part, offset, count, job->u.block.out, &job->error);
    }
}

static int block_write(struct sfc_compute *c, struct sfc_compute_job *job)
{
    uint64_t block = job->u.block.block, offset = job->u.block.offset, count = job->u.block.count;
    enum sfc_block_part part = job->u.block.part;
    const float *values = job->u.block.values;
    int code = no_block(c, job);
    if (code != SFC_OK)
        return code;
    switch (job->u.block.kind) {
    case SFC_COMPUTE_DENSE:
        return sfc_dense_write(c->dense, block, part, offset, count, values, &job->error);
    case SFC_COMPUTE_HISTORY:
        return sfc_head_write_rates(c->head, offset, count, values, &job->error);
    default:
        return sfc_head_write(c->head, block, part, offset, count, values, &job->error);
    }
}

static int run_one(struct sfc_compute *c, struct sfc_compute_job *job)
{
    switch (job->kind) {
    case SFC_COMPUTE_OPEN:
        return open_run(c, job);
    case SFC_COMPUTE_CLOSE:
        close_run(c);
        return SFC_OK;
    case SFC_COMPUTE_PLAN:
        return c->head ? sfc_head_plan(c->head, job->u.plan.step, job->u.plan.labels,
                                       &job->u.plan.sampled, &job->error)
                       : no_head(job);
    case SFC_COMPUTE_PREFETCH:
        if (c->head)
            sfc_head_prefetch(c->head, job->u.plan.step, job->u.plan.labels);
        return SFC_OK;
    case SFC_COMPUTE_LOGITS:
        return c->head ? sfc_head_logits(c->head, &job->u.logits, 1, &job->error) : no_head(job);
    case SFC_COMPUTE_GRADIENT:
        return c->head ? sfc_head_gradient(c->head, &job->u.gradient, 1, &job->error)
                       : no_head(job);
    case SFC_COMPUTE_PUSH:
        return push(c, job);
    case SFC_COMPUTE_PREPARE:
        return prepare(c, job);
    case SFC_COMPUTE_COMMIT:
        return commit(c, job);
    case SFC_COMPUTE_PULL:
        return own_dense(c) && job->u.pull.out
                   ? sfc_dense_pull(c->dense, job->u.pull.out, &job->error)
                   : SFC_OK;
    case SFC_COMPUTE_READ:
        return block_read(c, job);
    case SFC_COMPUTE_WRITE:
        return block_write(c, job);
    case SFC_COMPUTE_STAGE:
        return stage(c, job);
    case SFC_COMPUTE_DROP:
        drop(job);
        return SFC_OK;
    case SFC_COMPUTE_CHANGE:
        return change(c, job);
    case SFC_COMPUTE_CALL:
        return c->head ? job->u.call.fn(job->u.call.ctx, c->head, c->dense, &job->error)
                       : no_head(job);
    }
    return sfc_fail(&job->error, SFC_EINTERNAL, "unknown job");
}

/* One backend call for all of them; false: it refused, and each must be asked alone so that one
 * peer's bad rows fail only that peer's call. */
static bool run_joined(struct sfc_compute *c, struct sfc_compute_job **jobs, size_t n)
{
    if (!c->head)
        return false;
    if (jobs[0]->kind == SFC_COMPUTE_LOGITS) {
        struct sfc_head_logits_item items[JOIN_MAX];
        for (size_t i = 0; i < n; i++)
            items[i] = jobs[i]->u.logits;
        if (sfc_head_logits(c->head, items, n, NULL) != SFC_OK)
            return false;
        for (size_t i = 0; i < n; i++)
            jobs[i]->u.logits = items[i];
    } else {
        struct sfc_head_gradient_item items[JOIN_MAX];
        for (size_t i = 0; i < n; i++)
            items[i] = jobs[i]->u.gradient;
        if (sfc_head_gradient(c->head, items, n, NULL) != SFC_OK)
            return false;
    }
    for (size_t i = 0; i < n; i++)
        jobs[i]->code = SFC_OK;
    return true;
}

/* How long a job waited, and the work itself: of joined jobs one span. */
static void record(struct sfc_compute *c, struct sfc_compute_job **jobs, size_t n, uint64_t began,
                   uint64_t ended)
{
    struct sfc_span work = jobs[0]->span;
    if (work.phase == 0)
        return;
    work.thread = SFC_THREAD_COMPUTE;
    work.begin_ns = began;
    work.end_ns = ended;
    for (size_t i = 1; i < n; i++) {
        work.rows += jobs[i]->span.rows;
        work.bytes += jobs[i]->span.bytes;
        work.micro_batch = UINT32_MAX;
    }
    sfc_spans_add(c->spans, &work);
    for (size_t i = 0; i < n; i++) {
        struct sfc_span wait = jobs[i]->span; /* begins where it was submitted */
        wait.phase = SFC_SPAN_QUEUE;
        wait.thread = SFC_THREAD_COMPUTE;
        wait.end_ns = began;
        sfc_spans_add(c->spans, &wait);
    }
}

static void run_jobs(struct sfc_compute *c, struct sfc_compute_job **jobs, size_t n)
{
    uint64_t began = sfc_spans_now();
    bool joined = n > 1 && run_joined(c, jobs, n);
    for (size_t i = 0; !joined && i < n; i++)
        jobs[i]->code = run_one(c, jobs[i]);
    uint64_t ended = sfc_spans_now();
    for (size_t i = 0; i < n; i++)
        jobs[i]->ns = (ended - began) / n;
    record(c, jobs, n, began, ended);
}

/* ---- the thread */

static bool joins(const struct sfc_compute_job *first, const struct sfc_compute_job *next)
{
    return first->kind == next->kind &&
           (first->kind == SFC_COMPUTE_LOGITS || first->kind == SFC_COMPUTE_GRADIENT);
}

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* NULL: a job that is done alone. */
static struct company *company_of(struct sfc_compute *c, const struct sfc_compute_job *job)
{
    return job->kind == SFC_COMPUTE_LOGITS     ? &c->logits
           : job->kind == SFC_COMPUTE_GRADIENT ? &c->gradient
                                               : NULL;
}

static void pop_joining(struct sfc_compute *c, struct sfc_compute_job **jobs, size_t *n)
{
    while (*n < JOIN_MAX && c->queue.head && joins(jobs[0], c->queue.head))
        jobs[(*n)++] = list_pop(&c->queue);
}

/* Under mutex: the next job, with those that can be done in one call with it. */
static size_t take_jobs(struct sfc_compute *c, struct sfc_compute_job **jobs)
{
    size_t n = 0;
    jobs[n++] = list_pop(&c->queue);
    pop_joining(c, jobs, &n);
    const struct company *company = company_of(c, jobs[0]);
    if (!company || !company->came)
        return n;
    double until = now_seconds() + company->seconds * COMPANY_SHARE;
    struct timespec deadline = {(time_t)until, 0};
    deadline.tv_nsec = (long)((until - (double)deadline.tv_sec) * 1e9);
    int waited = 0;
    while (n < c->micro_batches && !c->queue.head && !c->stopping && !waited) {
        waited = pthread_cond_timedwait(&c->wake, &c->mutex, &deadline);
        pop_joining(c, jobs, &n);
    }
    return n;
}

static void deliver(void *ctx)
{
    struct sfc_compute *c = ctx;
    pthread_mutex_lock(&c->mutex);
    c->delivery_posted = false;
    struct job_list ready = c->ready;
    if (!ready.head)
        list_init(&ready);
    list_init(&c->ready);
    pthread_mutex_unlock(&c->mutex);
    struct sfc_compute_job *job;
    while ((job = list_pop(&ready)) != NULL)
        job->done(job);
}

/* How long the others take depends on how much there is: blocks of a run, steps of a log. */
static bool is_bounded(const struct sfc_compute_job *job)
{
    switch (job->kind) {
    case SFC_COMPUTE_OPEN:
    case SFC_COMPUTE_CLOSE:
    case SFC_COMPUTE_STAGE:
    case SFC_COMPUTE_DROP:
    case SFC_COMPUTE_CHANGE:
    case SFC_COMPUTE_CALL:
        return false;
    default:
        return true;
    }
}

static void *work(void *ctx)
{
    struct sfc_compute *c = ctx;
    struct sfc_compute_job *jobs[JOIN_MAX];
    pthread_setname_np(pthread_self(), "sfc-compute"); /* top -H */
    pthread_mutex_lock(&c->mutex);
    for (;;) {
        while (!c->queue.head && !c->stopping)
            pthread_cond_wait(&c->wake, &c->mutex);
        if (!c->queue.head)
            break;
        size_t n = take_jobs(c, jobs);
        struct company *company = company_of(c, jobs[0]);
        double began = now_seconds();
        c->bounded_since = is_bounded(jobs[0]) ? began : 0;
        pthread_mutex_unlock(&c->mutex);
        run_jobs(c, jobs, n);
        double ended = now_seconds(), took = ended - began;
        pthread_mutex_lock(&c->mutex);
        c->bounded_since = ended; /* until others know that it is done */
        if (company)
            *company =
                (struct company){n > 1 || (c->queue.head && joins(jobs[0], c->queue.head)), took};
        for (size_t i = 0; i < n; i++)
            list_push(&c->ready, jobs[i]);
        bool post = !c->delivery_posted && !c->stopping;
        c->delivery_posted = c->delivery_posted || post;
        if (post) {
            pthread_mutex_unlock(&c->mutex);
            c->post(c->post_ctx, deliver, c);
            pthread_mutex_lock(&c->mutex);
        }
        c->busy = c->queue.head != NULL;
        c->bounded_since = c->busy ? now_seconds() : 0;
    }
    pthread_mutex_unlock(&c->mutex);
    close_run(c);
    return NULL;
}

int sfc_compute_start(const char *backend, unsigned threads, sfc_compute_post post, void *post_ctx,
                      struct sfc_compute **out, struct sfc_error *err)
{
    struct sfc_compute *c = calloc(1, sizeof *c);
    if (!c)
        return sfc_fail(err, SFC_ENOMEM, "compute executor");
    c->post = post;
    c->post_ctx = post_ctx;
    list_init(&c->queue);
    list_init(&c->ready);
    int code = sfc_backend_open(backend, threads, &c->backend, err);
    if (code != SFC_OK) {
        free(c);
        return code;
    }
    pthread_mutex_init(&c->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&c->thread, NULL, work, c) != 0) {
        code = sfc_fail(err, SFC_ENOMEM, "start the compute thread");
        pthread_mutex_destroy(&c->mutex);
        pthread_cond_destroy(&c->wake);
        sfc_backend_close(c->backend);
        free(c);
        return code;
    }
    *out = c;
    return SFC_OK;
}

void sfc_compute_stop(struct sfc_compute *c)
{
    if (!c || c->stopping)
        return;
    pthread_mutex_lock(&c->mutex);
    c->stopping = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->thread, NULL);
    deliver(c);
}

void sfc_compute_free(struct sfc_compute *c)
{
    if (!c)
        return;
    sfc_backend_close(c->backend);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->wake);
    free(c);
}

void sfc_compute_record(struct sfc_compute *c, struct sfc_spans *spans)
{
    c->spans = spans;
}

int sfc_compute_set_store(struct sfc_compute *c, const char *dir, struct sfc_error *err)
{
    return sfc_backend_set_store(c->backend, dir, err);
}

const struct sfc_backend *sfc_compute_backend(const struct sfc_compute *c)
{
    return c->backend;
}

bool sfc_compute_late(struct sfc_compute *c, uint64_t ms)
{
    pthread_mutex_lock(&c->mutex);
    double since = c->bounded_since;
    pthread_mutex_unlock(&c->mutex);
    return ms > 0 && since > 0 && 1e3 * (now_seconds() - since) > (double)ms;
}

void sfc_compute_submit(struct sfc_compute *c, struct sfc_compute_job *job)
{
    memset(&job->error, 0, sizeof job->error);
    job->code = SFC_OK;
    job->span.begin_ns = sfc_spans_now();
    pthread_mutex_lock(&c->mutex);
    list_push(&c->queue, job);
    if (!c->busy)
        c->bounded_since = now_seconds();
    c->busy = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->mutex);
}
