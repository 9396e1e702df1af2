/* A worker's part of a trace: it sends what it recorded, with what its clock is worth. */
#ifndef SFC_WORKER_REPORT_SPANS_H
#define SFC_WORKER_REPORT_SPANS_H

#include "worker/client.h"

/* Sends the spans that the member's last heartbeat asked for (member->trace), if it did. */
int sfc_member_report_spans(struct sfc_member *member, const struct sfc_spans *spans,
                            struct sfc_error *err);

#endif
