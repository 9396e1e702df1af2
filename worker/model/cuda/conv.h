/* A convolution by cuDNN's graph API, one of its three directions (private to products.c). */
#ifndef SFC_WORKER_MODEL_CUDA_CONV_H
#define SFC_WORKER_MODEL_CUDA_CONV_H

#include <cudnn.h>

#include "worker/model/cuda/products.h"

#define SFC_WORKSPACE_LIMIT ((size_t)256 << 20) /* of any product; larger ones are passed over */

enum sfc_conv_direction { SFC_CONV_FORWARD, SFC_CONV_DATA, SFC_CONV_WEIGHTS };

/* For whom an engine is chosen: the device of a handle, or one that is not here, by its properties
 * (then it is only chosen, never run). */
struct sfc_conv_target {
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t properties; /* instead of handle */
};

struct sfc_conv {
    cudnnBackendDescriptor_t plan; /* NULL: no engine does */
    size_t workspace;
    int64_t engine; /* cuDNN's number of it */
};

/* Takes the first engine that cuDNN's heuristics propose and that is deterministic, compiled
 * before, sums in f32 what it is given in full (no TF32, no Winograd, no FFT) and finds
 * SFC_WORKSPACE_LIMIT enough. conv->plan NULL: there is none. */
int sfc_conv_init(struct sfc_conv *conv, const struct sfc_gpu *gpu,
                  const struct sfc_conv_target *target, const struct sfc_layer *layer,
                  uint32_t batch, enum sfc_conv_direction direction, struct sfc_error *err);
void sfc_conv_close(struct sfc_conv *conv); /* zeroed is fine */
/* x, w, y: the layer's, or their gradients, as the direction has it. */
int sfc_conv_run(const struct sfc_conv *conv, const struct sfc_gpu *gpu, cudnnHandle_t handle,
                 const void *x, const void *w, const void *y, void *workspace,
                 struct sfc_error *err);

int sfc_cudnn_check(const struct sfc_gpu *gpu, cudnnStatus_t status, const char *what,
                    struct sfc_error *err);

#endif
