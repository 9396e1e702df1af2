#include "server/shard/mirror.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/mirror_parts.h"

/* ---- the list */

static int by_id(const struct sfc_snapshot_block *a, const struct sfc_snapshot_block *b)
{
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    return a->block < b->block ? -1 : a->block > b->block;
}

static int compare_blocks(const void *a, const void *b)
{
    const struct sfc_mirror_block *x = a, *y = b;
    return by_id(&x->id, &y->id);
}

static struct sfc_mirror_block *find(const struct sfc_mirror *m,
                                     const struct sfc_snapshot_block *id)
{
    const struct sfc_mirror_block key = {.id = *id};
    return m->count ? bsearch(&key, m->blocks, m->count, sizeof key, compare_blocks) : NULL;
}

/* Class blocks, then dense blocks: in order. *out: to be freed. */
static int list_blocks(const struct sfc_shard_run *run, struct sfc_mirror_block **out,
                       size_t *count, struct sfc_error *err)
{
    const struct sfc_shard_blocks *b = &run->mirrored.blocks;
    struct sfc_mirror_block *list = calloc(b->class_count + b->dense_count + 1, sizeof *list);
    if (!list)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu mirrored blocks",
                        b->class_count + b->dense_count);
    *count = b->class_count + b->dense_count;
    for (size_t i = 0; i < *count; i++) {
        bool dense = i >= b->class_count;
        list[i].id.kind = dense ? SFC_SNAPSHOT_DENSE : SFC_SNAPSHOT_CLASS;
        list[i].id.block = dense ? b->dense_blocks[i - b->class_count] : b->class_blocks[i];
        list[i].place = run->mirrored.owners[i];
        list[i].rows = dense ? 0 : sfc_head_block_rows(&run->setup.head, list[i].id.block);
    }
    *out = list;
    return SFC_OK;
}

static uint64_t file_bytes(const struct sfc_shard_run *run, const struct sfc_snapshot_block *id)
{
    struct sfc_snapshot_shape shape;
    sfc_block_shape(&run->setup, id, 0, &shape);
    return sfc_snapshot_file_bytes(&shape);
}

/* Bytes of each snapshot; NULL without memory. */
static uint64_t *sizes_of(const struct sfc_shard_run *run, const struct sfc_mirror_block *blocks,
                          size_t count)
{
    uint64_t *bytes = calloc(count + 1, sizeof *bytes);
    for (size_t i = 0; bytes && i < count; i++)
        bytes[i] = file_bytes(run, &blocks[i].id);
    return bytes;
}

/* ---- what the log has */

static bool is_pushed(struct sfc_dense_set set, uint64_t block)
{
    for (size_t i = 0; i < set.count; i++)
        if (set.blocks[i] == block)
            return true;
    return false;
}

/* From which step on the log has the gradients of a dense block. */
static int find_since(struct sfc_shard_run *run, struct sfc_mirror_block *b, struct sfc_error *err)
{
    struct sfc_storage *s = &run->durability.storage;
    uint64_t *digests = calloc(s->lists.count + 1, sizeof *digests);
    size_t count = 0;
    if (!digests)
        return sfc_fail(err, SFC_ENOMEM, "no memory for lists of blocks");
    for (size_t i = 0; i < s->lists.count; i++) {
        const struct sfc_dense_list *l = &s->lists.items[i];
        if (is_pushed((struct sfc_dense_set){l->blocks, l->count}, b->id.block))
            digests[count++] = l->digest;
    }
    pthread_mutex_lock(&s->log_lock);
    b->since = sfc_step_log_sums_since(s->log, digests, count);
    pthread_mutex_unlock(&s->log_lock);
    free(digests);
    return SFC_OK;
}

/* pushed: whose gradients came here up to the boundary after `step`. */
static int find_all_since(struct sfc_mirror *m, struct sfc_dense_set pushed, uint64_t step,
                          struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; code == SFC_OK && i < m->count; i++) {
        struct sfc_mirror_block *b = &m->blocks[i];
        if (b->id.kind != SFC_SNAPSHOT_DENSE)
            continue;
        b->since = step;
        if (is_pushed(pushed, b->id.block))
            code = find_since(m->run, b, err);
    }
    return code;
}

/* The state that the block would be made from; false: there is none. Of rows that came with a
 * growth there is none before the first copy. */
static bool base_of(const struct sfc_mirror *m, const struct sfc_mirror_block *b, uint64_t *step)
{
    const struct sfc_storage *s = &m->run->durability.storage;
    *step = b->count ? b->stamps[0] : s->start_step;
    return b->count > 0 || sfc_storage_from_seed(s, &b->id);
}

static bool leads_on(const struct sfc_mirror *m, const struct sfc_mirror_block *b, uint64_t step)
{
    return step >= m->run->durability.trimmed && step >= b->since;
}

