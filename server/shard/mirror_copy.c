/* The copy of one block from its owner: asked for, read in pieces, held until this shard is as far,
 * written. One at a time; what fails is begun anew a little later. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "proto/base/buffer.h"
#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/copy_piece.h"
#include "server/shard/mirror_parts.h"

#define RETRY_MS    250
#define DEADLINE_MS 10000
#define TELL_MS     2000
#define PATIENCE_MS 15000 /* of an owner that is busy, or restarts */
#define PIECE       (UINT64_C(1) << 20)

/* ---- life */

static void unref(struct sfc_mirror_copy *c)
{
    if (--c->refs == 0)
        free(c);
}

static void told(const struct sfc_rpc_reply_view *view, void *ctx)
{
    (void)view; /* the lease ends what this did not */
    sfc_rpc_client_free(ctx);
}

/* An owner that isn't told keeps a copy that nobody reads until its lease ends, and lets others
 * wait for the place of it. The call outlives the copy, and the run: it has the client now. */
static void tell_owner(struct sfc_mirror_copy *c)
{
    Shardfc__V1__EndCopyRequest end = SHARDFC__V1__END_COPY_REQUEST__INIT;
    struct sfc_error err = {0};
    size_t size = 0;
    end.run_id = c->mirror->run->id;
    end.copy = c->id;
    uint8_t *bytes = sfc_message_pack(&end, &size);
    const struct sfc_rpc_request r = {.method = "/shardfc.v1.Shard/EndCopy",
                                      .head = {bytes, size},
                                      .deadline_ms = TELL_MS,
                                      .max_reply = SFC_LIMIT_SMALL};
    if (bytes && sfc_rpc_client_call(c->client, &r, told, c->client, NULL, &err) == SFC_OK)
        c->client = NULL;
    free(bytes);
}

static void let_go(struct sfc_mirror_copy *c)
{
    if (c->placed)
        tell_owner(c);
    c->mirror->copy = NULL;
    c->mirror->hold = UINT64_MAX;
    c->mirror = NULL;
    sfc_rpc_client_free(c->client); /* a call on its way ends later */
    c->client = NULL;
    unref(c);
}

static void say(struct sfc_mirror_copy *c, const char *text)
{
    struct sfc_mirror *m = c->mirror;
    if (strcmp(m->reason, text))
        sfc_warning_log("run %" PRIu64 ": mirror of shard %s: %s", m->run->id, c->address, text);
    snprintf(m->reason, sizeof m->reason, "%s", text);
    m->reason_place = c->place;
}

/* The owner may serve another mirror just now. */
static void retry(struct sfc_mirror_copy *c, int code, const char *text)
{
    struct sfc_mirror *m = c->mirror;
    uint64_t now = uv_now(m->run->shard->uv);
    if (code != SFC_EUNAVAILABLE || now > m->good_ms + PATIENCE_MS)
        say(c, text);
    m->retry_ms = now + RETRY_MS;
    let_go(c);
}

/* ---- calls */

static bool call(struct sfc_mirror_copy *c, const char *method, const void *request,
                 sfc_rpc_done done)
{
    struct sfc_error err = {0};
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(request, &size);
    struct sfc_rpc_request r = {.method = method,
                                .head = {bytes, size},
                                .deadline_ms = DEADLINE_MS,
                                .max_reply = PIECE + SFC_LIMIT_SMALL};
    int code = bytes ? sfc_rpc_client_call(c->client, &r, done, c, NULL, &err)
                     : sfc_fail(&err, SFC_ENOMEM, "no memory for a request");
    free(bytes);
    c->calling = code == SFC_OK;
    if (c->calling)
        c->refs++;
    else
        retry(c, code, err.text);
    return c->calling;
}

/* Whether somebody still waits; the call's reference goes. */
static bool answered(struct sfc_mirror_copy *c)
{
    bool wanted = c->mirror && !c->mirror->run->closed;
    c->calling = false;
    if (wanted) /* and so it lives on */
        c->refs--;
    else
        unref(c);
    return wanted;
}

/* ---- onto the disk */

