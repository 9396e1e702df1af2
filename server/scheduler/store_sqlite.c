/* The state store in an SQLite file: WAL, synchronous=FULL, so that a returned write is on the
 * disk. application_id tells our files from others, user_version is the schema's version. */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/scheduler/store_impl.h"

enum { APPLICATION_ID = 0x53464353, SCHEMA_VERSION = 10, EVENTS_KEPT = 10000, MAPS_KEPT = 64 };

static const char SCHEMA[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "INSERT INTO meta VALUES('incarnation', 0);"
    "CREATE TABLE runs(run_id INTEGER PRIMARY KEY AUTOINCREMENT, start_step INTEGER NOT NULL,"
    " load INTEGER NOT NULL, map_version INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT "
    "NULL,"
    " config BLOB NOT NULL, map BLOB NOT NULL, numerics TEXT NOT NULL DEFAULT '',"
    " rewind_window INTEGER NOT NULL DEFAULT 0, durable_every INTEGER NOT NULL DEFAULT 1,"
    " nonce INTEGER NOT NULL DEFAULT 0, elastic INTEGER NOT NULL DEFAULT 0,"
    " paused INTEGER NOT NULL DEFAULT 0);"
    "CREATE TABLE commits(run_id INTEGER NOT NULL, step INTEGER NOT NULL, clip_scale REAL NOT NULL,"
    " applied INTEGER NOT NULL, loss BLOB NOT NULL, lr REAL NOT NULL, images_per_s REAL NOT NULL,"
    " classes INTEGER NOT NULL, map_version INTEGER NOT NULL, position INTEGER NOT NULL,"
    " norm BLOB NOT NULL, round_incarnation INTEGER NOT NULL, round_counter INTEGER NOT NULL,"
    " zero_features INTEGER NOT NULL, skipped_in_row INTEGER NOT NULL, skipped_total INTEGER NOT "
    "NULL,"
    " time_us INTEGER NOT NULL, attempts BLOB NOT NULL, PRIMARY KEY(run_id, step)) WITHOUT ROWID;"
    "CREATE TABLE drops(run_id INTEGER NOT NULL, step INTEGER NOT NULL, micro_batch INTEGER NOT "
    "NULL,"
    " PRIMARY KEY(run_id, step, micro_batch)) WITHOUT ROWID;"
    "CREATE TABLE returns(run_id INTEGER NOT NULL, step INTEGER NOT NULL,"
    " last_incarnation INTEGER NOT NULL, last_counter INTEGER NOT NULL,"
    " PRIMARY KEY(run_id, step)) WITHOUT ROWID;"
    "CREATE TABLE maps(run_id INTEGER NOT NULL, version INTEGER NOT NULL, step INTEGER NOT NULL,"
    " made_by INTEGER NOT NULL, map BLOB NOT NULL, PRIMARY KEY(run_id, version)) WITHOUT ROWID;"
    "CREATE TABLE lr_changes(run_id INTEGER NOT NULL, from_step INTEGER NOT NULL, lr REAL NOT NULL,"
    " PRIMARY KEY(run_id, from_step)) WITHOUT ROWID;"
    "CREATE TABLE shards(shard INTEGER PRIMARY KEY, address TEXT UNIQUE NOT NULL);"
    "CREATE TABLE events(id INTEGER PRIMARY KEY AUTOINCREMENT, time_ms INTEGER NOT NULL,"
    " run_id INTEGER NOT NULL, text TEXT NOT NULL, who TEXT NOT NULL DEFAULT '');"
    "CREATE TABLE goals(run_id INTEGER PRIMARY KEY, goal BLOB NOT NULL);"
    "PRAGMA application_id=1397113683;"
    "PRAGMA user_version=10;"
    "COMMIT;";

/* Version 4 had no word on how a run is kept. */
static const char UPGRADE_4[] =
    "BEGIN IMMEDIATE;"
    "ALTER TABLE runs ADD COLUMN rewind_window INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN durable_every INTEGER NOT NULL DEFAULT 1;"
    "PRAGMA user_version=5;"
    "COMMIT;";

/* Version 5 told runs of two clusters by nothing. */
static const char UPGRADE_5[] = "BEGIN IMMEDIATE;"
                                "ALTER TABLE runs ADD COLUMN nonce INTEGER NOT NULL DEFAULT 0;"
                                "PRAGMA user_version=6;"
                                "COMMIT;";

/* Version 6 did not know where runs went back. */
static const char UPGRADE_6[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE returns(run_id INTEGER NOT NULL, step INTEGER NOT NULL,"
    " last_incarnation INTEGER NOT NULL, last_counter INTEGER NOT NULL,"
    " PRIMARY KEY(run_id, step)) WITHOUT ROWID;"
    "PRAGMA user_version=7;"
    "COMMIT;";

/* Version 7 knew nothing of shards that come and go, nor who caused an event. */
static const char UPGRADE_7[] =
    "BEGIN IMMEDIATE;"
    "ALTER TABLE runs ADD COLUMN elastic INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE events ADD COLUMN who TEXT NOT NULL DEFAULT '';"
    "CREATE TABLE goals(run_id INTEGER PRIMARY KEY, goal BLOB NOT NULL);"
    "PRAGMA user_version=8;"
    "COMMIT;";

/* In version 8 a run had one map. */
static const char UPGRADE_8[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE maps(run_id INTEGER NOT NULL, version INTEGER NOT NULL, step INTEGER NOT NULL,"
    " made_by INTEGER NOT NULL, map BLOB NOT NULL, PRIMARY KEY(run_id, version)) WITHOUT ROWID;"
    "PRAGMA user_version=9;"
    "COMMIT;";

/* Version 9 knew one learning rate for each run, and a pause only of one that was not blocked. */
static const char UPGRADE_9[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE lr_changes(run_id INTEGER NOT NULL, from_step INTEGER NOT NULL, lr REAL NOT NULL,"
    " PRIMARY KEY(run_id, from_step)) WITHOUT ROWID;"
    "ALTER TABLE runs ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;"
    "UPDATE runs SET paused = 1 WHERE state = 'paused';"
    "PRAGMA user_version=10;"
    "COMMIT;";

struct sqlite_store {
    struct sfc_store base;
    sqlite3 *db;
    bool inside; /* a transaction of several statements */
    int lock;
    char path[4096];
};

static struct sqlite_store *sqlite_of(struct sfc_store *base)
{
    return (struct sqlite_store *)base; /* its first member */
}

/* ---- helpers */

static int db_fail(const struct sqlite_store *store, struct sfc_error *err, const char *what)
{
    int code = SFC_EIO;
    switch (sqlite3_errcode(store->db) & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return sfc_fail(
            err, SFC_ECORRUPT,
            "%s: %s is damaged or not an SQLite database (%s); move it away to begin with an "
            "empty state, or restore it from a backup",
            what, store->path, sqlite3_errmsg(store->db));
    case SQLITE_NOMEM:
        code = SFC_ENOMEM;
        break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        code = SFC_ESTATE;
        break;
    default:
        break;
    }
    return sfc_fail(err, code, "%s: %s: %s", what, store->path, sqlite3_errmsg(store->db));
}

static int db_exec(const struct sqlite_store *store, const char *sql, const char *what,
                   struct sfc_error *err)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) == SQLITE_OK)
        return SFC_OK;
    return db_fail(store, err, what);
}

/* A transaction that failed may still be open, because its rollback failed too: what comes next
 * must not become part of it. */
static int leave_transaction(const struct sqlite_store *store, const char *what,
                             struct sfc_error *err)
{
    bool open = !store->inside && !sqlite3_get_autocommit(store->db);
    return open ? db_exec(store, "ROLLBACK", what, err) : SFC_OK;
}

/* Statements that begin with BEGIN and end with COMMIT: all of them, or none. */
static int db_transaction(const struct sqlite_store *store, const char *sql, const char *what,
                          struct sfc_error *err)
{
    int code = leave_transaction(store, what, err);
    if (code != SFC_OK || (code = db_exec(store, sql, what, err)) == SFC_OK)
        return code;
    (void)leave_transaction(store, what, NULL); /* or before the next call */
    return code;
}

static int db_prepare(const struct sqlite_store *store, const char *sql, sqlite3_stmt **out,
                      const char *what, struct sfc_error *err)
{
    int code = leave_transaction(store, what, err);
    if (code == SFC_OK && sqlite3_prepare_v2(store->db, sql, -1, out, NULL) != SQLITE_OK)
        code = db_fail(store, err, what);
    return code;
}

/* One statement that must end without a row. Takes the statement. */
static int db_finish(const struct sqlite_store *store, sqlite3_stmt *s, const char *what,
                     struct sfc_error *err)
{
    int rc = sqlite3_step(s);
    int code = rc == SQLITE_DONE ? SFC_OK : db_fail(store, err, what);
    sqlite3_finalize(s);
    return code;
}

/* One row of one number. A statement that also writes commits only when it is gone through to its
 * end. */
static int db_integer(const struct sqlite_store *store, const char *sql, int64_t *out,
                      const char *what, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int64_t value = 0;
    int code = db_prepare(store, sql, &s, what, err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW) {
        value = sqlite3_column_int64(s, 0);
        code = db_finish(store, s, what, err);
    } else {
        code = db_fail(store, err, what);
        sqlite3_finalize(s);
    }
    if (code == SFC_OK)
        *out = value;
    return code;
}

static int begin_transaction(struct sqlite_store *store, const char *what, struct sfc_error *err)
{
    int code = leave_transaction(store, what, err);
    if (code == SFC_OK)
        code = db_exec(store, "BEGIN IMMEDIATE", what, err);
    store->inside = code == SFC_OK;
    return code;
}

/* All of it, or after an error nothing. */
static int end_transaction(struct sqlite_store *store, int code, const char *what,
                           struct sfc_error *err)
{
    if (code == SFC_OK)
        code = db_exec(store, "COMMIT", what, err);
    store->inside = false;
    if (code != SFC_OK)
        (void)leave_transaction(store, what, NULL); /* or before the next call */
    return code;
}

static void bind_u64(sqlite3_stmt *s, int column, uint64_t v)
{
    sqlite3_bind_int64(s, column, (int64_t)v);
}

static uint64_t column_u64(sqlite3_stmt *s, int column)
{
    return (uint64_t)sqlite3_column_int64(s, column);
}

/* Texts and bytes are bound as they are (SQLITE_STATIC) and outlive the statement: a copy could
 * fail without anybody looking. SQLite turns a NaN into NULL: values that may be one are kept as
 * their 8 bytes. */
static void bind_bits(sqlite3_stmt *s, int column, const double *v)
{
    sqlite3_bind_blob(s, column, v, (int)sizeof *v, SQLITE_STATIC);
}

static double column_bits(sqlite3_stmt *s, int column)
{
    double v = 0;
    const void *bytes = sqlite3_column_blob(s, column);
    if (bytes && sqlite3_column_bytes(s, column) == (int)sizeof v)
        memcpy(&v, bytes, sizeof v);
    return v;
}

/* A column of text or bytes that needs memory and gets none reads as NULL, which this tells from a
 * value that is empty. */
static int check_columns(const struct sqlite_store *store, const char *what, struct sfc_error *err)
{
    return (sqlite3_errcode(store->db) & 0xff) == SQLITE_NOMEM ? db_fail(store, err, what) : SFC_OK;
}

static void column_text(sqlite3_stmt *s, int column, char *out, size_t size)
{
    const char *text = (const char *)sqlite3_column_text(s, column);
    snprintf(out, size, "%s", text ? text : "");
}

static int column_copy(sqlite3_stmt *s, int column, uint8_t **out, size_t *size,
                       struct sfc_error *err)
{
    const void *bytes = sqlite3_column_blob(s, column);
    size_t n = (size_t)sqlite3_column_bytes(s, column);
    uint8_t *copy = bytes || n == 0 ? malloc(n ? n : 1) : NULL;
    if (!copy)
        return sfc_fail(err, SFC_ENOMEM, "read a %zu byte record", n);
    if (n)
        memcpy(copy, bytes, n);
    *out = copy;
    *size = n;
    return SFC_OK;
}

/* ---- open and close */

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
    int code = db_exec(store, "PRAGMA synchronous=FULL", "open state", err);
    if (code == SFC_OK)
        code = db_prepare(store, "PRAGMA journal_mode=WAL", &s, "open state", err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW)
        column_text(s, 0, mode, sizeof mode);
    else
        code = db_fail(store, err, "open state");
    if (code == SFC_OK)
        code = check_columns(store, "open state", err);
    sqlite3_finalize(s);
    if (code == SFC_OK)
        code = db_integer(store, "PRAGMA synchronous", &synchronous, "open state", err);
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

static int check_schema(struct sqlite_store *store, struct sfc_error *err)
{
    int64_t application = 0, version = 0, tables = 0;
    int code = db_integer(store, "PRAGMA application_id", &application, "open state", err);
    if (code == SFC_OK)
        code = db_integer(store, "PRAGMA user_version", &version, "open state", err);
    if (code == SFC_OK)
        code = db_integer(store, "SELECT count(*) FROM sqlite_master", &tables, "open state", err);
    if (code != SFC_OK)
        return code;
    if (application == 0 && version == 0 && tables == 0)
        return db_exec(store, SCHEMA, "create state", err);
    if (application != APPLICATION_ID)
        return sfc_fail(
            err, SFC_ECORRUPT,
            "%s is an SQLite database of another program; give --state a folder of its own",
            store->path);
    static const char *const upgrades[] = {UPGRADE_4, UPGRADE_5, UPGRADE_6,
                                           UPGRADE_7, UPGRADE_8, UPGRADE_9};
    while (code == SFC_OK && version >= 4 && version < SCHEMA_VERSION) {
        code = db_transaction(store, upgrades[version - 4], "upgrade state", err);
        version++;
    }
    if (code == SFC_OK && version != SCHEMA_VERSION)
        return sfc_fail(
            err, SFC_ECORRUPT,
            "%s has schema version %lld, this program knows %d; use the program that wrote it",
            store->path, (long long)version, SCHEMA_VERSION);
    return code;
}

/* "ok", or the first thing that is wrong. */
static int quick_check(struct sqlite_store *store, char *out, size_t size, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "PRAGMA quick_check(1)", &s, "check state", err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW)
        column_text(s, 0, out, size);
    else
        code = db_fail(store, err, "check state");
    if (code == SFC_OK)
        code = check_columns(store, "check state", err);
    sqlite3_finalize(s);
    return code;
}

/* The check reports a page that it could not read like one that is damaged; what can be read a
 * moment later is neither. */
static int check_pages(struct sqlite_store *store, struct sfc_error *err)
{
    char text[300];
    int code = quick_check(store, text, sizeof text, err);
    if (code == SFC_OK && strcmp(text, "ok") != 0)
        code = quick_check(store, text, sizeof text, err);
    if (code == SFC_OK && strcmp(text, "ok") != 0)
        code = sfc_fail(err, SFC_ECORRUPT,
                        "%s is damaged or can't be read (%s); look at the disk, restore the file "
                        "from a backup or move it away to begin with an empty state",
                        store->path, text);
    return code;
}

static void sqlite_close(struct sfc_store *base)
{
    struct sqlite_store *store = sqlite_of(base);
    if (store->db)
        sqlite3_close(store->db);
    if (store->lock >= 0)
        close(store->lock);
    free(store);
}

/* ---- records */

static int sqlite_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int64_t value = 0;
    int code = db_integer(
        store, "UPDATE meta SET value = value + 1 WHERE key = 'incarnation' RETURNING value",
        &value, "new incarnation", err);
    if (code == SFC_OK)
        *out = (uint64_t)value;
    return code;
}

static int insert_lr(struct sqlite_store *store, uint64_t run_id, const struct sfc_store_lr *change,
                     struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "INSERT INTO lr_changes(run_id, from_step, lr) VALUES(?,?,?)", &s,
                          "set the learning rate", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, change->from_step);
    sqlite3_bind_double(s, 3, change->lr);
    return db_finish(store, s, "set the learning rate", err);
}

static int insert_run(struct sqlite_store *store, const struct sfc_store_run *run, uint64_t *run_id,
                      struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code =
        db_prepare(store,
                   "INSERT INTO runs(start_step, load, map_version, state, reason, config, map,"
                   " rewind_window, durable_every, nonce, elastic)"
                   " VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                   &s, "add run", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run->start_step);
    sqlite3_bind_int(s, 2, run->load);
    bind_u64(s, 3, run->map_version);
    sqlite3_bind_text(s, 4, run->state, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 5, run->reason, -1, SQLITE_STATIC);
    sqlite3_bind_blob64(s, 6, run->config ? (const void *)run->config : "", run->config_size,
                        SQLITE_STATIC);
    sqlite3_bind_blob64(s, 7, run->map ? (const void *)run->map : "", run->map_size, SQLITE_STATIC);
    bind_u64(s, 8, run->rewind_window);
    bind_u64(s, 9, run->durable_every ? run->durable_every : 1);
    bind_u64(s, 10, run->nonce);
    sqlite3_bind_int(s, 11, run->elastic);
    code = db_finish(store, s, "add run", err);
    if (code == SFC_OK)
        *run_id = (uint64_t)sqlite3_last_insert_rowid(store->db);
    return code;
}

static int sqlite_add_run(struct sfc_store *base, const struct sfc_store_run *run, uint64_t *run_id,
                          struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    uint64_t id = 0;
    int code = begin_transaction(store, "add run", err);
    if (code == SFC_OK)
        code = insert_run(store, run, &id, err);
    for (size_t i = 0; i < run->lr_change_count && code == SFC_OK; i++)
        code = insert_lr(store, id, &run->lr_changes[i], err);
    code = end_transaction(store, code, "add run", err);
    if (code == SFC_OK)
        *run_id = id;
    return code;
}

static int sqlite_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                                bool paused, const char *reason, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code =
        db_prepare(store, "UPDATE runs SET state = ?, reason = ?, paused = ? WHERE run_id = ?", &s,
                   "set run state", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_text(s, 1, state, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, reason, -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 3, paused);
    bind_u64(s, 4, run_id);
    code = db_finish(store, s, "set run state", err);
    if (code == SFC_OK && sqlite3_changes(store->db) == 0)
        code = sfc_fail(err, SFC_ENOTFOUND, "no run %llu", (unsigned long long)run_id);
    return code;
}

static int sqlite_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                   struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "UPDATE runs SET numerics = ? WHERE run_id = ?", &s,
                          "set the run's numerics", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_text(s, 1, numerics, -1, SQLITE_STATIC);
    bind_u64(s, 2, run_id);
    return db_finish(store, s, "set the run's numerics", err);
}

static int sqlite_last_run(struct sfc_store *base, struct sfc_store_run *out, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(
        store,
        "SELECT r.run_id, start_step, load, coalesce(m.version, map_version), state, reason,"
        " config, coalesce(m.map, r.map), numerics, rewind_window, durable_every, nonce,"
        " coalesce(m.step, 0), coalesce(m.made_by, 0), elastic, paused"
        " FROM runs r LEFT JOIN maps m ON m.run_id = r.run_id"
        " ORDER BY r.run_id DESC, m.version DESC LIMIT 1",
        &s, "read run", err);
    if (code != SFC_OK)
        return code;
    struct sfc_store_run run = {0};
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        run.run_id = column_u64(s, 0);
        run.start_step = column_u64(s, 1);
        run.load = sqlite3_column_int(s, 2) != 0;
        run.map_version = column_u64(s, 3);
        column_text(s, 4, run.state, sizeof run.state);
        column_text(s, 5, run.reason, sizeof run.reason);
        column_text(s, 8, run.numerics, sizeof run.numerics);
        run.rewind_window = column_u64(s, 9);
        run.durable_every = (uint32_t)column_u64(s, 10);
        run.nonce = column_u64(s, 11);
        run.map_step = column_u64(s, 12);
        run.map_order = column_u64(s, 13);
        run.elastic = sqlite3_column_int(s, 14) != 0;
        run.paused = sqlite3_column_int(s, 15) != 0;
        code = column_copy(s, 6, &run.config, &run.config_size, err);
        if (code == SFC_OK)
            code = column_copy(s, 7, &run.map, &run.map_size, err);
        if (code == SFC_OK)
            code = check_columns(store, "read run", err);
    } else {
        code = rc == SQLITE_DONE ? sfc_fail(err, SFC_ENOTFOUND, "there is no run")
                                 : db_fail(store, err, "read run");
    }
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *out = run;
    else
        sfc_store_run_close(&run);
    return code;
}

