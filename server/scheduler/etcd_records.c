#include "server/scheduler/etcd_records.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/digest.h"
#include "proto/unpack.h"

int sfc_stored_pack(const void *message, struct sfc_bytes *out, struct sfc_error *err)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(size ? size : 1);
    if (!bytes)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a record of %zu bytes", size);
    protobuf_c_message_pack(message, bytes);
    *out = (struct sfc_bytes){bytes, size};
    return SFC_OK;
}

int sfc_stored_unpack(ProtobufCBinaryData value, const ProtobufCMessageDescriptor *type,
                      const char *key, void *out, struct sfc_error *err)
{
    int code;
    void *message = sfc_unpack((struct sfc_bytes){value.data, value.len}, type, &code);
    if (!message)
        return sfc_fail(err, code,
                        code == SFC_ENOMEM
                            ? "no memory for %s"
                            : "etcd: the value of %s is damaged; restore etcd from a "
                              "backup, or begin with another prefix",
                        key);
    *(void **)out = message;
    return SFC_OK;
}

void sfc_stored_free(void *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

/* ---- runs */

static char *text_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

void sfc_stored_from_run(const struct sfc_store_run *run, Shardfc__Stored__Run *out)
{
    shardfc__stored__run__init(out);
    out->nonce = run->nonce;
    out->start_step = run->start_step;
    out->load = run->load;
    out->rewind_window = run->rewind_window;
    out->durable_every = run->durable_every ? run->durable_every : 1;
    out->elastic = run->elastic;
    out->mirrors = run->mirrors;
    out->grace_s = run->grace_s;
    out->map_version = run->map_version;
    out->state = text_of(run->state);
    out->reason = text_of(run->reason);
    out->numerics = text_of(run->numerics);
    out->config_size = run->config_size;
    out->map_size = run->map_size;
}

void sfc_stored_to_run(const Shardfc__Stored__Run *m, struct sfc_store_run *out)
{
    out->nonce = m->nonce;
    out->start_step = m->start_step;
    out->load = m->load;
    out->rewind_window = m->rewind_window;
    out->durable_every = m->durable_every;
    out->elastic = m->elastic;
    out->mirrors = m->mirrors;
    out->grace_s = m->grace_s;
    out->map_step = m->map_step;
    out->map_order = m->map_order;
    out->paused = m->paused;
    out->map_version = m->map_version;
    snprintf(out->state, sizeof out->state, "%s", m->state);
    snprintf(out->reason, sizeof out->reason, "%s", m->reason);
    snprintf(out->numerics, sizeof out->numerics, "%s", m->numerics);
}

/* ---- commits */

static void from_commit(const struct sfc_store_commit *c, Shardfc__Stored__Commit *out,
                        uint8_t digest[SFC_DIGEST_SIZE])
{
    shardfc__stored__commit__init(out);
    sfc_digest128(c->attempts ? (const void *)c->attempts : "", c->attempts_size, digest);
    out->step = c->step;
    out->clip_scale = c->clip_scale;
    out->applied = c->applied;
    out->loss = c->loss;
    out->lr = c->lr;
    out->images_per_s = c->images_per_s;
    out->norm = c->norm;
    out->round_incarnation = c->round_incarnation;
    out->round_counter = c->round_counter;
    out->zero_features = c->zero_features;
    out->skipped_in_row = c->skipped_in_row;
    out->skipped_total = c->skipped_total;
    out->classes = c->classes;
    out->map_version = c->map_version;
    out->time_us = c->time_us;
    out->position = c->position;
    out->attempts_digest = (ProtobufCBinaryData){SFC_DIGEST_SIZE, digest};
}

int sfc_stored_pack_commits(const struct sfc_store_commit *commits, size_t count,
                            struct sfc_bytes *out, struct sfc_error *err)
{
    Shardfc__Stored__Commits m = SHARDFC__STORED__COMMITS__INIT;
    Shardfc__Stored__Commit *items = calloc(count, sizeof *items);
    Shardfc__Stored__Commit **list = calloc(count, sizeof(Shardfc__Stored__Commit *));
    uint8_t(*digests)[SFC_DIGEST_SIZE] = calloc(count, sizeof *digests);
    int code = items && list && digests
                   ? SFC_OK
                   : sfc_fail(err, SFC_ENOMEM, "no memory for %zu commit records", count);
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        from_commit(&commits[i], &items[i], digests[i]);
        list[i] = &items[i];
    }
    m.n_commits = count;
    m.commits = list;
    if (code == SFC_OK)
        code = sfc_stored_pack(&m, out, err);
    free(items);
    free(list);
    free(digests);
    return code;
}

