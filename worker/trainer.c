#include "worker/trainer.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/backoff.h"
#include "proto/base/log.h"
#include "proto/base/service.h"
#include "worker/client.h"
#include "worker/crew.h"
#include "worker/pages.h"
#include "worker/report_spans.h"

#define PROGRESS_MS      5000u
#define BACKOFF_FIRST_MS 100u
#define BACKOFF_LAST_MS  5000u
#define SWITCH_LAST_MS   500u /* between tries over several schedulers: one will lead soon */
#define UNFIT_PAUSE_MS   2000u
#define HISTORY_POINTS   512u
#define STUCK_MS         120000u /* of a lane with one micro-batch, without a watchdog's period */
#define MODEL_NUMERICS   1 /* raise it when the bits of a backbone or of the head exchange change */

struct sfc_trainer {
    struct sfc_trainer_options options;
    struct sfc_client *client;
    struct sfc_dataset *set; /* NULL: synthetic */
    FILE *trace;
    const struct sfc_lane_device *device;
    struct sfc_spans *spans;
    uint64_t recorded_run; /* that the spans are of */
    uint64_t left_ns;      /* when the last run was left; 0: none was */
    struct sfc_worker_totals totals;
    struct sfc_pages *pages; /* NULL: none */
    char name[128], numerics[160];

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    struct sfc_crew *crew; /* while a run is joined */

    atomic_bool answered;               /* the scheduler did, once */
    uint64_t history_run, history_step; /* what progress and trace have seen */
    struct sfc_history_point last;
    uint64_t progress_ms, progress_step;
    uint64_t finished_run;
    uint64_t begin_samples; /* what our set begins with, as it was asked; 0: it was not */
    char begin_digest[33];
    uint64_t unfit_run;               /* this worker can't compute it, 0 = none */
    struct sfc_error unfit;           /* why the last try did not fit, told once */
    struct sfc_history_point *points; /* [HISTORY_POINTS] */
};

/* ---- time and stopping */

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool stopping(struct sfc_trainer *t)
{
    pthread_mutex_lock(&t->lock);
    bool stop = t->stop;
    pthread_mutex_unlock(&t->lock);
    return stop;
}

static void pause_ms(struct sfc_trainer *t, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)ms * 1000000;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&t->lock);
    while (!t->stop && !pthread_cond_timedwait(&t->changed, &t->lock, &until)) {
        /* woken, not timed out */
    }
    pthread_mutex_unlock(&t->lock);
}

void sfc_trainer_stop(struct sfc_trainer *t)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    if (t->crew)
        sfc_crew_stop(t->crew, SFC_CREW_STOPPED, NULL);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

/* The crew that sfc_trainer_stop must reach. */
static void set_crew(struct sfc_trainer *t, struct sfc_crew *crew)
{
    pthread_mutex_lock(&t->lock);
    t->crew = crew;
    if (crew && t->stop)
        sfc_crew_stop(crew, SFC_CREW_STOPPED, NULL);
    pthread_mutex_unlock(&t->lock);
}

/* ---- the service manager */

/* Told by the loops that everything goes through. pulse NULL: no run is joined. */
static void tell(struct sfc_trainer *t, const struct sfc_run_info *run,
                 const struct sfc_pulse *pulse)
{
    struct sfc_service_state state = {.ready = t->answered, .working = true};
    if (pulse) {
        state.run = run->run_id;
        state.step = pulse->step;
        state.working = !sfc_crew_late(t->crew, sfc_service_patience());
        snprintf(state.text, sizeof state.text, "run %.60s, %s: step %llu of %llu, loss %.4f",
                 run->name, pulse->state, (unsigned long long)pulse->step,
                 (unsigned long long)run->steps, t->last.loss);
    } else {
        snprintf(state.text, sizeof state.text, "%s %.150s",
                 t->answered ? "waiting for a run of" : "waiting for the scheduler at",
                 t->options.scheduler);
    }
    sfc_service_tell(&state);
}

/* Asked by the thread of the pages. */
static void look(void *ctx, struct sfc_worker_health *out)
{
    struct sfc_trainer *t = ctx;
    uint64_t patience = sfc_service_patience();
    pthread_mutex_lock(&t->lock);
    out->joined = t->crew != NULL;
    out->working = !t->crew || !sfc_crew_late(t->crew, patience ? patience : STUCK_MS);
    pthread_mutex_unlock(&t->lock);
    out->ready = t->answered;
}

