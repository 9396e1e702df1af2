/* What the scheduler's daemon keeps (server/scheduler/run.c): provisional records in memory,
 * durable ones, drops, states and the lineage in a database that writes one thing after the other,
 * fails, and may have written at a crash what it never said. */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

uint64_t store_committed(const struct sim *s)
{
    const struct scheduler *sc = &s->scheduler;
    uint32_t count = sc->kept_count;
    if (count > 0 && s->store.writing && !s->store.task.rewind)
        count--; /* the last one is on its way */
    return count > 0 ? sc->kept[count - 1].r.step : s->store.last;
}

void store_lineage(const struct sim *s, struct sfc_lineage *out)
{
    uint64_t step;
    struct sfc_attempt last;
    *out = s->scheduler.lineage;
    if (sfc_run_returns(&s->scheduler.run, &step, &last))
        sfc_lineage_add(out, step, last);
}

void store_restore(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    sc->kept_count = 0;
    sc->lineage = s->store.lineage;
    sc->lineage_new = s->durable_every > 1;
    if (sc->lineage_new) /* provisional steps are known to nobody any more */
        sfc_lineage_add(&sc->lineage, s->store.last,
                        (struct sfc_attempt){s->store.incarnation - 1, UINT64_MAX});
}

/* ---- records and rewinds */

static void put(struct sim *s, const struct record *record)
{
    if (record->r.step != s->store.last + 1)
        sim_fail(s, "I3: the store gets step %llu after step %llu", (ull)record->r.step,
                 (ull)s->store.last);
    s->store.records[record->r.step] = *record;
    s->store.last = record->r.step;
}

/* The transaction. */
static void put_task(struct sim *s)
{
    struct store *st = &s->store;
    const struct store_task *t = &st->task;
    st->writing = false;
    if (t->rewind && t->step < st->last)
        st->last = t->step;
    for (uint32_t i = 0; i < t->count; i++)
        if (t->records[i].r.step <= t->step)
            put(s, &t->records[i]);
    if (t->has_lineage)
        st->lineage = t->lineage;
    if (st->last != t->step)
        sim_fail(s, "I3: the store ends at step %llu instead of %llu", (ull)st->last, (ull)t->step);
    if (t->rewind)
        sfc_lr_changes_cut(&st->lr_changes, t->step);
    for (uint32_t k = 0; t->rewind && k < s->k; k++)
        if (s->shards[k].has_run) /* an empty disk leads to where the run is now */
            s->shards[k].vanished = false;
    if (t->rewind && s->poison_step > t->step) {
        st->dropped = false;
        s->drop_acknowledged = false;
    }
    if (!t->rewind)
        oracle_commit(s, &t->records[t->count - 1]);
    sim_log(s, "%s step %llu is durable", t->rewind ? "the rewind to" : "the record of",
            (ull)t->step);
}

void store_crash(struct sim *s)
{
    if (s->scheduler.set_lr.from_step != 0 && sim_below(s, 2) == 0)
        sfc_lr_changes_set(&s->store.lr_changes, &s->scheduler.set_lr);
    if (s->store.writing && sim_below(s, 2) == 0) { /* what it was writing, or failed to write */
        s->counts.unsure_records++;
        put_task(s);
    }
    s->store.writing = false;
    moves_crash(s);
    s->store.busy_until = s->now;
    s->scheduler.kept_count = 0;
    s->scheduler.kept_step = s->scheduler.found_step = 0;
}

/* The store writes one thing after the other. */
struct event *store_after(struct sim *s, enum event_kind kind)
{
    uint64_t begin = s->store.busy_until > s->now ? s->store.busy_until : s->now;
    s->store.busy_until = begin + 1 + sim_below(s, 30);
    struct event *e = sim_after(s, s->store.busy_until - s->now, kind);
    e->b = s->scheduler.life;
    return e;
}

