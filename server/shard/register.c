/* Keeps this shard known to the scheduler: registers, then holds one heartbeat open after the
 * other. When that breaks (the scheduler restarted, the network is cut) it registers again, with
 * backoff. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/limits.h"
#include "server/shard/shard_internal.h"

enum {
    REGISTER_DEADLINE_MS = 5000,
    HEARTBEAT_DEADLINE_MS = 15000, /* the scheduler holds a heartbeat for about a second */
    SWITCH_DEADLINE_MS = 4000,     /* the same where another scheduler may lead by now */
    HEARTBEAT_PAUSE_MS = 100,
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 2000,
    SWITCH_BACKOFF_MAX_MS = 500 /* between rounds over several schedulers: one will lead soon */
};

static void on_timer(uv_timer_t *timer);

static void later(struct sfc_shard *shard, uint64_t ms)
{
    if (!shard->stopping)
        uv_timer_start(&shard->timer, on_timer, ms, 0);
}

/* The other addresses of a list are tried at once, one after another. */
static void retry(struct sfc_shard *shard, const char *why)
{
    if (shard->failures == 0 || shard->id)
        sfc_warning_log("scheduler %s: %s; trying again", shard->options->scheduler, why);
    shard->id = 0;
    shard->failures++;
    bool all = shard->failures % sfc_rpc_client_addresses(shard->scheduler) == 0;
    later(shard, all ? sfc_backoff_next(&shard->backoff) : 0);
}

static unsigned heartbeat_deadline(const struct sfc_shard *shard)
{
    return sfc_rpc_client_addresses(shard->scheduler) > 1 ? SWITCH_DEADLINE_MS
                                                          : HEARTBEAT_DEADLINE_MS;
}

static int call(struct sfc_shard *shard, const char *method, const void *message,
                unsigned deadline_ms, sfc_rpc_done done, struct sfc_error *err)
{
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(message, &size);
    if (!bytes)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a request");
    struct sfc_rpc_request request = {
        .method = method, .head = {bytes, size}, .deadline_ms = deadline_ms};
    int code = sfc_rpc_client_call(shard->scheduler, &request, done, shard, NULL, err);
    free(bytes);
    return code;
}

static void registered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_shard *shard = ctx;
    if (shard->stopping)
        return;
    if (view->code != SFC_OK) {
        retry(shard, view->text);
        return;
    }
    Shardfc__V1__RegisterShardReply *reply =
        sfc_unpack_reply(view->head, &shardfc__v1__register_shard_reply__descriptor, NULL);
    if (!reply || reply->shard == 0) {
        sfc_message_free(reply);
        retry(shard, "its answer is malformed, or memory is short");
        return;
    }
    shard->id = reply->shard;
    shard->failures = 0;
    sfc_backoff_reset(&shard->backoff);
    if (reply->incarnation > shard->incarnation)
        shard->incarnation = reply->incarnation;
    sfc_message_free(reply);
    sfc_info_log("registered with %s as shard %llu", shard->options->scheduler,
                 (unsigned long long)shard->id);
    sfc_rpc_server_set_ready(shard->server, true);
    later(shard, 0);
}

static void register_now(struct sfc_shard *shard)
{
    const struct sfc_backend *backend = sfc_compute_backend(shard->compute);
    Shardfc__V1__RegisterShardRequest r = SHARDFC__V1__REGISTER_SHARD_REQUEST__INIT;
    r.protocol = SFC_PROTOCOL_VERSION;
    r.boot_id = shard->boot_id;
    r.address = shard->advertised;
    r.backend = (char *)(uintptr_t)sfc_backend_name(backend);
    r.numerics = (char *)(uintptr_t)sfc_backend_numerics(backend);
    r.memory_limit = shard->device_limit ? shard->device_limit : shard->memory_limit;
    r.disk_limit = shard->disk_limit;
    r.joins = shard->options->join == SFC_JOIN_AUTO && !shard->left;
    if (shard->run && shard->run->open) {
        r.run_id = shard->run->id;
        r.nonce = shard->run->nonce;
        r.step = sfc_step_applied(&shard->run->fsm);
        r.prepared_step = sfc_step_prepared(&shard->run->fsm);
        r.map_version = shard->run->map_version;
    }
    struct sfc_error err = {0};
    if (call(shard, "/shardfc.v1.Scheduler/RegisterShard", &r, REGISTER_DEADLINE_MS, registered,
             &err) != SFC_OK)
        retry(shard, err.text);
}

