/* shardfc export: a checkpoint's weights as safetensors (u64 header length, JSON header, data). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/lag.h"
#include "server/ctl/checkpoint.h"
#include "server/ctl/command.h"

struct export_options {
    const char *checkpoint, *out, *format;
    bool json;
};

#define AT(field) offsetof(struct export_options, field)
static const struct sfc_option table[] = {
    {.name = "checkpoint",
     .type = SFC_OPTION_STRING,
     .offset = AT(checkpoint),
     .min = 1,
     .metavar = "DIR",
     .help = "checkpoint directory",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "format",
     .type = SFC_OPTION_STRING,
     .offset = AT(format),
     .fallback = "safetensors",
     .metavar = "FORMAT",
     .help = "safetensors"},
    {.name = "out",
     .type = SFC_OPTION_STRING,
     .offset = AT(out),
     .min = 1,
     .metavar = "FILE",
     .help = "file to write",
     .flags = SFC_OPTION_REQUIRED},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc export",
    .summary =
        "Writes the class centres (class_centres) and the backbone's parameters of a checkpoint "
        "to one file that other frameworks read.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

static uint64_t segment_length(const Shardfc__V1__DenseSegment *segment)
{
    uint64_t length = 1;
    for (size_t k = 0; k < segment->n_shape; k++) {
        length *= segment->shape[k];
    }
    return length;
}

static void add_tensor(json_t *header, const char *name, json_t *shape, uint64_t *offset,
                       uint64_t floats)
{
    json_object_set_new(header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", "F32", "shape", shape,
                                  "data_offsets", (json_int_t)*offset,
                                  (json_int_t)(*offset + 4 * floats)));
    *offset += 4 * floats;
}

/* The header as text, padded with spaces so that the data starts at a multiple of 8. */
static char *make_header(const struct sfc_checkpoint *checkpoint, size_t *length)
{
    const Shardfc__V1__RunConfig *config = sfc_checkpoint_config(checkpoint);
    json_t *header = json_object();
    uint64_t offset = 0;
    char step[32];
    snprintf(step, sizeof step, "%" PRIu64, sfc_checkpoint_step(checkpoint));
    json_object_set_new(header, "__metadata__",
                        json_pack("{s:s, s:s, s:s, s:s}", "format", "shardfc", "step", step,
                                  "digest", sfc_checkpoint_digest(checkpoint), "backbone",
                                  config->backbone));
    add_tensor(header, "class_centres",
               json_pack("[I, I]", (json_int_t)config->classes, (json_int_t)config->dim), &offset,
               config->classes * config->dim);
    for (size_t i = 0; i < config->n_segments; i++) {
        char name[256];
        json_t *shape = json_array();
        for (size_t k = 0; k < config->segments[i]->n_shape; k++) {
            json_array_append_new(shape, json_integer((json_int_t)config->segments[i]->shape[k]));
        }
        snprintf(name, sizeof name, "backbone.%.200s", config->segments[i]->name);
        add_tensor(header, name, shape, &offset, segment_length(config->segments[i]));
    }
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (text == NULL) {
        return NULL;
    }
    size_t size = strlen(text);
    *length = (size + 7) / 8 * 8;
    char *padded = realloc(text, *length + 1);
    if (padded == NULL) {
        free(text);
        return NULL;
    }
    memset(padded + size, ' ', *length - size);
    return padded;
}

static int put(FILE *file, const void *data, size_t size, struct sfc_error *err)
{
    return fwrite(data, 1, size, file) == size ? SFC_OK : sfc_fail_errno(err, "write");
}

/* The way from every step to the checkpoint's (kernels/lag.h); NULL where rows never lag. */
static int read_lag(const struct sfc_checkpoint *checkpoint, struct sfc_lag **out,
                    struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *config = sfc_checkpoint_config(checkpoint);
    uint64_t step = sfc_checkpoint_step(checkpoint);
    *out = NULL;
    if (!sfc_config_is_dense(config)) {
        return SFC_OK;
    }
    float *rates = malloc((size_t)(step + 1) * sizeof *rates);
    struct sfc_lag *lag = malloc((size_t)(step + 1) * sizeof *lag);
    int code =
        rates == NULL || lag == NULL
            ? sfc_fail(err, SFC_ENOMEM, "out of memory for the history of %" PRIu64 " steps", step)
            : sfc_checkpoint_read(checkpoint, SHARDFC__V1__BLOCK_KIND__HISTORY, 0, rates, err);
    if (code == SFC_OK) {
        sfc_lag_table(rates, config->momentum, config->weight_decay, 0, step, lag);
        *out = lag;
        lag = NULL;
    }
    free(rates);
    free(lag);
    return code;
}

