/* shardfc bench snapshots: every snapshot of a run's folder through zstd at some levels and back,
 * in memory, on one thread: which ratio, and how many bytes per second. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/ctl/bench.h"
#include "server/ctl/command.h"
#include "server/durable/snapshot_store.h"
#include "server/durable/snapshot_zstd.h"

struct options {
    bool json;
};

#define AT(field) offsetof(struct options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc bench snapshots",
    .summary = "Compresses the snapshots of a shard's run (DIR is a run-ID folder in its --state) "
               "with zstd and back, in memory and on one thread, and prints ratios and rates. "
               "Nothing in DIR changes.",
    .arguments = "DIR",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = table,
    .count = sizeof table / sizeof *table,
};

static const int levels[] = {1, 3, 9};
enum { LEVELS = sizeof levels / sizeof *levels, DTYPES = 2 };
static const char *const dtypes[DTYPES] = {"f32", "bf16"};

struct tally { /* of one dtype and level */
    double raw, packed, pack_s, unpack_s;
};

struct work {
    struct sfc_folder *folder;
    struct sfc_packer *packers[LEVELS];
    struct sfc_unpacker *unpacker;
    uint8_t *packed, *again; /* of the part at hand */
    size_t packed_size, packed_room, again_room;
    uint64_t files[DTYPES];
    struct tally tallies[DTYPES][LEVELS];
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int reserve(uint8_t **at, size_t *room, uint64_t size, struct sfc_error *err)
{
    if (size <= *room) {
        return SFC_OK;
    }
    uint8_t *more = realloc(*at, (size_t)size);
    if (more == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %llu bytes", (unsigned long long)size);
    }
    *at = more;
    *room = (size_t)size;
    return SFC_OK;
}

static int keep(void *ctx, const void *bytes, size_t size, struct sfc_error *err)
{
    struct work *w = ctx;
    if (size > w->packed_room - w->packed_size) {
        return sfc_fail(err, SFC_EINTERNAL, "a compressed part is larger than its bound");
    }
    memcpy(w->packed + w->packed_size, bytes, size);
    w->packed_size += size;
    return SFC_OK;
}

static int pack(struct work *w, size_t level, const uint8_t *part, uint64_t size,
                struct sfc_error *err)
{
    const struct sfc_packed_sink sink = {keep, w};
    w->packed_size = 0;
    int code = sfc_packer_begin(w->packers[level], size, err);
    if (code == SFC_OK) {
        code = sfc_packer_take(w->packers[level], part, (size_t)size, &sink, err);
    }
    return code == SFC_OK ? sfc_packer_end(w->packers[level], &sink, err) : code;
}

static int unpack(struct work *w, uint64_t size, struct sfc_error *err)
{
    sfc_unpacker_begin(w->unpacker, w->again, size);
    int code = sfc_unpacker_take(w->unpacker, w->packed, w->packed_size, err);
    return code == SFC_OK ? sfc_unpacker_end(w->unpacker, err) : code;
}

static int measure(struct work *w, size_t level, const uint8_t *part, uint64_t size,
                   struct tally *tally, struct sfc_error *err)
{
    double began = seconds();
    int code = pack(w, level, part, size, err);
    double packed = seconds();
    if (code == SFC_OK) {
        code = unpack(w, size, err);
    }
    double end = seconds();
    if (code == SFC_OK && memcmp(part, w->again, (size_t)size) != 0) {
        code = sfc_fail(err, SFC_EINTERNAL, "other bytes came out than went in");
    }
    tally->raw += (double)size;
    tally->packed += (double)w->packed_size;
    tally->pack_s += packed - began;
    tally->unpack_s += end - packed;
    return code;
}

static int measure_part(struct work *w, const struct sfc_snapshot_header *header,
                        enum sfc_snapshot_part kind, const uint8_t *part, struct sfc_error *err)
{
    uint64_t size = sfc_snapshot_part_bytes(&header->shape, kind);
    int code = reserve(&w->packed, &w->packed_room, sfc_snapshot_stored_limit(size), err);
    if (code == SFC_OK) {
        code = reserve(&w->again, &w->again_room, size + 1, err);
    }
    for (size_t level = 0; level < LEVELS && code == SFC_OK; level++) {
        code = measure(w, level, part, size, &w->tallies[header->shape.dtype][level], err);
    }
    return code;
}

static int visit(void *arg, const char *name, struct sfc_error *err)
{
    struct work *w = arg;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_header header;
    uint8_t *bytes = NULL;
    if (!sfc_snapshot_parse_name(name, &key)) {
        return SFC_OK;
    }
    int code = sfc_snapshot_load(w->folder, name, &header, &bytes, err);
    const uint8_t *part = bytes;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS && code == SFC_OK; i++) {
        if (header.shape.has[i]) {
            code = measure_part(w, &header, (enum sfc_snapshot_part)i, part, err);
            part += sfc_snapshot_part_bytes(&header.shape, (enum sfc_snapshot_part)i);
        }
    }
    if (code == SFC_OK) {
        w->files[header.shape.dtype]++;
    }
    free(bytes);
    return code;
}

