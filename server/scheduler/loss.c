#include "server/scheduler/loss.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/map_change.h"
#include "server/scheduler/scale_parts.h"

#define AGAIN_MS 2000u /* after an order that was void */

/* ---- whose copies it has */

static bool mirrors(const Shardfc__V1__ShardAddress *shard, uint32_t mirror)
{
    for (size_t i = 0; i < shard->n_mirrors; i++)
        if (shard->mirrors[i] == mirror)
            return true;
    return false;
}

uint32_t sfc_loss_wards(struct sfc_sched_run *run, uint32_t place, struct sfc_run_ward *wards)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < run->map->n_shards && k < SFC_CORE_MAX_SHARDS; k++) {
        const Shardfc__V1__ShardAddress *shard = run->map->shards[k];
        if (!mirrors(shard, place) || sfc_map_owned(run->map, k) == 0)
            continue;
        struct sfc_run_ward *w = &wards[n++];
        *w = (struct sfc_run_ward){.place = k};
        for (size_t i = 0; i < shard->n_mirrors && i < SFC_CORE_MAX_MIRRORS; i++) {
            const struct sfc_mirror_view *view = sfc_mirrors_view(run, shard->mirrors[i], k);
            if (shard->mirrors[i] != place && view && view->complete)
                w->others.at[w->others.count++] = shard->mirrors[i];
        }
    }
    return n;
}

/* Another one that is missing may be lost with it. */
static int check_wards(struct sfc_sched_run *run, uint32_t place, struct sfc_error *err)
{
    struct sfc_run_ward wards[SFC_CORE_MAX_SHARDS];
    uint64_t id = run->fsm.shards[place].id;
    uint32_t n = sfc_loss_wards(run, place, wards);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t ward = run->fsm.shards[wards[i].place].id;
        if (sfc_run_endangers(&run->fsm, &wards[i]))
            return sfc_fail(err, SFC_ESTATE,
                            "shard %" PRIu64
                            " is not given up: it may have the only copies of the %zu "
                            "blocks of shard %" PRIu64 ", which is missing too. Start either of "
                            "them again, with its --state; if neither can come back, stop the run "
                            "and restore a checkpoint",
                            id, sfc_map_owned(run->map, wards[i].place), ward);
    }
    return SFC_OK;
}

/* ---- who takes the blocks */

/* The order with its lists. */
struct will {
    struct sfc_sched_order order;
    uint64_t *blocks; /* [2][all] */
    uint64_t *bytes;
    uint32_t *owners;
    struct sfc_adopter adopters[SFC_CORE_MAX_MIRRORS];
    uint32_t adopter_count;
    bool spares; /* it must not be: another one that is missing would be lost with it */
};

static void will_free(struct will *w)
{
    free(w->blocks);
    free(w->bytes);
    free(w->owners);
}

static uint64_t used(const struct sfc_scale_input *x, uint32_t k)
{
    uint64_t bytes = x->shards[k].fixed;
    for (uint32_t b = 0; b < x->in.class_blocks + x->in.dense_blocks; b++)
        bytes += x->blocks[b].owner == k ? x->blocks[b].bytes : 0;
    return bytes;
}

static void say_mirror(struct sfc_sched_run *run, uint32_t mirror, uint32_t place, char *out,
                       size_t size)
{
    const struct sfc_mirror_view *view = sfc_mirrors_view(run, mirror, place);
    uint64_t id = run->fsm.shards[mirror].id;
    if (sfc_run_is_dead(&run->fsm, mirror))
        snprintf(out, size, "shard %" PRIu64 " is missing as well", id);
    else if (!view)
        snprintf(out, size, "shard %" PRIu64 " has not said yet what it has", id);
    else
        snprintf(out, size, "shard %" PRIu64 " has %" PRIu64 " of %" PRIu64 " blocks%s%s", id,
                 view->copied, view->blocks, view->reason[0] ? ": " : "", view->reason);
}

