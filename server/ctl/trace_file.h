/* A trace as Chrome's trace events (chrome://tracing, Perfetto): one process row per process,
 * one more for the way of each step. */
#ifndef SFC_CTL_TRACE_FILE_H
#define SFC_CTL_TRACE_FILE_H

#include <jansson.h>

#include "server/ctl/trace_path.h"

/* Where the time of each step went: {"step", "ms", "known", "phases": {"worker forward": ms}}. */
json_t *sfc_trace_path_json(const struct sfc_trace_path *path);
/* Clocks and what is missing, by process. */
json_t *sfc_trace_processes_json(const struct sfc_trace *trace);
/* paths: [path_count]; run: its name. NULL: no memory. */
json_t *sfc_trace_json(const struct sfc_trace *trace, const struct sfc_trace_path *paths,
                       size_t path_count, const char *run);

#endif