/* ---- maps */

/* SFC_OK: a map of this version exists and is the same. SFC_ENOTFOUND: there is none. */
static int compare_map(struct sqlite_store *store, const struct sfc_store_map *map,
                       struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "SELECT map, step FROM maps WHERE run_id = ? AND version = ?", &s,
                          "write map", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, map->run_id);
    bind_u64(s, 2, map->version);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE) {
        code = SFC_ENOTFOUND;
    } else if (rc != SQLITE_ROW) {
        code = db_fail(store, err, "write map");
    } else {
        const void *bytes = sqlite3_column_blob(s, 0);
        size_t size = (size_t)sqlite3_column_bytes(s, 0);
        bool same = size == map->size && column_u64(s, 1) == map->step &&
                    (size == 0 || (bytes && memcmp(bytes, map->bytes, size) == 0));
        code = check_columns(store, "write map", err);
        if (code == SFC_OK && !same)
            code =
                sfc_fail(err, SFC_ECONFLICT, "map %llu of run %llu is there already, another one",
                         (unsigned long long)map->version, (unsigned long long)map->run_id);
    }
    sqlite3_finalize(s);
    return code;
}

static int insert_map(struct sqlite_store *store, const struct sfc_store_map *map,
                      struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code =
        db_prepare(store, "INSERT INTO maps(run_id, version, step, made_by, map) VALUES(?,?,?,?,?)",
                   &s, "write map", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, map->run_id);
    bind_u64(s, 2, map->version);
    bind_u64(s, 3, map->step);
    bind_u64(s, 4, map->order);
    sqlite3_bind_blob64(s, 5, map->bytes, map->size, SQLITE_STATIC);
    return db_finish(store, s, "write map", err);
}

