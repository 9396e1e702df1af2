#include "server/scheduler/orders.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/scheduler/loss.h"
#include "server/scheduler/grow.h"
#include "server/scheduler/map_change.h"
#include "server/scheduler/map_mirrors.h"
#include "server/scheduler/order_parts.h"
#include "server/scheduler/scale.h"

struct sfc_order {
    struct sfc_order *next;
    struct sfc_sched_order o; /* its lists and text are owned */
    uint64_t number;
    bool at_work;
    uint32_t *owners; /* GROW: [owner_count] of every class block from then on */
    size_t owner_count;
    int code; /* when it is done */
    char text[sizeof((struct sfc_error *)0)->text];
};

static void order_free(struct sfc_order *x)
{
    free((void *)(uintptr_t)x->o.class_blocks);
    free((void *)(uintptr_t)x->o.dense_blocks);
    free((void *)(uintptr_t)x->o.class_owners);
    free((void *)(uintptr_t)x->o.dense_owners);
    free((void *)(uintptr_t)x->o.why);
    free((void *)(uintptr_t)x->o.data_digest);
    free(x->owners);
    free(x);
}

static void append(struct sfc_order **list, struct sfc_order *x)
{
    while (*list)
        list = &(*list)->next;
    x->next = NULL;
    *list = x;
}

static struct sfc_order *at_work(const struct sfc_sched_run *run)
{
    struct sfc_order *x = run->orders.waiting;
    return x && x->at_work ? x : NULL;
}

bool sfc_sched_order_busy(const struct sfc_sched_run *run)
{
    return run->orders.waiting != NULL;
}

bool sfc_sched_order_at(const struct sfc_sched_run *run, size_t i, struct sfc_order_view *out)
{
    const struct sfc_order *x = run->orders.waiting;
    for (; x && i > 0; i--)
        x = x->next;
    if (!x)
        return false;
    *out = (struct sfc_order_view){.order = x->o, .number = x->number, .at_work = x->at_work};
    return true;
}

/* ---- their turn */

static void go(void *ctx);

/* Soon, from the loop: the machine must not be entered from within. */
static void wake(struct sfc_sched_run *run)
{
    if (run->orders.awake)
        return;
    run->orders.awake = true;
    sfc_rpc_loop_post(run->scheduler->rpc, go, run->scheduler);
}

/* x is no longer in the list of those that wait. */
static void finish(struct sfc_sched_run *run, struct sfc_order *x, int code, const char *text)
{
    x->code = code;
    snprintf(x->text, sizeof x->text, "%s", text ? text : "");
    append(&run->orders.over, x);
    wake(run);
}

static bool owned_by(const uint32_t *owner, size_t n, const uint64_t *blocks, uint32_t count,
                     uint32_t place)
{
    for (uint32_t i = 0; i < count; i++)
        if (blocks[i] >= n || owner[blocks[i]] != place)
            return false;
    return true;
}

static uint32_t members(const struct sfc_sched_run *run)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < run->fsm.config.shards; k++)
        n += run->fsm.shards[k].place == SFC_PLACE_MEMBER;
    return n;
}

static int check_joiner(const struct sfc_sched_run *run, uint64_t id, struct sfc_error *err)
{
    struct sfc_scheduler *s = run->scheduler;
    const struct sfc_shard_member *m = sfc_membership_shard(&s->members, id);
    const struct sfc_shard_info *info = sfc_sched_shard(s, id);
    if (!m || !m->ready || !info || !info->client)
        return sfc_fail(err, SFC_EUNAVAILABLE, "shard %" PRIu64 " is not registered", id);
    if (run->config->mixed)
        return SFC_OK;
    for (uint32_t k = 0; k < run->fsm.config.shards; k++) {
        const struct sfc_shard_info *other = sfc_sched_shard(s, run->fsm.shards[k].id);
        if (run->fsm.shards[k].place == SFC_PLACE_MEMBER && other && other->numerics[0] &&
            strcmp(other->numerics, info->numerics) != 0)
            return sfc_fail(err, SFC_EUNSUPPORTED,
                            "numerics: shard %" PRIu64 " is '%s', shard %" PRIu64
                            " of the run is '%s'; results would depend on the placement",
                            id, info->numerics, other->id, other->numerics);
    }
    return SFC_OK;
}

