/* The worker program without its command line: joins runs, computes what it is granted, until told
 * to stop or, on wish, until the run ends. Threads per joined run: `lanes` lanes, as many threads
 * that read and announce ahead, and the caller's thread for heartbeats and progress.
 *
 * Whatever goes wrong on the way (scheduler or shard gone or restarted, a broken sample, a void
 * attempt) gives the attempt back with the reason and tries again later; only what no waiting mends
 * ends the worker: a data set, backbone or numerics class that the run does not want. */
#ifndef SFC_WORKER_TRAINER_H
#define SFC_WORKER_TRAINER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "proto/security.h"
#include "worker/model/device.h"

struct sfc_trainer_options {
    const char *scheduler;
    struct sfc_security security;
    const char *http;   /* address of pages; NULL: none */
    const char *data;   /* a data set's folder, or "synthetic" */
    const char *device; /* as sfc_lane_device_open has it */
    enum sfc_precision precision;
    uint32_t lanes;
    uint64_t cache_bytes; /* for decoded micro-batches */
    bool exit_when_done;
    const char *trace; /* CSV file of step,loss,lr,images_per_s; NULL = none */
};

struct sfc_trainer;

/* Opens the device, the data set and the trace file. */
int sfc_trainer_new(const struct sfc_trainer_options *options, struct sfc_trainer **out,
                    struct sfc_error *err);
void sfc_trainer_free(struct sfc_trainer *trainer); /* NULL is fine */
/* Blocks until sfc_trainer_stop, or until the run is finished (exit_when_done). SFC_ESTATE: the run
 * that it waited for failed. Logs its progress (it is the program). */
int sfc_trainer_run(struct sfc_trainer *trainer, struct sfc_error *err);
/* Ends sfc_trainer_run soon; from any thread, not from a signal handler. */
void sfc_trainer_stop(struct sfc_trainer *trainer);

#endif
