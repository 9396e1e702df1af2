#include "server/ctl/checkpoint_report.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "server/ctl/checkpoint.h"
#include "server/ctl/json_memory.h"

bool sfc_checkpoint_is_one(const char *dir)
{
    static const char *const own[] = {"manifest.json", "manifest.xxh3", "run.pb"};
    char path[PATH_MAX + 32];
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, own[i]);
        if (access(path, F_OK) == 0) {
            return true;
        }
    }
    return access(dir, F_OK) == 0 && strstr(dir, ".partial-") != NULL;
}

struct report {
    json_t *root, *files;
    json_int_t bytes, problems;
    uint64_t done, total;
    void (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
};

static int add_file(void *arg, const struct sfc_checkpoint_file *file, struct sfc_error *err)
{
    static const char *const kinds[SFC_CHECKPOINT_KINDS] = {"class", "dense", "history"};
    struct report *r = arg;
    if (file->damage != NULL && file->damage->code == SFC_ENOMEM) {
        return sfc_fail(err, SFC_ENOMEM, "%s", file->damage->text);
    }
    json_array_append_new(r->files,
                          json_pack("{s:s, s:s, s:I, s:I, s:s, s:b, s:s}", "file", file->name,
                                    "kind", kinds[file->kind], "block", (json_int_t)file->block,
                                    "bytes", (json_int_t)file->bytes, "xxh3", file->digest, "ok",
                                    file->damage == NULL, "why",
                                    file->damage == NULL ? "" : file->damage->text));
    r->bytes += (json_int_t)file->bytes;
    r->problems += file->damage != NULL;
    if (r->progress != NULL) {
        r->progress(r->ctx, ++r->done, r->total);
    }
    return SFC_OK;
}

static void describe(struct report *r, const struct sfc_checkpoint *checkpoint)
{
    const Shardfc__V1__RunConfig *config = sfc_checkpoint_config(checkpoint);
    json_object_update_new(
        r->root,
        json_pack("{s:s, s:I, s:s, s:I, s:I, s:s, s:s, s:s}", "run", config->name, "step",
                  (json_int_t)sfc_checkpoint_step(checkpoint), "digest",
                  sfc_checkpoint_digest(checkpoint), "classes", (json_int_t)config->classes, "dim",
                  (json_int_t)config->dim, "backbone", config->backbone, "optimizer",
                  config->optimizer, "momentum_mode", config->momentum_mode));
}

static int fill(struct report *r, const struct sfc_checkpoint *checkpoint, struct sfc_error *err)
{
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        r->total += sfc_checkpoint_block_count(checkpoint, (Shardfc__V1__BlockKind)kind);
    }
    describe(r, checkpoint);
    return sfc_checkpoint_check(checkpoint, add_file, r, err);
}

/* checkpoint: NULL when it can't be read, which damage says. */
static int make(struct report *r, const char *dir, const struct sfc_checkpoint *checkpoint,
                const char *damage, struct sfc_error *err)
{
    sfc_json_watch();
    r->root = json_object();
    r->files = json_array();
    json_object_set_new(r->root, "checkpoint", json_string(dir));
    json_object_set_new(r->root, "files", r->files);
    json_object_set_new(r->root, "why", json_string(damage));
    int code = checkpoint == NULL ? SFC_OK : fill(r, checkpoint, err);
    json_object_set_new(r->root, "bytes", json_integer(r->bytes));
    json_object_set_new(r->root, "problems",
                        json_integer(r->problems + (checkpoint == NULL ? 1 : 0)));
    return code == SFC_OK && sfc_json_out_of_memory()
               ? sfc_fail(err, SFC_ENOMEM, "%s: out of memory for the report", dir)
               : code;
}

int sfc_checkpoint_report(const char *dir,
                          void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                          json_t **out, struct sfc_error *err)
{
    struct sfc_error damage = {0};
    struct sfc_checkpoint *checkpoint = NULL;
    struct report r = {.progress = progress, .ctx = ctx};
    int code = sfc_checkpoint_open_manifest(dir, &checkpoint, &damage);
    if (code != SFC_OK && code != SFC_ECORRUPT) {
        return sfc_fail(err, code, "%s", damage.text);
    }
    code = make(&r, dir, checkpoint, damage.text, err);
    sfc_checkpoint_close(checkpoint);
    if (code != SFC_OK) {
        json_decref(r.root);
        return code;
    }
    *out = r.root;
    return SFC_OK;
}

/* ---- text */

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static json_int_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void print_blocks(const json_t *report, FILE *file)
{
    size_t i;
    json_t *o;
    fprintf(file,
            "%s: run '%s' after step %" JSON_INTEGER_FORMAT ", %" JSON_INTEGER_FORMAT
            " classes of width %" JSON_INTEGER_FORMAT ", backbone %s, %s, momentum mode %s\n",
            text_of(report, "checkpoint"), text_of(report, "run"), number_of(report, "step"),
            number_of(report, "classes"), number_of(report, "dim"), text_of(report, "backbone"),
            text_of(report, "optimizer"), text_of(report, "momentum_mode"));
    json_array_foreach(json_object_get(report, "files"), i, o)
    {
        fprintf(file, "%s  %12" JSON_INTEGER_FORMAT " bytes  %s  %s\n", text_of(o, "file"),
                number_of(o, "bytes"), text_of(o, "xxh3"),
                json_is_true(json_object_get(o, "ok")) ? "ok" : text_of(o, "why"));
    }
    fprintf(file, "%zu blocks, %" JSON_INTEGER_FORMAT " bytes\nstate digest %s\n",
            json_array_size(json_object_get(report, "files")), number_of(report, "bytes"),
            text_of(report, "digest"));
}

void sfc_checkpoint_report_print(const json_t *report, FILE *file)
{
    const char *why = text_of(report, "why");
    if (why[0] == '\0') {
        print_blocks(report, file);
    } else {
        fprintf(file, "%s: NOT readable: %s\n", text_of(report, "checkpoint"), why);
    }
    fprintf(file, "%" JSON_INTEGER_FORMAT " problems\n", number_of(report, "problems"));
}
