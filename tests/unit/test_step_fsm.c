/* The shard's machine: order of a step, refusals, repeats, parking, rounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "server/core/step_fsm.h"

#define J 2
#define B 4

struct fixture {
    struct sfc_step_fsm s;
    struct sfc_step_actions a;
    uint64_t token;
    uint64_t jobs_done;
};

static const uint64_t labels[B] = {1, 2, 3, 4};
static const struct sfc_head_digest head = {{9}};
static const uint64_t dense[1] = {77};

static int set_up(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof(f));
    const struct sfc_step_config config = {.run_id = 1,
                                           .incarnation = 1,
                                           .map_version = 1,
                                           .global_batch = B,
                                           .micro_batch = 2,
                                           .dense_blocks = 1,
                                           .max_parked = 3};
    assert_int_equal(sfc_step_init(&f.s, &config, NULL), SFC_OK);
    assert_int_equal(sfc_step_actions_init(&f.a, &f.s, NULL), SFC_OK);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    sfc_step_free(&f->s);
    sfc_step_actions_free(&f->a);
    return 0;
}

static struct sfc_step_event event(enum sfc_step_event_type type, uint64_t step)
{
    return (struct sfc_step_event){.type = type,
                                   .run_id = 1,
                                   .incarnation = 1,
                                   .round = {1, 0},
                                   .step = step,
                                   .map_version = 1,
                                   .lr = 0.5,
                                   .labels = labels,
                                   .count = B,
                                   .clip_scale = 1,
                                   .apply = true,
                                   .digest = 42};
}

static uint64_t step(struct fixture *f, struct sfc_step_event e)
{
    e.token = ++f->token;
    sfc_step_step(&f->s, &e, &f->a);
    return f->token;
}

static void job_done(struct fixture *f, int code)
{
    static const struct sfc_own_dense_sum sums[1] = {{25.0, true}};
    struct sfc_step_event e = {.type = SFC_SE_JOB_DONE, .code = code, .text = "broken"};
    e.job = ++f->jobs_done;
    e.head_digest = head;
    e.dense_digests = dense;
    e.sums = sums;
    e.head_finite = true;
    sfc_step_step(&f->s, &e, &f->a);
}

static void flushed(struct fixture *f, int code)
{
    struct sfc_step_event e = {.type = SFC_SE_FLUSHED, .code = code, .text = "no space"};
    sfc_step_step(&f->s, &e, &f->a);
}

static const struct sfc_step_action *only(struct fixture *f, enum sfc_step_action_type type)
{
    assert_int_equal(f->a.count, 1);
    assert_int_equal(f->a.items[0].type, type);
    return &f->a.items[0];
}

static void refused(struct fixture *f, int code, const char *words)
{
    const struct sfc_step_action *a = only(f, SFC_SA_FAIL);
    assert_int_equal(a->code, code);
    assert_int_equal(a->token, f->token);
    if (!strstr(a->text, words))
        fail_msg("'%s' does not say '%s'", a->text, words);
}

static void plan(struct fixture *f, uint64_t t)
{
    step(f, event(SFC_SE_PLAN, t));
    assert_int_equal(f->a.items[f->a.count - 1].type, SFC_SA_REPLY);
}

static void open_step(struct fixture *f, uint64_t t)
{
    plan(f, t);
    assert_int_equal(f->a.items[0].kind, SFC_JOB_PLAN);
    job_done(f, SFC_OK);
    assert_int_equal(f->s.phase, SFC_STEP_OPEN);
}

static void call(struct fixture *f, enum sfc_step_event_type type, uint64_t t, uint32_t j,
                 uint64_t counter)
{
    struct sfc_step_event e = event(type, t);
    e.j = j;
    e.attempt = (struct sfc_attempt){1, counter};
    step(f, e);
}

static void compute(struct fixture *f, uint64_t t, uint32_t j, uint64_t counter)
{
    static const enum sfc_step_event_type types[] = {SFC_SE_LOGITS, SFC_SE_GRADIENT, SFC_SE_DENSE};
    for (int i = 0; i < 3; i++) {
        call(f, types[i], t, j, counter);
        only(f, SFC_SA_START);
        job_done(f, SFC_OK);
        assert_int_equal(only(f, SFC_SA_REPLY)->call, types[i]);
    }
}

static void prepare(struct fixture *f, uint64_t t, uint64_t c0, uint64_t c1)
{
    const struct sfc_prepared prepared[J] = {{{1, c0}, head, dense}, {{1, c1}, head, dense}};
    struct sfc_step_event e = event(SFC_SE_PREPARE, t);
    e.prepared = prepared;
    e.prepared_count = J;
    step(f, e);
}

static void make_ready(struct fixture *f, uint64_t t)
{
    open_step(f, t);
    compute(f, t, 0, 10 * t);
    compute(f, t, 1, 10 * t + 1);
    prepare(f, t, 10 * t, 10 * t + 1);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_PREPARE);
    job_done(f, SFC_OK);
    assert_int_equal(only(f, SFC_SA_FLUSH)->step, t);
    flushed(f, SFC_OK);
    assert_true(only(f, SFC_SA_REPLY_PREPARE)->ready);
}

static void commit(struct fixture *f, uint64_t t)
{
    step(f, event(SFC_SE_COMMIT, t));
    const struct sfc_step_action *a = only(f, SFC_SA_START);
    assert_int_equal(a->kind, SFC_JOB_COMMIT);
    assert_true(a->lr == 0.5 && a->clip_scale == 1 && a->apply);
    job_done(f, SFC_OK);
}

static void test_two_steps(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    assert_int_equal(sfc_step_prepared(&f->s), 1);
    assert_true(f->s.sums[0].sum_of_squares == 25.0);
    commit(f, 1);
    assert_int_equal(only(f, SFC_SA_REPLY)->call, SFC_SE_COMMIT);
    assert_int_equal(sfc_step_applied(&f->s), 1);
    assert_int_equal(sfc_step_prepared(&f->s), 0);
    make_ready(f, 2);
    commit(f, 2);
    assert_int_equal(sfc_step_applied(&f->s), 2);
    step(f, event(SFC_SE_COMMIT, 2)); /* again */
    only(f, SFC_SA_REPLY);
    step(f, event(SFC_SE_COMMIT, 4));
    refused(f, SFC_ESTATE, "step 2 is applied");
}

