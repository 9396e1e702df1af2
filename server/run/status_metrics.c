#include "server/run/status_metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void gauge(struct sfc_metrics *m, const char *name, const char *help, double value)
{
    sfc_metrics_family(m, name, "gauge", help);
    sfc_metrics_sample(m, name, value, NULL);
}

/* ---- the run */

static void run_state(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    static const char *const states[] = {"idle",    "loading",  "running", "paused", "held",
                                         "blocked", "finished", "failed",  "stopped"};
    sfc_metrics_family(m, "shardfc_run_state", "gauge", "1 for the state that the run is in.");
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        sfc_metrics_sample(m, "shardfc_run_state", strcmp(s->state, states[i]) == 0, "state",
                           states[i], NULL);
    }
}

static void run_metrics(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    char id[24];
    snprintf(id, sizeof id, "%" PRIu64, s->run_id);
    sfc_metrics_family(m, "shardfc_build_info", "gauge", "Version of the program.");
    sfc_metrics_sample(m, "shardfc_build_info", 1, "version", s->version, NULL);
    sfc_metrics_family(m, "shardfc_run_info", "gauge", "The run that is there.");
    sfc_metrics_sample(m, "shardfc_run_info", 1, "run", s->run, "run_id", id, NULL);
    run_state(s, m);
    gauge(m, "shardfc_run_step", "Last committed step.", (double)s->step);
    gauge(m, "shardfc_run_durable_step", "Last step that no crash can take back.",
          (double)s->durable_step);
    gauge(m, "shardfc_run_steps", "Steps that the run is to have.", (double)s->steps);
    gauge(m, "shardfc_run_skipped_steps", "Steps that were not finite and changed nothing.",
          (double)s->skipped_steps);
    gauge(m, "shardfc_run_loss", "Loss of the last committed step.", s->loss);
    gauge(m, "shardfc_run_learning_rate", "Learning rate of the last committed step.", s->lr);
    gauge(m, "shardfc_run_images_per_second", "Images per second of the last steps.",
          s->images_per_s);
    gauge(m, "shardfc_run_epoch", "How often the data has been gone through.", s->epoch);
    gauge(m, "shardfc_run_eta_seconds", "Time to the last step at this rate; 0: not known.",
          s->eta_s);
    gauge(m, "shardfc_run_mirrors", "Shards that are to be able to restore each shard's blocks.",
          s->keeping != NULL ? s->keeping->mirrors : 0);
    gauge(m, "shardfc_map_version", "Version of the block map.", (double)s->map_version);
    gauge(m, "shardfc_scheduler_incarnation", "Lives of this state so far.",
          (double)s->incarnation);
}

/* ---- members */

struct shard_metric {
    const char *name, *help;
    double (*value)(const Shardfc__V1__ShardStatus *shard);
};

static double is_up(const Shardfc__V1__ShardStatus *h)
{
    return strcmp(h->state, "gone") != 0;
}

static double memory(const Shardfc__V1__ShardStatus *h)
{
    return (double)h->memory_bytes;
}

static double memory_limit(const Shardfc__V1__ShardStatus *h)
{
    return (double)h->memory_limit;
}

static double blocks(const Shardfc__V1__ShardStatus *h)
{
    return (double)(h->blocks + h->dense_blocks);
}

static double classes(const Shardfc__V1__ShardStatus *h)
{
    return (double)h->classes;
}

static double applied(const Shardfc__V1__ShardStatus *h)
{
    return (double)h->step;
}

static double step_seconds(const Shardfc__V1__ShardStatus *h)
{
    return h->step_ms / 1000;
}

static double log_bytes(const Shardfc__V1__ShardStatus *h)
{
    return h->durability != NULL ? (double)h->durability->log_bytes : 0;
}

static double snapshot_lag(const Shardfc__V1__ShardStatus *h)
{
    return h->durability != NULL ? (double)h->durability->snapshot_lag : 0;
}

static double disk_failed(const Shardfc__V1__ShardStatus *h)
{
    return h->durability != NULL && h->durability->error[0] != '\0';
}

static double missing(const Shardfc__V1__ShardStatus *h)
{
    return h->missing_s;
}

static double mirrors(const Shardfc__V1__ShardStatus *h)
{
    double complete = 0;
    for (size_t i = 0; i < h->n_mirrors; i++) {
        complete += h->mirrors[i]->complete != 0;
    }
    return complete;
}

