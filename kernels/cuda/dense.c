/* Backbone blocks: copies between host and device, sums of the attempts, the update. */
#include "kernels/cuda/dense.h"

#include <math.h>
#include <string.h>

#include "kernels/adamw.h"

static struct sfc_cuda_dense *dense_of(struct sfc_dense_part *dense)
{
    return (struct sfc_cuda_dense *)dense;
}

/* First thing in every call: reports what an earlier one could not. */
static int enter(struct sfc_cuda_dense *d, struct sfc_error *err)
{
    struct sfc_error kept = d->kept;
    d->kept = (struct sfc_error){0};
    return kept.code ? sfc_fail(err, kept.code, "%s", kept.text) : sfc_cuda_enter(d->cuda, err);
}

/* Last thing in every call. After a failure the pieces may still be on their way: nobody uses their
 * memory before they have arrived or are lost. */
static int leave(const struct sfc_cuda_dense *d, cudaError_t status, const char *what,
                 struct sfc_error *err)
{
    if (status != cudaSuccess)
        cudaStreamSynchronize(d->cuda->stream);
    return sfc_cuda_check(d->cuda, status, what, err);
}

/* ---- copies in pieces: piece i has the memory that piece i - SFC_CUDA_PIECES had */

static struct sfc_cuda_piece *piece_of(struct sfc_cuda_dense *d, uint64_t i)
{
    return &d->pieces[i % SFC_CUDA_PIECES];
}

/* count floats between host and device. */
struct copy {
    struct sfc_cuda_dense *dense;
    float *device;
    uint64_t count, length; /* length: of a piece */
    uint64_t pieces;
};

static struct copy copy_of(struct sfc_cuda_dense *d, float *device, uint64_t count)
{
    uint64_t length = d->piece_bytes / sizeof(float);
    return (struct copy){d, device, count, length, (count + length - 1) / length};
}

static size_t bytes_of(const struct copy *c, uint64_t i)
{
    uint64_t rest = c->count - i * c->length;
    return (size_t)(rest < c->length ? rest : c->length) * sizeof(float);
}

static cudaError_t start_out(const struct copy *c, uint64_t i)
{
    struct sfc_cuda_piece *p = piece_of(c->dense, i);
    cudaStream_t stream = c->dense->cuda->stream;
    cudaError_t status = cudaMemcpyAsync(p->host, c->device + i * c->length, bytes_of(c, i),
                                         cudaMemcpyDeviceToHost, stream);
    return status == cudaSuccess ? cudaEventRecord(p->done, stream) : status;
}

static cudaError_t start_in(const struct copy *c, uint64_t i)
{
    struct sfc_cuda_piece *p = piece_of(c->dense, i);
    cudaStream_t stream = c->dense->cuda->stream;
    cudaError_t status = cudaMemcpyAsync(c->device + i * c->length, p->host, bytes_of(c, i),
                                         cudaMemcpyHostToDevice, stream);
    return status == cudaSuccess ? cudaEventRecord(p->done, stream) : status;
}

static cudaError_t copy_out(const struct copy *c, float *out)
{
    cudaError_t status = cudaSuccess;
    for (uint64_t i = 0; status == cudaSuccess && i < c->pieces + SFC_CUDA_PIECES; i++) {
        uint64_t ready = i - SFC_CUDA_PIECES;
        if (i >= SFC_CUDA_PIECES && ready < c->pieces) {
            status = cudaEventSynchronize(piece_of(c->dense, ready)->done);
            if (status == cudaSuccess)
                memcpy(out + ready * c->length, piece_of(c->dense, ready)->host,
                       bytes_of(c, ready));
        }
        if (status == cudaSuccess && i < c->pieces)
            status = start_out(c, i);
    }
    return status;
}

static cudaError_t copy_in(const struct copy *c, const float *in)
{
    cudaError_t status = cudaSuccess;
    for (uint64_t i = 0; status == cudaSuccess && i < c->pieces; i++) {
        if (i >= SFC_CUDA_PIECES)
            status = cudaEventSynchronize(piece_of(c->dense, i)->done);
        if (status != cudaSuccess)
            break;
        memcpy(piece_of(c->dense, i)->host, in + i * c->length, bytes_of(c, i));
        status = start_in(c, i);
    }
    return status == cudaSuccess ? cudaStreamSynchronize(c->dense->cuda->stream) : status;
}

