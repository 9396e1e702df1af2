/* The blocks' state as numbers in f32, whatever the store holds. */
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <string.h>

#include "kernels/cpu/head.h"

/* Numbers [k, k + n) of one tensor of a row: where they are. */
struct numbers {
    float *floats;        /* or NULL: then */
    uint16_t *high, *low; /* low: SPLIT weights, else NULL */
};

static struct numbers numbers_at(const struct sfc_store *store, enum sfc_block_part part,
                                 size_t row, size_t k, size_t dim)
{
    size_t tensor = part == SFC_PART_VALUES ? 0 : part == SFC_PART_MOMENTUM ? 1 : 2;
    void *at = sfc_store_at(store, row, tensor, dim);
    uint16_t *high = (uint16_t *)at + k;
    if (store->format == SFC_STORE_BF16)
        return (struct numbers){NULL, high, NULL};
    if (store->format == SFC_STORE_SPLIT && tensor == 0)
        return (struct numbers){NULL, high, high + dim};
    return (struct numbers){(float *)at + k, NULL, NULL};
}

void sfc_cpu_get_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                         enum sfc_block_part part, size_t row, size_t k, size_t n, float *out)
{
    struct numbers at = numbers_at(store, part, row, k, head->config.dim);
    if (at.floats)
        memcpy(out, at.floats, n * sizeof *out);
    else
        head->simd->half->unpack(at.high, at.low, n, store->format, out);
}

#ifdef __SSE2__
/* Past the caches: what is there need not be read before, and nobody reads it soon. */
static void write_floats(float *to, const float *from, size_t n)
{
    size_t done = 0;
    if ((uintptr_t)to % sizeof(__m128) == 0)
        for (; n - done >= 4; done += 4)
            _mm_stream_ps(to + done, _mm_loadu_ps(from + done));
    memcpy(to + done, from + done, (n - done) * sizeof *to);
}

void sfc_cpu_put_done(void)
{
    _mm_sfence();
}
#else
static void write_floats(float *to, const float *from, size_t n)
{
    memcpy(to, from, n * sizeof *to);
}

void sfc_cpu_put_done(void)
{
}
#endif

void sfc_cpu_put_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                         enum sfc_block_part part, size_t row, size_t k, size_t n,
                         const float *values)
{
    struct numbers at = numbers_at(store, part, row, k, head->config.dim);
    if (at.floats)
        write_floats(at.floats, values, n);
    else
        head->simd->half->pack(values, n, store->format, at.high, at.low);
}

struct sfc_store sfc_cpu_store(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block,
                               const struct sfc_cpu_worker *worker)
{
    return (struct sfc_store){
        .format = head->format,
        .records = block->slab->records + block->store * sfc_cpu_record_bytes(head),
        .tensors = head->sizes.tensors,
        .last = block->slab->last ? block->slab->last + block->store : NULL,
        .lag = head->lag,
        .now = (uint32_t)head->base.step,
        .nearest = head->config.rounding == SFC_ROUNDING_NEAREST,
        .seed = head->config.seed,
        .first_class = block->id * head->config.block_size,
        .scratch = worker ? worker->row : NULL,
    };
}

static void read_last(const uint32_t *last, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = (float)last[i];
}

static void write_last(uint32_t *last, uint64_t count, const float *values)
{
    for (uint64_t i = 0; i < count; i++)
        last[i] = (uint32_t)values[i];
}

/* Numbers from offset on that lie in one row. */
static size_t piece(uint64_t offset, uint64_t count, size_t dim)
{
    size_t rest = dim - offset % dim;
    return count < rest ? (size_t)count : rest;
}

int sfc_cpu_head_read(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], NULL);
    (void)err;
    if (part == SFC_PART_LAST_STEP) {
        read_last(s.last + offset, count, out);
        return SFC_OK;
    }
    for (size_t dim = head->config.dim, n; count; offset += n, out += n, count -= n) {
        n = piece(offset, count, dim);
        sfc_cpu_get_numbers(head, &s, part, offset / dim, offset % dim, n, out);
    }
    return SFC_OK;
}

int sfc_cpu_head_write(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], NULL);
    (void)err;
    if (part == SFC_PART_LAST_STEP) {
        write_last(s.last + offset, count, values);
        return SFC_OK;
    }
    for (size_t dim = head->config.dim, n; count; offset += n, values += n, count -= n) {
        n = piece(offset, count, dim);
        sfc_cpu_put_numbers(head, &s, part, offset / dim, offset % dim, n, values);
    }
    sfc_cpu_put_done();
    return SFC_OK;
}

int sfc_cpu_head_read_rows(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                           const uint32_t *rows, size_t count, float *out, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], NULL);
    size_t dim = head->config.dim;
    (void)err;
    for (size_t i = 0; i < count; i++)
        if (part == SFC_PART_LAST_STEP)
            out[i] = (float)s.last[rows[i]];
        else
            sfc_cpu_get_numbers(head, &s, part, rows[i], 0, dim, out + i * dim);
    return SFC_OK;
}

int sfc_cpu_head_write_rows(struct sfc_head_part *base, size_t index, enum sfc_block_part part,
                            const uint32_t *rows, size_t count, const float *values,
                            struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], NULL);
    size_t dim = head->config.dim;
    (void)err;
    for (size_t i = 0; i < count; i++)
        if (part == SFC_PART_LAST_STEP)
            s.last[rows[i]] = (uint32_t)values[i];
        else
            sfc_cpu_put_numbers(head, &s, part, rows[i], 0, dim, values + i * dim);
    sfc_cpu_put_done();
    return SFC_OK;
}
