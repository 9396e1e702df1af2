#include "tests/lib/head_rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/exact_sum.h"
#include "kernels/lag.h"
#include "kernels/rng/philox.h"
#include "tests/lib/tested_backend.h"
#ifdef TESTED_IS_CPU
#include "kernels/cpu/products.h"
#endif

static void must(int rc, const struct sfc_error *err, const char *what)
{
    if (rc != SFC_OK) {
        fail_msg("%s: %s (%d)", what, err->text, rc);
    }
}

static void *zeroed(size_t count, size_t size)
{
    void *p = calloc(count, size);
    assert_non_null(p);
    return p;
}

#ifdef TESTED_IS_CPU
static int open_native(unsigned threads, struct sfc_backend **out, struct sfc_error *err)
{
    return sfc_backend_cpu_open_products(threads, SFC_CPU_PRODUCTS_NATIVE, out, err);
}

bool rig_has_native(void)
{
    struct sfc_head_config c = rig_config(20, 8, 20, 4, 4);
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    struct sfc_memory memory;
    uint64_t block = 0;
    c.gemm = SFC_DTYPE_BF16;
    must(open_native(1, &backend, &err), &err, "open");
    int rc = sfc_head_memory(backend, &c, &block, 1, &memory, &err);
    sfc_backend_close(backend);
    assert_true(rc == SFC_OK || rc == SFC_EDEVICE);
    return rc == SFC_OK;
}
#else
static int open_native(unsigned threads, struct sfc_backend **out, struct sfc_error *err)
{
    (void)threads, (void)out;
    return sfc_fail(err, SFC_EUNSUPPORTED, "this test is about " TESTED);
}

bool rig_has_native(void)
{
    return false;
}
#endif

struct sfc_head_config rig_config(uint64_t classes, uint32_t dim, uint32_t block_size,
                                  uint32_t batch, uint32_t micro_batch)
{
    return (struct sfc_head_config){
        .seed = 20260101,
        .classes = classes,
        .dim = dim,
        .block_size = block_size,
        .sample_ppm = 100000,
        .batch = batch,
        .micro_batch = micro_batch,
        .slots = batch / micro_batch + 2,
        .margin_m1 = 1,
        .margin_m3 = 0.4,
        .scale = 64,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .epsilon = 1e-8,
        .weight_decay = 5e-4,
        .init_std = 0.1,
        .steps = 1000,
    };
}

void rig_open(struct rig *rig, struct rig_setup setup, const struct sfc_head_config *config)
{
    rig_open_in(rig, setup, NULL, config);
}

void rig_open_in(struct rig *rig, struct rig_setup setup, const char *store,
                 const struct sfc_head_config *config)
{
    struct sfc_error err = {0};
    uint64_t count = sfc_head_block_count(config);
    uint64_t *blocks = zeroed(count, sizeof *blocks);
    *rig = (struct rig){.setup = setup, .config = *config};
    rig->owner = zeroed(count, sizeof *rig->owner);
    assert_true(setup.heads >= 1 && setup.heads <= RIG_MAX_HEADS);
    must(strcmp(setup.backend, RIG_CPU_NATIVE)
             ? sfc_backend_open(setup.backend, setup.threads, &rig->backend, &err)
             : open_native(setup.threads, &rig->backend, &err),
         &err, "open");
    must(sfc_backend_set_store(rig->backend, store, &err), &err, "store");
    for (size_t h = 0; h < setup.heads; h++) {
        size_t n = 0;
        for (uint64_t b = h; b < count; b += setup.heads) {
            blocks[n++] = b;
            rig->owner[b] = h;
        }
        must(sfc_head_new(rig->backend, config, blocks, n, &rig->head[h], &err), &err, "new");
    }
    free(blocks);
}

void rig_close(struct rig *rig)
{
    for (size_t h = 0; h < rig->setup.heads; h++) {
        sfc_head_free(rig->head[h]);
    }
    sfc_backend_close(rig->backend);
    free(rig->owner);
}

