#include "proto/rpc_client_internal.h"

#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/text.h"
#include "proto/rpc_trust.h"

enum { BACKOFF_FIRST_MS = 50, BACKOFF_MAX_MS = 2000 };

struct sfc_rpc_client {
    struct sfc_rpc_link link;
    struct sfc_rpc_loop *loop;
    grpc_channel *channels[SFC_RPC_ADDRESSES]; /* gone: NULL */
    unsigned count;                            /* of addresses */
    unsigned current;                          /* where the next try goes */
    char *address;                             /* all of them, as they were given */
    struct sfc_rpc_link calls;                 /* struct client_call.link */
    size_t batches;                            /* on their way */
    bool closing;
};

/* One call over all its tries. A try is over when its batch came back and gRPC let go of the
 * tensor. */
struct client_call {
    struct sfc_rpc_link link;
    struct sfc_rpc_client *client;
    uint64_t handle;
    grpc_slice method;
    grpc_slice head; /* with the tensor's tag and length */
    struct sfc_bytes tensor;
    unsigned deadline_ms, retries, tries;
    size_t max_reply;
    void *into;
    size_t into_size;
    sfc_rpc_deliver deliver;
    void *ctx;
    struct sfc_rpc_timer backoff;
    struct sfc_rpc_tag batch;
    struct sfc_rpc_loan loan;
    bool batch_out, loan_out, canceled;
    /* of one try */
    unsigned at; /* address */
    grpc_call *grpc;
    grpc_byte_buffer *outgoing, *incoming;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    /* result */
    int code;
    char text[SFC_LIMIT_ERROR_TEXT + 1];
    struct sfc_rpc_body body;
};

static void client_settle(struct sfc_rpc_client *client);
static void start_try(struct client_call *call);

/* ---- end of a call */

static void call_finish(struct client_call *call)
{
    struct sfc_rpc_client *client = call->client;
    sfc_rpc_list_remove(&call->link);
    sfc_rpc_timer_stop(&call->backoff);
    grpc_slice_unref(call->head);
    grpc_slice_unref(call->method);
    call->deliver(call->code, call->text, &call->body, call->ctx);
    sfc_rpc_buffer_put(call->body.buffer); /* NULL when deliver kept it */
    free(call);
    client_settle(client);
}

static void call_set(struct client_call *call, int code, const char *text)
{
    call->code = code;
    snprintf(call->text, sizeof call->text, "%s", text);
}

static bool worth_repeating(const struct client_call *call)
{
    return (call->code == SFC_EUNAVAILABLE || call->code == SFC_ETIMEOUT) && !call->canceled &&
           !call->client->closing && call->tries <= call->retries;
}

static void on_backoff_over(struct sfc_rpc_timer *timer)
{
    start_try(SFC_CONTAINER(timer, struct client_call, backoff));
}

/* Doubles from 50 ms to 2 s; each wait is drawn from its upper half, so that callers spread. */
static void back_off(struct client_call *call)
{
    uint64_t wait = BACKOFF_MAX_MS;
    if (call->tries <= 5) {
        wait = (uint64_t)BACKOFF_FIRST_MS << call->tries;
    }
    wait = wait / 2 + sfc_rpc_random(call->client->loop) % (wait / 2 + 1);
    sfc_rpc_timer_start(call->client->loop, &call->backoff, wait);
}

static void try_over(struct client_call *call)
{
    if (call->batch_out || call->loan_out) {
        return;
    }
    if (worth_repeating(call)) {
        back_off(call);
        return;
    }
    call_finish(call);
}

/* ---- one try */

static void take_reply(struct client_call *call)
{
    struct sfc_error err = {0};
    if (call->incoming == NULL) {
        call_set(call, SFC_ECORRUPT, "the answer has no message");
        return;
    }
    int code = sfc_rpc_receive(call->client->loop->pool, call->incoming, call->max_reply,
                               call->into, call->into_size, &call->body, &err);
    call_set(call, code, code == SFC_OK ? "" : err.text);
}

