/* A shard, or a mirror, is given up for lost, in the run's machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/run_rig.h"

static void lose(struct fixture *f, uint32_t shard, uint32_t adopter)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_ORDER,
                                   .number = ORDER,
                                   .order = SFC_ORDER_LOSS,
                                   .shard = shard,
                                   .adopters = &adopter,
                                   .adopter_count = 1});
}

static void three(struct fixture *f)
{
    f->config.shards = 3;
    f->ids[2] = 12;
    begin(f, NULL);
    commit(f);
}

static void gone(struct fixture *f, uint32_t k)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = k});
    tick(f, 1);
}

/* The flip of a LOSS after step 1: shard 0 is given up, shard 1 takes its blocks. */
static void assert_flips(struct fixture *f)
{
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_ADOPT);
    assert_true(a && a->step == 1 && a->record.step == 1 && a->number == ORDER);
    assert_null(find(f, SFC_ACT_WRITE_MAP)); /* not before it says that it can */
    refuse(f, 1, SFC_DUTY_ADOPT, SFC_EUNAVAILABLE);
    tick(f, 20000); /* it reads as long as it takes */
    answer(f, 1, SFC_DUTY_ADOPT);
    a = find(f, SFC_ACT_WRITE_MAP);
    assert_true(a && a->step == 1 && a->version == 2);
    durable(f);
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_EMPTY);
    a = sent(f, 1, SFC_DUTY_OPEN);
    assert_true(a && a->recover && a->step == 1);
    assert_false(wanted(f, 1, SFC_DUTY_SETMAP));
    assert_non_null(sent(f, 2, SFC_DUTY_SETMAP));
    answer(f, 2, SFC_DUTY_SETMAP);
    a = find(f, SFC_ACT_ORDER_DONE);
    assert_true(a && a->code == SFC_OK && f->run.config.map_version == 2);
    assert_false(sent(f, 2, SFC_DUTY_PLAN));
    answer(f, 1, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(sfc_run_may_order(&f->run));
    commit(f);
    assert_int_equal(f->run.commit.record.map_version, 2);
}

/* In whatever phase the step is when the shard dies, that step is void or its record decides. */
static void test_loss(void **state)
{
    struct fixture *f = *state;
    three(f);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    lose(f, 0, 1);
    assert_void(f, SFC_ESTATE); /* it answers */
    gone(f, 0);
    tick(f, 500);
    assert_int_equal(sfc_run_missing(&f->run, 0, f->now), 500);
    assert_int_equal(sfc_run_missing(&f->run, 1, f->now), 0);
    done(f, 2, grant(f));
    answer(f, 1, SFC_DUTY_PREPARE);
    lose(f, 0, 1);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_ROUND);
    answer(f, 1, SFC_DUTY_ABORT);
    assert_false(wanted(f, 1, SFC_DUTY_ADOPT));
    answer(f, 2, SFC_DUTY_ABORT);
    assert_flips(f);
}

static void test_loss_while_the_record_is_written(void **state)
{
    struct fixture *f = *state;
    three(f);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    done(f, 2, grant(f));
    answer_all(f, SFC_DUTY_PREPARE);
    gone(f, 0);
    lose(f, 0, 1);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_RECORD);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 2});
    answer(f, 1, SFC_DUTY_COMMIT);
    assert_false(wanted(f, 1, SFC_DUTY_ADOPT));
    answer(f, 2, SFC_DUTY_COMMIT);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_ADOPT);
    assert_true(a && a->step == 2);
}

static void test_loss_of_provisional_steps(void **state)
{
    struct fixture *f = *state;
    f->config.durable_every = 20;
    three(f);
    assert_int_equal(sfc_run_durable_step(&f->run), 0);
    gone(f, 0);
    lose(f, 0, 1);
    tick(f, 100);
    assert_non_null(find(f, SFC_ACT_FORGET_RECORDS));
    assert_int_equal(sfc_run_committed(&f->run), 0);
    for (uint32_t k = 1; k < 3; k++) {
        answer(f, k, SFC_DUTY_OPEN);
        answer(f, k, SFC_DUTY_ABORT);
    }
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
}

