#include "server/scheduler/grow.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/run_config.h"
#include "server/core/block_map.h"
#include "server/run/growths.h"
#include "server/scheduler/scale.h"

/* ---- the growths of a run */

int sfc_sched_take_growths(struct sfc_sched_run *run, struct sfc_error *err)
{
    struct sfc_growths all;
    int code = sfc_growths_from(run->config, run->map->growths, run->map->n_growths, &all, err);
    if (code != SFC_OK)
        return code;
    sfc_run_setup_set_classes(&run->setup, sfc_map_classes(run->config, run->map));
    run->order_parts = sfc_growths_order(&all, run->config->global_batch, run->sample_order);
    return SFC_OK;
}

struct sfc_set_of_run sfc_sched_set(const struct sfc_sched_run *run)
{
    const Shardfc__V1__DataSet *data = run->config->data;
    struct sfc_set_of_run set = {data ? data->samples : 0, data ? data->digest : ""};
    if (run->map->n_growths) {
        const Shardfc__V1__Growth *last = run->map->growths[run->map->n_growths - 1];
        set = (struct sfc_set_of_run){last->samples, last->data_digest};
    }
    return set;
}

static bool has_set(const struct sfc_worker_info *w, struct sfc_set_of_run set)
{
    return strcmp(w->data_digest, set.digest) == 0 ||
           (w->begin_samples == set.samples && strcmp(w->begin_digest, set.digest) == 0);
}

static bool any_has(const struct sfc_scheduler *s, const char *digest)
{
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++)
        if (s->workers[i].id && strcmp(s->workers[i].data_digest, digest) == 0)
            return true;
    return false;
}

void sfc_sched_part_workers(struct sfc_sched_run *run)
{
    struct sfc_scheduler *s = run->scheduler;
    const struct sfc_set_of_run set = sfc_sched_set(run);
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++) {
        const struct sfc_worker_info *w = &s->workers[i];
        if (!w->id || has_set(w, set))
            continue;
        sfc_sched_event(s,
                        "worker %" PRIu64 " has not got the data set that run %s has grown to, and "
                        "takes part no more: start it again with --data of that set",
                        w->id, run->config->name);
        sfc_sched_part_worker(s, w->id);
    }
}

/* ---- where new blocks go */

struct room {
    bool member;
    uint64_t rows, free_bytes;
};

static void look_at_shards(struct sfc_sched_run *run, struct room *rooms)
{
    const Shardfc__V1__BlockMap *map = run->map;
    for (size_t b = 0; b < map->n_class_owner; b++)
        rooms[map->class_owner[b]].rows += sfc_head_block_rows(&run->setup.head, b);
    for (uint32_t k = 0; k < map->n_shards && k < run->fsm.config.shards; k++) {
        const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, run->fsm.shards[k].id);
        uint64_t limit = info ? info->memory_limit + info->disk_limit : 0;
        rooms[k].member = run->fsm.shards[k].place == SFC_PLACE_MEMBER;
        if (info && limit < info->memory_limit)
            limit = UINT64_MAX;
        rooms[k].free_bytes = info && limit > info->memory_bytes ? limit - info->memory_bytes : 0;
    }
}

/* Of those with room the one with the fewest classes; of none with room the roomiest, which says
 * its numbers itself. */
static uint32_t choose(const struct room *rooms, uint32_t count, uint64_t bytes)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t k = 0; k < count; k++) {
        if (!rooms[k].member)
            continue;
        const struct room *r = &rooms[k], *b = best == UINT32_MAX ? NULL : &rooms[best];
        bool fits = r->free_bytes >= bytes, best_fits = b && b->free_bytes >= bytes;
        bool better = !b || (fits && !best_fits) || (fits && best_fits && r->rows < b->rows) ||
                      (!fits && !best_fits && r->free_bytes > b->free_bytes);
        best = better ? k : best;
    }
    return best;
}

static uint64_t row_bytes(const struct sfc_head_config *h)
{
    uint64_t parts = h->optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    return parts * (h->dtype == SFC_DTYPE_BF16 ? 2 : 4) * h->dim;
}

/* Growths are told apart by their steps. */
static int check_grown(const struct sfc_sched_run *run, struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = run->map;
    if (map->n_growths == 0 ||
        map->growths[map->n_growths - 1]->from_step <= sfc_run_committed(&run->fsm))
        return SFC_OK;
    return sfc_fail(err, SFC_ESTATE,
                    "the run has just grown, and the first step with its %" PRIu64
                    " classes is not done yet: grow again after it",
                    run->setup.head.classes);
}

/* Also asked when an order begins: another growth may have been made while it waited. */
static int check_new(const struct sfc_sched_run *run, uint64_t classes, struct sfc_error *err)
{
    uint64_t now = run->setup.head.classes;
    if (classes == now)
        return sfc_fail(err, SFC_EEXIST, "run %s has %" PRIu64 " classes already",
                        run->config->name, now);
    return classes > now
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL,
                          "classes: %" PRIu64 ", and run %s has %" PRIu64 ": a run only grows",
                          classes, run->config->name, now);
}

