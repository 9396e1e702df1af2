/* Unit features: what workers send, as operands of the products. */
#include "kernels/cuda/record.cuh"

#define THREADS 128

/* One block of threads per column of the slots. */
__global__ static void unit_features(struct sfc_cuda_features f)
{
    uint32_t column = blockIdx.x, slot = column / f.mp, r = column % f.mp;
    int32_t micro = f.slot_micro[slot];
    if (micro < 0)
        return;
    bool used = r < f.micro_batch;
    const float *in = f.raw + ((size_t)slot * f.micro_batch + r) * f.dim;
    double sum = 0;
    for (uint32_t k = threadIdx.x; used && k < f.dim; k += THREADS)
        sum += (double)in[k] * (double)in[k];
    __shared__ double part[THREADS];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (uint32_t n = used ? THREADS / 2 : 0; n; n /= 2) { /* alike in the whole block */
        if (threadIdx.x < n)
            part[threadIdx.x] += part[threadIdx.x + n];
        __syncthreads();
    }
    double norm = sqrt(part[0]);
    bool usable = used && norm >= 1e-12;
    double factor = usable ? 1.0 / norm : 0.0;
    for (uint32_t k = threadIdx.x; k < f.pitch; k += THREADS) {
        float v = usable && k < f.dim ? (float)((double)in[k] * factor) : 0.0f;
        size_t at = (size_t)column * f.pitch + k;
        if (f.half)
            ((uint16_t *)f.x)[at] = (uint16_t)(sfc_nearest_bits(v) >> 16);
        else
            ((float *)f.x)[at] = v;
    }
    if (threadIdx.x)
        return;
    f.zero[column] = used && !usable;
    f.column_target[column] = used ? f.target[(size_t)micro * f.micro_batch + r] : -1;
}

extern "C" cudaError_t sfc_cuda_unit_features(const struct sfc_cuda_features *f,
                                              cudaStream_t stream)
{
    SFC_LAUNCH(unit_features, f->slots * f->mp, THREADS, stream, *f);
    return cudaGetLastError();
}
