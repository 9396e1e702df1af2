/* CreateRun: check the configuration, choose the shards, place the blocks within their memory, make
 * the run durable, open it on every shard. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "proto/base/log.h"
#include "proto/limits.h"
#include "proto/run_config.h"
#include "server/scheduler/map_mirrors.h"
#include "server/run/growths.h"
#include "server/scheduler/run_parts.h"

#define DEFAULT_DENSE_BLOCK (64u << 10)
#define SESSION_WINDOW      1000u /* steps that a session's run can be rewound, unless it says */

struct create_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    Shardfc__V1__RunConfig *config;
    Shardfc__V1__BlockMap *map;
    uint64_t start_step;
    bool load;
    struct sfc_keeping keeping;
    struct sfc_lr_changes lr_changes;
    uint64_t run_id, nonce;
    uint64_t bytes_per_shard, wire_bytes;
};

/* ---- memory and placement */

/* The kernels that the shards run, as far as this program has them; their memory formulas are what
 * counts here. A device's are close to the CPU's, and opening it would keep some of its memory; its
 * shard compares its own exact numbers when the run is opened. */
static int planning_backend(const char *name, struct sfc_backend **out, struct sfc_error *err)
{
    if (strncmp(name, "cuda", 4) != 0 && sfc_backend_open(name, 1, out, NULL) == SFC_OK)
        return SFC_OK;
    return sfc_backend_open("cpu", 1, out, err);
}

static int memory_of(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                     uint64_t class_blocks, uint64_t dense_blocks, uint64_t *out,
                     struct sfc_error *err)
{
    uint64_t n = class_blocks > dense_blocks ? class_blocks : dense_blocks;
    uint64_t *ids = malloc((n ? n : 1) * sizeof *ids);
    struct sfc_run_memory m;
    if (!ids)
        return sfc_fail(err, SFC_ENOMEM, "list of blocks");
    for (uint64_t i = 0; i < n; i++)
        ids[i] = i;
    int code = sfc_run_setup_memory(setup, backend, ids, class_blocks, ids, dense_blocks, &m, err);
    free(ids);
    if (code == SFC_OK)
        *out = m.total;
    return code;
}

static uint64_t per_unit(uint64_t more, uint64_t less, uint64_t units)
{
    uint64_t bytes = more > less ? more - less : 0;
    return units ? bytes / units + (bytes % units != 0) : 0;
}

/* Bytes per class, per dense float and fixed, from the exact numbers for few and for all blocks. */
static int estimate(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                    struct sfc_placement *p, struct sfc_error *err)
{
    uint64_t one = 0, all = 0, dense = 0;
    uint64_t first = sfc_head_block_rows(&setup->head, 0);
    int code = memory_of(setup, backend, 1, 0, &one, err);
    if (code == SFC_OK)
        code = memory_of(setup, backend, setup->class_blocks, 0, &all, err);
    if (code == SFC_OK)
        code = memory_of(setup, backend, 1, setup->dense_blocks, &dense, err);
    if (code != SFC_OK)
        return code;
    p->class_bytes = setup->class_blocks > 1 ? per_unit(all, one, setup->head.classes - first)
                                             : (uint64_t)setup->head.dim * 8;
    p->dense_bytes = per_unit(dense, one, setup->dense.size);
    uint64_t blocks = first * p->class_bytes;
    p->fixed_bytes = one > blocks ? one - blocks : 0;
    return SFC_OK;
}

static const char *backend_of(struct sfc_scheduler *s, const Shardfc__V1__BlockMap *map)
{
    const struct sfc_shard_info *info = NULL;
    for (size_t k = 0; k < map->n_shards && !info; k++)
        info = sfc_sched_shard(s, map->shards[k]->shard);
    return info ? info->backend : "cpu";
}

int sfc_sched_placement(struct sfc_scheduler *s, const struct sfc_run_setup *setup,
                        const Shardfc__V1__BlockMap *map, struct sfc_placement *out,
                        struct sfc_error *err)
{
    struct sfc_backend *backend = NULL;
    struct sfc_placement p = {0};
    int code = planning_backend(backend_of(s, map), &backend, err);
    if (code == SFC_OK)
        code = estimate(setup, backend, &p, err);
    sfc_backend_close(backend);
    if (code == SFC_OK)
        *out = p;
    return code;
}