static int check_loss(const Shardfc__V1__BlockMap *map, const struct sfc_sched_order *o,
                      uint32_t place, struct sfc_error *err)
{
    bool all =
        o->class_count + (size_t)o->dense_count == sfc_map_owned(map, place) &&
        owned_by(map->class_owner, map->n_class_owner, o->class_blocks, o->class_count, place) &&
        owned_by(map->dense_owner, map->n_dense_owner, o->dense_blocks, o->dense_count, place);
    return all ? SFC_OK
               : sfc_fail(err, SFC_EUNAVAILABLE, "the blocks of shard %" PRIu64 " are others now",
                          o->shard);
}

/* Fits the present map? *place and *from are those of its shards. */
static int check(const struct sfc_sched_run *run, const struct sfc_sched_order *o, uint32_t *place,
                 uint32_t *from, struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = run->map;
    if (o->kind == SFC_ORDER_GROW)
        return SFC_OK;
    *place = sfc_sched_run_shard(run, o->shard);
    *from = sfc_sched_run_shard(run, o->from);
    if (o->kind == SFC_ORDER_JOIN) {
        if (*place != UINT32_MAX)
            return sfc_fail(err, SFC_EUNAVAILABLE, "shard %" PRIu64 " takes part already, or ends",
                            o->shard);
        *place = sfc_run_free_place(&run->fsm);
        if (*place == UINT32_MAX)
            return sfc_fail(err, SFC_ELIMIT, "a run has %u shards at most", SFC_CORE_MAX_SHARDS);
        return check_joiner(run, o->shard, err);
    }
    if (*place == UINT32_MAX || (o->kind == SFC_ORDER_MOVE && *from == UINT32_MAX))
        return sfc_fail(err, SFC_ENOTFOUND, "shard %" PRIu64 " takes no part in the run",
                        *place == UINT32_MAX ? o->shard : o->from);
    if (o->kind == SFC_ORDER_LOSS)
        return check_loss(map, o, *place, err);
    if (o->kind == SFC_ORDER_LEAVE && (sfc_map_owned(map, *place) != 0 || members(run) < 2))
        return sfc_fail(err, SFC_ESTATE, "shard %" PRIu64 " %s", o->shard,
                        members(run) < 2 ? "is the last one of the run" : "still owns blocks");
    if (o->kind == SFC_ORDER_MOVE &&
        (!owned_by(map->class_owner, map->n_class_owner, o->class_blocks, o->class_count, *from) ||
         !owned_by(map->dense_owner, map->n_dense_owner, o->dense_blocks, o->dense_count, *from)))
        return sfc_fail(err, SFC_ESTATE, "shard %" PRIu64 " does not own all of these blocks",
                        o->from);
    return SFC_OK;
}

/* Places that take blocks; their number. */
static uint32_t adopters_of(const struct sfc_sched_order *o, uint32_t *out)
{
    bool takes[SFC_CORE_MAX_SHARDS] = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->class_count && o->class_owners; i++)
        takes[o->class_owners[i]] = true;
    for (uint32_t i = 0; i < o->dense_count && o->dense_owners; i++)
        takes[o->dense_owners[i]] = true;
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (takes[k])
            out[n++] = k;
    return n;
}

static void begin(struct sfc_sched_run *run, struct sfc_order *x)
{
    uint32_t adopters[SFC_CORE_MAX_SHARDS];
    struct sfc_run_ward wards[SFC_CORE_MAX_SHARDS];
    struct sfc_error err = {0};
    struct sfc_run_event event = {
        .type = SFC_EV_ORDER, .number = x->number, .order = x->o.kind, .shard_id = x->o.shard};
    int code = check(run, &x->o, &event.shard, &event.from, &err);
    event.classes = x->o.classes;
    if (code == SFC_OK && x->o.kind == SFC_ORDER_GROW)
        code = sfc_sched_place_growth(run, x->o.classes, &x->owners, &x->owner_count, &err);
    if (code != SFC_OK) {
        run->orders.waiting = x->next;
        run->orders.count--;
        finish(run, x, err.code, err.text);
        return;
    }
    x->at_work = true;
    event.adopter_count = adopters_of(&x->o, adopters);
    event.adopters = adopters;
    if (x->o.kind == SFC_ORDER_LOSS)
        event.ward_count = sfc_loss_wards(run, event.shard, wards);
    event.wards = wards;
    sfc_sched_run_event(run, &event);
}

