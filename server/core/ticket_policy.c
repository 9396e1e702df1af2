#include "server/core/ticket_policy.h"

#include <math.h>

static double since(uint64_t now_ms, uint64_t since_ms)
{
    return now_ms > since_ms ? (double)(now_ms - since_ms) : 0;
}

static struct sfc_ticket_worker *at(struct sfc_tickets *t, uint32_t place)
{
    return place == SFC_TICKET_STRANGER ? NULL : &t->workers[place];
}

/* Of one micro-batch, as far as it is known; 0: not at all. */
static double mean_of(struct sfc_tickets *t, uint32_t place)
{
    const struct sfc_ticket_worker *w = at(t, place);
    return w && w->pace.count > 0 ? w->pace.mean_ms : t->grant_pace.mean_ms;
}

static double limit_of(struct sfc_tickets *t, uint32_t place)
{
    const struct sfc_ticket_worker *w = at(t, place);
    return sfc_pace_limit(w && sfc_pace_known(&w->pace) ? &w->pace : &t->grant_pace);
}

static bool is_late(struct sfc_tickets *t, uint32_t place)
{
    const struct sfc_ticket_worker *w = at(t, place);
    return w && w->held_ms > limit_of(t, place);
}

/* What it would take for one more. */
static double needs(struct sfc_tickets *t, uint32_t place)
{
    return is_late(t, place) ? at(t, place)->held_ms : mean_of(t, place);
}

/* Until the holder is done, as one expects: who is overdue needs as long again. */
static double remains(struct sfc_tickets *t, const struct sfc_grant *g, uint64_t now_ms)
{
    return fabs(mean_of(t, g->place) - since(now_ms, g->since_ms));
}

/* The same for a micro-batch that may be given again; 0: it may not, or its holder is only overdue.
 */
static double remains_again(struct sfc_tickets *t, const struct sfc_micro_batch *m, uint64_t now_ms)
{
    if (m->grant != SFC_TICKET_OUT || m->again || !sfc_pace_known(&t->grant_pace))
        return 0;
    const struct sfc_grant *g = &m->out[0];
    double elapsed = since(now_ms, g->since_ms);
    if (elapsed > limit_of(t, g->place))
        return INFINITY;
    /* both attempts must have a place at the shards, or the holder's work would be lost */
    bool spare = t->given < t->config.micro_batches + SFC_SPARE_ATTEMPTS;
    return spare ? fmax(mean_of(t, g->place) - elapsed, 0) : 0;
}

static bool data_again(const struct sfc_tickets *t, const struct sfc_micro_batch *m,
                       uint64_t now_ms)
{
    return m->data == SFC_TICKET_OUT && !m->data_again &&
           since(now_ms, m->data_since_ms) > sfc_pace_limit(&t->data_pace);
}

/* ---- the survey */

static void find_longest(struct sfc_tickets *t, struct sfc_ticket_survey *s)
{
    const struct sfc_ticket_step *open = sfc_tickets_step(t, t->open_step);
    s->longest_ms = 0;
    for (uint32_t k = 0; open && k < t->config.micro_batches; k++)
        s->longest_ms = fmax(s->longest_ms, remains_again(t, &open->micro_batches[k], s->now_ms));
}

static void survey_grants(struct sfc_tickets *t, struct sfc_ticket_survey *s)
{
    const struct sfc_ticket_step *open = sfc_tickets_step(t, t->open_step);
    s->computing = s->computing && sfc_tickets_complete(t, t->open_step);
    for (uint32_t k = 0; open && k < t->config.micro_batches; k++) {
        const struct sfc_micro_batch *m = &open->micro_batches[k];
        s->free += s->computing && m->grant == SFC_TICKET_FREE;
        for (uint32_t g = 0; g < m->out_count; g++) {
            struct sfc_ticket_worker *w = at(t, m->out[g].place);
            if (w)
                w->held_ms = fmax(w->held_ms, since(s->now_ms, m->out[g].since_ms));
        }
    }
#if SFC_PLANT_BUG == 4 /* what it would grant is free */
    s->free += s->computing && open && open->done == t->config.micro_batches;
#endif
    if (s->computing)
        find_longest(t, s);
}

static void survey_data(struct sfc_tickets *t, struct sfc_ticket_survey *s)
{
    double limit = sfc_pace_limit(&t->data_pace);
    s->data_free = s->data_late = false;
    for (uint32_t i = 0; i <= t->config.lead_steps; i++) {
        const struct sfc_ticket_step *step = sfc_tickets_step(t, t->open_step + i);
        for (uint32_t k = 0; step && k < t->config.micro_batches; k++) {
            const struct sfc_micro_batch *m = &step->micro_batches[k];
            s->data_free = s->data_free || m->data == SFC_TICKET_FREE;
            s->data_late = s->data_late || data_again(t, m, s->now_ms);
            if (m->data != SFC_TICKET_OUT || since(s->now_ms, m->data_since_ms) <= limit)
                continue;
            struct sfc_ticket_worker *w = at(t, sfc_tickets_worker(t, m->data_worker));
            if (w)
                w->data_late = true;
        }
    }
}

