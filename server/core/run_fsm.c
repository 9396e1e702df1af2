#include "server/core/run_fsm.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/run_internal.h"

static const char *const state_names[] = {
    [SFC_RUN_IDLE] = "idle",         [SFC_RUN_LOADING] = "loading", [SFC_RUN_RUNNING] = "running",
    [SFC_RUN_PAUSED] = "paused",     [SFC_RUN_HELD] = "held",       [SFC_RUN_BLOCKED] = "blocked",
    [SFC_RUN_FINISHED] = "finished", [SFC_RUN_FAILED] = "failed",
};

const char *sfc_run_state_name(enum sfc_run_state state)
{
    return state_names[state];
}

bool sfc_run_transient(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT || code == SFC_ECANCELED ||
           code == SFC_ELIMIT;
}

/* ---- memory */

static void set_defaults(struct sfc_run_config *c)
{
    c->lead_steps = c->lead_steps ? c->lead_steps : 3;
    c->durable_every = c->durable_every ? c->durable_every : 1;
    c->max_waiting = c->max_waiting ? c->max_waiting : 1024;
    c->ticket_wait_ms = c->ticket_wait_ms ? c->ticket_wait_ms : 2000;
    c->data_timeout_ms = c->data_timeout_ms ? c->data_timeout_ms : 30000;
    c->grant_timeout_ms = c->grant_timeout_ms ? c->grant_timeout_ms : 120000;
    c->retry_ms = c->retry_ms ? c->retry_ms : 200;
    c->hold_lease_ms = c->hold_lease_ms ? c->hold_lease_ms : 10000;
    c->hold_wait_ms = c->hold_wait_ms ? c->hold_wait_ms : 1000;
    c->take_wait_ms = c->take_wait_ms ? c->take_wait_ms : 10000;
    c->stall_ms = c->stall_ms ? c->stall_ms : 1000;
    c->max_shards = c->max_shards ? c->max_shards : SFC_CORE_MAX_SHARDS;
}

static int check_config(const struct sfc_run_config *c, struct sfc_error *err)
{
    int rc = sfc_schedule_check(&c->schedule, err);
    if (rc != SFC_OK)
        return rc;
    if (c->micro_batch < 1 || c->global_batch < 1 || c->global_batch % c->micro_batch != 0)
        return sfc_fail(err, SFC_EINVAL, "global batch %u is not a multiple of micro-batch %u",
                        c->global_batch, c->micro_batch);
    if (c->classes < 1 || c->start_step > c->schedule.steps)
        return sfc_fail(err, SFC_EINVAL,
                        "no classes, or step %llu beyond the %llu steps of the run",
                        (ull)c->start_step, (ull)c->schedule.steps);
    return SFC_OK;
}

static void begin_restored(struct sfc_run_fsm *run, const struct sfc_run_restore *restore)
{
    run->started = restore->state != SFC_RUN_LOADING;
    run->start_wanted = run->started; /* a run that was restored is past that, too */
    run->failed = restore->state == SFC_RUN_FAILED;
    run->restoring = !run->failed;
    run->paused = restore->paused || restore->state == SFC_RUN_PAUSED;
    run->paused_shown = run->paused;
    run->blocked = restore->state == SFC_RUN_BLOCKED;
    run->blocked_before_restart = run->blocked;
    if (run->failed)
        run->state = SFC_RUN_FAILED; /* it is so already: nothing to make durable */
    if (run->blocked || run->failed)
        snprintf(run->reason, sizeof(run->reason), "%s",
                 restore->reason && restore->reason[0] ? restore->reason
                                                       : "before the scheduler was restarted");
    if (restore->has_record) {
        run->commit.record = restore->record;
        run->commit.committed = restore->record.step;
    }
    for (size_t i = 0; i < restore->drop_count && SFC_PLANT_BUG != 8; i++)
        if (run->drop_count < run->drop_capacity)
            run->drops[run->drop_count++] = restore->drops[i];
    run->durable = run->commit.committed;
    run->durable_record = run->commit.record;
    run->moves.map_step = restore->map_step;
    run->moves.map_order = restore->map_order;
    sfc_run_apply_drops(run, run->durable + 1);
    run->commit.phase = SFC_PHASE_ROUND;
}

static void take_places(struct sfc_run_fsm *run, const uint64_t *ids)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        bool empty = ids && ids[k] == 0;
        run->shards[k].id = ids ? ids[k] : k;
        run->shards[k].place = empty ? SFC_PLACE_EMPTY : SFC_PLACE_MEMBER;
        sfc_commit_set_member(&run->commit, k, !empty);
    }
}

