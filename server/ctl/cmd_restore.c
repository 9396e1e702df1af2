/* shardfc restore, shardfc verify. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/ctl/checkpoint.h"
#include "server/ctl/command.h"

#define CREATE_DEADLINE_MS 600000
#define PIECE_ELEMENTS     (1u << 18)
#define KEEP_POLL_MS       20

struct restore_options {
    const char *scheduler, *from, *run;
    struct sfc_security security;
    uint64_t rewind_window, durable_every, mirrors, grace_ms;
    int elastic;
    bool json;
};

#define AT(field) offsetof(struct restore_options, field)
static const struct sfc_option restore_table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "from",
     .type = SFC_OPTION_STRING,
     .offset = AT(from),
     .min = 1,
     .metavar = "DIR",
     .help = "checkpoint directory",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "run",
     .type = SFC_OPTION_STRING,
     .offset = AT(run),
     .metavar = "NAME",
     .help = "name of the run; default: as in the checkpoint"},
    SFC_KEEPING_OPTIONS(AT(durable_every), AT(rewind_window), AT(elastic), AT(mirrors),
                        AT(grace_ms)),
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program restore_program = {
    .name = "shardfc restore",
    .summary =
        "Starts a run from a checkpoint, on however many shards there are now. It goes on with "
        "the bits of the run that was checkpointed.",
    .options = restore_table,
    .count = sizeof restore_table / sizeof *restore_table,
};

struct loading {
    struct sfc_cluster *cluster;
    const struct sfc_checkpoint *checkpoint;
    uint64_t run_id;
    const Shardfc__V1__BlockMap *map;
    float *block;
};

static uint64_t largest_block(const struct sfc_checkpoint *checkpoint)
{
    uint64_t largest = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        Shardfc__V1__BlockKind k = (Shardfc__V1__BlockKind)kind;
        for (uint64_t b = 0; b < sfc_checkpoint_block_count(checkpoint, k); b++) {
            uint64_t floats = sfc_checkpoint_block_floats(checkpoint, k, b);
            largest = floats > largest ? floats : largest;
        }
    }
    return largest;
}

static int send_piece(struct loading *l, const char *address,
                      Shardfc__V1__WriteBlockRequest *request, const float *values, uint64_t count,
                      struct sfc_error *err)
{
    Shardfc__V1__TensorType type = SHARDFC__V1__TENSOR_TYPE__INIT;
    struct sfc_answer answer = {0};
    type.dtype = SHARDFC__V1__DTYPE__DTYPE_F32;
    type.n_shape = 1;
    type.shape = &count;
    request->payload_type = &type;
    struct sfc_bytes tensor = {(const uint8_t *)values, count * sizeof *values};
    int code = sfc_cluster_shard(l->cluster, address, "WriteBlock", &request->base, tensor,
                                 &shardfc__v1__empty__descriptor, &answer, err);
    sfc_answer_free(&answer);
    return code;
}

/* One part, whose values lie at `values`. */
static int send_part(struct loading *l, const char *address, Shardfc__V1__BlockKind kind,
                     uint64_t block, Shardfc__V1__BlockPart part, const float *values,
                     uint64_t elements, struct sfc_error *err)
{
    int code = SFC_OK;
    for (uint64_t at = 0; at < elements && code == SFC_OK; at += PIECE_ELEMENTS) {
        uint64_t count = elements - at < PIECE_ELEMENTS ? elements - at : PIECE_ELEMENTS;
        Shardfc__V1__WriteBlockRequest request = SHARDFC__V1__WRITE_BLOCK_REQUEST__INIT;
        request.run_id = l->run_id;
        request.kind = kind;
        request.block = block;
        request.part = part;
        request.offset = at;
        code = send_piece(l, address, &request, values + at, count, err);
    }
    return code;
}

/* The block that was read, to one shard. */
static int send_to(struct loading *l, const char *address, Shardfc__V1__BlockKind kind,
                   uint64_t block, struct sfc_error *err)
{
    const float *values = l->block;
    int code = SFC_OK;
    for (int part = 0; part < SFC_CHECKPOINT_PARTS && code == SFC_OK; part++) {
        uint64_t elements = sfc_config_part_elements(sfc_checkpoint_config(l->checkpoint),
                                                     sfc_checkpoint_step(l->checkpoint), kind,
                                                     block, (Shardfc__V1__BlockPart)part);
        code =
            send_part(l, address, kind, block, (Shardfc__V1__BlockPart)part, values, elements, err);
        values += elements;
    }
    return code;
}

/* A block goes to its owner, the history to every shard. */
static int send_block(struct loading *l, Shardfc__V1__BlockKind kind, uint64_t block,
                      struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = l->map;
    int code = sfc_checkpoint_read(l->checkpoint, kind, block, l->block, err);
    if (code != SFC_OK) {
        return code;
    }
    if (kind != SHARDFC__V1__BLOCK_KIND__HISTORY) {
        const uint32_t *owner =
            kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK ? map->class_owner : map->dense_owner;
        return send_to(l, map->shards[owner[block]]->address, kind, block, err);
    }
    for (size_t i = 0; i < map->n_shards && code == SFC_OK; i++) {
        code = send_to(l, map->shards[i]->address, kind, block, err);
    }
    return code;
}