void sfc_ticket_survey(struct sfc_tickets *t, uint64_t now_ms, bool computing,
                       struct sfc_ticket_survey *survey)
{
    *survey = (struct sfc_ticket_survey){.now_ms = now_ms, .computing = computing};
    for (uint32_t i = 0; i < t->worker_count; i++) {
        t->workers[i].idle = 0;
        t->workers[i].held_ms = 0;
        t->workers[i].data_late = false;
    }
    survey_grants(t, survey);
    survey_data(t, survey);
}

void sfc_ticket_survey_call(struct sfc_tickets *t, struct sfc_ticket_survey *survey, uint32_t place,
                            bool data)
{
    struct sfc_ticket_worker *w = at(t, place);
    if (data)
        survey->data_askers += !w || !w->data_late;
    else if (w)
        w->idle++;
}

/* ---- grants */

/* Micro-batches that a lane does within `span` when it is free after `wait`. */
static double within(double span, double wait, double each)
{
    return each > 0 && span > wait ? floor((span - wait) / each) : 0;
}

/* Will the others have done all that is free within this time? */
static bool others_suffice(struct sfc_tickets *t, const struct sfc_ticket_survey *s, uint32_t place,
                           double span)
{
    const struct sfc_ticket_step *open = sfc_tickets_step(t, t->open_step);
    double done = 0;
    for (uint32_t i = 0; i < t->worker_count && done < s->free; i++)
        if (i != place && t->workers[i].idle > 0)
            done += t->workers[i].idle * within(span, 0, needs(t, i));
    for (uint32_t k = 0; k < t->config.micro_batches && done < s->free; k++) {
        const struct sfc_micro_batch *m = &open->micro_batches[k];
        for (uint32_t g = 0; g < m->out_count; g++)
            if (m->out[g].place != place)
                done += within(span, remains(t, &m->out[g], s->now_ms), needs(t, m->out[g].place));
    }
    return done >= s->free;
}

static bool should_wait(struct sfc_tickets *t, const struct sfc_ticket_survey *s, uint32_t place)
{
    double span = needs(t, place) * 3 / 4;
    return sfc_pace_known(&t->grant_pace) && place != SFC_TICKET_STRANGER &&
           span >= SFC_POLICY_GRAIN_MS && others_suffice(t, s, place, span);
}

/* Does it help when this worker begins it now? */
static bool helps(struct sfc_tickets *t, uint32_t place, double remains_ms)
{
    double mine = needs(t, place);
    return remains_ms >= 2 * mine && remains_ms >= mine + SFC_POLICY_GRAIN_MS;
}

/* What remains longest and is not this worker's own; false: nothing that helps. */
static bool straggler(struct sfc_tickets *t, const struct sfc_ticket_survey *s, uint64_t worker,
                      uint32_t place, uint32_t *j)
{
    const struct sfc_ticket_step *open = sfc_tickets_step(t, t->open_step);
    double longest = 0;
    for (uint32_t k = 0; k < t->config.micro_batches; k++) {
        const struct sfc_micro_batch *m = &open->micro_batches[k];
        double ms = remains_again(t, m, s->now_ms);
        if (ms <= longest || m->out[0].worker == worker)
            continue;
        longest = ms;
        *j = k;
    }
    return longest > 0 && helps(t, place, longest);
}

bool sfc_ticket_policy_grant(struct sfc_tickets *t, struct sfc_ticket_survey *s, uint64_t worker,
                             uint32_t place, uint64_t *step, uint32_t *j,
                             struct sfc_attempt *attempt)
{
    if (!s->computing)
        return false;
    if (s->free > 0) {
        if (should_wait(t, s, place) ||
            !sfc_tickets_give_grant(t, worker, s->now_ms, step, j, attempt))
            return false;
        s->free--;
    } else {
        if (is_late(t, place) || !helps(t, place, s->longest_ms) ||
            !straggler(t, s, worker, place, j))
            return false;
        *step = t->open_step;
        *attempt = sfc_tickets_grant_again(t, worker, s->now_ms, *j);
        find_longest(t, s);
    }
    if (at(t, place) && at(t, place)->idle > 0)
        at(t, place)->idle--;
    return true;
}

/* ---- data tickets */

/* The first that is late and another worker's. */
static bool late_data(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t *step,
                      uint32_t *j)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++) {
        const struct sfc_ticket_step *s = sfc_tickets_step(t, t->open_step + i);
        for (uint32_t k = 0; s && k < t->config.micro_batches; k++) {
            if (!data_again(t, &s->micro_batches[k], now_ms) ||
                s->micro_batches[k].data_worker == worker)
                continue;
            *step = s->step;
            *j = k;
            return true;
        }
    }
    return false;
}

bool sfc_ticket_policy_data(struct sfc_tickets *t, struct sfc_ticket_survey *s, uint64_t worker,
                            uint32_t place, uint64_t *step, uint32_t *j)
{
    bool late = at(t, place) && at(t, place)->data_late;
    if (late && s->data_askers > 0)
        return false;
    if (s->data_free) {
        s->data_free = sfc_tickets_give_data(t, worker, s->now_ms, step, j);
        if (s->data_free)
            return true;
    }
    if (late || !s->data_late || !late_data(t, worker, s->now_ms, step, j))
        return false;
    sfc_tickets_data_again(t, worker, s->now_ms, *step, *j);
    return true;
}
