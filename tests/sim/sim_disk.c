/* The model of a shard's disk: a log of which the flushed part survives, and two snapshots of each
 * block, each at a step of its own. */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- blocks: class blocks first, then dense blocks */

static bool owned(const struct sim *s, uint32_t k, uint32_t block)
{
    if (block < BLOCKS)
        return s->class_owner[block] == k;
    return block < BLOCKS + s->d && s->dense_owner[block - BLOCKS] == k;
}

static uint64_t *state_of(struct shard *sh, uint32_t block)
{
    return block < BLOCKS ? &sh->class_state[block] : &sh->dense_state[block - BLOCKS];
}

/* ---- the log */

void disk_append(struct sim *s, struct disk *d, const struct log_record *record)
{
    if (d->count == MAX_RECORDS) {
        sim_fail(s, "the log of a shard has more than %d records", MAX_RECORDS);
        return;
    }
    d->records[d->count++] = *record;
}

/* Of what was not flushed any number of the first records may have reached the disk. Where a block
 * has two snapshots the newest may turn out to be damaged. */
void disk_crash(struct sim *s, struct disk *d)
{
    d->count = d->flushed + sim_below(s, d->count - d->flushed + 1);
    d->flushed = d->count;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++)
        if (d->snapshots[b][1].used && sim_below(s, 4) == 0) {
            d->snapshots[b][0] = d->snapshots[b][1];
            d->snapshots[b][1].used = false;
        }
}

void disk_trim(struct disk *d, uint64_t floor)
{
    uint32_t kept = 0, flushed = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        if (d->records[i].step <= floor)
            continue;
        flushed += i < d->flushed;
        d->records[kept++] = d->records[i];
    }
    d->count = kept;
    d->flushed = flushed;
}

const struct log_record *disk_find(const struct disk *d, uint64_t step, struct sfc_attempt round)
{
    for (uint32_t i = d->count; i-- > 0;) {
        const struct log_record *r = &d->records[i];
        if (!r->commit && r->step == step && sfc_attempt_compare(r->round, round) == 0)
            return r;
    }
    return NULL;
}

/* ---- snapshots */

uint64_t disk_floor(const struct sim *s, uint32_t k)
{
    const struct disk *d = &s->shards[k].disk;
    uint64_t floor = UINT64_MAX;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        if (!owned(s, k, b))
            continue;
        const struct snapshot *last = &d->snapshots[b][d->snapshots[b][1].used];
        uint64_t step = last->used ? last->step : 0;
        floor = step < floor ? step : floor;
    }
    return floor == UINT64_MAX ? 0 : floor;
}

/* Copies the next block between two applies; it is written a little later. */
void disk_take_snapshot(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    for (uint32_t i = 0; i < MAX_BLOCKS; i++) {
        uint32_t b = sh->next_snapshot++ % MAX_BLOCKS;
        if (!owned(s, k, b))
            continue;
        struct event *e = sim_after(s, 1 + sim_below(s, 60), E_SNAPSHOT_WRITTEN);
        e->a = k;
        e->b = sh->life;
        e->c = b;
        e->body.step = sfc_step_applied(&sh->fsm);
        e->body.value = *state_of(sh, b);
        return;
    }
}

void disk_snapshot_written(struct sim *s, uint32_t k, uint32_t block, uint64_t step, uint64_t state)
{
    struct snapshot *two = s->shards[k].disk.snapshots[block];
    if (two[0].used && two[0].step >= step)
        return;
    two[1] = two[0];
    two[0] = (struct snapshot){.used = true, .step = step, .state = state};
}

/* ---- recovery */

/* The round of `step` that counts: what the log says, or the scheduler of the last step. */
static const struct log_record *commit_of(const struct disk *d, uint64_t step)
{
    for (uint32_t i = d->count; i-- > 0;)
        if (d->records[i].commit && d->records[i].step == step)
            return &d->records[i];
    return NULL;
}

static void replay(struct sim *s, uint32_t block, const struct log_record *r,
                   const struct log_record *commit, uint64_t *state)
{
    uint64_t inputs = 0;
    if (!commit->apply)
        return;
    for (uint32_t j = 0; j < s->j; j++)
        inputs = mix(mix(inputs, r->features[j]), r->lse[j]);
    if (block < BLOCKS)
        *state =
            model_class_update(*state, model_sample(s, r->step, block, r->labels), inputs, r->lr);
    else
        *state = model_dense_update(*state, r->sums[block - BLOCKS], commit->clip_scale, r->lr);
}

static bool recover_block(struct sim *s, uint32_t k, uint32_t block, uint64_t to, uint64_t *steps)
{
    struct shard *sh = &s->shards[k];
    const struct snapshot *newest = &sh->disk.snapshots[block][0];
    uint64_t *state = state_of(sh, block);
    uint64_t step = newest->used ? newest->step : 0;
    if (newest->used)
        *state = newest->state;
    else
        *state = block < BLOCKS ? s->oracle.class_state[0][block]
                                : s->oracle.dense_state[0][block - BLOCKS];
    if (step > to) {
        sim_fail(s, "shard %u block %u: a snapshot of step %llu, but step %llu is committed", k,
                 block, (ull)step, (ull)to);
        return false;
    }
    *steps = to - step > *steps ? to - step : *steps;
    while (step < to) {
        step++;
        const struct log_record *commit = commit_of(&sh->disk, step);
        const struct log_record *r = commit ? disk_find(&sh->disk, step, commit->round) : NULL;
        if (!r) {
            sim_log(s, "shard %u block %u: step %llu is not in the log", k, block, (ull)step);
            return false;
        }
        replay(s, block, r, commit, state);
    }
    return true;
}

bool disk_recover(struct sim *s, uint32_t k, const struct sfc_commit_record *last,
                  uint64_t *replayed)
{
    struct disk *d = &s->shards[k].disk;
    *replayed = 0;
    if (last->step != 0 && !commit_of(d, last->step)) {
        const struct log_record commit = {.commit = true,
                                          .step = last->step,
                                          .round = last->round,
                                          .lr = last->lr,
                                          .clip_scale = last->clip_scale,
                                          .apply = last->apply};
        disk_append(s, d, &commit);
    }
    for (uint32_t b = 0; b < MAX_BLOCKS; b++)
        if (owned(s, k, b) && !recover_block(s, k, b, last->step, replayed))
            return false;
    return true;
}
