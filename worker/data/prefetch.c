#include "worker/data/prefetch.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"

/* EMPTY -> QUEUED (submit) -> DECODING (a thread took its first row) -> READY (last row done) ->
 * EMPTY (release). A release while DECODING sets `dropped`: the last reader empties the slot. */
enum slot_state { SLOT_EMPTY, SLOT_QUEUED, SLOT_DECODING, SLOT_READY };

struct slot {
    enum slot_state state;
    bool dropped;
    uint64_t order;          /* of submission: the oldest is decoded first */
    uint32_t next, finished; /* rows handed to threads, rows done */
    struct sfc_batch batch;
    float *images;
    uint64_t *samples, *labels, *epochs;
};

struct sfc_prefetch {
    const struct sfc_dataset *set;
    struct sfc_prefetch_options options;
    size_t pixels; /* floats per image */
    pthread_mutex_t lock;
    pthread_cond_t work, ready;
    bool stop;
    uint64_t submitted;
    struct slot *slots;
    pthread_t *threads;
    struct sfc_decoder **decoders;
    uint32_t started;
    struct sfc_prefetch_counters counters;
};

struct reader {
    struct sfc_prefetch *p;
    struct sfc_decoder *decoder;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t slot_bytes(const struct sfc_dataset_info *info, uint32_t rows)
{
    return (size_t)rows * ((size_t)info->width * info->height * info->channels * sizeof(float) +
                           3 * sizeof(uint64_t));
}

uint64_t sfc_prefetch_memory(const struct sfc_dataset_info *info,
                             const struct sfc_prefetch_options *options)
{
    return (uint64_t)options->slots * slot_bytes(info, options->rows);
}

static struct slot *find(struct sfc_prefetch *p, uint64_t step, uint32_t micro)
{
    for (uint32_t i = 0; i < p->options.slots; i++) {
        struct slot *slot = &p->slots[i];
        if (slot->state != SLOT_EMPTY && !slot->dropped && slot->batch.step == step &&
            slot->batch.micro == micro)
            return slot;
    }
    return NULL;
}

/* The oldest batch with rows that no thread has yet. */
static struct slot *find_work(struct sfc_prefetch *p)
{
    struct slot *best = NULL;
    for (uint32_t i = 0; i < p->options.slots; i++) {
        struct slot *slot = &p->slots[i];
        bool open = (slot->state == SLOT_QUEUED || slot->state == SLOT_DECODING) &&
                    !slot->dropped && slot->next < slot->batch.rows;
        if (open && (best == NULL || slot->order < best->order))
            best = slot;
    }
    return best;
}

/* Called with the lock held, after the row was decoded without it. Returns true when the batch
 * became ready. */
static bool finish_row(struct sfc_prefetch *p, struct slot *slot, uint32_t row, int rc,
                       const struct sfc_error *cause)
{
    slot->finished++;
    if (rc == SFC_OK) {
        p->counters.images++;
    } else {
        struct sfc_batch *batch = &slot->batch;
        p->counters.broken++;
        slot->labels[row] = SFC_LABEL_NONE;
        /* The lowest row's error is the batch's, whatever thread comes first. */
        if (batch->broken == 0 || row < batch->broken_row) {
            batch->broken_sample = slot->samples[row];
            batch->broken_row = row;
            batch->cause = *cause;
        }
        batch->broken++;
    }
    if (slot->dropped) {
        if (slot->finished == slot->next)
            slot->state = SLOT_EMPTY;
        return false;
    }
    if (slot->finished < slot->batch.rows)
        return false;
    if (slot->batch.broken > 0 && !p->options.skip_broken)
        slot->batch.error = slot->batch.cause;
    slot->state = SLOT_READY;
    return true;
}

static int decode_row(struct reader *r, struct slot *slot, uint32_t row, struct sfc_error *err)
{
    struct sfc_prefetch *p = r->p;
    float *image = slot->images + (size_t)row * p->pixels;
    int rc = sfc_decoder_read(r->decoder, slot->samples[row], &p->options.augment, p->options.seed,
                              slot->epochs[row], image, err);
    if (rc != SFC_OK)
        memset(image, 0, p->pixels * sizeof *image);
    return rc;
}

static void *read_loop(void *arg)
{
    struct reader *r = arg;
    struct sfc_prefetch *p = r->p;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct slot *slot = find_work(p);
        if (slot == NULL) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        uint32_t row = slot->next++;
        slot->state = SLOT_DECODING;
        pthread_mutex_unlock(&p->lock);
        struct sfc_error cause = {0};
        double start = now();
        int rc = decode_row(r, slot, row, &cause);
        double seconds = now() - start;
        pthread_mutex_lock(&p->lock);
        p->counters.decode_seconds += seconds;
        uint64_t step = slot->batch.step;
        uint32_t micro = slot->batch.micro;
        if (!finish_row(p, slot, row, rc, &cause))
            continue;
        pthread_cond_broadcast(&p->ready);
        if (p->options.on_ready != NULL) {
            pthread_mutex_unlock(&p->lock);
            p->options.on_ready(p->options.arg, step, micro);
            pthread_mutex_lock(&p->lock);
        }
    }
    pthread_mutex_unlock(&p->lock);
    free(r);
    return NULL;
}

