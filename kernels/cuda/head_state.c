/* The blocks' state: first values, copies to and from the host, how large the numbers are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/head.h"
#include "kernels/cuda/state.h"
#include "kernels/lag.h"

_Static_assert(sizeof(struct sfc_lag) == sizeof(struct sfc_cuda_lag), "one table for both");

#define ALIGNMENT 256

struct sfc_cuda_state {
    /* A piece in flight, one per lane: converted on the device, copied, and taken by the host,
     * while the other one is in another of these stages. done: the host may use the staging memory.
     */
    cudaEvent_t done[SFC_CUDA_LANES];
    cudaEvent_t before;    /* what the stream did before the lanes begin */
    uint32_t *maxima;      /* device: [blocks, 3] */
    uint32_t *host;        /* [blocks, 3] */
    struct sfc_lag *lag;   /* mode dense: [steps + 1]; else NULL */
    struct sfc_error kept; /* of a call that can't report it */
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static bool is_dense(const struct sfc_cuda_head *head)
{
    return head->config.momentum_mode == SFC_MOMENTUM_DENSE;
}

static size_t lag_bytes(const struct sfc_cuda_head *head)
{
    return is_dense(head) ? (size_t)(head->config.steps + 1) * sizeof(struct sfc_lag) : 0;
}

/* ---- life */

size_t sfc_cuda_state_lay_out(struct sfc_cuda_head *head, struct sfc_cuda_carver *step)
{
    uint32_t *maxima = sfc_cuda_carve(step, 3 * head->block_count, sizeof *maxima);
    if (step->base) {
        head->state = calloc(1, sizeof *head->state); /* NULL: found by init */
        if (head->state)
            head->state->maxima = maxima;
    }
    return sizeof *head->state + 3 * head->block_count * sizeof *head->state->host +
           lag_bytes(head);
}

static int make_events(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_state *s = head->state;
    int rc =
        sfc_cuda_check(head->cuda, cudaEventCreateWithFlags(&s->before, cudaEventDisableTiming),
                       "cudaEventCreateWithFlags for copies of blocks", err);
    for (size_t i = 0; !rc && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(head->cuda,
                            cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming),
                            "cudaEventCreateWithFlags for copies of blocks", err);
    return rc;
}

/* From the host's pageable memory: it has been read when this returns. */
static int upload(struct sfc_cuda_head *head, void *to, const void *from, size_t bytes,
                  const char *what, struct sfc_error *err)
{
    cudaStream_t stream = head->cuda->stream;
    int rc = sfc_cuda_check(
        head->cuda, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), what, err);
    return rc ? rc : sfc_cuda_check(head->cuda, cudaStreamSynchronize(stream), what, err);
}

/* A table of one word per block; put: the word of a block. */
static int upload_table(struct sfc_cuda_head *head, uint64_t *to,
                        uint64_t (*put)(const struct sfc_cuda_head *head,
                                        const struct sfc_cuda_block *block),
                        struct sfc_error *err)
{
    uint64_t *wide = (void *)head->state->host; /* 8 of the 12 bytes that a block has there */
    for (size_t i = 0; i < head->block_count; i++)
        wide[i] = put(head, &head->blocks[i]);
    return upload(head, to, wide, head->block_count * sizeof *wide,
                  "cudaMemcpyAsync of the block tables", err);
}

_Static_assert(sizeof(void *) == sizeof(uint64_t), "tables of addresses are tables of words");

static uint64_t records_of(const struct sfc_cuda_head *head, const struct sfc_cuda_block *block)
{
    (void)head;
    return (uintptr_t)block->records;
}

static uint64_t class_of(const struct sfc_cuda_head *head, const struct sfc_cuda_block *block)
{
    return block->id * head->config.block_size;
}