static void tell(struct sfc_sched_run *run)
{
    struct sfc_order *x;
    while ((x = run->orders.over)) {
        run->orders.over = x->next;
        if (x->code != SFC_OK)
            sfc_info_log("run %" PRIu64 ": order %" PRIx64 " is void: %s", run->id, x->number,
                         x->text);
        if (x->o.kind == SFC_ORDER_GROW && x->code == SFC_OK)
            sfc_sched_part_workers(run);
        if (x->o.kind == SFC_ORDER_GROW)
            sfc_sched_grow_done(run, x->number, x->code, x->text);
        else if (x->o.kind == SFC_ORDER_LOSS)
            sfc_loss_done(run, x->number, x->code, x->text);
        else if (run->order_listener.done)
            run->order_listener.done(run, run->order_listener.ctx, x->number, x->code, x->text);
        order_free(x);
    }
}

static void go(void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_sched_run *run = s->run;
    if (!run || s->stopping)
        return;
    run->orders.awake = false;
    tell(run);
    struct sfc_order *x = run->orders.waiting;
    bool ended = run->fsm.failed || run->fsm.stopped;
    if (!x || x->at_work)
        return;
    if (ended) {
        run->orders.waiting = x->next;
        run->orders.count--;
        finish(run, x, SFC_ESTATE, "the run has ended");
    } else if (x->o.kind == SFC_ORDER_LOSS ? sfc_run_may_give_up(&run->fsm)
                                           : sfc_run_may_order(&run->fsm)) {
        begin(run, x);
    }
}

void sfc_sched_orders_tick(struct sfc_sched_run *run)
{
    if (run->orders.over || (run->orders.waiting && !run->orders.waiting->at_work))
        wake(run);
}

void sfc_sched_orders_free(struct sfc_sched_run *run)
{
    struct sfc_order *x;
    while ((x = run->orders.waiting)) {
        run->orders.waiting = x->next;
        order_free(x);
    }
    while ((x = run->orders.over)) {
        run->orders.over = x->next;
        order_free(x);
    }
    sfc_message_free(run->next_map);
    run->next_map = NULL;
}

/* ---- orders come in */

static int check_blocks(const uint64_t *blocks, uint32_t count, struct sfc_error *err)
{
    for (uint32_t i = 1; i < count; i++)
        if (blocks[i] <= blocks[i - 1])
            return sfc_fail(err, SFC_EINVAL, "blocks of a move are not in ascending order");
    return SFC_OK;
}

static uint64_t *copy_blocks(const uint64_t *blocks, uint32_t count)
{
    uint64_t *copy = malloc((count ? count : 1) * sizeof *copy);
    if (copy && count)
        memcpy(copy, blocks, count * sizeof *copy);
    return copy;
}

static uint32_t *copy_places(const uint32_t *places, uint32_t count)
{
    uint32_t *copy = malloc((count ? count : 1) * sizeof *copy);
    if (copy && count)
        memcpy(copy, places, count * sizeof *copy);
    return copy;
}

static struct sfc_order *order_new(const struct sfc_sched_order *o)
{
    struct sfc_order *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->o = *o;
    x->o.class_blocks = copy_blocks(o->class_blocks, o->class_count);
    x->o.dense_blocks = copy_blocks(o->dense_blocks, o->dense_count);
    x->o.why = strdup(o->why ? o->why : "");
    x->o.data_digest = strdup(o->data_digest ? o->data_digest : "");
    bool places = true;
    if (o->kind == SFC_ORDER_LOSS) {
        x->o.class_owners = copy_places(o->class_owners, o->class_count);
        x->o.dense_owners = copy_places(o->dense_owners, o->dense_count);
        places = x->o.class_owners && x->o.dense_owners;
    }
    if (x->o.class_blocks && x->o.dense_blocks && x->o.why && x->o.data_digest && places)
        return x;
    order_free(x);
    return NULL;
}

/* Before all that wait; the one at work is there first. */
static void put_first(struct sfc_sched_run *run, struct sfc_order *x)
{
    struct sfc_order **at = &run->orders.waiting;
    if (*at && (*at)->at_work)
        at = &(*at)->next;
    x->next = *at;
    *at = x;
}

