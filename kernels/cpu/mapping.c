#include "kernels/cpu/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PAGE      ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_PATH  4096

size_t sfc_cpu_mapped_bytes(size_t bytes)
{
    size_t page = bytes < HUGE_PAGE ? PAGE : HUGE_PAGE;
    return (bytes + page - 1) / page * page;
}

int sfc_cpu_map(struct sfc_cpu_mapping *mapping, size_t bytes, const char *what,
                struct sfc_error *err)
{
    size_t size = sfc_cpu_mapped_bytes(bytes), slack = size < HUGE_PAGE ? 0 : HUGE_PAGE;
    void *base = mmap(NULL, size + slack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return sfc_fail(err, SFC_ENOMEM, "head: %zu bytes for %s can't be mapped", size, what);
    uintptr_t at = (uintptr_t)base;
    if (slack) {
        at = (at + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        madvise((void *)at, size, MADV_HUGEPAGE); /* only a wish */
    }
    *mapping = (struct sfc_cpu_mapping){base, (void *)at, size + slack, false};
    return SFC_OK;
}

/* A file that nobody else can open. */
static int make_file(const char *dir, int *out, struct sfc_error *err)
{
    char path[MAX_PATH];
    if ((size_t)snprintf(path, sizeof path, "%s/shardfc-blocks-XXXXXX", dir) >= sizeof path)
        return sfc_fail(err, SFC_EINVAL, "store folder: its name is too long");
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return sfc_fail(err, SFC_EIO, "store folder %s: no file can be made there: %s", dir,
                        strerror(errno));
    unlink(path);
    *out = fd;
    return SFC_OK;
}

int sfc_cpu_try_dir(const char *dir, struct sfc_error *err)
{
    int fd, rc = make_file(dir, &fd, err);
    if (!rc)
        close(fd);
    return rc;
}

static int no_space(const char *dir, size_t size, const struct statvfs *space,
                    struct sfc_error *err)
{
    return sfc_fail(
        err, SFC_ENOMEM,
        "store folder %s: class blocks need %.1f MiB, its file system has %.1f MiB free", dir,
        (double)size / (1 << 20), (double)space->f_bavail * (double)space->f_frsize / (1 << 20));
}

/* Asks first: a reservation that fails may have filled the disk for a moment. */
static int reserve(int fd, size_t size, const char *dir, struct sfc_error *err)
{
    struct statvfs space;
    int failure;
    if (fstatvfs(fd, &space))
        return sfc_fail(err, SFC_EIO, "store folder %s: %s", dir, strerror(errno));
    if (size / space.f_frsize >= space.f_bavail)
        return no_space(dir, size, &space, err);
    do
        failure = posix_fallocate(fd, 0, (off_t)size);
    while (failure == EINTR);
    if (failure == ENOSPC)
        return no_space(dir, size, &space, err);
    if (failure)
        return sfc_fail(err, SFC_EIO, "store folder %s: reserve %.1f MiB: %s", dir,
                        (double)size / (1 << 20), strerror(failure));
    return SFC_OK;
}

int sfc_cpu_map_file(struct sfc_cpu_mapping *mapping, size_t bytes, const char *dir,
                     struct sfc_error *err)
{
    size_t size = sfc_cpu_mapped_bytes(bytes);
    int fd, rc = make_file(dir, &fd, err);
    if (rc)
        return rc;
    rc = reserve(fd, size, dir, err);
    if (!rc) {
        void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED)
            rc = sfc_fail(err, SFC_EIO, "store folder %s: map: %s", dir, strerror(errno));
        else
            *mapping = (struct sfc_cpu_mapping){base, base, size, true};
    }
    close(fd);
    /* A step takes a row here and there; what it takes is asked for with sfc_cpu_read_ahead. */
    if (!rc)
        madvise(mapping->base, size, MADV_RANDOM);
    return rc;
}

void sfc_cpu_unmap(struct sfc_cpu_mapping *mapping)
{
    if (mapping->base)
        munmap(mapping->base, mapping->size);
}

size_t sfc_cpu_give_back(const struct sfc_cpu_mapping *mapping, void *from, size_t bytes)
{
    uintptr_t first = ((uintptr_t)from + PAGE - 1) / PAGE * PAGE;
    uintptr_t end = ((uintptr_t)from + bytes) / PAGE * PAGE;
    if (end <= first ||
        madvise((void *)first, end - first, mapping->file ? MADV_REMOVE : MADV_DONTNEED))
        return 0; /* a file system may know no holes */
    return end - first;
}

void sfc_cpu_read_ahead(const struct sfc_cpu_mapping *mapping, const void *from, size_t bytes)
{
    if (!mapping->file || !bytes)
        return;
    uintptr_t first = (uintptr_t)from / PAGE * PAGE, end = (uintptr_t)from + bytes;
    madvise((void *)first, end - first, MADV_WILLNEED); /* a failure costs time only */
}