static void test_early_plan_is_sampled_after_commit(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    plan(f, 2);
    assert_int_equal(f->a.count, 1); /* kept, no job */
    call(f, SFC_SE_LOGITS, 2, 0, 50);
    assert_int_equal(f->a.count, 0); /* parked until the commit is applied */
    commit(f, 1);
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[1].kind, SFC_JOB_PLAN);
    job_done(f, SFC_OK);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_LOGITS);
    step(f, event(SFC_SE_PLAN, 4));
    refused(f, SFC_ESTATE, "step 1 is applied");
}

static void test_refusals_say_both_values(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_PLAN, 1);
    e.run_id = 8, step(f, e), refused(f, SFC_ESTALE, "run 8, but this shard holds run 1");
    e = event(SFC_SE_PLAN, 1), e.map_version = 3, step(f, e);
    refused(f, SFC_ESTALE, "map version 3, but 1");
    e = event(SFC_SE_PLAN, 1), e.round.counter = 9, step(f, e);
    refused(f, SFC_ESTATE, "round 1.9, but 1.0");
    e = event(SFC_SE_PLAN, 1), e.round.incarnation = 0, step(f, e);
    refused(f, SFC_ESTALE, "round 0.0, but 1.0");
    e = event(SFC_SE_PLAN, 1), e.count = 3, step(f, e);
    refused(f, SFC_EINVAL, "3 labels for a batch of 4");
    open_step(f, 1);
    call(f, SFC_SE_LOGITS, 1, 2, 5), refused(f, SFC_EINVAL, "micro-batch 2");
    call(f, SFC_SE_LOGITS, 1, 0, 0), refused(f, SFC_ESTALE, "void");
    call(f, SFC_SE_LOGITS, 0, 0, 5), refused(f, SFC_ESTALE, "applied");
    call(f, SFC_SE_LOGITS, 7, 0, 5), refused(f, SFC_ESTALE, "too early");
    call(f, SFC_SE_GRADIENT, 1, 0, 5), refused(f, SFC_ESTALE, "never begun");
    step(f, event(SFC_SE_COMMIT, 1)), refused(f, SFC_ESTATE, "next is open");
    e = event(SFC_SE_COMMIT, 1), e.incarnation = 0, step(f, e);
    refused(f, SFC_ESTALE, "incarnation 0, but 1");
}

