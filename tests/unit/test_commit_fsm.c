/* Two-phase commit (commit_fsm) and the run's machine around it (run_fsm). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/core/run_fsm.h"

#define K 2
#define J 2

struct fixture {
    struct sfc_run_fsm run;
    struct sfc_run_actions a;
    struct sfc_run_config config;
    uint64_t now, token;
};

static const uint64_t labels[1] = {3};

static void begin(struct fixture *f, const struct sfc_run_restore *restore)
{
    assert_int_equal(sfc_run_init(&f->run, &f->config, restore, NULL), SFC_OK);
    assert_int_equal(sfc_run_actions_init(&f->a, &f->run, NULL), SFC_OK);
}

static void end(struct fixture *f)
{
    sfc_run_free(&f->run);
    sfc_run_actions_free(&f->a);
}

static int set_up(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof(f));
    f.config = (struct sfc_run_config){
        .run_id = 1,
        .incarnation = 1,
        .shards = K,
        .map_version = 1,
        .classes = 10,
        .global_batch = J,
        .micro_batch = 1,
        .dense_blocks = K, /* block k is owned by shard k */
        .clip = 5,
        .schedule = {.lr = 0.1, .power = 1, .steps = 20},
    };
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    end(*state);
    return 0;
}

static uint64_t step(struct fixture *f, struct sfc_run_event e)
{
    e.now_ms = f->now;
    e.token = ++f->token;
    sfc_run_step(&f->run, &e, &f->a);
    return f->token;
}

static const struct sfc_run_action *find(struct fixture *f, enum sfc_run_action_type type)
{
    for (size_t i = 0; i < f->a.count; i++)
        if (f->a.items[i].type == type)
            return &f->a.items[i];
    return NULL;
}

static unsigned sends(struct fixture *f, enum sfc_duty duty)
{
    unsigned n = 0;
    for (size_t i = 0; i < f->a.count; i++)
        n += f->a.items[i].type == SFC_ACT_SEND && f->a.items[i].duty == duty;
    return n;
}

static struct sfc_run_event answer_of(struct fixture *f, uint32_t k, enum sfc_duty duty)
{
    struct sfc_run_event e = {.type = SFC_EV_SHARD_REPLY,
                              .shard = k,
                              .life = f->run.shards[k].life,
                              .duty = duty,
                              .applied = f->run.commit.committed};
    sfc_commit_key(&f->run.commit, duty, &e.step, &e.round);
    if (duty == SFC_DUTY_CHECK)
        e.step = f->run.rewind.step;
    return e;
}

static void answer_all(struct fixture *f, enum sfc_duty duty)
{
    for (uint32_t k = 0; k < K; k++)
        step(f, answer_of(f, k, duty));
}

static void ready(struct fixture *f, uint32_t k, double squares, bool finite)
{
    const struct sfc_dense_report report = {
        .block = k, .sum_of_squares = squares, .finite = finite};
    struct sfc_run_event e = answer_of(f, k, SFC_DUTY_PREPARE);
    e.prepare = (struct sfc_run_prepare_reply){
        .ready = true, .head_finite = true, .reports = &report, .report_count = 1};
    step(f, e);
}

static void start(struct fixture *f)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    answer_all(f, SFC_DUTY_OPEN);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

static void announce(struct fixture *f, uint64_t t)
{
    for (uint32_t j = 0; j < J; j++)
        step(f, (struct sfc_run_event){.type = SFC_EV_ANNOUNCE,
                                       .worker = 1,
                                       .session = f->run.session,
                                       .step = t,
                                       .j = j,
                                       .labels = labels,
                                       .count = 1});
}

static struct sfc_attempt grant(struct fixture *f, uint32_t *j)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_TICKET, .worker = 1});
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_TICKET);
    assert_non_null(a);
    assert_true(a->granted);
    *j = a->j;
    return a->attempt;
}

static void done(struct fixture *f, uint64_t t, uint32_t j, struct sfc_attempt attempt)
{
    uint64_t digests[K] = {1, 2};
    const struct sfc_done d = {.attempt = attempt, .dense_digests = digests, .loss_sum = 2.0};
    step(f, (struct sfc_run_event){
                .type = SFC_EV_DONE, .session = f->run.session, .step = t, .j = j, .done = &d});
}

static void compute(struct fixture *f, uint64_t t)
{
    for (uint32_t i = 0; i < J; i++) {
        uint32_t j;
        struct sfc_attempt a = grant(f, &j);
        done(f, t, j, a);
        assert_true(find(f, SFC_ACT_REPLY_DONE)->accepted);
    }
}

static void to_prepare(struct fixture *f, uint64_t t)
{
    announce(f, t);
    if (!sfc_commit_idle(&f->run.commit, SFC_DUTY_PLAN))
        answer_all(f, SFC_DUTY_PLAN);
    compute(f, t);
}

static void commit(struct fixture *f, uint64_t t, bool finite)
{
    to_prepare(f, t);
    ready(f, 0, 9, finite);
    assert_null(find(f, SFC_ACT_WRITE_RECORD)); /* one Ready is missing */
    ready(f, 1, 16, true);
    assert_non_null(find(f, SFC_ACT_WRITE_RECORD));
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 0); /* not before the record is durable */
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = t});
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), K);
}

