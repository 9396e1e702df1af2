/* Who gets a ticket, with workers that are numbers and a clock that is one. The plain way, tickets
 * for whoever asks, is what the policy is compared with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "server/core/ticket_policy.h"

enum { LANES = 8, TICK_MS = 100, STEPS = 200 };
#define NEVER UINT64_MAX

/* ---- pace */

static void test_pace(void **state)
{
    (void)state;
    struct sfc_pace p = {0};
    for (int i = 0; i < 3; i++) {
        assert_true(isinf(sfc_pace_limit(&p))); /* too little is known */
        sfc_pace_note(&p, 200);
    }
    sfc_pace_note(&p, 200);
    assert_true(sfc_pace_known(&p));
    assert_true(p.mean_ms == 200);
    assert_true(sfc_pace_limit(&p) >= 400 && sfc_pace_limit(&p) < 600);
    sfc_pace_note(&p, 1e9); /* stood still */
    assert_true(p.mean_ms < 600);
    for (int i = 0; i < 100; i++)
        sfc_pace_note(&p, 1);
    assert_true(p.mean_ms < 2);
    assert_true(sfc_pace_limit(&p) == SFC_PACE_FLOOR_MS);
}

/* ---- a cluster */

struct lane {
    uint64_t worker;
    uint64_t ms; /* for a micro-batch; NEVER: it stands still */
    bool busy;
    uint64_t until;
    uint32_t j;
    struct sfc_attempt attempt;
    unsigned done, lost; /* micro-batches that counted, and that came too late */
};

struct cluster {
    struct sfc_tickets t;
    struct lane lanes[LANES];
    uint32_t lane_count;
    bool plain;
    uint64_t now;
    uint32_t most_out; /* grants of one micro-batch at a time */
};

static void open_cluster(struct cluster *c, uint32_t micro_batches)
{
    const struct sfc_tickets_config config = {.classes = 10,
                                              .micro_batches = micro_batches,
                                              .micro_batch = 1,
                                              .lead_steps = 1,
                                              .last_step = 1000000,
                                              .data_timeout_ms = 30000,
                                              .grant_timeout_ms = 120000};
    *c = (struct cluster){0};
    assert_int_equal(sfc_tickets_init(&c->t, &config, 1, 1, NULL), SFC_OK);
}

static void add_lanes(struct cluster *c, uint64_t worker, uint32_t count, uint64_t ms)
{
    for (uint32_t i = 0; i < count; i++)
        c->lanes[c->lane_count++] = (struct lane){.worker = worker, .ms = ms};
}

static void announce_all(struct cluster *c)
{
    const uint64_t label = 3;
    bool complete;
    for (uint32_t j = 0; j < c->t.config.micro_batches; j++)
        assert_int_equal(
            sfc_tickets_announce(&c->t, 0, c->now, c->t.open_step, j, &label, 1, &complete, NULL),
            SFC_OK);
}

/* Every lane that is free asks, in turn. */
static void serve(struct cluster *c)
{
    struct sfc_ticket_survey survey;
    uint64_t step;
    sfc_ticket_survey(&c->t, c->now, true, &survey);
    for (uint32_t i = 0; i < c->lane_count; i++)
        if (!c->lanes[i].busy)
            sfc_ticket_survey_call(&c->t, &survey, sfc_tickets_worker(&c->t, c->lanes[i].worker),
                                   false);
    for (uint32_t i = 0; i < c->lane_count; i++) {
        struct lane *l = &c->lanes[i];
        uint32_t place = sfc_tickets_worker(&c->t, l->worker);
        if (l->busy)
            continue;
        l->busy = c->plain
                      ? sfc_tickets_give_grant(&c->t, l->worker, c->now, &step, &l->j, &l->attempt)
                      : sfc_ticket_policy_grant(&c->t, &survey, l->worker, place, &step, &l->j,
                                                &l->attempt);
        l->until = l->ms == NEVER ? NEVER : c->now + l->ms;
    }
    const struct sfc_ticket_step *s = sfc_tickets_step(&c->t, c->t.open_step);
    for (uint32_t j = 0; j < c->t.config.micro_batches; j++)
        if (s->micro_batches[j].out_count > c->most_out)
            c->most_out = s->micro_batches[j].out_count;
}

