/* kernels/cuda/fused.h by a product in plain loops and the kernels that other devices have. */
#include "kernels/cuda/fused.h"

#include <stdlib.h>

#include "kernels/cuda/gemm.h"
#include "tests/lib/cuda_host/internal.h"

bool sfc_cuda_fused_usable(int capability)
{
    (void)capability;
    return true;
}

static void check_matrix(const struct sfc_cuda_matrix *m, const char *what)
{
    const size_t aligned = 16;
    size_t bytes = ((m->rows - 1) * m->ld + m->columns) * sizeof(uint16_t);
    if (sfc_host_place(m->at, bytes, what) != SFC_HOST_DEVICE)
        sfc_host_die("%s is no memory of the device", what);
    if ((uintptr_t)m->at % aligned || m->ld * sizeof(uint16_t) % aligned)
        sfc_host_die("%s is not aligned to %zu bytes", what, aligned);
}

static void do_nothing(void *arg)
{
    (void)arg;
}

/* Room for a product, until what is in the stream by free_after has been done. */
static float *room(size_t rows, size_t columns)
{
    float *at = aligned_alloc(64, (rows * columns * sizeof *at + 63) / 64 * 64);
    if (!at)
        sfc_host_die("no memory");
    return at;
}

static void free_after(cudaStream_t stream, float *product)
{
    sfc_host_call(cudaSuccess);
    sfc_host_enqueue(stream, do_nothing, free, product);
    sfc_host_return(cudaSuccess);
}

/* w x' into new room. */
static float *multiply(const struct sfc_cuda_matrix *w, const struct sfc_cuda_matrix *x,
                       cudaStream_t stream)
{
    struct sfc_cuda_gemm_shape shape = {.product = SFC_CUDA_LOGITS,
                                        .bf16 = true,
                                        .rows = w->rows,
                                        .columns = x->rows,
                                        .depth = w->columns,
                                        .lda = w->ld,
                                        .ldb = x->ld,
                                        .batch = 1};
    float *c = room(shape.rows, shape.columns);
    sfc_host_product(&shape, w->at, x->at, c, stream);
    return c;
}

static cudaError_t begin(const struct sfc_cuda_matrix *w, const struct sfc_cuda_matrix *x,
                         cudaStream_t stream, float **out)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc) {
        check_matrix(w, "a fused product's rows of W");
        check_matrix(x, "a fused product's features");
        *out = multiply(w, x, stream);
    }
    return sfc_host_return(rc);
}

cudaError_t sfc_cuda_fused_logits(const struct sfc_cuda_logits *l, size_t chunks,
                                  const struct sfc_cuda_matrix *w, const struct sfc_cuda_matrix *x,
                                  cudaStream_t stream)
{
    struct sfc_cuda_logits call = *l;
    float *product = NULL;
    if (l->chunk % SFC_CUDA_STRIP || chunks * l->chunk > w->rows)
        sfc_host_die("chunks of %u are no whole strips, or more than the tile", l->chunk);
    cudaError_t rc = begin(w, x, stream, &product);
    if (rc)
        return rc;
    call.product = product;
    rc = sfc_cuda_logits_tile(&call, chunks, stream);
    free_after(stream, product);
    return rc;
}
