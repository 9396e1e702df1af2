/* What `shardfc doctor` makes of facts: a healthy host and cluster are silent, each planted fault
 * is found, with what to do, and nothing else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <errno.h>
#include <string.h>
#include <cmocka.h>

#include "proto/security.h"
#include "server/ctl/doctor.h"

enum { GB = 1000000000, NOW = 1800000000 };

/* Exactly one finding is not ok: of this level, about this, with a cure unless it is a note. */
static void assert_found(struct sfc_findings *f, enum sfc_finding_level level, const char *what,
                         const char *text)
{
    const struct sfc_finding *found = NULL;
    for (size_t i = 0; i < f->count; i++) {
        if (f->items[i].level == SFC_FINDING_OK) {
            assert_string_equal(f->items[i].cure, "");
            continue;
        }
        if (found != NULL) {
            fail_msg("two findings: %s, and %s", found->found, f->items[i].found);
        }
        found = &f->items[i];
    }
    assert_non_null(found);
    assert_int_equal(found->level, level);
    assert_string_equal(found->what, what);
    if (strstr(found->found, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, found->found);
    }
    assert_true(level == SFC_FINDING_NOTE || found->cure[0] != '\0');
    sfc_findings_free(f);
}

static void assert_fine(struct sfc_findings *f)
{
    for (size_t i = 0; i < f->count; i++) {
        if (f->items[i].level != SFC_FINDING_OK) {
            fail_msg("%s: %s", f->items[i].what, f->items[i].found);
        }
    }
    assert_true(f->count > 0);
    sfc_findings_free(f);
}

static struct sfc_host_facts healthy_host(void)
{
    return (struct sfc_host_facts){.memory_total = 64ull * GB,
                                   .memory_available = 60ull * GB,
                                   .overcommit = 0,
                                   .huge_pages = "madvise",
                                   .open_files = 1024,
                                   .open_files_most = 4096,
                                   .avx2 = true,
                                   .avx512 = true,
                                   .bf16 = true,
                                   .cpu = "cpu avx512",
                                   .gpu_error = "no plugin",
                                   .clock_known = true,
                                   .clock_synchronized = true};
}

static void test_host(void **state)
{
    (void)state;
    struct sfc_findings f = {0};
    struct sfc_host_facts h = healthy_host();
    sfc_judge_host(&h, &f);
    assert_fine(&f);
#define PLANT(change, level, what, text)                                                           \
    h = healthy_host();                                                                            \
    change;                                                                                        \
    sfc_judge_host(&h, &f);                                                                        \
    assert_found(&f, level, what, text)
    PLANT(h.memory_available = GB / 4, SFC_FINDING_PROBLEM, "memory", "0.2 of 64.0 GB");
    PLANT(h.memory_available = 6ull * GB, SFC_FINDING_WARNING, "memory", "6.0 of 64.0 GB");
    PLANT(h.memory_total = 0, SFC_FINDING_NOTE, "memory", "doesn't tell");
    PLANT(h.group_limit = 8ull * GB, SFC_FINDING_NOTE, "memory", "8.0 GB");
    PLANT((h.group_limit = 8ull * GB, h.group_used = 7900000000), SFC_FINDING_WARNING, "memory",
          "7.9 GB are in use");
    PLANT((h.swap_total = h.swap_free = 2ull * GB), SFC_FINDING_NOTE, "swap", "not in use");
    PLANT((h.swap_total = 2ull * GB, h.swap_free = GB), SFC_FINDING_WARNING, "swap", "1.0 of 2.0");
    PLANT(h.overcommit = 2, SFC_FINDING_WARNING, "overcommit", "= 2");
    PLANT(strcpy(h.huge_pages, "never"), SFC_FINDING_WARNING, "huge pages", "never");
    PLANT(h.open_files = 64, SFC_FINDING_PROBLEM, "open files", "64");
    PLANT(h.open_files = 512, SFC_FINDING_WARNING, "open files", "512");
    PLANT((h.avx2 = h.avx512 = h.bf16 = false), SFC_FINDING_WARNING, "CPU", "neither");
    PLANT(strcpy(h.cpu_error, "no oneDNN"), SFC_FINDING_PROBLEM, "CPU", "no oneDNN");
    PLANT(h.gpu_device = true, SFC_FINDING_WARNING, "GPU", "no plugin");
    PLANT(h.clock_synchronized = false, SFC_FINDING_WARNING, "clock", "synchronises");
    PLANT(h.clock_known = false, SFC_FINDING_NOTE, "clock", "doesn't tell");
#undef PLANT
}