static void test_a_step(void **state)
{
    struct fixture *f = *state;
    f->config.clip = 2.5;
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    const struct sfc_commit_record *r = &find(f, SFC_ACT_COMMITTED)->record;
    assert_true(r->norm == 5 && r->clip_scale == 0.5 && r->apply && r->loss == 2.0);
    assert_int_equal(r->next_position, J);
    /* The next step opens at once; its Prepare waits for the commits. */
    to_prepare(f, 2);
    assert_int_equal(sends(f, SFC_DUTY_PREPARE), 0);
    answer_all(f, SFC_DUTY_COMMIT);
    assert_int_equal(f->run.commit.phase, SFC_PHASE_PREPARE);
}

static void test_no_grant_while_preparing(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    to_prepare(f, 1);
    announce(f, 2);
    step(f, (struct sfc_run_event){.type = SFC_EV_TICKET, .worker = 1});
    assert_null(find(f, SFC_ACT_REPLY_TICKET)); /* waits */
    ready(f, 0, 1, true);
    ready(f, 1, 1, true);
    assert_null(find(f, SFC_ACT_REPLY_TICKET));
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    assert_int_equal(find(f, SFC_ACT_REPLY_TICKET)->step, 2);
}

static void refused_drop(struct fixture *f, uint64_t t, uint32_t j, const char *why)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_DROP, .step = t, .j = j});
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY);
    assert_true(a && a->code == SFC_ESTATE);
    assert_non_null(strstr(a->text, why));
    assert_null(find(f, SFC_ACT_WRITE_DROP));
}

static void test_missing_opens_a_round(void **state)
{
    struct fixture *f = *state;
    const uint32_t missing = 1;
    begin(f, NULL);
    start(f);
    refused_drop(f, 1, 0, "nothing blocks the run, which is running");
    for (int i = 0; i < 3; i++) {
        to_prepare(f, 1);
        struct sfc_attempt old = f->run.commit.round;
        ready(f, 0, 1, true);
        struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_PREPARE);
        e.prepare.missing = &missing;
        e.prepare.missing_count = 1;
        step(f, e);
        assert_int_equal(sends(f, SFC_DUTY_ABORT), K);
        assert_true(sfc_attempt_compare(f->run.commit.round, old) > 0);
        answer_all(f, SFC_DUTY_ABORT);
    }
    assert_int_equal(f->run.state, SFC_RUN_BLOCKED); /* a worker whose digests never match */
    refused_drop(f, 1, 0, "micro-batch 0 of step 1 does not block the run");
    uint64_t token = step(f, (struct sfc_run_event){.type = SFC_EV_DROP, .step = 1, .j = 1});
    assert_null(find(f, SFC_ACT_REPLY)); /* first it becomes durable */
    const struct sfc_run_action *write = find(f, SFC_ACT_WRITE_DROP);
    assert_true(write && write->step == 1 && write->j == 1);
    struct sfc_run_event e = {
        .type = SFC_EV_DROPPED, .number = write->number, .step = 1, .j = 1, .code = SFC_EIO};
    step(f, e);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_EIO);
    assert_int_equal(find(f, SFC_ACT_REPLY)->token, token);
    assert_int_equal(f->run.state, SFC_RUN_BLOCKED);
    token = step(f, (struct sfc_run_event){.type = SFC_EV_DROP, .step = 1, .j = 1});
    e.number = find(f, SFC_ACT_WRITE_DROP)->number;
    e.code = SFC_OK;
    step(f, e);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_OK);
    assert_int_equal(find(f, SFC_ACT_REPLY)->token, token);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(sfc_run_labels(&f->run, 1)[1] == SFC_CORE_LABEL_NONE);
}

static void test_not_finite(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    for (uint64_t t = 1; t <= SFC_SKIPPED_LIMIT; t++) {
        commit(f, t, false);
        assert_false(f->run.commit.record.apply);
        assert_int_equal(f->run.commit.record.skipped_in_row, t);
        answer_all(f, SFC_DUTY_COMMIT);
    }
    assert_int_equal(f->run.state, SFC_RUN_BLOCKED);
    step(f, (struct sfc_run_event){.type = SFC_EV_RESUME});
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    commit(f, SFC_SKIPPED_LIMIT + 1, true);
    assert_int_equal(f->run.commit.record.skipped_total, SFC_SKIPPED_LIMIT);
}

static void test_retry_and_refusal(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    announce(f, 1);
    struct sfc_run_event e = answer_of(f, 0, SFC_DUTY_PLAN);
    e.code = SFC_EUNAVAILABLE;
    step(f, e);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), 0);
    f->now += 200;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    assert_int_equal(sends(f, SFC_DUTY_PLAN), 1);
    e.code = SFC_EDEVICE;
    e.text = "no memory";
    step(f, e);
    assert_int_equal(f->run.state, SFC_RUN_FAILED);
    assert_non_null(strstr(f->run.reason, "refused Plan of step 1: no memory"));
}

static void test_hold(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    uint64_t token = step(f, (struct sfc_run_event){.type = SFC_EV_HOLD, .step = 1});
    assert_null(find(f, SFC_ACT_REPLY_HOLD));
    commit(f, 1, true);
    assert_null(find(f, SFC_ACT_REPLY_HOLD)); /* shards haven't applied it yet */
    answer_all(f, SFC_DUTY_COMMIT);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_HOLD);
    assert_true(a && a->held && a->token == token && a->step == 1);
    uint64_t id = a->hold_id;
    assert_int_equal(f->run.state, SFC_RUN_HELD);
    to_prepare(f, 2);
    assert_int_equal(sends(f, SFC_DUTY_PREPARE), 0); /* the gate is closed */
    step(f, (struct sfc_run_event){.type = SFC_EV_HOLD, .step = 30});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_EINVAL);
    f->now += 10001; /* nobody keeps the hold alive */
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    assert_int_equal(f->run.commit.phase, SFC_PHASE_PREPARE);
    step(f, (struct sfc_run_event){.type = SFC_EV_HOLD, .hold_id = id});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ENOTFOUND);
}

