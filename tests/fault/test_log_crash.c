/* A shard's step log on a disk that fails or ends at every n-th call: n = 1, 2, ... until a whole
 * run passes without a hit, for several seeds of what survives. After each crash the log is opened
 * with the scheduler's last commit, and every step that replay needs must be there with its exact
 * content.
 *
 *   test_log_crash [--seeds N] [--first SEED] [--expect-failure]
 * Prints seed and n of the first failure. --expect-failure: for builds with a planted bug. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/log_rig.h"
#include "tests/lib/memory_files.h"

enum { STEPS = 24, SPAN = 5, RETRIES = 20, LIVES = 12, GROUP = 3 };

struct shard {
    struct memory_files *files;
    struct sfc_folder *folder;
    struct sfc_step_log *log;
    struct sfc_step_log_config config;
    uint64_t committed; /* at the scheduler */
    struct sfc_attempt rounds[STEPS + 1];
    uint64_t counter; /* of rounds */
    uint64_t floor;   /* the log is needed from floor + 1 on */
    uint64_t incarnation;
    struct sfc_log_body body;
    bool dead, grouped;
    bool impatient; /* the process ends with the first call that fails */
    char failure[800];
};

static void failed(struct shard *s, const char *what, uint64_t step, const struct sfc_error *err)
{
    if (s->failure[0] == '\0') {
        snprintf(s->failure, sizeof s->failure, "%s, step %" PRIu64 ": %s", what, step,
                 err == NULL ? "" : err->text);
    }
    s->dead = true;
}

/* Everything that a replay from the floor would ask for. */
static void check_all(struct shard *s)
{
    struct sfc_error err;
    for (uint64_t step = s->floor + 1; step <= s->committed && !s->dead; step++) {
        struct sfc_log_commit expected = rig_commit(step, s->rounds[step]), found;
        struct sfc_log_prepare_view view;
        if (sfc_step_log_commit_of(s->log, step, &found, &err) != SFC_OK) {
            failed(s, "commit is gone", step, &err);
        } else if (!rig_same_commit(&expected, &found)) {
            failed(s, "another commit", step, NULL);
        } else if (!expected.apply) {
            continue;
        } else {
            int code = sfc_step_log_read(s->log, step, found.round, &s->body, &view, &err);
            if (code == SFC_EIO) {
                return; /* an injected error, or the process is dead: checked again later */
            }
            if (code != SFC_OK) {
                failed(s, "record is gone", step, &err);
            } else if (!rig_same(&view, step, found.round)) {
                failed(s, "record has another content", step, NULL);
            }
        }
    }
}

static int log_once(struct shard *s, uint64_t step, struct sfc_attempt round, struct sfc_error *err)
{
    struct rig_step record;
    rig_fill(&record, step, round);
    int code = sfc_step_log_append_prepare(s->log, &record.prepare, err);
    return code == SFC_OK ? sfc_step_log_flush(s->log, err) : code;
}

/* Prepare, Ready, the scheduler's record, Commit. False: the process died. */
static bool run_step(struct shard *s, uint64_t step)
{
    struct sfc_error err;
    struct sfc_attempt round = {s->incarnation, ++s->counter};
    if (step % 4 == 0) { /* a round that is voided after Ready */
        (void)log_once(s, step, round, &err);
        round.counter = ++s->counter;
    }
    for (int tries = 0; tries < (s->impatient ? 1 : RETRIES); tries++) {
        int code = log_once(s, step, round, &err);
        if (code == SFC_OK) {
            struct sfc_log_commit commit = rig_commit(step, round);
            s->committed = step;
            s->rounds[step] = round;
            if (sfc_step_log_append_commit(s->log, &commit, &err) != SFC_OK) {
                failed(s, "commit refused", step, &err);
            }
            return true;
        }
    }
    return false;
}

static int append_group(struct shard *s, uint64_t last, struct sfc_attempt rounds[GROUP])
{
    struct sfc_error err;
    for (uint64_t step = s->committed + 1; step <= last; step++) {
        struct rig_step record;
        struct sfc_attempt round = {s->incarnation, ++s->counter};
        struct sfc_log_commit commit = rig_commit(step, round);
        rig_fill(&record, step, round);
        int code = sfc_step_log_append_prepare(s->log, &record.prepare, &err);
        if (code == SFC_OK) {
            code = sfc_step_log_append_commit(s->log, &commit, &err);
        }
        if (code != SFC_OK) {
            return code;
        }
        rounds[step - s->committed - 1] = round;
    }
    return sfc_step_log_flush(s->log, &err);
}

