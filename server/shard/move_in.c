#include "server/shard/move_in.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/buffer.h"
#include "proto/base/log.h"
#include "proto/tensor.h"
#include "server/shard/block_copy.h"
#include "server/shard/move_parts.h"

#define PATIENCE_MS 15000 /* without anything that works */
#define RETRY_MS    100
#define SAVED_S     0.02 /* seconds of the rate that may be saved up */
#define SPARE_MS    2000 /* buffers are kept so long for the next move */
#define HOLD_MS     1000 /* FetchBlocks waits so long, and is asked again */

/* ---- life */

static void unref(struct sfc_move *m)
{
    if (--m->refs > 0)
        return;
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++)
        free(m->buffers[i].data);
    for (size_t i = 0; i < SFC_MOVE_CHANGES; i++) {
        free(m->rows[i].rows);
        free(m->rows[i].data);
    }
    free(m->class_blocks);
    free(m->dense_blocks);
    free(m->blocks);
    free(m);
}

static void refuse_waiting(struct sfc_move *m, int code, const char *text)
{
    struct sfc_rpc_call *calls[2] = {m->fetch_call, m->take_call};
    m->fetch_call = m->take_call = NULL;
    for (int i = 0; i < 2; i++)
        if (calls[i])
            sfc_shard_refuse(m->run->shard, calls[i], code, text);
}

static void drop_spare(struct sfc_shard_run *run)
{
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++) {
        free(run->move_spare.data[i]);
        run->move_spare.data[i] = NULL;
    }
}

/* The next move follows at once, as a rule, and new memory is slow. The client of the source goes
 * right after it, and no answer is written any more. */
static void spare_buffers(struct sfc_move *m)
{
    struct sfc_move_spare *spare = &m->run->move_spare;
    spare->ms = uv_now(m->run->shard->uv);
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++) {
        free(spare->data[i]);
        spare->data[i] = m->buffers[i].data;
        m->buffers[i].data = NULL;
    }
}

/* The run lets go of it. */
static void leave(struct sfc_move *m)
{
    struct sfc_shard_run *run = m->run;
    refuse_waiting(m, SFC_EUNAVAILABLE, "the run was closed");
    run->move = NULL;
    m->run = NULL;
    sfc_rpc_client_free(m->source); /* calls on their way end later */
    m->source = NULL;
    unref(m);
}

static void dropped(struct sfc_task *task)
{
    struct sfc_move *m = task->owner;
    struct sfc_shard_run *run = m->run;
    if (run->closed)
        return;
    if (task->code != SFC_OK) /* the next recovery deletes them */
        sfc_warning_log("run %" PRIu64 ": snapshots of move %" PRIu64 ": %s", run->id, m->id,
                        task->error.text);
    run->moved = (struct sfc_moved){.incarnation = m->incarnation, .move = m->id, .code = m->code};
    snprintf(run->moved.reason, sizeof run->moved.reason, "%s", m->reason);
    spare_buffers(m);
    leave(m);
}

static int drop_work(struct sfc_task *task, struct sfc_error *err)
{
    const struct sfc_move *m = task->owner;
    return sfc_storage_keep_only(&m->run->durability.storage, err);
}

/* Snapshots of what has not become this shard's. */
static void drop_snapshots(struct sfc_move *m)
{
    struct sfc_shard_run *run = m->run;
    m->task = (struct sfc_task){.work = drop_work, .done = dropped, .owner = m};
    if (run->durability.on)
        sfc_tasks_submit(run->shard->snapshot_thread, &m->task);
    else
        dropped(&m->task);
}

static void freed(struct sfc_compute_job *job)
{
    struct sfc_move *m = job->owner;
    m->jobs--;
    m->head = NULL;
    m->dense = NULL;
    if (m->run && !m->run->closed)
        drop_snapshots(m);
    unref(m);
}

static void submit_drop(struct sfc_move *m)
{
    m->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_DROP, .done = freed, .owner = m};
    m->job.u.change.head = m->head;
    m->job.u.change.dense = m->dense; /* jobs that are before it may still write into both */
    m->jobs++;
    m->refs++; /* the run may be gone when it is done */
    sfc_compute_submit(m->run->shard->compute, &m->job);
}