static int upload_tables(struct sfc_cuda_head *head, struct sfc_error *err)
{
    uint32_t *rows = head->state->host;
    for (size_t i = 0; i < head->block_count; i++)
        rows[i] = head->blocks[i].rows;
    int rc = upload(head, head->block_rows, rows, head->block_count * sizeof *rows,
                    "cudaMemcpyAsync of the block tables", err);
    if (!rc)
        rc = upload_table(head, (uint64_t *)(void *)head->block_records, records_of, err);
    return rc ? rc : upload_table(head, head->block_class, class_of, err);
}

static struct sfc_cuda_rows rows_of(const struct sfc_cuda_head *head)
{
    return (struct sfc_cuda_rows){(uint32_t)head->block_count, head->block_rows};
}

static int first_values(struct sfc_cuda_head *head, struct sfc_error *err)
{
    const char *what = "first values of the class centres";
    struct sfc_cuda_store store = sfc_cuda_store_of(head);
    cudaStream_t stream = head->cuda->stream;
    int rc = sfc_cuda_check(
        head->cuda, sfc_cuda_run_init(&store, rows_of(head), (float)head->config.init_std, stream),
        what, err);
    return rc ? rc : sfc_cuda_check(head->cuda, cudaStreamSynchronize(stream), what, err);
}

static int zero_values(struct sfc_cuda_head *head, struct sfc_error *err)
{
    cudaStream_t stream = head->cuda->stream;
    cudaError_t status = cudaSuccess;
    for (size_t i = 0; status == cudaSuccess && i < head->block_count; i++)
        status = cudaMemsetAsync(head->blocks[i].records, 0,
                                 head->blocks[i].rows * head->sizes.record, stream);
    if (status == cudaSuccess && head->last)
        status = cudaMemsetAsync(
            head->last, 0, (head->block_count << head->sizes.shift) * sizeof *head->last, stream);
    return sfc_cuda_check(head->cuda, status, "zeros for class centres", err);
}

int sfc_cuda_state_fill(struct sfc_cuda_head *head, bool blank, struct sfc_error *err)
{
    return blank ? zero_values(head, err) : first_values(head, err);
}

int sfc_cuda_state_init(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_state *s = head->state;
    if (s) {
        s->host = calloc(3 * head->block_count, sizeof *s->host);
        s->lag = is_dense(head) ? calloc(head->config.steps + 1, sizeof *s->lag) : NULL;
    }
    if (!s || !s->host || (is_dense(head) && !s->lag))
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for the tables of %zu blocks",
                        head->block_count);
    int rc = make_events(head, err);
    return rc ? rc : upload_tables(head, err);
}

void sfc_cuda_state_inherit(struct sfc_cuda_head *head, const struct sfc_cuda_head *from)
{
    head->state->kept = from->state->kept;
}

void sfc_cuda_state_free(struct sfc_cuda_head *head)
{
    struct sfc_cuda_state *s = head->state;
    if (!s)
        return;
    for (size_t i = 0; i < SFC_CUDA_LANES; i++)
        if (s->done[i])
            cudaEventDestroy(s->done[i]);
    if (s->before)
        cudaEventDestroy(s->before);
    free(s->host);
    free(s->lag);
    free(s);
    head->state = NULL;
}

/* ---- reading and writing the store */

/* A range of a part of one block, or a list of its rows, in pieces that follow each other; piece i
 * goes through lane and buffers i % SFC_CUDA_LANES. */
struct copy {
    struct sfc_cuda_head *head;
    struct sfc_cuda_store store;
    uint32_t tensor;
    uint32_t first_row;     /* of the block */
    size_t width;           /* numbers of a row */
    uint64_t offset, count; /* numbers; of a list from its beginning */
    const uint32_t *rows;   /* the list, or NULL */
    size_t room;            /* words of a buffer */
    size_t length;          /* numbers of a piece; the rows of a list's piece follow them */
    uint64_t pieces;
    const char *what;
};