static float *part_of(const struct sfc_cuda_dense *d, size_t index, enum sfc_block_part part)
{
    return (part == SFC_PART_VALUES          ? d->vectors.values
            : part == SFC_PART_SECOND_MOMENT ? d->vectors.second
                                             : d->vectors.momentum) +
           d->block_at[index];
}

int sfc_cuda_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    const struct copy c = copy_of(d, part_of(d, index, part) + offset, count);
    int rc = enter(d, err);
    return rc ? rc : leave(d, copy_out(&c, out), "reading a backbone block from the device", err);
}

int sfc_cuda_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                         uint64_t offset, uint64_t count, const float *values,
                         struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    const struct copy c = copy_of(d, part_of(d, index, part) + offset, count);
    int rc = enter(d, err);
    return rc ? rc : leave(d, copy_in(&c, values), "writing a backbone block to the device", err);
}

int sfc_cuda_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                        struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    const struct copy c = copy_of(d, d->slices + slot * d->length, d->length);
    int rc = enter(d, err);
    return rc ? rc : leave(d, copy_in(&c, slice), "copying a slice to the device", err);
}

int sfc_cuda_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    const struct copy c = copy_of(d, d->vectors.values, d->length);
    int rc = enter(d, err);
    return rc ? rc : leave(d, copy_out(&c, out), "copying the parameters from the device", err);
}

/* ---- sums */

static cudaError_t fetch_found(struct sfc_cuda_dense *d)
{
    cudaStream_t stream = d->cuda->stream;
    cudaError_t status =
        cudaMemcpyAsync(d->found, d->device_found, d->tile_count * sizeof *d->found,
                        cudaMemcpyDeviceToHost, stream);
    return status == cudaSuccess ? cudaStreamSynchronize(stream) : status;
}

static cudaError_t add_slices(struct sfc_cuda_dense *d, const uint32_t *slots)
{
    uint32_t n = d->base.config.micro_batches;
    cudaStream_t stream = d->cuda->stream;
    cudaError_t status =
        cudaMemcpyAsync(d->device_slots, slots, n * sizeof *slots, cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess)
        status = sfc_cuda_dense_add(d->device_tiles, d->tile_count, d->slices, d->length,
                                    d->device_slots, n, d->vectors.sum, d->device_found, stream);
    return status == cudaSuccess ? fetch_found(d) : status;
}

/* The tiles of a block in their order. */
static struct sfc_dense_sum block_sum(const struct sfc_cuda_dense *d, size_t index)
{
    struct sfc_dense_sum sum = {d->base.blocks[index], 0, true};
    for (size_t t = d->first_tile[index]; t < d->first_tile[index + 1]; t++) {
        sum.sum_of_squares += d->found[t].squares;
        sum.finite = sum.finite && !d->found[t].broken;
    }
    return sum;
}

int sfc_cuda_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                           struct sfc_dense_sum *out, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    int rc = enter(d, err);
    if (!rc)
        rc = leave(d, add_slices(d, slots), "adding the slices of a step", err);
    for (size_t i = 0; !rc && i < d->block_count; i++)
        out[i] = block_sum(d, i);
    return rc;
}

/* ---- packed sums: tiles that follow each other have their halves in one range and their floats in
 * another; a piece has both, the floats behind the halves */

struct group {
    size_t first, count; /* tiles */
    uint64_t first_half, halves, first_float, floats;
};

static uint64_t floats_at(const struct group *g)
{
    return (g->halves * sizeof(uint16_t) + 15) / 16 * 16;
}

static size_t group_bytes(const struct group *g)
{
    return (size_t)(floats_at(g) + g->floats * sizeof(float));
}

