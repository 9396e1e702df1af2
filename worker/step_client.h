/* One micro-batch: where its rows come from, and what a lane does with a grant. The bits of a
 * micro-batch depend on the run's configuration, its position and the parameters only: never on the
 * worker, the lane, or what was computed before (invariant I2). */
#ifndef SFC_WORKER_STEP_CLIENT_H
#define SFC_WORKER_STEP_CLIENT_H

#include "worker/client.h"
#include "worker/data/dataset.h"
#include "worker/model/device.h"
#include "worker/model/model.h"
#include "worker/slot_cache.h"

/* Shared by all lanes and reading threads of a worker. */
struct sfc_source {
    struct sfc_member *member;
    const struct sfc_dataset *set; /* NULL: synthetic */
    const struct sfc_model *model; /* NULL: backbone "none" */
    const struct sfc_lane_device *device;
    struct sfc_slot_cache *batches; /* rows of micro-batches */
    struct sfc_slot_cache *params;  /* parameters after a step; NULL without model */
    struct sfc_spans *spans;        /* what took how long; NULL: nobody asks */
};

/* Floats per row that a micro-batch holds: pixels, or the features of synthetic data. */
size_t sfc_source_row_values(const struct sfc_member *member);
/* Checks that this program can compute the run: data kind, backbone and its segments. Makes the
 * model
 * (*model NULL with backbone "none"). */
int sfc_source_check(const struct sfc_member *member, bool synthetic, struct sfc_model **model,
                     struct sfc_error *err);

/* Reads the rows of a ticket into the slot. A row that cannot be read has label SFC_LABEL_NONE and
 * zeros and is listed in slot->broken; slot->error tells why the first one failed. decoder NULL:
 * synthetic. */
void sfc_source_fill(const struct sfc_source *source, struct sfc_decoder *decoder,
                     const struct sfc_ticket *ticket, struct sfc_slot *slot);

/* Reads (or finds) the rows of a data ticket and announces their labels; a broken row in a run
 * without
 * --skip-broken gives the ticket back with the cause. lap: of the reader. */
int sfc_source_announce(const struct sfc_source *source, struct sfc_decoder *decoder,
                        const struct sfc_ticket *ticket, struct sfc_lap *lap,
                        struct sfc_error *err);
/* A lane or a reader got a ticket that it waited for since the lap's beginning. granted_ns: when,
 * and that it has fetched a block map since then; 0: it has it now. */
void sfc_source_got_ticket(const struct sfc_source *source, const struct sfc_ticket *ticket,
                           enum sfc_phase phase, uint64_t granted_ns, struct sfc_lap *lap);

/* A lane: everything that one thread needs to compute micro-batches, one at a time. Create and use
 * it on one thread. */
struct sfc_step_client;
int sfc_step_client_new(const struct sfc_source *source, uint32_t index,
                        struct sfc_step_client **out, struct sfc_error *err);
/* Of this lane: what it records, on its thread. */
struct sfc_lap *sfc_step_client_lap(struct sfc_step_client *client);
void sfc_step_client_free(struct sfc_step_client *client); /* NULL is fine */
uint64_t sfc_step_client_memory(const struct sfc_step_client *client);
/* When its device began with the work at hand, in ms of the monotonic clock; 0: it waits. Any
 * thread.
 */
uint64_t sfc_step_client_computes_since(const struct sfc_step_client *client);
/* The lane's own device failed; what a peer's device said does not count. */
bool sfc_step_client_broken(const struct sfc_step_client *client);
/* The backbone's lane; NULL without a backbone. */
const struct sfc_lane *sfc_step_client_lane(const struct sfc_step_client *client);
/* Batch, parameters, forward, head exchange, backward, push, done. *accepted as in sfc_member_done.
 * On failure the grant is still the caller's to give up. */
int sfc_step_client_run(struct sfc_step_client *client, const struct sfc_ticket *ticket,
                        bool *accepted, struct sfc_error *err);

#endif
