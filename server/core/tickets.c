#include "server/core/tickets.h"

#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

int sfc_tickets_init(struct sfc_tickets *t, const struct sfc_tickets_config *config,
                     uint64_t incarnation, uint64_t open_step, struct sfc_error *err)
{
    if (config->micro_batches < 1 || config->micro_batches > SFC_CORE_MAX_MICRO_BATCHES ||
        config->micro_batch < 1)
        return sfc_fail(err, SFC_EINVAL, "%u micro-batches of %u rows; 1..%u are possible",
                        config->micro_batches, config->micro_batch, SFC_CORE_MAX_MICRO_BATCHES);
    struct sfc_tickets n = {
        .config = *config, .open_step = open_step, .last = {.incarnation = incarnation}};
    uint32_t window = config->lead_steps + 1;
    n.steps = calloc(window, sizeof(*n.steps));
    n.workers = calloc(SFC_TICKET_WORKERS, sizeof(*n.workers));
    bool ok = n.steps && n.workers;
    for (uint32_t i = 0; ok && i < window; i++) {
        struct sfc_ticket_step *s = &n.steps[(open_step + i) % window];
        s->step = open_step + i;
        s->micro_batches = calloc(config->micro_batches, sizeof(*s->micro_batches));
        s->labels = calloc((size_t)config->micro_batches * config->micro_batch, sizeof(*s->labels));
        ok = s->micro_batches && s->labels;
    }
    if (!ok) {
        sfc_tickets_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "labels of %u steps", window);
    }
    *t = n;
    return SFC_OK;
}

void sfc_tickets_free(struct sfc_tickets *t)
{
    for (uint32_t i = 0; t->steps && i <= t->config.lead_steps; i++) {
        free(t->steps[i].micro_batches);
        free(t->steps[i].labels);
    }
    free(t->steps);
    free(t->workers);
    memset(t, 0, sizeof(*t));
}

struct sfc_ticket_step *sfc_tickets_step(struct sfc_tickets *t, uint64_t step)
{
    if (step < t->open_step || step > t->config.last_step ||
        step - t->open_step > t->config.lead_steps)
        return NULL;
    return &t->steps[step % (t->config.lead_steps + 1)];
}

bool sfc_tickets_complete(struct sfc_tickets *t, uint64_t step)
{
    const struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    return s && s->announced == t->config.micro_batches;
}

bool sfc_tickets_give_data(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t *step,
                           uint32_t *j)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++) {
        struct sfc_ticket_step *s = sfc_tickets_step(t, t->open_step + i);
        for (uint32_t k = 0; s && k < t->config.micro_batches; k++) {
            struct sfc_micro_batch *m = &s->micro_batches[k];
            if (m->data != SFC_TICKET_FREE)
                continue;
            m->data = SFC_TICKET_OUT;
            m->data_worker = worker;
            m->data_since_ms = now_ms;
            m->data_again = false;
            *step = s->step;
            *j = k;
            return true;
        }
    }
    return false;
}

void sfc_tickets_data_again(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t step,
                            uint32_t j)
{
    struct sfc_micro_batch *m = &sfc_tickets_step(t, step)->micro_batches[j];
    m->data_worker = worker;
    m->data_since_ms = now_ms;
    m->data_again = true;
    t->second_data++;
}

/* ---- workers */

uint32_t sfc_tickets_worker(struct sfc_tickets *t, uint64_t worker)
{
    uint32_t place = SFC_TICKET_STRANGER;
    for (uint32_t i = 0; i < t->worker_count; i++) {
        if (t->workers[i].id == worker)
            return i;
        if (t->workers[i].id == 0 && place == SFC_TICKET_STRANGER)
            place = i;
    }
    if (place == SFC_TICKET_STRANGER && t->worker_count < SFC_TICKET_WORKERS)
        place = t->worker_count++;
    if (place != SFC_TICKET_STRANGER)
        t->workers[place] = (struct sfc_ticket_worker){.id = worker};
    return place;
}

/* What is known of all is where one begins with a worker, so that one time alone says little. NULL:
 * a stranger. */
static struct sfc_pace *pace_of(struct sfc_tickets *t, uint32_t place)
{
    if (place == SFC_TICKET_STRANGER)
        return NULL;
    struct sfc_pace *pace = &t->workers[place].pace;
    if (pace->count == 0 && sfc_pace_known(&t->grant_pace)) {
        *pace = t->grant_pace;
        pace->count = 1;
    }
    return pace;
}

static double time_of(const struct sfc_grant *g, uint64_t now_ms)
{
    return now_ms > g->since_ms ? (double)(now_ms - g->since_ms) : 0;
}

