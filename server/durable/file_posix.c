/* Folders and files of the operating system. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server/durable/file_layer.h"

struct posix_folder {
    struct sfc_folder base;
    int fd;
    char path[];
};

struct posix_file {
    struct sfc_file base;
    int fd;
    char name[];
};

_Static_assert(SFC_FILE_PARTS <= IOV_MAX, "one call takes this many parts");

/* The disk or the quota is full: the one cause that passes when somebody makes room. */
static int fail(struct sfc_error *err, const char *what, const struct sfc_folder *folder,
                const char *name)
{
    int number = errno;
    const char *slash = name[0] == '\0' ? "" : "/";
    if (number == ENOSPC || number == EDQUOT) {
        return sfc_fail(err, SFC_ELIMIT, "%s %s%s%s: %s; make room on this disk", what,
                        folder->path, slash, name, strerror(number));
    }
    errno = number;
    return sfc_fail_errno(err, "%s %s%s%s", what, folder->path, slash, name);
}

static int fail_file(struct sfc_error *err, const char *what, const struct sfc_file *file)
{
    return fail(err, what, file->folder, ((const struct posix_file *)file)->name);
}

static int folder_fd(const struct sfc_folder *folder)
{
    return ((const struct posix_folder *)folder)->fd;
}

static int file_fd(const struct sfc_file *file)
{
    return ((const struct posix_file *)file)->fd;
}

static int open_file(struct sfc_folder *folder, const char *name, int flags, struct sfc_file **out,
                     struct sfc_error *err)
{
    size_t length = strlen(name) + 1;
    struct posix_file *file = malloc(sizeof *file + length);
    if (file == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %s/%s", folder->path, name);
    }
    file->base.folder = folder;
    memcpy(file->name, name, length);
    file->fd = openat(folder_fd(folder), name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file->fd < 0) {
        free(file);
        return fail(err, (flags & O_CREAT) != 0 ? "create" : "open", folder, name);
    }
    *out = &file->base;
    return SFC_OK;
}

static int posix_create(struct sfc_folder *folder, const char *name, struct sfc_file **out,
                        struct sfc_error *err)
{
    return open_file(folder, name, O_RDWR | O_CREAT | O_EXCL, out, err);
}

static int posix_open(struct sfc_folder *folder, const char *name, bool writable,
                      struct sfc_file **out, struct sfc_error *err)
{
    return open_file(folder, name, writable ? O_RDWR : O_RDONLY, out, err);
}

static int posix_rename(struct sfc_folder *folder, const char *from, const char *to,
                        struct sfc_error *err)
{
    if (renameat(folder_fd(folder), from, folder_fd(folder), to) != 0) {
        return fail(err, "rename", folder, from);
    }
    return SFC_OK;
}

static int posix_remove(struct sfc_folder *folder, const char *name, struct sfc_error *err)
{
    return unlinkat(folder_fd(folder), name, 0) == 0 ? SFC_OK : fail(err, "remove", folder, name);
}

static int visit_entries(struct sfc_folder *folder, DIR *dir,
                         int (*visit)(void *arg, const char *name, struct sfc_error *err),
                         void *arg, struct sfc_error *err)
{
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            return errno == 0 ? SFC_OK : fail(err, "list", folder, "");
        }
        struct stat status;
        if (fstatat(dirfd(dir), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(status.st_mode)) {
            continue;
        }
        int code = visit(arg, entry->d_name, err);
        if (code != SFC_OK) {
            return code;
        }
    }
}

static int posix_list(struct sfc_folder *folder,
                      int (*visit)(void *arg, const char *name, struct sfc_error *err), void *arg,
                      struct sfc_error *err)
{
    int fd = openat(folder_fd(folder), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL) {
        int code = fail(err, "list", folder, "");
        if (fd >= 0) {
            close(fd);
        }
        return code;
    }
    int code = visit_entries(folder, dir, visit, arg, err);
    closedir(dir);
    return code;
}

static int posix_sync_names(struct sfc_folder *folder, struct sfc_error *err)
{
    return fsync(folder_fd(folder)) == 0 ? SFC_OK : fail(err, "sync folder", folder, "");
}

static int posix_free_space(struct sfc_folder *folder, uint64_t *bytes, struct sfc_error *err)
{
    struct statvfs status;
    if (fstatvfs(folder_fd(folder), &status) != 0) {
        return fail(err, "ask for the free space of", folder, "");
    }
    *bytes = (uint64_t)status.f_bavail * status.f_frsize;
    return SFC_OK;
}

static void posix_close(struct sfc_folder *folder)
{
    close(folder_fd(folder));
    free(folder);
}

/* ---- files */

