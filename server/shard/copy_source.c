#include "server/shard/copy_source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/shard_internal.h"

#define PIECE_BYTES (UINT64_C(4) << 20) /* most of a ReadCopy or ReadChanges */
#define MAX_CHANGES 4u                  /* ReadChanges at work at a time */
#define SPARE_MS    2000                /* memory is kept so long for the next copy */

/* ---- which copy */

static struct sfc_copy *find(struct sfc_shard_run *run, uint64_t id)
{
    for (size_t i = 0; i < SFC_COPIES; i++)
        if (run->copies.items[i].id == id && !run->copies.items[i].ending)
            return &run->copies.items[i];
    return NULL;
}

static struct sfc_copy *find_or_free(struct sfc_shard_run *run, uint64_t id, bool untracked)
{
    struct sfc_copy *copy = find(run, id);
    size_t first = untracked ? SFC_COPIES_TRACKED : 0;
    size_t end = untracked ? SFC_COPIES : SFC_COPIES_TRACKED;
    for (size_t i = first; i < end && !copy; i++)
        if (run->copies.items[i].id == 0)
            copy = &run->copies.items[i];
    return copy;
}

static struct sfc_copy *known(struct sfc_shard_run *run, uint64_t id, struct sfc_error *err)
{
    struct sfc_copy *copy = id ? find(run, id) : NULL;
    if (!copy)
        sfc_fail(err, SFC_ENOTFOUND, "copy: %016" PRIx64 " is not known here (any more)", id);
    else
        copy->seen_ms = uv_now(run->shard->uv);
    return copy;
}

static struct sfc_copied *noted(struct sfc_copy *copy, uint64_t block)
{
    for (size_t i = 0; i < copy->noted_count; i++)
        if (copy->noted[i].block == block)
            return &copy->noted[i];
    return NULL;
}

/* From `step` on the changes of this block are this copy's, and nobody else's. Room is there. */
static void note(struct sfc_shard_run *run, struct sfc_copy *copy, uint64_t block, uint64_t step)
{
    for (size_t i = 0; i < SFC_COPIES; i++) {
        struct sfc_copy *other = &run->copies.items[i];
        struct sfc_copied *there = noted(other, block);
        if (there && other != copy)
            *there = other->noted[--other->noted_count];
    }
    struct sfc_copied *own = noted(copy, block);
    if (!own)
        own = &copy->noted[copy->noted_count++];
    *own = (struct sfc_copied){block, step};
}

/* ---- the end of a copy */

/* The next copy follows at once, as a rule, and new memory is slow. */
static void spare(struct sfc_shard_run *run, struct sfc_shared *data)
{
    struct sfc_copies *c = &run->copies;
    size_t i = 0;
    while (i < SFC_COPY_BLOCKS && c->spare[i])
        i++;
    if (!data || data->refs > 0 || run->closed || i == SFC_COPY_BLOCKS) {
        sfc_shared_drop(data);
        return;
    }
    c->spare[i] = data;
    c->spare_ms = uv_now(run->shard->uv);
}

static struct sfc_shared *take_spare(struct sfc_shard_run *run, uint64_t bytes)
{
    struct sfc_copies *c = &run->copies;
    for (size_t i = 0; i < SFC_COPY_BLOCKS; i++) {
        struct sfc_shared *data = c->spare[i];
        if (!data || data->size < bytes)
            continue;
        c->spare[i] = NULL;
        return data;
    }
    return sfc_shared_new(bytes);
}

static bool drop_spare(struct sfc_shard_run *run, bool all)
{
    struct sfc_copies *c = &run->copies;
    bool any = false, old = all || uv_now(run->shard->uv) > c->spare_ms + SPARE_MS;
    for (size_t i = 0; i < SFC_COPY_BLOCKS; i++) {
        if (old) {
            sfc_shared_drop(c->spare[i]);
            c->spare[i] = NULL;
        }
        any = any || c->spare[i];
    }
    return any;
}

