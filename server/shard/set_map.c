#include "server/shard/set_map.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/run/growths.h"
#include "server/shard/shard_internal.h"

struct sfc_map_change {
    struct sfc_rpc_call *call; /* waits; NULL: the step machine has it */
    struct sfc_lap lap;        /* since SetMap */
    Shardfc__V1__SetMapRequest *request;
    struct sfc_step_event event;
    struct sfc_shard_blocks own;        /* from now on */
    struct sfc_shard_blocks come, gone; /* of those */
    struct sfc_shard_mirrored mirrored; /* from now on */
    struct sfc_run_setup then;          /* with the classes of the map */
    bool changes, given, grows;
    bool pushed; /* own or mirrored dense blocks are others */
    bool needs_history, has_history, needs_list, has_list, keeps_list;
    struct sfc_run_buffers buffers; /* where dense blocks change */
};

void sfc_set_map_free(struct sfc_shard_run *run)
{
    struct sfc_map_change *c = run->map_change;
    if (!c)
        return;
    run->map_change = NULL;
    if (c->call)
        sfc_shard_refuse(run->shard, c->call, SFC_EUNAVAILABLE, "the run was closed");
    sfc_shard_blocks_free(&c->own);
    sfc_shard_blocks_free(&c->come);
    sfc_shard_blocks_free(&c->gone);
    sfc_shard_mirrored_free(&c->mirrored);
    sfc_run_buffers_free(&c->buffers);
    sfc_message_free(c->request);
    free(c);
}

static void refuse(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_rpc_call *call = run->map_change->call;
    run->map_change->call = NULL;
    sfc_set_map_free(run);
    if (call)
        sfc_shard_refuse(run->shard, call, code, text);
}

/* ---- what changes */

/* Both ascending: those of a that b lacks. out has room. */
static size_t without(const uint64_t *a, size_t a_count, const uint64_t *b, size_t b_count,
                      uint64_t *out)
{
    size_t n = 0, k = 0;
    for (size_t i = 0; i < a_count; i++) {
        while (k < b_count && b[k] < a[i])
            k++;
        if (k == b_count || b[k] != a[i])
            out[n++] = a[i];
    }
    return n;
}

/* The blocks of now that get rows leave and come. Both lists are ascending. */
static void add_grown(const struct sfc_shard_run *run, const struct sfc_run_setup *then,
                      const struct sfc_shard_blocks *own, uint64_t *list, size_t *count)
{
    for (size_t i = 0; i < run->class_count; i++) {
        uint64_t block = run->class_blocks[i];
        size_t at = 0;
        if (sfc_head_block_rows(&then->head, block) ==
                sfc_head_block_rows(&run->setup.head, block) ||
            without(&block, 1, own->class_blocks, own->class_count, &(uint64_t){0}) != 0)
            continue;
        while (at < *count && list[at] < block)
            at++;
        memmove(list + at + 1, list + at, (*count - at) * sizeof *list);
        list[at] = block;
        ++*count;
    }
}

static int difference(const struct sfc_shard_blocks *a, const struct sfc_shard_blocks *b,
                      struct sfc_shard_blocks *out, struct sfc_error *err)
{
    out->class_blocks = malloc((a->class_count + b->class_count + 1) * sizeof(uint64_t));
    out->dense_blocks = malloc((a->dense_count + 1) * sizeof(uint64_t));
    if (!out->class_blocks || !out->dense_blocks)
        return sfc_fail(err, SFC_EUNAVAILABLE, "no memory for the blocks of a map");
    out->class_count = without(a->class_blocks, a->class_count, b->class_blocks, b->class_count,
                               out->class_blocks);
    out->dense_count = without(a->dense_blocks, a->dense_count, b->dense_blocks, b->dense_count,
                               out->dense_blocks);
    return SFC_OK;
}

static bool same(const uint64_t *a, size_t a_count, const uint64_t *b, size_t b_count)
{
    return a_count == b_count && (a_count == 0 || memcmp(a, b, a_count * sizeof *a) == 0);
}

