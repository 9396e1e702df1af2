/* A shard's process, and the run in it: how it is opened, recovered and brought back to an earlier
 * step (server/shard/run.c, durability.c, way_back.c). */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- crash and return */

static void forget_run(struct shard *sh)
{
    sfc_step_free(&sh->fsm);
    sfc_step_actions_free(&sh->actions);
    memset(sh->class_state, 0, sizeof(sh->class_state));
    memset(sh->dense_state, 0, sizeof(sh->dense_state));
    memset(sh->sample, 0, sizeof(sh->sample));
    memset(sh->slots, 0, sizeof(sh->slots));
    sh->opened++;
    sh->has_run = false;
    sh->recovering = false;
    sh->unsettled = sh->settling = sh->flush_waits = sh->lost = false;
    sh->checks_back = false;
    sh->joins = false;
    memset(&sh->map, 0, sizeof(sh->map));
    sh->staged = (struct staged){.move = sh->staged.move}; /* no older one comes after it */
    sh->back_until = sh->kept_until = 0;
    sh->top = UINT64_MAX;
}

void shard_kill(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    if (!sh->up)
        return;
    s->counts.crashes++;
    forget_run(sh);
    sh->up = false;
    sh->life++;
    sh->registering = false;
    sh->id = 0;
    sh->incarnation = 0;
    sh->order = 0;
    sh->staged.move = 0;
    sh->left_round = (struct sfc_attempt){0, 0};
    sh->boot_id = mix(sh->boot_id, sh->life) | 1;
    sh->busy_until = s->now;
    disk_crash(s, k);
    sim_after(s, 20 + sim_below(s, 2000), E_START_SHARD)->a = k;
    sim_log(s, "shard %u crashes, %u records in its log", k, sh->disk.count);
}

void shard_start(struct sim *s, uint32_t k)
{
    if (s->shards[k].vanished && s->now < s->shards[k].away_until) {
        sim_after(s, s->shards[k].away_until - s->now, E_START_SHARD)->a = k;
        return;
    }
    s->shards[k].up = true;
    sim_log(s, "shard %u is up again", k);
}

/* ---- answers */

void shard_refuse(struct sim *s, uint64_t token, int code, const char *text)
{
    struct body answer = {.code = code};
    strncpy(answer.text, text, sizeof(answer.text) - 1);
    sim_answer(s, token, &answer);
}

void shard_unavailable(struct sim *s, uint64_t token, const char *text)
{
    shard_refuse(s, token, SFC_EUNAVAILABLE, text);
}

static void answer_open(struct sim *s, uint32_t k, uint64_t token)
{
    struct body answer = {.code = SFC_OK};
    sfc_step_opened(&s->shards[k].fsm);
    answer.value = sfc_step_applied(&s->shards[k].fsm);
    sim_answer(s, token, &answer);
}

/* ---- OpenRun */

static void open_machine(struct sim *s, uint32_t k, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    uint32_t own = 0;
    sh->map = b->map;
    for (uint32_t d = 0; d < s->d && sh->map.member[k]; d++)
        own += mirror_pushed(s, &sh->map, k, d);
    const struct sfc_step_config config = {.run_id = RUN_ID,
                                           .incarnation = b->incarnation,
                                           .map_version = b->map.version,
                                           .start_step = b->recover || sh->joins ? b->value : 0,
                                           .joins = sh->joins,
                                           .round = b->round,
                                           .global_batch = s->j * ROWS,
                                           .micro_batch = ROWS,
                                           .dense_blocks = own,
                                           .max_parked = 256};
    struct sfc_error err;
    if (sfc_step_init(&sh->fsm, &config, &err) != SFC_OK ||
        sfc_step_actions_init(&sh->actions, &sh->fsm, &err) != SFC_OK)
        sim_fail(s, "shard %u: %s", k, err.text);
    sh->lineage.count = b->return_count;
    memcpy(sh->lineage.returns, b->returns, b->return_count * sizeof(*b->returns));
    sh->durable_step = config.start_step;
}

/* A replay takes its time; it is answered when the blocks are there. */
static void begin_recovery(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    struct event *e = sim_after(s, 20 + sim_below(s, 1500), E_RECOVERED);
    sh->recovering = true;
    sh->unsettled = true;
    sh->top = b->value;
    sh->open_token = token;
    sh->open = *b;
    open_machine(s, k, b);
    disk_settle_grown(s, k, &sh->map);
    disk_keep_owned(s, k, &sh->map, NULL);
    e->a = k;
    e->b = sh->opened;
}

