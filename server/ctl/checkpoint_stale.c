/* What a `shardfc checkpoint` that was killed leaves: NAME.partial-PID beside the checkpoint that
 * it was to be. Its writer holds a lock on the folder, which ends with the process, so a folder
 * that can be locked has no writer (nor has one whose process id was given to somebody else). It is
 * removed only if there is nothing in it but files of a checkpoint. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/ctl/checkpoint_common.h"

#define MARK ".partial-"

static bool all_digits(const char *text)
{
    size_t n = strspn(text, "0123456789");
    return n > 0 && text[n] == '\0';
}

static bool is_partial(const char *name)
{
    const char *mark = NULL;
    for (const char *at = strstr(name, MARK); at != NULL; at = strstr(at + 1, MARK)) {
        mark = at;
    }
    return mark != NULL && mark != name && all_digits(mark + strlen(MARK));
}

/* "class-000012.f32" and its like, and what is beside them. */
static bool is_ours(const char *name)
{
    static const char *const kinds[] = {"class-", "dense-", "history-"};
    if (strcmp(name, "run.pb") == 0 || strcmp(name, "manifest.json") == 0 ||
        strcmp(name, "manifest.xxh3") == 0) {
        return true;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t length = strlen(kinds[i]);
        size_t digits =
            strncmp(name, kinds[i], length) == 0 ? strspn(name + length, "0123456789") : 0;
        if (digits > 0 && strcmp(name + length + digits, ".f32") == 0) {
            return true;
        }
    }
    return false;
}

/* Calls visit for every name but . and ..; false when it said so, or the folder can't be read. */
static bool each_name(int folder, bool (*visit)(int folder, const char *name))
{
    int copy = dup(folder);
    DIR *list = copy < 0 ? NULL : fdopendir(copy);
    bool good = list != NULL;
    if (list == NULL && copy >= 0) {
        close(copy);
    }
    if (good) {
        rewinddir(list);
    }
    for (struct dirent *e; good && (e = readdir(list)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            good = visit(folder, e->d_name);
        }
    }
    if (list != NULL) {
        closedir(list);
    }
    return good;
}

static bool visit_ours(int folder, const char *name)
{
    struct stat info;
    return is_ours(name) && fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(info.st_mode);
}

static bool visit_unlink(int folder, const char *name)
{
    return unlinkat(folder, name, 0) == 0;
}

static bool remove_one(int parent, const char *name)
{
    int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        return false;
    }
    bool gone = flock(folder, LOCK_EX | LOCK_NB) == 0 && each_name(folder, visit_ours) &&
                each_name(folder, visit_unlink) && unlinkat(parent, name, AT_REMOVEDIR) == 0;
    close(folder);
    return gone;
}

/* The folder that dir is or will be in. */
static bool parent_of(const char *dir, char out[PATH_MAX])
{
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') {
        length--;
    }
    while (length > 0 && dir[length - 1] != '/') {
        length--;
    }
    if (length >= PATH_MAX) {
        return false;
    }
    memcpy(out, dir, length);
    memcpy(out + length, length > 0 ? "" : ".", length > 0 ? 1 : 2);
    return true;
}

void sfc_checkpoint_remove_stale(const char *dir, void (*removed)(void *ctx, const char *path),
                                 void *ctx)
{
    char path[PATH_MAX];
    DIR *list = parent_of(dir, path) ? opendir(path) : NULL;
    if (list == NULL) {
        return;
    }
    for (struct dirent *e; (e = readdir(list)) != NULL;) {
        if (is_partial(e->d_name) && remove_one(dirfd(list), e->d_name)) {
            char gone[PATH_MAX + NAME_MAX + 2];
            const char *slash = path[strlen(path) - 1] == '/' ? "" : "/";
            snprintf(gone, sizeof gone, "%s%s%s", path, slash, e->d_name);
            removed(ctx, gone);
        }
    }
    closedir(list);
}
