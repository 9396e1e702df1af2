#include "server/durable/identity.h"

#include <inttypes.h>
#include <string.h>

int sfc_run_identity_init(struct sfc_run_identity *identity, uint64_t run_id, uint64_t nonce,
                          const void *packed_config, size_t packed_size, const char *numerics,
                          struct sfc_error *err)
{
    size_t length = strlen(numerics);
    if (length >= SFC_NUMERICS_SIZE) {
        return sfc_fail(err, SFC_EINVAL, "numerics class of %zu characters; at most %d", length,
                        SFC_NUMERICS_SIZE - 1);
    }
    *identity = (struct sfc_run_identity){.run_id = run_id, .nonce = nonce};
    sfc_digest128(packed_config, packed_size, identity->config_digest);
    memcpy(identity->numerics, numerics, length);
    return SFC_OK;
}

int sfc_run_identity_check_run(const struct sfc_run_identity *file,
                               const struct sfc_run_identity *own, struct sfc_error *err)
{
    if (file->run_id != own->run_id) {
        return sfc_fail(err, SFC_ESTALE, "belongs to run %" PRIu64 ", this is run %" PRIu64,
                        file->run_id, own->run_id);
    }
    if (file->nonce != own->nonce) {
        return sfc_fail(err, SFC_ESTALE,
                        "belongs to another run %" PRIu64 ", of another cluster or of a scheduler "
                        "state that is gone (nonce %016" PRIx64 ", this run has %016" PRIx64
                        "): start each shard with its own --state folder",
                        own->run_id, file->nonce, own->nonce);
    }
    return SFC_OK;
}

int sfc_run_identity_check(const struct sfc_run_identity *file, const struct sfc_run_identity *own,
                           struct sfc_error *err)
{
    if (file->run_id == own->run_id &&
        memcmp(file->config_digest, own->config_digest, SFC_DIGEST_SIZE) !=
            0) { /* says more than the nonce */
        char theirs[2 * SFC_DIGEST_SIZE + 1], ours[2 * SFC_DIGEST_SIZE + 1];
        sfc_hex(file->config_digest, SFC_DIGEST_SIZE, theirs);
        sfc_hex(own->config_digest, SFC_DIGEST_SIZE, ours);
        return sfc_fail(err, SFC_ESTALE, "belongs to configuration %s, this run has %s", theirs,
                        ours);
    }
    int code = sfc_run_identity_check_run(file, own, err);
    if (code != SFC_OK) {
        return code;
    }
    if (strcmp(file->numerics, own->numerics) != 0) {
        return sfc_fail(
            err, SFC_ESTALE,
            "was written by numerics class '%s', this shard is '%s': replay would give "
            "other bits; start the shard's former version on the former kind of machine",
            file->numerics, own->numerics);
    }
    return SFC_OK;
}