static void test_repeats_and_conflicts(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_LOGITS, 1);
    e.attempt = (struct sfc_attempt){1, 10};
    open_step(f, 1);
    step(f, e);
    step(f, e); /* the same while the job runs: waits */
    assert_int_equal(f->a.count, 0);
    job_done(f, SFC_OK);
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[0].slot, f->a.items[1].slot);
    e.digest = 43, step(f, e), refused(f, SFC_ECONFLICT, "another body");
}

static void test_answers_outlive_the_commit(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    call(f, SFC_SE_LOGITS, 1, 0, 99);
    refused(f, SFC_ESTALE, "prepared");
    commit(f, 1);
    call(f, SFC_SE_GRADIENT, 1, 1, 11);
    assert_int_equal(only(f, SFC_SA_REPLY)->generation, 1);
    make_ready(f, 2);
    call(f, SFC_SE_GRADIENT, 1, 1, 11);
    only(f, SFC_SA_REPLY); /* still there: step 2 isn't committed */
    commit(f, 2);
    open_step(f, 3); /* takes over the memory of step 1 */
    call(f, SFC_SE_GRADIENT, 1, 1, 11);
    refused(f, SFC_ESTALE, "applied");
}

static void test_prepare_checks(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    compute(f, 1, 0, 10);
    prepare(f, 1, 10, 11);
    const struct sfc_step_action *a = only(f, SFC_SA_REPLY_PREPARE);
    assert_false(a->ready);
    assert_int_equal(a->missing_count, 1);
    assert_int_equal(a->missing[0], 1);
    compute(f, 1, 1, 11);
    prepare(f, 1, 9, 11); /* another attempt than the one that is here */
    assert_int_equal(only(f, SFC_SA_REPLY_PREPARE)->missing[0], 0);
    f->s.attempts[1].slots[0].head_digest.bytes[0]++; /* other bytes than the worker meant */
    prepare(f, 1, 10, 11);
    assert_false(only(f, SFC_SA_REPLY_PREPARE)->ready);
    f->s.attempts[1].slots[0].head_digest.bytes[0]--;
    prepare(f, 1, 10, 11);
    only(f, SFC_SA_START);
    uint64_t first = f->token;
    prepare(f, 1, 10, 11); /* a repeat takes the place of the call that waits */
    assert_int_equal(only(f, SFC_SA_FAIL)->token, first);
    job_done(f, SFC_OK);
    only(f, SFC_SA_FLUSH);
    first = f->token;
    prepare(f, 1, 10, 11);
    assert_int_equal(only(f, SFC_SA_FAIL)->token, first);
    flushed(f, SFC_OK);
    assert_int_equal(only(f, SFC_SA_REPLY_PREPARE)->token, f->token);
    prepare(f, 1, 10, 11);
    assert_true(only(f, SFC_SA_REPLY_PREPARE)->ready);
    prepare(f, 1, 10, 12);
    refused(f, SFC_ECONFLICT, "other attempts");
}

/* Up to the FLUSH of step 1. */
static void flush(struct fixture *f)
{
    prepare(f, 1, 10, 11);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_PREPARE);
    job_done(f, SFC_OK);
    const struct sfc_step_action *a = only(f, SFC_SA_FLUSH);
    assert_int_equal(a->step, 1);
    assert_int_equal(a->generation, 1);
    assert_true(a->lr == 0.5);
    assert_int_equal(f->s.attempts[1].slots[a->slots[1]].attempt.counter, 11);
}

