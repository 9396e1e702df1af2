/* The undisturbed run, computed from what is committed, and what must be so after every event. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/permutation.h"
#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- the undisturbed run */

/* Rows of a block in a step; 0: it is not there yet. */
static uint32_t rows_at(const struct sim *s, uint64_t step, uint32_t block)
{
    const struct map *m = &s->store.map;
    uint64_t classes = s->classes, before = (uint64_t)block * BLOCK_SIZE;
    for (uint32_t i = 0; i < m->growth_count; i++)
        if (m->growths[i].from_step <= step)
            classes = m->growths[i].classes;
    uint64_t left = classes > before ? classes - before : 0;
    return left < BLOCK_SIZE ? (uint32_t)left : BLOCK_SIZE;
}

/* From the states after the step before to those that the step begins with. */
static void grow_before(const struct sim *s, uint64_t step, uint64_t *state)
{
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint32_t was = rows_at(s, step - 1, b), rows = rows_at(s, step, b);
        if (rows != was)
            state[b] = model_grown(state[b], b, was, rows);
    }
}

/* I4: the sample at a position, by walking over all epochs before it. */
static uint64_t sample_at(const struct sim *s, uint64_t position)
{
    const struct map *m = &s->store.map;
    uint64_t begin = 0, epoch = 0, samples = SAMPLES;
    while (position >= begin + samples) {
        begin += samples;
        epoch++;
        for (uint32_t i = 0; i < m->growth_count; i++)
            if ((m->growths[i].data_step - 1) * s->j * ROWS <= begin)
                samples = m->growths[i].samples;
    }
    return sfc_sample_at(5, samples, epoch * samples + position - begin);
}

static uint64_t label_at(const struct sim *s, uint64_t step, uint32_t j, uint32_t row)
{
    return model_label(s, sample_at(s, ((step - 1) * s->j + j) * ROWS + row));
}

void oracle_init(struct sim *s)
{
    for (uint32_t b = 0; b < BLOCKS; b++)
        s->oracle.class_state[0][b] = model_seeded(b, rows_at(s, 0, b));
    for (uint32_t d = 0; d < s->d; d++)
        s->oracle.dense_state[0][d] = mix(202, d);
}

void oracle_promise(struct sim *s, const struct promise *promise)
{
    struct oracle *o = &s->oracle;
    if (o->promise_count == o->promise_capacity) {
        o->promise_capacity = o->promise_capacity * 2 + 64;
        o->promises = realloc(o->promises, o->promise_capacity * sizeof(*o->promises));
    }
    o->promises[o->promise_count++] = *promise;
}

const struct promise *oracle_find(const struct sim *s, uint64_t step, uint32_t j,
                                  struct sfc_attempt attempt)
{
    for (size_t i = s->oracle.promise_count; i-- > 0;) {
        const struct promise *p = &s->oracle.promises[i];
        if (p->step == step && p->j == j && sfc_attempt_compare(p->attempt, attempt) == 0)
            return p;
    }
    return NULL;
}

/* I4: the rows of (step, j) are the samples of their positions, or of weight 0 where a person
 * dropped the poisoned micro-batch; in a session what the session says. */
static void check_labels(struct sim *s, const struct record *record, uint32_t j, uint64_t salt)
{
    for (uint32_t r = 0; r < ROWS; r++) {
        uint64_t label = record->labels[j * ROWS + r], step = record->r.step;
        uint64_t expected =
            s->session ? model_session_label(s, salt, step, j, r) : label_at(s, step, j, r);
        bool poisoned = s->poison_step == step && s->poison_j == j;
        bool dropped = label == SFC_CORE_LABEL_NONE && poisoned;
        if (poisoned && s->drop_acknowledged && !dropped)
            sim_fail(s, "step %llu micro-batch %u was dropped, and committed with its labels",
                     (ull)step, j);
        if (!dropped && label != expected)
            sim_fail(s, "I4: step %llu micro-batch %u row %u was committed with label %llu",
                     (ull)step, j, r, (ull)label);
    }
}

