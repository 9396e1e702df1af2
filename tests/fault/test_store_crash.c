/* The scheduler's store on a disk that fails or ends at every n-th call of SQLite: n = 1, 2, ...
 * until a whole history passes without a hit, for several seeds of what survives. What the store
 * said was durable is there after each crash, what it did not is there whole or not at all, and
 * incarnations only go up. An error that is none of the file's is never called damage.
 *
 *   test_store_crash [--seeds N] [--first SEED] [--lie]
 * Prints seed and n of the first failure. --lie: syncs of the journal are answered and not
 * done; passes only if that is noticed. */
#include <errno.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/scheduler/state_store.h"
#include "tests/lib/memory_vfs.h"

enum {
    OPS = 90,
    RETRIES = 20,
    LIVES = 12,
    MAX_BLOB = 9000,
    MAX_COMMITS = 64,
    MAX_DROPS = 16,
    RATES = 5
};

enum op {
    ADD_RUN,
    RUN_STATE,
    NUMERICS,
    COMMIT,
    COMMITS, /* two of them, after a return to the step before, with it in one transaction */
    DROP,
    SET_LR,
    PUT_SHARD,
    DROP_SHARD,
    EVENT,
    REWIND,
    REOPEN
};

/* All that the store's readers show. */
struct world {
    uint64_t run;               /* id of the newest, 0: none */
    uint64_t state, numerics;   /* which text */
    uint64_t steps;             /* committed, of the newest run */
    uint64_t drops;             /* of the newest run */
    uint64_t rates[RATES];      /* operation that set the one from this step on, 0: none */
    uint64_t shards;            /* bits */
    struct sfc_lineage lineage; /* of the newest run; zeros behind its end */
};

struct scheduler {
    struct memory_files *files;
    struct sfc_folder *folder;
    struct sfc_store *store;
    uint64_t seed, incarnation; /* the highest that was given out */
    struct world world;         /* after the operations that were answered with SFC_OK */
    uint64_t done;              /* operations */
    bool dead;                  /* wrong: failure says why */
    char where[64], path[80], failure[800];
};

static struct sfc_folder *names; /* of the life that is going on, for fsync */
int __wrap_fsync(int fd);

/* The store itself syncs only folders; the disk of this test is another one. */
int __wrap_fsync(int fd)
{
    (void)fd;
    int code = names->ops->sync_names(names, NULL);
    errno = code == SFC_ELIMIT ? ENOSPC : EIO;
    return code == SFC_OK ? 0 : -1;
}

static void failed(struct scheduler *s, const char *what, const struct sfc_error *err)
{
    if (s->failure[0] == '\0') {
        snprintf(s->failure, sizeof s->failure, "operation %" PRIu64 ": %s: %s", s->done, what,
                 err == NULL ? "" : err->text);
    }
    s->dead = true;
}

/* ---- the history: operation i of a seed, and what it makes of the world */