static int check_options(const struct sfc_prefetch_options *o, struct sfc_error *err)
{
    if (o->threads < 1 || o->threads > 64)
        return sfc_fail(err, SFC_EINVAL, "%u reading threads: 1 to 64", o->threads);
    if (o->slots < 1 || o->slots > 1024)
        return sfc_fail(err, SFC_EINVAL, "%u batches read ahead: 1 to 1024", o->slots);
    if (o->rows < 1 || o->rows > 65536)
        return sfc_fail(err, SFC_EINVAL, "%u rows in a micro-batch: 1 to 65536", o->rows);
    return SFC_OK;
}

static int allocate_slots(struct sfc_prefetch *p, struct sfc_error *err)
{
    uint32_t rows = p->options.rows;
    p->slots = calloc(p->options.slots, sizeof *p->slots);
    p->threads = calloc(p->options.threads, sizeof *p->threads);
    p->decoders = calloc(p->options.threads, sizeof *p->decoders);
    bool ok = p->slots != NULL && p->threads != NULL && p->decoders != NULL;
    for (uint32_t i = 0; i < p->options.slots && ok; i++) {
        struct slot *slot = &p->slots[i];
        size_t bytes = ((size_t)rows * p->pixels * sizeof(float) + 63) & ~(size_t)63;
        slot->images = aligned_alloc(64, bytes);
        slot->samples = malloc(rows * sizeof *slot->samples);
        slot->labels = malloc(rows * sizeof *slot->labels);
        slot->epochs = malloc(rows * sizeof *slot->epochs);
        ok = slot->images != NULL && slot->samples != NULL && slot->labels != NULL &&
             slot->epochs != NULL;
        if (ok)
            memset(slot->images, 0, bytes); /* touch the pages now, not in a step */
    }
    if (!ok)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %" PRIu64 " MiB of batches",
                        sfc_prefetch_memory(sfc_dataset_info(p->set), &p->options) >> 20);
    return SFC_OK;
}

static int start_threads(struct sfc_prefetch *p, struct sfc_error *err)
{
    for (uint32_t i = 0; i < p->options.threads; i++) {
        int rc = sfc_decoder_new(p->set, &p->decoders[i], err);
        if (rc != SFC_OK)
            return rc;
        struct reader *reader = malloc(sizeof *reader);
        if (reader == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for a reading thread");
        *reader = (struct reader){p, p->decoders[i]};
        errno = pthread_create(&p->threads[i], NULL, read_loop, reader);
        if (errno != 0) {
            rc = sfc_fail_errno(err, "start a reading thread");
            free(reader);
            return rc;
        }
        p->started++;
    }
    return SFC_OK;
}

int sfc_prefetch_new(const struct sfc_dataset *set, const struct sfc_prefetch_options *options,
                     struct sfc_prefetch **out, struct sfc_error *err)
{
    int rc = check_options(options, err);
    if (rc != SFC_OK)
        return rc;
    struct sfc_prefetch *p = calloc(1, sizeof *p);
    if (p == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a prefetcher");
    const struct sfc_dataset_info *info = sfc_dataset_info(set);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->ready, &clock);
    pthread_condattr_destroy(&clock);
    p->set = set;
    p->options = *options;
    p->pixels = (size_t)info->width * info->height * info->channels;
    rc = allocate_slots(p, err);
    if (rc == SFC_OK)
        rc = start_threads(p, err);
    if (rc != SFC_OK) {
        sfc_prefetch_free(p);
        return rc;
    }
    *out = p;
    return SFC_OK;
}

void sfc_prefetch_free(struct sfc_prefetch *p)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_cond_broadcast(&p->ready);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->started; i++)
        pthread_join(p->threads[i], NULL);
    for (uint32_t i = 0; i < p->options.threads && p->decoders != NULL; i++)
        sfc_decoder_free(p->decoders[i]);
    for (uint32_t i = 0; i < p->options.slots && p->slots != NULL; i++) {
        free(p->slots[i].images);
        free(p->slots[i].samples);
        free(p->slots[i].labels);
        free(p->slots[i].epochs);
    }
    free(p->slots);
    free(p->threads);
    free(p->decoders);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->ready);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int check_samples(const struct sfc_prefetch *p, const uint64_t *samples, uint32_t rows,
                         struct sfc_error *err)
{
    uint64_t count = sfc_dataset_info(p->set)->samples;
    if (rows < 1 || rows > p->options.rows)
        return sfc_fail(err, SFC_EINVAL, "%u rows in a micro-batch: 1 to %u", rows,
                        p->options.rows);
    for (uint32_t i = 0; i < rows; i++)
        if (samples[i] >= count)
            return sfc_fail(err, SFC_EINVAL, "sample %" PRIu64 " of %" PRIu64 " (row %u)",
                            samples[i], count, i);
    return SFC_OK;
}