static int drop_old_maps(struct sqlite_store *store, const struct sfc_store_map *map,
                         struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "DELETE FROM maps WHERE run_id = ? AND version + ? <= ?", &s,
                          "drop old maps", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, map->run_id);
    sqlite3_bind_int(s, 2, MAPS_KEPT);
    bind_u64(s, 3, map->version);
    return db_finish(store, s, "drop old maps", err);
}

static int sqlite_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                          struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = begin_transaction(store, "write map", err);
    if (code == SFC_OK)
        code = compare_map(store, map, err);
    if (code == SFC_ENOTFOUND)
        code = insert_map(store, map, err);
    if (code == SFC_OK)
        code = drop_old_maps(store, map, err);
    return end_transaction(store, code, "write map", err);
}

/* ---- commits */

#define COMMIT_COLUMNS                                                                             \
    "run_id, step, clip_scale, applied, loss, lr, images_per_s, classes, map_version, position,"   \
    " norm, round_incarnation, round_counter, zero_features, skipped_in_row, skipped_total,"       \
    " time_us"

static void read_commit(sqlite3_stmt *s, struct sfc_store_commit *out)
{
    *out = (struct sfc_store_commit){
        .run_id = column_u64(s, 0),
        .step = column_u64(s, 1),
        .clip_scale = sqlite3_column_double(s, 2),
        .applied = sqlite3_column_int(s, 3) != 0,
        .loss = column_bits(s, 4),
        .lr = sqlite3_column_double(s, 5),
        .images_per_s = sqlite3_column_double(s, 6),
        .classes = column_u64(s, 7),
        .map_version = column_u64(s, 8),
        .position = column_u64(s, 9),
        .norm = column_bits(s, 10),
        .round_incarnation = column_u64(s, 11),
        .round_counter = column_u64(s, 12),
        .zero_features = (uint32_t)sqlite3_column_int64(s, 13),
        .skipped_in_row = (uint32_t)sqlite3_column_int64(s, 14),
        .skipped_total = column_u64(s, 15),
        .time_us = column_u64(s, 16),
    };
}