static void test_ready_only_when_durable(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    compute(f, 1, 0, 10);
    compute(f, 1, 1, 11);
    flush(f);
    assert_int_equal(sfc_step_prepared(&f->s), 0);
    step(f, event(SFC_SE_COMMIT, 1));
    refused(f, SFC_ESTATE, "next is flushing");
    uint64_t waiting = f->s.prepare_token;
    flushed(f, SFC_EIO);
    const struct sfc_step_action *a = only(f, SFC_SA_FAIL);
    assert_int_equal(a->token, waiting);
    assert_int_equal(a->code, SFC_EUNAVAILABLE); /* whatever it was: Prepare may come again */
    assert_non_null(strstr(a->text, "no space"));
    assert_int_equal(f->s.phase, SFC_STEP_OPEN);
    flush(f); /* the attempts are still there */
    flushed(f, SFC_OK);
    assert_true(only(f, SFC_SA_REPLY_PREPARE)->ready);
    assert_int_equal(sfc_step_prepared(&f->s), 1);
}

static void test_abort_waits_for_the_flush(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_ABORT, 1);
    e.round.counter = 5;
    for (int ok = 0; ok < 2; ok++) {
        open_step(f, 1);
        compute(f, 1, 0, 10);
        compute(f, 1, 1, 11);
        flush(f);
        step(f, e);
        assert_int_equal(f->a.count, 0); /* the log may still read the slots */
        assert_int_equal(f->s.phase, SFC_STEP_FLUSHING);
        flushed(f, ok ? SFC_OK : SFC_EIO);
        assert_int_equal(f->a.count, 2); /* Prepare's answer, then Abort's */
        assert_int_equal(f->a.items[1].type, SFC_SA_REPLY);
        assert_int_equal(f->a.items[1].token, f->token);
        assert_int_equal(f->s.phase, SFC_STEP_IDLE);
        assert_int_equal(f->s.round.counter, e.round.counter);
        f->s.round.counter = 0; /* that of the helpers */
    }
}

static void test_commit_says_what_the_log_needs(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    struct sfc_step_event e = event(SFC_SE_COMMIT, 1);
    e.apply = false;
    e.clip_scale = 0.25;
    step(f, e);
    const struct sfc_step_action *a = only(f, SFC_SA_START);
    assert_int_equal(a->step, 1);
    assert_true(a->round.incarnation == 1 && a->round.counter == 0);
    assert_true(!a->apply && a->clip_scale == 0.25);
}

static void test_abort_voids_everything(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_ABORT, 1);
    make_ready(f, 1);
    e.round.counter = 20;
    step(f, e);
    only(f, SFC_SA_REPLY);
    assert_int_equal(f->s.phase, SFC_STEP_IDLE);
    step(f, e); /* a late copy: no effect */
    only(f, SFC_SA_REPLY);
    step(f, event(SFC_SE_COMMIT, 1));
    refused(f, SFC_ESTATE, "round 1.0");
    call(f, SFC_SE_LOGITS, 1, 0, 20);
    refused(f, SFC_ESTALE, "void");
    call(f, SFC_SE_LOGITS, 1, 0, 21); /* waits for the new plan */
    assert_int_equal(f->a.count, 0);
    step(f, event(SFC_SE_PLAN, 1));
    refused(f, SFC_ESTALE, "round 1.0, but 1.20");
}

static void test_commit_after_a_restart(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_COMMIT, 1);
    make_ready(f, 1);
    e.incarnation = 2; /* the record was written by incarnation 1: its round still counts */
    step(f, e);
    only(f, SFC_SA_START);
    step(f, event(SFC_SE_ABORT, 1));
    job_done(f, SFC_OK);
    assert_int_equal(sfc_step_applied(&f->s), 1);
    e = event(SFC_SE_ABORT, 1), e.round.incarnation = 2, step(f, e);
    refused(f, SFC_ESTATE, "step 1 is applied");
    e = event(SFC_SE_ABORT, 2), e.round.incarnation = 2, step(f, e);
    only(f, SFC_SA_REPLY);
    step(f, event(SFC_SE_PLAN, 2));
    refused(f, SFC_ESTALE, "round 1.0, but 2.0");
}

static void test_pull_waits_for_its_step(void **state)
{
    struct fixture *f = *state;
    step(f, event(SFC_SE_PULL, 0));
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_PULL);
    job_done(f, SFC_OK);
    make_ready(f, 1);
    step(f, event(SFC_SE_PULL, 1));
    assert_int_equal(f->a.count, 0);
    commit(f, 1);
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[1].kind, SFC_JOB_PULL);
    step(f, event(SFC_SE_PULL, 0));
    refused(f, SFC_ESTALE, "step 1 is applied");
}