/* When nothing of it is at work any more. */
static void try_end(struct sfc_move *m)
{
    if (m->jobs == 0 && !m->keeping && !m->given && m->phase == SFC_MOVE_ENDING && !m->ended) {
        m->ended = true;
        submit_drop(m);
    }
}

static void end_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    (void)view; /* the lease ends what this did not */
    (void)sfc_move_answered(ctx);
}

static void tell_source(struct sfc_move *m)
{
    Shardfc__V1__EndCopyRequest r = SHARDFC__V1__END_COPY_REQUEST__INIT;
    if (!m->source)
        return;
    r.run_id = m->run->id;
    r.copy = m->id;
    (void)sfc_move_call(m, "/shardfc.v1.Shard/EndCopy", &r, SFC_LIMIT_SMALL, end_answered, m);
}

void sfc_move_end(struct sfc_move *m, int code, const char *reason)
{
    struct sfc_shard_run *run = m->run;
    if (m->phase == SFC_MOVE_ENDING)
        return;
    m->phase = SFC_MOVE_ENDING;
    tell_source(m);
    m->code = code;
    snprintf(m->reason, sizeof m->reason, "%s", reason);
    if (code != SFC_OK)
        sfc_warning_log("run %" PRIu64 ": move %" PRIu64 " ends: %s", run->id, m->id, reason);
    refuse_waiting(m, code ? code : SFC_ECANCELED, code ? reason : "the move was cancelled");
    if (m->keeping && sfc_durability_withdraw(run, SFC_ADOPT_MOVE))
        m->keeping = NULL;
    try_end(m);
}

void sfc_move_abandon(struct sfc_shard_run *run)
{
    struct sfc_move *m = run->move;
    if (!m)
        return;
    refuse_waiting(m, SFC_EUNAVAILABLE, "the run was closed");
    if (!m->given && !m->ended && !m->staging) { /* staged() drops what comes later */
        m->ended = true;
        submit_drop(m);
    }
    m->phase = SFC_MOVE_ENDING;
}

void sfc_move_free(struct sfc_shard_run *run)
{
    drop_spare(run);
    if (run->move)
        leave(run->move);
}

/* ---- calls to the source */

void sfc_move_worked(struct sfc_move *m)
{
    m->good_ms = uv_now(m->run->shard->uv);
}

static bool may_pass(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT || code == SFC_ELIMIT ||
           code == SFC_ECORRUPT || code == SFC_ECANCELED;
}

bool sfc_move_may_retry(struct sfc_move *m, int code, const char *text)
{
    uint64_t now = uv_now(m->run->shard->uv);
    snprintf(m->reason, sizeof m->reason, "%s", text);
    if (may_pass(code) && now < m->good_ms + PATIENCE_MS) {
        m->retry_ms = now + RETRY_MS;
        return true;
    }
    char why[SFC_LIMIT_ERROR_TEXT];
    snprintf(why, sizeof why, "shard %s, which the blocks come from: %.400s",
             sfc_rpc_client_address(m->source), text);
    sfc_move_end(m, may_pass(code) ? SFC_ESTATE : code, why);
    return false;
}

bool sfc_move_call(struct sfc_move *m, const char *method, const void *request, size_t max_reply,
                   sfc_rpc_done done, void *ctx)
{
    return sfc_move_call_into(m, method, request, max_reply, NULL, 0, done, ctx);
}

bool sfc_move_call_into(struct sfc_move *m, const char *method, const void *request,
                        size_t max_reply, void *into, size_t into_size, sfc_rpc_done done,
                        void *ctx)
{
    struct sfc_error err = {0};
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(request, &size);
    int code = bytes ? SFC_OK : sfc_fail(&err, SFC_EUNAVAILABLE, "no memory for a request");
    struct sfc_rpc_request call = {.method = method,
                                   .head = {bytes, size},
                                   .deadline_ms = SFC_MOVE_DEADLINE_MS,
                                   .max_reply = max_reply,
                                   .into = into,
                                   .into_size = into_size};
    if (code == SFC_OK)
        code = sfc_rpc_client_call(m->source, &call, done, ctx, NULL, &err);
    free(bytes);
    if (code == SFC_OK)
        m->refs++;
    else if (m->phase != SFC_MOVE_ENDING)
        (void)sfc_move_may_retry(m, code, err.text);
    return code == SFC_OK;
}

