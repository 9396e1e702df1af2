/* People: they drop what blocks the run, hold it for a checkpoint, pause it, take it back, and set
 * its learning rate. */
#include "tests/sim/sim.h"

typedef unsigned long long ull;

static void control(struct sim *s, enum sfc_run_event_type type)
{
    struct sfc_run_event e = {.type = type, .token = UINT64_MAX};
    if (type == SFC_EV_DROP) {
        e.token = DROP_TOKEN;
        e.step = s->poison_step;
        e.j = s->poison_j;
    }
    scheduler_run_event(s, &e);
}

/* ---- back to an earlier step */

static void rewind_to(struct sim *s, uint64_t step)
{
    struct sfc_run_event e = {.type = SFC_EV_REWIND, .token = REWIND_TOKEN, .step = step};
    for (uint32_t k = 0; k < s->k; k++)
        if (s->scheduler.map.member[k])
            e.oldest = s->scheduler.oldest[k] > e.oldest ? s->scheduler.oldest[k] : e.oldest;
    s->rewinding = true;
    s->rewind_to = step;
    sim_log(s, "operator: rewind to step %llu", (ull)step);
    scheduler_run_event(s, &e);
}

static void rewind_some(struct sim *s)
{
    const struct sfc_run_fsm *run = &s->scheduler.run;
    uint64_t committed = sfc_run_committed(run);
    if ((run->restoring || !run->started) && s->now < s->chaos_end) {
        sim_after(s, 200, E_OPERATOR)->a = 7;
        return;
    }
    uint64_t window = s->window + (sim_below(s, 8) == 0); /* now and then one too many */
    uint64_t back = sim_below(s, (uint32_t)(window < committed ? window : committed) + 1);
    if (!s->rewinding && s->now < s->chaos_end)
        rewind_to(s, committed - back);
}

/* Where the run has been, less the window, disks lead; but not where one has lost the beginning of
 * its log, or steps that were not durable when it failed. */
static bool may_refuse(const struct sim *s)
{
    return s->rewind_to + s->window < s->oracle.most ||
           s->elastic || /* to before a block came to its shard */
           (s->bad_disk < s->k && s->rewind_to < s->scheduler.oldest[s->bad_disk]) ||
           (s->bad_disk < s->k && s->rewind_to < disk_oldest(s, s->bad_disk)) ||
           (s->flush_error_ppm > 0 && s->durable_every > 1);
}

static void check_rewound(struct sim *s)
{
    s->counts.rewinds++;
    if (s->store.last != s->rewind_to)
        sim_fail(s, "rewound to step %llu, but step %llu is the last one of the store",
                 (ull)s->rewind_to, (ull)s->store.last);
    for (uint32_t k = 0; k < s->k; k++)
        if (s->scheduler.map.member[k] && s->shards[k].has_run &&
            sfc_step_applied(&s->shards[k].fsm) != s->rewind_to)
            sim_fail(s, "rewound to step %llu, but shard %u is at step %llu", (ull)s->rewind_to, k,
                     (ull)sfc_step_applied(&s->shards[k].fsm));
}

void operator_rewound(struct sim *s, int code, const char *text)
{
    s->rewinding = false;
    sim_log(s, "rewind to step %llu: %s", (ull)s->rewind_to, code == SFC_OK ? "done" : text);
    if (code == SFC_OK) {
        check_rewound(s);
        return;
    }
    s->counts.refused_rewinds++;
    if ((code == SFC_EINVAL || code == SFC_ENOTFOUND || code == SFC_ECORRUPT) && !may_refuse(s))
        sim_fail(s, "a rewind to step %llu is refused, from step %llu with a window of %u: %s",
                 (ull)s->rewind_to, (ull)s->oracle.most, s->window, text);
    else if (sim_below(s, 2) == 0)
        sim_after(s, 100 + sim_below(s, 1000), E_OPERATOR)->a = 7;
}

/* ---- learning rate */

