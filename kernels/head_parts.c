/* Parts of a head: blocks that are made together, come and go. */
#include <stdlib.h>
#include <string.h>

#include "kernels/head_internal.h"

/* A row of 8192 such weights still has a norm whose square f32 holds. */
#define MAX_MAGNITUDE 1e17
#define MAX_NORMAL    8.0 /* of the initial values: Box-Muller with 24 bits */

/* ---- memory */

static uint64_t base_bytes(const struct sfc_head_config *c)
{
    return (sfc_head_is_dense(c) ? c->steps * sizeof(float) : 0) +
           (uint64_t)c->batch * sizeof(uint64_t) +
           (uint64_t)c->slots * (sizeof(enum sfc_slot_state) + sizeof(uint32_t)) +
           (uint64_t)c->slots * c->micro_batch * sizeof(double);
}

static int part_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_memory *out,
                       struct sfc_error *err)
{
    int rc = backend->ops->head_memory(backend, config, blocks, count, out, err);
    if (!rc)
        out->step_bytes += sfc_extents_bytes(count) + (uint64_t)count * 2 * sizeof(uint64_t);
    return rc;
}

int sfc_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                    const uint64_t *blocks, size_t count, struct sfc_memory *out,
                    struct sfc_error *err)
{
    struct sfc_memory memory = {0};
    int rc = sfc_head_check(backend, config, err);
    if (!rc)
        rc = sfc_blocks_check("head", blocks, count, sfc_head_block_count(config), err);
    if (!rc && count)
        rc = part_memory(backend, config, blocks, count, &memory, err);
    if (rc)
        return rc;
    memory.step_bytes += base_bytes(config);
    *out = memory;
    return SFC_OK;
}

void sfc_head_used(const struct sfc_head *head, struct sfc_memory *out)
{
    struct sfc_memory sum = {.step_bytes = base_bytes(&head->config)};
    for (const struct sfc_head_part *p = head->parts; p; p = p->next) {
        sum.state_bytes += p->memory.state_bytes;
        sum.step_bytes += p->memory.step_bytes;
        sum.scratch_bytes += p->memory.scratch_bytes;
    }
    for (const struct sfc_head_track *t = head->tracks; t; t = t->next)
        sum.scratch_bytes += sizeof *t + t->rows * sizeof *t->changed;
    *out = sum;
}

/* ---- one part */

static struct sfc_extent_rule extent_rule(const struct sfc_head_config *c)
{
    return (struct sfc_extent_rule){
        .optimizer = c->optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .slack = c->dtype == SFC_DTYPE_BF16 ? 1 + 0x1p-7 : 1 + 0x1p-22,
        .limit = MAX_MAGNITUDE,
        .gradient = MAX_MAGNITUDE,
    };
}

static void free_tables(struct sfc_head_part *part)
{
    free(part->blocks);
    free(part->block_step);
    sfc_extents_free(&part->extents);
}

static void free_part(const struct sfc_backend *backend, struct sfc_head_part *part)
{
    free_tables(part);
    backend->ops->head_free(part);
}

/* The base members of a part that depend on its blocks. */
static int take_tables(struct sfc_head_part *part, size_t count, struct sfc_error *err)
{
    struct sfc_extent_rule rule = extent_rule(&part->config);
    part->block_count = count;
    part->blocks = malloc(count * sizeof *part->blocks);
    part->block_step = calloc(count, sizeof *part->block_step);
    if (!part->blocks || !part->block_step)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    return sfc_extents_init(&part->extents, &rule, count, MAX_NORMAL * part->config.init_std, err);
}

/* The head's members that a part sees. */
static void bind(const struct sfc_head *head, struct sfc_head_part *part)
{
    part->labels = head->labels;
    part->rates = head->rates;
    part->slot_micro = head->slot_micro;
    part->done = head->done;
}

