/* Step log: what is written is read, torn tails and corruption, limits, owners. The loops over
 * failing calls are in tests/fault/test_log_crash.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/log_rig.h"
#include "tests/lib/memory_files.h"

enum { STEPS = 20 };
#define STEP_BYTES sfc_step_log_step_bytes(&rig_geometry)

struct fixture {
    struct memory_files *files;
    struct sfc_folder *folder;
    struct sfc_step_log_config config;
    struct sfc_step_log *log;
    struct sfc_step_log_report report;
    struct sfc_error err;
    struct sfc_log_body body;
};

static struct sfc_attempt round_of(uint64_t step)
{
    return (struct sfc_attempt){1, 10 * step};
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->files = memory_files_new(1);
    f->folder = memory_files_folder(f->files);
    rig_identity(&f->config.identity);
    f->config.geometry = rig_geometry;
    f->config.segment_bytes = 5 * STEP_BYTES;
    assert_int_equal(sfc_step_log_create(f->folder, &f->config, &f->log, &f->err), SFC_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    sfc_log_body_free(&f->body);
    sfc_step_log_close(f->log);
    sfc_folder_close(f->folder);
    memory_files_free(f->files);
    free(f);
    return 0;
}

static int append(struct fixture *f, uint64_t step)
{
    struct rig_step record;
    struct sfc_log_commit commit = rig_commit(step, round_of(step));
    rig_fill(&record, step, round_of(step));
    int code = sfc_step_log_append_prepare(f->log, &record.prepare, &f->err);
    code = code == SFC_OK ? sfc_step_log_flush(f->log, &f->err) : code;
    return code == SFC_OK ? sfc_step_log_append_commit(f->log, &commit, &f->err) : code;
}

static void append_until(struct fixture *f, uint64_t first, uint64_t last)
{
    for (uint64_t step = first; step <= last; step++) {
        assert_int_equal(append(f, step), SFC_OK);
    }
}

static int reopen(struct fixture *f, uint64_t from, uint64_t last, bool peers)
{
    struct sfc_step_log_recovery recovery = {
        .from = from, .last = rig_commit(last, round_of(last)), .has_last = true, .peers = peers};
    sfc_step_log_close(f->log);
    f->log = NULL;
    f->report = (struct sfc_step_log_report){0};
    f->err.text[0] = '\0';
    return sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err);
}

static bool has_step(struct fixture *f, uint64_t step)
{
    struct sfc_log_commit expected = rig_commit(step, round_of(step)), found;
    struct sfc_log_prepare_view view;
    if (sfc_step_log_commit_of(f->log, step, &found, &f->err) != SFC_OK ||
        !rig_same_commit(&expected, &found)) {
        return false;
    }
    return !expected.apply || /* then replay needs no more */
           (sfc_step_log_read(f->log, step, found.round, &f->body, &view, &f->err) == SFC_OK &&
            rig_same(&view, step, found.round));
}

static void assert_says(const char *text, const char *word)
{
    if (strstr(text, word) == NULL) {
        fail_msg("no '%s' in '%s'", word, text);
    }
}

static void is_read_as_written(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, STEPS);
    for (int round = 0; round < 2; round++) {
        for (uint64_t step = 1; step <= STEPS; step++) {
            assert_true(has_step(f, step));
        }
        assert_int_equal(reopen(f, 1, STEPS, false), SFC_OK);
        assert_string_equal(f->report.torn, "");
        assert_string_equal(f->report.damage, "");
        assert_int_equal(f->report.first_step, 1);
        assert_int_equal(f->report.last_step, STEPS);
        assert_int_equal(f->report.records, 2 * STEPS - 1); /* the last commit is the scheduler's */
    }
    append_until(f, STEPS + 1, STEPS + 3);
    assert_int_equal(reopen(f, 1, STEPS + 3, false), SFC_OK);
    assert_true(has_step(f, STEPS)); /* whose commit came from the scheduler in between */
    assert_true(has_step(f, STEPS + 3));
}

static void commits_survive_by_a_flush_alone(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 3);
    assert_int_equal(sfc_step_log_flush(f->log, &f->err), SFC_OK);
    memory_files_restart(f->files, true);
    struct sfc_step_log_recovery recovery = {.from = 1, .has_last = false};
    sfc_step_log_close(f->log);
    f->log = NULL;
    assert_int_equal(
        sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err),
        SFC_OK);
    assert_true(has_step(f, 3));
}

