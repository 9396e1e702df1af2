#include "server/run/status_json.h"

#include <math.h>

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

static json_t *mirrors_json(const Shardfc__V1__ShardStatus *h)
{
    json_t *list = json_array();
    for (size_t i = 0; i < h->n_mirrors; i++) {
        const Shardfc__V1__ShardMirror *m = h->mirrors[i];
        json_array_append_new(
            list, json_pack("{s:I, s:b, s:I, s:I, s:I, s:I, s:s}", "shard", (json_int_t)m->shard,
                            "complete", m->complete != 0, "blocks", (json_int_t)m->blocks, "copied",
                            (json_int_t)m->copied, "oldest_step", (json_int_t)m->oldest_step,
                            "bytes", (json_int_t)m->bytes, "reason", m->reason));
    }
    return list;
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
        json_object_set_new(one, "mirrors", mirrors_json(h));
        json_object_set_new(one, "missing_s", json_real(h->missing_s));
        json_object_set_new(one, "loss", json_string(h->loss));
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
        json_array_append_new(list, json_pack("{s:I, s:s, s:I, s:s, s:I, s:I, s:I, s:s, s:s}", "id",
                                              (json_int_t)w->id, "state", w->state, "tickets",
                                              (json_int_t)w->tickets, "name", w->name, "lanes",
                                              (json_int_t)w->lanes, "micro_batches",
                                              (json_int_t)w->micro_batches, "memory_bytes",
                                              (json_int_t)w->memory_bytes, "version", w->version,
                                              "numerics", w->numerics));
    }
    return list;
}

static json_t *growths_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_growths; i++) {
        const Shardfc__V1__Growth *g = s->growths[i];
        json_array_append_new(
            list, json_pack("{s:I, s:I, s:I, s:I, s:s}", "from_step", (json_int_t)g->from_step,
                            "classes", (json_int_t)g->classes, "samples", (json_int_t)g->samples,
                            "data_step", (json_int_t)g->data_step, "data_digest", g->data_digest));
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

json_t *sfc_status_json(const Shardfc__V1__StatusReply *s)
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
    json_object_set_new(all, "classes", json_integer((json_int_t)s->classes));
    json_object_set_new(all, "growths", growths_json(s));
    json_object_set_new(all, "grows", json_string(s->grows));
    json_object_set_new(all, "moves", moves_json(s));
    json_object_set_new(all, "elastic", json_boolean(s->keeping && s->keeping->elastic));
    json_object_set_new(all, "mirrors", json_integer(s->keeping ? s->keeping->mirrors : 0));
    json_object_set_new(all, "unmirrored", json_integer((json_int_t)s->unmirrored));
    json_object_set_new(all, "unmirrored_eta_s", json_real(s->unmirrored_eta_s));
    json_object_set_new(all, "grace_s", json_integer(s->keeping ? s->keeping->grace_s : 0));
    return all;
}