/* SFC_OK: a record exists and says the same. SFC_ENOTFOUND: no record. */
static int compare_commit(struct sqlite_store *store, const struct sfc_store_commit *c,
                          struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(
        store, "SELECT clip_scale, applied, attempts FROM commits WHERE run_id = ? AND step = ?",
        &s, "write commit record", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, c->run_id);
    bind_u64(s, 2, c->step);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE) {
        code = SFC_ENOTFOUND;
    } else if (rc != SQLITE_ROW) {
        code = db_fail(store, err, "write commit record");
    } else {
        double clip = sqlite3_column_double(s, 0);
        const void *attempts = sqlite3_column_blob(s, 2);
        size_t size = (size_t)sqlite3_column_bytes(s, 2);
        bool same = memcmp(&clip, &c->clip_scale, sizeof clip) == 0 &&
                    (sqlite3_column_int(s, 1) != 0) == c->applied && size == c->attempts_size &&
                    (size == 0 || (attempts && memcmp(attempts, c->attempts, size) == 0));
        code = check_columns(store, "write commit record", err);
        if (code == SFC_OK && !same)
            code = sfc_fail(err, SFC_ECONFLICT,
                            "step %llu of run %llu is already committed with other inputs",
                            (unsigned long long)c->step, (unsigned long long)c->run_id);
    }
    sqlite3_finalize(s);
    return code;
}

