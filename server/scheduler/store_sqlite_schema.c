/* Tables, how older ones become them, and whether a file is ours and whole: application_id tells
 * our files from others, user_version is the schema's version. */
#include <string.h>

#include "server/scheduler/store_sqlite.h"

enum { APPLICATION_ID = 0x53464353, SCHEMA_VERSION = 11 };

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
    " paused INTEGER NOT NULL DEFAULT 0,"
    " mirrors INTEGER NOT NULL DEFAULT 0, grace_s INTEGER NOT NULL DEFAULT 0);"
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
    "PRAGMA user_version=11;"
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

/* In version 10 no shard kept what another one's blocks could be restored from. */
static const char UPGRADE_10[] = "BEGIN IMMEDIATE;"
                                 "ALTER TABLE runs ADD COLUMN mirrors INTEGER NOT NULL DEFAULT 0;"
                                 "ALTER TABLE runs ADD COLUMN grace_s INTEGER NOT NULL DEFAULT 0;"
                                 "PRAGMA user_version=11;"
                                 "COMMIT;";

int sfc_db_check_schema(struct sqlite_store *store, struct sfc_error *err)
{
    int64_t application = 0, version = 0, tables = 0;
    int code = sfc_db_integer(store, "PRAGMA application_id", &application, "open state", err);
    if (code == SFC_OK)
        code = sfc_db_integer(store, "PRAGMA user_version", &version, "open state", err);
    if (code == SFC_OK)
        code =
            sfc_db_integer(store, "SELECT count(*) FROM sqlite_master", &tables, "open state", err);
    if (code != SFC_OK)
        return code;
    if (application == 0 && version == 0 && tables == 0)
        return sfc_db_exec(store, SCHEMA, "create state", err);
    if (application != APPLICATION_ID)
        return sfc_fail(
            err, SFC_ECORRUPT,
            "%s is an SQLite database of another program; give --state a folder of its own",
            store->path);
    static const char *const upgrades[] = {UPGRADE_4, UPGRADE_5, UPGRADE_6, UPGRADE_7,
                                           UPGRADE_8, UPGRADE_9, UPGRADE_10};
    while (code == SFC_OK && version >= 4 && version < SCHEMA_VERSION) {
        code = sfc_db_transaction(store, upgrades[version - 4], "upgrade state", err);
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
    int code = sfc_db_prepare(store, "PRAGMA quick_check(1)", &s, "check state", err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW)
        sfc_db_column_text(s, 0, out, size);
    else
        code = sfc_db_fail(store, err, "check state");
    if (code == SFC_OK)
        code = sfc_db_check_columns(store, "check state", err);
    sqlite3_finalize(s);
    return code;
}

/* The check reports a page that it could not read like one that is damaged; what can be read a
 * moment later is neither. */
int sfc_db_check_pages(struct sqlite_store *store, struct sfc_error *err)
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
