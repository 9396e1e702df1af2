/* Makes the n-th allocation fail, in what is linked with sfc_failing_heap (tests/CMakeLists.txt):
 * our own code by --wrap (protobuf-c uses that, proto/unpack.h), xxHash's state, and SQLite and
 * jansson by their hooks. Opening a file or a folder as a stream counts, because libc allocates
 * there. */
#ifndef SFC_TESTS_FAILING_HEAP_H
#define SFC_TESTS_FAILING_HEAP_H

#include <stdbool.h>
#include <stdint.h>

void failing_heap_init(void); /* once, before SQLite is used */
/* The n-th allocation from now (1: the next) fails; lasting: those after it as well. */
void failing_heap_arm(uint64_t n, bool lasting);
void failing_heap_disarm(void);
bool failing_heap_hit(void); /* one has failed since arm */

#endif
