#include "server/shard/run_blocks.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/shard/shard_internal.h"

/* What this program grows by beside the numbers of a run, for the memory plan: kernels that oneDNN
 * generates, small messages. */
#define GROWTH_BYTES (5u << 20)

/* ---- lists */

static int own_blocks(const Shardfc__V1__BlockMap *map, const uint32_t *owners, size_t count,
                      uint32_t self, const char *what, uint64_t **out, size_t *out_count,
                      struct sfc_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (owners[i] >= map->n_shards)
            return sfc_fail(err, SFC_EINVAL, "map.%s[%zu] is %u, but the map has %zu shards", what,
                            i, owners[i], map->n_shards);
        if (!map->shards[owners[i]]->address[0])
            return sfc_fail(err, SFC_EINVAL, "map.%s[%zu] is %u, where no shard is", what, i,
                            owners[i]);
        n += owners[i] == self;
    }
    uint64_t *blocks = malloc((n ? n : 1) * sizeof *blocks);
    if (!blocks)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", n);
    *out = blocks;
    *out_count = n;
    for (size_t i = 0, k = 0; i < count; i++)
        if (owners[i] == self)
            blocks[k++] = i;
    return SFC_OK;
}

int sfc_shard_blocks_of(const struct sfc_run_setup *setup, const Shardfc__V1__BlockMap *map,
                        uint32_t self, struct sfc_shard_blocks *out, struct sfc_error *err)
{
    struct sfc_shard_blocks own = {0};
    if (self >= map->n_shards || map->n_shards > SFC_CORE_MAX_SHARDS)
        return sfc_fail(err, SFC_EINVAL, "self is %u, but the map has %zu shards", self,
                        map->n_shards);
    if (map->n_class_owner != setup->class_blocks || map->n_dense_owner != setup->dense_blocks)
        return sfc_fail(err, SFC_EINVAL,
                        "the map has %zu class and %zu dense blocks, the configuration %" PRIu64
                        " and %" PRIu64,
                        map->n_class_owner, map->n_dense_owner, setup->class_blocks,
                        setup->dense_blocks);
    int code = own_blocks(map, map->class_owner, map->n_class_owner, self, "class_owner",
                          &own.class_blocks, &own.class_count, err);
    if (code == SFC_OK)
        code = own_blocks(map, map->dense_owner, map->n_dense_owner, self, "dense_owner",
                          &own.dense_blocks, &own.dense_count, err);
    if (code == SFC_OK)
        *out = own;
    else
        sfc_shard_blocks_free(&own);
    return code;
}

void sfc_shard_blocks_free(struct sfc_shard_blocks *blocks)
{
    free(blocks->class_blocks);
    free(blocks->dense_blocks);
    *blocks = (struct sfc_shard_blocks){0};
}

/* ---- mirrored blocks */

static bool mirrors(const Shardfc__V1__ShardAddress *place, uint32_t self)
{
    for (size_t i = 0; i < place->n_mirrors; i++)
        if (place->mirrors[i] == self)
            return true;
    return false;
}

static int check_mirrors(const Shardfc__V1__BlockMap *map, struct sfc_error *err)
{
    for (size_t i = 0; i < map->n_shards; i++) {
        const Shardfc__V1__ShardAddress *place = map->shards[i];
        for (size_t k = 0; k < place->n_mirrors; k++)
            if (place->mirrors[k] >= map->n_shards || place->mirrors[k] == i)
                return sfc_fail(err, SFC_EINVAL,
                                "map.shards[%zu].mirrors[%zu] is %u: no other place of %zu", i, k,
                                place->mirrors[k], map->n_shards);
    }
    return SFC_OK;
}

/* Whose blocks: is_mirrored[i]: those of place i. */
static int take_mirrored_places(const Shardfc__V1__BlockMap *map, uint32_t self,
                                struct sfc_shard_mirrored *m, bool *is_mirrored,
                                struct sfc_error *err)
{
    m->places = calloc(map->n_shards, sizeof *m->places);
    if (!m->places)
        return sfc_fail(err, SFC_ENOMEM, "list of mirrored shards");
    for (uint32_t i = 0; i < map->n_shards; i++) {
        is_mirrored[i] = map->shards[i]->address[0] && mirrors(map->shards[i], self);
        if (is_mirrored[i])
            m->places[m->place_count++] = i;
    }
    return SFC_OK;
}

