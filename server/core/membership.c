#include "server/core/membership.h"

#include <stdlib.h>
#include <string.h>

int sfc_membership_init(struct sfc_membership *m, const struct sfc_membership_config *config,
                        struct sfc_error *err)
{
    if (config->max_workers < 1 || config->max_shards < 1 ||
        config->max_shards > SFC_CORE_MAX_SHARDS || config->incarnation > UINT32_MAX)
        return sfc_fail(err, SFC_EINVAL, "membership: impossible limits or incarnation");
    struct sfc_membership n = {.config = *config};
    n.workers = calloc(config->max_workers, sizeof(*n.workers));
    n.shards = calloc(config->max_shards, sizeof(*n.shards));
    if (!n.workers || !n.shards) {
        sfc_membership_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "membership of %u workers", config->max_workers);
    }
    *m = n;
    return SFC_OK;
}

void sfc_membership_free(struct sfc_membership *m)
{
    free(m->workers);
    free(m->shards);
    memset(m, 0, sizeof(*m));
}

int sfc_member_actions_init(struct sfc_member_actions *actions, const struct sfc_membership *m,
                            struct sfc_error *err)
{
    size_t capacity = (size_t)m->config.max_workers + m->config.max_shards + 2;
    struct sfc_member_action *items = calloc(capacity, sizeof(*items));
    if (!items)
        return sfc_fail(err, SFC_ENOMEM, "membership actions");
    *actions = (struct sfc_member_actions){.items = items, .capacity = capacity};
    return SFC_OK;
}

void sfc_member_actions_free(struct sfc_member_actions *actions)
{
    free(actions->items);
    memset(actions, 0, sizeof(*actions));
}

static void emit(struct sfc_member_actions *actions, enum sfc_member_action_type type, uint64_t id)
{
    actions->items[actions->count++] = (struct sfc_member_action){.type = type, .id = id};
}

static struct sfc_worker_member *find_worker(const struct sfc_membership *m, uint64_t id)
{
    for (uint32_t i = 0; id != 0 && i < m->config.max_workers; i++)
        if (m->workers[i].id == id)
            return &m->workers[i];
    return NULL;
}

static struct sfc_shard_member *find_shard(const struct sfc_membership *m, uint64_t id)
{
    for (uint32_t i = 0; i < m->shard_count; i++)
        if (m->shards[i].id == id)
            return &m->shards[i];
    return NULL;
}

static int check_name(const char *name, size_t room, const char *what, struct sfc_error *err)
{
    if (!name || !name[0])
        return sfc_fail(err, SFC_EINVAL, "%s is empty", what);
    if (strnlen(name, room) >= room)
        return sfc_fail(err, SFC_EINVAL, "%s is longer than %zu bytes", what, room - 1);
    return SFC_OK;
}

static int join(struct sfc_membership *m, const struct sfc_member_event *e,
                struct sfc_member_actions *actions, struct sfc_error *err)
{
    int rc = check_name(e->name, sizeof(m->workers->name), "worker name", err);
    if (rc != SFC_OK)
        return rc;
    for (uint32_t i = 0; i < m->config.max_workers; i++) {
        struct sfc_worker_member *w = &m->workers[i];
        if (w->id != 0)
            continue;
        *w = (struct sfc_worker_member){.id = m->config.incarnation << 32 | ++m->next_worker,
                                        .lanes = e->lanes,
                                        .seen_ms = e->now_ms};
        memcpy(w->name, e->name, strlen(e->name) + 1);
        m->worker_count++;
        emit(actions, SFC_MEMBER_WORKER_JOINED, w->id);
        return SFC_OK;
    }
    return sfc_fail(err, SFC_ELIMIT, "%u workers are here already", m->config.max_workers);
}

static void bury(struct sfc_membership *m, struct sfc_worker_member *w,
                 struct sfc_member_actions *actions)
{
    emit(actions, SFC_MEMBER_WORKER_DIED, w->id);
    memset(w, 0, sizeof(*w));
    m->worker_count--;
}

static int worker_event(struct sfc_membership *m, const struct sfc_member_event *e,
                        struct sfc_member_actions *actions, struct sfc_error *err)
{
    struct sfc_worker_member *w = find_worker(m, e->id);
    if (!w)
        return sfc_fail(err, SFC_ENOTFOUND, "worker %llu is not known (any more): join again",
                        (unsigned long long)e->id);
    if (e->type == SFC_MEMBER_WORKER_SEEN)
        w->seen_ms = e->now_ms;
    else
        bury(m, w, actions);
    return SFC_OK;
}

/* The gone shard that was silent for longest. */
static struct sfc_shard_member *forgettable(struct sfc_membership *m)
{
    struct sfc_shard_member *oldest = NULL;
    for (uint32_t i = 0; i < m->shard_count; i++) {
        struct sfc_shard_member *s = &m->shards[i];
        if (!s->ready && !s->kept && (!oldest || s->seen_ms < oldest->seen_ms))
            oldest = s;
    }
    return oldest;
}

static struct sfc_shard_member *new_shard(struct sfc_membership *m,
                                          struct sfc_member_actions *actions)
{
    struct sfc_shard_member *s = NULL;
    if (m->shard_count < m->config.max_shards)
        s = &m->shards[m->shard_count++];
    else if ((s = forgettable(m)))
        emit(actions, SFC_MEMBER_SHARD_FORGOTTEN, s->id);
    if (s)
        *s = (struct sfc_shard_member){.id = ++m->last_shard};
    return s;
}

void sfc_membership_keep_shards(struct sfc_membership *m, const uint64_t *ids, size_t count)
{
    for (uint32_t i = 0; i < m->shard_count; i++) {
        m->shards[i].kept = false;
        for (size_t k = 0; k < count; k++)
            m->shards[i].kept = m->shards[i].kept || m->shards[i].id == ids[k];
    }
}

