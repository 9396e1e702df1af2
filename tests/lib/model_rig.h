/* A backbone with inputs, on any device, against its reference in double. What finds something
 * wrong calls rig_fail, which the program has. */
#ifndef SFC_TESTS_LIB_MODEL_RIG_H
#define SFC_TESTS_LIB_MODEL_RIG_H

#include "tests/unit/model_reference.h"
#include "worker/model/device.h"

__attribute__((noreturn, format(printf, 1, 2))) void rig_fail(const char *format, ...);

/* Small backbones: together every kind of layer, on images of odd sizes. */
struct rig_case {
    const char *name;
    const struct sfc_row *rows;
    size_t count;
    struct sfc_model_input input;
};
extern const struct rig_case rig_cases[];
extern const size_t rig_case_count;

struct sfc_model *rig_build(const struct rig_case *of, uint32_t dim);
struct sfc_model *rig_known(const char *name, uint32_t dim); /* "tiny" or "mbf" */

/* One model with inputs, the lane's answers and the reference. */
struct rig {
    struct sfc_model *model;
    struct sfc_lane *lane;
    struct reference reference;
    uint32_t batch;
    size_t feature_count;
    float *params, *images, *features, *dfeatures, *gradient;
    double *exact_params;
};

/* Takes the model over. */
void rig_init(struct rig *s, const struct sfc_lane_device *device, struct sfc_model *model,
              uint32_t batch, uint64_t seed);
void rig_close(struct rig *s);
/* Forward and backward. */
void rig_train(struct rig *s);

/* The largest difference, in units of the largest exact number. */
void rig_check_features(const struct rig *s, const double *exact, double tolerance);
/* Statistics stand in the gradient vector as what the micro-batch measured. After the reference's
 * training forward. */
void rig_check_statistics(const struct rig *s, double tolerance);
/* At most `most` evenly spread parameters of each segment against finite differences. */
void rig_check_gradient(struct rig *s, uint64_t most, double tolerance);
/* Along the gradient, each segment scaled to length 1: catches a wrong part anywhere. */
void rig_check_directions(struct rig *s, double tolerance);

/* How near a lane of 16 bits is to one of f32. What 16 bits round may change the sign of a PReLU's
 * input, and one sign near the end changes a small backbone's gradient by more than a tenth: as the
 * parameters are, gradients are only about the same. So there are two kinds of parameters more that
 * let rounding do no such thing, and each asks for what it can. */
struct rig_nearness {
    const char *name;
    enum sfc_precision precision;
    void (*prepare)(struct rig *s); /* before the lane runs; NULL: parameters as they are */
    /* Largest distances |a - b| / |b|: of all features, of the gradient, and of the gradient of
     * one product's weights, which may be a small part of the whole. */
    double features, gradient, weights;
};
extern const struct rig_nearness rig_nearness[];
extern const size_t rig_nearness_count;
/* Prints the distances. */
void rig_check_near(const struct rig *s, const struct rig *exact, const struct rig_nearness *want);

#endif
