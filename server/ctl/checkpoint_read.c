#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limits.h"
#include "proto/run_config.h"
#include "proto/unpack.h"
#include "server/ctl/checkpoint_common.h"
#include "server/ctl/json_memory.h"

#define MAX_SMALL_FILE (64u << 20) /* manifest.json or run.pb */

struct sfc_checkpoint {
    char dir[PATH_MAX];
    Shardfc__V1__RunConfig *config;
    uint64_t step;
    char digest[SFC_DIGEST_HEX];
    struct sfc_block_table table;
    struct sfc_checkpoint_lr *lr_changes;
    size_t lr_count;
    uint64_t start_classes; /* of run.pb; config has those of the last growth */
    Shardfc__V1__Growth **growths;
    size_t growth_count;
};

/* Reads DIR/name, at most `limit` bytes, into a fresh zero-terminated buffer. */
static int read_small(const char *dir, const char *name, char **out, size_t *size,
                      struct sfc_error *err)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return sfc_fail_errno(err, "open %s", path);
    }
    struct stat info;
    char *text = NULL;
    int code = SFC_OK;
    if (fstat(fileno(file), &info) != 0) {
        code = sfc_fail_errno(err, "stat %s", path);
    } else if (!S_ISREG(info.st_mode) || info.st_size > MAX_SMALL_FILE) {
        code =
            sfc_fail(err, SFC_ECORRUPT, "%s: not a file of at most %u bytes", path, MAX_SMALL_FILE);
    } else if ((text = malloc((size_t)info.st_size + 1)) == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "%s: out of memory", path);
    } else if (fread(text, 1, (size_t)info.st_size, file) != (size_t)info.st_size) {
        code = sfc_fail(err, SFC_EIO, "%s: could not be read whole", path);
    }
    fclose(file);
    if (code != SFC_OK) {
        free(text);
        return code;
    }
    text[info.st_size] = '\0';
    *out = text;
    *size = (size_t)info.st_size;
    return SFC_OK;
}

static int check_folder(const char *dir, struct sfc_error *err)
{
    struct stat info;
    if (stat(dir, &info) != 0) {
        return sfc_fail_errno(err, "checkpoint %s", dir);
    }
    return S_ISDIR(info.st_mode)
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL,
                          "%s is a file; a checkpoint is a folder that `shardfc checkpoint --out` "
                          "made",
                          dir);
}

/* Why there is no manifest, and what to do. */
static int no_manifest(const char *dir, struct sfc_error *err)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/run.pb", dir);
    if (strstr(dir, ".partial-") != NULL) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "%s has no manifest.json: it is what a checkpoint left that did not "
                        "finish; name a finished one",
                        dir);
    }
    if (access(path, F_OK) == 0) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "%s/manifest.json is missing: the checkpoint is damaged; use another one",
                        dir);
    }
    return sfc_fail(err, SFC_ENOTFOUND,
                    "%s has no manifest.json, so it is no checkpoint: name a folder that `shardfc "
                    "checkpoint --out` made",
                    dir);
}

static int check_digest(const char *dir, const char *name, const void *data, size_t size,
                        const char *expected, const char *kept_in, struct sfc_error *err)
{
    XXH128_hash_t want;
    XXH128_hash_t got = XXH3_128bits(data, size);
    if (sfc_digest_parse(expected, &want) != SFC_OK || !XXH128_isEqual(want, got)) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s/%s: bytes 0 to %zu: checksum differs from the one in %s; use another "
                        "checkpoint",
                        dir, name, size, kept_in);
    }
    return SFC_OK;
}

static int load_manifest(struct sfc_checkpoint *c, json_t **out, struct sfc_error *err)
{
    char *text = NULL;
    char *sum = NULL;
    size_t size;
    size_t sum_size;
    json_t *root = NULL;
    int code = check_folder(c->dir, err);
    if (code != SFC_OK) {
        return code;
    }
    code = read_small(c->dir, "manifest.json", &text, &size, err);
    if (code == SFC_ENOTFOUND) {
        code = no_manifest(c->dir, err);
    }
    if (code == SFC_OK) {
        code = read_small(c->dir, "manifest.xxh3", &sum, &sum_size, err);
    }
    if (code == SFC_OK) {
        code = check_digest(c->dir, "manifest.json", text, size, sum, "manifest.xxh3", err);
    }
    if (code == SFC_OK) {
        json_error_t where;
        root = json_loadb(text, size, 0, &where);
        if (sfc_json_out_of_memory()) { /* then a piece may be missing in what it gave */
            json_decref(root);
            root = NULL;
            code = sfc_fail(err, SFC_ENOMEM, "%s/manifest.json: out of memory", c->dir);
        } else if (root == NULL) {
            code = sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: line %d: %s", c->dir, where.line,
                            where.text);
        }
    }
    free(text);
    free(sum);
    if (code == SFC_OK) {
        *out = root;
    }
    return code;
}

