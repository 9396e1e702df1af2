#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

static struct node me(uint32_t k)
{
    return (struct node){SHARD, k};
}

/* ---- registration */

void shard_beat(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    struct body b = {.worker = sh->id, .boot_id = sh->boot_id};
    sim_after(s, 400 + sim_below(s, 200), E_SHARD_BEAT)->a = k;
    if (sh->registering || !sh->up)
        return;
    b.j = k;
    b.has_run = sh->has_run;
    if (b.has_run) {
        b.run_id = RUN_ID;
        b.map_version = sh->map.version;
        b.step = sfc_step_applied(&sh->fsm);
        b.prepared_step = sfc_step_prepared(&sh->fsm);
        b.has_floor = true;
        b.floor = disk_floor(s, k);
        b.oldest = disk_oldest(s, k);
    }
    sh->registering = sh->id == 0;
    sim_call(s, me(k), (struct node){SCHEDULER, 0}, sh->id == 0 ? M_REGISTER : M_SHARD_BEAT, 0, 700,
             &b);
}

static void trim(struct shard *sh, uint64_t floor)
{
    if (sh->unsettled || floor <= sh->trimmed || sfc_step_applied(&sh->fsm) <= sh->back_until)
        return;
    sh->trimmed = floor;
    disk_trim(&sh->disk, floor);
}

void shard_reply(struct sim *s, uint32_t k, const struct rpc *rpc, const struct body *body)
{
    struct shard *sh = &s->shards[k];
    if (rpc->method == M_REGISTER) {
        sh->registering = false;
        sh->id = body->code == SFC_OK ? body->worker : 0;
    } else if (body->code == SFC_ENOTFOUND) {
        sh->id = 0;
    } else if (body->code == SFC_OK && body->has_floor && sh->has_run) {
        trim(sh, body->floor);
    }
    if (body->code == SFC_OK && body->incarnation > sh->incarnation)
        sh->incarnation = body->incarnation;
}

/* ---- requests */

/* Digests of the dense blocks whose gradients come to this shard, in block order. */
static uint32_t own_digests(const struct sim *s, uint32_t k, const uint64_t *all, uint64_t *out)
{
    uint32_t n = 0;
    for (uint32_t d = 0; d < s->d; d++)
        if (mirror_pushed(s, &s->shards[k].map, k, d))
            out[n++] = all[d];
    return n;
}

static void prepare(struct sim *s, uint32_t k, struct sfc_step_event *e, const struct body *b)
{
    struct sfc_prepared prepared[MAX_J];
    uint64_t digests[MAX_J][MAX_D];
    for (uint32_t j = 0; j < s->j; j++) {
        own_digests(s, k, b->digests[j], digests[j]);
        prepared[j] = (struct sfc_prepared){
            .attempt = b->attempts[j], .head_digest = b->heads[j], .dense_digests = digests[j]};
    }
    e->prepared = prepared;
    e->prepared_count = s->j;
    shard_step(s, k, e);
}

/* The first plan says that the run goes on from here: what is hidden may go. */
static void settle(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    if (!sh->unsettled || sh->settling)
        return;
    struct event *e = sim_after(s, 1 + sim_below(s, 40), E_SETTLED);
    sh->settling = true;
    e->a = k;
    e->b = sh->opened;
}

void shard_settled(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    disk_drop_hidden(s, k);
    sh->unsettled = false;
    sh->settling = false;
    if (sh->flush_waits)
        shard_flush(s, k);
}