int sfc_sched_place_growth(struct sfc_sched_run *run, uint64_t classes, uint32_t **owners,
                           size_t *count, struct sfc_error *err)
{
    struct sfc_head_config head = run->setup.head;
    size_t before = run->map->n_class_owner, now = sfc_block_count(classes, head.block_size);
    struct room rooms[SFC_CORE_MAX_SHARDS] = {0};
    int code = check_new(run, classes, err);
    code = code ? code : check_grown(run, err);
    if (code != SFC_OK)
        return code;
    uint32_t *list = malloc(now * sizeof *list);
    if (!list)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a map of %zu blocks", now);
    memcpy(list, run->map->class_owner, before * sizeof *list);
    look_at_shards(run, rooms);
    head.classes = classes;
    for (size_t b = before; b < now; b++) {
        uint64_t rows = sfc_head_block_rows(&head, b), bytes = rows * row_bytes(&head);
        uint32_t k = choose(rooms, (uint32_t)run->map->n_shards, bytes);
        if (k == UINT32_MAX) {
            free(list);
            return sfc_fail(err, SFC_ESTATE, "the run has no shard that could take a block");
        }
        list[b] = k;
        rooms[k].rows += rows;
        rooms[k].free_bytes -= rooms[k].free_bytes < bytes ? rooms[k].free_bytes : bytes;
    }
    *owners = list;
    *count = now;
    return SFC_OK;
}

Shardfc__V1__BlockMap *sfc_sched_grown_map(const struct sfc_sched_run *run,
                                           const struct sfc_sched_order *o, const uint32_t *owners,
                                           size_t count, uint64_t version, uint64_t step)
{
    Shardfc__V1__BlockMap m = *run->map, *copy = NULL;
    Shardfc__V1__Growth growth = SHARDFC__V1__GROWTH__INIT;
    Shardfc__V1__Growth *list[SFC_CORE_GROWTHS + 1];
    if (m.n_growths > SFC_CORE_GROWTHS)
        return NULL;
    if (m.n_growths)
        memcpy(list, m.growths, m.n_growths * sizeof *list);
    growth.from_step = step + 1;
    growth.classes = o->classes;
    growth.samples = o->samples;
    growth.data_digest = (char *)(uintptr_t)(o->data_digest ? o->data_digest : "");
    /* samples of later steps have not been given to anybody yet */
    growth.data_step = step + 2 + run->fsm.tickets.config.lead_steps;
    list[m.n_growths++] = &growth;
    m.growths = list;
    m.version = version;
    m.class_owner = (uint32_t *)(uintptr_t)owners;
    m.n_class_owner = count;
    copy = sfc_message_copy(&m);
    return copy;
}

/* ---- the call */

static int check_run(const struct sfc_scheduler *s, const Shardfc__V1__GrowRequest *r,
                     struct sfc_error *err)
{
    const struct sfc_sched_run *run = s->run;
    if (!run || (r->run_id && r->run_id != run->id))
        return sfc_fail(err, run ? SFC_ESTALE : SFC_ESTATE,
                        run ? "run_id: %" PRIu64 " is not the present run" : "there is no run",
                        r->run_id);
    const struct sfc_run_fsm *fsm = &run->fsm;
    if (!fsm->started && !fsm->failed && !fsm->stopped)
        return sfc_fail(err, SFC_EUNAVAILABLE, "run %s is loading: it can't grow yet; try again",
                        run->config->name);
    if (fsm->failed || fsm->stopped || fsm->finished)
        return sfc_fail(err, SFC_ESTATE, "run %s is %s: it can't grow", run->config->name,
                        sfc_run_state_name(fsm->state));
    if (run->config->data && run->config->data->hot_classes)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "run %s has --hot-classes, whose samples are spread over all identities: "
                        "it can't grow; create a run with all its identities, or one without "
                        "--hot-classes",
                        run->config->name);
    return SFC_OK;
}

static int check_records(const struct sfc_sched_run *run, const Shardfc__V1__GrowRequest *r,
                         struct sfc_error *err)
{
    const Shardfc__V1__DataSet *own = run->config->data, *data = r->data;
    const struct sfc_set_of_run set = sfc_sched_set(run);
    if (data->kind != own->kind)
        return sfc_fail(err, SFC_EINVAL, "data: the run's set is of another kind");
    if (own->kind == SHARDFC__V1__DATA_SET__KIND__SYNTHETIC)
        return SFC_OK;
    if (data->width != own->width || data->height != own->height ||
        data->channels != own->channels || data->flip != own->flip)
        return sfc_fail(err, SFC_EINVAL,
                        "data: its images are %ux%ux%u, those of the run %ux%ux%u, or one of them "
                        "may be mirrored and the other may not",
                        data->width, data->height, data->channels, own->width, own->height,
                        own->channels);
    if (!r->begin || r->begin->samples != set.samples || strcmp(r->begin->digest, set.digest) != 0)
        return sfc_fail(err, SFC_EINVAL,
                        "data: the set does not begin with the %" PRIu64 " samples of the run's "
                        "set (%s): old samples must come first and be the same",
                        set.samples, set.digest);
    if (data->samples > set.samples && !any_has(run->scheduler, data->digest))
        return sfc_fail(err, SFC_ESTATE,
                        "no worker has the new data set (%s) yet: start workers with --data of it "
                        "first (they may join now), then grow",
                        data->digest);
    return SFC_OK;
}

