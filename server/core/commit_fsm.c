#include "server/core/commit_fsm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BIT(duty) (1u << (duty))

const char *const sfc_duty_names[SFC_DUTY_COUNT] = {
    [SFC_DUTY_OPEN] = "OpenRun",      [SFC_DUTY_COMMIT] = "Commit",
    [SFC_DUTY_ABORT] = "Abort",       [SFC_DUTY_PLAN] = "Plan",
    [SFC_DUTY_PLAN_NEXT] = "Plan",    [SFC_DUTY_PREPARE] = "Prepare",
    [SFC_DUTY_CLOSE] = "CloseRun",    [SFC_DUTY_CHECK] = "CheckRewind",
    [SFC_DUTY_JOIN] = "OpenRun",      [SFC_DUTY_FETCH] = "FetchBlocks",
    [SFC_DUTY_TAKE] = "TakeBlocks",   [SFC_DUTY_SETMAP] = "SetMap",
    [SFC_DUTY_CANCEL] = "CancelMove", [SFC_DUTY_ADOPT] = "CheckRewind",
};

/* A shard gets a message only when it has acknowledged these. */
static const unsigned duty_waits_for[SFC_DUTY_COUNT] = {
    [SFC_DUTY_COMMIT] = BIT(SFC_DUTY_OPEN),
    [SFC_DUTY_ABORT] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_PLAN] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_ABORT) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_PLAN_NEXT] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT) | BIT(SFC_DUTY_ABORT) |
                           BIT(SFC_DUTY_PLAN) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_PREPARE] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT) | BIT(SFC_DUTY_ABORT) |
                         BIT(SFC_DUTY_PLAN) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_CHECK] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_FETCH] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_CANCEL) | BIT(SFC_DUTY_SETMAP),
    [SFC_DUTY_TAKE] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT),
    [SFC_DUTY_ADOPT] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT) | BIT(SFC_DUTY_ABORT),
    [SFC_DUTY_SETMAP] = BIT(SFC_DUTY_OPEN) | BIT(SFC_DUTY_COMMIT),
};

int sfc_commit_init(struct sfc_commit_fsm *c, const struct sfc_commit_config *config,
                    struct sfc_error *err)
{
    uint32_t capacity = config->capacity ? config->capacity : config->shards;
    if (config->shards < 1 || capacity > SFC_CORE_MAX_SHARDS || config->shards > capacity ||
        config->micro_batches < 1)
        return sfc_fail(err, SFC_EINVAL, "%u shards; 1..%u are possible", config->shards,
                        config->capacity ? config->capacity : SFC_CORE_MAX_SHARDS);
    struct sfc_commit_fsm n = {.config = *config, .phase = SFC_PHASE_COLLECT, .finite = true};
    n.config.capacity = capacity;
    size_t j = config->micro_batches, d = config->dense_blocks;
    n.done = calloc(j, sizeof(*n.done));
    n.last_attempts = calloc(j, sizeof(*n.last_attempts));
    n.digests = calloc(j * d + 1, sizeof(*n.digests));
    n.sums = calloc(d + 1, sizeof(*n.sums));
    n.reported = calloc(d + 1, sizeof(*n.reported));
    n.member = calloc(capacity, sizeof(*n.member));
    n.ready = calloc(capacity, sizeof(*n.ready));
    n.duties = calloc(capacity, sizeof(*n.duties));
    if (!n.done || !n.last_attempts || !n.digests || !n.sums || !n.reported || !n.member ||
        !n.ready || !n.duties) {
        sfc_commit_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "commit state of %zu micro-batches", j);
    }
    for (size_t i = 0; i < j; i++)
        n.done[i].dense_digests = n.digests + i * d;
    for (uint32_t k = 0; k < config->shards; k++)
        n.member[k] = true;
    *c = n;
    return SFC_OK;
}

void sfc_commit_free(struct sfc_commit_fsm *c)
{
    free(c->done);
    free(c->last_attempts);
    free(c->digests);
    free(c->sums);
    free(c->reported);
    free(c->member);
    free(c->ready);
    free(c->duties);
    memset(c, 0, sizeof(*c));
}

void sfc_commit_set_member(struct sfc_commit_fsm *c, uint32_t shard, bool member)
{
    c->member[shard] = member;
    c->ready[shard] = false;
    if (shard >= c->config.shards)
        c->config.shards = shard + 1;
}

void sfc_commit_want(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty)
{
    c->duties[shard][duty] = (struct sfc_shard_duty){.wanted = true};
}

void sfc_commit_want_all(struct sfc_commit_fsm *c, enum sfc_duty duty)
{
    for (uint32_t k = 0; k < c->config.shards; k++)
        if (c->member[k])
            sfc_commit_want(c, k, duty);
}