int sfc_run_init(struct sfc_run_fsm *run, const struct sfc_run_config *config,
                 const struct sfc_run_restore *restore, struct sfc_error *err)
{
    struct sfc_run_fsm n = {.config = *config, .state = SFC_RUN_LOADING, .blocked_j = UINT32_MAX};
    set_defaults(&n.config);
    int rc = check_config(&n.config, err);
    if (rc != SFC_OK)
        return rc;
    const struct sfc_run_config *c = &n.config;
    uint32_t micro_batches = c->global_batch / c->micro_batch;
    uint64_t committed = restore && restore->has_record ? restore->record.step : c->start_step;
    const struct sfc_tickets_config tickets = {.classes = c->classes,
                                               .micro_batches = micro_batches,
                                               .micro_batch = c->micro_batch,
                                               .lead_steps = c->lead_steps,
                                               .last_step = c->schedule.steps,
                                               .data_timeout_ms = c->data_timeout_ms,
                                               .grant_timeout_ms = c->grant_timeout_ms};
    const struct sfc_commit_config commit = {.shards = c->shards,
                                             .capacity = c->max_shards,
                                             .micro_batches = micro_batches,
                                             .global_batch = c->global_batch,
                                             .dense_blocks = c->dense_blocks,
                                             .clip = c->clip,
                                             .retry_ms = c->retry_ms};
    rc = sfc_tickets_init(&n.tickets, &tickets, c->incarnation, committed + 1, err);
    if (rc == SFC_OK)
        rc = sfc_commit_init(&n.commit, &commit, err);
    if (rc == SFC_OK)
        rc = sfc_lr_changes_init(&n.lr_changes, c->lr_changes, c->lr_change_count, &c->schedule,
                                 err);
    if (rc != SFC_OK)
        goto fail;
    n.shards = calloc(c->max_shards, sizeof(*n.shards));
    n.waiting = calloc(c->max_waiting, sizeof(*n.waiting));
    n.drop_capacity = 8 * micro_batches; /* and those that are being written */
    n.drops = calloc((size_t)n.drop_capacity + c->max_waiting, sizeof(*n.drops));
    if (!n.shards || !n.waiting || !n.drops) {
        rc = sfc_fail(err, SFC_ENOMEM, "run state");
        goto fail;
    }
    take_places(&n, c->shard_ids);
    n.moves.number = c->incarnation << 32; /* before the first order */
    n.config.shard_ids = NULL;             /* the caller's */
    n.config.lr_changes = NULL;
    n.commit.committed = committed;
    n.durable = committed;
    n.commit.round = n.tickets.last;
    if (restore)
        begin_restored(&n, restore);
    else
        sfc_commit_want_all(&n.commit, SFC_DUTY_OPEN);
    *run = n;
    return SFC_OK;
fail:
    sfc_run_free(&n);
    return rc;
}

void sfc_run_free(struct sfc_run_fsm *run)
{
    if (run->tickets.steps)
        sfc_tickets_free(&run->tickets);
    sfc_commit_free(&run->commit);
    sfc_lr_changes_free(&run->lr_changes);
    free(run->shards);
    free(run->waiting);
    free(run->drops);
    memset(run, 0, sizeof(*run));
}

int sfc_run_actions_init(struct sfc_run_actions *actions, const struct sfc_run_fsm *run,
                         struct sfc_error *err)
{
    size_t duties = (size_t)run->config.max_shards * SFC_DUTY_COUNT;
    size_t capacity = run->config.max_waiting + duties + 16;
    struct sfc_run_action *items = calloc(capacity, sizeof(*items));
    if (!items)
        return sfc_fail(err, SFC_ENOMEM, "run actions");
    *actions = (struct sfc_run_actions){.items = items, .capacity = capacity};
    return SFC_OK;
}

void sfc_run_actions_free(struct sfc_run_actions *actions)
{
    free(actions->items);
    memset(actions, 0, sizeof(*actions));
}

struct sfc_run_action *sfc_run_emit(struct sfc_run_actions *actions, enum sfc_run_action_type type)
{
    assert(actions->count < actions->capacity);
    struct sfc_run_action *a = &actions->items[actions->count++];
    memset(a, 0, sizeof(*a));
    a->type = type;
    return a;
}

void sfc_run_reply(struct sfc_run_actions *actions, uint64_t token, int code, const char *text)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY);
    a->token = token;
    a->code = code;
    a->text = text;
}

/* ---- moves of the step */

void sfc_run_fail(struct sfc_run_fsm *run, const char *text)
{
    if (run->failed || run->stopped)
        return;
    run->failed = true;
    snprintf(run->reason, sizeof(run->reason), "%s", text);
    sfc_commit_unwant_all(&run->commit);
}

