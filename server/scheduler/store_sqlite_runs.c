/* Runs: their maps, learning rates and goals. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_sqlite.h"

enum { MAPS_KEPT = 64 };

int sfc_sqlite_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int64_t value = 0;
    int code = sfc_db_integer(
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
    int code = sfc_db_prepare(store, "INSERT INTO lr_changes(run_id, from_step, lr) VALUES(?,?,?)",
                              &s, "set the learning rate", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, change->from_step);
    sqlite3_bind_double(s, 3, change->lr);
    return sfc_db_finish(store, s, "set the learning rate", err);
}

static int insert_run(struct sqlite_store *store, const struct sfc_store_run *run, uint64_t *run_id,
                      struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code =
        sfc_db_prepare(store,
                       "INSERT INTO runs(start_step, load, map_version, state, reason, config, map,"
                       " rewind_window, durable_every, nonce, elastic, mirrors, grace_s)"
                       " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)",
                       &s, "add run", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run->start_step);
    sqlite3_bind_int(s, 2, run->load);
    sfc_db_bind_u64(s, 3, run->map_version);
    sqlite3_bind_text(s, 4, run->state, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 5, run->reason, -1, SQLITE_STATIC);
    sqlite3_bind_blob64(s, 6, run->config ? (const void *)run->config : "", run->config_size,
                        SQLITE_STATIC);
    sqlite3_bind_blob64(s, 7, run->map ? (const void *)run->map : "", run->map_size, SQLITE_STATIC);
    sfc_db_bind_u64(s, 8, run->rewind_window);
    sfc_db_bind_u64(s, 9, run->durable_every ? run->durable_every : 1);
    sfc_db_bind_u64(s, 10, run->nonce);
    sqlite3_bind_int(s, 11, run->elastic);
    sfc_db_bind_u64(s, 12, run->mirrors);
    sfc_db_bind_u64(s, 13, run->grace_s);
    code = sfc_db_finish(store, s, "add run", err);
    if (code == SFC_OK)
        *run_id = (uint64_t)sqlite3_last_insert_rowid(store->db);
    return code;
}

int sfc_sqlite_add_run(struct sfc_store *base, const struct sfc_store_run *run, uint64_t *run_id,
                       struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    uint64_t id = 0;
    int code = sfc_db_begin_transaction(store, "add run", err);
    if (code == SFC_OK)
        code = insert_run(store, run, &id, err);
    for (size_t i = 0; i < run->lr_change_count && code == SFC_OK; i++)
        code = insert_lr(store, id, &run->lr_changes[i], err);
    code = sfc_db_end_transaction(store, code, "add run", err);
    if (code == SFC_OK)
        *run_id = id;
    return code;
}

int sfc_sqlite_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                             bool paused, const char *reason, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code =
        sfc_db_prepare(store, "UPDATE runs SET state = ?, reason = ?, paused = ? WHERE run_id = ?",
                       &s, "set run state", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_text(s, 1, state, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, reason, -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 3, paused);
    sfc_db_bind_u64(s, 4, run_id);
    code = sfc_db_finish(store, s, "set run state", err);
    if (code == SFC_OK && sqlite3_changes(store->db) == 0)
        code = sfc_fail(err, SFC_ENOTFOUND, "no run %llu", (unsigned long long)run_id);
    return code;
}

int sfc_sqlite_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "UPDATE runs SET numerics = ? WHERE run_id = ?", &s,
                              "set the run's numerics", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_text(s, 1, numerics, -1, SQLITE_STATIC);
    sfc_db_bind_u64(s, 2, run_id);
    return sfc_db_finish(store, s, "set the run's numerics", err);
}

int sfc_sqlite_last_run(struct sfc_store *base, struct sfc_store_run *out, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(
        store,
        "SELECT r.run_id, start_step, load, coalesce(m.version, map_version), state, reason,"
        " config, coalesce(m.map, r.map), numerics, rewind_window, durable_every, nonce,"
        " coalesce(m.step, 0), coalesce(m.made_by, 0), elastic, paused, mirrors, grace_s"
        " FROM runs r LEFT JOIN maps m ON m.run_id = r.run_id"
        " ORDER BY r.run_id DESC, m.version DESC LIMIT 1",
        &s, "read run", err);
    if (code != SFC_OK)
        return code;
    struct sfc_store_run run = {0};
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        run.run_id = sfc_db_column_u64(s, 0);
        run.start_step = sfc_db_column_u64(s, 1);
        run.load = sqlite3_column_int(s, 2) != 0;
        run.map_version = sfc_db_column_u64(s, 3);
        sfc_db_column_text(s, 4, run.state, sizeof run.state);
        sfc_db_column_text(s, 5, run.reason, sizeof run.reason);
        sfc_db_column_text(s, 8, run.numerics, sizeof run.numerics);
        run.rewind_window = sfc_db_column_u64(s, 9);
        run.durable_every = (uint32_t)sfc_db_column_u64(s, 10);
        run.nonce = sfc_db_column_u64(s, 11);
        run.map_step = sfc_db_column_u64(s, 12);
        run.map_order = sfc_db_column_u64(s, 13);
        run.elastic = sqlite3_column_int(s, 14) != 0;
        run.paused = sqlite3_column_int(s, 15) != 0;
        run.mirrors = (uint32_t)sfc_db_column_u64(s, 16);
        run.grace_s = (uint32_t)sfc_db_column_u64(s, 17);
        code = sfc_db_column_copy(s, 6, &run.config, &run.config_size, err);
        if (code == SFC_OK)
            code = sfc_db_column_copy(s, 7, &run.map, &run.map_size, err);
        if (code == SFC_OK)
            code = sfc_db_check_columns(store, "read run", err);
    } else {
        code = rc == SQLITE_DONE ? sfc_fail(err, SFC_ENOTFOUND, "there is no run")
                                 : sfc_db_fail(store, err, "read run");
    }
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *out = run;
    else
        sfc_store_run_close(&run);
    return code;
}

int sfc_sqlite_run_before(struct sfc_store *base, uint64_t run_id, struct sfc_store_run *out,
                          struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    struct sfc_store_run run = {0};
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "SELECT run_id, start_step, state, reason, paused, config FROM runs"
                              " WHERE run_id < ? ORDER BY run_id DESC LIMIT 1",
                              &s, "read older run", err);
    if (code != SFC_OK)
        return code;
    sqlite3_bind_int64(s, 1, run_id < INT64_MAX ? (sqlite3_int64)run_id : INT64_MAX);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        run.run_id = sfc_db_column_u64(s, 0);
        run.start_step = sfc_db_column_u64(s, 1);
        sfc_db_column_text(s, 2, run.state, sizeof run.state);
        sfc_db_column_text(s, 3, run.reason, sizeof run.reason);
        run.paused = sqlite3_column_int(s, 4) != 0;
        code = sfc_db_column_copy(s, 5, &run.config, &run.config_size, err);
        if (code == SFC_OK)
            code = sfc_db_check_columns(store, "read older run", err);
    } else {
        code = rc == SQLITE_DONE ? sfc_fail(err, SFC_ENOTFOUND, "there is no older run")
                                 : sfc_db_fail(store, err, "read older run");
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
    int code = sfc_db_prepare(store, "SELECT map, step FROM maps WHERE run_id = ? AND version = ?",
                              &s, "write map", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, map->run_id);
    sfc_db_bind_u64(s, 2, map->version);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE) {
        code = SFC_ENOTFOUND;
    } else if (rc != SQLITE_ROW) {
        code = sfc_db_fail(store, err, "write map");
    } else {
        const void *bytes = sqlite3_column_blob(s, 0);
        size_t size = (size_t)sqlite3_column_bytes(s, 0);
        bool same = size == map->size && sfc_db_column_u64(s, 1) == map->step &&
                    (size == 0 || (bytes && memcmp(bytes, map->bytes, size) == 0));
        code = sfc_db_check_columns(store, "write map", err);
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
    int code = sfc_db_prepare(
        store, "INSERT INTO maps(run_id, version, step, made_by, map) VALUES(?,?,?,?,?)", &s,
        "write map", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, map->run_id);
    sfc_db_bind_u64(s, 2, map->version);
    sfc_db_bind_u64(s, 3, map->step);
    sfc_db_bind_u64(s, 4, map->order);
    sqlite3_bind_blob64(s, 5, map->bytes, map->size, SQLITE_STATIC);
    return sfc_db_finish(store, s, "write map", err);
}

static int drop_old_maps(struct sqlite_store *store, const struct sfc_store_map *map,
                         struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "DELETE FROM maps WHERE run_id = ? AND version + ? <= ?", &s,
                              "drop old maps", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, map->run_id);
    sqlite3_bind_int(s, 2, MAPS_KEPT);
    sfc_db_bind_u64(s, 3, map->version);
    return sfc_db_finish(store, s, "drop old maps", err);
}

int sfc_sqlite_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                       struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = sfc_db_begin_transaction(store, "write map", err);
    if (code == SFC_OK)
        code = compare_map(store, map, err);
    if (code == SFC_ENOTFOUND)
        code = insert_map(store, map, err);
    if (code == SFC_OK)
        code = drop_old_maps(store, map, err);
    return sfc_db_end_transaction(store, code, "write map", err);
}

/* ---- learning rate */

