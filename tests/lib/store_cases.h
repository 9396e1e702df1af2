/* What every kind of state store does the same way: cases that the tests of each run. */
#ifndef SFC_TESTS_STORE_CASES_H
#define SFC_TESTS_STORE_CASES_H

#include "server/scheduler/state_store.h"

/* The cmocka state of each case begins with this: where an empty store is. */
struct store_place {
    char where[256];
};

struct sfc_store *store_must_open(void **state);

void store_case_incarnation_survives(void **state);
void store_case_exclusive(void **state);
void store_case_runs(void **state);
void store_case_large_run(void **state);
void store_case_maps(void **state);
void store_case_commits(void **state);
void store_case_commits_together(void **state);
void store_case_drops(void **state);
void store_case_rewind(void **state);
void store_case_rewind_into_several(void **state);
void store_case_lineage(void **state);
void store_case_lr(void **state);
void store_case_shards(void **state);
void store_case_goals(void **state);
void store_case_events(void **state);

#define STORE_CASES(setup, teardown)                                                               \
    cmocka_unit_test_setup_teardown(store_case_incarnation_survives, setup, teardown),             \
        cmocka_unit_test_setup_teardown(store_case_exclusive, setup, teardown),                    \
        cmocka_unit_test_setup_teardown(store_case_runs, setup, teardown),                         \
        cmocka_unit_test_setup_teardown(store_case_large_run, setup, teardown),                    \
        cmocka_unit_test_setup_teardown(store_case_maps, setup, teardown),                         \
        cmocka_unit_test_setup_teardown(store_case_commits, setup, teardown),                      \
        cmocka_unit_test_setup_teardown(store_case_commits_together, setup, teardown),             \
        cmocka_unit_test_setup_teardown(store_case_drops, setup, teardown),                        \
        cmocka_unit_test_setup_teardown(store_case_rewind, setup, teardown),                       \
        cmocka_unit_test_setup_teardown(store_case_rewind_into_several, setup, teardown),          \
        cmocka_unit_test_setup_teardown(store_case_lineage, setup, teardown),                      \
        cmocka_unit_test_setup_teardown(store_case_lr, setup, teardown),                           \
        cmocka_unit_test_setup_teardown(store_case_shards, setup, teardown),                       \
        cmocka_unit_test_setup_teardown(store_case_goals, setup, teardown),                        \
        cmocka_unit_test_setup_teardown(store_case_events, setup, teardown)

#endif