int sfc_sched_order(struct sfc_sched_run *run, const struct sfc_sched_order *o, uint64_t *number,
                    struct sfc_error *err)
{
    const struct sfc_run_fsm *fsm = &run->fsm;
    if (fsm->failed || fsm->stopped || !fsm->started)
        return sfc_fail(err, SFC_ESTATE, "not possible while the run is %s",
                        sfc_run_state_name(fsm->state));
    if (fsm->restoring && o->kind != SFC_ORDER_LOSS)
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "the scheduler has just restarted and waits for shards: try again");
    if (run->orders.count == SFC_MAX_ORDERS)
        return sfc_fail(err, SFC_ELIMIT, "%u changes of the map wait already", SFC_MAX_ORDERS);
    if (o->kind == SFC_ORDER_MOVE && o->class_count == 0 && o->dense_count == 0)
        return sfc_fail(err, SFC_EINVAL, "a move without blocks");
    int code = check_blocks(o->class_blocks, o->class_count, err);
    if (code == SFC_OK)
        code = check_blocks(o->dense_blocks, o->dense_count, err);
    if (code != SFC_OK)
        return code;
    struct sfc_order *x = order_new(o);
    if (!x)
        return sfc_fail(err, SFC_ENOMEM, "a change of the map");
    x->number = run->scheduler->incarnation << 32 | ++run->orders.last;
    if (o->kind == SFC_ORDER_LOSS)
        put_first(run, x);
    else
        append(&run->orders.waiting, x);
    run->orders.count++;
    *number = x->number;
    wake(run);
    return SFC_OK;
}

void sfc_sched_order_cancel(struct sfc_sched_run *run, uint64_t number)
{
    struct sfc_order **at = &run->orders.waiting;
    while (*at) {
        struct sfc_order *x = *at;
        if (x->at_work || (number != 0 && x->number != number)) {
            at = &x->next;
            continue;
        }
        *at = x->next;
        run->orders.count--;
        finish(run, x, SFC_ECANCELED, "it was cancelled");
    }
    struct sfc_run_event event = {.type = SFC_EV_ORDER_CANCEL, .number = number};
    sfc_sched_run_event(run, &event);
}

void sfc_sched_order_done(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct sfc_order *x = at_work(run);
    if (!x || x->number != a->number)
        return;
    run->orders.waiting = x->next;
    run->orders.count--;
    finish(run, x, a->code, a->text);
}

void sfc_sched_orders_stray(struct sfc_sched_run *run, uint64_t shard)
{
    uint32_t place = sfc_run_free_place(&run->fsm);
    if (place == UINT32_MAX || sfc_sched_run_shard(run, shard) != UINT32_MAX)
        return;
    struct sfc_run_event event = {.type = SFC_EV_SHARD_STRAY, .shard = place, .shard_id = shard};
    sfc_info_log("shard %" PRIu64 " holds run %" PRIu64 ", and takes no part in it: it is told to "
                 "close it",
                 shard, run->id);
    sfc_sched_run_event(run, &event);
}

/* ---- the map */

static const char *address_of(const struct sfc_sched_run *run, uint64_t shard)
{
    const struct sfc_shard_member *m = sfc_membership_shard(&run->scheduler->members, shard);
    return m ? m->address : "";
}

Shardfc__V1__BlockMap *sfc_sched_map_to_join(const struct sfc_sched_run *run, uint32_t place)
{
    uint64_t shard = run->fsm.shards[place].id;
    const struct sfc_map_change change = {.version = run->map->version,
                                          .place = place,
                                          .shard = shard,
                                          .address = address_of(run, shard)};
    return sfc_map_change(run->map, &change);
}

