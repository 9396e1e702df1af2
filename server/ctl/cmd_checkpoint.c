/* shardfc checkpoint: holds the run at a step, reads every block from its owner, lets the run go
 * on. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/ctl/checkpoint.h"
#include "server/ctl/command.h"

#define HOLD_DEADLINE_MS 30000
#define PIECE_ELEMENTS   (1u << 18) /* 1 MiB a call */

struct checkpoint_options {
    const char *scheduler, *out;
    bool json;
    uint64_t at_step;
};

#define AT(field) offsetof(struct checkpoint_options, field)
static const struct sfc_option table[] = {
    {.name = "scheduler",
     .type = SFC_OPTION_STRING,
     .offset = AT(scheduler),
     .fallback = SFC_DEFAULT_SCHEDULER,
     .metavar = "ADDR",
     .help = "scheduler to talk to"},
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
     .help = "wait for this step; default: the next step boundary"},
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = AT(json),
     .help = "print one JSON object",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program program = {
    .name = "shardfc checkpoint",
    .summary = "Writes the whole state of the run at one step to a directory. The run stands still "
               "while it is read.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* A hold is a lease: it is renewed between pieces when half of its time has passed. */
struct hold {
    struct sfc_cluster *cluster;
    struct sfc_answer answer;
    uint64_t id, run_id;
    double renewed; /* seconds */
};

static const Shardfc__V1__HoldReply *hold_reply(const struct hold *hold)
{
    return (const Shardfc__V1__HoldReply *)hold->answer.message;
}

static int ask_hold(struct hold *hold, uint64_t at_step, struct sfc_error *err)
{
    Shardfc__V1__HoldRequest request = SHARDFC__V1__HOLD_REQUEST__INIT;
    struct sfc_answer answer = {0};
    request.run_id = hold->run_id;
    request.at_step = at_step;
    request.hold_id = hold->id;
    int code =
        sfc_cluster_scheduler(hold->cluster, "Hold", &request.base,
                              &shardfc__v1__hold_reply__descriptor, HOLD_DEADLINE_MS, &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    sfc_answer_free(&hold->answer);
    hold->answer = answer;
    hold->id = hold_reply(hold)->hold_id;
    hold->run_id = hold_reply(hold)->run_id;
    hold->renewed = sfc_command_clock();
    return SFC_OK;
}

static int acquire(struct hold *hold, uint64_t at_step, struct sfc_error *err)
{
    int code;
    do {
        code = ask_hold(hold, at_step, err);
    } while (code == SFC_OK && !hold_reply(hold)->held);
    return code;
}

static int renew(struct hold *hold, struct sfc_error *err)
{
    double half = 0.0005 * (double)hold_reply(hold)->lease_ms;
    if (sfc_command_clock() - hold->renewed < half) {
        return SFC_OK;
    }
    uint64_t step = hold_reply(hold)->step;
    int code = ask_hold(hold, step, err);
    if (code == SFC_OK && (!hold_reply(hold)->held || hold_reply(hold)->step != step)) {
        code = sfc_fail(err, SFC_ESTATE, "the hold at step %" PRIu64 " was lost; try again", step);
    }
    return code;
}

static void release(struct hold *hold)
{
    if (hold->id != 0) {
        struct sfc_error ignored; /* the lease ends by itself */
        struct sfc_answer answer = {0};
        Shardfc__V1__ReleaseRequest request = SHARDFC__V1__RELEASE_REQUEST__INIT;
        request.hold_id = hold->id;
        sfc_cluster_scheduler(hold->cluster, "Release", &request.base,
                              &shardfc__v1__empty__descriptor, HOLD_DEADLINE_MS, &answer, &ignored);
        sfc_answer_free(&answer);
    }
    sfc_answer_free(&hold->answer);
}

static int owner_address(const Shardfc__V1__BlockMap *map, Shardfc__V1__BlockKind kind,
                         uint64_t block, const char **out, struct sfc_error *err)
{
    bool is_class = kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK;
    if (kind == SHARDFC__V1__BLOCK_KIND__HISTORY && map != NULL && map->n_shards > 0) {
        *out = map->shards[0]->address; /* all have the same */
        return SFC_OK;
    }
    size_t count = map == NULL ? 0 : is_class ? map->n_class_owner : map->n_dense_owner;
    if (block >= count) {
        return sfc_fail(err, SFC_ECORRUPT, "block map has %zu blocks, block %" PRIu64 " is missing",
                        count, block);
    }
    uint32_t owner = is_class ? map->class_owner[block] : map->dense_owner[block];
    if (owner >= map->n_shards) {
        return sfc_fail(err, SFC_ECORRUPT, "block %" PRIu64 " has owner %u of %zu shards", block,
                        owner, map->n_shards);
    }
    *out = map->shards[owner]->address;
    return SFC_OK;
}

static int copy_part(struct hold *hold, struct sfc_checkpoint_writer *writer,
                     Shardfc__V1__ReadBlockRequest *request, uint64_t elements,
                     struct sfc_error *err)
{
    for (uint64_t done = 0; done < elements; done += request->count) {
        const char *address = NULL;
        struct sfc_answer answer = {0};
        int code = renew(hold, err);
        if (code == SFC_OK) {
            code =
                owner_address(hold_reply(hold)->map, request->kind, request->block, &address, err);
        }
        if (code != SFC_OK) {
            return code;
        }
        request->offset = done;
        request->count = elements - done < PIECE_ELEMENTS ? elements - done : PIECE_ELEMENTS;
        code = sfc_cluster_shard(hold->cluster, address, "ReadBlock", &request->base,
                                 (struct sfc_bytes){0}, &shardfc__v1__read_block_reply__descriptor,
                                 &answer, err);
        if (code == SFC_OK && answer.tensor.size != request->count * sizeof(float)) {
            code = sfc_fail(err, SFC_ECORRUPT,
                            "shard %s: %zu bytes of block %" PRIu64 ", expected %" PRIu64, address,
                            answer.tensor.size, request->block, request->count * sizeof(float));
        }
        if (code == SFC_OK) {
            code = sfc_checkpoint_append(writer, (const float *)(const void *)answer.tensor.data,
                                         request->count, err);
        }
        sfc_answer_free(&answer);
        if (code != SFC_OK) {
            return code;
        }
    }
    return SFC_OK;
}

static int copy_block(struct hold *hold, struct sfc_checkpoint_writer *writer,
                      Shardfc__V1__BlockKind kind, uint64_t block, struct sfc_error *err)
{
    int code = sfc_checkpoint_begin(writer, kind, block, err);
    for (int part = 0; part < SFC_CHECKPOINT_PARTS && code == SFC_OK; part++) {
        Shardfc__V1__ReadBlockRequest request = SHARDFC__V1__READ_BLOCK_REQUEST__INIT;
        request.run_id = hold->run_id;
        request.step = hold_reply(hold)->step;
        request.kind = kind;
        request.block = block;
        request.part = (Shardfc__V1__BlockPart)part;
        uint64_t elements = sfc_config_part_elements(hold_reply(hold)->config, request.step, kind,
                                                     block, request.part);
        code = copy_part(hold, writer, &request, elements, err);
    }
    return code == SFC_OK ? sfc_checkpoint_end(writer, err) : code;
}

static int copy_all(struct hold *hold, struct sfc_checkpoint_writer *writer, struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "checkpoint", .unit = "blocks"};
    uint64_t total = 0;
    uint64_t done = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        total += sfc_config_block_count(hold_reply(hold)->config, (Shardfc__V1__BlockKind)kind);
    }
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        uint64_t count =
            sfc_config_block_count(hold_reply(hold)->config, (Shardfc__V1__BlockKind)kind);
        for (uint64_t b = 0; b < count; b++) {
            int code = copy_block(hold, writer, (Shardfc__V1__BlockKind)kind, b, err);
            if (code != SFC_OK) {
                return code;
            }
            sfc_command_progress(&progress, ++done, total);
        }
    }
    return SFC_OK;
}

