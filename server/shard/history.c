#include "server/shard/history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "server/shard/block_copy.h"
#include "server/shard/copy_piece.h"
#include "server/shard/shard_internal.h"

#define PATIENCE_MS 15000
#define RETRY_MS    5 /* a step waits: at the next tick, then twice as long, up to */
#define MOST_MS     100
#define DEADLINE_MS 5000
#define PIECE       (UINT64_C(1) << 20)

struct sfc_history {
    unsigned refs;             /* the run, and the call on its way */
    struct sfc_shard_run *run; /* NULL: it has let go */
    void (*done)(struct sfc_shard_run *run, int code, const char *text);
    bool exactly, calling, landing;
    uint64_t wanted;
    uint64_t copy;
    uint32_t place;
    struct sfc_rpc_client *client;
    uint64_t began_ms, retry_ms, pause_ms;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_shape shape;
    float *rates; /* NULL: not begun */
    void *parts[SFC_SNAPSHOT_PARTS];
    uint64_t bytes, received;
    struct sfc_compute_job job;
    char text[SFC_LIMIT_ERROR_TEXT];
};

static void unref(struct sfc_history *h)
{
    if (--h->refs > 0)
        return;
    free(h->rates);
    free(h);
}

static void leave(struct sfc_history *h)
{
    h->run->history = NULL;
    h->run = NULL;
    sfc_rpc_client_free(h->client);
    h->client = NULL;
    unref(h);
}

void sfc_history_free(struct sfc_shard_run *run)
{
    if (run->history)
        leave(run->history);
}

static void finish(struct sfc_history *h, int code, const char *text)
{
    struct sfc_shard_run *run = h->run;
    void (*done)(struct sfc_shard_run *, int, const char *) = h->done;
    char words[SFC_LIMIT_ERROR_TEXT];
    snprintf(words, sizeof words, "%s", text);
    leave(h);
    done(run, code, words);
}

/* ---- whom to ask */

static bool next_place(struct sfc_history *h)
{
    struct sfc_shard_run *run = h->run;
    for (uint32_t i = 0; i < run->place_count; i++) {
        h->place = (h->place + 1) % run->place_count;
        if (h->place != run->self && run->places[h->place][0])
            return true;
    }
    return false;
}

static void retry(struct sfc_history *h, const char *text)
{
    uint64_t now = uv_now(h->run->shard->uv);
    snprintf(h->text, sizeof h->text, "%s", text);
    sfc_rpc_client_free(h->client);
    h->client = NULL;
    free(h->rates);
    h->rates = NULL;
    h->retry_ms = now + h->pause_ms;
    h->pause_ms = 2 * h->pause_ms < MOST_MS ? 2 * h->pause_ms : MOST_MS;
    if (now < h->began_ms + PATIENCE_MS)
        return;
    char why[SFC_LIMIT_ERROR_TEXT];
    snprintf(why, sizeof why, "no other shard gives the history of learning rates: %.400s", text);
    finish(h, SFC_EUNAVAILABLE, why);
}

static void call(struct sfc_history *h, const char *method, const void *request, sfc_rpc_done done)
{
    struct sfc_error err = {0};
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(request, &size);
    struct sfc_rpc_request c = {.method = method,
                                .head = {bytes, size},
                                .deadline_ms = DEADLINE_MS,
                                .max_reply = PIECE + SFC_LIMIT_SMALL};
    int code = bytes ? sfc_rpc_client_call(h->client, &c, done, h, NULL, &err)
                     : sfc_fail(&err, SFC_ENOMEM, "no memory for a request");
    free(bytes);
    h->calling = code == SFC_OK;
    if (h->calling)
        h->refs++;
    else
        retry(h, err.text);
}

/* Whether somebody still waits; the call's reference goes. */
static bool answered(struct sfc_history *h)
{
    bool wanted = h->run && !h->run->closed;
    h->calling = false;
    if (wanted) /* and so it lives on */
        h->refs--;
    else
        unref(h);
    return wanted;
}

/* ---- the end: head and disk */

static void kept(struct sfc_shard_run *run, int code, const char *text)
{
    finish(run->history, code, text);
}

static int write_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err)
{
    struct sfc_history *h = ctx;
    (void)dense;
    return h->key.step ? sfc_head_write_rates(head, 0, h->key.step, h->rates, err) : SFC_OK;
}

static void written(struct sfc_compute_job *job)
{
    struct sfc_history *h = job->owner;
    struct sfc_shard_run *run = h->run;
    if (run->closed)
        return;
    if (job->code != SFC_OK || !run->durability.on)
        finish(h, job->code, job->error.text);
    else
        sfc_durability_adopt(run, SFC_ADOPT_HISTORY, &h->key, &h->shape, h->parts, kept);
}

static void land(struct sfc_history *h)
{
    h->landing = true;
    h->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = written, .owner = h};
    h->job.u.call.fn = write_work;
    h->job.u.call.ctx = h;
    sfc_compute_submit(h->run->shard->compute, &h->job);
}

/* ---- pieces */

static void read_next(struct sfc_history *h);

static uint64_t piece_of(const struct sfc_history *h)
{
    uint64_t left = h->bytes - h->received;
    return left < PIECE ? left : PIECE;
}