static int not_as_expected(const struct sfc_checkpoint *c, const char *what,
                           const json_error_t *where, struct sfc_error *err)
{
    if (sfc_json_out_of_memory()) {
        return sfc_fail(err, SFC_ENOMEM, "%s/manifest.json: out of memory", c->dir);
    }
    return sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: %s (%s); use another checkpoint", c->dir,
                    what, where->text);
}

static int read_header(struct sfc_checkpoint *c, json_t *root, const char **config_hex,
                       struct sfc_error *err)
{
    const char *format;
    const char *digest;
    int version;
    json_int_t step;
    json_error_t where;
    if (json_unpack_ex(root, &where, 0, "{s:s, s:i, s:I, s:s, s:s}", "format", &format, "version",
                       &version, "step", &step, "digest", &digest, "run_xxh3", config_hex) != 0) {
        return not_as_expected(c, "not a checkpoint manifest", &where, err);
    }
    if (strcmp(format, SFC_CHECKPOINT_FORMAT) != 0 || step < 0 ||
        strlen(digest) != SFC_DIGEST_HEX - 1) {
        return sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: not a checkpoint manifest", c->dir);
    }
    if (version < SFC_CHECKPOINT_VERSION || version > SFC_CHECKPOINT_VERSION_GROWN) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: checkpoint version %d, this program reads versions %d to %d", c->dir,
                        version, SFC_CHECKPOINT_VERSION, SFC_CHECKPOINT_VERSION_GROWN);
    }
    c->step = (uint64_t)step;
    memcpy(c->digest, digest, SFC_DIGEST_HEX);
    return SFC_OK;
}

static int read_change(struct sfc_checkpoint *c, json_t *item, struct sfc_error *err)
{
    json_int_t from;
    double lr;
    json_error_t where;
    uint64_t before = c->lr_count > 0 ? c->lr_changes[c->lr_count - 1].from_step : 0;
    if (json_unpack_ex(item, &where, 0, "{s:I, s:F}", "from_step", &from, "lr", &lr) != 0) {
        return not_as_expected(c, "an entry of lr_changes is none", &where, err);
    }
    if (from < 1 || (uint64_t)from <= before || !(lr >= 0)) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s/manifest.json: lr_changes: rate %g from step %lld; use another "
                        "checkpoint",
                        c->dir, lr, (long long)from);
    }
    c->lr_changes[c->lr_count++] = (struct sfc_checkpoint_lr){(uint64_t)from, lr};
    return SFC_OK;
}

static int read_changes(struct sfc_checkpoint *c, json_t *root, struct sfc_error *err)
{
    json_t *list = json_object_get(root, "lr_changes");
    size_t count = json_array_size(list);
    int code = SFC_OK;
    if (list != NULL && count == 0) {
        return sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: lr_changes is no list with entries",
                        c->dir);
    }
    c->lr_changes = calloc(count + 1, sizeof *c->lr_changes);
    if (c->lr_changes == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for changes of the learning rate");
    }
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        code = read_change(c, json_array_get(list, i), err);
    }
    return code;
}

static int read_growth(struct sfc_checkpoint *c, json_t *item, struct sfc_error *err)
{
    json_int_t from, classes, samples, data_step;
    const char *digest;
    json_error_t where;
    const Shardfc__V1__Growth *last = c->growth_count > 0 ? c->growths[c->growth_count - 1] : NULL;
    if (json_unpack_ex(item, &where, 0, "{s:I, s:I, s:I, s:I, s:s}", "from_step", &from, "classes",
                       &classes, "samples", &samples, "data_step", &data_step, "data_digest",
                       &digest) != 0) {
        return not_as_expected(c, "an entry of growths is none", &where, err);
    }
    if (from < 1 || (uint64_t)from > c->step + 1 || classes < 1 || samples < 0 ||
        data_step < from || strlen(digest) >= SFC_DIGEST_HEX ||
        (uint64_t)classes <= (last ? last->classes : c->start_classes) ||
        (last && (uint64_t)from <= last->from_step)) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s/manifest.json: growths: %lld classes from step %lld; use another "
                        "checkpoint",
                        c->dir, (long long)classes, (long long)from);
    }
    Shardfc__V1__Growth *g = malloc(sizeof *g);
    if (g == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for growths");
    }
    shardfc__v1__growth__init(g);
    g->from_step = (uint64_t)from;
    g->classes = (uint64_t)classes;
    g->samples = (uint64_t)samples;
    g->data_step = (uint64_t)data_step;
    g->data_digest = strdup(digest);
    c->growths[c->growth_count++] = g;
    return g->data_digest != NULL ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "out of memory for growths");
}