/* The tiles from first on that fit in a piece; none when there are no more. */
static struct group group_from(const struct sfc_cuda_dense *d, size_t first)
{
    struct group g = {.first = first};
    for (size_t t = first; t < d->tile_count; t++) {
        const struct sfc_cuda_dense_tile *tile = &d->tiles[t];
        struct group more = g;
        uint64_t *length = tile->half ? &more.halves : &more.floats;
        if (!*length)
            *(tile->half ? &more.first_half : &more.first_float) = tile->packed;
        *length += tile->length;
        more.count++;
        if (group_bytes(&more) > d->piece_bytes)
            break;
        g = more;
    }
    return g;
}

static struct sfc_cuda_dense_packed packed_at(const struct group *g, char *device)
{
    return (struct sfc_cuda_dense_packed){
        .halves = (uint16_t *)(void *)device,
        .floats = (float *)(void *)(device + floats_at(g)),
        .first_half = g->first_half,
        .first_float = g->first_float,
    };
}

/* Where a group's halves and floats are in the caller's packed sums. */
static size_t half_offset(const struct group *g)
{
    return (size_t)g->first_half * sizeof(uint16_t);
}

static size_t float_offset(const struct sfc_cuda_dense *d, const struct group *g)
{
    return sfc_dense_packed_floats(&d->base.packing) + (size_t)g->first_float * sizeof(float);
}

static cudaError_t start_pack(struct sfc_cuda_dense *d, struct sfc_cuda_piece *p,
                              const struct group *g)
{
    cudaStream_t stream = d->cuda->stream;
    cudaError_t status = sfc_cuda_dense_pack(d->device_tiles + g->first, g->count, d->vectors.sum,
                                             packed_at(g, p->device), stream);
    if (status == cudaSuccess)
        status =
            cudaMemcpyAsync(p->host, p->device, group_bytes(g), cudaMemcpyDeviceToHost, stream);
    return status == cudaSuccess ? cudaEventRecord(p->done, stream) : status;
}

static cudaError_t finish_pack(const struct sfc_cuda_dense *d, const struct sfc_cuda_piece *p,
                               const struct group *g, char *out)
{
    cudaError_t status = cudaEventSynchronize(p->done);
    if (status != cudaSuccess)
        return status;
    memcpy(out + half_offset(g), p->host, g->halves * sizeof(uint16_t));
    memcpy(out + float_offset(d, g), p->host + floats_at(g), g->floats * sizeof(float));
    return cudaSuccess;
}

static cudaError_t pack_sums(struct sfc_cuda_dense *d, char *out)
{
    struct group flight[SFC_CUDA_PIECES] = {{0}};
    cudaError_t status = cudaSuccess;
    size_t next = 0;
    for (size_t i = 0; status == cudaSuccess; i++) {
        struct group *g = &flight[i % SFC_CUDA_PIECES];
        if (g->count)
            status = finish_pack(d, piece_of(d, i), g, out);
        *g = group_from(d, next);
        next += g->count;
        if (status == cudaSuccess && g->count)
            status = start_pack(d, piece_of(d, i), g);
        if (!flight[0].count && !flight[1].count)
            break;
    }
    return status;
}

int sfc_cuda_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    size_t halves = (size_t)dense->packing.halves * sizeof(uint16_t);
    int rc = enter(d, err);
    if (rc)
        return rc;
    memset((char *)out + halves, 0, sfc_dense_packed_floats(&dense->packing) - halves);
    return leave(d, pack_sums(d, out), "copying the sums from the device", err);
}

static cudaError_t start_unpack(struct sfc_cuda_dense *d, struct sfc_cuda_piece *p,
                                const struct group *g, const char *in)
{
    cudaStream_t stream = d->cuda->stream;
    memcpy(p->host, in + half_offset(g), g->halves * sizeof(uint16_t));
    memcpy(p->host + floats_at(g), in + float_offset(d, g), g->floats * sizeof(float));
    cudaError_t status =
        cudaMemcpyAsync(p->device, p->host, group_bytes(g), cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess)
        status = sfc_cuda_dense_unpack(d->device_tiles + g->first, g->count, d->vectors.sum,
                                       packed_at(g, p->device), stream);
    return status == cudaSuccess ? cudaEventRecord(p->done, stream) : status;
}