/* What a further one would begin with is known when it is done. */
static bool grows(const struct sfc_sched_run *run)
{
    struct sfc_order_view view;
    for (size_t i = 0; sfc_sched_order_at(run, i, &view); i++)
        if (view.order.kind == SFC_ORDER_GROW)
            return true;
    return false;
}

static int check(const struct sfc_scheduler *s, const Shardfc__V1__GrowRequest *r,
                 struct sfc_sched_order *o, struct sfc_error *err)
{
    int code = check_run(s, r, err);
    if (code != SFC_OK)
        return code;
    const struct sfc_sched_run *run = s->run;
    const struct sfc_set_of_run set = sfc_sched_set(run);
    struct sfc_growths all;
    *o = (struct sfc_sched_order){.kind = SFC_ORDER_GROW,
                                  .classes = r->classes,
                                  .samples = r->data ? r->data->samples : set.samples,
                                  .data_digest = r->data ? r->data->digest : set.digest,
                                  .why = ""};
    code = check_new(run, r->classes, err);
    if (code == SFC_OK && grows(run))
        code = sfc_fail(err, SFC_EUNAVAILABLE,
                        "another growth waits for the end of a step: try again");
    if (code != SFC_OK)
        return code;
    if (r->data && run->fsm.config.session)
        return sfc_fail(err, SFC_EINVAL, "data: a session of a foreign framework brings its own");
    if (r->data) {
        code = sfc_run_data_check(r->data, err);
        code = code ? code : check_records(run, r, err);
    }
    /* as it would be if it came with the next step */
    Shardfc__V1__Growth *list[SFC_CORE_GROWTHS + 1], next = SHARDFC__V1__GROWTH__INIT;
    size_t count = run->map->n_growths;
    if (code == SFC_OK && count >= SFC_CORE_GROWTHS)
        return sfc_fail(err, SFC_ELIMIT, "the run has grown %zu times, which is the limit", count);
    for (size_t i = 0; code == SFC_OK && i < count; i++)
        list[i] = run->map->growths[i];
    next.from_step = sfc_run_committed(&run->fsm) + 1;
    next.classes = r->classes;
    next.samples = o->samples;
    next.data_step = next.from_step + 1 + run->fsm.tickets.config.lead_steps;
    list[count] = &next;
    code = code ? code : check_grown(run, err);
    return code ? code : sfc_growths_from(run->config, list, count + 1, &all, err);
}

static struct sfc_parked *parked_of(struct sfc_scheduler *s, uint64_t number)
{
    struct sfc_parked *p = s->parked;
    while (p && (p->kind != SFC_PARKED_GROW || p->order != number))
        p = p->next;
    return p;
}

void sfc_sched_grow_done(struct sfc_sched_run *run, uint64_t number, int code, const char *text)
{
    struct sfc_parked *p = parked_of(run->scheduler, number);
    if (!p)
        return;
    if (code != SFC_OK) {
        struct sfc_error err;
        sfc_fail(&err, code, "the run has not grown: %s", text);
        sfc_sched_refuse(run->scheduler, p->call, &err);
    } else {
        const Shardfc__V1__Growth *g = run->map->growths[run->map->n_growths - 1];
        Shardfc__V1__GrowReply m = SHARDFC__V1__GROW_REPLY__INIT;
        m.from_step = g->from_step;
        m.map_version = run->map->version;
        m.data_step = g->samples ? g->data_step : 0;
        sfc_call_reply(p->call, &m);
    }
    sfc_sched_unpark(p);
}

void sfc_sched_on_grow(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    struct sfc_sched_order order;
    uint64_t number = 0;
    Shardfc__V1__GrowRequest *r = sfc_sched_unpack(s, call, &shardfc__v1__grow_request__descriptor);
    if (!r)
        return;
    int code = check(s, r, &order, &err);
    if (code == SFC_OK)
        code = sfc_sched_order(s->run, &order, &number, &err);
    if (code != SFC_OK) {
        sfc_sched_refuse(s, call, &err);
    } else {
        struct sfc_parked *p = sfc_sched_park(s, call, SFC_PARKED_GROW);
        if (p)
            p->order = number;
        sfc_sched_event_by(s, call, "asks run %s to grow to %" PRIu64 " classes",
                           s->run->config->name, r->classes);
    }
    sfc_message_free(r);
}
