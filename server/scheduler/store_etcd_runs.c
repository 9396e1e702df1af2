/* The state store in etcd: incarnation, runs, their maps and goals. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/store_etcd.h"

enum { MAPS_KEPT = 2 };

/* ---- incarnation */

int sfc_etcd_store_next_incarnation(struct sfc_store *base, uint64_t *out, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[SFC_KV_KEY], text[32] = "0";
    sfc_kv_key(s, key, "incarnation");
    int code = sfc_kv_read(s, key, &answer, &value, "new incarnation", err);
    if (code == SFC_OK && value.len < sizeof text) {
        memcpy(text, value.data, value.len);
        text[value.len] = '\0';
    }
    sfc_answer_free(&answer);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    uint64_t next = strtoull(text, NULL, 10) + 1;
    snprintf(text, sizeof text, "%" PRIu64, next);
    code = sfc_kv_write_text(s, key, text, "new incarnation", err);
    if (code == SFC_OK)
        *out = next;
    return code;
}

/* ---- runs */

static void run_key(const struct sfc_etcd_store *s, char key[SFC_KV_KEY], uint64_t run_id)
{
    sfc_kv_key(s, key, "runs/" SFC_KV_NUMBER, run_id);
}

static void map_folder(const struct sfc_etcd_store *s, char out[SFC_KV_KEY], uint64_t run_id,
                       uint64_t version)
{
    sfc_kv_key(s, out, "maps/" SFC_KV_NUMBER "/" SFC_KV_NUMBER "/", run_id, version);
}

/* Runs that are too old, with all that they have. */
static int forget_runs(struct sfc_etcd_store *s, uint64_t newest, struct sfc_error *err)
{
    static const char *const folders[] = {"runs",  "configs", "maps",  "commits",
                                          "drops", "returns", "goals", "lr"};
    enum { FOLDERS = sizeof folders / sizeof *folders };
    char from[FOLDERS][SFC_KV_KEY], end[FOLDERS][SFC_KV_KEY];
    struct sfc_lead_write w = {.count = 0};
    if (newest <= SFC_KV_RUNS)
        return SFC_OK;
    for (size_t i = 0; i < FOLDERS; i++) {
        sfc_kv_key(s, from[i], "%s/", folders[i]);
        sfc_kv_key(s, end[i], "%s/" SFC_KV_NUMBER, folders[i], newest - SFC_KV_RUNS + 1);
        sfc_lead_delete(&w, from[i], end[i]);
    }
    return sfc_lead_commit(s->lead, &w, "forget old runs", err);
}

void sfc_etcd_lr_key(const struct sfc_etcd_store *s, char key[SFC_KV_KEY], uint64_t run_id)
{
    sfc_kv_key(s, key, "lr/" SFC_KV_NUMBER, run_id);
}

/* Its pieces are there already. */
static int write_run(struct sfc_etcd_store *s, uint64_t id, const struct sfc_store_run *run,
                     struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0}, changes = {NULL, 0};
    char key[SFC_KV_KEY], changes_key[SFC_KV_KEY];
    Shardfc__Stored__Run m;
    sfc_stored_from_run(run, &m);
    run_key(s, key, id);
    sfc_etcd_lr_key(s, changes_key, id);
    int code = sfc_stored_pack(&m, &bytes, err);
    if (code == SFC_OK)
        code = sfc_stored_pack_lr(run->lr_changes, run->lr_change_count, &changes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        sfc_lead_put(&w, changes_key, changes);
        code = sfc_lead_commit(s->lead, &w, "add run", err);
    }
    free((void *)(uintptr_t)bytes.data);
    free((void *)(uintptr_t)changes.data);
    return code;
}

int sfc_etcd_store_add_run(struct sfc_store *base, const struct sfc_store_run *run,
                           uint64_t *run_id, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    char folder[SFC_KV_KEY];
    uint64_t id = 0;
    sfc_kv_key(s, folder, "runs/");
    int code = sfc_kv_last(s, folder, &id, "add run", err);
    if (code == SFC_OK)
        code = forget_runs(s, ++id, err);
    sfc_kv_key(s, folder, "configs/" SFC_KV_NUMBER "/", id);
    if (code == SFC_OK)
        code = sfc_kv_write_pieces(s, folder, run->config, run->config_size, "add run", err);
    map_folder(s, folder, id, run->map_version);
    if (code == SFC_OK)
        code = sfc_kv_write_pieces(s, folder, run->map, run->map_size, "add run", err);
    if (code == SFC_OK)
        code = write_run(s, id, run, err);
    if (code == SFC_OK)
        *run_id = id;
    return code;
}