static uint64_t mixed(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static enum op operation(uint64_t seed, uint64_t i)
{
    static const enum op first[] = {PUT_SHARD, PUT_SHARD, ADD_RUN, NUMERICS, RUN_STATE, COMMIT};
    static const enum op later[] = {COMMIT, COMMIT,     COMMIT,    COMMIT, DROP,
                                    EVENT,  DROP_SHARD, PUT_SHARD, SET_LR, EVENT,
                                    REWIND, RUN_STATE,  REWIND,    COMMITS};
    if (i % 45 < sizeof first / sizeof *first) { /* the second half has a run of its own */
        return first[i % 45];
    }
    uint64_t r = mixed(seed, i);
    return r % 31 == 0 ? REOPEN : later[r % (sizeof later / sizeof *later)];
}

static uint64_t back_to(const struct world *w)
{
    return w->steps < 2 ? 0 : w->steps - 2;
}

/* Operation i notes a return; rounds rise with i. */
static void note_return(struct sfc_lineage *lineage, uint64_t step, uint64_t i)
{
    sfc_lineage_add(lineage, step, (struct sfc_attempt){1 + i / 20, i});
    memset(lineage->returns + lineage->count, 0,
           (SFC_LINEAGE_MAX - lineage->count) * sizeof *lineage->returns);
}

static struct world after(struct world w, enum op op, uint64_t seed, uint64_t i)
{
    uint64_t shard = mixed(seed, i) % 3;
    switch (op) {
    case ADD_RUN:
        return (struct world){.run = w.run + 1, .shards = w.shards};
    case RUN_STATE:
        w.state = i;
        break;
    case NUMERICS:
        w.numerics = i;
        break;
    case COMMIT:
        w.steps++;
        break;
    case COMMITS:
        note_return(&w.lineage, w.steps, i);
        w.steps += 2;
        break;
    case DROP:
        w.drops += w.drops < MAX_DROPS;
        break;
    case SET_LR:
        memset(&w.rates[i % RATES], 0, (RATES - i % RATES) * sizeof w.rates[0]);
        w.rates[i % RATES] = i;
        break;
    case PUT_SHARD:
        w.shards |= UINT64_C(1) << shard;
        break;
    case DROP_SHARD:
        w.shards &= ~(UINT64_C(1) << shard);
        break;
    case REWIND: /* drops and learning rates are of later steps: all of them go */
        w.steps = back_to(&w);
        w.drops = 0;
        memset(w.rates, 0, sizeof w.rates);
        note_return(&w.lineage, w.steps, i);
        break;
    case EVENT:
    case REOPEN:
        break;
    }
    return w;
}

static size_t blob(uint64_t key, uint8_t *out)
{
    size_t size = mixed(key, 1) % 8 == 0 ? mixed(key, 2) % MAX_BLOB : mixed(key, 2) % 600;
    for (size_t i = 0; i < size; i++) {
        out[i] = (uint8_t)mixed(key, i / 8 + 3);
    }
    return size;
}

static struct sfc_store_commit record_of(uint64_t run, uint64_t step, uint8_t *attempts)
{
    uint64_t key = mixed(run, step);
    struct sfc_store_commit c = {.run_id = run,
                                 .step = step,
                                 .clip_scale = (double)(key % 1000) / 7,
                                 .applied = key % 5 != 0,
                                 .loss = (double)(key % 77) / 3,
                                 .lr = 0.1,
                                 .norm = (double)(key % 13),
                                 .round_incarnation = key % 4,
                                 .round_counter = key,
                                 .skipped_total = key % 3,
                                 .classes = key >> 8,
                                 .map_version = 1,
                                 .time_us = key % 1000000,
                                 .position = step * 128,
                                 .attempts = attempts};
    c.attempts_size = blob(key, attempts);
    return c;
}

static int do_operation(struct scheduler *s, enum op op, struct sfc_error *err)
{
    static uint8_t bytes[MAX_BLOB], map[MAX_BLOB];
    uint64_t i = s->done, shard = mixed(s->seed, i) % 3, id = 0;
    const struct world *w = &s->world;
    const struct sfc_store_drop drop = {.step = 1000 + w->drops, .micro_batch = (uint32_t)w->run};
    char text[64];
    struct sfc_store_event event = {.who = "test"};
    snprintf(text, sizeof text, "%" PRIu64, i);
    snprintf(event.text, sizeof event.text, "%s", text);
    switch (op) {
    case ADD_RUN: {
        struct sfc_store_run run = {.start_step = w->run, .state = "loading"};
        run.config = bytes;
        run.config_size = blob(w->run + 1, bytes);
        run.map = map;
        run.map_size = blob(w->run + 2, map);
        int code = sfc_store_add_run(s->store, &run, &id, err);
        if (code == SFC_OK && id != w->run + 1) {
            failed(s, "a run has another number", NULL);
        }
        return code;
    }
    case RUN_STATE:
        return sfc_store_set_run_state(s->store, w->run, text, i % 2 == 1, text, err);
    case NUMERICS:
        return sfc_store_set_run_numerics(s->store, w->run, text, err);
    case COMMIT: {
        const struct sfc_store_commit c = record_of(w->run, w->steps + 1, bytes);
        return sfc_store_put_commit(s->store, &c, err);
    }
    case COMMITS: {
        const struct sfc_store_commit both[2] = {record_of(w->run, w->steps + 1, bytes),
                                                 record_of(w->run, w->steps + 2, map)};
        struct sfc_lineage lineage = w->lineage;
        note_return(&lineage, w->steps, i);
        return sfc_store_put_commits(s->store, both, 2, &lineage, err);
    }
    case DROP:
        return w->drops < MAX_DROPS ? sfc_store_put_drop(s->store, w->run, &drop, err) : SFC_OK;
    case SET_LR: {
        const struct sfc_store_lr change = {1000 + i % RATES, (double)i};
        return sfc_store_put_lr(s->store, w->run, &change, err);
    }
    case PUT_SHARD:
        snprintf(text, sizeof text, "shard-%" PRIu64, shard);
        return sfc_store_put_shard(s->store, shard, text, err);
    case DROP_SHARD:
        return sfc_store_drop_shard(s->store, shard, err);
    case EVENT:
        event.time_ms = (int64_t)i;
        event.run_id = w->run;
        return sfc_store_put_event(s->store, &event, err);
    case REWIND: {
        struct sfc_lineage lineage = w->lineage;
        note_return(&lineage, back_to(w), i);
        return sfc_store_rewind(s->store, w->run, back_to(w), NULL, 0, &lineage, err);
    }
    case REOPEN:
        break;
    }
    sfc_store_close(s->store);
    s->store = NULL;
    return sfc_store_open(s->path, &s->store, err);
}

/* ---- what is there */

/* The records are exactly 1..n with their whole content; n, or -1. */
static int64_t count_commits(struct scheduler *s, uint64_t run, struct sfc_error *err)
{
    static struct sfc_store_commit found[MAX_COMMITS];
    static uint8_t bytes[MAX_BLOB];
    size_t count = 0;
    if (sfc_store_history(s->store, run, 0, MAX_COMMITS, found, &count, err) != SFC_OK) {
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        struct sfc_store_commit wanted = record_of(run, i + 1, bytes);
        /* Put again, it compares the attempts as well. */
        if (sfc_store_put_commit(s->store, &wanted, err) != SFC_OK) {
            return -1;
        }
        wanted.attempts = NULL;
        wanted.attempts_size = 0;
        if (found[i].step != i + 1 || memcmp(&found[i].loss, &wanted.loss, sizeof(double)) != 0 ||
            found[i].clip_scale != wanted.clip_scale || found[i].applied != wanted.applied ||
            found[i].norm != wanted.norm || found[i].round_counter != wanted.round_counter ||
            found[i].round_incarnation != wanted.round_incarnation ||
            found[i].classes != wanted.classes || found[i].time_us != wanted.time_us ||
            found[i].position != wanted.position ||
            found[i].skipped_total != wanted.skipped_total) {
            failed(s, "a commit record has another content", NULL);
        }
    }
    return (int64_t)count;
}

static int64_t count_drops(struct scheduler *s, uint64_t run, struct sfc_error *err)
{
    struct sfc_store_drop found[MAX_DROPS + 1];
    size_t count = 0;
    if (sfc_store_drops(s->store, run, 0, MAX_DROPS + 1, found, &count, err) != SFC_OK) {
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        if (found[i].step != 1000 + i || found[i].micro_batch != run) {
            failed(s, "a drop has another content", NULL);
        }
    }
    return (int64_t)count;
}

static int read_rates(struct scheduler *s, struct world *w, struct sfc_error *err)
{
    struct sfc_store_lr found[RATES + 1];
    size_t count = 0;
    int code = sfc_store_lr_changes(s->store, w->run, RATES + 1, found, &count, err);
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        if (found[i].from_step < 1000 || found[i].from_step >= 1000 + RATES) {
            failed(s, "a learning rate from another step", NULL);
            return code;
        }
        w->rates[found[i].from_step - 1000] = (uint64_t)found[i].lr;
    }
    return code;
}