/* A watch waits for a step and holds nothing. */
static void test_watch(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    uint64_t token = step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 1});
    assert_null(find(f, SFC_ACT_REPLY_HOLD));
    f->now += 1000;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_HOLD);
    assert_true(a && !a->held && a->token == token && a->step == 0); /* ask again */
    token = step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 1});
    commit(f, 1, true);
    a = find(f, SFC_ACT_REPLY_HOLD);
    assert_true(a && a->held && a->token == token && a->step == 1);
    answer_all(f, SFC_DUTY_COMMIT);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    to_prepare(f, 2);
    assert_true(sends(f, SFC_DUTY_PREPARE) > 0);
    step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 1});
    a = find(f, SFC_ACT_REPLY_HOLD);
    assert_true(a && a->held && a->step == 1); /* a step that has passed is there */
    step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 30});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_EINVAL);
    token = step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 5});
    step(f, (struct sfc_run_event){.type = SFC_EV_STOP});
    a = find(f, SFC_ACT_REPLY);
    assert_non_null(a);
    step(f, (struct sfc_run_event){.type = SFC_EV_WATCH, .step = 5});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ESTATE);
}

static void test_session(void **state)
{
    struct fixture *f = *state;
    f->config.session = true;
    begin(f, NULL);
    start(f);
    announce(f, 1);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ESTALE); /* open a session first */
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    assert_null(find(f, SFC_ACT_REPLY_SESSION)); /* until every shard is in the new round */
    answer_all(f, SFC_DUTY_ABORT);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_SESSION);
    assert_non_null(a);
    struct sfc_attempt attempt = a->attempt;
    uint64_t session = a->session;
    for (uint64_t t = 1; t <= 2; t++) {
        announce(f, t);
        answer_all(f, SFC_DUTY_PLAN);
        done(f, t, 0, attempt);
        done(f, t, 1, attempt);
        ready(f, 0, 1, true);
        ready(f, 1, 1, true);
        step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = t});
        assert_int_equal(sfc_run_committed(&f->run), t);
        answer_all(f, SFC_DUTY_COMMIT);
    }
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    assert_true(f->run.session != session);
    step(f,
         (struct sfc_run_event){
             .type = SFC_EV_ANNOUNCE, .session = session, .step = 3, .labels = labels, .count = 1});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ESTALE);
}

static void announce_label(struct fixture *f, uint64_t t, uint64_t label)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_ANNOUNCE,
                                   .session = f->run.session,
                                   .step = t,
                                   .labels = &label,
                                   .count = 1});
}

/* A new session has other batches, and none while a record of the old one is on its way. */
static void test_a_session_begins_anew(void **state)
{
    struct fixture *f = *state;
    f->config.session = true;
    begin(f, NULL);
    start(f);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    announce_label(f, 1, 5);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    announce_label(f, 1, 6);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_OK);
    announce_label(f, 1, 7);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ECONFLICT);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    answer_all(f, SFC_DUTY_ABORT);
    uint64_t session = f->run.session;
    announce(f, 1);
    answer_all(f, SFC_DUTY_PLAN);
    done(f, 1, 0, f->run.session_attempt);
    done(f, 1, 1, f->run.session_attempt);
    ready(f, 0, 1, true);
    ready(f, 1, 1, true);
    step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    assert_null(find(f, SFC_ACT_REPLY_SESSION));
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    answer_all(f, SFC_DUTY_COMMIT);
    answer_all(f, SFC_DUTY_ABORT);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_SESSION);
    assert_non_null(a);
    assert_true(a->session != session && a->step == 2);
}

/* A shard is lost while a session is being opened: its caller gets one nevertheless. */
static void test_a_session_beside_a_loss(void **state)
{
    struct fixture *f = *state;
    f->config.session = true;
    begin(f, NULL);
    start(f);
    uint64_t token = step(f, (struct sfc_run_event){.type = SFC_EV_OPEN_SESSION});
    step(f, answer_of(f, 0, SFC_DUTY_ABORT));
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = 1});
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    assert_null(find(f, SFC_ACT_REPLY_SESSION));
    answer_all(f, SFC_DUTY_ABORT);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_SESSION);
    assert_true(a && a->token == token && a->step == 1);
    assert_int_equal(a->session, f->run.session);
}

static struct sfc_run_event back(uint32_t k, uint64_t applied, uint64_t prepared)
{
    return (struct sfc_run_event){.type = SFC_EV_SHARD_BACK,
                                  .shard = k,
                                  .shard_run_id = 1,
                                  .map_version = 1,
                                  .step = applied,
                                  .prepared_step = prepared};
}

static const struct sfc_run_restore restored = {
    .has_record = true,
    .record = {.step = 5, .round = {1, 40}, .clip_scale = 0.25, .apply = true},
    .state = SFC_RUN_RUNNING};

static void test_restart(void **state)
{
    struct fixture *f = *state;
    f->config.incarnation = 2;
    begin(f, &restored);
    announce(f, 6);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), 0);
    step(f, back(0, 5, 0));
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 1);
    step(f, back(1, 4, 5)); /* one behind: gets the commit of the record first */
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 1);
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 0);
    const struct sfc_run_action *a = find(f, SFC_ACT_SEND);
    assert_true(a->record.clip_scale == 0.25 && a->round.incarnation == 1);
    step(f, answer_of(f, 1, SFC_DUTY_COMMIT));
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 1);
    assert_int_equal(find(f, SFC_ACT_SEND)->round.incarnation, 2);
    assert_int_equal(find(f, SFC_ACT_SEND)->step, 6);
    answer_all(f, SFC_DUTY_ABORT);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), K);
}

