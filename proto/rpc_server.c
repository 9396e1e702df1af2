#include "proto/rpc_server_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc_trust.h"

enum { ACCEPTS = 64 }; /* calls asked for ahead of their arrival */

/* A call lives until all its operations came back, its handler ended it and its tensor is ours
 * again. gRPC's part is dropped (`grpc` is NULL) as soon as no batch is on its way and the call has
 * ended or its peer is gone: a handler that holds the call for longer then keeps only memory, not
 * the connection. It goes before the tensor is back, for it may be what keeps that: gRPC lets go of
 * a message that could not be sent when it lets go of the call. */
struct sfc_rpc_call {
    struct sfc_rpc_server *server;
    struct sfc_rpc_loop *loop;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    struct sfc_rpc_served *method; /* NULL: refused or health */
    struct sfc_rpc_peer *who;      /* NULL: refused, and not counted */
    struct sfc_rpc_tag arrived, received, closed, sent;
    struct sfc_rpc_timer patience; /* for the request's body */
    struct sfc_rpc_incoming inflow;
    grpc_byte_buffer *incoming, *outgoing;
    struct sfc_rpc_body body;
    struct sfc_rpc_loan loan;
    void (*release)(void *ctx);
    void *release_ctx;
    void (*cancelled)(void *ctx);
    void *cancelled_ctx;
    char *peer;
    struct sfc_certificate identity;
    int was_cancelled;
    unsigned on_the_way; /* batches */
    bool lent;           /* the answer's tensor, to gRPC */
    bool counted;        /* in method->pending */
    bool with_handler;
    bool ended; /* an answer was given, by the handler or for it */
    bool gone;  /* the peer no longer listens */
};

/* ---- end of life */

void sfc_rpc_server_unref(struct sfc_rpc_server *server)
{
    if (--server->users > 0) {
        return;
    }
    for (size_t i = 0; i < server->method_count; i++) {
        free((void *)(uintptr_t)server->methods[i].spec.path);
    }
    free(server->methods);
    sfc_rpc_flows_free(server->flows);
    sfc_rpc_peers_free(server->peers);
    grpc_resource_quota_unref(server->quota);
    free(server);
}

static void call_drop_grpc(struct sfc_rpc_call *call)
{
    if (call->grpc != NULL) {
        grpc_call_unref(call->grpc);
        call->grpc = NULL;
        grpc_call_details_destroy(&call->details);
        grpc_metadata_array_destroy(&call->metadata);
    }
}

static void call_release_body(struct sfc_rpc_call *call)
{
    call->server->bytes -= call->body.size;
    if (call->who != NULL) {
        sfc_rpc_peer_drop(call->who, call->body.size);
    }
    sfc_rpc_buffer_put(call->body.buffer);
    call->body = (struct sfc_rpc_body){0};
}

static void call_release_tensor(struct sfc_rpc_call *call)
{
    void (*release)(void *ctx) = call->release;
    call->release = NULL;
    if (release != NULL) {
        release(call->release_ctx);
    }
}

/* Called whenever something came back or the handler ended the call. */
static void call_settle(struct sfc_rpc_call *call)
{
    if (call->on_the_way > 0) {
        return;
    }
    if (call->ended || call->gone) {
        call_drop_grpc(call);
    }
    if (!call->ended || call->lent) {
        return;
    }
    call_release_tensor(call);
    call_release_body(call);
    if (call->counted) {
        call->method->pending--;
    }
    if (call->who != NULL) {
        sfc_rpc_peers_leave(call->server->peers, call->who);
    }
    gpr_free(call->peer);
    sfc_rpc_server_unref(call->server);
    free(call);
}

static void call_begin(struct sfc_rpc_call *call, struct sfc_rpc_tag *tag,
                       void (*fire)(struct sfc_rpc_tag *tag, bool ok))
{
    sfc_rpc_op_begin(call->loop, tag, fire);
    call->on_the_way++;
}

static bool call_start(struct sfc_rpc_call *call, const grpc_op *ops, size_t count,
                       struct sfc_rpc_tag *tag, void (*fire)(struct sfc_rpc_tag *tag, bool ok))
{
    call_begin(call, tag, fire);
    if (grpc_call_start_batch(call->grpc, ops, count, tag, NULL) == GRPC_CALL_OK) {
        return true;
    }
    sfc_rpc_op_abandon(call->loop, tag);
    call->on_the_way--;
    return false;
}