/* A move that is under way is void; a rewind, too. */
static void test_loss_ends_a_rewind(void **state)
{
    struct fixture *f = *state;
    three(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_REWIND, .step = 0});
    assert_non_null(sent(f, 0, SFC_DUTY_CHECK));
    gone(f, 0);
    lose(f, 0, 1);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY);
    assert_true(a && a->code == SFC_EUNAVAILABLE);
    assert_false(wanted(f, 1, SFC_DUTY_CHECK));
    step(f, (struct sfc_run_event){.type = SFC_EV_REWIND, .step = 0});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_EUNAVAILABLE);
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
}

static void test_lost_shard_answers_again(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    lose(f, 0, 1);
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_BACK, .shard = 0});
    assert_void(f, SFC_ECANCELED);
    assert_false(wanted(f, 1, SFC_DUTY_ADOPT));
    commit(f);
}

/* It says that it can't: nothing has changed. */
static void test_adopter_refuses(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    lose(f, 0, 1);
    refuse(f, 1, SFC_DUTY_ADOPT, SFC_ENOMEM);
    assert_void(f, SFC_ENOMEM);
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_MEMBER);
    lose(f, 0, 1);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 1});
    assert_void(f, SFC_EUNAVAILABLE);
}

/* While the map is on its way nothing takes it back, though the shard answers again; it is none of
 * the run any more. */
static void test_lost_shard_is_late(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    lose(f, 0, 1);
    answer(f, 1, SFC_DUTY_ADOPT);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_BACK, .shard = 0});
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    durable(f);
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_CLOSING);
    assert_non_null(sent(f, 0, SFC_DUTY_CLOSE));
    assert_true(wanted(f, 1, SFC_DUTY_OPEN));
}

/* Two at once: neither waits for the other. */
static void test_two_lost(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    gone(f, 2);
    lose(f, 0, 1);
    answer(f, 1, SFC_DUTY_ADOPT);
    durable(f);
    assert_done(f); /* the other one gets the map when it is back */
    assert_true(wanted(f, 2, SFC_DUTY_SETMAP));
    answer(f, 1, SFC_DUTY_OPEN);
    answer(f, 1, SFC_DUTY_ABORT);
    lose(f, 2, 1);
    answer(f, 1, SFC_DUTY_ADOPT);
    durable(f);
    assert_int_equal(f->run.config.map_version, 3);
    assert_false(wanted(f, 2, SFC_DUTY_SETMAP));
    answer(f, 1, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
}

/* Shard 0, which mirrors shard 2, is to go; shard 1 takes its blocks, and `other` can restore those
 * of shard 2 as well (2: nobody can). */
static void lose_mirror(struct fixture *f, uint32_t other)
{
    const uint32_t adopter = 1;
    const struct sfc_run_ward ward = {.place = 2, .others = {.count = other != 2, .at = {other}}};
    step(f, (struct sfc_run_event){.type = SFC_EV_ORDER,
                                   .number = ORDER,
                                   .order = SFC_ORDER_LOSS,
                                   .shard = 0,
                                   .adopters = &adopter,
                                   .adopter_count = 1,
                                   .wards = &ward,
                                   .ward_count = 1});
}

/* Whoever has the only copies of another missing shard stays until one of the two is back. */
static void test_mirror_of_a_missing_shard(void **state)
{
    struct fixture *f = *state;
    const struct sfc_run_ward ward = {.place = 2};
    three(f);
    gone(f, 0);
    assert_false(sfc_run_endangers(&f->run, &ward));
    gone(f, 2);
    assert_true(sfc_run_endangers(&f->run, &ward));
    lose_mirror(f, 2);
    assert_void(f, SFC_EUNAVAILABLE);
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_MEMBER);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_BACK, .shard = 2});
    lose_mirror(f, 2);
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 2}); /* shard 1 reads */
    assert_void(f, SFC_EUNAVAILABLE);
    assert_false(wanted(f, 1, SFC_DUTY_ADOPT));
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_MEMBER);
}

/* One whose process is a new one may have lost its disk. */
static void test_mirror_of_a_shard_that_recovers(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    lose_mirror(f, 2);
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 2});
    assert_void(f, SFC_EUNAVAILABLE);
    answer(f, 1, SFC_DUTY_ABORT);
    answer(f, 2, SFC_DUTY_OPEN);
    lose_mirror(f, 2);
    answer(f, 2, SFC_DUTY_ABORT);
    assert_flips(f);
}