static void the_round_of_the_commit_counts(void **state)
{
    struct fixture *f = *state;
    struct rig_step record;
    struct sfc_attempt rounds[] = {{1, 5}, {1, 9}, {2, 1}};
    for (int i = 0; i < 3; i++) {
        rig_fill(&record, 1, rounds[i]);
        assert_int_equal(sfc_step_log_append_prepare(f->log, &record.prepare, &f->err), SFC_OK);
    }
    assert_int_equal(sfc_step_log_flush(f->log, &f->err), SFC_OK);
    for (int i = 0; i < 3; i++) {
        struct sfc_log_prepare_view view;
        assert_int_equal(sfc_step_log_read(f->log, 1, rounds[i], &f->body, &view, &f->err), SFC_OK);
        assert_true(rig_same(&view, 1, rounds[i]));
    }
    struct sfc_log_prepare_view view;
    assert_int_equal(
        sfc_step_log_read(f->log, 1, (struct sfc_attempt){3, 1}, &f->body, &view, &f->err),
        SFC_ENOTFOUND);
}

/* The file with this content again; recovery may have removed it. */
static void restore(struct fixture *f, const char *name, const uint8_t *content, size_t size)
{
    const struct sfc_folder_ops *ops = f->folder->ops;
    struct sfc_bytes all = {content, size};
    struct sfc_file *file;
    (void)ops->remove(f->folder, name, NULL);
    assert_int_equal(ops->create(f->folder, name, &file, &f->err), SFC_OK);
    assert_int_equal(ops->write(file, 0, &all, 1, &f->err), SFC_OK);
    ops->close_file(file);
}

/* The newest segment cut at every byte: what was committed is there, or the log refuses. */
static void cut_tail_is_torn_or_refused(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 8); /* 6 to 8 are in the second segment */
    const char *name = "log-00000002.sfl";
    size_t size, full;
    uint8_t *data = memory_files_data(f->files, name, &size);
    uint8_t copy[8192];
    assert_non_null(data);
    assert_true(size <= sizeof copy);
    memcpy(copy, data, full = size);
    for (size_t cut = 0; cut < full; cut++) {
        memory_files_resize(f->files, name, cut);
        int code = reopen(f, 1, 8, false);
        assert_int_equal(code, SFC_ECORRUPT);
        assert_says(f->err.text, "step ");
        assert_says(f->err.text, "restore the run from a checkpoint");
        assert_int_equal(reopen(f, 1, 4, false), SFC_OK);
        assert_true(has_step(f, 4));
        if (cut > 0 && f->report.torn_bytes > 0) {
            assert_says(f->report.torn, name);
        }
        sfc_step_log_close(f->log);
        f->log = NULL;
        restore(f, name, copy, full);
    }
    assert_int_equal(reopen(f, 1, 8, false), SFC_OK);
}

static void cut_or_missing_segments_are_refused(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, STEPS);
    size_t size;
    assert_non_null(memory_files_data(f->files, "log-00000002.sfl", &size));
    memory_files_resize(f->files, "log-00000002.sfl", size - 8);
    assert_int_equal(reopen(f, 1, STEPS, false), SFC_ECORRUPT);
    assert_says(f->err.text, "log-00000002.sfl");
    assert_int_equal(reopen(f, 1, STEPS, true), SFC_OK); /* peers may have it */
    assert_true(f->report.missing >= 1);
    assert_true(f->report.first_missing > 1);
    assert_says(f->report.damage, "log-00000002.sfl");
    assert_int_equal(f->folder->ops->remove(f->folder, "log-00000002.sfl", &f->err), SFC_OK);
    assert_int_equal(reopen(f, 1, STEPS, false), SFC_ECORRUPT);
    assert_says(f->err.text, "step 1");
    assert_says(f->err.text, "segments are gone: the log begins with segment 3");
    assert_int_equal(reopen(f, STEPS, STEPS, false), SFC_OK); /* not needed any more */
}

