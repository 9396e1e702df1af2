/* The model of a shard's disk: a log of which the flushed part survives, and snapshots of each
 * block, each at a step of its own, of which server/durable/snapshot_store.h says what is kept. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- blocks: class blocks first, then dense blocks */

static bool owned(const struct sim *s, uint32_t k, uint32_t block)
{
    return block < BLOCKS + s->d && map_owns(&s->shards[k].map, k, block);
}

/* Its copies are: they are of an own block, or of one that is mirrored here. */
static bool kept(const struct sim *s, uint32_t k, uint32_t block)
{
    return block < BLOCKS + s->d &&
           (owned(s, k, block) || mirror_keeps(s, &s->shards[k].map, k, block));
}

static uint64_t *state_of(struct shard *sh, uint32_t block)
{
    return block < BLOCKS ? &sh->class_state[block] : &sh->dense_state[block - BLOCKS];
}

static bool given_up(const struct shard *sh, uint64_t step, struct sfc_attempt round)
{
    return sfc_lineage_void(sh->lineage.returns, sh->lineage.count, step, round);
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

/* One of the flushed records, which other shards have. */
static void lose_record(struct sim *s, uint32_t k)
{
    struct disk *d = &s->shards[k].disk;
    uint32_t i = d->flushed > 0 ? sim_below(s, d->flushed) : 0;
    if (d->flushed == 0 || d->records[i].step > s->store.last)
        return;
    sim_log(s, "shard %u: the disk loses the %s of step %llu round %llu.%llu", k,
            d->records[i].commit ? "commit" : "inputs", (ull)d->records[i].step,
            (ull)d->records[i].round.incarnation, (ull)d->records[i].round.counter);
    d->count--;
    d->flushed--;
    memmove(&d->records[i], &d->records[i + 1], (d->count - i) * sizeof(*d->records));
}

static struct disk *copy_of(const struct disk *d)
{
    struct disk *copy = malloc(sizeof(*copy));
    if (!copy)
        abort();
    *copy = *d;
    return copy;
}

/* An old copy of the folder is put in its place: as long as no other shard has deleted anything,
 * they can give what it lacks. */
static void use_old_copy(struct sim *s, struct disk *d)
{
    bool whole = s->right_disk == NULL;
    for (uint32_t i = 0; i < s->k; i++)
        whole = whole && s->shards[i].trimmed == 0;
    if (!s->old_copy && sim_below(s, 3) == 0) {
        s->old_copy = copy_of(d);
    } else if (s->old_copy && whole && sim_below(s, 3) == 0) {
        s->counts.old_copies++;
        s->right_disk = copy_of(d);
        *d = *s->old_copy;
        sim_log(s, "a copy of before takes the place of a disk");
    }
}

void disk_copy_does(struct sim *s)
{
    free(s->right_disk);
    s->right_disk = NULL;
}

bool disk_put_back(struct sim *s, uint32_t k)
{
    if (k != s->bad_disk || !s->right_disk)
        return false;
    s->shards[k].disk = *s->right_disk;
    free(s->right_disk);
    s->right_disk = NULL;
    return true;
}

/* Of what was not flushed any number of the first records may have reached the disk. Where a block
 * has two snapshots the newest may turn out to be damaged, unless the run has gone back so far that
 * the log leads on from that one alone. */
void disk_crash(struct sim *s, uint32_t k)
{
    struct disk *d = &s->shards[k].disk;
    d->count = d->flushed + sim_below(s, d->count - d->flushed + 1);
    d->flushed = d->count;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        struct copies *c = &d->copies[b];
        if (c->count < 2 || c->damaged || sim_below(s, 4) != 0 ||
            c->items[1].step < s->shards[k].trimmed)
            continue;
        memmove(c->items, c->items + 1, --c->count * sizeof(*c->items));
        c->damaged = true;
    }
    for (uint32_t i = k == s->bad_disk ? sim_below(s, 4) : 0; i > 0; i--)
        lose_record(s, k);
    if (k == s->bad_disk)
        use_old_copy(s, d);
}

void disk_close(struct sim *s, uint32_t k)
{
    struct disk *d = &s->shards[k].disk;
    while (d->count > d->flushed && d->records[d->count - 1].commit)
        d->count--;
    if (sim_below(s, 2) == 0) /* the page cache is written back, or not yet */
        d->flushed = d->count;
}