static size_t width_of(const struct rig *rig, enum sfc_block_part part)
{
    return part == SFC_PART_LAST_STEP ? 1 : rig->config.dim;
}

static bool has_part(const struct rig *rig, int part)
{
    if (part == SFC_PART_LAST_STEP)
        return rig->config.momentum_mode == SFC_MOMENTUM_DENSE;
    return part != SFC_PART_SECOND_MOMENT || rig->config.optimizer == SFC_OPTIMIZER_ADAMW;
}

void rig_copy_rows(struct rig *rig, struct sfc_head *from, struct sfc_head *to, uint64_t block,
                   const uint32_t *rows, size_t count)
{
    struct sfc_error err = {0};
    float *values = zeroed(count * rig->config.dim + 1, sizeof *values);
    for (int i = SFC_PART_VALUES; i <= SFC_PART_SECOND_MOMENT; i++) {
        enum sfc_block_part part = (enum sfc_block_part)i;
        if (!has_part(rig, i))
            continue;
        must(sfc_head_read_rows(from, block, part, rows, count, values, &err), &err, "read rows");
        must(sfc_head_write_rows(to, block, part, rows, count, values, &err), &err, "write rows");
    }
    free(values);
}

void rig_copy_block(struct rig *rig, struct sfc_head *from, struct sfc_head *to, uint64_t block)
{
    struct sfc_error err = {0};
    size_t rows = sfc_head_block_rows(&rig->config, block);
    float *values = zeroed(rows * rig->config.dim, sizeof *values);
    for (int i = SFC_PART_VALUES; i <= SFC_PART_SECOND_MOMENT; i++) {
        enum sfc_block_part part = (enum sfc_block_part)i;
        size_t count = rows * width_of(rig, part);
        if (!has_part(rig, i))
            continue;
        must(sfc_head_read(from, block, part, 0, count, values, &err), &err, "read");
        must(sfc_head_write(to, block, part, 0, count, values, &err), &err, "write");
    }
    free(values);
}

void rig_move(struct rig *rig, const uint64_t *blocks, size_t count, size_t to)
{
    struct sfc_error err = {0};
    struct sfc_head *staged = NULL, *from = rig->head[rig->owner[blocks[0]]];
    must(sfc_head_new_blank(rig->backend, &rig->config, blocks, count, &staged, &err), &err,
         "new blank");
    for (size_t i = 0; i < count; i++) {
        assert_ptr_equal(rig->head[rig->owner[blocks[i]]], from);
        rig_copy_block(rig, from, staged, blocks[i]);
        rig->owner[blocks[i]] = to;
    }
    must(sfc_head_attach(rig->head[to], staged, &err), &err, "attach");
    must(sfc_head_remove(from, blocks, count, &err), &err, "remove");
}

void rig_step_init(struct rig_step *step, const struct sfc_head_config *config)
{
    *step = (struct rig_step){
        .exp_sum = zeroed((size_t)config->batch * 4, sizeof(uint64_t)),
        .lse = zeroed(config->batch, sizeof(double)),
        .target = zeroed(config->batch, sizeof(float)),
        .owners = zeroed(config->batch, 1),
        .dx = zeroed((size_t)config->batch * config->dim, sizeof(int64_t)),
    };
}

void rig_step_free(struct rig_step *step)
{
    free(step->exp_sum);
    free(step->lse);
    free(step->target);
    free(step->owners);
    free(step->dx);
}

uint32_t rig_slot(const struct rig *rig, uint32_t j)
{
    return rig->setup.reversed ? rig->config.slots - 1 - j : j;
}

/* The i-th micro-batch to arrive. */
static uint32_t arrival(const struct rig *rig, uint32_t i)
{
    return rig->setup.reversed ? rig->config.batch / rig->config.micro_batch - 1 - i : i;
}