static void piece_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_history *h = ctx;
    struct sfc_error err = {0};
    if (!answered(h))
        return;
    uint64_t count = piece_of(h);
    if (sfc_copy_piece(view, count, &err) != SFC_OK) {
        retry(h, err.text);
        return;
    }
    memcpy((char *)h->rates + h->received, view->tensor.data, count);
    h->received += count;
    read_next(h);
}

static void end_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_history *h = ctx;
    (void)view; /* the lease ends what this did not */
    if (answered(h))
        land(h);
}

static void read_next(struct sfc_history *h)
{
    uint64_t count = piece_of(h);
    if (count == 0) {
        Shardfc__V1__EndCopyRequest r = SHARDFC__V1__END_COPY_REQUEST__INIT;
        r.run_id = h->run->id;
        r.copy = h->copy;
        call(h, "/shardfc.v1.Shard/EndCopy", &r, end_answered);
        return;
    }
    Shardfc__V1__ReadCopyRequest r = SHARDFC__V1__READ_COPY_REQUEST__INIT;
    r.run_id = h->run->id;
    r.copy = h->copy;
    r.kind = SHARDFC__V1__BLOCK_KIND__HISTORY;
    r.offset = h->received;
    r.count = count;
    call(h, "/shardfc.v1.Shard/ReadCopy", &r, piece_answered);
}

static int take_begin(struct sfc_history *h, const struct sfc_rpc_reply_view *view,
                      struct sfc_error *err)
{
    const struct sfc_snapshot_block block = {SFC_SNAPSHOT_HISTORY, 0};
    if (view->code != SFC_OK)
        return sfc_fail(err, view->code, "%s", view->text);
    Shardfc__V1__BeginCopyReply *r =
        sfc_unpack_reply(view->head, &shardfc__v1__begin_copy_reply__descriptor, NULL);
    if (!r)
        return sfc_fail(err, SFC_EUNAVAILABLE, "its answer is malformed, or memory is short");
    uint64_t step = r->step, bytes = r->bytes;
    h->key = (struct sfc_snapshot_key){.kind = SFC_SNAPSHOT_HISTORY, .step = step};
    if (r->round)
        h->key.round = (struct sfc_attempt){r->round->incarnation, r->round->counter};
    sfc_message_free(r);
    if (step > h->run->setup.head.steps || (h->exactly && step != h->wanted))
        return sfc_fail(err, SFC_EINVAL, "a history of %" PRIu64 " steps", step);
    sfc_block_shape(&h->run->setup, &block, step, &h->shape);
    h->bytes = sfc_block_lay_out(&h->shape, NULL, NULL);
    h->received = 0;
    h->rates = aligned_alloc(64, h->bytes + 64);
    if (!h->rates)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the history");
    sfc_block_lay_out(&h->shape, h->rates, h->parts);
    return bytes == h->bytes ? SFC_OK
                             : sfc_fail(err, SFC_EINVAL, "a history of %" PRIu64 " bytes", bytes);
}

static void begun(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_history *h = ctx;
    struct sfc_error err = {0};
    if (!answered(h))
        return;
    if (take_begin(h, view, &err) != SFC_OK)
        retry(h, err.text);
    else
        read_next(h);
}

static void begin(struct sfc_history *h)
{
    struct sfc_error err = {0};
    Shardfc__V1__BeginCopyRequest r = SHARDFC__V1__BEGIN_COPY_REQUEST__INIT;
    if (!next_place(h)) {
        finish(h, SFC_EINVAL, "the map has no other shard to take the history from");
        return;
    }
    if (sfc_rpc_client_new(h->run->shard->rpc, h->run->places[h->place], &h->client, &err) !=
        SFC_OK) {
        h->client = NULL;
        retry(h, err.text);
        return;
    }
    r.run_id = h->run->id;
    r.copy = h->copy;
    r.kind = SHARDFC__V1__BLOCK_KIND__HISTORY;
    r.exactly = h->exactly;
    r.step = h->wanted;
    call(h, "/shardfc.v1.Shard/BeginCopy", &r, begun);
}

bool sfc_history_tick(struct sfc_shard_run *run)
{
    struct sfc_history *h = run->history;
    if (h && !h->calling && !h->landing && uv_now(run->shard->uv) >= h->retry_ms)
        begin(h);
    return run->history != NULL;
}

void sfc_history_fetch(struct sfc_shard_run *run, bool exactly, uint64_t step,
                       void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_history *h = calloc(1, sizeof *h);
    if (!h) {
        done(run, SFC_EUNAVAILABLE, "no memory for the history");
        return;
    }
    h->refs = 1;
    h->run = run;
    h->done = done;
    h->exactly = exactly;
    h->wanted = step;
    h->place = run->self;
    h->began_ms = uv_now(run->shard->uv);
    h->pause_ms = RETRY_MS;
    while (h->copy == 0)
        if (getrandom(&h->copy, sizeof h->copy, 0) != (ssize_t)sizeof h->copy)
            h->copy = run->shard->boot_id;
    run->history = h;
    sfc_shard_watch_moves(run->shard); /* the tick begins it */
}
