#include "tests/lib/cuda_host/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS  1024u
#define WARP         32u
#define PROBES       4u /* of 16 bits of one random number each */
#define MAX_ARRAYS   32
#define SHARED_BYTES ((size_t)48 << 10) /* of static arrays */

static const char *const meeting_names[] = {
    "__syncthreads",   "__syncwarp",    "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
    "__shfl_xor_sync", "__ballot_sync", "__any_sync",  "__all_sync",
};

enum thread_state { READY, MEETS_BLOCK, MEETS_WARP, RETURNED };

struct thread {
    struct sfc_cuda_place place;
    struct sfc_fiber *fiber; /* NULL before its first turn */
    enum thread_state state;
    enum sfc_cuda_meeting kind;
    const char *file;
    int line;
    uint64_t meetings; /* of its warp that it was in */
};

/* Lanes read one meeting's values while faster ones may already give those of the next. */
struct warp {
    uint64_t values[2][WARP];
    unsigned there;
    uint32_t ready; /* lanes that can go on: then the warp waits for its turn */
};

struct array {
    const void *key;
    void *memory;
    size_t bytes;
};

/* The one grid that runs. */
static struct {
    const struct sfc_host_launch *launch;
    unsigned threads, meets, returned;
    struct thread thread[MAX_THREADS];
    struct warp warp[MAX_THREADS / WARP];
    unsigned turn[MAX_THREADS / WARP], first, count; /* warps with lanes that are ready: a ring */
    uint64_t order;                                  /* of warps, until the next barrier */
    struct thread *now;
    struct array array[MAX_ARRAYS];
    size_t arrays, shared;
    bool in_order;
} grid;

struct sfc_cuda_grid sfc_cuda_grid;
const struct sfc_cuda_place *sfc_cuda_here;

/* ---- what is wrong */

struct text {
    char text[160];
};

static struct text where(const struct thread *t)
{
    struct text out;
    const struct sfc_cuda_dim3 *at = &t->place.thread;
    int n = snprintf(out.text, sizeof out.text, "thread (%u, %u, %u) ", at->x, at->y, at->z);
    char *end = out.text + n;
    size_t left = sizeof out.text - (size_t)n;
    if (t->state == RETURNED)
        snprintf(end, left, "has returned");
    else if (t->state == READY)
        snprintf(end, left, "has not got there");
    else
        snprintf(end, left, "is in %s at %.60s:%d", meeting_names[t->kind], t->file, t->line);
    return out;
}

_Noreturn static void die_apart(const struct thread *a, const struct thread *b)
{
    const struct sfc_cuda_dim3 *at = &sfc_cuda_grid.block;
    sfc_host_die("kernel %s, block (%u, %u, %u): %s while %s", grid.launch->name, at->x, at->y,
                 at->z, where(a).text, where(b).text);
}

static bool same_meeting(const struct thread *a, const struct thread *b)
{
    return a->state == b->state && a->kind == b->kind && a->line == b->line &&
           (a->file == b->file || !strcmp(a->file, b->file));
}

/* ---- warps that wait for their turn */

#define WARPS (MAX_THREADS / WARP)

static unsigned warps_of(unsigned threads)
{
    return (threads + WARP - 1) / WARP;
}

static uint32_t lanes_of(unsigned warp)
{
    unsigned left = grid.threads - warp * WARP;
    return left < WARP ? (UINT32_C(1) << left) - 1 : UINT32_MAX;
}

/* All its lanes. */
static void make_ready(unsigned warp)
{
    uint32_t lanes = lanes_of(warp);
    for (unsigned i = warp * WARP; lanes >> i % WARP & 1; i++) {
        grid.thread[i].state = READY;
        if (i % WARP == WARP - 1)
            break;
    }
    grid.warp[warp].ready = lanes;
    grid.turn[(grid.first + grid.count++) % WARPS] = warp;
}

