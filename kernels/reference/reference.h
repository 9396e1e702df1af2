/* The reference backend (private to kernels/reference): the equations of kernels/backend.h in
 * double precision, one class and one row at a time, in the order in which they are written there.
 * It is the yardstick of the conformance tests: clarity first, no speed, no threads. Where the
 * configuration asks for bf16, numbers are rounded where the formats say so (docs/ARCHITECTURE.md):
 * state after an update, operands of products, kept cosines and p. All else stays in double. */
#ifndef SFC_KERNELS_REFERENCE_REFERENCE_H
#define SFC_KERNELS_REFERENCE_REFERENCE_H

#include "kernels/backend_impl.h"

/* kernels/reference/head.c */
int sfc_ref_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err);
int sfc_ref_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                     const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                     struct sfc_error *err);
void sfc_ref_head_free(struct sfc_head_part *head);
int sfc_ref_head_read(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_ref_head_write(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err);
int sfc_ref_head_plan(struct sfc_head_part *head, uint64_t step, const uint64_t *labels,
                      uint64_t *sampled, struct sfc_error *err);
void sfc_ref_head_sample(const struct sfc_head_part *head, size_t index, const uint32_t **rows,
                         uint32_t *count);
int sfc_ref_head_logits(struct sfc_head_part *head, struct sfc_head_logits_item *items, size_t n,
                        bool add, struct sfc_error *err);
int sfc_ref_head_gradient(struct sfc_head_part *head, struct sfc_head_gradient_item *items,
                          size_t n, bool add, struct sfc_error *err);
int sfc_ref_head_commit(struct sfc_head_part *head, const uint32_t *slots, double lr,
                        struct sfc_error *err);
bool sfc_ref_head_finite(const struct sfc_head_part *head, const uint32_t *slots);
void sfc_ref_head_inverse_norms(const struct sfc_head_part *head, double *out);
void sfc_ref_head_extents(struct sfc_head_part *head, struct sfc_extent *out);

/* kernels/reference/dense.c */
int sfc_ref_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err);
int sfc_ref_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_dense_part **out,
                      struct sfc_error *err);
void sfc_ref_dense_free(struct sfc_dense_part *dense);
int sfc_ref_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_ref_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values,
                        struct sfc_error *err);
int sfc_ref_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                       struct sfc_error *err);
int sfc_ref_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err);
int sfc_ref_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                          struct sfc_dense_sum *out, struct sfc_error *err);
int sfc_ref_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err);
int sfc_ref_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err);
void sfc_ref_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out);
int sfc_ref_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                         struct sfc_error *err);

#endif
