/* Shards that become members of a run or leave it, and members that lost the run, in the run's
 * machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/run_rig.h"

/* A member has no run, or another one, and was not restarted: one heartbeat may be old, two are
 * not. */
static void test_member_without_the_run(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    says(f, 1, 0);
    says(f, 1, f->config.run_id);
    says(f, 1, 0);
    assert_false(wanted(f, 1, SFC_DUTY_OPEN));
    says(f, 1, 99);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_OPEN);
    assert_true(a && a->recover && a->step == 1);
    assert_false(wanted(f, 0, SFC_DUTY_OPEN));
    says(f, 1, 0); /* it is about to open it */
    says(f, 1, 0);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
    assert_int_equal(f->run.commit.committed, 2);
}

/* The same when it is found out by a call. */
static void test_member_that_serves_no_run(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    announce(f, 2);
    refuse(f, 1, SFC_DUTY_PLAN, SFC_ESTALE);
    assert_non_null(sent(f, 1, SFC_DUTY_OPEN));
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    record(f);
    assert_int_equal(f->run.commit.committed, 2);
}

/* One that is to become a member has lost it: the order is void. */
static void test_joiner_without_the_run(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    announce(f, 1);
    answer_all(f, SFC_DUTY_PLAN); /* so the map waits for the step */
    order(f, SFC_ORDER_JOIN, 2, 0);
    says(f, 2, 0); /* it has not opened it yet */
    says(f, 2, 0);
    answer(f, 2, SFC_DUTY_JOIN);
    says(f, 2, 0);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    says(f, 2, 0);
    assert_void(f, SFC_EUNAVAILABLE);
}

static void test_a_join_and_a_leave(void **state)
{
    struct fixture *f = *state;
    joined(f);
    commit(f); /* without it */
    assert_null(sent(f, 2, SFC_DUTY_COMMIT));
    answer(f, 2, SFC_DUTY_JOIN);
    assert_non_null(find(f, SFC_ACT_WRITE_MAP)); /* nothing to take */
    durable(f);
    assert_true(sent(f, 2, SFC_DUTY_SETMAP) && sent(f, 0, SFC_DUTY_SETMAP));
    answer_all(f, SFC_DUTY_SETMAP);
    assert_done(f);
    announce(f, 3);
    assert_non_null(sent(f, 2, SFC_DUTY_PLAN));
    answer_all(f, SFC_DUTY_PLAN);
    done(f, 3, grant(f));
    answer(f, 0, SFC_DUTY_PREPARE);
    answer(f, 1, SFC_DUTY_PREPARE);
    assert_null(find(f, SFC_ACT_WRITE_RECORD)); /* it must be ready, too */
    answer(f, 2, SFC_DUTY_PREPARE);
    assert_non_null(find(f, SFC_ACT_WRITE_RECORD));
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 3});
    answer_all(f, SFC_DUTY_COMMIT);
    order(f, SFC_ORDER_LEAVE, 0, 0);
    durable(f);
    assert_null(sent(f, 0, SFC_DUTY_SETMAP));
    assert_non_null(sent(f, 0, SFC_DUTY_CLOSE));
    answer(f, 1, SFC_DUTY_SETMAP);
    answer(f, 2, SFC_DUTY_SETMAP);
    assert_int_equal(f->run.config.map_version, 3);
    commit(f);
    answer(f, 0, SFC_DUTY_CLOSE);
    assert_int_equal(sfc_run_free_place(&f->run), 0);
    assert_int_equal(f->run.shards[1].id, 11); /* places of others stay */
}

static void test_joiner_dies(void **state)
{
    struct fixture *f = *state;
    joined(f);
    struct sfc_run_event late = answer_of(f, 2, SFC_DUTY_JOIN);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 2});
    assert_void(f, SFC_EUNAVAILABLE);
    assert_int_equal(sfc_run_free_place(&f->run), 2);
    step(f, late); /* from its earlier life */
    assert_null(find(f, SFC_ACT_WRITE_MAP));
    order(f, SFC_ORDER_JOIN, 2, 0);
    step(f, late);
    assert_null(find(f, SFC_ACT_WRITE_MAP));
    refuse(f, 2, SFC_DUTY_JOIN, SFC_ENOMEM);
    assert_void(f, SFC_ENOMEM);
    assert_non_null(sent(f, 2, SFC_DUTY_CLOSE));
    assert_int_equal(sfc_run_free_place(&f->run), 3); /* until it has closed the run */
    answer(f, 2, SFC_DUTY_CLOSE);
    assert_int_equal(sfc_run_free_place(&f->run), 2);
    commit(f);
}

