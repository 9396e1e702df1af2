/* The state store in an SQLite file: WAL, synchronous=FULL, so that a returned write is on the
 * disk. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/scheduler/store_sqlite.h"

static int take_lock(struct sqlite_store *store, const char *where, struct sfc_error *err)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/lock", where) >= sizeof path)
        return sfc_fail(err, SFC_EINVAL, "--state: the path is too long");
    store->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (store->lock < 0)
        return sfc_fail_errno(err, "open %s", path);
    if (flock(store->lock, LOCK_EX | LOCK_NB) == 0)
        return SFC_OK;
    if (errno == EWOULDBLOCK)
        return sfc_fail(err, SFC_ESTATE, "%s is in use by another scheduler", where);
    return sfc_fail_errno(err, "lock %s", path);
}

/* SQLite answers a journal mode that it can't have with the one that it keeps. */
static int check_durable(struct sqlite_store *store, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int64_t synchronous = 0;
    char mode[16] = "";
    int code = sfc_db_exec(store, "PRAGMA synchronous=FULL", "open state", err);
    if (code == SFC_OK)
        code = sfc_db_prepare(store, "PRAGMA journal_mode=WAL", &s, "open state", err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW)
        sfc_db_column_text(s, 0, mode, sizeof mode);
    else
        code = sfc_db_fail(store, err, "open state");
    if (code == SFC_OK)
        code = sfc_db_check_columns(store, "open state", err);
    sqlite3_finalize(s);
    if (code == SFC_OK)
        code = sfc_db_integer(store, "PRAGMA synchronous", &synchronous, "open state", err);
    if (code == SFC_OK && (strcmp(mode, "wal") != 0 || synchronous != 2))
        code = sfc_fail(err, SFC_EIO,
                        "%s: journal mode %s, synchronous %lld instead of wal, 2: put --state on a "
                        "local file system",
                        store->path, mode, (long long)synchronous);
    return code;
}

static int sync_folder(const char *path, struct sfc_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return sfc_fail_errno(err, "open folder %s", path);
    int code = fsync(fd) == 0 ? SFC_OK : sfc_fail_errno(err, "flush folder %s", path);
    close(fd);
    return code;
}

/* The names of the files and of the folder are durable as well; the folder's every time, because
 * whoever made it may have died before. A parent that we may not read was made ready by others. */
static int sync_names(const char *where, struct sfc_error *err)
{
    char parent[4096];
    if ((size_t)snprintf(parent, sizeof parent, "%s/..", where) >= sizeof parent)
        return sfc_fail(err, SFC_EINVAL, "--state: the path is too long");
    int code = sync_folder(where, err);
    if (code == SFC_OK && access(parent, R_OK) == 0)
        code = sync_folder(parent, err);
    return code;
}

static void sfc_sqlite_close(struct sfc_store *base)
{
    struct sqlite_store *store = sqlite_of(base);
    if (store->db)
        sqlite3_close(store->db);
    if (store->lock >= 0)
        close(store->lock);
    free(store);
}

static const struct sfc_store_ops sqlite_ops = {
    .close = sfc_sqlite_close,
    .next_incarnation = sfc_sqlite_next_incarnation,
    .add_run = sfc_sqlite_add_run,
    .set_run_state = sfc_sqlite_set_run_state,
    .set_run_numerics = sfc_sqlite_set_run_numerics,
    .last_run = sfc_sqlite_last_run,
    .run_before = sfc_sqlite_run_before,
    .put_map = sfc_sqlite_put_map,
    .put_commits = sfc_sqlite_put_commits,
    .last_commit = sfc_sqlite_last_commit,
    .rewind = sfc_sqlite_rewind,
    .lineage = sfc_sqlite_lineage,
    .history = sfc_sqlite_history,
    .put_drop = sfc_sqlite_put_drop,
    .drops = sfc_sqlite_drops,
    .put_lr = sfc_sqlite_put_lr,
    .lr_changes = sfc_sqlite_lr_changes,
    .put_shard = sfc_sqlite_put_shard,
    .drop_shard = sfc_sqlite_drop_shard,
    .shards = sfc_sqlite_shards,
    .put_goal = sfc_sqlite_put_goal,
    .goal = sfc_sqlite_goal,
    .put_event = sfc_sqlite_put_event,
    .events = sfc_sqlite_events,
};

int sfc_store_open_sqlite(const char *where, struct sfc_store **out, struct sfc_error *err)
{
    struct sqlite_store *store = calloc(1, sizeof *store);
    if (!store)
        return sfc_fail(err, SFC_ENOMEM, "open state");
    store->base.ops = &sqlite_ops;
    store->lock = -1;
    int code = SFC_OK;
    if (mkdir(where, 0700) != 0 && errno != EEXIST) {
        code = sfc_fail_errno(
            err, "--state: make folder %s (the folder above must exist and be writable)", where);
        goto fail;
    }
    if ((code = take_lock(store, where, err)) != SFC_OK)
        goto fail;
    if ((size_t)snprintf(store->path, sizeof store->path, "%s/scheduler.db", where) >=
        sizeof store->path) {
        code = sfc_fail(err, SFC_EINVAL, "--state: the path is too long");
        goto fail;
    }
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
    if (sqlite3_open_v2(store->path, &store->db, flags, NULL) != SQLITE_OK) {
        code = store->db ? sfc_db_fail(store, err, "open state")
                         : sfc_fail(err, SFC_ENOMEM, "open %s", store->path);
        goto fail;
    }
    sqlite3_extended_result_codes(store->db, 0);
    if ((code = check_durable(store, err)) != SFC_OK ||
        (code = sfc_db_check_schema(store, err)) != SFC_OK ||
        (code = sfc_db_check_pages(store, err)) != SFC_OK ||
        (code = sync_names(where, err)) != SFC_OK)
        goto fail;
    *out = &store->base;
    return SFC_OK;
fail:
    sfc_sqlite_close(&store->base);
    return code;
}
