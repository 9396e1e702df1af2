/* JPEG decoding on arbitrary bytes, grey and colour. */
#include <stdint.h>
#include <stdlib.h>

#include "worker/data/jpeg.h"

#define SIDE 64U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t pixels[SIDE * SIDE * 3];
    static struct sfc_jpeg *jpeg; /* reused: an error must leave it usable */
    struct sfc_jpeg_info info;
    struct sfc_error err;
    if (jpeg == NULL && sfc_jpeg_new(&jpeg, &err) != SFC_OK)
        abort();
    if (sfc_jpeg_info(jpeg, data, size, &info, &err) != SFC_OK || info.width > SIDE ||
        info.height > SIDE)
        return 0;
    (void)sfc_jpeg_decode(jpeg, data, size, info.width, info.height, 1, pixels, &err);
    (void)sfc_jpeg_decode(jpeg, data, size, info.width, info.height, 3, pixels, &err);
    return 0;
}