static int new_part(const struct sfc_head *head, const uint64_t *blocks, size_t count, bool blank,
                    struct sfc_head_part **out, struct sfc_error *err)
{
    struct sfc_backend *backend = head->backend;
    struct sfc_head_part *part = NULL;
    struct sfc_memory memory = {0};
    int rc = part_memory(backend, &head->config, blocks, count, &memory, err);
    if (!rc)
        rc = backend->ops->head_new(backend, &head->config, blocks, count, blank, &part, err);
    if (rc)
        return rc;
    part->config = head->config;
    part->memory = memory;
    rc = take_tables(part, count, err);
    if (rc) {
        free_part(backend, part);
        return rc;
    }
    memcpy(part->blocks, blocks, count * sizeof *blocks);
    bind(head, part);
    *out = part;
    return SFC_OK;
}

/* ---- parts into one */

/* The tables of a part as they will be. */
struct layout {
    struct sfc_head_part tables; /* only its tables are in use */
    struct sfc_head_place *places;
};

static void free_layout(struct layout *l)
{
    free_tables(&l->tables);
    free(l->places);
}

static size_t next_held(const struct sfc_head_part *part, size_t index)
{
    while (part && index < part->block_count && sfc_head_gone(part, index))
        index++;
    return index;
}

static size_t held(const struct sfc_head_part *part)
{
    size_t n = 0;
    for (size_t i = 0; part && i < part->block_count; i++)
        n += !sfc_head_gone(part, i);
    return n;
}

/* Merges the blocks that two parts hold, in order of their ids. */
static void merge(struct layout *l, const struct sfc_head_part *part,
                  const struct sfc_head_part *other)
{
    size_t at[2] = {next_held(part, 0), next_held(other, 0)};
    for (size_t i = 0; i < l->tables.block_count; i++) {
        bool take_other =
            at[0] == part->block_count ||
            (other && at[1] < other->block_count && other->blocks[at[1]] < part->blocks[at[0]]);
        const struct sfc_head_part *from = take_other ? other : part;
        size_t index = at[take_other];
        l->places[i] = (struct sfc_head_place){take_other, index};
        l->tables.blocks[i] = from->blocks[index];
        l->tables.block_step[i] = from->block_step[index];
        l->tables.extents.now[i] = from->extents.now[index];
        at[take_other] = next_held(from, index + 1);
    }
}

/* other NULL: only lets go of what the part doesn't hold any more. On success other is gone. */
static int rearrange(const struct sfc_backend *backend, struct sfc_head_part *part,
                     struct sfc_head_part *other, struct sfc_error *err)
{
    struct layout l = {.tables = {.config = part->config}};
    struct sfc_head_part last = other ? *other : (struct sfc_head_part){0};
    size_t count = held(part) + held(other);
    int rc = take_tables(&l.tables, count, err);
    l.places = malloc(count * sizeof *l.places);
    if (!rc && !l.places)
        rc = sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    if (!rc) {
        merge(&l, part, other);
        rc = backend->ops->head_rearrange(part, other, l.places, count, err);
    }
    if (!rc) {
        struct sfc_head_part old = *part;
        part->blocks = l.tables.blocks;
        part->block_step = l.tables.block_step;
        part->block_count = count;
        part->extents = l.tables.extents;
        part->memory.step_bytes += sfc_extents_bytes(count) + count * 2 * sizeof(uint64_t);
        l.tables = old;
        free_tables(&last);
    }
    free_layout(&l);
    return rc;
}

/* Where the backend can't, or memory is short, it stays a part of its own. */
static void adopt(struct sfc_head *head, struct sfc_head_part *part)
{
    struct sfc_error unused = {0};
    struct sfc_head_part **end = &head->parts;
    bind(head, part);
    part->next = NULL;
    if (head->parts && head->backend->ops->head_rearrange &&
        rearrange(head->backend, head->parts, part, &unused) == SFC_OK)
        return;
    while (*end)
        end = &(*end)->next;
    *end = part;
}

/* ---- life */

static int take_base(struct sfc_head *head, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    head->labels = malloc(c->batch * sizeof *head->labels);
    head->slot_state = calloc(c->slots, sizeof *head->slot_state);
    head->slot_micro = calloc(c->slots, sizeof *head->slot_micro);
    head->slot_lse = malloc((size_t)c->slots * c->micro_batch * sizeof *head->slot_lse);
    head->rates = sfc_head_is_dense(c) ? calloc(c->steps, sizeof *head->rates) : NULL;
    if ((sfc_head_is_dense(c) && !head->rates) || !head->labels || !head->slot_state ||
        !head->slot_micro || !head->slot_lse)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %u slots", c->slots);
    return SFC_OK;
}

