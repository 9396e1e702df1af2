/* A disk that fails, for whole programs: preloaded (LD_PRELOAD), it makes calls on files below a
 * folder fail with EIO for as long as a flag file exists. Linked into nothing.
 *
 *   FAILING_DISK_BELOW  the folder, absolute
 *   FAILING_DISK_FLAG   the flag file; its words say what fails:
 *     write   every kind of writing, and making files shorter
 *     sync    fsync and fdatasync
 *     rename  rename
 *     lose    a sync that fails also loses what was written to the file since its last good one:
 *             zeros take its place, as if its pages had been dropped. A later sync says yes.
 * FLAG.hits has one byte per call that failed. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* libc's names, whose declarations this file must not see twice. */
ssize_t write(int fd, const void *data, size_t size);
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset);
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset);
ssize_t writev(int fd, const struct iovec *parts, int count);
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset);
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset);
int ftruncate(int fd, off_t size);
int ftruncate64(int fd, off64_t size);
int fsync(int fd);
int fdatasync(int fd);
int rename(const char *from, const char *to);
int renameat(int from_dir, const char *from, int to_dir, const char *to);

enum { FILES = 1024 };

/* Bytes of an open file since its last good sync. */
static struct range {
    off_t begin, end;
} unsynced[FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool below(const char *path)
{
    const char *folder = getenv("FAILING_DISK_BELOW");
    size_t length = folder ? strlen(folder) : 0;
    return length > 0 && strncmp(path, folder, length) == 0 && path[length] == '/';
}

static bool is_ours(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return false;
    path[n] = '\0';
    size_t folder = strlen(path);
    if (folder + 1 < sizeof path) /* the folder itself counts too: it is synced */
        memcpy(path + folder, "/", 2);
    return below(path);
}

/* Does the flag file exist, and name this? */
static bool flagged(const char *word)
{
    char text[128] = " ";
    char name[32];
    const char *flag = getenv("FAILING_DISK_FLAG");
    int fd = flag ? open(flag, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text + 1, sizeof text - 3);
    close(fd);
    text[n > 0 ? n + 1 : 1] = ' ';
    snprintf(name, sizeof name, " %s ", word);
    return strstr(text, name) != NULL;
}

static int fail(void)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.hits", getenv("FAILING_DISK_FLAG"));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, "x", 1);
        close(fd);
    }
    errno = EIO;
    return -1;
}

static bool fails(int fd, const char *word)
{
    return flagged(word) && is_ours(fd);
}

/* ---- what is not synced yet */

static ssize_t note(int fd, off_t offset, ssize_t written)
{
    if (written <= 0 || fd >= FILES)
        return written;
    pthread_mutex_lock(&lock);
    struct range *r = &unsynced[fd];
    off_t end = offset + (off_t)written;
    *r = r->end == 0
             ? (struct range){offset, end}
             : (struct range){offset < r->begin ? offset : r->begin, end > r->end ? end : r->end};
    pthread_mutex_unlock(&lock);
    return written;
}

static struct range take(int fd)
{
    struct range r = {0, 0};
    if (fd < FILES) {
        pthread_mutex_lock(&lock);
        r = unsynced[fd];
        unsynced[fd] = (struct range){0, 0};
        pthread_mutex_unlock(&lock);
    }
    return r;
}

static void lose(int fd)
{
    static const char zeros[4096];
    struct range r = take(fd);
    for (off_t at = r.begin; at < r.end; at += (off_t)sizeof zeros) {
        off_t left = r.end - at;
        size_t n = left < (off_t)sizeof zeros ? (size_t)left : sizeof zeros;
        syscall(SYS_pwrite64, fd, zeros, n, at);
    }
}

static int sync_with(long number, int fd)
{
    if (!fails(fd, "sync")) {
        int code = (int)syscall(number, fd);
        if (code == 0)
            (void)take(fd);
        return code;
    }
    if (flagged("lose"))
        lose(fd);
    return fail();
}

/* ---- the calls */

ssize_t write(int fd, const void *data, size_t size)
{
    return fails(fd, "write") ? fail() : syscall(SYS_write, fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return fails(fd, "write") ? fail() : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return fails(fd, "write") ? fail()
                              : note(fd, offset, syscall(SYS_pwrite64, fd, data, size, offset));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return pwrite(fd, data, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return fails(fd, "write")
               ? fail()
               : note(fd, offset, syscall(SYS_pwritev, fd, parts, count, offset, 0L));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

int ftruncate(int fd, off_t size)
{
    return fails(fd, "write") ? fail() : (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int fsync(int fd)
{
    return sync_with(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return sync_with(SYS_fdatasync, fd);
}

int rename(const char *from, const char *to)
{
    return flagged("rename") && below(from) ? fail() : (int)syscall(SYS_rename, from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return flagged("rename") && (from[0] == '/' ? below(from) : is_ours(from_dir))
               ? fail()
               : (int)syscall(SYS_renameat, from_dir, from, to_dir, to);
}
