#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/ctl/checkpoint_common.h"
#include "server/ctl/json_memory.h"

struct sfc_checkpoint_writer {
    char final[PATH_MAX];
    char partial[PATH_MAX];
    int dir;  /* the partial directory */
    int file; /* the block being written, -1 = none */
    Shardfc__V1__BlockKind kind;
    uint64_t block;
    uint64_t written; /* floats of this block so far */
    XXH3_state_t *hash;
    Shardfc__V1__RunConfig *config;
    uint64_t step;
    struct sfc_block_table table;
    struct sfc_checkpoint_lr *lr_changes;
    size_t lr_count;
    uint64_t start_classes; /* run.pb has these, the table and `config` those of the last growth */
    Shardfc__V1__Growth **growths;
    size_t growth_count;
};

static int write_all(int fd, const void *data, size_t size, const char *name, struct sfc_error *err)
{
    const uint8_t *p = data;
    while (size > 0) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return sfc_fail_errno(err, "write %s", name);
        }
        p += n;
        size -= (size_t)n;
    }
    return SFC_OK;
}

static int write_file(int dir, const char *name, const void *data, size_t size,
                      struct sfc_error *err)
{
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        return sfc_fail_errno(err, "create %s", name);
    }
    int code = write_all(fd, data, size, name, err);
    if (code == SFC_OK && fsync(fd) != 0) {
        code = sfc_fail_errno(err, "fsync %s", name);
    }
    close(fd);
    return code;
}

static Shardfc__V1__RunConfig *copy_config(const Shardfc__V1__RunConfig *config)
{
    size_t size = shardfc__v1__run_config__get_packed_size(config);
    uint8_t *packed = malloc(size + 1);
    if (packed == NULL) {
        return NULL;
    }
    shardfc__v1__run_config__pack(config, packed);
    Shardfc__V1__RunConfig *copy = shardfc__v1__run_config__unpack(NULL, size, packed);
    free(packed);
    return copy;
}

static int clean_name(const char *dir, char out[PATH_MAX], struct sfc_error *err)
{
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') {
        length--;
    }
    if (length == 0 || length > PATH_MAX - 40) {
        return sfc_fail(err, SFC_EINVAL, "checkpoint directory: name is empty or too long");
    }
    memcpy(out, dir, length);
    out[length] = '\0';
    return SFC_OK;
}

int sfc_checkpoint_may_create(const char *dir, struct sfc_error *err)
{
    char name[PATH_MAX], parent[PATH_MAX] = ".";
    struct stat info;
    int code = clean_name(dir, name, err);
    if (code != SFC_OK) {
        return code;
    }
    if (access(name, F_OK) == 0) {
        return sfc_fail(err, SFC_EEXIST, "%s: already exists; name another directory", name);
    }
    const char *slash = strrchr(name, '/');
    if (slash != NULL) {
        size_t length = slash == name ? 1 : (size_t)(slash - name);
        memcpy(parent, name, length);
        parent[length] = '\0';
    }
    if (stat(parent, &info) != 0 && errno == ENOENT) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "%s: there is no folder %s; make it first, or name another directory", name,
                        parent);
    }
    if (stat(parent, &info) == 0 && !S_ISDIR(info.st_mode)) {
        return sfc_fail(err, SFC_EINVAL, "%s: %s is no folder; name another directory", name,
                        parent);
    }
    return access(parent, W_OK | X_OK) == 0
               ? SFC_OK
               : sfc_fail_errno(err, "%s can't be made in %s", name, parent);
}

