/* Sets of dense blocks outlive the process, and no damaged one is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/durable/dense_list.h"
#include "server/durable/log_codec.h"
#include "tests/lib/memory_files.h"

static const struct sfc_run_identity RUN = {.run_id = 7, .nonce = 9},
                                     OTHER = {.run_id = 7, .nonce = 10};
static const uint64_t FIRST[] = {0, 3, 900}, SECOND[] = {3};

static size_t load(struct memory_files *files, const struct sfc_run_identity *own,
                   struct sfc_dense_lists *lists, char loud[256])
{
    struct sfc_folder *folder = memory_files_folder(files);
    *lists = (struct sfc_dense_lists){0};
    int code = sfc_dense_lists_load(folder, own, lists, loud, NULL);
    sfc_folder_close(folder);
    return code == SFC_OK ? lists->count : (size_t)1000 + (size_t)code;
}

static void are_kept_through_a_loss_of_power(void **state)
{
    (void)state;
    struct memory_files *files = memory_files_new(1);
    struct sfc_folder *folder = memory_files_folder(files);
    struct sfc_dense_lists lists;
    char loud[256];
    assert_int_equal(sfc_dense_list_store(folder, &RUN, FIRST, 3, NULL), SFC_OK);
    assert_int_equal(sfc_dense_list_store(folder, &RUN, SECOND, 1, NULL), SFC_OK);
    assert_int_equal(sfc_dense_list_store(folder, &RUN, SECOND, 0, NULL), SFC_OK); /* none */
    assert_int_equal(sfc_dense_list_store(folder, &RUN, FIRST, 3, NULL), SFC_OK);  /* again */
    sfc_folder_close(folder);
    memory_files_restart(files, true);
    assert_int_equal(load(files, &RUN, &lists, loud), 3);
    assert_string_equal(loud, "");
    const struct sfc_dense_list *first =
        sfc_dense_lists_find(&lists, sfc_log_blocks_digest(FIRST, 3));
    assert_non_null(first);
    assert_int_equal(first->count, 3);
    assert_memory_equal(first->blocks, FIRST, sizeof FIRST);
    assert_int_equal(sfc_dense_lists_add(&lists, FIRST, 3, NULL), SFC_OK);
    assert_int_equal(lists.count, 3);
    assert_int_equal(sfc_dense_lists_add(&lists, FIRST, 2, NULL), SFC_OK);
    assert_int_equal(lists.count, 4);
    assert_null(sfc_dense_lists_find(&lists, 1));
    sfc_dense_lists_free(&lists);
    assert_int_equal(load(files, &OTHER, &lists, loud), 1000 + SFC_ESTALE);
    memory_files_free(files);
}

static void every_flipped_bit_is_seen(void **state)
{
    (void)state;
    struct sfc_dense_list list;
    uint8_t *bytes = NULL;
    size_t size = 0;
    assert_int_equal(sfc_dense_list_encode(&RUN, FIRST, 3, &bytes, &size, NULL), SFC_OK);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(sfc_dense_list_decode(bytes, size, &RUN, &list, NULL), SFC_ECORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t n = 0; n < size; n++) {
        assert_int_equal(sfc_dense_list_decode(bytes, n, &RUN, &list, NULL), SFC_ECORRUPT);
    }
    assert_int_equal(sfc_dense_list_decode(bytes, size, &RUN, &list, NULL), SFC_OK);
    assert_memory_equal(list.blocks, FIRST, sizeof FIRST);
    free(list.blocks);
    free(bytes);
}

/* Two blocks in the wrong order, with a checksum that is right. */
static void an_unordered_one_is_refused(void **state)
{
    (void)state;
    const uint64_t unordered[] = {3, 3};
    struct sfc_dense_list list;
    uint8_t *bytes = NULL;
    size_t size = 0;
    assert_int_equal(sfc_dense_list_encode(&RUN, unordered, 2, &bytes, &size, NULL), SFC_OK);
    assert_int_equal(sfc_dense_list_decode(bytes, size, &RUN, &list, NULL), SFC_ECORRUPT);
    free(bytes);
}

static void a_damaged_one_is_passed_over(void **state)
{
    (void)state;
    struct memory_files *files = memory_files_new(1);
    struct sfc_folder *folder = memory_files_folder(files);
    struct sfc_dense_lists lists;
    char loud[256], name[SFC_DENSE_LIST_NAME];
    size_t size = 0;
    assert_int_equal(sfc_dense_list_store(folder, &RUN, FIRST, 3, NULL), SFC_OK);
    assert_int_equal(sfc_dense_list_store(folder, &RUN, SECOND, 1, NULL), SFC_OK);
    sfc_folder_close(folder);
    sfc_dense_list_name(sfc_log_blocks_digest(FIRST, 3), name);
    memory_files_data(files, name, &size)[50] ^= 4;
    assert_int_equal(load(files, &RUN, &lists, loud), 1);
    assert_non_null(strstr(loud, name));
    sfc_dense_lists_free(&lists);
    memory_files_free(files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(are_kept_through_a_loss_of_power),
        cmocka_unit_test(every_flipped_bit_is_seen),
        cmocka_unit_test(an_unordered_one_is_refused),
        cmocka_unit_test(a_damaged_one_is_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
