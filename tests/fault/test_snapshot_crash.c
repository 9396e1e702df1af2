/* A shard's snapshots on a disk that fails or ends at every n-th call: n = 1, 2, ... until a whole
 * sweep passes without a hit, for several seeds of what survives. After each crash the folder is
 * opened again: the newest snapshot that was reported as written must be there whole, nothing else
 * may be taken for one, and the floor must not be below the one that was told to the scheduler.
 *
 *   test_snapshot_crash [--seeds N] [--first SEED] [--expect-failure] */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/log_rig.h"
#include "tests/lib/memory_files.h"
#include "tests/lib/snapshot_rig.h"

enum { STEPS = 12, RETRIES = 10, LIVES = 12 };

struct shard {
    struct memory_files *files;
    struct sfc_folder *folder;
    struct sfc_snapshot_store *store;
    struct sfc_run_identity identity;
    uint64_t written[RIG_BLOCKS]; /* newest stamp that was reported as durable */
    uint64_t told;                /* greatest floor that the log may have been trimmed to */
    uint64_t step;
    int level; /* of compression; 0: none */
    char failure[700];
};

static void failed(struct shard *s, const char *what, size_t block, const char *text)
{
    if (s->failure[0] == '\0') {
        snprintf(s->failure, sizeof s->failure, "%s, block %zu at step %" PRIu64 ": %s", what,
                 block, s->step, text);
    }
}

static void check_block(struct shard *s, size_t block)
{
    struct sfc_snapshot_content content;
    struct sfc_snapshot_shape shape = rig_shape(block, 0);
    struct sfc_error err;
    char loud[512];
    int code = sfc_snapshot_store_read(s->store, rig_blocks[block].kind, rig_blocks[block].block,
                                       UINT64_MAX, &shape, &content, loud, &err);
    if (code == SFC_OK && loud[0] != '\0') {
        failed(s, "half a snapshot was found", block, loud);
    } else if (code == SFC_OK && content.step < s->written[block]) {
        failed(s, "the newest snapshot is gone", block, "");
    } else if (code == SFC_OK && !rig_snapshot_same(&content, block)) {
        failed(s, "a snapshot has another content", block, "");
    } else if (code == SFC_ECORRUPT || (code == SFC_ENOTFOUND && s->written[block] > 0)) {
        failed(s, "no whole snapshot", block, err.text);
    }
}

static void note_floor(struct shard *s)
{
    uint64_t floor = sfc_snapshot_store_floor(s->store, rig_blocks, RIG_BLOCKS, 0);
    if (floor < s->told) {
        failed(s, "the floor fell", 0, "");
    }
    s->told = floor;
}

/* Until the process dies or the sweeps are over. */
static bool live(struct shard *s)
{
    struct sfc_error err;
    int code = SFC_EIO;
    s->folder = memory_files_folder(s->files);
    for (int tries = 0; tries < RETRIES && code != SFC_OK; tries++) {
        code = sfc_snapshot_store_open(s->folder, &s->identity, &s->store, &err);
    }
    bool alive = code == SFC_OK;
    if (alive) {
        alive = sfc_snapshot_store_compress(s->store, s->level, &err) == SFC_OK;
        note_floor(s);
        for (size_t block = 0; block < RIG_BLOCKS; block++) {
            check_block(s, block);
        }
    }
    while (alive && s->step < STEPS && s->failure[0] == '\0') {
        size_t block = s->step % RIG_BLOCKS;
        code = SFC_EIO;
        for (int tries = 0; tries < RETRIES && code != SFC_OK && code != SFC_EEXIST; tries++) {
            code = rig_snapshot_write(s->store, block, s->step + 1, &err);
        }
        alive = code == SFC_OK || code == SFC_EEXIST;
        if (alive) {
            s->step++;
            s->written[block] = s->step;
            note_floor(s);
        }
    }
    sfc_snapshot_store_close(s->store);
    s->store = NULL;
    sfc_folder_close(s->folder);
    return alive;
}

static void run(struct shard *s, uint64_t seed, enum memory_fault fault, uint64_t n, bool *hit)
{
    *s = (struct shard){.files = memory_files_new(seed * 1000003 + n), .level = seed % 3 == 0};
    rig_identity(&s->identity);
    memory_files_fault(s->files, fault, n, 1 + seed % 3, seed % 5 == 0);
    bool done = live(s);
    *hit = memory_files_hit(s->files);
    for (uint64_t lives = 1; lives < LIVES && s->failure[0] == '\0' && !done; lives++) {
        memory_files_restart(s->files, (seed + lives) % 3 != 0);
        if (lives < 4) {
            memory_files_fault(s->files, MEMORY_CRASH, 1 + (n * 7 + seed * 13 + lives) % 30, 1,
                               false);
        }
        done = live(s);
    }
    memory_files_restart(s->files, true);
    if (s->failure[0] == '\0' && !live(s)) {
        failed(s, "the sweeps never ended", 0, "");
    }
    memory_files_free(s->files);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"eio", "full", "short", "crash"};
    uint64_t seeds = 20, first = 1, runs = 0;
    bool expect_failure = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--expect-failure") == 0) {
            expect_failure = true;
        } else if (i + 1 < argc && strcmp(argv[i], "--seeds") == 0) {
            seeds = strtoull(argv[++i], NULL, 10);
        } else if (i + 1 < argc && strcmp(argv[i], "--first") == 0) {
            first = strtoull(argv[++i], NULL, 10);
        }
    }
    static struct shard s;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        for (int fault = MEMORY_EIO; fault <= MEMORY_CRASH; fault++) {
            bool hit = true;
            for (uint64_t n = 1; hit; n++) {
                run(&s, seed, (enum memory_fault)fault, n, &hit);
                runs++;
                if (s.failure[0] != '\0') {
                    printf("seed %" PRIu64 ", %s at call %" PRIu64 ": %s\n", seed, names[fault], n,
                           s.failure);
                    return expect_failure ? 0 : 1;
                }
            }
        }
    }
    printf("%" PRIu64 " runs, each with one fault, no snapshot lost or halved\n", runs);
    return expect_failure ? 1 : 0;
}