/* The run went back: nobody waits any more for the step that a void grant named. */
static void test_a_pull_of_a_void_grant(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_event e = event(SFC_SE_PULL, 1);
    e.attempt = (struct sfc_attempt){1, 7};
    step(f, e);
    assert_int_equal(f->a.count, 0); /* it waits for step 1 */
    struct sfc_step_event round = event(SFC_SE_ABORT, 1);
    round.round = (struct sfc_attempt){1, 8};
    step(f, round);
    bool ended = false;
    for (size_t i = 0; i < f->a.count; i++)
        ended = ended || (f->a.items[i].type == SFC_SA_FAIL && f->a.items[i].code == SFC_ESTALE);
    assert_true(ended);
    step(f, e);
    refused(f, SFC_ESTALE, "attempt 1.7 is void");
    e.attempt.counter = 9;
    step(f, e);
    assert_int_equal(f->a.count, 0);
}

static void test_parking_is_bounded_and_cancellable(void **state)
{
    struct fixture *f = *state;
    for (uint64_t i = 1; i <= 3; i++)
        call(f, SFC_SE_LOGITS, 1, 0, i);
    call(f, SFC_SE_LOGITS, 1, 0, 4);
    refused(f, SFC_ELIMIT, "wait already");
    struct sfc_step_event e = {.type = SFC_SE_CANCEL, .token = 2};
    sfc_step_step(&f->s, &e, &f->a);
    assert_int_equal(only(f, SFC_SA_FAIL)->code, SFC_ECANCELED);
    plan(f, 1);
    job_done(f, SFC_OK);
    assert_int_equal(f->a.count, 2); /* the two that still waited */
}

static void test_eviction(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    for (uint64_t c = 1; c <= 4; c++) /* J + 2 slots */
        compute(f, 1, 0, c);
    compute(f, 1, 1, 5); /* evicts the oldest attempt of 0 */
    call(f, SFC_SE_GRADIENT, 1, 0, 1);
    refused(f, SFC_ESTALE, "evicted");
    prepare(f, 1, 4, 5);
    only(f, SFC_SA_START);
}

/* Retries of a micro-batch whose workers die on the way don't evict an attempt that may be the
 * one that counts: the first that was completed. */
static void test_eviction_keeps_what_is_complete(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    compute(f, 1, 0, 1);
    compute(f, 1, 1, 2);
    for (uint64_t c = 3; c <= 8; c++) { /* J + 2 slots, and four more */
        call(f, SFC_SE_LOGITS, 1, 0, c);
        only(f, SFC_SA_START);
        job_done(f, SFC_OK);
        only(f, SFC_SA_REPLY);
    }
    call(f, SFC_SE_GRADIENT, 1, 0, 6);
    refused(f, SFC_ESTALE, "evicted");
    prepare(f, 1, 1, 2);
    only(f, SFC_SA_START);
}

/* Nor does it while the only other one to evict still has a job. */
static void test_eviction_waits_for_jobs(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    compute(f, 1, 0, 1);
    compute(f, 1, 1, 2);
    for (uint64_t c = 3; c <= 4; c++) {
        call(f, SFC_SE_LOGITS, 1, 0, c);
        only(f, SFC_SA_START);
        if (c == 3)
            job_done(f, SFC_OK);
    }
    call(f, SFC_SE_GRADIENT, 1, 0, 3);
    call(f, SFC_SE_LOGITS, 1, 0, 5); /* 3 and 4 are at work */
    assert_int_equal(f->a.count, 0);
}

static void test_a_failed_job(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    call(f, SFC_SE_LOGITS, 1, 0, 1);
    job_done(f, SFC_EINVAL); /* features that aren't finite, say */
    refused(f, SFC_EINVAL, "broken");
    call(f, SFC_SE_LOGITS, 1, 0, 1);
    only(f, SFC_SA_START); /* may be tried again */
    job_done(f, SFC_OK);
    compute(f, 1, 0, 10);
    compute(f, 1, 1, 11);
    prepare(f, 1, 10, 11);
    job_done(f, SFC_EDEVICE);
    refused(f, SFC_EDEVICE, "Prepare of step 1 failed: broken");
}