/* Brings the values of a class block to the checkpoint's step. */
static int catch_up(const struct sfc_checkpoint *checkpoint, const struct sfc_lag *lag,
                    float *block, uint64_t elements, struct sfc_error *err)
{
    uint64_t dim = sfc_checkpoint_config(checkpoint)->dim;
    const float *last = block + 2 * elements;
    for (uint64_t row = 0; row < elements / dim; row++) {
        if (!(last[row] >= 0 && last[row] <= (float)sfc_checkpoint_step(checkpoint))) {
            return sfc_fail(err, SFC_ECORRUPT, "a class centre is of step %g", (double)last[row]);
        }
        sfc_lag_apply(&lag[(uint64_t)last[row]], block + row * dim, block + elements + row * dim,
                      dim);
    }
    return SFC_OK;
}

static int put_block(const struct sfc_checkpoint *checkpoint, Shardfc__V1__BlockKind kind,
                     uint64_t b, const struct sfc_lag *lag, FILE *file, struct sfc_error *err)
{
    uint64_t n = sfc_checkpoint_block_elements(checkpoint, kind, b);
    float *block = malloc((size_t)sfc_checkpoint_block_floats(checkpoint, kind, b) * sizeof *block);
    if (block == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a block");
    }
    int code = sfc_checkpoint_read(checkpoint, kind, b, block, err);
    if (code == SFC_OK && lag != NULL && kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK) {
        code = catch_up(checkpoint, lag, block, n, err);
    }
    if (code == SFC_OK) {
        code = put(file, block, (size_t)n * sizeof *block, err);
    }
    free(block);
    return code;
}

/* Dense blocks tile the parameter vector as the segments do, so the values of all blocks in order
 * are the data in order. */
static int put_values(const struct sfc_checkpoint *checkpoint, FILE *file, struct sfc_error *err)
{
    static const Shardfc__V1__BlockKind kinds[] = {SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK,
                                                   SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK};
    struct sfc_lag *lag;
    int code = read_lag(checkpoint, &lag, err);
    for (size_t k = 0; k < 2 && code == SFC_OK; k++) {
        uint64_t count = sfc_checkpoint_block_count(checkpoint, kinds[k]);
        for (uint64_t b = 0; b < count && code == SFC_OK; b++) {
            code = put_block(checkpoint, kinds[k], b, lag, file, err);
        }
    }
    free(lag);
    return code;
}

static int write_safetensors(const struct sfc_checkpoint *checkpoint, FILE *file,
                             struct sfc_error *err)
{
    size_t length;
    char *header = make_header(checkpoint, &length);
    if (header == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the header");
    }
    uint8_t size[8];
    for (int i = 0; i < 8; i++) {
        size[i] = (uint8_t)((uint64_t)length >> (8 * i));
    }
    int code = put(file, size, sizeof size, err);
    if (code == SFC_OK) {
        code = put(file, header, length, err);
    }
    free(header);
    return code == SFC_OK ? put_values(checkpoint, file, err) : code;
}

/* Written beside its name and renamed, so that a reader never sees half a file. */
static int write_file(const struct sfc_checkpoint *checkpoint, const char *out,
                      struct sfc_error *err)
{
    size_t length = strlen(out);
    char *partial = malloc(length + 32);
    if (partial == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory");
    }
    snprintf(partial, length + 32, "%s.partial-%ld", out, (long)getpid());
    FILE *file = fopen(partial, "wbx");
    if (file == NULL) {
        int failed = sfc_fail_errno(err, "create %s", partial);
        free(partial);
        return failed;
    }
    int code = write_safetensors(checkpoint, file, err);
    if (code == SFC_OK && (fflush(file) != 0 || fsync(fileno(file)) != 0)) {
        code = sfc_fail_errno(err, "flush %s", partial);
    }
    if (fclose(file) != 0 && code == SFC_OK) {
        code = sfc_fail_errno(err, "close %s", partial);
    }
    if (code == SFC_OK && rename(partial, out) != 0) {
        code = sfc_fail_errno(err, "rename %s to %s", partial, out);
    }
    if (code != SFC_OK) {
        unlink(partial);
    }
    free(partial);
    return code;
}

int sfc_cmd_export(int argc, char **argv)
{
    struct export_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_checkpoint *checkpoint = NULL;
    int code = SFC_OK;
    if (strcmp(o.format, "safetensors") != 0) {
        code = sfc_fail(&err, SFC_EINVAL, "--format %s: this version writes safetensors only",
                        o.format);
    }
    if (code == SFC_OK) {
        code = sfc_checkpoint_open(o.checkpoint, &checkpoint, &err);
    }
    if (code == SFC_OK) {
        code = write_file(checkpoint, o.out, &err);
    }
    if (code == SFC_OK && o.json) {
        sfc_command_json(json_pack("{s:I, s:s, s:s}", "step",
                                   (json_int_t)sfc_checkpoint_step(checkpoint), "digest",
                                   sfc_checkpoint_digest(checkpoint), "file", o.out));
    } else if (code == SFC_OK) {
        printf("step %" PRIu64 " in %s\n", sfc_checkpoint_step(checkpoint), o.out);
    }
    sfc_checkpoint_close(checkpoint);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("export", &err);
}
