#include "worker/crew.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/backoff.h"
#include "proto/base/log.h"
#include "proto/base/process.h"

#define BACKOFF_FIRST_MS 50u
#define BACKOFF_LAST_MS  2000u
#define GROWTH_BYTES     (1u << 20)  /* of the program beside its buffers, for the memory plan */
#define LANE_BYTES       (96u << 10) /* of a lane and its reader: stacks, calls, what malloc keeps */
#define STEPS_AHEAD      4u /* micro-batches of so many steps are worth a place in the cache */

struct sfc_crew {
    struct sfc_source source;
    struct sfc_model *model;
    uint32_t lanes, readers;
    size_t batch_slots;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum sfc_crew_end end;
    struct sfc_error cause;
    struct sfc_crew_counters counters;
    struct sfc_worker_totals *totals;
    uint64_t program_bytes; /* of this process before the crew */
    uint64_t lane_bytes;
    uint32_t lanes_ready;
    const struct sfc_step_client **clients; /* [lanes] of lanes that are there */
    uint32_t next_lane, next_reader;        /* their numbers */
    uint64_t last_step;                     /* of the last grant */

    pthread_t *threads;
    size_t started;
};

/* ---- the end */

void sfc_crew_stop(struct sfc_crew *crew, enum sfc_crew_end end, const struct sfc_error *err)
{
    pthread_mutex_lock(&crew->lock);
    if (crew->end == SFC_CREW_WORKING) {
        crew->end = end;
        if (err)
            crew->cause = *err;
        pthread_cond_broadcast(&crew->changed);
    }
    pthread_mutex_unlock(&crew->lock);
    sfc_member_cancel(crew->source.member);
}

enum sfc_crew_end sfc_crew_state(struct sfc_crew *crew, struct sfc_error *err)
{
    pthread_mutex_lock(&crew->lock);
    enum sfc_crew_end end = crew->end;
    if (err)
        *err = crew->cause;
    pthread_mutex_unlock(&crew->lock);
    return end;
}

static bool working(struct sfc_crew *crew)
{
    return sfc_crew_state(crew, NULL) == SFC_CREW_WORKING;
}

/* Waits up to ms, or until the end. */
static void pause_ms(struct sfc_crew *crew, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&crew->lock);
    while (crew->end == SFC_CREW_WORKING &&
           !pthread_cond_timedwait(&crew->changed, &crew->lock, &until)) {
        /* woken, not timed out */
    }
    pthread_mutex_unlock(&crew->lock);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Lanes and readers of all workers come back at different moments. */
static struct sfc_backoff new_backoff(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t seed = (uint64_t)getpid() << 32 ^ (uint64_t)t.tv_nsec ^ (uint64_t)(uintptr_t)&t;
    return sfc_backoff(BACKOFF_FIRST_MS, BACKOFF_LAST_MS, seed);
}

static void back_off(struct sfc_crew *crew, struct sfc_backoff *b)
{
    pause_ms(crew, sfc_backoff_next(b));
}

/* ---- tickets */

/* A call to the scheduler failed: is it worth going on with this membership? */
static void scheduler_failed(struct sfc_crew *crew, int rc, const struct sfc_error *err,
                             struct sfc_backoff *b)
{
    switch (rc) {
    case SFC_ECANCELED:
    case SFC_EUNAVAILABLE:
    case SFC_ETIMEOUT:
    case SFC_ESTALE:
        /* A reply that was lost may have been a grant: only a new membership gives it back. */
        if (working(crew))
            sfc_info_log("%s: joining again", err->text);
        sfc_crew_stop(crew, SFC_CREW_REJOIN, err);
        break;
    default:
        sfc_warning_log("%s", err->text);
        back_off(crew, b);
    }
}

/* What the scheduler gave us to do is neither done nor given up, for it had no room to hear of that
 * (the limit of one peer): it would count on us for ever, and only a new membership gives it back.
 */
