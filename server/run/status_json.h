/* A scheduler's Status as JSON, for `shardfc status --json` and /api/status. */
#ifndef SFC_RUN_STATUS_JSON_H
#define SFC_RUN_STATUS_JSON_H

#include <jansson.h>

#include "proto/shardfc.pb-c.h"

/* The caller releases it. Without memory parts are missing. */
json_t *sfc_status_json(const Shardfc__V1__StatusReply *status);

#endif