/* How late a warp is in the present order. */
static uint64_t lateness(unsigned warp)
{
    uint64_t z = (grid.order + warp) * UINT64_C(0x9e3779b97f4a7c15);
    return (z ^ z >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
}

/* Of a few warps that wait the earliest one: were all alike, they would stay close together, and
 * one that runs far ahead of another is what finds a barrier that is missing. */
static unsigned choose_turn(uint64_t random)
{
    unsigned best = grid.first;
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < PROBES; i++, random >>= 16) {
        unsigned at = (grid.first + ((unsigned)(random & 0xffff) * grid.count >> 16)) % WARPS;
        uint64_t late = lateness(grid.turn[at]);
        if (late < least) {
            best = at;
            least = late;
        }
    }
    return best;
}

static unsigned take_turn(void)
{
    unsigned head = grid.first;
    if (!grid.in_order) {
        unsigned other = choose_turn(sfc_host_random());
        unsigned warp = grid.turn[other];
        grid.turn[other] = grid.turn[head];
        grid.turn[head] = warp;
    }
    grid.first = (head + 1) % WARPS;
    grid.count--;
    return grid.turn[head];
}

static unsigned index_of(const struct thread *t)
{
    return (unsigned)(t - grid.thread);
}

static void wait_in(struct thread *t, enum thread_state state, enum sfc_cuda_meeting kind,
                    const char *file, int line)
{
    t->state = state;
    t->kind = kind;
    t->file = file;
    t->line = line;
}

void sfc_cuda_meet_block(const char *file, int line)
{
    struct thread *t = grid.now;
    wait_in(t, MEETS_BLOCK, SFC_CUDA_SYNCTHREADS, file, line);
    if (++grid.meets == grid.threads) {
        for (unsigned i = 0; i < grid.threads; i++)
            if (!same_meeting(t, &grid.thread[i]))
                die_apart(t, &grid.thread[i]);
        grid.meets = 0;
        grid.order = sfc_host_random();
        for (unsigned w = 0; w < warps_of(grid.threads); w++)
            make_ready(w);
    }
    sfc_fiber_yield();
}

const uint64_t *sfc_cuda_meet_warp(enum sfc_cuda_meeting kind, unsigned mask, uint64_t value,
                                   const char *file, int line)
{
    struct thread *t = grid.now;
    unsigned first = index_of(t) / WARP * WARP;
    struct warp *warp = &grid.warp[first / WARP];
    uint64_t *values = warp->values[t->meetings++ % 2];
    values[t->place.lane] = value;
    wait_in(t, MEETS_WARP, kind, file, line);
    if (mask != UINT32_MAX || first + WARP > grid.threads)
        sfc_host_die("kernel %s: %s with mask %#x in a block of %u threads: all 32 lanes of a warp "
                     "must take part",
                     grid.launch->name, where(t).text, mask, grid.threads);
    if (++warp->there == WARP) {
        for (unsigned i = first; i < first + WARP; i++)
            if (!same_meeting(t, &grid.thread[i]))
                die_apart(t, &grid.thread[i]);
        warp->there = 0;
        make_ready(first / WARP);
    }
    sfc_fiber_yield();
    return values;
}

/* ---- shared arrays */

void *sfc_cuda_shared(const void *key, size_t bytes)
{
    for (size_t i = 0; i < grid.arrays; i++)
        if (grid.array[i].key == key)
            return grid.array[i].memory;
    grid.shared += bytes;
    if (grid.shared > SHARED_BYTES || grid.arrays == MAX_ARRAYS)
        sfc_host_die("kernel %s: %zu bytes in %zu shared arrays; at most %zu in %d",
                     grid.launch->name, grid.shared, grid.arrays + 1, SHARED_BYTES, MAX_ARRAYS);
    struct array *a = &grid.array[grid.arrays++];
    *a = (struct array){.key = key, .bytes = bytes};
    if (posix_memalign(&a->memory, 128, bytes))
        sfc_host_die("no memory for a shared array");
    sfc_host_poison(a->memory, bytes);
    return a->memory;
}

static void free_arrays(void)
{
    for (size_t i = 0; i < grid.arrays; i++)
        free(grid.array[i].memory);
    grid.arrays = 0;
    grid.shared = 0;
}

/* ---- blocks */