static void finish(struct cluster *c, struct lane *l)
{
    bool counts = sfc_tickets_done(&c->t, c->now, l->j, l->attempt);
    l->busy = false;
    l->done += counts;
    l->lost += !counts;
}

/* Time goes to the next moment at which something happens. */
static void next_moment(struct cluster *c)
{
    uint64_t next = (c->now / TICK_MS + 1) * TICK_MS;
    for (uint32_t i = 0; i < c->lane_count; i++)
        if (c->lanes[i].busy && c->lanes[i].until < next)
            next = c->lanes[i].until;
    c->now = next;
    for (uint32_t i = 0; i < c->lane_count; i++)
        if (c->lanes[i].busy && c->lanes[i].until <= c->now)
            finish(c, &c->lanes[i]);
    sfc_tickets_tick(&c->t, c->now);
}

/* Milliseconds per step, over the last half of the steps. */
static double run(struct cluster *c, uint32_t steps)
{
    uint64_t half = 0;
    for (uint32_t n = 0; n < steps; n++) {
        if (n == steps / 2)
            half = c->now;
        announce_all(c);
        const struct sfc_ticket_step *s = sfc_tickets_step(&c->t, c->t.open_step);
        for (serve(c); s->done < c->t.config.micro_batches; serve(c))
            next_moment(c);
        sfc_tickets_advance(&c->t);
    }
    assert_true(c->most_out <= 2);
    return (double)(c->now - half) / (steps - steps / 2);
}

/* `fast` lanes of 100 ms and one of `slow_ms`, both ways. */
static void compare(uint32_t micro_batches, uint32_t fast, uint64_t slow_ms, double *plain,
                    double *policy, struct lane *slow)
{
    for (int way = 0; way < 2; way++) {
        struct cluster c;
        open_cluster(&c, micro_batches);
        c.plain = way == 0;
        add_lanes(&c, 9, 1, slow_ms);
        for (uint32_t i = 0; i < fast; i++)
            add_lanes(&c, i + 1, 1, 100);
        *(way == 0 ? plain : policy) = run(&c, STEPS);
        *slow = c.lanes[0];
        sfc_tickets_free(&c.t);
    }
    print_message("%2u micro-batches, %u lanes of 100 ms, one of %4llu ms: a step takes %4.0f ms "
                  "plainly, %4.0f ms by the policy; the slow one: %u counted, %u lost\n",
                  micro_batches, fast, (unsigned long long)slow_ms, *plain, *policy, slow->done,
                  slow->lost);
}

static void test_equal_workers_do_not_wait_for_each_other(void **state)
{
    (void)state;
    struct cluster c;
    open_cluster(&c, 8);
    for (uint64_t w = 1; w <= 4; w++)
        add_lanes(&c, w, 1, 90 + 5 * w);
    double ms = run(&c, STEPS);
    assert_true(ms <= 220);
    assert_int_equal(c.t.second_grants, 0);
    sfc_tickets_free(&c.t);
}

static void test_a_lone_worker_does_everything(void **state)
{
    (void)state;
    struct cluster c;
    open_cluster(&c, 3);
    add_lanes(&c, 1, 2, 50);
    assert_true(run(&c, STEPS) == 100);
    assert_int_equal(c.t.second_grants, 0);
    sfc_tickets_free(&c.t);
}

static void test_a_slow_worker_does_not_hold_up_a_step(void **state)
{
    (void)state;
    struct lane slow;
    double plain, policy;
    compare(8, 3, 1000, &plain, &policy, &slow);
    assert_true(plain >= 1000 && policy <= 330);
    compare(4, 3, 300, &plain, &policy, &slow);
    assert_true(plain >= 300 && policy <= 230);
    compare(16, 3, 200, &plain, &policy, &slow); /* half as fast: it takes its part */
    assert_true(policy <= plain && slow.done >= STEPS);
    compare(8, 1, 400, &plain, &policy, &slow);
    assert_true(policy <= 700 && slow.done >= STEPS / 2);
}

