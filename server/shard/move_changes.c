/* Rows of a move's class blocks that changed since they were copied: pass after pass over all
 * blocks, and once more at the boundary. A pass may see one row after one step and the next row
 * after another: whatever changes later comes with the next pass, and at the boundary nothing
 * changes. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/run/messages.h"
#include "server/shard/block_copy.h"
#include "server/shard/copy_piece.h"
#include "server/shard/move_parts.h"

#define PAUSE_MS    50 /* between two passes once the move is close */
#define CLOSE_STEPS 2  /* what changes in so many steps may be missing */

/* What an answer may have: a piece, or one row that is larger. */
static uint64_t answer_bytes(const struct sfc_move *m)
{
    const struct sfc_snapshot_block any = {SFC_SNAPSHOT_CLASS, 0};
    struct sfc_snapshot_shape shape;
    sfc_block_shape(&m->run->setup, &any, 0, &shape);
    shape.rows = 1;
    uint64_t row = sfc_block_lay_out(&shape, NULL, NULL);
    return row > SFC_MOVE_CHANGES_BYTES ? row : SFC_MOVE_CHANGES_BYTES + 256;
}

int sfc_move_changes_new(struct sfc_move *m, struct sfc_error *err)
{
    uint64_t bytes = (answer_bytes(m) + 63) / 64 * 64;
    for (size_t i = 0; i < SFC_MOVE_CHANGES && m->class_count > 0; i++) {
        m->rows[i].move = m;
        m->rows[i].rows = malloc(m->run->setup.head.block_size * sizeof(uint32_t));
        m->rows[i].data = aligned_alloc(64, bytes);
        if (!m->rows[i].rows || !m->rows[i].data)
            return sfc_fail(err, SFC_ENOMEM, "%" PRIu64 " bytes for changes on their way", bytes);
    }
    return SFC_OK;
}

bool sfc_move_changes_idle(const struct sfc_move *m)
{
    for (size_t i = 0; i < SFC_MOVE_CHANGES; i++)
        if (m->rows[i].state != SFC_ROWS_FREE)
            return false;
    return true;
}

/* ---- an answer */

static int check_rows(const struct sfc_move_rows *s, const Shardfc__V1__ReadChangesReply *r,
                      struct sfc_error *err)
{
    struct sfc_move *m = s->move;
    uint64_t rows = sfc_head_block_rows(&m->run->setup.head, m->blocks[s->index].id.block);
    for (size_t i = 0; i < r->n_rows; i++)
        if (r->rows[i] >= rows || r->rows[i] < s->first || (i > 0 && r->rows[i] <= r->rows[i - 1]))
            return sfc_fail(err, SFC_EINVAL, "rows[%zu]: %u is out of place", i, r->rows[i]);
    uint32_t last = r->n_rows ? r->rows[r->n_rows - 1] : s->first;
    if (r->next_row && (r->n_rows == 0 || r->next_row <= last || r->next_row >= rows))
        return sfc_fail(err, SFC_EINVAL, "next_row: %u is out of place", r->next_row);
    if (r->step < s->since || r->step > m->run->setup.head.steps ||
        (m->exact && r->step != m->take_step))
        return sfc_fail(err, SFC_EINVAL, "step: rows of step %" PRIu64, r->step);
    return SFC_OK;
}

static int take_rows(struct sfc_move_rows *s, const struct sfc_rpc_reply_view *view,
                     const Shardfc__V1__ReadChangesReply *r, struct sfc_error *err)
{
    struct sfc_move *m = s->move;
    int code = check_rows(s, r, err);
    if (code != SFC_OK)
        return code;
    sfc_block_shape(&m->run->setup, &m->blocks[s->index].id, r->step, &s->shape);
    s->shape.rows = r->n_rows;
    uint64_t bytes = sfc_block_lay_out(&s->shape, NULL, NULL);
    if (bytes > answer_bytes(m))
        return sfc_fail(err, SFC_EINVAL, "rows: %zu in one answer", r->n_rows);
    code = sfc_copy_payload(view, r->payload_type, r->payload_digest, bytes, err);
    if (code != SFC_OK)
        return code;
    memcpy(s->data, view->tensor.data, bytes);
    if (r->n_rows)
        memcpy(s->rows, r->rows, r->n_rows * sizeof *s->rows);
    sfc_block_lay_out(&s->shape, s->data, s->parts);
    s->step = s->first == 0 ? r->step : s->step;
    s->next = r->next_row;
    m->pass_bytes += bytes;
    sfc_move_spend(m, bytes);
    return SFC_OK;
}

static int take_answer(struct sfc_move_rows *s, const struct sfc_rpc_reply_view *view,
                       struct sfc_error *err)
{
    if (view->code != SFC_OK)
        return sfc_fail(err, view->code, "%s", view->text);
    Shardfc__V1__ReadChangesReply *r =
        sfc_unpack_reply(view->head, &shardfc__v1__read_changes_reply__descriptor, NULL);
    if (!r)
        return sfc_fail(err, SFC_EUNAVAILABLE, "its answer is malformed, or memory is short");
    int code = take_rows(s, view, r, err);
    sfc_message_free(r);
    return code;
}

/* ---- into the staged part */

