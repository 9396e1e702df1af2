/* One matrix product of a fixed shape on one thread, by oneDNN's matmul primitive on dense
 * operands. oneDNN 2.6 changes its algorithm (and bits) silently for strided operands, so there are
 * none here. */
#ifndef SFC_KERNELS_CPU_GEMM_H
#define SFC_KERNELS_CPU_GEMM_H

#include <dnnl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_gemm_shape {
    int64_t m, n, k;
    bool a_transposed; /* A is stored as [k, m] instead of [m, k] */
    bool b_transposed; /* B is stored as [n, k] instead of [k, n] */
    bool bf16;         /* A and B are bf16; C and all sums are f32 */
    bool accumulate;   /* C += A B instead of C = A B */
    bool b_packed;     /* B is laid out by sfc_gemm_pack */
};

/* Belongs to the thread that made it. */
struct sfc_gemm {
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c, scratchpad;
    size_t scratch_bytes;
    bool brg; /* a brgemm kernel: rows of A and columns of B keep their bits for every m and n */
    /* A packed B is cut into strips of so many columns, [k, strip] each, one after the other: what
     * brgemm makes of a plain B in every product. 0: oneDNN wants no such strips, B stays plain. */
    size_t strip;
    struct sfc_gemm_shape shape;
};

/* Scratch bytes that a product of this shape needs, without making it; call with OpenMP set to one
 * thread (a pool worker). */
int sfc_gemm_scratch(dnnl_engine_t engine, const struct sfc_gemm_shape *shape, size_t *bytes,
                     struct sfc_error *err);
/* gemm is zeroed memory; sfc_gemm_close accepts a half-made or never made one. */
int sfc_gemm_init(struct sfc_gemm *gemm, dnnl_engine_t engine, const struct sfc_gemm_shape *shape,
                  struct sfc_error *err);
void sfc_gemm_close(struct sfc_gemm *gemm);
/* Puts rows [first, first + n) of B as it is stored plainly (of [n, k] if b_transposed, else [k,
 * n]) into `out`, the B of a product whose B is packed; it has as many numbers as the plain one. */
void sfc_gemm_pack(const struct sfc_gemm *gemm, const void *rows, size_t first, size_t n,
                   void *out);
/* c[m, n] = A B or, by the shape, += A B. scratch: scratch_bytes, 64-byte aligned. SFC_EDEVICE when
 * oneDNN refuses. */
int sfc_gemm_run(struct sfc_gemm *gemm, dnnl_stream_t stream, const void *a, const void *b,
                 float *c, void *scratch, struct sfc_error *err);

#endif
