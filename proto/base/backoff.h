/* Pauses between tries: doubled from the first to the last, each drawn from its upper half, so that
 * many callers of one server that comes back do not come together. Decides only when, never what.
 */
#ifndef SFC_PROTO_BASE_BACKOFF_H
#define SFC_PROTO_BASE_BACKOFF_H

#include <stdint.h>

struct sfc_backoff {
    uint64_t random;
    unsigned first_ms, last_ms;
    unsigned ms; /* of the last pause before the draw; 0: none since the reset */
};

/* seed: anything that differs between callers. */
static inline struct sfc_backoff sfc_backoff(unsigned first_ms, unsigned last_ms, uint64_t seed)
{
    return (struct sfc_backoff){.random = seed, .first_ms = first_ms, .last_ms = last_ms};
}

unsigned sfc_backoff_next(struct sfc_backoff *b); /* milliseconds */

static inline void sfc_backoff_reset(struct sfc_backoff *b) /* it worked */
{
    b->ms = 0;
}

#endif