/* ---- shards that come back without their memory */

static void lose(struct fixture *f, uint32_t k)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_LOST, .shard = k});
}

static const struct sfc_run_action *open_sent(struct fixture *f)
{
    for (size_t i = 0; i < f->a.count; i++)
        if (f->a.items[i].type == SFC_ACT_SEND && f->a.items[i].duty == SFC_DUTY_OPEN)
            return &f->a.items[i];
    return NULL;
}

/* From the loss of shard k at `committed` until the open step can be computed again. */
static void recover(struct fixture *f, uint32_t k, uint64_t committed)
{
    const struct sfc_run_action *open = open_sent(f);
    assert_non_null(open);
    assert_int_equal(open->shard, k);
    assert_true(open->recover);
    assert_int_equal(open->record.step, committed);
    step(f, answer_of(f, 1 - k, SFC_DUTY_ABORT));
    step(f, answer_of(f, k, SFC_DUTY_OPEN));
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 1); /* only now: it had no run to abort */
    assert_int_equal(sends(f, SFC_DUTY_PLAN), 0);
    step(f, answer_of(f, k, SFC_DUTY_ABORT));
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

static void test_a_lost_shard_recovers(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    lose(f, 1); /* nothing is committed: back to the beginning */
    recover(f, 1, 0);
    commit(f, 1, true);
    answer_all(f, SFC_DUTY_COMMIT);

    announce(f, 2); /* while computing */
    answer_all(f, SFC_DUTY_PLAN);
    uint32_t j;
    struct sfc_attempt old = grant(f, &j);
    lose(f, 0);
    recover(f, 0, 1);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), K);
    done(f, 2, j, old);
    assert_false(find(f, SFC_ACT_REPLY_DONE)->accepted); /* of the round that is void */

    answer_all(f, SFC_DUTY_PLAN); /* while preparing, the other one is ready */
    compute(f, 2);
    ready(f, 0, 9, true);
    lose(f, 1);
    recover(f, 1, 1);
    commit(f, 2, true);
    assert_int_equal(sfc_run_committed(&f->run), 2);
}

static void test_a_shard_lost_beside_a_record(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    to_prepare(f, 1);
    ready(f, 0, 9, true);
    ready(f, 1, 16, true);
    lose(f, 1);
    assert_null(open_sent(f)); /* the record decides to which step */
    assert_int_equal(f->run.commit.phase, SFC_PHASE_RECORD);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 1); /* the lost one recovers to it */
    assert_int_equal(open_sent(f)->record.step, 1);
    step(f, answer_of(f, 0, SFC_DUTY_COMMIT));
    step(f, answer_of(f, 0, SFC_DUTY_ABORT));
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    step(f, answer_of(f, 1, SFC_DUTY_ABORT));
    commit(f, 2, true);
}

static void test_lost_with_a_commit_on_its_way(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    struct sfc_run_event late = answer_of(f, 1, SFC_DUTY_COMMIT);
    step(f, answer_of(f, 0, SFC_DUTY_COMMIT));
    lose(f, 1);
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 0);
    recover(f, 1, 1);
    step(f, late); /* from the process that is gone */
    commit(f, 2, true);
}

static void test_lost_twice_and_both(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    answer_all(f, SFC_DUTY_COMMIT);
    lose(f, 0);
    lose(f, 1);
    struct sfc_run_event old = answer_of(f, 1, SFC_DUTY_OPEN);
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    lose(f, 1); /* again while it recovers */
    assert_true(open_sent(f)->recover);
    step(f, old); /* what its earlier life said does not count */
    step(f, answer_of(f, 0, SFC_DUTY_ABORT));
    assert_int_equal(f->run.commit.phase, SFC_PHASE_ROUND);
    assert_true(sfc_run_recovers(&f->run, 1));
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    assert_false(sfc_run_recovers(&f->run, 1));
    step(f, answer_of(f, 1, SFC_DUTY_ABORT));
    commit(f, 2, true);
}

/* A late copy of a registration makes a shard look lost that only waits for its Commit. */
static void test_a_shard_that_was_not_lost(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    step(f, answer_of(f, 0, SFC_DUTY_COMMIT));
    lose(f, 1);
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_OPEN);
    e.applied = 0;
    step(f, e);
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 1);
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 0);
    step(f, answer_of(f, 1, SFC_DUTY_COMMIT));
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 1);
    end(f);
    begin(f, &restored);
    step(f, back(0, 5, 0));
    e = back(1, 5, 0), e.shard_run_id = 0, step(f, e);
    e = answer_of(f, 1, SFC_DUTY_OPEN), e.applied = 3, step(f, e);
    assert_int_equal(f->run.state, SFC_RUN_FAILED);
    assert_non_null(strstr(f->run.reason, "at step 3 instead of 5"));
}

