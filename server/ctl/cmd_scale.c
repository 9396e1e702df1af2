/* shardfc scale, drain, rebalance. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/move_plan.h"
#include "server/ctl/command.h"

#define SCALE_DEADLINE_MS  60000
#define STATUS_DEADLINE_MS 10000
#define LOOK_MS            250
#define SILENT_S           60  /* a scheduler that doesn't answer for so long is not waited for */
#define BACK_S             3.0 /* longer than the map of a loss is on its way to the store */

struct scale_options {
    const char *scheduler;
    struct sfc_security security;
    uint64_t shards;
    bool cancel, dry_run, no_wait, json, lost;
};

#define AT(field) offsetof(struct scale_options, field)
/* What all three have in common. */
#define COMMON_OPTIONS                                                                             \
    SFC_COMMAND_SCHEDULER(AT(scheduler)), SFC_SECURITY_OPTIONS(AT(security)),                      \
        {.name = "dry-run",                                                                        \
         .type = SFC_OPTION_BOOL,                                                                  \
         .offset = AT(dry_run),                                                                    \
         .help = "only say what would move, how much that is and how long it would take",          \
         .flags = SFC_OPTION_FLAG_ONLY},                                                           \
        {.name = "no-wait",                                                                        \
         .type = SFC_OPTION_BOOL,                                                                  \
         .offset = AT(no_wait),                                                                    \
         .help =                                                                                   \
             "return as soon as the scheduler has noted it; `shardfc status` shows how far it is", \
         .flags = SFC_OPTION_FLAG_ONLY},                                                           \
        SFC_COMMAND_JSON(AT(json))