/* Why it can't be given up. */
static int incomplete(struct sfc_sched_run *run, uint32_t place, struct sfc_error *err)
{
    const Shardfc__V1__ShardAddress *shard = run->map->shards[place];
    char text[320] = "";
    size_t used_text = 0;
    for (size_t i = 0; i < shard->n_mirrors && used_text < sizeof text - 1; i++) {
        char one[200];
        say_mirror(run, shard->mirrors[i], place, one, sizeof one);
        int n = snprintf(text + used_text, sizeof text - used_text, "%s%s", i ? "; " : "", one);
        used_text += n > 0 ? (size_t)n : 0;
    }
    return sfc_fail(err, SFC_ESTATE,
                    "no other shard can restore the blocks of shard %" PRIu64 "%s%s", shard->shard,
                    text[0] ? ": " : ", for none mirrors it", text);
}

static void find_adopters(struct sfc_sched_run *run, const struct sfc_scale_input *x,
                          uint32_t place, struct will *w)
{
    const Shardfc__V1__ShardAddress *shard = run->map->shards[place];
    for (size_t i = 0; i < shard->n_mirrors && i < SFC_CORE_MAX_MIRRORS; i++) {
        const struct sfc_mirror_view *view = sfc_mirrors_view(run, shard->mirrors[i], place);
        if (!view || !view->complete)
            continue;
        uint64_t id = run->fsm.shards[shard->mirrors[i]].id;
        for (uint32_t k = 0; k < x->in.shard_count; k++)
            if (x->shards[k].id == id)
                w->adopters[w->adopter_count++] = (struct sfc_adopter){
                    .place = shard->mirrors[i], .bytes = used(x, k), .limit = x->shards[k].limit};
    }
}

static void list_blocks(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                        uint32_t place, struct will *w)
{
    size_t n = 0;
    for (size_t b = 0; b < run->map->n_class_owner; b++)
        if (run->map->class_owner[b] == place) {
            w->blocks[n] = b;
            w->bytes[n++] = x->blocks[b].bytes;
        }
    w->order.class_count = (uint32_t)n;
    for (size_t b = 0; b < run->map->n_dense_owner; b++)
        if (run->map->dense_owner[b] == place) {
            w->blocks[n] = b;
            w->bytes[n++] = x->blocks[run->map->n_class_owner + b].bytes;
        }
    w->order.dense_count = (uint32_t)n - w->order.class_count;
    w->order.class_blocks = w->blocks;
    w->order.dense_blocks = w->blocks + w->order.class_count;
    w->order.class_owners = w->owners;
    w->order.dense_owners = w->owners + w->order.class_count;
}

static int no_room(const struct will *w, uint64_t shard, struct sfc_error *err)
{
    uint64_t need = 0, room = 0;
    for (uint32_t i = 0; i < w->order.class_count + w->order.dense_count; i++)
        need += w->bytes[i];
    for (uint32_t i = 0; i < w->adopter_count; i++)
        room += w->adopters[i].limit > w->adopters[i].bytes
                    ? w->adopters[i].limit - w->adopters[i].bytes
                    : 0;
    return sfc_fail(err, SFC_ENOMEM,
                    "the blocks of shard %" PRIu64 " need about %.1f MiB, and the shards that "
                    "mirror it have room for %.1f MiB more: restart one of them with a greater "
                    "shardfc-shard --memory, or bring the shard back",
                    shard, (double)need / (1 << 20), (double)room / (1 << 20));
}

static int make_will(struct sfc_sched_run *run, uint32_t place, struct will *w,
                     struct sfc_error *err)
{
    uint32_t count = w->order.class_count + w->order.dense_count;
    struct sfc_adopter before[SFC_CORE_MAX_MIRRORS];
    if (count > 0 && w->adopter_count == 0)
        return incomplete(run, place, err);
    memcpy(before, w->adopters, sizeof before);
    if (sfc_adopters_share(w->adopters, w->adopter_count, w->bytes, count, w->owners))
        return SFC_OK;
    memcpy(w->adopters, before, sizeof before);
    return no_room(w, w->order.shard, err);
}

/* The order that gives the shard at this place up; release with will_free. SFC_ESTATE, SFC_ENOMEM:
 * its blocks, or those of another one, can't be restored then, and why. */