static int mirrored_blocks(const uint32_t *owners, size_t count, const bool *is_mirrored,
                           uint64_t **out, size_t *out_count, uint32_t *out_owners,
                           struct sfc_error *err)
{
    size_t n = 0;
    uint64_t *blocks = malloc((count + 1) * sizeof *blocks);
    if (!blocks)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu mirrored blocks", count);
    for (size_t i = 0; i < count; i++) {
        if (!is_mirrored[owners[i]])
            continue;
        out_owners[n] = owners[i];
        blocks[n++] = i;
    }
    *out = blocks;
    *out_count = n;
    return SFC_OK;
}

static int take_mirrored_blocks(const Shardfc__V1__BlockMap *map, const bool *is_mirrored,
                                struct sfc_shard_mirrored *m, struct sfc_error *err)
{
    m->owners = calloc(map->n_class_owner + map->n_dense_owner + 1, sizeof *m->owners);
    if (!m->owners)
        return sfc_fail(err, SFC_ENOMEM, "list of mirrored blocks");
    int code = mirrored_blocks(map->class_owner, map->n_class_owner, is_mirrored,
                               &m->blocks.class_blocks, &m->blocks.class_count, m->owners, err);
    return code ? code
                : mirrored_blocks(map->dense_owner, map->n_dense_owner, is_mirrored,
                                  &m->blocks.dense_blocks, &m->blocks.dense_count,
                                  m->owners + m->blocks.class_count, err);
}

static int take_pushed(const struct sfc_shard_run *run, const struct sfc_shard_blocks *own,
                       struct sfc_shard_mirrored *m, struct sfc_error *err)
{
    m->pushed =
        sfc_dense_sets_join((struct sfc_dense_set){own->dense_blocks, own->dense_count},
                            (struct sfc_dense_set){m->blocks.dense_blocks, m->blocks.dense_count});
    if (!m->pushed.blocks)
        return sfc_fail(err, SFC_ENOMEM, "list of dense blocks");
    m->pushed_floats = sfc_run_dense_floats(&run->setup, m->pushed.blocks, m->pushed.count);
    return SFC_OK;
}

int sfc_shard_mirrored_of(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                          uint32_t self, const struct sfc_shard_blocks *own,
                          struct sfc_shard_mirrored *out, struct sfc_error *err)
{
    struct sfc_shard_mirrored m = {.gives = map->shards[self]->n_mirrors > 0};
    bool is_mirrored[SFC_CORE_MAX_SHARDS] = {false};
    int code = check_mirrors(map, err);
    if (code == SFC_OK)
        code = take_mirrored_places(map, self, &m, is_mirrored, err);
    if (code == SFC_OK)
        code = take_mirrored_blocks(map, is_mirrored, &m, err);
    if (code == SFC_OK)
        code = take_pushed(run, own, &m, err);
    if (code == SFC_OK)
        *out = m;
    else
        sfc_shard_mirrored_free(&m);
    return code;
}