static void heartbeat_answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct sfc_shard *shard = ctx;
    if (shard->stopping)
        return;
    if (view->code != SFC_OK) {
        retry(shard, view->text);
        return;
    }
    Shardfc__V1__ShardHeartbeatReply *reply =
        sfc_unpack_reply(view->head, &shardfc__v1__shard_heartbeat_reply__descriptor, NULL);
    if (!reply) {
        retry(shard, "its answer is malformed, or memory is short");
        return;
    }
    bool known = reply->registered;
    if (reply->has_log_floor && shard->run && shard->run->open && shard->run->id == reply->run_id)
        sfc_durability_trim(shard->run, reply->log_floor);
    if (reply->incarnation > shard->incarnation)
        shard->incarnation = reply->incarnation;
    sfc_message_free(reply);
    if (known)
        later(shard, HEARTBEAT_PAUSE_MS);
    else
        retry(shard, "it does not know this shard");
}

/* "refused_<status>": how many calls ended with it. */
static size_t fill_counters(const struct sfc_shard *shard, Shardfc__V1__Counter *items,
                            Shardfc__V1__Counter **list, char (*names)[40])
{
    size_t n = 0;
    for (int code = 1; code < SFC_SHARD_COUNTERS; code++) {
        if (shard->refused[code] == 0)
            continue;
        snprintf(names[n], sizeof names[n], "refused_%s", sfc_status_name(code) + 4);
        shardfc__v1__counter__init(&items[n]);
        items[n].name = names[n];
        items[n].value = shard->refused[code];
        n++;
    }
    if (shard->zero_features) {
        snprintf(names[n], sizeof names[n], "zero_features");
        shardfc__v1__counter__init(&items[n]);
        items[n].name = names[n];
        items[n].value = shard->zero_features;
        n++;
    }
    for (size_t i = 0; i < n; i++)
        list[i] = &items[i];
    return n;
}

struct mirror_states {
    Shardfc__V1__MirrorState items[SFC_CORE_MAX_SHARDS], *list[SFC_CORE_MAX_SHARDS];
    Shardfc__V1__Attempt round;
};

static void fill_mirrors(const struct sfc_shard_run *run, Shardfc__V1__ShardHeartbeatRequest *r,
                         struct mirror_states *mirrors)
{
    struct sfc_attempt newest = sfc_step_newest_round(&run->fsm);
    mirrors->round.incarnation = newest.incarnation;
    mirrors->round.counter = newest.counter;
    r->n_mirrors = sfc_mirror_report(run, mirrors->items);
    for (size_t i = 0; i < r->n_mirrors; i++) {
        mirrors->list[i] = &mirrors->items[i];
        mirrors->items[i].round = &mirrors->round;
    }
    r->mirrors = mirrors->list;
}

