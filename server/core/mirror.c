#include "server/core/mirror.h"

#include <string.h>

struct choice {
    const struct sfc_mirror_place *places;
    uint32_t count;
    uint32_t mirrors;
    uint32_t load[SFC_CORE_MAX_SHARDS]; /* how many places each one mirrors */
};

bool sfc_mirrors_have(const struct sfc_mirrors *set, uint32_t place)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->at[i] == place)
            return true;
    return false;
}

static bool same_host(const struct choice *c, uint32_t a, uint32_t b)
{
    return strcmp(c->places[a].host, c->places[b].host) == 0;
}

/* Shards on other hosts than this place's. */
static uint32_t others(const struct choice *c, uint32_t place)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < c->count; k++)
        n += c->places[k].present && !same_host(c, k, place);
    return n;
}

/* Keeps the order ascending. */
static void add(struct choice *c, struct sfc_mirrors *set, uint32_t place)
{
    uint32_t i = set->count++;
    for (; i > 0 && set->at[i - 1] > place; i--)
        set->at[i] = set->at[i - 1];
    set->at[i] = place;
    c->load[place]++;
}

static void keep(struct choice *c, uint32_t place, struct sfc_mirrors *set)
{
    const struct sfc_mirrors before = *set;
    *set = (struct sfc_mirrors){0};
    if (!c->places[place].present)
        return;
    for (uint32_t i = 0; i < before.count && set->count < c->mirrors; i++) {
        uint32_t m = before.at[i];
        bool there = m < c->count && m != place && c->places[m].present;
        bool fair = there && c->load[m] < c->mirrors &&
                    (!same_host(c, m, place) || others(c, place) < c->mirrors);
        if (there && (fair || c->places[place].missing))
            add(c, set, m);
    }
}

/* Less is better. */
static uint64_t cost(const struct choice *c, uint32_t place, const struct sfc_mirrors *set,
                     uint32_t m)
{
    uint64_t hosts = same_host(c, m, place) ? 2 : 0;
    for (uint32_t i = 0; i < set->count && hosts == 0; i++)
        hosts = same_host(c, m, set->at[i]) ? 1 : 0;
    uint32_t distance = (m + c->count - place) % c->count;
    return hosts << 32 | (uint64_t)c->load[m] << 16 | distance;
}

/* Another one for this place; c->count: nobody is left. */
static uint32_t next(const struct choice *c, uint32_t place, const struct sfc_mirrors *set)
{
    uint32_t best = c->count;
    for (uint32_t m = 0; m < c->count; m++) {
        if (m == place || !c->places[m].present || sfc_mirrors_have(set, m))
            continue;
        if (best == c->count || cost(c, place, set, m) < cost(c, place, set, best))
            best = m;
    }
    return best;
}

static void fill(struct choice *c, uint32_t place, struct sfc_mirrors *set)
{
    while (c->places[place].present && set->count < c->mirrors) {
        uint32_t best = next(c, place, set);
        if (best == c->count)
            return;
        add(c, set, best);
    }
}

static void take_out(struct choice *c, struct sfc_mirrors *set, uint32_t i)
{
    c->load[set->at[i]]--;
    set->count--;
    memmove(&set->at[i], &set->at[i + 1], (set->count - i) * sizeof(set->at[0]));
}

/* Who mirrors more than its share gives one up to who is no worse for it and has less to do. */
static void even_out(struct choice *c, uint32_t place, struct sfc_mirrors *set)
{
    for (uint32_t i = 0; i < set->count; i++) {
        uint32_t m = set->at[i];
        if (c->load[m] <= c->mirrors)
            continue;
        struct sfc_mirrors before = *set;
        take_out(c, set, i);
        uint32_t best = next(c, place, set);
        bool better = best != m && cost(c, place, set, best) >> 32 <= cost(c, place, set, m) >> 32;
        if (better) {
            add(c, set, best);
            return;
        }
        *set = before;
        c->load[m]++;
    }
}

void sfc_mirrors_choose(const struct sfc_mirror_place *places, uint32_t count, uint32_t mirrors,
                        struct sfc_mirrors *sets)
{
    struct choice c = {.places = places,
                       .count = count < SFC_CORE_MAX_SHARDS ? count : SFC_CORE_MAX_SHARDS,
                       .mirrors = mirrors < SFC_CORE_MAX_MIRRORS ? mirrors : SFC_CORE_MAX_MIRRORS};
    for (uint32_t k = 0; k < c.count; k++)
        if (places[k].missing)
            keep(&c, k, &sets[k]);
    for (uint32_t k = 0; k < c.count; k++)
        if (!places[k].missing)
            keep(&c, k, &sets[k]);
    for (uint32_t k = 0; k < c.count; k++)
        fill(&c, k, &sets[k]);
    for (uint32_t k = 0; k < c.count; k++)
        if (!places[k].missing)
            even_out(&c, k, &sets[k]);
}

bool sfc_adopters_share(struct sfc_adopter *adopters, uint32_t count, const uint64_t *bytes,
                        uint32_t blocks, uint32_t *owner)
{
    for (uint32_t b = 0; b < blocks; b++) {
        struct sfc_adopter *best = NULL;
        for (uint32_t i = 0; i < count; i++) {
            struct sfc_adopter *a = &adopters[i];
            bool room = a->bytes <= a->limit && a->limit - a->bytes >= bytes[b];
            if (room && (!best || a->bytes < best->bytes))
                best = a;
        }
        if (!best)
            return false;
        best->bytes += bytes[b];
        owner[b] = best->place;
    }
    return true;
}
