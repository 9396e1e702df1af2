/* Where lanes compute: the CPU, or a CUDA device with cuDNN (a plugin, proto/base/plugin.h). */
#ifndef SFC_WORKER_MODEL_DEVICE_H
#define SFC_WORKER_MODEL_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

/* Of activations, their gradients, and weights inside of products. Sums are f32 or wider;
 * parameters, statistics and gradients of parameters are f32 outside of the lane always. */
enum sfc_precision { SFC_PRECISION_F32, SFC_PRECISION_BF16, SFC_PRECISION_F16 };

/* "f32", "bf16" or "fp16". SFC_EINVAL: another word. */
int sfc_precision_parse(const char *text, enum sfc_precision *out, struct sfc_error *err);
const char *sfc_precision_name(enum sfc_precision precision);

struct sfc_lane_device;

/* name: "cpu" (f32 alone), "cuda" (device 0) or "cuda:N". SFC_EINVAL: another name.
 * SFC_EUNSUPPORTED: no plugin, no such device, or not this precision on it, with the reason and
 * what to do. */
int sfc_lane_device_open(const char *name, enum sfc_precision precision,
                         const struct sfc_lane_device **out, struct sfc_error *err);
/* After all its lanes. NULL is fine. */
void sfc_lane_device_close(const struct sfc_lane_device *device);
/* The CPU; needs no closing. */
const struct sfc_lane_device *sfc_lane_device_cpu(void);
/* What the bits of a lane depend on beside its inputs: kind of processor, libraries with versions,
 * precision. Zero-terminated, cut at `size`. */
void sfc_lane_device_numerics(const struct sfc_lane_device *device, char *out, size_t size);

#endif