static int will_of(struct sfc_sched_run *run, uint32_t place, struct will *w, struct sfc_error *err)
{
    const struct sfc_goal goal = {.kind = SFC_GOAL_REBALANCE};
    struct sfc_scale_input *x = NULL;
    size_t all = run->map->n_class_owner + run->map->n_dense_owner;
    *w = (struct will){.blocks = calloc(all, sizeof *w->blocks),
                       .bytes = calloc(all, sizeof *w->bytes),
                       .owners = calloc(all, sizeof *w->owners)};
    int code = w->blocks && w->bytes && w->owners
                   ? sfc_scale_input_new(run, &goal, &x, err)
                   : sfc_fail(err, SFC_ENOMEM, "no memory for a list of blocks");
    if (code == SFC_OK) {
        w->order.kind = SFC_ORDER_LOSS;
        w->order.shard = run->map->shards[place]->shard;
        list_blocks(run, x, place, w);
        find_adopters(run, x, place, w);
        code = make_will(run, place, w, err);
        w->spares = code == SFC_OK && check_wards(run, place, err) != SFC_OK;
        if (w->spares)
            code = err->code;
    }
    sfc_scale_input_free(x);
    if (code != SFC_OK)
        will_free(w);
    return code;
}

/* ---- when */

static uint64_t grace_ms(const struct sfc_sched_run *run)
{
    return run->mirrors && run->grace_s ? run->grace_s * 1000ull : UINT64_MAX;
}

static bool is_wanted(const struct sfc_sched_run *run, uint64_t shard)
{
    for (uint32_t i = 0; i < run->losing.wishes.count; i++)
        if (run->losing.wishes.shards[i] == shard)
            return true;
    return false;
}

/* The scheduler has just restarted, and the shard may still register. */
static bool may_register(const struct sfc_sched_run *run, uint64_t missing)
{
    return run->fsm.restoring && missing < run->scheduler->options->lease_ms;
}

static bool due(struct sfc_sched_run *run, uint32_t place)
{
    uint64_t missing = sfc_run_missing(&run->fsm, place, sfc_sched_now(run->scheduler));
    bool wanted = is_wanted(run, run->fsm.shards[place].id) && !may_register(run, missing);
    return (wanted && missing > 0) || missing >= grace_ms(run);
}

/* A change of the map that waits for the missing shard gives way. */
static bool makes_way(struct sfc_sched_run *run)
{
    struct sfc_order_view view;
    if (!sfc_sched_order_at(run, 0, &view) || !view.at_work)
        return true;
    sfc_sched_order_cancel(run, view.number);
    return false; /* it ends now, or when its map is written */
}

/* Its grace time is over, and it is waited for all the same. */
static void spare(struct sfc_sched_run *run, uint32_t place, const char *why)
{
    if (!run->losing.spared[place])
        sfc_sched_event(run->scheduler, "run %" PRIu64 " (%s): %.390s", run->id, run->config->name,
                        why);
    run->losing.spared[place] = true;
}

static void give_up(struct sfc_sched_run *run, uint32_t place)
{
    struct will w;
    struct sfc_error err;
    char why[64];
    uint64_t now = sfc_sched_now(run->scheduler);
    uint64_t missing = sfc_run_missing(&run->fsm, place, now);
    int code = will_of(run, place, &w, &err);
    if (code != SFC_OK) {
        if (w.spares)
            spare(run, place, err.text);
        snprintf(run->losing.text, sizeof run->losing.text, "%.390s", err.text);
        run->losing.again_ms = now + AGAIN_MS;
        return;
    }
    if (makes_way(run)) {
        snprintf(why, sizeof why, "missing for %" PRIu64 " s", missing / 1000);
        w.order.why = why;
        run->losing.shard = w.order.shard;
        code = sfc_sched_order(run, &w.order, &run->losing.order, &err);
        if (code != SFC_OK)
            snprintf(run->losing.text, sizeof run->losing.text, "%.390s", err.text);
    }
    will_free(&w);
}

static bool is_missing(const struct sfc_sched_run *run, uint64_t shard)
{
    uint32_t place = sfc_sched_run_shard(run, shard);
    return place != UINT32_MAX && sfc_run_is_dead(&run->fsm, place);
}