/* Several steps with one flush: they count together, or all are done again in other rounds. */
static bool run_group(struct shard *s)
{
    struct sfc_attempt rounds[GROUP] = {{0, 0}};
    uint64_t last = s->committed + GROUP < STEPS ? s->committed + GROUP : STEPS;
    for (int tries = 0; tries < RETRIES; tries++) {
        if (append_group(s, last, rounds) == SFC_OK) {
            memcpy(&s->rounds[s->committed + 1], rounds, (last - s->committed) * sizeof *rounds);
            s->committed = last;
            return true;
        }
    }
    return false;
}

static void start(struct shard *s)
{
    struct sfc_error err;
    struct sfc_step_log_report report;
    struct sfc_step_log_recovery recovery = {
        .from = s->floor + 1,
        .last = rig_commit(s->committed, s->rounds[s->committed]),
        .has_last = s->committed > 0,
    };
    s->folder = memory_files_folder(s->files);
    s->incarnation++;
    int code = SFC_EIO;
    for (int tries = 0; tries < RETRIES && code != SFC_OK && code != SFC_ECORRUPT; tries++) {
        code = sfc_step_log_recover(s->folder, &s->config, &recovery, &s->log, &report, &err);
    }
    if (code == SFC_ECORRUPT) {
        failed(s, "recovery refuses", s->committed, &err);
    }
    if (code != SFC_OK) {
        s->log = NULL;
    } else {
        if (report.damage[0] != '\0') {
            snprintf(err.text, sizeof err.text, "%s", report.damage);
            failed(s, "a crash was taken for corruption", s->committed, &err);
        }
        check_all(s);
    }
}

static void stop(struct shard *s)
{
    sfc_step_log_close(s->log);
    sfc_folder_close(s->folder);
    s->log = NULL;
}

/* Until the process dies or the run is over. */
static bool live(struct shard *s)
{
    struct sfc_error err;
    start(s);
    bool done = s->log != NULL && !s->dead;
    while (done && s->committed < STEPS) {
        done = s->grouped ? run_group(s) : run_step(s, s->committed + 1);
        uint64_t floor = s->committed > SPAN ? s->committed - SPAN : 0;
        if (done && floor > s->floor && floor % 3 == 0) {
            s->floor = floor;
            (void)sfc_step_log_trim(s->log, floor, &err);
        }
        if (done) {
            check_all(s);
        }
        done = done && !s->dead;
    }
    stop(s);
    return done;
}

/* One run with a fault at the n-th call; *hit false: there are fewer calls. */
static void run(struct shard *s, uint64_t seed, enum memory_fault fault, uint64_t n, bool *hit)
{
    *s = (struct shard){.files = memory_files_new(seed * 1000003 + n)};
    s->grouped = seed % 8 == 7;
    s->impatient = seed % 8 == 3; /* the machine lives on, with what its page cache shows */
    rig_identity(&s->config.identity);
    s->config.geometry = rig_geometry;
    s->config.segment_bytes = 3 * sfc_step_log_step_bytes(&rig_geometry) + seed % 3 * 300;
    memory_files_fault(s->files, fault, n, 1 + seed % 3, seed % 5 == 0);
    bool done = live(s);
    *hit = memory_files_hit(s->files);
    for (uint64_t lives = 1; lives < LIVES && !s->dead && !done; lives++) {
        memory_files_restart(s->files, (seed + lives) % 4 != 0);
        if (lives < 4) { /* dies again, perhaps while it recovers */
            memory_files_fault(s->files, MEMORY_CRASH, 1 + (n * 7 + seed * 13 + lives) % 40, 1,
                               false);
        }
        done = live(s);
    }
    memory_files_restart(s->files, true);
    if (!s->dead && done) {
        start(s); /* and once more after a loss of power at the end */
        stop(s);
    }
    if (!s->dead && s->committed < STEPS) {
        failed(s, "the run never ended", s->committed, NULL);
    }
    sfc_log_body_free(&s->body);
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
    printf("%" PRIu64 " runs, each with one fault, no committed step lost\n", runs);
    return expect_failure ? 1 : 0;
}
