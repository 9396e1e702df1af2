#include "kernels/cuda/gemm.h"

#include <stdio.h>
#include <string.h>

#define CANDIDATES      16
#define WORKSPACE_BYTES ((size_t)32 << 20)
#define ALIGNMENT       32 /* of operands: 16 columns of bf16, where a slot begins */

/* cuBLASLt's matrices are column-major, so ours are theirs transposed, and a product c = a b is
 * theirs of b' by a': "first" is our b, "second" our a. */
struct product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t first, second, c;
};

static int set_batch(cublasLtMatrixLayout_t layout, size_t count, size_t stride)
{
    int32_t n = (int32_t)count;
    int64_t step = (int64_t)stride;
    return cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n,
                                            sizeof n) ||
           cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                            &step, sizeof step);
}

static int describe(const struct sfc_cuda *cuda, const struct sfc_cuda_gemm_shape *s,
                    struct product *p, struct sfc_error *err)
{
    cudaDataType_t type = s->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    bool logits = s->product == SFC_CUDA_LOGITS, gradient = s->product == SFC_CUDA_GRADIENT;
    cublasOperation_t first = logits ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = gradient ? CUBLAS_OP_T : CUBLAS_OP_N;
    size_t m = s->columns, n = s->rows, k = s->depth;
    int bad =
        cublasLtMatmulDescInit(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first,
                                       sizeof first) ||
        cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                       sizeof second) ||
        cublasLtMatrixLayoutInit(&p->first, type, logits ? k : m, logits ? m : k,
                                 (int64_t)s->ldb) ||
        cublasLtMatrixLayoutInit(&p->second, type, gradient ? n : k, gradient ? k : n,
                                 (int64_t)s->lda) ||
        cublasLtMatrixLayoutInit(&p->c, s->narrow ? CUDA_R_16BF : CUDA_R_32F, m, n, (int64_t)m);
    if (!bad && gradient)
        bad = set_batch(&p->first, s->batch, k * s->ldb) ||
              set_batch(&p->second, s->batch, k * s->lda) || set_batch(&p->c, s->batch, m * n);
    return bad ? sfc_cublas_check(cuda, CUBLAS_STATUS_INVALID_VALUE, "description of a product",
                                  err)
               : SFC_OK;
}

static int config_of(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t what)
{
    int value = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, what, &value, sizeof value, &written))
        return -1;
    return value;
}

/* One sum from the first to the last term. */
static bool is_undivided(const cublasLtMatmulAlgo_t *algo)
{
    return config_of(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1 &&
           config_of(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Results of 128 x 128: at the sizes of a tile they fill a device better than the larger ones that
 * cuBLASLt puts first (measured on an H100, by up to a fifth). A rule and no measurement at run
 * time, so that equal devices choose alike. */
static bool is_preferred(const cublasLtMatmulAlgo_t *algo)
{
    return config_of(algo, CUBLASLT_ALGO_CONFIG_TILE_ID) == CUBLASLT_MATMUL_TILE_128x128;
}

static void name_algorithm(struct sfc_cuda_gemm *gemm)
{
    const cublasLtMatmulAlgo_t *a = &gemm->algo;
    uint16_t cluster = 0, inner = 0;
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster,
                                         sizeof cluster, &written);
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, &inner,
                                         sizeof inner, &written);
    snprintf(gemm->name, sizeof gemm->name, "%d.%d.%d.%d.%d.%u.%u",
             config_of(a, CUBLASLT_ALGO_CONFIG_ID), config_of(a, CUBLASLT_ALGO_CONFIG_TILE_ID),
             config_of(a, CUBLASLT_ALGO_CONFIG_STAGES_ID),
             config_of(a, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
             config_of(a, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION), cluster, inner);
}

/* The algorithm serves the shape, in no more than the workspace. */
static bool serves(const struct sfc_cuda *cuda, const cublasLtMatmulAlgo_t *algo,
                   const struct sfc_cuda_gemm_shape *shape, size_t *workspace)
{
    struct product p;
    struct sfc_error error = {0};
    cublasLtMatmulHeuristicResult_t result;
    if (describe(cuda, shape, &p, &error) ||
        cublasLtMatmulAlgoCheck(cuda->blas, &p.desc, &p.first, &p.second, &p.c, &p.c, algo,
                                &result) ||
        result.workspaceSize > WORKSPACE_BYTES)
        return false;
    *workspace = result.workspaceSize > *workspace ? result.workspaceSize : *workspace;
    return true;
}

/* Columns (LOGITS) or rows (GRADIENT) of a call may be any multiple of `step`, up to the shape's.
 */
static bool serves_all(const struct sfc_cuda *cuda, const cublasLtMatmulAlgo_t *algo,
                       const struct sfc_cuda_gemm_shape *shape, size_t step, size_t *workspace)
{
    struct sfc_cuda_gemm_shape s = *shape;
    size_t *varies = s.product == SFC_CUDA_LOGITS     ? &s.columns
                     : s.product == SFC_CUDA_GRADIENT ? &s.rows
                                                      : NULL;
    *workspace = 0;
    if (!serves(cuda, algo, &s, workspace))
        return false;
    for (size_t n = step;
         varies && n < (s.product == SFC_CUDA_LOGITS ? shape->columns : shape->rows); n *= 2) {
        *varies = n;
        if (!serves(cuda, algo, &s, workspace))
            return false;
    }
    return true;
}

static cublasStatus_t set_preference(cublasLtMatmulPreference_t preference)
{
    const uint64_t workspace = WORKSPACE_BYTES;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = ALIGNMENT;
    cublasStatus_t status = cublasLtMatmulPreferenceInit(preference);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment);
    return status;
}

int sfc_cuda_gemm_init(struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                       const struct sfc_cuda_gemm_shape *shape, size_t step, struct sfc_error *err)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    struct product p;
    int count = 0, rc = describe(cuda, shape, &p, err);
    if (rc)
        return rc;
    cublasStatus_t status = set_preference(&preference);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(cuda->blas, &p.desc, &p.first, &p.second, &p.c,
                                                &p.c, &preference, CANDIDATES, found, &count);
    if (status)
        return sfc_cublas_check(cuda, status, "cublasLtMatmulAlgoGetHeuristic of a product", err);
    gemm->shape = *shape;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < count; i++)
            if (!found[i].state && is_undivided(&found[i].algo) &&
                (pass || is_preferred(&found[i].algo)) &&
                serves_all(cuda, &found[i].algo, shape, step, &gemm->workspace_bytes)) {
                gemm->algo = found[i].algo;
                name_algorithm(gemm);
                return SFC_OK;
            }
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "%s: cuBLASLt has no %s product of %zu x %zu x %zu that adds up in one order; "
                    "use another --backend",
                    cuda->label, shape->bf16 ? "bf16" : "f32", shape->rows, shape->columns,
                    shape->depth);
}