static void note_grant(struct sfc_tickets *t, const struct sfc_grant *g, uint64_t now_ms)
{
    struct sfc_pace *pace = pace_of(t, g->place);
    if (pace) {
        sfc_pace_note(pace, time_of(g, now_ms));
        t->workers[g->place].overtaken = 0;
    }
    sfc_pace_note(&t->grant_pace, time_of(g, now_ms));
}

/* Another was done before this holder, who began earlier. How long it would have taken is not
 * known: the more often that happens, the longer, one guesses. */
static void note_straggler(struct sfc_tickets *t, const struct sfc_grant *g, uint64_t now_ms)
{
    struct sfc_pace *pace = pace_of(t, g->place);
    double ms = time_of(g, now_ms);
    if (!pace)
        return;
    ms *= ++t->workers[g->place].overtaken;
    if (ms > pace->mean_ms)
        sfc_pace_guess(pace, ms);
}

static void forget_worker(struct sfc_tickets *t, uint64_t worker)
{
    for (uint32_t i = 0; i < t->worker_count; i++)
        if (t->workers[i].id == worker)
            t->workers[i] = (struct sfc_ticket_worker){0};
    while (t->worker_count > 0 && t->workers[t->worker_count - 1].id == 0)
        t->worker_count--;
}

/* Who was slow once is not left out for ever. */
static void count_step(struct sfc_tickets *t)
{
    for (uint32_t i = 0; i < t->worker_count; i++) {
        struct sfc_ticket_worker *w = &t->workers[i];
        if (++w->steps < SFC_TICKET_TRIAL)
            continue;
        w->pace.mean_ms = (w->pace.mean_ms + t->grant_pace.mean_ms) / 2;
        w->steps = 0;
    }
}

/* ---- grants */

/* 3: announced by this worker; 2: by nobody who is alive; 1: by another; 0: not free. */
static int preference(const struct sfc_micro_batch *m, uint64_t worker)
{
    if (m->grant != SFC_TICKET_FREE)
        return 0;
    if (m->data_worker == worker)
        return 3;
    return m->data_worker == 0 ? 2 : 1;
}

/* Shards may have let go of attempts that have a newer one beside them. */
static void only_newest_counts(struct sfc_tickets *t)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, t->open_step);
    for (uint32_t k = 0; k < t->config.micro_batches; k++) {
        struct sfc_micro_batch *m = &s->micro_batches[k];
        if (m->grant != SFC_TICKET_OUT || m->out_count < 2)
            continue;
        m->out[0] = m->out[1];
        m->out_count = 1;
    }
}

static struct sfc_attempt grant(struct sfc_tickets *t, struct sfc_micro_batch *m, uint64_t worker,
                                uint64_t now_ms)
{
    uint32_t place = sfc_tickets_worker(t, worker);
    if (place != SFC_TICKET_STRANGER)
        t->workers[place].steps = 0;
    t->last.counter++;
    t->given++;
    m->out_count = m->grant == SFC_TICKET_OUT ? m->out_count : 0;
    m->grant = SFC_TICKET_OUT;
    m->out[m->out_count++] = (struct sfc_grant){worker, place, now_ms, t->last};
    if (t->given > t->config.micro_batches + SFC_SPARE_ATTEMPTS)
        only_newest_counts(t);
    return t->last;
}

bool sfc_tickets_give_grant(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms,
                            uint64_t *granted_step, uint32_t *j, struct sfc_attempt *attempt)
{
    uint64_t step = t->open_step;
#if SFC_PLANT_BUG == 4 /* a grant of the next step before the commit of this one */
    struct sfc_ticket_step *now = sfc_tickets_step(t, step);
    if (now && now->done == t->config.micro_batches)
        step++;
#endif
    if (!sfc_tickets_complete(t, step))
        return false;
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    int best = 0;
    uint32_t chosen = 0;
    for (uint32_t k = 0; k < t->config.micro_batches && best < 3; k++) {
        int p = preference(&s->micro_batches[k], worker);
        if (p <= best)
            continue;
        best = p;
        chosen = k;
    }
    if (best == 0)
        return false;
    *granted_step = step;
    *j = chosen;
    *attempt = grant(t, &s->micro_batches[chosen], worker, now_ms);
    return true;
}

struct sfc_attempt sfc_tickets_grant_again(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms,
                                           uint32_t j)
{
    struct sfc_micro_batch *m = &sfc_tickets_step(t, t->open_step)->micro_batches[j];
    m->again = true;
    t->second_grants++;
    return grant(t, m, worker, now_ms);
}