/* Snapshot, or seed, and log lead to its state. */
static bool covered(const struct sfc_mirror *m, const struct sfc_mirror_block *b)
{
    uint64_t step;
    return base_of(m, b, &step) && leads_on(m, b, step);
}

uint64_t sfc_mirror_floor(const struct sfc_shard_run *run)
{
    const struct sfc_mirror *m = run->mirror;
    uint64_t floor = m ? m->hold : UINT64_MAX;
    for (size_t i = 0; m && i < m->count; i++) {
        const struct sfc_mirror_block *b = &m->blocks[i];
        uint64_t step;
        if (!covered(m, b))
            continue;
        base_of(m, b, &step);
        if (b->count == 2 && leads_on(m, b, b->stamps[1]))
            step = b->stamps[1];
        floor = step < floor ? step : floor;
    }
    return floor;
}

/* ---- life */

static int sweep_new(struct sfc_mirror *m, struct sfc_error *err)
{
    const struct sfc_durability *d = &m->run->durability;
    const struct sfc_shard_options *o = m->run->shard->options;
    struct sfc_sweep_config c = {.recovery_target_ms = o->recovery_target,
                                 .log_limit = d->storage.config.limit_bytes,
                                 .rate = o->snapshot_rate,
                                 .start_step = d->storage.start_step};
    uint64_t *bytes = sizes_of(m->run, m->blocks, m->count);
    int code = bytes ? sfc_sweep_init(&m->sweep, &c, bytes, m->count, err)
                     : sfc_fail(err, SFC_ENOMEM, "no memory for %zu blocks", m->count);
    free(bytes);
    for (size_t i = 0; code == SFC_OK && i < m->count; i++)
        if (m->blocks[i].count)
            sfc_sweep_stamped(&m->sweep, i, m->blocks[i].stamps[0]);
    return code;
}

static void read_stamps(struct sfc_mirror *m)
{
    for (size_t i = 0; i < m->count; i++) {
        struct sfc_mirror_block *b = &m->blocks[i];
        b->count = sfc_snapshot_store_stamps(m->run->durability.storage.store, &b->id,
                                             sfc_block_grown(&m->run->setup, &b->id), b->stamps);
    }
}

int sfc_mirror_open(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_mirror *m = calloc(1, sizeof *m);
    if (!m)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a mirror");
    m->run = run;
    m->hold = UINT64_MAX;
    m->good_ms = uv_now(run->shard->uv);
    run->mirror = m;
    int code = list_blocks(run, &m->blocks, &m->count, err);
    if (code == SFC_OK) {
        read_stamps(m);
        code = find_all_since(m, run->mirrored.pushed, 0, err);
    }
    return code == SFC_OK ? sweep_new(m, err) : code;
}

void sfc_mirror_abandon(struct sfc_shard_run *run)
{
    if (run->mirror)
        sfc_mirror_copy_end(run->mirror);
}

void sfc_mirror_free(struct sfc_shard_run *run)
{
    struct sfc_mirror *m = run->mirror;
    if (!m)
        return;
    sfc_mirror_copy_free(m);
    sfc_sweep_close(&m->sweep);
    free(m->blocks);
    free(m->data);
    free(m);
    run->mirror = NULL;
}

/* What is known of copies stays known, unless they are of fewer rows than the block has now;
 * was[i]: the index that block i had. */
static void take_over(struct sfc_mirror *m, struct sfc_mirror_block *list, size_t count,
                      size_t *was)
{
    for (size_t i = 0; i < count; i++) {
        const struct sfc_mirror_block *old = find(m, &list[i].id);
        bool same = old && old->rows == list[i].rows;
        was[i] = same ? (size_t)(old - m->blocks) : SIZE_MAX;
        if (!same)
            continue;
        list[i].count = old->count;
        memcpy(list[i].stamps, old->stamps, sizeof old->stamps);
    }
}

static int change_sweep(struct sfc_mirror *m, const struct sfc_mirror_block *list, size_t count,
                        const size_t *was, struct sfc_error *err)
{
    uint64_t *bytes = sizes_of(m->run, list, count);
    int code = bytes ? sfc_sweep_change(&m->sweep, bytes, was, count, err)
                     : sfc_fail(err, SFC_ENOMEM, "no memory for %zu blocks", count);
    free(bytes);
    return code;
}

int sfc_mirror_change(struct sfc_shard_run *run, struct sfc_dense_set pushed, uint64_t step,
                      struct sfc_error *err)
{
    struct sfc_mirror *m = run->mirror;
    struct sfc_mirror_block *list = NULL;
    size_t count = 0;
    if (!m)
        return SFC_OK;
    int code = list_blocks(run, &list, &count, err);
    size_t *was = code == SFC_OK ? calloc(count + 1, sizeof *was) : NULL;
    if (code == SFC_OK && !was)
        code = sfc_fail(err, SFC_ENOMEM, "no memory for %zu mirrored blocks", count);
    if (code == SFC_OK) {
        take_over(m, list, count, was);
        code = change_sweep(m, list, count, was, err);
    }
    free(was);
    if (code != SFC_OK) {
        free(list);
        return code;
    }
    free(m->blocks);
    m->blocks = list;
    m->count = count;
    sfc_mirror_copy_end(m);
    m->reason[0] = 0;
    m->good_ms = uv_now(run->shard->uv);
    return find_all_since(m, pushed, step, err);
}