static void release(struct sfc_copy *copy)
{
    for (size_t i = 0; i < SFC_COPY_BLOCKS && copy->run; i++)
        spare(copy->run, copy->blocks[i].data);
    free(copy->noted);
    *copy = (struct sfc_copy){.run = copy->run};
}

static int forget_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                       struct sfc_error *err)
{
    struct sfc_copy *copy = ctx;
    (void)dense;
    (void)err;
    for (size_t i = 0; i < copy->noted_count; i++) /* one that has left is not tracked any more */
        (void)sfc_head_track(head, copy->noted[i].block, false, NULL);
    return SFC_OK;
}

static void forgotten(struct sfc_compute_job *job)
{
    struct sfc_copy *copy = job->owner;
    if (!copy->run->closed)
        release(copy);
}

static void forget(struct sfc_copy *copy)
{
    copy->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = forgotten};
    copy->job.owner = copy;
    copy->job.u.call.fn = forget_work;
    copy->job.u.call.ctx = copy;
    sfc_compute_submit(copy->run->shard->compute, &copy->job);
}

/* Its job, if one is at work, goes on to forget. */
static void end(struct sfc_copy *copy)
{
    if (copy->id == 0 || copy->ending)
        return;
    copy->ending = true;
    if (!copy->call && copy->untracked)
        release(copy);
    else if (!copy->call)
        forget(copy);
}

void sfc_copies_end(struct sfc_shard_run *run)
{
    for (size_t i = 0; i < SFC_COPIES; i++)
        end(&run->copies.items[i]);
}

void sfc_copies_end_untracked(struct sfc_shard_run *run)
{
    for (size_t i = 0; i < SFC_COPIES; i++)
        if (run->copies.items[i].untracked)
            end(&run->copies.items[i]);
}

void sfc_copies_cancel(struct sfc_shard_run *run, uint64_t move)
{
    struct sfc_copy *copy = move ? find(run, move) : NULL;
    if (copy)
        end(copy);
}

void sfc_copies_free(struct sfc_shard_run *run)
{
    for (size_t i = 0; i < SFC_COPIES; i++) {
        struct sfc_copy *copy = &run->copies.items[i];
        if (copy->call)
            sfc_shard_refuse(run->shard, copy->call, SFC_EUNAVAILABLE, "the run was closed");
        release(copy);
    }
    (void)drop_spare(run, true);
}

bool sfc_copies_tick(struct sfc_shard_run *run)
{
    uint64_t now = uv_now(run->shard->uv);
    bool any = false;
    for (size_t i = 0; i < SFC_COPIES; i++) {
        struct sfc_copy *copy = &run->copies.items[i];
        any = any || copy->id;
        if (!copy->id || copy->ending || now <= copy->seen_ms + SFC_COPY_LEASE_MS)
            continue;
        sfc_warning_log("run %" PRIu64 ": the shard that copied blocks from here has been silent "
                        "for %u s; the copy ends",
                        run->id, SFC_COPY_LEASE_MS / 1000);
        end(copy);
    }
    return drop_spare(run, false) || any;
}

/* ---- BeginCopy */

static int copy_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                     struct sfc_error *err)
{
    const struct sfc_copy *copy = ctx;
    const struct sfc_copy_block *b = &copy->blocks[copy->newest];
    int code = SFC_OK;
    if (b->block.kind == SFC_SNAPSHOT_CLASS && !copy->untracked)
        code = sfc_head_track(head, b->block.block, true, err);
    return code == SFC_OK ? sfc_block_save(head, dense, &b->block, &b->shape, b->parts, err) : code;
}