/* Nothing is damaged, and the run went on without this folder. */
static void an_old_copy_is_called_so(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 4);
    assert_int_equal(reopen(f, 1, STEPS, false), SFC_ECORRUPT);
    assert_says(f->err.text,
                "the commit of step 4"); /* which the next Prepare would have written */
    assert_says(f->err.text, "the log ends at step 3: the folder is an old copy");
    assert_int_equal(reopen(f, 5, STEPS, true), SFC_OK);
    assert_int_equal(f->report.first_missing, 5);
    assert_says(f->report.gap, "the log ends at step ");
    sfc_step_log_close(f->log);
    f->log = NULL;
    memory_files_restart(f->files, true);
    for (uint64_t segment = 1; segment < 10; segment++) {
        char name[SFC_LOG_NAME_SIZE];
        sfc_log_name(segment, name);
        (void)f->folder->ops->remove(f->folder, name, NULL);
    }
    assert_int_equal(reopen(f, 1, STEPS, true), SFC_OK);
    assert_says(f->report.gap, "segments are gone: the log holds none");
}

/* A flip anywhere is named, and what is read is right all the same, or the log refuses. */
static void every_flip_is_found(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, STEPS);
    assert_int_equal(sfc_step_log_flush(f->log, &f->err), SFC_OK);
    sfc_step_log_close(f->log);
    f->log = NULL;
    size_t count = memory_files_count(f->files), refused = 0;
    assert_true(count >= 4);
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t words[] = {i, 77}, random = sfc_digest64(words, sizeof words);
        char name[64];
        size_t size;
        sfc_log_name(1 + random % count, name);
        uint8_t *data = memory_files_data(f->files, name, &size);
        assert_non_null(data);
        size_t at = (random >> 8) % size;
        uint8_t was = data[at];
        data[at] ^= (uint8_t)(1u << (random >> 60) % 8);
        struct memory_files *disk = f->files;
        struct sfc_step_log_recovery recovery = {
            .from = 1, .last = rig_commit(STEPS, round_of(STEPS)), .has_last = true};
        int code =
            sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err);
        if (code != SFC_OK) {
            refused++;
            assert_int_equal(code, SFC_ECORRUPT);
            assert_says(f->err.text, name);
            assert_says(f->err.text, "byte");
            assert_says(f->err.text, "restore");
        } else {
            const char *said = f->report.damage[0] != '\0' ? f->report.damage : f->report.torn;
            assert_says(said, name);
            assert_says(said, "byte");
            for (uint64_t step = 1; step <= STEPS; step++) {
                assert_true(has_step(f, step));
            }
            sfc_step_log_close(f->log);
        }
        f->log = NULL;
        data = memory_files_data(disk, name, &size);
        assert_non_null(data);
        data[at] = was;
    }
    assert_in_range(refused, 1500, 2000);
    struct sfc_step_log_recovery recovery = {
        .from = 1, .last = rig_commit(STEPS, round_of(STEPS)), .has_last = true};
    assert_int_equal(
        sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err),
        SFC_OK);
}

/* A record that goes bad while the log is open. */
static void a_read_checks_again(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, STEPS);
    size_t size;
    uint8_t *data = memory_files_data(f->files, "log-00000002.sfl", &size);
    assert_non_null(data);
    data[size / 2] ^= 4;
    unsigned bad = 0;
    for (uint64_t step = 1; step <= STEPS; step++) {
        struct sfc_log_prepare_view view;
        int code = sfc_step_log_read(f->log, step, round_of(step), &f->body, &view, &f->err);
        if (code != SFC_OK) {
            assert_int_equal(code, SFC_ECORRUPT);
            assert_says(f->err.text, "log-00000002.sfl: byte ");
            bad++;
        }
    }
    assert_int_equal(bad, 1);
}

