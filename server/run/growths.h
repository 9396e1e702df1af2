/* The growths of a run (server/core/growth.h) as its map carries them. */
#ifndef SFC_RUN_GROWTHS_H
#define SFC_RUN_GROWTHS_H

#include "proto/shardfc.pb-c.h"
#include "server/core/growth.h"
#include "server/run/run_setup.h"

/* From the list of a map, a request or a checkpoint. SFC_EINVAL names what can't be, SFC_ELIMIT:
 * too many. config: already validated. */
int sfc_growths_from(const Shardfc__V1__RunConfig *config, Shardfc__V1__Growth *const *list,
                     size_t count, struct sfc_growths *out, struct sfc_error *err);
/* The setup has the class blocks of this map from now on. SFC_EINVAL. */
int sfc_run_setup_grow(struct sfc_run_setup *setup, const Shardfc__V1__BlockMap *map,
                       struct sfc_error *err);
/* Classes after the last growth; without any the configuration's. */
uint64_t sfc_map_classes(const Shardfc__V1__RunConfig *config, const Shardfc__V1__BlockMap *map);

#endif
