#include "kernels/bench_head.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "kernels/backend_impl.h"
#include "kernels/bench_head_dump.h"
#include "kernels/exact_sum.h"
#include "proto/base/options.h"
#include "proto/base/process.h"

#define WARM_UP                                                                                    \
    SFC_BENCH_DUMP_STEPS      /* before the first floor, which needs the size of the sample */
#define WARM_UP_AGAIN 1       /* after it, not timed either */
#define MAX_STEPS     100000  /* of one request */
#define MAX_DEMAND    1000000 /* steps on demand in all (mode dense has room for so many) */
#define RATE          0.1

enum phase { PLAN, LOGITS, GRADIENT, COMMIT, STEP, PHASES };
static const char *const phase_names[] = {"plan", "logits", "gradient", "commit", "step"};

/* Inputs, outputs and times of the steps. */
struct bench {
    struct sfc_head_config config;
    struct sfc_backend *backend;
    struct sfc_head *head;
    uint32_t micro_batches;
    uint64_t step; /* the last one done */
    uint64_t *blocks, *labels, sampled;
    float *features, *target_logit;
    uint64_t *exp_sum;
    uint8_t *has_target;
    double *lse;
    int64_t *dx;
    uint32_t *slots;
    struct sfc_head_logits_item *logits;
    struct sfc_head_gradient_item *gradient;
    double *ms[PHASES]; /* [room], of `timed` steps */
    size_t timed, room;
    uint64_t peak_rss, peak_device;
    struct sfc_bench_dump dump; /* of the first steps; directory NULL: none */
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
        .optimizer = o->optimizer,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .epsilon = 1e-8,
        .weight_decay = 5e-4,
        .init_std = 0.01,
        .dtype = o->dtype,
        .gemm = o->gemm,
        .rounding = o->rounding,
        .momentum_mode = o->momentum_mode,
        .steps = (o->requests ? MAX_DEMAND : (uint64_t)o->steps) + WARM_UP + WARM_UP_AGAIN,
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

static bool is_cpu(const struct sfc_bench_head_options *o)
{
    return !strcmp(o->backend, "cpu");
}

static bool has_floor(const struct bench *b)
{
    return b->backend->ops->head_ceilings != NULL;
}

/* Refuses what would be killed for its memory halfway: `need` is all of it, or the least, of the
 * machine's memory or of the device's; available 0: not known. */
static int check_memory(const struct sfc_bench_head_options *o, uint64_t need, uint64_t available,
                        const char *where, struct sfc_error *err)
{
    if (!available || need <= available)
        return SFC_OK;
    return sfc_fail(err, SFC_ENOMEM,
                    "bench: %llu classes of %u numbers in a batch of %u need %.1f MiB of %s, "
                    "available are %.1f MiB; take fewer classes, a smaller dim or sample, or bf16",
                    (unsigned long long)o->classes, o->dim, o->batch, (double)need / (1 << 20),
                    where, (double)available / (1 << 20));
}

/* `lists` bytes of this program and `head` bytes of the backend, each where it will be. */
static int check_both(const struct bench *b, const struct sfc_bench_head_options *o, uint64_t lists,
                      uint64_t head, struct sfc_error *err)
{
    struct sfc_device_memory device;
    int rc = sfc_backend_device_memory(b->backend, &device, err);
    if (!rc && !device.total_bytes)
        return check_memory(o, lists + head, sfc_memory_available(), "memory", err);
    if (!rc)
        rc = check_memory(o, lists, sfc_memory_available(), "memory", err);
    return rc ? rc : check_memory(o, head, device.free_bytes, "device memory", err);
}

static uint64_t lists_bytes(const struct bench *b)
{
    uint64_t rows = b->config.batch, numbers = rows * b->config.dim;
    return sfc_head_block_count(&b->config) * sizeof *b->blocks +
           numbers * (sizeof *b->features + sizeof *b->dx) + rows * 64;
}

/* Less than W and momentum take; known before any list is made. */
static uint64_t least_state_bytes(const struct sfc_head_config *c)
{
    return c->classes * c->dim * 2 * (c->dtype == SFC_DTYPE_BF16 ? 2 : 4);
}

/* Of the head, of this file's lists and of what measures the floor. */
static int check_plan(const struct bench *b, const struct sfc_bench_head_options *o, size_t count,
                      struct sfc_error *err)
{
    struct sfc_memory memory;
    int rc = sfc_head_memory(b->backend, &b->config, b->blocks, count, &memory, err);
    if (rc)
        return rc;
    uint64_t need = memory.state_bytes + memory.step_bytes + memory.scratch_bytes;
    if (has_floor(b))
        need += b->backend->ops->head_ceilings_memory(b->backend);
    return check_both(b, o, lists_bytes(b), need, err);
}

static int bench_open(struct bench *b, const struct sfc_bench_head_options *o,
                      struct sfc_error *err)
{
    b->config = config_of(o);
    int rc = sfc_backend_open(o->backend, o->threads, &b->backend, err);
    if (!rc)
        rc = sfc_head_check(b->backend, &b->config, err);
    if (!rc && !o->requests && o->steps < 1)
        rc = sfc_fail(err, SFC_EINVAL, "bench: steps must be at least 1");
    if (!rc && o->exact && !is_cpu(o))
        rc = sfc_fail(err, SFC_EINVAL,
                      "bench: the exact sums are timed alone with backend cpu only");
    if (!rc)
        rc = check_both(b, o, lists_bytes(b), least_state_bytes(&b->config), err);
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
    if (!complete)
        return sfc_fail(err, SFC_ENOMEM, "bench: out of memory");
    for (size_t i = 0; i < count; i++)
        b->blocks[i] = i;
    items_init(b);
    rc = check_plan(b, o, count, err);
    return rc ? rc : sfc_head_new(b->backend, &b->config, b->blocks, count, &b->head, err);
}

static void bench_close(struct bench *b)
{
    sfc_bench_dump_close(&b->dump);
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

/* Room for the times of n more steps. */
static int make_room(struct bench *b, size_t n, struct sfc_error *err)
{
    if (b->timed + n <= b->room)
        return SFC_OK;
    for (int p = 0; p < PHASES; p++) {
        double *more = realloc(b->ms[p], (b->timed + n) * sizeof *more);
        if (!more)
            return sfc_fail(err, SFC_ENOMEM, "bench: out of memory for the times of %zu steps", n);
        b->ms[p] = more;
    }
    b->room = b->timed + n;
    return SFC_OK;
}

/* The next step; there is room for its times where they are kept. */
static int bench_step(struct bench *b, bool timed, struct sfc_error *err)
{
    double t[STEP + 1], shift = sfc_exp_shift(b->config.scale);
    uint64_t step = ++b->step;
    bool dumped = b->dump.directory && step <= SFC_BENCH_DUMP_STEPS;
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
    if (!rc && dumped)
        rc = sfc_bench_dump_answers(&b->dump, step, err);
    t[3] = now_ms();
    if (!rc)
        rc = sfc_head_commit(b->head, b->slots, RATE, err);
    t[4] = now_ms();
    if (!rc && dumped)
        rc = sfc_bench_dump_rows(&b->dump, step, err);
    if (rc || !timed)
        return rc;
    for (int p = PLAN; p < STEP; p++)
        b->ms[p][b->timed] = t[p + 1] - t[p];
    b->ms[STEP][b->timed++] = t[4] - t[0];
    return SFC_OK;
}

static int timed_steps(struct bench *b, uint64_t n, struct sfc_error *err)
{
    int rc = make_room(b, n, err);
    for (uint64_t i = 0; !rc && i < n; i++)
        rc = bench_step(b, true, err);
    return rc;
}

static int warm_up(struct bench *b, const struct sfc_bench_head_options *o, struct sfc_error *err)
{
    b->dump = (struct sfc_bench_dump){
        .directory = o->dump,
        .config = &b->config,
        .head = b->head,
        .rate = RATE,
        .labels = b->labels,
        .features = b->features,
        .lse = b->lse,
        .target_logit = b->target_logit,
        .dx = b->dx,
    };
    int rc = o->dump ? sfc_bench_dump_start(&b->dump, err) : SFC_OK;
    for (int i = 0; !rc && i < WARM_UP; i++)
        rc = bench_step(b, false, err);
    return rc;
}

/* ---- steps on demand */

static void answer(const struct bench *b, size_t first, FILE *out)
{
    for (int p = 0; p < PHASES; p++) {
        fprintf(out, "%s\"%s_ms\": [", p ? ", " : "{", phase_names[p]);
        for (size_t i = first; i < b->timed; i++)
            fprintf(out, "%s%.3f", i > first ? ", " : "", b->ms[p][i]);
        fprintf(out, "]");
    }
    fprintf(out, "}\n");
    fflush(out);
}

static int serve(struct bench *b, FILE *requests, FILE *answers, struct sfc_error *err)
{
    char line[32];
    int rc = SFC_OK;
    for (size_t number = 1; !rc && fgets(line, sizeof line, requests); number++) {
        uint64_t n = 0;
        size_t first = b->timed;
        line[strcspn(line, "\n")] = 0;
        if (sfc_parse_u64(line, &n) || n < 1 || n > MAX_STEPS)
            return sfc_fail(err, SFC_EINVAL, "request %zu: '%s' is no number of steps (1 to %d)",
                            number, line, MAX_STEPS);
        if (n > MAX_DEMAND - b->timed)
            return sfc_fail(err, SFC_ELIMIT, "request %zu: more than %d steps in all", number,
                            MAX_DEMAND);
        rc = timed_steps(b, n, err);
        if (!rc)
            answer(b, first, answers);
    }
    if (!rc && !b->timed)
        rc = sfc_fail(err, SFC_EINVAL, "no steps were asked for");
    return rc;
}

/* ---- results */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *ms, size_t n)
{
    qsort(ms, n, sizeof *ms, ascending);
    return n % 2 ? ms[n / 2] : (ms[n / 2 - 1] + ms[n / 2]) / 2;
}

/* Bytes of one number of W as the first two passes read it: what the products take of it where the
 * row is up to date; in mode dense, where nearly no row is, all of w and m. */
static double row_bytes(const struct sfc_head_config *c)
{
    double stored = c->dtype == SFC_DTYPE_BF16 ? 2 : 4;
    if (c->momentum_mode == SFC_MOMENTUM_DENSE)
        return 2 * stored;
    return c->gemm == SFC_DTYPE_BF16 ? 2 : stored;
}

/* Bytes of a step: rows of W for the first two passes, and z as it is written, replaced and read;
 * w and moments read and written by the third. */
static int measure_floor(struct bench *b, struct sfc_bench_floor *out,
                         struct sfc_bench_head_result *r, struct sfc_error *err)
{
    struct sfc_head_ceilings floor;
    int rc = b->backend->ops->head_ceilings(b->backend, &b->config, b->sampled, &floor, err);
    if (rc)
        return rc;
    double rows = (double)b->sampled, dim = b->config.dim, batch = b->config.batch;
    double kept = b->config.gemm == SFC_DTYPE_BF16 ? 2 : 4;
    double stored = b->config.dtype == SFC_DTYPE_BF16 ? 2 : 4;
    double read = 2 * rows * dim * row_bytes(&b->config) + 4 * rows * batch * kept;
    double tensors = b->config.optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    double update = 2 * tensors * rows * dim * stored;
    out->gflops = floor.gflops;
    out->read_gb_s = floor.read_gb_s;
    out->update_gb_s = floor.update_gb_s;
    out->gemm_ms = 6 * rows * dim * batch / floor.gflops * 1e-6;
    out->bytes_ms = read / floor.read_gb_s * 1e-6 + update / floor.update_gb_s * 1e-6;
    out->ms = out->gemm_ms + out->bytes_ms;
    r->native = floor.native;
    r->exact_ms += floor.exact_ms / 2; /* twice: before the steps and after them */
    return SFC_OK;
}

static double mean(double a, double b)
{
    return (a + b) / 2;
}

static struct sfc_bench_floor mean_floor(const struct sfc_bench_floor *a,
                                         const struct sfc_bench_floor *b)
{
    return (struct sfc_bench_floor){
        .ms = mean(a->ms, b->ms),
        .gemm_ms = mean(a->gemm_ms, b->gemm_ms),
        .bytes_ms = mean(a->bytes_ms, b->bytes_ms),
        .gflops = mean(a->gflops, b->gflops),
        .read_gb_s = mean(a->read_gb_s, b->read_gb_s),
        .update_gb_s = mean(a->update_gb_s, b->update_gb_s),
    };
}

bool sfc_bench_head_quiet(const struct sfc_bench_head_result *r)
{
    double low = fmin(r->before.ms, r->after.ms), high = fmax(r->before.ms, r->after.ms);
    return high <= 1.05 * low;
}

static uint64_t peak_rss(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss * 1024;
}

static int present_rss(uint64_t *out, struct sfc_error *err)
{
    *out = sfc_process_resident();
    return *out > 0 ? SFC_OK : sfc_fail(err, SFC_EIO, "bench: /proc/self/statm can't be read");
}

/* Everything is allocated before the first step, so the peak is seen between steps. */
static int look_at_device(struct bench *b, struct sfc_error *err)
{
    struct sfc_device_memory device;
    int rc = sfc_backend_device_memory(b->backend, &device, err);
    if (!rc && device.total_bytes - device.free_bytes > b->peak_device)
        b->peak_device = device.total_bytes - device.free_bytes;
    return rc;
}

static int collect(struct bench *b, struct sfc_bench_head_result *r, struct sfc_error *err)
{
    struct sfc_memory memory;
    uint64_t now = 0;
    int rc = sfc_head_memory(b->backend, &b->config, b->blocks,
                             (size_t)sfc_head_block_count(&b->config), &memory, err);
    if (!rc)
        rc = present_rss(&now, err);
    if (!rc)
        rc = look_at_device(b, err);
    if (rc)
        return rc;
    /* The peak up to the first floor saw whole steps; since then only growth can have raised it. */
    r->peak_rss_bytes = now > b->peak_rss ? now : b->peak_rss;
    r->peak_device_bytes = b->peak_device;
    r->state_bytes = memory.state_bytes;
    r->sampled = b->sampled;
    r->steps = b->timed;
    r->block_size = b->config.block_size;
    r->plan_ms = median(b->ms[PLAN], b->timed);
    r->logits_ms = median(b->ms[LOGITS], b->timed);
    r->gradient_ms = median(b->ms[GRADIENT], b->timed);
    r->commit_ms = median(b->ms[COMMIT], b->timed);
    r->step_ms = median(b->ms[STEP], b->timed);
    r->best_ms = b->ms[STEP][0];
    snprintf(r->numerics, sizeof r->numerics, "%s", sfc_backend_numerics(b->backend));
    return SFC_OK;
}

static int measure(struct bench *b, const struct sfc_bench_head_options *o,
                   struct sfc_bench_head_result *r, struct sfc_error *err)
{
    bool floor = has_floor(b);
    int rc = warm_up(b, o, err);
    b->peak_rss = peak_rss();
    if (!rc)
        rc = look_at_device(b, err);
    if (!rc && floor)
        rc = measure_floor(b, &r->before, r, err);
    for (int i = 0; !rc && i < WARM_UP_AGAIN; i++)
        rc = bench_step(b, false, err);
    if (!rc)
        rc = o->requests ? serve(b, o->requests, o->answers, err) : timed_steps(b, o->steps, err);
    if (!rc)
        rc = collect(b, r, err);
    if (!rc && floor)
        rc = measure_floor(b, &r->after, r, err);
    r->floor = mean_floor(&r->before, &r->after);
    r->has_floor = floor;
    r->has_exact = o->exact;
    r->exact_ms = o->exact ? r->exact_ms : 0;
    return rc;
}

int sfc_bench_head(const struct sfc_bench_head_options *options,
                   struct sfc_bench_head_result *result, struct sfc_error *err)
{
    struct bench b = {0};
    struct sfc_bench_head_result r = {0};
    double start = now_ms();
    int rc = bench_open(&b, options, err);
    r.init_ms = now_ms() - start;
    if (!rc)
        rc = measure(&b, options, &r, err);
    bench_close(&b);
    if (!rc)
        *result = r;
    return rc;
}