static int check_labels(const struct sfc_tickets *t, uint64_t step, uint32_t j,
                        const uint64_t *labels, uint32_t count, struct sfc_error *err)
{
    if (j >= t->config.micro_batches)
        return sfc_fail(err, SFC_EINVAL, "micro-batch %u; the run has %u", j,
                        t->config.micro_batches);
    if (count != t->config.micro_batch)
        return sfc_fail(err, SFC_EINVAL, "%u labels; a micro-batch has %u rows", count,
                        t->config.micro_batch);
    for (uint32_t r = 0; r < count; r++)
        if (labels[r] >= t->config.classes && labels[r] != SFC_CORE_LABEL_NONE)
            return sfc_fail(err, SFC_EINVAL,
                            "step %llu micro-batch %u row %u: label %llu of %llu classes",
                            (ull)step, j, r, (ull)labels[r], (ull)t->config.classes);
    return SFC_OK;
}

int sfc_tickets_announce(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t step,
                         uint32_t j, const uint64_t *labels, uint32_t count, bool *complete,
                         struct sfc_error *err)
{
    int rc = check_labels(t, step, j, labels, count, err);
    if (rc != SFC_OK)
        return rc;
    if (step < t->open_step) {
        *complete = false;
        return SFC_OK;
    }
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    if (!s)
        return sfc_fail(err, SFC_ESTATE, "labels of step %llu are too early: step %llu is open",
                        (ull)step, (ull)t->open_step);
    struct sfc_micro_batch *m = &s->micro_batches[j];
    uint64_t *mine = s->labels + (size_t)j * count;
    if (m->data == SFC_TICKET_DONE) {
        for (uint32_t r = 0; r < count && !m->dropped; r++)
            if (mine[r] != labels[r])
                return sfc_fail(err, SFC_ECONFLICT,
                                "step %llu micro-batch %u row %u: label %llu, but %llu was "
                                "announced before; do the workers have the same data?",
                                (ull)step, j, r, (ull)labels[r], (ull)mine[r]);
        *complete = false;
        return SFC_OK;
    }
    memcpy(mine, labels, count * sizeof(*labels));
    if (m->data == SFC_TICKET_OUT && m->data_worker == worker && now_ms >= m->data_since_ms)
        sfc_pace_note(&t->data_pace, (double)(now_ms - m->data_since_ms));
    m->data = SFC_TICKET_DONE;
    m->data_worker = worker;
    s->announced++;
    *complete = s->announced == t->config.micro_batches;
    return SFC_OK;
}

/* *which: the grant. */
static struct sfc_micro_batch *granted(struct sfc_tickets *t, uint64_t step, uint32_t j,
                                       struct sfc_attempt attempt, uint32_t *which)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    if (!s || j >= t->config.micro_batches || s->micro_batches[j].grant != SFC_TICKET_OUT)
        return NULL;
    struct sfc_micro_batch *m = &s->micro_batches[j];
    for (*which = 0; *which < m->out_count; ++*which)
        if (sfc_attempt_compare(m->out[*which].attempt, attempt) == 0)
            return m;
    return NULL;
}

bool sfc_tickets_done(struct sfc_tickets *t, uint64_t now_ms, uint32_t j,
                      struct sfc_attempt attempt)
{
    uint32_t which;
    struct sfc_micro_batch *m = granted(t, t->open_step, j, attempt, &which);
    if (!m)
        return false;
    note_grant(t, &m->out[which], now_ms);
    if (which == 1)
        note_straggler(t, &m->out[0], now_ms);
    m->grant = SFC_TICKET_DONE;
    m->out_count = 0;
    sfc_tickets_step(t, t->open_step)->done++;
    return true;
}

static void take_back(struct sfc_micro_batch *m, uint32_t which)
{
    if (which == 0)
        m->out[0] = m->out[1];
    if (--m->out_count == 0)
        m->grant = SFC_TICKET_FREE;
}

bool sfc_tickets_return_grant(struct sfc_tickets *t, uint64_t step, uint32_t j,
                              struct sfc_attempt attempt, bool counts)
{
    uint32_t which;
    struct sfc_micro_batch *m = granted(t, step, j, attempt, &which);
    if (!m)
        return false;
    take_back(m, which);
    return counts && ++m->failures == SFC_ATTEMPT_LIMIT;
}

bool sfc_tickets_return_data(struct sfc_tickets *t, uint64_t worker, uint64_t step, uint32_t j,
                             bool counts)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    if (!s || j >= t->config.micro_batches)
        return false;
    struct sfc_micro_batch *m = &s->micro_batches[j];
    if (m->data != SFC_TICKET_OUT || m->data_worker != worker)
        return false;
    m->data = SFC_TICKET_FREE;
    return counts && ++m->data_failures == SFC_ATTEMPT_LIMIT;
}