int sfc_sqlite_put_lr(struct sfc_store *base, uint64_t run_id, const struct sfc_store_lr *change,
                      struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = sfc_db_begin_transaction(store, "set the learning rate", err);
    if (code == SFC_OK)
        code =
            sfc_db_delete_after(store, "DELETE FROM lr_changes WHERE run_id = ? AND from_step >= ?",
                                run_id, change->from_step, err);
    if (code == SFC_OK)
        code = insert_lr(store, run_id, change, err);
    return sfc_db_end_transaction(store, code, "set the learning rate", err);
}

int sfc_sqlite_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
                          struct sfc_store_lr *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "SELECT from_step, lr FROM lr_changes WHERE run_id = ?"
                              " ORDER BY from_step LIMIT ?",
                              &s, "read learning rates", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW)
        out[n++] = (struct sfc_store_lr){sfc_db_column_u64(s, 0), sqlite3_column_double(s, 1)};
    if (n < limit && rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read learning rates");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

/* ---- goals */

int sfc_sqlite_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal, size_t size,
                        struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, "INSERT OR REPLACE INTO goals(run_id, goal) VALUES(?,?)", &s,
                              "write goal", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sqlite3_bind_blob64(s, 2, size ? (const void *)goal : "", size, SQLITE_STATIC);
    return sfc_db_finish(store, s, "write goal", err);
}

int sfc_sqlite_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                    struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    uint8_t *goal = NULL;
    size_t n = 0;
    int code =
        sfc_db_prepare(store, "SELECT goal FROM goals WHERE run_id = ?", &s, "read goal", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW && sqlite3_column_bytes(s, 0) > 0)
        code = sfc_db_column_copy(s, 0, &goal, &n, err);
    else if (rc == SQLITE_ROW)
        code = sfc_db_check_columns(store, "read goal", err);
    else if (rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read goal");
    sqlite3_finalize(s);
    if (code == SFC_OK) {
        *out = goal;
        *size = n;
    }
    return code;
}
