/* Blocks that were copied at different steps and go through the recorded steps again end with the
 * bits of blocks that never stopped. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

enum {
    STEPS = 24,
    BATCH = 16,
    MICRO = 4,
    DIM = 24,
    CLASSES = 300,
    BLOCK = 64,
    BLOCKS = 5,
    PARTS = 4
};

enum mode { SAMPLED, DENSE, ADAMW, MODES };

static struct sfc_head_config config_of(int format, enum mode mode)
{
    struct sfc_head_config c = rig_config(CLASSES, DIM, BLOCK, BATCH, MICRO);
    c.dtype = format % 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.gemm = format / 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.momentum_mode = mode == DENSE ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
    c.optimizer = mode == ADAMW ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
    c.steps = 100;
    return c;
}

static bool skipped(uint64_t t)
{
    return t % 7 == 3;
}

static double rate_of(uint64_t t)
{
    return 0.02 * (1 + cos(0.5 * (double)t));
}

/* The steps of the copies: all different, one of the end, one of the beginning. */
static uint64_t stamp_of(uint64_t block)
{
    static const uint64_t stamps[BLOCKS] = {9, 4, STEPS, 17, 0};
    return stamps[block];
}

struct record {
    uint64_t labels[BATCH];
    float x[BATCH * DIM];
    double lse[BATCH];
};

struct copy {
    float part[PARTS][BLOCK * DIM];
};

struct tape {
    struct record step[STEPS + 2];
    struct copy block[BLOCKS];
    float rates[STEPS + 1];
};

static bool has_part(const struct sfc_head_config *c, int part)
{
    if (part == SFC_PART_LAST_STEP)
        return c->momentum_mode == SFC_MOMENTUM_DENSE;
    return part != SFC_PART_SECOND_MOMENT || c->optimizer == SFC_OPTIMIZER_ADAMW;
}

static uint64_t elements(const struct sfc_head_config *c, uint64_t block, int part)
{
    return sfc_head_block_rows(c, block) * (part == SFC_PART_LAST_STEP ? 1 : c->dim);
}

static void copy_block(struct rig *rig, uint64_t block, struct copy *out)
{
    for (int part = 0; part < PARTS; part++)
        if (has_part(&rig->config, part))
            assert_int_equal(
                sfc_head_read(rig->head[block % rig->setup.heads], block, (enum sfc_block_part)part,
                              0, elements(&rig->config, block, part), out->part[part], NULL),
                SFC_OK);
}

static void copy_due(struct rig *rig, uint64_t now, struct tape *tape)
{
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (stamp_of(b) == now)
            copy_block(rig, b, &tape->block[b]);
}

/* One step in which x leans towards the centres of the beginning. */
static void do_step(struct rig *rig, uint64_t t, const float *centres, struct rig_step *step,
                    struct record *record)
{
    rig_labels(t, t % 2 ? RIG_UNIFORM : RIG_WITH_NONE, &rig->config, record->labels);
    rig_features(t, &rig->config, record->labels, centres, record->x);
    rig_forward(rig, t, record->labels, record->x, step);
    memcpy(record->lse, step->lse, sizeof record->lse);
    if (skipped(t))
        rig_skip(rig, t);
    else
        rig_commit(rig, rate_of(t));
}

static void put_copies(struct rig *rig, const struct tape *tape)
{
    for (uint64_t b = 0; b < BLOCKS; b++) {
        struct sfc_head *head = rig->head[b % rig->setup.heads];
        assert_int_equal(sfc_head_set_block_step(head, b, stamp_of(b), NULL), SFC_OK);
        for (int part = 0; part < PARTS; part++)
            if (has_part(&rig->config, part))
                assert_int_equal(sfc_head_write(head, b, (enum sfc_block_part)part, 0,
                                                elements(&rig->config, b, part),
                                                tape->block[b].part[part], NULL),
                                 SFC_OK);
    }
}

