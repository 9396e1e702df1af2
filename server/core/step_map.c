/* The shard's machine: SetMap. */
#include <stdlib.h>
#include <string.h>

#include "server/core/step_internal.h"

void sfc_step_map_free(struct sfc_step_map *map)
{
    sfc_attempts_free(&map->attempts[0]);
    sfc_attempts_free(&map->attempts[1]);
    free(map->sums);
    memset(map, 0, sizeof(*map));
}

/* What is open may end by a newer round; what may be prepared by now waits for its decision. */
static bool at_boundary(const struct sfc_step_fsm *s, int order)
{
    return s->phase == SFC_STEP_IDLE ||
           (order > 0 && (s->phase == SFC_STEP_SAMPLING || s->phase == SFC_STEP_OPEN));
}

int sfc_step_map_check(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                       struct sfc_error *err)
{
    int order = sfc_attempt_compare(e->round, s->round);
    if (order < 0 || e->map_version < s->config.map_version)
        return sfc_fail(err, SFC_ESTALE,
                        "map version %llu of round %llu.%llu, but version %llu and round %llu.%llu "
                        "are the present ones",
                        (ull)e->map_version, (ull)e->round.incarnation, (ull)e->round.counter,
                        (ull)s->config.map_version, (ull)s->round.incarnation,
                        (ull)s->round.counter);
    if (e->map_version == s->config.map_version)
        return SFC_OK; /* it is here */
    if (s->phase == SFC_STEP_MAPPING && e->map_version == s->map.version)
        return SFC_OK;
    if (!at_boundary(s, order))
        return sfc_fail(
            err, SFC_ESTATE,
            "map version %llu after step %llu, but step %llu is applied and the next is "
            "%s",
            (ull)e->map_version, (ull)e->step, (ull)s->applied, sfc_step_phase_name(s->phase));
    if (s->config.joins ? e->step < s->applied : e->step != s->applied)
        return sfc_fail(err, SFC_ESTATE,
                        "map version %llu after step %llu, but step %llu is applied",
                        (ull)e->map_version, (ull)e->step, (ull)s->applied);
    return SFC_OK;
}

static int allocate(const struct sfc_step_fsm *s, uint32_t dense_blocks, struct sfc_step_map *map,
                    struct sfc_error *err)
{
    int code = SFC_OK;
    map->sums = calloc((size_t)dense_blocks + 1, sizeof(*map->sums));
    if (!map->sums)
        code = sfc_fail(err, SFC_ENOMEM, "step state of %u dense blocks", dense_blocks);
    for (int i = 0; i < 2 && code == SFC_OK; i++)
        code = sfc_attempts_init(&map->attempts[i], s->micro_batches, s->config.slots, dense_blocks,
                                 err);
    return code;
}

static void begin(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                  struct sfc_step_actions *out)
{
    struct sfc_step_map map = {
        .version = e->map_version, .step = e->step, .dense_blocks = e->dense_blocks};
    struct sfc_error err = {0};
    if (allocate(s, e->dense_blocks, &map, &err) != SFC_OK) {
        sfc_step_map_free(&map);
        sfc_step_refuse(out, e->token, SFC_EUNAVAILABLE, "%s", err.text);
        return;
    }
    sfc_step_new_round(s, e->round, out); /* the present one again, or a newer one */
    s->map = map;
    s->map_token = e->token;
    s->phase = SFC_STEP_MAPPING;
    sfc_step_start(s, out, SFC_JOB_MAP, 0, e->step, 0);
}

void sfc_step_on_map(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out)
{
    struct sfc_error err = {0};
    if (!sfc_step_check_run(s, e, out))
        return;
    int code = sfc_step_map_check(s, e, &err);
    if (code != SFC_OK)
        sfc_step_refuse(out, e->token, code, "%s", err.text);
    else if (e->map_version == s->config.map_version)
        sfc_step_reply(s, out, e->token, e->type);
    else if (s->phase == SFC_STEP_MAPPING)
        sfc_step_supersede(&s->map_token, e->token, out);
    else
        begin(s, e, out);
}

enum sfc_step_open sfc_step_opens_map(struct sfc_step_fsm *s, struct sfc_attempt round,
                                      bool recover, uint64_t step, uint64_t map_version)
{
    uint64_t own = s->config.map_version;
    if (recover && map_version < own)
        return SFC_STEP_OPEN_STALE;
    if (recover && map_version > own)
        return sfc_attempt_compare(round, sfc_step_newest_round(s)) < 0 ? SFC_STEP_OPEN_STALE
                                                                        : SFC_STEP_OPEN_ANEW;
    return sfc_step_opens(s, round, recover, step);
}

/* Its job was the last one in the queue: nothing is on its way to the attempts of before. */
void sfc_step_mapped(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    uint64_t token = s->map_token;
    for (int i = 0; i < 2; i++) {
        sfc_attempts_free(&s->attempts[i]);
        s->attempts[i] = s->map.attempts[i];
        memset(&s->map.attempts[i], 0, sizeof(s->map.attempts[i]));
    }
    free(s->sums);
    s->sums = s->map.sums;
    s->map.sums = NULL;
    s->config.map_version = s->map.version;
    s->config.dense_blocks = s->map.dense_blocks;
    s->config.joins = false;
    s->applied = s->map.step;
    s->phase = SFC_STEP_IDLE;
    s->map_token = 0;
    sfc_step_map_free(&s->map);
    sfc_step_reply(s, out, token, SFC_SE_MAP);
}
