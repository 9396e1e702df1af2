/* /api/blocks: who owns what, as a picture has room for it. A cell stands for a block, or of a
 * large map for several: then the shard that owns most of them is its owner. */
#include <jansson.h>
#include <stdlib.h>

#include "server/scheduler/web_parts.h"

enum { CLASS_CELLS = 1024, DENSE_CELLS = 256 };

struct cells {
    const uint32_t *owners; /* [blocks], places */
    size_t blocks, per_cell;
};

static struct cells cells_of(const uint32_t *owners, size_t blocks, size_t most)
{
    size_t per_cell = (blocks + most - 1) / most;
    return (struct cells){owners, blocks, per_cell ? per_cell : 1};
}

static uint32_t owner_of(const struct cells *c, size_t first)
{
    uint32_t counts[SFC_CORE_MAX_SHARDS] = {0}, best = 0;
    for (size_t b = first; b < first + c->per_cell && b < c->blocks; b++) {
        uint32_t place = c->owners[b];
        if (place < SFC_CORE_MAX_SHARDS && ++counts[place] > counts[best])
            best = place;
    }
    return best;
}

static json_t *cells_json(const struct cells *c, const Shardfc__V1__BlockMap *map)
{
    json_t *owners = json_array();
    for (size_t b = 0; b < c->blocks; b += c->per_cell) {
        uint32_t place = owner_of(c, b);
        json_array_append_new(
            owners,
            json_integer(place < map->n_shards ? (json_int_t)map->shards[place]->shard : 0));
    }
    return json_pack("{s:I, s:I, s:o}", "blocks", (json_int_t)c->blocks, "per_cell",
                     (json_int_t)c->per_cell, "owners", owners);
}

/* Blocks are ascending, so a cell is named once. */
static json_t *touched(const struct cells *c, const uint64_t *blocks, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        if (i == 0 || blocks[i] / c->per_cell != blocks[i - 1] / c->per_cell)
            json_array_append_new(list, json_integer((json_int_t)(blocks[i] / c->per_cell)));
    return list;
}

static json_t *orders_json(const struct sfc_sched_run *run, const struct cells *classes,
                           const struct cells *dense)
{
    json_t *list = json_array();
    struct sfc_order_view view;
    for (size_t i = 0; i < SFC_MAX_ORDERS && sfc_sched_order_at(run, i, &view); i++) {
        const struct sfc_sched_order *o = &view.order;
        bool moves = o->kind == SFC_ORDER_MOVE;
        if (!moves && o->kind != SFC_ORDER_LOSS)
            continue;
        json_array_append_new(
            list,
            json_pack("{s:I, s:s, s:I, s:I, s:o, s:o}", "move", (json_int_t)view.number, "kind",
                      moves ? "move" : "restore", "from", (json_int_t)(moves ? o->from : o->shard),
                      "to", (json_int_t)(moves ? o->shard : 0), "class_cells",
                      touched(classes, o->class_blocks, o->class_count), "dense_cells",
                      touched(dense, o->dense_blocks, o->dense_count)));
    }
    return list;
}

static json_t *blocks_json(const struct sfc_sched_run *run)
{
    const Shardfc__V1__BlockMap *map = run->map;
    const struct cells classes = cells_of(map->class_owner, map->n_class_owner, CLASS_CELLS),
                       dense = cells_of(map->dense_owner, map->n_dense_owner, DENSE_CELLS);
    return json_pack("{s:I, s:I, s:I, s:o, s:o, s:o}", "run_id", (json_int_t)run->id, "map_version",
                     (json_int_t)map->version, "block_size", (json_int_t)run->config->block_size,
                     "class", cells_json(&classes, map), "dense", cells_json(&dense, map), "moves",
                     orders_json(run, &classes, &dense));
}

void sfc_web_put_blocks(struct sfc_web *w)
{
    const struct sfc_sched_run *run = w->scheduler->run;
    if (run && run->fsm.state == SFC_RUN_IDLE)
        run = NULL; /* its blocks are freed */
    const uint64_t mark[5] = {run ? run->id : 0, run ? run->map->version : 0,
                              run ? run->orders.last : 0, run ? run->orders.count : 0};
    if (!sfc_web_changed(&w->blocks, mark))
        return;
    json_t *json = run ? blocks_json(run) : json_pack("{s:i}", "run_id", 0);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    w->blocks.made = text != NULL;
    if (text)
        sfc_http_put(w->http, SFC_HTTP_BLOCKS, text);
}