/* It stands still with what it holds, and so do the calls that it had waiting. */
static void test_a_worker_that_stands_still_costs_one_limit(void **state)
{
    (void)state;
    struct cluster c;
    open_cluster(&c, 8);
    add_lanes(&c, 1, 4, 100);
    add_lanes(&c, 2, 4, 100);
    run(&c, 10);
    for (uint32_t i = 4; i < 8; i++)
        c.lanes[i].ms = NEVER;
    uint64_t before = c.now;
    run(&c, 1);
    print_message("4 of 8 lanes stand still: this step takes %llu ms instead of 100\n",
                  (unsigned long long)(c.now - before));
    assert_true(c.now - before <= 700); /* nothing waits for the timeout of 120 s */
    assert_int_equal(c.t.second_grants, 4);
    before = c.now;
    run(&c, 10);
    assert_true(c.now - before <= 10 * 200); /* 8 by 4 lanes */
    for (uint32_t i = 4; i < 8; i++) {       /* and it goes on */
        c.lanes[i].ms = 100;
        c.lanes[i].until = c.now;
    }
    before = c.now;
    run(&c, 20);
    assert_true(c.now - before <= 20 * 200);
    before = c.now;
    run(&c, 10);
    assert_true(c.now - before == 10 * 100);
    sfc_tickets_free(&c.t);
}

/* Once is no reason to leave somebody out. */
static void test_a_worker_that_was_slow_once_takes_its_part(void **state)
{
    (void)state;
    struct cluster c;
    open_cluster(&c, 4);
    add_lanes(&c, 1, 2, 100);
    add_lanes(&c, 2, 2, 100);
    run(&c, 10);
    c.lanes[2].ms = 900;
    run(&c, 1);
    c.lanes[2].ms = 100;
    run(&c, 10);
    uint64_t before = c.now;
    run(&c, 10);
    assert_true(c.now - before == 10 * 100);
    sfc_tickets_free(&c.t);
}

/* Two attempts count while shards have room for both; of more, the newest. */
static void test_attempts_have_a_place_at_the_shards(void **state)
{
    (void)state;
    struct cluster c;
    struct sfc_attempt first[4], second[3];
    uint64_t step;
    uint32_t j;
    open_cluster(&c, 4);
    announce_all(&c);
    for (uint32_t k = 0; k < 4; k++)
        assert_true(sfc_tickets_give_grant(&c.t, 1, 0, &step, &j, &first[k]));
    for (uint32_t k = 0; k < 2; k++)
        second[k] = sfc_tickets_grant_again(&c.t, 2, 10, k);
    assert_int_equal(sfc_tickets_held(&c.t, 1), 4);
    assert_int_equal(sfc_tickets_held(&c.t, 2), 2);
    assert_true(sfc_tickets_done(&c.t, 20, 0, first[0])); /* the first one counts, */
    assert_false(sfc_tickets_done(&c.t, 20, 0, second[0]));
    second[2] = sfc_tickets_grant_again(&c.t, 2, 30, 2); /* attempt 7 of 6 places */
    assert_false(sfc_tickets_done(&c.t, 40, 1, first[1]));
    assert_false(sfc_tickets_done(&c.t, 40, 2, first[2]));
    assert_true(sfc_tickets_done(&c.t, 40, 1, second[1]));
    assert_false(sfc_tickets_return_grant(&c.t, 1, 2, first[2], true)); /* not known any more */
    assert_true(sfc_tickets_done(&c.t, 50, 2, second[2]));
    assert_true(sfc_tickets_done(&c.t, 50, 3, first[3]));
    sfc_tickets_free(&c.t);
}

