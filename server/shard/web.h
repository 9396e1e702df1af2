/* What a shard shows over HTTP (--http): once a second its numbers become metrics, which a thread
 * of its own serves (proto/http.h). Loop thread. */
#ifndef SFC_SHARD_WEB_H
#define SFC_SHARD_WEB_H

#include "proto/base/status.h"

struct sfc_shard;

int sfc_shard_web_start(struct sfc_shard *shard,
                        struct sfc_error *err); /* without --http: nothing */
void sfc_shard_web_stop(struct sfc_shard *shard);
void sfc_shard_web_free(struct sfc_shard *shard); /* after the loop has ended */

#endif
