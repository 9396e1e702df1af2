#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/core/membership.h"

struct fixture {
    struct sfc_membership m;
    struct sfc_member_actions a;
};

static int set_up(void **state)
{
    static struct fixture f;
    const struct sfc_membership_config config = {.incarnation = 5,
                                                 .max_workers = 2,
                                                 .max_shards = 2,
                                                 .worker_lease_ms = 1000,
                                                 .shard_lease_ms = 2000};
    assert_int_equal(sfc_membership_init(&f.m, &config, NULL), SFC_OK);
    assert_int_equal(sfc_member_actions_init(&f.a, &f.m, NULL), SFC_OK);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    sfc_membership_free(&f->m);
    sfc_member_actions_free(&f->a);
    return 0;
}

static int step(struct fixture *f, struct sfc_member_event e)
{
    return sfc_membership_step(&f->m, &e, &f->a, NULL);
}

static uint64_t join(struct fixture *f, uint64_t now)
{
    assert_int_equal(step(f, (struct sfc_member_event){.type = SFC_MEMBER_WORKER_JOIN,
                                                       .now_ms = now,
                                                       .name = "host:1"}),
                     SFC_OK);
    assert_int_equal(f->a.items[0].type, SFC_MEMBER_WORKER_JOINED);
    return f->a.items[0].id;
}

static void expect(struct fixture *f, enum sfc_member_action_type type, uint64_t id)
{
    assert_int_equal(f->a.count, 1);
    assert_int_equal(f->a.items[0].type, type);
    assert_int_equal(f->a.items[0].id, id);
}

static void test_worker_lease(void **state)
{
    struct fixture *f = *state;
    uint64_t w = join(f, 0);
    assert_int_equal(w >> 32, 5);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 1000});
    assert_int_equal(f->a.count, 0);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_WORKER_SEEN, .now_ms = 900, .id = w});
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 1900});
    assert_int_equal(f->a.count, 0);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 1901});
    expect(f, SFC_MEMBER_WORKER_DIED, w);
    assert_int_equal(
        step(f, (struct sfc_member_event){.type = SFC_MEMBER_WORKER_SEEN, .now_ms = 2000, .id = w}),
        SFC_ENOTFOUND);
    assert_int_not_equal(join(f, 2000), w);
}

/* A second in which nothing could be read is no second of silence; the rest of it is. */
static void test_standstill(void **state)
{
    struct fixture *f = *state;
    uint64_t w = join(f, 0);
    sfc_membership_stood_still(&f->m, 700);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 1700});
    assert_int_equal(f->a.count, 0);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 1701});
    expect(f, SFC_MEMBER_WORKER_DIED, w);
}

static void test_worker_limits(void **state)
{
    struct fixture *f = *state;
    uint64_t w = join(f, 0);
    join(f, 0);
    const struct sfc_member_event more = {.type = SFC_MEMBER_WORKER_JOIN, .name = "x"};
    assert_int_equal(step(f, more), SFC_ELIMIT);
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_WORKER_LOST, .id = w});
    expect(f, SFC_MEMBER_WORKER_DIED, w);
    assert_int_equal(step(f, more), SFC_OK);
    assert_int_equal(step(f, (struct sfc_member_event){.type = SFC_MEMBER_WORKER_JOIN, .name = ""}),
                     SFC_EINVAL);
}

static struct sfc_member_event shard(const char *address, uint64_t boot, uint64_t now)
{
    return (struct sfc_member_event){
        .type = SFC_MEMBER_SHARD_REGISTER, .now_ms = now, .name = address, .boot_id = boot};
}

static void test_shard_life(void **state)
{
    struct fixture *f = *state;
    step(f, shard("a:1", 11, 0));
    expect(f, SFC_MEMBER_SHARD_JOINED, 1);
    step(f, shard("b:1", 12, 0));
    expect(f, SFC_MEMBER_SHARD_JOINED, 2);
    assert_int_equal(step(f, shard("c:1", 13, 0)), SFC_ELIMIT);
    step(f, (struct sfc_member_event){
                .type = SFC_MEMBER_SHARD_SEEN, .now_ms = 1500, .id = 2, .boot_id = 12});
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 2001});
    expect(f, SFC_MEMBER_SHARD_GONE, 1);
    step(f, (struct sfc_member_event){
                .type = SFC_MEMBER_SHARD_SEEN, .now_ms = 2100, .id = 1, .boot_id = 11});
    expect(f, SFC_MEMBER_SHARD_REJOINED, 1);
    step(f, shard("a:1", 99, 2200));
    expect(f, SFC_MEMBER_SHARD_RESTARTED, 1);
    assert_int_equal(
        step(f, (struct sfc_member_event){.type = SFC_MEMBER_SHARD_SEEN, .id = 1, .boot_id = 11}),
        SFC_ENOTFOUND);
}

static void test_restored_shard_must_register(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(sfc_membership_restore_shard(&f->m, 4, "a:1", 11, NULL), SFC_OK);
    assert_int_equal(sfc_membership_restore_shard(&f->m, 4, "b:1", 11, NULL), SFC_EINVAL);
    assert_int_equal(
        step(f, (struct sfc_member_event){.type = SFC_MEMBER_SHARD_SEEN, .id = 4, .boot_id = 11}),
        SFC_ENOTFOUND);
    step(f, shard("a:1", 11, 0));
    expect(f, SFC_MEMBER_SHARD_REJOINED, 4);
    step(f, shard("new:1", 1, 0));
    expect(f, SFC_MEMBER_SHARD_JOINED, 5);
}

/* A full table forgets who is gone for longest, but nobody that a run needs; ids never return. */
static void test_gone_shard_is_forgotten(void **state)
{
    struct fixture *f = *state;
    step(f, shard("a:1", 11, 0));
    step(f, shard("b:1", 12, 500));
    step(f, (struct sfc_member_event){.type = SFC_MEMBER_TICK, .now_ms = 9000});
    assert_int_equal(f->a.count, 2);
    sfc_membership_keep_shards(&f->m, (uint64_t[]){1, 7}, 2);
    step(f, shard("c:1", 13, 9100));
    assert_int_equal(f->a.count, 2);
    assert_int_equal(f->a.items[0].type, SFC_MEMBER_SHARD_FORGOTTEN);
    assert_int_equal(f->a.items[0].id, 2);
    assert_int_equal(f->a.items[1].type, SFC_MEMBER_SHARD_JOINED);
    assert_int_equal(f->a.items[1].id, 3);
    assert_null(sfc_membership_shard(&f->m, 2));
    assert_int_equal(step(f, shard("d:1", 14, 9200)), SFC_ELIMIT);
    sfc_membership_keep_shards(&f->m, NULL, 0);
    step(f, shard("d:1", 14, 9300));
    assert_int_equal(f->a.items[0].id, 1);
    assert_int_equal(f->a.items[1].id, 4);
    assert_int_equal(step(f, shard("b:1", 12, 9400)), SFC_ELIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_worker_lease, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_standstill, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_worker_limits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_shard_life, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_restored_shard_must_register, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_gone_shard_is_forgotten, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