/* One head's logits of n micro-batches, added to out. */
static void head_logits(struct rig *rig, size_t h, uint32_t first, uint32_t n,
                        const float *features, struct rig_step *out)
{
    struct sfc_error err = {0};
    uint32_t m = rig->config.micro_batch, dim = rig->config.dim;
    struct sfc_head_logits_item *items = zeroed(n, sizeof *items);
    uint64_t *sums = zeroed((size_t)n * m * 4, sizeof *sums);
    float *target = zeroed((size_t)n * m, sizeof *target);
    uint8_t *has = zeroed((size_t)n * m, 1);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = arrival(rig, first + i);
        items[i] = (struct sfc_head_logits_item){
            .slot = rig_slot(rig, j),
            .micro_batch = j,
            .features = features + (size_t)j * m * dim,
            .exp_sum = sums + (size_t)i * m * 4,
            .target_logit = target + (size_t)i * m,
            .has_target = has + (size_t)i * m,
        };
    }
    must(sfc_head_logits(rig->head[h], items, n, &err), &err, "logits");
    for (uint32_t i = 0; i < n * m; i++) {
        size_t row = (size_t)items[i / m].micro_batch * m + i % m;
        struct sfc_sum256 total, part;
        memcpy(total.word, out->exp_sum + 4 * row, sizeof total.word);
        memcpy(part.word, sums + 4 * (size_t)i, sizeof part.word);
        sfc_sum256_add(&total, &part);
        memcpy(out->exp_sum + 4 * row, total.word, sizeof total.word);
        assert_true(has[i] <= 1 && (has[i] || target[i] == 0));
        out->target[row] += target[i];
        out->owners[row] = (uint8_t)(out->owners[row] + has[i]);
    }
    for (uint32_t i = 0; i < n && h == 0; i++) {
        out->zero_features += items[i].zero_features;
    }
    free(items);
    free(sums);
    free(target);
    free(has);
}

static void head_gradient(struct rig *rig, size_t h, uint32_t first, uint32_t n,
                          struct rig_step *out)
{
    struct sfc_error err = {0};
    uint32_t m = rig->config.micro_batch, dim = rig->config.dim;
    struct sfc_head_gradient_item *items = zeroed(n, sizeof *items);
    int64_t *dx = zeroed((size_t)n * m * dim, sizeof *dx);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = arrival(rig, first + i);
        items[i] = (struct sfc_head_gradient_item){
            .slot = rig_slot(rig, j),
            .lse = out->lse + (size_t)j * m,
            .dx = dx + (size_t)i * m * dim,
        };
    }
    must(sfc_head_gradient(rig->head[h], items, n, &err), &err, "gradient");
    for (uint32_t i = 0; i < n; i++) {
        int64_t *to = out->dx + (size_t)arrival(rig, first + i) * m * dim;
        for (size_t k = 0; k < (size_t)m * dim; k++) {
            to[k] += items[i].dx[k];
        }
    }
    free(items);
    free(dx);
}

static void finish_lse(const struct rig *rig, const uint64_t *labels, struct rig_step *out)
{
    double shift = sfc_exp_shift(rig->config.scale);
    out->loss = 0;
    for (uint32_t r = 0; r < rig->config.batch; r++) {
        struct sfc_sum256 sum;
        memcpy(sum.word, out->exp_sum + 4 * (size_t)r, sizeof sum.word);
        out->lse[r] = sfc_sum256_log(&sum, shift);
        if (labels[r] != SFC_LABEL_NONE) {
            assert_int_equal(out->owners[r], 1);
            out->loss += (out->lse[r] - (double)out->target[r]) / rig->config.batch;
        } else {
            assert_int_equal(out->owners[r], 0);
        }
    }
}

