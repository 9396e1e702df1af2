#include "tests/lib/snapshot_rig.h"

#include <string.h>

const struct sfc_snapshot_block rig_blocks[RIG_BLOCKS] = {{SFC_SNAPSHOT_CLASS, 3},
                                                          {SFC_SNAPSHOT_CLASS, 17},
                                                          {SFC_SNAPSHOT_DENSE, 3},
                                                          {SFC_SNAPSHOT_HISTORY, 0}};

struct sfc_snapshot_shape rig_shape(size_t block, uint64_t step)
{
    switch (block) {
    case 0:
        return (struct sfc_snapshot_shape){
            .dtype = SFC_SNAPSHOT_F32, .rows = 7, .dim = 5, .has = {true, true, true, false}};
    case 1:
        return (struct sfc_snapshot_shape){
            .dtype = SFC_SNAPSHOT_BF16, .rows = 9, .dim = 3, .has = {true, true, false, true}};
    case 2:
        return (struct sfc_snapshot_shape){
            .dtype = SFC_SNAPSHOT_F32, .rows = 33, .dim = 1, .has = {true, true, false, false}};
    default:
        return (struct sfc_snapshot_shape){
            .dtype = SFC_SNAPSHOT_F32, .rows = step, .dim = 1, .has = {true, false, false, false}};
    }
}

void rig_snapshot_fill(struct rig_snapshot *s, size_t block, uint64_t step)
{
    s->key = (struct sfc_snapshot_key){
        .kind = rig_blocks[block].kind, .block = rig_blocks[block].block, .step = step};
    s->shape = rig_shape(block, step);
    for (uint64_t part = 0; part < SFC_SNAPSHOT_PARTS; part++) {
        for (uint64_t i = 0; i < RIG_PART_ROOM; i += 8) {
            uint64_t words[] = {block, step, part, i}, value = sfc_digest64(words, sizeof words);
            value &= part % 2 == 0 ? UINT64_MAX : 0x0301030103010301u; /* compressible */
            memcpy(&s->bytes[part][i], &value, sizeof value);
        }
        s->parts[part] = s->shape.has[part] ? s->bytes[part] : NULL;
    }
}

int rig_snapshot_write_round(struct sfc_snapshot_store *store, size_t block, uint64_t step,
                             struct sfc_attempt round, struct sfc_error *err)
{
    struct rig_snapshot s;
    struct sfc_snapshot_write *write;
    bool done = false;
    rig_snapshot_fill(&s, block, step);
    s.key.round = round;
    int code = sfc_snapshot_write_begin(store, &s.key, &s.shape, s.parts, &write, err);
    if (code != SFC_OK) {
        return code;
    }
    if (step % 2 == 1) { /* to the reader it is all the same */
        sfc_snapshot_write_direct(write);
    }
    while (code == SFC_OK && !done) {
        code = sfc_snapshot_write_some(write, 100, &done, err);
    }
    sfc_snapshot_write_end(write);
    return code;
}

int rig_snapshot_write(struct sfc_snapshot_store *store, size_t block, uint64_t step,
                       struct sfc_error *err)
{
    return rig_snapshot_write_round(store, block, step, (struct sfc_attempt){0, 0}, err);
}

bool rig_snapshot_same(const struct sfc_snapshot_content *content, size_t block)
{
    struct rig_snapshot s;
    rig_snapshot_fill(&s, block, content->step);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        uint64_t size = sfc_snapshot_part_bytes(&s.shape, (enum sfc_snapshot_part)i);
        if ((content->parts[i] != NULL) != s.shape.has[i] ||
            (size > 0 && memcmp(content->parts[i], s.parts[i], size) != 0)) {
            return false;
        }
    }
    return true;
}
