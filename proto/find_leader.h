/* Which of several schedulers leads. */
#ifndef SFC_PROTO_FIND_LEADER_H
#define SFC_PROTO_FIND_LEADER_H

#include "proto/rpc.h"

/* A client of several addresses asks them in turn until a scheduler answers that leads: so what may
 * not be repeated goes there at the first try. While none does (one takes over, for which it has
 * 20 s) waits, may be NULL, hears why. With one address there is nothing to find out. Any thread
 * but the loop's. SFC_EUNAVAILABLE: none leads. */
int sfc_find_leader(struct sfc_rpc_client *client, void (*waits)(void *ctx, const char *why),
                    void *ctx, struct sfc_error *err);

#endif