bool sfc_move_answered(struct sfc_move *m)
{
    bool wanted = m->run && !m->run->closed && m->phase != SFC_MOVE_ENDING;
    if (wanted) /* and so it lives on */
        m->refs--;
    else
        unref(m);
    return wanted;
}

void sfc_move_landed(struct sfc_move_buffer *b)
{
    struct sfc_move_block *block = &b->move->blocks[b->index];
    block->stamp = block->since = b->key.step;
    block->has_stamp = true;
    b->state = SFC_BUFFER_FREE;
    b->move->landed++;
}

void sfc_move_spend(struct sfc_move *m, uint64_t bytes)
{
    m->run->move_pace.tokens -= (double)bytes;
}

/* A bucket of SAVED_S, of four pieces at least: it is the run's, so what a flip leaves of it is
 * there for the copy behind it. */
bool sfc_move_may_send(struct sfc_move *m, uint64_t bytes)
{
    struct sfc_move_bucket *b = &m->run->move_pace;
    uint64_t now = uv_now(m->run->shard->uv);
    double rate = (double)m->rate, most = SAVED_S * rate;
    if (m->rate == 0 || m->phase == SFC_MOVE_TAKING)
        return true;
    most = most < 4.0 * SFC_MOVE_PIECE ? 4.0 * SFC_MOVE_PIECE : most;
    b->tokens += b->ms ? 1e-3 * (double)(now - b->ms) * rate : 0;
    b->tokens = b->tokens < most ? b->tokens : most;
    b->ms = now;
    if (b->tokens <= 0)
        return false;
    sfc_move_spend(m, bytes);
    return true;
}

/* ---- what comes next */

static void reply_empty(struct sfc_rpc_call **call)
{
    Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
    struct sfc_rpc_call *waiting = *call;
    *call = NULL;
    if (waiting)
        sfc_call_reply(waiting, &m);
}

static bool is_growth(const struct sfc_move *m)
{
    return m->source == NULL;
}

static void check_taken(struct sfc_move *m)
{
    if (!is_growth(m) && !m->exact)
        return;
    if (!sfc_move_changes_idle(m) || m->passing || !sfc_move_blocks_done(m, m->count))
        return;
    m->phase = SFC_MOVE_TAKEN;
    reply_empty(&m->take_call);
}

/* The log is kept from the oldest copy on. */
static void begin_following(struct sfc_move *m)
{
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < m->class_count; i++)
        least = m->blocks[i].stamp < least ? m->blocks[i].stamp : least;
    m->floor = m->class_count > 0 ? least : m->floor;
    m->phase = SFC_MOVE_FOLLOWING;
}

void sfc_move_go_on(struct sfc_move *m)
{
    uint64_t now = uv_now(m->run->shard->uv);
    if (m->phase == SFC_MOVE_ENDING)
        try_end(m);
    if (m->phase < SFC_MOVE_COPYING || m->phase > SFC_MOVE_TAKING || now < m->retry_ms)
        return;
    if (m->phase == SFC_MOVE_COPYING) {
        sfc_move_pump_blocks(m, m->class_count);
        if (m->phase == SFC_MOVE_COPYING && sfc_move_blocks_done(m, m->class_count))
            begin_following(m);
    }
    if (is_growth(m) && m->phase == SFC_MOVE_TAKING)
        sfc_move_pump_growth(m);
    if (!is_growth(m) && (m->phase == SFC_MOVE_FOLLOWING || m->phase == SFC_MOVE_TAKING))
        sfc_move_pump_changes(m);
    if (!is_growth(m) && m->phase == SFC_MOVE_TAKING && m->exact && !m->passing)
        sfc_move_pump_blocks(m, m->count);
    if (m->phase == SFC_MOVE_TAKING)
        check_taken(m);
    if (m->close)
        reply_empty(&m->fetch_call);
}

static void measure(struct sfc_move *m, uint64_t now)
{
    uint64_t took = now - m->began_ms;
    if (m->phase <= SFC_MOVE_COPYING && took > 0)
        m->speed = 1e3 * (double)m->copied / (double)took;
}