/* Takes n written bytes off the front of the vector. */
static void advance(struct iovec **vector, int *count, size_t n)
{
    while (*count > 0 && n >= (*vector)->iov_len) {
        n -= (*vector)->iov_len;
        (*vector)++;
        (*count)--;
    }
    if (n > 0) {
        (*vector)->iov_base = (uint8_t *)(*vector)->iov_base + n;
        (*vector)->iov_len -= n;
    }
}

static int write_vector(struct sfc_file *file, uint64_t *offset, struct iovec *vector, int count,
                        struct sfc_error *err)
{
    advance(&vector, &count, 0);
    while (count > 0) {
        ssize_t n = pwritev(file_fd(file), vector, count, (off_t)*offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return fail_file(err, "write", file);
        }
        *offset += (uint64_t)n;
        advance(&vector, &count, (size_t)n);
    }
    return SFC_OK;
}

static int posix_write(struct sfc_file *file, uint64_t offset, const struct sfc_bytes *parts,
                       size_t count, struct sfc_error *err)
{
    struct iovec vector[SFC_FILE_PARTS];
    int code = SFC_OK;
    while (count > 0 && code == SFC_OK) {
        size_t n = count < SFC_FILE_PARTS ? count : SFC_FILE_PARTS;
        for (size_t i = 0; i < n; i++) {
            vector[i] = (struct iovec){(void *)(uintptr_t)parts[i].data, parts[i].size};
        }
        code = write_vector(file, &offset, vector, (int)n, err);
        parts += n;
        count -= n;
    }
    return code;
}

static int posix_read(struct sfc_file *file, uint64_t offset, void *out, size_t size, size_t *got,
                      struct sfc_error *err)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n =
            pread(file_fd(file), (uint8_t *)out + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return fail_file(err, "read", file);
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    *got = done;
    return SFC_OK;
}

static int posix_size(struct sfc_file *file, uint64_t *size, struct sfc_error *err)
{
    struct stat status;
    if (fstat(file_fd(file), &status) != 0) {
        return fail_file(err, "ask for the size of", file);
    }
    *size = (uint64_t)status.st_size;
    return SFC_OK;
}

static int posix_resize(struct sfc_file *file, uint64_t size, struct sfc_error *err)
{
    return ftruncate(file_fd(file), (off_t)size) == 0 ? SFC_OK : fail_file(err, "resize", file);
}

static int posix_sync(struct sfc_file *file, struct sfc_error *err)
{
    return fdatasync(file_fd(file)) == 0 ? SFC_OK : fail_file(err, "sync", file);
}

/* Some file systems refuse the flag. */
static bool posix_direct(struct sfc_file *file, bool on)
{
    int flags = fcntl(file_fd(file), F_GETFL);
    int wanted = on ? flags | O_DIRECT : flags & ~O_DIRECT;
    return flags >= 0 && fcntl(file_fd(file), F_SETFL, wanted) == 0;
}

static void posix_close_file(struct sfc_file *file)
{
    if (file != NULL) {
        close(file_fd(file));
        free(file);
    }
}

/* ---- opening */

static const struct sfc_folder_ops posix_ops = {
    .create = posix_create,
    .open = posix_open,
    .rename = posix_rename,
    .remove = posix_remove,
    .list = posix_list,
    .sync_names = posix_sync_names,
    .free_space = posix_free_space,
    .close = posix_close,
    .write = posix_write,
    .read = posix_read,
    .size = posix_size,
    .resize = posix_resize,
    .sync = posix_sync,
    .direct = posix_direct,
    .close_file = posix_close_file,
};

static int make_folder(struct posix_folder *folder, struct sfc_error *err)
{
    if (mkdir(folder->path, 0700) != 0) {
        return errno == EEXIST ? SFC_OK : fail(err, "make folder", &folder->base, "");
    }
    int fd = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int parent = fd < 0 ? -1 : openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = SFC_OK;
    if (parent < 0 || fsync(parent) != 0) {
        code = fail(err, "sync the folder above", &folder->base, "");
    }
    if (parent >= 0) {
        close(parent);
    }
    if (fd >= 0) {
        close(fd);
    }
    return code;
}

int sfc_folder_open(const char *path, bool create, struct sfc_folder **out, struct sfc_error *err)
{
    size_t length = strlen(path) + 1;
    struct posix_folder *folder = malloc(sizeof *folder + length);
    if (folder == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for folder %s", path);
    }
    memcpy(folder->path, path, length);
    folder->base = (struct sfc_folder){.ops = &posix_ops, .path = folder->path};
    int code = create ? make_folder(folder, err) : SFC_OK;
    if (code == SFC_OK) {
        folder->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        code = folder->fd < 0 ? fail(err, "open folder", &folder->base, "") : SFC_OK;
    }
    if (code != SFC_OK) {
        free(folder);
        return code;
    }
    *out = &folder->base;
    return SFC_OK;
}

void sfc_folder_close(struct sfc_folder *folder)
{
    if (folder != NULL) {
        folder->ops->close(folder);
    }
}