static int start_pages(struct sfc_trainer *t, struct sfc_error *err)
{
    const struct sfc_pages_options options = {.listen = t->options.http,
                                              .security = &t->options.security,
                                              .spans = t->spans,
                                              .totals = &t->totals,
                                              .rpc = sfc_rpc_runner_loop(t->client->runner),
                                              .threads = t->options.lanes,
                                              .look = look,
                                              .ctx = t};
    return options.listen ? sfc_pages_start(&options, &t->pages, err) : SFC_OK;
}

/* ---- progress */

static void write_trace(struct sfc_trainer *t, const struct sfc_history_point *p)
{
    if (t->trace)
        fprintf(t->trace, "%llu,%.9g,%.9g,%.6g\n", (unsigned long long)p->step, p->loss, p->lr,
                p->images_per_s);
}

static int read_history(struct sfc_trainer *t, uint64_t run_id, struct sfc_error *err)
{
    if (t->history_run != run_id) {
        t->history_run = run_id;
        t->history_step = 0;
        t->progress_step = 0;
    }
    size_t count;
    do {
        count = HISTORY_POINTS;
        int rc = sfc_client_history(t->client, run_id, t->history_step, t->points, &count, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < count; i++) {
            if (t->points[i].step <= t->history_step)
                return sfc_fail(err, SFC_ECORRUPT, "History: steps are not ascending");
            t->history_step = t->points[i].step;
            t->last = t->points[i];
            write_trace(t, &t->points[i]);
        }
    } while (count == HISTORY_POINTS);
    if (t->trace)
        fflush(t->trace);
    return SFC_OK;
}

static void report(struct sfc_trainer *t, const struct sfc_run_info *run, const char *state,
                   bool now)
{
    struct sfc_error err = {0};
    uint64_t ms = now_ms();
    if (!now && !t->trace && ms - t->progress_ms < PROGRESS_MS)
        return;
    if (read_history(t, run->run_id, &err)) {
        sfc_debug_log("%s", err.text);
        return;
    }
    if (!now && ms - t->progress_ms < PROGRESS_MS)
        return;
    t->progress_ms = ms;
    if (t->history_step == t->progress_step)
        return;
    t->progress_step = t->history_step;
    sfc_info_log("run %s, %s: step %llu of %llu, loss %.4f, lr %.4g, %.0f images/s", run->name,
                 state, (unsigned long long)t->last.step, (unsigned long long)run->steps,
                 t->last.loss, t->last.lr, t->last.images_per_s);
}

/* ---- one joined run */

static bool is_over(const char *state)
{
    return !strcmp(state, "finished") || !strcmp(state, "failed") || !strcmp(state, "idle") ||
           !strcmp(state, "stopped");
}

/* Connects to new shards before the first grant needs them. Whatever goes wrong shows there. */
static void follow_map(struct sfc_member *member, uint64_t version)
{
    struct sfc_error err = {0};
    if (sfc_member_follow_map(member, version, &err))
        sfc_debug_log("%s", err.text);
}

static void read_pulse(struct sfc_crew *crew, struct sfc_member *member,
                       const struct sfc_run_info *run, const struct sfc_pulse *pulse)
{
    bool goes_on = false;
    if (!pulse->known)
        sfc_crew_stop(crew, SFC_CREW_REJOIN, NULL);
    else if (pulse->run_id != run->run_id || is_over(pulse->state))
        sfc_crew_stop(crew, SFC_CREW_RUN_OVER, NULL);
    else
        goes_on = true;
    if (!goes_on)
        return;
    follow_map(member, pulse->map_version);
    sfc_crew_committed(crew, pulse->step);
}

/* Whoever waits for it hears from the scheduler that it did not come. */
static void report_spans(struct sfc_trainer *t, struct sfc_member *member)
{
    struct sfc_error err = {0};
    if (sfc_member_report_spans(member, t->spans, &err))
        sfc_warning_log("a trace lacks this worker: %s", err.text);
}