static int write_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err)
{
    struct sfc_move_rows *s = ctx;
    (void)head;
    (void)dense;
    return sfc_block_write_rows(s->move->head, s->move->blocks[s->index].id.block, &s->shape,
                                s->rows, s->parts, err);
}

static void ask(struct sfc_move_rows *s);

static void block_done(struct sfc_move_rows *s)
{
    struct sfc_move *m = s->move;
    if (s->next) {
        s->first = s->next;
        s->state = SFC_ROWS_AGAIN;
        return;
    }
    m->blocks[s->index].since = s->step;
    s->state = SFC_ROWS_FREE;
}

static void written(struct sfc_compute_job *job)
{
    struct sfc_move_rows *s = job->owner;
    struct sfc_move *m = s->move;
    m->jobs--;
    if (m->run->closed)
        return;
    if (m->phase != SFC_MOVE_ENDING && job->code != SFC_OK) {
        sfc_move_end(m, job->code, job->error.text);
        return;
    }
    if (m->phase != SFC_MOVE_ENDING)
        block_done(s);
    sfc_move_go_on(m);
}

static void answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_move_rows *s = ctx;
    struct sfc_move *m = s->move;
    struct sfc_error err = {0};
    if (!sfc_move_answered(m))
        return;
    int code = take_answer(s, view, &err);
    if (code != SFC_OK) {
        s->state = SFC_ROWS_AGAIN;
        if (sfc_move_may_retry(m, code, err.text))
            sfc_move_go_on(m);
        return;
    }
    sfc_move_worked(m);
    s->state = SFC_ROWS_WRITING;
    s->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = written, .owner = s};
    s->job.span = sfc_shard_span(m->run, SFC_SPAN_LAND, 0);
    s->job.u.call.fn = write_work;
    s->job.u.call.ctx = s;
    m->jobs++;
    sfc_compute_submit(m->run->shard->compute, &s->job);
}

static void ask(struct sfc_move_rows *s)
{
    struct sfc_move *m = s->move;
    Shardfc__V1__ReadChangesRequest r = SHARDFC__V1__READ_CHANGES_REQUEST__INIT;
    r.run_id = m->run->id;
    r.copy = m->id;
    r.block = m->blocks[s->index].id.block;
    r.since = s->since;
    r.first_row = s->first;
    r.exactly = m->exact;
    r.step = m->take_step;
    bool sent = sfc_move_call(
        m, "/shardfc.v1.Shard/ReadChanges", &r,
        answer_bytes(m) + 5ull * m->run->setup.head.block_size + SFC_LIMIT_SMALL, answered, s);
    s->state = sent ? SFC_ROWS_ASKED : SFC_ROWS_AGAIN;
}

/* ---- passes */

static uint64_t oldest(const struct sfc_move *m)
{
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < m->class_count; i++)
        least = m->blocks[i].since < least ? m->blocks[i].since : least;
    return least;
}

/* Close: what two steps change is missing, or passes don't get smaller any more. */
static void pass_done(struct sfc_move *m)
{
    uint64_t applied = sfc_step_applied(&m->run->fsm), least = oldest(m);
    bool behind = least < applied && applied - least > CLOSE_STEPS;
    bool level = m->passes > 0 && m->pass_bytes > m->last_pass_bytes / 2;
    m->passing = false;
    m->passes++;
    m->last_pass_bytes = m->pass_bytes;
    m->close = m->close || !behind || level;
    if (m->close) {
        m->copied = m->bytes; /* dense blocks follow at the boundary */
        m->reason[0] = 0;
        m->pass_at = uv_now(m->run->shard->uv) + PAUSE_MS;
    }
}

static void begin_pass(struct sfc_move *m)
{
    m->passing = true;
    m->cursor = 0;
    m->pass_bytes = 0;
    m->exact = m->phase == SFC_MOVE_TAKING;
}

/* The pass that is under way when the blocks are taken goes no further. */
static bool is_old_pass(const struct sfc_move *m)
{
    return m->phase == SFC_MOVE_TAKING && !m->exact;
}

static bool next_block(struct sfc_move *m, struct sfc_move_rows *s)
{
    if (m->cursor >= m->class_count || is_old_pass(m) || !sfc_move_may_send(m, 0))
        return false;
    s->index = m->cursor++;
    s->since = m->blocks[s->index].since;
    s->first = s->next = 0;
    return true;
}

void sfc_move_pump_changes(struct sfc_move *m)
{
    bool idle = sfc_move_changes_idle(m);
    bool due = uv_now(m->run->shard->uv) >= m->pass_at || m->phase == SFC_MOVE_TAKING;
    if (idle && is_old_pass(m))
        begin_pass(m);
    else if (!m->passing && due && m->phase == SFC_MOVE_FOLLOWING)
        begin_pass(m);
    for (size_t i = 0; i < SFC_MOVE_CHANGES && m->passing && m->phase != SFC_MOVE_ENDING; i++) {
        struct sfc_move_rows *s = &m->rows[i];
        if (s->state == SFC_ROWS_AGAIN || (s->state == SFC_ROWS_FREE && next_block(m, s)))
            ask(s);
    }
    if (m->passing && m->phase != SFC_MOVE_ENDING && m->cursor >= m->class_count &&
        !is_old_pass(m) && sfc_move_changes_idle(m))
        pass_done(m);
}
