#include "tests/lib/failing_heap.h"

#include <dirent.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **out, size_t alignment, size_t size);
char *__real_strdup(const char *text);
FILE *__real_fopen(const char *path, const char *mode);
DIR *__real_opendir(const char *path);
DIR *__real_fdopendir(int fd);
void *__real_XXH3_createState(void);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size);
char *__wrap_strdup(const char *text);
FILE *__wrap_fopen(const char *path, const char *mode);
DIR *__wrap_opendir(const char *path);
DIR *__wrap_fdopendir(int fd);
void *__wrap_XXH3_createState(void);

static uint64_t countdown; /* 0: not armed */
static bool keeps_failing, was_hit;
static sqlite3_mem_methods sqlite_heap;

static bool fails(void)
{
    if (countdown == 0) {
        return false;
    }
    if (countdown > 1) {
        countdown--;
        return false;
    }
    countdown = keeps_failing ? 1 : 0;
    was_hit = true;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(out, alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

FILE *__wrap_fopen(const char *path, const char *mode)
{
    return fails() ? NULL : __real_fopen(path, mode);
}

DIR *__wrap_opendir(const char *path)
{
    return fails() ? NULL : __real_opendir(path);
}

DIR *__wrap_fdopendir(int fd)
{
    return fails() ? NULL : __real_fdopendir(fd);
}

void *__wrap_XXH3_createState(void)
{
    return fails() ? NULL : __real_XXH3_createState();
}

/* ---- SQLite */

static void *sqlite_malloc(int size)
{
    return fails() ? NULL : sqlite_heap.xMalloc(size);
}

static void *sqlite_realloc(void *old, int size)
{
    return fails() ? NULL : sqlite_heap.xRealloc(old, size);
}

void failing_heap_init(void)
{
    sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0); /* or most allocations would not come here */
    sqlite3_config(SQLITE_CONFIG_GETMALLOC, &sqlite_heap);
    sqlite3_mem_methods heap = sqlite_heap;
    heap.xMalloc = sqlite_malloc;
    heap.xRealloc = sqlite_realloc;
    sqlite3_config(SQLITE_CONFIG_MALLOC, &heap);
}

void failing_heap_arm(uint64_t n, bool lasting)
{
    countdown = n;
    keeps_failing = lasting;
    was_hit = false;
}

void failing_heap_disarm(void)
{
    countdown = 0;
}

bool failing_heap_hit(void)
{
    return was_hit;
}