bool sfc_move_tick(struct sfc_shard_run *run)
{
    struct sfc_move *m = run->move;
    uint64_t now = uv_now(run->shard->uv);
    if (!m && now > run->move_spare.ms + SPARE_MS)
        drop_spare(run);
    if (!m)
        return run->move_spare.data[0] != NULL;
    measure(m, now);
    sfc_move_go_on(m);
    if (run->move == m && m->fetch_call && now >= m->fetch_ms + HOLD_MS) {
        struct sfc_rpc_call *call = m->fetch_call;
        m->fetch_call = NULL;
        sfc_rpc_fail(call, SFC_EUNAVAILABLE, "blocks are being copied; ask again");
    }
    return run->move || run->move_spare.data[0];
}

/* ---- FetchBlocks */

static void staged(struct sfc_compute_job *job)
{
    struct sfc_move *m = job->owner;
    struct sfc_shard_run *run = m->run;
    m->jobs--;
    m->staging = false;
    m->head = job->u.change.head;
    m->dense = job->u.change.dense;
    if (run->closed) { /* what came of it goes before the run does */
        m->ended = true;
        submit_drop(m);
        return;
    }
    if (m->phase == SFC_MOVE_ENDING) {
        try_end(m);
        return;
    }
    if (job->code != SFC_OK) {
        sfc_move_end(m, job->code, job->error.text);
        return;
    }
    m->phase = is_growth(m) ? SFC_MOVE_FOLLOWING : SFC_MOVE_COPYING;
    m->close = is_growth(m); /* nothing changes before the boundary */
    sfc_move_go_on(m);
}

static void submit_stage(struct sfc_move *m)
{
    m->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_STAGE, .done = staged, .owner = m};
    m->job.span = sfc_shard_span(m->run, SFC_SPAN_STAGE, 0);
    m->job.u.change.setup = &m->setup;
    m->job.u.change.classes = is_growth(m) ? m->setup.head.classes : 0;
    m->job.u.change.class_blocks = m->class_blocks;
    m->job.u.change.class_count = m->class_count;
    m->job.u.change.dense_blocks = m->dense_blocks;
    m->job.u.change.dense_count = m->dense_count;
    m->jobs++;
    m->staging = true;
    sfc_compute_submit(m->run->shard->compute, &m->job);
}

static int check_list(const struct sfc_shard_run *run, enum sfc_snapshot_kind kind,
                      const uint64_t *blocks, size_t count, uint64_t limit, const char *what,
                      struct sfc_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const struct sfc_snapshot_block block = {kind, blocks[i]};
        if (blocks[i] >= limit || (i > 0 && blocks[i] <= blocks[i - 1]))
            return sfc_fail(err, SFC_EINVAL,
                            "%s[%zu]: %" PRIu64 " is not below %" PRIu64 " or not ascending", what,
                            i, blocks[i], limit);
        if (sfc_shard_owns(run, &block))
            return sfc_fail(err, SFC_EINVAL, "%s[%zu]: this shard has block %" PRIu64 " already",
                            what, i, blocks[i]);
    }
    return SFC_OK;
}

static int check_fetch(const struct sfc_shard_run *run, const Shardfc__V1__FetchBlocksRequest *r,
                       struct sfc_error *err)
{
    if (r->move == 0 || r->n_class_blocks + r->n_dense_blocks == 0)
        return sfc_fail(err, SFC_EINVAL, "move and a block must be given");
    if (r->source >= run->place_count || r->source == run->self || !run->places[r->source][0])
        return sfc_fail(err, SFC_EINVAL, "source: %u is no other shard of the map", r->source);
    int code = check_list(run, SFC_SNAPSHOT_CLASS, r->class_blocks, r->n_class_blocks,
                          run->setup.class_blocks, "class_blocks", err);
    if (code == SFC_OK)
        code = check_list(run, SFC_SNAPSHOT_DENSE, r->dense_blocks, r->n_dense_blocks,
                          run->setup.dense_blocks, "dense_blocks", err);
    return code;
}

static uint64_t transit_bytes(const struct sfc_shard_run *run)
{
    return SFC_MOVE_BUFFERS * sfc_run_largest_block(&run->setup) +
           SFC_MOVE_CHANGES * (SFC_MOVE_CHANGES_BYTES + 4ull * run->setup.head.block_size);
}

static int copy_ids(const uint64_t *ids, size_t count, uint64_t **out)
{
    *out = malloc((count + 1) * sizeof **out);
    if (*out && count)
        memcpy(*out, ids, count * sizeof **out);
    return *out ? SFC_OK : SFC_ENOMEM;
}