/* What comes must be what is staged at this step, all of it. */
static int check_staged(const struct sfc_shard_run *run, const struct sfc_map_change *c,
                        struct sfc_error *err)
{
    struct sfc_move_blocks staged;
    if (c->come.class_count + c->come.dense_count == 0)
        return SFC_OK;
    if (sfc_move_taken(run, c->request->move, c->request->step, &staged) &&
        same(staged.class_blocks, staged.class_count, c->come.class_blocks, c->come.class_count) &&
        same(staged.dense_blocks, staged.dense_count, c->come.dense_blocks, c->come.dense_count))
        return SFC_OK;
    return sfc_fail(err, SFC_ESTATE,
                    "map version %" PRIu64 " gives this shard %zu class and %zu dense blocks that "
                    "are not staged here by move %" PRIu64 " at step %" PRIu64,
                    c->request->map->version, c->come.class_count, c->come.dense_count,
                    c->request->move, c->request->step);
}

static int look(struct sfc_shard_run *run, struct sfc_map_change *c, struct sfc_error *err)
{
    const struct sfc_shard_blocks old = {run->class_blocks, run->dense_blocks, run->class_count,
                                         run->dense_count};
    c->then = run->setup;
    int code = sfc_run_setup_grow(&c->then, c->request->map, err);
    if (code == SFC_OK)
        code = sfc_shard_blocks_of(&c->then, c->request->map, run->self, &c->own, err);
    if (code == SFC_OK)
        code = difference(&c->own, &old, &c->come, err);
    if (code == SFC_OK)
        code = difference(&old, &c->own, &c->gone, err);
    c->grows = c->then.head.classes != run->setup.head.classes;
    if (code == SFC_OK && c->grows) {
        add_grown(run, &c->then, &c->own, c->come.class_blocks, &c->come.class_count);
        add_grown(run, &c->then, &c->own, c->gone.class_blocks, &c->gone.class_count);
    }
    if (code == SFC_OK)
        code = check_staged(run, c, err);
    if (code == SFC_OK)
        code = sfc_shard_mirrored_of(run, c->request->map, run->self, &c->own, &c->mirrored, err);
    if (code != SFC_OK)
        return code;
    bool dense = c->come.dense_count + c->gone.dense_count > 0;
    const struct sfc_shard_blocks *mirrored = &c->mirrored.blocks, *before = &run->mirrored.blocks;
    c->pushed = dense || !same(mirrored->dense_blocks, mirrored->dense_count, before->dense_blocks,
                               before->dense_count);
    if (c->pushed)
        code = sfc_run_buffers_new(run, &c->own, c->mirrored.pushed, &c->buffers, err);
    c->changes = dense || c->grows || c->come.class_count + c->gone.class_count > 0;
    c->needs_list = c->pushed && run->durability.on;
    c->needs_history = run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE &&
                       c->request->step > sfc_step_applied(&run->fsm);
    c->event.dense_blocks = (uint32_t)c->mirrored.pushed.count;
    return code;
}

/* ---- before the step machine hears of it */

static void has_history(struct sfc_shard_run *run, int code, const char *text)
{
    if (!run->map_change)
        return;
    run->map_change->has_history = code == SFC_OK;
    if (code != SFC_OK)
        refuse(run, code, text);
    else
        sfc_set_map_tick(run);
}

static void has_list(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_map_change *c = run->map_change;
    c->keeps_list = false;
    c->has_list = code == SFC_OK;
    if (code != SFC_OK)
        refuse(run, code, text);
    else
        sfc_set_map_tick(run);
}

static void keep_list(struct sfc_shard_run *run)
{
    struct sfc_map_change *c = run->map_change;
    if (c->keeps_list)
        return;
    c->keeps_list = true;
    sfc_durability_keep_list(run, c->mirrored.pushed, has_list);
}

/* Nothing reads the blocks by their place in the lists any more. */
static bool is_quiet(struct sfc_shard_run *run)
{
    const struct sfc_map_change *c = run->map_change;
    if (run->checks_back) /* may be asking the peers */
        return false;
    return !(c->changes || c->pushed || c->grows) || sfc_pinned_moves(run, c->grows);
}

/* Is there something staged for this map? A growth gives some shards no block. */
static bool is_given(const struct sfc_shard_run *run, const struct sfc_map_change *c)
{
    struct sfc_move_blocks staged;
    return c->come.class_count + c->come.dense_count > 0 ||
           (c->grows && sfc_move_taken(run, c->request->move, c->request->step, &staged));
}

