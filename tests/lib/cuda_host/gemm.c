/* kernels/cuda/gemm.h by plain loops: f32 sums in the order of k. */
#include "kernels/cuda/gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/hd/rounding.h"
#include "tests/lib/cuda_host/internal.h"

#define WORKSPACE_BYTES ((size_t)4096)

struct product {
    struct sfc_cuda_gemm_shape shape;
    const char *a, *b;
    char *c;
    void *workspace;
};

#define ALIGNMENT 32 /* what kernels/cuda/gemm.c tells cuBLASLt of operands */

static bool is_aligned(const struct product *p, size_t element)
{
    const struct sfc_cuda_gemm_shape *s = &p->shape;
    return (uintptr_t)p->a % ALIGNMENT == 0 && (uintptr_t)p->b % ALIGNMENT == 0 &&
           (uintptr_t)p->c % 16 == 0 && s->lda * element % ALIGNMENT == 0 &&
           s->ldb * element % ALIGNMENT == 0;
}

/* A dense [rows, columns] of floats of an operand as it is stored. */
static float *widen(const struct sfc_cuda_gemm_shape *s, const char *from, size_t ld, size_t rows,
                    size_t columns)
{
    float *out = malloc(rows * columns * sizeof *out);
    if (!out)
        sfc_host_die("no memory");
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < columns; k++) {
            uint32_t bits;
            uint16_t half;
            if (s->bf16) {
                memcpy(&half, from + (r * ld + k) * sizeof half, sizeof half);
                bits = (uint32_t)half << 16;
            } else {
                memcpy(&bits, from + (r * ld + k) * sizeof bits, sizeof bits);
            }
            memcpy(&out[r * columns + k], &bits, sizeof bits);
        }
    return out;
}

static float *transposed(float *in, size_t rows, size_t columns)
{
    float *out = malloc(rows * columns * sizeof *out);
    if (!out)
        sfc_host_die("no memory");
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < columns; k++)
            out[k * rows + r] = in[r * columns + k];
    free(in);
    return out;
}

/* c[m, n] = a[m, k] b[k, n], all dense. */
static void multiply(const float *a, const float *b, float *c, size_t m, size_t n, size_t depth)
{
    for (size_t i = 0; i < m; i++) {
        float *restrict row = c + i * n;
        memset(row, 0, n * sizeof *row);
        for (size_t k = 0; k < depth; k++) {
            const float x = a[i * depth + k], *restrict other = b + k * n;
            for (size_t j = 0; j < n; j++)
                row[j] += x * other[j];
        }
    }
}

static size_t result_bytes(const struct sfc_cuda_gemm_shape *s)
{
    return s->narrow ? sizeof(uint16_t) : sizeof(float);
}

static void store(const struct sfc_cuda_gemm_shape *s, const float *from, char *to)
{
    for (size_t i = 0; i < s->rows * s->columns; i++) {
        uint16_t half = sfc_hd_bf16_nearest(from[i]);
        if (s->narrow)
            memcpy(to + i * sizeof half, &half, sizeof half);
        else
            memcpy(to + i * sizeof *from, &from[i], sizeof *from);
    }
}

static void do_one(const struct product *p, size_t index)
{
    const struct sfc_cuda_gemm_shape *s = &p->shape;
    size_t element = s->bf16 ? sizeof(uint16_t) : sizeof(float);
    const char *a_at = p->a + index * s->depth * s->lda * element;
    const char *b_at = p->b + index * s->depth * s->ldb * element;
    float *a, *b;
    if (s->product == SFC_CUDA_GRADIENT)
        a = transposed(widen(s, a_at, s->lda, s->depth, s->rows), s->depth, s->rows);
    else
        a = widen(s, a_at, s->lda, s->rows, s->depth);
    if (s->product == SFC_CUDA_LOGITS)
        b = transposed(widen(s, b_at, s->ldb, s->columns, s->depth), s->columns, s->depth);
    else
        b = widen(s, b_at, s->ldb, s->depth, s->columns);
    float *c = malloc(s->rows * s->columns * sizeof *c);
    if (!c)
        sfc_host_die("no memory");
    multiply(a, b, c, s->rows, s->columns, s->depth);
    store(s, c, p->c + index * s->rows * s->columns * result_bytes(s));
    free(a);
    free(b);
    free(c);
}

static void must_be_on_device(const void *at, size_t bytes, const char *what)
{
    if (sfc_host_place(at, bytes, what) != SFC_HOST_DEVICE)
        sfc_host_die("%s is no memory of the device", what);
}

