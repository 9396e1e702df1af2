/* XXH3 over long inputs for one instruction set (digest_level.c): Debian's library has the loops of
 * SSE2 alone. The digests are the same, and state, an XXH3_state_t, serves every level. */
#ifndef SFC_BASE_DIGEST_LEVEL_H
#define SFC_BASE_DIGEST_LEVEL_H

#include <stddef.h>
#include <stdint.h>

uint64_t sfc_digest64_avx2(const void *data, size_t size);
uint64_t sfc_digest64_avx512(const void *data, size_t size);
void sfc_digest_update_avx2(void *state, const void *data, size_t size);
void sfc_digest_update_avx512(void *state, const void *data, size_t size);

#endif