/* The configuration gets the classes of the last one: blocks are those of now. */
static int read_growths(struct sfc_checkpoint *c, json_t *root, struct sfc_error *err)
{
    json_t *list = json_object_get(root, "growths");
    size_t count = json_array_size(list);
    int code = SFC_OK;
    c->start_classes = c->config->classes;
    if (list == NULL) {
        return SFC_OK;
    }
    if (count == 0 || count > SFC_LIMIT_GROWTHS) {
        return sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: growths is no list of 1 to %u",
                        c->dir, SFC_LIMIT_GROWTHS);
    }
    c->growths = calloc(count, sizeof(Shardfc__V1__Growth *));
    if (c->growths == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for growths");
    }
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        code = read_growth(c, json_array_get(list, i), err);
    }
    if (code == SFC_OK) {
        c->config->classes = c->growths[count - 1]->classes;
        code = sfc_run_config_check(c->config, err);
    }
    return code;
}

static int load_config(struct sfc_checkpoint *c, const char *expected, struct sfc_error *err)
{
    char *packed = NULL;
    size_t size;
    int code = read_small(c->dir, "run.pb", &packed, &size, err);
    if (code == SFC_OK) {
        code = check_digest(c->dir, "run.pb", packed, size, expected, "manifest.json", err);
    }
    if (code == SFC_OK) {
        const struct sfc_bytes bytes = {(const uint8_t *)packed, size};
        c->config = sfc_unpack(bytes, &shardfc__v1__run_config__descriptor, &code);
        if (code == SFC_ENOMEM) {
            sfc_fail(err, code, "%s/run.pb: out of memory", c->dir);
        } else if (c->config == NULL || c->config->data == NULL) {
            code = sfc_fail(err, SFC_ECORRUPT, "%s/run.pb: not a run configuration", c->dir);
        } else if (sfc_run_config_check(c->config, err) != SFC_OK) {
            code = sfc_prefix(err, "%s/run.pb", c->dir);
        }
    }
    free(packed);
    return code;
}

static int read_entry(struct sfc_checkpoint *c, json_t *item, const char *name,
                      struct sfc_block_entry *entry, struct sfc_error *err)
{
    const char *file;
    const char *hex;
    json_int_t bytes;
    json_error_t where;
    if (json_unpack_ex(item, &where, 0, "{s:s, s:I, s:s}", "file", &file, "bytes", &bytes, "xxh3",
                       &hex) != 0) {
        return not_as_expected(c, "an entry of its files is none", &where, err);
    }
    if (strcmp(file, name) != 0 || (uint64_t)bytes != entry->floats * 4 ||
        sfc_digest_parse(hex, &entry->digest) != SFC_OK) {
        return sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: entry of %s does not fit the run",
                        c->dir, name);
    }
    entry->present = 1;
    return SFC_OK;
}

static int check_length(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind, uint64_t block,
                        struct sfc_error *err)
{
    char name[32];
    char path[PATH_MAX + 40];
    struct stat info;
    uint64_t bytes = c->table.entry[kind][block].floats * 4;
    sfc_block_file_name(kind, block, name);
    snprintf(path, sizeof path, "%s/%s", c->dir, name);
    if (stat(path, &info) != 0) {
        return sfc_fail_errno(err, "%s", path);
    }
    return info.st_size == (off_t)bytes
               ? SFC_OK
               : sfc_fail(err, SFC_ECORRUPT, "%s: %lld bytes, expected %" PRIu64, path,
                          (long long)info.st_size, bytes);
}

