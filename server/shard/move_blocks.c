/* Whole blocks of a move: one is filled from the network while the source copies the next one and
 * the one before lands in the staged part and on the disk. */
#include <inttypes.h>
#include <string.h>

#include "server/run/messages.h"
#include "server/shard/block_copy.h"
#include "server/shard/copy_piece.h"
#include "server/shard/move_parts.h"

#define REPLY_BYTES (SFC_MOVE_LARGE_PIECE + SFC_LIMIT_SMALL)
#define WRITE_BYTES (UINT64_C(1) << 20) /* of a job: what a step may have to wait for */

static struct sfc_move_block *block_of(const struct sfc_move_buffer *b)
{
    return &b->move->blocks[b->index];
}

/* ---- landing */

static void check_landed(struct sfc_move_buffer *b)
{
    if (!b->staged || !b->kept)
        return;
    sfc_move_landed(b);
    sfc_move_worked(b->move);
}

static int write_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err)
{
    struct sfc_move_buffer *b = ctx;
    uint64_t left = b->shape.rows - b->written;
    uint64_t most = b->shape.rows * WRITE_BYTES / b->bytes + 1;
    uint64_t rows = left < most ? left : most;
    (void)head;
    (void)dense; /* those of the run; the block goes beside them */
    int code = sfc_block_write_range(b->move->head, b->move->dense, &block_of(b)->id, &b->shape,
                                     b->parts, b->written, rows, err);
    b->written += code == SFC_OK ? rows : 0;
    return code;
}

static void submit_write(struct sfc_move_buffer *b);

static void written(struct sfc_compute_job *job)
{
    struct sfc_move_buffer *b = job->owner;
    struct sfc_move *m = b->move;
    m->jobs--;
    if (m->run->closed)
        return;
    if (m->phase == SFC_MOVE_ENDING) {
        sfc_move_go_on(m);
    } else if (job->code != SFC_OK) {
        sfc_move_end(m, job->code, job->error.text);
    } else if (b->written < b->shape.rows) {
        submit_write(b);
    } else {
        b->staged = true;
        check_landed(b);
        sfc_move_go_on(m);
    }
}

static void submit_write(struct sfc_move_buffer *b)
{
    b->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = written, .owner = b};
    b->job.span = sfc_shard_span(b->move->run, SFC_SPAN_LAND, 0);
    b->job.u.call.fn = write_work;
    b->job.u.call.ctx = b;
    b->move->jobs++;
    sfc_compute_submit(b->move->run->shard->compute, &b->job);
}

static void kept(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_move *m = run->move;
    struct sfc_move_buffer *b = m->keeping;
    m->keeping = NULL;
    if (m->phase != SFC_MOVE_ENDING && code != SFC_OK) {
        sfc_move_end(m, code, text);
        return;
    }
    if (m->phase != SFC_MOVE_ENDING) {
        b->kept = true;
        check_landed(b);
    }
    sfc_move_go_on(m);
}

static void land(struct sfc_move_buffer *b)
{
    b->state = SFC_BUFFER_LANDING;
    b->written = 0;
    b->staged = false;
    b->kept = !b->move->run->durability.on;
    submit_write(b);
}

/* The first of those in this state; NULL: none is. */
static struct sfc_move_buffer *first_in(struct sfc_move *m, int state)
{
    struct sfc_move_buffer *first = NULL;
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++) {
        struct sfc_move_buffer *b = &m->buffers[i];
        bool passed = (state == SFC_BUFFER_LANDING && b->kept) ||
                      (state == SFC_BUFFER_FILLING && b->sent == b->bytes);
        if ((int)b->state == state && !passed && (!first || b->index < first->index))
            first = b;
    }
    return first;
}

/* The disk takes one block at a time. */
static void keep_next(struct sfc_move *m)
{
    struct sfc_move_buffer *b = m->keeping ? NULL : first_in(m, SFC_BUFFER_LANDING);
    if (!b)
        return;
    m->keeping = b;
    sfc_durability_adopt(m->run, SFC_ADOPT_MOVE, &b->key, &b->shape, b->parts, kept);
}

/* ---- filling */

static void piece_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_move_piece *p = ctx;
    struct sfc_move *m = p->move;
    struct sfc_error err = {0};
    if (!sfc_move_answered(m))
        return;
    p->busy = false;
    struct sfc_move_buffer *b = p->buffer;
    int code = sfc_copy_piece(view, p->count, &err); /* the bytes are in their place already */
    if (code == SFC_OK) {
        b->received += p->count;
        m->copied += p->count;
        if (p->count >= SFC_MOVE_PIECE) /* not the end of a block */
            m->fast = (uv_now(m->run->shard->uv) - p->asked_ms) * SFC_MOVE_FAST <= p->count;
        sfc_move_worked(m);
        if (b->received == b->bytes)
            land(b);
    } else {
        p->again = true;
        if (!sfc_move_may_retry(m, code, err.text))
            return;
    }
    sfc_move_go_on(m);
}

static void send_piece(struct sfc_move *m, struct sfc_move_piece *p)
{
    const struct sfc_move_buffer *b = p->buffer;
    Shardfc__V1__ReadCopyRequest r = SHARDFC__V1__READ_COPY_REQUEST__INIT;
    r.run_id = m->run->id;
    r.copy = m->id;
    r.kind = (Shardfc__V1__BlockKind)b->key.kind; /* the same numbers */
    r.block = b->key.block;
    r.offset = p->offset;
    r.count = p->count;
    p->asked_ms = uv_now(m->run->shard->uv);
    p->busy = sfc_move_call_into(m, "/shardfc.v1.Shard/ReadCopy", &r, REPLY_BYTES,
                                 (char *)b->data + p->offset, p->count, piece_answered, p);
    p->again = !p->busy;
}

