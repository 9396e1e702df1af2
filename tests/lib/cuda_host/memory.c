#include "tests/lib/cuda_host/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SFC_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(SFC_ASAN)
#define SFC_ASAN 1
#endif
#ifdef SFC_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define MAX_ALLOCATIONS 4096
#define PAGE            ((size_t)4096)
#define TOTAL_BYTES     ((size_t)4 << 30)
#define ALIGNMENT       256
#define POISON          0x7fff /* NaN in bf16, f32 and f64, a large number as an index */

struct allocation {
    char *at;
    size_t bytes, mapped; /* mapped: of the guard's pages, else 0 */
    enum sfc_host_place place;
};

static struct {
    struct allocation list[MAX_ALLOCATIONS];
    size_t count, total, used;
    bool guard;
    unsigned running; /* nested sfc_host_device_begin */
} memory;

void sfc_cuda_host_memory(size_t bytes)
{
    memory.total = bytes;
}

void sfc_cuda_host_guard(bool on)
{
    memory.guard = on;
}

static size_t total(void)
{
    return memory.total ? memory.total : TOTAL_BYTES;
}

void sfc_host_poison(void *at, size_t bytes)
{
    const uint16_t pattern = POISON;
    size_t done = bytes < sizeof pattern ? bytes : sizeof pattern;
    memcpy(at, &pattern, done);
    for (size_t n; done < bytes; done += n) {
        n = bytes - done < done ? bytes - done : done;
        memcpy((char *)at + done, at, n);
    }
}

void sfc_cuda_host_carved(void *end, size_t room)
{
#ifdef SFC_ASAN
    __asan_poison_memory_region(end, room);
#else
    (void)end, (void)room;
#endif
}

/* ---- where an address lies */

static struct allocation *find(const void *address)
{
    for (size_t i = 0; i < memory.count; i++) {
        struct allocation *a = &memory.list[i];
        if ((const char *)address >= a->at && (const char *)address < a->at + a->bytes)
            return a;
    }
    return NULL;
}

enum sfc_host_place sfc_host_place(const void *address, size_t bytes, const char *what)
{
    const struct allocation *a = find(address);
    if (!a)
        return SFC_HOST_PAGEABLE;
    size_t left = a->bytes - (size_t)((const char *)address - a->at);
    if (bytes > left)
        sfc_host_die("%s: %zu bytes from byte %zu of an allocation of %zu", what, bytes,
                     a->bytes - left, a->bytes);
    return a->place;
}

void sfc_cuda_check_pointer(const char *name, const void *pointer)
{
    if (pointer && !find(pointer))
        sfc_host_die("kernel %s is given %p, which is no memory of the device", name, pointer);
}

/* ---- the guard */

static void protect(int how)
{
    for (size_t i = 0; i < memory.count; i++) {
        const struct allocation *a = &memory.list[i];
        if (a->mapped && mprotect(a->at, a->mapped, how))
            sfc_host_die("mprotect failed");
    }
}

void sfc_host_device_begin(void)
{
    if (memory.running++ == 0)
        protect(PROT_READ | PROT_WRITE);
}

void sfc_host_device_end(void)
{
    if (--memory.running == 0)
        protect(PROT_NONE);
}

/* ---- allocations */

static void *take(struct allocation *a)
{
    void *at = NULL;
    if (memory.guard && a->place == SFC_HOST_DEVICE) {
        a->mapped = (a->bytes + PAGE - 1) / PAGE * PAGE;
        at = mmap(NULL, a->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return at == MAP_FAILED ? NULL : at;
    }
    return posix_memalign(&at, ALIGNMENT, a->bytes) ? NULL : at;
}

static cudaError_t allocate(void **out, size_t bytes, enum sfc_host_place place)
{
    struct allocation a = {.bytes = bytes, .place = place};
    *out = NULL;
    if (bytes == 0)
        return cudaSuccess;
    if (memory.count == MAX_ALLOCATIONS)
        sfc_host_die("more than %d allocations", MAX_ALLOCATIONS);
    if (place == SFC_HOST_DEVICE && bytes > total() - memory.used)
        return cudaErrorMemoryAllocation;
    a.at = take(&a);
    if (!a.at)
        return cudaErrorMemoryAllocation;
    sfc_host_poison(a.at, bytes);
    if (a.mapped && mprotect(a.at, a.mapped, PROT_NONE))
        sfc_host_die("mprotect failed");
    size_t device_bytes = place == SFC_HOST_DEVICE ? bytes : 0;
    memory.used += device_bytes;
    sfc_host_count(1, (int64_t)device_bytes, 0, 0, 0);
    memory.list[memory.count++] = a;
    *out = a.at;
    return cudaSuccess;
}

/* The next mapping there has no ranges yet; the heap does that by itself. */
static void whole_again(const struct allocation *a)
{
#ifdef SFC_ASAN
    __asan_unpoison_memory_region(a->at, a->mapped);
#else
    (void)a;
#endif
}

static void release(void *at, enum sfc_host_place place, const char *what)
{
    if (!at)
        return;
    struct allocation *a = find(at);
    if (!a || a->at != at || a->place != place)
        sfc_host_die("%s of %p, which is not one of its allocations", what, at);
    sfc_host_drain(NULL);
    size_t device_bytes = place == SFC_HOST_DEVICE ? a->bytes : 0;
    memory.used -= device_bytes;
    sfc_host_count(-1, -(int64_t)device_bytes, 0, 0, 0);
    if (a->mapped) {
        whole_again(a);
        munmap(a->at, a->mapped);
    } else {
        free(a->at);
    }
    *a = memory.list[--memory.count];
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    cudaError_t rc = sfc_host_call(cudaErrorMemoryAllocation);
    return sfc_host_return(rc ? rc : allocate(out, bytes, SFC_HOST_DEVICE));
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    cudaError_t rc = sfc_host_call(cudaErrorMemoryAllocation);
    return sfc_host_return(rc ? rc : allocate(out, bytes, SFC_HOST_PINNED));
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    (void)flags;
    return cudaMallocHost(out, bytes);
}

/* What is given back is given back even where the call reports an error of earlier work. */
cudaError_t cudaFree(void *device)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    release(device, SFC_HOST_DEVICE, "cudaFree");
    return sfc_host_return(rc);
}

cudaError_t cudaFreeHost(void *host)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    release(host, SFC_HOST_PINNED, "cudaFreeHost");
    return sfc_host_return(rc);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc) {
        *free_bytes = total() - memory.used;
        *total_bytes = total();
    }
    return sfc_host_return(rc);
}