static struct sfc_commit_record last_commit(const struct body *b)
{
    return (struct sfc_commit_record){.step = b->value,
                                      .round = b->attempt,
                                      .clip_scale = b->clip_scale,
                                      .lr = b->lr,
                                      .apply = b->apply};
}

static void refuse_open(struct sim *s, uint32_t k, int code, const char *text)
{
    struct shard *sh = &s->shards[k];
    uint64_t token = sh->open_token;
    forget_run(sh);
    shard_refuse(s, token, code, text);
}

/* Makes all of the log durable. True: a write failed, which may take steps along. */
static bool disk_fails(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    if (s->now < s->chaos_end && !sh->fsm.flushing && sim_chance(s, s->flush_error_ppm)) {
        s->counts.flush_errors++;
        disk_write_failed(s, k);
        sh->lost = true;
        return true;
    }
    sh->disk.flushed = sh->disk.count;
    return false;
}

void shard_recovered(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    const struct sfc_commit_record last = last_commit(&sh->open);
    uint64_t replayed;
    enum disk_result result = disk_recover(s, k, &last, true, &replayed);
    if (result == DISK_LACKS && disk_put_back(s, k)) {
        shard_kill(s, k);
        return;
    }
    if (result == DISK_LACKS && sh->vanished) {
        refuse_open(s, k, SFC_ESTATE, "the disk is empty");
        return;
    }
    if (result == DISK_LACKS && last.step <= s->store.last) {
        sim_fail(s, "I3: shard %u can't recover step %llu", k, (ull)last.step);
        return;
    }
    if (result == DISK_LACKS) { /* on the way to a step that is not durable */
        refuse_open(s, k, SFC_ECORRUPT, "a step is not in the log");
        return;
    }
    if (result == DISK_ASKS_LATER) {
        refuse_open(s, k, SFC_EUNAVAILABLE, "another shard may have a step that is lost here");
        return;
    }
    if (disk_fails(s, k)) {
        refuse_open(s, k, SFC_EIO, "no space left on device");
        return;
    }
    uint64_t first = disk_first_logged(&sh->disk);
    s->counts.recoveries++;
    if (k == s->bad_disk)
        disk_copy_does(s);
    sh->recovering = false;
    sh->vanished = sh->vanished && last.step < s->store.last; /* a rewind may come to nothing */
    sh->has_run = true;
    sh->trimmed = first ? first - 1 : last.step;
    sim_log(s, "shard %u has recovered step %llu, replayed %llu", k, (ull)last.step, (ull)replayed);
    answer_open(s, k, sh->open_token);
}

/* What is answered may become durable at the scheduler. */
static void make_durable(struct sim *s, uint32_t k, uint64_t token)
{
    struct event *e = sim_after(s, 1 + sim_below(s, 20), E_MADE_DURABLE);
    e->a = k;
    e->b = s->shards[k].opened;
    e->c = token;
}

void shard_made_durable(struct sim *s, uint32_t k, const struct event *e)
{
    struct shard *sh = &s->shards[k];
    if (!sh->up || s->tokens[e->c].life != sh->life)
        return;
    if (e->b != sh->opened)
        shard_unavailable(s, e->c, "the run was closed");
    else if (sh->lost || disk_fails(s, k))
        shard_refuse(s, e->c, SFC_EIO, "the disk failed");
    else
        answer_open(s, k, e->c);
}

static void leave_run(struct sim *s, uint32_t k, struct sfc_attempt round)
{
    struct shard *sh = &s->shards[k];
    if (sh->recovering)
        shard_refuse(s, sh->open_token, SFC_ESTALE, "the run is opened anew");
    sh->left_round = round;
    disk_close(s, k);
    forget_run(sh);
    sh->closing_until = s->now + sim_below(s, 300);
}

void shard_close_run(struct sim *s, uint32_t k, uint64_t token)
{
    struct shard *sh = &s->shards[k];
    const struct body ok = {.code = SFC_OK};
    if (sh->has_run || sh->recovering)
        leave_run(s, k, (struct sfc_attempt){0, 0});
    sim_answer(s, token, &ok);
}

void shard_join_run(struct sim *s, uint32_t k, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    if (sh->has_run || sh->recovering)
        leave_run(s, k, (struct sfc_attempt){0, 0});
    memset(&sh->disk, 0, sizeof(sh->disk));
    sh->vanished = false;
    sh->joins = true;
    open_machine(s, k, b);
    sh->has_run = true;
    sh->trimmed = b->value;
}