static void work_kept(struct sfc_crew *crew, int rc, const struct sfc_error *err,
                      struct sfc_backoff *b)
{
    if ((rc == SFC_ELIMIT || rc == SFC_ENOMEM) && working(crew)) {
        sfc_info_log("%s: joining again", err->text);
        sfc_crew_stop(crew, SFC_CREW_REJOIN, err);
        return;
    }
    scheduler_failed(crew, rc, err, b);
}

/* Asks until there is a ticket or the end (false). What it took is recorded. */
static bool next_ticket(struct sfc_crew *crew, enum sfc_ticket_kind kind, struct sfc_ticket *ticket,
                        struct sfc_backoff *b, struct sfc_lap *lap)
{
    enum sfc_phase phase = kind == SFC_TICKET_COMPUTE ? SFC_SPAN_TICKET : SFC_SPAN_DATA_TICKET;
    while (working(crew)) {
        struct sfc_error err = {0};
        uint64_t before = now_ms(), granted_ns;
        int rc = sfc_member_ticket_timed(crew->source.member, kind, ticket, &granted_ns, &err);
        if (rc) {
            scheduler_failed(crew, rc, &err, b);
            continue;
        }
        if (ticket->state == SFC_TICKET_GRANTED) {
            sfc_source_got_ticket(&crew->source, ticket, phase, granted_ns, lap);
            return true;
        }
        if (ticket->state == SFC_TICKET_REJOIN)
            sfc_crew_stop(crew, SFC_CREW_REJOIN, NULL);
        else if (now_ms() - before < 20)
            pause_ms(crew, 20); /* the scheduler did not make us wait, so we do */
    }
    return false;
}

/* ---- lanes */

static void lane_failed(struct sfc_crew *crew, const struct sfc_ticket *ticket, int rc,
                        const struct sfc_error *cause, struct sfc_backoff *b, struct sfc_lap *lap)
{
    if (!working(crew))
        return;
    if (rc == SFC_ESTALE)
        sfc_debug_log("attempt is void: %s", cause->text);
    else
        sfc_warning_log("giving up step %llu, micro-batch %u: %s", (unsigned long long)ticket->step,
                        ticket->micro_batch, cause->text);
    struct sfc_work work = {ticket->step, ticket->micro_batch, ticket->attempt};
    struct sfc_error err = {0};
    int gave = sfc_member_give_up(crew->source.member, &work, rc, cause->text, &err);
    sfc_lap_end(lap, SFC_SPAN_GIVE_UP, 0);
    pthread_mutex_lock(&crew->lock);
    crew->counters.given_up++;
    pthread_mutex_unlock(&crew->lock);
    sfc_total_add(&crew->totals->given_up, 1);
    if (rc > SFC_OK && rc <= SFC_EINTERNAL)
        sfc_total_add(&crew->totals->errors[rc], 1);
    if (gave)
        work_kept(crew, gave, &err, b);
    else if (rc != SFC_ESTALE)
        back_off(crew, b);
    if (gave || rc != SFC_ESTALE)
        sfc_lap_end(lap, SFC_SPAN_BACK_OFF, 0);
}

/* The run may go back to an earlier step: parameters of later ones are of steps that never
 * happened.
 */
static void note_step(struct sfc_crew *crew, uint64_t step)
{
    pthread_mutex_lock(&crew->lock);
    bool back = step < crew->last_step;
    crew->last_step = step;
    pthread_mutex_unlock(&crew->lock);
    if (back && crew->source.spans)
        sfc_spans_forget(crew->source.spans);
    if (back && crew->source.params)
        sfc_slot_cache_rewind(crew->source.params, step - 1);
}

