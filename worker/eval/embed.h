/* Embeddings of many images with a trained backbone: inference with running statistics, image plus
 * its mirror where the data set allows that, L2-normalised. */
#ifndef SFC_WORKER_EVAL_EMBED_H
#define SFC_WORKER_EVAL_EMBED_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "worker/model/model.h"

/* Writes image `index` as the backbone reads it: planar [channels, height, width]. Called by
 * several threads at once, each with its own thread number. */
typedef int (*sfc_image_source)(void *ctx, unsigned thread, uint64_t index, float *image,
                                struct sfc_error *err);

struct sfc_embed_job {
    const struct sfc_lane_device *device;
    const struct sfc_model *model;
    const float *params; /* [sfc_model_size] */
    struct sfc_model_input input;
    uint32_t dim;
    bool flip;        /* add the embedding of the mirrored image */
    unsigned threads; /* >= 1; never changes the result */
    uint64_t count;
    sfc_image_source source;
    void *ctx;
    void (*progress)(void *ctx, uint64_t done,
                     uint64_t total); /* NULL: silent; any thread, in turn */
    void *progress_ctx;
};

/* out [count, dim]: unit rows. The first error of any thread ends the job. */
int sfc_embed(const struct sfc_embed_job *job, float *out, struct sfc_error *err);

#endif