static int put_commit(struct sqlite_store *store, const struct sfc_store_commit *c,
                      struct sfc_error *err)
{
    int code = compare_commit(store, c, err);
    if (code != SFC_ENOTFOUND)
        return code;
    sqlite3_stmt *s = NULL;
    code = db_prepare(store,
                      "INSERT INTO commits(" COMMIT_COLUMNS ", attempts)"
                      " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                      &s, "write commit record", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, c->run_id);
    bind_u64(s, 2, c->step);
    sqlite3_bind_double(s, 3, c->clip_scale);
    sqlite3_bind_int(s, 4, c->applied);
    bind_bits(s, 5, &c->loss);
    sqlite3_bind_double(s, 6, c->lr);
    sqlite3_bind_double(s, 7, c->images_per_s);
    bind_u64(s, 8, c->classes);
    bind_u64(s, 9, c->map_version);
    bind_u64(s, 10, c->position);
    bind_bits(s, 11, &c->norm);
    bind_u64(s, 12, c->round_incarnation);
    bind_u64(s, 13, c->round_counter);
    bind_u64(s, 14, c->zero_features);
    bind_u64(s, 15, c->skipped_in_row);
    bind_u64(s, 16, c->skipped_total);
    bind_u64(s, 17, c->time_us);
    sqlite3_bind_blob64(s, 18, c->attempts ? (const void *)c->attempts : "", c->attempts_size,
                        SQLITE_STATIC);
    return db_finish(store, s, "write commit record", err);
}

static int sqlite_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step,
                          size_t limit, struct sfc_store_commit *out, size_t *count,
                          struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "SELECT " COMMIT_COLUMNS " FROM commits WHERE run_id = ? AND step > ?"
                          " ORDER BY step LIMIT ?",
                          &s, "read history", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, after_step);
    bind_u64(s, 3, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        read_commit(s, &out[n++]);
        code = check_columns(store, "read history", err);
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = db_fail(store, err, "read history");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

static int sqlite_last_commit(struct sfc_store *base, uint64_t run_id, struct sfc_store_commit *out,
                              struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "SELECT " COMMIT_COLUMNS " FROM commits WHERE run_id = ?"
                          " ORDER BY step DESC LIMIT 1",
                          &s, "read last commit", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    struct sfc_store_commit commit;
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        read_commit(s, &commit);
        code = check_columns(store, "read last commit", err);
    } else {
        code = rc == SQLITE_DONE ? sfc_fail(err, SFC_ENOTFOUND, "nothing is committed yet")
                                 : db_fail(store, err, "read last commit");
    }
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *out = commit;
    return code;
}