static void copied(struct sfc_compute_job *job)
{
    struct sfc_copy *copy = job->owner;
    struct sfc_shard_run *run = copy->run;
    if (run->closed)
        return; /* the call ends with the run */
    struct sfc_rpc_call *call = copy->call;
    struct sfc_copy_block *b = &copy->blocks[copy->newest];
    copy->call = NULL;
    b->whole = job->code == SFC_OK;
    if (b->whole && b->block.kind == SFC_SNAPSHOT_CLASS && !copy->untracked)
        note(run, copy, b->block.block, b->step);
    if (job->code != SFC_OK || copy->ending) {
        sfc_shard_refuse(run->shard, call, job->code ? job->code : SFC_ENOTFOUND,
                         job->code ? job->error.text : "the copy was ended");
        if (copy->ending)
            forget(copy);
        return;
    }
    Shardfc__V1__BeginCopyReply m = SHARDFC__V1__BEGIN_COPY_REPLY__INIT;
    Shardfc__V1__Attempt round = SHARDFC__V1__ATTEMPT__INIT;
    round.incarnation = b->round.incarnation;
    round.counter = b->round.counter;
    m.step = b->step;
    m.round = round.incarnation ? &round : NULL;
    m.bytes = b->bytes;
    m.rows = b->shape.rows;
    m.lease_ms = SFC_COPY_LEASE_MS;
    sfc_call_reply(call, &m);
}

/* Nobody's blocks change, and the state is one that counts. */
static int check_state(const struct sfc_shard_run *run, bool exactly, uint64_t step,
                       struct sfc_error *err)
{
    uint64_t stamp = sfc_durability_stamp(run);
    if (run->fsm.phase == SFC_STEP_FAILED)
        return sfc_fail(err, run->fsm.failure_code, "%s", run->fsm.failure);
    if (run->fsm.phase == SFC_STEP_MAPPING || run->map_change)
        return sfc_fail(err, SFC_EUNAVAILABLE, "blocks change their owners now; try again");
    if (exactly && stamp != step)
        return sfc_fail(err, SFC_ESTATE, "step: the blocks are at step %" PRIu64 ", not %" PRIu64,
                        stamp, step);
    return SFC_OK;
}

static int check_block(const struct sfc_shard_run *run, int kind, uint64_t block,
                       struct sfc_error *err)
{
    const struct sfc_snapshot_block wanted = {(enum sfc_snapshot_kind)kind, block};
    if (kind < SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK || kind > SHARDFC__V1__BLOCK_KIND__HISTORY)
        return sfc_fail(err, SFC_EINVAL, "kind: %d", kind);
    if (kind == SHARDFC__V1__BLOCK_KIND__HISTORY)
        return run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE && block == 0
                   ? SFC_OK
                   : sfc_fail(err, SFC_EINVAL, "this run keeps no history, or it is block 0");
    if (!sfc_shard_owns(run, &wanted))
        return sfc_fail(err, SFC_ENOTFOUND,
                        "block: %s block %" PRIu64 " is not one of this shard's (map version "
                        "%" PRIu64 ")",
                        kind ? "dense" : "class", block, run->map_version);
    return SFC_OK;
}

static int check_memory(const struct sfc_shard_run *run, struct sfc_error *err)
{
    uint64_t need =
        SFC_COPY_BLOCKS * sfc_run_largest_block(&run->setup) + MAX_CHANGES * PIECE_BYTES;
    uint64_t limit = run->shard->memory_limit;
    if (run->resident + need <= limit)
        return SFC_OK;
    return sfc_fail(err, SFC_ENOMEM,
                    "giving blocks away takes %.1f MiB for a while; the run has %.1f of the %.1f "
                    "MiB that shard %s may use (--memory)",
                    (double)need / (1 << 20), (double)run->resident / (1 << 20),
                    (double)limit / (1 << 20), run->shard->advertised);
}

