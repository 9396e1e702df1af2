#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

static struct node me(uint32_t k)
{
    return (struct node){SHARD, k};
}

static bool is_open(const struct shard *sh)
{
    return sh->has_run;
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
    b.has_run = is_open(sh);
    if (b.has_run) {
        b.run_id = RUN_ID;
        b.step = sfc_step_applied(&sh->fsm);
        b.prepared_step = sfc_step_prepared(&sh->fsm);
        b.has_floor = true;
        b.floor = disk_floor(s, k);
    }
    sh->registering = sh->id == 0;
    sim_call(s, me(k), (struct node){SCHEDULER, 0}, sh->id == 0 ? M_REGISTER : M_SHARD_BEAT, 0, 700,
             &b);
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
        disk_trim(&sh->disk, body->floor);
    }
}

/* ---- crash and return */

void shard_kill(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    if (!sh->up)
        return;
    s->crashes++;
    sfc_step_free(&sh->fsm);
    sfc_step_actions_free(&sh->actions);
    memset(sh->class_state, 0, sizeof(sh->class_state));
    memset(sh->dense_state, 0, sizeof(sh->dense_state));
    memset(sh->sample, 0, sizeof(sh->sample));
    memset(sh->slots, 0, sizeof(sh->slots));
    sh->up = false;
    sh->life++;
    sh->has_run = false;
    sh->recovering = false;
    sh->registering = false;
    sh->id = 0;
    sh->boot_id = mix(sh->boot_id, sh->life) | 1;
    sh->busy_until = s->now;
    disk_crash(s, &sh->disk);
    sim_after(s, 20 + sim_below(s, 2000), E_START_SHARD)->a = k;
    sim_log(s, "shard %u crashes, %u records in its log", k, sh->disk.count);
}

void shard_start(struct sim *s, uint32_t k)
{
    s->shards[k].up = true;
    sim_log(s, "shard %u is up again", k);
}

/* ---- requests */

static void open_machine(struct sim *s, uint32_t k, uint64_t incarnation, uint64_t start_step)
{
    struct shard *sh = &s->shards[k];
    uint32_t own = 0;
    for (uint32_t d = 0; d < s->d; d++)
        own += s->dense_owner[d] == k;
    const struct sfc_step_config config = {.run_id = RUN_ID,
                                           .incarnation = incarnation,
                                           .map_version = 1,
                                           .start_step = start_step,
                                           .global_batch = s->j * ROWS,
                                           .micro_batch = ROWS,
                                           .dense_blocks = own,
                                           .max_parked = 256};
    struct sfc_error err;
    if (sfc_step_init(&sh->fsm, &config, &err) != SFC_OK ||
        sfc_step_actions_init(&sh->actions, &sh->fsm, &err) != SFC_OK)
        sim_fail(s, "shard %u: %s", k, err.text);
    sh->has_run = true;
}

static void answer_open(struct sim *s, uint32_t k, uint64_t token)
{
    struct body answer = {.code = SFC_OK};
    answer.value = sfc_step_applied(&s->shards[k].fsm);
    sim_answer(s, token, &answer);
}

static void unavailable(struct sim *s, uint64_t token, const char *text)
{
    struct body answer = {.code = SFC_EUNAVAILABLE};
    strncpy(answer.text, text, sizeof(answer.text) - 1);
    sim_answer(s, token, &answer);
}

/* A replay takes its time; it is answered when the blocks are there. */
static void begin_recovery(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    struct event *e = sim_after(s, 20 + sim_below(s, 1500), E_RECOVERED);
    sh->recovering = true;
    sh->recover_token = token;
    e->a = k;
    e->b = sh->life;
    e->record.r = (struct sfc_commit_record){.step = b->value,
                                             .round = b->attempt,
                                             .clip_scale = b->clip_scale,
                                             .lr = b->lr,
                                             .apply = b->apply};
    e->record.attempts[0].incarnation = b->round.incarnation;
}

void shard_recovered(struct sim *s, uint32_t k, const struct record *last)
{
    struct shard *sh = &s->shards[k];
    struct body answer = {.code = SFC_ECORRUPT, .text = "steps are missing in the log"};
    uint64_t replayed;
    sh->recovering = false;
    if (!disk_recover(s, k, &last->r, &replayed)) {
        sim_answer(s, sh->recover_token, &answer);
        return;
    }
    s->recoveries++;
    open_machine(s, k, last->attempts[0].incarnation, last->r.step);
    sim_log(s, "shard %u has recovered step %llu, replayed %llu", k, (ull)last->r.step,
            (ull)replayed);
    answer_open(s, k, sh->recover_token);
}

static void open_run(struct sim *s, uint32_t k, uint64_t token)
{
    struct shard *sh = &s->shards[k];
    const struct body *b = sim_request(s, token);
    if (sh->has_run) {
        answer_open(s, k, token);
    } else if (sh->recovering) {
        unavailable(s, token, "the run is being opened");
    } else if (b->recover) {
        begin_recovery(s, k, token, b);
    } else {
        memset(&sh->disk, 0, sizeof(sh->disk));
        open_machine(s, k, b->round.incarnation, 0);
        memcpy(sh->class_state, s->oracle.class_state[0], sizeof(sh->class_state));
        memcpy(sh->dense_state, s->oracle.dense_state[0], sizeof(sh->dense_state));
        answer_open(s, k, token);
    }
}