/* A wish ends with the shard's place, and when the shard answers again. */
static void forget_who_is_back(struct sfc_sched_run *run)
{
    struct sfc_wishes *w = &run->losing.wishes;
    uint32_t n = 0;
    bool any = false;
    for (uint32_t k = 0; k < run->fsm.config.shards; k++) {
        bool missing = sfc_run_missing(&run->fsm, k, sfc_sched_now(run->scheduler)) > 0;
        run->losing.spared[k] = run->losing.spared[k] && missing;
        any = any || missing;
    }
    for (uint32_t i = 0; i < w->count; i++)
        if (is_missing(run, w->shards[i]))
            w->shards[n++] = w->shards[i];
    run->losing.stale = run->losing.stale || n < w->count;
    w->count = n;
    if (!any)
        run->losing.text[0] = '\0';
}

static uint32_t count_members(const struct sfc_sched_run *run)
{
    uint32_t members = 0;
    for (uint32_t k = 0; k < run->fsm.config.shards; k++)
        members += run->fsm.shards[k].place == SFC_PLACE_MEMBER;
    return members;
}

/* Those that mirrored a lost shard have its blocks, and nobody has spread them yet. What says so is
 * durable: the map itself, and what is stored with the goal. */
static bool uneven(const struct sfc_sched_run *run)
{
    return run->elastic && run->map->lost_version > run->losing.spread && count_members(run) > 1;
}

static void spread_noted(void *ctx, const struct sfc_error *err)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_sched_run *run = s->run;
    if (err->code != SFC_OK && run)
        run->losing.unspread_ms = sfc_sched_now(s) + AGAIN_MS;
    else if (run)
        sfc_sched_event(s,
                        "run %" PRIu64 " (%s): rebalances, because blocks of a lost shard went to "
                        "those that mirrored it",
                        run->id, run->config->name);
}

/* What is to be stored, when nothing else is. */
static void store_wishes(struct sfc_sched_run *run)
{
    if (run->scale->storing)
        return;
    if (run->losing.stale) {
        run->losing.stale = false;
        sfc_scale_store_lost(run, &run->losing.wishes, NULL, NULL);
    } else if (uneven(run) && !run->losing.order && run->scale->goal.kind == SFC_GOAL_NONE &&
               !run->fsm.restoring && !run->fsm.finished &&
               sfc_sched_now(run->scheduler) >= run->losing.unspread_ms) {
        sfc_scale_store_spread(run, spread_noted, run->scheduler);
    }
}

void sfc_loss_tick(struct sfc_sched_run *run)
{
    const struct sfc_run_fsm *fsm = &run->fsm;
    bool able = fsm->started && !fsm->failed && !fsm->stopped;
    if (able)
        store_wishes(run);
    if (!able || run->losing.order || sfc_sched_now(run->scheduler) < run->losing.again_ms)
        return;
    forget_who_is_back(run);
    for (uint32_t k = 0; k < fsm->config.shards && !run->losing.order; k++)
        if (due(run, k))
            give_up(run, k);
}

/* Those that mirrored the lost shard have its blocks now; in an elastic run store_wishes goes on.
 */
static void say_uneven(struct sfc_sched_run *run)
{
    if (!run->elastic && count_members(run) > 1)
        sfc_sched_event(run->scheduler,
                        "run %" PRIu64 " (%s): the blocks of shard %" PRIu64
                        " are on the shards that mirrored it; `shardfc rebalance` spreads them",
                        run->id, run->config->name, run->losing.shard);
}

void sfc_loss_done(struct sfc_sched_run *run, uint64_t number, int code, const char *text)
{
    if (number != run->losing.order)
        return;
    run->losing.order = 0;
    run->losing.again_ms = sfc_sched_now(run->scheduler) + AGAIN_MS;
    if (code == SFC_OK) {
        run->losing.text[0] = '\0';
        run->losing.again_ms = 0;
        say_uneven(run);
        return;
    }
    if (strcmp(run->losing.text, text) != 0)
        sfc_sched_event(run->scheduler,
                        "run %" PRIu64 " (%s): shard %" PRIu64 " could not be given up: %.300s",
                        run->id, run->config->name, run->losing.shard, text);
    snprintf(run->losing.text, sizeof run->losing.text, "%.390s", text);
}