/* ---- answers */

static void on_loan_returned(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_loan *loan = SFC_CONTAINER(tag, struct sfc_rpc_loan, tag);
    struct sfc_rpc_call *call = SFC_CONTAINER(loan, struct sfc_rpc_call, loan);
    call->lent = false;
    call_release_tensor(call);
    call_settle(call);
}

static void on_sent(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok; /* a peer that is gone shows in on_closed */
    struct sfc_rpc_call *call = SFC_CONTAINER(tag, struct sfc_rpc_call, sent);
    call->on_the_way--;
    if (call->outgoing != NULL) {
        grpc_byte_buffer_destroy(call->outgoing);
        call->outgoing = NULL;
    }
    call_settle(call);
}

/* Starts the last batch of a call. message NULL: a failure. */
static void call_send(struct sfc_rpc_call *call, grpc_byte_buffer *message, int code,
                      const char *text)
{
    char number[16];
    grpc_slice details = grpc_slice_from_copied_string(text);
    snprintf(number, sizeof number, "%d", code);
    grpc_metadata trailing = {.key = grpc_slice_from_static_string(SFC_RPC_STATUS_KEY),
                              .value = grpc_slice_from_copied_string(number)};
    grpc_op ops[3];
    size_t count = 0;
    memset(ops, 0, sizeof ops);
    ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message != NULL) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = message;
        sfc_rpc_count(&call->loop->sent, message);
    }
    ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[count].data.send_status_from_server.status = sfc_rpc_status_to_grpc(code);
    ops[count].data.send_status_from_server.status_details = &details;
    ops[count].data.send_status_from_server.trailing_metadata = &trailing;
    ops[count].data.send_status_from_server.trailing_metadata_count = code != SFC_OK;
    count++;
    call->outgoing = message;
    call->ended = true;
    call->with_handler = false;
    sfc_rpc_timer_stop(&call->patience);
    bool started = call_start(call, ops, count, &call->sent, on_sent);
    if (!started && message != NULL) {
        grpc_byte_buffer_destroy(message); /* gives a loan back */
        call->outgoing = NULL;
    }
    if (!started) {
        grpc_call_cancel(call->grpc, NULL);
    }
    grpc_slice_unref(trailing.value);
    grpc_slice_unref(details);
    call_settle(call);
}

/* The peer is gone: nothing to send. */
static void call_end_silently(struct sfc_rpc_call *call)
{
    call->ended = true;
    call->with_handler = false;
    sfc_rpc_timer_stop(&call->patience);
    call_settle(call);
}

/* A worker's certificate may be for one run only. */
static bool of_another_run(struct sfc_rpc_call *call, char *text, size_t size)
{
    const char *run = call->server->run;
    if (call->identity.run[0] == '\0' || run[0] == '\0' || strcmp(call->identity.run, run) == 0) {
        return false;
    }
    snprintf(text, size, "the certificate of %s is for run %s, which is not the one here",
             call->identity.name, call->identity.run);
    sfc_rpc_trust_tell(call->peer, text);
    return true;
}

void sfc_rpc_reply(struct sfc_rpc_call *call, struct sfc_bytes head, struct sfc_bytes tensor,
                   void (*release)(void *ctx), void *release_ctx)
{
    call->release = release;
    call->release_ctx = release_ctx;
    if (call->gone) {
        call_end_silently(call);
        return;
    }
    size_t size;
    char text[192];
    if (of_another_run(call, text, sizeof text)) {
        call_send(call, NULL, SFC_EDENIED, text);
        return;
    }
    if (!sfc_size_add(head.size, tensor.size, &size) || size > SFC_LIMIT_MESSAGE) {
        call_send(call, NULL, SFC_ELIMIT, "the answer is larger than a message may be");
        return;
    }
    call->lent = tensor.size > 0;
    grpc_slice slice = sfc_rpc_head_slice(head, tensor.size);
    grpc_byte_buffer *message =
        sfc_rpc_message(call->loop, slice, tensor, &call->loan, on_loan_returned);
    grpc_slice_unref(slice);
    call_send(call, message, SFC_OK, "");
}

void sfc_rpc_fail(struct sfc_rpc_call *call, int code, const char *text)
{
    if (call->gone) {
        call_end_silently(call);
        return;
    }
    char cut[SFC_LIMIT_ERROR_TEXT + 1];
    snprintf(cut, sizeof cut, "%s", text != NULL ? text : sfc_status_text(code));
    call_send(call, NULL, code > SFC_OK && code <= SFC_EINTERNAL ? code : SFC_EINTERNAL, cut);
}