/* What the heartbeat says about the run: its durability, and a recovery at work. */
static void fill_run(const struct sfc_shard_run *run, Shardfc__V1__ShardHeartbeatRequest *r,
                     Shardfc__V1__ShardDurability *durability, Shardfc__V1__ShardRecovery *recovery,
                     Shardfc__V1__MoveProgress *move, struct mirror_states *mirrors)
{
    r->run_id = run->id;
    r->nonce = run->nonce;
    r->staged_bytes = sfc_move_memory(run);
    r->memory_bytes = run->resident + run->on_device + r->staged_bytes;
    if (run->open) {
        r->step_ms = sfc_shard_step_ms(run);
        r->step = sfc_step_applied(&run->fsm);
        sfc_durability_report(run, durability);
        r->durability = durability;
        r->move = sfc_move_report(run, move) ? move : NULL;
        fill_mirrors(run, r, mirrors);
    } else if (run->durability.recovers) {
        recovery->step = atomic_load(&run->durability.recovery.step);
        recovery->to_step = run->durability.recovery.last.step;
        recovery->eta_s = 1e-3 * (double)atomic_load(&run->durability.recovery.eta_ms);
        r->recovery = recovery;
    }
}

static void heartbeat_now(struct sfc_shard *shard)
{
    Shardfc__V1__Counter items[SFC_SHARD_COUNTERS + 1], *list[SFC_SHARD_COUNTERS + 1];
    char names[SFC_SHARD_COUNTERS + 1][40];
    Shardfc__V1__ShardHeartbeatRequest r = SHARDFC__V1__SHARD_HEARTBEAT_REQUEST__INIT;
    r.shard = shard->id;
    r.boot_id = shard->boot_id;
    Shardfc__V1__ShardDurability durability = SHARDFC__V1__SHARD_DURABILITY__INIT;
    Shardfc__V1__ShardRecovery recovery = SHARDFC__V1__SHARD_RECOVERY__INIT;
    Shardfc__V1__MoveProgress move = SHARDFC__V1__MOVE_PROGRESS__INIT;
    struct mirror_states mirrors = {.round = SHARDFC__V1__ATTEMPT__INIT};
    if (shard->run)
        fill_run(shard->run, &r, &durability, &recovery, &move, &mirrors);
    r.n_counters = fill_counters(shard, items, list, names);
    r.counters = list;
    struct sfc_error err = {0};
    if (call(shard, "/shardfc.v1.Scheduler/ShardHeartbeat", &r, heartbeat_deadline(shard),
             heartbeat_answered, &err) != SFC_OK)
        retry(shard, err.text);
}

static void on_timer(uv_timer_t *timer)
{
    struct sfc_shard *shard = timer->data;
    if (shard->id)
        heartbeat_now(shard);
    else
        register_now(shard);
}

int sfc_shard_register_start(struct sfc_shard *shard, struct sfc_error *err)
{
    int code = sfc_rpc_client_new(shard->rpc, shard->options->scheduler, &shard->scheduler, err);
    if (code != SFC_OK)
        return sfc_prefix(err, "--scheduler");
    uv_timer_init(shard->uv, &shard->timer);
    shard->timer.data = shard;
    uv_timer_init(shard->uv, &shard->tick);
    shard->tick.data = shard;
    uv_timer_init(shard->uv, &shard->pin);
    shard->pin.data = shard;
    uv_timer_init(shard->uv, &shard->moves);
    shard->moves.data = shard;
    uv_timer_init(shard->uv, &shard->end);
    shard->end.data = shard;
    shard->timer_open = true;
    bool several = sfc_rpc_client_addresses(shard->scheduler) > 1;
    shard->backoff = sfc_backoff(BACKOFF_FIRST_MS, several ? SWITCH_BACKOFF_MAX_MS : BACKOFF_MAX_MS,
                                 shard->boot_id);
    later(shard, 0);
    return SFC_OK;
}

void sfc_shard_register_stop(struct sfc_shard *shard)
{
    if (!shard->timer_open)
        return;
    shard->timer_open = false;
    uv_close((uv_handle_t *)&shard->timer, NULL);
    uv_close((uv_handle_t *)&shard->tick, NULL);
    uv_close((uv_handle_t *)&shard->pin, NULL);
    uv_close((uv_handle_t *)&shard->moves, NULL);
    uv_close((uv_handle_t *)&shard->end, NULL);
}
