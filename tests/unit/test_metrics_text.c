/* The text format of metrics, and a scheduler's status in it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/run/status_metrics.h"

static void test_text(void **state)
{
    (void)state;
    struct sfc_metrics m = {0};
    sfc_metrics_family(&m, "a_total", "counter", "What.");
    sfc_metrics_sample(&m, "a_total", 3, NULL);
    sfc_metrics_sample(&m, "a_total", 0.1, "x", "a\"b\\c\nd", "y", "", NULL);
    sfc_metrics_sample(&m, "a_total", NAN, NULL);
    sfc_metrics_sample(&m, "a_total", -INFINITY, NULL);
    char *text = sfc_metrics_take(&m);
    assert_string_equal(text, "# HELP a_total What.\n# TYPE a_total counter\na_total 3\n"
                              "a_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 0.10000000000000001\n"
                              "a_total NaN\na_total -Inf\n");
    free(text);
    assert_null(sfc_metrics_take(&m));
}

static void test_histogram(void **state)
{
    (void)state;
    struct sfc_histogram h = {0};
    struct sfc_metrics m = {0};
    static const double seconds[] = {0, 0.001, 0.0011, 99, 100, 101, 1e9};
    for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++)
        sfc_histogram_add(&h, seconds[i]);
    sfc_metrics_histogram(&m, "d", &h, NULL);
    sfc_metrics_histogram(&m, "e", &h, "phase", "a\"b", NULL);
    char *text = sfc_metrics_take(&m);
    assert_non_null(strstr(text, "d_bucket{le=\"0.001\"} 2\nd_bucket{le=\"0.002\"} 3\n"));
    assert_non_null(strstr(text, "d_bucket{le=\"50\"} 3\nd_bucket{le=\"100\"} 5\n"));
    assert_non_null(strstr(text, "d_bucket{le=\"+Inf\"} 7\nd_sum "));
    assert_non_null(strstr(text, "d_bucket{le=\"1e-05\"} 1\nd_bucket{le=\"2e-05\"} 1\n"));
    assert_non_null(strstr(text, "d_count 7\n"));
    assert_non_null(strstr(text, "e_bucket{phase=\"a\\\"b\",le=\"1e-05\"} 1\n"));
    assert_non_null(strstr(text, "e_count{phase=\"a\\\"b\"} 7\n"));
    free(text);
}

static void test_status(void **state)
{
    (void)state;
    Shardfc__V1__StatusReply s = SHARDFC__V1__STATUS_REPLY__INIT;
    Shardfc__V1__ShardStatus shard = SHARDFC__V1__SHARD_STATUS__INIT, *shards[] = {&shard};
    struct sfc_histogram none = {0};
    struct sfc_metrics m = {0};
    shard.id = 7;
    shard.address = (char *)(uintptr_t) "h:1";
    shard.state = (char *)(uintptr_t) "gone";
    s.state = (char *)(uintptr_t) "running";
    s.loss = NAN;
    s.shards = shards;
    s.n_shards = 1;
    sfc_status_metrics(&s, &none, &m);
    char *text = sfc_metrics_take(&m);
    assert_non_null(strstr(text, "shardfc_run_state{state=\"running\"} 1\n"));
    assert_non_null(strstr(text, "shardfc_run_state{state=\"idle\"} 0\n"));
    assert_non_null(strstr(text, "shardfc_run_loss NaN\n"));
    assert_non_null(strstr(text, "shardfc_shard_up{shard=\"7\",address=\"h:1\"} 0\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
