/* Whose files these are. Every log segment and every snapshot carries it, and a file of another
 * run, configuration or numerics class is refused: replay would give other bits. */
#ifndef SFC_DURABLE_IDENTITY_H
#define SFC_DURABLE_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/digest.h"
#include "proto/base/status.h"

#define SFC_NUMERICS_SIZE 136 /* with its terminator; longer names are refused */

struct sfc_run_identity {
    uint64_t run_id;
    uint64_t nonce; /* drawn when the run was created: another cluster has a run 1, too */
    uint8_t config_digest[SFC_DIGEST_SIZE]; /* XXH3-128 of the packed RunConfig */
    char numerics[SFC_NUMERICS_SIZE];       /* sfc_backend_numerics; zeros behind it */
};

/* SFC_EINVAL: numerics is too long. */
int sfc_run_identity_init(struct sfc_run_identity *identity, uint64_t run_id, uint64_t nonce,
                          const void *packed_config, size_t packed_size, const char *numerics,
                          struct sfc_error *err);
/* Run id and nonce alone: SFC_OK or SFC_ESTALE. */
int sfc_run_identity_check_run(const struct sfc_run_identity *file,
                               const struct sfc_run_identity *own, struct sfc_error *err);
/* SFC_OK, or SFC_ESTALE with what differs ("was written by numerics class a, this is b"). */
int sfc_run_identity_check(const struct sfc_run_identity *file, const struct sfc_run_identity *own,
                           struct sfc_error *err);

#endif