static Shardfc__V1__BlockMap *changed_map(const struct sfc_sched_run *run,
                                          const struct sfc_order *x, uint64_t version,
                                          uint64_t step)
{
    if (x->o.kind == SFC_ORDER_GROW)
        return sfc_sched_grown_map(run, &x->o, x->owners, x->owner_count, version, step);
    struct sfc_map_change change = {.version = version, .place = run->fsm.moves.shard};
    if (x->o.kind == SFC_ORDER_JOIN) {
        change.shard = x->o.shard;
        change.address = address_of(run, x->o.shard);
    } else if (x->o.kind == SFC_ORDER_LEAVE) {
        change.address = "";
    } else if (x->o.kind == SFC_ORDER_LOSS) {
        change.address = "";
        change.lost = true;
        change.class_owners = x->o.class_owners;
        change.dense_owners = x->o.dense_owners;
    }
    if (x->o.kind == SFC_ORDER_MOVE || x->o.kind == SFC_ORDER_LOSS) {
        change.class_blocks = x->o.class_blocks;
        change.class_count = x->o.class_count;
        change.dense_blocks = x->o.dense_blocks;
        change.dense_count = x->o.dense_count;
        change.owner = run->fsm.moves.shard;
    }
    Shardfc__V1__BlockMap *map = sfc_map_change(run->map, &change);
    bool missing[SFC_CORE_MAX_SHARDS] = {0};
    for (uint32_t k = 0; k < run->fsm.config.shards; k++)
        missing[k] = sfc_run_is_dead(&run->fsm, k);
    if (!map || sfc_map_choose_mirrors(map, run->mirrors, missing, NULL) == SFC_OK)
        return map;
    sfc_message_free(map);
    return NULL;
}

Shardfc__V1__BlockMap *sfc_sched_map_to_come(const struct sfc_sched_run *run)
{
    const struct sfc_order *x = at_work(run);
    return x ? changed_map(run, x, run->map->version + 1, run->fsm.commit.committed) : NULL;
}

struct map_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_store_map map;
    uint8_t *bytes;
};

static void map_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct map_task *t = (struct map_task *)task;
    task->code = sfc_store_put_map(store, &t->map, &task->error);
}