/* False: nothing more may be sent now. */
static bool send_next(struct sfc_move *m, struct sfc_move_piece *p)
{
    struct sfc_move_buffer *b = p->again ? p->buffer : first_in(m, SFC_BUFFER_FILLING);
    if (p->busy)
        return true;
    if (!b)
        return false;
    uint64_t left = b->bytes - b->sent;
    uint64_t most = m->fast && m->rate == 0 ? SFC_MOVE_LARGE_PIECE : SFC_MOVE_PIECE;
    uint64_t count = p->again ? p->count : left < most ? left : most;
    if (!sfc_move_may_send(m, count))
        return false;
    if (!p->again) {
        p->buffer = b;
        p->offset = b->sent;
        p->count = count;
        b->sent += count;
    }
    send_piece(m, p);
    return p->busy;
}

static int take_begin(struct sfc_move_buffer *b, const struct sfc_rpc_reply_view *view,
                      struct sfc_error *err)
{
    struct sfc_move *m = b->move;
    if (view->code != SFC_OK)
        return sfc_fail(err, view->code, "%s", view->text);
    Shardfc__V1__BeginCopyReply *r =
        sfc_unpack_reply(view->head, &shardfc__v1__begin_copy_reply__descriptor, NULL);
    if (!r)
        return sfc_fail(err, SFC_EUNAVAILABLE, "its answer is malformed, or memory is short");
    b->key.step = r->step;
    b->key.round = r->round ? (struct sfc_attempt){r->round->incarnation, r->round->counter}
                            : (struct sfc_attempt){0, 0};
    uint64_t bytes = r->bytes;
    sfc_message_free(r);
    if (bytes != b->bytes)
        return sfc_fail(err, SFC_EINVAL, "a block of %" PRIu64 " bytes, not of %" PRIu64, bytes,
                        b->bytes);
    if (b->key.step > m->run->setup.head.steps ||
        (m->phase == SFC_MOVE_TAKING && b->key.step != m->take_step))
        return sfc_fail(err, SFC_EINVAL, "a block of step %" PRIu64, b->key.step);
    if (b->key.step < m->floor)
        return sfc_fail(err, SFC_ESTATE,
                        "a block of step %" PRIu64 ", from which this shard's log does not lead on",
                        b->key.step);
    return SFC_OK;
}

static void begun(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_move_buffer *b = ctx;
    struct sfc_move *m = b->move;
    struct sfc_error err = {0};
    if (!sfc_move_answered(m))
        return;
    int code = take_begin(b, view, &err);
    if (code == SFC_OK) {
        b->state = SFC_BUFFER_FILLING;
        b->sent = b->received = 0;
        sfc_move_worked(m);
    } else {
        b->state = SFC_BUFFER_FREE; /* asked again */
        m->next--;
        if (!sfc_move_may_retry(m, code, err.text))
            return;
    }
    sfc_move_go_on(m);
}

static void begin(struct sfc_move *m, struct sfc_move_buffer *b)
{
    const struct sfc_snapshot_block *id = &m->blocks[m->next].id;
    Shardfc__V1__BeginCopyRequest r = SHARDFC__V1__BEGIN_COPY_REQUEST__INIT;
    r.run_id = m->run->id;
    r.copy = m->id;
    r.kind = (Shardfc__V1__BlockKind)id->kind;
    r.block = id->block;
    r.exactly = m->phase == SFC_MOVE_TAKING;
    r.step = m->take_step;
    b->index = m->next;
    b->key = (struct sfc_snapshot_key){
        .kind = id->kind, .block = id->block, .grown = sfc_block_grown(&m->setup, id)};
    sfc_block_shape(&m->run->setup, id, 0, &b->shape);
    b->bytes = sfc_block_lay_out(&b->shape, b->data, b->parts);
    if (!sfc_move_call(m, "/shardfc.v1.Shard/BeginCopy", &r, SFC_LIMIT_SMALL, begun, b))
        return;
    b->state = SFC_BUFFER_ASKED;
    m->next++;
}

/* The source has room for the one that is read and the next. NULL: nothing is asked for now. */
static struct sfc_move_buffer *free_buffer(struct sfc_move *m)
{
    struct sfc_move_buffer *room = NULL;
    unsigned there = 0;
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++) {
        struct sfc_move_buffer *b = &m->buffers[i];
        there += b->state == SFC_BUFFER_FILLING;
        if (b->state == SFC_BUFFER_ASKED)
            return NULL;
        if (b->state == SFC_BUFFER_FREE)
            room = b;
    }
    return there < SFC_COPY_BLOCKS ? room : NULL;
}

bool sfc_move_blocks_done(const struct sfc_move *m, size_t end)
{
    return m->landed >= end;
}

void sfc_move_pump_blocks(struct sfc_move *m, size_t end)
{
    struct sfc_move_buffer *room = free_buffer(m);
    keep_next(m);
    if (room && m->next < end)
        begin(m, room);
    for (size_t i = 0; i < SFC_MOVE_PIECES && m->phase != SFC_MOVE_ENDING; i++)
        if (!send_next(m, &m->pieces[i]))
            return;
}
