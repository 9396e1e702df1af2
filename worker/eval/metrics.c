#include "worker/eval/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define THRESHOLDS 400
#define BINS       (2u << 20) /* cosines -1..1 */

void sfc_normalise_rows(float *rows, uint64_t count, uint32_t dim)
{
    for (uint64_t i = 0; i < count; i++) {
        float *row = rows + i * dim;
        double square = 0;
        for (uint32_t k = 0; k < dim; k++) {
            square += (double)row[k] * (double)row[k];
        }
        double scale = square < 1e-24 ? 0 : 1 / sqrt(square);
        for (uint32_t k = 0; k < dim; k++) {
            row[k] = (float)((double)row[k] * scale);
        }
    }
}

/* ---- pairs */

static int check_pairs(const float *score, const bool *same, uint64_t pairs, struct sfc_error *err)
{
    uint64_t genuine = 0;
    for (uint64_t i = 0; i < pairs; i++) {
        if (!isfinite(score[i])) {
            return sfc_fail(err, SFC_EINVAL, "pair %" PRIu64 ": the score is not finite", i);
        }
        genuine += same[i] ? 1 : 0;
    }
    if (pairs < SFC_EVAL_FOLDS || genuine == 0 || genuine == pairs) {
        return sfc_fail(err, SFC_EINVAL,
                        "%" PRIu64 " pairs, %" PRIu64
                        " of them genuine: at least %d pairs and both kinds are needed",
                        pairs, genuine, SFC_EVAL_FOLDS);
    }
    return SFC_OK;
}

/* Pairs of one fold that a threshold decides right; first..last is the fold. */
static uint64_t right_in(const float *distance, const bool *same, uint64_t first, uint64_t last,
                         double threshold)
{
    uint64_t right = 0;
    for (uint64_t i = first; i < last; i++) {
        right += ((double)distance[i] < threshold) == same[i] ? 1 : 0;
    }
    return right;
}

int sfc_evaluate_pairs(const float *distance, const bool *same, uint64_t pairs,
                       struct sfc_pair_result *out, struct sfc_error *err)
{
    int code = check_pairs(distance, same, pairs, err);
    if (code != SFC_OK) {
        return code;
    }
    static const int folds = SFC_EVAL_FOLDS;
    uint64_t right[SFC_EVAL_FOLDS][THRESHOLDS];
    uint64_t total[THRESHOLDS] = {0};
    uint64_t edge[SFC_EVAL_FOLDS + 1];
    for (int f = 0; f <= folds; f++) {
        edge[f] = pairs * (uint64_t)f / (uint64_t)folds;
    }
    for (int f = 0; f < folds; f++) {
        for (int t = 0; t < THRESHOLDS; t++) {
            right[f][t] = right_in(distance, same, edge[f], edge[f + 1], 0.01 * t);
            total[t] += right[f][t];
        }
    }
    double sum = 0;
    double square = 0;
    double threshold = 0;
    for (int f = 0; f < folds; f++) {
        int best = 0;
        for (int t = 1; t < THRESHOLDS; t++) {
            if (total[t] - right[f][t] > total[best] - right[f][best]) {
                best = t;
            }
        }
        double accuracy = (double)right[f][best] / (double)(edge[f + 1] - edge[f]);
        sum += accuracy;
        square += accuracy * accuracy;
        threshold += 0.01 * best;
    }
    double mean = sum / folds;
    double variance = square / folds - mean * mean;
    *out = (struct sfc_pair_result){
        .pairs = pairs,
        .accuracy = mean,
        .deviation = sqrt(variance > 0 ? variance : 0),
        .threshold = threshold / folds,
    };
    return SFC_OK;
}

/* ---- TAR at FAR from two histograms of cosines */

struct histogram {
    uint64_t genuine[BINS];
    uint64_t impostor[BINS];
};

static uint32_t bin_of(float cosine)
{
    float clamped = cosine < -1 ? -1 : cosine > 1 ? 1 : cosine;
    uint32_t bin = (uint32_t)((clamped + 1) * (float)(BINS / 2));
    return bin < BINS ? bin : BINS - 1;
}

static void tar_at_far(const struct histogram *h, struct sfc_far_result *out)
{
    memset(out, 0, sizeof *out);
    for (uint32_t b = 0; b < BINS; b++) {
        out->genuine += h->genuine[b];
        out->impostor += h->impostor[b];
    }
    double far = 0.1;
    uint32_t bin = BINS; /* accept bins >= bin */
    uint64_t false_accepts = 0;
    uint64_t true_accepts = 0;
    double fars[SFC_EVAL_FAR_LEVEL];
    for (int i = 0; i < SFC_EVAL_FAR_LEVEL; i++, far /= 10) {
        fars[i] = far;
    }
    for (int i = SFC_EVAL_FAR_LEVEL - 1; i >= 0; i--) {
        uint64_t allowed = (uint64_t)floor(fars[i] * (double)out->impostor * (1 + 1e-12));
        while (bin > 0 && false_accepts + h->impostor[bin - 1] <= allowed) {
            bin--;
            false_accepts += h->impostor[bin];
            true_accepts += h->genuine[bin];
        }
        out->level[i].far = fars[i];
        out->level[i].supported = allowed >= SFC_EVAL_MIN_FALSE_ACCEPTS && out->genuine > 0;
        out->level[i].tar =
            out->genuine > 0 ? (double)true_accepts / (double)out->genuine : (double)NAN;
        out->level[i].threshold = (double)bin / (BINS / 2) - 1;
    }
}

