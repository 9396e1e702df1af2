/* What reading the state folder of a shard will take that is not known from its options. */
#ifndef SFC_DURABLE_PACKED_STATE_H
#define SFC_DURABLE_PACKED_STATE_H

#include <stdbool.h>

#include "proto/base/status.h"

/* Does a run of the state folder have compressed snapshots? Only headers are read; one that is
 * damaged says nothing. A folder that is not there has none. */
int sfc_state_has_packed(const char *state, bool *out, struct sfc_error *err);

#endif
