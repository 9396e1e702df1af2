/* The cluster as people see it: what `status` prints, and `watch` on a terminal. */
#ifndef SFC_CTL_SHOW_H
#define SFC_CTL_SHOW_H

#include <stdbool.h>
#include <stdio.h>

#include "proto/shardfc.pb-c.h"

/* A text that has begun at column `at`, and a new line. width: columns of the terminal, where words
 * that don't fit go to a new line that begins with `indent` blanks; 0: none, all in one line. A
 * word that is longer than a line stays whole: it is an address or a path. */
void sfc_show_wrapped(FILE *out, size_t width, size_t at, size_t indent, const char *text);
/* "512 B", "61.2 MB", "1.34 TB" */
void sfc_show_bytes(uint64_t bytes, char *out, size_t size);
/* "12 s", "3 min", "1.5 h"; "?": not known. */
void sfc_show_duration(double seconds, char *out, size_t size);
/* No run, or one that was stopped. */
bool sfc_show_is_idle(const Shardfc__V1__StatusReply *s);
bool sfc_show_is_over(const char *state); /* or blocked */
/* How far the run is, without what nobody knows yet. */
void sfc_show_progress(const Shardfc__V1__StatusReply *s, char *out, size_t size);
/* All of these: width as in sfc_show_wrapped; tables take 80 columns. */
void sfc_show_run(FILE *out, size_t width, const Shardfc__V1__StatusReply *s);
/* What the run is to become, and the blocks on their way; nothing where nothing changes. */
void sfc_show_goal(FILE *out, size_t width, const Shardfc__V1__StatusReply *s);
/* At most `limit` of each. */
void sfc_show_shards(FILE *out, size_t width, const Shardfc__V1__StatusReply *s, size_t limit);
void sfc_show_workers(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit);

#endif
