/* Sets of dense blocks that a shard has had, one file each: `blocks-<digest>.sfb`
 * (docs/FORMATS.md). The digest is what segments of the step log name (sfc_log_blocks_digest), so
 * that the sums in an older segment can be told apart after blocks have come or gone. */
#ifndef SFC_DURABLE_DENSE_LIST_H
#define SFC_DURABLE_DENSE_LIST_H

#include "server/durable/file_layer.h"
#include "server/durable/identity.h"

#define SFC_DENSE_LIST_NAME 32u

struct sfc_dense_list {
    uint64_t digest;
    uint64_t *blocks; /* ascending; owned */
    size_t count;
};
struct sfc_dense_lists {
    struct sfc_dense_list *items; /* owned */
    size_t count;
};

void sfc_dense_list_name(uint64_t digest, char out[SFC_DENSE_LIST_NAME]);
bool sfc_dense_list_parse_name(const char *name, uint64_t *digest);
/* Bytes of a file; *out: to be freed. Of an identity only run id and nonce are used. SFC_ENOMEM. */
int sfc_dense_list_encode(const struct sfc_run_identity *own, const uint64_t *blocks, size_t count,
                          uint8_t **out, size_t *size, struct sfc_error *err);
/* SFC_ECORRUPT with the cause; SFC_EUNSUPPORTED: another format version; SFC_ESTALE: another run's.
 * Allocates what the bytes hold. */
int sfc_dense_list_decode(const uint8_t *data, size_t size, const struct sfc_run_identity *own,
                          struct sfc_dense_list *out, struct sfc_error *err);

/* One file of a folder: as sfc_dense_list_decode says, and SFC_ECORRUPT when its blocks are not
 * those of its name. */
int sfc_dense_list_read(struct sfc_folder *folder, const char *name,
                        const struct sfc_run_identity *own, struct sfc_dense_list *out,
                        struct sfc_error *err);
/* Durable when it says SFC_OK. */
int sfc_dense_list_store(struct sfc_folder *folder, const struct sfc_run_identity *own,
                         const uint64_t *blocks, size_t count, struct sfc_error *err);
/* All whole ones of a folder. One that is damaged is passed over and named in `loud`, else "": a
 * step that needs it is refused then. */
int sfc_dense_lists_load(struct sfc_folder *folder, const struct sfc_run_identity *own,
                         struct sfc_dense_lists *out, char loud[256], struct sfc_error *err);
/* Copies; one that is there already is fine. SFC_ENOMEM. */
int sfc_dense_lists_add(struct sfc_dense_lists *lists, const uint64_t *blocks, size_t count,
                        struct sfc_error *err);
const struct sfc_dense_list *sfc_dense_lists_find(const struct sfc_dense_lists *lists,
                                                  uint64_t digest); /* NULL: none */
void sfc_dense_lists_free(struct sfc_dense_lists *lists);           /* zeroed is fine */

#endif
