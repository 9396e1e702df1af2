/* A CUDA device that computes backbones (private). Every call of CUDA, cuDNN or cuBLASLt goes
 * through one of the checks, which name the call, the device and what to do. */
#ifndef SFC_WORKER_MODEL_CUDA_GPU_H
#define SFC_WORKER_MODEL_CUDA_GPU_H

#include <cuda_runtime_api.h>

#include "worker/model/cuda/kernels.h"
#include "worker/model/lane_impl.h"

struct sfc_gpu {
    struct sfc_lane_device base;
    int device, capability; /* 10 * major + minor */
    enum sfc_precision precision;
    enum sfc_number number; /* that goes with it */
    char label[160];        /* "cuda:0 (NVIDIA H100 80GB HBM3)": for messages */
    char name[128];         /* of the device, without blanks: for the numerics class */
};

/* SFC_EUNSUPPORTED: no such device, a driver that is too old, or not this precision on it. */
int sfc_gpu_open(unsigned device, enum sfc_precision precision, const struct sfc_lane_device **out,
                 struct sfc_error *err);
/* SFC_OK, or SFC_EDEVICE (SFC_ENOMEM for out of memory). */
int sfc_gpu_check(const struct sfc_gpu *gpu, cudaError_t status, const char *what,
                  struct sfc_error *err);
/* What to do about a device that failed, for messages. */
const char *sfc_gpu_advice(cudaError_t status);
/* Makes the device the calling thread's: first thing in every entry point. */
int sfc_gpu_enter(const struct sfc_gpu *gpu, struct sfc_error *err);

/* lane.c */
int sfc_gpu_lane_new(const struct sfc_lane_device *device, const struct sfc_model *model,
                     uint32_t batch, struct sfc_lane **out, struct sfc_error *err);

#endif