static void take_failure(struct client_call *call)
{
    char text[SFC_LIMIT_ERROR_TEXT + 1];
    size_t size = GRPC_SLICE_LENGTH(call->details);
    size = size < SFC_LIMIT_ERROR_TEXT ? size : SFC_LIMIT_ERROR_TEXT;
    memcpy(text, GRPC_SLICE_START_PTR(call->details), size);
    text[size] = '\0';
    sfc_clean_text(text, false);
    call_set(call, sfc_rpc_status_from_grpc(call->status, &call->trailing), text);
    call->body.answered = sfc_rpc_status_is_named(&call->trailing);
    if (text[0] == '\0') {
        call_set(call, call->code, sfc_status_text(call->code));
    }
}

static void free_try(struct client_call *call)
{
    if (call->outgoing != NULL) {
        grpc_byte_buffer_destroy(call->outgoing);
    }
    if (call->incoming != NULL) {
        grpc_byte_buffer_destroy(call->incoming);
    }
    call->outgoing = call->incoming = NULL;
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->details);
    grpc_call_unref(call->grpc);
    call->grpc = NULL;
}

/* Whoever was there does not answer, or is not the one to ask: the next try goes to the next
 * address.
 */
static void look_elsewhere(const struct client_call *call)
{
    struct sfc_rpc_client *client = call->client;
    if ((call->code == SFC_EUNAVAILABLE || call->code == SFC_ETIMEOUT) &&
        client->current == call->at) {
        client->current = (client->current + 1) % client->count;
    }
}

static void on_batch(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok; /* always true for a batch that receives the status */
    struct client_call *call = SFC_CONTAINER(tag, struct client_call, batch);
    call->batch_out = false;
    call->client->batches--;
    if (call->canceled) {
        call_set(call, SFC_ECANCELED, "canceled");
    } else if (call->status == GRPC_STATUS_OK) {
        sfc_rpc_count(&call->client->loop->received, call->incoming);
        take_reply(call);
    } else {
        take_failure(call);
        look_elsewhere(call);
    }
    free_try(call);
    struct sfc_rpc_client *client = call->client;
    client->batches++; /* keeps the client over the end of the call */
    try_over(call);
    client->batches--;
    client_settle(client);
}

static void on_loan_returned(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_loan *loan = SFC_CONTAINER(tag, struct sfc_rpc_loan, tag);
    struct client_call *call = SFC_CONTAINER(loan, struct client_call, loan);
    call->loan_out = false;
    try_over(call);
}

static size_t fill_ops(struct client_call *call, grpc_op ops[6])
{
    memset(ops, 0, 6 * sizeof *ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = call->outgoing;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &call->incoming;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &call->trailing;
    ops[5].data.recv_status_on_client.status = &call->status;
    ops[5].data.recv_status_on_client.status_details = &call->details;
    return 6;
}

static void start_try(struct client_call *call)
{
    struct sfc_rpc_client *client = call->client;
    struct sfc_rpc_loop *loop = client->loop;
    grpc_op ops[6];
    gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                     gpr_time_from_millis((int64_t)call->deadline_ms, GPR_TIMESPAN));
    call->at = client->current;
    if (call->tries++ > 0) {
        atomic_fetch_add_explicit(&loop->retries, 1, memory_order_relaxed);
        /* our pauses set the pace */
        grpc_channel_reset_connect_backoff(client->channels[call->at]);
    }
    call->grpc = grpc_channel_create_call(client->channels[call->at], NULL, GRPC_PROPAGATE_DEFAULTS,
                                          loop->queue, call->method, NULL, deadline, NULL);
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    call->details = grpc_empty_slice();
    call->loan_out = call->tensor.size > 0;
    call->outgoing = sfc_rpc_message(loop, call->head, call->tensor, &call->loan, on_loan_returned);
    sfc_rpc_count(&loop->sent, call->outgoing);
    sfc_rpc_op_begin(loop, &call->batch, on_batch);
    call->batch_out = true;
    client->batches++;
    grpc_call_error rc =
        grpc_call_start_batch(call->grpc, ops, fill_ops(call, ops), &call->batch, NULL);
    if (rc != GRPC_CALL_OK) { /* a bug of ours; end in the usual way, not from inside */
        call->status = GRPC_STATUS_INTERNAL;
        call->details = grpc_slice_from_copied_string(grpc_call_error_to_string(rc));
        sfc_rpc_enqueue(loop, &call->batch, false);
    }
}

