/* Series: points are what the steps of their groups say, whatever the order in which they came. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/series.h"

static struct sfc_series *begin(void)
{
    struct sfc_series *s = calloc(1, sizeof *s);
    assert_non_null(s);
    return s;
}

/* Some steps have no loss, and some no rate. */
static struct sfc_series_step step_of(uint64_t t)
{
    return (struct sfc_series_step){.step = t,
                                    .loss = t % 7 == 3 ? (double)NAN
                                                       : 1000.0 / (double)t + (double)(t % 5),
                                    .lr = 0.5 / (double)t,
                                    .images_per_s = t % 11 == 0 ? 0 : 100 + (double)(t % 3)};
}

static void add(struct sfc_series *s, uint64_t t)
{
    const struct sfc_series_step step = step_of(t);
    sfc_series_add(s, &step);
}

/* Every point against the steps of its group that the series was given: those from `from` to `to`.
 */
static void check_points(const struct sfc_series *s, uint64_t from, uint64_t to)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct sfc_series_point *p = &s->points[i];
        uint64_t losses = 0, rates = 0;
        double sum = 0, least = INFINITY, most = -INFINITY, rate = 0;
        assert_int_equal((p->first - 1) / s->length, (p->last - 1) / s->length);
        assert_true(i == 0 || (s->points[i - 1].last - 1) / s->length < (p->first - 1) / s->length);
        for (uint64_t t = p->first; t <= p->last; t++) {
            const struct sfc_series_step step = step_of(t);
            seen++;
            if (isfinite(step.loss)) {
                losses++;
                sum += step.loss;
                least = fmin(least, step.loss);
                most = fmax(most, step.loss);
            }
            rates += step.images_per_s > 0;
            rate += step.images_per_s;
        }
        assert_int_equal(p->losses, losses);
        assert_true(losses == 0 || fabs(sfc_series_loss(p) - sum / (double)losses) < 1e-9);
        assert_true(losses == 0 || (p->loss_min == least && p->loss_max == most));
        assert_true(losses > 0 || isnan(sfc_series_loss(p)));
        assert_int_equal(p->rates, rates);
        assert_true(rates > 0 || isnan(sfc_series_rate(p)));
        assert_true(rates == 0 || fabs(sfc_series_rate(p) - rate / (double)rates) < 1e-9);
        assert_true(p->lr == step_of(p->last).lr);
    }
    assert_int_equal(seen, to - from + 1);
    assert_true(s->count == 0 || s->points[0].first == from);
    assert_true(s->count == 0 || s->points[s->count - 1].last == to);
}

static void test_a_point_for_each_step_while_there_is_room(void **state)
{
    (void)state;
    struct sfc_series *s = begin();
    for (uint64_t t = 1; t <= SFC_SERIES_POINTS; t++) {
        add(s, t);
        assert_int_equal(s->count, t);
    }
    check_points(s, 1, SFC_SERIES_POINTS);
    assert_int_equal(s->length, 1);
    assert_int_equal(s->changed, 0);
    free(s);
}

static void test_groups_double(void **state)
{
    (void)state;
    struct sfc_series *s = begin();
    for (uint64_t t = 1; t <= 100000; t++) {
        add(s, t);
        assert_true(s->count <= SFC_SERIES_POINTS);
        assert_true(t < SFC_SERIES_POINTS || s->count >= SFC_SERIES_POINTS / 2);
    }
    check_points(s, 1, 100000);
    assert_int_equal(s->length, 128);
    assert_int_equal(s->changed, 7); /* once for each doubling: readers know what they have */
    free(s);
}

static void test_a_run_that_begins_late(void **state)
{
    (void)state;
    struct sfc_series *s = begin();
    const uint64_t from = 1ull << 40;
    for (uint64_t t = from; t < from + 5000; t++)
        add(s, t);
    check_points(s, from, from + 4999);
    assert_int_equal(s->length, 8);
    free(s);
}

/* The order in which a restart finds them: the newest first, older ones from the store beside them.
 */
static void test_order_does_not_matter(void **state)
{
    (void)state;
    enum { STEPS = 3000 };
    for (uint32_t seed = 1; seed <= 20; seed++) {
        struct sfc_series *s = begin();
        uint64_t order[STEPS];
        uint32_t random = seed;
        for (uint64_t t = 1; t <= STEPS; t++)
            order[t - 1] = t;
        for (uint32_t i = STEPS - 1; i > 0; i--) {
            random = random * 1664525u + 1013904223u;
            uint32_t j = (random >> 8) % (i + 1);
            uint64_t kept = order[i];
            order[i] = order[j];
            order[j] = kept;
        }
        for (uint32_t i = 0; i < STEPS; i++)
            add(s, order[i]);
        check_points(s, 1, STEPS);
        assert_int_equal(s->length, 4);
        free(s);
    }
}

static void test_cut(void **state)
{
    (void)state;
    struct sfc_series *s = begin();
    for (uint64_t t = 1; t <= 4000; t++) /* groups of 4 */
        add(s, t);
    uint64_t before = s->changed;
    sfc_series_cut(s, 4000);
    assert_int_equal(s->changed, before);
    check_points(s, 1, 4000);
    sfc_series_cut(s, 2002); /* in the middle of 2001 to 2004, which is not told in two */
    assert_int_equal(s->changed, before + 1);
    check_points(s, 1, 2000);
    for (uint64_t t = 2001; t <= 2500; t++)
        add(s, t);
    check_points(s, 1, 2500);
    sfc_series_cut(s, 0);
    assert_int_equal(s->count, 0);
    add(s, 9);
    check_points(s, 9, 9);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_point_for_each_step_while_there_is_room),
        cmocka_unit_test(test_groups_double),
        cmocka_unit_test(test_a_run_that_begins_late),
        cmocka_unit_test(test_order_does_not_matter),
        cmocka_unit_test(test_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