static int delete_after(struct sqlite_store *store, const char *sql, uint64_t run_id, uint64_t step,
                        struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, sql, &s, "rewind the run", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, step);
    return db_finish(store, s, "rewind the run", err);
}

static int put_return(struct sqlite_store *store, uint64_t run_id, const struct sfc_return *r,
                      struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "INSERT INTO returns(run_id, step, last_incarnation, last_counter)"
                          " VALUES(?,?,?,?)",
                          &s, "note a return", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, r->step);
    bind_u64(s, 3, r->last.incarnation);
    bind_u64(s, 4, r->last.counter);
    return db_finish(store, s, "note a return", err);
}

/* In a transaction. */
static int put_lineage(struct sqlite_store *store, uint64_t run_id,
                       const struct sfc_lineage *lineage, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "DELETE FROM returns WHERE run_id = ?", &s, "note a return", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    code = db_finish(store, s, "note a return", err);
    for (size_t i = 0; i < lineage->count && code == SFC_OK; i++)
        code = put_return(store, run_id, &lineage->returns[i], err);
    return code;
}

static int sqlite_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                          struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    struct sfc_lineage x = {0};
    struct sfc_error why = {0};
    int rc = SQLITE_DONE;
    int code = db_prepare(store,
                          "SELECT step, last_incarnation, last_counter FROM returns"
                          " WHERE run_id = ? ORDER BY step",
                          &s, "read returns", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
        if (x.count < SFC_LINEAGE_MAX)
            x.returns[x.count] = (struct sfc_return){.step = column_u64(s, 0),
                                                     .last = {column_u64(s, 1), column_u64(s, 2)}};
        x.count++;
    }
    if (rc != SQLITE_DONE)
        code = db_fail(store, err, "read returns");
    sqlite3_finalize(s);
    if (code == SFC_OK && sfc_lineage_check(x.returns, x.count, &why) != SFC_OK)
        code = sfc_fail(err, SFC_ECORRUPT, "%s: table returns: %s; restore the file from a backup",
                        store->path, why.text);
    if (code == SFC_OK)
        *out = x;
    return code;
}

