/* The few entries that are targets: in double, apart from the tiles. */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/kernels.h"
#include "kernels/hd/exact.h"
#include "kernels/hd/margin.h"

#define LOG2_E  1.44269504088896340736
#define THREADS 128

__device__ static inline bool find_target(const struct sfc_cuda_targets &t, uint32_t *column,
                                          int32_t *position)
{
    uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= t.columns.count)
        return false;
    *column = t.columns.first + at;
    *position = t.column_target[*column];
    return *position >= 0;
}

__global__ static void set_targets(struct sfc_cuda_targets t)
{
    uint32_t column;
    int32_t position;
    if (!find_target(t, &column, &position))
        return;
    struct sfc_hd_margin margin = {t.m1, t.m2, t.m3, t.identity};
    double slope, cosine = (double)t.target_product[column] * (double)t.inverse_norm[position];
    cosine = fmax(-1.0, fmin(1.0, cosine));
    float z = (float)(t.scale * sfc_hd_margin_at(margin, cosine, &slope)) + 0.0f;
    t.target_z[column] = z;
    t.slope[column] = t.zero[column] ? 0.0f : (float)slope;
    double e = exp((double)z + (double)t.add[position]);
    struct sfc_hd_term term = sfc_hd_term_of(e * t.factor);
    for (int i = 0; i < 3; i++)
        atomicAdd(t.limbs + (size_t)column * SFC_HD_LIMBS + term.first + i,
                  (unsigned long long)term.limb[i]);
}

extern "C" cudaError_t sfc_cuda_set_targets(const struct sfc_cuda_targets *t, cudaStream_t stream)
{
    SFC_LAUNCH(set_targets, (t->columns.count + THREADS - 1) / THREADS, THREADS, stream, *t);
    return cudaGetLastError();
}

__global__ static void target_probability(struct sfc_cuda_targets t, const float *high,
                                          const float *low, float *target_p)
{
    uint32_t column;
    int32_t position;
    if (!find_target(t, &column, &position))
        return;
    double lse = (double)high[column] + (double)low[column];
    double p = exp2(((double)t.target_z[column] + (double)t.add[position]) * LOG2_E - lse);
    target_p[column] = ((float)p - 1.0f) * t.slope[column];
}

extern "C" cudaError_t sfc_cuda_target_p(const struct sfc_cuda_targets *t, const float *high,
                                         const float *low, float *target_p, cudaStream_t stream)
{
    SFC_LAUNCH(target_probability, (t->columns.count + THREADS - 1) / THREADS, THREADS, stream, *t,
               high, low, target_p);
    return cudaGetLastError();
}