static void watch(struct sfc_trainer *t, struct sfc_member *member, const struct sfc_run_info *run,
                  struct sfc_crew *crew)
{
    while (sfc_crew_state(crew, NULL) == SFC_CREW_WORKING) {
        struct sfc_pulse pulse;
        struct sfc_error err = {0};
        uint64_t before = now_ms();
        int rc = sfc_member_heartbeat(member, &pulse, &err);
        if (rc) {
            if (rc != SFC_ECANCELED)
                sfc_info_log("%s: joining again", err.text);
            sfc_crew_stop(crew, SFC_CREW_REJOIN, &err);
            break;
        }
        read_pulse(crew, member, run, &pulse);
        report_spans(t, member);
        tell(t, run, &pulse);
        if (pulse.run_id == run->run_id && pulse.step < t->history_step)
            t->history_step = pulse.step; /* rewound: what comes again is written again */
        report(t, run, pulse.state, false);
        if (now_ms() - before < 200)
            pause_ms(t, 200); /* the scheduler does not hold heartbeats now */
    }
}

/* The same run again, after what ended the membership before. */
static void record_join(struct sfc_trainer *t, uint64_t run_id)
{
    uint64_t step = atomic_load_explicit(&t->totals.step, memory_order_relaxed);
    struct sfc_span span = {.phase = SFC_SPAN_JOIN,
                            .thread = SFC_THREAD_LOOP,
                            .step = step + 1,
                            .micro_batch = UINT32_MAX,
                            .begin_ns = t->left_ns,
                            .end_ns = sfc_spans_now()};
    if (t->recorded_run == run_id && t->left_ns)
        sfc_spans_add(t->spans, &span);
    t->recorded_run = run_id;
}

/* Works on a run until something ends it. */
static enum sfc_crew_end work(struct sfc_trainer *t, struct sfc_member *member,
                              struct sfc_error *err)
{
    struct sfc_run_info run;
    struct sfc_crew *crew;
    struct sfc_crew_options options = {
        t->options.lanes, t->options.cache_bytes, t->set, t->device, t->spans, &t->totals};
    sfc_member_info(member, &run);
    sfc_info_log(
        "joined run %s (%llu): %llu classes, dim %u, backbone %s, %u shards, batch %u of %u",
        run.name, (unsigned long long)run.run_id, (unsigned long long)run.classes, run.dim,
        run.backbone, run.shards, run.global_batch, run.micro_batch);
    if (t->recorded_run != run.run_id)
        sfc_spans_forget(t->spans);
    if (sfc_crew_new(member, &options, &crew, err))
        return SFC_CREW_FATAL;
    record_join(t, run.run_id);
    set_crew(t, crew);
    watch(t, member, &run, crew);
    t->left_ns = sfc_spans_now();
    set_crew(t, NULL);
    enum sfc_crew_end end = sfc_crew_state(crew, err);
    struct sfc_crew_counters counters;
    sfc_crew_counters(crew, &counters);
    sfc_crew_free(crew);
    /* Grants go on at once, and nobody counts this member beside its next self. If it fails the
     * scheduler notices. */
    sfc_member_leave(member, NULL);
    if (end == SFC_CREW_RUN_OVER)
        t->finished_run = run.run_id;
    report(t, &run, end == SFC_CREW_RUN_OVER ? "over" : "left", true);
    sfc_info_log("left run %s: %llu micro-batches done, %llu given up, %llu read", run.name,
                 (unsigned long long)counters.micro_batches, (unsigned long long)counters.given_up,
                 (unsigned long long)counters.batches_read);
    return end;
}

/* ---- joining */

static struct sfc_join join_request(const struct sfc_trainer *t)
{
    struct sfc_join join = {.name = t->name,
                            .numerics = t->numerics,
                            .lanes = t->options.lanes,
                            .data = SFC_CLIENT_DATA_SYNTHETIC};
    if (t->set) {
        const struct sfc_dataset_info *info = sfc_dataset_info(t->set);
        join.data = SFC_CLIENT_DATA_RECORDS;
        join.data_digest = info->digest;
        join.samples = info->samples;
        join.width = info->width;
        join.height = info->height;
        join.channels = info->channels;
        join.flip = info->flip;
        join.begin_samples = t->begin_samples;
        join.begin_digest = t->begin_digest;
    }
    return join;
}