/* What a lone worker computes of (step, j) from the state after step - 1. */
static void compute_alone(const struct sim *s, uint64_t step, uint32_t j, const uint64_t *state,
                          const uint64_t *dense, const uint64_t *sample, struct promise *p)
{
    uint64_t logits = 0, dx = 0;
    p->features = model_features(s, step, j, p->salt, dense);
    for (uint32_t b = 0; b < BLOCKS && rows_at(s, step, b) > 0; b++)
        logits += model_logits(state[b], sample[b], p->features);
    p->lse = model_lse(logits);
    for (uint32_t b = 0; b < BLOCKS && rows_at(s, step, b) > 0; b++)
        dx += model_gradient(state[b], sample[b], p->features, p->lse);
    for (uint32_t d = 0; d < s->d; d++)
        p->dense[d] = model_slice(dx, p->features, d);
}

/* I2: what the worker said must be what a lone worker would have computed. */
static void check_inputs(struct sim *s, uint64_t step, uint32_t j, const struct promise *p)
{
    const struct oracle *o = &s->oracle;
    struct promise alone = {.salt = p->salt};
    uint64_t state[BLOCKS];
    memcpy(state, o->class_state[step - 1], sizeof(state));
    grow_before(s, step, state);
    compute_alone(s, step, j, state, o->dense_state[step - 1], o->sample[step], &alone);
    if (alone.features != p->features || alone.lse != p->lse ||
        memcmp(alone.dense, p->dense, s->d * sizeof(*alone.dense)) != 0)
        sim_fail(s, "I2: inputs of step %llu micro-batch %u differ from the undisturbed run's",
                 (ull)step, j);
}

static uint64_t dense_sum(const struct promise *inputs, uint32_t j_count, uint32_t d)
{
    uint64_t h = 0;
    for (uint32_t j = 0; j < j_count; j++)
        h = mix(h, inputs[j].dense[d]);
    return h;
}

/* What the commit of these inputs says, and does: the states are before it, and then after it. */
static struct sfc_commit_record apply(const struct sim *s, uint64_t step, double lr,
                                      const struct promise *inputs, const uint64_t *sample,
                                      uint64_t *state, uint64_t *dense)
{
    struct sfc_commit_record r = {.step = step, .lr = lr, .apply = true, .clip_scale = 1.0};
    double squares = 0, clip = 5.0;
    uint64_t hash = 0;
    for (uint32_t j = 0; j < s->j; j++)
        hash = mix(mix(hash, inputs[j].features), inputs[j].lse);
    for (uint32_t d = 0; d < s->d; d++) {
        squares += model_square(dense_sum(inputs, s->j, d));
        r.apply = r.apply && model_finite(s, step, d);
    }
    r.next_position = step * s->j * ROWS;
    if (!r.apply)
        return r;
    r.clip_scale = clip / fmax(sqrt(squares), clip);
    for (uint32_t b = 0; b < BLOCKS; b++)
        state[b] = model_class_update(state[b], sample[b], hash, lr);
    for (uint32_t d = 0; d < s->d; d++)
        dense[d] = model_dense_update(dense[d], dense_sum(inputs, s->j, d), r.clip_scale, lr);
    return r;
}

static bool take_inputs(struct sim *s, const struct record *record, struct promise *inputs)
{
    uint64_t t = record->r.step;
    for (uint32_t j = 0; j < s->j; j++) {
        const struct promise *p = oracle_find(s, t, j, record->attempts[j]);
        if (s->session && sfc_attempt_compare(record->attempts[j], record->attempts[0]) != 0)
            sim_fail(s, "step %llu was committed with the work of two sessions", (ull)t);
        if (!p) {
            sim_fail(s, "step %llu was committed with an attempt at %u that nobody did", (ull)t, j);
            return false;
        }
        check_labels(s, record, j, p->salt);
        check_inputs(s, t, j, p);
        inputs[j] = *p;
    }
    return true;
}

