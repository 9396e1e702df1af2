#include "tests/lib/cuda_host/internal.h"

#include <stdlib.h>

static struct {
    bool known;
    uint64_t seed, state;
} order;

void sfc_cuda_host_seed(uint64_t seed)
{
    order.known = true;
    order.seed = seed;
    order.state = seed;
}

bool sfc_host_in_order(void)
{
    if (!order.known) {
        const char *given = getenv("SFC_CUDA_SEED");
        sfc_cuda_host_seed(given ? strtoull(given, NULL, 10) : 1);
    }
    return order.seed == 0;
}

/* SplitMix64 (Steele, Lea and Flood, 2014). */
uint64_t sfc_host_random(void)
{
    uint64_t z = order.state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
