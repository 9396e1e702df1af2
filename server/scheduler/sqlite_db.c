#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_sqlite.h"

int sfc_db_fail(const struct sqlite_store *store, struct sfc_error *err, const char *what)
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

int sfc_db_exec(const struct sqlite_store *store, const char *sql, const char *what,
                struct sfc_error *err)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) == SQLITE_OK)
        return SFC_OK;
    return sfc_db_fail(store, err, what);
}

int sfc_db_leave_transaction(const struct sqlite_store *store, const char *what,
                             struct sfc_error *err)
{
    bool open = !store->inside && !sqlite3_get_autocommit(store->db);
    return open ? sfc_db_exec(store, "ROLLBACK", what, err) : SFC_OK;
}

int sfc_db_transaction(const struct sqlite_store *store, const char *sql, const char *what,
                       struct sfc_error *err)
{
    int code = sfc_db_leave_transaction(store, what, err);
    if (code != SFC_OK || (code = sfc_db_exec(store, sql, what, err)) == SFC_OK)
        return code;
    (void)sfc_db_leave_transaction(store, what, NULL); /* or before the next call */
    return code;
}

int sfc_db_prepare(const struct sqlite_store *store, const char *sql, sqlite3_stmt **out,
                   const char *what, struct sfc_error *err)
{
    int code = sfc_db_leave_transaction(store, what, err);
    if (code == SFC_OK && sqlite3_prepare_v2(store->db, sql, -1, out, NULL) != SQLITE_OK)
        code = sfc_db_fail(store, err, what);
    return code;
}

int sfc_db_finish(const struct sqlite_store *store, sqlite3_stmt *s, const char *what,
                  struct sfc_error *err)
{
    int rc = sqlite3_step(s);
    int code = rc == SQLITE_DONE ? SFC_OK : sfc_db_fail(store, err, what);
    sqlite3_finalize(s);
    return code;
}

int sfc_db_integer(const struct sqlite_store *store, const char *sql, int64_t *out,
                   const char *what, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int64_t value = 0;
    int code = sfc_db_prepare(store, sql, &s, what, err);
    if (code != SFC_OK)
        return code;
    if (sqlite3_step(s) == SQLITE_ROW) {
        value = sqlite3_column_int64(s, 0);
        code = sfc_db_finish(store, s, what, err);
    } else {
        code = sfc_db_fail(store, err, what);
        sqlite3_finalize(s);
    }
    if (code == SFC_OK)
        *out = value;
    return code;
}

int sfc_db_begin_transaction(struct sqlite_store *store, const char *what, struct sfc_error *err)
{
    int code = sfc_db_leave_transaction(store, what, err);
    if (code == SFC_OK)
        code = sfc_db_exec(store, "BEGIN IMMEDIATE", what, err);
    store->inside = code == SFC_OK;
    return code;
}

int sfc_db_end_transaction(struct sqlite_store *store, int code, const char *what,
                           struct sfc_error *err)
{
    if (code == SFC_OK)
        code = sfc_db_exec(store, "COMMIT", what, err);
    store->inside = false;
    if (code != SFC_OK)
        (void)sfc_db_leave_transaction(store, what, NULL); /* or before the next call */
    return code;
}

void sfc_db_bind_u64(sqlite3_stmt *s, int column, uint64_t v)
{
    sqlite3_bind_int64(s, column, (int64_t)v);
}

uint64_t sfc_db_column_u64(sqlite3_stmt *s, int column)
{
    return (uint64_t)sqlite3_column_int64(s, column);
}

void sfc_db_bind_bits(sqlite3_stmt *s, int column, const double *v)
{
    sqlite3_bind_blob(s, column, v, (int)sizeof *v, SQLITE_STATIC);
}

double sfc_db_column_bits(sqlite3_stmt *s, int column)
{
    double v = 0;
    const void *bytes = sqlite3_column_blob(s, column);
    if (bytes && sqlite3_column_bytes(s, column) == (int)sizeof v)
        memcpy(&v, bytes, sizeof v);
    return v;
}

int sfc_db_check_columns(const struct sqlite_store *store, const char *what, struct sfc_error *err)
{
    return (sqlite3_errcode(store->db) & 0xff) == SQLITE_NOMEM ? sfc_db_fail(store, err, what)
                                                               : SFC_OK;
}

void sfc_db_column_text(sqlite3_stmt *s, int column, char *out, size_t size)
{
    const char *text = (const char *)sqlite3_column_text(s, column);
    snprintf(out, size, "%s", text ? text : "");
}

int sfc_db_column_copy(sqlite3_stmt *s, int column, uint8_t **out, size_t *size,
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

int sfc_db_delete_after(struct sqlite_store *store, const char *sql, uint64_t run_id, uint64_t step,
                        struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store, sql, &s, "rewind the run", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, step);
    return sfc_db_finish(store, s, "rewind the run", err);
}