static void kept(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_mirror *m = run->mirror;
    struct sfc_mirror_copy *c = m->copy;
    if (code != SFC_OK) {
        retry(c, code, text);
        return;
    }
    sfc_mirror_kept(m, &c->key);
    m->good_ms = uv_now(run->shard->uv);
    m->reason[0] = 0;
    let_go(c);
    sfc_mirror_kick(m);
}

/* A later step may be given up, and the copy with it, while this shard stays where it is. */
static void write_if_reached(struct sfc_mirror_copy *c)
{
    struct sfc_shard_run *run = c->mirror->run;
    if (c->phase != SFC_MIRROR_HELD || c->calling || run->durability.durable_step < c->key.step)
        return;
    c->phase = SFC_MIRROR_WRITING;
    sfc_rpc_client_free(c->client); /* the loop of calls may end before this is written */
    c->client = NULL;
    sfc_durability_adopt(run, SFC_ADOPT_MIRROR, &c->key, &c->shape, c->parts, kept);
}

static void end_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_mirror_copy *c = ctx;
    (void)view; /* the lease ends what this did not */
    if (!answered(c))
        return;
    c->placed = false;
    write_if_reached(c);
}

static void whole(struct sfc_mirror_copy *c)
{
    Shardfc__V1__EndCopyRequest r = SHARDFC__V1__END_COPY_REQUEST__INIT;
    r.run_id = c->mirror->run->id;
    r.copy = c->id;
    c->phase = SFC_MIRROR_HELD;
    (void)call(c, "/shardfc.v1.Shard/EndCopy", &r, end_answered);
}

/* ---- pieces */

static void read_next(struct sfc_mirror_copy *c);

static uint64_t piece_of(const struct sfc_mirror_copy *c)
{
    uint64_t left = c->bytes - c->received;
    return left < PIECE ? left : PIECE;
}

static void piece_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_mirror_copy *c = ctx;
    struct sfc_error err = {0};
    if (!answered(c))
        return;
    uint64_t count = piece_of(c);
    int code = sfc_copy_piece(view, count, &err);
    if (code != SFC_OK) {
        retry(c, code, err.text);
        return;
    }
    memcpy((char *)c->mirror->data + c->received, view->tensor.data, count);
    c->received += count;
    read_next(c);
}

/* As the rate allows; else the tick goes on with it. */
static void read_next(struct sfc_mirror_copy *c)
{
    struct sfc_mirror *m = c->mirror;
    uint64_t count = piece_of(c);
    if (count == 0) {
        whole(c);
        return;
    }
    if (sfc_sweep_allowance(&m->sweep, uv_now(m->run->shard->uv)) == 0)
        return;
    sfc_sweep_wrote(&m->sweep, count);
    Shardfc__V1__ReadCopyRequest r = SHARDFC__V1__READ_COPY_REQUEST__INIT;
    r.run_id = m->run->id;
    r.copy = c->id;
    r.kind = (Shardfc__V1__BlockKind)c->block.kind; /* the same numbers */
    r.block = c->block.block;
    r.offset = c->received;
    r.count = count;
    (void)call(c, "/shardfc.v1.Shard/ReadCopy", &r, piece_answered);
}

/* ---- the beginning */

static int take_begin(struct sfc_mirror_copy *c, const struct sfc_rpc_reply_view *view,
                      struct sfc_error *err)
{
    struct sfc_mirror *m = c->mirror;
    if (view->code != SFC_OK)
        return sfc_fail(err, view->code, "%s", view->text);
    Shardfc__V1__BeginCopyReply *r =
        sfc_unpack_reply(view->head, &shardfc__v1__begin_copy_reply__descriptor, NULL);
    if (!r)
        return sfc_fail(err, SFC_EUNAVAILABLE, "its answer is malformed, or memory is short");
    uint64_t bytes = r->bytes, rows = r->rows;
    c->key = (struct sfc_snapshot_key){.kind = c->block.kind,
                                       .block = c->block.block,
                                       .step = r->step,
                                       .grown = sfc_block_grown(&m->run->setup, &c->block)};
    if (r->round)
        c->key.round = (struct sfc_attempt){r->round->incarnation, r->round->counter};
    sfc_message_free(r);
    if (rows != c->shape.rows)
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "a block of %" PRIu64 " rows, not of %" PRIu64
                        ": the run grows, and one of the two has not got the map yet",
                        rows, c->shape.rows);
    if (bytes != c->bytes || c->key.step > m->run->setup.head.steps)
        return sfc_fail(err, SFC_EINVAL,
                        "a block of %" PRIu64 " bytes at step %" PRIu64 ", not of %" PRIu64
                        " bytes",
                        bytes, c->key.step, c->bytes);
    if (c->key.step < m->run->durability.trimmed)
        return sfc_fail(err, SFC_ESTATE,
                        "a block of step %" PRIu64 ", from which this shard's log does not lead on",
                        c->key.step);
    m->hold = c->key.step;
    return SFC_OK;
}