/* Before anything of that size is allocated: a few bytes of configuration can mean 2^22 blocks. */
static int check_count(const struct sfc_checkpoint *c, json_t *root, struct sfc_error *err)
{
    uint64_t blocks = 0;
    size_t listed = json_array_size(json_object_get(root, "files"));
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        blocks += sfc_config_block_count(c->config, (Shardfc__V1__BlockKind)kind);
    }
    if (listed != blocks) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s/manifest.json: %zu files listed, the run has %" PRIu64
                        "; use another checkpoint",
                        c->dir, listed, blocks);
    }
    return SFC_OK;
}

static int read_entries(struct sfc_checkpoint *c, json_t *root, struct sfc_error *err)
{
    json_t *files = json_object_get(root, "files");
    size_t index = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < c->table.count[kind]; b++, index++) {
            char name[32];
            sfc_block_file_name((Shardfc__V1__BlockKind)kind, b, name);
            int code =
                read_entry(c, json_array_get(files, index), name, &c->table.entry[kind][b], err);
            if (code != SFC_OK) {
                return code;
            }
        }
    }
    return SFC_OK;
}

static int check_lengths(const struct sfc_checkpoint *c, struct sfc_error *err)
{
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < c->table.count[kind]; b++) {
            int code = check_length(c, (Shardfc__V1__BlockKind)kind, b, err);
            if (code != SFC_OK) {
                return code;
            }
        }
    }
    return SFC_OK;
}

static int check_state_digest(struct sfc_checkpoint *c, struct sfc_error *err)
{
    char digest[SFC_DIGEST_HEX];
    Shardfc__V1__RunConfig config = *c->config;
    config.classes = c->start_classes;
    int code = sfc_state_digest(&c->table, &config, c->step, digest, err);
    if (code == SFC_OK && strcmp(digest, c->digest) != 0) {
        code = sfc_fail(err, SFC_ECORRUPT, "%s/manifest.json: state digest does not fit its blocks",
                        c->dir);
    }
    return code;
}

int sfc_checkpoint_open_manifest(const char *dir, struct sfc_checkpoint **out,
                                 struct sfc_error *err)
{
    json_t *root = NULL;
    const char *config_hex = NULL;
    struct sfc_checkpoint *c = calloc(1, sizeof *c);
    sfc_json_watch();
    if (c == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a checkpoint");
    }
    int code = SFC_OK;
    if (strlen(dir) >= sizeof c->dir) {
        code = sfc_fail(err, SFC_EINVAL, "checkpoint directory: name too long");
    } else {
        memcpy(c->dir, dir, strlen(dir) + 1);
        code = load_manifest(c, &root, err);
    }
    if (code == SFC_OK) {
        code = read_header(c, root, &config_hex, err);
    }
    if (code == SFC_OK) {
        code = read_changes(c, root, err);
    }
    if (code == SFC_OK) {
        code = load_config(c, config_hex, err);
    }
    if (code == SFC_OK) {
        code = read_growths(c, root, err);
    }
    if (code == SFC_OK) {
        code = check_count(c, root, err);
    }
    if (code == SFC_OK) {
        code = sfc_block_table_init(&c->table, c->config, c->step, err);
    }
    if (code == SFC_OK) {
        code = read_entries(c, root, err);
    }
    if (code == SFC_OK) {
        code = check_state_digest(c, err);
    }
    json_decref(root);
    if (code != SFC_OK) {
        sfc_checkpoint_close(c);
        return code;
    }
    *out = c;
    return SFC_OK;
}

int sfc_checkpoint_open(const char *dir, struct sfc_checkpoint **out, struct sfc_error *err)
{
    struct sfc_checkpoint *c;
    int code = sfc_checkpoint_open_manifest(dir, &c, err);
    if (code != SFC_OK) {
        return code;
    }
    code = check_lengths(c, err);
    if (code != SFC_OK) {
        sfc_checkpoint_close(c);
        return code;
    }
    *out = c;
    return SFC_OK;
}

void sfc_checkpoint_close(struct sfc_checkpoint *c)
{
    if (c == NULL) {
        return;
    }
    if (c->config != NULL) {
        shardfc__v1__run_config__free_unpacked(c->config, NULL);
    }
    sfc_block_table_free(&c->table);
    free(c->lr_changes);
    sfc_growths_free(c->growths, c->growth_count);
    free(c);
}

const Shardfc__V1__RunConfig *sfc_checkpoint_config(const struct sfc_checkpoint *c)
{
    return c->config;
}

