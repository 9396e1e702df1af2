/* Checkpoint directories: a whole run state at one step, written and read by the command-line tool.
 *
 *   DIR/run.pb              the packed RunConfig
 *   DIR/class-NNNNNN.f32    block N of W: values [rows, dim], then momentum, little-endian f32; in
 *                           momentum mode dense then the last step of each row [rows]; with adamw
 *                           the momentum is the first moment, and then the second one
 *   DIR/dense-NNNNNN.f32    block N of the backbone's parameter vector: values, momentum, with
 *                           adamw second moments
 *   DIR/history-000000.f32  momentum mode dense: the learning rate of each step, negative: skipped
 *   DIR/manifest.json       step, digests and lengths of all files, the state digest, changes of
 *                           the learning rate, growths
 *   DIR/manifest.xxh3       XXH3-128 of manifest.json in hex
 *
 * The directory is written beside its final name and renamed when everything is on disk, so DIR is
 * either whole or absent. The state digest covers step, configuration (without the run's name) and
 * the content of every block in block order; it excludes times, ids, paths and placement, so equal
 * digests mean equal states. docs/FORMATS.md has the byte layout. */
#ifndef SFC_CTL_CHECKPOINT_H
#define SFC_CTL_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "proto/shardfc.pb-c.h"

#define SFC_DIGEST_HEX 33 /* 32 hex digits and the terminator */

struct sfc_checkpoint_writer;
struct sfc_checkpoint;

#define SFC_CHECKPOINT_KINDS 3 /* values of BlockKind */
#define SFC_CHECKPOINT_PARTS 4 /* values of BlockPart */

/* ---- writing: blocks in any order, each: begin, append every part in order, end. */

/* Removes what checkpoints that did not finish left in the parent folder of dir: folders of the
 * name and with the content of an unfinished one, whose process has ended. removed(ctx, path) is
 * told of each. What can't be removed stays. */
void sfc_checkpoint_remove_stale(const char *dir, void (*removed)(void *ctx, const char *path),
                                 void *ctx);

/* May dir be made? SFC_EEXIST: it is there already; SFC_ENOTFOUND, SFC_EINVAL, SFC_EDENIED: the
 * folder it would be in is not there, none, or not writable. Says what to do. */
int sfc_checkpoint_may_create(const char *dir, struct sfc_error *err);
/* SFC_EEXIST when dir is already there, and what sfc_checkpoint_may_create says. config is copied.
 */
int sfc_checkpoint_create(const char *dir, const Shardfc__V1__RunConfig *config, uint64_t step,
                          struct sfc_checkpoint_writer **out, struct sfc_error *err);
/* The changes of the learning rate that a run needs to go on with the same rates; steps ascending.
 * Copied; before the end. They are no part of the state digest: some are of later steps. */
struct sfc_checkpoint_lr {
    uint64_t from_step;
    double lr; /* 0: the configuration's again */
};
int sfc_checkpoint_set_lr(struct sfc_checkpoint_writer *writer,
                          const struct sfc_checkpoint_lr *changes, size_t count,
                          struct sfc_error *err);
/* The run has grown since it began with start_classes: config of sfc_checkpoint_create had the
 * classes of the last growth. Copied; before the end. They are no part of the state digest. */
int sfc_checkpoint_set_growths(struct sfc_checkpoint_writer *writer, uint64_t start_classes,
                               Shardfc__V1__Growth *const *growths, size_t count,
                               struct sfc_error *err);
int sfc_checkpoint_begin(struct sfc_checkpoint_writer *writer, Shardfc__V1__BlockKind kind,
                         uint64_t block, struct sfc_error *err);
int sfc_checkpoint_append(struct sfc_checkpoint_writer *writer, const float *values, uint64_t count,
                          struct sfc_error *err);
int sfc_checkpoint_end(struct sfc_checkpoint_writer *writer, struct sfc_error *err);
/* Flushes, renames and frees the writer, also on failure (the partial directory is then removed).
 */
int sfc_checkpoint_finish(struct sfc_checkpoint_writer *writer, char digest[SFC_DIGEST_HEX],
                          struct sfc_error *err);
/* Removes the partial directory and frees the writer; NULL is fine. */
void sfc_checkpoint_discard(struct sfc_checkpoint_writer *writer);

/* ---- reading */