/* ---- copies */

void sfc_mirror_kept(struct sfc_mirror *m, const struct sfc_snapshot_key *key)
{
    const struct sfc_snapshot_block id = {key->kind, key->block};
    struct sfc_mirror_block *b = find(m, &id);
    if (!b || key->grown != sfc_block_grown(&m->run->setup, &id) ||
        (b->count > 0 && key->step <= b->stamps[0]))
        return; /* of a map that is over, or an old one */
    b->stamps[1] = b->stamps[0];
    b->stamps[0] = key->step;
    b->count += b->count < 2;
    sfc_sweep_stamped(&m->sweep, (size_t)(b - m->blocks), key->step);
}

/* One that nothing here leads to comes first; false: none is due. */
static bool next_block(struct sfc_mirror *m, size_t *index)
{
    for (size_t i = 0; i < m->count; i++)
        if (!covered(m, &m->blocks[i])) {
            *index = i;
            return true;
        }
    return sfc_sweep_next(&m->sweep, index);
}

void sfc_mirror_kick(struct sfc_mirror *m)
{
    const struct sfc_durability *d = &m->run->durability;
    size_t index = 0;
    sfc_sweep_urgent(&m->sweep, d->sweep.urgent);
    if (m->copy || !m->run->planned || d->unsettled || m->run->map_change ||
        m->run->fsm.phase == SFC_STEP_FAILED || uv_now(m->run->shard->uv) < m->retry_ms ||
        !next_block(m, &index))
        return;
    sfc_mirror_copy_begin(m, &m->blocks[index]);
}

/* A recovery of all that this shard has would go through a step so long. */
static double replay_ms(const struct sfc_mirror *m, double step_ms)
{
    double own = (double)m->run->durability.sweep.total_bytes;
    return own > 0 ? step_ms * (own + (double)m->sweep.total_bytes) / own : step_ms;
}

void sfc_mirror_applied(struct sfc_shard_run *run, double step_ms)
{
    struct sfc_mirror *m = run->mirror;
    const struct sfc_durability *d = &run->durability;
    if (!m || m->count == 0)
        return;
    sfc_sweep_applied(&m->sweep, sfc_step_applied(&run->fsm), replay_ms(m, step_ms),
                      sfc_step_log_step_bytes(&d->storage.config.geometry), d->log_bytes);
    if (m->copy)
        sfc_mirror_copy_tick(m);
    else
        sfc_mirror_kick(m);
}

bool sfc_mirror_tick(struct sfc_shard_run *run)
{
    struct sfc_mirror *m = run->mirror;
    if (!m)
        return false;
    if (m->copy)
        sfc_mirror_copy_tick(m);
    else
        sfc_mirror_kick(m);
    return m->copy || uv_now(run->shard->uv) < m->retry_ms;
}

/* ---- heartbeats */

static void report_place(const struct sfc_mirror *m, uint32_t place, Shardfc__V1__MirrorState *out)
{
    uint64_t oldest = UINT64_MAX;
    for (size_t i = 0; i < m->count; i++) {
        const struct sfc_mirror_block *b = &m->blocks[i];
        uint64_t step;
        if (b->place != place)
            continue;
        out->blocks++;
        out->bytes += b->count ? file_bytes(m->run, &b->id) : 0;
        if (!covered(m, b) || !base_of(m, b, &step))
            continue;
        out->copied++;
        oldest = step < oldest ? step : oldest;
    }
    out->oldest_step = oldest == UINT64_MAX ? sfc_step_applied(&m->run->fsm) : oldest;
    out->complete = out->copied == out->blocks;
    if (m->reason[0] && m->reason_place == place)
        out->reason = (char *)(uintptr_t)m->reason;
}

size_t sfc_mirror_report(const struct sfc_shard_run *run, Shardfc__V1__MirrorState *out)
{
    const struct sfc_shard_mirrored *mirrored = &run->mirrored;
    for (size_t i = 0; i < mirrored->place_count; i++) {
        shardfc__v1__mirror_state__init(&out[i]);
        out[i].place = mirrored->places[i];
        out[i].map_version = run->map_version;
        if (run->mirror)
            report_place(run->mirror, mirrored->places[i], &out[i]);
        else
            out[i].reason = (char *)(uintptr_t) "this shard runs with --durable off";
    }
    return mirrored->place_count;
}