static void run_thread(void *arg)
{
    (void)arg;
    grid.launch->run(grid.launch->arg);
}

/* All threads are ready at first. */
static void place_threads(void)
{
    const struct sfc_cuda_dim3 *size = &grid.launch->block;
    struct sfc_cuda_dim3 at = {0, 0, 0};
    for (unsigned i = 0; i < grid.threads; i++) {
        struct thread *t = &grid.thread[i];
        t->place = (struct sfc_cuda_place){at, i % WARP};
        t->fiber = NULL;
        t->meetings = 0;
        at.x++;
        at.y += at.x == size->x;
        at.x = at.x == size->x ? 0 : at.x;
        at.z += at.y == size->y;
        at.y = at.y == size->y ? 0 : at.y;
    }
    grid.first = grid.count = 0;
    for (unsigned w = 0; w < warps_of(grid.threads); w++) {
        grid.warp[w].there = 0;
        make_ready(w);
    }
}

/* No thread can go on: then one that waits and one that it waits for. */
_Noreturn static void die_stuck(void)
{
    const struct thread *waits = NULL;
    for (unsigned i = 0; i < grid.threads && !waits; i++)
        if (grid.thread[i].state != RETURNED)
            waits = &grid.thread[i];
    unsigned first = 0, end = grid.threads;
    if (waits->state == MEETS_WARP) {
        first = index_of(waits) / WARP * WARP;
        end = first + WARP;
    }
    for (unsigned i = first; i < end; i++)
        if (!same_meeting(waits, &grid.thread[i]))
            die_apart(waits, &grid.thread[i]);
    sfc_host_die("kernel %s: nobody can go on", grid.launch->name);
}

/* To its next meeting, or to its end. */
static void run_lane(struct thread *t)
{
    grid.now = t;
    sfc_cuda_here = &t->place;
    if (!t->fiber)
        t->fiber = sfc_fiber_take(run_thread, NULL);
    if (sfc_fiber_enter(t->fiber)) {
        t->state = RETURNED;
        grid.returned++;
    }
}

/* Its lanes that are ready, in any order. */
static void run_warp(unsigned index)
{
    struct warp *warp = &grid.warp[index];
    uint32_t ready = warp->ready;
    unsigned start = 0, stride = 1;
    if (!grid.in_order) {
        uint64_t random = sfc_host_random();
        start = (unsigned)random % WARP;
        stride = (unsigned)(random >> 32) | 1; /* odd: each lane once */
    }
    warp->ready = 0;
    for (unsigned i = 0; i < WARP; i++) {
        unsigned lane = (start + i * stride) % WARP;
        if (ready >> lane & 1)
            run_lane(&grid.thread[index * WARP + lane]);
    }
}

static void run_block(struct sfc_cuda_dim3 block)
{
    sfc_cuda_grid.block = block;
    grid.meets = grid.returned = 0;
    place_threads();
    for (size_t i = 0; i < grid.arrays; i++)
        sfc_host_poison(grid.array[i].memory, grid.array[i].bytes);
    while (grid.count > 0)
        run_warp(take_turn());
    if (grid.returned < grid.threads)
        die_stuck();
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void sfc_host_run_grid(const struct sfc_host_launch *launch)
{
    const struct sfc_cuda_dim3 *size = &launch->grid;
    uint64_t blocks = (uint64_t)size->x * size->y * size->z, start = 0, stride = 1;
    grid.launch = launch;
    grid.threads = launch->block.x * launch->block.y * launch->block.z;
    sfc_cuda_grid.threads = launch->block;
    sfc_cuda_grid.blocks = launch->grid;
    grid.in_order = sfc_host_in_order();
    if (!grid.in_order) {
        start = sfc_host_random() % blocks;
        do
            stride = 1 + sfc_host_random() % blocks % (UINT32_C(1) << 31);
        while (common_divisor(stride, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t b = (start + i * stride) % blocks;
        run_block((struct sfc_cuda_dim3){(unsigned)(b % size->x), (unsigned)(b / size->x % size->y),
                                         (unsigned)(b / size->x / size->y)});
    }
    free_arrays();
    grid.launch = NULL;
}
