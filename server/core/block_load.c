#include "server/core/block_load.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/rng/sample.h"

static uint32_t rows_of(const struct sfc_block_load *l, uint32_t block)
{
    uint64_t first = (uint64_t)block * l->config.block_size;
    uint64_t rows = l->config.classes - first;
    return rows < l->config.block_size ? (uint32_t)rows : l->config.block_size;
}

int sfc_block_load_init(struct sfc_block_load *l, const struct sfc_block_load_config *config,
                        struct sfc_error *err)
{
    if (config->classes < 1 || config->block_size < 1)
        return sfc_fail(err, SFC_EINVAL, "load of blocks: no classes, or blocks of none");
    uint64_t blocks = (config->classes - 1) / config->block_size + 1;
    struct sfc_block_load x = {.config = *config};
    if (blocks <= UINT32_MAX) {
        x.blocks = (uint32_t)blocks;
        x.rows = calloc(blocks, sizeof *x.rows);
        x.positives = calloc(blocks, sizeof *x.positives);
        x.sorted = calloc(config->batch ? config->batch : 1, sizeof *x.sorted);
    }
    if (!x.rows || !x.positives || !x.sorted) {
        sfc_block_load_free(&x);
        return sfc_fail(err, SFC_ENOMEM, "load of %llu blocks", (unsigned long long)blocks);
    }
    for (uint32_t b = 0; b < x.blocks; b++)
        x.rows[b] = sfc_sample_quota(rows_of(&x, b), config->sample_ppm, 0);
    *l = x;
    return SFC_OK;
}

void sfc_block_load_free(struct sfc_block_load *l)
{
    free(l->rows);
    free(l->positives);
    free(l->sorted);
    memset(l, 0, sizeof *l);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void sfc_block_load_note(struct sfc_block_load *l, const uint64_t *labels, uint32_t count)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count && n < l->config.batch; i++)
        if (labels[i] < l->config.classes)
            l->sorted[n++] = labels[i];
    qsort(l->sorted, n, sizeof *l->sorted, compare);
    memset(l->positives, 0, l->blocks * sizeof *l->positives);
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || l->sorted[i] != l->sorted[i - 1])
            l->positives[l->sorted[i] / l->config.block_size]++;
    l->steps++;
    double weight =
        1.0 / (double)(l->steps < SFC_BLOCK_LOAD_STEPS ? l->steps : SFC_BLOCK_LOAD_STEPS);
    for (uint32_t b = 0; b < l->blocks; b++) {
        uint32_t rows = sfc_sample_quota(rows_of(l, b), l->config.sample_ppm, l->positives[b]);
        l->rows[b] += weight * (rows - l->rows[b]);
    }
}
