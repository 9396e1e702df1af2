/* shardfc watch: a view that is drawn anew on a terminal, one line at a time elsewhere. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "server/ctl/command.h"
#include "server/ctl/show.h"

#define STATUS_DEADLINE_MS 10000
#define HISTORY_CHUNK      1000
#define POLL_MS            500 /* notices the first commit and the end between two lines */
#define OTHER_LINES        18  /* of the view, besides shards and workers */

struct watch_options {
    const char *scheduler, *trace;
    struct sfc_security security;
    bool until_done;
    uint64_t interval_ms;
};

#define AT(field) offsetof(struct watch_options, field)
static const struct sfc_option watch_table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "interval",
     .type = SFC_OPTION_DURATION,
     .offset = AT(interval_ms),
     .min = 100,
     .fallback = "2s",
     .help = "time between two views, or lines"},
    {.name = "until-done",
     .type = SFC_OPTION_BOOL,
     .offset = AT(until_done),
     .help = "end when the run ends, or is stopped; exit status 1 unless it finished. Without a "
             "run: wait for one"},
    {.name = "trace",
     .type = SFC_OPTION_STRING,
     .offset = AT(trace),
     .metavar = "FILE",
     .help = "write step,loss,lr,images_per_s of every step as CSV"},
};
static const struct sfc_program watch_program = {
    .name = "shardfc watch",
    .summary = "Follows a run: on a terminal a view of it, of the blocks that move, of shards and "
               "workers; "
               "elsewhere one line with step, loss, rate and time left at each interval.",
    .options = watch_table,
    .count = sizeof watch_table / sizeof *watch_table,
};

static int get_status(struct sfc_cluster *cluster, struct sfc_answer *out, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    return sfc_cluster_scheduler(cluster, "Status", &request.base,
                                 &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, out,
                                 err);
}

/* Appends the steps after *last to the CSV file. */
static int trace_more(struct sfc_cluster *cluster, FILE *file, uint64_t run_id, uint64_t *last,
                      struct sfc_error *err)
{
    size_t got = HISTORY_CHUNK;
    while (got == HISTORY_CHUNK) {
        Shardfc__V1__HistoryRequest request = SHARDFC__V1__HISTORY_REQUEST__INIT;
        struct sfc_answer answer = {0};
        request.run_id = run_id;
        request.after_step = *last;
        request.limit = HISTORY_CHUNK;
        int code = sfc_cluster_scheduler(cluster, "History", &request.base,
                                         &shardfc__v1__history_reply__descriptor,
                                         STATUS_DEADLINE_MS, &answer, err);
        if (code != SFC_OK) {
            return code;
        }
        const Shardfc__V1__HistoryReply *history =
            (const Shardfc__V1__HistoryReply *)answer.message;
        got = history->n_points;
        for (size_t i = 0; i < got; i++) {
            const Shardfc__V1__HistoryPoint *p = history->points[i];
            fprintf(file, "%" PRIu64 ",%.17g,%.9g,%.1f\n", p->step, p->loss, p->lr,
                    p->images_per_s);
            *last = p->step;
        }
        sfc_answer_free(&answer);
    }
    return fflush(file) == 0 ? SFC_OK : sfc_fail_errno(err, "write the trace");
}

static size_t members(const Shardfc__V1__StatusReply *s)
{
    size_t count = 0;
    for (size_t i = 0; i < s->n_shards; i++)
        count += s->shards[i]->member ? 1 : 0;
    return count;
}