static int take(const struct checkpoint_options *o, struct hold *hold, uint64_t *step,
                char digest[SFC_DIGEST_HEX], struct sfc_error *err)
{
    struct sfc_checkpoint_writer *writer = NULL;
    int code = acquire(hold, o->at_step, err);
    if (code == SFC_OK && hold_reply(hold)->config == NULL) {
        code = sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no run configuration");
    }
    if (code == SFC_OK) {
        *step = hold_reply(hold)->step;
        code = sfc_checkpoint_create(o->out, hold_reply(hold)->config, *step, &writer, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    code = copy_all(hold, writer, err);
    if (code != SFC_OK) {
        sfc_checkpoint_discard(writer);
        return code;
    }
    return sfc_checkpoint_finish(writer, digest, err);
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
    struct hold hold = {0};
    uint64_t step = 0;
    char digest[SFC_DIGEST_HEX];
    int code = sfc_cluster_connect(o.scheduler, &hold.cluster, &err);
    if (code == SFC_OK) {
        code = take(&o, &hold, &step, digest, &err);
        release(&hold);
    }
    if (code == SFC_OK && o.json) {
        sfc_command_json(
            json_pack("{s:I, s:s, s:s}", "step", (json_int_t)step, "digest", digest, "dir", o.out));
    } else if (code == SFC_OK) {
        printf("step %" PRIu64 " digest %s in %s\n", step, digest, o.out);
    }
    sfc_cluster_close(hold.cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("checkpoint", &err);
}
