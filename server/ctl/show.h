/* The cluster as people see it: what `status` prints, and `watch` on a terminal. */
#ifndef SFC_CTL_SHOW_H
#define SFC_CTL_SHOW_H

#include <stdbool.h>
#include <stdio.h>

#include "proto/shardfc.pb-c.h"

/* "12 s", "3 min", "1.5 h"; "?": not known. */
void sfc_show_duration(double seconds, char *out, size_t size);
/* No run, or one that was stopped. */
bool sfc_show_is_idle(const Shardfc__V1__StatusReply *s);
bool sfc_show_is_over(const char *state); /* or blocked */
/* How far the run is, without what nobody knows yet. */
void sfc_show_progress(const Shardfc__V1__StatusReply *s, char *out, size_t size);
void sfc_show_run(FILE *out, const Shardfc__V1__StatusReply *s);
/* What the run is to become, and the blocks on their way; nothing where nothing changes. */
void sfc_show_goal(FILE *out, const Shardfc__V1__StatusReply *s);
/* At most `limit` of each. */
void sfc_show_shards(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit);
void sfc_show_workers(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit);

#endif