/* Is there nothing left to wait for? *over: exit_when_done is fulfilled; failure: SFC_ESTATE. */
static int look_for_end(struct sfc_trainer *t, bool *over, struct sfc_error *err)
{
    struct sfc_client_state state;
    struct sfc_error unseen = {0};
    *over = false;
    if (!t->options.exit_when_done)
        return SFC_OK;
    if (sfc_client_status(t->client, &state, &unseen)) {
        sfc_debug_log("%s", unseen.text);
        return SFC_OK; /* asked again after the next try to join */
    }
    sfc_debug_log("the scheduler's run is %s", state.state);
    if (!strcmp(state.state, "failed"))
        return sfc_fail(err, SFC_ESTATE, "the run failed: %s", state.reason);
    *over = !strcmp(state.state, "finished") || (t->finished_run && is_over(state.state));
    return SFC_OK;
}

static bool waiting_helps(int rc)
{
    return rc == SFC_EUNAVAILABLE || rc == SFC_ETIMEOUT || rc == SFC_ECANCELED ||
           rc == SFC_ELIMIT || rc == SFC_ESTALE || rc == SFC_ESTATE;
}

/* The run is not for this worker (other data, backbone, arithmetic): another one may be. */
static bool does_not_fit(const struct sfc_trainer *t, int rc)
{
    return !t->options.exit_when_done &&
           (rc == SFC_EINVAL || rc == SFC_ENOTFOUND || rc == SFC_EUNSUPPORTED);
}

static void wait_for_another(struct sfc_trainer *t, const struct sfc_error *err)
{
    if (strcmp(err->text, t->unfit.text) != 0)
        sfc_error_log("%s; waiting for a run that fits", err->text);
    t->unfit = *err;
    pause_ms(t, UNFIT_PAUSE_MS);
}

/* The run's set is smaller: what do the first samples of ours make? */
static int look_at_begin(struct sfc_trainer *t, uint64_t samples, struct sfc_error *err)
{
    if (!t->set || samples > sfc_dataset_info(t->set)->samples)
        return sfc_fail(err, SFC_ECORRUPT, "asked what %llu samples begin with",
                        (unsigned long long)samples);
    sfc_info_log("the run's data set has %llu samples: looking whether ours begins with them",
                 (unsigned long long)samples);
    int rc = sfc_dataset_begin(t->set, samples, t->begin_digest, err);
    t->begin_samples = rc ? 0 : samples;
    return rc;
}

/* One try. *member NULL: none this time. */
static int try_join(struct sfc_trainer *t, struct sfc_backoff *backoff, struct sfc_member **member,
                    struct sfc_error *err)
{
    struct sfc_join join = join_request(t);
    uint64_t before = now_ms(), wanted = 0;
    *member = NULL;
    join.wanted = &wanted;
    int rc = sfc_client_join(t->client, &join, member, err);
    t->answered = t->answered || !rc || does_not_fit(t, rc);
    if (!rc && wanted)
        rc = look_at_begin(t, wanted, err);
    if (rc && does_not_fit(t, rc)) {
        wait_for_another(t, err);
        return SFC_OK;
    }
    if (rc && !waiting_helps(rc))
        return rc;
    if (rc) {
        if (!backoff->ms)
            sfc_warning_log("%s; trying again", err->text);
        pause_ms(t, sfc_backoff_next(backoff));
        return SFC_OK;
    }
    sfc_backoff_reset(backoff);
    if (!*member && now_ms() - before < 200)
        pause_ms(t, 200);
    return SFC_OK;
}

/* Is the run that this worker can't compute still the present one? Asked without joining it. */
static bool still_unfit(struct sfc_trainer *t)
{
    struct sfc_client_state state;
    struct sfc_error unseen = {0};
    return t->unfit_run && (sfc_client_status(t->client, &state, &unseen) != SFC_OK ||
                            state.run_id == t->unfit_run);
}

