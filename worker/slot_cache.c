#include "worker/slot_cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

enum slot_state { EMPTY, FILLING, READY };

struct entry {
    struct sfc_slot slot; /* first: a slot is its entry */
    enum slot_state state;
    uint32_t users;
    bool forgotten; /* becomes EMPTY when the last user closes it */
};

struct sfc_slot_cache {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t count;
    struct entry *entries;
};

static size_t aligned_bytes(size_t values)
{
    return (values * sizeof(float) + 63) / 64 * 64 + 64;
}

uint64_t sfc_slot_bytes(uint32_t rows, size_t values)
{
    return sizeof(struct entry) + aligned_bytes(values) +
           rows * (sizeof(uint64_t) + sizeof(uint32_t));
}

void sfc_slot_cache_free(struct sfc_slot_cache *cache)
{
    if (!cache)
        return;
    for (size_t i = 0; cache->entries && i < cache->count; i++) {
        free(cache->entries[i].slot.values);
        free(cache->entries[i].slot.labels);
        free(cache->entries[i].slot.broken);
    }
    free(cache->entries);
    pthread_cond_destroy(&cache->changed);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

int sfc_slot_cache_new(size_t slots, uint32_t rows, size_t values, struct sfc_slot_cache **out,
                       struct sfc_error *err)
{
    struct sfc_slot_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a cache");
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->changed, NULL);
    cache->entries = calloc(slots, sizeof *cache->entries);
    cache->count = cache->entries ? slots : 0;
    bool whole = cache->entries;
    for (size_t i = 0; i < cache->count && whole; i++) {
        struct sfc_slot *slot = &cache->entries[i].slot;
        slot->values = aligned_alloc(64, aligned_bytes(values));
        slot->labels = calloc(rows + 1u, sizeof *slot->labels);
        slot->broken = calloc(rows + 1u, sizeof *slot->broken);
        whole = slot->values && slot->labels && slot->broken;
    }
    if (!whole) {
        sfc_slot_cache_free(cache);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a cache of %zu buffers of %llu bytes",
                        slots, (unsigned long long)sfc_slot_bytes(rows, values));
    }
    *out = cache;
    return SFC_OK;
}

static struct entry *find(struct sfc_slot_cache *cache, uint64_t step, uint32_t micro_batch)
{
    for (size_t i = 0; i < cache->count; i++) {
        struct entry *e = &cache->entries[i];
        if (e->state != EMPTY && !e->forgotten && e->slot.step == step &&
            e->slot.micro_batch == micro_batch)
            return e;
    }
    return NULL;
}

static bool needed_later(const struct entry *a, const struct entry *b)
{
    return a->slot.step != b->slot.step ? a->slot.step > b->slot.step
                                        : a->slot.micro_batch > b->slot.micro_batch;
}

/* An empty entry, or else the unused one that is needed last. */
static struct entry *victim(struct sfc_slot_cache *cache)
{
    struct entry *last = NULL;
    for (size_t i = 0; i < cache->count; i++) {
        struct entry *e = &cache->entries[i];
        if (e->state == EMPTY)
            return e;
        if (!e->users && (!last || needed_later(e, last)))
            last = e;
    }
    assert(last); /* more slots than threads, one slot per thread */
    return last;
}

struct sfc_slot *sfc_slot_open(struct sfc_slot_cache *cache, uint64_t step, uint32_t micro_batch,
                               bool *fill)
{
    pthread_mutex_lock(&cache->lock);
    struct entry *e;
    while ((e = find(cache, step, micro_batch)) && e->state == FILLING)
        pthread_cond_wait(&cache->changed, &cache->lock);
    *fill = !e;
    if (!e) {
        e = victim(cache);
        e->state = FILLING;
        e->users = 0;
        e->forgotten = false;
        e->slot.step = step;
        e->slot.micro_batch = micro_batch;
        e->slot.broken_count = 0;
        e->slot.error.code = SFC_OK;
        e->slot.error.text[0] = '\0';
    }
    e->users++;
    pthread_mutex_unlock(&cache->lock);
    return &e->slot;
}

void sfc_slot_filled(struct sfc_slot_cache *cache, struct sfc_slot *slot)
{
    struct entry *e = (struct entry *)slot;
    pthread_mutex_lock(&cache->lock);
    e->state = READY;
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
}

void sfc_slot_close(struct sfc_slot_cache *cache, struct sfc_slot *slot)
{
    struct entry *e = (struct entry *)slot;
    pthread_mutex_lock(&cache->lock);
    assert(e->users > 0);
    e->users--;
    if (!e->users && (e->state == FILLING || e->forgotten)) {
        e->state = EMPTY;
        pthread_cond_broadcast(&cache->changed);
    }
    pthread_mutex_unlock(&cache->lock);
}

void sfc_slot_forget(struct sfc_slot_cache *cache, struct sfc_slot *slot)
{
    pthread_mutex_lock(&cache->lock);
    ((struct entry *)slot)->forgotten = true;
    pthread_mutex_unlock(&cache->lock);
}

void sfc_slot_cache_committed(struct sfc_slot_cache *cache, uint64_t step)
{
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < cache->count; i++) {
        struct entry *e = &cache->entries[i];
        if (e->state == READY && e->slot.step <= step) {
            if (e->users)
                e->forgotten = true;
            else
                e->state = EMPTY;
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

void sfc_slot_cache_rewind(struct sfc_slot_cache *cache, uint64_t step)
{
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < cache->count; i++) {
        struct entry *e = &cache->entries[i];
        if (e->state == EMPTY || e->slot.step <= step)
            continue;
        if (e->users)
            e->forgotten = true;
        else
            e->state = EMPTY;
    }
    pthread_mutex_unlock(&cache->lock);
}

size_t sfc_slot_cache_used(struct sfc_slot_cache *cache)
{
    size_t used = 0;
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < cache->count; i++)
        used += cache->entries[i].state != EMPTY;
    pthread_mutex_unlock(&cache->lock);
    return used;
}
