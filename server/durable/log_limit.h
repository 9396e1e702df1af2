/* The log limit that a run was opened with, in the file `log.limit` of its folder
 * (docs/FORMATS.md). The default is a share of the free space, and a shard that comes back may find
 * none: what counts is what was free when the run began. */
#ifndef SFC_DURABLE_LOG_LIMIT_H
#define SFC_DURABLE_LOG_LIMIT_H

#include "server/durable/file_layer.h"
#include "server/durable/identity.h"

#define SFC_LOG_LIMIT_FILE  "log.limit"
#define SFC_LOG_LIMIT_BYTES 48u

/* Of an identity only run id and nonce are used. */
void sfc_log_limit_encode(const struct sfc_run_identity *own, uint64_t limit,
                          uint8_t out[SFC_LOG_LIMIT_BYTES]);
/* SFC_ECORRUPT with the cause; SFC_EUNSUPPORTED: another format version; SFC_ESTALE: another run's.
 */
int sfc_log_limit_decode(const uint8_t *data, size_t size, const struct sfc_run_identity *own,
                         uint64_t *limit, struct sfc_error *err);

/* Durable when it says SFC_OK. Takes the place of one that is there. */
int sfc_log_limit_store(struct sfc_folder *folder, const struct sfc_run_identity *own,
                        uint64_t limit, struct sfc_error *err);
/* SFC_ENOTFOUND: there is none; otherwise as decode, with the name of the file. */
int sfc_log_limit_load(struct sfc_folder *folder, const struct sfc_run_identity *own,
                       uint64_t *limit, struct sfc_error *err);

#endif