static int register_shard(struct sfc_membership *m, const struct sfc_member_event *e,
                          struct sfc_member_actions *actions, struct sfc_error *err)
{
    int rc = check_name(e->name, sizeof(m->shards->address), "shard address", err);
    if (rc != SFC_OK)
        return rc;
    struct sfc_shard_member *s = NULL;
    for (uint32_t i = 0; i < m->shard_count && !s; i++)
        if (strcmp(m->shards[i].address, e->name) == 0)
            s = &m->shards[i];
    enum sfc_member_action_type type = SFC_MEMBER_SHARD_REJOINED;
    if (!s) {
        s = new_shard(m, actions);
        if (!s)
            return sfc_fail(err, SFC_ELIMIT, "%u shards are here already", m->config.max_shards);
        memcpy(s->address, e->name, strlen(e->name) + 1);
        type = SFC_MEMBER_SHARD_JOINED;
    } else if (s->boot_id != 0 && s->boot_id != e->boot_id) {
        type = SFC_MEMBER_SHARD_RESTARTED;
    }
    s->boot_id = e->boot_id;
    s->registered = true;
    s->ready = true;
    s->seen_ms = e->now_ms;
    emit(actions, type, s->id);
    return SFC_OK;
}

static int shard_event(struct sfc_membership *m, const struct sfc_member_event *e,
                       struct sfc_member_actions *actions, struct sfc_error *err)
{
    struct sfc_shard_member *s = find_shard(m, e->id);
    if (!s || !s->registered || s->boot_id != e->boot_id)
        return sfc_fail(err, SFC_ENOTFOUND, "shard %llu with boot id %llx is not known: register",
                        (unsigned long long)e->id, (unsigned long long)e->boot_id);
    if (e->type == SFC_MEMBER_SHARD_LOST) {
        if (s->ready)
            emit(actions, SFC_MEMBER_SHARD_GONE, s->id);
        s->ready = false;
        return SFC_OK;
    }
    s->seen_ms = e->now_ms;
    if (!s->ready)
        emit(actions, SFC_MEMBER_SHARD_REJOINED, s->id);
    s->ready = true;
    return SFC_OK;
}

static bool over(uint64_t now_ms, uint64_t seen_ms, uint64_t lease_ms)
{
    return now_ms > seen_ms && now_ms - seen_ms > lease_ms;
}

static void tick(struct sfc_membership *m, uint64_t now_ms, struct sfc_member_actions *actions)
{
    for (uint32_t i = 0; i < m->config.max_workers; i++) {
        struct sfc_worker_member *w = &m->workers[i];
        if (w->id != 0 && over(now_ms, w->seen_ms, m->config.worker_lease_ms))
            bury(m, w, actions);
    }
    for (uint32_t i = 0; i < m->shard_count; i++) {
        struct sfc_shard_member *s = &m->shards[i];
        if (!s->ready || !over(now_ms, s->seen_ms, m->config.shard_lease_ms))
            continue;
        s->ready = false;
        emit(actions, SFC_MEMBER_SHARD_GONE, s->id);
    }
}

void sfc_membership_stood_still(struct sfc_membership *m, uint64_t ms)
{
    for (uint32_t i = 0; i < m->config.max_workers; i++)
        m->workers[i].seen_ms += ms;
    for (uint32_t i = 0; i < m->shard_count; i++)
        m->shards[i].seen_ms += ms;
}

int sfc_membership_restore_shard(struct sfc_membership *m, uint64_t id, const char *address,
                                 uint64_t boot_id, struct sfc_error *err)
{
    int rc = check_name(address, sizeof(m->shards->address), "shard address", err);
    if (rc != SFC_OK)
        return rc;
    if (id == 0 || find_shard(m, id))
        return sfc_fail(err, SFC_EINVAL, "shard id %llu twice or 0", (unsigned long long)id);
    if (m->shard_count == m->config.max_shards)
        return sfc_fail(err, SFC_ELIMIT, "more than %u shards", m->config.max_shards);
    struct sfc_shard_member *s = &m->shards[m->shard_count++];
    *s = (struct sfc_shard_member){.id = id, .boot_id = boot_id};
    m->last_shard = id > m->last_shard ? id : m->last_shard;
    memcpy(s->address, address, strlen(address) + 1);
    return SFC_OK;
}

int sfc_membership_step(struct sfc_membership *m, const struct sfc_member_event *event,
                        struct sfc_member_actions *actions, struct sfc_error *err)
{
    actions->count = 0;
    switch (event->type) {
    case SFC_MEMBER_WORKER_JOIN:
        return join(m, event, actions, err);
    case SFC_MEMBER_WORKER_SEEN:
    case SFC_MEMBER_WORKER_LEAVE:
    case SFC_MEMBER_WORKER_LOST:
        return worker_event(m, event, actions, err);
    case SFC_MEMBER_SHARD_REGISTER:
        return register_shard(m, event, actions, err);
    case SFC_MEMBER_SHARD_SEEN:
    case SFC_MEMBER_SHARD_LOST:
        return shard_event(m, event, actions, err);
    case SFC_MEMBER_TICK:
        tick(m, event->now_ms, actions);
        return SFC_OK;
    }
    return sfc_fail(err, SFC_EINVAL, "membership event %d", (int)event->type);
}

const struct sfc_worker_member *sfc_membership_worker(const struct sfc_membership *m, uint64_t id)
{
    return find_worker(m, id);
}

const struct sfc_shard_member *sfc_membership_shard(const struct sfc_membership *m, uint64_t id)
{
    return find_shard(m, id);
}
