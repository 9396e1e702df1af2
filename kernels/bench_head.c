#include "kernels/bench_head.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "kernels/cpu/floor.h"
#include "kernels/exact_sum.h"

#define WARM_UP 2

static const char *const number_formats[] = {"f32", "bf16"};
static const char *const momentum_modes[] = {"sampled", "dense"};

enum phase { PLAN, LOGITS, GRADIENT, COMMIT, STEP, PHASES };

/* Inputs, outputs and times of the steps. */
struct bench {
    struct sfc_head_config config;
    struct sfc_backend *backend;
    struct sfc_head *head;
    uint32_t micro_batches, steps;
    uint64_t *blocks, *labels, sampled;
    float *features, *target_logit;
    uint64_t *exp_sum;
    uint8_t *has_target;
    double *lse;
    int64_t *dx;
    uint32_t *slots;
    struct sfc_head_logits_item *logits;
    struct sfc_head_gradient_item *gradient;
    double *ms[PHASES]; /* [steps] */
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static struct sfc_head_config config_of(const struct sfc_bench_head_options *o)
{
    return (struct sfc_head_config){
        .seed = 1,
        .classes = o->classes,
        .dim = o->dim,
        .block_size = o->block_size,
        .sample_ppm = o->sample_ppm,
        .batch = o->batch,
        .micro_batch = o->micro_batch,
        .slots = o->micro_batch ? o->batch / o->micro_batch : 0,
        .margin_m1 = 1,
        .margin_m3 = 0.4,
        .scale = 64,
        .momentum = 0.9,
        .weight_decay = 5e-4,
        .init_std = 0.01,
        .dtype = o->dtype,
        .gemm = o->gemm,
        .momentum_mode = o->momentum_mode,
        .steps = (uint64_t)o->steps + WARM_UP,
    };
}

static void items_init(struct bench *b)
{
    uint32_t m = b->config.micro_batch, state = 1;
    for (uint32_t j = 0; j < b->micro_batches; j++) {
        size_t row = (size_t)j * m;
        b->slots[j] = j;
        b->logits[j] = (struct sfc_head_logits_item){
            .slot = j,
            .micro_batch = j,
            .features = b->features + row * b->config.dim,
            .exp_sum = b->exp_sum + 4 * row,
            .target_logit = b->target_logit + row,
            .has_target = b->has_target + row,
        };
        b->gradient[j] = (struct sfc_head_gradient_item){
            .slot = j, .lse = b->lse + row, .dx = b->dx + row * b->config.dim};
    }
    for (size_t i = 0; i < (size_t)b->config.batch * b->config.dim; i++) {
        state = state * 1664525u + 1013904223u;
        b->features[i] = (float)(state >> 8) * 0x1p-23f - 1.0f;
    }
}

static int bench_open(struct bench *b, const struct sfc_bench_head_options *o,
                      struct sfc_error *err)
{
    b->config = config_of(o);
    b->steps = o->steps;
    int rc = sfc_backend_open(o->backend, o->threads, &b->backend, err);
    if (!rc)
        rc = sfc_head_check(b->backend, &b->config, err);
    if (!rc && o->steps < 1)
        rc = sfc_fail(err, SFC_EINVAL, "bench: steps must be at least 1");
    if (rc)
        return rc;
    size_t rows = b->config.batch, count = (size_t)sfc_head_block_count(&b->config);
    b->micro_batches = b->config.slots;
    b->blocks = calloc(count, sizeof *b->blocks);
    b->labels = calloc(rows, sizeof *b->labels);
    b->features = calloc(rows * o->dim, sizeof *b->features);
    b->target_logit = calloc(rows, sizeof *b->target_logit);
    b->exp_sum = calloc(rows * 4, sizeof *b->exp_sum);
    b->has_target = calloc(rows, sizeof *b->has_target);
    b->lse = calloc(rows, sizeof *b->lse);
    b->dx = calloc(rows * o->dim, sizeof *b->dx);
    b->slots = calloc(b->micro_batches, sizeof *b->slots);
    b->logits = calloc(b->micro_batches, sizeof *b->logits);
    b->gradient = calloc(b->micro_batches, sizeof *b->gradient);
    bool complete = b->blocks && b->labels && b->features && b->target_logit && b->exp_sum &&
                    b->has_target && b->lse && b->dx && b->slots && b->logits && b->gradient;
    for (int p = 0; p < PHASES; p++) {
        b->ms[p] = calloc(o->steps, sizeof *b->ms[p]);
        complete = complete && b->ms[p];
    }
    if (!complete)
        return sfc_fail(err, SFC_ENOMEM, "bench: out of memory");
    for (size_t i = 0; i < count; i++)
        b->blocks[i] = i;
    items_init(b);
    return sfc_head_new(b->backend, &b->config, b->blocks, count, &b->head, err);
}

static void bench_close(struct bench *b)
{
    sfc_head_free(b->head);
    sfc_backend_close(b->backend);
    free(b->blocks);
    free(b->labels);
    free(b->features);
    free(b->target_logit);
    free(b->exp_sum);
    free(b->has_target);
    free(b->lse);
    free(b->dx);
    free(b->slots);
    free(b->logits);
    free(b->gradient);
    for (int p = 0; p < PHASES; p++)
        free(b->ms[p]);
}

/* One step; its times go to entry `at` unless it only warms up (at < 0). */
static int bench_step(struct bench *b, uint64_t step, int64_t at, struct sfc_error *err)
{
    double t[STEP + 1], shift = sfc_exp_shift(b->config.scale);
    for (uint32_t i = 0; i < b->config.batch; i++)
        b->labels[i] = (step * 2654435761u + i * 40503u * 65537u) % b->config.classes;
    t[0] = now_ms();
    int rc = sfc_head_plan(b->head, step, b->labels, &b->sampled, err);
    t[1] = now_ms();
    if (!rc)
        rc = sfc_head_logits(b->head, b->logits, b->micro_batches, err);
    for (uint32_t r = 0; !rc && r < b->config.batch; r++) {
        struct sfc_sum256 sum;
        memcpy(sum.word, b->exp_sum + 4 * (size_t)r, sizeof sum.word);
        b->lse[r] = sfc_sum256_log(&sum, shift);
    }
    t[2] = now_ms();
    if (!rc)
        rc = sfc_head_gradient(b->head, b->gradient, b->micro_batches, err);
    t[3] = now_ms();
    if (!rc)
        rc = sfc_head_commit(b->head, b->slots, 0.1, err);
    t[4] = now_ms();
    for (int p = PLAN; !rc && at >= 0 && p < STEP; p++)
        b->ms[p][at] = t[p + 1] - t[p];
    if (!rc && at >= 0)
        b->ms[STEP][at] = t[4] - t[0];
    return rc;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *ms, uint32_t n)
{
    qsort(ms, n, sizeof *ms, ascending);
    return n % 2 ? ms[n / 2] : (ms[n / 2 - 1] + ms[n / 2]) / 2;
}

/* Bytes of a step: rows of W, in the format that products read, for the first two passes, and z as
 * it is written, replaced and read; w and m read and written by the third. */
static int add_floor(struct bench *b, bool exact, struct sfc_bench_head_result *r,
                     struct sfc_error *err)
{
    struct sfc_cpu_floor floor;
    int rc = sfc_cpu_floor(b->backend, &b->config, b->sampled, &floor, err);
    if (rc)
        return rc;
    double rows = (double)b->sampled, dim = b->config.dim, batch = b->config.batch;
    double operand = floor.half ? 2 : 4, stored = b->config.dtype == SFC_DTYPE_BF16 ? 2 : 4;
    double row = operand < stored ? operand : stored;
    double read = 2 * rows * dim * row + 4 * rows * batch * operand;
    double update = 4 * rows * dim * stored;
    r->half_products = floor.half;
    r->gflops = floor.gflops;
    r->read_gb_s = floor.read_gb_s;
    r->update_gb_s = floor.update_gb_s;
    r->gemm_ms = 6 * rows * dim * batch / floor.gflops * 1e-6;
    r->bytes_ms = read / floor.read_gb_s * 1e-6 + update / floor.update_gb_s * 1e-6;
    r->floor_ms = r->gemm_ms + r->bytes_ms;
    r->exact_ms = exact ? floor.exact_ms : 0;
    return SFC_OK;
}

static int collect(struct bench *b, const struct sfc_bench_head_options *o,
                   struct sfc_bench_head_result *r, struct sfc_error *err)
{
    struct sfc_memory memory;
    struct rusage usage;
    int rc = sfc_head_memory(b->backend, &b->config, b->blocks,
                             (size_t)sfc_head_block_count(&b->config), &memory, err);
    if (rc)
        return rc;
    getrusage(RUSAGE_SELF, &usage);
    r->peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    r->state_bytes = memory.state_bytes;
    r->sampled = b->sampled;
    r->block_size = b->config.block_size;
    r->plan_ms = median(b->ms[PLAN], b->steps);
    r->logits_ms = median(b->ms[LOGITS], b->steps);
    r->gradient_ms = median(b->ms[GRADIENT], b->steps);
    r->commit_ms = median(b->ms[COMMIT], b->steps);
    r->step_ms = median(b->ms[STEP], b->steps);
    r->best_ms = b->ms[STEP][0];
    snprintf(r->numerics, sizeof r->numerics, "%s", sfc_backend_numerics(b->backend));
    return strcmp(o->backend, "cpu") ? SFC_OK : add_floor(b, o->exact, r, err);
}

int sfc_bench_head(const struct sfc_bench_head_options *options,
                   struct sfc_bench_head_result *result, struct sfc_error *err)
{
    struct bench b = {0};
    struct sfc_bench_head_result r = {0};
    double start = now_ms();
    int rc = bench_open(&b, options, err);
    r.init_ms = now_ms() - start;
    for (int64_t i = -WARM_UP; !rc && i < (int64_t)options->steps; i++)
        rc = bench_step(&b, (uint64_t)(i + WARM_UP + 1), i, err);
    if (!rc)
        rc = collect(&b, options, &r, err);
    bench_close(&b);
    if (!rc)
        *result = r;
    return rc;
}

void sfc_bench_head_json(FILE *out, const struct sfc_bench_head_options *o,
                         const struct sfc_bench_head_result *r)
{
    fprintf(out,
            "{\"step_ms\": %.3f, \"best_ms\": %.3f, \"phases_ms\": {\"plan\": %.3f, "
            "\"logits\": %.3f, \"gradient\": %.3f, \"commit\": %.3f}, \"floor_ms\": %.3f, "
            "\"floor\": {\"gemm_ms\": %.3f, \"bytes_ms\": %.3f, \"gflops\": %.1f, "
            "\"read_gb_s\": %.1f, \"update_gb_s\": %.1f}, \"exact_ms\": %.3f, \"init_ms\": %.1f, ",
            r->step_ms, r->best_ms, r->plan_ms, r->logits_ms, r->gradient_ms, r->commit_ms,
            r->floor_ms, r->gemm_ms, r->bytes_ms, r->gflops, r->read_gb_s, r->update_gb_s,
            r->exact_ms, r->init_ms);
    fprintf(
        out,
        "\"classes\": %llu, \"sampled\": %llu, \"batch\": %u, \"micro_batch\": %u, "
        "\"dim\": %u, \"block_size\": %u, \"dtype\": \"%s\", \"gemm\": \"%s\", "
        "\"momentum_mode\": \"%s\", \"backend\": \"%s\", \"threads\": %u, \"numerics\": \"%s\", "
        "\"peak_rss_bytes\": %llu, \"state_bytes\": %llu}\n",
        (unsigned long long)o->classes, (unsigned long long)r->sampled, o->batch, o->micro_batch,
        o->dim, r->block_size, number_formats[o->dtype], number_formats[r->half_products],
        momentum_modes[o->momentum_mode], o->backend, o->threads, r->numerics,
        (unsigned long long)r->peak_rss_bytes, (unsigned long long)r->state_bytes);
}

void sfc_bench_head_table(FILE *out, const struct sfc_bench_head_options *o,
                          const struct sfc_bench_head_result *r)
{
    fprintf(out,
            "%llu classes x %u %s, products of %s, %llu sampled, batch %u in micro-batches of %u, "
            "momentum %s, "
            "%u threads\n",
            (unsigned long long)o->classes, o->dim, number_formats[o->dtype],
            number_formats[r->half_products], (unsigned long long)r->sampled, o->batch,
            o->micro_batch, momentum_modes[o->momentum_mode], o->threads);
    fprintf(out, "numerics  %s\n", r->numerics);
    fprintf(out, "step      %8.2f ms (median; best %.2f)\n", r->step_ms, r->best_ms);
    fprintf(out, "  plan    %8.2f\n  logits  %8.2f\n  gradient%8.2f\n  commit  %8.2f\n", r->plan_ms,
            r->logits_ms, r->gradient_ms, r->commit_ms);
    if (r->floor_ms > 0) {
        fprintf(out, "floor     %8.2f ms; the step is %.2f x\n", r->floor_ms,
                r->step_ms / r->floor_ms);
        fprintf(out, "  products%8.2f at %.0f GFLOP/s\n", r->gemm_ms, r->gflops);
        fprintf(out, "  bytes   %8.2f at %.1f GB/s read, %.1f GB/s updated\n", r->bytes_ms,
                r->read_gb_s, r->update_gb_s);
    }
    if (r->exact_ms > 0)
        fprintf(out, "exact sums%8.2f ms, %.1f %% of the step\n", r->exact_ms,
                100 * r->exact_ms / r->step_ms);
    fprintf(out, "state     %8.1f MB, %.0f bytes per class; peak memory %.1f MB; made in %.0f ms\n",
            (double)r->state_bytes * 1e-6, (double)r->state_bytes / (double)o->classes,
            (double)r->peak_rss_bytes * 1e-6, r->init_ms);
}
