#include "kernels/rng/sample.h"

#include <string.h>

#include "kernels/rng/philox.h"

/* Rows are selected by a histogram over the top bits of their words: one bin holds the threshold,
 * and only its few rows are sorted. */
#define BIN_BITS 11
#define BINS     (1u << BIN_BITS)
#define BIN(w)   ((w) >> (32 - BIN_BITS))

struct draw {
    const uint32_t *words;     /* [rows] */
    const uint32_t *positives; /* never drawn */
    uint32_t rows, positive_count;
};

uint32_t sfc_sample_quota(uint32_t rows, uint32_t sample_ppm, uint32_t positives)
{
    uint32_t quota = (uint32_t)(((uint64_t)rows * sample_ppm + 999999) / 1000000);
    quota = quota < rows ? quota : rows;
    return quota > positives ? quota : positives;
}

static size_t words_bytes(uint32_t rows)
{
    return (((size_t)rows + 15) / 16) * 16 * sizeof(uint32_t);
}

size_t sfc_sample_scratch(uint32_t rows)
{
    return words_bytes(rows) + BINS * sizeof(uint32_t) + (size_t)rows * sizeof(uint64_t);
}

/* The bin of the k-th least negative (k >= 1, 1-based); *before: negatives in lower bins. */
static uint32_t threshold_bin(const struct draw *d, uint32_t k, uint32_t *histogram,
                              uint32_t *before)
{
    memset(histogram, 0, BINS * sizeof *histogram);
    for (uint32_t i = 0; i < d->rows; i++) {
        histogram[BIN(d->words[i])]++;
    }
    for (uint32_t p = 0; p < d->positive_count; p++) {
        histogram[BIN(d->words[d->positives[p]])]--;
    }
    uint32_t bin = 0, sum = 0;
    while (sum + histogram[bin] < k) {
        sum += histogram[bin++];
    }
    *before = sum;
    return bin;
}

/* (word, row) of the negatives in the bin, ascending by row. */
static uint32_t collect_bin(const struct draw *d, uint32_t bin, uint64_t *keys)
{
    uint32_t n = 0, p = 0;
    for (uint32_t i = 0; i < d->rows; i++) {
        if (BIN(d->words[i]) != bin) {
            continue;
        }
        while (p < d->positive_count && d->positives[p] < i) {
            p++;
        }
        if (p == d->positive_count || d->positives[p] != i) {
            keys[n++] = (uint64_t)d->words[i] << 32 | i;
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

/* Rows in [from, to) at or below the threshold, at most room of them. */
static uint32_t take_range(const struct draw *d, uint32_t from, uint32_t to, uint64_t threshold,
                           uint32_t room, uint32_t *out)
{
    uint32_t word = (uint32_t)(threshold >> 32), row = (uint32_t)threshold, n = 0;
    for (uint32_t i = from; i < to && n < room; i++) {
        out[n] = i;
        n += (uint32_t)(d->words[i] < word) | ((uint32_t)(d->words[i] == word) & (i <= row));
    }
    return n;
}

static uint32_t take(const struct draw *d, uint64_t threshold, uint32_t quota, uint32_t *out)
{
    uint32_t n = 0, from = 0;
    for (uint32_t p = 0; p < d->positive_count; p++) {
        uint32_t positive = d->positives[p];
        uint32_t kept = d->positive_count - p; /* room that the positives need */
        n += take_range(d, from, positive, threshold, quota - kept - n, out + n);
        out[n++] = positive;
        from = positive + 1;
    }
    return n + take_range(d, from, d->rows, threshold, quota - n, out + n);
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
    uint32_t *words = scratch;
    uint32_t *histogram = words + words_bytes(rows) / sizeof(uint32_t);
    uint64_t *keys = (uint64_t *)(void *)(histogram + BINS);
    struct draw d = {
        .words = words, .positives = positives, .rows = rows, .positive_count = positive_count};
    sfc_random_words(seed, SFC_STREAM_SAMPLE, step, (uint64_t)block << 32, (rows + 3u) / 4, words);
    uint32_t before = 0;
    uint32_t bin = threshold_bin(&d, negatives, histogram, &before);
    uint32_t n = collect_bin(&d, bin, keys);
    return take(&d, select_key(keys, n, negatives - before), quota, out);
}
