/* Where the records of a step log are, in memory: sorted by step; of equal keys the last one added
 * counts.
 */
#ifndef SFC_DURABLE_LOG_INDEX_H
#define SFC_DURABLE_LOG_INDEX_H

#include "server/durable/log_codec.h"

struct sfc_log_place_of { /* of a PREPARE or FETCHED */
    enum sfc_log_type type;
    uint64_t step;
    struct sfc_attempt round;
    uint64_t segment, offset, checksum;
    uint64_t dense_floats, dense_halves, dense_blocks; /* of its segment's geometry */
};
/* The geometry of its segment; geometry: of the log, whose other fields are the same everywhere. */
static inline struct sfc_log_geometry sfc_log_geometry_at(const struct sfc_log_geometry *geometry,
                                                          const struct sfc_log_place_of *place)
{
    struct sfc_log_geometry g = *geometry;
    g.dense_floats = place->dense_floats;
    g.dense_halves = place->dense_halves;
    g.dense_blocks = place->dense_blocks;
    return g;
}

struct sfc_log_index {
    struct sfc_log_place_of *prepares;
    size_t prepare_count, prepare_room;
    struct sfc_log_commit *commits;
    size_t commit_count, commit_room;
};

/* Room for one more of each kind, so that the next add can't fail. SFC_ENOMEM. */
int sfc_log_index_reserve(struct sfc_log_index *index, struct sfc_error *err);
/* After reserve. */
void sfc_log_index_prepare(struct sfc_log_index *index, const struct sfc_log_place_of *place);
void sfc_log_index_commit(struct sfc_log_index *index, const struct sfc_log_commit *commit);
const struct sfc_log_place_of *sfc_log_index_find(const struct sfc_log_index *index, uint64_t step,
                                                  struct sfc_attempt round); /* NULL: none */
const struct sfc_log_commit *sfc_log_index_commit_of(const struct sfc_log_index *index,
                                                     uint64_t step); /* NULL: none */
/* Forgets the Prepares of a segment from an offset on; returns the lowest step of them, UINT64_MAX:
 * there were none. */
uint64_t sfc_log_index_drop(struct sfc_log_index *index, uint64_t segment, uint64_t offset);
/* Forgets the Prepares of segments below `segment`, and the commits of steps <= floor. */
void sfc_log_index_trim(struct sfc_log_index *index, uint64_t segment, uint64_t floor);
void sfc_log_index_free(struct sfc_log_index *index);

#endif