static void the_limit_pushes_back_until_the_floor_moves(void **state)
{
    struct fixture *f = *state;
    sfc_step_log_close(f->log);
    f->log = NULL;
    f->config.limit_bytes = 3 * STEP_BYTES;
    assert_int_equal(sfc_step_log_create(f->folder, &f->config, &f->log, &f->err), SFC_EINVAL);
    assert_says(f->err.text, "--log-limit");
    f->config.limit_bytes = 16 * STEP_BYTES;
    assert_int_equal(sfc_step_log_create(f->folder, &f->config, &f->log, &f->err), SFC_OK);
    uint64_t step = 1;
    while (append(f, step) == SFC_OK) {
        step++;
        assert_true(step < 100);
    }
    assert_int_equal(f->err.code, SFC_ELIMIT);
    assert_says(f->err.text, "--log-limit");
    assert_says(f->err.text, "from step 1 on");
    assert_in_range(step, 11, 16);
    assert_int_equal(append(f, step), SFC_ELIMIT); /* nothing was written */
    assert_int_equal(sfc_step_log_trim(f->log, step - 4, &f->err), SFC_OK);
    append_until(f, step, step + 3);
    struct sfc_step_log_state log_state;
    sfc_step_log_state(f->log, &log_state);
    assert_true(log_state.bytes <= f->config.limit_bytes + STEP_BYTES);
    assert_int_equal(reopen(f, step - 3, step + 3, false), SFC_OK);
}

static void everything_old_can_go(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 12);
    assert_int_equal(sfc_step_log_trim(f->log, 0, &f->err), SFC_OK);
    assert_true(has_step(f, 1));
    assert_int_equal(sfc_step_log_trim(f->log, 12, &f->err), SFC_OK);
    assert_int_equal(memory_files_count(f->files), 0);
    append_until(f, 13, 14);
    assert_int_equal(reopen(f, 13, 14, false), SFC_OK);
    assert_true(has_step(f, 13));
}

static void the_reserve_of_the_disk_is_kept(void **state)
{
    struct fixture *f = *state;
    sfc_step_log_close(f->log);
    f->config.reserve_bytes = 1 << 20;
    assert_int_equal(sfc_step_log_create(f->folder, &f->config, &f->log, &f->err), SFC_OK);
    memory_files_space(f->files, 1 << 20);
    assert_int_equal(append(f, 1), SFC_ELIMIT);
    assert_says(f->err.text, "make room");
    assert_int_equal(memory_files_count(f->files), 0);
    memory_files_space(f->files, 2 << 20);
    assert_int_equal(append(f, 1), SFC_OK);
}

static void a_full_disk_is_no_end(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 3);
    memory_files_fault(f->files, MEMORY_SHORT, 1, 2, false);
    assert_int_equal(append(f, 4), SFC_ELIMIT);
    assert_true(memory_files_hit(f->files));
    append_until(f, 4, 6);
    memory_files_restart(f->files, true);
    assert_int_equal(reopen(f, 1, 6, false), SFC_OK);
    for (uint64_t step = 1; step <= 6; step++) {
        assert_true(has_step(f, step));
    }
    struct sfc_step_log_state log_state;
    sfc_step_log_state(f->log, &log_state);
    assert_true(log_state.segments >= 2);
}

/* A step of each of two histories, and the commit of the second is lost: the first one's is none.
 */
static void what_was_given_up_is_not_there(void **state)
{
    struct fixture *f = *state;
    struct sfc_lineage lineage = {0};
    struct sfc_attempt given_up = {1, 7}, counts = {1, 9};
    struct sfc_step_log_recovery recovery = {
        .from = 1, .last = rig_commit(3, counts), .has_last = true, .lineage = &lineage};
    struct sfc_log_commit commit = rig_commit(2, given_up);
    struct rig_step record;
    append_until(f, 1, 1);
    rig_fill(&record, 2, given_up);
    assert_int_equal(sfc_step_log_append_prepare(f->log, &record.prepare, &f->err), SFC_OK);
    assert_int_equal(sfc_step_log_append_commit(f->log, &commit, &f->err), SFC_OK);
    rig_fill(&record, 3, counts);
    assert_int_equal(sfc_step_log_append_prepare(f->log, &record.prepare, &f->err), SFC_OK);
    assert_int_equal(sfc_step_log_flush(f->log, &f->err), SFC_OK);
    sfc_lineage_add(&lineage, 1, given_up);
    sfc_step_log_close(f->log);
    f->log = NULL;
    assert_int_equal(
        sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err),
        SFC_ECORRUPT);
    assert_says(f->err.text, "the commit of step 2");
    recovery.peers = true;
    assert_int_equal(
        sfc_step_log_recover(f->folder, &f->config, &recovery, &f->log, &f->report, &f->err),
        SFC_OK);
    assert_int_equal(f->report.missing, 1);
    assert_int_equal(f->report.first_missing, 2);
    assert_int_equal(f->report.void_records, 2);
    assert_int_equal(sfc_step_log_commit_of(f->log, 2, &commit, &f->err), SFC_ENOTFOUND);
    assert_int_equal(sfc_step_log_commit_of(f->log, 3, &commit, &f->err), SFC_OK);
}