int sfc_sched_mirror_memory(struct sfc_scheduler *s, const struct sfc_run_setup *setup,
                            const Shardfc__V1__BlockMap *map, const struct sfc_run_mirror *mirror,
                            uint64_t *bytes, struct sfc_error *err)
{
    struct sfc_backend *backend = NULL;
    struct sfc_run_mirror_memory m = {0};
    int code = planning_backend(backend_of(s, map), &backend, err);
    if (code == SFC_OK)
        code = sfc_run_mirror_memory(setup, backend, mirror, &m, err);
    sfc_backend_close(backend);
    if (code == SFC_OK)
        *bytes = m.dense.state_bytes + m.dense.step_bytes + m.dense.scratch_bytes + m.host;
    return code;
}

static size_t ready_shards(struct sfc_scheduler *s, const struct sfc_shard_member **out)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->members.config.max_shards && n < SFC_CORE_MAX_SHARDS; i++)
        if (s->members.shards[i].id && s->members.shards[i].ready)
            out[n++] = &s->members.shards[i];
    return n;
}

static int check_numerics(struct sfc_scheduler *s, const struct sfc_shard_member **members,
                          size_t n, struct sfc_error *err)
{
    const struct sfc_shard_info *first = sfc_sched_shard(s, members[0]->id);
    for (size_t i = 1; i < n; i++) {
        const struct sfc_shard_info *info = sfc_sched_shard(s, members[i]->id);
        if (strcmp(info->numerics, first->numerics) != 0)
            return sfc_fail(
                err, SFC_EINVAL,
                "numerics: shard %s is '%s', shard %s is '%s'; results would depend on the "
                "placement (create the run with --mixed to allow it)",
                members[0]->address, first->numerics, members[i]->address, info->numerics);
    }
    return SFC_OK;
}

/* All that a shard offers; what of it is memory and what is disk is checked when blocks are placed.
 */
static uint64_t offer(const struct sfc_shard_info *info)
{
    uint64_t sum = info->memory_limit + info->disk_limit;
    return sum >= info->disk_limit ? sum : UINT64_MAX;
}

static int check_need(const char *address, const char *what, const char *option, uint64_t need,
                      uint64_t limit, struct sfc_error *err)
{
    if (need <= limit)
        return SFC_OK;
    return sfc_fail(err, SFC_ENOMEM,
                    "shard %s would need %.1f MiB %s but may use %.1f MiB; add shards, give this "
                    "one more (%s), or make the run smaller",
                    address, (double)need / (1 << 20), what, (double)limit / (1 << 20), option);
}

/* The exact need of each shard against its limits. */
static int check_shards(struct sfc_scheduler *s, const struct sfc_run_setup *setup,
                        const struct sfc_backend *backend, const struct sfc_block_map *placed,
                        const struct sfc_shard_member **members, uint64_t *max,
                        struct sfc_error *err)
{
    uint64_t n =
        setup->class_blocks > setup->dense_blocks ? setup->class_blocks : setup->dense_blocks;
    uint64_t *class_ids = malloc(n * sizeof *class_ids), *dense_ids = malloc(n * sizeof *dense_ids);
    int code = class_ids && dense_ids ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "lists of blocks");
    *max = 0;
    for (uint32_t k = 0; k < placed->shards && code == SFC_OK; k++) {
        struct sfc_run_memory m;
        uint32_t classes = sfc_block_map_blocks(placed, k, false, class_ids);
        uint32_t dense = sfc_block_map_blocks(placed, k, true, dense_ids);
        const struct sfc_shard_info *info = sfc_sched_shard(s, members[k]->id);
        code = sfc_run_setup_memory(setup, backend, class_ids, classes, dense_ids, dense, &m, err);
        uint64_t disk = code == SFC_OK && info->disk_limit ? m.head.state_bytes : 0;
        if (code == SFC_OK)
            code = check_need(members[k]->address, "of memory", "shardfc-shard --memory",
                              m.total - disk, info->memory_limit, err);
        if (code == SFC_OK && disk)
            code = check_need(members[k]->address, "of disk", "shardfc-shard --store-dir", disk,
                              info->disk_limit, err);
        if (code == SFC_OK && m.total > *max)
            *max = m.total;
    }
    free(class_ids);
    free(dense_ids);
    return code;
}