void sfc_commit_unwant_all(struct sfc_commit_fsm *c)
{
    memset(c->duties, 0, c->config.shards * sizeof(*c->duties));
}

void sfc_commit_unwant_shard(struct sfc_commit_fsm *c, uint32_t shard)
{
    memset(c->duties[shard], 0, sizeof(c->duties[shard]));
}

void sfc_commit_unwant(struct sfc_commit_fsm *c, enum sfc_duty duty)
{
    for (uint32_t k = 0; k < c->config.shards; k++)
        c->duties[k][duty] = (struct sfc_shard_duty){0};
}

bool sfc_commit_idle_but(const struct sfc_commit_fsm *c, enum sfc_duty duty, uint32_t shard)
{
    for (uint32_t k = 0; k < c->config.shards; k++)
        if (k != shard && c->duties[k][duty].wanted)
            return false;
    return true;
}

bool sfc_commit_idle(const struct sfc_commit_fsm *c, enum sfc_duty duty)
{
    return sfc_commit_idle_but(c, duty, UINT32_MAX);
}

static bool may_send(struct sfc_shard_duty duties[SFC_DUTY_COUNT], unsigned duty, uint64_t now_ms)
{
    const struct sfc_shard_duty *d = &duties[duty];
    if (!d->wanted || d->in_flight || now_ms < d->retry_ms)
        return false;
    for (unsigned i = 0; i < SFC_DUTY_COUNT; i++)
        if ((duty_waits_for[duty] & BIT(i)) && duties[i].wanted)
            return false;
    return true;
}

bool sfc_commit_next(struct sfc_commit_fsm *c, uint64_t now_ms, uint32_t *shard,
                     enum sfc_duty *duty)
{
    for (uint32_t k = 0; k < c->config.shards; k++)
        for (unsigned i = 0; i < SFC_DUTY_COUNT; i++) {
            if (!may_send(c->duties[k], i, now_ms))
                continue;
            c->duties[k][i].in_flight = true;
            *shard = k;
            *duty = (enum sfc_duty)i;
            return true;
        }
    return false;
}

bool sfc_commit_answer(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty, bool ok,
                       uint64_t now_ms)
{
    struct sfc_shard_duty *d = &c->duties[shard][duty];
    if (!d->wanted || !d->in_flight)
        return false;
    d->in_flight = false;
    d->wanted = !ok;
    d->retry_ms = now_ms + c->config.retry_ms;
    return true;
}

void sfc_commit_suspend(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty)
{
    c->duties[shard][duty].retry_ms = UINT64_MAX;
}

void sfc_commit_resend(struct sfc_commit_fsm *c, uint32_t shard)
{
    for (unsigned i = 0; i < SFC_DUTY_COUNT; i++) {
        c->duties[shard][i].in_flight = false;
        c->duties[shard][i].retry_ms = 0;
    }
}

void sfc_commit_key(const struct sfc_commit_fsm *c, enum sfc_duty duty, uint64_t *step,
                    struct sfc_attempt *round)
{
    *step = c->committed;
    *round = c->round;
    if (duty == SFC_DUTY_COMMIT)
        *round = c->record.round;
    else if (duty == SFC_DUTY_ABORT || duty == SFC_DUTY_PLAN || duty == SFC_DUTY_PREPARE)
        *step = c->committed + 1;
    else if (duty == SFC_DUTY_PLAN_NEXT)
        *step = c->committed + 2;
}

void sfc_commit_plan(struct sfc_commit_fsm *c, bool next)
{
    bool *sent = next ? &c->next_plan_sent : &c->plan_sent;
    if (*sent)
        return;
    *sent = true;
    sfc_commit_want_all(c, next ? SFC_DUTY_PLAN_NEXT : SFC_DUTY_PLAN);
}

/* Forgets what shards said about the open step. */
static void forget_ready(struct sfc_commit_fsm *c)
{
    memset(c->ready, 0, c->config.shards * sizeof(*c->ready));
    memset(c->reported, 0, c->config.dense_blocks * sizeof(*c->reported));
    memset(c->sums, 0, c->config.dense_blocks * sizeof(*c->sums));
    c->finite = true;
}

static void forget_dones(struct sfc_commit_fsm *c)
{
    for (uint32_t j = 0; j < c->config.micro_batches; j++)
        c->done[j].filled = false;
    c->done_count = 0;
}

