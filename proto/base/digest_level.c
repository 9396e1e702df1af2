/* Compiled once per instruction set, SFC_LEVEL. */
#define XXH_INLINE_ALL
#include "proto/base/digest_level.h"

#include <xxhash.h>

#define CONCAT(a, b)       a##b
#define NAMED(name, level) CONCAT(name, level)

uint64_t NAMED(sfc_digest64_, SFC_LEVEL)(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

void NAMED(sfc_digest_update_, SFC_LEVEL)(void *state, const void *data, size_t size)
{
    XXH3_128bits_update(state, data, size);
}
