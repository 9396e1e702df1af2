/* Parts of a dense object: blocks that are made together, come and go. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dense_internal.h"

/* Weights, gradients and moments of sane runs are far below, f32 goes to 3.4e38. AdamW squares
 * gradients. */
#define MAX_MAGNITUDE 1e36
#define MAX_SQUARED   1e18
#define MAX_NORMAL    8.0 /* of the initial values: Box-Muller with 24 bits */

/* ---- memory */

static uint64_t base_bytes(const struct sfc_dense_config *c)
{
    return c->slots * sizeof(bool) + c->segment_count * sizeof(struct sfc_dense_segment);
}

static int part_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_memory *out,
                       struct sfc_error *err)
{
    int rc = backend->ops->dense_memory(backend, config, blocks, count, out, err);
    if (!rc)
        out->step_bytes += sfc_extents_bytes(count) +
                           count * (2 * sizeof(uint64_t) + sizeof(struct sfc_dense_place));
    return rc;
}

int sfc_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                     const uint64_t *blocks, size_t count, struct sfc_memory *out,
                     struct sfc_error *err)
{
    struct sfc_memory memory = {0};
    int rc = sfc_dense_check(config, blocks, count, err);
    if (!rc && count)
        rc = part_memory(backend, config, blocks, count, &memory, err);
    if (rc)
        return rc;
    memory.step_bytes += base_bytes(config);
    *out = memory;
    return SFC_OK;
}

/* What the scratch holds at most. */
static size_t scratch_bytes(const struct sfc_dense_part *part)
{
    size_t vector = part->length * sizeof(float);
    size_t packed = (size_t)sfc_dense_packed_bytes(&part->packing);
    size_t sums = part->block_count * sizeof(struct sfc_dense_sum);
    size_t most = vector > packed ? vector : packed;
    return most > sums ? most : sums;
}

static size_t all_scratch_bytes(const struct sfc_dense *dense)
{
    size_t most = 0;
    for (const struct sfc_dense_part *p = dense->parts; p; p = p->next)
        most = scratch_bytes(p) > most ? scratch_bytes(p) : most;
    return most;
}

void sfc_dense_used(const struct sfc_dense *dense, struct sfc_memory *out)
{
    struct sfc_memory sum = {.step_bytes = base_bytes(&dense->config)};
    for (const struct sfc_dense_part *p = dense->parts; p; p = p->next) {
        sum.state_bytes += p->memory.state_bytes;
        sum.step_bytes += p->memory.step_bytes;
        sum.scratch_bytes += p->memory.scratch_bytes;
    }
    if (dense->scratch)
        sum.scratch_bytes += all_scratch_bytes(dense);
    *out = sum;
}

/* ---- one part */

static struct sfc_extent_rule extent_rule(const struct sfc_dense_config *c)
{
    return (struct sfc_extent_rule){
        .optimizer = c->optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .slack = 1 + 0x1p-22,
        .limit = MAX_MAGNITUDE,
        .gradient = c->optimizer == SFC_OPTIMIZER_ADAMW ? MAX_SQUARED : MAX_MAGNITUDE,
    };
}

static double initial_extent(const struct sfc_dense_config *c)
{
    double w = 0;
    for (size_t i = 0; i < c->segment_count; i++)
        w = fmax(w, fabs(c->segments[i].init_mean) + MAX_NORMAL * c->segments[i].init_std);
    return w;
}

static void free_part(struct sfc_dense_part *part)
{
    free(part->blocks);
    free(part->block_step);
    sfc_extents_free(&part->extents);
    part->backend->ops->dense_free(part);
}

static int init_part(const struct sfc_dense *dense, const uint64_t *blocks, size_t count,
                     struct sfc_dense_part *part, struct sfc_error *err)
{
    struct sfc_extent_rule rule = extent_rule(&dense->config);
    part->backend = dense->backend;
    part->config = dense->config;
    part->block_count = count;
    part->blocks = malloc(count * sizeof *part->blocks);
    part->block_step = calloc(count, sizeof *part->block_step);
    if (!part->blocks || !part->block_step)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %zu blocks", count);
    memcpy(part->blocks, blocks, count * sizeof *blocks);
    for (size_t i = 0; i < count; i++)
        part->length += sfc_dense_block_length(&dense->config, blocks[i]);
    part->packing = sfc_dense_packing_of(&dense->config, blocks, count);
    return sfc_extents_init(&part->extents, &rule, count, initial_extent(&dense->config), err);
}