/* Commits are in memory, and are written again with the next flush. */
bool disk_write_failed(struct sim *s, uint32_t k)
{
    const struct shard *sh = &s->shards[k];
    struct disk *d = &s->shards[k].disk;
    uint32_t kept = d->flushed;
    bool lost = false;
    for (uint32_t i = d->flushed; i < d->count; i++) {
        if (d->records[i].commit)
            d->records[kept++] = d->records[i];
        else
            lost = lost || d->records[i].step <= sfc_step_applied(&sh->fsm);
    }
    d->count = kept;
    return lost;
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

uint64_t disk_first_logged(const struct disk *d)
{
    uint64_t first = 0;
    for (uint32_t i = 0; i < d->count; i++)
        if (!d->records[i].commit && (first == 0 || d->records[i].step < first))
            first = d->records[i].step;
    return first;
}

/* ---- snapshots */

static bool visible(const struct shard *sh, const struct snapshot *c)
{
    return c->step <= sh->top && !given_up(sh, c->step, c->round);
}

/* Those of a block that count, newest first. */
static void seen(const struct shard *sh, uint32_t block, struct copies *out)
{
    const struct copies *all = &sh->disk.copies[block];
    out->count = 0;
    for (uint32_t i = 0; i < all->count; i++)
        if (visible(sh, &all->items[i]))
            out->items[out->count++] = all->items[i];
}

/* The first that is not after the step; count: none. */
static uint32_t at_step(const struct copies *c, uint64_t step)
{
    uint32_t i = 0;
    while (i < c->count && c->items[i].step > step)
        i++;
    return i;
}

/* What must be led to: the window of rewinds, the last durable step, a rewind that is asked for. */
static uint64_t horizon(const struct sim *s, const struct shard *sh, uint64_t step)
{
    uint64_t back = step > s->window ? step - s->window : 0;
    back = back < sh->durable_step ? back : sh->durable_step;
    return step <= sh->kept_until && sh->kept_back < back ? sh->kept_back : back;
}

uint64_t disk_floor(const struct sim *s, uint32_t k)
{
    const struct shard *sh = &s->shards[k];
    uint64_t floor = UINT64_MAX, back = horizon(s, sh, sfc_step_applied(&sh->fsm));
    struct copies c;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        if (!kept(s, k, b))
            continue;
        seen(sh, b, &c);
        uint32_t i = at_step(&c, back), two = c.count < 2 ? c.count : 2;
        uint64_t step = i == c.count                              ? grow_since(s, &sh->map, b)
                        : c.items[i].step < c.items[two - 1].step ? c.items[i].step
                                                                  : c.items[two - 1].step;
        floor = step < floor ? step : floor;
    }
    if (sh->staged.ready) /* what it owns from the flip on goes on from these copies */
        floor = sh->staged.stamp < floor ? sh->staged.stamp : floor;
    return floor == UINT64_MAX ? back : floor; /* who owns nothing needs nothing */
}

void disk_put_copy(struct sim *s, uint32_t k, uint32_t block, uint64_t step, uint64_t state)
{
    s->shards[k].disk.copies[block] =
        (struct copies){.count = 1,
                        .items = {{.step = step,
                                   .state = state,
                                   .rows = grow_rows(s, &s->shards[k].map, block),
                                   .round = s->oracle.records[step].r.round}}};
}

void disk_settle_grown(struct sim *s, uint32_t k, const struct map *map)
{
    struct disk *d = &s->shards[k].disk;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        bool taken =
            d->grown[b].rows && map_owns(map, k, b) && grow_rows(s, map, b) == d->grown[b].rows;
        if (taken)
            d->copies[b] = (struct copies){.count = 1, .items = {d->grown[b]}};
        d->grown[b] = (struct snapshot){0};
        if (d->copies[b].items[0].rows != grow_rows(s, map, b)) /* of a block that is mirrored */
            d->copies[b] = (struct copies){0};
    }
}

void disk_keep_owned(struct sim *s, uint32_t k, const struct map *map, const bool *keep)
{
    for (uint32_t b = 0; b < MAX_BLOCKS; b++)
        if (!(b < BLOCKS + s->d && (map_owns(map, k, b) || mirror_keeps(s, map, k, b))) &&
            !(keep && keep[b]))
            memset(&s->shards[k].disk.copies[b], 0, sizeof(struct copies));
}

uint64_t disk_oldest(const struct sim *s, uint32_t k)
{
    const struct shard *sh = &s->shards[k];
    uint64_t oldest = 0;
    struct copies c;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        uint64_t stamp = UINT64_MAX, since = grow_since(s, &sh->map, b);
        if (!owned(s, k, b))
            continue;
        oldest = since > oldest ? since : oldest;
        if (sh->trimmed == 0)
            continue;
        seen(sh, b, &c);
        for (uint32_t i = 0; i < c.count && c.items[i].step >= sh->trimmed; i++)
            stamp = c.items[i].step;
        oldest = stamp > oldest ? stamp : oldest;
    }
    return oldest;
}

