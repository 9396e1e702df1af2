/* What a pin takes beside the run: planned, allocated and freed on the checkpoint thread; with the
 * run, on the snapshot thread. */
#include <stdlib.h>

#include "server/shard/block_copy.h"
#include "server/shard/pinned_parts.h"

#define GROUP_BYTES (UINT64_C(256) << 20)

static uint64_t block_floats(const struct sfc_snapshot_shape *shape)
{
    uint64_t floats = 0;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++)
        floats += sfc_snapshot_part_bytes(shape, (enum sfc_snapshot_part)i) / sizeof(float);
    return floats;
}

void sfc_pinned_shape(struct sfc_shard_run *run, size_t index, struct sfc_snapshot_shape *out)
{
    sfc_block_shape(&run->setup, sfc_pinned_block(run, index), sfc_pinned_of(run)->step, out);
    out->dtype = SFC_SNAPSHOT_F32; /* what ReadBlock gives */
}

static uint64_t largest_floats(struct sfc_shard_run *run)
{
    uint64_t largest = 1;
    for (size_t i = 0; i < sfc_pinned_storage(run)->pinned_count; i++) {
        struct sfc_snapshot_shape shape;
        if (sfc_pinned_block(run, i)->kind == SFC_SNAPSHOT_HISTORY)
            continue;
        sfc_pinned_shape(run, i, &shape);
        uint64_t floats = block_floats(&shape);
        largest = floats > largest ? floats : largest;
    }
    return largest;
}

struct sfc_head_config sfc_pinned_head_config(const struct sfc_shard_run *run)
{
    struct sfc_head_config c = run->setup.head;
    c.slots = run->setup.micro_batches;
    return c;
}

/* The steps' sums come from the log, so nothing is kept per micro-batch. */
struct sfc_dense_config sfc_pinned_dense_config(const struct sfc_shard_run *run)
{
    struct sfc_dense_config c = run->setup.dense;
    c.slots = c.micro_batches = 1;
    return c;
}

/* Most blocks of one kind that take up to `room` bytes; 0: not even one. */
static size_t blocks_within(uint64_t one, uint64_t two, uint64_t room, size_t count)
{
    uint64_t more = two > one ? two - one : 1;
    if (one > room)
        return 0;
    uint64_t n = 1 + (room - one) / more;
    return n < count ? (size_t)n : count;
}

