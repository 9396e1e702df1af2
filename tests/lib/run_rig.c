#include "tests/lib/run_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

static const uint64_t labels[1] = {3};

int set_up(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof(f));
    f.ids[0] = 10;
    f.ids[1] = 11;
    f.config = (struct sfc_run_config){
        .run_id = 1,
        .incarnation = 1,
        .shards = 2,
        .max_shards = 4,
        .shard_ids = f.ids,
        .map_version = 1,
        .classes = 10,
        .global_batch = 1,
        .micro_batch = 1,
        .schedule = {.lr = 0.1, .power = 1, .steps = STEPS},
    };
    *state = &f;
    return 0;
}

int tear_down(void **state)
{
    struct fixture *f = *state;
    sfc_run_free(&f->run);
    sfc_run_actions_free(&f->a);
    return 0;
}

void step(struct fixture *f, struct sfc_run_event e)
{
    e.now_ms = f->now;
    e.token = 1;
    sfc_run_step(&f->run, &e, &f->a);
}

void tick(struct fixture *f, uint64_t ms)
{
    f->now += ms;
    step(f, (struct sfc_run_event){.type = SFC_EV_TICK});
}

const struct sfc_run_action *find(struct fixture *f, enum sfc_run_action_type type)
{
    for (size_t i = 0; i < f->a.count; i++)
        if (f->a.items[i].type == type)
            return &f->a.items[i];
    return NULL;
}

const struct sfc_run_action *sent(struct fixture *f, uint32_t k, enum sfc_duty duty)
{
    for (size_t i = 0; i < f->a.count; i++)
        if (f->a.items[i].type == SFC_ACT_SEND && f->a.items[i].duty == duty &&
            f->a.items[i].shard == k)
            return &f->a.items[i];
    return NULL;
}

bool wanted(const struct fixture *f, uint32_t k, enum sfc_duty duty)
{
    return f->run.commit.duties[k][duty].wanted;
}

struct sfc_run_event answer_of(struct fixture *f, uint32_t k, enum sfc_duty duty)
{
    struct sfc_run_event e = {.type = SFC_EV_SHARD_REPLY,
                              .shard = k,
                              .life = f->run.shards[k].life,
                              .duty = duty,
                              .number = ORDER,
                              .applied = f->run.commit.committed,
                              .prepare = {.ready = true, .head_finite = true}};
    sfc_commit_key(&f->run.commit, duty, &e.step, &e.round);
    return e;
}

void answer(struct fixture *f, uint32_t k, enum sfc_duty duty)
{
    assert_true(f->run.commit.duties[k][duty].in_flight);
    step(f, answer_of(f, k, duty));
}

void refuse(struct fixture *f, uint32_t k, enum sfc_duty duty, int code)
{
    struct sfc_run_event e = answer_of(f, k, duty);
    e.code = code;
    e.text = "no";
    assert_true(f->run.commit.duties[k][duty].in_flight);
    step(f, e);
}

void answer_all(struct fixture *f, enum sfc_duty duty)
{
    for (uint32_t k = 0; k < f->run.config.shards; k++)
        if (wanted(f, k, duty))
            answer(f, k, duty);
}

void begin(struct fixture *f, const struct sfc_run_restore *restore)
{
    assert_int_equal(sfc_run_init(&f->run, &f->config, restore, NULL), SFC_OK);
    assert_int_equal(sfc_run_actions_init(&f->a, &f->run, NULL), SFC_OK);
    tick(f, 1);
    if (!restore)
        answer_all(f, SFC_DUTY_OPEN);
}

void announce(struct fixture *f, uint64_t t)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_ANNOUNCE,
                                   .worker = 1,
                                   .session = f->run.session,
                                   .step = t,
                                   .labels = labels,
                                   .count = 1});
}

struct sfc_attempt grant(struct fixture *f)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_TICKET, .worker = 1});
    const struct sfc_run_action *a = find(f, SFC_ACT_REPLY_TICKET);
    assert_true(a && a->granted);
    return a->attempt;
}

void done(struct fixture *f, uint64_t t, struct sfc_attempt attempt)
{
    const struct sfc_done d = {.attempt = attempt, .loss_sum = 2.0};
    step(f, (struct sfc_run_event){
                .type = SFC_EV_DONE, .session = f->run.session, .step = t, .done = &d});
}

void record(struct fixture *f)
{
    uint64_t t = f->run.commit.committed + 1;
    answer_all(f, SFC_DUTY_PLAN);
    done(f, t, grant(f));
    answer_all(f, SFC_DUTY_PREPARE);
    assert_non_null(find(f, SFC_ACT_WRITE_RECORD));
    step(f, (struct sfc_run_event){.type = SFC_EV_RECORD_DURABLE, .step = t});
}

void commit(struct fixture *f)
{
    announce(f, f->run.commit.committed + 1);
    record(f);
    answer_all(f, SFC_DUTY_COMMIT);
}

void order(struct fixture *f, enum sfc_order_kind kind, uint32_t shard, uint32_t from)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_ORDER,
                                   .number = ORDER,
                                   .order = kind,
                                   .shard = shard,
                                   .from = from,
                                   .shard_id = 12});
}

void durable(struct fixture *f)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_MAP_DURABLE, .number = ORDER});
}

void assert_void(struct fixture *f, int code)
{
    const struct sfc_run_action *a = find(f, SFC_ACT_ORDER_DONE);
    assert_non_null(a);
    assert_int_equal(a->number, ORDER);
    assert_int_equal(a->code, code);
    assert_int_equal(f->run.config.map_version, 1);
    assert_true(sfc_run_may_order(&f->run));
}

void assert_done(struct fixture *f)
{
    const struct sfc_run_action *a = find(f, SFC_ACT_ORDER_DONE);
    assert_true(a && a->code == SFC_OK && a->number == ORDER);
    assert_int_equal(f->run.config.map_version, 2);
    assert_true(sfc_run_may_order(&f->run));
}

void fetched(struct fixture *f)
{
    begin(f, NULL);
    commit(f);
    order(f, SFC_ORDER_MOVE, 1, 0);
    const struct sfc_run_action *a = sent(f, 1, SFC_DUTY_FETCH);
    assert_true(a && a->number == ORDER);
    answer(f, 1, SFC_DUTY_FETCH);
}

void joined(struct fixture *f)
{
    begin(f, NULL);
    commit(f);
    uint32_t k = sfc_run_free_place(&f->run);
    assert_int_equal(k, 2);
    order(f, SFC_ORDER_JOIN, k, 0);
    const struct sfc_run_action *a = sent(f, k, SFC_DUTY_JOIN);
    assert_true(a && a->step == 1 && a->record.step == 1 && !a->recover);
}

void order_growth(struct fixture *f, uint64_t classes)
{
    step(f,
         (struct sfc_run_event){
             .type = SFC_EV_ORDER, .number = ORDER, .order = SFC_ORDER_GROW, .classes = classes});
}

void says(struct fixture *f, uint32_t k, uint64_t run_id)
{
    step(f, (struct sfc_run_event){.type = SFC_EV_SHARD_SAYS, .shard = k, .shard_run_id = run_id});
}

struct sfc_run_event back(uint32_t k, uint64_t version, uint64_t applied)
{
    return (struct sfc_run_event){.type = SFC_EV_SHARD_BACK,
                                  .shard = k,
                                  .shard_run_id = 1,
                                  .map_version = version,
                                  .step = applied};
}