static const struct shard_metric of_shards[] = {
    {"shardfc_shard_up", "1 while the shard sends heartbeats.", is_up},
    {"shardfc_shard_memory_bytes", "Memory that the run uses there.", memory},
    {"shardfc_shard_memory_limit_bytes", "Memory that runs may use there.", memory_limit},
    {"shardfc_shard_blocks", "Blocks that it owns.", blocks},
    {"shardfc_shard_classes", "Classes that it owns.", classes},
    {"shardfc_shard_step", "Last step that it has applied.", applied},
    {"shardfc_shard_step_seconds", "Time that it computes for a step; 0: not known.", step_seconds},
    {"shardfc_shard_log_bytes", "Size of its step log.", log_bytes},
    {"shardfc_shard_snapshot_lag_steps", "Steps since the oldest newest snapshot of a block.",
     snapshot_lag},
    {"shardfc_shard_disk_failed", "1 while its disk refuses.", disk_failed},
    {"shardfc_shard_missing_seconds", "Time since which the run lacks it.", missing},
    {"shardfc_shard_mirrors_complete", "Shards that can restore all of its blocks.", mirrors},
};

static void shard_metrics(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    for (size_t k = 0; k < sizeof of_shards / sizeof *of_shards; k++) {
        const struct shard_metric *metric = &of_shards[k];
        sfc_metrics_family(m, metric->name, "gauge", metric->help);
        for (size_t i = 0; i < s->n_shards; i++) {
            char id[24];
            snprintf(id, sizeof id, "%" PRIu64, s->shards[i]->id);
            sfc_metrics_sample(m, metric->name, metric->value(s->shards[i]), "shard", id, "address",
                               s->shards[i]->address, NULL);
        }
    }
}

static void worker_metrics(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    double lanes = 0, tickets = 0;
    for (size_t i = 0; i < s->n_workers; i++) {
        lanes += s->workers[i]->lanes;
        tickets += s->workers[i]->tickets;
    }
    gauge(m, "shardfc_workers", "Workers that have joined.", (double)s->n_workers);
    gauge(m, "shardfc_worker_lanes", "Lanes of all workers.", lanes);
    gauge(m, "shardfc_worker_tickets", "Grants that workers hold.", tickets);
    sfc_metrics_family(m, "shardfc_worker_micro_batches_total", "counter",
                       "Micro-batches that a worker has done.");
    for (size_t i = 0; i < s->n_workers; i++) {
        sfc_metrics_sample(m, "shardfc_worker_micro_batches_total",
                           (double)s->workers[i]->micro_batches, "worker", s->workers[i]->name,
                           NULL);
    }
}

static void move_metrics(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    double bytes = 0, copied = 0;
    for (size_t i = 0; i < s->n_moves; i++) {
        bytes += (double)s->moves[i]->bytes;
        copied += (double)s->moves[i]->copied;
    }
    gauge(m, "shardfc_moves", "Moves of blocks at work or waiting.", (double)s->n_moves);
    gauge(m, "shardfc_move_bytes", "Bytes that these moves are to copy.", bytes);
    gauge(m, "shardfc_move_copied_bytes", "Bytes of these that are copied.", copied);
}

/* What members have counted: refused calls by reason, retries, broken rows, ... */
static void counter_metrics(const Shardfc__V1__StatusReply *s, struct sfc_metrics *m)
{
    sfc_metrics_family(m, "shardfc_occurrences_total", "counter",
                       "What scheduler, shards and workers have counted, by name.");
    for (size_t i = 0; i < s->n_counters; i++) {
        sfc_metrics_sample(m, "shardfc_occurrences_total", (double)s->counters[i]->value, "what",
                           s->counters[i]->name, NULL);
    }
}

void sfc_status_metrics(const Shardfc__V1__StatusReply *status, const struct sfc_histogram *step,
                        struct sfc_metrics *out)
{
    run_metrics(status, out);
    sfc_metrics_family(out, "shardfc_step_duration_seconds", "histogram",
                       "Time from one commit to the next.");
    sfc_metrics_histogram(out, "shardfc_step_duration_seconds", step, NULL);
    shard_metrics(status, out);
    worker_metrics(status, out);
    move_metrics(status, out);
    counter_metrics(status, out);
}