static void another_owner_is_refused(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 3);
    struct sfc_step_log_config own = f->config;
    f->config.identity.run_id = 43;
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    assert_says(f->err.text, "run 42");
    f->config = own;
    f->config.identity.nonce++;
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    assert_says(f->err.text, "another cluster");
    f->config = own;
    f->config.identity.config_digest[3] ^= 1;
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    f->config = own;
    strcpy(f->config.identity.numerics, "reference n2");
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    assert_says(f->err.text, "reference n1");
    f->config = own;
    f->config.geometry.dense_blocks++;
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    assert_says(f->err.text, "--state");
    f->config = own;
    f->config.geometry.dense_halves++;
    assert_int_equal(reopen(f, 1, 4, false), SFC_ESTALE);
    assert_says(f->err.text, "bf16");
    f->config.geometry.dense_halves--;
    f->config.geometry.dim++;
    assert_int_equal(reopen(f, 1, 3, false), SFC_ESTALE);
    f->config = own;
    assert_int_equal(reopen(f, 1, 3, false), SFC_OK);
    struct sfc_step_log *second;
    assert_int_equal(sfc_step_log_create(f->folder, &own, &second, &f->err), SFC_EEXIST);
}

static void another_format_is_refused(void **state)
{
    struct fixture *f = *state;
    append_until(f, 1, 3);
    size_t size;
    uint8_t *data = memory_files_data(f->files, "log-00000001.sfl", &size);
    assert_non_null(data);
    data[8] = SFC_LOG_VERSION + 1;
    uint64_t checksum = sfc_digest64(data, 248);
    memcpy(data + 248, &checksum, 8);
    assert_int_equal(reopen(f, 1, 3, false), SFC_EUNSUPPORTED);
    assert_says(f->err.text, "step log format 5");
}

/* Steps of another shard fill a hole: they are kept like the own ones, and say that they have no
 * dense sums. */
static void fetched_steps_fill_a_hole(void **state)
{
    struct fixture *f = *state;
    struct sfc_log_prepare_view view;
    struct sfc_log_place_of place;
    append_until(f, 1, STEPS);
    assert_int_equal(f->folder->ops->remove(f->folder, "log-00000001.sfl", &f->err), SFC_OK);
    assert_int_equal(reopen(f, 1, STEPS, false), SFC_ECORRUPT);
    assert_int_equal(reopen(f, 1, STEPS, true), SFC_OK);
    assert_int_equal(f->report.first_missing, 1);
    uint64_t missing = f->report.missing;
    assert_true(missing > 0 && missing < STEPS && !has_step(f, missing) && has_step(f, STEPS));
    for (uint64_t step = 1; step <= missing; step++) {
        struct rig_step record;
        struct sfc_log_commit commit = rig_commit(step, round_of(step));
        rig_fill(&record, step, round_of(step));
        record.prepare.dense = NULL;
        assert_int_equal(sfc_step_log_append_fetched(f->log, &record.prepare, &f->err), SFC_OK);
        assert_int_equal(sfc_step_log_append_commit(f->log, &commit, &f->err), SFC_OK);
    }
    assert_int_equal(sfc_step_log_flush(f->log, &f->err), SFC_OK);
    append_until(f, STEPS + 1, STEPS + 3);
    assert_int_equal(reopen(f, 1, STEPS + 3, false), SFC_OK);
    for (uint64_t step = 1; step <= STEPS + 3; step++) {
        assert_true(has_step(f, step));
        assert_int_equal(sfc_step_log_find(f->log, step, round_of(step), &place, &f->err), SFC_OK);
        assert_int_equal(
            sfc_step_log_read_at(f->folder, &f->config.geometry, &place, &f->body, &view, &f->err),
            SFC_OK);
        assert_true(rig_same(&view, step, round_of(step)));
        assert_int_equal(view.dense == NULL, step <= missing);
        assert_int_equal(place.type, step <= missing ? SFC_LOG_FETCHED : SFC_LOG_PREPARE);
    }
}