void oracle_commit(struct sim *s, const struct record *record)
{
    struct oracle *o = &s->oracle;
    uint64_t t = record->r.step;
    struct promise inputs[MAX_J];
    for (uint32_t b = 0; b < BLOCKS; b++)
        o->sample[t][b] = model_sample(s, t, b, rows_at(s, t, b), record->labels);
    if (!take_inputs(s, record, inputs))
        return;
    memcpy(o->class_state[t], o->class_state[t - 1], sizeof(o->class_state[t]));
    grow_before(s, t, o->class_state[t]);
    memcpy(o->dense_state[t], o->dense_state[t - 1], sizeof(o->dense_state[t]));
    struct sfc_commit_record r =
        apply(s, t, record->r.lr, inputs, o->sample[t], o->class_state[t], o->dense_state[t]);
    if (r.apply != record->r.apply || r.clip_scale != record->r.clip_scale ||
        r.next_position != record->r.next_position)
        sim_fail(s, "step %llu: record says apply %d, clip %.17g; expected %d, %.17g", (ull)t,
                 record->r.apply, record->r.clip_scale, r.apply, r.clip_scale);
    o->records[t] = *record;
    o->head = t;
    o->most = t > o->most ? t : o->most;
}

/* ---- after every event */

/* With a map that grows from the next step on its blocks are ready for that. */
static bool state_differs(const struct sim *s, uint32_t k, uint64_t step)
{
    const struct shard *sh = &s->shards[k];
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint32_t was = rows_at(s, step, b), rows = grow_rows(s, &sh->map, b);
        uint64_t expected = s->oracle.class_state[step][b];
        if (rows != was)
            expected = model_grown(expected, b, was, rows);
        if (sh->map.class_owner[b] == k && sh->class_state[b] != expected)
            return true;
    }
    for (uint32_t d = 0; d < s->d; d++)
        if (sh->map.dense_owner[d] == k && sh->dense_state[d] != s->oracle.dense_state[step][d])
            return true;
    return false;
}

/* The step at which the scheduler has the shard for certain; false: it is on some way. */
static bool certain_step(const struct sim *s, uint32_t k, uint64_t *step)
{
    const struct scheduler *sc = &s->scheduler;
    const struct sfc_run_fsm *run = &sc->run;
    if (!sc->up || !sc->has_run || !run->started || run->restoring || run->shards[k].lost ||
        run->commit.duties[k][SFC_DUTY_SETMAP].wanted || !run->commit.member[k] ||
        run->commit.duties[k][SFC_DUTY_OPEN].wanted)
        return false;
    *step = run->commit.committed;
    return true;
}

static void check_shard(struct sim *s, uint32_t k)
{
    const struct shard *sh = &s->shards[k];
    const struct oracle *o = &s->oracle;
    uint64_t applied = sfc_step_applied(&sh->fsm), step;
    if (sh->map.version > s->store.map.version)
        sim_fail(s, "shard %u has map %llu, but map %llu is the durable one", k,
                 (ull)sh->map.version, (ull)s->store.map.version);
    if (sh->joins || !s->store.map.member[k])
        return; /* it owns nothing, and the run may be anywhere */
    if (applied > o->head || applied + 1 < o->low)
        sim_fail(s, "I3: shard %u is at step %llu, steps %llu to %llu are possible", k,
                 (ull)applied, (ull)o->low, (ull)o->head);
    else if (certain_step(s, k, &step) &&
             (applied > step ||
              applied + s->scheduler.run.commit.duties[k][SFC_DUTY_COMMIT].wanted < step))
        sim_fail(s, "I3: shard %u is at step %llu, the run at %llu", k, (ull)applied, (ull)step);
    else if (state_differs(s, k, applied))
        sim_fail(s, "I2: shard %u after step %llu differs from the undisturbed run", k,
                 (ull)applied);
}

/* Where the run is on its way back to shards may be there. */
static void note_low(struct sim *s)
{
    const struct scheduler *sc = &s->scheduler;
    uint64_t low = sc->up && sc->has_run ? sfc_run_committed(&sc->run) : s->store.last;
    s->oracle.low = low < s->oracle.low ? low : s->oracle.low;
}