/* ---- calls */

static int check_request(const struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                         struct sfc_error *err)
{
    size_t size;
    if (client->closing || client->loop->stopping) {
        return sfc_fail(err, SFC_ECANCELED, "the connection to %s is closing", client->address);
    }
    if (request->deadline_ms == 0 || request->deadline_ms > SFC_LIMIT_DEADLINE_MS) {
        return sfc_fail(err, SFC_EINVAL, "%s: deadline of %u ms, allowed 1 to %u", request->method,
                        request->deadline_ms, SFC_LIMIT_DEADLINE_MS);
    }
    if (request->retries > SFC_LIMIT_RETRIES) {
        return sfc_fail(err, SFC_EINVAL, "%s: %u retries, allowed %u", request->method,
                        request->retries, SFC_LIMIT_RETRIES);
    }
    if (!sfc_size_add(request->head.size, request->tensor.size, &size) ||
        size > SFC_LIMIT_MESSAGE - SFC_WIRE_PREFIX_MAX) {
        return sfc_fail(err, SFC_ELIMIT, "%s: request of more than %u bytes", request->method,
                        SFC_LIMIT_MESSAGE - SFC_WIRE_PREFIX_MAX);
    }
    return SFC_OK;
}

int sfc_rpc_client_begin(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                         sfc_rpc_deliver deliver, void *ctx, uint64_t *handle,
                         struct sfc_error *err)
{
    int code = check_request(client, request, err);
    if (code != SFC_OK) {
        return code;
    }
    struct client_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "%s: no memory for a call", request->method);
    }
    call->client = client;
    call->handle = client->loop->next_handle++;
    call->method = grpc_slice_from_copied_string(request->method);
    call->head = sfc_rpc_head_slice(request->head, request->tensor.size);
    call->tensor = request->tensor;
    call->deadline_ms = request->deadline_ms;
    call->retries = request->retries;
    call->max_reply = request->max_reply > 0 ? request->max_reply : SFC_LIMIT_MESSAGE;
    call->into = request->into;
    call->into_size = request->into_size;
    call->deliver = deliver;
    call->ctx = ctx;
    sfc_rpc_timer_init(&call->backoff, on_backoff_over);
    sfc_rpc_list_insert_before(&client->calls, &call->link);
    if (handle != NULL) {
        *handle = call->handle;
    }
    start_try(call);
    return SFC_OK;
}

static void on_canceled_between_tries(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct client_call *call = SFC_CONTAINER(tag, struct client_call, batch);
    call_set(call, SFC_ECANCELED, "canceled");
    call->batch_out = false;
    try_over(call);
}

/* done is called later, never from in here. */
static void call_cancel(struct client_call *call)
{
    if (call->canceled) {
        return;
    }
    call->canceled = true;
    if (call->grpc != NULL) {
        grpc_call_cancel(call->grpc, NULL);
    } else if (!sfc_rpc_list_empty(&call->backoff.link)) {
        sfc_rpc_timer_stop(&call->backoff);
        sfc_rpc_op_begin(call->client->loop, &call->batch, on_canceled_between_tries);
        call->batch_out = true;
        sfc_rpc_enqueue(call->client->loop, &call->batch, true);
    } /* otherwise only the loan is out: the result stands */
}

