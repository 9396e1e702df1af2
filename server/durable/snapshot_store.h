/* The snapshots of a shard's blocks: one file per block and step. The newest two of a block are
 * kept, and where the run must be able to go back, at most two older ones. There is no manifest:
 * the folder is the list, a file is whole or absent (temporary name, sync, rename, sync of the
 * folder), and name, header and checksums must agree.
 *
 * Order of calls: step_log.h has the life of a run. While it runs:
 *
 *   copy the parts of a block between two applies (the caller's buffers), then
 *   sfc_snapshot_write_begin
 *   sfc_snapshot_write_some ... until *done, each a bounded number of bytes, so that the thread can
 * flush the log in between and keep to a rate sfc_snapshot_write_end, in every case; the parts are
 * the caller's again sfc_snapshot_store_floor, to be told to the scheduler
 *
 * Threads: one at a time. */
#ifndef SFC_DURABLE_SNAPSHOT_STORE_H
#define SFC_DURABLE_SNAPSHOT_STORE_H

#include "server/durable/file_layer.h"
#include "server/durable/lineage.h"
#include "server/durable/snapshot_codec.h"

#define SFC_SNAPSHOT_LEVEL_MAX 19 /* of compression */

struct sfc_snapshot_store;
struct sfc_snapshot_write;

/* Lists the folder (borrowed; it must outlive the store) and removes remains of writes that a crash
 * cut off. Contents are not read. */
int sfc_snapshot_store_open(struct sfc_folder *folder, const struct sfc_run_identity *identity,
                            struct sfc_snapshot_store **out, struct sfc_error *err);
void sfc_snapshot_store_close(struct sfc_snapshot_store *store); /* NULL is fine */
/* Snapshots that are begun from now on are compressed with zstd at this level (1 to
 * SFC_SNAPSHOT_LEVEL_MAX; 0: not, as in the beginning). Reading takes both. */
int sfc_snapshot_store_compress(struct sfc_snapshot_store *store, int level, struct sfc_error *err);
/* Most memory of compressing, and of reading what is compressed; level 0: of reading it alone. */
uint64_t sfc_snapshot_compression_memory(int level);

/* ---- writing. parts: pointers per part that the shape has, NULL for the others; borrowed until
 * end. Only one write at a time (SFC_ESTATE). SFC_EEXIST: there is one of this step already. */
int sfc_snapshot_write_begin(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                             const struct sfc_snapshot_shape *shape,
                             const void *const parts[SFC_SNAPSHOT_PARTS],
                             struct sfc_snapshot_write **out, struct sfc_error *err);
/* Right after begin: it is written past the system's cache, where that can be done. For content
 * that nobody reads soon: the cache would take as much memory, and the time to fill it. Takes 4 MiB
 * for as long as the store is open; without them it goes through the cache. */
void sfc_snapshot_write_direct(struct sfc_snapshot_write *write);
/* Takes at most max_bytes more of the parts, writes what comes of them and syncs it (a direct write
 * is synced once, with its last piece). *done: the snapshot is durable under its name, and what was
 * older than the newest two of this block is gone. After an error only end may be called;
 * SFC_ELIMIT (disk full) and SFC_EIO: begin anew later. */
int sfc_snapshot_write_some(struct sfc_snapshot_write *write, uint64_t max_bytes, bool *done,
                            struct sfc_error *err);
/* Frees; what is not done is removed. NULL is fine. */
void sfc_snapshot_write_end(struct sfc_snapshot_write *write);

/* ---- going back */

/* From now on the state after any step from this one on must be had: of each block the newest
 * snapshot that is not after this step is kept, and of those after it the oldest, which takes its
 * place one day. UINT64_MAX at first: nothing but the newest two. */
void sfc_snapshot_store_keep_from(struct sfc_snapshot_store *store, uint64_t step);
/* The run is at this step: later snapshots are of steps that are no part of it. They are kept, but
 * no function here sees them, until drop_hidden deletes them durably. */
void sfc_snapshot_store_hide_after(struct sfc_snapshot_store *store, uint64_t step);
/* The same for those that the returns make void, whatever their step is: an old copy of the folder
 * may have them. Right after open; one whose header is damaged stays, to be passed over as such. */
