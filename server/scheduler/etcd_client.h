/* A blocking client of an etcd cluster (API v3). A call goes to the member that answered last and,
 * where that one doesn't answer, to the others in turn. Any thread, several at a time. */
#ifndef SFC_SCHEDULER_ETCD_CLIENT_H
#define SFC_SCHEDULER_ETCD_CLIENT_H

#include <stdbool.h>

#include "proto/etcd.pb-c.h"
#include "proto/rpc_blocking.h"

enum { SFC_ETCD_MEMBERS = 16, SFC_ETCD_PREFIX = 128 };

struct sfc_etcd;

/* where: "etcd://HOST:PORT,HOST:PORT,...[/PREFIX]", plaintext; or "etcds://..." with the folder of
 * security (NULL: none, plaintext on loopback). Connects lazily: a wrong address shows at the first
 * call. */
int sfc_etcd_new(const char *where, const struct sfc_security *security, struct sfc_etcd **out,
                 struct sfc_error *err);
void sfc_etcd_free(struct sfc_etcd *etcd); /* no call is under way; NULL is fine */
/* "/shardfc": what all keys begin with. */
const char *sfc_etcd_prefix(const struct sfc_etcd *etcd);

enum sfc_etcd_method {
    SFC_ETCD_RANGE,
    SFC_ETCD_TXN,
    SFC_ETCD_COMPACT,
    SFC_ETCD_LEASE_GRANT,
    SFC_ETCD_LEASE_KEEP_ALIVE,
    SFC_ETCD_LEASE_REVOKE
};

/* Asks each member once at most, each for at most deadline_ms. The answer is freed with
 * sfc_answer_free. SFC_EUNAVAILABLE: none answered; what was to be written may be written, now or
 * later. Other codes: etcd refused the call, nothing was written. */
int sfc_etcd_call(struct sfc_etcd *etcd, enum sfc_etcd_method method, const void *request,
                  unsigned deadline_ms, struct sfc_answer *out, struct sfc_error *err);

/* Bytes of a text, for a field of a message. */
ProtobufCBinaryData sfc_etcd_text(const char *text);

#endif