/* Room for the block, not lent to a reply, and for one more whose changes are noted. */
static int reserve(struct sfc_shard_run *run, struct sfc_copy *copy, struct sfc_copy_block *b,
                   uint64_t bytes, struct sfc_error *err)
{
    if (b->data && (b->data->refs > 0 || b->data->size < bytes)) {
        sfc_shared_drop(b->data);
        b->data = NULL;
    }
    b->whole = false;
    if (!b->data)
        b->data = take_spare(run, bytes);
    if (b->data && copy->noted_count == copy->noted_room) {
        size_t room = 2 * copy->noted_room + 16;
        struct sfc_copied *more = reallocarray(copy->noted, room, sizeof *more);
        if (more) {
            copy->noted = more;
            copy->noted_room = room;
        }
    }
    return b->data && copy->noted_count < copy->noted_room
               ? SFC_OK
               : sfc_fail(err, SFC_ENOMEM, "no memory for a copy of %" PRIu64 " bytes", bytes);
}

/* That of the older block; the same block again (an answer was lost) takes its own. */
static unsigned next_place(const struct sfc_copy *copy, const struct sfc_snapshot_block *block)
{
    const struct sfc_copy_block *b = &copy->blocks[copy->newest];
    bool same = b->data && b->block.kind == block->kind && b->block.block == block->block;
    return same ? copy->newest : (copy->newest + 1) % SFC_COPY_BLOCKS;
}

static int begin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                 const Shardfc__V1__BeginCopyRequest *r, struct sfc_error *err)
{
    struct sfc_copy *copy = find_or_free(run, r->copy, r->untracked);
    if (!copy || copy->call)
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        copy ? "this copy is at work" : "as many copies as may are made from here");
    bool planned = copy->id || (r->untracked && run->mirrored.gives);
    int code = planned ? SFC_OK : check_memory(run, err);
    uint64_t step = sfc_durability_stamp(run);
    const struct sfc_snapshot_block block = {(enum sfc_snapshot_kind)r->kind, r->block};
    struct sfc_snapshot_shape shape;
    sfc_block_shape(&run->setup, &block, step, &shape);
    uint64_t bytes = sfc_block_lay_out(&shape, NULL, NULL);
    unsigned next = next_place(copy, &block);
    struct sfc_copy_block *b = &copy->blocks[next];
    copy->run = run;
    if (code == SFC_OK)
        code = reserve(run, copy, b, bytes, err);
    if (code != SFC_OK)
        return code;
    copy->id = r->copy;
    copy->seen_ms = uv_now(run->shard->uv);
    copy->call = call;
    copy->untracked = r->untracked;
    copy->newest = next;
    b->block = block;
    b->step = step;
    b->round = sfc_durability_round(run, step);
    b->shape = shape;
    b->bytes = sfc_block_lay_out(&shape, b->data->data, b->parts);
    copy->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = copied, .owner = copy};
    copy->job.span = sfc_shard_span(run, SFC_SPAN_LEND, b->bytes);
    copy->job.u.call.fn = copy_work;
    copy->job.u.call.ctx = copy;
    sfc_shard_watch_moves(run->shard);
    sfc_compute_submit(run->shard->compute, &copy->job);
    return SFC_OK;
}

void sfc_shard_begin_copy(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__BeginCopyRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__begin_copy_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    int code = run ? check_block(run, (int)r->kind, r->block, &err) : err.code;
    if (code == SFC_OK && r->copy == 0)
        code = sfc_fail(&err, SFC_EINVAL, "copy: 0");
    if (code == SFC_OK)
        code = check_state(run, r->exactly, r->step, &err);
    if (code == SFC_OK)
        code = begin(run, call, r, &err);
    if (code != SFC_OK)
        sfc_shard_refuse(shard, call, code, err.text);
    sfc_message_free(r);
}

/* ---- ReadCopy */

/* NULL: the copy does not hold the block (any more). The same block may be there twice: the newer
 * one. */
static const struct sfc_copy_block *held(const struct sfc_copy *copy, int kind, uint64_t block)
{
    for (unsigned i = 0; i < SFC_COPY_BLOCKS; i++) {
        const struct sfc_copy_block *b =
            &copy->blocks[(copy->newest + SFC_COPY_BLOCKS - i) % SFC_COPY_BLOCKS];
        if ((int)b->block.kind == kind && b->block.block == block && b->data)
            return b->whole ? b : NULL;
    }
    return NULL;
}