void rig_forward(struct rig *rig, uint64_t number, const uint64_t *labels, const float *features,
                 struct rig_step *out)
{
    struct sfc_error err = {0};
    const struct sfc_head_config *c = &rig->config;
    uint32_t count = c->batch / c->micro_batch;
    memset(out->exp_sum, 0, (size_t)c->batch * 4 * sizeof *out->exp_sum);
    memset(out->target, 0, c->batch * sizeof *out->target);
    memset(out->owners, 0, c->batch);
    memset(out->dx, 0, (size_t)c->batch * c->dim * sizeof *out->dx);
    out->sampled = 0;
    out->zero_features = 0;
    for (size_t h = 0; h < rig->setup.heads; h++) {
        uint64_t sampled = 0;
        must(sfc_head_plan(rig->head[h], number, labels, &sampled, &err), &err, "plan");
        out->sampled += sampled;
        for (uint32_t i = 0; i < count; i += rig->setup.group) {
            uint32_t n = count - i < rig->setup.group ? count - i : rig->setup.group;
            head_logits(rig, h, i, n, features, out);
        }
    }
    finish_lse(rig, labels, out);
    for (size_t h = 0; h < rig->setup.heads; h++) {
        for (uint32_t i = 0; i < count; i += rig->setup.group) {
            uint32_t n = count - i < rig->setup.group ? count - i : rig->setup.group;
            head_gradient(rig, h, i, n, out);
        }
    }
}

static void slots_of(const struct rig *rig, uint32_t *slots)
{
    for (uint32_t j = 0; j < rig->config.batch / rig->config.micro_batch; j++) {
        slots[j] = rig_slot(rig, j);
    }
}

bool rig_finite(struct rig *rig, double lr)
{
    bool finite = true;
    uint32_t *slots = zeroed(rig->config.batch / rig->config.micro_batch, sizeof *slots);
    slots_of(rig, slots);
    for (size_t h = 0; h < rig->setup.heads; h++) {
        finite = sfc_head_finite(rig->head[h], slots, lr) && finite;
    }
    free(slots);
    return finite;
}

void rig_commit(struct rig *rig, double lr)
{
    struct sfc_error err = {0};
    uint32_t *slots = zeroed(rig->config.batch / rig->config.micro_batch, sizeof *slots);
    slots_of(rig, slots);
    assert_true(rig_finite(rig, lr));
    for (size_t h = 0; h < rig->setup.heads; h++) {
        must(sfc_head_commit(rig->head[h], slots, lr, &err), &err, "commit");
    }
    free(slots);
}

void rig_skip(struct rig *rig, uint64_t number)
{
    struct sfc_error err = {0};
    for (size_t h = 0; h < rig->setup.heads; h++) {
        must(sfc_head_skip(rig->head[h], number, &err), &err, "skip");
    }
}

void rig_read(struct rig *rig, enum sfc_block_part part, float *out)
{
    struct sfc_error err = {0};
    const struct sfc_head_config *c = &rig->config;
    size_t width = width_of(rig, part);
    for (uint64_t b = 0; b < sfc_head_block_count(c); b++) {
        must(sfc_head_read(rig->head[rig->owner[b]], b, part, 0, sfc_head_block_rows(c, b) * width,
                           out + b * c->block_size * width, &err),
             &err, "read");
    }
}

void rig_write(struct rig *rig, enum sfc_block_part part, const float *values)
{
    struct sfc_error err = {0};
    const struct sfc_head_config *c = &rig->config;
    size_t width = width_of(rig, part);
    for (uint64_t b = 0; b < sfc_head_block_count(c); b++) {
        must(sfc_head_write(rig->head[rig->owner[b]], b, part, 0, sfc_head_block_rows(c, b) * width,
                            values + b * c->block_size * width, &err),
             &err, "write");
    }
}

void rig_read_rates(struct rig *rig, uint64_t steps, float *out)
{
    struct sfc_error err = {0};
    float *other = zeroed(steps + 1, sizeof *other);
    must(sfc_head_read_rates(rig->head[0], 0, steps, out, &err), &err, "read rates");
    for (size_t h = 1; h < rig->setup.heads; h++) {
        must(sfc_head_read_rates(rig->head[h], 0, steps, other, &err), &err, "read rates");
        assert_memory_equal(out, other, steps * sizeof *out);
    }
    free(other);
}