static void test_a_broken_shard_says_so(void **state)
{
    struct fixture *f = *state;
    plan(f, 1);
    job_done(f, SFC_EDEVICE);
    step(f, event(SFC_SE_PLAN, 1));
    refused(f, SFC_EDEVICE, "the plan of step 1 failed: broken");
    call(f, SFC_SE_LOGITS, 1, 0, 1);
    refused(f, SFC_EDEVICE, "broken");
}

static void test_open_run_again(void **state)
{
    struct fixture *f = *state;
    const struct sfc_attempt first = {1, 0}, second = {1, 7}, third = {1, 9}, other = {2, 0};
    assert_int_equal(sfc_step_opens(&f->s, first, false, 0), SFC_STEP_OPEN_HERE);
    make_ready(f, 1);
    commit(f, 1);
    make_ready(f, 2);
    assert_int_equal(sfc_step_opens(&f->s, first, true, 1), SFC_STEP_OPEN_HERE);
    assert_int_equal(sfc_step_opens(&f->s, first, true, 2), SFC_STEP_OPEN_HERE);  /* prepared */
    assert_int_equal(sfc_step_opens(&f->s, first, true, 0), SFC_STEP_OPEN_STALE); /* a late one */
    assert_int_equal(sfc_step_opens(&f->s, second, true, 0), SFC_STEP_OPEN_ANEW);
    assert_int_equal(sfc_step_opens(&f->s, third, true, 1), SFC_STEP_OPEN_HERE);
    assert_int_equal(sfc_attempt_compare(sfc_step_newest_round(&f->s), third), 0);
    assert_int_equal(sfc_step_opens(&f->s, second, true, 0), SFC_STEP_OPEN_STALE);
    /* The run is at step 1: a Commit that was sent before it went there is too late, */
    step(f, event(SFC_SE_COMMIT, 2));
    refused(f, SFC_ESTALE, "has gone back to step 1");
    /* but not that of a scheduler that was restarted and knows the record. */
    struct sfc_step_event e = event(SFC_SE_COMMIT, 2);
    e.incarnation = 2;
    step(f, e);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_COMMIT);
    assert_int_equal(sfc_step_opens(&f->s, other, true, 1), SFC_STEP_OPEN_ANEW); /* too late */
    assert_int_equal(sfc_step_opens(&f->s, other, true, 2), SFC_STEP_OPEN_HERE);
}

/* A copy of an OpenRun that succeeded comes when a flush has failed. The scheduler counts on the
 * open run and waits for its Prepare: what closed the run now would close it for good. */
static void test_a_copy_of_an_answered_open_run(void **state)
{
    struct fixture *f = *state;
    const struct sfc_attempt first = {1, 0}, second = {1, 7}, third = {1, 9};
    assert_int_equal(sfc_step_opens(&f->s, first, true, 0), SFC_STEP_OPEN_HERE); /* no answer yet */
    sfc_step_opened(&f->s);
    assert_int_equal(sfc_step_opens(&f->s, first, true, 0), SFC_STEP_OPEN_ANSWERED);
    open_step(f, 1);
    compute(f, 1, 0, 10);
    compute(f, 1, 1, 11);
    prepare(f, 1, 10, 11);
    job_done(f, SFC_OK);
    const struct sfc_step_event e = {
        .type = SFC_SE_FLUSHED, .code = SFC_EIO, .text = "the disk failed", .lost = true};
    sfc_step_step(&f->s, &e, &f->a);
    refused(f, SFC_EIO, "the disk failed");
    assert_int_equal(sfc_step_opens(&f->s, first, true, 0), SFC_STEP_OPEN_ANSWERED);
    /* The next round has to see to the disk, until that has been answered. */
    assert_int_equal(sfc_step_opens(&f->s, second, true, 0), SFC_STEP_OPEN_HERE);
    assert_int_equal(sfc_step_opens(&f->s, second, true, 0), SFC_STEP_OPEN_HERE);
    assert_int_equal(sfc_step_opens(&f->s, first, true, 0), SFC_STEP_OPEN_STALE);
    sfc_step_opened(&f->s);
    assert_int_equal(sfc_step_opens(&f->s, second, true, 0), SFC_STEP_OPEN_ANSWERED);
    assert_int_equal(sfc_step_opens(&f->s, third, true, 0), SFC_STEP_OPEN_HERE);
}