static int read_run(struct sfc_etcd_store *s, uint64_t run_id, Shardfc__Stored__Run **out,
                    const char *what, struct sfc_error *err)
{
    char key[SFC_KV_KEY];
    run_key(s, key, run_id);
    int code = sfc_kv_read_message(s, key, &shardfc__stored__run__descriptor, out, what, err);
    return code == SFC_ENOTFOUND ? sfc_fail(err, SFC_ENOTFOUND, "no run %" PRIu64, run_id) : code;
}

int sfc_etcd_store_set_run_state(struct sfc_store *base, uint64_t run_id, const char *state,
                                 bool paused, const char *reason, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    struct sfc_store_run run = {0};
    char key[SFC_KV_KEY];
    int code = read_run(s, run_id, &m, "set run state", err);
    if (code != SFC_OK)
        return code;
    Shardfc__Stored__Run changed = *m;
    snprintf(run.state, sizeof run.state, "%s", state);
    snprintf(run.reason, sizeof run.reason, "%s", reason);
    changed.state = run.state;
    changed.paused = paused;
    changed.reason = run.reason;
    run_key(s, key, run_id);
    code = sfc_kv_write_message(s, key, &changed, "set run state", err);
    sfc_stored_free(m);
    return code;
}

int sfc_etcd_store_set_run_numerics(struct sfc_store *base, uint64_t run_id, const char *numerics,
                                    struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    char key[SFC_KV_KEY];
    int code = read_run(s, run_id, &m, "set the run's numerics", err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK; /* as an UPDATE of no row */
    if (code != SFC_OK)
        return code;
    Shardfc__Stored__Run changed = *m;
    changed.numerics = (char *)(uintptr_t)numerics;
    run_key(s, key, run_id);
    code = sfc_kv_write_message(s, key, &changed, "set the run's numerics", err);
    sfc_stored_free(m);
    return code;
}

/* SFC_OK: it is the run's map already. SFC_ENOTFOUND: it is newer than that. */
static int compare_map(struct sfc_etcd_store *s, const Shardfc__Stored__Run *m,
                       const struct sfc_store_map *map, struct sfc_error *err)
{
    char folder[SFC_KV_KEY];
    uint8_t *there = NULL;
    if (map->version > m->map_version)
        return SFC_ENOTFOUND;
    int code = SFC_OK;
    bool same =
        map->version == m->map_version && map->step == m->map_step && map->size == m->map_size;
    map_folder(s, folder, map->run_id, map->version);
    if (same)
        code = sfc_kv_read_pieces(s, folder, m->map_size, &there, "write map", err);
    same = same && code == SFC_OK && memcmp(there, map->bytes, map->size) == 0;
    free(there);
    if (code == SFC_OK && !same)
        code = sfc_fail(err, SFC_ECONFLICT,
                        "map %" PRIu64 " of run %" PRIu64 " is there already, another one",
                        m->map_version, map->run_id);
    return code;
}

/* The pieces count when the run names them. */
static int change_map(struct sfc_etcd_store *s, const Shardfc__Stored__Run *m,
                      const struct sfc_store_map *map, struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    char folder[SFC_KV_KEY], key[SFC_KV_KEY], from[SFC_KV_KEY], end[SFC_KV_KEY];
    Shardfc__Stored__Run changed = *m;
    changed.map_version = map->version;
    changed.map_size = map->size;
    changed.map_step = map->step;
    changed.map_order = map->order;
    map_folder(s, folder, map->run_id, map->version);
    int code = sfc_kv_write_pieces(s, folder, map->bytes, map->size, "write map", err);
    if (code == SFC_OK)
        code = sfc_stored_pack(&changed, &bytes, err);
    if (code != SFC_OK)
        return code;
    run_key(s, key, map->run_id);
    sfc_lead_put(&w, key, bytes);
    if (map->version >= MAPS_KEPT) {
        sfc_kv_key(s, from, "maps/" SFC_KV_NUMBER "/", map->run_id);
        map_folder(s, end, map->run_id, map->version - MAPS_KEPT + 1);
        sfc_lead_delete(&w, from, end);
    }
    code = sfc_lead_commit(s->lead, &w, "write map", err);
    free((void *)(uintptr_t)bytes.data);
    return code;
}

int sfc_etcd_store_put_map(struct sfc_store *base, const struct sfc_store_map *map,
                           struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    int code = read_run(s, map->run_id, &m, "write map", err);
    if (code == SFC_OK)
        code = compare_map(s, m, map, err);
    if (code == SFC_ENOTFOUND && m)
        code = change_map(s, m, map, err);
    sfc_stored_free(m);
    return code;
}

int sfc_etcd_store_last_run(struct sfc_store *base, struct sfc_store_run *out,
                            struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    struct sfc_store_run run = {0};
    char folder[SFC_KV_KEY];
    sfc_kv_key(s, folder, "runs/");
    int code = sfc_kv_last(s, folder, &run.run_id, "read run", err);
    if (code == SFC_OK && run.run_id == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "there is no run");
    if (code == SFC_OK)
        code = read_run(s, run.run_id, &m, "read run", err);
    if (code != SFC_OK)
        return code;
    sfc_stored_to_run(m, &run);
    run.config_size = m->config_size;
    run.map_size = m->map_size;
    sfc_kv_key(s, folder, "configs/" SFC_KV_NUMBER "/", run.run_id);
    code =
        sfc_kv_read_pieces(s, folder, m->config_size, &run.config, "the run's configuration", err);
    map_folder(s, folder, run.run_id, run.map_version);
    if (code == SFC_OK)
        code = sfc_kv_read_pieces(s, folder, m->map_size, &run.map, "the run's block map", err);
    sfc_stored_free(m);
    if (code == SFC_OK)
        *out = run;
    else
        sfc_store_run_close(&run);
    return code;
}

/* Ids have no gaps. */
int sfc_etcd_store_run_before(struct sfc_store *base, uint64_t run_id, struct sfc_store_run *out,
                              struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    Shardfc__Stored__Run *m = NULL;
    struct sfc_store_run run = {0};
    char folder[SFC_KV_KEY];
    uint64_t last = 0;
    sfc_kv_key(s, folder, "runs/");
    int code = sfc_kv_last(s, folder, &last, "read older run", err);
    if (code != SFC_OK)
        return code;
    run.run_id = last < run_id ? last : run_id - (run_id > 0);
    if (run.run_id == 0)
        return sfc_fail(err, SFC_ENOTFOUND, "there is no older run");
    code = read_run(s, run.run_id, &m, "read older run", err);
    if (code != SFC_OK)
        return code;
    sfc_stored_to_run(m, &run);
    run.config_size = m->config_size;
    sfc_kv_key(s, folder, "configs/" SFC_KV_NUMBER "/", run.run_id);
    code =
        sfc_kv_read_pieces(s, folder, m->config_size, &run.config, "the run's configuration", err);
    sfc_stored_free(m);
    if (code == SFC_OK)
        *out = run;
    else
        sfc_store_run_close(&run);
    return code;
}

/* ---- goals */

int sfc_etcd_store_put_goal(struct sfc_store *base, uint64_t run_id, const uint8_t *goal,
                            size_t size, struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_lead_write w = {.count = 0};
    char key[SFC_KV_KEY];
    sfc_kv_key(s, key, "goals/" SFC_KV_NUMBER, run_id);
    sfc_lead_put(&w, key, (struct sfc_bytes){goal, size});
    return sfc_lead_commit(s->lead, &w, "note the goal", err);
}

int sfc_etcd_store_goal(struct sfc_store *base, uint64_t run_id, uint8_t **out, size_t *size,
                        struct sfc_error *err)
{
    struct sfc_etcd_store *s = etcd_of(base);
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    char key[SFC_KV_KEY];
    sfc_kv_key(s, key, "goals/" SFC_KV_NUMBER, run_id);
    int code = sfc_kv_read(s, key, &answer, &value, "read the goal", err);
    uint8_t *copy = value.len ? malloc(value.len) : NULL;
    if (value.len && !copy)
        code = sfc_fail(err, SFC_ENOMEM, "read the goal");
    if (copy)
        memcpy(copy, value.data, value.len);
    sfc_answer_free(&answer);
    if (code != SFC_OK && code != SFC_ENOTFOUND)
        return code;
    *out = copy;
    *size = copy ? value.len : 0;
    return SFC_OK;
}