void rig_write_rates(struct rig *rig, uint64_t steps, const float *rates)
{
    struct sfc_error err = {0};
    for (size_t h = 0; h < rig->setup.heads; h++) {
        must(sfc_head_write_rates(rig->head[h], 0, steps, rates, &err), &err, "write rates");
    }
}

void rig_read_now(struct rig *rig, uint64_t steps, float *w, float *m)
{
    const struct sfc_head_config *c = &rig->config;
    float *rates = zeroed(steps + 1, sizeof *rates), *last = zeroed(c->classes, sizeof *last);
    struct sfc_lag *lag = zeroed(steps + 1, sizeof *lag);
    rig_read(rig, SFC_PART_VALUES, w);
    rig_read(rig, SFC_PART_MOMENTUM, m);
    rig_read(rig, SFC_PART_LAST_STEP, last);
    rig_read_rates(rig, steps, rates);
    sfc_lag_table(rates, c->momentum, c->weight_decay, 0, steps, lag);
    for (uint64_t i = 0; i < c->classes; i++) {
        sfc_lag_apply(&lag[(size_t)last[i]], w + i * c->dim, m + i * c->dim, c->dim);
    }
    free(rates), free(last), free(lag);
}

uint64_t rig_sample(struct rig *rig, uint8_t *in)
{
    struct sfc_error err = {0};
    const struct sfc_head_config *c = &rig->config;
    uint64_t total = 0;
    memset(in, 0, c->classes);
    for (uint64_t b = 0; b < sfc_head_block_count(c); b++) {
        const uint32_t *rows = NULL;
        uint32_t count = 0;
        must(sfc_head_sample(rig->head[rig->owner[b]], b, &rows, &count, &err), &err, "sample");
        for (uint32_t i = 0; i < count; i++) {
            assert_true(rows[i] < sfc_head_block_rows(c, b));
            assert_true(i == 0 || rows[i] > rows[i - 1]);
            in[b * c->block_size + rows[i]] = 1;
        }
        total += count;
    }
    return total;
}

void rig_labels(uint64_t seed, enum rig_labels kind, const struct sfc_head_config *config,
                uint64_t *labels)
{
    uint64_t block = config->block_size < config->classes ? config->block_size : config->classes;
    for (uint32_t r = 0; r < config->batch; r++) {
        uint32_t w = sfc_random(seed, SFC_STREAM_SYNTHETIC, 1, r).v[0];
        switch (kind) {
        case RIG_UNIFORM:
            labels[r] = w % config->classes;
            break;
        case RIG_DUPLICATES:
            labels[r] = (w % 3) * (config->classes - 1) / 2;
            break;
        case RIG_ONE_BLOCK: /* neighbours: many distinct positives in the first block */
            labels[r] = (r * 3) % block;
            break;
        case RIG_WITH_NONE:
            labels[r] = w % 3 == 0 ? SFC_LABEL_NONE : w % config->classes;
            break;
        }
    }
}

void rig_features(uint64_t seed, const struct sfc_head_config *config, const uint64_t *labels,
                  const float *w, float *features)
{
    for (uint32_t r = 0; r < config->batch; r++) {
        float *x = features + (size_t)r * config->dim;
        float lean = 2 * sfc_uniform(sfc_random(seed, SFC_STREAM_SYNTHETIC, 2, r).v[0]) - 0.5f;
        float size = 0.1f + 10 * sfc_uniform(sfc_random(seed, SFC_STREAM_SYNTHETIC, 2, r).v[1]);
        sfc_random_normals(seed, SFC_STREAM_SYNTHETIC, UINT64_C(3) << 32 | r, 0, config->dim, x);
        const float *centre = labels[r] == SFC_LABEL_NONE ? NULL : w + labels[r] * config->dim;
        float square = 1e-20f;
        for (uint32_t k = 0; centre && k < config->dim; k++) {
            square += centre[k] * centre[k] / (float)config->dim;
        }
        for (uint32_t k = 0; k < config->dim; k++) {
            x[k] = size * (x[k] + (centre ? lean * centre[k] / sqrtf(square) : 0));
        }
    }
}
