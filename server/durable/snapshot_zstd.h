/* A part of a snapshot as one zstd frame, a piece at a time. The frame says how long its content
 * is, and has no checksum of its own: the file has one over the stored bytes. Private to
 * server/durable and to `shardfc bench snapshots`.
 *
 * Threads: one at a time for each object. */
#ifndef SFC_DURABLE_SNAPSHOT_ZSTD_H
#define SFC_DURABLE_SNAPSHOT_ZSTD_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_ZSTD_WINDOW ((size_t)8 << 20) /* the largest, of level SFC_SNAPSHOT_LEVEL_MAX */

/* ---- packing */

struct sfc_packer;
/* Most bytes that a packer of this level (1 to SFC_SNAPSHOT_LEVEL_MAX) takes. */
uint64_t sfc_packer_memory(int level);
int sfc_packer_new(int level, struct sfc_packer **out, struct sfc_error *err);
void sfc_packer_free(struct sfc_packer *packer); /* NULL is fine */

/* Where packed bytes go: the codes of `put` come through. */
struct sfc_packed_sink {
    int (*put)(void *ctx, const void *bytes, size_t size, struct sfc_error *err);
    void *ctx;
};
/* Begins a part of so many bytes; what was begun before is forgotten. */
int sfc_packer_begin(struct sfc_packer *packer, uint64_t size, struct sfc_error *err);
int sfc_packer_take(struct sfc_packer *packer, const void *bytes, size_t size,
                    const struct sfc_packed_sink *sink, struct sfc_error *err);
/* After all bytes of the part. */
int sfc_packer_end(struct sfc_packer *packer, const struct sfc_packed_sink *sink,
                   struct sfc_error *err);

/* ---- unpacking. Nothing is trusted: a frame whose content is not `size` bytes long, or that wants
 * a larger window, is refused before anything is allocated for it. SFC_ECORRUPT with the cause. */

struct sfc_unpacker;
/* Most bytes that it takes. */
uint64_t sfc_unpacker_memory(void);
int sfc_unpacker_new(struct sfc_unpacker **out, struct sfc_error *err);
void sfc_unpacker_free(struct sfc_unpacker *unpacker); /* NULL is fine */

/* out: [size], borrowed until end; NULL: the content is unpacked and thrown away. */
void sfc_unpacker_begin(struct sfc_unpacker *unpacker, uint8_t *out, uint64_t size);
/* The first piece must hold the frame's header: 18 bytes, or the whole frame. */
int sfc_unpacker_take(struct sfc_unpacker *unpacker, const void *bytes, size_t size,
                      struct sfc_error *err);
int sfc_unpacker_end(struct sfc_unpacker *unpacker, struct sfc_error *err);

#endif