int sfc_evaluate_scores(const float *cosine, const bool *same, uint64_t pairs,
                        struct sfc_far_result *out, struct sfc_error *err)
{
    int code = check_pairs(cosine, same, pairs, err);
    if (code != SFC_OK) {
        return code;
    }
    struct histogram *h = calloc(1, sizeof *h);
    if (h == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a histogram of %zu bytes", sizeof *h);
    }
    for (uint64_t i = 0; i < pairs; i++) {
        uint64_t *side = same[i] ? h->genuine : h->impostor;
        side[bin_of(cosine[i])]++;
    }
    tar_at_far(h, out);
    free(h);
    return SFC_OK;
}

/* ---- all pairs of a labelled set */

#define TILE 64

struct pair_job {
    const float *rows;
    const uint64_t *labels;
    uint64_t count;
    uint32_t dim;
    uint64_t first, stride; /* tiles of rows: first, first + stride, ... */
    struct histogram *h;
    pthread_t thread;
};

static float dot(const float *restrict a, const float *restrict b, uint32_t dim)
{
    float lane[16] = {0};
    uint32_t k = 0;
    for (; k + 16 <= dim; k += 16) {
        for (int i = 0; i < 16; i++) {
            lane[i] += a[k + (uint32_t)i] * b[k + (uint32_t)i];
        }
    }
    float sum = 0;
    for (int i = 0; i < 16; i++) {
        sum += lane[i];
    }
    for (; k < dim; k++) {
        sum += a[k] * b[k];
    }
    return sum;
}

/* Pairs (i, j), i < j, with i in the tile that starts at `tile`. Rows j outside, so that a tile of
 * rows i stays in the cache. */
static void count_tile(struct pair_job *job, uint64_t tile)
{
    uint64_t end = tile + TILE < job->count ? tile + TILE : job->count;
    for (uint64_t j = tile + 1; j < job->count; j++) {
        const float *other = job->rows + j * job->dim;
        for (uint64_t i = tile; i < end && i < j; i++) {
            uint32_t bin = bin_of(dot(job->rows + i * job->dim, other, job->dim));
            uint64_t *side = job->labels[i] == job->labels[j] ? job->h->genuine : job->h->impostor;
            side[bin]++;
        }
    }
}

static void *count_pairs(void *arg)
{
    struct pair_job *job = arg;
    for (uint64_t tile = job->first * TILE; tile < job->count; tile += job->stride * TILE) {
        count_tile(job, tile);
    }
    return NULL;
}

static void merge(struct histogram *into, const struct histogram *from)
{
    for (uint32_t b = 0; b < BINS; b++) {
        into->genuine[b] += from->genuine[b];
        into->impostor[b] += from->impostor[b];
    }
}

int sfc_evaluate_labelled(const float *rows, const uint64_t *labels, uint64_t count, uint32_t dim,
                          unsigned threads, struct sfc_far_result *out, struct sfc_error *err)
{
    if (count < 2 || threads < 1) {
        return sfc_fail(err, SFC_EINVAL, "%" PRIu64 " rows: at least 2 are needed", count);
    }
    for (uint64_t i = 0; i < count * dim; i++) {
        if (!isfinite(rows[i])) {
            return sfc_fail(err, SFC_EINVAL, "row %" PRIu64 ": the embedding is not finite",
                            i / dim);
        }
    }
    struct pair_job *jobs = calloc(threads, sizeof *jobs);
    int code = jobs == NULL ? SFC_ENOMEM : SFC_OK;
    unsigned made = 0;
    for (; made < threads && code == SFC_OK; made++) {
        struct pair_job *job = &jobs[made];
        *job = (struct pair_job){
            rows, labels, count, dim, made, threads, calloc(1, sizeof(struct histogram)), 0};
        if (job->h == NULL) {
            code = SFC_ENOMEM;
            break;
        }
        if (pthread_create(&job->thread, NULL, count_pairs, job) != 0) {
            free(job->h);
            code = SFC_ENOMEM;
            break;
        }
    }
    for (unsigned t = 0; t < made; t++) {
        pthread_join(jobs[t].thread, NULL);
        if (t > 0) {
            merge(jobs[0].h, jobs[t].h);
        }
    }
    if (code == SFC_OK) {
        tar_at_far(jobs[0].h, out);
        if (out->genuine == 0 || out->impostor == 0) {
            code = sfc_fail(err, SFC_EINVAL, "all rows have %s label",
                            out->impostor == 0 ? "the same" : "a different");
        }
    } else {
        sfc_fail(err, code, "out of memory or threads for %u histograms", threads);
    }
    for (unsigned t = 0; t < made; t++) {
        free(jobs[t].h);
    }
    free(jobs);
    return code;
}