static int check_map(const struct loading *l, struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = l->map;
    bool good = map != NULL &&
                map->n_class_owner == sfc_checkpoint_block_count(
                                          l->checkpoint, SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK) &&
                map->n_dense_owner ==
                    sfc_checkpoint_block_count(l->checkpoint, SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK);
    for (size_t i = 0; good && i < map->n_class_owner; i++) {
        good = map->class_owner[i] < map->n_shards;
    }
    for (size_t i = 0; good && i < map->n_dense_owner; i++) {
        good = map->dense_owner[i] < map->n_shards;
    }
    return good ? SFC_OK
                : sfc_fail(err, SFC_ECORRUPT,
                           "the scheduler's block map does not fit the checkpoint");
}

static int send_all(struct loading *l, struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "restore", .unit = "blocks"};
    uint64_t total = 0;
    uint64_t done = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        total += sfc_checkpoint_block_count(l->checkpoint, (Shardfc__V1__BlockKind)kind);
    }
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        Shardfc__V1__BlockKind k = (Shardfc__V1__BlockKind)kind;
        for (uint64_t b = 0; b < sfc_checkpoint_block_count(l->checkpoint, k); b++) {
            int code = send_block(l, k, b, err);
            if (code != SFC_OK) {
                return code;
            }
            sfc_command_progress(&progress, ++done, total);
        }
    }
    return SFC_OK;
}

static int keep_on(struct loading *l, const char *address, bool *kept, struct sfc_error *err)
{
    Shardfc__V1__KeepBlocksRequest request = SHARDFC__V1__KEEP_BLOCKS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    request.run_id = l->run_id;
    int code =
        sfc_cluster_shard(l->cluster, address, "KeepBlocks", &request.base, (struct sfc_bytes){0},
                          &shardfc__v1__keep_blocks_reply__descriptor, &answer, err);
    if (code == SFC_OK) {
        *kept = ((const Shardfc__V1__KeepBlocksReply *)answer.message)->kept;
    }
    sfc_answer_free(&answer);
    return code;
}

/* Until every shard has all of it on its disk: a run that is started survives the death of any of
 * them. */
static int keep_all(struct loading *l, struct sfc_error *err)
{
    for (;;) {
        size_t kept = 0;
        int code = SFC_OK;
        for (size_t i = 0; i < l->map->n_shards && code == SFC_OK; i++) {
            bool done = false;
            code = keep_on(l, l->map->shards[i]->address, &done, err);
            kept += done;
        }
        if (code != SFC_OK || kept == l->map->n_shards) {
            return code;
        }
        sfc_command_wait(KEEP_POLL_MS);
    }
}

static int control(struct sfc_cluster *cluster, Shardfc__V1__ControlRequest__Action action,
                   uint64_t run_id, struct sfc_error *err)
{
    Shardfc__V1__ControlRequest request = SHARDFC__V1__CONTROL_REQUEST__INIT;
    struct sfc_answer answer = {0};
    request.action = action;
    request.run_id = run_id;
    int code = sfc_cluster_scheduler(cluster, "Control", &request.base,
                                     &shardfc__v1__control_reply__descriptor, CREATE_DEADLINE_MS,
                                     &answer, err);
    sfc_answer_free(&answer);
    return code;
}

static int load(struct loading *l, struct sfc_error *err)
{
    int code = check_map(l, err);
    if (code == SFC_OK) {
        l->block = malloc((size_t)(largest_block(l->checkpoint) + 1) * sizeof *l->block);
        code = l->block == NULL ? sfc_fail(err, SFC_ENOMEM, "out of memory for a block") : SFC_OK;
    }
    if (code == SFC_OK) {
        code = send_all(l, err);
    }
    if (code == SFC_OK) {
        code = keep_all(l, err);
    }
    if (code == SFC_OK) {
        return control(l->cluster, SHARDFC__V1__CONTROL_REQUEST__ACTION__START, l->run_id, err);
    }
    struct sfc_error first = *err, second;
    bool stopped = control(l->cluster, SHARDFC__V1__CONTROL_REQUEST__ACTION__STOP, l->run_id,
                           &second) == SFC_OK;
    return sfc_fail(err, code, "%.300s; %s", first.text,
                    stopped
                        ? "the run was stopped: restore it again"
                        : "the run may still be loading: `shardfc stop`, then restore it again");
}

