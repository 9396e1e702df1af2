/* An allocator that fails at the n-th call, n = 1, 2, ... until a case passes without a hit, once
 * for one failure and once for all from the n-th on. Whatever allocates by sizes that a file or a
 * peer gives must answer "no memory", leave nothing behind (AddressSanitizer looks), and do the
 * same thing when it is asked again. */
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/run_config.h"
#include "proto/unpack.h"
#include "server/core/block_map.h"
#include "server/core/log_floor.h"
#include "server/core/membership.h"
#include "server/core/run_fsm.h"
#include "server/core/step_fsm.h"
#include "server/ctl/checkpoint_report.h"
#include "server/run/run_setup.h"
#include "server/scheduler/state_store.h"
#include "tests/lib/checkpoint_rig.h"
#include "tests/lib/failing_heap.h"
#include "tests/lib/log_rig.h"
#include "tests/lib/snapshot_rig.h"
#include "worker/data/pickle_bin.h"
#include "worker/data/recordio.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#define LEAKS() __lsan_do_recoverable_leak_check()
#else
#define LEAKS() 0
#endif

enum { STEPS = 5 };

static const char *running; /* case */
static uint64_t failing;    /* n */
static char base[64];       /* scratch */

static void must(bool condition, const char *what, const struct sfc_error *err)
{
    if (!condition) {
        fprintf(stderr, "%s, allocation %" PRIu64 ": %s: %s\n", running, failing, what,
                err == NULL ? "" : err->text);
        exit(1);
    }
}

static void refused(int code, const struct sfc_error *err, const char *call)
{
    must(failing_heap_hit(), call, err);
    if (code != SFC_ENOMEM) {
        fprintf(stderr, "%s: %s\n", call, sfc_status_name(code));
    }
    must(code == SFC_ENOMEM, "another status than that of memory", err);
    must(err->text[0] != '\0', "no message", NULL);
    failing_heap_disarm();
}

/* The call, and when memory was short, the call again. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        int code_ = (call);                                                                        \
        if (code_ != SFC_OK) {                                                                     \
            refused(code_, &err, #call);                                                           \
            code_ = (call);                                                                        \
        }                                                                                          \
        must(code_ == SFC_OK, #call, &err);                                                        \
    } while (0)

static const char *place(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", base, name);
    return path;
}

/* ---- files of a shard */

static struct sfc_attempt round_of(uint64_t step)
{
    return (struct sfc_attempt){1, step * 10};
}

static void write_log(struct sfc_folder *folder, const struct sfc_step_log_config *config)
{
    struct sfc_error err;
    struct sfc_step_log *log;
    TRY(sfc_step_log_create(folder, config, &log, &err));
    for (uint64_t step = 1; step <= STEPS; step++) {
        struct rig_step record;
        struct sfc_log_commit commit = rig_commit(step, round_of(step));
        rig_fill(&record, step, round_of(step));
        TRY(sfc_step_log_append_prepare(log, &record.prepare, &err));
        TRY(sfc_step_log_flush(log, &err));
        TRY(sfc_step_log_append_commit(log, &commit, &err));
    }
    sfc_step_log_close(log);
}

static void read_log(struct sfc_folder *folder, const struct sfc_step_log_config *config)
{
    struct sfc_log_body body = {0};
    struct sfc_error err;
    struct sfc_step_log *log;
    struct sfc_step_log_report report;
    struct sfc_lineage lineage = {0};
    const struct sfc_step_log_recovery recovery = {.from = 1,
                                                   .has_last = true,
                                                   .last = rig_commit(STEPS, round_of(STEPS)),
                                                   .lineage = &lineage};
    sfc_lineage_add(&lineage, STEPS, round_of(STEPS)); /* what came later */
    TRY(sfc_step_log_recover(folder, config, &recovery, &log, &report, &err));
    must(report.damage[0] == '\0', report.damage, NULL);
    for (uint64_t step = 1; step <= STEPS; step++) {
        struct sfc_log_commit commit, wanted = rig_commit(step, round_of(step));
        struct sfc_log_prepare_view view;
        TRY(sfc_step_log_commit_of(log, step, &commit, &err));
        must(rig_same_commit(&commit, &wanted), "another commit", NULL);
        TRY(sfc_step_log_read(log, step, round_of(step), &body, &view, &err));
        must(rig_same(&view, step, round_of(step)), "another record", NULL);
    }
    TRY(sfc_step_log_trim(log, 3, &err));
    sfc_log_body_free(&body);
    sfc_step_log_close(log);
}

static void case_step_log(void)
{
    struct sfc_error err;
    struct sfc_folder *folder;
    struct sfc_step_log_config config = {.geometry = rig_geometry, .segment_bytes = 900};
    rig_identity(&config.identity);
    TRY(sfc_folder_open(place("log"), true, &folder, &err));
    write_log(folder, &config);
    read_log(folder, &config);
    sfc_folder_close(folder);
}