static void test_lost_in_every_state(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL); /* loading from the seed: it begins again */
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    lose(f, 0);
    assert_false(open_sent(f)->recover);
    answer_all(f, SFC_DUTY_OPEN);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    end(f);

    f->config.load = true; /* loading from a checkpoint: what was written is gone */
    begin(f, NULL);
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    answer_all(f, SFC_DUTY_OPEN);
    lose(f, 0);
    assert_int_equal(f->run.state, SFC_RUN_FAILED);
    assert_non_null(strstr(f->run.reason, "restore again"));
    f->config.load = false;
    end(f);

    f->config.schedule.steps = 1; /* finished: a checkpoint may still be wanted */
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    answer_all(f, SFC_DUTY_COMMIT);
    assert_int_equal(f->run.state, SFC_RUN_FINISHED);
    lose(f, 1);
    assert_int_equal(open_sent(f)->record.step, 1);
    assert_int_equal(f->run.state, SFC_RUN_FINISHED);
    step(f, (struct sfc_run_event){.type = SFC_EV_HOLD});
    assert_null(find(f, SFC_ACT_REPLY_HOLD)); /* its blocks are not there yet */
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    assert_true(find(f, SFC_ACT_REPLY_HOLD)->held);
}

static void test_a_refused_recovery(void **state)
{
    struct fixture *f = *state;
    const uint64_t ids[K] = {4, 9};
    f->config.shard_ids = ids;
    begin(f, NULL);
    start(f);
    lose(f, 1);
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_OPEN);
    e.code = SFC_EUNAVAILABLE; /* comes again */
    e.text = "no space left on device";
    step(f, e);
    char text[256];
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text, "shard 9, which recovers step 0: no space left on device");
    f->now += 200;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    assert_non_null(open_sent(f));
    e.code = SFC_ECORRUPT;
    e.text = "log-00000001.sfl is damaged at byte 64";
    step(f, e);
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text,
                        "shard 9, which can't recover step 0 and is asked again when it is started "
                        "again: log-00000001.sfl is damaged at byte 64");
    f->now += 100000;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    assert_null(open_sent(f)); /* the same process would say the same */
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    lose(f, 1); /* another process has another folder */
    assert_non_null(open_sent(f));
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_null(strstr(text, "recover"));
}

static void test_a_failed_run_stays_failed(void **state)
{
    struct fixture *f = *state;
    const char *reason = "shard 9 refused Plan of step 1: no memory";
    const struct sfc_run_restore failed = {.state = SFC_RUN_FAILED, .reason = reason};
    begin(f, &failed);
    step(f, back(0, 0, 0));
    assert_int_equal(f->a.count, 0);
    assert_int_equal(f->run.state, SFC_RUN_FAILED);
    assert_string_equal(f->run.reason, reason);
    step(f, (struct sfc_run_event){.type = SFC_EV_STOP});
    assert_int_equal(sends(f, SFC_DUTY_CLOSE), K);
    assert_int_equal(f->run.state, SFC_RUN_IDLE);
}

static void test_restart_finds_shards_without_the_run(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_event e = back(0, 0, 0);
    f->config.incarnation = 2;
    begin(f, &restored);
    e.shard_run_id = 0;
    step(f, e);
    assert_true(open_sent(f)->recover);
    assert_int_equal(open_sent(f)->record.round.counter, 40);
    lose(f, 0); /* again */
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 0);
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    step(f, answer_of(f, 0, SFC_DUTY_ABORT));
    assert_int_equal(f->run.commit.phase, SFC_PHASE_ROUND); /* the other one is not here yet */
    step(f, back(1, 4, 5));
    assert_int_equal(sends(f, SFC_DUTY_COMMIT), 1);
    step(f, answer_of(f, 1, SFC_DUTY_COMMIT));
    step(f, answer_of(f, 1, SFC_DUTY_ABORT));
    commit(f, 6, true);
    end(f);
    begin(f, &restored);
    step(f, back(0, 4, 0)); /* alive, one behind, and not prepared: its disk has to have it */
    assert_int_equal(open_sent(f)->record.step, 5);
    step(f, back(1, 7, 0)); /* alive, and ahead: those steps are gone */
    assert_int_equal(open_sent(f)->shard, 1);
    assert_int_equal(open_sent(f)->record.step, 5);
    assert_int_equal(sends(f, SFC_DUTY_ABORT), 0);
}

/* ---- back to an earlier step */

static void finish(struct fixture *f, uint64_t t)
{
    ready(f, 0, 1, true);
    ready(f, 1, 1, true);
    assert_int_equal(find(f, SFC_ACT_WRITE_RECORD)->step, t);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = t});
    answer_all(f, SFC_DUTY_COMMIT);
}

static uint64_t rewind_to(struct fixture *f, uint64_t t)
{
    return step(f, (struct sfc_run_event){.type = SFC_EV_REWIND, .step = t, .oldest = 1});
}

/* The pause came while the last Commit was on its way. */
static void test_a_paused_run_that_finished_resumes(void **state)
{
    struct fixture *f = *state;
    f->config.schedule.steps = 1;
    begin(f, NULL);
    start(f);
    commit(f, 1, true);
    step(f, (struct sfc_run_event){.type = SFC_EV_PAUSE});
    answer_all(f, SFC_DUTY_COMMIT);
    assert_int_equal(f->run.state, SFC_RUN_FINISHED);
    step(f, (struct sfc_run_event){.type = SFC_EV_RESUME});
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_OK);
    assert_int_equal(f->run.state, SFC_RUN_FINISHED);
    step(f, (struct sfc_run_event){.type = SFC_EV_REWIND, .step = 0});
    answer_all(f, SFC_DUTY_CHECK);
    answer_all(f, SFC_DUTY_OPEN);
    step(f, (struct sfc_run_event){.type = SFC_EV_REWOUND, .step = 0});
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

