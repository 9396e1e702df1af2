/* Shards that are known, and events. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_sqlite.h"

enum { EVENTS_KEPT = 10000 };

int sfc_sqlite_put_shard(struct sfc_store *base, uint64_t shard, const char *address,
                         struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "INSERT OR IGNORE INTO shards(shard, address) VALUES(?,?)", &s,
                              "register shard", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, shard);
    sqlite3_bind_text(s, 2, address, -1, SQLITE_STATIC);
    return sfc_db_finish(store, s, "register shard", err);
}

int sfc_sqlite_drop_shard(struct sfc_store *base, uint64_t shard, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "DELETE FROM shards WHERE shard = ?", &s, "forget shard", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, shard);
    return sfc_db_finish(store, s, "forget shard", err);
}

int sfc_sqlite_shards(struct sfc_store *base, struct sfc_store_shard *out, size_t limit,
                      size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "SELECT shard, address FROM shards ORDER BY shard", &s,
                              "read shards", err);
    if (code != SFC_OK)
        return code;
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        out[n].shard = sfc_db_column_u64(s, 0);
        sfc_db_column_text(s, 1, out[n].address, sizeof out[n].address);
        code = sfc_db_check_columns(store, "read shards", err);
        n++;
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read shards");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

int sfc_sqlite_events(struct sfc_store *base, uint64_t after, bool newest, size_t limit,
                      struct sfc_store_event *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code =
        sfc_db_prepare(store,
                       newest ? "SELECT * FROM (SELECT id, time_ms, run_id, who, text FROM events"
                                " WHERE id > ? ORDER BY id DESC LIMIT ?) ORDER BY id"
                              : "SELECT id, time_ms, run_id, who, text FROM events"
                                " WHERE id > ? ORDER BY id LIMIT ?",
                       &s, "read events", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, after);
    sfc_db_bind_u64(s, 2, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        out[n] = (struct sfc_store_event){.id = sfc_db_column_u64(s, 0),
                                          .time_ms = sqlite3_column_int64(s, 1),
                                          .run_id = sfc_db_column_u64(s, 2)};
        sfc_db_column_text(s, 3, out[n].who, sizeof out[n].who);
        sfc_db_column_text(s, 4, out[n].text, sizeof out[n].text);
        code = sfc_db_check_columns(store, "read events", err);
        n++;
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read events");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

int sfc_sqlite_put_event(struct sfc_store *base, const struct sfc_store_event *event,
                         struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code =
        sfc_db_prepare(store, "INSERT INTO events(time_ms, run_id, text, who) VALUES(?,?,?,?)", &s,
                       "log event", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_int64(s, 1, event->time_ms);
    sfc_db_bind_u64(s, 2, event->run_id);
    sqlite3_bind_text(s, 3, event->text, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 4, event->who, -1, SQLITE_STATIC);
    if ((code = sfc_db_finish(store, s, "log event", err)) != SFC_OK)
        return code;
    int64_t last = sqlite3_last_insert_rowid(store->db);
    if (last % 100 != 0)
        return SFC_OK;
    if ((code = sfc_db_prepare(store, "DELETE FROM events WHERE id <= ?", &s, "trim events",
                               err)) != SFC_OK)
        return code;
    sqlite3_bind_int64(s, 1, last - EVENTS_KEPT);
    return sfc_db_finish(store, s, "trim events", err);
}