static void set_lr(struct sim *s)
{
    static const double rates[] = {0, 0.05, 0.3, 0.7};
    struct sfc_run_event e = {
        .type = SFC_EV_SET_LR, .token = LR_TOKEN, .lr = rates[sim_below(s, 4)]};
    if (sim_below(s, 3) == 0) /* now and then too late */
        e.step = sfc_run_committed(&s->scheduler.run) + sim_below(s, 5);
    sim_log(s, "operator: learning rate %g from step %llu on", e.lr, (ull)e.step);
    scheduler_run_event(s, &e);
}

void operator_set_lr(struct sim *s, uint64_t step, double lr)
{
    const struct sfc_lr_change change = {step, lr};
    s->counts.rates++;
    sim_log(s, "learning rate %g from step %llu on is acknowledged", lr, (ull)step);
    if (step <= sfc_run_committed(&s->scheduler.run))
        sim_fail(s, "a learning rate is acknowledged from step %llu on, which is over", (ull)step);
    if (!sfc_lr_changes_has(&s->store.lr_changes, &change))
        sim_fail(s, "a learning rate from step %llu on is acknowledged and not durable", (ull)step);
    if (s->now < s->chaos_end && sim_below(s, 4) == 0)
        sim_after(s, sim_below(s, 200), E_KILL_SCHEDULER);
}

/* ---- all that they do */

/* 1: the run is blocked; 2: hold; 3: ask again; 4: release; 5: pause; 6: resume; 7: rewind;
 * 8: learning rate. */
void operator_acts(struct sim *s, uint64_t what)
{
    struct sfc_run_event hold = {.type = SFC_EV_HOLD, .token = UINT64_MAX, .hold_id = s->hold_id};
    if (!s->scheduler.up || !s->scheduler.has_run) {
        if (what != 5 && what < 7) /* a pause that comes late could overtake its resume */
            sim_after(s, 200, E_OPERATOR)->a = what;
        return;
    }
    const struct sfc_run_fsm *run = &s->scheduler.run;
    switch (what) {
    case 1:
        if (run->blocked && (run->blocked_before_restart ? s->poison_step > sfc_run_committed(run)
                                                         : run->blocked_step == s->poison_step &&
                                                               run->blocked_j == s->poison_j))
            control(s, SFC_EV_DROP);
        else
            control(s, SFC_EV_RESUME);
        break;
    case 2:
    case 3:
        if (what == 3 && s->hold_id == 0)
            break; /* forgotten by a restart */
        scheduler_run_event(s, &hold);
        break;
    case 4:
        hold.type = SFC_EV_RELEASE;
        scheduler_run_event(s, &hold);
        s->hold_id = 0;
        break;
    case 7:
        rewind_some(s);
        break;
    case 8:
        set_lr(s);
        break;
    default:
        control(s, what == 5 ? SFC_EV_PAUSE : SFC_EV_RESUME);
        break;
    }
}

void operator_plan(struct sim *s)
{
    uint32_t end = (uint32_t)s->chaos_end;
    if (sim_below(s, 3) == 0)
        sim_after(s, sim_below(s, end), E_OPERATOR)->a = 2;
    if (sim_below(s, 3) == 0) {
        uint32_t at = sim_below(s, end);
        sim_after(s, at, E_OPERATOR)->a = 5;
        sim_after(s, at + 500, E_OPERATOR)->a = 6;
        sim_after(s, end + 2000, E_OPERATOR)->a = 6; /* whatever a restart did to the first one */
    }
    for (uint32_t i = sim_below(s, 2) ? sim_below(s, 10) : 0; i > 0; i--)
        sim_after(s, sim_below(s, end), E_OPERATOR)->a = 8;
    for (uint32_t i = s->window ? sim_below(s, 12) : 0; i > 0; i--) {
        uint32_t at = sim_below(s, end);
        sim_after(s, at, E_OPERATOR)->a = 7;
        if (sim_below(s, 4) == 0)
            sim_after(s, at + sim_below(s, 1000), E_KILL_SHARD)->a = sim_below(s, s->k);
        if (sim_below(s, 6) == 0)
            sim_after(s, at + sim_below(s, 1000), E_KILL_SCHEDULER);
    }
}