static void case_snapshots(void)
{
    struct sfc_error err;
    struct sfc_folder *folder;
    struct sfc_snapshot_store *store;
    struct sfc_run_identity identity;
    rig_identity(&identity);
    TRY(sfc_folder_open(place("snapshots"), true, &folder, &err));
    TRY(sfc_snapshot_store_open(folder, &identity, &store, &err));
    for (uint64_t step = 1; step <= 3 * RIG_BLOCKS; step++) {
        TRY(rig_snapshot_write(store, step % RIG_BLOCKS, step, &err));
    }
    sfc_snapshot_store_close(store);
    TRY(sfc_snapshot_store_open(folder, &identity, &store, &err));
    struct sfc_lineage lineage = {0};
    sfc_lineage_add(&lineage, 2 * RIG_BLOCKS, round_of(1));
    TRY(sfc_snapshot_store_hide_void(store, &lineage, &err));
    TRY(sfc_snapshot_store_drop_hidden(store, &err));
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        struct sfc_snapshot_content content;
        char loud[512];
        const struct sfc_snapshot_shape shape = rig_shape(block, 0);
        TRY(sfc_snapshot_store_read(store, rig_blocks[block].kind, rig_blocks[block].block,
                                    UINT64_MAX, &shape, &content, loud, &err));
        must(loud[0] == '\0', loud, NULL);
        must(rig_snapshot_same(&content, block), "another snapshot", NULL);
    }
    sfc_snapshot_store_close(store);
    sfc_folder_close(folder);
}

/* ---- checkpoints */

static void case_checkpoint(void)
{
    struct sfc_error err;
    struct checkpoint_rig rig;
    struct sfc_checkpoint *checkpoint;
    char digest[SFC_DIGEST_HEX];
    const char *dir = place("checkpoint");
    checkpoint_rig_init(&rig);
    TRY(checkpoint_rig_write(&rig, dir, digest, &err));
    TRY(sfc_checkpoint_open(dir, &checkpoint, &err));
    must(strcmp(sfc_checkpoint_digest(checkpoint), digest) == 0, "another digest", NULL);
    TRY(sfc_checkpoint_verify(checkpoint, &err));
    sfc_checkpoint_close(checkpoint);
    json_t *report;
    TRY(sfc_checkpoint_report(dir, NULL, NULL, &report, &err));
    must(json_integer_value(json_object_get(report, "problems")) == 0, "problems", NULL);
    json_decref(report);
}

/* ---- the scheduler's store */

static void write_store(struct sfc_store *store)
{
    struct sfc_error err;
    uint8_t blob[600];
    uint64_t id = 0;
    memset(blob, 7, sizeof blob);
    struct sfc_store_run run = {.state = "loading",
                                .config = blob,
                                .config_size = sizeof blob,
                                .map = blob,
                                .map_size = sizeof blob};
    struct sfc_store_commit commit = {
        .run_id = 1, .attempts = blob, .attempts_size = sizeof blob, .loss = 2};
    const struct sfc_store_drop drop = {.step = 9, .micro_batch = 1};
    struct sfc_lineage lineage = {0};
    TRY(sfc_store_put_shard(store, 1, "a:1", &err));
    TRY(sfc_store_add_run(store, &run, &id, &err));
    must(id == 1, "another number of the run", NULL);
    TRY(sfc_store_set_run_numerics(store, 1, "class", &err));
    for (commit.step = 1; commit.step <= STEPS; commit.step++) {
        TRY(sfc_store_put_commit(store, &commit, &err));
    }
    TRY(sfc_store_put_drop(store, 1, &drop, &err));
    TRY(sfc_store_set_run_state(store, 1, "paused", true, "why", &err));
    const struct sfc_store_lr rate = {STEPS, 0.5};
    TRY(sfc_store_put_lr(store, 1, &rate, &err));
    const struct sfc_store_event event = {.time_ms = 1, .run_id = 1, .who = "who", .text = "text"};
    TRY(sfc_store_put_event(store, &event, &err));
    TRY(sfc_store_put_goal(store, 1, blob, sizeof blob, &err));
    sfc_lineage_add(&lineage, STEPS - 1, (struct sfc_attempt){1, 7});
    TRY(sfc_store_rewind(store, 1, STEPS - 1, NULL, 0, &lineage, &err)); /* takes the drop too */
    TRY(sfc_store_put_drop(store, 1, &drop, &err));
    TRY(sfc_store_put_lr(store, 1, &rate, &err));
    commit.step = STEPS;
    sfc_lineage_add(&lineage, STEPS, (struct sfc_attempt){1, 9});
    TRY(sfc_store_put_commits(store, &commit, 1, &lineage, &err));
}