static struct sfc_disk_facts healthy_disk(void)
{
    return (struct sfc_disk_facts){.folder = "/state",
                                   .total = 100ull * GB,
                                   .free = 50ull * GB,
                                   .bytes_per_s = 5e8,
                                   .flush_s = 0.001};
}

static void test_disk(void **state)
{
    (void)state;
    struct sfc_findings f = {0};
    struct sfc_disk_facts d = healthy_disk();
    sfc_judge_disk(&d, &f);
    assert_fine(&f);
#define PLANT(change, level, what, text)                                                           \
    d = healthy_disk();                                                                            \
    change;                                                                                        \
    sfc_judge_disk(&d, &f);                                                                        \
    assert_found(&f, level, what, text)
    PLANT(d.free = 5ull * GB, SFC_FINDING_WARNING, "disk", "5.0 of 100.0 GB");
    PLANT(d.free = 1000, SFC_FINDING_PROBLEM, "disk", "0.0 of 100.0 GB");
    PLANT(strcpy(d.error, "No space left"), SFC_FINDING_PROBLEM, "disk", "No space left");
#define PLANT_CODE(number, bytes, text, what_to_do)                                                \
    d = healthy_disk();                                                                            \
    d.code = number;                                                                               \
    strcpy(d.error, strerror(number));                                                             \
    d.total = d.free = bytes;                                                                      \
    sfc_judge_disk(&d, &f);                                                                        \
    assert_non_null(strstr(f.items[f.count - 1].cure, what_to_do));                                \
    assert_found(&f, SFC_FINDING_PROBLEM, "disk", text)
    PLANT_CODE(ENOENT, 0, "keeps no files: No such file", "on a disk"); /* /proc */
    PLANT_CODE(ENOTDIR, 100ull * GB, "/state is no folder", "give --state a folder");
    PLANT_CODE(ENOTDIR, 0, "/state is no folder", "give --state a folder"); /* below a file */
    PLANT_CODE(EACCES, 100ull * GB, "/state can't be written", "chown -R shardfc: /state");
    PLANT_CODE(EACCES, 0, "/state can't be written", "runuser -u shardfc");
    PLANT_CODE(EROFS, 100ull * GB, "/state can't be written", "mount | grep ' ro'");
    PLANT_CODE(EOPNOTSUPP, 0, "keeps no files: Operation not supported", "on a disk");
#undef PLANT_CODE
    d = (struct sfc_disk_facts){.folder = "/state", .error = "No such file", .missing = true};
    sfc_judge_disk(&d, &f);
    assert_non_null(strstr(f.items[0].cure, "install -d"));
    assert_found(&f, SFC_FINDING_PROBLEM, "disk", "/state: No such file");
    PLANT(d.in_memory = true, SFC_FINDING_WARNING, "disk", "tmpfs");
    PLANT(d.flush_s = 0.08, SFC_FINDING_WARNING, "disk speed", "80.0 ms");
    PLANT(d.bytes_per_s = 2e7, SFC_FINDING_WARNING, "disk speed", "20 MB/s");
#undef PLANT
}

