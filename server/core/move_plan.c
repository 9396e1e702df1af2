#include "server/core/move_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/move_plan_internal.h"

typedef unsigned long long ull;

void sfc_goal_text(const struct sfc_goal *goal, char *out, size_t size)
{
    switch (goal->kind) {
    case SFC_GOAL_NONE:
        snprintf(out, size, "%s", "");
        break;
    case SFC_GOAL_SHARDS:
        snprintf(out, size, "%u shard%s", goal->shards, goal->shards == 1 ? "" : "s");
        break;
    case SFC_GOAL_JOIN:
        snprintf(out, size, "shard %llu joins", (ull)goal->shard);
        break;
    case SFC_GOAL_DRAIN:
        snprintf(out, size, "drain shard %llu", (ull)goal->shard);
        break;
    case SFC_GOAL_REBALANCE:
        snprintf(out, size, "rebalance");
        break;
    }
}

/* ---- who stays */

struct members {
    bool in[SFC_CORE_MAX_SHARDS];
    uint32_t count;
    uint32_t blocks[SFC_CORE_MAX_SHARDS]; /* now */
};

static uint32_t on_host(const struct sfc_plan_input *in, const struct members *m, const char *host)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < in->shard_count; k++)
        n += m->in[k] && strcmp(in->shards[k].host, host) == 0;
    return n;
}

/* On the host with the fewest shards of the run; then the one with more room, then the older one.
 */
static uint32_t who_joins(const struct sfc_plan_input *in, const struct members *m)
{
    uint32_t best = UINT32_MAX, best_host = 0;
    uint64_t best_room = 0;
    for (uint32_t k = 0; k < in->shard_count; k++) {
        const struct sfc_plan_shard *s = &in->shards[k];
        if (m->in[k] || s->member || !s->ready || s->limit <= s->fixed)
            continue;
        uint32_t host = on_host(in, m, s->host);
        uint64_t room = sfc_plan_room(s, 0);
        if (best == UINT32_MAX || host < best_host ||
            (host == best_host &&
             (room > best_room || (room == best_room && s->id < in->shards[best].id)))) {
            best = k;
            best_host = host;
            best_room = room;
        }
    }
    return best;
}

/* From the host with the most shards of the run; then the one with the fewest blocks, then the
 * newer one. */
static uint32_t who_leaves(const struct sfc_plan_input *in, const struct members *m)
{
    uint32_t best = UINT32_MAX, best_host = 0;
    for (uint32_t k = 0; k < in->shard_count; k++) {
        const struct sfc_plan_shard *s = &in->shards[k];
        if (!m->in[k])
            continue;
        uint32_t host = on_host(in, m, s->host);
        if (best == UINT32_MAX || host > best_host ||
            (host == best_host &&
             (m->blocks[k] < m->blocks[best] ||
              (m->blocks[k] == m->blocks[best] && s->id > in->shards[best].id)))) {
            best = k;
            best_host = host;
        }
    }
    return best;
}

static void set_in(struct members *m, uint32_t k, bool in)
{
    m->count += in && !m->in[k];
    m->count -= !in && m->in[k];
    m->in[k] = in;
}

static int want_shards(const struct sfc_plan_input *in, struct members *m, uint32_t *missing,
                       struct sfc_error *err)
{
    uint32_t want = in->goal.shards;
    if (want < 1 || want > SFC_CORE_MAX_SHARDS || want > in->class_blocks)
        return sfc_fail(err, SFC_EINVAL, "%u shards: a run with %u class blocks can have 1 to %u",
                        want, in->class_blocks,
                        in->class_blocks < SFC_CORE_MAX_SHARDS ? in->class_blocks
                                                               : SFC_CORE_MAX_SHARDS);
    while (m->count > want)
        set_in(m, who_leaves(in, m), false);
    while (m->count + *missing < want) {
        uint32_t k = who_joins(in, m);
        if (k == UINT32_MAX)
            ++*missing;
        else
            set_in(m, k, true);
    }
    return SFC_OK;
}

static int find(const struct sfc_plan_input *in, uint32_t *out, struct sfc_error *err)
{
    for (uint32_t k = 0; k < in->shard_count; k++)
        if (in->shards[k].id == in->goal.shard) {
            *out = k;
            return SFC_OK;
        }
    return sfc_fail(err, SFC_EINVAL, "there is no shard %llu; `shardfc status` lists them",
                    (ull)in->goal.shard);
}

static int want_one(const struct sfc_plan_input *in, struct members *m, struct sfc_error *err)
{
    uint32_t k = 0;
    int code = find(in, &k, err);
    if (code != SFC_OK)
        return code;
    const struct sfc_plan_shard *s = &in->shards[k];
    if (in->goal.kind == SFC_GOAL_JOIN && !s->member && !s->ready)
        return sfc_fail(err, SFC_ESTATE, "shard %llu does not answer", (ull)s->id);
    if (in->goal.kind == SFC_GOAL_DRAIN && m->in[k] && m->count == 1)
        return sfc_fail(err, SFC_EINVAL,
                        "shard %llu is the last one of the run: add another one first "
                        "(`shardfc scale --shards 2`)",
                        (ull)s->id);
    set_in(m, k, in->goal.kind == SFC_GOAL_JOIN);
    return SFC_OK;
}