void sfc_rpc_client_cancel(struct sfc_rpc_client *client, uint64_t handle)
{
    for (struct sfc_rpc_link *link = client->calls.next; link != &client->calls;
         link = link->next) {
        struct client_call *call = SFC_CONTAINER(link, struct client_call, link);
        if (call->handle == handle) {
            call_cancel(call);
            return;
        }
    }
}

struct callback {
    sfc_rpc_done done;
    void *ctx;
};

static void deliver_view(int code, const char *text, struct sfc_rpc_body *body, void *ctx)
{
    struct callback callback = *(struct callback *)ctx;
    free(ctx);
    struct sfc_rpc_reply_view view = {
        .code = code, .text = text, .head = body->head, .tensor = body->tensor};
    callback.done(&view, callback.ctx);
}

int sfc_rpc_client_call(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                        sfc_rpc_done done, void *ctx, uint64_t *handle, struct sfc_error *err)
{
    struct callback *callback = malloc(sizeof *callback);
    if (callback == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "%s: no memory for a call", request->method);
    }
    *callback = (struct callback){done, ctx};
    int code = sfc_rpc_client_begin(client, request, deliver_view, callback, handle, err);
    if (code != SFC_OK) {
        free(callback);
    }
    return code;
}

/* ---- client */

static grpc_arg int_arg(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value = {.integer = value}};
}

static int make_channel(const struct sfc_rpc_trust *trust, const char *address, grpc_channel **out,
                        struct sfc_error *err)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, SFC_LIMIT_MESSAGE),
        int_arg(GRPC_ARG_MAX_METADATA_SIZE, SFC_LIMIT_METADATA),
        int_arg("grpc.per_message_decompression", 0),
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
        int_arg(GRPC_ARG_ENABLE_RETRIES, 0), /* ours know which calls may be repeated */
        int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        int_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1), /* a connection of its own */
        int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000), /* also the time a connect may take */
        int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, SFC_RPC_KEEPALIVE_MS),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, SFC_RPC_KEEPALIVE_TIMEOUT_MS),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args list = {sizeof args / sizeof *args, args};
    grpc_channel_credentials *credentials = NULL;
    int code = sfc_rpc_trust_call(trust, address, &credentials, err);
    if (code != SFC_OK) {
        return code;
    }
    *out = grpc_channel_create(address, credentials, &list);
    grpc_channel_credentials_release(credentials);
    return SFC_OK;
}

/* "HOST:PORT" with a port of 1..65535: gRPC would take a larger one modulo 65536. */
static bool address_valid(const char *address)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address || strlen(address) > SFC_LIMIT_ADDRESS) {
        return false;
    }
    size_t digits = strspn(colon + 1, "0123456789");
    int port = digits > 0 && digits <= 5 ? atoi(colon + 1) : 0;
    return colon[1 + digits] == '\0' && port >= 1 && port <= 65535;
}

/* Takes the next of "HOST:PORT,HOST:PORT,..."; *at: NULL behind the last. */
static int next_address(const char **at, char *address, struct sfc_error *err)
{
    size_t size = strcspn(*at, ",");
    snprintf(address, SFC_LIMIT_ADDRESS + 1, "%.*s", (int)(size <= SFC_LIMIT_ADDRESS ? size : 0),
             *at);
    if (!address_valid(address)) {
        return sfc_fail(err, SFC_EINVAL, "\"%.*s\" is not HOST:PORT with a port of 1 to 65535",
                        (int)(size < SFC_LIMIT_ADDRESS ? size : SFC_LIMIT_ADDRESS), *at);
    }
    *at = (*at)[size] == ',' ? *at + size + 1 : NULL;
    return SFC_OK;
}

/* What is no list of addresses is told before what may not be called. */
static int check_addresses(const char *list, struct sfc_error *err)
{
    char address[SFC_LIMIT_ADDRESS + 1];
    int count = 0, code = SFC_OK;
    for (const char *at = list; code == SFC_OK && at != NULL; count++) {
        code = count < SFC_RPC_ADDRESSES
                   ? next_address(&at, address, err)
                   : sfc_fail(err, SFC_EINVAL, "more than %d addresses", SFC_RPC_ADDRESSES);
    }
    return code;
}