/* Everything of the open step is void. A session doesn't survive that; one that is being opened,
 * and whose caller still waits, is opened in the new round. */
void sfc_run_new_round(struct sfc_run_fsm *run)
{
    sfc_commit_new_round(&run->commit, sfc_tickets_new_round(&run->tickets));
    run->session_attempt = (struct sfc_attempt){0};
    run->session = 0;
    for (uint32_t i = 0; i < run->waiting_count; i++)
        if (run->waiting[i].kind == SFC_WAITING_SESSION)
            run->session_wanted = true;
}

bool sfc_run_active(const struct sfc_run_fsm *run)
{
    return !run->failed && !run->stopped && run->started;
}

/* Somebody wants the run to stand still at this step. */
static bool stands_at(const struct sfc_run_fsm *run, uint64_t step)
{
    if (run->paused)
        return true;
    for (unsigned i = 0; i < SFC_MAX_HOLDS; i++)
        if (run->holds[i].id != 0 && run->holds[i].at_step <= step)
            return true;
    return false;
}

/* May the open step be prepared? Pause, block and holds close this gate. It stands still at a
 * durable step only: the next one will be. */
bool sfc_run_gate_open(const struct sfc_run_fsm *run)
{
    uint64_t committed = run->commit.committed;
    return !run->blocked && (!stands_at(run, committed) || run->durable < committed);
}

static bool is_provisional(const struct sfc_run_fsm *run, uint64_t step)
{
    return step % run->config.durable_every != 0 && step != run->config.schedule.steps &&
           !stands_at(run, step) && !sfc_run_wants_boundary(run);
}

bool sfc_run_busy(const struct sfc_run_fsm *run)
{
    return run->commit.phase == SFC_PHASE_PREPARE || run->commit.phase == SFC_PHASE_RECORD;
}

bool sfc_run_still(const struct sfc_run_fsm *run)
{
    const struct sfc_commit_fsm *c = &run->commit;
    return sfc_run_active(run) && !run->restoring && !sfc_run_rewinds(run) && !sfc_run_flips(run) &&
           !sfc_run_busy(run) && sfc_commit_idle(c, SFC_DUTY_COMMIT) &&
           sfc_commit_idle(c, SFC_DUTY_OPEN) && sfc_commit_idle(c, SFC_DUTY_SETMAP);
}

static void leave_loading(struct sfc_run_fsm *run)
{
    if (run->started || run->failed || run->stopped || run->restoring)
        return;
    run->started =
        sfc_commit_idle(&run->commit, SFC_DUTY_OPEN) && (!run->config.load || run->start_wanted);
}

static void leave_round(struct sfc_run_fsm *run)
{
    struct sfc_commit_fsm *c = &run->commit;
    if (c->phase != SFC_PHASE_ROUND || sfc_run_rewinds(run) ||
        (run->restoring && !sfc_run_all_known(run)) || !sfc_commit_idle(c, SFC_DUTY_ABORT) ||
        !sfc_commit_idle(c, SFC_DUTY_COMMIT) || !sfc_commit_idle(c, SFC_DUTY_OPEN) ||
        !sfc_commit_idle(c, SFC_DUTY_SETMAP))
        return;
    run->restoring = false;
    c->phase = SFC_PHASE_COLLECT;
}

static void open_session(struct sfc_run_fsm *run)
{
    if (!run->session_wanted || run->restoring || sfc_run_rewinds(run) ||
        run->commit.phase == SFC_PHASE_RECORD || run->finished)
        return;
    sfc_run_new_round(run);
    sfc_tickets_reset(&run->tickets, run->commit.committed + 1); /* it may have other batches */
    sfc_run_apply_drops(run, run->commit.committed + 1);
    run->session_wanted = false;
    run->session = run->config.incarnation << 32 | ++run->tickets.last.counter;
    run->session_attempt = run->tickets.last;
}

/* Labels are there; may the open step be planned? A step that a map waits for is the last one of
 * the old map. */
static bool may_plan(const struct sfc_run_fsm *run)
{
    const struct sfc_commit_fsm *c = &run->commit;
    bool boundary = sfc_run_wants_boundary(run) && run->durable == c->committed && !c->plan_sent;
    return !sfc_run_flips(run) && !boundary && sfc_commit_idle(c, SFC_DUTY_SETMAP);
}