static int make(struct sfc_backend *backend, const struct sfc_head_config *config,
                const uint64_t *blocks, size_t count, bool blank, struct sfc_head **out,
                struct sfc_error *err)
{
    int rc = sfc_head_check(backend, config, err);
    if (!rc)
        rc = sfc_blocks_check("head", blocks, count, sfc_head_block_count(config), err);
    if (rc)
        return rc;
    struct sfc_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->backend = backend;
    head->config = *config;
    rc = take_base(head, err);
    if (!rc && count)
        rc = new_part(head, blocks, count, blank, &head->parts, err);
    if (rc) {
        sfc_head_free(head);
        return rc;
    }
    *out = head;
    return SFC_OK;
}

int sfc_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                 const uint64_t *blocks, size_t count, struct sfc_head **out, struct sfc_error *err)
{
    return make(backend, config, blocks, count, false, out, err);
}

int sfc_head_new_blank(struct sfc_backend *backend, const struct sfc_head_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_head **out,
                       struct sfc_error *err)
{
    return make(backend, config, blocks, count, true, out, err);
}

void sfc_head_free(struct sfc_head *head)
{
    if (!head)
        return;
    for (struct sfc_head_part *p = head->parts, *next; p; p = next) {
        next = p->next;
        free_part(head->backend, p);
    }
    for (struct sfc_head_track *t = head->tracks, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    free(head->labels);
    free(head->slot_state);
    free(head->slot_micro);
    free(head->slot_lse);
    free(head->rates);
    free(head);
}

/* ---- blocks that come and go */

/* NULL: no part holds it. */
static struct sfc_head_part *holder(const struct sfc_head *head, uint64_t block, size_t *index)
{
    for (struct sfc_head_part *p = head->parts; p; p = p->next) {
        *index = sfc_block_index(p->blocks, p->block_count, block);
        if (*index < p->block_count && !sfc_head_gone(p, *index))
            return p;
    }
    return NULL;
}

int sfc_head_find(const struct sfc_head *head, uint64_t block, struct sfc_head_part **part,
                  size_t *index, struct sfc_error *err)
{
    size_t at = 0;
    struct sfc_head_part *found = holder(head, block, &at);
    if (!found)
        return sfc_fail(err, SFC_ENOTFOUND, "head: block %llu is not held here",
                        (unsigned long long)block);
    *part = found;
    *index = at;
    return SFC_OK;
}

static bool same_shape(const struct sfc_head_config *a, const struct sfc_head_config *b)
{
    return a->seed == b->seed && a->classes == b->classes && a->dim == b->dim &&
           a->block_size == b->block_size && a->sample_ppm == b->sample_ppm &&
           a->batch == b->batch && a->micro_batch == b->micro_batch && a->slots == b->slots &&
           a->dtype == b->dtype && a->gemm == b->gemm && a->rounding == b->rounding &&
           a->init_std == b->init_std && a->steps == b->steps;
}

static bool same_loss(const struct sfc_head_config *a, const struct sfc_head_config *b)
{
    return a->margin_m1 == b->margin_m1 && a->margin_m2 == b->margin_m2 &&
           a->margin_m3 == b->margin_m3 && a->margin_grad == b->margin_grad &&
           a->scale == b->scale && a->has_filter == b->has_filter && a->filter == b->filter &&
           a->correction == b->correction;
}

static bool same_optimizer(const struct sfc_head_config *a, const struct sfc_head_config *b)
{
    return a->optimizer == b->optimizer && a->momentum_mode == b->momentum_mode &&
           a->momentum == b->momentum && a->beta1 == b->beta1 && a->beta2 == b->beta2 &&
           a->epsilon == b->epsilon && a->weight_decay == b->weight_decay;
}

static int check_attach(const struct sfc_head *head, const struct sfc_head *other,
                        struct sfc_error *err)
{
    const struct sfc_head_config *a = &head->config, *b = &other->config;
    size_t index = 0;
    if (head == other || head->backend != other->backend || !same_shape(a, b) || !same_loss(a, b) ||
        !same_optimizer(a, b))
        return sfc_fail(err, SFC_EINVAL,
                        "head: blocks of another backend or configuration can't be attached");
    if (other->done > head->done)
        return sfc_fail(err, SFC_ESTATE,
                        "head: blocks with a history of %llu steps can't be attached at step %llu",
                        (unsigned long long)other->done, (unsigned long long)head->done);
    for (const struct sfc_head_part *p = other->parts; p; p = p->next)
        for (size_t i = 0; i < p->block_count; i++)
            if (!sfc_head_gone(p, i) && holder(head, p->blocks[i], &index))
                return sfc_fail(err, SFC_EINVAL, "head: block %llu is held here already",
                                (unsigned long long)p->blocks[i]);
    return SFC_OK;
}

int sfc_head_attach(struct sfc_head *head, struct sfc_head *other, struct sfc_error *err)
{
    int rc = check_attach(head, other, err);
    if (rc)
        return rc;
    for (struct sfc_head_part *p = other->parts, *next; p; p = next) {
        next = p->next;
        adopt(head, p);
    }
    other->parts = NULL;
    sfc_head_free(other);
    head->planned = false;
    return SFC_OK;
}

int sfc_head_add(struct sfc_head *head, const uint64_t *blocks, size_t count, bool blank,
                 struct sfc_error *err)
{
    struct sfc_head *other = NULL;
    size_t index = 0;
    for (size_t i = 0; i < count; i++)
        if (holder(head, blocks[i], &index))
            return sfc_fail(err, SFC_EINVAL, "head: block %llu is held here already",
                            (unsigned long long)blocks[i]);
    int rc = make(head->backend, &head->config, blocks, count, blank, &other, err);
    if (rc)
        return rc;
    rc = sfc_head_attach(head, other, err);
    if (rc)
        sfc_head_free(other);
    return rc;
}

/* Frees what holds no block any more, and lets go of the others' memory where the backend can. Too
 * little memory for that: the block's stays until the part changes again. */
static void shrink(struct sfc_head *head, struct sfc_head_part **at)
{
    struct sfc_error unused = {0};
    struct sfc_head_part *part = *at;
    if (held(part) == 0) {
        *at = part->next;
        free_part(head->backend, part);
        return;
    }
    if (held(part) < part->block_count && head->backend->ops->head_rearrange)
        rearrange(head->backend, part, NULL, &unused);
}

int sfc_head_remove(struct sfc_head *head, const uint64_t *blocks, size_t count,
                    struct sfc_error *err)
{
    struct sfc_head_part *part = NULL;
    size_t index = 0;
    int rc = sfc_blocks_check("head", blocks, count, sfc_head_block_count(&head->config), err);
    for (size_t i = 0; !rc && i < count; i++)
        rc = sfc_head_find(head, blocks[i], &part, &index, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < count; i++) {
        part = holder(head, blocks[i], &index);
        part->block_step[index] = SFC_BLOCK_GONE;
        part->extents.now[index] = (struct sfc_extent){0};
        sfc_head_untrack(head, blocks[i]);
    }
    for (struct sfc_head_part **at = &head->parts, *p; (p = *at);) {
        shrink(head, at);
        at = *at == p ? &p->next : at;
    }
    head->planned = false;
    return SFC_OK;
}

int sfc_head_grow(struct sfc_head *head, uint64_t classes, struct sfc_error *err)
{
    struct sfc_head_config grown = head->config;
    size_t index = 0;
    uint64_t last = head->config.classes / head->config.block_size;
    if (classes < head->config.classes)
        return sfc_fail(err, SFC_EINVAL, "head: %llu classes can't become %llu",
                        (unsigned long long)head->config.classes, (unsigned long long)classes);
    grown.classes = classes;
    int rc = sfc_head_check(head->backend, &grown, err);
    if (rc)
        return rc;
    if (holder(head, last, &index) &&
        sfc_head_block_rows(&grown, last) != sfc_head_block_rows(&head->config, last))
        return sfc_fail(err, SFC_ESTATE, "head: block %llu is held with fewer rows",
                        (unsigned long long)last);
    head->config = grown;
    for (struct sfc_head_part *p = head->parts; p; p = p->next)
        p->config.classes = classes;
    head->planned = false;
    return SFC_OK;
}