static int read_run(struct scheduler *s, struct world *w, struct sfc_error *err)
{
    static uint8_t bytes[MAX_BLOB], map[MAX_BLOB];
    struct sfc_store_run run = {0};
    int code = sfc_store_last_run(s->store, &run, err);
    if (code == SFC_ENOTFOUND) {
        return SFC_OK;
    }
    if (code != SFC_OK) {
        return code;
    }
    w->run = run.run_id;
    w->state = strtoull(run.state, NULL, 10);
    w->numerics = strtoull(run.numerics, NULL, 10);
    size_t size = blob(run.run_id, bytes), map_size = blob(run.run_id + 1, map);
    if (run.config_size != size || memcmp(run.config, bytes, size) != 0 ||
        run.map_size != map_size || memcmp(run.map, map, map_size) != 0 ||
        (w->state != 0 && strcmp(run.state, run.reason) != 0) ||
        run.paused != (w->state % 2 == 1)) {
        failed(s, "a run has another content", NULL);
    }
    sfc_store_run_close(&run);
    code = sfc_store_lineage(s->store, w->run, &w->lineage, err);
    if (code != SFC_OK) {
        return code;
    }
    int64_t steps = count_commits(s, w->run, err), drops = count_drops(s, w->run, err);
    w->steps = (uint64_t)steps;
    w->drops = (uint64_t)drops;
    return steps < 0 || drops < 0 ? SFC_EIO : read_rates(s, w, err);
}