uint64_t sfc_checkpoint_start_classes(const struct sfc_checkpoint *c)
{
    return c->start_classes;
}

size_t sfc_checkpoint_growths(const struct sfc_checkpoint *c, Shardfc__V1__Growth *const **out)
{
    *out = c->growths;
    return c->growth_count;
}

uint64_t sfc_checkpoint_step(const struct sfc_checkpoint *c)
{
    return c->step;
}

const char *sfc_checkpoint_digest(const struct sfc_checkpoint *c)
{
    return c->digest;
}

size_t sfc_checkpoint_lr(const struct sfc_checkpoint *c, const struct sfc_checkpoint_lr **out)
{
    *out = c->lr_changes;
    return c->lr_count;
}

uint64_t sfc_checkpoint_block_count(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind)
{
    return c->table.count[kind];
}

uint64_t sfc_checkpoint_block_elements(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind,
                                       uint64_t block)
{
    return c->table.entry[kind][block].elements;
}

uint64_t sfc_checkpoint_block_floats(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind,
                                     uint64_t block)
{
    return c->table.entry[kind][block].floats;
}

int sfc_checkpoint_read(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind, uint64_t block,
                        float *out, struct sfc_error *err)
{
    char name[32];
    char path[PATH_MAX + 40];
    const struct sfc_block_entry *entry = &c->table.entry[kind][block];
    sfc_block_file_name(kind, block, name);
    snprintf(path, sizeof path, "%s/%s", c->dir, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return sfc_fail_errno(err, "open %s", path);
    }
    size_t count = (size_t)entry->floats;
    size_t got = fread(out, sizeof *out, count, file);
    bool failed = ferror(file) != 0;
    int code = failed ? sfc_fail_errno(err, "read %s", path) : SFC_OK;
    fclose(file);
    if (failed) {
        return code;
    }
    if (got != count) {
        return sfc_fail(err, SFC_ECORRUPT, "%s: ends after %zu of %zu values", path, got, count);
    }
    if (!XXH128_isEqual(entry->digest, XXH3_128bits(out, count * sizeof *out))) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s: bytes 0 to %zu: checksum differs from the one in manifest.json; use "
                        "another checkpoint",
                        path, count * sizeof *out);
    }
    return SFC_OK;
}

/* One block: length and checksum. */
static int check_block(const struct sfc_checkpoint *c, Shardfc__V1__BlockKind kind, uint64_t block,
                       float *room, sfc_checkpoint_told *told, void *ctx, struct sfc_error *err)
{
    struct sfc_error damage = {0};
    const struct sfc_block_entry *entry = &c->table.entry[kind][block];
    struct sfc_checkpoint_file file = {.kind = kind, .block = block, .bytes = entry->floats * 4};
    int code = check_length(c, kind, block, &damage);
    if (code == SFC_OK) {
        code = sfc_checkpoint_read(c, kind, block, room, &damage);
    }
    sfc_block_file_name(kind, block, file.name);
    sfc_digest_hex(entry->digest, file.digest);
    file.damage = code == SFC_OK ? NULL : &damage;
    return told(ctx, &file, err);
}

int sfc_checkpoint_check(const struct sfc_checkpoint *c, sfc_checkpoint_told *told, void *ctx,
                         struct sfc_error *err)
{
    uint64_t largest = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < c->table.count[kind]; b++) {
            uint64_t floats = c->table.entry[kind][b].floats;
            largest = floats > largest ? floats : largest;
        }
    }
    float *room = malloc((size_t)(largest + 1) * sizeof *room);
    if (room == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a block of %" PRIu64 " values",
                        largest);
    }
    int code = SFC_OK;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS && code == SFC_OK; kind++) {
        for (uint64_t b = 0; b < c->table.count[kind] && code == SFC_OK; b++) {
            code = check_block(c, (Shardfc__V1__BlockKind)kind, b, room, told, ctx, err);
        }
    }
    free(room);
    return code;
}

static int stop_at_damage(void *ctx, const struct sfc_checkpoint_file *file, struct sfc_error *err)
{
    (void)ctx;
    return file->damage == NULL ? SFC_OK
                                : sfc_fail(err, file->damage->code, "%s", file->damage->text);
}

int sfc_checkpoint_verify(const struct sfc_checkpoint *c, struct sfc_error *err)
{
    return sfc_checkpoint_check(c, stop_at_damage, NULL, err);
}