static int add_channels(struct sfc_rpc_client *client, const char *list, struct sfc_error *err)
{
    char address[SFC_LIMIT_ADDRESS + 1];
    int code = check_addresses(list, err);
    for (const char *at = list; code == SFC_OK && at != NULL;) {
        code = next_address(&at, address, err);
        if (code == SFC_OK) {
            code =
                make_channel(client->loop->trust, address, &client->channels[client->count], err);
        }
        client->count += code == SFC_OK;
    }
    return code;
}

static void drop_channels(struct sfc_rpc_client *client)
{
    for (unsigned i = 0; i < client->count; i++) {
        if (client->channels[i] != NULL) {
            grpc_channel_destroy(client->channels[i]);
            client->channels[i] = NULL;
        }
    }
}

int sfc_rpc_client_new(struct sfc_rpc_loop *loop, const char *address, struct sfc_rpc_client **out,
                       struct sfc_error *err)
{
    if (loop->stopping) {
        return sfc_fail(err, SFC_ESTATE, "the RPC loop is stopping");
    }
    struct sfc_rpc_client *client = calloc(1, sizeof *client);
    char *copy = strdup(address);
    if (client == NULL || copy == NULL) {
        free(client);
        free(copy);
        return sfc_fail(err, SFC_ENOMEM, "no memory for a client of %.256s", address);
    }
    client->loop = loop;
    client->address = copy;
    int code = add_channels(client, address, err);
    if (code != SFC_OK) {
        drop_channels(client);
        free(copy);
        free(client);
        return code;
    }
    sfc_rpc_list_init(&client->calls);
    sfc_rpc_list_insert_before(&loop->clients, &client->link);
    *out = client;
    return SFC_OK;
}

int sfc_rpc_client_like(const struct sfc_rpc_client *other, struct sfc_rpc_client **out,
                        struct sfc_error *err)
{
    struct sfc_rpc_client *client = NULL;
    int code = sfc_rpc_client_new(other->loop, other->address, &client, err);
    if (code == SFC_OK) {
        client->current = other->current;
        *out = client;
    }
    return code;
}

unsigned sfc_rpc_client_addresses(const struct sfc_rpc_client *client)
{
    return client->count;
}

/* The channels go as soon as no batch is on its way (that also makes gRPC let go of loans that a
 * peer doesn't read), the client after its last call. */
static void client_settle(struct sfc_rpc_client *client)
{
    if (!client->closing || client->batches > 0) {
        return;
    }
    drop_channels(client);
    if (sfc_rpc_list_empty(&client->calls)) {
        sfc_rpc_list_remove(&client->link);
        free(client->address);
        free(client);
    }
}

void sfc_rpc_client_free(struct sfc_rpc_client *client)
{
    if (client == NULL || client->closing) {
        return;
    }
    client->closing = true;
    for (struct sfc_rpc_link *link = client->calls.next; link != &client->calls;
         link = link->next) {
        call_cancel(SFC_CONTAINER(link, struct client_call, link));
    }
    client_settle(client);
}

void sfc_rpc_client_reconnect(struct sfc_rpc_client *client)
{
    for (unsigned i = 0; i < client->count; i++) {
        if (client->channels[i] != NULL) {
            grpc_channel_reset_connect_backoff(client->channels[i]);
        }
    }
}

const char *sfc_rpc_client_address(const struct sfc_rpc_client *client)
{
    return client->address;
}

struct sfc_rpc_loop *sfc_rpc_client_loop(const struct sfc_rpc_client *client)
{
    return client->loop;
}

struct sfc_rpc_client *sfc_rpc_client_of_link(struct sfc_rpc_link *link)
{
    return SFC_CONTAINER(link, struct sfc_rpc_client, link);
}
