/* Values of the state in etcd (stored.proto) from what the store's functions take, and back. */
#ifndef SFC_SCHEDULER_ETCD_RECORDS_H
#define SFC_SCHEDULER_ETCD_RECORDS_H

#include <protobuf-c/protobuf-c.h>

#include "proto/base/bytes.h"
#include "server/scheduler/state_store.h"
#include "server/scheduler/stored.pb-c.h"

/* A packed message; *out.data is the caller's to free. */
int sfc_stored_pack(const void *message, struct sfc_bytes *out, struct sfc_error *err);
/* A message of bytes that were read under `key`; free it with sfc_stored_free. */
int sfc_stored_unpack(ProtobufCBinaryData value, const ProtobufCMessageDescriptor *type,
                      const char *key, void *out, struct sfc_error *err);
void sfc_stored_free(void *message); /* NULL is fine */

/* Texts of the message are borrowed from the run. */
void sfc_stored_from_run(const struct sfc_store_run *run, Shardfc__Stored__Run *out);
/* Without run_id, configuration and map. */
void sfc_stored_to_run(const Shardfc__Stored__Run *m, struct sfc_store_run *out);

/* Records of steps, packed in their order. */
int sfc_stored_pack_commits(const struct sfc_store_commit *commits, size_t count,
                            struct sfc_bytes *out, struct sfc_error *err);
void sfc_stored_to_commit(const Shardfc__Stored__Commit *m, uint64_t run_id,
                          struct sfc_store_commit *out);
/* Does the record say the same: clip scale, applied, attempts? */
bool sfc_stored_same_commit(const Shardfc__Stored__Commit *m, const struct sfc_store_commit *c);

int sfc_stored_pack_lineage(const struct sfc_lineage *lineage, struct sfc_bytes *out,
                            struct sfc_error *err);
/* SFC_ECORRUPT: more than there can be, or not ascending. */
int sfc_stored_to_lineage(const Shardfc__Stored__Lineage *m, struct sfc_lineage *out,
                          struct sfc_error *err);

int sfc_stored_pack_lr(const struct sfc_store_lr *changes, size_t count, struct sfc_bytes *out,
                       struct sfc_error *err);

#endif
