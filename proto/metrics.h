/* Prometheus's text format (0.0.4): families of samples, appended to a text that grows. Pure. */
#ifndef SFC_PROTO_METRICS_H
#define SFC_PROTO_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/histogram.h"

struct sfc_metrics {
    char *text; /* NULL: nothing yet */
    size_t size, room;
    bool failed; /* no memory: what follows is dropped */
};

/* type: "gauge", "counter" or "histogram". */
void sfc_metrics_family(struct sfc_metrics *m, const char *name, const char *type,
                        const char *help);
/* labels: name, value, name, value, ..., NULL; values are escaped. */
void sfc_metrics_sample(struct sfc_metrics *m, const char *name, double value, ...);
/* The text, which the caller frees; NULL: there was no memory. m is empty then. */
char *sfc_metrics_take(struct sfc_metrics *m);

/* labels: as of a sample; "le" is added. */
void sfc_metrics_histogram(struct sfc_metrics *m, const char *name, const struct sfc_histogram *h,
                           ...);

#endif
