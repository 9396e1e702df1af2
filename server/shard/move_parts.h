/* What the files of a move share: move_in.c (its life, calls), move_blocks.c (whole blocks),
 * move_changes.c (rows), grow_blocks.c (blocks that come from nowhere). */
#ifndef SFC_SHARD_MOVE_PARTS_H
#define SFC_SHARD_MOVE_PARTS_H

#include "server/shard/move_in.h"
#include "server/shard/shard_internal.h"

enum {
    SFC_MOVE_PIECES = 4,  /* ReadCopy on their way at a time */
    SFC_MOVE_CHANGES = 4, /* ReadChanges likewise */
    SFC_MOVE_DEADLINE_MS = 10000,
};
#define SFC_MOVE_PIECE         (UINT64_C(1) << 20)
#define SFC_MOVE_LARGE_PIECE   (UINT64_C(4) << 20) /* where neither rate nor link is a limit */
#define SFC_MOVE_FAST          UINT64_C(1024)      /* bytes per ms that let pieces be large */
#define SFC_MOVE_CHANGES_BYTES (UINT64_C(4) << 20) /* of an answer; one row may be larger */

enum sfc_move_phase {
    SFC_MOVE_STAGING,
    SFC_MOVE_COPYING,
    SFC_MOVE_FOLLOWING,
    SFC_MOVE_TAKING,
    SFC_MOVE_TAKEN,
    SFC_MOVE_ENDING,
};

struct sfc_move_block {
    struct sfc_snapshot_block id;
    uint64_t stamp; /* of its snapshot here; with has_stamp */
    uint64_t since; /* of the class block's rows: they are as after this step, or newer */
    bool has_stamp;
};

struct sfc_move_piece { /* a ReadCopy */
    struct sfc_move *move;
    struct sfc_move_buffer *buffer;
    bool busy, again; /* again: failed, to be sent once more */
    uint64_t offset, count, asked_ms;
};

/* A whole block on its way: filled from the network, then landed in the staged part and on the
 * disk. */
struct sfc_move_buffer {
    struct sfc_move *move;
    enum { SFC_BUFFER_FREE, SFC_BUFFER_ASKED, SFC_BUFFER_FILLING, SFC_BUFFER_LANDING } state;
    size_t index; /* of the block */
    void *data;   /* 64-byte aligned, sfc_run_largest_block */
    void *parts[SFC_SNAPSHOT_PARTS];
    struct sfc_snapshot_shape shape;
    struct sfc_snapshot_key key;
    uint64_t bytes, sent, received;
    uint64_t written; /* rows in the staged part */
    bool staged, kept;
    struct sfc_compute_job job;
};

struct sfc_move_rows { /* changes of one block on their way */
    struct sfc_move *move;
    enum { SFC_ROWS_FREE, SFC_ROWS_AGAIN, SFC_ROWS_ASKED, SFC_ROWS_WRITING } state;
    size_t index;
    uint64_t since, step; /* step: of the first piece */
    uint32_t first, next;
    uint32_t *rows; /* [rows of a block] */
    void *data;
    void *parts[SFC_SNAPSHOT_PARTS];
    struct sfc_snapshot_shape shape;
    struct sfc_compute_job job;
};

struct sfc_move {
    unsigned refs;             /* the run, and calls on their way */
    struct sfc_shard_run *run; /* NULL: it has let go */
    uint64_t id, incarnation;
    struct sfc_rpc_client *source; /* NULL: a growth, whose blocks come from nowhere */
    struct sfc_run_setup setup;    /* the run's; of a growth with the new classes */
    enum sfc_move_phase phase;
    uint64_t *class_blocks, *dense_blocks;
    size_t class_count, dense_count, count;
    struct sfc_move_block *blocks; /* class blocks, dense blocks */
    uint64_t floor;
    struct sfc_compute_job job; /* STAGE, DROP */
    struct sfc_head *head;      /* staged; of the compute thread */
    struct sfc_dense *dense;
    bool staging;  /* the job that makes room is queued or at work */
    bool given;    /* to a CHANGE job */
    bool ended;    /* what is staged is being freed */
    unsigned jobs; /* on the compute thread */
    struct sfc_task task;
    /* whole blocks */
    size_t next; /* block that is copied next */
    size_t landed;
    struct sfc_move_buffer buffers[SFC_MOVE_BUFFERS];
    struct sfc_move_buffer *keeping; /* whose snapshot is being written */
    struct sfc_move_piece pieces[SFC_MOVE_PIECES];
    /* changes */
    struct sfc_move_rows rows[SFC_MOVE_CHANGES];
    size_t cursor; /* block that is asked next in this pass */
    bool passing, exact;
    uint64_t pass_at, pass_bytes, last_pass_bytes;
    unsigned passes;
    bool close;
    /* calls that wait */
    struct sfc_rpc_call *fetch_call, *take_call;
    uint64_t fetch_ms;
    uint64_t take_step;
    /* pace, retries, progress */
    uint64_t rate;
    bool fast;                  /* the last piece came so soon that larger ones will be in time */
    uint64_t retry_ms, good_ms; /* nothing is asked before; when something last worked */
    uint64_t bytes, copied, began_ms;
    uint64_t takes; /* of memory beside the run's, until the blocks are its own */
    double speed;
    /* the end */
    int code; /* why it failed; SFC_OK: it did not */
    char reason[SFC_LIMIT_ERROR_TEXT];
};

/* Does what can be done now. */
void sfc_move_go_on(struct sfc_move *move);
/* The move is over: with this code and reason; SFC_OK: its scheduler wants it so. */
void sfc_move_end(struct sfc_move *move, int code, const char *reason);
/* A call or job of it went wrong. True: it is to be made again later; false: the move has ended. */
bool sfc_move_may_retry(struct sfc_move *move, int code, const char *text);
void sfc_move_worked(struct sfc_move *move);
/* The block of this buffer is staged and on the disk as of its key's step; the buffer is free. */
void sfc_move_landed(struct sfc_move_buffer *buffer);
/* So many bytes may be asked for now; they are spent. */
bool sfc_move_may_send(struct sfc_move *move, uint64_t bytes);
void sfc_move_spend(struct sfc_move *move, uint64_t bytes);

/* A call to the source: request is a message, ctx the `done` callback's, which must begin with
 * sfc_move_answered. False: it could not be sent, and sfc_move_may_retry has been asked. */
bool sfc_move_call(struct sfc_move *move, const char *method, const void *request, size_t max_reply,
                   sfc_rpc_done done, void *ctx);
/* The same; a tensor of into_size bytes in the answer goes there. */
bool sfc_move_call_into(struct sfc_move *move, const char *method, const void *request,
                        size_t max_reply, void *into, size_t into_size, sfc_rpc_done done,
                        void *ctx);
/* Whether the move is still there and wants answers; frees it if this was the last call. */
bool sfc_move_answered(struct sfc_move *move);

/* move_blocks.c */
/* Blocks from move->next up to `end`. */
void sfc_move_pump_blocks(struct sfc_move *move, size_t end);
bool sfc_move_blocks_done(const struct sfc_move *move, size_t end);
/* grow_blocks.c: blocks of a growth, which come from the seed. */
int sfc_move_grow_check(const struct sfc_shard_run *run,
                        const Shardfc__V1__FetchBlocksRequest *request, struct sfc_error *err);
void sfc_move_pump_growth(struct sfc_move *move);
/* move_changes.c */
void sfc_move_pump_changes(struct sfc_move *move);
bool sfc_move_changes_idle(const struct sfc_move *move);
int sfc_move_changes_new(struct sfc_move *move, struct sfc_error *err);

#endif