static void read_store(struct sfc_store *store)
{
    struct sfc_error err;
    struct sfc_store_run run = {0};
    struct sfc_store_commit commits[STEPS + 1];
    struct sfc_store_drop drops[2];
    struct sfc_store_lr rates[2];
    struct sfc_store_shard shards[2];
    struct sfc_lineage lineage;
    struct sfc_store_event events[2];
    uint8_t *goal = NULL;
    size_t count = 0, size = 0;
    TRY(sfc_store_last_run(store, &run, &err));
    must(strcmp(run.state, "paused") == 0 && strcmp(run.reason, "why") == 0 &&
             strcmp(run.numerics, "class") == 0 && run.config_size == 600 && run.map[599] == 7,
         "another run", NULL);
    sfc_store_run_close(&run);
    TRY(sfc_store_run_before(store, UINT64_MAX, &run, &err));
    must(strcmp(run.state, "paused") == 0 && run.config_size == 600, "another older run", NULL);
    sfc_store_run_close(&run);
    TRY(sfc_store_history(store, 1, 0, STEPS + 1, commits, &count, &err));
    must(count == STEPS && commits[STEPS - 1].loss == 2, "other commits", NULL);
    TRY(sfc_store_last_commit(store, 1, commits, &err));
    must(commits[0].step == STEPS, "another last commit", NULL);
    TRY(sfc_store_drops(store, 1, 0, 2, drops, &count, &err));
    must(count == 1 && drops[0].step == 9, "other drops", NULL);
    TRY(sfc_store_lr_changes(store, 1, 2, rates, &count, &err));
    must(count == 1 && rates[0].from_step == STEPS && rates[0].lr == 0.5, "other rates", NULL);
    TRY(sfc_store_lineage(store, 1, &lineage, &err));
    must(lineage.count == 2 && lineage.returns[0].step == STEPS - 1 &&
             lineage.returns[1].last.counter == 9,
         "another lineage", NULL);
    TRY(sfc_store_shards(store, shards, 2, &count, &err));
    must(count == 1 && strcmp(shards[0].address, "a:1") == 0, "other shards", NULL);
    TRY(sfc_store_goal(store, 1, &goal, &size, &err));
    must(size == 600 && goal[599] == 7, "another goal", NULL);
    free(goal);
    TRY(sfc_store_events(store, 0, true, 2, events, &count, &err));
    must(count == 1 && strcmp(events[0].who, "who") == 0 && strcmp(events[0].text, "text") == 0,
         "other events", NULL);
}

static void case_store(void)
{
    struct sfc_error err;
    struct sfc_store *store;
    uint64_t first = 0, second = 0;
    const char *where = place("store");
    TRY(sfc_store_open(where, &store, &err));
    TRY(sfc_store_next_incarnation(store, &first, &err));
    write_store(store);
    sfc_store_close(store);
    TRY(sfc_store_open(where, &store, &err));
    TRY(sfc_store_next_incarnation(store, &second, &err));
    must(second > first, "the incarnation went back", NULL);
    read_store(store);
    sfc_store_close(store);
}

/* ---- messages and what is made of them */

static Shardfc__V1__RunConfig *unpack(const uint8_t *packed, size_t size)
{
    const struct sfc_bytes bytes = {packed, size};
    struct sfc_error err = {.text = "in unpack"};
    int code;
    void *message = sfc_unpack(bytes, &shardfc__v1__run_config__descriptor, &code);
    if (message == NULL) {
        refused(code, &err, "sfc_unpack");
        message = sfc_unpack(bytes, &shardfc__v1__run_config__descriptor, &code);
    }
    must(message != NULL && code == SFC_OK, "a message is not read", NULL);
    return message;
}

static void case_messages(void)
{
    struct sfc_error err;
    struct checkpoint_rig rig;
    struct sfc_run_setup setup = {0};
    uint8_t packed[512];
    checkpoint_rig_init(&rig);
    size_t size = shardfc__v1__run_config__get_packed_size(&rig.config);
    must(size <= sizeof packed, "the configuration is too long", NULL);
    shardfc__v1__run_config__pack(&rig.config, packed);
    Shardfc__V1__RunConfig *config = unpack(packed, size);
    TRY(sfc_run_config_check(config, &err));
    TRY(sfc_run_setup_init(&setup, config, &err));
    sfc_run_setup_close(&setup);
    shardfc__v1__run_config__free_unpacked(config, NULL);
}

static const struct sfc_run_config run_config = {.run_id = 1,
                                                 .incarnation = 1,
                                                 .shards = 3,
                                                 .map_version = 1,
                                                 .classes = 10,
                                                 .global_batch = 8,
                                                 .micro_batch = 2,
                                                 .dense_blocks = 4,
                                                 .schedule = {.lr = 1, .power = 1, .steps = 9}};