static int make_partial(struct sfc_checkpoint_writer *w, const char *dir, struct sfc_error *err)
{
    int code = sfc_checkpoint_may_create(dir, err);
    if (code == SFC_OK) {
        code = clean_name(dir, w->final, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    size_t length = strlen(w->final);
    memcpy(w->partial, w->final, length);
    snprintf(w->partial + length, sizeof w->partial - length, ".partial-%ld", (long)getpid());
    if (mkdir(w->partial, 0755) != 0) {
        return sfc_fail_errno(err, "create directory %s", w->partial);
    }
    w->dir = open(w->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->dir < 0) {
        return sfc_fail_errno(err, "open %s", w->partial);
    }
    if (flock(w->dir, LOCK_EX | LOCK_NB) !=
        0) { /* ends with this process: see checkpoint_stale.c */
        return sfc_fail_errno(err, "lock %s (try again)", w->partial);
    }
    return SFC_OK;
}

int sfc_checkpoint_create(const char *dir, const Shardfc__V1__RunConfig *config, uint64_t step,
                          struct sfc_checkpoint_writer **out, struct sfc_error *err)
{
    struct sfc_checkpoint_writer *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a checkpoint");
    }
    w->dir = -1;
    w->file = -1;
    w->step = step;
    w->config = copy_config(config);
    w->start_classes = config->classes;
    w->hash = XXH3_createState();
    int code = SFC_OK;
    if (w->config == NULL || w->hash == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for a checkpoint");
    }
    if (code == SFC_OK) {
        code = sfc_block_table_init(&w->table, config, step, err);
    }
    if (code == SFC_OK) {
        code = make_partial(w, dir, err);
    }
    if (code != SFC_OK) {
        sfc_checkpoint_discard(w);
        return code;
    }
    *out = w;
    return SFC_OK;
}

int sfc_checkpoint_begin(struct sfc_checkpoint_writer *w, Shardfc__V1__BlockKind kind,
                         uint64_t block, struct sfc_error *err)
{
    if (w->file >= 0 || block >= w->table.count[kind]) {
        return sfc_fail(err, SFC_EINVAL, "checkpoint: block %" PRIu64 " out of turn", block);
    }
    char name[32];
    sfc_block_file_name(kind, block, name);
    w->file = openat(w->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->file < 0) {
        return sfc_fail_errno(err, "create %s/%s", w->partial, name);
    }
    w->kind = kind;
    w->block = block;
    w->written = 0;
    XXH3_128bits_reset(w->hash);
    return SFC_OK;
}

int sfc_checkpoint_append(struct sfc_checkpoint_writer *w, const float *values, uint64_t count,
                          struct sfc_error *err)
{
    char name[32];
    sfc_block_file_name(w->kind, w->block, name);
    int code = write_all(w->file, values, count * sizeof *values, name, err);
    if (code == SFC_OK) {
        XXH3_128bits_update(w->hash, values, count * sizeof *values);
        w->written += count;
    }
    return code;
}

int sfc_checkpoint_end(struct sfc_checkpoint_writer *w, struct sfc_error *err)
{
    struct sfc_block_entry *entry = &w->table.entry[w->kind][w->block];
    char name[32];
    sfc_block_file_name(w->kind, w->block, name);
    int code = SFC_OK;
    if (w->written != entry->floats) {
        code = sfc_fail(err, SFC_EINTERNAL, "%s: %" PRIu64 " of %" PRIu64 " values", name,
                        w->written, entry->floats);
    } else if (fsync(w->file) != 0) {
        code = sfc_fail_errno(err, "fsync %s", name);
    }
    close(w->file);
    w->file = -1;
    entry->digest = XXH3_128bits_digest(w->hash);
    entry->present = 1;
    return code;
}

static int describe_blocks(const struct sfc_checkpoint_writer *w, json_t *files,
                           struct sfc_error *err)
{
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < w->table.count[kind]; b++) {
            const struct sfc_block_entry *entry = &w->table.entry[kind][b];
            char name[32];
            char hex[SFC_DIGEST_HEX];
            sfc_block_file_name((Shardfc__V1__BlockKind)kind, b, name);
            if (!entry->present) {
                return sfc_fail(err, SFC_EINTERNAL, "checkpoint: %s was never written", name);
            }
            sfc_digest_hex(entry->digest, hex);
            json_t *item = json_pack("{s:s, s:I, s:s}", "file", name, "bytes",
                                     (json_int_t)(entry->floats * 4), "xxh3", hex);
            if (json_array_append_new(files, item) != 0) {
                return sfc_fail(err, SFC_ENOMEM, "out of memory for manifest.json");
            }
        }
    }
    return SFC_OK;
}