/* ---- health */

static const char health_check[] = "/grpc.health.v1.Health/Check";

/* HealthCheckRequest { string service = 1; } */
static bool health_service(struct sfc_bytes request, struct sfc_bytes *service)
{
    struct sfc_reader reader;
    sfc_reader_init(&reader, request.data, request.size);
    *service = (struct sfc_bytes){NULL, 0};
    if (request.size == 0) {
        return true;
    }
    if (sfc_read_varint(&reader) != (1 << 3 | 2)) {
        return false;
    }
    uint64_t size = sfc_read_varint(&reader);
    if (reader.failed || size != sfc_reader_left(&reader)) {
        return false;
    }
    *service = (struct sfc_bytes){request.data + reader.at, (size_t)size};
    return true;
}

/* "" is the whole server; "shardfc.v1.Shard" is known when a method "/shardfc.v1.Shard/..." is. */
static bool health_known(const struct sfc_rpc_server *server, struct sfc_bytes service)
{
    for (size_t i = 0; i < server->method_count; i++) {
        const char *path = server->methods[i].spec.path + 1;
        if (strlen(path) > service.size && path[service.size] == '/' &&
            memcmp(path, service.data, service.size) == 0) {
            return true;
        }
    }
    return false;
}

static void health_answer(struct sfc_rpc_call *call)
{
    struct sfc_bytes service;
    if (!health_service(call->body.head, &service)) {
        sfc_rpc_fail(call, SFC_EINVAL, "health check: malformed request");
        return;
    }
    if (service.size > 0 && !health_known(call->server, service)) {
        sfc_rpc_fail(call, SFC_ENOTFOUND, "health check: unknown service");
        return;
    }
    /* HealthCheckResponse { ServingStatus status = 1; }: SERVING 1, NOT_SERVING 2 */
    uint8_t reply[2] = {1 << 3, call->server->ready ? 1 : 2};
    sfc_rpc_reply(call, (struct sfc_bytes){reply, sizeof reply}, (struct sfc_bytes){NULL, 0}, NULL,
                  NULL);
}

/* ---- requests */

static bool is_health(const struct sfc_rpc_call *call)
{
    return call->method == NULL;
}

uint64_t sfc_rpc_server_of_peer(const struct sfc_rpc_server *server)
{
    uint64_t said = server->loop->limits.peer_memory;
    return said > 0 ? said : server->most / 4 * 3;
}

static int hold(struct sfc_rpc_call *call, size_t size, struct sfc_error *err)
{
    const struct sfc_rpc_server *server = call->server;
    if (server->bytes + size > server->most) {
        return sfc_fail(err, SFC_ELIMIT,
                        "the server holds %" PRIu64 " bytes of requests, limit %" PRIu64
                        " (half of --message-memory): try later",
                        server->bytes, server->most);
    }
    return sfc_rpc_peer_hold(call->who, size, sfc_rpc_server_of_peer(server), err);
}

static int take_body(struct sfc_rpc_call *call, struct sfc_error *err)
{
    struct sfc_rpc_server *server = call->server;
    size_t max = is_health(call) ? SFC_LIMIT_SMALL : call->method->spec.max_request;
    size_t size = grpc_byte_buffer_length(call->incoming);
    int code = hold(call, size, err);
    if (code != SFC_OK) {
        sfc_rpc_trust_tell_limit(call->peer, err->text);
        return code;
    }
    code = sfc_rpc_receive(call->loop->pool, call->incoming, max, NULL, 0, &call->body, err);
    sfc_rpc_peer_drop(call->who, size - call->body.size); /* all of it where it was refused */
    server->bytes += call->body.size;
    return code;
}