static uint64_t sum_of(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

static int class_room(struct sfc_shard_run *run, uint64_t room, uint64_t *needed,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_head_config c = sfc_pinned_head_config(run);
    struct sfc_memory one, two;
    size_t n = p->own.class_count < 2 ? p->own.class_count : 2;
    int code = sfc_head_memory(p->backend, &c, p->own.class_blocks, n < 1 ? n : 1, &one, err);
    if (code == SFC_OK)
        code = sfc_head_memory(p->backend, &c, p->own.class_blocks, n, &two, err);
    if (code != SFC_OK)
        return code;
    p->class_room = blocks_within(sum_of(&one), sum_of(&two), room, p->own.class_count);
    *needed = sum_of(&one);
    return SFC_OK;
}

/* A dense block's share of the packed sums counts too. */
static int dense_room(struct sfc_shard_run *run, uint64_t room, uint64_t *needed,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_dense_config c = sfc_pinned_dense_config(run);
    struct sfc_memory one, two;
    uint64_t sums = UINT64_C(4) * c.block_size + 8;
    size_t n = p->own.dense_count < 2 ? p->own.dense_count : 2;
    int code = sfc_dense_memory(p->backend, &c, p->own.dense_blocks, 1, &one, err);
    if (code == SFC_OK)
        code = sfc_dense_memory(p->backend, &c, p->own.dense_blocks, n, &two, err);
    if (code != SFC_OK)
        return code;
    p->dense_room =
        blocks_within(sum_of(&one) + sums, sum_of(&two) + 2 * sums, room, p->own.dense_count);
    *needed = sum_of(&one) + sums;
    return SFC_OK;
}

/* The block as it is read, the snapshot that one comes from, a step, the rates. */
static uint64_t fixed_bytes(struct sfc_shard_run *run)
{
    return 2 * largest_floats(run) * sizeof(float) + sfc_pinned_of(run)->body_bytes +
           run->setup.head.batch * UINT64_C(40) +
           (sfc_pinned_keeps_rates(run) ? (sfc_pinned_of(run)->step + 1) * sizeof(float) : 0);
}

static int short_of_memory(uint64_t of_run, uint64_t need, uint64_t limit, const char *which,
                           struct sfc_error *err)
{
    return sfc_fail(err, SFC_ENOMEM,
                    "a checkpoint beside the training needs %.1f MiB; the run has %.1f of the "
                    "%.1f MiB %s%sthat this shard may use (--memory)",
                    (double)(need - of_run) / (1 << 20), (double)of_run / (1 << 20),
                    (double)limit / (1 << 20), which, *which ? " " : "");
}

int sfc_pinned_plan_memory(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    bool device = run->shard->device_limit > 0;
    uint64_t limit = run->shard->memory_limit, taken = p->resident + fixed_bytes(run);
    if (device && taken > limit)
        return short_of_memory(p->resident, taken, limit, "of the machine's memory", err);
    if (device) { /* the blocks of a group go to the device */
        limit = run->shard->device_limit;
        taken = p->on_device;
    }
    uint64_t room = limit > taken ? limit - taken : 0, least = 0, least_dense = 0;
    room = room < GROUP_BYTES ? room : GROUP_BYTES;
    int code = class_room(run, room, &least, err);
    if (code == SFC_OK && p->own.dense_count)
        code = dense_room(run, room, &least_dense, err);
    least = least > least_dense ? least : least_dense;
    if (code == SFC_OK && taken + least > limit)
        code = short_of_memory(device ? p->on_device : p->resident, taken + least, limit,
                               device ? "of the device's memory" : "", err);
    /* one block may be larger than a group should be */
    p->class_room += p->class_room == 0;
    p->dense_room += p->dense_room == 0;
    return code;
}

int sfc_pinned_allocate(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_storage *s = sfc_pinned_storage(run);
    size_t sums = p->dense_room * (size_t)run->setup.dense.block_size * sizeof(float) + 64;
    p->values = malloc(largest_floats(run) * sizeof *p->values);
    p->sums = aligned_alloc(64, (sums + 63) / 64 * 64);
    p->stamps = calloc(p->class_room + p->dense_room + 1, sizeof *p->stamps);
    if (sfc_pinned_keeps_rates(run))
        p->rates = malloc((p->step + 1) * sizeof *p->rates);
    if (!p->values || !p->sums || !p->stamps || (sfc_pinned_keeps_rates(run) && !p->rates))
        return sfc_fail(err, SFC_ENOMEM, "no memory for a block");
    int code = sfc_run_folder_open(s->state, s->run_id, false, &p->folder, err);
    return code == SFC_OK ? sfc_replay_init(&p->replay, &run->setup.head, err) : code;
}

static void free_buffers(struct sfc_pinned *p)
{
    sfc_replay_close(&p->replay);
    sfc_folder_close(p->folder);
    p->folder = NULL;
    free(p->sums);
    free(p->stamps);
    p->stamps = NULL;
    free(p->values);
    free(p->rates);
    p->sums = NULL;
    p->values = p->rates = NULL;
}

void sfc_pinned_free_group(struct sfc_pinned *p)
{
    sfc_head_free(p->head);
    sfc_dense_free(p->dense);
    p->head = NULL;
    p->dense = NULL;
}

void sfc_pinned_release(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    sfc_pinned_free_group(p);
    sfc_backend_close(p->backend);
    p->backend = NULL;
    free_buffers(p);
    sfc_shard_blocks_free(&p->own);
}
