/* A labelled image set in the insightface layout: train.rec + train.idx (MXNet RecordIO, record 0
 * holds the ranges), beside it meta.json (written by `shardfc data glyphs|pack`): width, height,
 * channels, flip. Without meta.json: 112 x 112 RGB with flip, the insightface convention. Sample
 * ids are 0..samples-1 in the order of the index; class ids are the labels in the records.
 *
 * Threads: an open set may be read by many threads at once, each with its own decoder. */
#ifndef SFC_WORKER_DATA_DATASET_H
#define SFC_WORKER_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_dataset;
struct sfc_decoder; /* scratch of one reading thread: record buffer, JPEG state */

struct sfc_dataset_info {
    uint64_t samples;
    uint64_t classes;                 /* largest label + 1 */
    uint32_t width, height, channels; /* of the images that a decoder returns */
    bool flip;                        /* horizontal flip keeps the identity */
    char digest[33]; /* XXH3-128 in hex of index, labels and meta (with it, contents): equal
                      * wherever the set is equal */
};

struct sfc_augment {
    double affine, blur, noise; /* proto Augmentation; all 0 = none */
    bool flip;                  /* with probability 1/2; only where the set allows it */
};

/* Opens DIR/train.rec (or a single FILE.rec with FILE.idx, e.g. holdout.rec). Errors name the file
 * and the record. */
int sfc_dataset_open(const char *path, struct sfc_dataset **out, struct sfc_error *err);
void sfc_dataset_close(struct sfc_dataset *set); /* NULL is fine */
const struct sfc_dataset_info *sfc_dataset_info(const struct sfc_dataset *set);
/* The digest that a set would have whose samples are the first `samples` of this one, written by
 * ShardFC like this one: reads them. SFC_EINVAL: there can't be such a set, as more samples of an
 * identity follow, or identities are not one after the other. */
int sfc_dataset_begin(const struct sfc_dataset *set, uint64_t samples, char out[33],
                      struct sfc_error *err);
/* The label of a sample, known since open. */
uint64_t sfc_dataset_label(const struct sfc_dataset *set, uint64_t sample);
uint64_t sfc_dataset_bytes(const struct sfc_dataset *set); /* of the record file */

int sfc_decoder_new(const struct sfc_dataset *set, struct sfc_decoder **out, struct sfc_error *err);
/* Without a data set: for sfc_decoder_jpeg alone; of info only width, height and channels count. */
int sfc_decoder_new_plain(const struct sfc_dataset_info *info, struct sfc_decoder **out,
                          struct sfc_error *err);
void sfc_decoder_free(struct sfc_decoder *decoder);

/* Image of a sample, planar [channels, height, width], pixels p/127.5 - 1 for colour sets and
 * p/127.5 for grey sets (0..2). augment NULL: as stored. Otherwise changed as a pure function of
 * (seed, epoch, sample). SFC_ECORRUPT: record or JPEG broken; the message names file, record,
 * cause. */
int sfc_decoder_read(struct sfc_decoder *decoder, uint64_t sample,
                     const struct sfc_augment *augment, uint64_t seed, uint64_t epoch, float *image,
                     struct sfc_error *err);
/* The same conversion for a JPEG in memory (verification .bin files), without augmentation. */
int sfc_decoder_jpeg(struct sfc_decoder *decoder, const uint8_t *jpeg, uint64_t length,
                     float *image, struct sfc_error *err);

#endif