static int choose_members(const struct sfc_plan_input *in, struct members *m, uint32_t *missing,
                          struct sfc_error *err)
{
    for (uint32_t k = 0; k < in->shard_count; k++) {
        const struct sfc_plan_shard *s = &in->shards[k];
        set_in(m, k, s->member);
    }
    if (m->count == 0)
        return sfc_fail(err, SFC_EINVAL, "the run has no shards");
    switch (in->goal.kind) {
    case SFC_GOAL_SHARDS:
        return want_shards(in, m, missing, err);
    case SFC_GOAL_JOIN:
    case SFC_GOAL_DRAIN:
        return want_one(in, m, err);
    case SFC_GOAL_REBALANCE:
    case SFC_GOAL_NONE:
        break;
    }
    return SFC_OK;
}

/* Only a shard that owns nothing can leave without answering. Where nothing is to move nobody has
 * to answer: a goal can always be taken back. */
static int check_ready(const struct sfc_plan_input *in, const struct members *m,
                       struct sfc_error *err)
{
    for (uint32_t k = 0; in->goal.kind != SFC_GOAL_NONE && k < in->shard_count; k++) {
        const struct sfc_plan_shard *s = &in->shards[k];
        if (s->member && !s->ready && (m->in[k] || m->blocks[k] > 0))
            return sfc_fail(err, SFC_ESTATE,
                            "shard %llu does not answer: blocks move when it is back (start it "
                            "again with the same --listen and --state)",
                            (ull)s->id);
    }
    return SFC_OK;
}

/* ---- the plan */

static int check(const struct sfc_plan_input *in, struct sfc_error *err)
{
    if (in->shard_count < 1 || in->shard_count > SFC_CORE_MAX_SHARDS)
        return sfc_fail(err, SFC_EINVAL, "%u shards; 1..%u are possible", in->shard_count,
                        SFC_CORE_MAX_SHARDS);
    for (uint32_t b = 0; b < in->class_blocks + in->dense_blocks; b++)
        if (in->blocks[b].owner >= in->shard_count || !in->shards[in->blocks[b].owner].member ||
            !(in->blocks[b].load > 0))
            return sfc_fail(err, SFC_EINVAL, "block %u: no owner, or no load", b);
    return SFC_OK;
}

static int make(const struct sfc_plan_input *in, const struct members *m,
                struct sfc_move_plan *plan, struct sfc_error *err)
{
    struct sfc_plan_work w;
    bool members[SFC_CORE_MAX_SHARDS] = {false};
    for (uint32_t k = 0; k < in->shard_count; k++) {
        members[k] = in->shards[k].member;
        plan->joins[k] = m->in[k] && !members[k];
        plan->leaves[k] = !m->in[k] && members[k];
    }
    int code = sfc_plan_work_init(&w, in, m->in, err);
    if (code != SFC_OK)
        return code;
    plan->slowest_before = sfc_plan_slowest(&w, members);
    code = sfc_plan_evict(&w, err);
    if (code == SFC_OK && in->goal.kind != SFC_GOAL_DRAIN && in->goal.kind != SFC_GOAL_NONE)
        code = sfc_plan_balance(&w, err);
    plan->slowest_after = sfc_plan_slowest(&w, m->in);
    if (code == SFC_OK)
        code = sfc_plan_batches(&w, plan, err);
    if (code == SFC_OK)
        code = sfc_plan_explain(&w, plan, err);
    sfc_plan_work_free(&w);
    return code;
}

int sfc_move_plan_make(const struct sfc_plan_input *in, struct sfc_move_plan *out,
                       struct sfc_error *err)
{
    struct sfc_move_plan plan = {0};
    struct members m = {0};
    int code = check(in, err);
    for (uint32_t b = 0; code == SFC_OK && b < in->class_blocks + in->dense_blocks; b++)
        m.blocks[in->blocks[b].owner]++;
    if (code == SFC_OK)
        code = choose_members(in, &m, &plan.missing, err);
    if (code == SFC_OK)
        code = check_ready(in, &m, err);
    if (code == SFC_OK && plan.missing > 0) { /* one plan for all of them: fewer blocks move */
        memset(m.in, 0, sizeof m.in);
        for (uint32_t k = 0; k < in->shard_count; k++)
            m.in[k] = in->shards[k].member;
        struct sfc_plan_input still = *in;
        still.goal.kind = SFC_GOAL_NONE;
        code = make(&still, &m, &plan, err);
    } else if (code == SFC_OK) {
        code = make(in, &m, &plan, err);
    }
    if (code == SFC_OK)
        *out = plan;
    else
        sfc_move_plan_free(&plan);
    return code;
}

void sfc_move_plan_free(struct sfc_move_plan *plan)
{
    free(plan->moves);
    free(plan->batches);
    free(plan->text);
    memset(plan, 0, sizeof *plan);
}

bool sfc_move_plan_empty(const struct sfc_move_plan *plan)
{
    if (plan->missing > 0 || plan->move_count > 0)
        return false;
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (plan->joins[k] || plan->leaves[k])
            return false;
    return true;
}