/* Reads and checks manifest and run.pb, and that every block is there with the right length.
 * SFC_ECORRUPT names the file; SFC_ENOTFOUND, SFC_EINVAL: there is no such folder, or it is no
 * checkpoint. Each says what to do. No allocation is larger than 64 times the manifest and run.pb
 * together (each at most 64 MiB), but for a few KiB; reading blocks needs one block. */
int sfc_checkpoint_open(const char *dir, struct sfc_checkpoint **out, struct sfc_error *err);
/* The same without looking at the files of the blocks, for sfc_checkpoint_check. */
int sfc_checkpoint_open_manifest(const char *dir, struct sfc_checkpoint **out,
                                 struct sfc_error *err);
void sfc_checkpoint_close(struct sfc_checkpoint *checkpoint); /* NULL is fine */
/* With the classes of the checkpoint's step; as the run was created: */
const Shardfc__V1__RunConfig *sfc_checkpoint_config(const struct sfc_checkpoint *checkpoint);
uint64_t sfc_checkpoint_start_classes(const struct sfc_checkpoint *checkpoint);
/* How many there are; *out: borrowed. */
size_t sfc_checkpoint_growths(const struct sfc_checkpoint *checkpoint,
                              Shardfc__V1__Growth *const **out);
uint64_t sfc_checkpoint_step(const struct sfc_checkpoint *checkpoint);
const char *sfc_checkpoint_digest(const struct sfc_checkpoint *checkpoint);
/* How many there are; *out: borrowed. */
size_t sfc_checkpoint_lr(const struct sfc_checkpoint *checkpoint,
                         const struct sfc_checkpoint_lr **out);
/* n: values of a block. They are elements [0, n) of its file, momentum [n, 2n), last steps or
 * second moments the rest. */
uint64_t sfc_checkpoint_block_elements(const struct sfc_checkpoint *checkpoint,
                                       Shardfc__V1__BlockKind kind, uint64_t block);
uint64_t sfc_checkpoint_block_count(const struct sfc_checkpoint *checkpoint,
                                    Shardfc__V1__BlockKind kind);
/* Floats of the block's file: of all its parts. */
uint64_t sfc_checkpoint_block_floats(const struct sfc_checkpoint *checkpoint,
                                     Shardfc__V1__BlockKind kind, uint64_t block);
/* Reads a whole block file (sfc_checkpoint_block_floats) and checks its digest. */
int sfc_checkpoint_read(const struct sfc_checkpoint *checkpoint, Shardfc__V1__BlockKind kind,
                        uint64_t block, float *out, struct sfc_error *err);
/* Checks length and checksum of every block; the first that is not whole is the error. */
int sfc_checkpoint_verify(const struct sfc_checkpoint *checkpoint, struct sfc_error *err);

/* A block's file, as the manifest has it. */
struct sfc_checkpoint_file {
    Shardfc__V1__BlockKind kind;
    uint64_t block, bytes;
    char name[32], digest[SFC_DIGEST_HEX];
    const struct sfc_error *damage; /* NULL: it is whole */
};
/* Returns SFC_OK to go on. */
typedef int sfc_checkpoint_told(void *ctx, const struct sfc_checkpoint_file *file,
                                struct sfc_error *err);
/* Tells of each file, in the order of the manifest, whether it is whole. Fails with SFC_ENOMEM and
 * what told returns. */
int sfc_checkpoint_check(const struct sfc_checkpoint *checkpoint, sfc_checkpoint_told *told,
                         void *ctx, struct sfc_error *err);

/* Numbers of blocks and their lengths follow from the configuration (and the step, for the
 * history). Elements of a part; 0: there is no such part. */
uint64_t sfc_config_part_elements(const Shardfc__V1__RunConfig *config, uint64_t step,
                                  Shardfc__V1__BlockKind kind, uint64_t block,
                                  Shardfc__V1__BlockPart part);
bool sfc_config_is_dense(const Shardfc__V1__RunConfig *config); /* momentum mode */
bool sfc_config_is_adamw(const Shardfc__V1__RunConfig *config);
uint64_t sfc_config_block_count(const Shardfc__V1__RunConfig *config, Shardfc__V1__BlockKind kind);
uint64_t sfc_config_block_elements(const Shardfc__V1__RunConfig *config,
                                   Shardfc__V1__BlockKind kind, uint64_t block);
uint64_t sfc_config_dense_size(const Shardfc__V1__RunConfig *config);

#endif
