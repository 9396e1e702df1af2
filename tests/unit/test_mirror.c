/* Who mirrors whom: other shards, on other hosts, evenly, and the same ones when others come. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/core/mirror.h"

enum { PLACES = 8 };

struct fleet {
    struct sfc_mirror_place places[PLACES];
    struct sfc_mirrors sets[PLACES];
    uint32_t count;
    bool missing[PLACES];
};

/* One letter per place: its host; '.': nobody is there. */
static void choose(struct fleet *f, const char *hosts, uint32_t mirrors)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    f->count = 0;
    for (const char *h = hosts; *h; h++, f->count++)
        f->places[f->count] = (struct sfc_mirror_place){.present = *h != '.',
                                                        .host = names[*h == '.' ? 0 : *h - 'a'],
                                                        .missing = f->missing[f->count]};
    sfc_mirrors_choose(f->places, f->count, mirrors, f->sets);
    for (uint32_t k = 0; k < f->count; k++) {
        assert_true(f->sets[k].count <= mirrors);
        for (uint32_t i = 0; i < f->sets[k].count; i++) {
            assert_true(f->places[f->sets[k].at[i]].present);
            assert_int_not_equal(f->sets[k].at[i], k);
            assert_true(i == 0 || f->sets[k].at[i - 1] < f->sets[k].at[i]);
        }
        if (!f->places[k].present)
            assert_int_equal(f->sets[k].count, 0);
    }
}

static uint32_t load(const struct fleet *f, uint32_t place)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < f->count; k++)
        n += sfc_mirrors_have(&f->sets[k], place);
    return n;
}

static void assert_mirrors(const struct fleet *f, uint32_t place, uint32_t a)
{
    assert_int_equal(f->sets[place].count, 1);
    assert_int_equal(f->sets[place].at[0], a);
}

static void test_a_ring(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "abcd", 1);
    for (uint32_t k = 0; k < 4; k++)
        assert_mirrors(&f, k, (k + 1) % 4);
    choose(&f, "abcd", 0);
    for (uint32_t k = 0; k < 4; k++)
        assert_int_equal(f.sets[k].count, 0);
}

static void test_other_hosts(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "aabb", 1);
    assert_mirrors(&f, 0, 2);
    assert_mirrors(&f, 1, 3);
    assert_mirrors(&f, 2, 0);
    assert_mirrors(&f, 3, 1);
    struct fleet two = {0};
    choose(&two, "aabbcc", 2);
    for (uint32_t k = 0; k < 6; k++) {
        assert_int_equal(load(&two, k), 2);
        for (uint32_t i = 0; i < 2; i++)
            assert_int_not_equal(two.sets[k].at[i] / 2, k / 2);
        assert_int_not_equal(two.sets[k].at[0] / 2, two.sets[k].at[1] / 2);
    }
}

static void test_one_host_is_better_than_none(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "aaa", 1);
    for (uint32_t k = 0; k < 3; k++)
        assert_mirrors(&f, k, (k + 1) % 3);
    choose(&f, "aaab", 1); /* a shard on another host came: it takes one of them */
    assert_int_equal(f.sets[3].count, 1);
    assert_true(load(&f, 3) >= 1);
}

static void test_few(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "a", 1);
    assert_int_equal(f.sets[0].count, 0);
    choose(&f, "ab", 3);
    assert_mirrors(&f, 0, 1);
    assert_mirrors(&f, 1, 0);
}

static void test_come_and_go(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "abc", 1);
    choose(&f, "abcd", 1); /* one of the others gives its mirror to the one that came */
    for (uint32_t k = 0; k < 4; k++)
        assert_mirrors(&f, k, (k + 1) % 4);
    choose(&f, "ab.d", 1); /* who has its mirror keeps it */
    assert_mirrors(&f, 0, 1);
    assert_mirrors(&f, 3, 0);
    assert_mirrors(&f, 1, 3);
}

/* Nobody else could restore it, however uneven that is. */
static void test_mirrors_of_a_missing_one_stay(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "ab..", 1);
    choose(&f, "abcd", 1);
    assert_mirrors(&f, 0, 1);
    assert_mirrors(&f, 1, 0);
    assert_mirrors(&f, 2, 3);
    assert_mirrors(&f, 3, 2);
    struct fleet other = f;
    choose(&other, "a.cd", 1);
    assert_mirrors(&other, 3, 0);
    f.missing[3] = true;
    choose(&f, "a.cd", 1);
    assert_mirrors(&f, 3, 2);
    assert_int_equal(f.sets[0].count, 1);
    assert_int_equal(f.sets[2].count, 1);
}

/* Whatever comes and goes, each has as many as it can have, and no one has more than it must. */
static void test_the_last_place_is_gone(void **state)
{
    struct fleet f = {0};
    (void)state;
    choose(&f, "abc", 1);
    f.places[2] = (struct sfc_mirror_place){0}; /* beyond the end there is no host to compare */
    choose(&f, "ab", 1);
    assert_mirrors(&f, 0, 1);
    assert_mirrors(&f, 1, 0);
}

static void test_evenly(void **state)
{
    static const char *const turns[] = {"abcdef", "ab.def", "ab..ef", "abg.ef", "abghef",
                                        ".bghef", ".bgh.f", "cbgh.f", "cbghaf"};
    struct fleet f = {0};
    (void)state;
    for (size_t t = 0; t < sizeof turns / sizeof *turns; t++) {
        choose(&f, turns[t], 2);
        for (uint32_t k = 0; k < f.count; k++) {
            if (!f.places[k].present)
                continue;
            assert_int_equal(f.sets[k].count, 2);
            assert_true(load(&f, k) >= 1 && load(&f, k) <= 3);
        }
    }
}

static void test_share(void **state)
{
    struct sfc_adopter a[2] = {{.place = 4, .bytes = 30, .limit = 60},
                               {.place = 7, .bytes = 10, .limit = 100}};
    const uint64_t bytes[5] = {20, 10, 20, 10, 60};
    uint32_t owner[5];
    (void)state;
    assert_true(sfc_adopters_share(a, 2, bytes, 4, owner));
    const uint32_t expected[4] = {7, 4, 7, 4};
    assert_memory_equal(owner, expected, sizeof expected);
    assert_int_equal(a[0].bytes, 50);
    assert_int_equal(a[1].bytes, 50);
    assert_false(sfc_adopters_share(a, 2, bytes, 5, owner)); /* 10 and 50 are left */
    assert_false(sfc_adopters_share(a, 0, bytes, 1, owner));
    assert_true(sfc_adopters_share(a, 0, bytes, 0, owner));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_ring),
        cmocka_unit_test(test_other_hosts),
        cmocka_unit_test(test_one_host_is_better_than_none),
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_come_and_go),
        cmocka_unit_test(test_mirrors_of_a_missing_one_stay),
        cmocka_unit_test(test_the_last_place_is_gone),
        cmocka_unit_test(test_evenly),
        cmocka_unit_test(test_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
