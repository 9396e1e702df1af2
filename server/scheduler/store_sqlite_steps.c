/* Commit records of steps, where a run went back, and micro-batches that people dropped. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_sqlite.h"

#define COMMIT_COLUMNS                                                                             \
    "run_id, step, clip_scale, applied, loss, lr, images_per_s, classes, map_version, position,"   \
    " norm, round_incarnation, round_counter, zero_features, skipped_in_row, skipped_total,"       \
    " time_us"

static void read_commit(sqlite3_stmt *s, struct sfc_store_commit *out)
{
    *out = (struct sfc_store_commit){
        .run_id = sfc_db_column_u64(s, 0),
        .step = sfc_db_column_u64(s, 1),
        .clip_scale = sqlite3_column_double(s, 2),
        .applied = sqlite3_column_int(s, 3) != 0,
        .loss = sfc_db_column_bits(s, 4),
        .lr = sqlite3_column_double(s, 5),
        .images_per_s = sqlite3_column_double(s, 6),
        .classes = sfc_db_column_u64(s, 7),
        .map_version = sfc_db_column_u64(s, 8),
        .position = sfc_db_column_u64(s, 9),
        .norm = sfc_db_column_bits(s, 10),
        .round_incarnation = sfc_db_column_u64(s, 11),
        .round_counter = sfc_db_column_u64(s, 12),
        .zero_features = (uint32_t)sqlite3_column_int64(s, 13),
        .skipped_in_row = (uint32_t)sqlite3_column_int64(s, 14),
        .skipped_total = sfc_db_column_u64(s, 15),
        .time_us = sfc_db_column_u64(s, 16),
    };
}

/* SFC_OK: a record exists and says the same. SFC_ENOTFOUND: no record. */
static int compare_commit(struct sqlite_store *store, const struct sfc_store_commit *c,
                          struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(
        store, "SELECT clip_scale, applied, attempts FROM commits WHERE run_id = ? AND step = ?",
        &s, "write commit record", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, c->run_id);
    sfc_db_bind_u64(s, 2, c->step);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE) {
        code = SFC_ENOTFOUND;
    } else if (rc != SQLITE_ROW) {
        code = sfc_db_fail(store, err, "write commit record");
    } else {
        double clip = sqlite3_column_double(s, 0);
        const void *attempts = sqlite3_column_blob(s, 2);
        size_t size = (size_t)sqlite3_column_bytes(s, 2);
        bool same = memcmp(&clip, &c->clip_scale, sizeof clip) == 0 &&
                    (sqlite3_column_int(s, 1) != 0) == c->applied && size == c->attempts_size &&
                    (size == 0 || (attempts && memcmp(attempts, c->attempts, size) == 0));
        code = sfc_db_check_columns(store, "write commit record", err);
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
    code = sfc_db_prepare(store,
                          "INSERT INTO commits(" COMMIT_COLUMNS ", attempts)"
                          " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                          &s, "write commit record", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, c->run_id);
    sfc_db_bind_u64(s, 2, c->step);
    sqlite3_bind_double(s, 3, c->clip_scale);
    sqlite3_bind_int(s, 4, c->applied);
    sfc_db_bind_bits(s, 5, &c->loss);
    sqlite3_bind_double(s, 6, c->lr);
    sqlite3_bind_double(s, 7, c->images_per_s);
    sfc_db_bind_u64(s, 8, c->classes);
    sfc_db_bind_u64(s, 9, c->map_version);
    sfc_db_bind_u64(s, 10, c->position);
    sfc_db_bind_bits(s, 11, &c->norm);
    sfc_db_bind_u64(s, 12, c->round_incarnation);
    sfc_db_bind_u64(s, 13, c->round_counter);
    sfc_db_bind_u64(s, 14, c->zero_features);
    sfc_db_bind_u64(s, 15, c->skipped_in_row);
    sfc_db_bind_u64(s, 16, c->skipped_total);
    sfc_db_bind_u64(s, 17, c->time_us);
    sqlite3_bind_blob64(s, 18, c->attempts ? (const void *)c->attempts : "", c->attempts_size,
                        SQLITE_STATIC);
    return sfc_db_finish(store, s, "write commit record", err);
}

int sfc_sqlite_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                       struct sfc_store_commit *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "SELECT " COMMIT_COLUMNS " FROM commits WHERE run_id = ? AND step > ?"
                              " ORDER BY step LIMIT ?",
                              &s, "read history", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, after_step);
    sfc_db_bind_u64(s, 3, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (code == SFC_OK && n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        read_commit(s, &out[n++]);
        code = sfc_db_check_columns(store, "read history", err);
    }
    if (code == SFC_OK && n < limit && rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read history");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}

int sfc_sqlite_last_commit(struct sfc_store *base, uint64_t run_id, struct sfc_store_commit *out,
                           struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "SELECT " COMMIT_COLUMNS " FROM commits WHERE run_id = ?"
                              " ORDER BY step DESC LIMIT 1",
                              &s, "read last commit", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    struct sfc_store_commit commit;
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        read_commit(s, &commit);
        code = sfc_db_check_columns(store, "read last commit", err);
    } else {
        code = rc == SQLITE_DONE ? sfc_fail(err, SFC_ENOTFOUND, "nothing is committed yet")
                                 : sfc_db_fail(store, err, "read last commit");
    }
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *out = commit;
    return code;
}

static int put_return(struct sqlite_store *store, uint64_t run_id, const struct sfc_return *r,
                      struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "INSERT INTO returns(run_id, step, last_incarnation, last_counter)"
                              " VALUES(?,?,?,?)",
                              &s, "note a return", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, r->step);
    sfc_db_bind_u64(s, 3, r->last.incarnation);
    sfc_db_bind_u64(s, 4, r->last.counter);
    return sfc_db_finish(store, s, "note a return", err);
}