static void case_scheduler_machines(void)
{
    struct sfc_error err;
    struct sfc_run_fsm run;
    struct sfc_run_actions actions;
    struct sfc_membership members;
    struct sfc_member_actions member_actions;
    struct sfc_log_floor floor;
    struct sfc_block_map map;
    const struct sfc_membership_config config = {.incarnation = 1,
                                                 .max_workers = 8,
                                                 .max_shards = 4,
                                                 .worker_lease_ms = 1,
                                                 .shard_lease_ms = 1};
    const struct sfc_placement placement = {.classes = 50,
                                            .block_size = 10,
                                            .dense_size = 20,
                                            .dense_block_size = 10,
                                            .class_bytes = 1,
                                            .dense_bytes = 1};
    const struct sfc_placement_shard shards[2] = {{1, 1000}, {2, 1000}};
    TRY(sfc_run_init(&run, &run_config, NULL, &err));
    TRY(sfc_run_actions_init(&actions, &run, &err));
    sfc_run_actions_free(&actions);
    sfc_run_free(&run);
    TRY(sfc_membership_init(&members, &config, &err));
    TRY(sfc_member_actions_init(&member_actions, &members, &err));
    sfc_member_actions_free(&member_actions);
    sfc_membership_free(&members);
    TRY(sfc_log_floor_init(&floor, 3, &err));
    sfc_log_floor_free(&floor);
    TRY(sfc_block_map_place(&placement, shards, 2, &map, &err));
    sfc_block_map_free(&map);
}

static void case_shard_machine(void)
{
    struct sfc_error err;
    struct sfc_step_fsm step;
    struct sfc_step_actions actions;
    const struct sfc_step_config config = {.run_id = 1,
                                           .incarnation = 1,
                                           .map_version = 1,
                                           .global_batch = 8,
                                           .micro_batch = 2,
                                           .dense_blocks = 3};
    TRY(sfc_step_init(&step, &config, &err));
    TRY(sfc_step_actions_init(&actions, &step, &err));
    sfc_step_actions_free(&actions);
    sfc_step_free(&step);
}

/* ---- data sets */

static void case_pairs(void)
{
    struct sfc_error err;
    struct sfc_pairs pairs = {0};
    static const uint8_t jpeg[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const struct sfc_bytes images[4] = {{jpeg, 1}, {jpeg, 2}, {jpeg, 1}, {jpeg, 3}};
    const bool same[2] = {true, false};
    const char *path = place("pairs.bin");
    TRY(sfc_pairs_write(path, images, same, 2, &err));
    TRY(sfc_pairs_read(path, &pairs, &err));
    must(pairs.pairs == 2 && pairs.images[3].size == 3 && pairs.same[0], "other pairs", NULL);
    sfc_pairs_free(&pairs);
}

static void case_index(void)
{
    static const char text[] = "0\t0\n1\t64\n2\t128\n3\t192\n";
    struct sfc_error err;
    struct sfc_index_entry *entries = NULL;
    size_t count = 0;
    TRY(sfc_index_parse(text, sizeof text - 1, 4096, &entries, &count, &err));
    must(count == 4 && entries[3].offset == 192, "another index", NULL);
    free(entries);
}

/* ---- the loop */

static const struct heap_case {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"step log", case_step_log},
    {"snapshots", case_snapshots},
    {"checkpoint", case_checkpoint},
    {"scheduler's store", case_store},
    {"messages", case_messages},
    {"machines of the scheduler", case_scheduler_machines},
    {"machine of a shard", case_shard_machine},
    {"pairs", case_pairs},
    {"index", case_index},
};

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info, (void)type, (void)at;
    return remove(path);
}

static void once(const struct heap_case *c, uint64_t n, bool lasting)
{
    strcpy(base, "/dev/shm/sfc_heap_XXXXXX");
    must(mkdtemp(base) != NULL, "no scratch folder", NULL);
    failing = n;
    failing_heap_arm(n, lasting);
    c->run();
    failing_heap_disarm();
    must(nftw(base, remove_one, 8, FTW_DEPTH | FTW_PHYS) == 0, "the scratch folder stays", NULL);
}

static uint64_t loop(const struct heap_case *c)
{
    uint64_t runs = 0;
    running = c->name;
    for (int lasting = 0; lasting <= 1; lasting++) {
        bool hit = true;
        for (uint64_t n = 1; hit; n++, runs++) {
            once(c, n, lasting != 0);
            hit = failing_heap_hit();
        }
    }
    must(runs > 2, "nothing was allocated", NULL);
    must(LEAKS() == 0, "memory was left behind", NULL);
    return runs;
}

int main(void)
{
    failing_heap_init();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        printf("%s: %" PRIu64 " runs, each with one allocation that failed\n", cases[i].name,
               loop(&cases[i]));
    }
    return 0;
}