/* One of two holders gives up or dies: the other's counts. */
static void test_one_of_two_grants_comes_back(void **state)
{
    (void)state;
    struct cluster c;
    struct sfc_attempt a, b;
    uint64_t step;
    uint32_t j;
    open_cluster(&c, 1);
    announce_all(&c);
    assert_true(sfc_tickets_give_grant(&c.t, 1, 0, &step, &j, &a));
    b = sfc_tickets_grant_again(&c.t, 2, 10, 0);
    assert_false(sfc_tickets_return_grant(&c.t, 1, 0, a, true));
    assert_false(sfc_tickets_give_grant(&c.t, 3, 20, &step, &j, &a)); /* the other is out */
    sfc_tickets_worker_died(&c.t, 2);
    assert_false(sfc_tickets_done(&c.t, 20, 0, b));
    assert_true(sfc_tickets_give_grant(&c.t, 3, 20, &step, &j, &a));
    sfc_tickets_tick(&c.t, 200000);
    assert_false(sfc_tickets_done(&c.t, 200000, 0, a)); /* timed out */
    sfc_tickets_free(&c.t);
}

/* ---- data tickets */

static bool ask_data(struct cluster *c, uint64_t worker, uint64_t other, uint64_t *step,
                     uint32_t *j)
{
    struct sfc_ticket_survey survey;
    uint32_t place = sfc_tickets_worker(&c->t, worker);
    sfc_ticket_survey(&c->t, c->now, false, &survey);
    sfc_ticket_survey_call(&c->t, &survey, place, true);
    if (other)
        sfc_ticket_survey_call(&c->t, &survey, sfc_tickets_worker(&c->t, other), true);
    return sfc_ticket_policy_data(&c->t, &survey, worker, place, step, j);
}

static void read_data(struct cluster *c, uint64_t worker, uint64_t ms)
{
    const uint64_t label = 3;
    uint64_t step;
    uint32_t j;
    bool complete;
    assert_true(ask_data(c, worker, 0, &step, &j));
    c->now += ms;
    assert_int_equal(
        sfc_tickets_announce(&c->t, worker, c->now, step, j, &label, 1, &complete, NULL), SFC_OK);
}

static void test_late_data_is_read_by_another(void **state)
{
    (void)state;
    struct cluster c;
    uint64_t step;
    uint32_t j;
    open_cluster(&c, 4);
    for (int i = 0; i < 4; i++)
        read_data(&c, 1, 20);
    assert_true(ask_data(&c, 2, 0, &step, &j)); /* and stands still */
    assert_int_equal(step, 2);
    assert_int_equal(j, 0);
    c.now += 1000;
    assert_false(ask_data(&c, 2, 1, &step, &j)); /* worker 1 asks as well */
    for (int i = 0; i < 3; i++)
        read_data(&c, 1, 20);
    assert_false(ask_data(&c, 2, 0, &step, &j)); /* its own it has */
    assert_true(ask_data(&c, 1, 0, &step, &j));
    assert_int_equal(step, 2);
    assert_int_equal(j, 0);
    c.now += 1000;
    assert_false(ask_data(&c, 3, 0, &step, &j)); /* once */
    assert_int_equal(c.t.second_data, 1);
    sfc_tickets_free(&c.t);
}

static void test_a_late_reader_alone_goes_on(void **state)
{
    (void)state;
    struct cluster c;
    uint64_t step;
    uint32_t j;
    open_cluster(&c, 8);
    for (int i = 0; i < 4; i++)
        read_data(&c, 1, 20);
    assert_true(ask_data(&c, 1, 0, &step, &j));
    c.now += 5000;
    assert_true(ask_data(&c, 1, 0, &step, &j));
    sfc_tickets_free(&c.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace),
        cmocka_unit_test(test_equal_workers_do_not_wait_for_each_other),
        cmocka_unit_test(test_a_lone_worker_does_everything),
        cmocka_unit_test(test_a_slow_worker_does_not_hold_up_a_step),
        cmocka_unit_test(test_a_worker_that_stands_still_costs_one_limit),
        cmocka_unit_test(test_a_worker_that_was_slow_once_takes_its_part),
        cmocka_unit_test(test_attempts_have_a_place_at_the_shards),
        cmocka_unit_test(test_one_of_two_grants_comes_back),
        cmocka_unit_test(test_late_data_is_read_by_another),
        cmocka_unit_test(test_a_late_reader_alone_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
