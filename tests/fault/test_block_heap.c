/* Blocks that come and go while memory is short: at the n-th allocation, n = 1, 2, ... until a run
 * passes without a hit. A call that fails changes nothing and works when it is asked again; one
 * that can do without the memory (the CPU's parts then stay apart) answers with the same bits. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/lib/failing_heap.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#define LEAKS() __lsan_do_recoverable_leak_check()
#else
#define LEAKS() 0
#endif

enum { DIM = 8, BATCH = 4, BLOCK = 16, BLOCKS = 4, ROWS = 50 };

static uint64_t failing; /* n */

static void must(bool condition, const char *what, const struct sfc_error *err)
{
    if (condition)
        return;
    fprintf(stderr, "allocation %" PRIu64 ": %s: %s\n", failing, what, err ? err->text : "");
    exit(1);
}

static void refused(int code, const struct sfc_error *err, const char *call)
{
    must(failing_heap_hit(), call, err);
    must(code == SFC_ENOMEM, "another status than that of memory", err);
    must(err->text[0] != '\0', "no message", NULL);
    failing_heap_disarm();
}

/* The call, and when memory was short, the call again. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        int code_ = (call);                                                                        \
        if (code_ != SFC_OK) {                                                                     \
            refused(code_, &err, #call);                                                           \
            code_ = (call);                                                                        \
        }                                                                                          \
        must(code_ == SFC_OK, #call, &err);                                                        \
    } while (0)

struct answer {
    uint64_t sampled, sums[BATCH * 4];
    float target[BATCH], values[2 * BLOCK];
    int64_t dx[BATCH * DIM];
    uint8_t has[BATCH];
};

/* ---- class blocks */

static const struct sfc_head_config head_config = {
    .seed = 3,
    .classes = ROWS,
    .dim = DIM,
    .block_size = BLOCK,
    .sample_ppm = 300000,
    .batch = BATCH,
    .micro_batch = BATCH,
    .slots = 1,
    .margin_m1 = 1,
    .margin_m3 = 0.4,
    .scale = 64,
    .momentum = 0.9,
    .init_std = 0.1,
    .momentum_mode = SFC_MOMENTUM_DENSE,
    .steps = 10,
};

static void ask_head(struct sfc_head *head, struct answer *out)
{
    const uint64_t labels[BATCH] = {1, 18, 19, 49};
    const float x[BATCH * DIM] = {[0] = 1, [DIM + 3] = 2, [2 * DIM + 5] = -1, [3 * DIM] = 0.5f};
    const double lse[BATCH] = {90, 90, 90, 90};
    struct sfc_error err = {0};
    struct sfc_head_logits_item item = {
        .features = x, .exp_sum = out->sums, .target_logit = out->target, .has_target = out->has};
    struct sfc_head_gradient_item gradient = {.lse = lse, .dx = out->dx};
    TRY(sfc_head_plan(head, 1, labels, &out->sampled, &err));
    TRY(sfc_head_logits(head, &item, 1, &err));
    TRY(sfc_head_gradient(head, &gradient, 1, &err));
    must(sfc_head_finite(head, (const uint32_t[]){0}, 0.1), "not finite", NULL);
    TRY(sfc_head_commit(head, (const uint32_t[]){0}, 0.1, &err));
}

static void run_head(struct sfc_backend *backend, struct answer *out)
{
    struct sfc_error err = {0};
    struct sfc_head *head = NULL;
    uint32_t rows[BLOCK], changed = 0;
    TRY(sfc_head_new(backend, &head_config, (const uint64_t[]){0, 2}, 2, &head, &err));
    TRY(sfc_head_add(head, (const uint64_t[]){1, 3}, 2, false, &err));
    TRY(sfc_head_remove(head, (const uint64_t[]){0, 3}, 2, &err));
    TRY(sfc_head_track(head, 2, true, &err));
    ask_head(head, out);
    TRY(sfc_head_changed(head, 2, 0, rows, &changed, &err));
    must(changed > 0, "no changed rows", NULL);
    must(sfc_head_read(head, 3, SFC_PART_VALUES, 0, 1, out->values, &err) == SFC_ENOTFOUND,
         "a removed block", &err);
    TRY(sfc_head_add(head, (const uint64_t[]){0}, 1, true, &err)); /* once more */
    TRY(sfc_head_read(head, 2, SFC_PART_VALUES, 0, 2 * DIM, out->values, &err));
    sfc_head_free(head);
}

/* ---- blocks of the backbone */

static const struct sfc_dense_segment segments[] = {{0, ROWS, SFC_DENSE_WEIGHT, 0, 0.1}};
static const struct sfc_dense_config dense_config = {
    .seed = 3,
    .size = ROWS,
    .block_size = BLOCK,
    .slots = 1,
    .micro_batches = 1,
    .segments = segments,
    .segment_count = 1,
};

static void run_dense(struct sfc_backend *backend, struct answer *out)
{
    const float slice[2 * BLOCK] = {1, 2, 3, [BLOCK] = 4};
    struct sfc_error err = {0};
    struct sfc_dense *dense = NULL;
    struct sfc_dense_sum sums[BLOCKS];
    TRY(sfc_dense_new(backend, &dense_config, (const uint64_t[]){0, 2}, 2, &dense, &err));
    TRY(sfc_dense_add(dense, (const uint64_t[]){1, 3}, 2, false, &err));
    TRY(sfc_dense_remove(dense, (const uint64_t[]){0, 3}, 2, &err));
    out->sampled = sfc_dense_length(dense);
    TRY(sfc_dense_push(dense, 0, slice, &err));
    TRY(sfc_dense_prepare(dense, 1, 0.5, (const uint32_t[]){0}, sums, &err));
    must(sums[0].block == 1 && sums[1].block == 2, "other blocks", NULL);
    TRY(sfc_dense_commit(dense, 1, 0.5, &err));
    TRY(sfc_dense_pull(dense, out->values, &err));
    sfc_dense_free(dense);
}

/* ---- the loop */

typedef void (*run_fn)(struct sfc_backend *backend, struct answer *out);

static uint64_t loop(struct sfc_backend *backend, run_fn run)
{
    static struct answer want, answer;
    uint64_t runs = 0;
    memset(&want, 0, sizeof want);
    run(backend, &want);
    for (int lasting = 0; lasting <= 1; lasting++) {
        bool hit = true;
        for (failing = 1; hit; failing++, runs++) {
            memset(&answer, 0, sizeof answer);
            failing_heap_arm(failing, lasting != 0);
            run(backend, &answer);
            failing_heap_disarm();
            hit = failing_heap_hit();
            must(memcmp(&want, &answer, sizeof want) == 0, "another answer", NULL);
        }
    }
    must(runs > 10, "nothing was allocated", NULL);
    must(LEAKS() == 0, "memory was left behind", NULL);
    return runs;
}

int main(void)
{
    static const char *const backends[] = {"reference", "cpu"};
    failing_heap_init();
    for (size_t i = 0; i < 2; i++) {
        struct sfc_error err = {0};
        struct sfc_backend *backend = NULL;
        must(sfc_backend_open(backends[i], 1, &backend, &err) == SFC_OK, "open", &err);
        uint64_t head = loop(backend, run_head), dense = loop(backend, run_dense);
        printf("%s: class blocks %" PRIu64 " runs, backbone blocks %" PRIu64 "\n", backends[i],
               head, dense);
        sfc_backend_close(backend);
    }
    return 0;
}