static void keep(struct sim *s, const struct record *record)
{
    struct scheduler *sc = &s->scheduler;
    if (sc->kept_count > 0 && sc->kept[sc->kept_count - 1].r.step == record->r.step)
        return; /* it is written again */
    if (sc->kept_count == MAX_STEPS)
        sim_fail(s, "%d records are kept", MAX_STEPS);
    else
        sc->kept[sc->kept_count++] = *record;
}

static void begin_task(struct sim *s, bool rewind, uint64_t step)
{
    const struct scheduler *sc = &s->scheduler;
    struct store_task *t = &s->store.task;
    t->rewind = rewind;
    t->step = step;
    t->count = sc->kept_count;
    memcpy(t->records, sc->kept, sc->kept_count * sizeof(*sc->kept));
    t->lineage = sc->lineage;
    t->has_lineage = rewind || sc->lineage_new;
    s->store.writing = true;
    store_after(s, E_STORED);
}

/* Somebody dies while a record is on its way, or is kept in memory only. */
static void disturb_record(struct sim *s, bool provisional)
{
    if (s->now >= s->chaos_end || sim_below(s, provisional ? 8 : 12) != 0)
        return;
    if (provisional && sim_below(s, 4) == 0)
        sim_after(s, sim_below(s, 100), E_KILL_SCHEDULER);
    else
        sim_after(s, sim_below(s, provisional ? 200 : 40), E_KILL_SHARD)->a = sim_below(s, s->k);
}

void store_write_record(struct sim *s, const struct sfc_run_action *a)
{
    struct scheduler *sc = &s->scheduler;
    const struct record record = oracle_check_record(s, a->provisional);
    if (s->failed)
        return;
    keep(s, &record);
    disturb_record(s, a->provisional);
    if (a->provisional) {
        sc->kept_step = a->step;
        oracle_commit(s, &sc->kept[sc->kept_count - 1]);
        return;
    }
    begin_task(s, false, a->step);
}

void store_write_rewind(struct sim *s, const struct sfc_run_action *a)
{
    begin_task(s, true, a->step);
    sfc_lineage_add(&s->store.task.lineage, a->step, a->round);
}

void store_forget(struct sim *s, const struct sfc_run_action *a)
{
    struct scheduler *sc = &s->scheduler;
    s->counts.returns++;
    s->counts.given_up += sc->kept_count;
    sc->kept_count = 0;
    sfc_lineage_add(&sc->lineage, a->step, a->round);
    sc->lineage_new = true;
    sim_log(s, "the run goes back to its last durable step, %llu", (ull)a->step);
    if (a->step != s->store.last)
        sim_fail(s, "I3: the run goes back to step %llu, but step %llu is durable", (ull)a->step,
                 (ull)s->store.last);
}

void store_read_record(struct sim *s, uint64_t step)
{
    for (uint32_t i = 0; i < s->scheduler.kept_count; i++)
        if (s->scheduler.kept[i].r.step == step)
            s->scheduler.found_step = step;
    if (s->scheduler.found_step == 0)
        store_after(s, E_RECORD_READ)->a = step;
}

void store_feed(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_run_event e = {.type = SFC_EV_RECORD_DURABLE, .step = sc->kept_step};
    if (sc->found_step != 0) {
        e = (struct sfc_run_event){.type = SFC_EV_RECORD_READ, .step = sc->found_step};
        for (uint32_t i = 0; i < sc->kept_count; i++)
            if (sc->kept[i].r.step == sc->found_step)
                e.record = &sc->kept[i].r;
        sc->found_step = 0;
        scheduler_run_event(s, &e);
    } else if (sc->kept_step != 0) {
        sc->kept_step = 0;
        scheduler_run_event(s, &e);
    }
}

/* ---- what it says */

static bool fails(struct sim *s)
{
    bool now = s->now < s->chaos_end && sim_chance(s, s->store_error_ppm);
    s->counts.store_errors += now;
    return now;
}