static void check_operands(const struct product *p)
{
    const struct sfc_cuda_gemm_shape *s = &p->shape;
    size_t element = s->bf16 ? sizeof(uint16_t) : sizeof(float);
    bool a_by_depth = s->product == SFC_CUDA_GRADIENT, b_by_columns = s->product == SFC_CUDA_LOGITS;
    size_t a_rows = a_by_depth ? s->depth * s->batch : s->rows;
    size_t a_width = a_by_depth ? s->rows : s->depth;
    size_t b_rows = b_by_columns ? s->columns : s->depth * s->batch;
    size_t b_width = b_by_columns ? s->depth : s->columns;
    must_be_on_device(p->a, ((a_rows - 1) * s->lda + a_width) * element, "a product's a");
    must_be_on_device(p->b, ((b_rows - 1) * s->ldb + b_width) * element, "a product's b");
    must_be_on_device(p->c, s->batch * s->rows * s->columns * result_bytes(s), "a product's c");
    must_be_on_device(p->workspace, WORKSPACE_BYTES, "a product's workspace");
    if (!is_aligned(p, element))
        sfc_host_die("a product's operands are not aligned to %d bytes", ALIGNMENT);
}

static void do_product_here(void *arg)
{
    const struct product *p = arg;
    do_one(p, 0);
}

void sfc_host_product(const struct sfc_cuda_gemm_shape *shape, const void *a, const void *b,
                      float *c, cudaStream_t stream)
{
    struct product *p = malloc(sizeof *p);
    if (!p)
        sfc_host_die("no memory");
    *p = (struct product){*shape, a, b, (char *)c, NULL};
    sfc_host_enqueue(stream, do_product_here, free, p);
}

static void do_product(void *arg)
{
    const struct product *p = arg;
    check_operands(p);
    sfc_host_poison(p->workspace, WORKSPACE_BYTES);
    for (size_t i = 0; i < p->shape.batch; i++)
        do_one(p, i);
}

/* Kept where the real one has its algorithm. */
static size_t step_of(const struct sfc_cuda_gemm *gemm)
{
    return (size_t)gemm->algo.data[0];
}

int sfc_cuda_gemm_init(struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                       const struct sfc_cuda_gemm_shape *shape, size_t step, struct sfc_error *err)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    sfc_host_return(cudaSuccess);
    if (rc)
        return sfc_cublas_check(cuda, CUBLAS_STATUS_NOT_SUPPORTED,
                                "cublasLtMatmulAlgoGetHeuristic of a product", err);
    *gemm = (struct sfc_cuda_gemm){.shape = *shape, .workspace_bytes = WORKSPACE_BYTES};
    gemm->algo.data[0] = step;
    snprintf(gemm->name, sizeof gemm->name, "loops");
    return SFC_OK;
}

/* What gemm.h lets differ from the shape that the product was made for. */
static bool was_made_for(const struct sfc_cuda_gemm *gemm, const struct sfc_cuda_gemm_shape *s)
{
    struct sfc_cuda_gemm_shape made = gemm->shape;
    size_t *varies = s->product == SFC_CUDA_LOGITS ? &made.columns : &made.rows;
    size_t now = s->product == SFC_CUDA_LOGITS ? s->columns : s->rows;
    if (s->product != SFC_CUDA_COMMIT && now > 0 && now <= *varies && now % step_of(gemm) == 0)
        *varies = now;
    return s->product == made.product && s->bf16 == made.bf16 && s->rows == made.rows &&
           s->narrow == made.narrow && s->columns == made.columns && s->depth == made.depth &&
           s->batch == made.batch;
}

int sfc_cuda_gemm_run(const struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                      const struct sfc_cuda_gemm_shape *shape, const void *a, const void *b,
                      void *c, void *workspace, cudaStream_t stream, struct sfc_error *err)
{
    if (!was_made_for(gemm, shape))
        sfc_host_die("product %d of %zu x %zu x %zu x %zu is not what it was made for",
                     (int)shape->product, shape->batch, shape->rows, shape->columns, shape->depth);
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc) {
        struct product *p = malloc(sizeof *p);
        if (!p)
            sfc_host_die("no memory");
        *p = (struct product){*shape, a, b, c, workspace};
        sfc_host_enqueue(stream, do_product, free, p);
    }
    sfc_host_return(cudaSuccess);
    return sfc_cublas_check(cuda, rc ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS,
                            "cublasLtMatmul", err);
}

int sfc_cuda_gemm_fingerprint(const struct sfc_cuda *cuda, uint32_t *out, struct sfc_error *err)
{
    (void)cuda;
    (void)err;
    *out = 0; /* one algorithm, ever */
    return SFC_OK;
}
