/* The backend that a test is about: "cpu", or the one that the program was built for
 * (SFC_TEST_BACKEND: tests/gpu builds the same tests for "cuda"). */
#ifndef SFC_TESTS_TESTED_BACKEND_H
#define SFC_TESTS_TESTED_BACKEND_H

#include <stdbool.h>

#ifdef SFC_TEST_BACKEND
#define TESTED SFC_TEST_BACKEND
#else
#define TESTED "cpu"
#define TESTED_IS_CPU
#endif

/* For the beginning of main. With SFC_TEST_MAY_SKIP, where this machine has no device for the
 * backend, says "skipped: no GPU (why)"; main then returns TESTED_SKIPPED. */
#define TESTED_SKIPPED 77
#ifdef SFC_TEST_MAY_SKIP
bool tested_backend_missing(void);
#else
static inline bool tested_backend_missing(void)
{
    return false;
}
#endif

#endif