void oracle_check(struct sim *s)
{
    note_low(s);
    for (uint32_t k = 0; k < s->k && !s->failed; k++)
        if (s->shards[k].has_run)
            check_shard(s, k);
}

/* What the shard has in its log of a step is what the record names (I3). */
static void check_logged(struct sim *s, uint32_t k, const struct record *record, bool durable)
{
    const struct shard *sh = &s->shards[k];
    uint64_t step = record->r.step;
    const struct log_record *r = disk_find(&sh->disk, step, record->r.round);
    bool flushed = r && (size_t)(r - sh->disk.records) < sh->disk.flushed;
    /* since it said Ready it died, or its disk failed: the scheduler hears of it before the next */
    bool excused = k == s->bad_disk || sh->vanished || (!durable && (!sh->has_run || sh->lost));
    if (!r || (durable && !flushed)) {
        if (!excused)
            sim_fail(s, "I3: step %llu is recorded, but shard %u has not %s it", (ull)step, k,
                     durable ? "flushed" : "written");
        return;
    }
    for (uint32_t j = 0; j < s->j; j++)
        if (sfc_attempt_compare(r->attempts[j], record->attempts[j]) != 0)
            sim_fail(s,
                     "step %llu micro-batch %u: shard %u logged another attempt than the record "
                     "names",
                     (ull)step, j, k);
    if (memcmp(r->labels, record->labels, s->j * ROWS * sizeof(*r->labels)) != 0)
        sim_fail(s, "step %llu: shard %u logged other labels", (ull)step, k);
}

/* It sampled what every placement samples (I1). */
static void check_sample(struct sim *s, uint32_t k, uint64_t step, const uint64_t *labels)
{
    const struct shard *sh = &s->shards[k];
    for (uint32_t b = 0; b < BLOCKS && sh->has_run; b++)
        if (sh->map.class_owner[b] == k &&
            sh->sample[step & 1][b] != model_sample(s, step, b, rows_at(s, step, b), labels))
            sim_fail(s, "I1: shard %u sampled block %u of step %llu differently", k, b, (ull)step);
}

static struct record present_record(struct sim *s)
{
    struct sfc_run_fsm *run = &s->scheduler.run;
    struct record record = {.r = run->commit.record};
    const uint64_t *labels = sfc_run_labels(run, record.r.step);
    for (uint32_t j = 0; j < s->j; j++) {
        const struct sfc_done *done = sfc_run_done(run, j);
        if (!done || !labels) {
            sim_fail(s, "the record of step %llu names nobody", (ull)record.r.step);
            return record;
        }
        record.attempts[j] = done->attempt;
        if (!s->oracle.taken[j] || sfc_attempt_compare(s->oracle.accepted[j], done->attempt) != 0)
            sim_fail(s,
                     "the record of step %llu names an attempt at %u that was not the first done",
                     (ull)record.r.step, j);
    }
    memcpy(record.labels, labels, s->j * ROWS * sizeof(*labels));
    return record;
}

/* What people set counts when it is durable, and then for every step from its own on. */
static void check_rate(struct sim *s, const struct sfc_commit_record *r)
{
    const struct sfc_schedule schedule = scheduler_rates(s);
    double lr = sfc_lr_of_step(&s->store.lr_changes, &schedule, r->step);
    if (r->lr != lr)
        sim_fail(s, "record of step %llu with learning rate %g, expected %g", (ull)r->step, r->lr,
                 lr);
}

/* One owner of each block: every member has the map of the step, and only members own anything.
 * False: no member. */
static bool check_owner(struct sim *s, uint32_t k, uint64_t version)
{
    const struct shard *sh = &s->shards[k];
    if (version != s->store.map.version)
        sim_fail(s, "the record speaks of map %llu, but map %llu is the durable one", (ull)version,
                 (ull)s->store.map.version);
    if (s->store.map.member[k] && sh->has_run && sh->map.version != version)
        sim_fail(s, "shard %u has map %llu in a step of map %llu", k, (ull)sh->map.version,
                 (ull)version);
    return s->store.map.member[k];
}

