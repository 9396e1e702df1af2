/* Changes of the map in the run's machine (run_moves): moves and growths, and what happens when
 * somebody dies on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/run_rig.h"

static void test_a_move(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    order(f, SFC_ORDER_MOVE, 1, 0);
    refuse(f, 1, SFC_DUTY_FETCH, SFC_EUNAVAILABLE);
    assert_string_equal(f->run.moves.error, "no");
    commit(f); /* steps go on while it copies */
    tick(f, 500);
    assert_non_null(sent(f, 1, SFC_DUTY_FETCH));
    answer(f, 1, SFC_DUTY_FETCH);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_TAKE);
    assert_true(a && a->step == 2 && a->number == ORDER);
    announce(f, 3); /* labels are taken, but nothing is planned */
    assert_false(f->run.commit.plan_sent);
    answer(f, 1, SFC_DUTY_TAKE);
    a = find(f, SFC_ACT_WRITE_MAP);
    assert_true(a && a->step == 2 && a->version == 2 && a->number == ORDER);
    assert_null(sent(f, 0, SFC_DUTY_SETMAP)); /* not before it is durable */
    assert_int_equal(f->run.config.map_version, 1);
    durable(f);
    assert_non_null(find(f, SFC_ACT_MAP));
    a = sent(f, 0, SFC_DUTY_SETMAP);
    assert_true(a && a->step == 2 && a->number == ORDER);
    assert_non_null(sent(f, 1, SFC_DUTY_SETMAP));
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_false(f->run.commit.plan_sent);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_done(f);
    assert_non_null(sent(f, 0, SFC_DUTY_PLAN));
    record(f);
    assert_int_equal(f->run.commit.record.map_version, 2);
}

/* Every member makes its blocks, and has them on its disk, before the map is written. */
static void test_a_growth(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    uint64_t classes = f->run.config.classes;
    order_growth(f, classes);
    assert_void(f, SFC_EINVAL);
    order_growth(f, classes + 5);
    assert_true(sent(f, 0, SFC_DUTY_FETCH) && sent(f, 1, SFC_DUTY_FETCH));
    answer(f, 0, SFC_DUTY_FETCH);
    assert_null(sent(f, 0, SFC_DUTY_TAKE)); /* the other one has not answered */
    refuse(f, 1, SFC_DUTY_FETCH, SFC_EUNAVAILABLE);
    commit(f);
    tick(f, 500);
    answer(f, 1, SFC_DUTY_FETCH);
    assert_true(sent(f, 0, SFC_DUTY_TAKE) && sent(f, 1, SFC_DUTY_TAKE));
    answer(f, 1, SFC_DUTY_TAKE);
    assert_null(find(f, SFC_ACT_WRITE_MAP));
    answer(f, 0, SFC_DUTY_TAKE);
    const struct sfc_run_action *a = find(f, SFC_ACT_WRITE_MAP);
    assert_true(a && a->step == 2 && a->version == 2);
    assert_int_equal(f->run.tickets.config.classes, classes);
    durable(f);
    assert_int_equal(f->run.tickets.config.classes, classes + 5);
    assert_int_equal(f->run.config.classes, classes + 5);
    answer(f, 0, SFC_DUTY_SETMAP);
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_done(f);
}

/* One that refuses, or is lost, and nothing has changed; all are told. */
static void test_a_growth_comes_to_nothing(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    uint64_t classes = f->run.config.classes;
    order_growth(f, classes + 5);
    answer(f, 0, SFC_DUTY_FETCH);
    refuse(f, 1, SFC_DUTY_FETCH, SFC_ENOMEM);
    assert_void(f, SFC_ENOMEM);
    assert_true(sent(f, 0, SFC_DUTY_CANCEL) && sent(f, 1, SFC_DUTY_CANCEL));
    assert_int_equal(f->run.tickets.config.classes, classes);
}

/* A plan that is out belongs to the old map: its step comes first, and no plan runs ahead of it. */
static void test_waits_for_the_plan(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    announce(f, 1);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    assert_true(f->run.commit.next_plan_sent); /* of step 2 */
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    announce(f, 3);
    struct sfc_attempt attempt = grant(f);
    done(f, 1, attempt);
    answer_all(f, SFC_DUTY_PLAN_NEXT);
    answer_all(f, SFC_DUTY_PREPARE);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    answer_all(f, SFC_DUTY_COMMIT);
    assert_false(wanted(f, 1, SFC_DUTY_TAKE));
    assert_int_equal(f->run.commit.phase, SFC_PHASE_COMPUTE); /* step 2 was planned */
    assert_false(f->run.commit.next_plan_sent);
    record(f);
    assert_int_equal(f->run.commit.committed, 2);
    assert_false(wanted(f, 1, SFC_DUTY_TAKE)); /* Commits are not acknowledged */
    answer(f, 0, SFC_DUTY_COMMIT);
    answer(f, 1, SFC_DUTY_COMMIT);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_TAKE);
    assert_true(a && a->step == 2);
}

