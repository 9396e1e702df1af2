#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/permutation.h"
#include "kernels/rng/sample.h"
#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- model arithmetic */

uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u + (a << 6) + (a >> 2));
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t model_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

uint64_t model_label(const struct sim *s, uint64_t step, uint32_t j, uint32_t row)
{
    uint64_t position = (step - 1) * s->j * ROWS + j * ROWS + row;
    return mix(3, sfc_sample_at(5, SAMPLES, position)) % CLASSES;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

uint64_t model_sample(const struct sim *s, uint64_t step, uint32_t block, const uint64_t *labels)
{
    uint32_t positives[MAX_B], out[BLOCK_SIZE], n = 0, distinct = 0;
    _Alignas(64) unsigned char scratch[16384];
    for (uint32_t i = 0; i < s->j * ROWS; i++)
        if (labels[i] / BLOCK_SIZE == block)
            positives[n++] = (uint32_t)(labels[i] % BLOCK_SIZE);
    qsort(positives, n, sizeof(*positives), by_value);
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || positives[i] != positives[i - 1])
            positives[distinct++] = positives[i];
    if (sfc_sample_scratch(BLOCK_SIZE) > sizeof(scratch))
        abort();
    uint32_t count =
        sfc_sample_block(5, step, block, BLOCK_SIZE, SAMPLE_PPM, positives, distinct, out, scratch);
    uint64_t h = mix(step, block);
    for (uint32_t i = 0; i < count; i++)
        h = mix(h, out[i]);
    return h;
}

uint64_t model_features(const struct sim *s, uint64_t step, uint32_t j, uint64_t salt,
                        const uint64_t *dense)
{
    uint64_t h = mix(mix(step, j), salt);
    for (uint32_t d = 0; d < s->d; d++)
        h = mix(h, dense[d]);
    return h;
}

uint64_t model_logits(uint64_t state, uint64_t sample, uint64_t features)
{
    return mix(mix(state, sample), features);
}

uint64_t model_lse(uint64_t logits)
{
    return mix(logits, 11);
}

uint64_t model_gradient(uint64_t state, uint64_t sample, uint64_t features, uint64_t lse)
{
    return mix(mix(mix(state, sample), features), lse);
}

uint64_t model_slice(uint64_t dx, uint64_t features, uint32_t block)
{
    return mix(mix(dx, features), block);
}

uint64_t model_class_update(uint64_t state, uint64_t sample, uint64_t inputs, double lr)
{
    return mix(mix(mix(state, sample), inputs), model_double(lr));
}

uint64_t model_dense_update(uint64_t state, uint64_t sum, double clip_scale, double lr)
{
    return mix(mix(mix(state, sum), model_double(clip_scale)), model_double(lr));
}

double model_square(uint64_t sum)
{
    return (double)(sum % 1000) / 8.0;
}

bool model_finite(const struct sim *s, uint64_t step, uint32_t block)
{
    return !s->not_finite || mix(mix(s->seed, step), block) % 23 != 0;
}

/* ---- the undisturbed run */