/* Three steps are committed; for a rewind to step 1 all shards are asked. Returns its token. */
static uint64_t asked(struct fixture *f)
{
    static struct sfc_commit_record one;
    begin(f, NULL);
    start(f);
    for (uint64_t t = 1; t <= 3; t++) {
        commit(f, t, true);
        answer_all(f, SFC_DUTY_COMMIT);
        if (t == 1)
            one = f->run.commit.record;
    }
    to_prepare(f, 4);
    uint64_t token = rewind_to(f, 1);
    assert_int_equal(find(f, SFC_ACT_READ_RECORD)->step, 1);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_READ, .step = 1, .record = &one});
    assert_int_equal(sends(f, SFC_DUTY_CHECK), K);
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 0);
    return token;
}

/* And all shards are on their way. */
static uint64_t moved(struct fixture *f)
{
    uint64_t token = asked(f);
    step(f, answer_of(f, 0, SFC_DUTY_CHECK));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 0);
    step(f, answer_of(f, 1, SFC_DUTY_CHECK));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_true(open_sent(f)->recover && open_sent(f)->record.step == 1);
    assert_null(find(f, SFC_ACT_WRITE_REWIND)); /* the records stay until all shards are there */
    return token;
}

/* A shard that is asked can't: none has given anything up, and the open step goes on. */
static void test_a_shard_that_can_not_go_back(void **state)
{
    struct fixture *f = *state;
    uint64_t token = asked(f);
    struct sfc_attempt round = f->run.commit.round;
    struct sfc_run_event late = answer_of(f, 0, SFC_DUTY_CHECK),
                         e = answer_of(f, 1, SFC_DUTY_CHECK);
    e.code = SFC_ECORRUPT;
    e.text = "checksum";
    step(f, e);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY);
    assert_true(a && a->token == token && a->code == SFC_ECORRUPT);
    assert_non_null(strstr(a->text, "checksum. Nothing has changed: the run is at step 3"));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 0);
    step(f, late);
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 0);
    assert_int_equal(sfc_attempt_compare(f->run.commit.round, round), 0);
    finish(f, 4);
    assert_int_equal(sfc_run_committed(&f->run), 4);
}

/* One that dies while they are asked first comes to where the run is. */
static void test_lost_while_asked(void **state)
{
    struct fixture *f = *state;
    asked(f);
    step(f, answer_of(f, 0, SFC_DUTY_CHECK));
    lose(f, 0);
    assert_int_equal(open_sent(f)->record.step, 3);
    step(f, answer_of(f, 1, SFC_DUTY_CHECK));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 0);
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    assert_int_equal(sends(f, SFC_DUTY_CHECK), 1);
    step(f, answer_of(f, 0, SFC_DUTY_CHECK));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_int_equal(open_sent(f)->record.step, 1);
}

static void test_rewind(void **state)
{
    struct fixture *f = *state;
    uint64_t token = moved(f);
    struct sfc_attempt round = f->run.commit.round;
    ready(f, 0, 1, true); /* of the step that was open */
    struct sfc_run_event e = answer_of(f, 0, SFC_DUTY_OPEN);
    step(f, e);
    assert_null(find(f, SFC_ACT_WRITE_REWIND));
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    assert_int_equal(find(f, SFC_ACT_WRITE_REWIND)->step, 1);
    answer_all(f, SFC_DUTY_ABORT);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), 0);
    e = (struct sfc_run_event){.type = SFC_EV_REWOUND, .step = 1, .code = SFC_EIO, .text = "full"};
    step(f, e);
    char text[200];
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_non_null(strstr(text, "after step 1 to be removed: full"));
    f->now += 600;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    assert_int_equal(find(f, SFC_ACT_WRITE_REWIND)->step, 1); /* again */
    e.code = SFC_OK;
    step(f, e);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_OK);
    assert_int_equal(find(f, SFC_ACT_REPLY)->token, token);
    assert_int_equal(sfc_run_committed(&f->run), 1);
    assert_int_equal(sfc_attempt_compare(f->run.commit.round, round), 0);
    commit(f, 2, true);
    assert_true(sfc_attempt_compare(f->run.commit.record.round, round) >= 0);
    answer_all(f, SFC_DUTY_COMMIT);
    commit(f, 3, true);
}

/* A shard's disk doesn't lead there: the run returns to where it was. */
static void test_refused_rewind(void **state)
{
    struct fixture *f = *state;
    uint64_t token = moved(f);
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_OPEN);
    e.code = SFC_ENOTFOUND;
    e.text = "its disk leads to step 2";
    step(f, e);
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY);
    assert_true(a && a->token == token && a->code == SFC_ENOTFOUND);
    assert_non_null(strstr(a->text, "shard 1 can't go back to step 1: its disk leads to step 2"));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_int_equal(open_sent(f)->record.step, 3);
    assert_int_equal(sfc_run_committed(&f->run), 3);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    assert_int_equal(sends(f, SFC_DUTY_PLAN), K); /* the labels of step 4 are still there */
}

/* One that dies on the way comes to the same step. */
static void test_lost_in_a_rewind(void **state)
{
    struct fixture *f = *state;
    moved(f);
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    lose(f, 0);
    assert_int_equal(open_sent(f)->record.step, 1);
    step(f, answer_of(f, 1, SFC_DUTY_OPEN));
    assert_null(find(f, SFC_ACT_WRITE_REWIND));
    step(f, answer_of(f, 0, SFC_DUTY_OPEN));
    assert_non_null(find(f, SFC_ACT_WRITE_REWIND));
}