static Shardfc__V1__BlockMap *map_message(const struct sfc_block_map *placed,
                                          const struct sfc_shard_member **members)
{
    Shardfc__V1__BlockMap m = SHARDFC__V1__BLOCK_MAP__INIT, *copy = NULL;
    Shardfc__V1__ShardAddress items[SFC_CORE_MAX_SHARDS], *list[SFC_CORE_MAX_SHARDS];
    for (uint32_t k = 0; k < placed->shards; k++) {
        shardfc__v1__shard_address__init(&items[k]);
        items[k].shard = members[k]->id;
        items[k].address = (char *)(uintptr_t)members[k]->address;
        list[k] = &items[k];
    }
    m.version = placed->version;
    m.n_shards = placed->shards;
    m.shards = list;
    m.n_class_owner = placed->class_blocks;
    m.class_owner = placed->class_owner;
    m.n_dense_owner = placed->dense_blocks;
    m.dense_owner = placed->dense_owner;
    copy = sfc_message_copy(&m);
    return copy;
}

static int place(struct sfc_scheduler *s, const struct sfc_run_setup *setup, bool mixed,
                 struct create_task *t, struct sfc_error *err)
{
    const struct sfc_shard_member *members[SFC_CORE_MAX_SHARDS];
    struct sfc_placement_shard shards[SFC_CORE_MAX_SHARDS];
    struct sfc_block_map placed = {0};
    struct sfc_backend *backend = NULL;
    size_t n = ready_shards(s, members);
    if (n == 0)
        return sfc_fail(err, SFC_ESTATE, "no shard is registered; start shardfc-shard first");
    if (n > setup->class_blocks) /* every shard of a run owns a class block */
        n = (size_t)setup->class_blocks;
    if (t->keeping.mirrors >= n)
        return sfc_fail(err, SFC_EINVAL,
                        "%u mirrors of each shard need %u shards, and the run would have %zu%s",
                        t->keeping.mirrors, t->keeping.mirrors + 1, n,
                        n < setup->class_blocks ? ": start more shards first"
                                                : ": one for each block of classes");
    int code = mixed ? SFC_OK : check_numerics(s, members, n, err);
    if (code == SFC_OK)
        code = planning_backend(sfc_sched_shard(s, members[0]->id)->backend, &backend, err);
    if (code == SFC_OK)
        code = sfc_head_check(backend, &setup->head, err);
    struct sfc_placement p = {.classes = setup->head.classes,
                              .block_size = setup->head.block_size,
                              .dense_size = setup->dense.size,
                              .dense_block_size = setup->dense.block_size};
    if (code == SFC_OK)
        code = estimate(setup, backend, &p, err);
    for (size_t i = 0; i < n; i++)
        shards[i] =
            (struct sfc_placement_shard){members[i]->id, offer(sfc_sched_shard(s, members[i]->id))};
    if (code == SFC_OK)
        code = sfc_block_map_place(&p, shards, (uint32_t)n, &placed, err);
    if (code == SFC_OK)
        code = check_shards(s, setup, backend, &placed, members, &t->bytes_per_shard, err);
    if (code == SFC_OK && !(t->map = map_message(&placed, members)))
        code = sfc_fail(err, SFC_ENOMEM, "block map");
    if (code == SFC_OK)
        code = sfc_map_choose_mirrors(t->map, t->keeping.mirrors, NULL, err);
    sfc_block_map_free(&placed);
    sfc_backend_close(backend);
    return code;
}

static uint64_t wire_bytes(const struct sfc_run_setup *setup, uint64_t shards, uint32_t mirrors)
{
    uint64_t rows = setup->head.batch, dim = setup->head.dim;
    uint64_t head = rows * (dim * 4 + 8 + 37 + dim * 8) * shards; /* features, LSE, sums, dx */
    uint64_t copies = 2 + (uint64_t)mirrors; /* push, pull, and push to the mirrors */
    uint64_t dense = setup->dense.size * 4 * copies * setup->micro_batches;
    return head + dense + rows * 8 * shards;
}

