/* The CPU backend's own header (private to kernels/cpu). head_*.c hold the class blocks, dense.c
 * the backbone's; both are reached through the vtable in kernels/cpu/backend.c. */
#ifndef SFC_KERNELS_CPU_CPU_H
#define SFC_KERNELS_CPU_CPU_H

#include <dnnl.h>

#include "kernels/backend_impl.h"
#include "kernels/cpu/products.h"

struct sfc_cpu_pool;

struct sfc_cpu {
    struct sfc_backend base;
    unsigned threads;
    enum sfc_cpu_products products;
    dnnl_engine_t engine;
    struct sfc_cpu_pool *pool; /* kernels/cpu/pool.h */
    char *store_dir;           /* NULL: blocks live in memory */
    char numerics[128];
};

/* kernels/cpu/dense.c: the dense_* members of struct sfc_backend_ops. */
int sfc_cpu_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err);
int sfc_cpu_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_dense_part **out,
                      struct sfc_error *err);
void sfc_cpu_dense_free(struct sfc_dense_part *dense);
int sfc_cpu_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_cpu_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values,
                        struct sfc_error *err);
int sfc_cpu_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                       struct sfc_error *err);
int sfc_cpu_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err);
int sfc_cpu_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                          struct sfc_dense_sum *out, struct sfc_error *err);
int sfc_cpu_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err);
int sfc_cpu_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err);
void sfc_cpu_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out);
int sfc_cpu_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                         struct sfc_error *err);

#endif