void shard_request(struct sim *s, uint32_t k, uint64_t token)
{
    static const enum sfc_step_event_type types[] = {
        [M_COMMIT] = SFC_SE_COMMIT,   [M_ABORT] = SFC_SE_ABORT,   [M_PLAN] = SFC_SE_PLAN,
        [M_PREPARE] = SFC_SE_PREPARE, [M_LOGITS] = SFC_SE_LOGITS, [M_GRADIENT] = SFC_SE_GRADIENT,
        [M_DENSE] = SFC_SE_DENSE,     [M_PULL] = SFC_SE_PULL,
    };
    struct shard *sh = &s->shards[k];
    const struct body *b = sim_request(s, token);
    enum method method = s->tokens[token].method;
    if (b->incarnation != 0 && b->incarnation < sh->incarnation) {
        const struct body answer = {.code = SFC_ESTALE, .text = "of an older scheduler"};
        sim_answer(s, token, &answer);
        return;
    }
    sh->incarnation = b->incarnation > sh->incarnation ? b->incarnation : sh->incarnation;
    if (method == M_OPEN) {
        shard_open_run(s, k, token);
        return;
    }
    if (method >= M_CLOSE && method <= M_CANCEL) {
        moves_request(s, k, token, method);
        return;
    }
    if (!sh->has_run) {
        shard_unavailable(s, token, "no run is open here");
        return;
    }
    if (method == M_CHECK) {
        shard_check_rewind(s, k, token);
        return;
    }
    struct sfc_step_event e = {.type = types[method],
                               .token = token,
                               .run_id = RUN_ID,
                               .incarnation = b->incarnation, /* for Commit */
                               .round = b->round,
                               .step = b->step,
                               .map_version = b->map_version,
                               .j = b->j,
                               .attempt = b->attempt,
                               .digest = b->digest,
                               .lr = b->lr,
                               .labels = b->labels,
                               .count = s->j * ROWS,
                               .clip_scale = b->clip_scale,
                               .apply = b->apply,
                               .provisional = b->provisional};
    if (method == M_PREPARE) {
        prepare(s, k, &e, b);
        return;
    }
    bool plan = method == M_PLAN;
    struct sfc_attempt round = b->round;
    shard_step(s, k, &e);
    if (plan && sh->has_run && sfc_attempt_compare(round, sh->fsm.round) == 0)
        settle(s, k);
}

/* ---- actions */

static void start_job(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct shard *sh = &s->shards[k];
    uint64_t begin = sh->busy_until > s->now ? sh->busy_until : s->now;
    sh->busy_until = begin + 1 + sim_below(s, 4);
    struct event *ev = sim_after(s, sh->busy_until - s->now, E_JOB);
    ev->a = k;
    ev->job = (struct job){.opened = sh->opened,
                           .id = a->job,
                           .kind = a->kind,
                           .token = a->token,
                           .step = a->step,
                           .generation = a->generation,
                           .slot = a->slot,
                           .lr = a->lr,
                           .clip_scale = a->clip_scale,
                           .apply = a->apply};
    if (a->slots)
        memcpy(ev->job.slots, a->slots, s->j * sizeof(*a->slots));
    if (a->kind == SFC_JOB_PLAN)
        memcpy(ev->job.labels, sfc_step_labels(&sh->fsm, a->step),
               s->j * ROWS * sizeof(*ev->job.labels));
}

/* What a recovery needs of a step, in the order of its micro-batches. */
static void write_inputs(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct shard *sh = &s->shards[k];
    struct log_record *r = &sh->inputs;
    *r = (struct log_record){.step = a->step, .round = a->round, .lr = a->lr};
    memcpy(r->labels, sfc_step_labels(&sh->fsm, a->step), s->j * ROWS * sizeof(*r->labels));
    for (uint32_t j = 0; j < s->j; j++) {
        const struct slot_data *d = &sh->slots[a->generation][a->slots[j]];
        r->attempts[j] = sh->fsm.attempts[a->generation].slots[a->slots[j]].attempt;
        r->features[j] = d->features;
        r->lse[j] = d->lse;
        for (uint32_t i = 0; i < s->d; i++) {
            r->own[i] = mirror_pushed(s, &sh->map, k, i);
            r->sums[i] = r->own[i] ? mix(r->sums[i], d->dense[i]) : 0;
        }
    }
    sh->provisional = a->provisional;
    sh->flush_waits = sh->unsettled;
    if (sh->unsettled)
        settle(s, k);
    else
        shard_flush(s, k);
}

