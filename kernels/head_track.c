/* Which rows of a block have changed: for whoever follows it while the run goes on. */
#include <stdlib.h>
#include <string.h>

#include "kernels/head_internal.h"

static struct sfc_head_track **find(struct sfc_head *head, uint64_t block)
{
    struct sfc_head_track **at = &head->tracks;
    while (*at && (*at)->block != block)
        at = &(*at)->next;
    return at;
}

void sfc_head_untrack(struct sfc_head *head, uint64_t block)
{
    struct sfc_head_track **at = find(head, block), *track = *at;
    if (!track)
        return;
    *at = track->next;
    free(track);
}

int sfc_head_track(struct sfc_head *head, uint64_t block, bool on, struct sfc_error *err)
{
    struct sfc_head_part *part = NULL;
    size_t index = 0;
    int rc = sfc_head_find(head, block, &part, &index, err);
    if (rc)
        return rc;
    struct sfc_head_track *track = NULL;
    uint32_t rows = (uint32_t)sfc_head_block_rows(&head->config, block);
    if (on) {
        track = calloc(1, sizeof *track + rows * sizeof *track->changed);
        if (!track)
            return sfc_fail(err, SFC_ENOMEM,
                            "head: out of memory for the changed rows of block %llu",
                            (unsigned long long)block);
    }
    sfc_head_untrack(head, block);
    if (track) {
        track->block = block;
        track->rows = rows;
        track->next = head->tracks;
        head->tracks = track;
    }
    return SFC_OK;
}

int sfc_head_changed(struct sfc_head *head, uint64_t block, uint64_t since, uint32_t *rows,
                     uint32_t *count, struct sfc_error *err)
{
    struct sfc_head_part *part = NULL;
    size_t index = 0;
    int rc = sfc_head_find(head, block, &part, &index, err);
    if (rc)
        return rc;
    const struct sfc_head_track *track = *find(head, block);
    if (!track)
        return sfc_fail(err, SFC_ESTATE, "head: changes of block %llu are not tracked (any more)",
                        (unsigned long long)block);
    uint32_t n = 0;
    for (uint32_t row = 0; row < track->rows; row++)
        if (track->changed[row] && track->first + track->changed[row] - 1 > since)
            rows[n++] = row;
    *count = n;
    return SFC_OK;
}

/* False: the backend can't say which rows it changed. */
static bool mark(struct sfc_head *head, struct sfc_head_track *track)
{
    struct sfc_head_part *part = NULL;
    const uint32_t *sample = NULL;
    size_t index = 0;
    uint32_t count = 0;
    if (sfc_head_find(head, track->block, &part, &index, NULL) != SFC_OK)
        return false;
    if (sfc_head_left_out(part, index, head->step))
        return true;
    head->backend->ops->head_sample(part, index, &sample, &count);
    if (count == 0 || (track->first && head->step < track->first))
        return false; /* every block has a sample, and steps go up */
    track->first = track->first ? track->first : head->step;
    uint32_t now = (uint32_t)(head->step - track->first) + 1;
    bool all = head->backend->ops->eager_dense && sfc_head_is_dense(&head->config);
    for (uint32_t i = 0; i < (all ? track->rows : count); i++)
        track->changed[all ? i : sample[i]] = now;
    return true;
}

void sfc_head_track_commit(struct sfc_head *head)
{
    for (struct sfc_head_track *t = head->tracks, *next; t; t = next) {
        next = t->next;
        if (!mark(head, t))
            sfc_head_untrack(head, t->block);
    }
}