static void set_map(struct fixture *f, uint64_t t, uint64_t version)
{
    struct sfc_step_event e = event(SFC_SE_MAP, t);
    e.map_version = version;
    e.dense_blocks = 1;
    step(f, e);
}

static void test_a_map_at_the_boundary(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    set_map(f, 1, 2); /* not applied yet */
    refused(f, SFC_ESTATE, "ready");
    commit(f, 1);
    set_map(f, 2, 2);
    refused(f, SFC_ESTATE, "step 1 is applied");
    set_map(f, 1, 2);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_MAP);
    uint64_t first = f->token;
    call(f, SFC_SE_LOGITS, 2, 0, 20); /* of the old version: waits, and is refused then */
    assert_int_equal(f->a.count, 0);
    step(f, event(SFC_SE_PULL, 1));
    assert_int_equal(f->a.count, 0);
    set_map(f, 1, 2); /* again */
    assert_int_equal(only(f, SFC_SA_FAIL)->token, first);
    uint64_t second = f->token;
    job_done(f, SFC_OK);
    assert_int_equal(f->a.count, 3);
    assert_int_equal(f->a.items[0].type, SFC_SA_REPLY);
    assert_int_equal(f->a.items[0].token, second);
    for (int i = 1; i < 3; i++) {
        assert_int_equal(f->a.items[i].type, SFC_SA_FAIL);
        assert_int_equal(f->a.items[i].code, SFC_ESTALE);
    }
    set_map(f, 1, 2); /* it is here */
    only(f, SFC_SA_REPLY);
    set_map(f, 1, 1);
    refused(f, SFC_ESTALE, "version 2");
    step(f, event(SFC_SE_PLAN, 2));
    refused(f, SFC_ESTALE, "map version 1");
    struct sfc_step_event e = event(SFC_SE_PLAN, 2);
    e.map_version = 2;
    step(f, e);
    assert_int_equal(f->a.items[0].kind, SFC_JOB_PLAN);
}

static void test_a_map_voids_by_its_round(void **state)
{
    struct fixture *f = *state;
    open_step(f, 1);
    set_map(f, 0, 2); /* the plan stands in this round */
    refused(f, SFC_ESTATE, "open");
    struct sfc_step_event e = event(SFC_SE_MAP, 0);
    e.map_version = 2;
    e.round = (struct sfc_attempt){2, 3};
    step(f, e);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_MAP);
    struct sfc_step_event abort_it = event(SFC_SE_ABORT, 1);
    abort_it.round = (struct sfc_attempt){2, 4};
    step(f, abort_it); /* waits */
    assert_int_equal(f->a.count, 0);
    job_done(f, SFC_OK);
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[1].call, SFC_SE_ABORT);
    assert_int_equal(f->s.round.counter, 4);
    assert_int_equal(f->s.config.dense_blocks, 0);
    e.round = (struct sfc_attempt){2, 3};
    e.map_version = 3;
    step(f, e);
    refused(f, SFC_ESTALE, "round 2.4");
    e.round = (struct sfc_attempt){2, 4};
    step(f, e);
    job_done(f, SFC_EDEVICE);
    assert_int_equal(f->s.phase, SFC_STEP_FAILED);
    refused(f, SFC_EDEVICE, "broken");
}

/* Another shard had SetMap first: the session comes with the new map before this one has it. */
static void test_calls_of_the_next_map_wait(void **state)
{
    struct fixture *f = *state;
    make_ready(f, 1);
    commit(f, 1);
    static const enum sfc_step_event_type types[] = {SFC_SE_LOGITS, SFC_SE_PULL, SFC_SE_DENSE};
    uint64_t tokens[3];
    for (int i = 0; i < 3; i++) {
        struct sfc_step_event e = event(types[i], types[i] == SFC_SE_PULL ? 1 : 2);
        e.map_version = 2;
        e.attempt = types[i] == SFC_SE_PULL ? (struct sfc_attempt){0} : (struct sfc_attempt){1, 20};
        step(f, e);
        tokens[i] = f->token;
        if (types[i] == SFC_SE_DENSE) /* its size was checked by the map of now */
            refused(f, SFC_ESTALE, "map version 2, but 1");
        else
            assert_int_equal(f->a.count, 0);
    }
    struct sfc_step_event far = event(SFC_SE_LOGITS, 2);
    far.map_version = 3;
    step(f, far);
    refused(f, SFC_ESTALE, "map version 3, but 1");
    set_map(f, 1, 2);
    job_done(f, SFC_OK);
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[0].call, SFC_SE_MAP);
    assert_int_equal(f->a.items[1].kind, SFC_JOB_PULL);
    assert_int_equal(f->a.items[1].token, tokens[1]);
    job_done(f, SFC_OK);
    struct sfc_step_event plan = event(SFC_SE_PLAN, 2);
    plan.map_version = 2;
    step(f, plan);
    job_done(f, SFC_OK);
    assert_int_equal(only(f, SFC_SA_START)->kind, SFC_JOB_LOGITS);
    assert_int_equal(f->a.items[0].token, tokens[0]);
}