static struct copy copy_of(struct sfc_cuda_head *head, size_t index, enum sfc_block_part part,
                           uint64_t offset, uint64_t count, const char *what)
{
    bool last = part == SFC_PART_LAST_STEP;
    size_t bytes = smaller(head->sizes.piece, head->staging_bytes / SFC_CUDA_LANES);
    size_t length = bytes / ALIGNMENT * ALIGNMENT / sizeof(float);
    return (struct copy){
        .head = head,
        .store = sfc_cuda_store_of(head),
        .tensor = last                        ? SFC_CUDA_LAST
                  : part == SFC_PART_VALUES   ? 0
                  : part == SFC_PART_MOMENTUM ? 1
                                              : 2,
        .first_row = head->blocks[index].store,
        .width = last ? 1 : head->config.dim,
        .offset = offset,
        .count = count,
        .room = length,
        .length = length,
        .pieces = (count + length - 1) / length,
        .what = what,
    };
}

/* Of whole rows instead. */
static struct copy copy_of_list(struct sfc_cuda_head *head, size_t index, enum sfc_block_part part,
                                const uint32_t *rows, size_t count, const char *what)
{
    struct copy c = copy_of(head, index, part, 0, 0, what);
    c.rows = rows;
    c.count = (uint64_t)count * c.width;
    c.length = c.room / (c.width + 1) * c.width;
    c.pieces = (c.count + c.length - 1) / c.length;
    return c;
}

static size_t piece_length(const struct copy *c, uint64_t i)
{
    uint64_t rest = c->count - i * c->length;
    return rest < c->length ? (size_t)rest : c->length;
}

static struct sfc_cuda_run run_of(const struct copy *c, uint64_t i)
{
    uint64_t at = c->offset + i * c->length;
    return (struct sfc_cuda_run){
        .tensor = c->tensor,
        .row = c->first_row + (uint32_t)(at / c->width),
        .column = (uint32_t)(at % c->width),
        .count = (uint32_t)piece_length(c, i),
    };
}

static float *staging_of(const struct copy *c, uint64_t i)
{
    return (float *)c->head->staging + i % SFC_CUDA_LANES * c->room;
}

static float *device_of(const struct copy *c, uint64_t i)
{
    return c->head->lanes[i % SFC_CUDA_LANES].piece;
}

static cudaEvent_t done_of(const struct copy *c, uint64_t i)
{
    return c->head->state->done[i % SFC_CUDA_LANES];
}

static cudaStream_t lane_of(const struct copy *c, uint64_t i)
{
    return c->head->cuda->lane[i % SFC_CUDA_LANES];
}

/* Reports what a call could not report that has no status. */
static int report_kept(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_error kept = head->state->kept;
    head->state->kept = (struct sfc_error){0};
    return kept.code ? sfc_fail(err, kept.code, "%s", kept.text) : SFC_OK;
}

/* The lanes go on where the stream is. */
static int copy_begin(const struct copy *c, struct sfc_error *err)
{
    const struct sfc_cuda *cuda = c->head->cuda;
    int rc = sfc_cuda_enter(cuda, err);
    if (!rc)
        rc = report_kept(c->head, err);
    if (!rc)
        rc = sfc_cuda_check(cuda, cudaEventRecord(c->head->state->before, cuda->stream), c->what,
                            err);
    for (size_t i = 0; !rc && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(cuda, cudaStreamWaitEvent(cuda->lane[i], c->head->state->before, 0),
                            c->what, err);
    return rc;
}

static int wait_for(const struct copy *c, uint64_t i, struct sfc_error *err)
{
    return sfc_cuda_check(c->head->cuda, cudaEventSynchronize(done_of(c, i)), c->what, err);
}

/* Sends the rows of a list's piece; they stay behind the numbers. */
static cudaError_t send_rows(const struct copy *c, uint64_t i, struct sfc_cuda_list *out)
{
    float *host = staging_of(c, i) + c->length, *device = device_of(c, i) + c->length;
    size_t bytes = piece_length(c, i) / c->width * sizeof *c->rows;
    memcpy(host, c->rows + i * (c->length / c->width), bytes);
    *out = (struct sfc_cuda_list){.tensor = c->tensor,
                                  .first = c->first_row,
                                  .rows = (const void *)device,
                                  .count = (uint32_t)piece_length(c, i)};
    return cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, lane_of(c, i));
}