static const struct sfc_option rebalance_table[] = {COMMON_OPTIONS};
static const struct sfc_option drain_table[] = {
    COMMON_OPTIONS,
    {.name = "lost",
     .type = SFC_OPTION_BOOL,
     .offset = AT(lost),
     .help = "the shard's machine is lost for good: others, which mirror it (`shardfc create "
             "--mirror`), restore its blocks from their own disks, now and not only after the "
             "run's grace time. Refused while the shard answers, and while no mirror is complete",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_option scale_table[] = {
    COMMON_OPTIONS,
    {.name = "shards",
     .type = SFC_OPTION_U64,
     .offset = AT(shards),
     .min = 1,
     .max = SFC_CORE_MAX_SHARDS,
     .metavar = "N",
     .help = "how many shards the run is to have; waits for shards that must still register"},
    {.name = "cancel",
     .type = SFC_OPTION_BOOL,
     .offset = AT(cancel),
     .help = "end what scale, drain or rebalance began; blocks stay where they are then",
     .flags = SFC_OPTION_FLAG_ONLY},
};

/* What was asked for. */
struct wish {
    const char *command;
    Shardfc__V1__ScaleRequest request;
    struct sfc_goal goal; /* the same, as Status names it */
    char text[64];
};

static void wish_for(struct wish *w, Shardfc__V1__ScaleRequest__Action action,
                     enum sfc_goal_kind kind)
{
    w->request.action = action;
    w->goal =
        (struct sfc_goal){.kind = kind, .shards = w->request.shards, .shard = w->request.shard};
    sfc_goal_text(&w->goal, w->text, sizeof w->text);
}

/* ---- what the scheduler plans */

static json_t *plan_json(const struct wish *w, const Shardfc__V1__ScaleReply *r, const char *state)
{
    json_t *moves = json_array();
    for (size_t i = 0; i < r->n_moves; i++) {
        const Shardfc__V1__PlannedMove *m = r->moves[i];
        bool dense = m->kind == SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK;
        json_array_append_new(
            moves, json_pack("{s:s, s:I, s:I, s:I, s:I}", "kind", dense ? "dense" : "class",
                             "block", (json_int_t)m->block, "from", (json_int_t)m->from, "to",
                             (json_int_t)m->to, "bytes", (json_int_t)m->bytes));
    }
    return json_pack("{s:s, s:s, s:o, s:I, s:f, s:s, s:I}", "goal", w->text, "state", state,
                     "moves", moves, "bytes", (json_int_t)r->bytes, "estimated_s", r->estimated_s,
                     "explanation", r->explanation, "map_version", (json_int_t)r->map_version);
}

/* One line for each pair of shards, in the order in which they begin. */
static void print_pairs(FILE *out, const Shardfc__V1__ScaleReply *r)
{
    for (size_t i = 0; i < r->n_moves; i++) {
        const Shardfc__V1__PlannedMove *m = r->moves[i];
        uint64_t blocks = 0, bytes = 0;
        bool first = true;
        for (size_t j = 0; j < r->n_moves; j++) {
            if (r->moves[j]->from != m->from || r->moves[j]->to != m->to) {
                continue;
            }
            first = first && j >= i;
            blocks++;
            bytes += r->moves[j]->bytes;
        }
        if (first) {
            fprintf(out, "shard %" PRIu64 " -> shard %" PRIu64 ": %" PRIu64 " blocks, %.1f MiB\n",
                    m->from, m->to, blocks, (double)bytes / (1 << 20));
        }
    }
}

static void print_plan(FILE *out, const struct wish *w, const Shardfc__V1__ScaleReply *r)
{
    fprintf(out, "%s: %s", w->text, r->explanation);
    print_pairs(out, r);
}

/* ---- how far it is */

struct watch {
    const struct wish *wish;
    struct sfc_command_progress progress;
    struct sfc_command_waiting waiting;
    uint64_t run_id;
    uint64_t number;   /* of the goal in the run; 0: an old scheduler does not count them */
    double silent;     /* since when the scheduler doesn't answer; 0: it does */
    double back_since; /* a shard that is to be given up answers; 0: it doesn't */
};

static uint64_t members(const Shardfc__V1__StatusReply *s, uint64_t shard)
{
    uint64_t n = 0;
    for (size_t i = 0; i < s->n_shards; i++) {
        n += s->shards[i]->member && (shard == 0 || s->shards[i]->id == shard);
    }
    return n;
}

/* What the run is like when the wish is fulfilled; it may be so before. */
static bool looks_reached(const struct wish *w, const Shardfc__V1__StatusReply *s)
{
    return w->goal.kind == SFC_GOAL_SHARDS  ? members(s, 0) == w->goal.shards
           : w->goal.kind == SFC_GOAL_DRAIN ? members(s, w->goal.shard) == 0
                                            : true;
}

static bool counts_as_reached(const struct watch *w, const Shardfc__V1__StatusReply *s)
{
    return w->number != 0 && s->goal_reached == w->number;
}

/* The scheduler works towards nothing any more: because it is there? When a later goal was reached
 * too, or the scheduler doesn't count, it is seen by what the run is like. */
static int check_reached(const struct watch *w, const Shardfc__V1__StatusReply *s,
                         struct sfc_error *err)
{
    bool known = w->number != 0 && s->goal_reached <= w->number;
    if (known ? counts_as_reached(w, s) : looks_reached(w->wish, s)) {
        return SFC_OK;
    }
    return sfc_fail(err, SFC_ESTATE,
                    "it was taken back: somebody cancelled it, or asked for something else "
                    "meanwhile (`shardfc events` says who). Blocks that have moved stay where they "
                    "are, the run has %" PRIu64 " shards; ask again to go on",
                    members(s, 0));
}

static void show(struct watch *w, const Shardfc__V1__StatusReply *s)
{
    uint64_t done = s->goal_moved;
    for (size_t i = 0; i < s->n_moves; i++) {
        done += s->moves[i]->copied;
    }
    const char *waits = s->goal + strlen(w->wish->text);
    bool mib = s->goal_bytes >= 64u << 20;
    if (*waits == ':' && s->goal_bytes <= s->goal_moved) {
        char text[256];
        snprintf(text, sizeof text, "%.60s%.180s", w->wish->text, waits);
        sfc_command_waiting(&w->waiting, text);
    } else if (s->goal_bytes > 0) {
        unsigned shift = mib ? 20 : 10;
        uint64_t total = s->goal_bytes >> shift;
        sfc_command_waited(&w->waiting);
        w->progress.what = w->wish->text;
        w->progress.unit = mib ? "MiB" : "KiB";
        sfc_command_progress(&w->progress, done >> shift < total ? done >> shift : total, total);
    }
}

/* *over: there is nothing more to wait for. */
static int look(struct watch *w, const Shardfc__V1__StatusReply *s, bool *over,
                struct sfc_error *err)
{
    size_t length = strlen(w->wish->text);
    bool ours = strncmp(s->goal, w->wish->text, length) == 0 &&
                (s->goal[length] == '\0' || s->goal[length] == ':');
    bool other_run = w->run_id != 0 && s->run_id != w->run_id;
    bool ended = strcmp(s->state, "finished") == 0 || strcmp(s->state, "failed") == 0 ||
                 strcmp(s->state, "idle") == 0 || other_run;
    w->run_id = s->run_id;
    w->silent = 0;
    *over = s->goal[0] == '\0' || !ours || ended;
    if (!other_run && counts_as_reached(w, s)) {
        *over = true;
        return SFC_OK;
    }
    if (s->goal[0] == '\0' && (!ended || check_reached(w, s, NULL) == SFC_OK)) {
        return check_reached(w, s, err);
    }
    if (ended) {
        return sfc_fail(err, SFC_ESTATE, "run %s is %s; its shards change no more", s->run,
                        s->state);
    }
    if (!ours) {
        return sfc_fail(err, SFC_ESTATE,
                        "something else was asked for meanwhile: %s (`shardfc events` says by "
                        "whom)",
                        s->goal);
    }
    w->number = s->goal_number > w->number ? s->goal_number : w->number; /* asked for again */
    show(w, s);
    return SFC_OK;
}

/* A scheduler that restarts goes on with it, so silence is waited out for a while. */
static int look_silent(struct watch *w, const struct sfc_error *why, struct sfc_error *err)
{
    double now = sfc_command_clock();
    if (w->silent == 0) {
        w->silent = now;
    }
    sfc_command_waiting(&w->waiting, why->text);
    return now - w->silent < SILENT_S ? SFC_OK : sfc_fail(err, why->code, "%s", why->text);
}

static int wait_for(struct sfc_cluster *cluster, const struct wish *wish, uint64_t number,
                    struct sfc_error *err)
{
    struct watch w = {.wish = wish, .number = number};
    bool over = false;
    int code = SFC_OK;
    while (code == SFC_OK && !over) {
        Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
        struct sfc_answer answer = {0};
        struct sfc_error why;
        if (sfc_cluster_scheduler(cluster, "Status", &request.base,
                                  &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS,
                                  &answer, &why) == SFC_OK) {
            code = look(&w, (const Shardfc__V1__StatusReply *)answer.message, &over, err);
        } else {
            code = look_silent(&w, &why, err);
        }
        sfc_answer_free(&answer);
        if (code == SFC_OK && !over) {
            sfc_command_wait(LOOK_MS);
        }
    }
    sfc_command_waited(&w.waiting);
    sfc_command_progress_end(&w.progress);
    return code;
}

static void report(const struct scale_options *o, const struct wish *w,
                   const Shardfc__V1__ScaleReply *r, const char *state)
{
    if (o->json) {
        sfc_command_json(plan_json(w, r, state));
    } else if (o->dry_run || o->no_wait) {
        print_plan(stdout, w, r);
    } else {
        printf("%s: %s\n", w->text, state);
    }
}

/* ---- a shard that is lost */

static int ask(struct sfc_cluster *cluster, const struct wish *w, struct sfc_answer *out,
               struct sfc_error *err)
{
    return sfc_cluster_insist(cluster, "Scale", &w->request.base,
                              &shardfc__v1__scale_reply__descriptor, SCALE_DEADLINE_MS, out, err);
}

static const Shardfc__V1__ShardStatus *status_of(const Shardfc__V1__StatusReply *s, uint64_t shard)
{
    for (size_t i = 0; i < s->n_shards; i++) {
        if (s->shards[i]->id == shard) {
            return s->shards[i];
        }
    }
    return NULL;
}

/* *over: it is no member any more. A shard that answers again keeps its place. */
static int look_lost(struct watch *w, const Shardfc__V1__StatusReply *s, bool *over,
                     struct sfc_error *err)
{
    uint64_t shard = w->wish->request.shard;
    const Shardfc__V1__ShardStatus *h = status_of(s, shard);
    bool other_run = w->run_id != 0 && s->run_id != w->run_id;
    w->run_id = other_run ? w->run_id : s->run_id;
    w->silent = 0;
    if (other_run || strcmp(s->state, "idle") == 0 || strcmp(s->state, "failed") == 0) {
        return sfc_fail(err, SFC_ESTATE,
                        "the run %s, and shard %" PRIu64 " was not given up (`shardfc events`)",
                        other_run ? "has ended" : "has failed or was stopped", shard);
    }
    *over = h == NULL || !h->member;
    bool back = !*over && strcmp(h->state, "gone") != 0 && h->missing_s <= 0;
    double now = sfc_command_clock();
    w->back_since = !back ? 0 : w->back_since != 0 ? w->back_since : now;
    if (back && now - w->back_since >= BACK_S) {
        return sfc_fail(err, SFC_ESTATE, "shard %" PRIu64 " answers again, and keeps its blocks",
                        shard);
    }
    sfc_command_waiting(&w->waiting, *over || h->loss[0] == '\0' ? s->reason : h->loss);
    return SFC_OK;
}

static int wait_lost(struct sfc_cluster *cluster, const struct wish *wish, struct sfc_error *err)
{
    struct watch w = {.wish = wish};
    bool over = false;
    int code = SFC_OK;
    while (code == SFC_OK && !over) {
        Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
        struct sfc_answer answer = {0};
        struct sfc_error why;
        if (sfc_cluster_scheduler(cluster, "Status", &request.base,
                                  &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS,
                                  &answer, &why) == SFC_OK) {
            code = look_lost(&w, (const Shardfc__V1__StatusReply *)answer.message, &over, err);
        } else {
            code = look_silent(&w, &why, err);
        }
        sfc_answer_free(&answer);
        if (code == SFC_OK && !over) {
            sfc_command_wait(LOOK_MS);
        }
    }
    sfc_command_waited(&w.waiting);
    return code;
}

/* ---- the commands */

static int give_up(const struct scale_options *o, struct sfc_cluster *cluster, struct wish *w,
                   struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    bool waits = !o->dry_run && !o->no_wait;
    snprintf(w->text, sizeof w->text, "shard %" PRIu64 " is lost", w->request.shard);
    w->request.dry_run = o->dry_run;
    int code = ask(cluster, w, &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__ScaleReply *r = (const Shardfc__V1__ScaleReply *)answer.message;
    const char *state = o->dry_run ? "planned" : o->no_wait ? "noted" : "done";
    if (waits) {
        fprintf(stderr, "%s: %s\n", w->text, r->explanation);
        code = wait_lost(cluster, w, err);
    }
    if (code == SFC_OK && o->json) {
        sfc_command_json(plan_json(w, r, state));
    } else if (code == SFC_OK) {
        printf("%s: %s\n", w->text, waits ? state : r->explanation);
    }
    sfc_answer_free(&answer);
    return code;
}

static int carry_out(const struct scale_options *o, struct sfc_cluster *cluster, struct wish *w,
                     struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    bool cancel = w->request.action == SHARDFC__V1__SCALE_REQUEST__ACTION__CANCEL;
    w->request.dry_run = o->dry_run;
    int code = ask(cluster, w, &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__ScaleReply *r = (const Shardfc__V1__ScaleReply *)answer.message;
    if (cancel) {
        snprintf(w->text, sizeof w->text, "cancel");
        report(o, w, r, "done");
    } else if (o->dry_run || o->no_wait) {
        report(o, w, r, o->dry_run ? "planned" : "noted");
    } else {
        print_plan(stderr, w, r);
        code = wait_for(cluster, w, r->goal, err);
        if (code == SFC_OK) {
            report(o, w, r, "done");
        }
    }
    sfc_answer_free(&answer);
    return code;
}

/* The id of a shard that is named by its id or its address. */
static int find_shard(struct sfc_cluster *cluster, const char *name, uint64_t *id,
                      struct sfc_error *err)
{
    char *end = NULL;
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    *id = strtoull(name, &end, 10);
    if (name[0] >= '0' && name[0] <= '9' && *end == '\0' && *id != 0) {
        return SFC_OK;
    }
    int code = sfc_cluster_scheduler(cluster, "Status", &request.base,
                                     &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS,
                                     &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__StatusReply *s = (const Shardfc__V1__StatusReply *)answer.message;
    *id = 0;
    for (size_t i = 0; i < s->n_shards; i++) {
        *id = strcmp(s->shards[i]->address, name) == 0 ? s->shards[i]->id : *id;
    }
    sfc_answer_free(&answer);
    return *id != 0
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL,
                          "there is no shard %s; `shardfc status` lists ids and addresses", name);
}

/* name: of the shard to be drained, NULL: another command. */
static int make_wish(const struct scale_options *o, struct sfc_cluster *cluster, const char *name,
                     struct wish *w, struct sfc_error *err)
{
    bool scale = strcmp(w->command, "scale") == 0;
    if (scale && (o->shards != 0) == o->cancel) {
        return sfc_fail(err, SFC_EINVAL, "give either --shards N or --cancel");
    }
    if (o->cancel && o->dry_run) {
        return sfc_fail(err, SFC_EINVAL, "--cancel has no --dry-run: nothing moves because of it");
    }
    w->request.shards = (uint32_t)o->shards;
    if (name != NULL) {
        int code = find_shard(cluster, name, &w->request.shard, err);
        if (code != SFC_OK) {
            return code;
        }
        wish_for(w, SHARDFC__V1__SCALE_REQUEST__ACTION__DRAIN, SFC_GOAL_DRAIN);
        if (o->lost) {
            w->request.action = SHARDFC__V1__SCALE_REQUEST__ACTION__LOST;
        }
    } else if (scale && o->cancel) {
        wish_for(w, SHARDFC__V1__SCALE_REQUEST__ACTION__CANCEL, SFC_GOAL_NONE);
    } else if (scale) {
        wish_for(w, SHARDFC__V1__SCALE_REQUEST__ACTION__SHARDS, SFC_GOAL_SHARDS);
    } else {
        wish_for(w, SHARDFC__V1__SCALE_REQUEST__ACTION__REBALANCE, SFC_GOAL_REBALANCE);
    }
    return SFC_OK;
}

static int run(const struct sfc_program *program, int argc, char **argv)
{
    struct scale_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct wish w = {.command = argv[0], .request = SHARDFC__V1__SCALE_REQUEST__INIT};
    const char *name =
        sfc_options_argument_count(parsed) > 0 ? sfc_options_argument(parsed, 0) : NULL;
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK) {
        code = make_wish(&o, cluster, name, &w, &err);
    }
    if (code == SFC_OK) {
        code = o.lost ? give_up(&o, cluster, &w, &err) : carry_out(&o, cluster, &w, &err);
    }
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}

int sfc_cmd_scale(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc scale",
        .summary =
            "Changes the number of shards of a run that goes on. Shards that are there and not "
            "part of the run join, or shards give their blocks away and leave; as few blocks move "
            "as possible, every shard's step takes about as long afterwards, and the result of the "
            "training stays the same bit for bit. Waits until it is done, with progress; without "
            "this command (Ctrl-C, --no-wait) it goes on, also over a restart of the scheduler.",
        .options = scale_table,
        .count = sizeof scale_table / sizeof *scale_table,
    };
    return run(&program, argc, argv);
}

int sfc_cmd_drain(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc drain",
        .summary =
            "Every block of a shard moves to the others, and then the shard leaves the run: "
            "its process can be stopped. SHARD is its id or its address. One whose machine is "
            "lost for good is given up with --lost.",
        .options = drain_table,
        .count = sizeof drain_table / sizeof *drain_table,
        .arguments = "SHARD",
        .min_arguments = 1,
        .max_arguments = 1,
    };
    return run(&program, argc, argv);
}

int sfc_cmd_rebalance(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc rebalance",
        .summary =
            "Moves blocks between the shards of the run until every shard's step takes about as "
            "long, by the rows that steps sampled of each block and by how long each shard took.",
        .options = rebalance_table,
        .count = sizeof rebalance_table / sizeof *rebalance_table,
    };
    return run(&program, argc, argv);
}
