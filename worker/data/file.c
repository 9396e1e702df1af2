#include "worker/data/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *sfc_path_join(const char *dir, const char *name)
{
    char *out = NULL;
    return asprintf(&out, "%s/%s", dir, name) < 0 ? NULL : out;
}

static int read_all(int fd, const char *path, uint8_t *data, size_t length, struct sfc_error *err)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = read(fd, data + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sfc_fail_errno(err, "read %s", path);
        if (n == 0)
            return sfc_fail(err, SFC_ECORRUPT, "%s shrank while it was read", path);
        done += (size_t)n;
    }
    return SFC_OK;
}

int sfc_file_read(const char *path, uint64_t limit, uint8_t **data, size_t *length,
                  struct sfc_error *err)
{
    int rc = SFC_OK;
    uint8_t *buffer = NULL;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sfc_fail_errno(err, "open %s", path);
    if (fstat(fd, &st) != 0) {
        rc = sfc_fail_errno(err, "stat %s", path);
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = sfc_fail(err, SFC_EINVAL, "%s is not a file", path);
        goto out;
    }
    if ((uint64_t)st.st_size > limit) {
        rc = sfc_fail(err, SFC_ELIMIT, "%s has %lld bytes, at most %llu are read", path,
                      (long long)st.st_size, (unsigned long long)limit);
        goto out;
    }
    buffer = malloc((size_t)st.st_size + 1);
    if (buffer == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for the %lld bytes of %s", (long long)st.st_size,
                      path);
        goto out;
    }
    rc = read_all(fd, path, buffer, (size_t)st.st_size, err);
    if (rc != SFC_OK)
        goto out;
    buffer[st.st_size] = 0;
    *data = buffer;
    *length = (size_t)st.st_size;
    buffer = NULL;
out:
    free(buffer);
    close(fd);
    return rc;
}

static void out_file_clear(struct sfc_out_file *file)
{
    free(file->path);
    free(file->temporary);
    memset(file, 0, sizeof *file);
}

int sfc_out_file_open(struct sfc_out_file *file, const char *path, struct sfc_error *err)
{
    memset(file, 0, sizeof *file);
    file->path = strdup(path);
    if (file->path == NULL || asprintf(&file->temporary, "%s.tmp", path) < 0) {
        file->temporary = NULL;
        out_file_clear(file);
        return sfc_fail(err, SFC_ENOMEM, "no memory for the name of %s", path);
    }
    file->stream = fopen(file->temporary, "w+be");
    if (file->stream == NULL) {
        int rc = sfc_fail_errno(err, "create %s", file->temporary);
        out_file_clear(file);
        return rc;
    }
    (void)setvbuf(file->stream, NULL, _IOFBF, 1U << 20);
    return SFC_OK;
}

static int sync_folder_of(const char *path, struct sfc_error *err)
{
    char *copy = strdup(path);
    if (copy == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the name of %s", path);
    char *slash = strrchr(copy, '/');
    if (slash != NULL)
        slash[slash == copy ? 1 : 0] = 0;
    int rc = SFC_OK;
    int fd = open(slash != NULL ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        rc = sfc_fail_errno(err, "sync the folder of %s", path);
    if (fd >= 0)
        close(fd);
    free(copy);
    return rc;
}

int sfc_out_file_commit(struct sfc_out_file *file, struct sfc_error *err)
{
    int rc = SFC_OK;
    if (fflush(file->stream) != 0 || fsync(fileno(file->stream)) != 0)
        rc = sfc_fail_errno(err, "write %s", file->temporary);
    if (fclose(file->stream) != 0 && rc == SFC_OK)
        rc = sfc_fail_errno(err, "write %s", file->temporary);
    file->stream = NULL;
    if (rc == SFC_OK && rename(file->temporary, file->path) != 0)
        rc = sfc_fail_errno(err, "rename %s to %s", file->temporary, file->path);
    if (rc == SFC_OK)
        rc = sync_folder_of(file->path, err);
    else
        unlink(file->temporary);
    out_file_clear(file);
    return rc;
}

void sfc_out_file_abort(struct sfc_out_file *file)
{
    if (file->stream != NULL) {
        fclose(file->stream);
        unlink(file->temporary);
    }
    out_file_clear(file);
}

int sfc_folder_create(const char *path, struct sfc_error *err)
{
    char *copy = strdup(path);
    if (copy == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the name of %s", path);
    int rc = SFC_OK;
    for (char *p = copy + 1; *copy != 0 && rc == SFC_OK; p++) {
        if (*p != '/' && *p != 0)
            continue;
        char kept = *p;
        *p = 0;
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            rc = sfc_fail_errno(err, "create folder %s", copy);
        *p = kept;
        if (kept == 0)
            break;
    }
    struct stat st;
    if (rc == SFC_OK && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        rc = sfc_fail(err, SFC_EINVAL, "%s is not a folder", path);
    free(copy);
    return rc;
}