/* ---- configuration */

static void fill_defaults(Shardfc__V1__RunConfig *c)
{
    if (c->block_size == 0)
        c->block_size = sfc_default_block_size(c->classes);
    if (c->n_segments && c->dense_block_size == 0)
        c->dense_block_size = DEFAULT_DENSE_BLOCK;
}

/* A foreign framework has its own checkpoints and may come back at one of them. */
static struct sfc_keeping keeping_of(const Shardfc__V1__RunKeeping *k,
                                     const Shardfc__V1__RunConfig *c)
{
    bool session = c->data && c->data->kind == SHARDFC__V1__DATA_SET__KIND__SESSION;
    struct sfc_keeping keeping = {.rewind_window = session ? SESSION_WINDOW : 0,
                                  .durable_every = 1};
    if (k && k->rewind_window != 0)
        keeping.rewind_window = k->rewind_window;
    if (k && k->durable_every != 0)
        keeping.durable_every = k->durable_every;
    keeping.elastic = k && k->elastic;
    keeping.mirrors = k ? k->mirrors : 0;
    keeping.grace_s = k ? k->grace_s : 0;
    return keeping;
}

static int check_keeping(const Shardfc__V1__RunKeeping *k, struct sfc_error *err)
{
    if (k && k->rewind_window > SFC_LIMIT_STEPS)
        return sfc_fail(err, SFC_EINVAL, "keeping.rewind_window: %" PRIu64 " is more than %llu",
                        k->rewind_window, SFC_LIMIT_STEPS);
    if (k && k->durable_every > SFC_LIMIT_DURABLE_EVERY)
        return sfc_fail(err, SFC_EINVAL, "keeping.durable_every: %u is more than %u",
                        k->durable_every, SFC_LIMIT_DURABLE_EVERY);
    if (k && k->mirrors > SFC_LIMIT_MIRRORS)
        return sfc_fail(err, SFC_EINVAL, "keeping.mirrors: %u is more than %u", k->mirrors,
                        SFC_LIMIT_MIRRORS);
    if (k && k->grace_s > SFC_LIMIT_GRACE_S)
        return sfc_fail(err, SFC_EINVAL, "keeping.grace_s: %u is more than %u", k->grace_s,
                        SFC_LIMIT_GRACE_S);
    return SFC_OK;
}

static struct sfc_schedule schedule_of(const Shardfc__V1__RunConfig *c)
{
    return (struct sfc_schedule){.lr = c->lr,
                                 .warmup_steps = c->warmup_steps,
                                 .power = c->lr_power,
                                 .end = c->lr_end,
                                 .steps = c->steps};
}

static int check_config(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    const struct sfc_schedule schedule = schedule_of(c);
    int code = sfc_run_config_check(c, err);
    if (code != SFC_OK)
        return code;
    if (c->global_batch / c->micro_batch > SFC_CORE_MAX_MICRO_BATCHES)
        return sfc_fail(err, SFC_EINVAL, "micro_batch: %u makes more than %u micro-batches",
                        c->micro_batch, SFC_CORE_MAX_MICRO_BATCHES);
    return sfc_schedule_check(&schedule, err);
}

/* ---- the call */

static void create_free(struct create_task *t)
{
    sfc_message_free(t->config);
    sfc_message_free(t->map);
    sfc_lr_changes_free(&t->lr_changes);
    free(t);
}

static void create_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct create_task *t = (struct create_task *)task;
    struct sfc_store_run run = {.nonce = t->nonce,
                                .start_step = t->start_step,
                                .load = t->load,
                                .rewind_window = t->keeping.rewind_window,
                                .durable_every = t->keeping.durable_every,
                                .elastic = t->keeping.elastic,
                                .mirrors = t->keeping.mirrors,
                                .grace_s = t->keeping.grace_s,
                                .map_version = t->map->version,
                                .state = "loading"};
    struct sfc_store_lr *lr = calloc(t->lr_changes.count + 1, sizeof *lr);
    run.config = sfc_message_pack(t->config, &run.config_size);
    run.map = sfc_message_pack(t->map, &run.map_size);
    for (uint32_t i = 0; lr && i < t->lr_changes.count; i++)
        lr[i] = (struct sfc_store_lr){t->lr_changes.items[i].from_step, t->lr_changes.items[i].lr};
    run.lr_changes = lr;
    run.lr_change_count = t->lr_changes.count;
    task->code = run.config && run.map && lr
                     ? sfc_store_add_run(store, &run, &t->run_id, &task->error)
                     : sfc_fail(&task->error, SFC_ENOMEM, "store the run");
    free(lr);
    sfc_store_run_close(&run);
}

