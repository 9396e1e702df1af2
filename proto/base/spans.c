#include "proto/base/spans.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORDS = 6 };
#define BUSY UINT64_MAX

/* A place of the ring: `number` is 1 + the number of the span that it holds, 0 before the first
 * one, BUSY while it is written. Whoever reads compares it before and after. */
struct place {
    _Atomic uint64_t number;
    _Atomic uint64_t words[WORDS];
};

struct phase_count {
    _Atomic uint64_t counts[SFC_HISTOGRAM_BOUNDS + 1];
    _Atomic uint64_t sum_ns;
};

struct sfc_spans {
    _Atomic uint64_t next;
    _Atomic uint64_t floor; /* spans before this number are forgotten */
    _Atomic uint64_t since_ns;
    struct phase_count phases[SFC_SPAN_PHASES];
    struct place ring[SFC_SPANS_KEPT];
};

const char *sfc_phase_name(unsigned phase)
{
    switch (phase) {
#define X(name, number, text, help)                                                                \
    case number:                                                                                   \
        return text;
        SFC_SPAN_MAP(X)
#undef X
    default:
        return NULL;
    }
}

const char *sfc_phase_help(unsigned phase)
{
    switch (phase) {
#define X(name, number, text, help)                                                                \
    case number:                                                                                   \
        return help;
        SFC_SPAN_MAP(X)
#undef X
    default:
        return NULL;
    }
}

const char *sfc_thread_name(unsigned thread)
{
    static const char *const names[SFC_THREADS] = {"loop",      "store", "compute", "log",
                                                   "snapshots", "lane",  "reader"};
    return thread < SFC_THREADS ? names[thread] : NULL;
}

int sfc_spans_new(struct sfc_spans **out, struct sfc_error *err)
{
    struct sfc_spans *spans = calloc(1, sizeof *spans);
    if (spans == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for spans of steps");
    }
    atomic_store(&spans->since_ns, sfc_spans_now());
    *out = spans;
    return SFC_OK;
}

void sfc_spans_free(struct sfc_spans *spans)
{
    free(spans);
}