static int new_part(const struct sfc_dense *dense, const uint64_t *blocks, size_t count, bool blank,
                    struct sfc_dense_part **out, struct sfc_error *err)
{
    struct sfc_backend *backend = dense->backend;
    struct sfc_dense_part *part = NULL;
    struct sfc_memory memory = {0};
    int rc = part_memory(backend, &dense->config, blocks, count, &memory, err);
    if (!rc)
        rc = backend->ops->dense_new(backend, &dense->config, blocks, count, blank, &part, err);
    if (rc)
        return rc;
    rc = init_part(dense, blocks, count, part, err);
    if (rc) {
        free_part(part);
        return rc;
    }
    part->memory = memory;
    *out = part;
    return SFC_OK;
}

/* ---- the places of the held blocks */

struct places {
    struct sfc_dense_place *list;
    size_t count;
    bool direct;
    void *scratch;
};

static bool gone(const struct sfc_dense_part *part, size_t index)
{
    return part->block_step[index] == SFC_BLOCK_GONE;
}

static struct sfc_dense_at sum_of(struct sfc_dense_at a, struct sfc_dense_at b)
{
    return (struct sfc_dense_at){a.vector + b.vector, a.halves + b.halves, a.floats + b.floats};
}

static int by_block(const void *a, const void *b)
{
    const struct sfc_dense_place *x = a, *y = b;
    uint64_t p = x->part->blocks[x->index], q = y->part->blocks[y->index];
    return p < q ? -1 : p > q;
}

static size_t count_held(const struct sfc_dense_part *part, bool *all)
{
    size_t n = 0;
    for (size_t i = 0; i < part->block_count; i++)
        n += !gone(part, i);
    *all = n == part->block_count;
    return n;
}

/* Adds the places of a part's blocks behind those that are there. */
static void place_part(const struct sfc_dense_config *config, struct sfc_dense_part *part,
                       struct places *p)
{
    struct sfc_dense_at at = {0};
    for (size_t i = 0; i < part->block_count; i++) {
        struct sfc_dense_packing packing = sfc_dense_packing_of(config, &part->blocks[i], 1);
        struct sfc_dense_at length = {packing.halves + packing.floats, packing.halves,
                                      packing.floats};
        if (!gone(part, i))
            p->list[p->count++] =
                (struct sfc_dense_place){.part = part, .index = i, .in_part = at, .length = length};
        at = sum_of(at, length);
    }
}

/* Of two lists of parts, either may be NULL. */
static int make_places(const struct sfc_dense_config *config, struct sfc_dense_part *const lists[2],
                       struct places *out, struct sfc_error *err)
{
    struct places p = {.direct = true};
    size_t count = 0, parts = 0, scratch = 0;
    for (size_t l = 0; l < 2; l++)
        for (const struct sfc_dense_part *part = lists[l]; part; part = part->next) {
            bool all = false;
            size_t n = count_held(part, &all);
            if (n == 0)
                continue;
            count += n;
            p.direct = p.direct && all && parts == 0;
            parts++;
            scratch = scratch_bytes(part) > scratch ? scratch_bytes(part) : scratch;
        }
    p.list = calloc(count ? count : 1, sizeof *p.list);
    p.scratch = p.direct ? NULL : calloc(1, (scratch + 7) / 8 * 8);
    if (!p.list || (!p.direct && !p.scratch)) {
        free(p.list);
        free(p.scratch);
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %zu blocks", count);
    }
    for (size_t l = 0; l < 2; l++)
        for (struct sfc_dense_part *part = lists[l]; part; part = part->next)
            place_part(config, part, &p);
    qsort(p.list, p.count, sizeof *p.list, by_block);
    struct sfc_dense_at at = {0};
    for (size_t i = 0; i < p.count; i++) {
        p.list[i].whole = at;
        at = sum_of(at, p.list[i].length);
    }
    *out = p;
    return SFC_OK;
}