static void lane_loop(struct sfc_crew *crew, struct sfc_step_client *client,
                      struct sfc_ticket *ticket)
{
    struct sfc_backoff b = new_backoff();
    struct sfc_lap *lap = sfc_step_client_lap(client);
    sfc_lap_begin(lap);
    while (next_ticket(crew, SFC_TICKET_COMPUTE, ticket, &b, lap)) {
        struct sfc_error err = {0};
        bool accepted = false;
        note_step(crew, ticket->step);
        sfc_crew_committed(crew, ticket->step - 1);
        int rc = sfc_step_client_run(client, ticket, &accepted, &err);
        if (rc) {
            lane_failed(crew, ticket, rc, &err, &b, lap);
            if (sfc_step_client_broken(client)) /* trying again on this device helps nobody */
                sfc_crew_stop(crew, SFC_CREW_FATAL, &err);
            continue;
        }
        sfc_backoff_reset(&b);
        pthread_mutex_lock(&crew->lock);
        crew->counters.micro_batches += accepted;
        pthread_mutex_unlock(&crew->lock);
        sfc_total_add(&crew->totals->micro_batches, accepted);
        sfc_total_add(&crew->totals->images, accepted ? lap->span.rows : 0);
    }
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static int new_ticket(const struct sfc_crew *crew, struct sfc_ticket *ticket, struct sfc_error *err)
{
    uint32_t rows = sfc_member_config(crew->source.member)->micro_batch;
    ticket->samples = calloc(rows, sizeof *ticket->samples);
    ticket->epochs = calloc(rows, sizeof *ticket->epochs);
    return ticket->samples && ticket->epochs
               ? SFC_OK
               : sfc_fail(err, SFC_ENOMEM, "out of memory for a ticket");
}

/* The last lane tells what all of them use, before any of them computes a step to its end. */
static void lane_ready(struct sfc_crew *crew, const struct sfc_step_client *client)
{
    pthread_mutex_lock(&crew->lock);
    crew->lane_bytes += sfc_step_client_memory(client);
    crew->clients[crew->lanes_ready] = client;
    bool last = ++crew->lanes_ready == crew->lanes;
    pthread_mutex_unlock(&crew->lock);
    uint64_t own = last ? sfc_crew_memory(crew) : 0;
    if (last)
        sfc_info_log("memory plan: %.1f MiB: the program %.1f, lanes and caches %.1f",
                     mib(crew->program_bytes + own), mib(crew->program_bytes), mib(own));
    if (last && sfc_step_client_lane(client)) {
        char lane[1024];
        sfc_lane_describe(sfc_step_client_lane(client), lane, sizeof lane);
        sfc_info_log("each of %u lanes: %s", crew->lanes, lane);
    }
}

static void lane_gone(struct sfc_crew *crew, const struct sfc_step_client *client)
{
    pthread_mutex_lock(&crew->lock);
    for (uint32_t i = 0; i < crew->lanes; i++)
        if (crew->clients[i] == client)
            crew->clients[i] = NULL;
    pthread_mutex_unlock(&crew->lock);
}

bool sfc_crew_late(struct sfc_crew *crew, uint64_t ms)
{
    uint64_t now = now_ms();
    bool late = false;
    pthread_mutex_lock(&crew->lock);
    for (uint32_t i = 0; ms && i < crew->lanes; i++) {
        uint64_t since = crew->clients[i] ? sfc_step_client_computes_since(crew->clients[i]) : 0;
        late = late || (since && now > since + ms);
    }
    pthread_mutex_unlock(&crew->lock);
    return late;
}

static uint32_t take_number(struct sfc_crew *crew, uint32_t *next)
{
    pthread_mutex_lock(&crew->lock);
    uint32_t number = (*next)++;
    pthread_mutex_unlock(&crew->lock);
    return number;
}

static void *lane_main(void *arg)
{
    struct sfc_crew *crew = arg;
    struct sfc_step_client *client = NULL;
    struct sfc_ticket ticket = {0};
    struct sfc_error err = {0};
    int rc = new_ticket(crew, &ticket, &err);
    if (!rc)
        rc = sfc_step_client_new(&crew->source, take_number(crew, &crew->next_lane), &client, &err);
    if (!rc) {
        lane_ready(crew, client);
        lane_loop(crew, client, &ticket);
    } else {
        sfc_crew_stop(crew, SFC_CREW_FATAL, &err);
    }
    lane_gone(crew, client);
    sfc_step_client_free(client);
    free(ticket.samples);
    free(ticket.epochs);
    return NULL;
}

/* ---- readers */

static void reader_failed(struct sfc_crew *crew, const struct sfc_ticket *ticket, int rc,
                          const struct sfc_error *cause, struct sfc_backoff *b, struct sfc_lap *lap)
{
    if (rc != SFC_EINVAL && rc != SFC_ECONFLICT && rc != SFC_ECORRUPT) {
        work_kept(crew, rc, cause, b);
        sfc_lap_end(lap, SFC_SPAN_BACK_OFF, 0);
        return;
    }
    struct sfc_work work = {.step = ticket->step, .micro_batch = ticket->micro_batch};
    struct sfc_error err = {0};
    sfc_error_log("labels of step %llu, micro-batch %u are refused: %s",
                  (unsigned long long)ticket->step, ticket->micro_batch, cause->text);
    int gave = sfc_member_give_up_data(crew->source.member, &work, rc, cause->text, &err);
    sfc_lap_end(lap, SFC_SPAN_GIVE_UP, 0);
    if (gave)
        work_kept(crew, gave, &err, b);
    else
        back_off(crew, b);
    sfc_lap_end(lap, SFC_SPAN_BACK_OFF, 0);
}

static void reader_loop(struct sfc_crew *crew, struct sfc_decoder *decoder,
                        struct sfc_ticket *ticket)
{
    struct sfc_backoff b = new_backoff();
    struct sfc_lap lap = {
        crew->source.spans,
        {.thread = SFC_THREAD_READER, .index = take_number(crew, &crew->next_reader)}};
    sfc_lap_begin(&lap);
    while (next_ticket(crew, SFC_TICKET_DATA, ticket, &b, &lap)) {
        struct sfc_error err = {0};
        int rc = sfc_source_announce(&crew->source, decoder, ticket, &lap, &err);
        if (rc) {
            reader_failed(crew, ticket, rc, &err, &b, &lap);
            continue;
        }
        sfc_backoff_reset(&b);
        pthread_mutex_lock(&crew->lock);
        crew->counters.batches_read++;
        pthread_mutex_unlock(&crew->lock);
        sfc_total_add(&crew->totals->batches_read, 1);
    }
}

static void *reader_main(void *arg)
{
    struct sfc_crew *crew = arg;
    struct sfc_decoder *decoder = NULL;
    struct sfc_ticket ticket = {0};
    struct sfc_error err = {0};
    int rc = new_ticket(crew, &ticket, &err);
    if (!rc && crew->source.set)
        rc = sfc_decoder_new(crew->source.set, &decoder, &err);
    if (!rc)
        reader_loop(crew, decoder, &ticket);
    else
        sfc_crew_stop(crew, SFC_CREW_FATAL, &err);
    sfc_decoder_free(decoder);
    free(ticket.samples);
    free(ticket.epochs);
    return NULL;
}

/* ---- the crew */

static size_t batch_slots(const struct sfc_member *member, uint32_t threads, uint64_t cache_bytes)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(member);
    size_t least = threads + 1;
    size_t most = least + (size_t)(c->global_batch / c->micro_batch) * STEPS_AHEAD;
    uint64_t fit = cache_bytes /
                   sfc_slot_bytes(c->micro_batch, c->micro_batch * sfc_source_row_values(member));
    return fit < least ? least : fit > most ? most : (size_t)fit;
}

