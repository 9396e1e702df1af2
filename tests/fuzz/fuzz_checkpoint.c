/* Any bytes as the files of a checkpoint, with a manifest that fits them: a byte of flags, a byte
 * for the step, two for the length of run.pb, run.pb, and the rest over and over as blocks.
 *
 * flags: 1 a bit of a block is flipped afterwards, 2 a block is cut short, 4 a bit of run.pb is
 * flipped afterwards. Without flags it must open and verify; with one it must not. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/run_config.h"
#include "server/ctl/checkpoint_common.h"
#include "tests/lib/checkpoint_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FLIP = 1, CUT = 2, FLIP_RUN = 4, MOST_FILES = 24, MOST_BYTES = 16384 };

struct input {
    unsigned flags;
    uint64_t step;
    const uint8_t *run, *rest;
    size_t run_size, rest_size;
};

static char folder[64];

static void must(int condition)
{
    if (!condition) {
        abort();
    }
}

static void remove_all(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    (void)!system(command);
}

static void write_manifest(const char *text, size_t size)
{
    char sum[SFC_DIGEST_HEX];
    checkpoint_rig_digest(text, size, sum);
    checkpoint_rig_file(folder, "manifest.json", text, size);
    checkpoint_rig_file(folder, "manifest.xxh3", sum, SFC_DIGEST_HEX - 1);
}

/* Small enough for this test; the reader's own limits are larger. */
static int fits(const Shardfc__V1__RunConfig *config, uint64_t step)
{
    uint64_t files = 0, floats = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        files += sfc_config_block_count(config, (Shardfc__V1__BlockKind)kind);
    }
    if (files > MOST_FILES) {
        return 0;
    }
    struct sfc_block_table table;
    must(sfc_block_table_init(&table, config, step, NULL) == SFC_OK);
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < table.count[kind]; b++) {
            floats += table.entry[kind][b].floats;
        }
    }
    sfc_block_table_free(&table);
    return floats * 4 <= MOST_BYTES;
}

/* Its files, and the list of them; *first: name and length of the first that is not empty. */
static size_t write_blocks(const struct input *in, struct sfc_block_table *table, char *list,
                           size_t room, char first[32], size_t *first_size)
{
    static uint8_t bytes[MOST_BYTES];
    size_t at = 0;
    *first_size = 0;
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        for (uint64_t b = 0; b < table->count[kind]; b++) {
            struct sfc_block_entry *entry = &table->entry[kind][b];
            char name[32], hex[SFC_DIGEST_HEX];
            size_t size = (size_t)entry->floats * 4;
            for (size_t i = 0; i < size; i++) {
                bytes[i] = in->rest_size == 0 ? 0 : in->rest[i % in->rest_size];
            }
            sfc_block_file_name((Shardfc__V1__BlockKind)kind, b, name);
            entry->digest = XXH3_128bits(bytes, size);
            sfc_digest_hex(entry->digest, hex);
            if (*first_size == 0 && size > 0) {
                strcpy(first, name);
                *first_size = size;
                bytes[size / 2] ^= (in->flags & FLIP) != 0;
            }
            size_t left = (in->flags & CUT) != 0 && *first_size > 0 && strcmp(first, name) == 0
                              ? size - 1
                              : size;
            checkpoint_rig_file(folder, name, bytes, left);
            at += (size_t)snprintf(list + at, room - at,
                                   "%s{\"file\":\"%s\",\"bytes\":%zu,\"xxh3\":\"%s\"}",
                                   at > 0 ? "," : "", name, size, hex);
        }
    }
    return at;
}

static void open_and_verify(int whole)
{
    struct sfc_checkpoint *checkpoint = NULL;
    struct sfc_error err;
    int code = sfc_checkpoint_open(folder, &checkpoint, &err);
    if (code == SFC_OK) {
        code = sfc_checkpoint_verify(checkpoint, &err);
    }
    must((code == SFC_OK) == whole);
    must(code == SFC_OK || strstr(err.text, folder) != NULL);
    sfc_checkpoint_close(checkpoint);
}

static void check(const struct input *in, const Shardfc__V1__RunConfig *config)
{
    static char list[MOST_FILES * 128], text[sizeof list + 512];
    char run_hex[SFC_DIGEST_HEX], state_hex[SFC_DIGEST_HEX], first[32] = "";
    struct sfc_block_table table;
    size_t first_size;
    must(sfc_block_table_init(&table, config, in->step, NULL) == SFC_OK);
    list[0] = '\0';
    (void)write_blocks(in, &table, list, sizeof list, first, &first_size);
    must(sfc_state_digest(&table, config, in->step, state_hex, NULL) == SFC_OK);
    checkpoint_rig_digest(in->run, in->run_size, run_hex);
    int size = snprintf(text, sizeof text,
                        "{\"format\":\"%s\",\"version\":%d,\"step\":%llu,\"digest\":\"%s\","
                        "\"run_xxh3\":\"%s\",\"files\":[%s]}",
                        SFC_CHECKPOINT_FORMAT, sfc_checkpoint_version(config, 0, 0),
                        (unsigned long long)in->step, state_hex, run_hex, list);
    must(size > 0 && (size_t)size < sizeof text);
    write_manifest(text, (size_t)size);
    sfc_block_table_free(&table);
    int damaged =
        (in->flags & FLIP_RUN) != 0 || ((in->flags & (FLIP | CUT)) != 0 && first_size > 0);
    open_and_verify(!damaged);
}

/* No configuration, or one with more blocks than the manifest lists. */
static void check_refused(const struct input *in)
{
    char hex[SFC_DIGEST_HEX], text[512];
    checkpoint_rig_digest(in->run, in->run_size, hex);
    int size = snprintf(text, sizeof text,
                        "{\"format\":\"%s\",\"version\":2,\"step\":%llu,\"digest\":\"%s\","
                        "\"run_xxh3\":\"%s\",\"files\":[]}",
                        SFC_CHECKPOINT_FORMAT, (unsigned long long)in->step, hex, hex);
    write_manifest(text, (size_t)size);
    open_and_verify(0);
}

static void write_run(const struct input *in)
{
    static uint8_t run[65536];
    memcpy(run, in->run, in->run_size);
    if ((in->flags & FLIP_RUN) != 0 && in->run_size > 0) {
        run[in->run_size / 2] ^= 4;
    }
    checkpoint_rig_file(folder, "run.pb", run, in->run_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (folder[0] == '\0') {
        strcpy(folder, "/dev/shm/sfc_fuzz_XXXXXX");
        must(mkdtemp(folder) != NULL);
        atexit(remove_all);
    }
    if (size < 4) {
        return 0;
    }
    struct input in = {.flags = data[0], .step = data[1], .run = data + 4};
    in.run_size = data[2] | (size_t)data[3] << 8;
    in.run_size = in.run_size < size - 4 ? in.run_size : size - 4;
    in.rest = in.run + in.run_size;
    in.rest_size = size - 4 - in.run_size;
    write_run(&in);
    Shardfc__V1__RunConfig *config = shardfc__v1__run_config__unpack(NULL, in.run_size, in.run);
    int usable = config != NULL && config->data != NULL &&
                 sfc_run_config_check(config, NULL) == SFC_OK && fits(config, in.step);
    if (usable) {
        check(&in, config);
    } else {
        check_refused(&in);
    }
    if (config != NULL) {
        shardfc__v1__run_config__free_unpacked(config, NULL);
    }
    return 0;
}