/* Copies the next block between two applies; it is written a little later. */
void disk_take_snapshot(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    for (uint32_t i = 0; i < MAX_BLOCKS && !sh->unsettled; i++) {
        uint32_t b = sh->next_snapshot++ % MAX_BLOCKS;
        if (!owned(s, k, b))
            continue;
        struct event *e = sim_after(s, 1 + sim_below(s, 60), E_SNAPSHOT_WRITTEN);
        e->a = k;
        e->b = sh->opened;
        e->c = b;
        e->body.step = sfc_step_applied(&sh->fsm);
        e->body.round = s->oracle.records[e->body.step].r.round;
        e->body.floor = horizon(s, sh, e->body.step);
        e->body.value = *state_of(sh, b);
        e->body.count = grow_rows(s, &sh->map, b);
        return;
    }
}

static void put_newest(struct sim *s, struct copies *c, const struct snapshot *newest,
                       uint64_t horizon_step)
{
    if (c->count > 0 && c->items[0].step >= newest->step)
        return;
    if (c->count == MAX_COPIES) {
        sim_fail(s, "a block has %d snapshots", MAX_COPIES);
        return;
    }
    memmove(c->items + 1, c->items, c->count++ * sizeof(*c->items));
    c->damaged = false;
    c->items[0] = *newest;
    uint32_t back = at_step(c, horizon_step), left = 0;
    for (uint32_t i = 0; i < c->count; i++)
        if (i < 2 || i == back || i + 1 == back)
            c->items[left++] = c->items[i];
    c->count = left;
}

void disk_snapshot_written(struct sim *s, uint32_t k, const struct event *e)
{
    const struct snapshot newest = {.step = e->body.step,
                                    .state = e->body.value,
                                    .rows = e->body.count,
                                    .round = e->body.round};
    /* else it has moved away, or has grown */
    if (owned(s, k, (uint32_t)e->c) &&
        newest.rows == grow_rows(s, &s->shards[k].map, (uint32_t)e->c))
        put_newest(s, &s->shards[k].disk.copies[e->c], &newest, e->body.floor);
}

void disk_copy_block(struct sim *s, uint32_t k, uint32_t block, uint64_t step, uint64_t state)
{
    const struct shard *sh = &s->shards[k];
    const struct snapshot newest = {.step = step,
                                    .state = state,
                                    .rows = grow_rows(s, &sh->map, block),
                                    .round = s->oracle.records[step].r.round};
    put_newest(s, &s->shards[k].disk.copies[block], &newest,
               horizon(s, sh, sfc_step_applied(&sh->fsm)));
}

void disk_drop_hidden(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        struct copies c;
        seen(sh, b, &c);
        c.damaged = sh->disk.copies[b].damaged;
        sh->disk.copies[b] = c;
    }
    sh->top = UINT64_MAX;
}

/* ---- recovery */

/* The commit of a step that counts, as far as this disk knows. */
static const struct log_record *commit_of(const struct shard *sh, uint64_t step)
{
    for (uint32_t i = sh->disk.count; i-- > 0;) {
        const struct log_record *r = &sh->disk.records[i];
        if (r->commit && r->step == step && !given_up(sh, step, r->round))
            return r;
    }
    return NULL;
}

/* A committed step as a shard has it: whole, and not of an older round than the step before. */
static bool step_of(const struct shard *sh, uint64_t step, struct sfc_attempt before,
                    struct log_record *inputs, struct log_record *commit)
{
    const struct log_record *c = commit_of(sh, step);
    if (!c || sfc_attempt_compare(c->round, before) < 0)
        return false;
    const struct log_record *r = disk_find(&sh->disk, step, c->round);
    if (!r)
        return false;
    *commit = *c;
    *inputs = *r;
    return true;
}

/* The same from another shard (call ReadStep), which goes into the own log. */
static enum disk_result fetch(struct sim *s, uint32_t k, uint64_t step, bool keep,
                              struct log_record *inputs, struct log_record *commit)
{
    struct shard *own = &s->shards[k];
    const struct log_record *known = commit_of(own, step);
    enum disk_result result = DISK_LACKS;
    for (uint32_t i = 0; i < s->k; i++) {
        const struct shard *sh = &s->shards[i];
        if (i == k || !own->map.member[i])
            continue;
        if (!sh->up || !sh->has_run || sfc_step_applied(&sh->fsm) < step) {
            result = DISK_ASKS_LATER;
            continue;
        }
        if (!step_of(sh, step, (struct sfc_attempt){0, 0}, inputs, commit) ||
            (known && sfc_attempt_compare(known->round, commit->round) != 0) ||
            given_up(own, step, commit->round))
            continue;
        s->counts.fetched++;
        sim_log(s, "shard %u takes step %llu from shard %u", k, (ull)step, i);
        inputs->fetched = true;
        if (keep) {
            disk_append(s, &own->disk, inputs);
            disk_append(s, &own->disk, commit);
        }
        return DISK_LEADS;
    }
    return result;
}