/* Between the store and the piece's device memory. */
static cudaError_t convert(const struct copy *c, uint64_t i, bool reads)
{
    float *device = device_of(c, i);
    cudaStream_t lane = lane_of(c, i);
    struct sfc_cuda_list list;
    if (!c->rows)
        return reads ? sfc_cuda_run_read(&c->store, run_of(c, i), device, lane)
                     : sfc_cuda_run_write(&c->store, run_of(c, i), device, lane);
    cudaError_t status = send_rows(c, i, &list);
    if (status != cudaSuccess)
        return status;
    return reads ? sfc_cuda_list_read(&c->store, list, device, lane)
                 : sfc_cuda_list_write(&c->store, list, device, lane);
}

static int start_read(const struct copy *c, uint64_t i, struct sfc_error *err)
{
    cudaStream_t lane = lane_of(c, i);
    size_t bytes = piece_length(c, i) * sizeof(float);
    cudaError_t status = convert(c, i, true);
    if (status == cudaSuccess)
        status =
            cudaMemcpyAsync(staging_of(c, i), device_of(c, i), bytes, cudaMemcpyDeviceToHost, lane);
    if (status == cudaSuccess)
        status = cudaEventRecord(done_of(c, i), lane);
    return sfc_cuda_check(c->head->cuda, status, c->what, err);
}

static int start_write(const struct copy *c, uint64_t i, struct sfc_error *err)
{
    cudaStream_t lane = lane_of(c, i);
    size_t bytes = piece_length(c, i) * sizeof(float);
    cudaError_t status =
        cudaMemcpyAsync(device_of(c, i), staging_of(c, i), bytes, cudaMemcpyHostToDevice, lane);
    if (status == cudaSuccess)
        status = convert(c, i, false);
    if (status == cudaSuccess)
        status = cudaEventRecord(done_of(c, i), lane);
    return sfc_cuda_check(c->head->cuda, status, c->what, err);
}

/* After a failure the pieces may still be on their way: nobody uses their memory before they have
 * arrived or are lost. */
static int copy_end(const struct copy *c, int rc)
{
    for (size_t i = 0; rc && i < SFC_CUDA_LANES; i++)
        cudaStreamSynchronize(c->head->cuda->lane[i]);
    if (rc)
        cudaGetLastError(); /* it is remembered otherwise */
    return rc;
}

static int copy_out(const struct copy *c, float *out, struct sfc_error *err)
{
    int rc = copy_begin(c, err);
    for (uint64_t i = 0; !rc && i < c->pieces + SFC_CUDA_LANES; i++) {
        uint64_t ready = i - SFC_CUDA_LANES; /* in the buffers that piece i gets */
        if (i >= SFC_CUDA_LANES && ready < c->pieces) {
            rc = wait_for(c, ready, err);
            if (!rc)
                memcpy(out + ready * c->length, staging_of(c, ready),
                       piece_length(c, ready) * sizeof *out);
        }
        if (!rc && i < c->pieces)
            rc = start_read(c, i, err);
    }
    return copy_end(c, rc);
}

static int copy_in(const struct copy *c, const float *values, struct sfc_error *err)
{
    int rc = copy_begin(c, err);
    for (uint64_t i = 0; !rc && i < c->pieces + SFC_CUDA_LANES; i++) {
        uint64_t before = i - SFC_CUDA_LANES; /* had the buffers that piece i gets */
        if (i >= SFC_CUDA_LANES && before < c->pieces)
            rc = wait_for(c, before, err);
        if (!rc && i < c->pieces) {
            memcpy(staging_of(c, i), values + i * c->length, piece_length(c, i) * sizeof *values);
            rc = start_write(c, i, err);
        }
    }
    return copy_end(c, rc);
}

