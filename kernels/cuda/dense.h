/* Backbone blocks of the CUDA backend (private). Files: dense_new.c (tiles, memory, life), dense.c
 * (copies, sums, update), dense.cu (kernels over tiles).
 *
 * All vectors have the floats of the held blocks one after the other, and so have the slices of the
 * attempts. What goes between host and device goes through two staging buffers in turn, so that the
 * host fills or empties one while the other is on the bus. */
#ifndef SFC_KERNELS_CUDA_DENSE_H
#define SFC_KERNELS_CUDA_DENSE_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dense_tiles.h"

#define SFC_CUDA_PIECES 2

/* Through which memory a piece goes. */
struct sfc_cuda_piece {
    char *host;       /* pinned, [piece_bytes] */
    char *device;     /* [piece_bytes] packed sums */
    cudaEvent_t done; /* the last use of this piece */
};

struct sfc_cuda_dense {
    struct sfc_dense_part base;
    struct sfc_cuda *cuda;
    size_t block_count;
    uint64_t length;
    struct sfc_memory memory;
    /* host */
    uint64_t *block_at;                /* [blocks + 1] first float of a block */
    size_t *first_tile;                /* [blocks + 1] */
    struct sfc_cuda_dense_tile *tiles; /* [tile_count] */
    size_t tile_count;
    struct sfc_cuda_dense_found *found; /* [tile_count] */
    uint8_t *left_out;                  /* [blocks] */
    char *staging;                      /* pinned */
    struct sfc_cuda_piece pieces[SFC_CUDA_PIECES];
    size_t piece_bytes;
    struct sfc_error kept; /* of a call that can't report it */
    /* device */
    void *memory_base;
    struct sfc_cuda_dense_vectors vectors;
    float *slices; /* [slots, length] */
    struct sfc_cuda_dense_tile *device_tiles;
    struct sfc_cuda_dense_found *device_found;
    uint32_t *device_slots;   /* [micro_batches] */
    uint8_t *device_left_out; /* [blocks] */
};

/* The dense_* members of struct sfc_backend_ops. */
int sfc_cuda_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                          const uint64_t *blocks, size_t count, struct sfc_memory *out,
                          struct sfc_error *err);
int sfc_cuda_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                       const uint64_t *blocks, size_t count, bool blank,
                       struct sfc_dense_part **out, struct sfc_error *err);
void sfc_cuda_dense_free(struct sfc_dense_part *dense);
int sfc_cuda_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_cuda_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                         uint64_t offset, uint64_t count, const float *values,
                         struct sfc_error *err);
int sfc_cuda_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                        struct sfc_error *err);
int sfc_cuda_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err);
int sfc_cuda_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                           struct sfc_dense_sum *out, struct sfc_error *err);
int sfc_cuda_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err);
int sfc_cuda_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err);
void sfc_cuda_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out);
int sfc_cuda_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                          struct sfc_error *err);

#endif