static void replay_head(struct rig *rig, size_t h, uint64_t t, const struct record *record)
{
    struct sfc_head *head = rig->head[h];
    struct sfc_error err = {0};
    struct sfc_head_logits_item items[BATCH / MICRO];
    struct sfc_head_gradient_item gradients[BATCH / MICRO];
    uint64_t sums[BATCH][4], sampled = 0;
    float target[BATCH];
    uint8_t has[BATCH];
    uint32_t slots[BATCH / MICRO];
    assert_int_equal(sfc_head_plan(head, t, record->labels, &sampled, &err), SFC_OK);
    for (uint32_t j = 0; j < BATCH / MICRO; j++) {
        size_t row = (size_t)j * MICRO;
        slots[j] = j;
        items[j] = (struct sfc_head_logits_item){.slot = j,
                                                 .micro_batch = j,
                                                 .features = record->x + row * DIM,
                                                 .exp_sum = sums[row],
                                                 .target_logit = target + row,
                                                 .has_target = has + row};
        gradients[j] = (struct sfc_head_gradient_item){.slot = j, .lse = record->lse + row};
    }
    assert_int_equal(sfc_head_logits(head, items, BATCH / MICRO, &err), SFC_OK);
    assert_int_equal(sfc_head_gradient(head, gradients, BATCH / MICRO, &err), SFC_OK);
    assert_true(sfc_head_finite(head, slots, rate_of(t)));
    assert_int_equal(sfc_head_commit(head, slots, rate_of(t), &err), SFC_OK);
}

static void replay(struct rig *rig, const struct tape *tape)
{
    for (uint64_t t = 1; t <= STEPS; t++)
        for (size_t h = 0; h < rig->setup.heads; h++) {
            if (skipped(t))
                assert_int_equal(sfc_head_skip(rig->head[h], t, NULL), SFC_OK);
            else
                replay_head(rig, h, t, &tape->step[t]);
        }
}

struct end {
    struct copy block[BLOCKS];
    int64_t dx[BATCH * DIM];
};

/* The state, then what the next step answers. */
static void read_end(struct rig *rig, const float *centres, struct end *out)
{
    struct rig_step step;
    struct record record;
    memset(out, 0, sizeof *out);
    for (uint64_t b = 0; b < BLOCKS; b++)
        copy_block(rig, b, &out->block[b]);
    rig_step_init(&step, &rig->config);
    do_step(rig, STEPS + 1, centres, &step, &record);
    memcpy(out->dx, step.dx, sizeof out->dx);
    rig_step_free(&step);
}

static void run_through(const struct sfc_head_config *c, float *centres, struct tape *tape,
                        struct end *end)
{
    struct rig rig;
    struct rig_step step;
    rig_open(&rig, (struct rig_setup){TESTED, 2, 2, 2, false}, c);
    rig_step_init(&step, c);
    rig_read(&rig, SFC_PART_VALUES, centres);
    copy_due(&rig, 0, tape);
    for (uint64_t t = 1; t <= STEPS; t++) {
        do_step(&rig, t, centres, &step, &tape->step[t]);
        copy_due(&rig, t, tape);
    }
    read_end(&rig, centres, end);
    rig_step_free(&step);
    rig_close(&rig);
}

static void recover(const struct sfc_head_config *c, struct rig_setup setup, const float *centres,
                    const struct tape *tape, struct end *end)
{
    struct rig rig;
    rig_open(&rig, setup, c);
    put_copies(&rig, tape);
    replay(&rig, tape);
    read_end(&rig, centres, end);
    rig_close(&rig);
}