int sfc_cuda_gemm_run(const struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                      const struct sfc_cuda_gemm_shape *shape, const void *a, const void *b,
                      void *c, void *workspace, cudaStream_t stream, struct sfc_error *err)
{
    const float one = 1, none = 0;
    struct product p;
    int rc = describe(cuda, shape, &p, err);
    if (rc)
        return rc;
    return sfc_cublas_check(cuda,
                            cublasLtMatmul(cuda->blas, &p.desc, &one, b, &p.first, a, &p.second,
                                           &none, c, &p.c, c, &p.c, &gemm->algo, workspace,
                                           gemm->workspace_bytes, stream),
                            "cublasLtMatmul", err);
}

/* ---- fingerprint */

#define USUAL_ROWS  8320 /* ten chunks of 832, as in blocks of 8192 at a rate of 0.1 */
#define USUAL_CHUNK 832
#define USUAL_DIM   512

static struct sfc_cuda_gemm_shape usual_shape(enum sfc_cuda_product product, bool bf16,
                                              size_t batch)
{
    struct sfc_cuda_gemm_shape s = {.product = product, .bf16 = bf16, .batch = 1};
    s.rows = product == SFC_CUDA_GRADIENT ? batch : USUAL_ROWS;
    s.columns = product == SFC_CUDA_LOGITS ? batch : USUAL_DIM;
    s.depth = product == SFC_CUDA_LOGITS     ? USUAL_DIM
              : product == SFC_CUDA_GRADIENT ? USUAL_CHUNK
                                             : batch;
    s.lda = product == SFC_CUDA_LOGITS ? USUAL_DIM : batch;
    s.ldb = USUAL_DIM;
    if (product == SFC_CUDA_GRADIENT) {
        s.batch = USUAL_ROWS / USUAL_CHUNK;
        s.narrow = bf16;
    }
    return s;
}

/* FNV-1a. */
static uint32_t mix(uint32_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 16777619u;
    return hash;
}

int sfc_cuda_gemm_fingerprint(const struct sfc_cuda *cuda, uint32_t *out, struct sfc_error *err)
{
    static const size_t batches[] = {128, 1024};
    uint32_t hash = 2166136261u;
    for (int i = 0; i < 2 * 2 * SFC_CUDA_PRODUCTS; i++) {
        bool bf16 = i / SFC_CUDA_PRODUCTS % 2;
        if (bf16 && !cuda->has_bf16)
            continue;
        size_t batch = batches[i / SFC_CUDA_PRODUCTS / 2];
        struct sfc_cuda_gemm gemm = {0};
        struct sfc_cuda_gemm_shape shape =
            usual_shape((enum sfc_cuda_product)(i % SFC_CUDA_PRODUCTS), bf16, batch);
        int rc = sfc_cuda_gemm_init(&gemm, cuda, &shape, batch, err);
        if (rc)
            return rc;
        hash = mix(hash, gemm.name);
    }
    *out = hash;
    return SFC_OK;
}