bool sfc_tickets_failed(struct sfc_tickets *t, uint32_t j)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, t->open_step);
    if (!s || j >= t->config.micro_batches)
        return false;
    return ++s->micro_batches[j].failures == SFC_ATTEMPT_LIMIT;
}

void sfc_tickets_worker_died(struct sfc_tickets *t, uint64_t worker)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++) {
        struct sfc_ticket_step *s = &t->steps[i];
        for (uint32_t k = 0; k < t->config.micro_batches; k++) {
            struct sfc_micro_batch *m = &s->micro_batches[k];
            if (m->data == SFC_TICKET_OUT && m->data_worker == worker)
                m->data = SFC_TICKET_FREE;
            if (m->data_worker == worker)
                m->data_worker = 0;
            for (uint32_t g = m->out_count; m->grant == SFC_TICKET_OUT && g-- > 0;)
                if (m->out[g].worker == worker)
                    take_back(m, g);
        }
    }
    forget_worker(t, worker);
}

static bool late(uint64_t now_ms, uint64_t since_ms, uint64_t timeout_ms)
{
    return now_ms > since_ms && now_ms - since_ms > timeout_ms;
}

void sfc_tickets_tick(struct sfc_tickets *t, uint64_t now_ms)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++) {
        struct sfc_ticket_step *s = &t->steps[i];
        for (uint32_t k = 0; k < t->config.micro_batches; k++) {
            struct sfc_micro_batch *m = &s->micro_batches[k];
            if (m->data == SFC_TICKET_OUT &&
                late(now_ms, m->data_since_ms, t->config.data_timeout_ms))
                m->data = SFC_TICKET_FREE;
            for (uint32_t g = m->out_count; m->grant == SFC_TICKET_OUT && g-- > 0;)
                if (late(now_ms, m->out[g].since_ms, t->config.grant_timeout_ms))
                    take_back(m, g);
        }
    }
}

void sfc_tickets_drop(struct sfc_tickets *t, uint64_t step, uint32_t j)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    if (!s || j >= t->config.micro_batches)
        return;
    struct sfc_micro_batch *m = &s->micro_batches[j];
    for (uint32_t r = 0; r < t->config.micro_batch; r++)
        s->labels[(size_t)j * t->config.micro_batch + r] = SFC_CORE_LABEL_NONE;
    if (m->data != SFC_TICKET_DONE) {
        m->data = SFC_TICKET_DONE;
        m->data_worker = 0;
        s->announced++;
    }
    m->dropped = true;
    m->failures = 0;
    m->data_failures = 0;
}

struct sfc_attempt sfc_tickets_new_round(struct sfc_tickets *t)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, t->open_step);
    for (uint32_t k = 0; s && k < t->config.micro_batches; k++) {
        s->micro_batches[k].grant = SFC_TICKET_FREE;
        s->micro_batches[k].out_count = 0;
        s->micro_batches[k].again = false;
    }
    if (s)
        s->done = 0;
    t->given = 0;
    t->last.counter++;
    return t->last;
}

void sfc_tickets_forgive(struct sfc_tickets *t)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++)
        for (uint32_t k = 0; k < t->config.micro_batches; k++) {
            t->steps[i].micro_batches[k].failures = 0;
            t->steps[i].micro_batches[k].data_failures = 0;
        }
}

static void clear_step(struct sfc_tickets *t, uint64_t step)
{
    struct sfc_ticket_step *s = &t->steps[step % (t->config.lead_steps + 1)];
    memset(s->micro_batches, 0, t->config.micro_batches * sizeof(*s->micro_batches));
    s->announced = 0;
    s->done = 0;
    s->step = step;
}

void sfc_tickets_reset(struct sfc_tickets *t, uint64_t open_step)
{
    for (uint32_t i = 0; i <= t->config.lead_steps; i++)
        clear_step(t, open_step + i);
    t->open_step = open_step;
    t->given = 0;
}

void sfc_tickets_advance(struct sfc_tickets *t)
{
    clear_step(t, t->open_step + t->config.lead_steps + 1);
    t->open_step++;
    t->given = 0;
    count_step(t);
}

uint32_t sfc_tickets_held(const struct sfc_tickets *t, uint64_t worker)
{
    const struct sfc_ticket_step *s = &t->steps[t->open_step % (t->config.lead_steps + 1)];
    uint32_t n = 0;
    for (uint32_t k = 0; k < t->config.micro_batches; k++)
        for (uint32_t g = 0; g < s->micro_batches[k].out_count; g++)
            n += s->micro_batches[k].out[g].worker == worker;
    return n;
}