static void rewind_result(struct sim *s, bool failed)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_run_event n = {.type = SFC_EV_REWOUND, .step = s->store.task.step};
    if (failed) {
        n.code = SFC_EIO;
        n.text = "the disk is full";
    } else {
        sc->kept_count = 0;
        sc->lineage = s->store.task.lineage;
        sc->lineage_new = false;
    }
    scheduler_run_event(s, &n);
}

void store_written(struct sim *s, const struct event *e)
{
    if (e->b != s->scheduler.life)
        return; /* the process died before it knew */
    bool failed = fails(s), rewind = s->store.task.rewind;
    if (failed && sim_below(s, 3) == 0)
        sim_after(s, sim_below(s, 600), E_KILL_SCHEDULER);
    if (failed)
        sim_log(s, "step %llu can't be written", (ull)s->store.task.step);
    else
        put_task(s);
    if (rewind) {
        rewind_result(s, failed);
        return;
    }
    if (!failed) {
        s->scheduler.kept_count = 0;
        s->scheduler.lineage_new = false;
    }
    struct event *n = sim_after(s, sim_below(s, 20), E_NOTIFY);
    n->b = e->b;
    n->a = s->store.task.step;
    n->c = failed;
}

void store_notify(struct sim *s, const struct event *e)
{
    static const int codes[] = {SFC_EIO, SFC_ENOMEM, SFC_ESTATE};
    struct sfc_run_event n = {.type = SFC_EV_RECORD_DURABLE, .step = e->a};
    if (e->b != s->scheduler.life)
        return;
    if (e->c != 0) {
        n.type = SFC_EV_RECORD_FAILED;
        n.code = codes[sim_below(s, 3)];
        n.text = "the disk is full";
    }
    scheduler_run_event(s, &n);
}

void store_record_read(struct sim *s, const struct event *e)
{
    struct sfc_run_event n = {.type = SFC_EV_RECORD_READ, .step = e->a};
    if (e->b != s->scheduler.life)
        return;
    if (fails(s) || e->a == 0 || e->a > s->store.last) {
        n.code = SFC_EIO;
        n.text = "the disk fails";
    } else {
        n.record = &s->store.records[e->a].r;
    }
    scheduler_run_event(s, &n);
}

void store_drop_written(struct sim *s, const struct event *e)
{
    struct sfc_run_event n = {
        .type = SFC_EV_DROPPED, .number = e->a, .step = s->poison_step, .j = s->poison_j};
    if (e->b != s->scheduler.life)
        return;
    if (fails(s)) { /* it may be there after a restart, unasked */
        n.code = SFC_EIO;
        s->store.dropped = s->store.dropped || sim_below(s, 2) == 0;
        sim_after(s, 50, E_OPERATOR)->a = 1;
    } else {
        s->store.dropped = true;
    }
    scheduler_run_event(s, &n);
}

void store_write_lr(struct sim *s, const struct sfc_run_action *a)
{
    s->scheduler.set_lr = (struct sfc_lr_change){a->step, a->lr};
    store_after(s, E_LR_STORED);
    if (s->now < s->chaos_end && sim_below(s, 4) == 0) /* somebody dies of it */
        sim_after(s, sim_below(s, 100), E_KILL_SCHEDULER);
}

void store_lr_written(struct sim *s, const struct event *e)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_run_event n = {.type = SFC_EV_LR_WRITTEN, .step = sc->set_lr.from_step};
    if (e->b != sc->life)
        return;
    if (fails(s)) { /* it may be there after a crash: until then it is tried again */
        n.code = SFC_EIO;
        n.text = "the disk is full";
    } else {
        sfc_lr_changes_set(&s->store.lr_changes, &sc->set_lr);
        sc->set_lr = (struct sfc_lr_change){0};
    }
    scheduler_run_event(s, &n);
}

void store_state_written(struct sim *s, const struct event *e)
{
    if (e->b != s->scheduler.life)
        return;
    s->store.state = (enum sfc_run_state)e->a;
    s->store.paused = e->c != 0;
    memcpy(s->store.reason, e->body.text, sizeof(e->body.text));
}