int sfc_snapshot_store_hide_void(struct sfc_snapshot_store *store,
                                 const struct sfc_lineage *lineage, struct sfc_error *err);
int sfc_snapshot_store_drop_hidden(struct sfc_snapshot_store *store, struct sfc_error *err);
/* Deletes the snapshots of all blocks but these (by kind, then ascending): they have left this
 * shard, or never came. */
struct sfc_snapshot_block;
int sfc_snapshot_store_keep_only(struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *blocks, size_t count,
                                 struct sfc_error *err);

/* Deletes the snapshots of this block that have another number of rows: of before it grew, or of a
 * growth that came to nothing. One whose header is damaged stays, to be passed over as such. */
int sfc_snapshot_store_keep_rows(struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *block, uint64_t rows,
                                 struct sfc_error *err);

/* ---- reading */

/* Stamps of a block in the folder, newest first, of those with the rows that growths gave it (as in
 * their keys); returns how many (0..2). */
size_t sfc_snapshot_store_stamps(const struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *block, uint64_t grown,
                                 uint64_t stamps[2]);

/* The least stamp of a block that is at least this one; false: there is none. */
bool sfc_snapshot_store_least(const struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                              uint64_t block, uint64_t at_least, uint64_t *stamp);

struct sfc_snapshot_content {
    uint64_t step;
    const void *parts[SFC_SNAPSHOT_PARTS]; /* the store's, until its next read; 64-byte aligned */
};
/* The newest valid snapshot of the block with a stamp <= max_step and this shape (HISTORY: rows =
 * stamp, shape->rows is ignored). A damaged one is passed over for the older one; then `loud` names
 * file, offset and what was used instead, otherwise it is "". SFC_ENOTFOUND: the block has none of
 * such a stamp. SFC_ECORRUPT, SFC_EIO: there are some, and none can be read; the text names the
 * newest, its damage and what to do. SFC_ESTALE: of another run, configuration or numerics class.
 * Allocates no more than the shape asks. */
int sfc_snapshot_store_read(struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                            uint64_t block, uint64_t max_step,
                            const struct sfc_snapshot_shape *shape,
                            struct sfc_snapshot_content *out, char loud[512],
                            struct sfc_error *err);

/* ---- pin: somebody will ask for the blocks as they were after `step`. Until it is undone, the
 * newest snapshot of each block with a stamp <= step is kept beside the others. One pin at a
 * time: a second replaces the first. */
void sfc_snapshot_store_pin(struct sfc_snapshot_store *store, uint64_t step);
void sfc_snapshot_store_unpin(struct sfc_snapshot_store *store);

/* ---- floor */

/* One block of the shard. */
struct sfc_snapshot_block {
    enum sfc_snapshot_kind kind;
    uint64_t block;
};
/* The log is needed from floor + 1 on: the least over the blocks of the stamp of its second-newest
 * snapshot (the newest where there is one, start_step where there is none), or of the one that
 * keep_from asks for. */
uint64_t sfc_snapshot_store_floor(const struct sfc_snapshot_store *store,
                                  const struct sfc_snapshot_block *blocks, size_t count,
                                  uint64_t start_step);

/* The lowest step to which snapshots lead with a log that has the steps after log_from; UINT64_MAX:
 * none. from_seed: a run with all its log may begin anew; one that was loaded needs the snapshots.
 */
uint64_t sfc_snapshot_store_oldest(const struct sfc_snapshot_store *store,
                                   const struct sfc_snapshot_block *blocks, size_t count,
                                   uint64_t start_step, bool from_seed, uint64_t log_from);

/* ---- offline (shardfc log) */

/* Reads one file whatever run it belongs to, checks every byte, 1 MiB at a time. SFC_ECORRUPT names
 * file and offset. *header (may be NULL) is written when the header is good, also if a part is not.
 */
int sfc_snapshot_check(struct sfc_folder *folder, const char *name,
                       struct sfc_snapshot_header *header, struct sfc_error *err);
/* The same, and keeps the parts, one behind the other without padding, of any run: for
 * measurements. Allocates what the header says, at most the file's bytes times 2^17. *out is the
 * caller's to free. */
int sfc_snapshot_load(struct sfc_folder *folder, const char *name,
                      struct sfc_snapshot_header *header, uint8_t **out, struct sfc_error *err);

#endif
