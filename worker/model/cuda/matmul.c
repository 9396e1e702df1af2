#include "worker/model/cuda/matmul.h"

#include <string.h>

#define CANDIDATES 16

int sfc_cublas_said(const struct sfc_gpu *gpu, cublasStatus_t status, const char *what,
                    struct sfc_error *err)
{
    if (status == CUBLAS_STATUS_SUCCESS) {
        return SFC_OK;
    }
    bool memory = status == CUBLAS_STATUS_ALLOC_FAILED;
    cudaGetLastError(); /* told here */
    return sfc_fail(err, memory ? SFC_ENOMEM : SFC_EDEVICE, "%s: %s: %s (cuBLAS status %d); %s",
                    gpu->label, what, cublasLtGetStatusString(status), (int)status,
                    sfc_gpu_advice(memory ? cudaErrorMemoryAllocation : cudaErrorUnknown));
}

static cudaDataType_t type_of(enum sfc_number number)
{
    switch (number) {
    case SFC_NUMBER_BF16:
        return CUDA_R_16BF;
    case SFC_NUMBER_F16:
        return CUDA_R_16F;
    case SFC_NUMBER_F32:
        break;
    }
    return CUDA_R_32F;
}

/* cuBLASLt's matrices are column-major, so ours are theirs transposed, and a product a b is theirs
 * of b' by a': "first" is our right operand. */
static cublasStatus_t describe(struct sfc_matmul *m, enum sfc_number number,
                               struct sfc_matmul_shape s, enum sfc_conv_direction direction)
{
    bool forward = direction == SFC_CONV_FORWARD, weights = direction == SFC_CONV_WEIGHTS;
    cudaDataType_t type = type_of(number);
    cublasOperation_t first = forward ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = weights ? CUBLAS_OP_T : CUBLAS_OP_N;
    size_t first_rows = weights ? s.rows : s.outer; /* x or w, [.., inner] */
    size_t second_columns = forward ? s.inner : s.outer;
    size_t rows = weights ? s.outer : s.rows, columns = forward ? s.outer : s.inner;
    cublasStatus_t status = cublasLtMatmulDescInit(&m->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(&m->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first,
                                                sizeof first);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(&m->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                                sizeof second);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&m->first, type, s.inner, first_rows, (int64_t)s.inner);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&m->second, type, second_columns, s.rows,
                                          (int64_t)second_columns);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&m->result, weights ? CUDA_R_32F : type, columns, rows,
                                          (int64_t)columns);
    }
    return status;
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t preference)
{
    const uint64_t workspace = SFC_WORKSPACE_LIMIT;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t status = cublasLtMatmulPreferenceInit(preference);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    }
    return status;
}

static int config_of(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t what)
{
    int value = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, what, &value, sizeof value, &written) !=
        CUBLAS_STATUS_SUCCESS) {
        return -1;
    }
    return value;
}

int sfc_matmul_init(struct sfc_matmul *m, const struct sfc_gpu *gpu, cublasLtHandle_t handle,
                    struct sfc_matmul_shape shape, enum sfc_conv_direction direction,
                    struct sfc_error *err)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int count = 0;
    memset(m, 0, sizeof *m);
    cublasStatus_t status = describe(m, gpu->number, shape, direction);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = prefer(&preference);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulAlgoGetHeuristic(handle, &m->desc, &m->first, &m->second, &m->result,
                                                &m->result, &preference, CANDIDATES, found, &count);
    }
    for (int i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; i++) {
        if (found[i].state == CUBLAS_STATUS_SUCCESS &&
            found[i].workspaceSize <= SFC_WORKSPACE_LIMIT) {
            m->algo = found[i].algo;
            m->workspace = found[i].workspaceSize;
            m->number = config_of(&m->algo, CUBLASLT_ALGO_CONFIG_ID);
            m->split = config_of(&m->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
            return SFC_OK;
        }
    }
    return sfc_cublas_said(gpu,
                           status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status,
                           "choice of an algorithm for a product", err);
}

int sfc_matmul_run(const struct sfc_matmul *m, const struct sfc_gpu *gpu, cublasLtHandle_t handle,
                   cudaStream_t stream, const void *a, const void *b, void *out, void *workspace,
                   struct sfc_error *err)
{
    struct sfc_matmul call = *m; /* cuBLASLt's descriptors are not const */
    float one = 1, zero = 0;
    return sfc_cublas_said(gpu,
                           cublasLtMatmul(handle, &call.desc, &one, b, &call.first, a, &call.second,
                                          &zero, out, &call.result, out, &call.result, &call.algo,
                                          workspace, call.workspace, stream),
                           "cublasLtMatmul", err);
}
