/* A scheduler's Status as metrics of Prometheus. Pure. */
#ifndef SFC_RUN_STATUS_METRICS_H
#define SFC_RUN_STATUS_METRICS_H

#include "proto/shardfc.pb-c.h"
#include "proto/metrics.h"

/* step: durations of steps as the scheduler has seen them. */
void sfc_status_metrics(const Shardfc__V1__StatusReply *status, const struct sfc_histogram *step,
                        struct sfc_metrics *out);

#endif