/* Moves the open step as far as it goes. */
static void advance(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    struct sfc_commit_fsm *c = &run->commit;
    if (run->failed || run->stopped) {
        sfc_run_moves_advance(run, now_ms, actions);
        return;
    }
    sfc_run_set_lr_advance(run, actions);
    sfc_run_rewind_advance(run, actions);
    sfc_run_recover(run, actions);
    leave_loading(run);
    if (run->started)
        open_session(run);
    leave_round(run);
    leave_loading(run);
    if (!sfc_run_active(run))
        return;
    sfc_run_moves_advance(run, now_ms, actions);
    if (c->phase == SFC_PHASE_COLLECT && may_plan(run) &&
        sfc_tickets_complete(&run->tickets, c->committed + 1) &&
        !sfc_run_lr_open(run, c->committed + 1)) {
        c->phase = SFC_PHASE_COMPUTE;
        sfc_commit_plan(c, false);
    }
    if (c->phase == SFC_PHASE_COMPUTE && c->done_count == c->config.micro_batches &&
        sfc_run_gate_open(run) && run->rewind.phase != SFC_REWIND_ASKING &&
        !sfc_run_lr_open(run, c->committed + 1)) {
        c->phase = SFC_PHASE_PREPARE;
        run->provisional = is_provisional(run, c->committed + 1);
        sfc_commit_want_all(c, SFC_DUTY_PREPARE);
    }
    if ((c->phase == SFC_PHASE_COMPUTE || c->phase == SFC_PHASE_PREPARE) &&
        !sfc_run_wants_boundary(run) && sfc_tickets_complete(&run->tickets, c->committed + 2) &&
        !sfc_run_lr_open(run, c->committed + 2))
        sfc_commit_plan(c, true);
    if (c->committed == run->config.schedule.steps && sfc_run_still(run))
        run->finished = true;
}

void sfc_run_decide(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    double lr = sfc_run_lr(run, run->commit.committed + 1);
    if (sfc_commit_decide(&run->commit, lr, run->config.map_version, &run->error) != SFC_OK) {
        sfc_run_fail(run, run->error.text);
        return;
    }
    sfc_run_write_record(run, actions);
}

void sfc_run_write_record(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_WRITE_RECORD);
    a->step = run->commit.record.step;
    a->record = run->commit.record;
    a->provisional = run->provisional;
}

void sfc_run_apply_drops(struct sfc_run_fsm *run, uint64_t first_step)
{
    for (uint32_t i = 0; i < run->drop_count; i++)
        if (run->drops[i].step >= first_step)
            sfc_tickets_drop(&run->tickets, run->drops[i].step, run->drops[i].j);
}

static void note_durable(struct sfc_run_fsm *run)
{
    uint32_t kept = 0;
    run->durable = run->commit.committed;
    run->durable_record = run->commit.record;
    for (uint32_t i = 0; i < run->drop_count; i++)
        if (run->drops[i].step > run->durable)
            run->drops[kept++] = run->drops[i];
    run->drop_count = kept;
}

void sfc_run_durable(struct sfc_run_fsm *run, uint64_t step, struct sfc_run_actions *actions)
{
    struct sfc_commit_fsm *c = &run->commit;
    if (run->failed || run->stopped || c->phase != SFC_PHASE_RECORD || step != c->record.step)
        return;
    run->record_error[0] = '\0';
    sfc_commit_durable(c);
    if (!run->provisional)
        note_durable(run);
    sfc_tickets_advance(&run->tickets);
    sfc_run_apply_drops(run, run->tickets.open_step + run->config.lead_steps);
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_COMMITTED);
    a->step = step;
    a->record = c->record;
    if (c->record.skipped_in_row < SFC_SKIPPED_LIMIT)
        return;
    run->blocked = true;
    run->blocked_step = step;
    run->blocked_j = UINT32_MAX;
    snprintf(
        run->reason, sizeof(run->reason),
        "steps %llu..%llu were not finite and were skipped: lower the learning rate or look at "
        "the data, then resume",
        (ull)(step - c->record.skipped_in_row + 1), (ull)step);
}

/* ---- after each event */

static enum sfc_run_state derive_state(const struct sfc_run_fsm *run)
{
    if (run->stopped)
        return SFC_RUN_IDLE;
    if (run->failed)
        return SFC_RUN_FAILED;
    if (!run->started)
        return SFC_RUN_LOADING;
    if (run->finished)
        return SFC_RUN_FINISHED;
    if (run->blocked)
        return SFC_RUN_BLOCKED;
    if (run->paused)
        return SFC_RUN_PAUSED;
    return sfc_run_gate_open(run) || !sfc_run_still(run) ? SFC_RUN_RUNNING : SFC_RUN_HELD;
}

