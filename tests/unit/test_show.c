/* What people see of a cluster: sizes with units, and everything within 80 columns, however long
 * the reasons and names are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/ctl/show.h"

static char *text(const char *constant)
{
    return (char *)(uintptr_t)constant;
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *shown;
    } cases[] = {{0, "0 B"},
                 {999, "999 B"},
                 {1000, "1.00 kB"},
                 {12345, "12.3 kB"},
                 {999499, "999 kB"},
                 {999500, "1.00 MB"},
                 {61200000, "61.2 MB"},
                 {1340000000000, "1.34 TB"},
                 {UINT64_MAX, "18447 PB"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char shown[32];
        sfc_show_bytes(cases[i].bytes, shown, sizeof shown);
        assert_string_equal(shown, cases[i].shown);
    }
}

static void test_wrapped(void **state)
{
    (void)state;
    static const struct {
        size_t width, at, indent;
        const char *words, *shown;
    } cases[] = {{10, 0, 2, "one two three", "one two\n  three\n"},
                 {10, 0, 2, "one two  th", "one two th\n"},
                 {10, 6, 6, "two three", "two\n      three\n"},
                 {10, 0, 1, "longer-than-a-line is fine", "longer-than-a-line\n is fine\n"},
                 {0, 0, 2, "all of it in one line", "all of it in one line\n"},
                 {10, 0, 2, "", "\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *shown = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&shown, &size);
        sfc_show_wrapped(out, cases[i].width, cases[i].at, cases[i].indent, cases[i].words);
        fclose(out);
        assert_string_equal(shown, cases[i].shown);
        free(shown);
    }
}

#define LONG_REASON                                                                                \
    "waits for shard 3 at scheduler-of-everything.example.org:7410, which has not answered since " \
    "it was asked for the state of 12 blocks, and will be given up in 118 s unless it comes back"

static void test_columns(void **state)
{
    (void)state;
    Shardfc__V1__StatusReply s = SHARDFC__V1__STATUS_REPLY__INIT;
    Shardfc__V1__RunKeeping keeping = SHARDFC__V1__RUN_KEEPING__INIT;
    Shardfc__V1__ShardStatus shard = SHARDFC__V1__SHARD_STATUS__INIT, far = shard;
    Shardfc__V1__ShardDurability disk = SHARDFC__V1__SHARD_DURABILITY__INIT;
    Shardfc__V1__ShardRecovery recovery = SHARDFC__V1__SHARD_RECOVERY__INIT;
    Shardfc__V1__ShardMirror mirror = SHARDFC__V1__SHARD_MIRROR__INIT, *mirrors[] = {&mirror};
    Shardfc__V1__MoveStatus move = SHARDFC__V1__MOVE_STATUS__INIT, *moves[] = {&move};
    Shardfc__V1__WorkerStatus worker = SHARDFC__V1__WORKER_STATUS__INIT, *workers[] = {&worker};
    Shardfc__V1__ShardStatus *shards[] = {&shard, &far};
    keeping.mirrors = 2;
    keeping.durable_every = 1000;
    keeping.rewind_window = 1;
    disk.log_bytes = 999400000000;
    disk.error = text(LONG_REASON);
    recovery.to_step = 99999999;
    recovery.eta_s = 1000;
    mirror.reason = text(LONG_REASON);
    move.reason = text(LONG_REASON);
    move.state = text("following");
    move.bytes_per_s = 123456789;
    move.eta_s = 12345;
    move.bytes = 123456789012;
    worker.id = 4294967297;
    worker.name = text("trainer-with-name.example:1234567");
    worker.state = text("alive");
    worker.micro_batches = 99999999999;
    worker.memory_bytes = 999400000000;
    shard.id = 1234;
    shard.address = text("192.168.100.200:65535");
    shard.state = text("recovering");
    shard.member = true;
    shard.blocks = 999999;
    shard.classes = 100000000;
    shard.memory_bytes = 999400000000;
    shard.step = 9999999;
    shard.durability = &disk;
    shard.recovery = &recovery;
    shard.n_mirrors = 1;
    shard.mirrors = mirrors;
    shard.missing_s = 100;
    shard.loss = text(LONG_REASON);
    far = shard;
    far.address = text("[fd00:1234:5678:9abc:def0:1234:5678:9abc]:7410");
    s.run_id = 1;
    s.run = text("faces-of-everybody");
    s.state = text("running");
    s.reason = text(LONG_REASON);
    s.step = 9999999;
    s.steps = 99999999;
    s.loss = 11.4801;
    s.lr = 0.0012345;
    s.images_per_s = 1234567;
    s.eta_s = 123456;
    s.epoch = 12.34;
    s.keeping = &keeping;
    s.goal = text(LONG_REASON);
    s.goal_bytes = 123456789012;
    s.n_shards = 2;
    s.shards = shards;
    s.n_moves = 1;
    s.moves = moves;
    s.n_workers = 1;
    s.workers = workers;
    char *shown = NULL;
    size_t size = 0, lines = 0;
    FILE *out = open_memstream(&shown, &size);
    sfc_show_run(out, 80, &s);
    sfc_show_goal(out, 80, &s);
    sfc_show_shards(out, 80, &s, 10);
    sfc_show_workers(out, &s, 10);
    fclose(out);
    for (char *line = strtok(shown, "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        if (strlen(line) > 80) {
            fail_msg("%zu columns: %s", strlen(line), line);
        }
    }
    assert_true(lines > 20);
    free(shown);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_wrapped),
                                       cmocka_unit_test(test_columns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
