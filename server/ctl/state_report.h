/* What is in the folder of one run of a shard, read offline: step log and snapshots, every byte
 * checked. */
#ifndef SFC_CTL_STATE_REPORT_H
#define SFC_CTL_STATE_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "server/durable/file_layer.h"

/* One object, also the answer of `shardfc log --json`:
 *   folder, run, numerics, config (what the newest segment or a snapshot says)
 *   segments    [{file, bytes, counted, state: ok|torn|corrupt|unfinished|void, records, void,
 *               first, last}]: void of the records don't count, first and last are steps of others
 *   records     [{file, offset, bytes, type, step, round, ..., void, why}], with `records`
 *   bad         [{file, offset, end, step, state: torn|corrupt|foreign, why}]
 *   snapshots   [{file, kind, block, step, bytes, raw_bytes, ok, void, why}]
 *   dense_lists [{file, blocks, ok, why}]: which dense blocks sums in segments are of
 *   floor       steps up to it aren't needed any more
 *   recoverable {from, to, prepared} or null: states that the folder can give back; prepared: so
 *               can this step, if the scheduler committed it
 *   problems    number of bad things; what is void is none
 * void: whole, but of what the run gave up, as far as the folder shows it (given_up.h); why says
 * by what, or why something is not whole.
 * What a shard that is running removes meanwhile is left out.
 * SFC_ENOTFOUND: neither log nor snapshots. *out is the caller's. */
int sfc_state_report(struct sfc_folder *folder, bool records, json_t **out, struct sfc_error *err);
void sfc_state_report_print(const json_t *report, FILE *file);

#endif
