#include "server/ctl/show.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "proto/base/text.h"

/* What a buffer has cut in two is no character. */
static void print_word(FILE *out, const char *text, size_t size)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + size;
    while (at < end) {
        size_t length = sfc_utf8_length(at);
        if (length == 0) {
            fputc('?', out);
        } else {
            fwrite(at, 1, length, out);
        }
        at += length > 0 ? length : 1;
    }
}

void sfc_show_wrapped(FILE *out, size_t width, size_t at, size_t indent, const char *text)
{
    size_t column = at;
    for (bool first = true; *text != '\0'; first = false) {
        size_t size = strcspn(text, " ");
        if (!first && width > 0 && column + 1 + size > width) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            fputc(' ', out);
            column++;
        }
        print_word(out, text, size);
        column += size;
        text += size;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

void sfc_show_bytes(uint64_t bytes, char *out, size_t size)
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes / 1e3;
    size_t unit = 0;
    if (bytes < 1000) {
        snprintf(out, size, "%" PRIu64 " B", bytes);
        return;
    }
    for (; value >= 999.5 && unit < 4; unit++) {
        value /= 1e3;
    }
    snprintf(out, size, "%.*f %s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, units[unit]);
}

void sfc_show_duration(double seconds, char *out, size_t size)
{
    if (!isfinite(seconds) || seconds < 0) {
        snprintf(out, size, "?");
    } else if (seconds < 90) {
        snprintf(out, size, "%.0f s", seconds);
    } else if (seconds < 5400) {
        snprintf(out, size, "%.0f min", seconds / 60);
    } else {
        snprintf(out, size, "%.1f h", seconds / 3600);
    }
}

bool sfc_show_is_over(const char *state)
{
    return strcmp(state, "finished") == 0 || strcmp(state, "failed") == 0 ||
           strcmp(state, "blocked") == 0;
}

bool sfc_show_is_idle(const Shardfc__V1__StatusReply *s)
{
    return s->run_id == 0 || strcmp(s->state, "idle") == 0;
}

void sfc_show_progress(const Shardfc__V1__StatusReply *s, char *out, size_t size)
{
    char eta[32];
    char rate[80] = "";
    if (s->images_per_s > 0 && sfc_show_is_over(s->state)) {
        snprintf(rate, sizeof rate, ", %.0f images/s on average", s->images_per_s);
    } else if (s->images_per_s > 0) {
        sfc_show_duration(s->eta_s, eta, sizeof eta);
        snprintf(rate, sizeof rate, ", %.0f images/s, %s left", s->images_per_s, eta);
    }
    if (isfinite(s->loss) || s->lr > 0) {
        snprintf(out, size, "step %" PRIu64 "/%" PRIu64 " (epoch %.2f), loss %.4f, lr %.4g%s",
                 s->step, s->steps, s->epoch, s->loss, s->lr, rate);
    } else {
        snprintf(out, size, "step %" PRIu64 "/%" PRIu64 ", waiting for the first commit", s->step,
                 s->steps);
    }
}

/* How many of the run's shards can be lost. */
static void mirrored(const Shardfc__V1__StatusReply *s, char *out, size_t size)
{
    size_t members = 0, safe = 0;
    for (size_t i = 0; i < s->n_shards; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        bool complete = false;
        for (size_t j = 0; j < h->n_mirrors; j++) {
            complete = complete || h->mirrors[j]->complete;
        }
        members += h->member ? 1 : 0;
        safe += h->member && complete ? 1 : 0;
    }
    char state[96] = "mirrors complete";
    if (s->unmirrored > 0) {
        int n = snprintf(state, sizeof state, "%" PRIu64 " block%s not yet mirrored", s->unmirrored,
                         s->unmirrored == 1 ? "" : "s");
        if (s->unmirrored_eta_s > 0) {
            snprintf(state + n, sizeof state - (size_t)n, ", about %.0f s left",
                     s->unmirrored_eta_s);
        }
    }
    snprintf(out, size,
             "%s: %zu of %zu shards can be lost, %u at a time: others can restore all of their "
             "blocks",
             state, safe, members, s->keeping->mirrors);
}

void sfc_show_run(FILE *out, size_t width, const Shardfc__V1__StatusReply *s)
{
    char text[1200];
    const char *colon = s->reason[0] != '\0' ? ": " : "";
    if (s->run_id == 0) {
        snprintf(text, sizeof text, "no run (%s)%s%.900s", s->state, colon, s->reason);
        sfc_show_wrapped(out, width, 0, 4, text);
        return;
    }
    bool stopped = sfc_show_is_idle(s);
    snprintf(text, sizeof text, "run %s (%" PRIu64 "): %s%s%.900s", s->run, s->run_id,
             stopped ? "stopped" : s->state, colon, s->reason);
    sfc_show_wrapped(out, width, 0, 4, text);
    sfc_show_progress(s, text, sizeof text);
    sfc_show_wrapped(out, width, 0, 4, text);
    if (stopped) { /* its blocks are freed: nothing below is so any more */
        return;
    }
    if (s->keeping && s->keeping->durable_every > 1) {
        fprintf(out, "durable up to step %" PRIu64 " (every %u steps)\n", s->durable_step,
                s->keeping->durable_every);
    }
    if (s->keeping && s->keeping->mirrors > 0) {
        mirrored(s, text, sizeof text);
        sfc_show_wrapped(out, width, 0, 4, text);
    }
    if (s->keeping && s->keeping->rewind_window > 0) {
        fprintf(out, "can be rewound to step %" PRIu64 " and later ones\n", s->oldest_step);
    }
}

/* "12.3 of 61.2 MB" */
static void part_of(uint64_t done, uint64_t all, char *out, size_t size)
{
    char first[32], second[32];
    sfc_show_bytes(done, first, sizeof first);
    sfc_show_bytes(all, second, sizeof second);
    snprintf(out, size, "%s of %s", first, second);
}

static void show_move(FILE *out, size_t width, const Shardfc__V1__MoveStatus *m)
{
    char left[48] = "", rate[48] = "", part[80], text[1200];
    part_of(m->copied, m->bytes, part, sizeof part);
    if (m->bytes_per_s > 0) {
        char bytes[32];
        sfc_show_bytes((uint64_t)m->bytes_per_s, bytes, sizeof bytes);
        snprintf(rate, sizeof rate, ", %s/s", bytes);
    }
    if (m->eta_s > 0) {
        char duration[32];
        sfc_show_duration(m->eta_s, duration, sizeof duration);
        snprintf(left, sizeof left, ", %s left", duration);
    }
    snprintf(text, sizeof text,
             "shard %" PRIu64 " -> shard %" PRIu64 ": %" PRIu64 " blocks, %s, %s%s%s%s%.700s",
             m->from, m->to, m->blocks, m->state, part, rate, left,
             m->reason[0] != '\0' ? ": " : "", m->reason);
    fputs("  ", out);
    sfc_show_wrapped(out, width, 2, 6, text);
}

void sfc_show_goal(FILE *out, size_t width, const Shardfc__V1__StatusReply *s)
{
    if (s->goal[0] != '\0') {
        char part[80] = "", text[1200];
        if (s->goal_bytes > 0) {
            part_of(s->goal_moved, s->goal_bytes, part, sizeof part);
        }
        snprintf(text, sizeof text, "becomes: %.900s%s%s%s", s->goal, part[0] != '\0' ? " (" : "",
                 part, part[0] != '\0' ? " have moved)" : "");
        sfc_show_wrapped(out, width, 0, 4, text);
    }
    for (size_t i = 0; i < s->n_moves; i++) {
        show_move(out, width, s->moves[i]);
    }
}

/* A shard that takes no part in the run that goes on is a spare one. */
static const char *state_of(const Shardfc__V1__StatusReply *s, const Shardfc__V1__ShardStatus *h)
{
    bool ready = strcmp(h->state, "ready") == 0;
    bool run = s->run_id != 0 && strcmp(s->state, "idle") != 0;
    if (ready && h->leaving) {
        return "leaving";
    }
    return ready && run && !h->member ? "spare" : h->state;
}

enum { BELOW = 8 }; /* columns before what is said below a shard */

static void say_below(FILE *out, size_t width, const char *text)
{
    fprintf(out, "%*s", BELOW, "");
    sfc_show_wrapped(out, width, BELOW, BELOW, text);
}

/* Only what is not as it should be. */
static void show_mirrors(FILE *out, size_t width, const Shardfc__V1__ShardStatus *h)
{
    char text[1200];
    for (size_t i = 0; i < h->n_mirrors; i++) {
        const Shardfc__V1__ShardMirror *m = h->mirrors[i];
        if (m->complete) {
            continue;
        }
        snprintf(text, sizeof text,
                 "mirrored by shard %" PRIu64 ": %" PRIu64 " of %" PRIu64 " blocks%s%.900s",
                 m->shard, m->copied, m->blocks > 0 ? m->blocks : h->blocks + h->dense_blocks,
                 m->reason[0] != '\0' ? ": " : "", m->reason);
        say_below(out, width, text);
    }
    if (h->missing_s > 0) {
        char since[32];
        sfc_show_duration(h->missing_s, since, sizeof since);
        snprintf(text, sizeof text, "missing for %s%s%.900s", since, h->loss[0] != '\0' ? ": " : "",
                 h->loss);
        say_below(out, width, text);
    }
}

static void show_recovery(FILE *out, size_t width, const Shardfc__V1__ShardRecovery *r)
{
    char left[32], text[160];
    sfc_show_duration(r->eta_s, left, sizeof left);
    snprintf(text, sizeof text, "goes through logged steps: at %" PRIu64 " of %" PRIu64 "%s%s",
             r->step, r->to_step, r->eta_s > 0 ? ", about this long for all: " : "",
             r->eta_s > 0 ? left : "");
    say_below(out, width, text);
}

/* Long addresses get a line of their own. */
static void show_shard(FILE *out, const Shardfc__V1__StatusReply *s,
                       const Shardfc__V1__ShardStatus *h)
{
    enum { ADDRESS = 21 };
    char memory[32], log[32] = "-";
    bool wide = strlen(h->address) > ADDRESS;
    sfc_show_bytes(h->memory_bytes, memory, sizeof memory);
    if (h->durability) {
        sfc_show_bytes(h->durability->log_bytes, log, sizeof log);
    }
    if (wide) {
        fprintf(out, "%4" PRIu64 " %s\n%4s", h->id, h->address, "");
    } else {
        fprintf(out, "%4" PRIu64, h->id);
    }
    fprintf(out, " %-*s %-10s %6" PRIu64 " %9" PRIu64 " %8s %7" PRIu64 " %8s\n", ADDRESS,
            wide ? "" : h->address, state_of(s, h), h->blocks, h->classes, memory, h->step, log);
}

void sfc_show_shards(FILE *out, size_t width, const Shardfc__V1__StatusReply *s, size_t limit)
{
    fprintf(out, "\nshards (block map %" PRIu64 ")\n", s->map_version);
    fprintf(out, "%4s %-21s %-10s %6s %9s %8s %7s %8s\n", "id", "address", "state", "blocks",
            "classes", "memory", "step", "log");
    for (size_t i = 0; i < s->n_shards && i < limit; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        show_shard(out, s, h);
        if (h->recovery) {
            show_recovery(out, width, h->recovery);
        }
        if (h->durability && h->durability->error[0] != '\0') {
            char text[1200];
            snprintf(text, sizeof text, "disk: %.1000s", h->durability->error);
            say_below(out, width, text);
        }
        show_mirrors(out, width, h);
    }
    if (s->n_shards > limit) {
        fprintf(out, "  ... and %zu more\n", s->n_shards - limit);
    }
}

/* Long names get a line of their own. */
static void show_worker(FILE *out, const Shardfc__V1__WorkerStatus *w)
{
    enum { ID = 10, NAME = 21 };
    char memory[32] = "-";
    bool wide = strlen(w->name) > NAME;
    fprintf(out, "%*" PRIu64 " ", ID, w->id);
    if (wide) {
        fprintf(out, "%s\n%*s ", w->name, ID, "");
    }
    if (w->memory_bytes > 0) {
        sfc_show_bytes(w->memory_bytes, memory, sizeof memory);
    }
    fprintf(out, "%-*s %-8s %5u %7u %13" PRIu64 " %9s\n", NAME, wide ? "" : w->name, w->state,
            w->lanes, w->tickets, w->micro_batches, memory);
}

void sfc_show_workers(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit)
{
    fprintf(out, "\nworkers\n%10s %-21s %-8s %5s %7s %13s %9s\n", "id", "name", "state", "lanes",
            "tickets", "micro-batches", "memory");
    for (size_t i = 0; i < s->n_workers && i < limit; i++) {
        show_worker(out, s->workers[i]);
    }
    if (s->n_workers > limit) {
        fprintf(out, "  ... and %zu more\n", s->n_workers - limit);
    }
}