static int lists_new(struct sfc_move *m, const Shardfc__V1__FetchBlocksRequest *r,
                     struct sfc_error *err)
{
    m->class_count = r->n_class_blocks;
    m->dense_count = r->n_dense_blocks;
    m->count = m->class_count + m->dense_count;
    m->blocks = calloc(m->count + 1, sizeof *m->blocks);
    if (!m->blocks || copy_ids(r->class_blocks, m->class_count, &m->class_blocks) != SFC_OK ||
        copy_ids(r->dense_blocks, m->dense_count, &m->dense_blocks) != SFC_OK)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", m->count);
    for (size_t i = 0; i < m->count; i++) {
        bool dense = i >= m->class_count;
        struct sfc_snapshot_shape shape;
        m->blocks[i].id = dense
                              ? (struct sfc_snapshot_block){SFC_SNAPSHOT_DENSE,
                                                            m->dense_blocks[i - m->class_count]}
                              : (struct sfc_snapshot_block){SFC_SNAPSHOT_CLASS, m->class_blocks[i]};
        sfc_block_shape(&m->setup, &m->blocks[i].id, 0, &shape);
        m->bytes += sfc_block_lay_out(&shape, NULL, NULL);
    }
    return SFC_OK;
}

static int buffers_new(struct sfc_move *m, struct sfc_error *err)
{
    uint64_t bytes = sfc_run_largest_block(&m->run->setup);
    for (size_t i = 0; i < SFC_MOVE_BUFFERS; i++) {
        m->buffers[i].move = m;
        m->buffers[i].data = m->run->move_spare.data[i];
        m->run->move_spare.data[i] = NULL;
        if (!m->buffers[i].data)
            m->buffers[i].data = sfc_buffer_new(bytes);
        if (!m->buffers[i].data)
            return sfc_fail(err, SFC_ENOMEM, "%" PRIu64 " bytes for a block on its way", bytes);
    }
    for (size_t i = 0; i < SFC_MOVE_PIECES; i++)
        m->pieces[i].move = m;
    return sfc_move_changes_new(m, err);
}

static int move_new(struct sfc_shard_run *run, const Shardfc__V1__FetchBlocksRequest *r,
                    struct sfc_error *err)
{
    struct sfc_move *m = calloc(1, sizeof *m);
    if (!m)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a move");
    uint64_t now = uv_now(run->shard->uv), applied = sfc_step_applied(&run->fsm);
    m->refs = 1;
    m->run = run;
    m->setup = run->setup;
    if (r->classes)
        sfc_run_setup_set_classes(&m->setup, r->classes);
    m->id = r->move;
    m->incarnation = r->incarnation;
    m->rate = r->bytes_per_s;
    m->good_ms = m->began_ms = now;
    m->floor = applied > 2 ? applied - 2 : 0; /* the source may be a step behind */
    if (r->classes)                           /* what is staged is written at the boundary */
        m->floor = UINT64_MAX;
    int code = lists_new(m, r, err);
    if (code == SFC_OK)
        code =
            sfc_shard_check_more(run, &m->setup, m->class_blocks, m->class_count, m->dense_blocks,
                                 m->dense_count, transit_bytes(run), &m->takes, err);
    if (code == SFC_OK)
        code = buffers_new(m, err);
    if (code == SFC_OK && !r->classes)
        code = sfc_rpc_client_new(run->shard->rpc, run->places[r->source], &m->source, err);
    if (code != SFC_OK) {
        unref(m);
        return code;
    }
    run->move = m;
    sfc_shard_watch_moves(run->shard);
    if (is_growth(m))
        sfc_info_log("run %" PRIu64 ": it grows to %" PRIu64
                     " classes: %zu blocks, %.1f MiB, are made here",
                     run->id, r->classes, m->class_count, (double)m->bytes / (1 << 20));
    else
        sfc_info_log("run %" PRIu64 ": move %" PRIu64 ": %zu class and %zu dense blocks, %.1f MiB, "
                     "come from shard %s",
                     run->id, m->id, m->class_count, m->dense_count, (double)m->bytes / (1 << 20),
                     run->places[r->source]);
    submit_stage(m);
    return SFC_OK;
}