static void test_port_and_certificate(void **state)
{
    (void)state;
    struct sfc_findings f = {0};
    struct sfc_port_facts port = {.address = "0.0.0.0:7400"};
    sfc_judge_port(&port, &f);
    assert_fine(&f);
    strcpy(port.error, "words of the system");
    static const struct {
        enum sfc_port_fault fault;
        const char *cure;
    } cures[] = {{SFC_PORT_MALFORMED, "10.0.0.2:7410"},
                 {SFC_PORT_UNKNOWN, "getent hosts"},
                 {SFC_PORT_TAKEN, "sport = :7400"},
                 {SFC_PORT_FOREIGN, "no interface here has it"},
                 {SFC_PORT_REFUSED, "1024"}};
    for (size_t i = 0; i < sizeof cures / sizeof *cures; i++) {
        port.fault = cures[i].fault;
        sfc_judge_port(&port, &f);
        assert_non_null(strstr(f.items[0].cure, cures[i].cure));
        assert_found(&f, SFC_FINDING_PROBLEM, "port", "0.0.0.0:7400 can't be listened on: words");
    }

    struct sfc_certificate_facts c = {.folder = "/tls", .now = NOW};
    c.own =
        (struct sfc_certificate){.name = "alice", .roles = SFC_ROLE_ADMIN, .end = NOW + 20 * 86400};
    sfc_judge_certificate(&c, &f);
    assert_fine(&f);
    c.own.end = NOW + 13 * 86400;
    sfc_judge_certificate(&c, &f);
    assert_found(&f, SFC_FINDING_WARNING, "certificate", "alice, admin, for 13 more days");
    c.own.end = NOW + 20 * 86400;
    c.host = "10.0.0.2";
    sfc_judge_certificate(&c, &f);
    assert_found(&f, SFC_FINDING_PROBLEM, "certificate", "10.0.0.2");
    c.names_host = true;
    sfc_judge_certificate(&c, &f);
    assert_fine(&f);
    strcpy(c.error, "certificate has expired");
    sfc_judge_certificate(&c, &f);
    assert_found(&f, SFC_FINDING_PROBLEM, "certificate", "expired");
}

/* ---- a cluster of two shards and a worker */

struct cluster {
    struct sfc_cluster_facts facts;
    Shardfc__V1__StatusReply status;
    Shardfc__V1__ShardStatus shards[2], *shard_list[2];
    Shardfc__V1__ShardDurability durability[2];
    Shardfc__V1__ShardRecovery recovery;
    Shardfc__V1__ShardMirror mirrors[2], *mirror_list[2];
    Shardfc__V1__WorkerStatus worker, *worker_list[1];
    Shardfc__V1__RunKeeping keeping;
    Shardfc__V1__RunConfig config;
    Shardfc__V1__DataSet data;
    struct sfc_about_facts about[2];
};

static char *text(const char *constant)
{
    return (char *)(uintptr_t)constant;
}

static struct sfc_about_facts healthy_about(void)
{
    return (struct sfc_about_facts){.version = "1.0",
                                    .host = "h",
                                    .ahead_s = 0.5,
                                    .round_trip_s = 0.001,
                                    .state_total = 100ull * GB,
                                    .state_free = 50ull * GB,
                                    .certificate_end = NOW + 30 * 86400};
}