/* The geometry after some dense blocks have left, and the digest of the set of before. */
static struct sfc_log_geometry other_blocks(struct fixture *f, uint64_t former[1])
{
    struct sfc_log_geometry other = f->config.geometry;
    former[0] = other.dense_blocks;
    other.dense_blocks = 99;
    other.dense_floats = 3;
    other.dense_halves = 0;
    return other;
}

/* Content, and of which blocks the sums are. */
static void assert_step_of(struct fixture *f, uint64_t step, uint64_t dense_blocks)
{
    struct sfc_log_prepare_view view;
    struct sfc_log_place_of place;
    struct sfc_attempt round = round_of(step);
    if (!rig_commit(step, round).apply) {
        return;
    }
    assert_int_equal(sfc_step_log_read(f->log, step, round, &f->body, &view, &f->err), SFC_OK);
    assert_int_equal(view.dense_blocks, dense_blocks);
    struct rig_step expected;
    rig_fill(&expected, step, round);
    assert_memory_equal(view.dense, expected.dense, 12);
    view.dense = NULL;
    assert_true(rig_same(&view, step, round));
    assert_int_equal(sfc_step_log_find(f->log, step, round, &place, &f->err), SFC_OK);
    assert_int_equal(place.dense_blocks, dense_blocks);
}

/* Steps up to 8 are of the first set. Skipped steps need no sums. */
static void assert_sums_since(struct fixture *f, const struct sfc_log_geometry *first,
                              const struct sfc_log_geometry *other)
{
    const uint64_t both[] = {first->dense_blocks, other->dense_blocks}, none = 1;
    uint64_t last_of_first = 8, last = 14;
    while (!rig_commit(last_of_first, round_of(last_of_first)).apply) {
        last_of_first--;
    }
    while (!rig_commit(last, round_of(last)).apply) {
        last--;
    }
    assert_int_equal(sfc_step_log_sums_since(f->log, both, 2), 0);
    assert_int_equal(sfc_step_log_sums_since(f->log, &other->dense_blocks, 1), last_of_first);
    assert_int_equal(sfc_step_log_sums_since(f->log, &first->dense_blocks, 1), last);
    assert_int_equal(sfc_step_log_sums_since(f->log, &none, 0), last);
}

static void dense_blocks_change(void **state)
{
    struct fixture *f = *state;
    uint64_t former[1];
    struct sfc_log_geometry first = f->config.geometry, other = other_blocks(f, former);
    append_until(f, 1, 8);
    sfc_step_log_set_geometry(f->log, &other);
    append_until(f, 9, 12);
    f->config.geometry = other;
    assert_int_equal(reopen(f, 1, 12, false), SFC_ESTALE); /* of blocks that nobody knows */
    f->config.former = former;
    f->config.former_count = 1;
    assert_int_equal(reopen(f, 1, 12, false), SFC_OK);
    append_until(f, 13, 14);
    for (uint64_t step = 1; step <= 14; step++) {
        assert_step_of(f, step, step <= 8 ? first.dense_blocks : 99);
    }
    /* whoever has read small records has no room for the large ones yet */
    assert_true(f->body.size >= sfc_step_log_body_size(f->log));
    sfc_log_body_free(&f->body);
    assert_step_of(f, 14, 99);
    assert_true(f->body.size < sfc_step_log_body_size(f->log));
    assert_step_of(f, 1, first.dense_blocks);
    assert_sums_since(f, &first, &other);
    assert_int_equal(sfc_step_log_trim(f->log, 9, &f->err), SFC_OK);
    assert_int_equal(reopen(f, 13, 14, false), SFC_OK);
    assert_step_of(f, 14, 99);
}

/* The process dies right after the change: what may be in the page cache only is written again as
 * it was, and a loss of power takes nothing. */