static struct slot *find_empty(struct sfc_prefetch *p)
{
    for (uint32_t i = 0; i < p->options.slots; i++)
        if (p->slots[i].state == SLOT_EMPTY)
            return &p->slots[i];
    return NULL;
}

/* Lock held. */
static void fill(struct sfc_prefetch *p, struct slot *slot, uint64_t step, uint32_t micro,
                 const uint64_t *samples, const uint64_t *epochs, uint32_t rows)
{
    memcpy(slot->samples, samples, rows * sizeof *samples);
    memcpy(slot->epochs, epochs, rows * sizeof *epochs);
    for (uint32_t i = 0; i < rows; i++)
        slot->labels[i] = sfc_dataset_label(p->set, samples[i]);
    slot->dropped = false;
    slot->next = slot->finished = 0;
    slot->order = p->submitted++;
    memset(&slot->batch, 0, sizeof slot->batch);
    slot->batch.step = step;
    slot->batch.micro = micro;
    slot->batch.rows = rows;
    slot->batch.images = slot->images;
    slot->batch.samples = slot->samples;
    slot->batch.labels = slot->labels;
    slot->state = SLOT_QUEUED;
}

int sfc_prefetch_submit(struct sfc_prefetch *p, uint64_t step, uint32_t micro,
                        const uint64_t *samples, const uint64_t *epochs, uint32_t rows,
                        struct sfc_error *err)
{
    int rc = check_samples(p, samples, rows, err);
    if (rc != SFC_OK)
        return rc;
    pthread_mutex_lock(&p->lock);
    struct slot *slot = find_empty(p);
    if (find(p, step, micro) != NULL)
        rc = sfc_fail(err, SFC_EEXIST, "micro-batch (%" PRIu64 ", %u) is being read already", step,
                      micro);
    else if (slot == NULL)
        rc = sfc_fail(err, SFC_ELIMIT, "%u micro-batches are held already", p->options.slots);
    if (rc == SFC_OK) {
        fill(p, slot, step, micro, samples, epochs, rows);
        pthread_cond_broadcast(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static struct timespec deadline_after(uint32_t ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000L;
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000L;
    }
    return t;
}

int sfc_prefetch_take(struct sfc_prefetch *p, uint64_t step, uint32_t micro, uint32_t wait_ms,
                      const struct sfc_batch **out, struct sfc_error *err)
{
    struct timespec deadline = deadline_after(wait_ms);
    bool late = wait_ms == 0;
    int rc = SFC_OK;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct slot *slot = find(p, step, micro);
        if (p->stop)
            rc = sfc_fail(err, SFC_ECANCELED, "reading has been stopped");
        else if (slot == NULL)
            rc = sfc_fail(err, SFC_ENOTFOUND, "micro-batch (%" PRIu64 ", %u) is not being read",
                          step, micro);
        else if (slot->state == SLOT_READY)
            *out = &slot->batch;
        else if (late)
            rc = sfc_fail(err, SFC_ETIMEOUT, "micro-batch (%" PRIu64 ", %u) is not read yet", step,
                          micro);
        else {
            late = pthread_cond_timedwait(&p->ready, &p->lock, &deadline) == ETIMEDOUT;
            continue;
        }
        break;
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

/* Lock held. */
static void drop(struct sfc_prefetch *p, struct slot *slot)
{
    if (slot->state == SLOT_DECODING && slot->finished < slot->next)
        slot->dropped = true;
    else
        slot->state = SLOT_EMPTY;
    pthread_cond_broadcast(&p->ready); /* a waiting taker learns that it is gone */
}

void sfc_prefetch_release(struct sfc_prefetch *p, uint64_t step, uint32_t micro)
{
    pthread_mutex_lock(&p->lock);
    struct slot *slot = find(p, step, micro);
    if (slot != NULL)
        drop(p, slot);
    pthread_mutex_unlock(&p->lock);
}

void sfc_prefetch_release_before(struct sfc_prefetch *p, uint64_t step)
{
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < p->options.slots; i++) {
        struct slot *slot = &p->slots[i];
        if (slot->state != SLOT_EMPTY && !slot->dropped && slot->batch.step < step)
            drop(p, slot);
    }
    pthread_mutex_unlock(&p->lock);
}

void sfc_prefetch_counters(struct sfc_prefetch *p, struct sfc_prefetch_counters *out)
{
    pthread_mutex_lock(&p->lock);
    *out = p->counters;
    out->queued = out->decoding = out->ready = 0;
    for (uint32_t i = 0; i < p->options.slots; i++) {
        out->queued += p->slots[i].state == SLOT_QUEUED;
        out->decoding += p->slots[i].state == SLOT_DECODING;
        out->ready += p->slots[i].state == SLOT_READY;
    }
    pthread_mutex_unlock(&p->lock);
}