static bool is_older(uint64_t incarnation, uint64_t move, uint64_t than_incarnation,
                     uint64_t than_move)
{
    return incarnation != than_incarnation ? incarnation < than_incarnation : move < than_move;
}

static int check_known(const struct sfc_shard_run *run, const Shardfc__V1__FetchBlocksRequest *r,
                       struct sfc_error *err)
{
    const struct sfc_moved *last = &run->moved;
    if (last->move == r->move && last->incarnation == r->incarnation)
        return sfc_fail(err, last->code ? last->code : SFC_ESTALE, "%s",
                        last->code ? last->reason : "move: it is over");
    if (is_older(r->incarnation, r->move, last->incarnation, last->move))
        return sfc_fail(err, SFC_ESTALE, "move: %" PRIu64 " is older than the last one here",
                        r->move);
    return SFC_OK;
}

/* It is here: asked again. */
static void fetch_again(struct sfc_move *m, struct sfc_rpc_call *call)
{
    if (m->fetch_call)
        sfc_rpc_fail(m->fetch_call, SFC_EUNAVAILABLE, "asked again");
    m->fetch_call = call;
    m->fetch_ms = uv_now(m->run->shard->uv);
    if (m->close)
        reply_empty(&m->fetch_call);
}

void sfc_move_fetch(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                    const Shardfc__V1__FetchBlocksRequest *r)
{
    struct sfc_error err = {0};
    struct sfc_move *m = run->move;
    if (m && m->phase != SFC_MOVE_ENDING && m->id == r->move && m->incarnation == r->incarnation) {
        fetch_again(m, call);
        return;
    }
    int code = check_known(run, r, &err);
    if (code == SFC_OK && m && is_older(r->incarnation, r->move, m->incarnation, m->id))
        code = sfc_fail(&err, SFC_ESTALE, "move: %" PRIu64 " is older than the one here", r->move);
    if (code == SFC_OK)
        code = r->classes ? sfc_move_grow_check(run, r, &err) : check_fetch(run, r, &err);
    if (code == SFC_OK && (run->map_change || run->fsm.phase == SFC_STEP_MAPPING)) {
        /* to those of the move that is here, perhaps */
        code = sfc_fail(&err, SFC_EUNAVAILABLE, "blocks change their owners now; ask again");
    } else if (code == SFC_OK && m) {
        sfc_move_end(m, SFC_OK, "");
        code = sfc_fail(&err, SFC_EUNAVAILABLE, "the move before is being put away; ask again");
    } else if (code == SFC_OK && (code = move_new(run, r, &err)) == SFC_OK) {
        fetch_again(run->move, call);
        return;
    }
    sfc_shard_refuse(run->shard, call, code, err.text);
}

/* ---- TakeBlocks, CancelMove */

static int check_take(const struct sfc_shard_run *run, const Shardfc__V1__TakeBlocksRequest *r,
                      struct sfc_error *err)
{
    const struct sfc_move *m = run->move;
    if (!m || m->id != r->move || m->phase == SFC_MOVE_ENDING)
        return sfc_fail(err, SFC_ENOTFOUND, "move: %" PRIu64 " is not here (any more)%s%s", r->move,
                        run->moved.move == r->move ? ": " : "",
                        run->moved.move == r->move ? run->moved.reason : "");
    if (m->phase < SFC_MOVE_FOLLOWING)
        return sfc_fail(err, SFC_ESTATE, "move: %" PRIu64 " is not copied yet", r->move);
    if (sfc_durability_stamp(run) != r->step || run->fsm.phase != SFC_STEP_IDLE)
        return sfc_fail(err, SFC_ESTATE,
                        "step: this shard is at step %" PRIu64 " and %s, not at step %" PRIu64,
                        sfc_step_applied(&run->fsm), sfc_step_phase_name(run->fsm.phase), r->step);
    if (m->phase > SFC_MOVE_FOLLOWING && m->take_step != r->step)
        return sfc_fail(err, SFC_ESTATE, "move: its blocks were taken at step %" PRIu64,
                        m->take_step);
    return SFC_OK;
}