/* The next run to work on; *out NULL: told to stop, or done. */
static int next_run(struct sfc_trainer *t, struct sfc_member **out, struct sfc_error *err)
{
    struct sfc_backoff backoff = sfc_backoff(
        BACKOFF_FIRST_MS, sfc_client_addresses(t->client) > 1 ? SWITCH_LAST_MS : BACKOFF_LAST_MS,
        now_ms() ^ (uint64_t)getpid() << 32);
    while (!stopping(t)) {
        struct sfc_member *member;
        struct sfc_run_info run;
        bool over;
        tell(t, NULL, NULL);
        int rc = look_for_end(t, &over, err);
        if (rc)
            return rc;
        if (over)
            break;
        if (still_unfit(t)) {
            pause_ms(t, UNFIT_PAUSE_MS);
            continue;
        }
        rc = try_join(t, &backoff, &member, err);
        if (rc)
            return rc;
        if (!member)
            continue;
        sfc_member_info(member, &run);
        if (run.run_id != t->finished_run) {
            t->unfit.text[0] = '\0';
            *out = member;
            return SFC_OK;
        }
        sfc_member_leave(member, NULL); /* it is over and not yet replaced */
        sfc_member_free(member);
        pause_ms(t, 500);
    }
    *out = NULL;
    return SFC_OK;
}

int sfc_trainer_run(struct sfc_trainer *t, struct sfc_error *err)
{
    for (;;) {
        struct sfc_member *member;
        struct sfc_error cause = {0};
        int rc = next_run(t, &member, err);
        if (rc || !member)
            return rc;
        struct sfc_run_info run;
        sfc_member_info(member, &run);
        uint64_t run_id = run.run_id;
        enum sfc_crew_end end = work(t, member, &cause);
        sfc_member_free(member);
        if (end == SFC_CREW_FATAL && does_not_fit(t, cause.code)) {
            t->unfit_run = run_id;
            wait_for_another(t, &cause);
        } else if (end == SFC_CREW_FATAL) {
            if (err)
                *err = cause;
            return cause.code ? cause.code : SFC_EINTERNAL;
        }
    }
}

/* ---- set-up */

static void name_self(struct sfc_trainer *t)
{
    char host[80] = "", device[120];
    if (gethostname(host, sizeof host - 1))
        strcpy(host, "localhost");
    snprintf(t->name, sizeof t->name, "%s:%ld", host, (long)getpid());
    sfc_lane_device_numerics(t->device, device, sizeof device);
    snprintf(t->numerics, sizeof t->numerics, "%s m%d", device, MODEL_NUMERICS);
}

static int open_trace(struct sfc_trainer *t, struct sfc_error *err)
{
    if (!t->options.trace)
        return SFC_OK;
    t->trace = fopen(t->options.trace, "w");
    if (!t->trace)
        return sfc_fail_errno(err, "trace file %s", t->options.trace);
    fputs("step,loss,lr,images_per_s\n", t->trace);
    return SFC_OK;
}

void sfc_trainer_free(struct sfc_trainer *t)
{
    if (!t)
        return;
    sfc_pages_stop(t->pages);
    sfc_client_free(t->client);
    sfc_dataset_close(t->set);
    if (t->trace && fclose(t->trace))
        sfc_error_log("trace file %s: %s", t->options.trace, strerror(errno));
    sfc_lane_device_close(t->device);
    sfc_spans_free(t->spans);
    free(t->points);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int sfc_trainer_new(const struct sfc_trainer_options *options, struct sfc_trainer **out,
                    struct sfc_error *err)
{
    struct sfc_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the trainer");
    t->options = *options;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&t->lock, NULL);
    t->points = calloc(HISTORY_POINTS, sizeof *t->points);
    int rc = t->points ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "out of memory for the trainer");
    if (!rc)
        rc = sfc_spans_new(&t->spans, err);
    if (!rc)
        rc = sfc_lane_device_open(options->device, options->precision, &t->device, err);
    if (!rc)
        name_self(t);
    if (!rc && strcmp(options->data, "synthetic"))
        rc = sfc_dataset_open(options->data, &t->set, err);
    if (!rc)
        rc = open_trace(t, err);
    if (!rc)
        rc = sfc_client_new(options->scheduler, &options->security, &t->client, err);
    if (!rc)
        rc = start_pages(t, err);
    if (rc) {
        sfc_trainer_free(t);
        return rc;
    }
    *out = t;
    return SFC_OK;
}