static void show_state(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    enum sfc_run_state state = derive_state(run);
    if (state == run->state && run->paused == run->paused_shown)
        return;
    run->state = state;
    run->paused_shown = run->paused;
    if (state != SFC_RUN_FAILED && state != SFC_RUN_BLOCKED)
        run->reason[0] = '\0';
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_STATE);
    a->state = state;
    a->paused = run->paused;
    a->text = run->reason;
}

static void send(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    uint32_t shard;
    enum sfc_duty duty;
    while (sfc_commit_next(&run->commit, now_ms, &shard, &duty)) {
        struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_SEND);
        a->shard = shard;
        a->duty = duty;
        sfc_commit_key(&run->commit, duty, &a->step, &a->round);
        a->life = run->shards[shard].life;
        a->number = sfc_run_move_number(run, shard, duty);
        a->recover = duty == SFC_DUTY_OPEN && run->started;
        a->provisional = duty == SFC_DUTY_PREPARE && run->provisional;
        if (duty == SFC_DUTY_PLAN || duty == SFC_DUTY_PLAN_NEXT)
            a->lr = sfc_run_lr(run, a->step);
        bool opens = a->recover || duty == SFC_DUTY_JOIN || duty == SFC_DUTY_ADOPT;
        if (duty == SFC_DUTY_COMMIT || (opens && run->commit.record.step == a->step))
            a->record = run->commit.record;
        if (duty == SFC_DUTY_CHECK) {
            a->step = run->rewind.step;
            a->record = run->rewind.record;
        }
    }
}

void sfc_run_step(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                  struct sfc_run_actions *actions)
{
    actions->count = 0;
#if SFC_PLANT_BUG == 6 /* Commit while the record is on its way */
    sfc_run_durable(run, run->commit.record.step, actions);
#endif
    sfc_run_handle(run, event, actions);
    advance(run, event->now_ms, actions);
    show_state(run, actions);
    sfc_run_serve(run, event->now_ms, actions);
    send(run, event->now_ms, actions);
}

/* ---- what others read */

uint64_t sfc_run_committed(const struct sfc_run_fsm *run)
{
    return run->commit.committed;
}

uint64_t sfc_run_durable_step(const struct sfc_run_fsm *run)
{
    return run->durable;
}

double sfc_run_lr(const struct sfc_run_fsm *run, uint64_t step)
{
    return sfc_lr_of_step(&run->lr_changes, &run->config.schedule, step);
}

const uint64_t *sfc_run_labels(struct sfc_run_fsm *run, uint64_t step)
{
    if (!sfc_tickets_complete(&run->tickets, step))
        return NULL;
    return sfc_tickets_step(&run->tickets, step)->labels;
}

const struct sfc_done *sfc_run_done(const struct sfc_run_fsm *run, uint32_t j)
{
    if (j >= run->commit.config.micro_batches || !run->commit.done[j].filled)
        return NULL;
    return &run->commit.done[j];
}

uint64_t sfc_run_second_grants(const struct sfc_run_fsm *run)
{
    return run->tickets.second_grants;
}

uint64_t sfc_run_second_data(const struct sfc_run_fsm *run)
{
    return run->tickets.second_data;
}

uint32_t sfc_run_held(const struct sfc_run_fsm *run, uint64_t worker)
{
    return sfc_tickets_held(&run->tickets, worker);
}

void sfc_run_waits_for(struct sfc_run_fsm *run, char *out, size_t size)
{
    const struct sfc_commit_fsm *c = &run->commit;
    const struct sfc_ticket_step *s = sfc_tickets_step(&run->tickets, c->committed + 1);
    if (size == 0)
        return;
    out[0] = '\0';
    bool record = c->phase == SFC_PHASE_RECORD;
    if (run->failed || run->stopped)
        return;
    if (record && run->record_error[0]) { /* first: lost shards wait for it too */
        snprintf(out, size, "the durable record of step %llu: %s", (ull)c->record.step,
                 run->record_error);
        return;
    }
    if (sfc_run_waits_for_lr(run, out, size) || sfc_run_waits_for_rewind(run, out, size) ||
        sfc_run_waits_for_map(run, out, size) || sfc_run_waits_for_shard(run, out, size) ||
        run->finished)
        return;
    if (!run->started)
        snprintf(out, size, "start");
    else if (record)
        snprintf(out, size, "the durable record of step %llu", (ull)c->record.step);
    else if (c->phase == SFC_PHASE_COLLECT && s)
        snprintf(out, size, "labels of step %llu: %u of %u", (ull)s->step, s->announced,
                 c->config.micro_batches);
    else if (s)
        snprintf(out, size, "micro-batches of step %llu: %u of %u", (ull)s->step, c->done_count,
                 c->config.micro_batches);
}