/* A run that stands still gives up the plan that is out. */
static void test_while_paused(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    /* at the boundary already: begin anew with a plan out */
    refuse(f, 1, SFC_DUTY_TAKE, SFC_ESTATE);
    assert_void(f, SFC_ESTATE);
    answer_all(f, SFC_DUTY_CANCEL);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    done(f, 2, grant(f));
    assert_int_equal(f->run.commit.phase, SFC_PHASE_PREPARE);
    for (uint32_t k = 0; k < 2; k++)
        answer(f, k, SFC_DUTY_PREPARE);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 2});
    answer_all(f, SFC_DUTY_COMMIT);
    announce(f, 3);
    answer_all(f, SFC_DUTY_PLAN);
    step(f, (struct sfc_run_event){.type = SFC_EV_PAUSE});
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    assert_non_null(sent(f, 0, SFC_DUTY_ABORT));
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(wanted(f, 1, SFC_DUTY_TAKE));
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    answer_all(f, SFC_DUTY_SETMAP);
    assert_done(f);
    assert_int_equal(f->run.state, SFC_RUN_PAUSED);
}

/* Nobody computes the step that is planned: it gives way after a while, not at once. */
static void test_plan_that_nobody_works_on(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    announce(f, 2);
    answer_all(f, SFC_DUTY_PLAN);
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    tick(f, 900);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_COMPUTE);
    struct sfc_attempt attempt = grant(f);
    tick(f, 5000); /* somebody does */
    assert_int_equal(f->run.commit.phase, SFC_PHASE_COMPUTE);
    step(f, (struct sfc_run_event){.type = SFC_EV_WORKER_DIED, .worker = 1});
    tick(f, 999);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_COMPUTE);
    tick(f, 1);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_ROUND);
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(wanted(f, 1, SFC_DUTY_TAKE));
    done(f, 2, attempt);
    assert_false(find(f, SFC_ACT_REPLY_DONE)->accepted);
}

/* Whoever holds the run reads blocks by the map. */
static void test_waits_for_a_hold(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    commit(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_HOLD});
    uint64_t hold = find(f, SFC_ACT_REPLY_HOLD)->hold_id;
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    assert_false(wanted(f, 1, SFC_DUTY_TAKE));
    step(f, (struct sfc_run_event){.type = SFC_EV_RELEASE, .hold_id = hold});
    assert_true(wanted(f, 1, SFC_DUTY_TAKE));
    step(f, (struct sfc_run_event){.type = SFC_EV_HOLD}); /* and the other way round */
    assert_null(find(f, SFC_ACT_REPLY_HOLD));
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    answer_all(f, SFC_DUTY_SETMAP);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_HOLD);
    assert_true(a && a->held);
}

/* Of provisional steps none is a boundary; the next one is made durable. */
static void test_boundary_is_durable(void **state)
{
    struct fixture *f = *state;
    f->config.durable_every = 20;
    begin(f, NULL);
    commit(f);
    assert_int_equal(sfc_run_durable_step(&f->run), 0);
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    assert_false(wanted(f, 1, SFC_DUTY_TAKE));
    commit(f);
    assert_int_equal(sfc_run_durable_step(&f->run), 2);
    assert_true(wanted(f, 1, SFC_DUTY_TAKE));
}

static void test_lost_before_the_map(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 0});
    assert_void(f, SFC_EUNAVAILABLE);
    assert_non_null(sent(f, 0, SFC_DUTY_OPEN));
    assert_false(wanted(f, 0, SFC_DUTY_CANCEL));
    assert_non_null(sent(f, 1, SFC_DUTY_CANCEL));
    refuse(f, 1, SFC_DUTY_CANCEL, SFC_ENOTFOUND); /* it knows nothing of it: fine */
    assert_false(wanted(f, 1, SFC_DUTY_CANCEL));
    answer(f, 0, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
    assert_int_equal(f->run.commit.record.map_version, 1);
}

/* The map is on its way to the store: it decides what the lost shard recovers. */
static void test_lost_while_the_map_is_written(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    answer(f, 1, SFC_DUTY_TAKE);
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 1});
    assert_false(wanted(f, 1, SFC_DUTY_OPEN));
    durable(f);
    assert_int_equal(f->run.config.map_version, 2);
    assert_non_null(sent(f, 1, SFC_DUTY_OPEN)); /* with the new map */
    assert_false(wanted(f, 1, SFC_DUTY_SETMAP));
    assert_null(sent(f, 0, SFC_DUTY_ABORT)); /* the map comes first */
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_done(f);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    commit(f);
    assert_int_equal(f->run.commit.record.map_version, 2);
}

