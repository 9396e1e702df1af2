#include "server/core/log_floor.h"

#include <stdlib.h>
#include <string.h>

int sfc_log_floor_init(struct sfc_log_floor *f, uint32_t shards, struct sfc_error *err)
{
    uint64_t *own = calloc(shards ? shards : 1, sizeof(*own));
    bool *member = calloc(shards ? shards : 1, sizeof(*member));
    if (!own || !member) {
        free(own);
        free(member);
        return sfc_fail(err, SFC_ENOMEM, "log floors of %u shards", shards);
    }
    *f = (struct sfc_log_floor){.shards = shards, .own = own, .member = member};
    for (uint32_t k = 0; k < shards; k++)
        member[k] = true;
    return SFC_OK;
}

void sfc_log_floor_free(struct sfc_log_floor *f)
{
    free(f->own);
    free(f->member);
    memset(f, 0, sizeof(*f));
}

void sfc_log_floor_set_member(struct sfc_log_floor *f, uint32_t shard, bool member)
{
    f->member[shard] = member;
    f->own[shard] = 0;
}

void sfc_log_floor_note(struct sfc_log_floor *f, uint32_t shard, uint64_t floor)
{
    if (shard < f->shards && f->member[shard] && floor != UINT64_MAX)
        f->own[shard] = floor + 1;
}

bool sfc_log_floor_least(const struct sfc_log_floor *f, uint64_t *out)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t k = 0; k < f->shards; k++)
        if (f->member[k])
            least = f->own[k] < least ? f->own[k] : least;
    if (least == UINT64_MAX || least == 0)
        return false;
#if SFC_PLANT_BUG == 7 /* one trim too many */
    *out = least;
#else
    *out = least - 1;
#endif
    return true;
}
