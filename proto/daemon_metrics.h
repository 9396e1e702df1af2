/* Metrics that every daemon shows of itself, with Prometheus's own names where it has some. */
#ifndef SFC_PROTO_DAEMON_METRICS_H
#define SFC_PROTO_DAEMON_METRICS_H

#include "proto/base/spans.h"
#include "proto/http.h"
#include "proto/metrics.h"
#include "proto/rpc.h"

/* The --http of a daemon that is no scheduler; at: offset of its const char *. */
#define SFC_HTTP_OPTION(at)                                                                        \
    {                                                                                              \
        .name = "http", .type = SFC_OPTION_STRING, .metavar = "ADDR", .max = 255, .offset = (at),  \
        .help = "address of pages for monitoring, printed as 'http ADDR': /metrics (Prometheus), " \
                "/healthz and /readyz; with --tls over HTTPS with that certificate, to be read "   \
                "by anybody (default: none)",                                                      \
    }

void sfc_metrics_gauge(struct sfc_metrics *m, const char *name, const char *help, double value);
void sfc_metrics_counter(struct sfc_metrics *m, const char *name, const char *help, double value);

/* Memory, processor time, files and start of this process. What /proc does not say is left out. */
void sfc_metrics_process(struct sfc_metrics *m);
void sfc_metrics_traffic(struct sfc_metrics *m, const struct sfc_rpc_traffic *traffic);
/* When the certificate in the folder ends, looked up at the first call and each 60 calls
 * later: a renewed one is seen within a minute of calls each second. folder NULL: no TLS, no
 * metric. */
struct sfc_certificate_metric { /* all zero at first */
    int64_t end;
    unsigned calls;
};
void sfc_metrics_certificate(struct sfc_metrics *m, struct sfc_certificate_metric *of,
                             const char *folder);
/* shardfc_build_info. */
void sfc_metrics_build(struct sfc_metrics *m);
/* One histogram for the phases first..last, with label "phase". */
void sfc_metrics_phases(struct sfc_metrics *m, const char *name, const char *help,
                        const struct sfc_spans *spans, enum sfc_phase first, enum sfc_phase last);
/* These too, in the same one; straight after it. */
void sfc_metrics_more_phases(struct sfc_metrics *m, const char *name, const struct sfc_spans *spans,
                             enum sfc_phase first, enum sfc_phase last);
/* counts: [SFC_EINTERNAL + 1] by status code; a sample for each, label "kind". */
void sfc_metrics_errors(struct sfc_metrics *m, const char *name, const char *help,
                        const uint64_t *counts);

/* Prints "http ADDRESS" on stdout: listen with the port that it is. */
void sfc_http_print(const char *listen, int port);

#endif