/* The changes of the learning rate go on with the run. *items is the caller's to free. */
static int take_lr(const struct sfc_checkpoint *checkpoint, Shardfc__V1__CreateRunRequest *request,
                   Shardfc__V1__LrChange **items, struct sfc_error *err)
{
    const struct sfc_checkpoint_lr *changes;
    size_t count = sfc_checkpoint_lr(checkpoint, &changes);
    *items = calloc(count + 1, sizeof **items);
    request->lr_changes = calloc(count + 1, sizeof(Shardfc__V1__LrChange *));
    if (*items == NULL || request->lr_changes == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for changes of the learning rate");
    }
    for (size_t i = 0; i < count; i++) {
        shardfc__v1__lr_change__init(&(*items)[i]);
        (*items)[i].from_step = changes[i].from_step;
        (*items)[i].lr = changes[i].lr;
        request->lr_changes[i] = &(*items)[i];
    }
    request->n_lr_changes = count;
    return SFC_OK;
}

static int restore(const struct restore_options *o, const struct sfc_checkpoint *checkpoint,
                   uint64_t *run_id, struct sfc_error *err)
{
    struct loading l = {.checkpoint = checkpoint};
    struct sfc_answer answer = {0};
    Shardfc__V1__RunConfig config = *sfc_checkpoint_config(checkpoint);
    Shardfc__V1__CreateRunRequest request = SHARDFC__V1__CREATE_RUN_REQUEST__INIT;
    Shardfc__V1__RunKeeping keeping = SHARDFC__V1__RUN_KEEPING__INIT;
    if (o->run != NULL) {
        config.name = (char *)(uintptr_t)o->run;
    }
    keeping.rewind_window = o->rewind_window;
    keeping.durable_every = (uint32_t)o->durable_every;
    keeping.elastic = o->elastic == 1;
    keeping.mirrors = (uint32_t)o->mirrors;
    keeping.grace_s = (uint32_t)((o->grace_ms + 999) / 1000);
    config.classes = sfc_checkpoint_start_classes(checkpoint);
    Shardfc__V1__Growth *const *growths;
    request.n_growths = sfc_checkpoint_growths(checkpoint, &growths);
    request.growths = (Shardfc__V1__Growth **)(uintptr_t)growths;
    request.config = &config;
    request.keeping = &keeping;
    request.load = true;
    request.start_step = sfc_checkpoint_step(checkpoint);
    Shardfc__V1__LrChange *lr_changes = NULL;
    int code = take_lr(checkpoint, &request, &lr_changes, err);
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o->scheduler, &o->security, &l.cluster, err);
    }
    if (code == SFC_OK) {
        code = sfc_cluster_scheduler(l.cluster, "CreateRun", &request.base,
                                     &shardfc__v1__create_run_reply__descriptor, CREATE_DEADLINE_MS,
                                     &answer, err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__CreateRunReply *reply =
            (const Shardfc__V1__CreateRunReply *)answer.message;
        l.run_id = reply->run_id;
        l.map = reply->map;
        *run_id = reply->run_id;
        code = load(&l, err);
    }
    free(l.block);
    free(lr_changes);
    free(request.lr_changes);
    sfc_answer_free(&answer);
    sfc_cluster_close(l.cluster);
    return code;
}

static void print_state(const struct sfc_checkpoint *checkpoint, bool json, uint64_t run_id)
{
    if (json) {
        json_t *object =
            json_pack("{s:I, s:s}", "step", (json_int_t)sfc_checkpoint_step(checkpoint), "digest",
                      sfc_checkpoint_digest(checkpoint));
        if (run_id != 0) {
            json_object_set_new(object, "run_id", json_integer((json_int_t)run_id));
        }
        sfc_command_json(object);
    } else {
        printf("step %" PRIu64 " digest %s\n", sfc_checkpoint_step(checkpoint),
               sfc_checkpoint_digest(checkpoint));
    }
}

int sfc_cmd_restore(int argc, char **argv)
{
    struct restore_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&restore_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_checkpoint *checkpoint = NULL;
    uint64_t run_id = 0;
    int code = sfc_checkpoint_open(o.from, &checkpoint, &err);
    if (code == SFC_OK) {
        code = restore(&o, checkpoint, &run_id, &err);
    }
    if (code == SFC_OK) {
        print_state(checkpoint, o.json, run_id);
    }
    sfc_checkpoint_close(checkpoint);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("restore", &err);
}

/* ---- verify */

static const struct sfc_option verify_table[] = {
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program verify_program = {
    .name = "shardfc verify",
    .summary = "Reads a whole checkpoint, checks every checksum and prints step and state digest.",
    .arguments = "DIR",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = verify_table,
    .count = sizeof verify_table / sizeof *verify_table,
};

int sfc_cmd_verify(int argc, char **argv)
{
    struct restore_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&verify_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_checkpoint *checkpoint = NULL;
    int code = sfc_checkpoint_open(sfc_options_argument(parsed, 0), &checkpoint, &err);
    if (code == SFC_OK) {
        code = sfc_checkpoint_verify(checkpoint, &err);
    }
    if (code == SFC_OK) {
        print_state(checkpoint, o.json, 0);
    }
    sfc_checkpoint_close(checkpoint);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("verify", &err);
}
