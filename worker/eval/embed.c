#include "worker/eval/embed.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "worker/eval/metrics.h"

#define EMBED_BATCH 32u

struct shared {
    const struct sfc_embed_job *job;
    float *out;
    pthread_mutex_t lock;
    uint64_t next, done;
    int code;
    struct sfc_error err;
};

struct embedder {
    struct shared *shared;
    unsigned index;
    pthread_t thread;
    struct sfc_lane *lane;
    float *images, *features;
};

static uint64_t pixels_of(const struct sfc_embed_job *job)
{
    return (uint64_t)job->input.width * job->input.height * job->input.channels;
}

static bool take_batch(struct shared *s, uint64_t *first, uint32_t *rows)
{
    pthread_mutex_lock(&s->lock);
    bool more = s->code == SFC_OK && s->next < s->job->count;
    if (more) {
        uint64_t left = s->job->count - s->next;
        *first = s->next;
        *rows = left < EMBED_BATCH ? (uint32_t)left : EMBED_BATCH;
        s->next += *rows;
    }
    pthread_mutex_unlock(&s->lock);
    return more;
}

static void batch_done(struct shared *s, uint32_t rows)
{
    pthread_mutex_lock(&s->lock);
    s->done += rows;
    if (s->job->progress != NULL) {
        s->job->progress(s->job->progress_ctx, s->done, s->job->count);
    }
    pthread_mutex_unlock(&s->lock);
}

static void fail(struct shared *s, const struct sfc_error *err)
{
    pthread_mutex_lock(&s->lock);
    if (s->code == SFC_OK) {
        s->code = err->code;
        s->err = *err;
    }
    pthread_mutex_unlock(&s->lock);
}

static void mirror(const struct sfc_embed_job *job, float *images, uint32_t rows)
{
    uint64_t width = job->input.width;
    uint64_t lines = (uint64_t)rows * job->input.channels * job->input.height;
    for (uint64_t line = 0; line < lines; line++) {
        float *row = images + line * width;
        for (uint64_t x = 0; x < width / 2; x++) {
            float keep = row[x];
            row[x] = row[width - 1 - x];
            row[width - 1 - x] = keep;
        }
    }
}

/* Embeds the rows that are in images, adding to out when add is set. */
static int embed_rows(struct embedder *e, uint32_t rows, float *out, bool add,
                      struct sfc_error *err)
{
    const struct sfc_embed_job *job = e->shared->job;
    int code = sfc_lane_embed(e->lane, job->params, e->images, e->features, err);
    if (code != SFC_OK) {
        return code;
    }
    for (uint64_t i = 0; i < (uint64_t)rows * job->dim; i++) {
        out[i] = add ? out[i] + e->features[i] : e->features[i];
    }
    return SFC_OK;
}

static int embed_batch(struct embedder *e, uint64_t first, uint32_t rows, struct sfc_error *err)
{
    const struct sfc_embed_job *job = e->shared->job;
    uint64_t pixels = pixels_of(job);
    float *out = e->shared->out + first * job->dim;
    memset(e->images + rows * pixels, 0, (EMBED_BATCH - rows) * pixels * sizeof *e->images);
    for (uint32_t r = 0; r < rows; r++) {
        int code = job->source(job->ctx, e->index, first + r, e->images + r * pixels, err);
        if (code != SFC_OK) {
            return code;
        }
    }
    int code = embed_rows(e, rows, out, false, err);
    if (code == SFC_OK && job->flip) {
        mirror(job, e->images, rows);
        code = embed_rows(e, rows, out, true, err);
    }
    if (code == SFC_OK) {
        sfc_normalise_rows(out, rows, job->dim);
    }
    return code;
}

static void *run(void *arg)
{
    struct embedder *e = arg;
    const struct sfc_embed_job *job = e->shared->job;
    struct sfc_error err;
    uint64_t first;
    uint32_t rows;
    int code = sfc_lane_new(job->device, job->model, EMBED_BATCH, &e->lane, &err);
    e->images = malloc(EMBED_BATCH * pixels_of(job) * sizeof *e->images);
    e->features = malloc((size_t)EMBED_BATCH * job->dim * sizeof *e->features);
    if (code == SFC_OK && (e->images == NULL || e->features == NULL)) {
        code = sfc_fail(&err, SFC_ENOMEM, "out of memory for a batch of images");
    }
    while (code == SFC_OK && take_batch(e->shared, &first, &rows)) {
        code = embed_batch(e, first, rows, &err);
        if (code == SFC_OK) {
            batch_done(e->shared, rows);
        }
    }
    if (code != SFC_OK) {
        fail(e->shared, &err);
    }
    sfc_lane_free(e->lane);
    free(e->images);
    free(e->features);
    return NULL;
}

int sfc_embed(const struct sfc_embed_job *job, float *out, struct sfc_error *err)
{
    struct shared shared = {.job = job, .out = out, .lock = PTHREAD_MUTEX_INITIALIZER};
    struct embedder *all = calloc(job->threads, sizeof *all);
    if (all == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %u threads", job->threads);
    }
    unsigned made = 0;
    for (; made < job->threads; made++) {
        all[made].shared = &shared;
        all[made].index = made;
        if (pthread_create(&all[made].thread, NULL, run, &all[made]) != 0) {
            struct sfc_error failed;
            sfc_fail(&failed, SFC_ENOMEM, "thread %u of %u could not be started", made + 1,
                     job->threads);
            fail(&shared, &failed);
            break;
        }
    }
    for (unsigned t = 0; t < made; t++) {
        pthread_join(all[t].thread, NULL);
    }
    free(all);
    pthread_mutex_destroy(&shared.lock);
    return shared.code == SFC_OK ? SFC_OK : sfc_fail(err, shared.code, "%s", shared.err.text);
}