static int check_piece(const struct sfc_copy_block *b, const Shardfc__V1__ReadCopyRequest *r,
                       struct sfc_error *err)
{
    if (!b)
        return sfc_fail(err, SFC_ESTATE, "block: the copy holds others, or none yet");
    if (r->offset % 8 || r->count % 8 || r->count == 0 || r->offset > b->bytes ||
        r->count > b->bytes - r->offset)
        return sfc_fail(err, SFC_EINVAL,
                        "offset %" PRIu64 ", count %" PRIu64 ": the copy has %" PRIu64
                        " bytes, read in multiples of 8",
                        r->offset, r->count, b->bytes);
    return r->count <= PIECE_BYTES
               ? SFC_OK
               : sfc_fail(err, SFC_ELIMIT, "count: %" PRIu64 " is over %" PRIu64, r->count,
                          PIECE_BYTES);
}

void sfc_shard_read_copy(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ReadCopyRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__read_copy_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    struct sfc_copy *copy = run ? known(run, r->copy, &err) : NULL;
    const struct sfc_copy_block *b = copy ? held(copy, (int)r->kind, r->block) : NULL;
    if (copy && check_piece(b, r, &err) == SFC_OK) {
        struct sfc_bytes piece = sfc_shared_borrow(b->data);
        uint64_t words = r->count / 8;
        struct sfc_tensor_type type;
        Shardfc__V1__ReadCopyReply m = SHARDFC__V1__READ_COPY_REPLY__INIT;
        piece = (struct sfc_bytes){piece.data + r->offset, r->count};
        m.payload_digest = sfc_digest64(piece.data, piece.size);
        m.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_U64, &words, 1);
        sfc_call_reply_tensor(call, &m, piece, sfc_shared_release, b->data);
    } else {
        sfc_shard_refuse(shard, call, err.code, err.text);
    }
    sfc_message_free(r);
}

/* ---- ReadChanges */

struct changes {
    struct sfc_compute_job job;
    struct sfc_shard_run *run;
    struct sfc_rpc_call *call;
    uint64_t block, since, step;
    uint32_t first;
    uint32_t *rows; /* [rows of a block] */
    uint32_t count, next;
    struct sfc_snapshot_shape shape; /* of these rows */
    struct sfc_shared *data;
    uint64_t bytes;
};

static void changes_free(struct changes *c)
{
    free(c->rows);
    sfc_shared_drop(c->data);
    free(c);
}

/* Most rows whose parts fit a piece; at least one. */
static uint32_t piece_rows(struct sfc_snapshot_shape shape)
{
    shape.rows = 64;
    uint64_t rows = 64 * PIECE_BYTES / sfc_block_lay_out(&shape, NULL, NULL);
    return rows ? (uint32_t)(rows < UINT32_MAX ? rows : UINT32_MAX) : 1;
}

static int changes_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                        struct sfc_error *err)
{
    struct changes *c = ctx;
    uint32_t all = 0, at = 0, most = piece_rows(c->shape);
    void *parts[SFC_SNAPSHOT_PARTS];
    (void)dense;
    int code = sfc_head_changed(head, c->block, c->since, c->rows, &all, err);
    if (code != SFC_OK)
        return code;
    while (at < all && c->rows[at] < c->first)
        at++;
    c->count = all - at < most ? all - at : most;
    c->next = at + c->count < all ? c->rows[at + c->count] : 0;
    memmove(c->rows, c->rows + at, c->count * sizeof *c->rows);
    c->shape.rows = c->count;
    c->bytes = sfc_block_lay_out(&c->shape, NULL, NULL);
    c->data = sfc_shared_new(c->bytes);
    if (!c->data)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %" PRIu64 " bytes of changes", c->bytes);
    sfc_block_lay_out(&c->shape, c->data->data, parts);
    return sfc_block_save_rows(head, c->block, &c->shape, c->rows, parts, err);
}