static void test_map_that_can_not_be_written(void **state)
{
    struct fixture *f = *state;
    char text[256];
    fetched(f);
    answer(f, 1, SFC_DUTY_TAKE);
    step(f, (struct sfc_run_event){
                .type = SFC_EV_MAP_FAILED, .number = ORDER, .code = SFC_EIO, .text = "disk full"});
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text, "the map of version 2 to be written: disk full");
    tick(f, 400);
    assert_null(find(f, SFC_ACT_WRITE_MAP));
    tick(f, 100);
    assert_non_null(find(f, SFC_ACT_WRITE_MAP)); /* the same again: it may be there */
    step(f, (struct sfc_run_event){.type = SFC_EV_ORDER_CANCEL, .number = ORDER});
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    durable(f);
    answer_all(f, SFC_DUTY_SETMAP);
    assert_done(f);
}

static void test_map_that_can_not_be(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    order(f, SFC_ORDER_LEAVE, 1, 0);
    assert_non_null(find(f, SFC_ACT_WRITE_MAP));
    step(f, (struct sfc_run_event){
                .type = SFC_EV_MAP_FAILED, .number = ORDER, .code = SFC_EINVAL, .text = "it owns"});
    assert_void(f, SFC_EINVAL);
    commit(f);
}

/* A shard that can't take the map recovers with it. */
static void test_set_map_refused(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    uint64_t life = f->run.shards[1].life;
    refuse(f, 1, SFC_DUTY_SETMAP, SFC_ESTATE);
    assert_int_equal(f->run.shards[1].life, life + 1);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_OPEN);
    assert_true(a && a->recover && a->step == 1);
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_done(f);
}

/* The run does not stand still for ever. */
static void test_take_in_time(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    refuse(f, 1, SFC_DUTY_TAKE, SFC_EUNAVAILABLE);
    tick(f, 9000);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    tick(f, 1000);
    assert_void(f, SFC_ETIMEOUT);
    assert_true(wanted(f, 0, SFC_DUTY_CANCEL) && wanted(f, 1, SFC_DUTY_CANCEL));
    commit(f);
}

static void test_rewind_voids(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_REWIND, .step = 1});
    assert_void(f, SFC_EUNAVAILABLE);
}

static void test_stop_voids(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_STOP});
    const struct sfc_run_action *a = find(f, SFC_ACT_ORDER_DONE);
    assert_true(a && a->code == SFC_ESTATE);
    assert_false(sfc_run_may_order(&f->run));
    assert_false(wanted(f, 1, SFC_DUTY_CANCEL)); /* CloseRun says it all */
}

/* We died after the map was durable: shards that have not heard of it are told; one that is
 * elsewhere recovers. */
static void test_restart_after_the_map(void **state)
{
    struct fixture *f = *state;
    const struct sfc_run_restore restore = {
        .has_record = true,
        .record = {.step = 5, .round = {1, 40}, .clip_scale = 1, .apply = true},
        .state = SFC_RUN_RUNNING,
        .map_step = 5,
        .map_order = ORDER};
    f->config.incarnation = 2;
    f->config.shards = 3;
    f->config.map_version = 4;
    f->ids[1] = 0; /* an empty place */
    f->ids[2] = 12;
    begin(f, &restore);
    step(f, back(0, 3, 5));
    assert_false(wanted(f, 0, SFC_DUTY_OPEN));
    const struct sfc_run_action *a = sent(f, 0, SFC_DUTY_SETMAP);
    assert_true(a && a->number == ORDER && a->step == 5 && a->round.incarnation == 2);
    step(f, back(2, 2, 5)); /* too old */
    assert_non_null(sent(f, 2, SFC_DUTY_OPEN));
    answer(f, 2, SFC_DUTY_OPEN);
    answer(f, 2, SFC_DUTY_ABORT);
    announce(f, 6);
    assert_false(f->run.commit.plan_sent);
    answer(f, 0, SFC_DUTY_SETMAP);
    answer(f, 0, SFC_DUTY_ABORT);
    assert_true(sent(f, 0, SFC_DUTY_PLAN) && sent(f, 2, SFC_DUTY_PLAN));
    record(f);
    assert_int_equal(f->run.commit.record.map_version, 4);
}