int sfc_checkpoint_set_lr(struct sfc_checkpoint_writer *w, const struct sfc_checkpoint_lr *changes,
                          size_t count, struct sfc_error *err)
{
    struct sfc_checkpoint_lr *copy = calloc(count + 1, sizeof *copy);
    if (copy == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for changes of the learning rate");
    }
    if (count > 0) {
        memcpy(copy, changes, count * sizeof *copy);
    }
    free(w->lr_changes);
    w->lr_changes = copy;
    w->lr_count = count;
    return SFC_OK;
}

/* False: no memory. Nothing where the schedule was never changed, as before there were changes. */
static bool add_lr(const struct sfc_checkpoint_writer *w, json_t *root)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (size_t i = 0; i < w->lr_count && ok; i++) {
        ok = json_array_append_new(list, json_pack("{s:I, s:f}", "from_step",
                                                   (json_int_t)w->lr_changes[i].from_step, "lr",
                                                   w->lr_changes[i].lr)) == 0;
    }
    ok = ok && (w->lr_count == 0 || json_object_set(root, "lr_changes", list) == 0);
    json_decref(list);
    return ok;
}

int sfc_checkpoint_set_growths(struct sfc_checkpoint_writer *w, uint64_t start_classes,
                               Shardfc__V1__Growth *const *growths, size_t count,
                               struct sfc_error *err)
{
    Shardfc__V1__Growth **copy = calloc(count + 1, sizeof(Shardfc__V1__Growth *));
    bool ok = copy != NULL;
    for (size_t i = 0; ok && i < count; i++) {
        copy[i] = malloc(sizeof *copy[i]);
        ok = copy[i] != NULL;
        if (ok) {
            *copy[i] = *growths[i];
            copy[i]->data_digest = strdup(growths[i]->data_digest);
            ok = copy[i]->data_digest != NULL;
        }
    }
    if (!ok) {
        sfc_growths_free(copy, count);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for growths");
    }
    sfc_growths_free(w->growths, w->growth_count);
    w->growths = copy;
    w->growth_count = count;
    w->start_classes = start_classes;
    return SFC_OK;
}

/* False: no memory. */
static bool add_growths(const struct sfc_checkpoint_writer *w, json_t *root)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (size_t i = 0; i < w->growth_count && ok; i++) {
        const Shardfc__V1__Growth *g = w->growths[i];
        ok = json_array_append_new(
                 list, json_pack("{s:I, s:I, s:I, s:I, s:s}", "from_step", (json_int_t)g->from_step,
                                 "classes", (json_int_t)g->classes, "samples",
                                 (json_int_t)g->samples, "data_step", (json_int_t)g->data_step,
                                 "data_digest", g->data_digest)) == 0;
    }
    ok = ok && (w->growth_count == 0 || json_object_set(root, "growths", list) == 0);
    json_decref(list);
    return ok;
}

static int write_config(struct sfc_checkpoint_writer *w, char hex[SFC_DIGEST_HEX],
                        struct sfc_error *err)
{
    Shardfc__V1__RunConfig config = *w->config;
    config.classes = w->start_classes;
    size_t size = shardfc__v1__run_config__get_packed_size(&config);
    uint8_t *packed = malloc(size + 1);
    if (packed == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for run.pb");
    }
    shardfc__v1__run_config__pack(&config, packed);
    sfc_digest_hex(XXH3_128bits(packed, size), hex);
    int code = write_file(w->dir, "run.pb", packed, size, err);
    free(packed);
    return code;
}