void sfc_commit_done(struct sfc_commit_fsm *c, uint32_t j, const struct sfc_done *done, bool *all)
{
    struct sfc_done *d = &c->done[j];
    uint64_t *digests = d->dense_digests;
    if (!d->filled)
        c->done_count++;
    *d = *done;
    d->filled = true;
    d->dense_digests = digests;
    if (c->config.dense_blocks > 0)
        memcpy(digests, done->dense_digests, c->config.dense_blocks * sizeof(*digests));
    *all = c->done_count == c->config.micro_batches;
}

int sfc_commit_ready(struct sfc_commit_fsm *c, uint32_t shard,
                     const struct sfc_dense_report *reports, uint32_t count, bool head_finite,
                     bool *all, struct sfc_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t b = reports[i].block;
        bool again = b < c->config.dense_blocks && c->reported[b];
        for (uint32_t k = 0; k < i && !again; k++)
            again = reports[k].block == b;
        if (b >= c->config.dense_blocks || again)
            return sfc_fail(err, SFC_EINVAL, "Ready reports dense block %u %s", b,
                            again ? "twice" : "that does not exist");
    }
    for (uint32_t i = 0; i < count; i++) {
        c->reported[reports[i].block] = true;
        c->sums[reports[i].block] = reports[i].sum_of_squares;
        c->finite = c->finite && reports[i].finite;
    }
    c->finite = c->finite && head_finite;
    c->ready[shard] = true;
    uint32_t missing = 0;
    for (uint32_t k = 0; k < c->config.shards; k++)
        missing += c->member[k] && !c->ready[k];
#if SFC_PLANT_BUG == 3 /* commit without one Ready */
    *all = missing <= 1;
#else
    *all = missing == 0;
#endif
    return SFC_OK;
}

int sfc_commit_decide(struct sfc_commit_fsm *c, double lr, uint64_t map_version,
                      struct sfc_error *err)
{
    struct sfc_commit_record r = {.step = c->committed + 1,
                                  .round = c->round,
                                  .clip_scale = 1.0,
                                  .lr = lr,
                                  .map_version = map_version};
    double squares = 0;
    for (uint32_t b = 0; b < c->config.dense_blocks; b++) {
        if (!c->reported[b] && SFC_PLANT_BUG != 3)
            return sfc_fail(err, SFC_EINTERNAL, "no shard reported dense block %u of step %llu", b,
                            (unsigned long long)r.step);
        squares += c->sums[b];
    }
    for (uint32_t j = 0; j < c->config.micro_batches; j++) {
        r.loss += c->done[j].loss_sum;
        r.zero_features += c->done[j].zero_features;
    }
    r.loss /= (double)c->config.global_batch;
    r.norm = sqrt(squares);
    r.apply = c->finite && isfinite(r.norm) && isfinite(r.loss);
    if (r.apply && c->config.clip > 0)
        r.clip_scale = c->config.clip / fmax(r.norm, c->config.clip);
    r.next_position = r.step * c->config.global_batch;
    r.skipped_in_row = r.apply ? 0 : c->record.skipped_in_row + 1;
    r.skipped_total = c->record.skipped_total + !r.apply;
    c->record = r;
    c->phase = SFC_PHASE_RECORD;
    return SFC_OK;
}

void sfc_commit_durable(struct sfc_commit_fsm *c)
{
    c->committed = c->record.step;
    for (uint32_t j = 0; j < c->config.micro_batches; j++)
        c->last_attempts[j] = c->done[j].attempt;
    forget_dones(c);
    forget_ready(c);
    /* The plan that ran ahead is now the plan of the open step, acknowledged or not. */
    for (uint32_t k = 0; k < c->config.shards; k++) {
        c->duties[k][SFC_DUTY_PLAN] = c->duties[k][SFC_DUTY_PLAN_NEXT];
        c->duties[k][SFC_DUTY_PREPARE] = (struct sfc_shard_duty){0};
    }
    sfc_commit_unwant(c, SFC_DUTY_PLAN_NEXT);
    c->plan_sent = c->next_plan_sent;
    c->next_plan_sent = false;
    sfc_commit_want_all(c, SFC_DUTY_COMMIT);
    c->phase = SFC_PHASE_COLLECT;
}

void sfc_commit_new_round(struct sfc_commit_fsm *c, struct sfc_attempt round)
{
    c->round = round;
    forget_dones(c);
    forget_ready(c);
    sfc_commit_unwant(c, SFC_DUTY_PLAN);
    sfc_commit_unwant(c, SFC_DUTY_PLAN_NEXT);
    sfc_commit_unwant(c, SFC_DUTY_PREPARE);
    c->plan_sent = false;
    c->next_plan_sent = false;
    sfc_commit_want_all(c, SFC_DUTY_ABORT);
    c->phase = SFC_PHASE_ROUND;
}
