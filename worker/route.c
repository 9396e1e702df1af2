/* Versions of the block map, and connections to the shards that they name. */
#include <stdlib.h>
#include <string.h>

#include "proto/block_map.h"
#include "worker/client.h"

size_t sfc_route_shards(const struct sfc_route *route)
{
    size_t n = 0;
    for (size_t k = 0; k < route->shards; k++)
        n += route->links[k] != NULL;
    return n;
}

void sfc_route_prefix(const struct sfc_route *route, size_t k, struct sfc_error *err)
{
    sfc_prefix(err, "shard %llu at %s", (unsigned long long)route->map->shards[k]->shard,
               route->map->shards[k]->address);
}

/* ---- links */

/* Takes a link out that no route has any more. Connections are closed outside of the lock. */
static void drop_link(struct sfc_member *m, struct sfc_link *link)
{
    struct sfc_rpc_client *client = NULL;
    pthread_rwlock_wrlock(&m->lock);
    bool last = --link->routes == 0;
    struct sfc_link **at = &m->links;
    while (last && *at != link)
        at = &(*at)->next;
    if (last) {
        *at = link->next;
        client = link->client;
    }
    pthread_rwlock_unlock(&m->lock);
    if (!last)
        return;
    sfc_rpc_runner_disconnect(m->client->runner, client);
    free(link);
}

/* The link that is there already, for one route more. */
static struct sfc_link *known_link(struct sfc_member *m, const char *address)
{
    pthread_rwlock_wrlock(&m->lock);
    struct sfc_link *link = m->links;
    while (link && strcmp(link->address, address) != 0)
        link = link->next;
    if (link)
        link->routes++;
    pthread_rwlock_unlock(&m->lock);
    return link;
}

static int new_link(struct sfc_member *m, const char *address, struct sfc_link **out,
                    struct sfc_error *err)
{
    struct sfc_link *link = calloc(1, sizeof *link);
    if (!link)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a connection");
    int rc = strlen(address) < sizeof link->address
                 ? sfc_rpc_runner_connect(m->client->runner, address, &link->client, err)
                 : sfc_fail(err, SFC_ECORRUPT, "its address is longer than %zu characters",
                            sizeof link->address - 1);
    if (rc) {
        free(link);
        return rc;
    }
    strcpy(link->address, address);
    link->routes = 1;
    pthread_rwlock_wrlock(&m->lock);
    bool cancelled = m->cancelled;
    if (!cancelled) {
        link->next = m->links;
        m->links = link;
    }
    pthread_rwlock_unlock(&m->lock);
    if (cancelled) {
        sfc_rpc_runner_disconnect(m->client->runner, link->client);
        free(link);
        return sfc_fail(err, SFC_ECANCELED, "this membership has ended");
    }
    *out = link;
    return SFC_OK;
}

static int connect_route(struct sfc_member *m, struct sfc_route *r, struct sfc_error *err)
{
    for (size_t k = 0; k < r->shards; k++) {
        const char *address = r->map->shards[k]->address;
        if (!address[0])
            continue;
        r->links[k] = known_link(m, address);
        int rc = r->links[k] ? SFC_OK : new_link(m, address, &r->links[k], err);
        if (rc) {
            sfc_route_prefix(r, k, err);
            return rc;
        }
    }
    return SFC_OK;
}

/* ---- routes */

static int check_mirrors(const Shardfc__V1__BlockMap *map, struct sfc_error *err)
{
    for (size_t k = 0; k < map->n_shards; k++)
        for (size_t i = 0; i < map->shards[k]->n_mirrors; i++) {
            uint32_t m = map->shards[k]->mirrors[i];
            if (m >= map->n_shards || m == k || !map->shards[m]->address[0])
                return sfc_fail(err, SFC_ECORRUPT,
                                "block map: shard %zu is mirrored by %u, which is none of the "
                                "others",
                                k, m);
        }
    return SFC_OK;
}

static int check_map(const struct sfc_member *m, const Shardfc__V1__BlockMap *map,
                     struct sfc_error *err)
{
    if (!map)
        return sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no block map");
    if (map->n_shards < 1 || map->n_shards > 65536)
        return sfc_fail(err, SFC_ECORRUPT, "block map of %zu shards", map->n_shards);
    if (map->n_dense_owner != m->dense_blocks)
        return sfc_fail(err, SFC_ECORRUPT, "block map has %zu dense blocks, the backbone %llu",
                        map->n_dense_owner, (unsigned long long)m->dense_blocks);
    for (size_t b = 0; b < map->n_dense_owner; b++) {
        if (map->dense_owner[b] >= map->n_shards)
            return sfc_fail(err, SFC_ECORRUPT, "block map: dense block %zu is on shard %u of %zu",
                            b, map->dense_owner[b], map->n_shards);
        if (!map->shards[map->dense_owner[b]]->address[0])
            return sfc_fail(err, SFC_ECORRUPT, "block map: dense block %zu is on a shard that left",
                            b);
    }
    return check_mirrors(map, err);
}