static void make_healthy(struct cluster *c)
{
    memset(c, 0, sizeof *c);
    shardfc__v1__status_reply__init(&c->status);
    shardfc__v1__run_keeping__init(&c->keeping);
    shardfc__v1__run_config__init(&c->config);
    shardfc__v1__data_set__init(&c->data);
    shardfc__v1__shard_recovery__init(&c->recovery);
    shardfc__v1__worker_status__init(&c->worker);
    c->worker.name = text("w:1");
    c->worker.version = text("1.0");
    c->worker.numerics = text("model a");
    c->worker.lanes = 2;
    c->worker_list[0] = &c->worker;
    for (size_t i = 0; i < 2; i++) {
        Shardfc__V1__ShardStatus *h = &c->shards[i];
        shardfc__v1__shard_status__init(h);
        shardfc__v1__shard_durability__init(&c->durability[i]);
        shardfc__v1__shard_mirror__init(&c->mirrors[i]);
        c->mirrors[i].complete = true;
        c->mirror_list[i] = &c->mirrors[i];
        h->id = i + 1;
        h->address = text("10.0.0.2:7410");
        h->state = text("ready");
        h->numerics = text("cpu a");
        h->member = true;
        h->memory_bytes = 5;
        h->memory_limit = 10;
        h->durability = &c->durability[i];
        h->n_mirrors = 1;
        h->mirrors = &c->mirror_list[i];
        c->shard_list[i] = h;
        c->about[i] = healthy_about();
    }
    c->keeping.mirrors = 1;
    c->config.data = &c->data;
    c->status.run_id = 1;
    c->status.run = text("faces");
    c->status.state = text("running");
    c->status.step = 100;
    c->status.steps = 1000;
    c->status.n_shards = 2;
    c->status.shards = c->shard_list;
    c->status.n_workers = 1;
    c->status.workers = c->worker_list;
    c->status.keeping = &c->keeping;
    c->status.config = &c->config;
    c->facts = (struct sfc_cluster_facts){.address = "10.0.0.1:7400",
                                          .version = "1.0",
                                          .now = NOW,
                                          .status = &c->status,
                                          .scheduler = healthy_about(),
                                          .shards = c->about,
                                          .since_commit_s = 1,
                                          .step_s = 0.5};
}

static void test_cluster(void **state)
{
    (void)state;
    struct sfc_findings f = {0};
    static struct cluster c;
    make_healthy(&c);
    sfc_judge_cluster(&c.facts, &f);
    assert_fine(&f);
#define PLANT(change, level, what, words)                                                          \
    make_healthy(&c);                                                                              \
    change;                                                                                        \
    sfc_judge_cluster(&c.facts, &f);                                                               \
    assert_found(&f, level, what, words)
    PLANT(strcpy(c.facts.scheduler.version, "0.9"), SFC_FINDING_WARNING, "version", "0.9");
    PLANT(strcpy(c.about[1].version, "1.1"), SFC_FINDING_WARNING, "version", "1.1");
    PLANT(c.worker.version = text("0.8"), SFC_FINDING_WARNING, "version", "0.8");
    PLANT(c.about[0].code = SFC_EUNSUPPORTED, SFC_FINDING_WARNING, "version", "older");
    PLANT((c.about[0].code = SFC_EDENIED, strcpy(c.about[0].error, "no admin")), SFC_FINDING_NOTE,
          "access", "no admin");
    PLANT((c.about[0].code = SFC_ETIMEOUT, strcpy(c.about[0].error, "in 4 s")), SFC_FINDING_PROBLEM,
          "process", "does not answer: in 4 s");
    PLANT(c.about[1].ahead_s = -3, SFC_FINDING_WARNING, "clock", "3.0 s behind of this host");
    PLANT(c.about[1].ahead_s = 400, SFC_FINDING_PROBLEM, "clock", "400.0 s ahead");
    PLANT(c.worker.clock_ahead_s = 5, SFC_FINDING_WARNING, "clock", "5.0 s ahead of the scheduler");
    PLANT(c.about[0].state_free = 5ull * GB, SFC_FINDING_WARNING, "disk", "5.0 of 100.0 GB");
    PLANT(c.about[0].state_free = GB, SFC_FINDING_PROBLEM, "disk", "1.0 of 100.0 GB");
    PLANT(c.durability[0].error = text("log is full"), SFC_FINDING_PROBLEM, "disk", "log is full");
    PLANT(c.about[0].certificate_end = NOW + 7 * 86400, SFC_FINDING_WARNING, "certificate",
          "in 7 days");
    PLANT(c.about[0].certificate_end = NOW, SFC_FINDING_PROBLEM, "certificate", "in 0 days");
    PLANT(c.shards[1].state = text("gone"), SFC_FINDING_PROBLEM, "process", "hasn't heard");
    PLANT((c.shards[1].state = text("gone"), c.shards[1].member = false), SFC_FINDING_WARNING,
          "process", "hasn't heard");
    PLANT(c.shards[1].recovery = &c.recovery, SFC_FINDING_NOTE, "recovery", "step 0");
    PLANT(c.durability[0].snapshot_lag = 7200, SFC_FINDING_WARNING, "snapshots", "60 min");
    PLANT(c.shards[0].memory_bytes = 10, SFC_FINDING_NOTE, "memory", "in use");
    PLANT(c.mirrors[0].complete = false, SFC_FINDING_WARNING, "mirrors", "yet");
    PLANT((c.mirrors[0].complete = false, c.mirrors[0].reason = text("disk full")),
          SFC_FINDING_PROBLEM, "mirrors", "disk full");
    PLANT(c.shards[1].numerics = text("cpu b"), SFC_FINDING_WARNING, "numerics", "\"cpu b\"");
    PLANT((c.shards[1].numerics = text("cpu b"), c.config.mixed = true), SFC_FINDING_NOTE,
          "numerics", "\"cpu b\"");
    PLANT(c.status.n_workers = 0, SFC_FINDING_PROBLEM, "workers", "none");
    PLANT((c.facts.since_commit_s = 300, c.status.reason = text("waits for shard 2")),
          SFC_FINDING_PROBLEM, "run", "no step for 5 min: waits for shard 2");
    PLANT(c.status.state = text("blocked"), SFC_FINDING_PROBLEM, "run", "blocked");
    PLANT(c.status.state = text("failed"), SFC_FINDING_PROBLEM, "run", "failed");
#undef PLANT
    make_healthy(
        &c); /* slow steps are no standstill, a session has no workers, mirrors may be off */
    c.facts.since_commit_s = 300;
    c.facts.step_s = 60;
    c.data.kind = SHARDFC__V1__DATA_SET__KIND__SESSION;
    c.status.n_workers = 0;
    c.keeping.mirrors = 0;
    c.mirrors[0].complete = false;
    sfc_judge_cluster(&c.facts, &f);
    assert_fine(&f);
    c.status.run_id = 0;
    c.status.state = text("idle");
    sfc_judge_cluster(&c.facts, &f);
    assert_fine(&f);
}

