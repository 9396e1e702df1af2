/* The scheduler's store in a real etcd: what every store does, and what only several schedulers can
 * show: one leads, and one that leads no more can write nothing. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/scheduler/etcd_client.h"
#include "tests/lib/etcd_rig.h"
#include "tests/lib/store_cases.h"

static struct etcd_rig rig;
static int places;

static int start_etcd(void **state)
{
    (void)state;
    etcd_rig_start(&rig);
    return 0;
}

static int stop_etcd(void **state)
{
    (void)state;
    etcd_rig_stop(&rig);
    return 0;
}

/* A prefix of its own for each test. */
static int setup(void **state)
{
    struct store_place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    etcd_rig_signal(&rig, SIGCONT); /* a test that failed may have left it frozen */
    snprintf(p->where, sizeof p->where, "etcd://127.0.0.1:%d/sfc/test%d", rig.port, ++places);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

/* ---- etcd as others see it */

static void put_raw(const struct store_place *p, const char *name, const char *value,
                    uint64_t number)
{
    struct sfc_etcd *etcd = NULL;
    struct sfc_answer answer = {0};
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__RequestOp op = ETCDSERVERPB__REQUEST_OP__INIT, *ops[] = {&op};
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    Etcdserverpb__DeleteRangeRequest deletion = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    char key[256];
    assert_int_equal(sfc_etcd_new(p->where, NULL, &etcd, NULL), SFC_OK);
    snprintf(key, sizeof key, number ? "%s/%s%020llu" : "%s/%s", sfc_etcd_prefix(etcd), name,
             (unsigned long long)number);
    put.key = deletion.key = sfc_etcd_text(key);
    op.request_case = value ? ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT
                            : ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    if (value) {
        put.value = sfc_etcd_text(value);
        op.request_put = &put;
    } else {
        op.request_delete_range = &deletion;
    }
    txn.n_success = 1;
    txn.success = ops;
    assert_int_equal(sfc_etcd_call(etcd, SFC_ETCD_TXN, &txn, 5000, &answer, NULL), SFC_OK);
    sfc_answer_free(&answer);
    sfc_etcd_free(etcd);
}

static size_t count_raw(const struct store_place *p, const char *folder)
{
    struct sfc_etcd *etcd = NULL;
    struct sfc_answer answer = {0};
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    char from[256], end[256];
    assert_int_equal(sfc_etcd_new(p->where, NULL, &etcd, NULL), SFC_OK);
    snprintf(from, sizeof from, "%s/%s/", sfc_etcd_prefix(etcd), folder);
    snprintf(end, sizeof end, "%s/%s0", sfc_etcd_prefix(etcd), folder);
    r.key = sfc_etcd_text(from);
    r.range_end = sfc_etcd_text(end);
    assert_int_equal(sfc_etcd_call(etcd, SFC_ETCD_RANGE, &r, 5000, &answer, NULL), SFC_OK);
    size_t count = ((const Etcdserverpb__RangeResponse *)answer.message)->n_kvs;
    sfc_answer_free(&answer);
    sfc_etcd_free(etcd);
    return count;
}

/* ---- a scheduler that waits for its turn, on a thread */

struct waiting {
    struct sfc_store_owner owner;
    const char *where;
    struct sfc_store *store;
    int code;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned waits, losses; /* calls */
    char why[512];
};

static void on_waits(void *ctx, const char *why)
{
    struct waiting *w = ctx;
    pthread_mutex_lock(&w->lock);
    w->waits++;
    snprintf(w->why, sizeof w->why, "%s", why);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void on_lost(void *ctx, const char *why)
{
    struct waiting *w = ctx;
    pthread_mutex_lock(&w->lock);
    w->losses++;
    snprintf(w->why, sizeof w->why, "%s", why);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void *open_shared(void *arg)
{
    struct waiting *w = arg;
    w->code = sfc_store_open_shared(w->where, &w->owner, &w->store, NULL);
    return NULL;
}

static void begin(struct waiting *w, const struct store_place *p, const char *address)
{
    *w = (struct waiting){.where = p->where,
                          .owner = {.address = address, .waits = on_waits, .lost = on_lost}};
    w->owner.ctx = w;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    assert_int_equal(pthread_create(&w->thread, NULL, open_shared, w), 0);
}

static void await(struct waiting *w, const unsigned *counter)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&w->lock);
    int rc = 0;
    while (*counter == 0 && rc == 0)
        rc = pthread_cond_timedwait(&w->changed, &w->lock, &until);
    pthread_mutex_unlock(&w->lock);
    assert_int_equal(rc, 0);
}

static struct sfc_store *joined(struct waiting *w)
{
    pthread_join(w->thread, NULL);
    if (w->code != SFC_OK)
        fail_msg("did not lead: %s", w->why);
    return w->store;
}

static int commit(struct sfc_store *store, uint64_t step, struct sfc_error *err)
{
    struct sfc_store_commit c = {.run_id = 1, .step = step, .loss = (double)step};
    return sfc_store_put_commit(store, &c, err);
}

/* ---- tests */

/* The standby learns who leads, and leads as soon as the other one has closed. */
static void test_next_one_leads(void **state)
{
    struct waiting first, second;
    uint64_t a = 0, b = 0;
    begin(&first, *state, "host-a:7400");
    struct sfc_store *store = joined(&first);
    assert_int_equal(sfc_store_next_incarnation(store, &a, NULL), SFC_OK);
    begin(&second, *state, "host-b:7400");
    await(&second, &second.waits);
    assert_non_null(strstr(second.why, "host-a:7400"));
    assert_int_equal(commit(store, 1, NULL), SFC_OK);
    sfc_store_close(store);
    assert_int_equal(first.losses, 0); /* it gave the lead away */
    store = joined(&second);
    assert_int_equal(sfc_store_next_incarnation(store, &b, NULL), SFC_OK);
    assert_int_equal(b, a + 1);
    struct sfc_store_commit got;
    assert_int_equal(sfc_store_last_commit(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 1);
    sfc_store_close(store);
}

static void test_stop_waiting(void **state)
{
    struct waiting first, second;
    begin(&first, *state, "a:1");
    struct sfc_store *store = joined(&first);
    begin(&second, *state, "b:1");
    await(&second, &second.waits);
    atomic_store(&second.owner.stop, true);
    pthread_join(second.thread, NULL);
    assert_int_equal(second.code, SFC_ECANCELED);
    sfc_store_close(store);
}

/* Its key is gone, as after the end of its lease, and another leads: nothing that the old one
 * writes counts, whether it knows or not. */
static void test_fenced(void **state)
{
    struct waiting first, second;
    struct sfc_error err = {0};
    struct sfc_store_commit got;
    begin(&first, *state, "a:1");
    struct sfc_store *old = joined(&first);
    assert_int_equal(commit(old, 1, NULL), SFC_OK);
    put_raw(*state, "leader", NULL, 0);
    begin(&second, *state, "b:1");
    struct sfc_store *store = joined(&second);
    assert_int_equal(commit(old, 2, &err), SFC_ESTALE);
    assert_non_null(strstr(err.text, "b:1 leads now"));
    assert_int_equal(first.losses, 1);
    assert_int_equal(sfc_store_rewind(old, 1, 0, NULL, 0, NULL, NULL), SFC_ESTALE);
    assert_int_equal(sfc_store_last_commit(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 1);
    sfc_store_close(old); /* gives back a lease that holds nothing */
    assert_int_equal(commit(store, 2, NULL), SFC_OK);
    sfc_store_close(store);
}

/* Nothing happens for longer than a lease lasts. */
static void test_lease_is_renewed(void **state)
{
    struct waiting first;
    struct sfc_store *second = NULL;
    const struct timespec pause = {.tv_sec = 4, .tv_nsec = 500000000};
    begin(&first, *state, "a:1");
    struct sfc_store *store = joined(&first);
    nanosleep(&pause, NULL);
    assert_int_equal(sfc_store_open(first.where, &second, NULL), SFC_ESTATE);
    assert_int_equal(commit(store, 1, NULL), SFC_OK);
    assert_int_equal(first.losses, 0);
    sfc_store_close(store);
}

/* etcd stands still for longer than the patience of the leader: it gives up by itself. */
static void test_etcd_stands_still(void **state)
{
    struct waiting first;
    struct sfc_error err = {0};
    begin(&first, *state, "a:1");
    struct sfc_store *store = joined(&first);
    etcd_rig_freeze(&rig);
    assert_int_equal(commit(store, 1, &err), SFC_ESTALE); /* blocks until then */
    await(&first, &first.losses);
    etcd_rig_signal(&rig, SIGCONT);
    assert_non_null(strstr(first.why, "could not be renewed"));
    sfc_store_close(store);
}

/* etcd stands still for longer than one try of a call lasts. */
static void freeze_for_a_try(void)
{
    const struct timespec pause = {.tv_sec = 2, .tv_nsec = 200000000};
    etcd_rig_freeze(&rig);
    pid_t waker = fork();
    assert_true(waker >= 0);
    if (waker == 0) {
        nanosleep(&pause, NULL);
        kill(rig.pid, SIGCONT);
        _exit(0);
    }
}

/* A short stop is waited for, and what was under way is written once. On a loaded machine the stop
 * may outlast the lease: then there is another try. */
static void test_etcd_pauses(void **state)
{
    enum { TRIES = 8 };
    struct sfc_store_commit points[TRIES + 1];
    size_t n = 0;
    int code = SFC_ESTALE;
    uint64_t step = 0;
    while (code == SFC_ESTALE && step < TRIES) {
        struct waiting first;
        begin(&first, *state, "a:1");
        struct sfc_store *store = joined(&first);
        freeze_for_a_try();
        code = commit(store, ++step, NULL);
        assert_true(wait(NULL) > 0);
        if (code == SFC_OK) {
            assert_int_equal(sfc_store_history(store, 1, step - 1, TRIES, points, &n, NULL),
                             SFC_OK);
            assert_int_equal(n, 1);
        }
        sfc_store_close(store);
    }
    assert_int_equal(code, SFC_OK);
}

static void test_history_is_bounded(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_commit got;
    size_t n = 0;
    static const uint64_t steps[] = {1, 1499, 1500, 99000, 101499, 101500};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        assert_int_equal(commit(store, steps[i], NULL), SFC_OK);
    assert_int_equal(sfc_store_history(store, 1, 0, 1, &got, &n, NULL), SFC_OK);
    assert_int_equal(got.step, 1500); /* trimmed when 101000 was passed, at 101499 */
    assert_int_equal(commit(store, 102000, NULL), SFC_OK);
    assert_int_equal(sfc_store_history(store, 1, 0, 1, &got, &n, NULL), SFC_OK);
    assert_int_equal(got.step, 99000);
    sfc_store_close(store);
}

static void test_events_are_bounded(void **state)
{
    const struct sfc_store_event event = {.text = "x"};
    put_raw(*state, "events/", "", 1);
    put_raw(*state, "events/", "", 100);
    put_raw(*state, "events/", "", 101);
    put_raw(*state, "events/", "", 10099);
    struct sfc_store *store = store_must_open(state);
    assert_int_equal(sfc_store_put_event(store, &event, NULL), SFC_OK); /* 10100 */
    assert_int_equal(sfc_store_put_event(store, &event, NULL), SFC_OK);
    sfc_store_close(store);
    assert_int_equal(count_raw(*state, "events"), 4); /* 101, 10099, 10100, 10101 */
}

static void test_runs_are_bounded(void **state)
{
    struct sfc_store *store = store_must_open(state);
    uint8_t byte = 1;
    struct sfc_store_run run = {
        .state = "loading", .config = &byte, .config_size = 1, .map = &byte, .map_size = 1};
    uint64_t id = 0;
    for (int i = 0; i < 10; i++) {
        assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
        struct sfc_store_commit c = {.run_id = id, .step = 1};
        assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK);
    }
    assert_int_equal(id, 10);
    sfc_store_close(store);
    assert_int_equal(count_raw(*state, "runs"), 8);
    assert_int_equal(count_raw(*state, "commits"), 8);
    assert_int_equal(count_raw(*state, "configs"), 8);
}

static void test_foreign_format(void **state)
{
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    put_raw(*state, "format", "7", 0);
    assert_int_equal(sfc_store_open(((struct store_place *)*state)->where, &store, &err),
                     SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "/format is '7'"));
    assert_null(store);
}

static void test_damaged_value(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_run run = {0};
    struct sfc_error err = {0};
    put_raw(*state, "runs/", "\x0a\xff", 1);
    assert_int_equal(sfc_store_last_run(store, &run, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "/runs/00000000000000000001"));
    sfc_store_close(store);
}

static void expect_invalid(const char *where, const char *word)
{
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    assert_int_equal(sfc_store_open(where, &store, &err), SFC_EINVAL);
    assert_null(store);
    if (!strstr(err.text, word))
        fail_msg("'%s' lacks '%s'", err.text, word);
}

static void test_addresses(void **state)
{
    (void)state;
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    expect_invalid("etcd://", "is not HOST:PORT");
    expect_invalid("etcd://localhost", "is not HOST:PORT");
    expect_invalid("etcd://localhost:1,,localhost:2", "is not HOST:PORT");
    expect_invalid("etcd://localhost:1,", "is not HOST:PORT");
    expect_invalid("etcd://localhost:99999", "is not HOST:PORT");
    expect_invalid("etcd://localhost:1/a/", "ends with '/'");
    expect_invalid("etcd://localhost:1/a b", "ASCII");
    assert_int_equal(sfc_store_open("etcd://127.0.0.1:1,127.0.0.1:2", &store, &err),
                     SFC_EUNAVAILABLE);
    assert_non_null(strstr(err.text, "no member answers"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_CASES(setup, teardown),
        cmocka_unit_test_setup_teardown(test_next_one_leads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_waiting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fenced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lease_is_renewed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_etcd_stands_still, setup, teardown),
        cmocka_unit_test_setup_teardown(test_etcd_pauses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_history_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_runs_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_format, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_value, setup, teardown),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, start_etcd, stop_etcd);
}
