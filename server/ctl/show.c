#include "server/ctl/show.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

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

void sfc_show_run(FILE *out, const Shardfc__V1__StatusReply *s)
{
    char progress[256];
    sfc_show_progress(s, progress, sizeof progress);
    if (s->run_id == 0) {
        fprintf(out, "no run (%s)%s%s\n", s->state, s->reason[0] != '\0' ? ": " : "", s->reason);
        return;
    }
    fprintf(out, "run %s (%" PRIu64 "): %s%s%s\n", s->run, s->run_id, s->state,
            s->reason[0] != '\0' ? ": " : "", s->reason);
    fprintf(out, "%s\n", progress);
    if (s->keeping && s->keeping->durable_every > 1) {
        fprintf(out, "durable up to step %" PRIu64 " (every %u steps)\n", s->durable_step,
                s->keeping->durable_every);
    }
    if (s->keeping && s->keeping->rewind_window > 0) {
        fprintf(out, "can be rewound to step %" PRIu64 " and later ones\n", s->oldest_step);
    }
}

static double mb(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

static void show_move(FILE *out, const Shardfc__V1__MoveStatus *m)
{
    char left[32];
    fprintf(out,
            "  shard %" PRIu64 " -> shard %" PRIu64 ": %" PRIu64 " blocks, %s, %.1f of %.1f MB",
            m->from, m->to, m->blocks, m->state, mb(m->copied), mb(m->bytes));
    if (m->bytes_per_s > 0) {
        fprintf(out, ", %.1f MB/s", m->bytes_per_s / 1e6);
    }
    if (m->eta_s > 0) {
        sfc_show_duration(m->eta_s, left, sizeof left);
        fprintf(out, ", %s left", left);
    }
    fprintf(out, "%s%s\n", m->reason[0] != '\0' ? ": " : "", m->reason);
}

void sfc_show_goal(FILE *out, const Shardfc__V1__StatusReply *s)
{
    if (s->goal[0] != '\0') {
        fprintf(out, "becomes: %s", s->goal);
        if (s->goal_bytes > 0) {
            fprintf(out, " (%.1f of %.1f MB have moved)", mb(s->goal_moved), mb(s->goal_bytes));
        }
        fprintf(out, "\n");
    }
    for (size_t i = 0; i < s->n_moves; i++) {
        show_move(out, s->moves[i]);
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

void sfc_show_shards(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit)
{
    fprintf(out, "\nshards (block map %" PRIu64 ")\n", s->map_version);
    fprintf(out, "  %4s  %-22s %-10s %7s %10s %12s %8s %9s\n", "id", "address", "state", "blocks",
            "classes", "memory MB", "step", "log MB");
    for (size_t i = 0; i < s->n_shards && i < limit; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        const Shardfc__V1__ShardDurability *d = h->durability;
        fprintf(out,
                "  %4" PRIu64 "  %-22s %-10s %7" PRIu64 " %10" PRIu64 " %12.1f %8" PRIu64
                " %9.1f\n",
                h->id, h->address, state_of(s, h), h->blocks, h->classes, mb(h->memory_bytes),
                h->step, d ? mb(d->log_bytes) : 0);
        if (d && d->error[0] != '\0') {
            fprintf(out, "        disk: %s\n", d->error);
        }
    }
    if (s->n_shards > limit) {
        fprintf(out, "  ... and %zu more\n", s->n_shards - limit);
    }
}

void sfc_show_workers(FILE *out, const Shardfc__V1__StatusReply *s, size_t limit)
{
    fprintf(out, "\nworkers\n  %4s  %-30s %-8s %6s %8s %14s\n", "id", "name", "state", "lanes",
            "tickets", "micro-batches");
    for (size_t i = 0; i < s->n_workers && i < limit; i++) {
        const Shardfc__V1__WorkerStatus *w = s->workers[i];
        fprintf(out, "  %4" PRIu64 "  %-30s %-8s %6u %8u %14" PRIu64 "\n", w->id, w->name, w->state,
                w->lanes, w->tickets, w->micro_batches);
    }
    if (s->n_workers > limit) {
        fprintf(out, "  ... and %zu more\n", s->n_workers - limit);
    }
}
