/* One JPEG image in memory, decoded and encoded with libjpeg-turbo: no aborts, no messages on
 * stderr. A stream that ends early or has broken codes is corrupt, not a grey stripe. */
#ifndef SFC_WORKER_DATA_JPEG_H
#define SFC_WORKER_DATA_JPEG_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_JPEG_MAX_SIDE 4096U /* bound of width and height */

struct sfc_jpeg; /* one decompressor and one compressor, reused; one thread at a time */

int sfc_jpeg_new(struct sfc_jpeg **out, struct sfc_error *err);
void sfc_jpeg_free(struct sfc_jpeg *jpeg); /* NULL is fine */

struct sfc_jpeg_info {
    uint32_t width, height, channels; /* as stored: 1 grey, 3 colour */
};
/* Header only. SFC_ECORRUPT; SFC_EUNSUPPORTED: neither grey nor three colours, or a side above
 * SFC_JPEG_MAX_SIDE. */
int sfc_jpeg_info(struct sfc_jpeg *jpeg, const uint8_t *data, size_t length,
                  struct sfc_jpeg_info *out, struct sfc_error *err);

/* Pixels, interleaved [height, width, channels]; channels 1 takes the luma of a colour image, 3
 * repeats a grey one. An image of another size than width x height is SFC_ECORRUPT. */
int sfc_jpeg_decode(struct sfc_jpeg *jpeg, const uint8_t *data, size_t length, uint32_t width,
                    uint32_t height, uint32_t channels, uint8_t *pixels, struct sfc_error *err);

/* Grey pixels [height, width] -> JPEG, in a buffer of jpeg that stands until its next use. */
int sfc_jpeg_encode_grey(struct sfc_jpeg *jpeg, const uint8_t *pixels, uint32_t width,
                         uint32_t height, int quality, const uint8_t **data, size_t *length,
                         struct sfc_error *err);

#endif
