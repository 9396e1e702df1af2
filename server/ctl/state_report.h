/* What is in the folder of one run of a shard, read offline: step log and snapshots, every byte
 * checked. */
#ifndef SFC_CTL_STATE_REPORT_H
#define SFC_CTL_STATE_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "server/durable/file_layer.h"

/* One object, also the answer of `shardfc log --json`:
 *   folder, run, numerics, config (what the newest segment or a snapshot says)
 *   segments  [{file, bytes, counted, state: ok|torn|corrupt|unfinished|void, records, first,
 * last}] records   [{file, offset, bytes, type, step, round, ...}]           with records bad
 * [{file, offset, end, step, state: torn|corrupt, why}] snapshots [{file, kind, block, step, bytes,
 * ok, why}] floor     steps up to it aren't needed any more recoverable {from, to, prepared} or
 * null: states that the folder can give back; prepared: so can this step, if the scheduler
 * committed it problems  number of bad things SFC_ENOTFOUND: neither log nor snapshots. *out is the
 * caller's. */
int sfc_state_report(struct sfc_folder *folder, bool records, json_t **out, struct sfc_error *err);
void sfc_state_report_print(const json_t *report, FILE *file);

#endif
