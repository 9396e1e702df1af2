#include "proto/base/backoff.h"

unsigned sfc_backoff_next(struct sfc_backoff *b)
{
    b->ms = b->ms == 0 ? b->first_ms : b->ms < b->last_ms / 2 ? b->ms * 2 : b->last_ms;
    uint64_t z = b->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return b->ms - (unsigned)(z % (b->ms / 2 + 1));
}