void sfc_move_take(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                   const Shardfc__V1__TakeBlocksRequest *r)
{
    struct sfc_error err = {0};
    struct sfc_move *m = run->move;
    int code = check_take(run, r, &err);
    if (code != SFC_OK) {
        sfc_shard_refuse(run->shard, call, code, err.text);
        return;
    }
    if (m->take_call)
        sfc_rpc_fail(m->take_call, SFC_EUNAVAILABLE, "asked again");
    m->take_call = call;
    if (m->phase == SFC_MOVE_TAKEN)
        reply_empty(&m->take_call);
    if (m->phase == SFC_MOVE_FOLLOWING) {
        m->phase = SFC_MOVE_TAKING;
        m->take_step = r->step;
        m->retry_ms = 0;
    }
    sfc_move_go_on(m);
}

void sfc_move_cancel(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     const Shardfc__V1__CancelMoveRequest *r)
{
    Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
    if (run->move && run->move->id == r->move && !run->move->given)
        sfc_move_end(run->move, SFC_OK, "");
    sfc_copies_cancel(run, r->move);
    sfc_call_reply(call, &reply);
}

void sfc_move_pass(struct sfc_shard_run *run, uint64_t incarnation)
{
    struct sfc_move *m = run->move;
    if (m && !m->given && m->incarnation < incarnation)
        sfc_move_end(m, SFC_OK, "");
}

/* ---- the flip */

bool sfc_move_taken(const struct sfc_shard_run *run, uint64_t move, uint64_t step,
                    struct sfc_move_blocks *out)
{
    const struct sfc_move *m = run->move;
    if (!m || m->id != move || m->phase != SFC_MOVE_TAKEN || m->take_step != step || m->given)
        return false;
    *out =
        (struct sfc_move_blocks){m->class_blocks, m->dense_blocks, m->class_count, m->dense_count};
    return true;
}

bool sfc_move_stamp(const struct sfc_shard_run *run, bool dense, uint64_t block, uint64_t *stamp)
{
    const struct sfc_move *m = run->move;
    for (size_t i = 0; m && i < m->count; i++)
        if ((m->blocks[i].id.kind == SFC_SNAPSHOT_DENSE) == dense &&
            m->blocks[i].id.block == block && m->blocks[i].has_stamp) {
            *stamp = m->blocks[i].stamp;
            return true;
        }
    return false;
}

void sfc_move_give(struct sfc_shard_run *run, struct sfc_compute_job *job)
{
    struct sfc_move *m = run->move;
    m->given = true;
    job->u.change.head = m->head;
    job->u.change.dense = m->dense;
    m->head = NULL;
    m->dense = NULL;
}

void sfc_move_gone(struct sfc_shard_run *run, bool taken)
{
    struct sfc_move *m = run->move;
    m->given = false;
    if (taken)
        sfc_info_log("run %" PRIu64 ": move %" PRIu64
                     ": the blocks are this shard's from step %" PRIu64 " on",
                     run->id, m->id, m->take_step + 1);
    sfc_move_end(m, SFC_OK, "");
}

/* ---- what others ask */

bool sfc_move_stages(const struct sfc_shard_run *run)
{
    return run->move && run->move->phase != SFC_MOVE_ENDING;
}

uint64_t sfc_move_floor(const struct sfc_shard_run *run)
{
    const struct sfc_move *m = run->move;
    return m && m->phase != SFC_MOVE_ENDING ? m->floor : UINT64_MAX;
}

void sfc_move_give_way(struct sfc_shard_run *run)
{
    struct sfc_move *m = run->move;
    if (m && !m->given && sfc_move_floor(run) < run->durability.floor)
        sfc_move_end(m, SFC_ESTATE,
                     "the step log of this shard is full, and the steps since then need the room "
                     "that the move kept: give it more (--log-limit), or move fewer blocks at a "
                     "time");
}

uint64_t sfc_move_memory(const struct sfc_shard_run *run)
{
    return run->move ? run->move->takes : 0;
}

bool sfc_move_report(const struct sfc_shard_run *run, Shardfc__V1__MoveProgress *out)
{
    const struct sfc_move *m = run->move;
    if (!m)
        return false;
    out->move = m->id;
    out->bytes = m->bytes;
    out->copied = m->copied < m->bytes ? m->copied : m->bytes;
    out->bytes_per_s = m->speed;
    out->close = m->close && m->phase != SFC_MOVE_ENDING;
    out->reason = (char *)(uintptr_t)m->reason;
    return true;
}