static void test_joiner_dies_while_the_map_is_written(void **state)
{
    struct fixture *f = *state;
    joined(f);
    answer(f, 2, SFC_DUTY_JOIN);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 2});
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    durable(f);
    const struct sfc_run_action *a = sent(f, 2, SFC_DUTY_OPEN);
    assert_true(a && a->recover && a->step == 1);
    answer(f, 0, SFC_DUTY_SETMAP);
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_done(f);
    answer(f, 2, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
}

/* A joiner that is silent while the map is written, and then there again: as another process, which
 * recovers, or the same one. Blocks can move to it. */
static void joiner_comes_back(struct fixture *f, enum sfc_run_event_type back)
{
    joined(f);
    answer(f, 2, SFC_DUTY_JOIN);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 2});
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    step(f, (struct sfc_run_event){.type = back, .shard = 2});
    durable(f);
    answer(f, 0, SFC_DUTY_SETMAP);
    answer(f, 1, SFC_DUTY_SETMAP);
    if (back == SFC_EV_SHARD_LOST)
        answer(f, 2, SFC_DUTY_OPEN);
    else
        answer(f, 2, SFC_DUTY_SETMAP);
    assert_int_equal(f->run.config.map_version, 2);
    if (back == SFC_EV_SHARD_LOST)
        answer_all(f, SFC_DUTY_ABORT);
    commit(f);
    order(f, SFC_ORDER_MOVE, 2, 0);
    assert_non_null(sent(f, 2, SFC_DUTY_FETCH));
    tick(f, 1);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
}

static void test_joiner_is_back_as_another(void **state)
{
    joiner_comes_back(*state, SFC_EV_SHARD_LOST);
}

static void test_joiner_is_back(void **state)
{
    joiner_comes_back(*state, SFC_EV_SHARD_BACK);
}

/* A dead shard that owns nothing keeps the run waiting no longer than until it leaves. */
static void test_dead_shard_leaves(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 0});
    done(f, 2, grant(f));
    answer(f, 1, SFC_DUTY_PREPARE);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_PREPARE);
    order(f, SFC_ORDER_LEAVE, 0, 0);
    answer(f, 1, SFC_DUTY_ABORT);
    assert_int_equal(f->run.moves.phase, SFC_ORDER_WRITING);
    durable(f);
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_done(f);
    commit(f);
    assert_int_equal(sfc_run_committed(&f->run), 2);
}

static void test_stray(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_STRAY, .shard = 2, .shard_id = 12});
    assert_non_null(sent(f, 2, SFC_DUTY_CLOSE));
    commit(f);
    assert_null(sent(f, 2, SFC_DUTY_COMMIT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 2});
    assert_int_equal(sfc_run_free_place(&f->run), 2);
}

static void assert_delayed(struct fixture *f, enum sfc_run_delay delay, uint32_t place)
{
    uint32_t at;
    assert_int_equal(sfc_run_delayed(&f->run, &at), delay);
    assert_int_equal(at, place);
}

/* What keeps a step waiting, one thing after another. */
static void test_delays(void **state)
{
    struct fixture *f = *state;
    fetched(f); /* step 1 is committed, Commits are answered, step 2 is not planned */
    assert_delayed(f, SFC_DELAY_TAKE, 0);
    answer(f, 1, SFC_DUTY_TAKE);
    assert_delayed(f, SFC_DELAY_WRITE_MAP, 0);
    durable(f);
    assert_delayed(f, SFC_DELAY_SET_MAP, 0);
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_delayed(f, SFC_DELAY_SET_MAP, 0);
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_delayed(f, SFC_DELAY_NONE, 0);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 1});
    assert_delayed(f, SFC_DELAY_AWAY, 1);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 1});
    assert_delayed(f, SFC_DELAY_RECOVERY, 1);
    answer(f, 1, SFC_DUTY_OPEN);
    assert_delayed(f, SFC_DELAY_ABORT, 0);
    answer_all(f, SFC_DUTY_ABORT);
    assert_delayed(f, SFC_DELAY_NONE, 0);
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH); /* it waits for the step, which goes on */
    announce(f, 2);
    assert_delayed(f, SFC_DELAY_NONE, 0);
    record(f);
    assert_delayed(f, SFC_DELAY_BOUNDARY, 0);
    answer_all(f, SFC_DUTY_COMMIT);
    assert_delayed(f, SFC_DELAY_TAKE, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_member_without_the_run),
        TEST(test_member_that_serves_no_run),
        TEST(test_joiner_without_the_run),
        TEST(test_a_join_and_a_leave),
        TEST(test_joiner_dies),
        TEST(test_joiner_dies_while_the_map_is_written),
        TEST(test_joiner_is_back_as_another),
        TEST(test_joiner_is_back),
        TEST(test_dead_shard_leaves),
        TEST(test_stray),
        TEST(test_delays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
