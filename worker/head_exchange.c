#define XXH_STATIC_LINKING_ONLY /* the state on the stack */
#include "worker/head_exchange.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#define NO_LABEL UINT64_MAX

static int check_row(const struct sfc_logits_part *parts, size_t count, uint32_t row, bool labelled,
                     float *target, struct sfc_error *err)
{
    size_t owners = 0;
    *target = 0;
    for (size_t k = 0; k < count; k++) {
        uint8_t has = parts[k].has_target[row];
        if (has > 1)
            return sfc_fail(err, SFC_ECORRUPT, "shard %zu, row %u: has_target is %u", k, row, has);
        if (!has)
            continue;
        owners++;
        *target = parts[k].target[row];
        if (!isfinite(*target))
            return sfc_fail(err, SFC_ECORRUPT, "shard %zu, row %u: the target logit is not finite",
                            k, row);
    }
    if (owners != (labelled ? 1u : 0u))
        return sfc_fail(err, SFC_ECORRUPT,
                        "row %u: %zu of %zu shards have its target class, expected %d", row, owners,
                        count, labelled);
    return SFC_OK;
}

int sfc_head_merge_logits(const struct sfc_logits_part *parts, size_t count, uint32_t rows,
                          double shift, const uint64_t *labels, double *lse, float *target,
                          struct sfc_error *err)
{
    for (uint32_t r = 0; r < rows; r++) {
        float t;
        int rc = check_row(parts, count, r, labels[r] != NO_LABEL, &t, err);
        if (rc)
            return rc;
        struct sfc_sum256 sum = {{0}};
        for (size_t k = 0; k < count; k++)
            sfc_sum256_add(&sum, &parts[k].sums[r]);
        double log_sum = sfc_sum256_log(&sum, shift);
        if (!isfinite(log_sum))
            return sfc_fail(err, SFC_ECORRUPT,
                            "row %u: the sum of exponentials over %zu shards is 0", r, count);
        lse[r] = log_sum;
        target[r] = t;
    }
    return SFC_OK;
}

double sfc_head_loss_sum(uint32_t rows, const uint64_t *labels, const double *lse,
                         const float *target)
{
    double sum = 0;
    for (uint32_t r = 0; r < rows; r++)
        if (labels[r] != NO_LABEL)
            sum += lse[r] - (double)target[r];
    return sum;
}

int sfc_head_add_dx(int64_t *sum, const int64_t *part, size_t n, struct sfc_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (__builtin_add_overflow(sum[i], part[i], &sum[i]))
            return sfc_fail(err, SFC_ECORRUPT, "gradient element %zu overflows", i);
    return SFC_OK;
}

uint32_t sfc_head_backward(uint32_t rows, uint32_t dim, const float *features, const int64_t *dx,
                           float *dfeatures)
{
    uint32_t zeros = 0;
    for (uint32_t r = 0; r < rows; r++) {
        const float *x = features + (size_t)r * dim;
        const int64_t *g = dx + (size_t)r * dim;
        float *df = dfeatures + (size_t)r * dim;
        double squares = 0, dot = 0;
        for (uint32_t i = 0; i < dim; i++)
            squares += (double)x[i] * (double)x[i];
        double norm = sqrt(squares);
        if (norm < SFC_ZERO_NORM) {
            memset(df, 0, dim * sizeof *df);
            zeros++;
            continue;
        }
        for (uint32_t i = 0; i < dim; i++)
            dot += (double)x[i] / norm * (double)sfc_dx_to_float(g[i]);
        for (uint32_t i = 0; i < dim; i++)
            df[i] = (float)(((double)sfc_dx_to_float(g[i]) - (double)x[i] / norm * dot) / norm);
    }
    return zeros;
}

size_t sfc_head_first_bad(const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return i;
    return n;
}

void sfc_head_digest(uint32_t rows, uint32_t dim, const float *features, const double *lse,
                     uint8_t digest[16])
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, features, (size_t)rows * dim * sizeof *features);
    XXH3_128bits_update(&state, lse, rows * sizeof *lse);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(digest, canonical.digest, 16);
}