static void on_received(struct sfc_rpc_tag *tag, bool ok)
{
    struct sfc_rpc_call *call = SFC_CONTAINER(tag, struct sfc_rpc_call, received);
    struct sfc_error err = {0};
    call->on_the_way--;
    sfc_rpc_timer_stop(&call->patience);
    sfc_rpc_flows_end(&call->inflow,
                      call->incoming != NULL ? grpc_byte_buffer_length(call->incoming) : 0);
    if (call->ended || call->gone) { /* refused or given up while the body was on its way */
        if (call->incoming != NULL) {
            grpc_byte_buffer_destroy(call->incoming);
        }
        call_end_silently(call);
        return;
    }
    if (!ok || call->incoming == NULL) {
        sfc_rpc_fail(call, SFC_EINVAL, "the request has no message");
        return;
    }
    sfc_rpc_count(&call->loop->received, call->incoming);
    int code = take_body(call, &err);
    grpc_byte_buffer_destroy(call->incoming);
    call->incoming = NULL;
    if (code != SFC_OK) {
        sfc_rpc_fail(call, code, err.text);
    } else if (is_health(call)) {
        health_answer(call);
    } else if (call->server->refusal.code != SFC_OK) {
        sfc_rpc_fail(call, call->server->refusal.code, call->server->refusal.text);
    } else {
        call->with_handler = true;
        call->method->spec.handler(call, call->server->ctx);
    }
}

static void on_closed(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_call *call = SFC_CONTAINER(tag, struct sfc_rpc_call, closed);
    call->on_the_way--;
    if (call->was_cancelled == 0 && call->ended) {
        call_settle(call);
        return;
    }
    call->gone = true;
    sfc_rpc_timer_stop(&call->patience);
    if (!call->with_handler) {
        call_settle(call); /* on_received or on_sent will end it */
        return;
    }
    call->on_the_way++; /* the handler may end the call inside */
    if (call->cancelled != NULL) {
        call->cancelled(call->cancelled_ctx);
    }
    call->on_the_way--;
    call_settle(call);
}

static void out_of_patience(struct sfc_rpc_timer *timer)
{
    struct sfc_rpc_call *call = SFC_CONTAINER(timer, struct sfc_rpc_call, patience);
    sfc_rpc_fail(call, SFC_ETIMEOUT, "the request's message did not arrive in time");
}

static struct sfc_rpc_served *find_method(struct sfc_rpc_server *server, grpc_slice path)
{
    for (size_t i = 0; i < server->method_count; i++) {
        if (grpc_slice_str_cmp(path, server->methods[i].spec.path) == 0) {
            return &server->methods[i];
        }
    }
    return NULL;
}

static bool start_close_watch(struct sfc_rpc_call *call)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->was_cancelled;
    return call_start(call, &op, 1, &call->closed, on_closed);
}

static void start_receive(struct sfc_rpc_call *call)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->incoming;
    if (!call_start(call, &op, 1, &call->received, on_received)) {
        sfc_rpc_fail(call, SFC_EINTERNAL, "cannot receive the request");
        return;
    }
    sfc_rpc_inflow_begin(call->server, call->peer, call->who, &call->inflow);
    sfc_rpc_timer_start(call->loop, &call->patience, SFC_LIMIT_RECEIVE_MS);
}

/* Whether the peer's certificate lets it call this method; says what it lacks, to both sides. */
static bool allowed(struct sfc_rpc_call *call)
{
    char has[64], needs[64], text[320];
    unsigned roles = call->method->spec.roles;
    if (of_another_run(call, text, sizeof text)) {
        sfc_rpc_fail(call, SFC_EDENIED, text);
        return false;
    }
    if ((call->identity.roles & roles) != 0) {
        return true;
    }
    snprintf(text, sizeof text, "%.100s: the certificate of %.63s has %s, this needs %s",
             call->method->spec.path, call->identity.name,
             sfc_roles_text(call->identity.roles, has, sizeof has),
             sfc_roles_text(roles, needs, sizeof needs));
    sfc_rpc_trust_tell(call->peer, text);
    sfc_rpc_fail(call, SFC_EDENIED, text);
    return false;
}

/* Whether its peer may have one more call. */
static bool enter(struct sfc_rpc_call *call)
{
    struct sfc_rpc_server *server = call->server;
    struct sfc_error err = {0};
    char name[SFC_RPC_PEER_NAME];
    sfc_rpc_peer_name(call->peer,
                      sfc_rpc_trust_secure(call->loop->trust) ? call->identity.name : NULL, name);
    int code = sfc_rpc_peers_enter(server->peers, name, &call->loop->limits, uv_now(call->loop->uv),
                                   &call->who, &err);
    if (code != SFC_OK) {
        sfc_rpc_trust_tell_limit(call->peer, err.text);
        sfc_rpc_fail(call, code, err.text);
    }
    return code == SFC_OK;
}

