#include "tests/lib/memory_vfs.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 96, REGIONS = 64 };

struct open_file {
    sqlite3_file base;
    struct sfc_file *file;
    char name[NAME];
    bool temporary, journal;
    bool sync_folder; /* at the next sync: it is a new journal */
};

static struct sfc_folder *disk;
static void *regions[REGIONS]; /* shared memory of the one database */
static bool lying;
static unsigned temporaries;

static struct open_file *of(sqlite3_file *base)
{
    return (struct open_file *)base;
}

static int status(int code, int io_error)
{
    return code == SFC_OK ? SQLITE_OK : code == SFC_ELIMIT ? SQLITE_FULL : io_error;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* ---- files */

static int vfs_close(sqlite3_file *base)
{
    struct open_file *f = of(base);
    disk->ops->close_file(f->file);
    if (f->temporary) {
        (void)disk->ops->remove(disk, f->name, NULL);
    }
    return SQLITE_OK;
}

static int vfs_read(sqlite3_file *base, void *out, int size, sqlite3_int64 offset)
{
    size_t got = 0, wanted = (size_t)size;
    int code = disk->ops->read(of(base)->file, (uint64_t)offset, out, wanted, &got, NULL);
    if (code != SFC_OK) {
        return SQLITE_IOERR_READ;
    }
    memset((char *)out + got, 0, wanted - got);
    return got == wanted ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int vfs_write(sqlite3_file *base, const void *data, int size, sqlite3_int64 offset)
{
    const struct sfc_bytes bytes = {data, (size_t)size};
    return status(disk->ops->write(of(base)->file, (uint64_t)offset, &bytes, 1, NULL),
                  SQLITE_IOERR_WRITE);
}

static int vfs_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    return status(disk->ops->resize(of(base)->file, (uint64_t)size, NULL), SQLITE_IOERR_TRUNCATE);
}

static int vfs_sync(sqlite3_file *base, int flags)
{
    struct open_file *f = of(base);
    (void)flags;
    if (lying && f->journal) {
        return SQLITE_OK;
    }
    int code = disk->ops->sync(f->file, NULL);
    if (code == SFC_OK && f->sync_folder) {
        code = disk->ops->sync_names(disk, NULL);
        f->sync_folder = code != SFC_OK;
    }
    return status(code, SQLITE_IOERR_FSYNC);
}

static int vfs_size(sqlite3_file *base, sqlite3_int64 *size)
{
    uint64_t bytes = 0;
    int code = disk->ops->size(of(base)->file, &bytes, NULL);
    *size = (sqlite3_int64)bytes;
    return status(code, SQLITE_IOERR_FSTAT);
}

static int vfs_lock(sqlite3_file *base, int level)
{
    (void)base, (void)level;
    return SQLITE_OK;
}

static int vfs_check_lock(sqlite3_file *base, int *taken)
{
    (void)base;
    *taken = 0;
    return SQLITE_OK;
}

static int vfs_control(sqlite3_file *base, int what, void *arg)
{
    (void)base, (void)what, (void)arg;
    return SQLITE_NOTFOUND;
}

static int vfs_sector(sqlite3_file *base)
{
    (void)base;
    return 4096;
}

static int vfs_device(sqlite3_file *base)
{
    (void)base;
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE; /* memory_files.h: a sector is old or new */
}

static int vfs_shm_map(sqlite3_file *base, int region, int size, int extend, void volatile **out)
{
    (void)base;
    *out = NULL;
    if (region >= REGIONS) {
        return SQLITE_IOERR_SHMMAP;
    }
    if (regions[region] == NULL && extend) {
        regions[region] = calloc(1, (size_t)size);
        if (regions[region] == NULL) {
            return SQLITE_NOMEM;
        }
    }
    *out = regions[region];
    return SQLITE_OK;
}

static int vfs_shm_lock(sqlite3_file *base, int offset, int count, int flags)
{
    (void)base, (void)offset, (void)count, (void)flags;
    return SQLITE_OK;
}

static void vfs_shm_barrier(sqlite3_file *base)
{
    (void)base;
}

/* Always as by the last user: whoever opens the database first rebuilds it. */
static int vfs_shm_unmap(sqlite3_file *base, int remove)
{
    (void)base, (void)remove;
    for (int i = 0; i < REGIONS; i++) {
        free(regions[i]);
        regions[i] = NULL;
    }
    return SQLITE_OK;
}

static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = vfs_close,
    .xRead = vfs_read,
    .xWrite = vfs_write,
    .xTruncate = vfs_truncate,
    .xSync = vfs_sync,
    .xFileSize = vfs_size,
    .xLock = vfs_lock,
    .xUnlock = vfs_lock,
    .xCheckReservedLock = vfs_check_lock,
    .xFileControl = vfs_control,
    .xSectorSize = vfs_sector,
    .xDeviceCharacteristics = vfs_device,
    .xShmMap = vfs_shm_map,
    .xShmLock = vfs_shm_lock,
    .xShmBarrier = vfs_shm_barrier,
    .xShmUnmap = vfs_shm_unmap,
};