/* A third one can restore it. */
static void test_mirror_that_is_not_the_only_one(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    gone(f, 2);
    lose_mirror(f, 1);
    answer(f, 1, SFC_DUTY_ADOPT);
    durable(f);
    assert_done(f);
    assert_int_equal(f->run.shards[0].place, SFC_PLACE_EMPTY);
}

/* It was missing at the boundary, with a plan, and is there when the map is written: the map's
 * round ends what it has open. */
static void test_back_while_adopters_are_asked(void **state)
{
    struct fixture *f = *state;
    three(f);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    const struct sfc_attempt planned = f->run.commit.round;
    gone(f, 0);
    gone(f, 2);
    lose(f, 0, 1);
    answer(f, 1, SFC_DUTY_ABORT);
    assert_true(wanted(f, 1, SFC_DUTY_ADOPT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_BACK, .shard = 2});
    answer(f, 1, SFC_DUTY_ADOPT);
    durable(f);
    const struct sfc_run_action *a = sent(f, 2, SFC_DUTY_SETMAP);
    assert_true(a && sfc_attempt_compare(a->round, planned) > 0);
    assert_true(wanted(f, 2, SFC_DUTY_ABORT));
    answer(f, 2, SFC_DUTY_SETMAP);
    answer(f, 1, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
    assert_int_equal(f->run.commit.record.map_version, 2);
}

/* We were restarted, and the lost shard is not there to tell us where it is. */
static void test_loss_after_our_restart(void **state)
{
    struct fixture *f = *state;
    const struct sfc_run_restore restore = {
        .has_record = true,
        .record = {.step = 1, .round = {1, 40}, .clip_scale = 1, .apply = true},
        .state = SFC_RUN_RUNNING};
    f->config.incarnation = 2;
    f->config.shards = 3;
    f->ids[2] = 12;
    begin(f, &restore);
    step(f, back(2, 1, 1));
    lose(f, 0, 1); /* the adopter is not known either */
    assert_int_equal(find(f, SFC_ACT_ORDER_DONE)->code, SFC_EUNAVAILABLE);
    step(f, back(1, 1, 1));
    answer_all(f, SFC_DUTY_ABORT);
    tick(f, 1000);
    assert_true(sfc_run_missing(&f->run, 0, f->now) >= 1000);
    lose(f, 0, 1);
    assert_flips(f);
    assert_false(f->run.restoring);
}

/* Its process is there with an empty disk, and refuses to recover. */
static void test_loss_of_a_disk(void **state)
{
    struct fixture *f = *state;
    three(f);
    gone(f, 0);
    tick(f, 500);
    assert_int_equal(sfc_run_missing(&f->run, 0, f->now), 500);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 0});
    assert_int_equal(sfc_run_missing(&f->run, 0, f->now), 0); /* before the next tick, too */
    lose(f, 0, 1);
    assert_void(f, SFC_ESTATE); /* it recovers */
    tick(f, 500);
    refuse(f, 0, SFC_DUTY_OPEN, SFC_ESTATE);
    tick(f, 1000);
    tick(f, 1000);
    assert_int_equal(sfc_run_missing(&f->run, 0, f->now), 1000);
    answer(f, 1, SFC_DUTY_ABORT);
    answer(f, 2, SFC_DUTY_ABORT);
    lose(f, 0, 1);
    answer(f, 1, SFC_DUTY_ADOPT);
    durable(f);
    assert_non_null(sent(f, 0, SFC_DUTY_CLOSE));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_loss),
        TEST(test_loss_while_the_record_is_written),
        TEST(test_loss_of_provisional_steps),
        TEST(test_loss_ends_a_rewind),
        TEST(test_lost_shard_answers_again),
        TEST(test_adopter_refuses),
        TEST(test_lost_shard_is_late),
        TEST(test_two_lost),
        TEST(test_mirror_of_a_missing_shard),
        TEST(test_mirror_of_a_shard_that_recovers),
        TEST(test_mirror_that_is_not_the_only_one),
        TEST(test_back_while_adopters_are_asked),
        TEST(test_loss_after_our_restart),
        TEST(test_loss_of_a_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
