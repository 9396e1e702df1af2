#include "server/durable/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUN  "run-"
#define DEAD "dead-run-"

static int path_of(const char *state, const char *prefix, uint64_t run_id, char out[PATH_MAX],
                   struct sfc_error *err)
{
    int n = snprintf(out, PATH_MAX, "%s/%s%" PRIu64, state, prefix, run_id);
    return n > 0 && n < PATH_MAX
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL, "the name of the state folder is too long: %s", state);
}

int sfc_run_folder_open(const char *state, uint64_t run_id, bool create, struct sfc_folder **out,
                        struct sfc_error *err)
{
    char path[PATH_MAX];
    int code = path_of(state, RUN, run_id, path, err);
    return code == SFC_OK ? sfc_folder_open(path, create, out, err) : code;
}

static int sync_state(const char *state, struct sfc_error *err)
{
    int fd = open(state, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = fd < 0 || fsync(fd) != 0 ? sfc_fail_errno(err, "sync folder %s", state) : SFC_OK;
    if (fd >= 0) {
        close(fd);
    }
    return code;
}

/* A folder of plain files. */
static int remove_tree(const char *path, struct sfc_error *err)
{
    DIR *dir = opendir(path);
    if (dir == NULL) {
        return errno == ENOENT ? SFC_OK : sfc_fail_errno(err, "open folder %s", path);
    }
    int code = SFC_OK;
    for (const struct dirent *entry; code == SFC_OK && (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            unlinkat(dirfd(dir), entry->d_name, 0) != 0) {
            code = sfc_fail_errno(err, "remove %s/%s", path, entry->d_name);
        }
    }
    closedir(dir);
    if (code == SFC_OK && rmdir(path) != 0) {
        code = sfc_fail_errno(err, "remove folder %s", path);
    }
    return code;
}

int sfc_run_folder_remove(const char *state, uint64_t run_id, bool *existed, struct sfc_error *err)
{
    char path[PATH_MAX], dead[PATH_MAX];
    int code = path_of(state, RUN, run_id, path, err);
    if (code == SFC_OK) {
        code = path_of(state, DEAD, run_id, dead, err);
    }
    if (code == SFC_OK) {
        code = remove_tree(dead, err); /* of a removal that a crash cut off */
    }
    if (code != SFC_OK) {
        return code;
    }
    bool found = rename(path, dead) == 0;
    if (!found && errno != ENOENT) {
        return sfc_fail_errno(err, "rename %s to %s", path, dead);
    }
    if (found) {
        code = sync_state(state, err);
    }
    if (code == SFC_OK && found) {
        code = remove_tree(dead, err);
    }
    if (code == SFC_OK && existed != NULL) {
        *existed = found;
    }
    return code;
}

/* "run-12" or "dead-run-12", exactly as this file writes them. */
static bool parse(const char *name, const char *prefix, uint64_t *run_id)
{
    char again[64];
    size_t length = strlen(prefix);
    if (strncmp(name, prefix, length) != 0 || sscanf(name + length, "%20" SCNu64, run_id) != 1) {
        return false;
    }
    snprintf(again, sizeof again, "%s%" PRIu64, prefix, *run_id);
    return strcmp(again, name) == 0;
}

int sfc_run_folder_remove_others(const char *state, uint64_t run_id, unsigned *removed,
                                 struct sfc_error *err)
{
    DIR *dir = opendir(state);
    if (dir == NULL) {
        return sfc_fail_errno(err, "open folder %s", state);
    }
    unsigned count = 0;
    int code = SFC_OK;
    for (const struct dirent *entry; code == SFC_OK && (entry = readdir(dir)) != NULL;) {
        uint64_t id;
        bool existed = false;
        if ((parse(entry->d_name, RUN, &id) && id != run_id) || parse(entry->d_name, DEAD, &id)) {
            if (id == run_id) {
                char dead[PATH_MAX];
                code = path_of(state, DEAD, id, dead, err);
                code = code == SFC_OK ? remove_tree(dead, err) : code;
            } else {
                code = sfc_run_folder_remove(state, id, &existed, err);
            }
            count += existed;
        }
    }
    closedir(dir);
    if (code == SFC_OK && removed != NULL) {
        *removed = count;
    }
    return code;
}

static int tell_of(const char *state, uint64_t run_id,
                   int (*told)(void *ctx, struct sfc_folder *folder, struct sfc_error *err),
                   void *ctx, struct sfc_error *err)
{
    struct sfc_folder *folder;
    int code = sfc_run_folder_open(state, run_id, false, &folder, err);
    if (code != SFC_OK) {
        return code;
    }
    code = told(ctx, folder, err);
    sfc_folder_close(folder);
    return code;
}

int sfc_run_folder_each(const char *state,
                        int (*told)(void *ctx, struct sfc_folder *folder, struct sfc_error *err),
                        void *ctx, struct sfc_error *err)
{
    DIR *dir = opendir(state);
    if (dir == NULL) {
        return errno == ENOENT ? SFC_OK : sfc_fail_errno(err, "open folder %s", state);
    }
    int code = SFC_OK;
    for (const struct dirent *entry; code == SFC_OK && (entry = readdir(dir)) != NULL;) {
        uint64_t id;
        if (parse(entry->d_name, RUN, &id)) {
            code = tell_of(state, id, told, ctx, err);
        }
    }
    closedir(dir);
    return code;
}
