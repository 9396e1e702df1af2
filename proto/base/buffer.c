#include "proto/base/buffer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#define LINE      ((size_t)64)
#define PAGE      ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)

void *sfc_buffer_new(size_t size)
{
    void *buffer = NULL;
    bool large = size >= HUGE_PAGE;
    if (posix_memalign(&buffer, large ? HUGE_PAGE : LINE, size > 0 ? size : LINE) != 0)
        return NULL;
    if (large)
        madvise(buffer, size / PAGE * PAGE, MADV_HUGEPAGE); /* only a wish */
    return buffer;
}
