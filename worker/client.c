#include "worker/client.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"
#include "proto/base/process.h"
#include "proto/find_leader.h"
#include "proto/limits.h"

#define SCHEDULER        "/shardfc.v1.Scheduler/"
#define LONG_POLL_MS     20000u
#define CALL_MS          15000u
#define SWITCH_MS        5000u /* of calls that find out whether another scheduler leads by now */
#define MAX_DENSE_FLOATS ((uint64_t)1 << 31)

int sfc_client_new(const char *scheduler, const struct sfc_security *security,
                   struct sfc_client **out, struct sfc_error *err)
{
    struct sfc_client *client = calloc(1, sizeof *client);
    if (!client)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the client");
    int rc = SFC_OK;
    if (strlen(scheduler) >= sizeof client->address)
        rc = sfc_fail(err, SFC_EINVAL, "scheduler address is longer than %zu characters",
                      sizeof client->address - 1);
    if (!rc)
        rc = sfc_rpc_runner_start(security, &client->runner, err);
    if (!rc) {
        strcpy(client->address, scheduler);
        rc = sfc_rpc_runner_connect(client->runner, client->address, &client->scheduler, err);
    }
    if (rc) {
        sfc_client_free(client);
        return rc;
    }
    *out = client;
    return SFC_OK;
}

void sfc_client_free(struct sfc_client *client)
{
    if (!client)
        return;
    if (client->runner)
        sfc_rpc_runner_disconnect(client->runner, client->scheduler);
    sfc_rpc_runner_stop(client->runner);
    free(client);
}

unsigned sfc_client_addresses(const struct sfc_client *client)
{
    return sfc_rpc_client_addresses(client->scheduler);
}

/* Calls that the scheduler holds for a second or two: so a silence of SWITCH_MS means something. */
static unsigned patience_ms(const struct sfc_client *client)
{
    return sfc_client_addresses(client) > 1 ? SWITCH_MS : LONG_POLL_MS;
}

/* ---- calls of a member */

int sfc_member_start(struct sfc_member *member, const struct sfc_route *route, size_t k,
                     const struct sfc_ask *ask, struct sfc_rpc_future **out, struct sfc_error *err)
{
    pthread_rwlock_rdlock(&member->lock);
    int rc =
        member->cancelled
            ? sfc_fail(err, SFC_ECANCELED, "%s: this membership has ended", ask->method)
            : sfc_ask_start(route ? route->links[k]->client : member->scheduler, ask, out, err);
    pthread_rwlock_unlock(&member->lock);
    return rc;
}

int sfc_member_ask(struct sfc_member *member, const struct sfc_ask *ask, struct sfc_answer *out,
                   struct sfc_error *err)
{
    struct sfc_rpc_future *future;
    int rc = sfc_member_start(member, NULL, 0, ask, &future, err);
    return rc ? rc : sfc_ask_finish(future, ask, out, err);
}

static int ask_scheduler(struct sfc_member *member, const char *method, const void *message,
                         const ProtobufCMessageDescriptor *reply, unsigned retries,
                         struct sfc_answer *out, struct sfc_error *err)
{
    struct sfc_ask ask = {.method = method,
                          .message = message,
                          .deadline_ms = LONG_POLL_MS,
                          .retries = retries,
                          .reply_type = reply};
    return sfc_member_ask(member, &ask, out, err);
}

void sfc_member_cancel(struct sfc_member *member)
{
    pthread_rwlock_wrlock(&member->lock);
    if (!member->cancelled) {
        member->cancelled = true;
        for (struct sfc_link *l = member->links; l; l = l->next) {
            sfc_rpc_runner_disconnect(member->client->runner, l->client);
            l->client = NULL;
        }
        sfc_rpc_runner_disconnect(member->client->runner, member->scheduler);
    }
    pthread_rwlock_unlock(&member->lock);
}