/* It was missing at the boundary of a LOSS, which does not wait for it, and has come back since.
 * What it has open or prepared is of an older round, which SetMap ends or refuses. */
static bool came_late(const struct sim *s, uint32_t k)
{
    const struct sfc_run_fsm *run = &s->scheduler.run;
    return run->moves.kind == SFC_ORDER_LOSS && run->commit.duties[k][SFC_DUTY_ABORT].wanted &&
           sfc_attempt_compare(s->shards[k].fsm.round, run->commit.round) < 0;
}

/* Nobody who takes part has a plan of the next step, and the run is where the map begins. */
void oracle_check_flip(struct sim *s, uint64_t step, const struct map *next)
{
    if (step != s->store.last || s->scheduler.kept_count > 0)
        sim_fail(s, "a map after step %llu, but step %llu is the last durable one", (ull)step,
                 (ull)s->store.last);
    for (uint32_t k = 0; k < s->k; k++) {
        const struct shard *sh = &s->shards[k];
        if (!next->member[k] || !s->store.map.member[k] || !sh->has_run ||
            sfc_run_is_dead(&s->scheduler.run, k) || came_late(s, k))
            continue;
        if (sfc_step_applied(&sh->fsm) != step || sh->fsm.phase != SFC_STEP_IDLE)
            sim_fail(s, "a map after step %llu, but shard %u is %s after step %llu", (ull)step, k,
                     sfc_step_phase_name(sh->fsm.phase), (ull)sfc_step_applied(&sh->fsm));
    }
}

/* Whatever happened before: every shard is at the step before it, and a durable step makes those
 * before it durable. */
struct record oracle_check_record(struct sim *s, bool provisional)
{
    const struct record record = present_record(s);
    uint64_t step = record.r.step;
    if (s->failed)
        return record;
    if (step != store_committed(s) + 1)
        sim_fail(s, "I3: record of step %llu after step %llu", (ull)step, (ull)store_committed(s));
    check_rate(s, &record.r);
    for (uint32_t k = 0; k < s->k; k++) {
        const struct shard *sh = &s->shards[k];
        if (!check_owner(s, k, record.r.map_version))
            continue;
        if (sh->has_run && sfc_step_applied(&sh->fsm) + 1 != step)
            sim_fail(s, "I3: record of step %llu, but shard %u is at step %llu", (ull)step, k,
                     (ull)sfc_step_applied(&sh->fsm));
        for (uint64_t t = s->store.last + 1; t < step && !provisional; t++)
            check_logged(s, k, &s->oracle.records[t], true);
        check_logged(s, k, &record, !provisional);
        check_sample(s, k, step, record.labels);
    }
    s->oracle.low = s->oracle.head = step - 1;
    return record;
}

void oracle_check_grant(struct sim *s, uint64_t step)
{
    if (step != store_committed(s) + 1)
        sim_fail(s, "a grant of step %llu, but the oldest uncommitted step is %llu", (ull)step,
                 (ull)store_committed(s) + 1);
}

void oracle_accept(struct sim *s, uint64_t step, uint32_t j, struct sfc_attempt attempt)
{
    struct oracle *o = &s->oracle;
    const struct sfc_attempt round = s->scheduler.run.commit.round;
    if (o->accepted_step != step || sfc_attempt_compare(o->accepted_round, round) != 0)
        memset(o->taken, 0, sizeof(o->taken));
    o->accepted_step = step;
    o->accepted_round = round;
    if (o->taken[j] && sfc_attempt_compare(o->accepted[j], attempt) != 0)
        sim_fail(s, "two Dones of step %llu micro-batch %u count", (ull)step, j);
    o->taken[j] = true;
    o->accepted[j] = attempt;
}