void sfc_shard_mirrored_free(struct sfc_shard_mirrored *mirrored)
{
    sfc_shard_blocks_free(&mirrored->blocks);
    free(mirrored->places);
    free(mirrored->owners);
    free((void *)(uintptr_t)mirrored->pushed.blocks);
    *mirrored = (struct sfc_shard_mirrored){0};
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

bool sfc_shard_owns(const struct sfc_shard_run *run, const struct sfc_snapshot_block *block)
{
    bool dense = block->kind == SFC_SNAPSHOT_DENSE;
    const uint64_t *list = dense ? run->dense_blocks : run->class_blocks;
    size_t count = dense ? run->dense_count : run->class_count;
    return count > 0 && bsearch(&block->block, list, count, sizeof *list, compare_ids);
}

/* ---- places */

static void free_places(char **places, size_t count)
{
    for (size_t i = 0; places && i < count; i++)
        free(places[i]);
    free(places);
}

int sfc_shard_take_places(struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                          struct sfc_error *err)
{
    char **places = calloc(map->n_shards, sizeof *places);
    bool ok = places;
    for (size_t i = 0; ok && i < map->n_shards; i++)
        ok = (places[i] = strdup(map->shards[i]->address)) != NULL;
    if (!ok) {
        free_places(places, map->n_shards);
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu shards", map->n_shards);
    }
    sfc_shard_places_free(run);
    run->places = places;
    run->place_count = (uint32_t)map->n_shards;
    return SFC_OK;
}

void sfc_shard_places_free(struct sfc_shard_run *run)
{
    free_places(run->places, run->place_count);
    run->places = NULL;
    run->place_count = 0;
}

/* ---- memory */

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void tell_memory(const struct sfc_shard_run *run, uint64_t disk)
{
    const struct sfc_run_memory *m = &run->memory;
    uint64_t program = sfc_process_memory() + GROWTH_BYTES + run->shard->packing_bytes;
    sfc_info_log(
        "run %" PRIu64 ": %zu class blocks (%" PRIu64 " classes) and %zu dense blocks need "
        "%.1f MiB: head %.1f state + %.1f step + %.1f scratch, dense %.1f, answers %.1f, "
        "messages %.1f, durability %.1f, mirror %.1f; limit %.1f MiB",
        run->id, run->class_count,
        sfc_run_class_rows(&run->setup, run->class_blocks, run->class_count), run->dense_count,
        mib(m->total), mib(m->head.state_bytes), mib(m->head.step_bytes),
        mib(m->head.scratch_bytes),
        mib(m->dense.state_bytes + m->dense.step_bytes + m->dense.scratch_bytes), mib(m->answers),
        mib(m->messages), mib(m->durability), mib(m->mirror), mib(run->shard->memory_limit));
    uint64_t requests =
        m->messages + run->setup.micro_batches *
                          sfc_run_slice_bytes(&run->setup, run->dense_blocks, run->dense_count);
    sfc_rpc_server_expect(run->shard->server, requests);
    sfc_info_log("run %" PRIu64 ": memory plan: %.1f MiB: the program %.1f and the run %.1f; on "
                 "disk %.1f; requests that no run needs may take %.1f MiB more",
                 run->id, mib(program + run->resident), mib(program), mib(run->resident), mib(disk),
                 mib(sfc_rpc_message_memory(&run->shard->options->peers, requests)));
    if (run->on_device)
        sfc_info_log("run %" PRIu64 ": device memory plan: %.1f MiB of %.1f", run->id,
                     mib(run->on_device), mib(run->shard->device_limit));
}

static uint64_t sum_of(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

static int check_limit(const struct sfc_shard_run *run, uint64_t need, uint64_t limit,
                       const char *what, const char *option, struct sfc_error *err)
{
    if (need <= limit)
        return SFC_OK;
    return sfc_fail(err, SFC_ENOMEM,
                    "shard %s needs %.1f MiB%s for its blocks of run %" PRIu64
                    " but may use %.1f MiB; add shards, %s, or make the run smaller",
                    run->shard->advertised, mib(need), what, run->id, mib(limit), option);
}

/* Of these blocks: how much is in memory (the rest is on disk or on a device), and how much on a
 * device. */
static int plan(const struct sfc_shard_run *run, const struct sfc_run_setup *setup,
                const struct sfc_shard_blocks *b, const struct sfc_shard_mirrored *other,
                struct sfc_run_memory *m, uint64_t *resident, uint64_t *on_device,
                struct sfc_error *err)
{
    const struct sfc_backend *backend = sfc_compute_backend(run->shard->compute);
    int code = sfc_run_setup_memory(setup, backend, b->class_blocks, b->class_count,
                                    b->dense_blocks, b->dense_count, m, err);
    if (code != SFC_OK)
        return code;
    const struct sfc_run_mirror mirror = {
        .dense_blocks = b->dense_blocks,
        .dense_count = b->dense_count,
        .mirrored = other->blocks.dense_blocks,
        .mirrored_count = other->blocks.dense_count,
        .gives = other->gives,
        .takes = other->blocks.class_count + other->blocks.dense_count > 0};
    struct sfc_run_mirror_memory mirrored;
    code = sfc_run_mirror_memory(&run->setup, backend, &mirror, &mirrored, err);
    if (code != SFC_OK)
        return code;
    m->mirror = sum_of(&mirrored.dense) + mirrored.host;
    m->total += m->mirror;
    bool writes = run->shard->options->durable != SFC_DURABLE_OFF;
    uint64_t disk = run->shard->disk_limit ? m->head.state_bytes : 0;
    *on_device = run->shard->device_limit
                     ? sum_of(&m->head) + sum_of(&m->dense) + sum_of(&mirrored.dense)
                     : 0;
    *resident = m->total - disk - *on_device - (writes ? 0 : m->durability);
    return SFC_OK;
}

int sfc_shard_count_memory(struct sfc_shard_run *run, struct sfc_error *err)
{
    const struct sfc_shard_blocks own = {run->class_blocks, run->dense_blocks, run->class_count,
                                         run->dense_count};
    return plan(run, &run->setup, &own, &run->mirrored, &run->memory, &run->resident,
                &run->on_device, err);
}

static int check_limits(const struct sfc_shard_run *run, uint64_t resident, uint64_t on_device,
                        struct sfc_error *err)
{
    if (!on_device)
        return check_limit(run, resident, run->shard->memory_limit, "", "raise --memory", err);
    int code = check_limit(run, on_device, run->shard->device_limit, " of device memory",
                           "raise --memory, which is of the device", err);
    return code ? code
                : check_limit(run, resident, run->shard->memory_limit,
                              " of the machine's memory beside the device's", "free some of it",
                              err);
}

int sfc_shard_check_memory(struct sfc_shard_run *run, struct sfc_error *err)
{
    int code = sfc_shard_count_memory(run, err);
    if (code != SFC_OK)
        return code;
    tell_memory(run, run->shard->disk_limit ? run->memory.head.state_bytes : 0);
    return check_limits(run, run->resident, run->on_device, err);
}

static int merge(const uint64_t *a, size_t a_count, const uint64_t *b, size_t b_count,
                 uint64_t **out, size_t *count)
{
    uint64_t *list = malloc((a_count + b_count + 1) * sizeof *list);
    if (!list)
        return SFC_ENOMEM;
    if (a_count)
        memcpy(list, a, a_count * sizeof *list);
    if (b_count)
        memcpy(list + a_count, b, b_count * sizeof *list);
    qsort(list, a_count + b_count, sizeof *list, compare_ids);
    size_t n = 0; /* one that gets more rows is in both */
    for (size_t i = 0; i < a_count + b_count; i++)
        if (n == 0 || list[n - 1] != list[i])
            list[n++] = list[i];
    *out = list;
    *count = n;
    return SFC_OK;
}

/* Until they are attached, blocks that come to a device have what a step needs for themselves. */
static int count_staged(const struct sfc_shard_run *run, const struct sfc_run_setup *setup,
                        const uint64_t *class_blocks, size_t class_count,
                        const uint64_t *dense_blocks, size_t dense_count, uint64_t *on_device,
                        struct sfc_error *err)
{
    struct sfc_run_memory m;
    if (!run->shard->device_limit)
        return SFC_OK;
    int code = sfc_run_setup_memory(setup, sfc_compute_backend(run->shard->compute), class_blocks,
                                    class_count, dense_blocks, dense_count, &m, err);
    if (code == SFC_OK)
        *on_device += sum_of(&m.head) - m.head.state_bytes + sum_of(&m.dense) - m.dense.state_bytes;
    return code;
}

/* With them the log has to hold enough steps. */
static int check_logged(const struct sfc_shard_run *run, const struct sfc_shard_blocks *own,
                        struct sfc_error *err)
{
    struct sfc_dense_set dense = sfc_dense_sets_join(
        (struct sfc_dense_set){own->dense_blocks, own->dense_count}, run->mirrored.pushed);
    int code = dense.blocks ? sfc_storage_check_dense(&run->durability.storage, dense, err)
                            : sfc_fail(err, SFC_ENOMEM, "no memory for a list of blocks");
    free((void *)(uintptr_t)dense.blocks);
    return code;
}

int sfc_shard_check_more(const struct sfc_shard_run *run, const struct sfc_run_setup *setup,
                         const uint64_t *class_blocks, size_t class_count,
                         const uint64_t *dense_blocks, size_t dense_count, uint64_t more,
                         uint64_t *takes, struct sfc_error *err)
{
    struct sfc_shard_blocks all = {0};
    struct sfc_run_memory memory;
    uint64_t resident = 0, on_device = 0;
    int code = merge(run->class_blocks, run->class_count, class_blocks, class_count,
                     &all.class_blocks, &all.class_count);
    if (code == SFC_OK)
        code = merge(run->dense_blocks, run->dense_count, dense_blocks, dense_count,
                     &all.dense_blocks, &all.dense_count);
    if (code != SFC_OK)
        sfc_fail(err, code, "no memory for a list of blocks");
    if (code == SFC_OK)
        code = plan(run, setup, &all, &run->mirrored, &memory, &resident, &on_device, err);
    if (code == SFC_OK)
        code = count_staged(run, setup, class_blocks, class_count, dense_blocks, dense_count,
                            &on_device, err);
    if (code == SFC_OK)
        code = check_limits(run, resident + more, on_device, err);
    uint64_t now = run->resident + run->on_device, then = resident + more + on_device;
    *takes = then > now ? then - now : 0;
    if (code == SFC_OK && dense_count > 0 && run->durability.on)
        code = check_logged(run, &all, err);
    sfc_shard_blocks_free(&all);
    return code;
}

int sfc_shard_check_map(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                        const struct sfc_shard_blocks *own, struct sfc_error *err)
{
    struct sfc_shard_mirrored mirrored = {0};
    struct sfc_run_memory memory;
    uint64_t resident = 0, on_device = 0;
    int code = sfc_shard_mirrored_of(run, map, run->self, own, &mirrored, err);
    if (code == SFC_OK)
        code = plan(run, &run->setup, own, &mirrored, &memory, &resident, &on_device, err);
    if (code == SFC_OK)
        code = check_limits(run, resident, on_device, err);
    if (code == SFC_OK)
        code = sfc_storage_check_dense(&run->durability.storage, mirrored.pushed, err);
    sfc_shard_mirrored_free(&mirrored);
    return code;
}

/* ---- buffers */

int sfc_run_buffers_new(const struct sfc_shard_run *run, const struct sfc_shard_blocks *blocks,
                        struct sfc_dense_set pushed, struct sfc_run_buffers *out,
                        struct sfc_error *err)
{
    struct sfc_run_buffers b = {0};
    size_t count = pushed.count ? pushed.count : 1;
    uint64_t floats = sfc_run_dense_floats(&run->setup, blocks->dense_blocks, blocks->dense_count);
    b.sums = calloc(count, sizeof *b.sums);
    b.own_sums = calloc(count, sizeof *b.own_sums);
    b.dense_digests = calloc(count, sizeof *b.dense_digests);
    if (pushed.count > 0)
        b.dense_sums = calloc(1, sfc_run_packed_bytes(&run->setup, pushed.blocks, pushed.count));
    bool ok = b.sums && b.own_sums && b.dense_digests && (pushed.count == 0 || b.dense_sums);
    for (unsigned i = 0; ok && i < SFC_RUN_PULL_COPIES; i++)
        ok = (b.pulls[i] = sfc_shared_new(floats * sizeof(float))) != NULL;
    if (!ok) {
        sfc_run_buffers_free(&b);
        return sfc_fail(err, SFC_EUNAVAILABLE, "no memory for %" PRIu64 " parameters", floats);
    }
    *out = b;
    return SFC_OK;
}

void sfc_run_buffers_free(struct sfc_run_buffers *b)
{
    for (unsigned i = 0; i < SFC_RUN_PULL_COPIES; i++)
        sfc_shared_drop(b->pulls[i]);
    free(b->sums);
    free(b->own_sums);
    free(b->dense_digests);
    free(b->dense_sums);
    *b = (struct sfc_run_buffers){0};
}

void sfc_run_buffers_swap(struct sfc_shard_run *run, struct sfc_run_buffers *buffers)
{
    sfc_run_buffers_free(&run->dense);
    run->dense = *buffers;
    *buffers = (struct sfc_run_buffers){0};
}