static int read_world(struct scheduler *s, struct world *w, struct sfc_error *err)
{
    struct sfc_store_shard shards[4];
    size_t count = 0;
    memset(w, 0, sizeof *w);
    int code = read_run(s, w, err);
    if (code == SFC_OK) {
        code = sfc_store_shards(s->store, shards, 4, &count, err);
    }
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        w->shards |= UINT64_C(1) << shards[i].shard;
    }
    return code;
}

/* What was not answered may have happened; then the scheduler goes on behind it. */
static int check(struct scheduler *s, struct sfc_error *err)
{
    struct world now;
    int code = read_world(s, &now, err);
    if (code != SFC_OK) {
        return code;
    }
    struct world next = after(s->world, operation(s->seed, s->done), s->seed, s->done);
    if (memcmp(&now, &s->world, sizeof now) == 0) {
        return SFC_OK;
    }
    if (s->done < OPS && memcmp(&now, &next, sizeof now) == 0) {
        s->world = now;
        s->done++;
        return SFC_OK;
    }
    snprintf(err->text, sizeof err->text,
             "run %" PRIu64 ", %" PRIu64 " steps, %" PRIu64 " drops, %zu returns, shards %" PRIx64
             " where it said run %" PRIu64 ", %" PRIu64 " steps, %" PRIu64
             " drops, %zu returns, shards %" PRIx64,
             now.run, now.steps, now.drops, now.lineage.count, now.shards, s->world.run,
             s->world.steps, s->world.drops, s->world.lineage.count, s->world.shards);
    failed(s, "lost, or half there", err);
    return SFC_OK;
}

/* ---- lives */

/* An error of the disk is no damage, and says where it happened. */
static void check_error(struct scheduler *s, int code, const struct sfc_error *err)
{
    if (code != SFC_EIO && code != SFC_ELIMIT) {
        failed(s, "another status than that of the disk", err);
    } else if (strstr(err->text, s->where) == NULL) {
        failed(s, "the message does not name the file", err);
    }
}

static bool start(struct scheduler *s)
{
    struct sfc_error err;
    uint64_t incarnation = 0;
    s->folder = names = memory_files_folder(s->files);
    memory_vfs_use(s->folder);
    int code = SFC_EIO;
    for (int tries = 0; tries < RETRIES && code != SFC_OK && !s->dead; tries++) {
        if (s->store == NULL) {
            code = sfc_store_open(s->path, &s->store, &err);
        }
        if (s->store != NULL) {
            code = sfc_store_next_incarnation(s->store, &incarnation, &err);
        }
        if (code == SFC_OK && incarnation <= s->incarnation) {
            failed(s, "the incarnation went back", NULL);
        }
        if (code == SFC_OK) {
            s->incarnation = incarnation;
            code = check(s, &err);
        }
        if (code != SFC_OK) {
            check_error(s, code, &err);
        }
    }
    return code == SFC_OK;
}

static void stop(struct scheduler *s)
{
    sfc_store_close(s->store);
    sfc_folder_close(s->folder);
    s->store = NULL;
}