static int make_caches(struct sfc_crew *crew, uint64_t cache_bytes, struct sfc_error *err)
{
    const struct sfc_member *member = crew->source.member;
    uint32_t rows = sfc_member_config(member)->micro_batch;
    crew->batch_slots = batch_slots(member, crew->lanes + crew->readers, cache_bytes);
    int rc = sfc_slot_cache_new(crew->batch_slots, rows, rows * sfc_source_row_values(member),
                                &crew->source.batches, err);
    if (!rc && crew->source.model)
        rc = sfc_slot_cache_new(crew->lanes + 1, 0, (size_t)member->dense_size,
                                &crew->source.params, err);
    return rc;
}

static int start_threads(struct sfc_crew *crew, struct sfc_error *err)
{
    size_t count = crew->lanes + crew->readers;
    crew->threads = calloc(count, sizeof *crew->threads);
    crew->clients = calloc(crew->lanes, sizeof *crew->clients);
    if (!crew->threads || !crew->clients)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for threads");
    for (; crew->started < count; crew->started++) {
        void *(*body)(void *) = crew->started < crew->lanes ? lane_main : reader_main;
        if (pthread_create(&crew->threads[crew->started], NULL, body, crew))
            return sfc_fail(err, SFC_ENOMEM, "thread %zu of %zu could not be started",
                            crew->started + 1, count);
    }
    return SFC_OK;
}