static void step(struct sim *s, uint32_t k, struct sfc_step_event *event);

/* Digests of this shard's dense blocks, in block order. */
static uint32_t own_digests(const struct sim *s, uint32_t k, const uint64_t *all, uint64_t *out)
{
    uint32_t n = 0;
    for (uint32_t d = 0; d < s->d; d++)
        if (s->dense_owner[d] == k)
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
    step(s, k, e);
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
    if (method == M_OPEN) {
        open_run(s, k, token);
        return;
    }
    if (!sh->has_run) {
        unavailable(s, token, "no run is open here");
        return;
    }
    struct sfc_step_event e = {.type = types[method],
                               .token = token,
                               .run_id = RUN_ID,
                               .incarnation = b->worker, /* the sender's, for Commit */
                               .round = b->round,
                               .step = b->step,
                               .map_version = 1,
                               .j = b->j,
                               .attempt = b->attempt,
                               .digest = b->digest,
                               .lr = b->lr,
                               .labels = b->labels,
                               .count = s->j * ROWS,
                               .clip_scale = b->clip_scale,
                               .apply = b->apply};
    if (method == M_PREPARE)
        prepare(s, k, &e, b);
    else
        step(s, k, &e);
}

/* ---- actions */

static void start_job(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct shard *sh = &s->shards[k];
    uint64_t begin = sh->busy_until > s->now ? sh->busy_until : s->now;
    sh->busy_until = begin + 1 + sim_below(s, 4);
    struct event *ev = sim_after(s, sh->busy_until - s->now, E_JOB);
    ev->a = k;
    ev->job = (struct job){.life = sh->life,
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
    struct log_record r = {.step = a->step, .round = a->round, .lr = a->lr};
    memcpy(r.labels, sfc_step_labels(&sh->fsm, a->step), s->j * ROWS * sizeof(*r.labels));
    for (uint32_t j = 0; j < s->j; j++) {
        const struct slot_data *d = &sh->slots[a->generation][a->slots[j]];
        r.attempts[j] = sh->fsm.attempts[a->generation].slots[a->slots[j]].attempt;
        r.features[j] = d->features;
        r.lse[j] = d->lse;
        for (uint32_t i = 0; i < s->d; i++)
            r.sums[i] = mix(r.sums[i], d->dense[i]);
    }
    disk_append(s, &sh->disk, &r);
    struct event *e = sim_after(s, 1 + sim_below(s, 20), E_FLUSHED);
    e->a = k;
    e->b = sh->life;
    e->c = s->now >= s->chaos_end || !sim_chance(s, s->flush_error_ppm);
}

static void write_commit(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    const struct log_record r = {.commit = true,
                                 .step = a->step,
                                 .round = a->round,
                                 .lr = a->lr,
                                 .clip_scale = a->clip_scale,
                                 .apply = a->apply};
    disk_append(s, &s->shards[k].disk, &r);
}

static void reply_prepare(struct sim *s, uint32_t k, const struct sfc_step_action *a)
{
    struct body b = {.code = SFC_OK, .ready = a->ready, .head_finite = a->head_finite};
    uint32_t n = 0;
    b.count = a->missing_count;
    memcpy(b.missing, a->missing, a->missing_count * sizeof(*a->missing));
    for (uint32_t d = 0; d < s->d && a->ready; d++)
        if (s->dense_owner[d] == k) {
            b.sums[d] = a->sums[n].sum_of_squares;
            b.finite[d] = a->sums[n].finite;
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

static void step(struct sim *s, uint32_t k, struct sfc_step_event *event)
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

/* A write that failed leaves no record behind. */
void shard_flushed(struct sim *s, uint32_t k, bool ok)
{
    struct disk *d = &s->shards[k].disk;
    struct sfc_step_event e = {.type = SFC_SE_FLUSHED, .code = SFC_OK};
    if (ok) {
        d->flushed = d->count;
    } else {
        s->flush_errors++;
        e.code = SFC_EIO;
        e.text = "no space left on device";
        d->count--; /* it is the last one: nothing is written while a flush is out */
    }
    step(s, k, &e);
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
        if (s->class_owner[b] == k)
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
        if (s->class_owner[b] == k)
            sh->class_state[b] = model_class_update(
                sh->class_state[b], sh->sample[job->generation][b], inputs, job->lr);
    for (uint32_t d = 0; d < s->d; d++)
        if (s->dense_owner[d] == k)
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
            sh->sample[job->generation][b] = model_sample(s, job->step, b, job->labels);
        break;
    case SFC_JOB_PREPARE:
        for (uint32_t d = 0; d < s->d; d++)
            if (s->dense_owner[d] == k)
                sums[n++] = (struct sfc_own_dense_sum){.sum_of_squares =
                                                           model_square(dense_sum(s, sh, job, d)),
                                                       .finite = model_finite(s, job->step, d)};
        e.sums = sums;
        e.head_finite = true;
        break;
    case SFC_JOB_COMMIT:
        run_commit(s, k, job);
        break;
    case SFC_JOB_PULL:
        break;
    default:
        run_call(s, k, job, &e, digests);
        break;
    }
    step(s, k, &e);
    sim_log(s, "shard %u: job %d of step %llu done, %s, applied %llu", k, (int)job->kind,
            (ull)job->step, sfc_step_phase_name(sh->fsm.phase), (ull)sh->fsm.applied);
}