/* What was pushed and prepared for other blocks is void. */
static void take_places(struct sfc_dense *dense, const struct places *p)
{
    free(dense->places);
    free(dense->scratch);
    dense->places = p->list;
    dense->count = p->count;
    dense->direct = p->direct;
    dense->scratch = p->scratch;
    dense->length = 0;
    dense->packing = (struct sfc_dense_packing){0};
    for (size_t i = 0; i < p->count; i++) {
        dense->length += p->list[i].length.vector;
        dense->packing.halves += p->list[i].length.halves;
        dense->packing.floats += p->list[i].length.floats;
    }
    memset(dense->pushed, 0, dense->config.slots * sizeof *dense->pushed);
    dense->prepared = false;
}

const struct sfc_dense_place *sfc_dense_find(const struct sfc_dense *dense, uint64_t block)
{
    size_t low = 0, high = dense->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct sfc_dense_place *p = &dense->places[middle];
        if (p->part->blocks[p->index] == block)
            return p;
        if (p->part->blocks[p->index] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* ---- life */

static int build(struct sfc_dense *dense, const struct sfc_dense_config *config,
                 const uint64_t *blocks, size_t count, bool blank, struct sfc_error *err)
{
    size_t bytes = config->segment_count * sizeof(struct sfc_dense_segment);
    struct sfc_dense_segment *segments = malloc(bytes);
    struct places places = {0};
    dense->config = *config;
    dense->config.segments = segments;
    dense->pushed = calloc(config->slots, sizeof *dense->pushed);
    if (!segments || !dense->pushed)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %u slots", config->slots);
    memcpy(segments, config->segments, bytes);
    int rc = count ? new_part(dense, blocks, count, blank, &dense->parts, err) : SFC_OK;
    if (!rc)
        rc = make_places(config, (struct sfc_dense_part *const[2]){dense->parts}, &places, err);
    if (!rc)
        take_places(dense, &places);
    return rc;
}

static int make(struct sfc_backend *backend, const struct sfc_dense_config *config,
                const uint64_t *blocks, size_t count, bool blank, struct sfc_dense **out,
                struct sfc_error *err)
{
    int rc = sfc_dense_check(config, blocks, count, err);
    if (rc)
        return rc;
    struct sfc_dense *dense = calloc(1, sizeof *dense);
    if (!dense)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory");
    dense->backend = backend;
    rc = build(dense, config, blocks, count, blank, err);
    if (rc) {
        sfc_dense_free(dense);
        return rc;
    }
    *out = dense;
    return SFC_OK;
}

int sfc_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                  const uint64_t *blocks, size_t count, struct sfc_dense **out,
                  struct sfc_error *err)
{
    return make(backend, config, blocks, count, false, out, err);
}

int sfc_dense_new_blank(struct sfc_backend *backend, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_dense **out,
                        struct sfc_error *err)
{
    return make(backend, config, blocks, count, true, out, err);
}

void sfc_dense_free(struct sfc_dense *dense)
{
    if (!dense)
        return;
    for (struct sfc_dense_part *p = dense->parts, *next; p; p = next) {
        next = p->next;
        free_part(p);
    }
    free((void *)dense->config.segments);
    free(dense->places);
    free(dense->scratch);
    free(dense->pushed);
    free(dense);
}

/* ---- blocks that come and go */

static bool same_segments(const struct sfc_dense_config *a, const struct sfc_dense_config *b)
{
    bool same = a->segment_count == b->segment_count;
    for (size_t i = 0; same && i < a->segment_count; i++) {
        const struct sfc_dense_segment *s = &a->segments[i], *t = &b->segments[i];
        same = s->offset == t->offset && s->length == t->length && s->role == t->role &&
               s->init_mean == t->init_mean && s->init_std == t->init_std;
    }
    return same;
}

static bool same_config(const struct sfc_dense_config *a, const struct sfc_dense_config *b)
{
    return a->seed == b->seed && a->size == b->size && a->block_size == b->block_size &&
           a->slots == b->slots && a->micro_batches == b->micro_batches &&
           a->optimizer == b->optimizer && a->momentum == b->momentum && a->beta1 == b->beta1 &&
           a->beta2 == b->beta2 && a->epsilon == b->epsilon && a->weight_decay == b->weight_decay &&
           a->statistic_momentum == b->statistic_momentum && a->sum_dtype == b->sum_dtype &&
           same_segments(a, b);
}

static int held_already(uint64_t block, struct sfc_error *err)
{
    return sfc_fail(err, SFC_EINVAL, "dense: block %llu is held here already",
                    (unsigned long long)block);
}

static int check_attach(const struct sfc_dense *dense, const struct sfc_dense *other,
                        struct sfc_error *err)
{
    if (dense == other || dense->backend != other->backend ||
        !same_config(&dense->config, &other->config))
        return sfc_fail(err, SFC_EINVAL,
                        "dense: blocks of another backend or configuration can't be attached");
    for (size_t i = 0; i < other->count; i++) {
        uint64_t block = other->places[i].part->blocks[other->places[i].index];
        if (sfc_dense_find(dense, block))
            return held_already(block, err);
    }
    return SFC_OK;
}

int sfc_dense_attach(struct sfc_dense *dense, struct sfc_dense *other, struct sfc_error *err)
{
    struct places places = {0};
    int rc = check_attach(dense, other, err);
    if (!rc)
        rc = make_places(&dense->config,
                         (struct sfc_dense_part *const[2]){dense->parts, other->parts}, &places,
                         err);
    if (rc)
        return rc;
    struct sfc_dense_part **end = &dense->parts;
    while (*end)
        end = &(*end)->next;
    *end = other->parts;
    for (struct sfc_dense_part *p = other->parts; p; p = p->next)
        p->config.segments = dense->config.segments;
    other->parts = NULL;
    sfc_dense_free(other);
    take_places(dense, &places);
    return SFC_OK;
}

int sfc_dense_add(struct sfc_dense *dense, const uint64_t *blocks, size_t count, bool blank,
                  struct sfc_error *err)
{
    struct sfc_dense *other = NULL;
    for (size_t i = 0; i < count; i++)
        if (sfc_dense_find(dense, blocks[i]))
            return held_already(blocks[i], err);
    int rc = make(dense->backend, &dense->config, blocks, count, blank, &other, err);
    if (rc)
        return rc;
    rc = sfc_dense_attach(dense, other, err);
    if (rc)
        sfc_dense_free(other);
    return rc;
}

static void free_empty_parts(struct sfc_dense *dense)
{
    for (struct sfc_dense_part **at = &dense->parts, *p; (p = *at);) {
        bool all = false;
        if (count_held(p, &all)) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        free_part(p);
    }
}

/* The steps that the blocks were of, or that they are gone. */
static void swap_steps(const struct sfc_dense *dense, const uint64_t *blocks, size_t count,
                       uint64_t *steps)
{
    for (size_t i = 0; i < count; i++) {
        const struct sfc_dense_place *p = sfc_dense_find(dense, blocks[i]);
        uint64_t step = p->part->block_step[p->index];
        p->part->block_step[p->index] = steps[i];
        steps[i] = step;
    }
}

int sfc_dense_remove(struct sfc_dense *dense, const uint64_t *blocks, size_t count,
                     struct sfc_error *err)
{
    struct places places = {0};
    int rc = sfc_blocks_check("dense", blocks, count, sfc_dense_block_count(&dense->config), err);
    for (size_t i = 0; !rc && i < count; i++)
        if (!sfc_dense_find(dense, blocks[i]))
            rc = sfc_fail(err, SFC_ENOTFOUND, "dense: block %llu is not held here",
                          (unsigned long long)blocks[i]);
    uint64_t *steps = rc ? NULL : malloc((count + 1) * sizeof *steps);
    if (!rc && !steps)
        rc = sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %zu blocks", count);
    if (rc)
        return rc;
    for (size_t i = 0; i < count; i++)
        steps[i] = SFC_BLOCK_GONE;
    swap_steps(dense, blocks, count, steps);
    rc = make_places(&dense->config, (struct sfc_dense_part *const[2]){dense->parts}, &places, err);
    if (rc) {
        swap_steps(dense, blocks, count, steps);
    } else {
        free_empty_parts(dense);
        take_places(dense, &places);
    }
    free(steps);
    return rc;
}