/* The run is here. True: the call was answered; false: it is opened anew. */
static bool keep_open(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    enum sfc_step_open way =
        sfc_step_opens_map(&sh->fsm, b->round, b->recover, b->value, b->map.version);
    if (way == SFC_STEP_OPEN_STALE)
        shard_refuse(s, token, SFC_ESTALE, "an older round or map");
    else if (sh->recovering)
        shard_unavailable(s, token, "the run is being opened");
    else if (way == SFC_STEP_OPEN_ANSWERED)
        answer_open(s, k, token);
    else if (way == SFC_STEP_OPEN_HERE && sh->lost)
        return false; /* only its disk knows where it is */
    else if (way == SFC_STEP_OPEN_HERE && b->recover && s->durable_every > 1 &&
             SFC_PLANT_BUG != 15) /* bug 15: a rewind's step that only the scheduler has durable */
        make_durable(s, k, token);
    else if (way == SFC_STEP_OPEN_HERE)
        answer_open(s, k, token);
    else
        return false;
    return true;
}

void shard_open_run(struct sim *s, uint32_t k, uint64_t token)
{
    struct shard *sh = &s->shards[k];
    const struct body *b = sim_request(s, token);
    if (b->move < sh->order) {
        shard_refuse(s, token, SFC_ESTALE, "of an older order");
        return;
    }
    if ((sh->has_run || sh->recovering) && keep_open(s, k, token, b))
        return;
    if (sfc_attempt_compare(b->round, sh->left_round) < 0) {
        shard_refuse(s, token, SFC_ESTALE, "older than the round that was left");
        return;
    }
    if (sh->has_run)
        leave_run(s, k, b->round);
    if (s->now < sh->closing_until) {
        shard_unavailable(s, token, "closing what was open");
        return;
    }
    sh->order = b->move;
    if (b->recover) {
        begin_recovery(s, k, token, b);
        return;
    }
    memset(&sh->disk, 0, sizeof(sh->disk));
    sh->trimmed = 0;
    open_machine(s, k, b);
    sh->has_run = true;
    memcpy(sh->class_state, s->oracle.class_state[0], sizeof(sh->class_state));
    memcpy(sh->dense_state, s->oracle.dense_state[0], sizeof(sh->dense_state));
    answer_open(s, k, token);
}

/* ---- CheckRewind */

void shard_check_rewind(struct sim *s, uint32_t k, uint64_t token)
{
    struct shard *sh = &s->shards[k];
    const struct body *b = sim_request(s, token);
    uint64_t applied = sfc_step_applied(&sh->fsm);
    const struct body ok = {.code = SFC_OK};
    bool adopts = b->map.version != sh->map.version;
    if (applied <= b->step && !adopts) {
        sim_answer(s, token, &ok);
        return;
    }
    if (b->step < disk_oldest(s, k) && !adopts) {
        shard_refuse(s, token, SFC_ENOTFOUND, "the disk doesn't lead there");
        return;
    }
    if (sh->checks_back) {
        shard_unavailable(s, token, "the snapshots are at work");
        return;
    }
    struct event *e = sim_after(s, 1 + sim_below(s, 400), E_CHECKED);
    sh->checks_back = true;
    sh->back_until = sh->kept_until = applied + 1;
    sh->kept_back = b->step;
    e->a = k;
    e->b = sh->opened;
    e->c = token;
}

void shard_checked(struct sim *s, uint32_t k, const struct event *e)
{
    struct shard *sh = &s->shards[k];
    const struct body ok = {.code = SFC_OK};
    uint64_t replayed;
    if (!sh->up || s->tokens[e->c].life != sh->life)
        return;
    if (e->b != sh->opened) {
        shard_unavailable(s, e->c, "the run was closed");
        return;
    }
    const struct sfc_commit_record last = last_commit(sim_request(s, e->c));
    const struct map present = sh->map;
    sh->checks_back = false;
    if (sim_request(s, e->c)->map.version > present.version)
        sh->map = sim_request(s, e->c)->map;
    enum disk_result result = disk_recover(s, k, &last, false, &replayed);
    sh->map = present;
    switch (result) {
    case DISK_LEADS:
        sim_answer(s, e->c, &ok);
        break;
    case DISK_LACKS:
        shard_refuse(s, e->c, SFC_ENOTFOUND, "the disk lacks a step");
        break;
    case DISK_ASKS_LATER:
        shard_unavailable(s, e->c, "another shard may have a step that is lost here");
        break;
    }
}