static void test_rewinds_that_can_not_be(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    rewind_to(f, 0);
    assert_int_equal(find(f, SFC_ACT_REPLY)->code, SFC_ESTATE); /* it has not begun */
    start(f);
    commit(f, 1, true);
    answer_all(f, SFC_DUTY_COMMIT);
    rewind_to(f, 2);
    assert_non_null(strstr(find(f, SFC_ACT_REPLY)->text, "above the last commit"));
    rewind_to(f, 0);
    assert_non_null(strstr(find(f, SFC_ACT_REPLY)->text, "leads to step 1 and later"));
    rewind_to(f, 1);
    assert_null(find(f, SFC_ACT_REPLY));
    rewind_to(f, 1);
    assert_non_null(strstr(find(f, SFC_ACT_REPLY)->text, "is at work"));
    step(f, (struct sfc_run_event){.type = SFC_EV_STOP});
    unsigned replies = 0;
    for (size_t i = 0; i < f->a.count; i++)
        replies += f->a.items[i].type == SFC_ACT_REPLY;
    assert_int_equal(replies, 2); /* of the stop and of the rewind */
}

/* ---- provisional steps */

static bool prepare_sent_provisional(struct fixture *f, uint64_t t)
{
    to_prepare(f, t);
    for (size_t i = 0; i < f->a.count; i++)
        if (f->a.items[i].type == SFC_ACT_SEND && f->a.items[i].duty == SFC_DUTY_PREPARE)
            return f->a.items[i].provisional;
    fail_msg("no Prepare of step %u", (unsigned)t);
    return false;
}

static void test_provisional_steps(void **state)
{
    struct fixture *f = *state;
    f->config.durable_every = 3;
    begin(f, NULL);
    start(f);
    for (uint64_t t = 1; t <= 5; t++) {
        assert_int_equal(prepare_sent_provisional(f, t), t != 3);
        finish(f, t);
        assert_int_equal(sfc_run_committed(&f->run), t);
        assert_int_equal(sfc_run_durable_step(&f->run), t < 3 ? 0 : 3);
    }
    lose(f, 0); /* all go to the last durable step */
    assert_non_null(find(f, SFC_ACT_FORGET_RECORDS));
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_int_equal(open_sent(f)->record.step, 3);
    assert_int_equal(sfc_run_committed(&f->run), 3);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    assert_null(sfc_run_labels(&f->run, 4)); /* announced again */
    assert_true(prepare_sent_provisional(f, 4));
    finish(f, 4);
    step(f, (struct sfc_run_event){
                .type = SFC_EV_PAUSE}); /* one step more: it stands at a durable one */
    assert_false(prepare_sent_provisional(f, 5));
    finish(f, 5);
    assert_int_equal(sfc_run_durable_step(&f->run), 5);
    lose(f, 1); /* nothing is provisional: only this one recovers */
    assert_int_equal(sends(f, SFC_DUTY_OPEN), 1);
}

/* A shard whose disk failed before a provisional step was durable. */
static void test_a_disk_that_lost_provisional_steps(void **state)
{
    struct fixture *f = *state;
    f->config.durable_every = 3;
    begin(f, NULL);
    start(f);
    prepare_sent_provisional(f, 1);
    finish(f, 1);
    prepare_sent_provisional(f, 2);
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_PREPARE);
    e.code = SFC_EIO;
    step(f, e);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_int_equal(sfc_run_committed(&f->run), 0);
}

/* The disk failed, but what it had said to have was not committed: that shard opens the run anew.
 */
static void test_a_disk_that_lost_what_was_not_committed(void **state)
{
    struct fixture *f = *state;
    f->config.durable_every = 3;
    begin(f, NULL);
    start(f);
    prepare_sent_provisional(f, 1);
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_PREPARE);
    e.code = SFC_EIO;
    step(f, e);
    assert_int_equal(sends(f, SFC_DUTY_OPEN), K);
    assert_int_equal(sfc_run_committed(&f->run), 0);
}

/* A provisional Commit of our predecessor may be on its way to a shard that says it is ready. */
static void test_restart_beside_provisional_steps(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_restore r = restored;
    f->config.incarnation = 2;
    f->config.durable_every = 3;
    begin(f, &r);
    step(f, back(0, 5, 6));
    step(f, back(1, 5, 0));
    assert_int_equal(f->run.commit.duties[0][SFC_DUTY_OPEN].wanted, true);
    answer_all(f, SFC_DUTY_OPEN);
    answer_all(f, SFC_DUTY_ABORT);
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

static void test_a_drop_outlives_a_restart(void **state)
{
    struct fixture *f = *state;
    const struct sfc_run_drop drops[] = {{6, 1}};
    struct sfc_run_restore r = restored;
    r.state = SFC_RUN_BLOCKED;
    r.reason = "step 7 micro-batch 0 failed 3 times";
    r.drops = drops;
    r.drop_count = 1;
    f->config.incarnation = 2;
    begin(f, &r);
    step(f, back(0, 5, 0));
    step(f, back(1, 5, 0));
    answer_all(f, SFC_DUTY_ABORT);
    assert_int_equal(f->run.state, SFC_RUN_BLOCKED);
    assert_string_equal(f->run.reason, r.reason);
    announce(f, 6);
    assert_true(sfc_run_labels(&f->run, 6)[0] == labels[0]);
    assert_true(sfc_run_labels(&f->run, 6)[1] == SFC_CORE_LABEL_NONE);
    refused_drop(f, 5, 0, "step 5 is committed");
    refused_drop(f, 60, 0, "is not being read yet: what blocks the run is of the steps 6 to");
    step(f, (struct sfc_run_event){.type = SFC_EV_DROP, .step = 7, .j = 0});
    assert_int_equal(find(f, SFC_ACT_WRITE_DROP)->step, 7);
    step(f, (struct sfc_run_event){
                .type = SFC_EV_DROPPED, .number = f->run.last_drop, .step = 7, .j = 0});
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

static void test_what_it_waits_for(void **state)
{
    struct fixture *f = *state;
    char text[256];
    begin(f, NULL);
    start(f);
    to_prepare(f, 1);
    struct sfc_run_event e = answer_of(f, 1, SFC_DUTY_PREPARE);
    e.code = SFC_EUNAVAILABLE;
    e.text = "no space left on device";
    ready(f, 0, 1, true);
    step(f, e);
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text, "Prepare of shard 1: no space left on device");
    f->now += 200;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
    ready(f, 1, 1, true);
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text, "the durable record of step 1");
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_GONE, .shard = 0});
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_non_null(strstr(text, "shard 0, which does not answer"));
    lose(f, 0);
    step(
        f,
        (struct sfc_run_event){
            .type = SFC_EV_SHARD_PROGRESS, .shard = 0, .step = 480, .to_step = 512, .eta_s = 12.2});
    sfc_run_waits_for(&f->run, text, sizeof(text));
    assert_string_equal(text, "shard 0, which recovers: step 480 of 512, 12 s left");
}