/* SetMap was refused, or its scheduler died: OpenRun brings the map, at the step where the machine
 * is. */
static void test_open_run_with_another_map(void **state)
{
    struct fixture *f = *state;
    const struct sfc_attempt first = {1, 0}, second = {1, 5}, third = {1, 7};
    assert_int_equal(sfc_step_opens_map(&f->s, second, true, 0, 1), SFC_STEP_OPEN_HERE);
    sfc_step_opened(&f->s);
    assert_int_equal(sfc_step_opens_map(&f->s, second, true, 0, 1), SFC_STEP_OPEN_ANSWERED);
    assert_int_equal(sfc_step_opens_map(&f->s, second, true, 0, 2), SFC_STEP_OPEN_ANEW);
    assert_int_equal(sfc_step_opens_map(&f->s, first, true, 0, 2), SFC_STEP_OPEN_STALE);
    set_map(f, 0, 2);
    job_done(f, SFC_OK);
    assert_int_equal(sfc_step_opens_map(&f->s, third, true, 0, 1), SFC_STEP_OPEN_STALE);
    assert_int_equal(sfc_step_opens_map(&f->s, third, true, 0, 2), SFC_STEP_OPEN_HERE);
}

static void test_a_joiner_jumps(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_fsm s;
    const struct sfc_step_config config = {.run_id = 1,
                                           .incarnation = 1,
                                           .map_version = 1,
                                           .start_step = 5,
                                           .joins = true,
                                           .global_batch = B,
                                           .micro_batch = 2,
                                           .max_parked = 3};
    assert_int_equal(sfc_step_init(&s, &config, NULL), SFC_OK);
    sfc_step_free(&f->s);
    f->s = s;
    set_map(f, 4, 2);
    refused(f, SFC_ESTATE, "step 5 is applied");
    set_map(f, 9, 2);
    job_done(f, SFC_OK);
    only(f, SFC_SA_REPLY);
    assert_int_equal(sfc_step_applied(&f->s), 9);
    set_map(f, 10, 3); /* a member by now */
    refused(f, SFC_ESTATE, "step 9 is applied");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_two_steps),
        TEST(test_early_plan_is_sampled_after_commit),
        TEST(test_refusals_say_both_values),
        TEST(test_repeats_and_conflicts),
        TEST(test_answers_outlive_the_commit),
        TEST(test_prepare_checks),
        TEST(test_ready_only_when_durable),
        TEST(test_abort_waits_for_the_flush),
        TEST(test_commit_says_what_the_log_needs),
        TEST(test_abort_voids_everything),
        TEST(test_commit_after_a_restart),
        TEST(test_pull_waits_for_its_step),
        TEST(test_a_pull_of_a_void_grant),
        TEST(test_parking_is_bounded_and_cancellable),
        TEST(test_eviction),
        TEST(test_eviction_keeps_what_is_complete),
        TEST(test_eviction_waits_for_jobs),
        TEST(test_a_failed_job),
        TEST(test_a_broken_shard_says_so),
        TEST(test_open_run_again),
        TEST(test_a_copy_of_an_answered_open_run),
        TEST(test_a_map_at_the_boundary),
        TEST(test_a_map_voids_by_its_round),
        TEST(test_a_joiner_jumps),
        TEST(test_calls_of_the_next_map_wait),
        TEST(test_open_run_with_another_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