static int make_share(struct sfc_dense_share *share, size_t blocks, struct sfc_error *err)
{
    share->blocks = calloc(blocks + 1, sizeof *share->blocks);
    return share->blocks ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "out of memory for the block map");
}

static void add_block(const struct sfc_member *m, struct sfc_dense_share *share, uint32_t block)
{
    size_t first, count;
    sfc_dense_block_span(m, block, &first, &count);
    share->blocks[share->count++] = block;
    share->floats += count;
}

static int share_out(const struct sfc_member *m, struct sfc_route *r, uint32_t k,
                     struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = r->map;
    size_t owned = 0, pushed = 0;
    for (size_t b = 0; b < map->n_dense_owner; b++) {
        owned += map->dense_owner[b] == k;
        pushed += sfc_map_pushed(map, b, k);
    }
    int rc = make_share(&r->dense[k], owned, err);
    if (!rc)
        rc = make_share(&r->push[k], pushed, err);
    for (uint32_t b = 0; !rc && b < map->n_dense_owner; b++) {
        if (map->dense_owner[b] == k)
            add_block(m, &r->dense[k], b);
        if (sfc_map_pushed(map, b, k))
            add_block(m, &r->push[k], b);
    }
    r->push_floats += r->push[k].floats;
    return rc;
}

static int share_out_dense(const struct sfc_member *m, struct sfc_route *r, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (uint32_t k = 0; !rc && k < r->shards; k++)
        rc = share_out(m, r, k, err);
    return rc;
}

static void free_route(struct sfc_member *m, struct sfc_route *r)
{
    for (size_t k = 0; k < r->shards; k++) {
        if (r->links && r->links[k])
            drop_link(m, r->links[k]);
        if (r->dense)
            free(r->dense[k].blocks);
        if (r->push)
            free(r->push[k].blocks);
    }
    free(r->links);
    free(r->dense);
    free(r->push);
    sfc_answer_free(&r->answer);
    free(r);
}

struct sfc_route *sfc_route_take(struct sfc_member *m)
{
    pthread_mutex_lock(&m->route_lock);
    struct sfc_route *r = m->route;
    r->users++;
    pthread_mutex_unlock(&m->route_lock);
    return r;
}

void sfc_route_release(struct sfc_member *m, struct sfc_route *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&m->route_lock);
    bool last = --r->users == 0;
    pthread_mutex_unlock(&m->route_lock);
    if (last)
        free_route(m, r);
}

uint64_t sfc_route_version(struct sfc_member *m)
{
    pthread_mutex_lock(&m->route_lock);
    uint64_t version = m->route->map->version;
    pthread_mutex_unlock(&m->route_lock);
    return version;
}

uint64_t sfc_member_push_floats(struct sfc_member *m)
{
    pthread_mutex_lock(&m->route_lock);
    uint64_t floats = m->route->push_floats;
    pthread_mutex_unlock(&m->route_lock);
    return floats;
}

int sfc_route_change(struct sfc_member *m, struct sfc_answer answer,
                     const Shardfc__V1__BlockMap *map, struct sfc_error *err)
{
    struct sfc_route *r = calloc(1, sizeof *r), *old = NULL;
    int rc = r ? check_map(m, map, err) : sfc_fail(err, SFC_ENOMEM, "out of memory for the map");
    if (!r) {
        sfc_answer_free(&answer);
        return rc;
    }
    r->answer = answer;
    r->map = map;
    r->users = 1;
    if (!rc) {
        r->links = calloc(map->n_shards, sizeof(*r->links));
        r->dense = calloc(map->n_shards, sizeof *r->dense);
        r->push = calloc(map->n_shards, sizeof *r->push);
        if (r->links && r->dense && r->push)
            r->shards = map->n_shards;
        else
            rc = sfc_fail(err, SFC_ENOMEM, "out of memory for the block map");
    }
    if (!rc)
        rc = share_out_dense(m, r, err);
    if (!rc)
        rc = connect_route(m, r, err);
    if (rc) {
        free_route(m, r);
        return rc;
    }
    pthread_mutex_lock(&m->route_lock);
    old = m->route;
    m->route = r;
    pthread_mutex_unlock(&m->route_lock);
    sfc_route_release(m, old);
    return SFC_OK;
}
