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
    bool ok = n.steps != NULL;
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
            *step = s->step;
            *j = k;
            return true;
        }
    }
    return false;
}

/* 3: announced by this worker; 2: by nobody who is alive; 1: by another; 0: not free. */
static int preference(const struct sfc_micro_batch *m, uint64_t worker)
{
    if (m->grant != SFC_TICKET_FREE)
        return 0;
    if (m->data_worker == worker)
        return 3;
    return m->data_worker == 0 ? 2 : 1;
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
    struct sfc_micro_batch *m = &s->micro_batches[chosen];
    t->last.counter++;
    m->grant = SFC_TICKET_OUT;
    m->grant_worker = worker;
    m->grant_since_ms = now_ms;
    m->attempt = t->last;
    *granted_step = step;
    *j = chosen;
    *attempt = t->last;
    return true;
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

int sfc_tickets_announce(struct sfc_tickets *t, uint64_t worker, uint64_t step, uint32_t j,
                         const uint64_t *labels, uint32_t count, bool *complete,
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
    m->data = SFC_TICKET_DONE;
    m->data_worker = worker;
    s->announced++;
    *complete = s->announced == t->config.micro_batches;
    return SFC_OK;
}

static struct sfc_micro_batch *granted(struct sfc_tickets *t, uint64_t step, uint32_t j,
                                       struct sfc_attempt attempt)
{
    struct sfc_ticket_step *s = sfc_tickets_step(t, step);
    if (!s || j >= t->config.micro_batches)
        return NULL;
    struct sfc_micro_batch *m = &s->micro_batches[j];
    if (m->grant != SFC_TICKET_OUT || sfc_attempt_compare(m->attempt, attempt) != 0)
        return NULL;
    return m;
}

bool sfc_tickets_done(struct sfc_tickets *t, uint32_t j, struct sfc_attempt attempt)
{
    struct sfc_micro_batch *m = granted(t, t->open_step, j, attempt);
    if (!m)
        return false;
    m->grant = SFC_TICKET_DONE;
    sfc_tickets_step(t, t->open_step)->done++;
    return true;
}

bool sfc_tickets_return_grant(struct sfc_tickets *t, uint64_t step, uint32_t j,
                              struct sfc_attempt attempt, bool counts)
{
    struct sfc_micro_batch *m = granted(t, step, j, attempt);
    if (!m)
        return false;
    m->grant = SFC_TICKET_FREE;
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
            if (m->grant == SFC_TICKET_OUT && m->grant_worker == worker)
                m->grant = SFC_TICKET_FREE;
        }
    }
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
            if (m->grant == SFC_TICKET_OUT &&
                late(now_ms, m->grant_since_ms, t->config.grant_timeout_ms))
                m->grant = SFC_TICKET_FREE;
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
    for (uint32_t k = 0; s && k < t->config.micro_batches; k++)
        s->micro_batches[k].grant = SFC_TICKET_FREE;
    if (s)
        s->done = 0;
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
}

void sfc_tickets_advance(struct sfc_tickets *t)
{
    clear_step(t, t->open_step + t->config.lead_steps + 1);
    t->open_step++;
}

uint32_t sfc_tickets_held(const struct sfc_tickets *t, uint64_t worker)
{
    const struct sfc_ticket_step *s = &t->steps[t->open_step % (t->config.lead_steps + 1)];
    uint32_t n = 0;
    for (uint32_t k = 0; k < t->config.micro_batches; k++)
        n += s->micro_batches[k].grant == SFC_TICKET_OUT &&
             s->micro_batches[k].grant_worker == worker;
    return n;
}