static void changes_done(struct sfc_compute_job *job)
{
    struct changes *c = job->owner;
    struct sfc_shard *shard = c->run->shard;
    c->run->copies.changes--;
    if (job->code != SFC_OK) {
        sfc_shard_refuse(shard, c->call, job->code, job->error.text);
        changes_free(c);
        return;
    }
    uint64_t words = c->bytes / 8;
    struct sfc_tensor_type type;
    struct sfc_bytes bytes = sfc_shared_borrow(c->data);
    Shardfc__V1__ReadChangesReply m = SHARDFC__V1__READ_CHANGES_REPLY__INIT;
    bytes.size = c->bytes;
    m.step = c->step;
    m.n_rows = c->count;
    m.rows = c->rows;
    m.next_row = c->next;
    m.payload_digest = sfc_digest64(bytes.data, bytes.size);
    m.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_U64, &words, 1);
    sfc_call_reply_tensor(c->call, &m, bytes, sfc_shared_release, c->data);
    changes_free(c);
}

static struct changes *changes_new(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                                   const Shardfc__V1__ReadChangesRequest *r)
{
    const struct sfc_snapshot_block block = {SFC_SNAPSHOT_CLASS, r->block};
    struct changes *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->run = run;
    c->call = call;
    c->block = r->block;
    c->since = r->since;
    c->first = r->first_row;
    c->step = sfc_durability_stamp(run);
    sfc_block_shape(&run->setup, &block, c->step, &c->shape);
    c->rows = malloc(c->shape.rows * sizeof *c->rows);
    if (!c->rows) {
        changes_free(c);
        return NULL;
    }
    c->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = changes_done, .owner = c};
    c->job.span = sfc_shard_span(run, SFC_SPAN_LEND, 0);
    c->job.u.call.fn = changes_work;
    c->job.u.call.ctx = c;
    return c;
}

static int check_changes(struct sfc_shard_run *run, const Shardfc__V1__ReadChangesRequest *r,
                         struct sfc_error *err)
{
    struct sfc_copy *copy = known(run, r->copy, err);
    const struct sfc_copied *own = copy ? noted(copy, r->block) : NULL;
    if (!copy)
        return err->code;
    if (!own)
        return sfc_fail(err, SFC_ENOTFOUND,
                        "block: changes of class block %" PRIu64 " are not noted for this copy "
                        "(any more)",
                        r->block);
    if (r->since < own->step)
        return sfc_fail(err, SFC_EINVAL,
                        "since: %" PRIu64 ", but changes are noted from step %" PRIu64 " on",
                        r->since, own->step);
    if (run->copies.changes >= MAX_CHANGES)
        return sfc_fail(err, SFC_EUNAVAILABLE, "too many changes are read at a time; try again");
    return SFC_OK;
}

void sfc_shard_read_changes(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    struct changes *c = NULL;
    Shardfc__V1__ReadChangesRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__read_changes_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    int code = run ? check_state(run, r->exactly, r->step, &err) : err.code;
    if (code == SFC_OK)
        code = check_changes(run, r, &err);
    if (code == SFC_OK && !(c = changes_new(run, call, r)))
        code = sfc_fail(&err, SFC_ENOMEM, "no memory for the answer");
    if (code == SFC_OK) {
        run->copies.changes++;
        sfc_compute_submit(shard->compute, &c->job);
    } else {
        sfc_shard_refuse(shard, call, code, err.text);
    }
    sfc_message_free(r);
}

void sfc_shard_end_copy(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__EndCopyRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__end_copy_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
    struct sfc_copy *copy = run && r->copy ? find(run, r->copy) : NULL;
    if (copy)
        end(copy);
    sfc_call_reply(call, &m); /* one that is not there is ended */
    sfc_message_free(r);
}
