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

int sfc_shard_blocks_of(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                        uint32_t self, struct sfc_shard_blocks *out, struct sfc_error *err)
{
    struct sfc_shard_blocks own = {0};
    if (self >= map->n_shards || map->n_shards > SFC_CORE_MAX_SHARDS)
        return sfc_fail(err, SFC_EINVAL, "self is %u, but the map has %zu shards", self,
                        map->n_shards);
    if (map->n_class_owner != run->setup.class_blocks ||
        map->n_dense_owner != run->setup.dense_blocks)
        return sfc_fail(err, SFC_EINVAL,
                        "the map has %zu class and %zu dense blocks, the configuration %" PRIu64
                        " and %" PRIu64,
                        map->n_class_owner, map->n_dense_owner, run->setup.class_blocks,
                        run->setup.dense_blocks);
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
        "messages %.1f, durability %.1f; limit %.1f MiB",
        run->id, run->class_count,
        sfc_run_class_rows(&run->setup, run->class_blocks, run->class_count), run->dense_count,
        mib(m->total), mib(m->head.state_bytes), mib(m->head.step_bytes),
        mib(m->head.scratch_bytes),
        mib(m->dense.state_bytes + m->dense.step_bytes + m->dense.scratch_bytes), mib(m->answers),
        mib(m->messages), mib(m->durability), mib(run->shard->memory_limit));
    sfc_info_log("run %" PRIu64 ": memory plan: %.1f MiB: the program %.1f and the run %.1f; on "
                 "disk %.1f",
                 run->id, mib(program + run->resident), mib(program), mib(run->resident),
                 mib(disk));
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
static int plan(const struct sfc_shard_run *run, const struct sfc_shard_blocks *b,
                struct sfc_run_memory *m, uint64_t *resident, uint64_t *on_device,
                struct sfc_error *err)
{
    const struct sfc_backend *backend = sfc_compute_backend(run->shard->compute);
    int code = sfc_run_setup_memory(&run->setup, backend, b->class_blocks, b->class_count,
                                    b->dense_blocks, b->dense_count, m, err);
    if (code != SFC_OK)
        return code;
    bool writes = run->shard->options->durable != SFC_DURABLE_OFF;
    uint64_t disk = run->shard->disk_limit ? m->head.state_bytes : 0;
    *on_device = run->shard->device_limit ? sum_of(&m->head) + sum_of(&m->dense) : 0;
    *resident = m->total - disk - *on_device - (writes ? 0 : m->durability);
    return SFC_OK;
}

int sfc_shard_count_memory(struct sfc_shard_run *run, struct sfc_error *err)
{
    const struct sfc_shard_blocks own = {run->class_blocks, run->dense_blocks, run->class_count,
                                         run->dense_count};
    return plan(run, &own, &run->memory, &run->resident, &run->on_device, err);
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
    *out = list;
    *count = a_count + b_count;
    return SFC_OK;
}

int sfc_shard_check_more(const struct sfc_shard_run *run, const uint64_t *class_blocks,
                         size_t class_count, const uint64_t *dense_blocks, size_t dense_count,
                         uint64_t more, struct sfc_error *err)
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
        code = plan(run, &all, &memory, &resident, &on_device, err);
    if (code == SFC_OK)
        code = check_limits(run, resident + more, on_device, err);
    if (code == SFC_OK && dense_count > 0 && run->durability.on)
        code =
            sfc_storage_check_dense(&run->durability.storage,
                                    (struct sfc_dense_set){all.dense_blocks, all.dense_count}, err);
    sfc_shard_blocks_free(&all);
    return code;
}

/* ---- buffers */

int sfc_run_buffers_new(const struct sfc_shard_run *run, const struct sfc_shard_blocks *blocks,
                        struct sfc_run_buffers *out, struct sfc_error *err)
{
    struct sfc_run_buffers b = {0};
    size_t count = blocks->dense_count ? blocks->dense_count : 1;
    uint64_t floats = sfc_run_dense_floats(&run->setup, blocks->dense_blocks, blocks->dense_count);
    b.sums = calloc(count, sizeof *b.sums);
    b.own_sums = calloc(count, sizeof *b.own_sums);
    b.dense_digests = calloc(count, sizeof *b.dense_digests);
    if (floats > 0)
        b.dense_sums =
            calloc(1, sfc_run_packed_bytes(&run->setup, blocks->dense_blocks, blocks->dense_count));
    bool ok = b.sums && b.own_sums && b.dense_digests && (floats == 0 || b.dense_sums);
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