/* stuck: nothing was committed since the line before, so say what it waits for. */
static void print_line(const Shardfc__V1__StatusReply *s, bool stuck)
{
    char progress[256];
    sfc_show_progress(s, progress, sizeof progress);
    if (sfc_show_is_idle(s)) {
        printf("waits for a run (`shardfc create`): %zu shards, %zu workers", s->n_shards,
               s->n_workers);
    } else {
        printf("%s: %s", strcmp(s->state, "running") == 0 ? s->run : s->state, progress);
        if (!sfc_show_is_over(s->state)) {
            printf(", %zu shards, %zu workers", members(s), s->n_workers);
        }
        if (s->reason[0] != '\0' && (stuck || strcmp(s->state, "running") != 0)) {
            printf(" (%s)", s->reason);
        }
        if (s->unmirrored > 0) {
            printf(" [%" PRIu64 " blocks not yet mirrored]", s->unmirrored);
        }
        if (s->goal[0] != '\0') {
            printf(" [%s]", s->goal);
        }
    }
    printf("\n");
    fflush(stdout);
}

static size_t terminal_rows(void)
{
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : 24;
}

/* Puts a text in the place of the one before, of *lines lines. Lines that are too long in spite of
 * all are cut by the terminal, so that a line is a line. */
static void redraw(const char *text, size_t *lines)
{
    if (*lines > 0) {
        printf("\033[%zuA", *lines);
    }
    printf("\r\033[J\033[?7l%s\033[?7h", text);
    fflush(stdout);
    *lines = 0;
    for (const char *c = text; *c != '\0'; c++) {
        *lines += *c == '\n';
    }
}

/* When this was true, so that a view which stands still is seen to. */
static void heading(FILE *out, const char *scheduler)
{
    char text[16] = "";
    struct tm parts;
    time_t now = time(NULL);
    if (localtime_r(&now, &parts) != NULL) {
        strftime(text, sizeof text, "%H:%M:%S", &parts);
    }
    fprintf(out, "%s  %s  (Ctrl-C ends the view, not the run)\n\n", text, scheduler);
}

static int draw(const char *scheduler, const Shardfc__V1__StatusReply *s, size_t *lines,
                struct sfc_error *err)
{
    char *text = NULL;
    size_t size = 0, rows = terminal_rows();
    size_t each = rows > OTHER_LINES + 4 ? (rows - OTHER_LINES) / 2 : 2;
    size_t width = sfc_command_columns();
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the view");
    }
    heading(out, scheduler);
    sfc_show_run(out, width, s);
    sfc_show_goal(out, width, s);
    sfc_show_shards(out, width, s, each);
    sfc_show_workers(out, s, each);
    if (fclose(out) != 0) {
        free(text);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the view");
    }
    redraw(text, lines);
    free(text);
    return SFC_OK;
}

/* What has been shown and traced. */
struct watch {
    uint64_t run_id, traced_step, shown_step;
    bool shown;
    bool lived; /* it was seen when it was not idle */
    bool ended; /* the line of its end is shown */
    struct sfc_command_silence silence, traceless;
    double due;   /* of the next line */
    size_t lines; /* of the view on the terminal */
};

static int how_it_ended(const Shardfc__V1__StatusReply *s, struct sfc_error *err)
{
    if (strcmp(s->state, "finished") == 0) {
        return SFC_OK;
    }
    if (sfc_show_is_idle(s)) {
        return sfc_fail(err, SFC_ESTATE, "run %s was stopped (`shardfc events` says by whom)",
                        s->run);
    }
    const char *next = strcmp(s->state, "blocked") == 0
                           ? "mend the cause, then `shardfc resume`; or go on without these rows: "
                             "`shardfc resume --drop STEP,MICRO_BATCH`"
                           : "`shardfc stop`, then `shardfc restore` from the last checkpoint";
    return sfc_fail(err, SFC_ESTATE, "run %s is %s: %.300s; %s", s->run, s->state, s->reason, next);
}

