#include "kernels/rng/sample.h"

#include <math.h>
#include <string.h>

#include "kernels/rng/below.h"
#include "kernels/rng/philox.h"

/* Rows are drawn from *candidates*, those with words up to a limit below which enough of them are
 * expected. Where that fails, and it hardly ever does, all rows are candidates: the limit never
 * changes the result. Of the candidates the rows are selected by a histogram over the top bits of
 * their words: one bin holds the threshold, and only its few rows are sorted. */
#define BIN_BITS 8
#define BINS     (1u << BIN_BITS)

struct draw {
    uint32_t *index, *words; /* [count] candidates, ascending by row */
    uint32_t count;
    unsigned shift; /* word >> shift is its bin */
};

uint32_t sfc_sample_quota(uint32_t rows, uint32_t sample_ppm, uint32_t positives)
{
    uint32_t quota = (uint32_t)(((uint64_t)rows * sample_ppm + 999999) / 1000000);
    quota = quota < rows ? quota : rows;
    return quota > positives ? quota : positives;
}

static size_t candidates_bytes(uint32_t rows)
{
    return (((size_t)rows + SFC_BELOW_SLACK + 15) / 16) * 16 * sizeof(uint32_t);
}

size_t sfc_sample_scratch(uint32_t rows)
{
    return 2 * candidates_bytes(rows) + BINS * sizeof(uint32_t) + (size_t)rows * sizeof(uint64_t);
}

/* A limit that k of n random words very probably keep: the expected number is four standard
 * deviations higher. */
static uint32_t likely_limit(uint32_t k, uint32_t n)
{
    double wanted = k + 4 * sqrt(k) + 1;
    return wanted < n ? (uint32_t)(wanted / n * UINT32_MAX) : UINT32_MAX;
}

static void drop_positives(struct draw *d, const uint32_t *positives, uint32_t positive_count)
{
    uint32_t n = 0, p = 0;
    for (uint32_t i = 0; i < d->count && positive_count; i++) {
        while (p < positive_count && positives[p] < d->index[i]) {
            p++;
        }
        d->index[n] = d->index[i];
        d->words[n] = d->words[i];
        n += p == positive_count || positives[p] != d->index[i];
    }
    d->count = positive_count ? n : d->count;
}

/* The bin of the k-th least candidate (k >= 1, 1-based); *before: candidates in lower bins. */
static uint32_t threshold_bin(const struct draw *d, uint32_t k, uint32_t *histogram,
                              uint32_t *before)
{
    memset(histogram, 0, BINS * sizeof *histogram);
    for (uint32_t i = 0; i < d->count; i++) {
        histogram[d->words[i] >> d->shift]++;
    }
    uint32_t bin = 0, sum = 0;
    while (sum + histogram[bin] < k) {
        sum += histogram[bin++];
    }
    *before = sum;
    return bin;
}

static uint64_t key_of(const struct draw *d, uint32_t i)
{
    return (uint64_t)d->words[i] << 32 | d->index[i];
}

/* (word, row) of the candidates in the bin. */
static uint32_t collect_bin(const struct draw *d, uint32_t bin, uint64_t *keys)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        if (d->words[i] >> d->shift == bin) {
            keys[n++] = key_of(d, i);
        }
    }
    return n;
}

static void sift_down(uint64_t *heap, uint32_t n, uint32_t at)
{
    uint64_t key = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] > heap[child]) {
            child++;
        }
        if (heap[child] <= key) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* The k-th least of n keys (k >= 1), by heap sort: no recursion, no bad case. */
static uint64_t select_key(uint64_t *keys, uint32_t n, uint32_t k)
{
    for (uint32_t i = n / 2; i-- > 0;) {
        sift_down(keys, n, i);
    }
    while (n > k) {
        keys[0] = keys[--n];
        sift_down(keys, n, 0);
    }
    return keys[0];
}

/* The candidates up to the threshold and the positives, ascending; at most `quota` in all. */
static uint32_t take(const struct draw *d, uint64_t threshold, const uint32_t *positives,
                     uint32_t positive_count, uint32_t quota, uint32_t *out)
{
    uint32_t n = 0, i = 0;
    for (uint32_t p = 0; p <= positive_count; p++) {
        uint32_t end = p < positive_count ? positives[p] : UINT32_MAX;
        uint32_t room = quota - (positive_count - p); /* without what the positives need */
        for (; i < d->count && d->index[i] < end && n < room; i++) {
            out[n] = d->index[i];
            n += key_of(d, i) <= threshold;
        }
        if (p < positive_count) {
            out[n++] = end;
        }
    }
    return n;
}

/* Draws until there are at least k candidates that are not positive. */
static void draw_candidates(struct draw *d, uint64_t seed, uint64_t step, uint32_t block,
                            uint32_t rows, uint32_t k, const uint32_t *positives,
                            uint32_t positive_count)
{
    uint32_t limit = likely_limit(k, rows - positive_count);
    for (;; limit = UINT32_MAX) {
        d->count = sfc_random_below(seed, SFC_STREAM_SAMPLE, step, (uint64_t)block << 32, rows,
                                    limit, d->index, d->words);
        drop_positives(d, positives, positive_count);
        if (d->count >= k || limit == UINT32_MAX) {
            break;
        }
    }
    unsigned bits = 32 - (unsigned)__builtin_clz(limit | 1);
    d->shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
}

uint32_t sfc_sample_block(uint64_t seed, uint64_t step, uint32_t block, uint32_t rows,
                          uint32_t sample_ppm, const uint32_t *positives, uint32_t positive_count,
                          uint32_t *out, void *scratch)
{
    uint32_t quota = sfc_sample_quota(rows, sample_ppm, positive_count);
    if (quota == rows) {
        for (uint32_t i = 0; i < rows; i++) {
            out[i] = i;
        }
        return rows;
    }
    uint32_t negatives = quota - positive_count;
    if (negatives == 0) {
        if (positive_count > 0) {
            memcpy(out, positives, positive_count * sizeof *out);
        }
        return positive_count;
    }
    size_t room = candidates_bytes(rows) / sizeof(uint32_t);
    struct draw d = {.index = scratch, .words = (uint32_t *)scratch + room};
    uint32_t *histogram = d.words + room;
    uint64_t *keys = (uint64_t *)(void *)(histogram + BINS);
    draw_candidates(&d, seed, step, block, rows, negatives, positives, positive_count);
    uint32_t before = 0;
    uint32_t bin = threshold_bin(&d, negatives, histogram, &before);
    uint32_t n = collect_bin(&d, bin, keys);
    return take(&d, select_key(keys, n, negatives - before), positives, positive_count, quota, out);
}