static void copies_of_different_steps_meet(void **unused)
{
    (void)unused;
    static const struct rig_setup setups[] = {{TESTED, 1, 1, 4, false}, {TESTED, 3, 3, 1, false}};
    struct tape *tape = calloc(1, sizeof *tape);
    struct end *want = calloc(1, sizeof *want), *got = calloc(1, sizeof *got);
    float *centres = calloc(CLASSES * DIM, sizeof *centres);
    assert_true(tape && want && got && centres);
    for (int format = 0; format < 4; format++)
        for (int mode = 0; mode < MODES; mode++) {
            struct sfc_head_config c = config_of(format, (enum mode)mode);
            run_through(&c, centres, tape, want);
            for (size_t s = 0; s < 2; s++) {
                recover(&c, setups[s], centres, tape, got);
                assert_memory_equal(got, want, sizeof *want);
            }
            tape->step[21].lse[5] += 0.1; /* what is recorded counts */
            recover(&c, setups[0], centres, tape, got);
            assert_memory_not_equal(got, want, sizeof *want);
        }
    free(tape), free(want), free(got), free(centres);
}

static void blocks_ahead_are_left_out(void **unused)
{
    (void)unused;
    static const char *const backends[] = {TESTED, "reference"};
    for (size_t i = 0; i < 2; i++) {
        struct sfc_head_config c = config_of(0, SAMPLED);
        struct sfc_error err = {0};
        struct rig rig;
        uint64_t labels[BATCH] = {0, 1, 70, 71, 299};
        uint64_t all = 0, some = 0;
        const uint32_t *rows = NULL;
        uint32_t count = 1;
        rig_open(&rig, (struct rig_setup){backends[i], 1, 1, 1, false}, &c);
        struct sfc_head *head = rig.head[0];
        assert_int_equal(sfc_head_plan(head, 5, labels, &all, &err), SFC_OK);
        assert_int_equal(sfc_head_set_block_step(head, 1, 5, &err), SFC_OK);
        assert_int_equal(sfc_head_sample(head, 1, &rows, &count, &err), SFC_ESTATE);
        assert_int_equal(sfc_head_plan(head, 5, labels, &some, &err), SFC_OK);
        assert_int_equal(sfc_head_sample(head, 1, &rows, &count, &err), SFC_OK);
        assert_int_equal(count, 0);
        assert_true(some > 0 && some < all);
        assert_int_equal(sfc_head_plan(head, 6, labels, &some, &err), SFC_OK);
        assert_int_equal(some, all);
        assert_int_equal(sfc_head_set_block_step(head, BLOCKS, 5, &err), SFC_ENOTFOUND);
        rig_close(&rig);
    }
}

static void dx_is_wanted_of_all_or_none(void **unused)
{
    (void)unused;
    struct sfc_head_config c = config_of(0, SAMPLED);
    struct sfc_error err = {0};
    struct rig rig;
    struct record record = {.labels = {0}};
    static int64_t dx[MICRO * DIM];
    uint64_t sums[2 * MICRO][4];
    float target[2 * MICRO];
    uint8_t has[2 * MICRO];
    struct sfc_head_logits_item items[2];
    struct sfc_head_gradient_item gradients[2];
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, &c);
    for (uint32_t j = 0; j < 2; j++) {
        items[j] = (struct sfc_head_logits_item){
            j, j, record.x, sums[j * MICRO], target + j * MICRO, has + j * MICRO, 0};
        gradients[j] = (struct sfc_head_gradient_item){j, record.lse, j ? NULL : dx};
    }
    for (size_t r = 0; r < BATCH; r++)
        record.lse[r] = 100;
    assert_int_equal(sfc_head_plan(rig.head[0], 1, record.labels, NULL, &err), SFC_OK);
    assert_int_equal(sfc_head_logits(rig.head[0], items, 2, &err), SFC_OK);
    assert_int_equal(sfc_head_gradient(rig.head[0], gradients, 2, &err), SFC_EINVAL);
    gradients[1].dx = dx;
    assert_int_equal(sfc_head_gradient(rig.head[0], gradients, 2, &err), SFC_OK);
    rig_close(&rig);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_of_different_steps_meet),
        cmocka_unit_test(blocks_ahead_are_left_out),
        cmocka_unit_test(dx_is_wanted_of_all_or_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