/* Prints a line when it is due, when the first rate is known and when the run is over. */
static int show(struct watch *w, const struct watch_options *o, const Shardfc__V1__StatusReply *s,
                bool over, struct sfc_error *err)
{
    double now = sfc_command_clock();
    if (s->run_id != w->run_id) {
        *w = (struct watch){.run_id = s->run_id,
                            .lines = w->lines,
                            .silence = w->silence,
                            .traceless = w->traceless};
    }
    bool first_rate = w->shown_step == 0 && s->images_per_s > 0;
    if (w->shown && !over && !first_rate && now < w->due) {
        return SFC_OK;
    }
    int code = SFC_OK;
    if (isatty(STDOUT_FILENO) != 0) {
        code = draw(o->scheduler, s, &w->lines, err);
    } else {
        print_line(s, w->shown && s->step == w->shown_step);
    }
    w->shown = true;
    w->shown_step = s->step;
    w->due = now + (double)o->interval_ms / 1e3;
    return code;
}

/* The scheduler that was there is not: a person who looks on sees when it is back. */
static void draw_absence(struct watch *w, const struct watch_options *o,
                         const struct sfc_error *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out != NULL) {
        heading(out, o->scheduler);
        sfc_show_wrapped(out, sfc_command_columns(), 0, 4, err->text);
        sfc_show_wrapped(out, sfc_command_columns(), 0, 4,
                         "trying again; on its host: systemctl status shardfc-scheduler");
        if (fclose(out) == 0) {
            redraw(text, &w->lines);
        }
    }
    free(text);
    w->due = 0;
    sfc_command_wait(o->interval_ms);
}

static int follow(const struct watch_options *o, struct sfc_cluster *cluster, FILE *trace,
                  struct sfc_error *err)
{
    struct watch w = {0};
    for (;;) {
        struct sfc_answer answer = {0};
        int code = get_status(cluster, &answer, err);
        if (w.shown && isatty(STDOUT_FILENO) != 0 && sfc_command_is_silence(code)) {
            draw_absence(&w, o, err);
            continue;
        }
        if (w.shown && sfc_command_bears(&w.silence, code, err)) {
            continue;
        }
        if (code != SFC_OK) {
            return code;
        }
        const Shardfc__V1__StatusReply *s = (const Shardfc__V1__StatusReply *)answer.message;
        bool stopped = w.lived && w.run_id == s->run_id && sfc_show_is_idle(s);
        bool over = o->until_done && (sfc_show_is_over(s->state) || stopped);
        code = show(&w, o, s, over && !w.ended, err);
        w.ended = over;
        w.lived = w.lived || !sfc_show_is_idle(s);
        if (code == SFC_OK && ferror(stdout) != 0) { /* nobody is there to see the end */
            code = sfc_fail(err, SFC_EIO, "standard output: can't be written any more");
        }
        if (s->step < w.traced_step) { /* rewound: what comes again is written again */
            w.traced_step = s->step;
        }
        if (code == SFC_OK && trace != NULL && w.run_id != 0) {
            code = trace_more(cluster, trace, w.run_id, &w.traced_step, err);
            over = over && !sfc_command_is_silence(code); /* the rest comes with the next look */
            code = sfc_command_bears(&w.traceless, code, err) ? SFC_OK : code;
        }
        if (code == SFC_OK && over) {
            code = how_it_ended(s, err);
        }
        sfc_answer_free(&answer);
        if (code != SFC_OK || over) {
            return code;
        }
        sfc_command_wait(o->interval_ms < POLL_MS ? o->interval_ms : POLL_MS);
    }
}

int sfc_cmd_watch(int argc, char **argv)
{
    struct watch_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&watch_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    FILE *trace = NULL;
    int code = SFC_OK;
    if (o.trace != NULL) {
        trace = fopen(o.trace, "w");
        if (trace == NULL) {
            code = sfc_fail_errno(&err, "create %s", o.trace);
        } else {
            fprintf(trace, "step,loss,lr,images_per_s\n");
        }
    }
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    }
    if (code == SFC_OK) {
        code = follow(&o, cluster, trace, &err);
    }
    if (trace != NULL) {
        fclose(trace);
    }
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("watch", &err);
}