void sfc_crew_free(struct sfc_crew *crew)
{
    if (!crew)
        return;
    sfc_crew_stop(crew, SFC_CREW_STOPPED, NULL);
    for (size_t i = 0; i < crew->started; i++)
        pthread_join(crew->threads[i], NULL);
    free(crew->threads);
    free(crew->clients);
    sfc_slot_cache_free(crew->source.batches);
    sfc_slot_cache_free(crew->source.params);
    sfc_model_free(crew->model);
    pthread_cond_destroy(&crew->changed);
    pthread_mutex_destroy(&crew->lock);
    free(crew);
}

int sfc_crew_new(struct sfc_member *member, const struct sfc_crew_options *options,
                 struct sfc_crew **out, struct sfc_error *err)
{
    struct sfc_crew *crew = calloc(1, sizeof *crew);
    if (!crew)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the run");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&crew->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&crew->lock, NULL);
    crew->program_bytes = sfc_process_memory() + GROWTH_BYTES;
    crew->source.member = member;
    crew->source.set = options->set;
    crew->source.device = options->device;
    crew->source.spans = options->spans;
    crew->totals = options->totals;
    crew->lanes = crew->readers = options->lanes;
    int rc = sfc_source_check(member, !options->set, &crew->model, err);
    crew->source.model = crew->model;
    if (!rc)
        rc = make_caches(crew, options->cache_bytes, err);
    if (!rc)
        rc = start_threads(crew, err);
    if (rc) {
        sfc_crew_free(crew);
        return rc;
    }
    *out = crew;
    return SFC_OK;
}

void sfc_crew_committed(struct sfc_crew *crew, uint64_t step)
{
    atomic_store_explicit(&crew->totals->step, step, memory_order_relaxed);
    sfc_slot_cache_committed(crew->source.batches, step);
    if (crew->source.params && step)
        sfc_slot_cache_committed(crew->source.params, step - 1);
}

/* Answers of shards on their way to a lane: as gRPC has them and, rounded up, as the lane reads
 * them. What the quick shards answered waits for the slowest; an only shard answers one lane after
 * another. */
static uint64_t lane_messages(struct sfc_member *m)
{
    struct sfc_route *route = sfc_route_take(m);
    uint64_t shards = sfc_route_shards(route);
    sfc_route_release(m, route);
    uint64_t dx = (uint64_t)m->config->micro_batch * m->config->dim * sizeof(int64_t);
    return shards * dx * 2 / (shards == 1 ? 2 : 1);
}

uint64_t sfc_crew_memory(struct sfc_crew *crew)
{
    struct sfc_member *m = crew->source.member;
    uint32_t rows = sfc_member_config(m)->micro_batch;
    pthread_mutex_lock(&crew->lock);
    uint64_t bytes = crew->lane_bytes;
    pthread_mutex_unlock(&crew->lock);
    bytes += crew->lanes * (LANE_BYTES + lane_messages(m));
    bytes += crew->batch_slots * sfc_slot_bytes(rows, rows * sfc_source_row_values(m));
    if (crew->source.params)
        bytes += (crew->lanes + 1) * sfc_slot_bytes(0, (size_t)m->dense_size);
    return bytes;
}

void sfc_crew_counters(struct sfc_crew *crew, struct sfc_crew_counters *out)
{
    pthread_mutex_lock(&crew->lock);
    *out = crew->counters;
    pthread_mutex_unlock(&crew->lock);
}