/* Until the process dies or the history is over. */
static bool live(struct scheduler *s)
{
    struct sfc_error err;
    bool alive = start(s);
    while (alive && s->done < OPS && !s->dead) {
        enum op op = operation(s->seed, s->done);
        int code = SFC_EIO;
        for (int tries = 0; tries < RETRIES && code != SFC_OK && !s->dead; tries++) {
            code = s->store != NULL ? do_operation(s, op, &err)
                                    : sfc_store_open(s->path, &s->store, &err);
            if (code != SFC_OK) {
                check_error(s, code, &err);
            }
        }
        alive = code == SFC_OK;
        if (alive) {
            s->world = after(s->world, op, s->seed, s->done);
            s->done++;
        }
    }
    stop(s);
    return alive && !s->dead;
}

/* One history with a fault at the n-th call; *hit false: there are fewer calls. */
static void run(struct scheduler *s, uint64_t seed, enum memory_fault fault, uint64_t n, bool *hit)
{
    char lock[96];
    *s = (struct scheduler){.seed = seed, .files = memory_files_new(seed * 1000003 + n)};
    strcpy(s->where, "/tmp/sfc_store_crash_XXXXXX");
    if (mkdtemp(s->where) == NULL) {
        failed(s, "no scratch folder", NULL);
    }
    snprintf(s->path, sizeof s->path, "%s/state", s->where);
    memory_files_fault(s->files, fault, n, 1 + seed % 3, seed % 3 == 0);
    bool done = live(s);
    *hit = memory_files_hit(s->files);
    for (uint64_t lives = 1; lives < LIVES && !s->dead && !done; lives++) {
        memory_files_restart(s->files, (seed + lives) % 4 != 0);
        if (lives < 4) { /* dies again, perhaps while it opens */
            memory_files_fault(s->files, MEMORY_CRASH, 1 + (n * 7 + seed * 13 + lives) % 60, 1,
                               false);
        }
        done = live(s);
    }
    memory_files_restart(s->files, true);
    if (!s->dead && (!done || s->done < OPS)) {
        failed(s, "the history never ended", NULL);
    }
    if (!s->dead) { /* and once more after a loss of power at the end */
        (void)start(s);
        stop(s);
    }
    memory_files_free(s->files);
    snprintf(lock, sizeof lock, "%s/lock", s->path);
    unlink(lock);
    rmdir(s->path);
    rmdir(s->where);
}

/* Checkpoints of the journal in the middle of a life, not only at its end. */
static int short_journal(sqlite3 *db, char **text, const struct sqlite3_api_routines *api)
{
    (void)text, (void)api;
    return sqlite3_wal_autocheckpoint(db, 11);
}

static bool parse(int argc, char **argv, uint64_t *first, uint64_t *seeds, bool *lie)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--lie") == 0) {
            *lie = true;
        } else if (i + 1 < argc && strcmp(argv[i], "--seeds") == 0) {
            *seeds = strtoull(argv[++i], NULL, 10);
        } else if (i + 1 < argc && strcmp(argv[i], "--first") == 0) {
            *first = strtoull(argv[++i], NULL, 10);
        } else {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"eio", "full", "short", "crash"};
    static struct scheduler s;
    uint64_t seeds = 3, first = 1, runs = 0;
    bool lie = false;
    if (!parse(argc, argv, &first, &seeds, &lie)) {
        fprintf(stderr, "usage: %s [--seeds N] [--first SEED] [--lie]\n", argv[0]);
        return 2;
    }
    memory_vfs_register();
    memory_vfs_lie(lie);
    sqlite3_auto_extension((void (*)(void))short_journal);
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        for (int fault = MEMORY_EIO; fault <= MEMORY_CRASH; fault++) {
            bool hit = true;
            for (uint64_t n = 1; hit; n++) {
                run(&s, seed, (enum memory_fault)fault, n, &hit);
                runs++;
                if (s.failure[0] != '\0') {
                    printf("seed %" PRIu64 ", %s at call %" PRIu64 ": %s\n", seed, kinds[fault], n,
                           s.failure);
                    return lie ? 0 : 1;
                }
            }
        }
    }
    printf("%" PRIu64 " histories, each with one fault, nothing lost that was said to be durable\n",
           runs);
    return lie ? 1 : 0;
}