static int write_manifest(struct sfc_checkpoint_writer *w, const char *digest,
                          const char *config_hex, struct sfc_error *err)
{
    sfc_json_watch();
    json_t *files = json_array();
    int code = files == NULL ? sfc_fail(err, SFC_ENOMEM, "out of memory for manifest.json")
                             : describe_blocks(w, files, err);
    if (code != SFC_OK) {
        json_decref(files);
        return code;
    }
    json_t *root = json_pack(
        "{s:s, s:i, s:I, s:s, s:s, s:I, s:i, s:s, s:s, s:O}", "format", SFC_CHECKPOINT_FORMAT,
        "version", sfc_checkpoint_version(w->config, w->lr_count, w->growth_count), "step",
        (json_int_t)w->step, "digest", digest, "run", w->config->name, "classes",
        (json_int_t)w->config->classes, "dim", (int)w->config->dim, "backbone", w->config->backbone,
        "run_xxh3", config_hex, "files", files);
    char *text = root == NULL || !add_lr(w, root) || !add_growths(w, root)
                     ? NULL
                     : json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    json_decref(files);
    if (text == NULL || sfc_json_out_of_memory()) { /* a piece may be missing in the text */
        free(text);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for manifest.json");
    }
    char hex[SFC_DIGEST_HEX];
    sfc_digest_hex(XXH3_128bits(text, strlen(text)), hex);
    code = write_file(w->dir, "manifest.json", text, strlen(text), err);
    if (code == SFC_OK) {
        code = write_file(w->dir, "manifest.xxh3", hex, strlen(hex), err);
    }
    free(text);
    return code;
}

/* The rename is durable when the parent directory is. */
static int publish(struct sfc_checkpoint_writer *w, struct sfc_error *err)
{
    if (fsync(w->dir) != 0) {
        return sfc_fail_errno(err, "fsync %s", w->partial);
    }
    if (rename(w->partial, w->final) != 0) {
        return sfc_fail_errno(err, "rename %s to %s", w->partial, w->final);
    }
    memcpy(w->partial, w->final, sizeof w->partial); /* what a failure takes away again */
    int parent = openat(w->dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0 || fsync(parent) != 0) {
        int code = sfc_fail_errno(err, "fsync the directory of %s", w->final);
        if (parent >= 0) {
            close(parent);
        }
        return code;
    }
    close(parent);
    return SFC_OK;
}

static void free_writer(struct sfc_checkpoint_writer *w)
{
    if (w->file >= 0) {
        close(w->file);
    }
    if (w->dir >= 0) {
        close(w->dir);
    }
    XXH3_freeState(w->hash);
    if (w->config != NULL) {
        shardfc__v1__run_config__free_unpacked(w->config, NULL);
    }
    sfc_block_table_free(&w->table);
    free(w->lr_changes);
    sfc_growths_free(w->growths, w->growth_count);
    free(w);
}

int sfc_checkpoint_finish(struct sfc_checkpoint_writer *w, char digest[SFC_DIGEST_HEX],
                          struct sfc_error *err)
{
    char config_hex[SFC_DIGEST_HEX];
    char state_hex[SFC_DIGEST_HEX];
    Shardfc__V1__RunConfig config = *w->config;
    config.classes = w->start_classes;
    int code = sfc_state_digest(&w->table, &config, w->step, state_hex, err);
    if (code == SFC_OK) {
        code = write_config(w, config_hex, err);
    }
    if (code == SFC_OK) {
        code = write_manifest(w, state_hex, config_hex, err);
    }
    if (code == SFC_OK) {
        code = publish(w, err);
    }
    if (code != SFC_OK) {
        sfc_checkpoint_discard(w);
        return code;
    }
    memcpy(digest, state_hex, SFC_DIGEST_HEX);
    free_writer(w);
    return SFC_OK;
}

void sfc_checkpoint_discard(struct sfc_checkpoint_writer *w)
{
    if (w == NULL) {
        return;
    }
    if (w->dir >= 0) {
        for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
            for (uint64_t b = 0; b < w->table.count[kind]; b++) {
                char name[32];
                sfc_block_file_name((Shardfc__V1__BlockKind)kind, b, name);
                unlinkat(w->dir, name, 0);
            }
        }
        unlinkat(w->dir, "run.pb", 0);
        unlinkat(w->dir, "manifest.json", 0);
        unlinkat(w->dir, "manifest.xxh3", 0);
        rmdir(w->partial);
    }
    free_writer(w);
}
