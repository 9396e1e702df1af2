/* shardfc checkpoint: reads every block as it was after one step from its owner. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/ctl/checkpoint.h"
#include "server/ctl/hold.h"
#include "server/ctl/pins.h"

#define STATUS_DEADLINE_MS 10000
#define SILENT_S           60.0 /* a scheduler that doesn't answer for so long is not waited for */
#define AGAIN_MS           200

struct checkpoint_options {
    const char *scheduler, *out;
    struct sfc_security security;
    bool json;
    uint64_t at_step;
};

#define AT(field) offsetof(struct checkpoint_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "out",
     .type = SFC_OPTION_STRING,
     .offset = AT(out),
     .min = 1,
     .metavar = "DIR",
     .help = "directory to create",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "at-step",
     .type = SFC_OPTION_U64,
     .offset = AT(at_step),
     .metavar = "T",
     .help =
         "the state after this step, which may be in the future or a little in the past; default: "
         "the newest step"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc checkpoint",
    .summary =
        "Writes the whole state of the run after one step to a directory, while the run goes on: "
        "the shards make it from their snapshots and step logs. With shards that keep none "
        "(--durable off) the run stands still while it is read.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* Where the state comes from: of a step while the run goes on, or of a run that stands still. */
struct source {
    struct sfc_pins pins;
    struct sfc_hold hold;
    bool held;
};

static const Shardfc__V1__RunConfig *config_of(const struct source *s)
{
    return s->held ? sfc_hold_reply(&s->hold)->config : sfc_pins_config(&s->pins);
}

static uint64_t step_of(const struct source *s)
{
    return s->held ? sfc_hold_reply(&s->hold)->step : s->pins.step;
}

static int copy_part(struct source *s, struct sfc_checkpoint_writer *writer,
                     Shardfc__V1__BlockKind kind, uint64_t block, Shardfc__V1__BlockPart part,
                     float *piece, struct sfc_error *err)
{
    uint64_t elements = sfc_config_part_elements(config_of(s), step_of(s), kind, block, part);
    int code = SFC_OK;
    for (uint64_t done = 0; done < elements && code == SFC_OK; done += SFC_HOLD_PIECE) {
        uint64_t count = elements - done < SFC_HOLD_PIECE ? elements - done : SFC_HOLD_PIECE;
        code = s->held ? sfc_hold_read(&s->hold, kind, block, part, done, count, piece, err)
                       : sfc_pins_read(&s->pins, kind, block, part, done, count, piece, err);
        if (code == SFC_OK) {
            code = sfc_checkpoint_append(writer, piece, count, err);
        }
    }
    return code;
}

static int copy_block(struct source *s, struct sfc_checkpoint_writer *writer,
                      Shardfc__V1__BlockKind kind, uint64_t block, float *piece,
                      struct sfc_error *err)
{
    int code = sfc_checkpoint_begin(writer, kind, block, err);
    for (int part = 0; part < SFC_CHECKPOINT_PARTS && code == SFC_OK; part++) {
        code = copy_part(s, writer, kind, block, (Shardfc__V1__BlockPart)part, piece, err);
    }
    return code == SFC_OK ? sfc_checkpoint_end(writer, err) : code;
}

static int copy_all(struct source *s, struct sfc_checkpoint_writer *writer, float *piece,
                    struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "checkpoint", .unit = "blocks"};
    uint64_t total = 0;
    uint64_t done = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        total += sfc_config_block_count(config_of(s), (Shardfc__V1__BlockKind)kind);
    }
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        uint64_t count = sfc_config_block_count(config_of(s), (Shardfc__V1__BlockKind)kind);
        for (uint64_t b = 0; b < count; b++) {
            int code = copy_block(s, writer, (Shardfc__V1__BlockKind)kind, b, piece, err);
            if (code != SFC_OK) {
                return code;
            }
            sfc_command_progress(&progress, ++done, total);
        }
    }
    return SFC_OK;
}

/* Of the changes that were made up to now, those that the steps after this one need. */
static int copy_lr(const Shardfc__V1__StatusReply *status, uint64_t step,
                   struct sfc_checkpoint_writer *writer, struct sfc_error *err)
{
    size_t count = 0;
    struct sfc_checkpoint_lr *changes = calloc(status->n_lr_changes + 1, sizeof *changes);
    if (changes == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for changes of the learning rate");
    }
    for (size_t i = 0; i < status->n_lr_changes; i++) {
        const Shardfc__V1__LrChange *c = status->lr_changes[i];
        bool over =
            i + 1 < status->n_lr_changes && status->lr_changes[i + 1]->from_step <= step + 1;
        if (!over && (count > 0 || c->lr > 0)) {
            changes[count++] = (struct sfc_checkpoint_lr){c->from_step, c->lr};
        }
    }
    int code = sfc_checkpoint_set_lr(writer, changes, count, err);
    free(changes);
    return code;
}