static void replay(struct sim *s, uint32_t block, uint32_t rows, const struct log_record *r,
                   const struct log_record *commit, uint64_t *state)
{
    uint64_t inputs = 0;
    if (!commit->apply)
        return;
    for (uint32_t j = 0; j < s->j; j++)
        inputs = mix(mix(inputs, r->features[j]), r->lse[j]);
    if (block < BLOCKS)
        *state = model_class_update(*state, model_sample(s, r->step, block, rows, r->labels),
                                    inputs, r->lr);
    else
        *state = model_dense_update(*state, r->sums[block - BLOCKS], commit->clip_scale, r->lr);
}

/* The newest snapshot that is not after the step, or the seed. False: neither. */
static bool begin_block(struct sim *s, uint32_t k, uint32_t block, uint64_t to, struct snapshot *at)
{
    struct copies c;
    seen(&s->shards[k], block, &c);
    uint32_t i = at_step(&c, to);
    if (i < c.count) {
        if (c.items[i].step > 0)
            oracle_check_replay(s, k, c.items[i].step, c.items[i].round);
        *at = c.items[i];
        return true;
    }
    *at = (struct snapshot){.state = block < BLOCKS ? s->oracle.class_state[0][block]
                                                    : s->oracle.dense_state[0][block - BLOCKS]};
    return !grow_grew(s, &s->shards[k].map, block);
}

static enum disk_result recover_block(struct sim *s, uint32_t k, uint32_t block,
                                      const struct sfc_commit_record *last, bool keep,
                                      struct snapshot *at)
{
    struct sfc_attempt before = at->round;
    while (at->step < last->step) {
        struct log_record inputs, commit;
        uint64_t step = at->step + 1;
        enum disk_result result = DISK_LEADS;
        if (!step_of(&s->shards[k], step, before, &inputs, &commit))
            result = block < BLOCKS ? fetch(s, k, step, keep, &inputs, &commit) : DISK_LACKS;
        else if (block >= BLOCKS && commit.apply && (inputs.fetched || !inputs.own[block - BLOCKS]))
            result = DISK_LACKS;
        if (result != DISK_LEADS) {
            sim_log(s, "shard %u block %u: step %llu is not in the log", k, block, (ull)step);
            return result;
        }
        oracle_check_replay(s, k, step, commit.round);
        replay(s, block, grow_rows(s, &s->shards[k].map, block), &inputs, &commit, &at->state);
        before = commit.round;
        at->step = step;
    }
    return DISK_LEADS;
}

/* The scheduler knows the last commit; the log may not. */
static void take_last(struct sim *s, struct shard *sh, const struct sfc_commit_record *last)
{
    const struct log_record *known = last->step ? commit_of(sh, last->step) : NULL;
    if (last->step == 0 || (known && sfc_attempt_compare(known->round, last->round) == 0))
        return;
    const struct log_record commit = {.commit = true,
                                      .step = last->step,
                                      .round = last->round,
                                      .lr = last->lr,
                                      .clip_scale = last->clip_scale,
                                      .apply = last->apply};
    disk_append(s, &sh->disk, &commit);
}

enum disk_result disk_recover(struct sim *s, uint32_t k, const struct sfc_commit_record *last,
                              bool keep, uint64_t *replayed)
{
    struct shard *sh = &s->shards[k];
    uint32_t count = sh->disk.count;
    enum disk_result result = DISK_LEADS;
    *replayed = 0;
    take_last(s, sh, last);
    for (uint32_t b = 0; b < MAX_BLOCKS && result == DISK_LEADS; b++) {
        if (!owned(s, k, b))
            continue;
        struct snapshot at;
        bool begins = begin_block(s, k, b, last->step, &at);
        uint64_t from = at.step;
        result = begins ? recover_block(s, k, b, last, keep, &at) : DISK_LACKS;
        *replayed = at.step - from > *replayed ? at.step - from : *replayed;
        if (keep)
            *state_of(sh, b) = at.state;
    }
    if (!keep)
        sh->disk.count = count;
    return result;
}
