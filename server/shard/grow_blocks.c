/* Blocks of new identities, and the last block that gets more rows: a move from nowhere. They are
 * staged beside the run's as the seed makes them, while steps go on. At the boundary the old rows
 * of a block that fills up are taken over, and every staged block is written to the disk with the
 * stamp of that step: nothing leads to before it. */
#include <inttypes.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/move_parts.h"

static struct sfc_move_block *block_of(const struct sfc_move_buffer *b)
{
    return &b->move->blocks[b->index];
}

/* ---- may it grow? */

static int check_block(const struct sfc_shard_run *run, const struct sfc_run_setup *then,
                       uint64_t block, struct sfc_error *err)
{
    const struct sfc_snapshot_block id = {SFC_SNAPSHOT_CLASS, block};
    bool is_new = block >= run->setup.class_blocks;
    bool fills = !is_new && sfc_head_block_rows(&run->setup.head, block) <
                                sfc_head_block_rows(&then->head, block);
    if (block < then->class_blocks && (is_new || (fills && sfc_shard_owns(run, &id))))
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL,
                    "class_blocks: block %" PRIu64
                    " gets no rows here when the run grows from %" PRIu64 " to %" PRIu64 " classes",
                    block, run->setup.head.classes, then->head.classes);
}

int sfc_move_grow_check(const struct sfc_shard_run *run, const Shardfc__V1__FetchBlocksRequest *r,
                        struct sfc_error *err)
{
    struct sfc_run_setup then = run->setup;
    const struct sfc_backend *backend = sfc_compute_backend(run->shard->compute);
    if (r->move == 0 || r->n_dense_blocks > 0 || r->classes <= run->setup.head.classes ||
        r->classes > SFC_LIMIT_CLASSES)
        return sfc_fail(err, SFC_EINVAL,
                        "classes: %" PRIu64 ", the run has %" PRIu64
                        "; move must be given, and no dense blocks",
                        r->classes, run->setup.head.classes);
    if (strcmp(sfc_backend_name(backend), "reference") == 0)
        return sfc_fail(
            err, SFC_EUNSUPPORTED,
            "the reference backend computes in double and can't hand rows over exactly: create the "
            "run with all its identities, or use shards with --backend cpu or cuda");
    sfc_run_setup_set_classes(&then, r->classes);
    int code = sfc_head_check(backend, &then.head, err);
    for (size_t i = 0; code == SFC_OK && i < r->n_class_blocks; i++) {
        if (i > 0 && r->class_blocks[i] <= r->class_blocks[i - 1])
            return sfc_fail(err, SFC_EINVAL, "class_blocks: not ascending");
        code = check_block(run, &then, r->class_blocks[i], err);
    }
    return code;
}

/* ---- at the boundary, one block after the other */

/* Rows that are new in a run with lazy momentum: without this they would coast through steps in
 * which they were not there. */
static int set_last_step(struct sfc_head *head, uint64_t block, uint64_t first, uint64_t rows,
                         uint64_t step, struct sfc_error *err)
{
    float values[256];
    int code = SFC_OK;
    for (size_t i = 0; i < 256; i++)
        values[i] = (float)step;
    for (uint64_t at = first; code == SFC_OK && at < rows; at += 256) {
        uint64_t n = rows - at < 256 ? rows - at : 256;
        code = sfc_head_write(head, block, SFC_PART_LAST_STEP, at, n, values, err);
    }
    return code;
}

static int take_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                     struct sfc_error *err)
{
    struct sfc_move_buffer *b = ctx;
    const struct sfc_move *m = b->move;
    const struct sfc_snapshot_block *id = &block_of(b)->id;
    struct sfc_snapshot_shape old;
    void *parts[SFC_SNAPSHOT_PARTS];
    uint64_t kept = 0;
    int code = SFC_OK;
    (void)dense;
    sfc_block_shape(&m->run->setup, id, m->take_step, &old);
    if (id->block < m->run->setup.class_blocks) {
        kept = old.rows;
        sfc_block_lay_out(&old, b->data, parts);
        code = sfc_block_save(head, NULL, id, &old, parts, err);
        if (code == SFC_OK)
            code = sfc_block_write_range(m->head, NULL, id, &old, parts, 0, kept, err);
    }
    if (code == SFC_OK && m->setup.head.momentum_mode == SFC_MOMENTUM_DENSE)
        code = set_last_step(m->head, id->block, kept, b->shape.rows, m->take_step, err);
    if (code == SFC_OK)
        code = sfc_block_save(m->head, NULL, id, &b->shape, b->parts, err);
    return code;
}

static void landed(struct sfc_move_buffer *b)
{
    struct sfc_move *m = b->move;
    sfc_move_landed(b);
    m->copied += b->bytes;
    sfc_move_go_on(m);
}

static void kept(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_move *m = run->move;
    struct sfc_move_buffer *b = m->keeping;
    m->keeping = NULL;
    if (m->phase == SFC_MOVE_ENDING)
        sfc_move_go_on(m);
    else if (code != SFC_OK)
        sfc_move_end(m, code == SFC_EEXIST ? SFC_EUNAVAILABLE : code, text);
    else
        landed(b);
}

static void taken(struct sfc_compute_job *job)
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
    } else if (m->run->durability.on) {
        m->keeping = b;
        sfc_durability_adopt(m->run, SFC_ADOPT_MOVE, &b->key, &b->shape, b->parts, kept);
    } else {
        landed(b);
    }
}

void sfc_move_pump_growth(struct sfc_move *m)
{
    struct sfc_move_buffer *b = &m->buffers[0];
    if (b->state != SFC_BUFFER_FREE || m->next >= m->count)
        return;
    b->index = m->next++;
    b->state = SFC_BUFFER_LANDING;
    const struct sfc_snapshot_block *id = &block_of(b)->id;
    b->key = (struct sfc_snapshot_key){.kind = id->kind,
                                       .block = id->block,
                                       .step = m->take_step,
                                       .grown = sfc_block_grown(&m->setup, id),
                                       .round = sfc_durability_round(m->run, m->take_step)};
    sfc_block_shape(&m->setup, id, m->take_step, &b->shape);
    b->bytes = sfc_block_lay_out(&b->shape, b->data, b->parts);
    b->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = taken, .owner = b};
    b->job.u.call.fn = take_work;
    b->job.u.call.ctx = b;
    m->jobs++;
    sfc_compute_submit(m->run->shard->compute, &b->job);
}
