/* The CUDA backend's kernels, as host code calls them (private; C and C++). Pointers are to device
 * memory; each call only starts work in the stream. */
#ifndef SFC_KERNELS_CUDA_KERNELS_H
#define SFC_KERNELS_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SFC_CUDA_PADDING UINT32_MAX
#define SFC_CUDA_STRIP   64 /* positions of a chunk whose exponentials are summed by one block */

/* How a record holds its numbers; each tensor has `pitch` of them.
 * F32    w, m (v) in f32
 * BF16   w, m (v) in bf16
 * SPLIT  w as high (the nearest bf16, ties away from zero) and low (the rest of the integer bits),
 *        m (v) in f32 */
enum sfc_cuda_format { SFC_CUDA_F32, SFC_CUDA_BF16, SFC_CUDA_SPLIT };

/* kernels/lag.h has the same. */
struct sfc_cuda_lag {
    float ww, wm, mw, mm;
};

struct sfc_cuda_store {
    enum sfc_cuda_format format;
    char *records;
    size_t record; /* bytes */
    uint32_t pitch, dim;
    uint32_t *last;                 /* mode dense; else NULL */
    const struct sfc_cuda_lag *lag; /* mode dense: lag[last[row]]: from there to before this step */
    uint32_t now;                   /* the step in work */
    bool nearest;                   /* BF16: updates round to the nearest */
    uint64_t seed;
    const uint64_t *block_store, *block_class; /* [blocks] */
    const uint32_t *chunk_block;               /* [chunks] */
    uint32_t chunk;                            /* positions of a chunk */
};

#ifdef __cplusplus
}
#endif

#endif