void oracle_init(struct sim *s)
{
    for (uint32_t b = 0; b < BLOCKS; b++)
        s->oracle.class_state[0][b] = mix(101, b);
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
 * dropped the poisoned micro-batch. */
static void check_labels(struct sim *s, const struct record *record, uint32_t j)
{
    for (uint32_t r = 0; r < ROWS; r++) {
        uint64_t label = record->labels[j * ROWS + r];
        bool poisoned = s->poison_step == record->r.step && s->poison_j == j;
        bool dropped = label == SFC_CORE_LABEL_NONE && poisoned;
        if (poisoned && s->drop_acknowledged && !dropped)
            sim_fail(s, "step %llu micro-batch %u was dropped, and committed with its labels",
                     (ull)record->r.step, j);
        if (!dropped && label != model_label(s, record->r.step, j, r))
            sim_fail(s, "I4: step %llu micro-batch %u row %u was committed with label %llu",
                     (ull)record->r.step, j, r, (ull)label);
    }
}

/* I2: what the worker said must be what a lone worker would have computed from the state after
 * step - 1. */
static void check_inputs(struct sim *s, uint64_t step, uint32_t j, const struct promise *p)
{
    const uint64_t *state = s->oracle.class_state[step - 1];
    uint64_t features = model_features(s, step, j, p->salt, s->oracle.dense_state[step - 1]);
    uint64_t logits = 0, dx = 0;
    for (uint32_t b = 0; b < BLOCKS; b++)
        logits += model_logits(state[b], s->oracle.sample[step][b], features);
    uint64_t lse = model_lse(logits);
    for (uint32_t b = 0; b < BLOCKS; b++)
        dx += model_gradient(state[b], s->oracle.sample[step][b], features, lse);
    bool same = features == p->features && lse == p->lse;
    for (uint32_t d = 0; d < s->d; d++)
        same = same && p->dense[d] == model_slice(dx, features, d);
    if (!same)
        sim_fail(s, "I2: inputs of step %llu micro-batch %u differ from the undisturbed run's",
                 (ull)step, j);
}

static uint64_t dense_sum(const struct promise *const *named, uint32_t j_count, uint32_t d)
{
    uint64_t h = 0;
    for (uint32_t j = 0; j < j_count; j++)
        h = mix(h, named[j]->dense[d]);
    return h;
}

void oracle_commit(struct sim *s, const struct record *record)
{
    struct oracle *o = &s->oracle;
    uint64_t t = record->r.step, inputs = 0;
    const struct promise *named[MAX_J];
    double squares = 0;
    bool finite = true;
    for (uint32_t b = 0; b < BLOCKS; b++)
        o->sample[t][b] = model_sample(s, t, b, record->labels);
    for (uint32_t j = 0; j < s->j; j++) {
        named[j] = oracle_find(s, t, j, record->attempts[j]);
        check_labels(s, record, j);
        if (s->session && sfc_attempt_compare(record->attempts[j], record->attempts[0]) != 0)
            sim_fail(s, "step %llu was committed with the work of two sessions", (ull)t);
        if (!named[j]) {
            sim_fail(s, "step %llu was committed with an attempt at %u that nobody did", (ull)t, j);
            return;
        }
        check_inputs(s, t, j, named[j]);
        inputs = mix(mix(inputs, named[j]->features), named[j]->lse);
    }
    for (uint32_t d = 0; d < s->d; d++) {
        squares += model_square(dense_sum(named, s->j, d));
        finite = finite && model_finite(s, t, d);
    }
    double norm = sqrt(squares), clip = 5.0;
    double scale = finite ? clip / fmax(norm, clip) : 1.0;
    if (finite != record->r.apply || scale != record->r.clip_scale ||
        record->r.next_position != t * s->j * ROWS)
        sim_fail(s, "step %llu: record says apply %d, clip %.17g; expected %d, %.17g", (ull)t,
                 record->r.apply, record->r.clip_scale, finite, scale);
    for (uint32_t b = 0; b < BLOCKS; b++)
        o->class_state[t][b] = finite ? model_class_update(o->class_state[t - 1][b],
                                                           o->sample[t][b], inputs, record->r.lr)
                                      : o->class_state[t - 1][b];
    for (uint32_t d = 0; d < s->d; d++)
        o->dense_state[t][d] =
            finite ? model_dense_update(o->dense_state[t - 1][d], dense_sum(named, s->j, d), scale,
                                        record->r.lr)
                   : o->dense_state[t - 1][d];
}

/* ---- after every event */

static uint64_t committed(const struct sim *s)
{
    return s->store.has_record ? s->store.record.r.step : 0;
}

static void check_shard(struct sim *s, uint32_t k)
{
    const struct shard *sh = &s->shards[k];
    uint64_t c = committed(s), applied = sfc_step_applied(&sh->fsm);
    if (applied > c || applied + 1 < c) {
        sim_fail(s, "I3: shard %u has applied step %llu, committed is %llu", k, (ull)applied,
                 (ull)c);
        return;
    }
    for (uint32_t b = 0; b < BLOCKS; b++)
        if (s->class_owner[b] == k && sh->class_state[b] != s->oracle.class_state[applied][b])
            sim_fail(s,
                     "I2: shard %u class block %u after step %llu differs from the undisturbed "
                     "run",
                     k, b, (ull)applied);
    for (uint32_t d = 0; d < s->d; d++)
        if (s->dense_owner[d] == k && sh->dense_state[d] != s->oracle.dense_state[applied][d])
            sim_fail(s,
                     "I2: shard %u dense block %u after step %llu differs from the undisturbed "
                     "run",
                     k, d, (ull)applied);
}

void oracle_check(struct sim *s)
{
    for (uint32_t k = 0; k < s->k; k++)
        if (s->shards[k].has_run)
            check_shard(s, k);
}

/* What the shard has on its disk of this step is what the record will name (I3), and it sampled
 * what every placement samples (I1). */
static void check_inputs_durable(struct sim *s, uint32_t k, const struct sfc_commit_record *record)
{
    struct sfc_run_fsm *run = &s->scheduler.run;
    const struct shard *sh = &s->shards[k];
    const struct log_record *r = disk_find(&sh->disk, record->step, record->round);
    if (!r || (size_t)(r - sh->disk.records) >= sh->disk.flushed) {
        sim_fail(s, "I3: step %llu is recorded, but shard %u has not flushed it", (ull)record->step,
                 k);
        return;
    }
    for (uint32_t j = 0; j < s->j; j++)
        if (sfc_attempt_compare(r->attempts[j], sfc_run_done(run, j)->attempt) != 0)
            sim_fail(s,
                     "step %llu micro-batch %u: shard %u flushed another attempt than the record "
                     "names",
                     (ull)record->step, j, k);
    const uint64_t *labels = sfc_run_labels(run, record->step);
    if (memcmp(r->labels, labels, s->j * ROWS * sizeof(*labels)) != 0)
        sim_fail(s, "step %llu: shard %u flushed other labels", (ull)record->step, k);
    for (uint32_t b = 0; b < BLOCKS && sh->has_run; b++)
        if (s->class_owner[b] == k &&
            sh->sample[record->step & 1][b] != model_sample(s, record->step, b, labels))
            sim_fail(s, "I1: shard %u sampled block %u of step %llu differently", k, b,
                     (ull)record->step);
}

/* The scheduler is about to write this record. */
void oracle_check_record(struct sim *s)
{
    const struct sfc_commit_record *record = &s->scheduler.run.commit.record;
    if (record->step != committed(s) + 1)
        sim_fail(s, "I3: record of step %llu after step %llu", (ull)record->step,
                 (ull)committed(s));
    for (uint32_t k = 0; k < s->k; k++)
        check_inputs_durable(s, k, record);
}

void oracle_check_grant(struct sim *s, uint64_t step)
{
    if (step != committed(s) + 1)
        sim_fail(s, "a grant of step %llu, but the oldest uncommitted step is %llu", (ull)step,
                 (ull)committed(s) + 1);
}