static int sqlite_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                              size_t count, const struct sfc_lineage *lineage,
                              struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = begin_transaction(store, "write commit records", err);
    for (size_t i = 0; i < count && code == SFC_OK; i++)
        code = put_commit(store, &commits[i], err);
    if (code == SFC_OK && lineage && count > 0)
        code = put_lineage(store, commits[0].run_id, lineage, err);
    return end_transaction(store, code, "write commit records", err);
}

static int sqlite_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                         const struct sfc_store_commit *commits, size_t count,
                         const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = begin_transaction(store, "rewind the run", err);
    if (code == SFC_OK)
        code = delete_after(store, "DELETE FROM commits WHERE run_id = ? AND step > ?", run_id,
                            step, err);
    if (code == SFC_OK)
        code = delete_after(store, "DELETE FROM drops WHERE run_id = ? AND step > ?", run_id, step,
                            err);
    if (code == SFC_OK)
        code = delete_after(store, "DELETE FROM lr_changes WHERE run_id = ? AND from_step > ?",
                            run_id, step, err);
    for (size_t i = 0; i < count && code == SFC_OK; i++)
        if (commits[i].step <= step)
            code = put_commit(store, &commits[i], err);
    if (code == SFC_OK && lineage)
        code = put_lineage(store, run_id, lineage, err);
    return end_transaction(store, code, "rewind the run", err);
}

/* ---- dropped micro-batches */

static int sqlite_put_drop(struct sfc_store *base, uint64_t run_id,
                           const struct sfc_store_drop *drop, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "INSERT OR IGNORE INTO drops(run_id, step, micro_batch)"
                          " VALUES(?,?,?)",
                          &s, "write drop", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, drop->step);
    bind_u64(s, 3, drop->micro_batch);
    return db_finish(store, s, "write drop", err);
}

static int sqlite_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                        struct sfc_store_drop *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "SELECT step, micro_batch FROM drops WHERE run_id = ? AND step > ?"
                          " ORDER BY step, micro_batch LIMIT ?",
                          &s, "read drops", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, after_step);
    bind_u64(s, 3, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW)
        out[n++] = (struct sfc_store_drop){column_u64(s, 0), (uint32_t)column_u64(s, 1)};
    if (n < limit && rc != SQLITE_DONE)
        code = db_fail(store, err, "read drops");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

/* ---- learning rate */

static int sqlite_put_lr(struct sfc_store *base, uint64_t run_id, const struct sfc_store_lr *change,
                         struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = begin_transaction(store, "set the learning rate", err);
    if (code == SFC_OK)
        code = delete_after(store, "DELETE FROM lr_changes WHERE run_id = ? AND from_step >= ?",
                            run_id, change->from_step, err);
    if (code == SFC_OK)
        code = insert_lr(store, run_id, change, err);
    return end_transaction(store, code, "set the learning rate", err);
}

static int sqlite_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
                             struct sfc_store_lr *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store,
                          "SELECT from_step, lr FROM lr_changes WHERE run_id = ?"
                          " ORDER BY from_step LIMIT ?",
                          &s, "read learning rates", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    bind_u64(s, 2, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW)
        out[n++] = (struct sfc_store_lr){column_u64(s, 0), sqlite3_column_double(s, 1)};
    if (n < limit && rc != SQLITE_DONE)
        code = db_fail(store, err, "read learning rates");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

/* ---- shards, goals and events */

static int sqlite_put_shard(struct sfc_store *base, uint64_t shard, const char *address,
                            struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "INSERT OR IGNORE INTO shards(shard, address) VALUES(?,?)", &s,
                          "register shard", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, shard);
    sqlite3_bind_text(s, 2, address, -1, SQLITE_STATIC);
    return db_finish(store, s, "register shard", err);
}

static int sqlite_drop_shard(struct sfc_store *base, uint64_t shard, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "DELETE FROM shards WHERE shard = ?", &s, "forget shard", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, shard);
    return db_finish(store, s, "forget shard", err);
}