uint64_t sfc_spans_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void count(struct phase_count *p, uint64_t ns)
{
    size_t bucket = sfc_histogram_bucket(1e-9 * (double)ns);
    atomic_fetch_add_explicit(&p->counts[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&p->sum_ns, ns, memory_order_relaxed);
}

static void pack(const struct sfc_span *span, uint64_t words[WORDS])
{
    words[0] = span->begin_ns;
    words[1] = span->end_ns;
    words[2] = span->step;
    words[3] = span->bytes;
    words[4] = (uint64_t)span->rows << 32 | span->micro_batch;
    words[5] = (uint64_t)span->index << 16 | (uint64_t)span->thread << 8 | span->phase;
}

static void unpack(const uint64_t words[WORDS], struct sfc_span *span)
{
    *span = (struct sfc_span){.begin_ns = words[0],
                              .end_ns = words[1],
                              .step = words[2],
                              .bytes = words[3],
                              .rows = (uint32_t)(words[4] >> 32),
                              .micro_batch = (uint32_t)words[4],
                              .index = (uint32_t)(words[5] >> 16),
                              .thread = (uint8_t)(words[5] >> 8),
                              .phase = (uint8_t)words[5]};
}

void sfc_spans_add(struct sfc_spans *spans, const struct sfc_span *span)
{
    if (spans == NULL || span->phase >= SFC_SPAN_PHASES) {
        return;
    }
    count(&spans->phases[span->phase],
          span->end_ns > span->begin_ns ? span->end_ns - span->begin_ns : 0);
    uint64_t number = atomic_fetch_add_explicit(&spans->next, 1, memory_order_relaxed);
    struct place *place = &spans->ring[number % SFC_SPANS_KEPT];
    uint64_t held = atomic_load_explicit(&place->number, memory_order_relaxed);
    /* Another thread is a whole ring behind or ahead of this one: then the place is its own. */
    if (held == BUSY || held > number ||
        !atomic_compare_exchange_strong_explicit(&place->number, &held, BUSY, memory_order_acquire,
                                                 memory_order_relaxed)) {
        return;
    }
    uint64_t words[WORDS];
    pack(span, words);
    for (size_t i = 0; i < WORDS; i++) { /* whoever sees one sees BUSY, or what came later */
        atomic_store_explicit(&place->words[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&place->number, number + 1, memory_order_release);
}

void sfc_lap_begin(struct sfc_lap *lap)
{
    if (lap != NULL && lap->spans != NULL) {
        lap->span.begin_ns = sfc_spans_now();
    }
}

void sfc_lap_end(struct sfc_lap *lap, enum sfc_phase phase, uint64_t bytes)
{
    if (lap != NULL && lap->spans != NULL) {
        sfc_lap_end_at(lap, phase, bytes, sfc_spans_now());
    }
}

void sfc_lap_end_at(struct sfc_lap *lap, enum sfc_phase phase, uint64_t bytes, uint64_t at_ns)
{
    if (lap == NULL || lap->spans == NULL) {
        return;
    }
    lap->span.end_ns = at_ns;
    lap->span.phase = (uint8_t)phase;
    lap->span.bytes = bytes;
    sfc_spans_add(lap->spans, &lap->span);
    lap->span.begin_ns = lap->span.end_ns;
}

/* false: there is no such span (any more). */
static bool read_place(const struct place *place, uint64_t number, struct sfc_span *out)
{
    uint64_t words[WORDS];
    if (atomic_load_explicit(&place->number, memory_order_acquire) != number + 1) {
        return false;
    }
    for (size_t i = 0; i < WORDS; i++) {
        words[i] = atomic_load_explicit(&place->words[i], memory_order_acquire);
    }
    if (atomic_load_explicit(&place->number, memory_order_relaxed) != number + 1) {
        return false;
    }
    unpack(words, out);
    return true;
}

size_t sfc_spans_take(const struct sfc_spans *spans, uint64_t first, uint64_t last,
                      struct sfc_span *out, size_t room, bool *gone)
{
    uint64_t next = atomic_load_explicit(&spans->next, memory_order_acquire);
    uint64_t floor = atomic_load_explicit(&spans->floor, memory_order_relaxed);
    uint64_t from = next > SFC_SPANS_KEPT ? next - SFC_SPANS_KEPT : 0;
    size_t taken = 0;
    bool earlier = from <= floor; /* or a span of a step before `first` is still there */
    *gone = false;
    from = from < floor ? floor : from;
    for (uint64_t i = from; i < next; i++) {
        struct sfc_span span;
        if (!read_place(&spans->ring[i % SFC_SPANS_KEPT], i, &span)) {
            continue;
        }
        earlier = earlier || span.step < first;
        if (span.step < first || span.step > last) {
            continue;
        }
        if (taken == room) {
            *gone = true;
            break;
        }
        out[taken++] = span;
    }
    *gone = *gone || !earlier;
    return taken;
}

void sfc_spans_forget(struct sfc_spans *spans)
{
    atomic_store_explicit(&spans->floor, atomic_load_explicit(&spans->next, memory_order_relaxed),
                          memory_order_relaxed);
    atomic_store_explicit(&spans->since_ns, sfc_spans_now(), memory_order_relaxed);
}

uint64_t sfc_spans_since(const struct sfc_spans *spans)
{
    return atomic_load_explicit(&spans->since_ns, memory_order_relaxed);
}

void sfc_clock_estimate(uint64_t sent, uint64_t received, uint64_t replied, uint64_t answered,
                        int64_t *offset, uint64_t *uncertainty)
{
    uint64_t there = answered - sent, theirs = replied - received;
    uint64_t wrong = there > theirs ? (there - theirs) / 2 : 0;
    if (wrong < *uncertainty) {
        *offset = ((int64_t)(received - sent) + (int64_t)(replied - answered)) / 2;
        *uncertainty = wrong;
    }
}

void sfc_spans_histogram(const struct sfc_spans *spans, enum sfc_phase phase,
                         struct sfc_histogram *out)
{
    const struct phase_count *p = &spans->phases[phase];
    *out = (struct sfc_histogram){0};
    for (size_t i = 0; i <= SFC_HISTOGRAM_BOUNDS; i++) {
        out->counts[i] = atomic_load_explicit(&p->counts[i], memory_order_relaxed);
        out->all += out->counts[i];
    }
    out->sum = 1e-9 * (double)atomic_load_explicit(&p->sum_ns, memory_order_relaxed);
}