static void give_event(struct sfc_shard_run *run)
{
    struct sfc_map_change *c = run->map_change;
    struct sfc_rpc_call *call = c->call;
    struct sfc_step_event event = c->event;
    struct sfc_error err = {0};
    int code = sfc_step_map_check(&run->fsm, &event, &err); /* some time has passed */
    if (code == SFC_OK)
        code = check_staged(run, c, &err);
    c->given = is_given(run, c); /* it may have ended meanwhile */
    if (code != SFC_OK || run->fsm.phase == SFC_STEP_FAILED) {
        refuse(run, code ? code : run->fsm.failure_code, code ? err.text : run->fsm.failure);
        return;
    }
    c->call = NULL;
    sfc_shard_event(run, call, &event);
    if (run->fsm.phase != SFC_STEP_MAPPING) /* it was refused */
        sfc_set_map_free(run);
}

bool sfc_set_map_tick(struct sfc_shard_run *run)
{
    struct sfc_map_change *c = run->map_change;
    if (!c || !c->call) /* at work already */
        return c != NULL;
    if (!is_quiet(run))
        return true;
    if (c->needs_history && !c->has_history) {
        if (!run->history)
            sfc_history_fetch(run, true, c->request->step, has_history);
        return true;
    }
    if (c->needs_list && !c->has_list) {
        keep_list(run);
        return true;
    }
    give_event(run);
    return run->map_change != NULL;
}

static int check_request(const struct sfc_shard_run *run, const Shardfc__V1__SetMapRequest *r,
                         struct sfc_error *err)
{
    if (!r->map || !r->round)
        return sfc_fail(err, SFC_EINVAL, "map and round must be given");
    if (r->step > run->setup.head.steps)
        return sfc_fail(err, SFC_EINVAL, "step: %" PRIu64 ", the run has %" PRIu64, r->step,
                        run->setup.head.steps);
    return SFC_OK;
}

static struct sfc_step_event event_of(const Shardfc__V1__SetMapRequest *r)
{
    return (struct sfc_step_event){.type = SFC_SE_MAP,
                                   .run_id = r->run_id,
                                   .incarnation = r->incarnation,
                                   .round = {r->round->incarnation, r->round->counter},
                                   .step = r->step,
                                   .map_version = r->map->version};
}

/* One is at work. The same again takes the place of the call that waits. */
static void again(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                  const struct sfc_step_event *event)
{
    struct sfc_map_change *c = run->map_change;
    struct sfc_step_event copy = *event;
    if (c->event.map_version != event->map_version) {
        sfc_shard_refuse(run->shard, call, SFC_EUNAVAILABLE, "another map is being set; ask again");
    } else if (c->call) {
        sfc_rpc_fail(c->call, SFC_EUNAVAILABLE, "asked again");
        c->call = call;
    } else {
        sfc_shard_event(run, call, &copy);
    }
}

void sfc_set_map(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                 const Shardfc__V1__SetMapRequest *r)
{
    struct sfc_error err = {0};
    struct sfc_step_event event = {0};
    struct sfc_map_change *c = NULL;
    int code = check_request(run, r, &err);
    if (code == SFC_OK) {
        event = event_of(r);
        code = sfc_step_map_check(&run->fsm, &event, &err);
    }
    if (code == SFC_OK && run->map_change) {
        again(run, call, &event);
        return;
    }
    if (code == SFC_OK && event.map_version == run->fsm.config.map_version) {
        sfc_shard_event(run, call, &event); /* it is here */
        return;
    }
    if (code == SFC_OK && (!(c = calloc(1, sizeof *c)) || !(c->request = sfc_message_copy(r)))) {
        free(c);
        c = NULL;
        code = sfc_fail(&err, SFC_EUNAVAILABLE, "no memory for a map");
    }
    if (code == SFC_OK) {
        c->event = event;
        run->map_change = c;
        code = look(run, c, &err);
    }
    if (code != SFC_OK) {
        sfc_set_map_free(run);
        sfc_shard_refuse(run->shard, call, code, err.text);
        return;
    }
    c->call = call;
    c->lap = sfc_shard_lap(run, SFC_THREAD_LOOP, r->step + 1);
    sfc_shard_watch_moves(run->shard);
    sfc_set_map_tick(run);
}

/* ---- the change */