void sfc_stored_to_commit(const Shardfc__Stored__Commit *m, uint64_t run_id,
                          struct sfc_store_commit *out)
{
    *out = (struct sfc_store_commit){
        .run_id = run_id,
        .step = m->step,
        .clip_scale = m->clip_scale,
        .applied = m->applied,
        .loss = m->loss,
        .lr = m->lr,
        .images_per_s = m->images_per_s,
        .norm = m->norm,
        .round_incarnation = m->round_incarnation,
        .round_counter = m->round_counter,
        .zero_features = m->zero_features,
        .skipped_in_row = m->skipped_in_row,
        .skipped_total = m->skipped_total,
        .classes = m->classes,
        .map_version = m->map_version,
        .time_us = m->time_us,
        .position = m->position,
    };
}

bool sfc_stored_same_commit(const Shardfc__Stored__Commit *m, const struct sfc_store_commit *c)
{
    uint8_t digest[SFC_DIGEST_SIZE];
    sfc_digest128(c->attempts ? (const void *)c->attempts : "", c->attempts_size, digest);
    return memcmp(&m->clip_scale, &c->clip_scale, sizeof m->clip_scale) == 0 &&
           (m->applied != 0) == c->applied && m->attempts_digest.len == sizeof digest &&
           memcmp(m->attempts_digest.data, digest, sizeof digest) == 0;
}

/* ---- lineage */

int sfc_stored_pack_lineage(const struct sfc_lineage *lineage, struct sfc_bytes *out,
                            struct sfc_error *err)
{
    Shardfc__Stored__Lineage m = SHARDFC__STORED__LINEAGE__INIT;
    Shardfc__Stored__Return items[SFC_LINEAGE_MAX], *list[SFC_LINEAGE_MAX];
    for (size_t i = 0; i < lineage->count; i++) {
        const struct sfc_return *r = &lineage->returns[i];
        shardfc__stored__return__init(&items[i]);
        items[i].step = r->step;
        items[i].last_incarnation = r->last.incarnation;
        items[i].last_counter = r->last.counter;
        list[i] = &items[i];
    }
    m.n_returns = lineage->count;
    m.returns = list;
    return sfc_stored_pack(&m, out, err);
}

int sfc_stored_to_lineage(const Shardfc__Stored__Lineage *m, struct sfc_lineage *out,
                          struct sfc_error *err)
{
    struct sfc_lineage x = {.count = m->n_returns};
    for (size_t i = 0; i < m->n_returns && i < SFC_LINEAGE_MAX; i++)
        x.returns[i] = (struct sfc_return){
            .step = m->returns[i]->step,
            .last = {m->returns[i]->last_incarnation, m->returns[i]->last_counter}};
    int code = sfc_lineage_check(x.returns, x.count, err);
    if (code == SFC_OK)
        *out = x;
    return code == SFC_OK ? code : SFC_ECORRUPT;
}

/* ---- changes of the learning rate */

int sfc_stored_pack_lr(const struct sfc_store_lr *changes, size_t count, struct sfc_bytes *out,
                       struct sfc_error *err)
{
    Shardfc__Stored__LrChanges m = SHARDFC__STORED__LR_CHANGES__INIT;
    Shardfc__Stored__LrChange *items = calloc(count + 1, sizeof *items);
    Shardfc__Stored__LrChange **list = calloc(count + 1, sizeof(Shardfc__Stored__LrChange *));
    int code = items && list ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "changes of the learning rate");
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        shardfc__stored__lr_change__init(&items[i]);
        items[i].from_step = changes[i].from_step;
        items[i].lr = changes[i].lr;
        list[i] = &items[i];
    }
    m.n_changes = count;
    m.changes = list;
    if (code == SFC_OK)
        code = sfc_stored_pack(&m, out, err);
    free(items);
    free(list);
    return code;
}