void oracle_check_tickets(struct sim *s)
{
    struct sfc_tickets *t = &s->scheduler.run.tickets;
    const struct sfc_ticket_step *open = sfc_tickets_step(t, t->open_step);
    for (uint32_t j = 0; j < s->j && open; j++) {
        const struct sfc_micro_batch *m = &open->micro_batches[j];
        bool out = m->grant == SFC_TICKET_OUT;
        if (out != (m->out_count > 0) || m->out_count > 2 ||
            (m->out_count == 2 && t->given > MAX_SLOTS - MAX_J + s->j))
            sim_fail(s, "%u grants of step %llu micro-batch %u are out, %u of %u slots were given",
                     m->out_count, (ull)t->open_step, j, t->given, MAX_SLOTS - MAX_J + s->j);
        if (m->out_count == 2 && m->out[0].worker == m->out[1].worker)
            sim_fail(s, "worker %llx has micro-batch %u twice", (ull)m->out[0].worker, j);
    }
}

void oracle_check_replay(struct sim *s, uint32_t k, uint64_t step, struct sfc_attempt round)
{
    const struct sfc_attempt counts = s->oracle.records[step].r.round;
    if (sfc_attempt_compare(counts, round) != 0)
        sim_fail(s,
                 "I3: shard %u goes through step %llu of round %llu.%llu again, but round "
                 "%llu.%llu counts",
                 k, (ull)step, (ull)round.incarnation, (ull)round.counter, (ull)counts.incarnation,
                 (ull)counts.counter);
}

/* ---- at the end */

/* I2, I4: one worker, one shard, nothing happens, and each position of the order is used once. */
static void check_alone(struct sim *s)
{
    struct sfc_schedule rates = scheduler_rates(s);
    struct oracle *o = &s->oracle;
    uint64_t state[BLOCKS], dense[MAX_D], sample[BLOCKS], labels[MAX_B];
    memcpy(state, o->class_state[0], sizeof(state));
    memcpy(dense, o->dense_state[0], sizeof(dense));
    for (uint64_t t = 1; t <= s->steps; t++) {
        struct promise inputs[MAX_J] = {0};
        for (uint32_t i = 0; i < s->j * ROWS; i++) {
            bool dropped = s->store.dropped && t == s->poison_step && i / ROWS == s->poison_j;
            labels[i] = dropped ? SFC_CORE_LABEL_NONE : label_at(s, t, i / ROWS, i % ROWS);
        }
        grow_before(s, t, state);
        for (uint32_t b = 0; b < BLOCKS; b++)
            sample[b] = model_sample(s, t, b, rows_at(s, t, b), labels);
        for (uint32_t j = 0; j < s->j; j++)
            compute_alone(s, t, j, state, dense, sample, &inputs[j]);
        apply(s, t, sfc_lr_of_step(&s->store.lr_changes, &rates, t), inputs, sample, state, dense);
    }
    if (memcmp(state, o->class_state[s->steps], sizeof(state)) != 0 ||
        memcmp(dense, o->dense_state[s->steps], s->d * sizeof(*dense)) != 0)
        sim_fail(s, "I2: the end differs from that of a run that nothing happened to");
}

void oracle_check_end(struct sim *s)
{
    if (s->store.last != s->steps)
        sim_fail(s, "finished, but the store has step %llu", (ull)s->store.last);
    for (uint64_t t = 1; t <= s->steps && !s->failed; t++) {
        const struct record *kept = &s->store.records[t], *counts = &s->oracle.records[t];
        if (kept->r.step != t || kept->r.next_position != t * s->j * ROWS)
            sim_fail(s,
                     "I4: the store has step %llu, up to position %llu, in the place of step %llu",
                     (ull)kept->r.step, (ull)kept->r.next_position, (ull)t);
        if (sfc_attempt_compare(kept->r.round, counts->r.round) != 0)
            sim_fail(s, "I3: the store has another round of step %llu than shards", (ull)t);
    }
    for (uint32_t k = 0; k < s->k; k++)
        if (s->store.map.member[k] && sfc_step_applied(&s->shards[k].fsm) != s->steps)
            sim_fail(s, "finished, but shard %u is at step %llu of %u", k,
                     (ull)sfc_step_applied(&s->shards[k].fsm), s->steps);
    if (!s->mixed && !s->session && !s->failed)
        check_alone(s);
}
