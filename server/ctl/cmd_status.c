/* shardfc status. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/ctl/command.h"
#include "server/ctl/show.h"

#define STATUS_DEADLINE_MS 10000

struct status_options {
    const char *scheduler;
    bool json;
};

#define AT(field) offsetof(struct status_options, field)
static const struct sfc_option status_table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program status_program = {
    .name = "shardfc status",
    .summary = "Shows run, step, loss, rate, shards and workers.",
    .options = status_table,
    .count = sizeof status_table / sizeof *status_table,
};
static int get_status(struct sfc_cluster *cluster, struct sfc_answer *out, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    return sfc_cluster_scheduler(cluster, "Status", &request.base,
                                 &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, out,
                                 err);
}

/* JSON has no NaN: a loss that does not exist yet is null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* What a shard has on its disk, and how far its recovery is (null: it does not recover). */
static void durability_json(const Shardfc__V1__ShardStatus *h, json_t *out)
{
    const Shardfc__V1__ShardDurability *d = h->durability;
    const Shardfc__V1__ShardRecovery *r = h->recovery;
    json_object_set_new(out, "log_floor", json_integer(d ? (json_int_t)d->log_floor : 0));
    json_object_set_new(out, "log_bytes", json_integer(d ? (json_int_t)d->log_bytes : 0));
    json_object_set_new(out, "snapshot_lag", json_integer(d ? (json_int_t)d->snapshot_lag : 0));
    json_object_set_new(out, "oldest_step", json_integer(d ? (json_int_t)d->oldest_step : 0));
    json_object_set_new(out, "disk_error", json_string(d ? d->error : ""));
    json_object_set_new(out, "recovery",
                        r ? json_pack("{s:I, s:I, s:f}", "step", (json_int_t)r->step, "to_step",
                                      (json_int_t)r->to_step, "eta_s", r->eta_s)
                          : json_null());
}

static json_t *shards_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_shards; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        json_t *one =
            json_pack("{s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "id",
                      (json_int_t)h->id, "address", h->address, "state", h->state, "blocks",
                      (json_int_t)h->blocks, "dense_blocks", (json_int_t)h->dense_blocks, "classes",
                      (json_int_t)h->classes, "memory_bytes", (json_int_t)h->memory_bytes,
                      "memory_limit", (json_int_t)h->memory_limit, "step", (json_int_t)h->step,
                      "backend", h->backend, "numerics", h->numerics);
        json_object_set_new(one, "member", json_boolean(h->member));
        json_object_set_new(one, "leaving", json_boolean(h->leaving));
        json_object_set_new(one, "step_ms", json_real(h->step_ms));
        durability_json(h, one);
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *moves_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_moves; i++) {
        const Shardfc__V1__MoveStatus *m = s->moves[i];
        json_array_append_new(list,
                              json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:s, s:s}",
                                        "move", (json_int_t)m->move, "from", (json_int_t)m->from,
                                        "to", (json_int_t)m->to, "blocks", (json_int_t)m->blocks,
                                        "bytes", (json_int_t)m->bytes, "copied",
                                        (json_int_t)m->copied, "bytes_per_s", m->bytes_per_s,
                                        "eta_s", m->eta_s, "state", m->state, "reason", m->reason));
    }
    return list;
}

static json_t *workers_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_workers; i++) {
        const Shardfc__V1__WorkerStatus *w = s->workers[i];
        json_array_append_new(
            list, json_pack("{s:I, s:s, s:I, s:s, s:I, s:I}", "id", (json_int_t)w->id, "state",
                            w->state, "tickets", (json_int_t)w->tickets, "name", w->name, "lanes",
                            (json_int_t)w->lanes, "micro_batches", (json_int_t)w->micro_batches));
    }
    return list;
}

static json_t *lr_changes_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_lr_changes; i++) {
        const Shardfc__V1__LrChange *c = s->lr_changes[i];
        json_array_append_new(list, json_pack("{s:I, s:o}", "from_step", (json_int_t)c->from_step,
                                              "lr", c->lr > 0 ? json_real(c->lr) : json_null()));
    }
    return list;
}

static json_t *status_json(const Shardfc__V1__StatusReply *s)
{
    json_t *counters = json_object();
    for (size_t i = 0; i < s->n_counters; i++) {
        json_object_set_new(counters, s->counters[i]->name,
                            json_integer((json_int_t)s->counters[i]->value));
    }
    json_t *all =
        json_pack("{s:s, s:I, s:s, s:s, s:I, s:I, s:o, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o, "
                  "s:o, s:o, s:s, s:I, s:I, s:I, s:I}",
                  "run", s->run, "run_id", (json_int_t)s->run_id, "state", s->state, "reason",
                  s->reason, "step", (json_int_t)s->step, "steps", (json_int_t)s->steps, "loss",
                  number(s->loss), "images_per_s", s->images_per_s, "lr", s->lr, "eta_s", s->eta_s,
                  "epoch", s->epoch, "map_version", (json_int_t)s->map_version, "incarnation",
                  (json_int_t)s->incarnation, "skipped_steps", (json_int_t)s->skipped_steps,
                  "shards", shards_json(s), "workers", workers_json(s), "counters", counters,
                  "version", s->version, "oldest_step", (json_int_t)s->oldest_step, "rewind_window",
                  (json_int_t)(s->keeping ? s->keeping->rewind_window : 0), "durable_step",
                  (json_int_t)s->durable_step, "durable_every",
                  (json_int_t)(s->keeping ? s->keeping->durable_every : 1));
    json_object_set_new(all, "goal", json_string(s->goal));
    json_object_set_new(all, "goal_bytes", json_integer((json_int_t)s->goal_bytes));
    json_object_set_new(all, "goal_moved", json_integer((json_int_t)s->goal_moved));
    json_object_set_new(all, "lr_changes", lr_changes_json(s));
    json_object_set_new(all, "moves", moves_json(s));
    json_object_set_new(all, "elastic", json_boolean(s->keeping && s->keeping->elastic));
    return all;
}

/* The change that holds for the next step, and those to come. */
static void print_lr_changes(const Shardfc__V1__StatusReply *s)
{
    for (size_t i = 0; i < s->n_lr_changes; i++) {
        const Shardfc__V1__LrChange *c = s->lr_changes[i];
        if (i + 1 < s->n_lr_changes && s->lr_changes[i + 1]->from_step <= s->step + 1) {
            continue;
        }
        if (c->lr > 0) {
            printf("lr set to %g from step %" PRIu64 " on\n", c->lr, c->from_step);
        } else if (c->from_step > s->step) {
            printf("lr of the schedule again from step %" PRIu64 " on\n", c->from_step);
        }
    }
}

static void print_status(const Shardfc__V1__StatusReply *s)
{
    sfc_show_run(stdout, s);
    print_lr_changes(s);
    sfc_show_goal(stdout, s);
    sfc_show_shards(stdout, s, SIZE_MAX);
    sfc_show_workers(stdout, s, SIZE_MAX);
    for (size_t i = 0; i < s->n_counters; i++) {
        if (i == 0) {
            printf("\ncounters\n");
        }
        printf("  %-40s %" PRIu64 "\n", s->counters[i]->name, s->counters[i]->value);
    }
}

int sfc_cmd_status(int argc, char **argv)
{
    struct status_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&status_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    int code = sfc_cluster_connect(o.scheduler, &cluster, &err);
    if (code == SFC_OK) {
        code = get_status(cluster, &answer, &err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__StatusReply *status = (const Shardfc__V1__StatusReply *)answer.message;
        if (o.json) {
            sfc_command_json(status_json(status));
        } else {
            print_status(status);
        }
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("status", &err);
}