static void dense_blocks_change_and_the_process_dies(void **state)
{
    struct fixture *f = *state;
    uint64_t former[1];
    struct sfc_log_geometry first = f->config.geometry, other = other_blocks(f, former);
    append_until(f, 1, 8);
    sfc_step_log_set_geometry(f->log, &other);
    f->config.geometry = other;
    f->config.former = former;
    f->config.former_count = 1;
    assert_int_equal(reopen(f, 1, 8, false), SFC_OK);
    append_until(f, 9, 9);
    sfc_step_log_close(f->log);
    f->log = NULL;
    sfc_folder_close(f->folder);
    memory_files_restart(f->files, true);
    f->folder = memory_files_folder(f->files);
    assert_int_equal(reopen(f, 1, 9, false), SFC_OK);
    append_until(f, 10, 11);
    for (uint64_t step = 1; step <= 11; step++) {
        assert_step_of(f, step, step <= 8 ? first.dense_blocks : 99);
    }
}

static void a_step_takes_little_more_than_its_content(void **state)
{
    (void)state;
    struct sfc_log_geometry g = {.batch = 128, .micro_batch = 32, .dim = 512, .dense_floats = 0};
    uint64_t content = 128 * (4 * 512 + 8 + 8);
    assert_true(sfc_step_log_step_bytes(&g) <= content + content / 10);
    g = (struct sfc_log_geometry){.batch = 64, .micro_batch = 8, .dim = 64, .dense_floats = 1000};
    content = 64 * (4 * 64 + 8 + 8) + 4 * 1000;
    assert_true(sfc_step_log_step_bytes(&g) <= content + content / 10);
    g.dense_halves = 960;
    assert_int_equal(sfc_step_log_step_bytes(&g) + 2 * 960, content + 64 + 8 + 8 * 16 + 88);
    g.dense_halves = 1001;
    assert_int_equal(sfc_log_geometry_check(&g, NULL), SFC_EINVAL);
    g.dense_halves = 0;
    assert_int_equal(sfc_step_log_default_limit(&g, 0), 16 * sfc_step_log_step_bytes(&g));
    assert_int_equal(sfc_step_log_default_limit(&g, 1ull << 40), (1ull << 40) / 5);
}

static void names_are_exact(void **state)
{
    (void)state;
    uint64_t n;
    assert_true(sfc_log_parse_name("log-00000042.sfl", &n));
    assert_int_equal(n, 42);
    assert_true(sfc_log_parse_name("log-123456789.sfl", &n));
    assert_false(sfc_log_parse_name("log-42.sfl", &n));
    assert_false(sfc_log_parse_name("log-00000000.sfl", &n));
    assert_false(sfc_log_parse_name("log-00000042.sfl.tmp", &n));
    assert_false(sfc_log_parse_name("log-+0000042.sfl", &n));
}

/* Else a log that is full could not be emptied before the step that it has no room for. */
static void a_void_prepare_keeps_no_segment(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_log_state now;
    append_until(f, 1, STEPS + 1);
    assert_int_equal(reopen(f, 1, STEPS, false), SFC_OK);
    assert_int_equal(sfc_step_log_trim(f->log, STEPS, &f->err), SFC_OK);
    sfc_step_log_state(f->log, &now);
    assert_int_equal(now.segments, 0);
    append_until(f, STEPS + 1, STEPS + 2);
    assert_int_equal(reopen(f, STEPS + 1, STEPS + 2, false), SFC_OK);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(is_read_as_written),
        TEST(commits_survive_by_a_flush_alone),
        TEST(the_round_of_the_commit_counts),
        TEST(cut_tail_is_torn_or_refused),
        TEST(cut_or_missing_segments_are_refused),
        TEST(an_old_copy_is_called_so),
        TEST(every_flip_is_found),
        TEST(a_read_checks_again),
        TEST(the_limit_pushes_back_until_the_floor_moves),
        TEST(everything_old_can_go),
        TEST(the_reserve_of_the_disk_is_kept),
        TEST(a_full_disk_is_no_end),
        TEST(what_was_given_up_is_not_there),
        TEST(another_owner_is_refused),
        TEST(another_format_is_refused),
        TEST(fetched_steps_fill_a_hole),
        TEST(dense_blocks_change),
        TEST(dense_blocks_change_and_the_process_dies),
        TEST(a_void_prepare_keeps_no_segment),
        cmocka_unit_test(a_step_takes_little_more_than_its_content),
        cmocka_unit_test(names_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
