#include "server/run/growths.h"

#include "proto/limits.h"
#include "proto/wire.h"
#include "server/core/block_map.h"

typedef unsigned long long ull;

static int check_limits(const Shardfc__V1__RunConfig *c, const Shardfc__V1__Growth *g,
                        struct sfc_error *err)
{
    if (g->from_step > c->steps || g->data_step > SFC_LIMIT_STEPS)
        return sfc_fail(err, SFC_EINVAL, "growths.from_step: %llu, the run has %llu steps",
                        (ull)g->from_step, (ull)c->steps);
    if (g->classes > SFC_LIMIT_CLASSES ||
        sfc_block_count(g->classes, c->block_size) > SFC_LIMIT_BLOCKS)
        return sfc_fail(err, SFC_EINVAL,
                        "growths.classes: %llu in blocks of %u are more than the limits of %llu "
                        "classes and %llu blocks",
                        (ull)g->classes, c->block_size, (ull)SFC_LIMIT_CLASSES,
                        (ull)SFC_LIMIT_BLOCKS);
    if (g->samples > SFC_LIMIT_SAMPLES)
        return sfc_fail(err, SFC_EINVAL, "growths.samples: %llu is more than %llu", (ull)g->samples,
                        (ull)SFC_LIMIT_SAMPLES);
    return SFC_OK;
}

int sfc_growths_from(const Shardfc__V1__RunConfig *config, Shardfc__V1__Growth *const *list,
                     size_t count, struct sfc_growths *out, struct sfc_error *err)
{
    struct sfc_growths all = {.start = {.from_step = 0, /* one before the first step is possible */
                                        .classes = config->classes,
                                        .samples = config->data ? config->data->samples : 0,
                                        .data_step = 0}};
    for (size_t i = 0; i < count; i++) {
        const struct sfc_growth g = {list[i]->from_step, list[i]->classes, list[i]->samples,
                                     list[i]->data_step};
        int code = check_limits(config, list[i], err);
        if (code == SFC_OK)
            code = sfc_growths_check(&all, &g, err);
        if (code != SFC_OK)
            return code;
        sfc_growths_add(&all, &g);
    }
    *out = all;
    return SFC_OK;
}

uint64_t sfc_map_classes(const Shardfc__V1__RunConfig *config, const Shardfc__V1__BlockMap *map)
{
    return map->n_growths ? map->growths[map->n_growths - 1]->classes : config->classes;
}

int sfc_run_setup_grow(struct sfc_run_setup *setup, const Shardfc__V1__BlockMap *map,
                       struct sfc_error *err)
{
    uint64_t classes = setup->start_classes;
    for (size_t i = 0; i < map->n_growths; i++) {
        uint64_t now = map->growths[i]->classes;
        if (now <= classes || now > SFC_LIMIT_CLASSES ||
            sfc_block_count(now, setup->head.block_size) > SFC_LIMIT_BLOCKS)
            return sfc_fail(err, SFC_EINVAL,
                            "map.growths[%zu].classes: %llu after %llu, or more than the limits", i,
                            (ull)now, (ull)classes);
        classes = now;
    }
    sfc_run_setup_set_classes(setup, classes);
    return SFC_OK;
}
