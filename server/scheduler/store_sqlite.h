/* Private to server/scheduler/store_sqlite*.c. Functions that can fail say what was being done
 * ("what") and the file's name. */
#ifndef SFC_SCHEDULER_STORE_SQLITE_H
#define SFC_SCHEDULER_STORE_SQLITE_H

#include <sqlite3.h>

#include "server/scheduler/store_impl.h"

struct sqlite_store {
    struct sfc_store base;
    sqlite3 *db;
    bool inside; /* a transaction of several statements */
    int lock;
    char path[4096];
};

static inline struct sqlite_store *sqlite_of(struct sfc_store *base)
{
    return (struct sqlite_store *)base; /* its first member */
}

/* ---- sqlite_db.c */

int sfc_db_fail(const struct sqlite_store *store, struct sfc_error *err, const char *what);
int sfc_db_exec(const struct sqlite_store *store, const char *sql, const char *what,
                struct sfc_error *err);
/* A transaction that failed may still be open, because its rollback failed too: what comes next
 * must not become part of it. */
int sfc_db_leave_transaction(const struct sqlite_store *store, const char *what,
                             struct sfc_error *err);
/* Statements that begin with BEGIN and end with COMMIT: all of them, or none. */
int sfc_db_transaction(const struct sqlite_store *store, const char *sql, const char *what,
                       struct sfc_error *err);
int sfc_db_prepare(const struct sqlite_store *store, const char *sql, sqlite3_stmt **out,
                   const char *what, struct sfc_error *err);
/* One statement that must end without a row. Takes the statement. */
int sfc_db_finish(const struct sqlite_store *store, sqlite3_stmt *s, const char *what,
                  struct sfc_error *err);
/* One row of one number. A statement that also writes commits only when it is gone through to its
 * end. */
int sfc_db_integer(const struct sqlite_store *store, const char *sql, int64_t *out,
                   const char *what, struct sfc_error *err);
int sfc_db_begin_transaction(struct sqlite_store *store, const char *what, struct sfc_error *err);
/* All of it, or after an error nothing. */
int sfc_db_end_transaction(struct sqlite_store *store, int code, const char *what,
                           struct sfc_error *err);
void sfc_db_bind_u64(sqlite3_stmt *s, int column, uint64_t v);
uint64_t sfc_db_column_u64(sqlite3_stmt *s, int column);
/* Texts and bytes are bound as they are (SQLITE_STATIC) and outlive the statement: a copy could
 * fail without anybody looking. SQLite turns a NaN into NULL: values that may be one are kept as
 * their 8 bytes. */
void sfc_db_bind_bits(sqlite3_stmt *s, int column, const double *v);
double sfc_db_column_bits(sqlite3_stmt *s, int column);
/* A column of text or bytes that needs memory and gets none reads as NULL, which this tells from a
 * value that is empty. */
int sfc_db_check_columns(const struct sqlite_store *store, const char *what, struct sfc_error *err);
void sfc_db_column_text(sqlite3_stmt *s, int column, char *out, size_t size);
int sfc_db_column_copy(sqlite3_stmt *s, int column, uint8_t **out, size_t *size,
                       struct sfc_error *err);
/* A statement that deletes what a run has of steps after one. */
int sfc_db_delete_after(struct sqlite_store *store, const char *sql, uint64_t run_id, uint64_t step,
                        struct sfc_error *err);

/* ---- store_sqlite_schema.c */

/* Makes the tables in a new file, and brings older ones up to date. SFC_ECORRUPT: not ours, or of a
 * newer program. */
int sfc_db_check_schema(struct sqlite_store *store, struct sfc_error *err);
/* SFC_ECORRUPT: damaged. */
int sfc_db_check_pages(struct sqlite_store *store, struct sfc_error *err);

/* ---- the functions of the store (state_store.h), by file */

/* store_sqlite_runs.c */
int sfc_sqlite_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err);
int sfc_sqlite_add_run(struct sfc_store *base, const struct sfc_store_run *run, uint64_t *run_id,
                       struct sfc_error *err);
int sfc_sqlite_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                             bool paused, const char *reason, struct sfc_error *err);
int sfc_sqlite_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                struct sfc_error *err);
int sfc_sqlite_last_run(struct sfc_store *base, struct sfc_store_run *out, struct sfc_error *err);
int sfc_sqlite_run_before(struct sfc_store *base, uint64_t run_id, struct sfc_store_run *out,
                          struct sfc_error *err);
int sfc_sqlite_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                       struct sfc_error *err);
int sfc_sqlite_put_lr(struct sfc_store *base, uint64_t run_id, const struct sfc_store_lr *change,
                      struct sfc_error *err);
int sfc_sqlite_lr_changes(struct sfc_store *base, uint64_t run_id, size_t limit,
                          struct sfc_store_lr *out, size_t *count, struct sfc_error *err);
int sfc_sqlite_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal, size_t size,
                        struct sfc_error *err);
int sfc_sqlite_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                    struct sfc_error *err);
/* store_sqlite_steps.c */
int sfc_sqlite_put_commits(struct sfc_store *base, const struct sfc_store_commit *commits,
                           size_t count, const struct sfc_lineage *lineage, struct sfc_error *err);
int sfc_sqlite_last_commit(struct sfc_store *base, uint64_t run_id, struct sfc_store_commit *out,
                           struct sfc_error *err);
int sfc_sqlite_rewind(struct sfc_store *base, uint64_t run_id, uint64_t step,
                      const struct sfc_store_commit *commits, size_t count,
                      const struct sfc_lineage *lineage, struct sfc_error *err);
int sfc_sqlite_lineage(struct sfc_store *base, uint64_t run_id, struct sfc_lineage *out,
                       struct sfc_error *err);
int sfc_sqlite_history(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                       struct sfc_store_commit *out, size_t *count, struct sfc_error *err);
int sfc_sqlite_put_drop(struct sfc_store *base, uint64_t run_id, const struct sfc_store_drop *drop,
                        struct sfc_error *err);
int sfc_sqlite_drops(struct sfc_store *base, uint64_t run_id, uint64_t after_step, size_t limit,
                     struct sfc_store_drop *out, size_t *count, struct sfc_error *err);
/* store_sqlite_members.c */
int sfc_sqlite_put_shard(struct sfc_store *base, uint64_t shard, const char *address,
                         struct sfc_error *err);
int sfc_sqlite_drop_shard(struct sfc_store *base, uint64_t shard, struct sfc_error *err);
int sfc_sqlite_shards(struct sfc_store *base, struct sfc_store_shard *out, size_t limit,
                      size_t *count, struct sfc_error *err);
int sfc_sqlite_put_event(struct sfc_store *base, const struct sfc_store_event *event,
                         struct sfc_error *err);
int sfc_sqlite_events(struct sfc_store *base, uint64_t after, bool newest, size_t limit,
                      struct sfc_store_event *out, size_t *count, struct sfc_error *err);

#endif
