/* Backbones: described as tables of layers (worker/model/backbones.c), computed on a device
 * (worker/model/device.h), forward and backward. One lane = one thread that computes one
 * micro-batch at a time; the bits of a micro-batch do not depend on which lane, how many lanes, or
 * what a lane computed before.
 *
 * The parameter vector of a backbone is all its segments one after another (weights, then nothing
 * hidden: batch-norm running means and variances are segments with role STATISTIC). The gradient
 * vector has the same layout; where a statistic stands, it carries the micro-batch's batch mean or
 * unbiased variance. */
#ifndef SFC_WORKER_MODEL_MODEL_H
#define SFC_WORKER_MODEL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "worker/model/device.h"

struct sfc_model_input {
    uint32_t width, height, channels;
};

enum sfc_param_role { SFC_PARAM_WEIGHT, SFC_PARAM_WEIGHT_NO_DECAY, SFC_PARAM_STATISTIC };

struct sfc_param {
    char name[64]; /* e.g. "conv2.weight" */
    uint64_t shape[4];
    uint32_t rank;
    uint64_t offset, length; /* in floats, in the parameter vector */
    enum sfc_param_role role;
    double init_mean, init_std;
};

struct sfc_model;
struct sfc_lane;

/* name: "tiny" (32 x 32 x 1) or "mbf" (MobileFaceNet, 112 x 112 x 3); dim: embedding width.
 * SFC_ENOTFOUND lists the known names; SFC_EINVAL: the input does not fit. */
int sfc_model_new(const char *name, struct sfc_model_input input, uint32_t dim,
                  struct sfc_model **out, struct sfc_error *err);
void sfc_model_free(struct sfc_model *model);           /* NULL is fine; after all its lanes */
uint64_t sfc_model_size(const struct sfc_model *model); /* floats in the parameter vector */
const struct sfc_param *sfc_model_params(const struct sfc_model *model, size_t *count);

/* batch: rows of a micro-batch. Primitives, activations and scratch are allocated here, nothing
 * later but what oneDNN takes for the length of a call (argument lists, 74 KB in its GEMM). Must be
 * created and used on the same thread, whose OpenMP thread count a lane on the CPU sets to 1. */
int sfc_lane_new(const struct sfc_lane_device *device, const struct sfc_model *model,
                 uint32_t batch, struct sfc_lane **out, struct sfc_error *err);
void sfc_lane_free(struct sfc_lane *lane); /* NULL is fine */
/* Bytes of this machine's memory. */
uint64_t sfc_lane_memory(const struct sfc_lane *lane);
/* For people: memory, and on a device what computes which layer. Cut at size. */
void sfc_lane_describe(const struct sfc_lane *lane, char *out, size_t size);

/* Training forward: images [batch, channels, height, width] -> features [batch, dim], batch norm by
 * the micro-batch's own statistics; keeps what backward needs. params [size] must stay unchanged
 * until backward. SFC_EINVAL: a batch norm sees a single row (batch 1). */
int sfc_lane_forward(struct sfc_lane *lane, const float *params, const float *images,
                     float *features, struct sfc_error *err);
/* d loss / d features [batch, dim] -> gradient [size] (every place overwritten). SFC_ESTATE: no
 * training forward since the lane was made or last embedded. */
int sfc_lane_backward(struct sfc_lane *lane, const float *dfeatures, float *gradient,
                      struct sfc_error *err);
/* Inference with the running statistics: a row's features do not depend on the other rows. */
int sfc_lane_embed(struct sfc_lane *lane, const float *params, const float *images, float *features,
                   struct sfc_error *err);

#endif
