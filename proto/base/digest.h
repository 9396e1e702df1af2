/* XXH3 digests: of payloads on the wire, of shards' blocks and of checkpoints. The canonical form
 * (big-endian) is what is stored and compared across machines. */
#ifndef SFC_BASE_DIGEST_H
#define SFC_BASE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

enum { SFC_DIGEST_SIZE = 16 };

uint64_t sfc_digest64(const void *data, size_t size);

/* Streaming XXH3-128. new: NULL without memory. Update may be called any number of times; final
 * writes the digest of everything so far and may be followed by further updates. */
struct sfc_digest;
struct sfc_digest *sfc_digest_new(void);
void sfc_digest_reset(struct sfc_digest *digest);
/* Makes `to` continue from where `from` stands. */
void sfc_digest_copy(struct sfc_digest *to, const struct sfc_digest *from);
void sfc_digest_update(struct sfc_digest *digest, const void *data, size_t size);
void sfc_digest_final(const struct sfc_digest *digest, uint8_t out[SFC_DIGEST_SIZE]);
/* XXH3-64 of the same bytes: what sfc_digest64 gives for them in one piece. */
uint64_t sfc_digest_final64(const struct sfc_digest *digest);
void sfc_digest_free(struct sfc_digest *digest);

void sfc_digest128(const void *data, size_t size, uint8_t out[SFC_DIGEST_SIZE]);

/* Lower-case hexadecimal text of bytes; out has 2 * size + 1 characters. */
void sfc_hex(const uint8_t *bytes, size_t size, char *out);

#endif