/* A scheduler that restarts is waited for, and a command that was stopped for a while finds the
 * deadline passed when it goes on. The answer is the caller's. */
static int ask_status(struct sfc_cluster *cluster, struct sfc_answer *answer, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_command_waiting waiting = {0};
    double silent_since = 0;
    int code;
    for (;;) {
        code = sfc_cluster_scheduler(cluster, "Status", &request.base,
                                     &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS,
                                     answer, err);
        double now = sfc_command_clock();
        silent_since = silent_since == 0 ? now : silent_since;
        if (!sfc_command_is_silence(code) || now - silent_since >= SILENT_S) {
            break;
        }
        sfc_command_waiting(&waiting, err->text);
        sfc_command_wait(AGAIN_MS);
    }
    sfc_command_waited(&waiting);
    return code;
}

static int take_lr(struct sfc_cluster *cluster, uint64_t step, struct sfc_checkpoint_writer *writer,
                   struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    int code = ask_status(cluster, &answer, err);
    if (code == SFC_OK) {
        code = copy_lr((const Shardfc__V1__StatusReply *)answer.message, step, writer, err);
    }
    sfc_answer_free(&answer);
    return code;
}

static void say_removed(void *ctx, const char *path)
{
    (void)ctx;
    fprintf(stderr, "shardfc checkpoint: removed %s, which a checkpoint that did not finish left\n",
            path);
}

static int take(struct source *s, struct sfc_cluster *cluster, const char *out,
                char digest[SFC_DIGEST_HEX], struct sfc_error *err)
{
    struct sfc_checkpoint_writer *writer = NULL;
    float *piece = malloc(SFC_HOLD_PIECE * sizeof *piece);
    int code = piece != NULL ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "out of memory for a piece");
    if (code == SFC_OK) {
        sfc_checkpoint_remove_stale(out, say_removed, NULL);
        code = sfc_checkpoint_create(out, config_of(s), step_of(s), &writer, err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__BlockMap *map =
            s->held ? sfc_hold_reply(&s->hold)->map : sfc_pins_map(&s->pins);
        uint64_t start = s->held ? s->hold.start_classes : s->pins.start_classes;
        code = take_lr(cluster, step_of(s), writer, err);
        if (code == SFC_OK && map->n_growths > 0) {
            code = sfc_checkpoint_set_growths(writer, start, map->growths, map->n_growths, err);
        }
        if (code == SFC_OK) {
            code = copy_all(s, writer, piece, err);
        }
        if (code == SFC_OK) {
            code = sfc_checkpoint_finish(writer, digest, err);
        } else {
            sfc_checkpoint_discard(writer);
        }
    }
    free(piece);
    return code;
}

/* Shards that can't give a step while the run goes on give it while the run stands still. */
static int open_source(struct source *s, struct sfc_cluster *cluster, uint64_t at_step,
                       struct sfc_error *err)
{
    int code = sfc_pins_acquire(&s->pins, cluster, at_step, err);
    if (code != SFC_EUNSUPPORTED && code != SFC_ENOMEM) {
        return code;
    }
    sfc_pins_release(&s->pins);
    fprintf(stderr, "shardfc checkpoint: %s: the run stands still while its state is read\n",
            err->text);
    s->held = true;
    return sfc_hold_acquire(&s->hold, cluster, at_step, err);
}

static void close_source(struct source *s)
{
    sfc_pins_release(&s->pins);
    sfc_hold_release(&s->hold);
}

int sfc_cmd_checkpoint(int argc, char **argv)
{
    struct checkpoint_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct source source = {0};
    uint64_t step = 0;
    char digest[SFC_DIGEST_HEX];
    int code = sfc_checkpoint_may_create(o.out, &err); /* before anybody waits for a step */
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    }
    if (code == SFC_OK) {
        code = open_source(&source, cluster, o.at_step, &err);
        if (code == SFC_OK) {
            step = step_of(&source);
            code = take(&source, cluster, o.out, digest, &err);
        }
        close_source(&source);
    }
    if (code == SFC_OK && o.json) {
        sfc_command_json(
            json_pack("{s:I, s:s, s:s}", "step", (json_int_t)step, "digest", digest, "dir", o.out));
    } else if (code == SFC_OK) {
        printf("step %" PRIu64 " digest %s in %s\n", step, digest, o.out);
    }
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("checkpoint", &err);
}
