/* The .idx parser on arbitrary text. */
#include <stdint.h>
#include <stdlib.h>

#include "worker/data/recordio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_index_entry *entries = NULL;
    struct sfc_error err;
    size_t count = 0;
    if (sfc_index_parse((const char *)data, size, 1U << 20, &entries, &count, &err) == SFC_OK)
        for (size_t i = 0; i < count; i++)
            if (entries[i].offset >= 1U << 20 || entries[i].offset % 4 != 0)
                abort();
    free(entries);
    return 0;
}