/* ---- how it is shown */

static void test_print(void **state)
{
    (void)state;
    struct sfc_findings f = {0};
    char *printed = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&printed, &size);
    sfc_finding_cure(&f, "of nothing");
    sfc_finding_add(&f, SFC_FINDING_OK, "this host", "memory", "%d GB", 3);
    sfc_finding_add(
        &f, SFC_FINDING_PROBLEM, "this host", "disk", "%s",
        "words that need more than one line of a terminal, so that they are wrapped, "
        "and /a/path/that/is/longer/than/everything/that/could/fit/into/one/line/of/it");
    sfc_finding_cure(&f, "rm -r %s", "/tmp/x");
    sfc_finding_add(&f, SFC_FINDING_NOTE, "shard 1", "access", "none");
    sfc_findings_print(&f, out);
    fclose(out);
    assert_string_equal(
        printed,
        "this host\n"
        "  ok       memory      3 GB\n"
        "  problem  disk        words that need more than one line of a terminal, so that\n"
        "                       they are wrapped, and\n"
        "                       "
        "/a/path/that/is/longer/than/everything/that/could/fit/into/one/line/of/it\n"
        "                       -> rm -r /tmp/x\n"
        "\nshard 1\n"
        "  note     access      none\n");
    free(printed);
    json_t *json = sfc_findings_json(&f);
    assert_int_equal(json_integer_value(json_object_get(json, "problems")), 1);
    assert_int_equal(json_integer_value(json_object_get(json, "warnings")), 0);
    const json_t *second = json_array_get(json_object_get(json, "findings"), 1);
    assert_string_equal(json_string_value(json_object_get(second, "cure")), "rm -r /tmp/x");
    assert_string_equal(json_string_value(json_object_get(second, "level")), "problem");
    json_decref(json);
    sfc_findings_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_host), cmocka_unit_test(test_disk),
                                       cmocka_unit_test(test_port_and_certificate),
                                       cmocka_unit_test(test_cluster),
                                       cmocka_unit_test(test_print)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