static void begin(struct create_task *t)
{
    struct sfc_scheduler *s = t->scheduler;
    struct sfc_sched_run *run = NULL;
    int code =
        sfc_sched_run_new(s, t->run_id, t->config, t->map, t->start_step, t->load, t->keeping,
                          t->lr_changes.items, t->lr_changes.count, NULL, &run, &t->task.error);
    if (code != SFC_OK) {
        sfc_sched_refuse(s, t->call, &t->task.error);
        return;
    }
    t->config = NULL;
    t->map = NULL;
    run->nonce = t->nonce;
    sfc_sched_run_free(s->run);
    s->run = run;
    sfc_rpc_server_set_run(s->server, run->config->name);
    s->last_run_id = t->run_id;
    struct sfc_parked *p = sfc_sched_park(s, t->call, SFC_PARKED_CREATE);
    if (p) {
        p->bytes_per_shard = t->bytes_per_shard;
        p->wire_bytes = t->wire_bytes;
    }
    sfc_sched_event(s, "run %" PRIu64 " (%s) created: %" PRIu64 " classes on %zu shards", run->id,
                    run->config->name, run->setup.head.classes, run->map->n_shards);
    struct sfc_run_event event = {.type = SFC_EV_TICK};
    sfc_sched_run_event(run, &event);
    sfc_sched_members_of_new_run(s);
}

static void create_done(struct sfc_store_task *task)
{
    struct create_task *t = (struct create_task *)task;
    t->scheduler->creating = false;
    if (task->code != SFC_OK)
        sfc_sched_refuse(t->scheduler, t->call, &task->error);
    else if (t->scheduler->stopping)
        sfc_rpc_fail(t->call, SFC_ECANCELED,
                     "the scheduler is shutting down; the run is stored, and begins when the "
                     "scheduler is back");
    else
        begin(t);
    create_free(t);
}

/* Of a run from a checkpoint: it has the blocks of the last one. */
static int check_growths(const Shardfc__V1__CreateRunRequest *r, struct sfc_run_setup *setup,
                         struct sfc_error *err)
{
    struct sfc_growths all;
    int code = sfc_growths_from(r->config, r->growths, r->n_growths, &all, err);
    if (code != SFC_OK || all.count == 0)
        return code;
    const struct sfc_growth *last = &all.items[all.count - 1];
    if (last->from_step > r->start_step + 1)
        return sfc_fail(err, SFC_EINVAL,
                        "growths: the last one is from step %" PRIu64
                        " on, the run begins after step %" PRIu64,
                        last->from_step, r->start_step);
    sfc_run_setup_set_classes(setup, last->classes);
    return SFC_OK;
}

static int note_growths(const Shardfc__V1__CreateRunRequest *r, struct create_task *t,
                        struct sfc_error *err)
{
    Shardfc__V1__BlockMap m = *t->map, *copy = NULL;
    m.growths = r->growths;
    m.n_growths = r->n_growths;
    copy = sfc_message_copy(&m);
    if (!copy)
        return sfc_fail(err, SFC_ENOMEM, "block map");
    sfc_message_free(t->map);
    t->map = copy;
    return SFC_OK;
}

