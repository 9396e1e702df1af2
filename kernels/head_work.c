#include <math.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/head.h"
#include "kernels/hd/layout.h"
#include "kernels/rng/sample.h"

/* Of a block, beside its products: mostly its dx, which is rounded to integers and added. 6 to 23
 * rows of a product on the CPU (widths of 128 to 512, batches of 256 to 1024), fewer on a GPU. */
#define CPU_BLOCK_ROWS 8

static double quota_of(const struct sfc_head_config *config, uint64_t block)
{
    uint64_t rows = sfc_head_block_rows(config, block);
    return sfc_sample_quota((uint32_t)rows, config->sample_ppm, 0);
}

double sfc_head_work(const struct sfc_head_config *config, const char *numerics, uint64_t block,
                     double rows)
{
    bool device = strncmp(numerics, "cuda", 4) == 0;
    struct sfc_cpu_sizes sizes;
    sfc_cpu_product_sizes(config, &sizes);
    double tile = device ? (double)sfc_hd_chunk((size_t)quota_of(config, 0)) : (double)sizes.tile;
    double quota = quota_of(config, block), least = ceil(quota / tile) * tile;
    /* Above its quota a block's rows are another number in each step, so half of a tile is padding
     * on average; just above it most steps are at the quota. */
    double most = rows + tile / 2, near = least + (rows - quota) * tile / 2;
    return fmax(least, fmin(most, near)) + (device ? 0 : CPU_BLOCK_ROWS);
}