void shard_flush(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    sh->flush_waits = false;
    if (!sh->lost)
        disk_append(s, &sh->disk, &sh->inputs);
    struct event *e = sim_after(s, 1 + sim_below(s, 20), E_FLUSHED);
    e->a = k;
    e->b = sh->opened;
    e->c = s->now >= s->chaos_end || !sim_chance(s, s->flush_error_ppm);
}

static void write_commit(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct shard *sh = &s->shards[k];
    const struct log_record r = {.commit = true,
                                 .step = a->step,
                                 .round = a->round,
                                 .lr = a->lr,
                                 .clip_scale = a->clip_scale,
                                 .apply = a->apply};
    sh->committing = a->provisional ? 0 : a->step;
    disk_append(s, &sh->disk, &r);
}

static void reply_prepare(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct body b = {.code = SFC_OK, .ready = a->ready, .head_finite = a->head_finite};
    uint32_t n = 0;
    b.count = a->missing_count;
    memcpy(b.missing, a->missing, a->missing_count * sizeof(*a->missing));
    for (uint32_t d = 0; d < s->d && a->ready; d++) {
        if (!mirror_pushed(s, &s->shards[k].map, k, d))
            continue;
        if (map_owns(&s->shards[k].map, k, BLOCKS + d)) {
            b.sums[d] = a->sums[n].sum_of_squares;
            b.finite[d] = a->sums[n].finite;
        }
        n++;
    }
    sim_answer(s, a->token, &b);
}

static void reply_call(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    const struct shard *sh = &s->shards[k];
    struct body b = {.code = SFC_OK, .step = a->step};
    if (a->call == SFC_SE_LOGITS)
        b.value = sh->slots[a->generation][a->slot].logits;
    if (a->call == SFC_SE_GRADIENT)
        b.value = sh->slots[a->generation][a->slot].gradient;
    if (a->call == SFC_SE_PULL)
        memcpy(b.dense, sh->dense_state, sizeof(b.dense));
    sim_answer(s, a->token, &b);
}

void shard_step(struct sim *s, uint32_t k, struct sfc_step_event *event)
{
    struct shard *sh = &s->shards[k];
    struct body b;
    sfc_step_step(&sh->fsm, event, &sh->actions);
    for (size_t i = 0; i < sh->actions.count; i++) {
        const struct sfc_step_action *a = &sh->actions.items[i];
        switch (a->type) {
        case SFC_SA_START:
            if (a->kind == SFC_JOB_COMMIT)
                write_commit(s, k, a);
            start_job(s, k, a);
            break;
        case SFC_SA_REPLY:
            reply_call(s, k, a);
            break;
        case SFC_SA_FLUSH:
            write_inputs(s, k, a);
            break;
        case SFC_SA_REPLY_PREPARE:
            reply_prepare(s, k, a);
            break;
        case SFC_SA_FAIL:
            memset(&b, 0, sizeof(b));
            b.code = a->code;
            strncpy(b.text, a->text, sizeof(b.text) - 1);
            sim_answer(s, a->token, &b);
            break;
        }
    }
}

/* A write that failed leaves no record behind, and takes along what was not flushed before. */
void shard_flushed(struct sim *s, uint32_t k, bool ok)
{
    struct shard *sh = &s->shards[k];
    struct sfc_step_event e = {.type = SFC_SE_FLUSHED, .code = SFC_OK};
    if (ok && !sh->lost) {
        sh->disk.flushed = sh->provisional ? sh->disk.flushed : sh->disk.count;
    } else {
        s->counts.flush_errors++;
        e.code = SFC_EIO;
        e.text = "no space left on device";
        sh->lost = sh->lost || disk_write_failed(s, k);
        e.lost = sh->lost;
    }
    shard_step(s, k, &e);
}

/* ---- the compute queue */

static uint64_t sum_over_blocks(const struct sim *s, uint32_t k, const struct job *job,
                                bool gradient)
{
    const struct shard *sh = &s->shards[k];
    const struct slot_data *d = &sh->slots[job->generation][job->slot];
    uint64_t sum = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint64_t state = sh->class_state[b], sample = sh->sample[job->generation][b];
        if (sh->map.class_owner[b] == k)
            sum += gradient ? model_gradient(state, sample, d->features, d->lse)
                            : model_logits(state, sample, d->features);
    }
    return sum;
}