void sfc_member_free(struct sfc_member *member)
{
    if (!member)
        return;
    sfc_member_cancel(member);
    sfc_route_release(member, member->route);
    sfc_answer_free(&member->answer);
    pthread_mutex_destroy(&member->route_lock);
    pthread_mutex_destroy(&member->follow_lock);
    pthread_rwlock_destroy(&member->lock);
    free(member);
}

/* ---- making a member */

static int check_config(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    if (c->classes < 1 || c->dim < 1 || c->dim > SFC_MAX_DIM)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration: %llu classes of dim %u",
                        (unsigned long long)c->classes, c->dim);
    if (c->micro_batch < 1 || c->global_batch < c->micro_batch ||
        c->global_batch % c->micro_batch || c->global_batch > 1u << 24)
        return sfc_fail(err, SFC_ECORRUPT,
                        "run configuration: global batch %u of micro-batches of %u",
                        c->global_batch, c->micro_batch);
    if (!isfinite(c->scale) || c->scale <= 0)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration: scale %g", c->scale);
    if (!c->data)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration without a data set");
    if (c->data->samples < 1 && c->data->kind != SHARDFC__V1__DATA_SET__KIND__SESSION)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration without samples");
    if (c->data->hot_classes > c->classes || c->data->hot_classes > SFC_LIMIT_HOT_CLASSES)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration: %llu hot classes",
                        (unsigned long long)c->data->hot_classes);
    return SFC_OK;
}

static int count_dense(const Shardfc__V1__RunConfig *c, struct sfc_member *m, struct sfc_error *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < c->n_segments; i++) {
        uint64_t n = 1;
        for (size_t d = 0; d < c->segments[i]->n_shape; d++)
            if (__builtin_mul_overflow(n, c->segments[i]->shape[d], &n))
                n = UINT64_MAX;
        if (n > MAX_DENSE_FLOATS || (total += n) > MAX_DENSE_FLOATS)
            return sfc_fail(err, SFC_ECORRUPT, "run configuration: the backbone is too large");
    }
    if (total && !c->dense_block_size)
        return sfc_fail(err, SFC_ECORRUPT, "run configuration: dense block size 0");
    m->dense_size = total;
    m->dense_blocks = total ? (total - 1) / c->dense_block_size + 1 : 0;
    return SFC_OK;
}

void sfc_dense_block_span(const struct sfc_member *m, uint32_t block, size_t *first, size_t *count)
{
    size_t size = m->config->dense_block_size;
    *first = (size_t)block * size;
    *count = *first + size <= m->dense_size ? size : (size_t)m->dense_size - *first;
}

/* Takes the answer, whatever happens. */
static int new_member(struct sfc_client *client, struct sfc_answer answer,
                      const Shardfc__V1__RunConfig *config, const Shardfc__V1__BlockMap *map,
                      struct sfc_member **out, struct sfc_error *err)
{
    struct sfc_member *m = calloc(1, sizeof *m);
    if (!m) {
        sfc_answer_free(&answer);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the run");
    }
    pthread_rwlock_init(&m->lock, NULL);
    pthread_mutex_init(&m->follow_lock, NULL);
    pthread_mutex_init(&m->route_lock, NULL);
    m->client = client;
    m->answer = answer;
    m->config = config;
    int rc = config && map
                 ? SFC_OK
                 : sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no configuration or no map");
    if (!rc)
        rc = check_config(config, err);
    if (!rc)
        rc = count_dense(config, m, err);
    if (!rc)
        rc = sfc_rpc_runner_connect_like(client->runner, client->scheduler, &m->scheduler, err);
    if (!rc)
        rc = sfc_route_change(m, (struct sfc_answer){0}, map, err);
    if (rc) {
        sfc_member_free(m);
        return rc;
    }
    *out = m;
    return SFC_OK;
}