int sfc_cuda_head_read(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    const struct copy c = copy_of((struct sfc_cuda_head *)base, index, part, offset, count,
                                  "reading class centres from the device");
    return copy_out(&c, out, err);
}

int sfc_cuda_head_write(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    const struct copy c = copy_of((struct sfc_cuda_head *)base, index, part, offset, count,
                                  "writing class centres to the device");
    return copy_in(&c, values, err);
}

int sfc_cuda_head_read_rows(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                            const uint32_t *rows, size_t count, float *out, struct sfc_error *err)
{
    const struct copy c = copy_of_list((struct sfc_cuda_head *)base, index, part, rows, count,
                                       "reading class centres from the device");
    return copy_out(&c, out, err);
}

int sfc_cuda_head_write_rows(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                             const uint32_t *rows, size_t count, const float *values,
                             struct sfc_error *err)
{
    const struct copy c = copy_of_list((struct sfc_cuda_head *)base, index, part, rows, count,
                                       "writing class centres to the device");
    return copy_in(&c, values, err);
}

/* ---- how large the numbers are */

/* n words from the device to state->host. */
static int fetch(struct sfc_cuda_head *head, const uint32_t *from, size_t n, struct sfc_error *err)
{
    const char *what = "copying the blocks' largest numbers from the device";
    cudaStream_t stream = head->cuda->stream;
    int rc = sfc_cuda_check(
        head->cuda,
        cudaMemcpyAsync(head->state->host, from, n * sizeof *from, cudaMemcpyDeviceToHost, stream),
        what, err);
    return rc ? rc : sfc_cuda_check(head->cuda, cudaStreamSynchronize(stream), what, err);
}

static double number(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

void sfc_cuda_head_inverse_norms(const struct sfc_head_part *base, double *out)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)(uintptr_t)base;
    struct sfc_error *kept = &head->state->kept;
    int rc = sfc_cuda_enter(head->cuda, kept);
    if (!rc)
        rc = fetch(head, head->block_inverse, head->block_count, kept);
    for (size_t i = 0; i < head->block_count; i++)
        out[i] = rc ? INFINITY : number(head->state->host[i]);
}

/* The plan's table begins at the oldest of the sampled rows; all its entries stay what they are. */
static int upload_lag(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_lag *lag = head->state->lag;
    uint64_t done = head->base.step - 1;
    sfc_lag_table(head->base.rates, head->config.momentum, head->config.weight_decay, 0, done, lag);
    return upload(head, head->lag, lag, (done + 1) * sizeof *lag,
                  "cudaMemcpyAsync of the missed steps", err);
}

static int measure(struct sfc_cuda_head *head, struct sfc_error *err)
{
    int rc = sfc_cuda_enter(head->cuda, err);
    if (!rc && is_dense(head))
        rc = upload_lag(head, err);
    if (rc)
        return rc;
    struct sfc_cuda_store store = sfc_cuda_store_of(head);
    rc = sfc_cuda_check(head->cuda,
                        sfc_cuda_run_extents(&store, rows_of(head), (float)head->config.epsilon,
                                             head->state->maxima, head->cuda->stream),
                        "looking for the largest numbers", err);
    return rc ? rc : fetch(head, head->state->maxima, 3 * head->block_count, err);
}

/* A magnitude that is not a number fits nowhere. */
static double magnitude(uint32_t bits)
{
    double v = number(bits);
    return isnan(v) ? INFINITY : v;
}

void sfc_cuda_head_extents(struct sfc_head_part *base, struct sfc_extent *out)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)base;
    int rc = measure(head, &head->state->kept);
    for (size_t i = 0; i < head->block_count; i++) {
        const uint32_t *bits = head->state->host + 3 * i;
        out[i] =
            rc ? (struct sfc_extent){INFINITY, INFINITY, INFINITY}
               : (struct sfc_extent){magnitude(bits[0]), magnitude(bits[1]), magnitude(bits[2])};
    }
}