static int create(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                  Shardfc__V1__CreateRunRequest *r, struct sfc_error *err)
{
    struct sfc_run_setup setup = {0};
    if (!r->config)
        return sfc_fail(err, SFC_EINVAL, "config is missing");
    if (s->creating || sfc_sched_run_active(s))
        return sfc_fail(err, SFC_ESTATE, "run %s is active; wait for its end or stop it first",
                        s->creating ? "(being created)" : s->run->config->name);
    fill_defaults(r->config);
    int code = check_config(r->config, err);
    if (code == SFC_OK && r->start_step > r->config->steps)
        code = sfc_fail(err, SFC_EINVAL, "start_step: %" PRIu64 " is beyond the last step %" PRIu64,
                        r->start_step, r->config->steps);
    if (code == SFC_OK)
        code = check_keeping(r->keeping, err);
    if (code == SFC_OK)
        code = sfc_run_setup_init(&setup, r->config, err);
    if (code == SFC_OK)
        code = check_growths(r, &setup, err);
    struct create_task *t = code == SFC_OK ? calloc(1, sizeof *t) : NULL;
    if (code == SFC_OK && !t)
        code = sfc_fail(err, SFC_ENOMEM, "create run");
    if (code == SFC_OK) {
        const struct sfc_schedule schedule = schedule_of(r->config);
        code = sfc_sched_take_lr(r->lr_changes, r->n_lr_changes, &schedule, &t->lr_changes, err);
    }
    if (code == SFC_OK && getrandom(&t->nonce, sizeof t->nonce, 0) != (ssize_t)sizeof t->nonce)
        code = sfc_fail_errno(err, "random bytes");
    if (code == SFC_OK) {
        t->keeping = keeping_of(r->keeping, r->config);
        code = place(s, &setup, r->config->mixed, t, err);
    }
    if (code == SFC_OK)
        code = note_growths(r, t, err);
    if (code == SFC_OK) {
        t->scheduler = s;
        t->call = call;
        t->config = r->config;
        t->start_step = r->start_step;
        t->load = r->load;
        t->wire_bytes = wire_bytes(&setup, t->map->n_shards, t->keeping.mirrors);
        t->task.work = create_work;
        t->task.done = create_done;
        r->config = NULL;
        s->creating = true;
        sfc_sched_keep_shards(s, t->map);
        sfc_store_queue_submit(&s->queue, &t->task);
    } else if (t) {
        create_free(t);
    }
    sfc_run_setup_close(&setup);
    return code;
}

void sfc_sched_on_create_run(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__CreateRunRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__create_run_request__descriptor);
    if (!r)
        return;
    if (create(s, call, r, &err) != SFC_OK)
        sfc_sched_refuse(s, call, &err);
    sfc_message_free(r);
}

static struct sfc_parked *parked_create(struct sfc_scheduler *s)
{
    struct sfc_parked *p = s->parked;
    while (p && p->kind != SFC_PARKED_CREATE)
        p = p->next;
    return p;
}

void sfc_sched_create_shard_gone(struct sfc_scheduler *s, uint64_t shard, const char *address)
{
    struct sfc_error err;
    struct sfc_run_event event = {.type = SFC_EV_STOP};
    struct sfc_parked *p = parked_create(s);
    if (!p || !s->run || sfc_sched_run_shard(s->run, shard) == UINT32_MAX)
        return;
    sfc_fail(&err, SFC_ESTATE,
             "the run could not be opened: shard %" PRIu64
             " at %s does not answer; start it again or see that the scheduler reaches this "
             "address, then create the run again",
             shard, address);
    sfc_sched_refuse(s, p->call, &err);
    sfc_sched_unpark(p);
    sfc_sched_run_event(s->run, &event);
}

void sfc_sched_create_progress(struct sfc_sched_run *run)
{
    struct sfc_scheduler *s = run->scheduler;
    struct sfc_parked *p = parked_create(s);
    if (!p)
        return;
    if (run->fsm.state == SFC_RUN_FAILED || run->fsm.state == SFC_RUN_IDLE) {
        struct sfc_error err;
        sfc_fail(&err, SFC_ESTATE, "the run could not be opened: %s", run->fsm.reason);
        sfc_sched_refuse(s, p->call, &err);
        sfc_sched_unpark(p);
    } else if (run->fsm.state != SFC_RUN_LOADING ||
               sfc_commit_idle(&run->fsm.commit, SFC_DUTY_OPEN)) {
        Shardfc__V1__CreateRunReply m = SHARDFC__V1__CREATE_RUN_REPLY__INIT;
        m.run_id = run->id;
        m.map = run->map;
        m.bytes_per_shard_max = p->bytes_per_shard;
        m.wire_bytes_per_step = p->wire_bytes;
        sfc_call_reply(p->call, &m);
        sfc_sched_unpark(p);
    }
}