static void handle_arrival(struct sfc_rpc_call *call)
{
    call->peer = grpc_call_get_peer(call->grpc);
    sfc_rpc_trust_peer(call->loop->trust, call->grpc, &call->identity);
    call->method = find_method(call->server, call->details.method);
    if (!start_close_watch(call)) {
        sfc_rpc_fail(call, SFC_EINTERNAL, "cannot watch the call");
        return;
    }
    if (!enter(call)) {
        return;
    }
    if (call->method == NULL) {
        if (grpc_slice_str_cmp(call->details.method, health_check) == 0) {
            start_receive(call);
        } else {
            sfc_rpc_fail(call, SFC_EUNSUPPORTED, "no such method");
        }
        return;
    }
    if (!allowed(call)) {
        return;
    }
    if (call->method->pending >= call->method->spec.max_pending) {
        char text[128];
        snprintf(text, sizeof text, "%u calls of this method are waiting already: try later",
                 call->method->pending);
        sfc_rpc_fail(call, SFC_ELIMIT, text);
        return;
    }
    call->method->pending++;
    call->counted = true;
    start_receive(call);
}

static void discard_accept(struct sfc_rpc_call *call)
{
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    sfc_rpc_server_unref(call->server);
    free(call);
}

static void on_arrived(struct sfc_rpc_tag *tag, bool ok)
{
    struct sfc_rpc_call *call = SFC_CONTAINER(tag, struct sfc_rpc_call, arrived);
    struct sfc_rpc_server *server = call->server;
    server->accepts--;
    if (!ok) { /* the server is shutting down */
        discard_accept(call);
        return;
    }
    sfc_rpc_server_accept(server);
    handle_arrival(call);
}

static bool accept_next(struct sfc_rpc_server *server)
{
    struct sfc_rpc_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        return false;
    }
    call->server = server;
    call->loop = server->loop;
    server->users++;
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    sfc_rpc_timer_init(&call->patience, out_of_patience);
    sfc_rpc_op_begin(server->loop, &call->arrived, on_arrived);
    if (grpc_server_request_call(server->grpc, &call->grpc, &call->details, &call->metadata,
                                 server->loop->queue, server->loop->queue,
                                 &call->arrived) != GRPC_CALL_OK) {
        sfc_rpc_op_abandon(server->loop, &call->arrived);
        discard_accept(call);
        return false;
    }
    return true;
}

/* Tops the accepts up; what failed for want of memory is tried again at the next arrival. */
void sfc_rpc_server_accept(struct sfc_rpc_server *server)
{
    while (!server->stopping && server->accepts < ACCEPTS && accept_next(server)) {
        server->accepts++;
    }
}

/* ---- accessors */

struct sfc_bytes sfc_rpc_call_head(const struct sfc_rpc_call *call)
{
    return call->body.head;
}

struct sfc_bytes sfc_rpc_call_tensor(const struct sfc_rpc_call *call)
{
    return call->body.tensor;
}

static void late_cancel(void *arg);

void sfc_rpc_call_on_cancel(struct sfc_rpc_call *call, void (*cancelled)(void *ctx), void *ctx)
{
    call->cancelled = cancelled;
    call->cancelled_ctx = ctx;
    if (call->gone) { /* already: say so, but not from inside this function */
        call->on_the_way++;
        sfc_rpc_loop_post(call->loop, late_cancel, call);
    }
}

static void late_cancel(void *arg)
{
    struct sfc_rpc_call *call = arg;
    if (call->with_handler && call->cancelled != NULL) {
        call->cancelled(call->cancelled_ctx);
    }
    call->on_the_way--;
    call_settle(call);
}

const char *sfc_rpc_call_peer(const struct sfc_rpc_call *call)
{
    return call->peer != NULL ? call->peer : "?";
}

unsigned sfc_rpc_call_roles(const struct sfc_rpc_call *call)
{
    return call->identity.roles;
}

void sfc_rpc_server_set_ready(struct sfc_rpc_server *server, bool ready)
{
    server->ready = ready;
}

void sfc_rpc_server_set_run(struct sfc_rpc_server *server, const char *run)
{
    snprintf(server->run, sizeof server->run, "%s", run != NULL ? run : "");
}

void sfc_rpc_server_refuse(struct sfc_rpc_server *server, int code, const char *text)
{
    sfc_fail(&server->refusal, code, "%s", text);
}
