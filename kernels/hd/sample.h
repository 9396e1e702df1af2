/* The sample of a block (kernels/rng/sample.h) for many threads: keys order the rows by (word,
 * row), and the least k of them are found by narrowing the range that holds the k-th. */
#ifndef SFC_KERNELS_HD_SAMPLE_H
#define SFC_KERNELS_HD_SAMPLE_H

#include "kernels/hd/philox.h"

#define SFC_HD_BIN_BITS 11
#define SFC_HD_BINS     (1u << SFC_HD_BIN_BITS)

/* The words of rows 4 * call .. 4 * call + 3. */
static SFC_HD inline struct sfc_philox sfc_hd_sample_words(struct sfc_philox_key key, uint64_t step,
                                                           uint32_t block, uint32_t call)
{
    return sfc_hd_philox(key, step, (uint64_t)block << 32 | call);
}

static SFC_HD inline uint64_t sfc_hd_sample_key(uint32_t word, uint32_t row)
{
    return (uint64_t)word << 32 | row;
}

/* The first entry of an ascending list that is at least `value`; count where there is none. */
static SFC_HD inline uint32_t sfc_hd_lower_bound(const uint32_t *list, uint32_t count,
                                                 uint32_t value)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (list[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Which of the rows row .. row + 3 are in an ascending list: bit i for row + i. */
static SFC_HD inline uint32_t sfc_hd_members4(const uint32_t *list, uint32_t count, uint32_t row)
{
    uint32_t mask = 0;
    for (uint32_t i = sfc_hd_lower_bound(list, count, row); i < count && list[i] - row < 4; i++)
        mask |= 1u << (list[i] - row);
    return mask;
}

/* The k-th key of the block's negatives is the k-th of the `members` that have the leading bits of
 * `low`, all but the last `bits`. Begin with {0, 64, k, negatives}. */
struct sfc_hd_cut {
    uint64_t low;
    uint32_t bits;
    uint32_t k; /* 1 .. members */
    uint32_t members;
};

static SFC_HD inline int sfc_hd_cut_holds(const struct sfc_hd_cut *cut, uint64_t key)
{
    return cut->bits >= 64 || (key ^ cut->low) >> cut->bits == 0;
}

/* The last bits of a key that its bin does not tell. */
static SFC_HD inline uint32_t sfc_hd_cut_rest(const struct sfc_hd_cut *cut)
{
    return cut->bits > SFC_HD_BIN_BITS ? cut->bits - SFC_HD_BIN_BITS : 0;
}

/* The bin of a key that the range holds, below SFC_HD_BINS. */
static SFC_HD inline uint32_t sfc_hd_cut_bin(const struct sfc_hd_cut *cut, uint64_t key)
{
    return (uint32_t)((key - cut->low) >> sfc_hd_cut_rest(cut));
}

/* To the bin that holds the k-th; before: keys in lower bins. */
static SFC_HD inline void sfc_hd_cut_narrow(struct sfc_hd_cut *cut, uint32_t bin, uint32_t before,
                                            uint32_t members)
{
    cut->bits = sfc_hd_cut_rest(cut);
    cut->low |= (uint64_t)bin << cut->bits;
    cut->k -= before;
    cut->members = members;
}

#endif