static void test_restart_long_after_the_map(void **state)
{
    struct fixture *f = *state;
    const struct sfc_run_restore restore = {
        .has_record = true,
        .record = {.step = 9, .round = {1, 40}, .clip_scale = 1, .apply = true},
        .state = SFC_RUN_RUNNING,
        .map_step = 5,
        .map_order = ORDER};
    f->config.incarnation = 2;
    f->config.map_version = 4;
    begin(f, &restore);
    step(f, back(0, 3, 9)); /* that can't be */
    assert_non_null(sent(f, 0, SFC_DUTY_OPEN));
    step(f, back(1, 4, 9));
    assert_non_null(sent(f, 1, SFC_DUTY_ABORT));
    assert_false(sfc_run_may_order(&f->run));
    answer(f, 0, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(sfc_run_may_order(&f->run));
}

/* A round that opens meanwhile: SetMap comes before its Abort, and a refusal of the round before
 * says nothing. */
static void test_round_while_setting(void **state)
{
    struct fixture *f = *state;
    f->config.session = true;
    begin(f, NULL);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    struct sfc_run_event old = answer_of(f, 0, SFC_DUTY_SETMAP);
    answer(f, 1, SFC_DUTY_SETMAP);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    assert_true(sent(f, 1, SFC_DUTY_ABORT) && !sent(f, 0, SFC_DUTY_ABORT));
    old.code = SFC_ESTALE;
    step(f, old);
    assert_false(wanted(f, 0, SFC_DUTY_OPEN));
    tick(f, 300);
    assert_non_null(sent(f, 0, SFC_DUTY_SETMAP));
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_done(f);
    answer_all(f, SFC_DUTY_ABORT);
    assert_non_null(find(f, SFC_ACT_REPLY_SESSION));
}

/* A session survives a flip, and its step is never voided for one. */
static void test_session_survives(void **state)
{
    struct fixture *f = *state;
    f->config.session = true;
    begin(f, NULL);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    uint64_t session = f->run.session;
    struct sfc_attempt attempt = f->run.session_attempt;
    announce(f, 1);
    answer_all(f, SFC_DUTY_PLAN);
    order(f, SFC_ORDER_MOVE, 1, 0);
    answer(f, 1, SFC_DUTY_FETCH);
    tick(f, 60000);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_COMPUTE);
    done(f, 1, attempt);
    answer_all(f, SFC_DUTY_PREPARE);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    answer_all(f, SFC_DUTY_COMMIT);
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    answer_all(f, SFC_DUTY_SETMAP);
    assert_done(f);
    assert_true(session != 0 && f->run.session == session);
}

static void test_impossible_orders(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    order(f, SFC_ORDER_MOVE, 1, 1);
    assert_void(f, SFC_EINVAL);
    order(f, SFC_ORDER_MOVE, 2, 0);
    assert_void(f, SFC_EINVAL);
    order(f, SFC_ORDER_JOIN, 0, 0);
    assert_void(f, SFC_EINVAL);
    order(f, SFC_ORDER_LEAVE, 9, 0);
    assert_void(f, SFC_EINVAL);
    order(f, SFC_ORDER_MOVE, 1, 0);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    step(f, (struct sfc_run_event){
                .type = SFC_EV_ORDER, .number = ORDER + 1, .order = SFC_ORDER_LEAVE, .shard = 1});
    const struct sfc_run_action *a = find(f, SFC_ACT_ORDER_DONE);
    assert_true(a && a->number == ORDER + 1 && a->code == SFC_ESTATE);
    step(f, (struct sfc_run_event){.type = SFC_EV_ORDER_CANCEL});
    assert_void(f, SFC_ECANCELED);
}

/* A map that was just written is not waited for, where a dead shard has not got it. */
static void test_gone_while_setting(void **state)
{
    struct fixture *f = *state;
    fetched(f);
    answer(f, 1, SFC_DUTY_TAKE);
    durable(f);
    answer(f, 1, SFC_DUTY_SETMAP);
    assert_null(find(f, SFC_ACT_ORDER_DONE));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 0});
    assert_done(f);
    announce(f, 2);
    assert_false(f->run.commit.plan_sent); /* the map comes first */
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_BACK, .shard = 0});
    answer(f, 0, SFC_DUTY_SETMAP);
    assert_true(f->run.commit.plan_sent);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_a_move),
        TEST(test_a_growth),
        TEST(test_a_growth_comes_to_nothing),
        TEST(test_waits_for_the_plan),
        TEST(test_while_paused),
        TEST(test_plan_that_nobody_works_on),
        TEST(test_waits_for_a_hold),
        TEST(test_boundary_is_durable),
        TEST(test_lost_before_the_map),
        TEST(test_lost_while_the_map_is_written),
        TEST(test_map_that_can_not_be_written),
        TEST(test_map_that_can_not_be),
        TEST(test_set_map_refused),
        TEST(test_take_in_time),
        TEST(test_rewind_voids),
        TEST(test_stop_voids),
        TEST(test_restart_after_the_map),
        TEST(test_restart_long_after_the_map),
        TEST(test_round_while_setting),
        TEST(test_session_survives),
        TEST(test_impossible_orders),
        TEST(test_gone_while_setting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