static void test_a_record_is_written_again(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_event failed = {
        .type = SFC_EV_RECORD_FAILED, .step = 1, .code = SFC_EIO, .text = "disk is full"};
    char text[256];
    begin(f, NULL);
    start(f);
    to_prepare(f, 1);
    ready(f, 0, 1, true);
    ready(f, 1, 1, true);
    struct sfc_commit_record record = find(f, SFC_ACT_WRITE_RECORD)->record;
    for (int i = 0; i < 3; i++) {
        step(f, failed);
        assert_null(find(f, SFC_ACT_WRITE_RECORD));
        sfc_run_waits_for(&f->run, text, sizeof(text));
        assert_string_equal(text, "the durable record of step 1: disk is full");
        lose(f, 0); /* no new round before the record says which step counts */
        f->now += 1000;
        step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
        assert_memory_equal(&find(f, SFC_ACT_WRITE_RECORD)->record, &record, sizeof(record));
        step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
        assert_null(find(f, SFC_ACT_WRITE_RECORD)); /* one at a time */
    }
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = 1});
    assert_int_equal(sfc_run_committed(&f->run), 1);
    step(f, failed); /* of a step that is over */
    assert_int_equal(f->run.state, SFC_RUN_RUNNING);
}

static void test_a_record_that_contradicts_fails_the_run(void **state)
{
    struct fixture *f = *state;
    begin(f, NULL);
    start(f);
    to_prepare(f, 1);
    ready(f, 0, 1, true);
    ready(f, 1, 1, true);
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_FAILED,
                                   .step = 1,
                                   .code = SFC_ECONFLICT,
                                   .text = "already committed with other inputs"});
    assert_int_equal(f->run.state, SFC_RUN_FAILED);
    assert_non_null(strstr(f->run.reason, "already committed"));
}

static void test_reports_are_checked(void **state)
{
    struct fixture *f = *state;
    const struct sfc_dense_report twice[] = {{.block = 1}, {.block = 1}}, beyond = {.block = 2};
    bool all;
    begin(f, NULL);
    assert_int_equal(sfc_commit_ready(&f->run.commit, 0, twice, 2, true, &all, NULL), SFC_EINVAL);
    assert_int_equal(sfc_commit_ready(&f->run.commit, 0, &beyond, 1, true, &all, NULL), SFC_EINVAL);
    assert_int_equal(sfc_commit_ready(&f->run.commit, 0, twice, 1, true, &all, NULL), SFC_OK);
    assert_int_equal(sfc_commit_ready(&f->run.commit, 1, twice, 1, true, &all, NULL), SFC_EINVAL);
    assert_int_equal(sfc_commit_decide(&f->run.commit, 0.1, 1, NULL), SFC_EINTERNAL);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_a_step),
        TEST(test_no_grant_while_preparing),
        TEST(test_missing_opens_a_round),
        TEST(test_not_finite),
        TEST(test_retry_and_refusal),
        TEST(test_hold),
        TEST(test_watch),
        TEST(test_session),
        TEST(test_a_session_begins_anew),
        TEST(test_a_session_beside_a_loss),
        TEST(test_restart),
        TEST(test_a_lost_shard_recovers),
        TEST(test_a_shard_lost_beside_a_record),
        TEST(test_lost_with_a_commit_on_its_way),
        TEST(test_lost_twice_and_both),
        TEST(test_a_shard_that_was_not_lost),
        TEST(test_lost_in_every_state),
        TEST(test_a_refused_recovery),
        TEST(test_a_failed_run_stays_failed),
        TEST(test_restart_finds_shards_without_the_run),
        TEST(test_rewind),
        TEST(test_a_paused_run_that_finished_resumes),
        TEST(test_a_shard_that_can_not_go_back),
        TEST(test_lost_while_asked),
        TEST(test_refused_rewind),
        TEST(test_lost_in_a_rewind),
        TEST(test_rewinds_that_can_not_be),
        TEST(test_provisional_steps),
        TEST(test_a_disk_that_lost_provisional_steps),
        TEST(test_a_disk_that_lost_what_was_not_committed),
        TEST(test_restart_beside_provisional_steps),
        TEST(test_a_drop_outlives_a_restart),
        TEST(test_what_it_waits_for),
        TEST(test_a_record_is_written_again),
        TEST(test_a_record_that_contradicts_fails_the_run),
        TEST(test_reports_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