static void begun(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_mirror_copy *c = ctx;
    struct sfc_error err = {0};
    if (!answered(c))
        return;
    c->placed = view->code == SFC_OK || view->code == SFC_ETIMEOUT; /* it may come late */
    int code = take_begin(c, view, &err);
    if (code != SFC_OK) {
        retry(c, code, err.text);
        return;
    }
    c->phase = SFC_MIRROR_READING;
    read_next(c);
}

static int reserve(struct sfc_mirror *m, struct sfc_error *err)
{
    uint64_t bytes = sfc_run_largest_block(&m->run->setup);
    if (!m->data)
        m->data = sfc_buffer_new(bytes);
    return m->data ? SFC_OK
                   : sfc_fail(err, SFC_ENOMEM, "%" PRIu64 " bytes for a block on its way", bytes);
}

static void ask(struct sfc_mirror_copy *c)
{
    const struct sfc_shard_run *run = c->mirror->run;
    Shardfc__V1__BeginCopyRequest r = SHARDFC__V1__BEGIN_COPY_REQUEST__INIT;
    r.run_id = run->id;
    r.copy = c->id;
    r.kind = (Shardfc__V1__BlockKind)c->block.kind;
    r.block = c->block.block;
    r.untracked = true;
    c->placed = true;
    (void)call(c, "/shardfc.v1.Shard/BeginCopy", &r, begun);
}

void sfc_mirror_copy_begin(struct sfc_mirror *m, const struct sfc_mirror_block *block)
{
    struct sfc_shard_run *run = m->run;
    struct sfc_error err = {0};
    struct sfc_mirror_copy *c = calloc(1, sizeof *c);
    if (!c) /* with the next commit */
        return;
    c->refs = 1;
    c->mirror = m;
    c->block = block->id;
    c->place = block->place;
    snprintf(c->address, sizeof c->address, "%s", run->places[block->place]);
    if (getrandom(&c->id, sizeof c->id, 0) != (ssize_t)sizeof c->id || c->id == 0)
        c->id = run->shard->boot_id;
    m->copy = c;
    /* its owner may have one commit less than this shard */
    uint64_t floor = run->durability.durable_step;
    m->hold = floor > 0 ? floor - 1 : 0;
    sfc_shard_watch_moves(run->shard);
    int code = reserve(m, &err);
    if (code == SFC_OK)
        code = sfc_rpc_client_new(run->shard->rpc, c->address, &c->client, &err);
    if (code != SFC_OK) {
        retry(c, code, err.text);
        return;
    }
    sfc_block_shape(&run->setup, &c->block, 0, &c->shape);
    c->bytes = sfc_block_lay_out(&c->shape, m->data, c->parts);
    ask(c);
}

void sfc_mirror_copy_tick(struct sfc_mirror *m)
{
    struct sfc_mirror_copy *c = m->copy;
    if (c->calling)
        return;
    if (c->phase == SFC_MIRROR_READING)
        read_next(c);
    else
        write_if_reached(c);
}

void sfc_mirror_copy_end(struct sfc_mirror *m)
{
    struct sfc_mirror_copy *c = m->copy;
    if (c && (c->phase != SFC_MIRROR_WRITING || sfc_durability_withdraw(m->run, SFC_ADOPT_MIRROR)))
        let_go(c);
}

void sfc_mirror_copy_free(struct sfc_mirror *m)
{
    if (m->copy)
        let_go(m->copy);
}
