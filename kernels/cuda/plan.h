/* The kernels that draw a plan (private; C and C++). Pointers are to device memory. */
#ifndef SFC_KERNELS_CUDA_PLAN_H
#define SFC_KERNELS_CUDA_PLAN_H

#include "kernels/cuda/kernels.h"
#include "kernels/hd/philox.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SFC_CUDA_NO_BLOCK UINT32_MAX

struct sfc_cuda_plan_block {
    uint32_t store;       /* first store row */
    const uint32_t *last; /* mode dense: last steps of its rows; else NULL */
    uint32_t id, rows;
    uint32_t count;                /* of the sample; 0: the block is left out */
    uint32_t positive, positives;  /* range in the positives */
    uint32_t first_chunk, chunks;  /* of the plan */
    float add_positive, add_drawn; /* what is added to z before exp */
};

struct sfc_cuda_plan_label {
    uint32_t block; /* index, or SFC_CUDA_NO_BLOCK */
    uint32_t row;   /* in the block */
};

struct sfc_cuda_plan_call {
    struct sfc_philox_key key; /* of the stream SAMPLE */
    uint64_t step;
    uint32_t blocks, batch;
    uint32_t chunk;                          /* positions of one */
    uint32_t chunks, all_chunks;             /* all: with those that fill the last tile */
    const struct sfc_cuda_plan_block *block; /* [blocks] */
    const struct sfc_cuda_plan_label *label; /* [batch] */
    const uint32_t *positive;                /* rows in their blocks, ascending in each */
    uint32_t *rows;                          /* out [all_chunks * chunk] */
    float *add;                              /* out [all_chunks * chunk] */
    uint32_t *chunk_block;                   /* out [all_chunks] */
    int32_t *target;                         /* out [batch] */
    uint32_t *ages; /* out, mode dense: [blocks, 2] oldest and newest last step of the sample; else
                       NULL */
};

cudaError_t sfc_cuda_draw_plan(const struct sfc_cuda_plan_call *call, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