static int sqlite_shards(struct sfc_store *base, struct sfc_store_shard *out, size_t limit,
                         size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "SELECT shard, address FROM shards ORDER BY shard", &s,
                          "read shards", err);
    if (code != SFC_OK)
        return code;
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        out[n].shard = column_u64(s, 0);
        column_text(s, 1, out[n].address, sizeof out[n].address);
        code = check_columns(store, "read shards", err);
        n++;
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = db_fail(store, err, "read shards");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

static int sqlite_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal,
                           size_t size, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "INSERT OR REPLACE INTO goals(run_id, goal) VALUES(?,?)", &s,
                          "write goal", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    sqlite3_bind_blob64(s, 2, size ? (const void *)goal : "", size, SQLITE_STATIC);
    return db_finish(store, s, "write goal", err);
}

static int sqlite_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                       struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    uint8_t *goal = NULL;
    size_t n = 0;
    int code = db_prepare(store, "SELECT goal FROM goals WHERE run_id = ?", &s, "read goal", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, run_id);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW && sqlite3_column_bytes(s, 0) > 0)
        code = column_copy(s, 0, &goal, &n, err);
    else if (rc == SQLITE_ROW)
        code = check_columns(store, "read goal", err);
    else if (rc != SQLITE_DONE)
        code = db_fail(store, err, "read goal");
    sqlite3_finalize(s);
    if (code == SFC_OK) {
        *out = goal;
        *size = n;
    }
    return code;
}

static int sqlite_events(struct sfc_store *base, uint64_t after, bool newest, size_t limit,
                         struct sfc_store_event *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code =
        db_prepare(store,
                   newest ? "SELECT * FROM (SELECT id, time_ms, run_id, who, text FROM events"
                            " WHERE id > ? ORDER BY id DESC LIMIT ?) ORDER BY id"
                          : "SELECT id, time_ms, run_id, who, text FROM events"
                            " WHERE id > ? ORDER BY id LIMIT ?",
                   &s, "read events", err);
    if (code != SFC_OK)
        return code;
    bind_u64(s, 1, after);
    bind_u64(s, 2, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        out[n] = (struct sfc_store_event){.id = column_u64(s, 0),
                                          .time_ms = sqlite3_column_int64(s, 1),
                                          .run_id = column_u64(s, 2)};
        column_text(s, 3, out[n].who, sizeof out[n].who);
        column_text(s, 4, out[n].text, sizeof out[n].text);
        code = check_columns(store, "read events", err);
        n++;
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = db_fail(store, err, "read events");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

static int sqlite_put_event(struct sfc_store *base, const struct sfc_store_event *event,
                            struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = db_prepare(store, "INSERT INTO events(time_ms, run_id, text, who) VALUES(?,?,?,?)",
                          &s, "log event", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_int64(s, 1, event->time_ms);
    bind_u64(s, 2, event->run_id);
    sqlite3_bind_text(s, 3, event->text, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 4, event->who, -1, SQLITE_STATIC);
    if ((code = db_finish(store, s, "log event", err)) != SFC_OK)
        return code;
    int64_t last = sqlite3_last_insert_rowid(store->db);
    if (last % 100 != 0)
        return SFC_OK;
    if ((code = db_prepare(store, "DELETE FROM events WHERE id <= ?", &s, "trim events", err)) !=
        SFC_OK)
        return code;
    sqlite3_bind_int64(s, 1, last - EVENTS_KEPT);
    return db_finish(store, s, "trim events", err);
}

/* ---- the table */

static const struct sfc_store_ops sqlite_ops = {
    .close = sqlite_close,
    .next_incarnation = sqlite_next_incarnation,
    .add_run = sqlite_add_run,
    .set_run_state = sqlite_set_run_state,
    .set_run_numerics = sqlite_set_run_numerics,
    .last_run = sqlite_last_run,
    .put_map = sqlite_put_map,
    .put_commits = sqlite_put_commits,
    .last_commit = sqlite_last_commit,
    .rewind = sqlite_rewind,
    .lineage = sqlite_lineage,
    .history = sqlite_history,
    .put_drop = sqlite_put_drop,
    .drops = sqlite_drops,
    .put_lr = sqlite_put_lr,
    .lr_changes = sqlite_lr_changes,
    .put_shard = sqlite_put_shard,
    .drop_shard = sqlite_drop_shard,
    .shards = sqlite_shards,
    .put_goal = sqlite_put_goal,
    .goal = sqlite_goal,
    .put_event = sqlite_put_event,
    .events = sqlite_events,
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
        code = sfc_fail_errno(err, "make folder %s", where);
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
        code = store->db ? db_fail(store, err, "open state")
                         : sfc_fail(err, SFC_ENOMEM, "open %s", store->path);
        goto fail;
    }
    sqlite3_extended_result_codes(store->db, 0);
    if ((code = check_durable(store, err)) != SFC_OK ||
        (code = check_schema(store, err)) != SFC_OK || (code = check_pages(store, err)) != SFC_OK ||
        (code = sync_names(where, err)) != SFC_OK)
        goto fail;
    *out = &store->base;
    return SFC_OK;
fail:
    sqlite_close(&store->base);
    return code;
}