static void map_done(struct sfc_store_task *task)
{
    struct map_task *t = (struct map_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    struct sfc_run_event event = {.type =
                                      task->code == SFC_OK ? SFC_EV_MAP_DURABLE : SFC_EV_MAP_FAILED,
                                  .number = t->map.order,
                                  .code = task->code,
                                  .text = task->error.text};
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    if (run && run->id == t->map.run_id && !t->scheduler->stopping)
        sfc_sched_run_event(run, &event);
    free(t->bytes);
    free(t);
}

void sfc_sched_write_map(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct sfc_order *x = at_work(run);
    struct map_task *t = calloc(1, sizeof *t);
    size_t size = 0;
    sfc_message_free(run->next_map);
    run->next_map = t && x ? changed_map(run, x, a->version, a->step) : NULL;
    uint8_t *bytes = run->next_map ? sfc_message_pack(run->next_map, &size) : NULL;
    if (!bytes) {
        run->lost_map = a->number;
        free(t);
        return;
    }
    t->scheduler = run->scheduler;
    t->bytes = bytes;
    t->map = (struct sfc_store_map){.run_id = run->id,
                                    .version = a->version,
                                    .step = a->step,
                                    .order = a->number,
                                    .bytes = bytes,
                                    .size = size};
    t->task.work = map_work;
    t->task.done = map_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

static void note_flip(struct sfc_sched_run *run, const struct sfc_order *x)
{
    const struct sfc_sched_order *o = &x->o;
    char what[160];
    if (o->kind == SFC_ORDER_GROW)
        snprintf(what, sizeof what, "%" PRIu64 " classes from step %" PRIu64 " on", o->classes,
                 run->fsm.moves.map_step + 1);
    else if (o->kind == SFC_ORDER_MOVE)
        snprintf(what, sizeof what,
                 "%u class and %u dense blocks moved from shard %" PRIu64 " to shard %" PRIu64,
                 o->class_count, o->dense_count, o->from, o->shard);
    else if (o->kind == SFC_ORDER_LOSS)
        snprintf(what, sizeof what,
                 "shard %" PRIu64 " was given up for lost; its %u class and %u dense blocks are "
                 "restored by those that mirrored it",
                 o->shard, o->class_count, o->dense_count);
    else
        snprintf(what, sizeof what, "shard %" PRIu64 " %s", o->shard,
                 o->kind == SFC_ORDER_JOIN ? "takes part from now on" : "has left");
    sfc_sched_event(run->scheduler,
                    "run %" PRIu64 " (%s): map %" PRIu64 " after step %" PRIu64 ": %s%s%.200s",
                    run->id, run->config->name, run->map->version, run->fsm.moves.map_step, what,
                    *o->why ? ": " : "", o->why);
}

/* What this process derives from the number of classes, and who may stay. */
static void grown(struct sfc_sched_run *run)
{
    struct sfc_error err = {0};
    int code = sfc_sched_take_growths(run, &err);
    if (code == SFC_OK)
        code = sfc_scale_grown(run, &err);
    if (code != SFC_OK) /* loads of blocks start anew with the next start of the scheduler */
        sfc_error_log("run %" PRIu64 ": %s", run->id, err.text);
}

void sfc_sched_take_map(struct sfc_sched_run *run)
{
    const struct sfc_order *x = at_work(run);
    if (!x || !run->next_map)
        return;
    sfc_message_free(run->map);
    run->map = run->next_map;
    run->next_map = NULL;
    if (x->o.kind == SFC_ORDER_GROW)
        grown(run);
    else if (x->o.kind != SFC_ORDER_MOVE)
        sfc_log_floor_set_member(&run->floor, run->fsm.moves.shard, x->o.kind == SFC_ORDER_JOIN);
    sfc_sched_keep_shards(run->scheduler, run->map);
    note_flip(run, x);
}

/* ---- messages */

/* To the shard of this place: those of its blocks that get rows. */
static uint8_t *pack_growth(const struct sfc_sched_run *run, const struct sfc_order *x,
                            uint32_t place, Shardfc__V1__FetchBlocksRequest *m, size_t *size)
{
    struct sfc_head_config head = run->setup.head;
    uint64_t *blocks = calloc(x->owner_count + 1, sizeof *blocks);
    if (!blocks)
        return NULL;
    head.classes = x->o.classes;
    for (size_t b = 0; b < x->owner_count; b++)
        if (x->owners[b] == place &&
            sfc_head_block_rows(&head, b) != sfc_head_block_rows(&run->setup.head, b))
            blocks[m->n_class_blocks++] = b;
    m->class_blocks = blocks;
    m->classes = x->o.classes;
    uint8_t *bytes = sfc_message_pack(m, size);
    free(blocks);
    return bytes;
}

static uint8_t *pack_fetch(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                           size_t *size)
{
    const struct sfc_order *x = at_work(run);
    Shardfc__V1__FetchBlocksRequest m = SHARDFC__V1__FETCH_BLOCKS_REQUEST__INIT;
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.move = a->number;
    m.source = run->fsm.moves.from;
    if (x && x->o.kind == SFC_ORDER_GROW && x->number == a->number)
        return pack_growth(run, x, a->shard, &m, size);
    if (x && x->number == a->number) {
        m.class_blocks = (uint64_t *)(uintptr_t)x->o.class_blocks;
        m.n_class_blocks = x->o.class_count;
        m.dense_blocks = (uint64_t *)(uintptr_t)x->o.dense_blocks;
        m.n_dense_blocks = x->o.dense_count;
        m.bytes_per_s = x->o.bytes_per_s;
    }
    return sfc_message_pack(&m, size);
}

static uint8_t *pack_set_map(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                             size_t *size)
{
    Shardfc__V1__SetMapRequest m = SHARDFC__V1__SET_MAP_REQUEST__INIT;
    Shardfc__V1__Attempt round = SHARDFC__V1__ATTEMPT__INIT;
    round.incarnation = a->round.incarnation;
    round.counter = a->round.counter;
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.round = &round;
    m.step = a->step;
    m.map = run->map;
    m.move = a->number;
    return sfc_message_pack(&m, size);
}

uint8_t *sfc_sched_pack_move(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                             size_t *size)
{
    Shardfc__V1__TakeBlocksRequest take = SHARDFC__V1__TAKE_BLOCKS_REQUEST__INIT;
    Shardfc__V1__CancelMoveRequest cancel = SHARDFC__V1__CANCEL_MOVE_REQUEST__INIT;
    switch (a->duty) {
    case SFC_DUTY_FETCH:
        return pack_fetch(run, a, size);
    case SFC_DUTY_SETMAP:
        return pack_set_map(run, a, size);
    case SFC_DUTY_TAKE:
        take.run_id = run->id;
        take.incarnation = run->scheduler->incarnation;
        take.move = a->number;
        take.step = a->step;
        return sfc_message_pack(&take, size);
    default:
        cancel.run_id = run->id;
        cancel.incarnation = run->scheduler->incarnation;
        cancel.move = a->number;
        return sfc_message_pack(&cancel, size);
    }
}