/* In a transaction. */
static int put_lineage(struct sqlite_store *store, uint64_t run_id,
                       const struct sfc_lineage *lineage, struct sfc_error *err)
{
    sqlite3_stmt *s = NULL;
    int code =
        sfc_db_prepare(store, "DELETE FROM returns WHERE run_id = ?", &s, "note a return", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    code = sfc_db_finish(store, s, "note a return", err);
    for (size_t i = 0; i < lineage->count && code == SFC_OK; i++)
        code = put_return(store, run_id, &lineage->returns[i], err);
    return code;
}

int sfc_sqlite_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                       struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    struct sfc_lineage x = {0};
    struct sfc_error why = {0};
    int rc = SQLITE_DONE;
    int code = sfc_db_prepare(store,
                              "SELECT step, last_incarnation, last_counter FROM returns"
                              " WHERE run_id = ? ORDER BY step",
                              &s, "read returns", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
        if (x.count < SFC_LINEAGE_MAX)
            x.returns[x.count] =
                (struct sfc_return){.step = sfc_db_column_u64(s, 0),
                                    .last = {sfc_db_column_u64(s, 1), sfc_db_column_u64(s, 2)}};
        x.count++;
    }
    if (rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read returns");
    sqlite3_finalize(s);
    if (code == SFC_OK && sfc_lineage_check(x.returns, x.count, &why) != SFC_OK)
        code = sfc_fail(err, SFC_ECORRUPT, "%s: table returns: %s; restore the file from a backup",
                        store->path, why.text);
    if (code == SFC_OK)
        *out = x;
    return code;
}

int sfc_sqlite_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                           size_t count, const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = sfc_db_begin_transaction(store, "write commit records", err);
    for (size_t i = 0; i < count && code == SFC_OK; i++)
        code = put_commit(store, &commits[i], err);
    if (code == SFC_OK && lineage && count > 0)
        code = put_lineage(store, commits[0].run_id, lineage, err);
    return sfc_db_end_transaction(store, code, "write commit records", err);
}

int sfc_sqlite_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                      const struct sfc_store_commit *commits, size_t count,
                      const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    int code = sfc_db_begin_transaction(store, "rewind the run", err);
    if (code == SFC_OK)
        code = sfc_db_delete_after(store, "DELETE FROM commits WHERE run_id = ? AND step > ?",
                                   run_id, step, err);
    if (code == SFC_OK)
        code = sfc_db_delete_after(store, "DELETE FROM drops WHERE run_id = ? AND step > ?", run_id,
                                   step, err);
    if (code == SFC_OK)
        code = sfc_db_delete_after(
            store, "DELETE FROM lr_changes WHERE run_id = ? AND from_step > ?", run_id, step, err);
    for (size_t i = 0; i < count && code == SFC_OK; i++)
        if (commits[i].step <= step)
            code = put_commit(store, &commits[i], err);
    if (code == SFC_OK && lineage)
        code = put_lineage(store, run_id, lineage, err);
    return sfc_db_end_transaction(store, code, "rewind the run", err);
}

/* ---- dropped micro-batches */

int sfc_sqlite_put_drop(struct sfc_store *base, uint64_t run_id, const struct sfc_store_drop *drop,
                        struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "INSERT OR IGNORE INTO drops(run_id, step, micro_batch)"
                              " VALUES(?,?,?)",
                              &s, "write drop", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, drop->step);
    sfc_db_bind_u64(s, 3, drop->micro_batch);
    return sfc_db_finish(store, s, "write drop", err);
}

int sfc_sqlite_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                     struct sfc_store_drop *out, size_t *count, struct sfc_error *err)
{
    struct sqlite_store *store = sqlite_of(base);
    sqlite3_stmt *s = NULL;
    int code = sfc_db_prepare(store,
                              "SELECT step, micro_batch FROM drops WHERE run_id = ? AND step > ?"
                              " ORDER BY step, micro_batch LIMIT ?",
                              &s, "read drops", err);
    if (code != SFC_OK)
        return code;
    sfc_db_bind_u64(s, 1, run_id);
    sfc_db_bind_u64(s, 2, after_step);
    sfc_db_bind_u64(s, 3, limit);
    size_t n = 0;
    int rc = SQLITE_DONE;
    while (n < limit && (rc = sqlite3_step(s)) == SQLITE_ROW)
        out[n++] =
            (struct sfc_store_drop){sfc_db_column_u64(s, 0), (uint32_t)sfc_db_column_u64(s, 1)};
    if (n < limit && rc != SQLITE_DONE)
        code = sfc_db_fail(store, err, "read drops");
    sqlite3_finalize(s);
    if (code == SFC_OK)
        *count = n;
    return code;
}