int sfc_client_join(struct sfc_client *client, const struct sfc_join *join, struct sfc_member **out,
                    struct sfc_error *err)
{
    Shardfc__V1__DataSet data = SHARDFC__V1__DATA_SET__INIT;
    data.kind = join->data == SFC_CLIENT_DATA_SYNTHETIC ? SHARDFC__V1__DATA_SET__KIND__SYNTHETIC
                                                        : SHARDFC__V1__DATA_SET__KIND__RECORDS;
    if (join->data == SFC_CLIENT_DATA_RECORDS) {
        data.digest = (char *)(uintptr_t)join->data_digest;
        data.samples = join->samples;
        data.width = join->width;
        data.height = join->height;
        data.channels = join->channels;
        data.flip = join->flip;
    }
    Shardfc__V1__JoinRequest request = SHARDFC__V1__JOIN_REQUEST__INIT;
    request.protocol = SFC_PROTOCOL_VERSION;
    request.name = (char *)(uintptr_t)join->name;
    request.numerics = (char *)(uintptr_t)join->numerics;
    request.version = (char *)(uintptr_t)SFC_VERSION;
    request.lanes = join->lanes;
    request.data = &data;
    Shardfc__V1__DataBegin begin = SHARDFC__V1__DATA_BEGIN__INIT;
    begin.samples = join->begin_samples;
    begin.digest = (char *)(uintptr_t)join->begin_digest;
    request.begin = join->begin_samples && join->begin_digest ? &begin : NULL;
    struct sfc_ask ask = {.method = SCHEDULER "Join",
                          .message = &request.base,
                          .deadline_ms = patience_ms(client),
                          .reply_type = &shardfc__v1__join_reply__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_ask(client->scheduler, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__JoinReply *reply = (const void *)answer.message;
    if (join->wanted)
        *join->wanted = reply->joined ? 0 : reply->wanted_samples;
    if (!reply->joined) {
        sfc_answer_free(&answer);
        *out = NULL;
        return SFC_OK;
    }
    uint64_t worker = reply->worker, run_id = reply->run_id;
    struct sfc_member *member;
    rc = new_member(client, answer, reply->config, reply->map, &member, err);
    if (rc)
        return rc;
    member->worker = worker;
    member->run_id = run_id;
    *out = member;
    return SFC_OK;
}

int sfc_client_open_session(struct sfc_client *client, const char *name, uint64_t run_id,
                            struct sfc_member **out, struct sfc_attempt_id *attempt,
                            struct sfc_error *err)
{
    Shardfc__V1__OpenSessionRequest request = SHARDFC__V1__OPEN_SESSION_REQUEST__INIT;
    request.protocol = SFC_PROTOCOL_VERSION;
    request.name = (char *)(uintptr_t)name;
    request.run_id = run_id;
    int found = sfc_find_leader(client->scheduler, NULL, NULL, err);
    if (found)
        return found;
    struct sfc_ask ask = {.method = SCHEDULER "OpenSession",
                          .message = &request.base,
                          .deadline_ms = CALL_MS,
                          .reply_type = &shardfc__v1__open_session_reply__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_ask(client->scheduler, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__OpenSessionReply *reply = (const void *)answer.message;
    uint64_t session = reply->session, run = reply->run_id, next = reply->next_step;
    struct sfc_attempt_id id = {0};
    if (reply->attempt)
        id = (struct sfc_attempt_id){reply->attempt->incarnation, reply->attempt->counter};
    struct sfc_member *member;
    rc = new_member(client, answer, reply->config, reply->map, &member, err);
    if (rc)
        return rc;
    member->session = session;
    member->run_id = run;
    member->next_step = next;
    *attempt = id;
    *out = member;
    return SFC_OK;
}

const Shardfc__V1__RunConfig *sfc_member_config(const struct sfc_member *member)
{
    return member->config;
}

static uint64_t classes_of(const struct sfc_member *m, const struct sfc_route *r)
{
    size_t n = r->map->n_growths;
    return n ? r->map->growths[n - 1]->classes : m->config->classes;
}

static uint64_t samples_of(const struct sfc_member *m, const struct sfc_route *r)
{
    size_t n = r->map->n_growths;
    return n ? r->map->growths[n - 1]->samples : m->config->data->samples;
}

size_t sfc_member_growth(struct sfc_member *m, struct sfc_synthetic_growth *out, size_t room)
{
    struct sfc_route *route = sfc_route_take(m);
    size_t n = route->map->n_growths < room ? route->map->n_growths : room;
    for (size_t i = 0; i < n; i++)
        out[i] = (struct sfc_synthetic_growth){route->map->growths[i]->classes,
                                               route->map->growths[i]->samples};
    sfc_route_release(m, route);
    return n;
}

uint64_t sfc_member_classes(struct sfc_member *m)
{
    struct sfc_route *route = sfc_route_take(m);
    uint64_t classes = classes_of(m, route);
    sfc_route_release(m, route);
    return classes;
}

static uint64_t member_samples(struct sfc_member *m)
{
    struct sfc_route *route = sfc_route_take(m);
    uint64_t samples = samples_of(m, route);
    sfc_route_release(m, route);
    return samples;
}

void sfc_member_info(struct sfc_member *m, struct sfc_run_info *out)
{
    const Shardfc__V1__RunConfig *c = m->config;
    struct sfc_route *route = sfc_route_take(m);
    *out = (struct sfc_run_info){.run_id = m->run_id,
                                 .seed = c->seed,
                                 .classes = classes_of(m, route),
                                 .samples = samples_of(m, route),
                                 .steps = c->steps,
                                 .next_step = m->next_step,
                                 .dim = c->dim,
                                 .global_batch = c->global_batch,
                                 .micro_batch = c->micro_batch,
                                 .shards = (uint32_t)sfc_route_shards(route),
                                 .map_version = route->map->version,
                                 .dense_size = m->dense_size,
                                 .scale = c->scale,
                                 .name = c->name,
                                 .backbone = c->backbone};
    sfc_route_release(m, route);
}

/* ---- the block map changes */

/* The map that the scheduler has now becomes the present one. */
static int get_map(struct sfc_member *m, struct sfc_error *err)
{
    Shardfc__V1__GetMapRequest request = SHARDFC__V1__GET_MAP_REQUEST__INIT;
    request.worker = m->worker;
    request.session = m->session;
    request.run_id = m->run_id;
    struct sfc_answer answer = {0};
    int rc = ask_scheduler(m, SCHEDULER "GetMap", &request, &shardfc__v1__get_map_reply__descriptor,
                           3, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__BlockMap *map = ((const Shardfc__V1__GetMapReply *)answer.message)->map;
    if (map && map->version == sfc_route_version(m)) {
        sfc_answer_free(&answer);
        return SFC_OK;
    }
    return sfc_route_change(m, answer, map, err);
}

int sfc_member_follow_map(struct sfc_member *m, uint64_t version, struct sfc_error *err)
{
    pthread_mutex_lock(&m->follow_lock);
    int rc = version && version == sfc_route_version(m) ? SFC_OK : get_map(m, err);
    pthread_mutex_unlock(&m->follow_lock);
    return rc;
}

int sfc_member_leave(struct sfc_member *member, struct sfc_error *err)
{
    Shardfc__V1__LeaveRequest request = SHARDFC__V1__LEAVE_REQUEST__INIT;
    request.worker = member->worker;
    struct sfc_ask ask = {.method = SCHEDULER "Leave",
                          .message = &request.base,
                          .deadline_ms = 2000,
                          .reply_type = &shardfc__v1__empty__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_ask(member->client->scheduler, &ask, &answer, err); /* works after cancel, too */
    sfc_answer_free(&answer);
    return rc;
}

int sfc_member_heartbeat(struct sfc_member *member, struct sfc_pulse *out, struct sfc_error *err)
{
    Shardfc__V1__HeartbeatRequest request = SHARDFC__V1__HEARTBEAT_REQUEST__INIT;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    request.time_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    request.memory_bytes = sfc_process_resident();
    request.worker = member->worker;
    struct sfc_ask ask = {.method = SCHEDULER "Heartbeat",
                          .message = &request.base,
                          .deadline_ms = patience_ms(member->client),
                          .reply_type = &shardfc__v1__heartbeat_reply__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_member_ask(member, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__HeartbeatReply *reply = (const void *)answer.message;
    *out = (struct sfc_pulse){.known = reply->known,
                              .run_id = reply->run_id,
                              .step = reply->step,
                              .map_version = reply->map_version};
    snprintf(out->state, sizeof out->state, "%s", reply->state);
    if (reply->trace) {
        member->trace.id = reply->trace;
        member->trace.first = reply->trace_first;
        member->trace.last = reply->trace_last;
    }
    sfc_answer_free(&answer);
    return SFC_OK;
}

/* ---- work */

static int read_ticket(struct sfc_member *m, const Shardfc__V1__TicketReply *reply,
                       enum sfc_ticket_kind kind, struct sfc_ticket *ticket, struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *c = m->config;
    ticket->state = reply->rejoin    ? SFC_TICKET_REJOIN
                    : reply->granted ? SFC_TICKET_GRANTED
                                     : SFC_TICKET_NONE;
    if (ticket->state != SFC_TICKET_GRANTED)
        return SFC_OK;
    if (!reply->step || reply->micro_batch >= c->global_batch / c->micro_batch ||
        reply->n_samples != c->micro_batch || (kind == SFC_TICKET_COMPUTE && !reply->attempt))
        return sfc_fail(err, SFC_ECORRUPT, "ticket for step %llu, micro-batch %u with %zu samples",
                        (unsigned long long)reply->step, reply->micro_batch, reply->n_samples);
    if (reply->n_epochs != 0 && reply->n_epochs != reply->n_samples)
        return sfc_fail(err, SFC_ECORRUPT, "ticket for step %llu with %zu epochs",
                        (unsigned long long)reply->step, reply->n_epochs);
    ticket->grown = reply->n_epochs != 0;
    if (ticket->grown && ticket->epochs)
        memcpy(ticket->epochs, reply->epochs, reply->n_epochs * sizeof *ticket->epochs);
    ticket->step = reply->step;
    ticket->micro_batch = reply->micro_batch;
    ticket->dropped = reply->dropped;
    ticket->first_position = reply->first_position;
    if (reply->attempt)
        ticket->attempt =
            (struct sfc_attempt_id){reply->attempt->incarnation, reply->attempt->counter};
    memcpy(ticket->samples, reply->samples, reply->n_samples * sizeof *ticket->samples);
    return SFC_OK;
}

/* Which samples there are, the map says: of a grant of a run that has grown, the one that goes with
 * it. */
static int check_samples(struct sfc_member *m, const struct sfc_ticket *ticket,
                         struct sfc_error *err)
{
    uint64_t samples = member_samples(m);
    for (size_t r = 0; r < m->config->micro_batch; r++)
        if (ticket->samples[r] >= samples)
            return sfc_fail(err, SFC_ECORRUPT, "ticket names sample %llu of %llu",
                            (unsigned long long)ticket->samples[r], (unsigned long long)samples);
    return SFC_OK;
}

/* A grant goes with a version of the block map. Without that it is no use to us. */
static int follow_grant(struct sfc_member *m, const struct sfc_ticket *ticket, uint64_t version,
                        struct sfc_error *err)
{
    int rc = sfc_member_follow_map(m, version, err);
    if (!rc)
        return SFC_OK;
    const struct sfc_work work = {ticket->step, ticket->micro_batch, ticket->attempt};
    struct sfc_error unseen = {0};
    sfc_member_give_up(m, &work, rc, err ? err->text : "no block map", &unseen);
    return rc;
}

int sfc_member_ticket(struct sfc_member *member, enum sfc_ticket_kind kind,
                      struct sfc_ticket *ticket, struct sfc_error *err)
{
    uint64_t granted_ns;
    return sfc_member_ticket_timed(member, kind, ticket, &granted_ns, err);
}

int sfc_member_ticket_timed(struct sfc_member *member, enum sfc_ticket_kind kind,
                            struct sfc_ticket *ticket, uint64_t *granted_ns, struct sfc_error *err)
{
    *granted_ns = 0;
    Shardfc__V1__TicketRequest request = SHARDFC__V1__TICKET_REQUEST__INIT;
    request.worker = member->worker;
    request.run_id = member->run_id;
    request.kind = kind == SFC_TICKET_COMPUTE ? SHARDFC__V1__TICKET_REQUEST__KIND__COMPUTE
                                              : SHARDFC__V1__TICKET_REQUEST__KIND__DATA;
    struct sfc_answer answer = {0};
    int rc = ask_scheduler(member, SCHEDULER "Ticket", &request,
                           &shardfc__v1__ticket_reply__descriptor, 0, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__TicketReply *reply = (const void *)answer.message;
    uint64_t version = reply->map_version;
    if (reply->n_epochs && kind == SFC_TICKET_DATA)
        rc = sfc_member_follow_map(member, version, err);
    if (!rc)
        rc = read_ticket(member, reply, kind, ticket, err);
    sfc_answer_free(&answer);
    if (rc || ticket->state != SFC_TICKET_GRANTED)
        return rc;
    if (kind == SFC_TICKET_COMPUTE) {
        *granted_ns = version == sfc_route_version(member) ? 0 : sfc_spans_now();
        rc = follow_grant(member, ticket, version, err);
    }
    return rc ? rc : check_samples(member, ticket, err);
}

int sfc_member_announce(struct sfc_member *member, uint64_t step, uint32_t micro_batch,
                        const uint64_t *labels, const uint32_t *broken_rows, size_t broken_count,
                        const char *broken_reason, struct sfc_error *err)
{
    Shardfc__V1__AnnounceRequest request = SHARDFC__V1__ANNOUNCE_REQUEST__INIT;
    request.worker = member->worker;
    request.run_id = member->run_id;
    request.session = member->session;
    request.step = step;
    request.micro_batch = micro_batch;
    request.n_labels = member->config->micro_batch;
    request.labels = (uint64_t *)(uintptr_t)labels;
    request.n_broken_rows = broken_count;
    request.broken_rows = (uint32_t *)(uintptr_t)broken_rows;
    if (broken_reason)
        request.broken_reason = (char *)(uintptr_t)broken_reason;
    struct sfc_answer answer = {0};
    int rc = ask_scheduler(member, SCHEDULER "Announce", &request,
                           &shardfc__v1__announce_reply__descriptor, 3, &answer, err);
    sfc_answer_free(&answer);
    return rc;
}

int sfc_member_done(struct sfc_member *member, const struct sfc_work *work,
                    const struct sfc_exchange_result *result, const uint64_t *dense_digests,
                    bool *accepted, struct sfc_error *err)
{
    Shardfc__V1__Attempt attempt = SHARDFC__V1__ATTEMPT__INIT;
    attempt.incarnation = work->attempt.incarnation;
    attempt.counter = work->attempt.counter;
    Shardfc__V1__DoneRequest request = SHARDFC__V1__DONE_REQUEST__INIT;
    request.worker = member->worker;
    request.run_id = member->run_id;
    request.session = member->session;
    request.step = work->step;
    request.micro_batch = work->micro_batch;
    request.attempt = &attempt;
    request.head_digest.data = (uint8_t *)(uintptr_t)result->head_digest;
    request.head_digest.len = sizeof result->head_digest;
    request.n_dense_digests = sfc_member_dense_blocks(member);
    request.dense_digests = (uint64_t *)(uintptr_t)dense_digests;
    request.loss_sum = result->loss_sum;
    request.zero_features = result->zero_features;
    struct sfc_answer answer = {0};
    int rc = ask_scheduler(member, SCHEDULER "Done", &request, &shardfc__v1__done_reply__descriptor,
                           3, &answer, err);
    if (rc)
        return rc;
    *accepted = ((const Shardfc__V1__DoneReply *)(const void *)answer.message)->accepted;
    sfc_answer_free(&answer);
    return SFC_OK;
}

static int give_up(struct sfc_member *member, const struct sfc_work *work, bool data, int code,
                   const char *reason, struct sfc_error *err)
{
    Shardfc__V1__Attempt attempt = SHARDFC__V1__ATTEMPT__INIT;
    attempt.incarnation = work->attempt.incarnation;
    attempt.counter = work->attempt.counter;
    Shardfc__V1__GiveUpRequest request = SHARDFC__V1__GIVE_UP_REQUEST__INIT;
    request.worker = member->worker;
    request.run_id = member->run_id;
    request.step = work->step;
    request.micro_batch = work->micro_batch;
    request.attempt = data ? NULL : &attempt;
    request.data = data;
    request.code = code;
    request.reason = (char *)(uintptr_t)reason;
    struct sfc_answer answer = {0};
    int rc = ask_scheduler(member, SCHEDULER "GiveUp", &request, &shardfc__v1__empty__descriptor, 3,
                           &answer, err);
    sfc_answer_free(&answer);
    return rc;
}

int sfc_member_give_up(struct sfc_member *member, const struct sfc_work *work, int code,
                       const char *reason, struct sfc_error *err)
{
    return give_up(member, work, false, code, reason, err);
}

int sfc_member_give_up_data(struct sfc_member *member, const struct sfc_work *work, int code,
                            const char *reason, struct sfc_error *err)
{
    return give_up(member, work, true, code, reason, err);
}

/* ---- looking on */

int sfc_client_history(struct sfc_client *client, uint64_t run_id, uint64_t after_step,
                       struct sfc_history_point *points, size_t *count, struct sfc_error *err)
{
    Shardfc__V1__HistoryRequest request = SHARDFC__V1__HISTORY_REQUEST__INIT;
    request.run_id = run_id;
    request.after_step = after_step;
    request.limit = *count > UINT32_MAX ? UINT32_MAX : (uint32_t)*count;
    struct sfc_ask ask = {.method = SCHEDULER "History",
                          .message = &request.base,
                          .deadline_ms = CALL_MS,
                          .retries = 2,
                          .reply_type = &shardfc__v1__history_reply__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_ask(client->scheduler, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__HistoryReply *reply = (const void *)answer.message;
    if (reply->n_points > *count) {
        sfc_answer_free(&answer);
        return sfc_fail(err, SFC_ECORRUPT, "History: more points than asked for");
    }
    for (size_t i = 0; i < reply->n_points; i++)
        points[i] = (struct sfc_history_point){
            .step = reply->points[i]->step,
            .loss = reply->points[i]->loss,
            .lr = reply->points[i]->lr,
            .images_per_s = reply->points[i]->images_per_s,
        };
    *count = reply->n_points;
    sfc_answer_free(&answer);
    return SFC_OK;
}

int sfc_client_status(struct sfc_client *client, struct sfc_client_state *out,
                      struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_ask ask = {.method = SCHEDULER "Status",
                          .message = &request.base,
                          .deadline_ms = CALL_MS,
                          .reply_type = &shardfc__v1__status_reply__descriptor};
    struct sfc_answer answer = {0};
    int rc = sfc_ask(client->scheduler, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__StatusReply *reply = (const void *)answer.message;
    *out = (struct sfc_client_state){
        .run_id = reply->run_id, .step = reply->step, .steps = reply->steps};
    snprintf(out->state, sizeof out->state, "%s", reply->state);
    snprintf(out->reason, sizeof out->reason, "%s", reply->reason);
    sfc_answer_free(&answer);
    return SFC_OK;
}