/* ---- people */

bool sfc_loss_may_register(const struct sfc_sched_run *run)
{
    uint64_t now = sfc_sched_now(run->scheduler);
    for (uint32_t k = 0; k < run->fsm.config.shards; k++)
        if (sfc_run_is_dead(&run->fsm, k) && may_register(run, sfc_run_missing(&run->fsm, k, now)))
            return true;
    return false;
}

static int check_person(struct sfc_sched_run *run, uint64_t shard, uint32_t *place,
                        struct sfc_error *err)
{
    *place = sfc_sched_run_shard(run, shard);
    if (*place == UINT32_MAX || run->fsm.shards[*place].place != SFC_PLACE_MEMBER)
        return sfc_fail(err, SFC_EINVAL, "shard %" PRIu64 " takes no part in run %s", shard,
                        run->config->name);
    uint64_t missing = sfc_run_missing(&run->fsm, *place, sfc_sched_now(run->scheduler));
    if (!sfc_run_is_dead(&run->fsm, *place))
        return sfc_fail(err, SFC_ESTATE,
                        "shard %" PRIu64 " answers; without --lost its blocks move to the others, "
                        "and nothing has to be restored",
                        shard);
    if (may_register(run, missing))
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "the scheduler has just restarted, and shard %" PRIu64
                        " may still register: try again",
                        shard);
    return SFC_OK;
}

int sfc_loss_check(struct sfc_sched_run *run, uint64_t shard, char *text, size_t size,
                   struct sfc_error *err)
{
    uint32_t place;
    struct will w;
    int code = check_person(run, shard, &place, err);
    if (code == SFC_OK)
        code = will_of(run, place, &w, err);
    if (code != SFC_OK)
        return code;
    int n =
        snprintf(text, size, "%u class and %u dense blocks of shard %" PRIu64 " are restored by ",
                 w.order.class_count, w.order.dense_count, shard);
    for (uint32_t i = 0; i < w.adopter_count && n > 0 && (size_t)n < size; i++)
        n += snprintf(text + n, size - (size_t)n, "%sshard %" PRIu64, i ? ", " : "",
                      run->fsm.shards[w.adopters[i].place].id);
    if (n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, "; then %s",
                 run->elastic ? "blocks move until the load is even"
                              : "`shardfc rebalance` makes the load even");
    will_free(&w);
    return SFC_OK;
}

struct sfc_wishes sfc_loss_wishes(const struct sfc_sched_run *run, uint64_t shard)
{
    struct sfc_wishes wishes = run->losing.wishes;
    if (!is_wanted(run, shard) && wishes.count < SFC_CORE_MAX_SHARDS)
        wishes.shards[wishes.count++] = shard;
    return wishes;
}

void sfc_loss_say(struct sfc_sched_run *run, uint32_t place, char *out, size_t size)
{
    uint64_t missing = sfc_run_missing(&run->fsm, place, sfc_sched_now(run->scheduler));
    uint64_t id = run->fsm.shards[place].id, grace = grace_ms(run);
    struct will w;
    struct sfc_error err;
    out[0] = '\0';
    if (missing == 0 || run->mirrors == 0)
        return;
    if (run->losing.order && run->losing.shard == id) {
        snprintf(out, size, "it is being given up for lost");
    } else if (may_register(run, missing)) {
        snprintf(out, size, "it may still register, because the scheduler has just restarted");
    } else if (will_of(run, place, &w, &err) != SFC_OK) {
        snprintf(out, size, "%s", err.text);
    } else {
        will_free(&w);
        if (is_wanted(run, id))
            snprintf(out, size, "it is about to be given up for lost, as somebody asked for");
        else if (grace == UINT64_MAX)
            snprintf(out, size,
                     "shards that mirror it can restore its blocks: `shardfc drain %" PRIu64
                     " --lost` gives it up",
                     id);
        else
            snprintf(out, size, "in %" PRIu64 " s shards that mirror it restore its blocks",
                     missing < grace ? (grace - missing + 999) / 1000 : 0);
    }
}