static uint64_t dense_sum(const struct sim *s, const struct shard *sh, const struct job *job,
                          uint32_t d)
{
    uint64_t h = 0;
    for (uint32_t j = 0; j < s->j; j++)
        h = mix(h, sh->slots[job->generation][job->slots[j]].dense[d]);
    return h;
}

static void run_commit(struct sim *s, uint32_t k, const struct job *job)
{
    struct shard *sh = &s->shards[k];
    uint64_t inputs = 0;
    if (!job->apply)
        return;
    for (uint32_t j = 0; j < s->j; j++) {
        const struct slot_data *d = &sh->slots[job->generation][job->slots[j]];
        inputs = mix(mix(inputs, d->features), d->lse);
    }
    for (uint32_t b = 0; b < BLOCKS; b++)
        if (sh->map.class_owner[b] == k)
            sh->class_state[b] = model_class_update(
                sh->class_state[b], sh->sample[job->generation][b], inputs, job->lr);
    for (uint32_t d = 0; d < s->d; d++)
        if (sh->map.dense_owner[d] == k)
            sh->dense_state[d] = model_dense_update(sh->dense_state[d], dense_sum(s, sh, job, d),
                                                    job->clip_scale, job->lr);
}

static void run_call(struct sim *s, uint32_t k, const struct job *job, struct sfc_step_event *e,
                     uint64_t *digests)
{
    struct slot_data *d = &s->shards[k].slots[job->generation][job->slot];
    const struct body *b = sim_request(s, job->token);
    uint64_t all[MAX_D];
    switch (job->kind) {
    case SFC_JOB_LOGITS:
        d->features = b->value;
        d->logits = sum_over_blocks(s, k, job, false);
        break;
    case SFC_JOB_GRADIENT:
        d->lse = b->value;
        d->gradient = sum_over_blocks(s, k, job, true);
        memcpy(e->head_digest.bytes, &d->features, 8);
        memcpy(e->head_digest.bytes + 8, &d->lse, 8);
        break;
    default:
        memcpy(d->dense, b->dense, sizeof(d->dense));
        for (uint32_t i = 0; i < s->d; i++)
            all[i] = mix(b->dense[i], 5);
        own_digests(s, k, all, digests);
        e->dense_digests = digests;
        break;
    }
}

void shard_job(struct sim *s, uint32_t k, const struct job *job)
{
    struct shard *sh = &s->shards[k];
    struct sfc_step_event e = {.type = SFC_SE_JOB_DONE, .job = job->id, .code = SFC_OK};
    struct sfc_own_dense_sum sums[MAX_D];
    uint64_t digests[MAX_D];
    uint32_t n = 0;
    switch (job->kind) {
    case SFC_JOB_PLAN:
        for (uint32_t b = 0; b < BLOCKS; b++)
            sh->sample[job->generation][b] =
                model_sample(s, job->step, b, grow_rows(s, &sh->map, b), job->labels);
        break;
    case SFC_JOB_PREPARE:
        for (uint32_t d = 0; d < s->d; d++)
            if (mirror_pushed(s, &sh->map, k, d))
                sums[n++] = (struct sfc_own_dense_sum){.sum_of_squares =
                                                           model_square(dense_sum(s, sh, job, d)),
                                                       .finite = model_finite(s, job->step, d)};
        e.sums = sums;
        e.head_finite = true;
        break;
    case SFC_JOB_COMMIT:
        run_commit(s, k, job);
        sh->durable_step = sh->committing ? sh->committing : sh->durable_step;
        break;
    case SFC_JOB_PULL:
        break;
    case SFC_JOB_MAP:
        moves_apply_map(s, k);
        break;
    default:
        run_call(s, k, job, &e, digests);
        break;
    }
    shard_step(s, k, &e);
    sim_log(s, "shard %u: job %d of step %llu done, %s, applied %llu", k, (int)job->kind,
            (ull)job->step, sfc_step_phase_name(sh->fsm.phase), (ull)sh->fsm.applied);
}