/* ---- report */

static double rate(double bytes, double s)
{
    return s > 0 ? bytes / s / 1e6 : 0;
}

static json_t *report_level(const struct tally *t, int level)
{
    return json_pack("{s:i, s:f, s:f, s:f, s:f}", "level", level, "packed_bytes", t->packed,
                     "ratio", t->packed / t->raw, "pack_mb_s", rate(t->raw, t->pack_s),
                     "unpack_mb_s", rate(t->raw, t->unpack_s));
}

static json_t *report(const struct work *w)
{
    json_t *all = json_object();
    for (int d = 0; d < DTYPES; d++) {
        json_t *list = json_array();
        for (int i = 0; i < LEVELS && w->tallies[d][i].raw > 0; i++) {
            json_array_append_new(list, report_level(&w->tallies[d][i], levels[i]));
        }
        json_object_set_new(all, dtypes[d],
                            json_pack("{s:I, s:f, s:o}", "files", (json_int_t)w->files[d],
                                      "raw_bytes", w->tallies[d][0].raw, "levels", list));
    }
    return all;
}

static void print(const struct work *w)
{
    printf("%-5s %6s %9s %6s %7s %10s %12s\n", "dtype", "files", "raw MB", "level", "ratio",
           "pack MB/s", "unpack MB/s");
    for (int d = 0; d < DTYPES; d++) {
        for (int i = 0; i < LEVELS && w->tallies[d][i].raw > 0; i++) {
            const struct tally *t = &w->tallies[d][i];
            printf("%-5s %6llu %9.1f %6d %7.3f %10.0f %12.0f\n", dtypes[d],
                   (unsigned long long)w->files[d], t->raw / 1e6, levels[i], t->packed / t->raw,
                   rate(t->raw, t->pack_s), rate(t->raw, t->unpack_s));
        }
    }
}

static int run(const char *dir, bool json, struct sfc_error *err)
{
    struct work w = {0};
    int code = sfc_folder_open(dir, false, &w.folder, err);
    for (size_t i = 0; i < LEVELS && code == SFC_OK; i++) {
        code = sfc_packer_new(levels[i], &w.packers[i], err);
    }
    if (code == SFC_OK) {
        code = sfc_unpacker_new(&w.unpacker, err);
    }
    if (code == SFC_OK) {
        code = w.folder->ops->list(w.folder, visit, &w, err);
    }
    if (code == SFC_OK && w.files[0] + w.files[1] == 0) {
        code = sfc_fail(err, SFC_ENOTFOUND, "%s has no snapshots; give a run-ID folder", dir);
    }
    if (code == SFC_OK && json) {
        sfc_command_json(report(&w));
    } else if (code == SFC_OK) {
        print(&w);
    }
    for (size_t i = 0; i < LEVELS; i++) {
        sfc_packer_free(w.packers[i]);
    }
    sfc_unpacker_free(w.unpacker);
    free(w.packed);
    free(w.again);
    sfc_folder_close(w.folder);
    return code;
}

int sfc_bench_snapshots_main(int argc, char **argv)
{
    struct options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = run(sfc_options_argument(parsed, 0), o.json, &err);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("bench snapshots", &err);
}
