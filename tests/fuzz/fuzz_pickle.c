/* The restricted pickle reader on arbitrary bytes: every image that it hands out is touched. */
#include <stdint.h>
#include <stdlib.h>

#include "worker/data/pickle_bin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_pairs pairs = {0};
    struct sfc_error err;
    volatile uint8_t sum = 0;
    if (sfc_pairs_parse(data, size, &pairs, &err) != SFC_OK)
        return 0;
    for (size_t i = 0; i < 2 * pairs.pairs; i++)
        for (size_t k = 0; k < pairs.images[i].size && k < 64; k++)
            sum = (uint8_t)(sum + pairs.images[i].data[k]);
    sfc_pairs_free(&pairs);
    return 0;
}