/* ---- names */

static int vfs_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *base, int flags, int *got)
{
    struct open_file *f = of(base);
    const int journals = SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL;
    (void)vfs;
    memset(f, 0, sizeof *f);
    f->temporary = path == NULL;
    f->journal = (flags & journals) != 0;
    if (path == NULL) {
        snprintf(f->name, sizeof f->name, "temporary-%u", temporaries++);
    } else {
        snprintf(f->name, sizeof f->name, "%s", last_part(path));
    }
    int code = disk->ops->open(disk, f->name, true, &f->file, NULL);
    if (code == SFC_ENOTFOUND && (flags & SQLITE_OPEN_CREATE) != 0) {
        code = disk->ops->create(disk, f->name, &f->file, NULL);
        f->sync_folder = f->journal;
    }
    if (code != SFC_OK) {
        return status(code, SQLITE_CANTOPEN);
    }
    base->pMethods = &methods;
    if (got != NULL) {
        *got = flags;
    }
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *path, int sync_folder)
{
    (void)vfs;
    int code = disk->ops->remove(disk, last_part(path), NULL);
    if (code == SFC_ENOTFOUND) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    if (code == SFC_OK && sync_folder) {
        code = disk->ops->sync_names(disk, NULL);
    }
    return status(code, SQLITE_IOERR_DELETE);
}

static int vfs_access(sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
    struct sfc_file *file;
    (void)vfs, (void)flags;
    int code = disk->ops->open(disk, last_part(path), false, &file, NULL);
    *out = code == SFC_OK;
    if (code == SFC_OK) {
        disk->ops->close_file(file);
    }
    return code == SFC_ENOTFOUND ? SQLITE_OK : status(code, SQLITE_IOERR_ACCESS);
}

static int vfs_full_path(sqlite3_vfs *vfs, const char *path, int size, char *out)
{
    (void)vfs;
    return snprintf(out, (size_t)size, "%s", path) < size ? SQLITE_OK : SQLITE_CANTOPEN;
}

void memory_vfs_register(void)
{
    static sqlite3_vfs vfs;
    vfs = *sqlite3_vfs_find(NULL); /* randomness, sleep and time are its own */
    vfs.zName = "memory";
    vfs.szOsFile = sizeof(struct open_file);
    vfs.xOpen = vfs_open;
    vfs.xDelete = vfs_delete;
    vfs.xAccess = vfs_access;
    vfs.xFullPathname = vfs_full_path;
    if (sqlite3_vfs_register(&vfs, 1) != SQLITE_OK) {
        fprintf(stderr, "memory_vfs: can't be registered\n");
        abort();
    }
}

void memory_vfs_use(struct sfc_folder *folder)
{
    disk = folder;
}

void memory_vfs_lie(bool lies)
{
    lying = lies;
}
