/* The limit of a run's log outlives the process that chose it, and no damaged one is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/durable/log_limit.h"
#include "tests/lib/memory_files.h"

enum { LIMIT = 123456 };
static const struct sfc_run_identity RUN = {.run_id = 7, .nonce = 9},
                                     OTHER_RUN = {.run_id = 8, .nonce = 9},
                                     OTHER_CLUSTER = {.run_id = 7, .nonce = 10};

static void is_kept_through_a_loss_of_power(void **state)
{
    (void)state;
    struct memory_files *files = memory_files_new(1);
    struct sfc_folder *folder = memory_files_folder(files);
    uint64_t limit = 0;
    assert_int_equal(sfc_log_limit_load(folder, &RUN, &limit, NULL), SFC_ENOTFOUND);
    assert_int_equal(sfc_log_limit_store(folder, &RUN, LIMIT, NULL), SFC_OK);
    sfc_folder_close(folder);
    memory_files_restart(files, true);
    folder = memory_files_folder(files);
    assert_int_equal(sfc_log_limit_load(folder, &RUN, &limit, NULL), SFC_OK);
    assert_int_equal(limit, LIMIT);
    assert_int_equal(sfc_log_limit_store(folder, &RUN, LIMIT + 1, NULL), SFC_OK);
    assert_int_equal(sfc_log_limit_load(folder, &RUN, &limit, NULL), SFC_OK);
    assert_int_equal(limit, LIMIT + 1);
    assert_int_equal(sfc_log_limit_load(folder, &OTHER_RUN, &limit, NULL), SFC_ESTALE);
    assert_int_equal(sfc_log_limit_load(folder, &OTHER_CLUSTER, &limit, NULL), SFC_ESTALE);
    sfc_folder_close(folder);
    memory_files_free(files);
}

/* Whatever call of storing it fails: it is there whole or not at all. */
static void is_whole_or_absent(void **state)
{
    (void)state;
    bool hit = true;
    for (uint64_t n = 1; hit; n++) {
        struct memory_files *files = memory_files_new(n);
        struct sfc_folder *folder = memory_files_folder(files);
        uint64_t limit = 0;
        memory_files_fault(files, MEMORY_CRASH, n, 1, false);
        int stored = sfc_log_limit_store(folder, &RUN, LIMIT, NULL);
        hit = memory_files_hit(files);
        sfc_folder_close(folder);
        memory_files_restart(files, true);
        folder = memory_files_folder(files);
        int code = sfc_log_limit_load(folder, &RUN, &limit, NULL);
        assert_true(code == SFC_OK ? limit == LIMIT : code == SFC_ENOTFOUND);
        assert_true(stored != SFC_OK || code == SFC_OK);
        assert_true(hit || stored == SFC_OK);
        sfc_folder_close(folder);
        memory_files_free(files);
    }
}

static void every_flipped_bit_is_seen(void **state)
{
    (void)state;
    uint8_t bytes[SFC_LOG_LIMIT_BYTES];
    uint64_t limit = 1;
    sfc_log_limit_encode(&RUN, LIMIT, bytes);
    for (size_t bit = 0; bit < 8 * sizeof bytes; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(sfc_log_limit_decode(bytes, sizeof bytes, &RUN, &limit, NULL),
                         SFC_ECORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t size = 0; size < sizeof bytes; size++) {
        assert_int_equal(sfc_log_limit_decode(bytes, size, &RUN, &limit, NULL), SFC_ECORRUPT);
    }
    assert_int_equal(limit, 1);
    assert_int_equal(sfc_log_limit_decode(bytes, sizeof bytes, &RUN, &limit, NULL), SFC_OK);
    assert_int_equal(limit, LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_kept_through_a_loss_of_power),
        cmocka_unit_test(is_whole_or_absent),
        cmocka_unit_test(every_flipped_bit_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