void sfc_set_map_start(struct sfc_shard_run *run, struct sfc_compute_job *job)
{
    struct sfc_map_change *c = run->map_change;
    job->kind = SFC_COMPUTE_CHANGE;
    job->u.change.setup = &run->setup;
    job->u.change.classes = c->grows ? c->then.head.classes : 0;
    job->u.change.head = NULL;
    job->u.change.dense = NULL;
    job->u.change.class_blocks = c->gone.class_blocks;
    job->u.change.class_count = c->gone.class_count;
    job->u.change.dense_blocks = c->gone.dense_blocks;
    job->u.change.dense_count = c->gone.dense_count;
    job->u.change.other_mirrored = c->pushed;
    job->u.change.own = (struct sfc_dense_set){c->own.dense_blocks, c->own.dense_count};
    job->u.change.mirrored =
        (struct sfc_dense_set){c->mirrored.blocks.dense_blocks, c->mirrored.blocks.dense_count};
    if (c->given)
        sfc_move_give(run, job);
}

static void swap_lists(struct sfc_shard_run *run, struct sfc_map_change *c)
{
    struct sfc_shard_blocks old = {run->class_blocks, run->dense_blocks, run->class_count,
                                   run->dense_count};
    run->class_blocks = c->own.class_blocks;
    run->dense_blocks = c->own.dense_blocks;
    run->class_count = c->own.class_count;
    run->dense_count = c->own.dense_count;
    run->dense_floats = sfc_run_dense_floats(&run->setup, run->dense_blocks, run->dense_count);
    c->own = old; /* is freed with the change */
}

static void swap_mirrored(struct sfc_shard_run *run, struct sfc_map_change *c)
{
    struct sfc_shard_mirrored old = run->mirrored;
    run->mirrored = c->mirrored;
    c->mirrored = old;
    if (c->buffers.sums)
        sfc_run_buffers_swap(run, &c->buffers);
}

static void tell(const struct sfc_shard_run *run, const struct sfc_map_change *c)
{
    if (c->grows)
        sfc_info_log("run %" PRIu64 ": %" PRIu64 " classes from step %" PRIu64 " on", run->id,
                     run->setup.head.classes, c->request->step + 1);
    if (c->changes)
        sfc_info_log("run %" PRIu64 ": map version %" PRIu64 " from step %" PRIu64
                     " on: %zu class and %zu dense blocks came, %zu and %zu left; %zu and %zu now, "
                     "%.1f MiB",
                     run->id, run->map_version, c->request->step + 1, c->come.class_count,
                     c->come.dense_count, c->gone.class_count, c->gone.dense_count,
                     run->class_count, run->dense_count, (double)run->resident / (1 << 20));
}

/* A shard that was in the map before is not there any more. */
static bool somebody_left(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map)
{
    for (uint32_t k = 0; k < run->place_count; k++)
        if (run->places[k][0] &&
            (k >= map->n_shards || strcmp(run->places[k], map->shards[k]->address) != 0))
            return true;
    return false;
}

static int take_over(struct sfc_shard_run *run, struct sfc_map_change *c, struct sfc_error *err)
{
    if (c->grows)
        sfc_durability_grow(run, c->then.head.classes);
    if (c->changes)
        swap_lists(run, c);
    swap_mirrored(run, c);
    if (somebody_left(run, c->request->map)) /* it may have died while it copied for a mirror */
        sfc_copies_end_untracked(run);
    int code = sfc_durability_change(run, c->changes, err);
    if (code == SFC_OK) /* after swap_mirrored those of before are the change's */
        code = sfc_mirror_change(run, c->mirrored.pushed, c->request->step, err);
    if (code == SFC_OK)
        code = sfc_shard_take_places(run, c->request->map, err);
    if (code == SFC_OK)
        code = sfc_durability_peers(run, c->request->map, err);
    if (code == SFC_OK)
        code = sfc_shard_count_memory(run, err);
    run->map_version = c->request->map->version;
    return code;
}

int sfc_set_map_done(struct sfc_shard_run *run, int code, struct sfc_error *err)
{
    struct sfc_map_change *c = run->map_change;
    if (code == SFC_OK)
        code = take_over(run, c, err);
    if (code == SFC_OK)
        tell(run, c);
    if (c->gone.class_count + c->gone.dense_count > 0)
        sfc_copies_end(run);
    if (c->given)
        sfc_move_gone(run, code == SFC_OK);
    sfc_lap_end(&c->lap, SFC_SPAN_TAKE_MAP, 0);
    sfc_set_map_free(run);
    sfc_pinned_mapped(run);
    return code;
}
