/* What a worker shows over HTTP (--http): a thread of its own makes metrics once a second, so that
 * they are there while the worker waits for a scheduler too. */
#ifndef SFC_WORKER_PAGES_H
#define SFC_WORKER_PAGES_H

#include <stdbool.h>

#include "proto/base/spans.h"
#include "proto/rpc.h"
#include "proto/security.h"
#include "worker/totals.h"

/* How the worker is, asked by the thread. */
struct sfc_worker_health {
    bool working; /* no lane is stuck */
    bool ready;   /* the scheduler has answered */
    bool joined;
};

struct sfc_pages_options {
    const char *listen;
    const struct sfc_security *security;
    const struct sfc_spans *spans;
    struct sfc_worker_totals *totals;
    const struct sfc_rpc_loop *rpc;
    uint32_t threads;
    void (*look)(void *ctx, struct sfc_worker_health *out);
    void *ctx;
};

struct sfc_pages;

/* Prints "http ADDRESS". What the options name is borrowed until sfc_pages_stop. */
int sfc_pages_start(const struct sfc_pages_options *options, struct sfc_pages **out,
                    struct sfc_error *err);
void sfc_pages_stop(struct sfc_pages *pages); /* NULL is fine */

#endif