static cudaError_t unpack_sums(struct sfc_cuda_dense *d, const char *in)
{
    cudaError_t status = cudaSuccess;
    struct group g = group_from(d, 0);
    for (size_t i = 0; status == cudaSuccess && g.count; i++) {
        if (i >= SFC_CUDA_PIECES)
            status = cudaEventSynchronize(piece_of(d, i)->done);
        if (status == cudaSuccess)
            status = start_unpack(d, piece_of(d, i), &g, in);
        g = group_from(d, g.first + g.count);
    }
    return status == cudaSuccess ? cudaStreamSynchronize(d->cuda->stream) : status;
}

int sfc_cuda_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    int rc = enter(d, err);
    return rc ? rc : leave(d, unpack_sums(d, sums), "copying sums to the device", err);
}

/* ---- how large the numbers are */

static cudaError_t measure(struct sfc_cuda_dense *d)
{
    cudaError_t status =
        sfc_cuda_dense_measure(d->device_tiles, d->tile_count, d->vectors,
                               (float)d->base.config.epsilon, d->device_found, d->cuda->stream);
    return status == cudaSuccess ? fetch_found(d) : status;
}

/* A magnitude that is not a number fits nowhere. */
static double magnitude(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return isnan(v) ? (double)INFINITY : (double)v;
}

static struct sfc_extent block_extent(const struct sfc_cuda_dense *d, size_t index)
{
    uint32_t w = 0, m = 0, ratio = 0; /* such bits order like the numbers */
    for (size_t t = d->first_tile[index]; t < d->first_tile[index + 1]; t++) {
        const struct sfc_cuda_dense_found *found = &d->found[t];
        w = found->w > w ? found->w : w;
        m = found->m > m ? found->m : m;
        ratio = found->ratio > ratio ? found->ratio : ratio;
    }
    return (struct sfc_extent){magnitude(w), magnitude(m), magnitude(ratio)};
}

void sfc_cuda_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    int rc = sfc_cuda_enter(d->cuda, &d->kept);
    if (!rc)
        rc = leave(d, measure(d), "looking for the largest parameters", &d->kept);
    for (size_t i = 0; i < d->block_count; i++)
        out[i] = rc ? (struct sfc_extent){INFINITY, INFINITY, INFINITY} : block_extent(d, i);
}

/* ---- the update */

static struct sfc_cuda_dense_update update_of(const struct sfc_dense_part *dense, double clip_scale,
                                              double lr)
{
    const struct sfc_dense_config *c = &dense->config;
    struct sfc_cuda_dense_update u = {
        .clip = (float)clip_scale,
        .statistic = (float)c->statistic_momentum,
        .lr = (float)lr,
        .momentum = (float)c->momentum,
        .weight_decay = (float)c->weight_decay,
    };
    if (c->optimizer == SFC_OPTIMIZER_ADAMW) {
        struct sfc_adamw a =
            sfc_adamw_at(c->beta1, c->beta2, c->epsilon, c->weight_decay, lr, dense->step);
        u.keep1 = a.keep1, u.take1 = a.take1, u.keep2 = a.keep2, u.take2 = a.take2;
        u.rate = a.rate, u.root = a.root, u.epsilon = a.epsilon, u.decay = a.decay;
    }
    return u;
}

static cudaError_t apply(struct sfc_cuda_dense *d, struct sfc_cuda_dense_update update)
{
    cudaStream_t stream = d->cuda->stream;
    for (size_t i = 0; i < d->block_count; i++)
        d->left_out[i] = sfc_dense_left_out(&d->base, i);
    cudaError_t status =
        cudaMemcpyAsync(d->device_left_out, d->left_out, d->block_count * sizeof *d->left_out,
                        cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess)
        status = sfc_cuda_dense_apply(d->device_tiles, d->tile_count, d->vectors, update,
                                      d->device_left_out, stream);
    return status == cudaSuccess ? cudaStreamSynchronize(stream) : status;
}

int sfc_cuda_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                          struct sfc_error *err)
{
    struct sfc_cuda_dense *d = dense_of(dense);
    int rc = enter(d, err);
    return rc ? rc
              : leave(d, apply(d, update_of(dense, clip_scale, lr)), "updating the backbone", err);
}
