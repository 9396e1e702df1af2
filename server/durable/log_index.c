#include "server/durable/log_index.h"

#include <stdlib.h>
#include <string.h>

/* Room for one more; NULL without memory. */
static void *grow(void *array, size_t count, size_t *room, size_t size)
{
    if (count < *room) {
        return array;
    }
    size_t more = *room + *room / 2 + 16;
    void *larger = reallocarray(array, more, size);
    if (larger != NULL) {
        *room = more;
    }
    return larger;
}

int sfc_log_index_reserve(struct sfc_log_index *x, struct sfc_error *err)
{
    void *prepares = grow(x->prepares, x->prepare_count, &x->prepare_room, sizeof *x->prepares);
    if (prepares != NULL) {
        x->prepares = prepares;
    }
    void *commits = grow(x->commits, x->commit_count, &x->commit_room, sizeof *x->commits);
    if (commits != NULL) {
        x->commits = commits;
    }
    if (prepares == NULL || commits == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the index of the step log");
    }
    return SFC_OK;
}

void sfc_log_index_prepare(struct sfc_log_index *x, const struct sfc_log_place_of *place)
{
    size_t at = x->prepare_count++;
    for (; at > 0 && x->prepares[at - 1].step > place->step; at--) {
        x->prepares[at] = x->prepares[at - 1];
    }
    x->prepares[at] = *place;
}

void sfc_log_index_commit(struct sfc_log_index *x, const struct sfc_log_commit *commit)
{
    size_t at = x->commit_count++;
    for (; at > 0 && x->commits[at - 1].step > commit->step; at--) {
        x->commits[at] = x->commits[at - 1];
    }
    x->commits[at] = *commit;
}

/* Number of Prepares of steps <= step. */
static size_t prepares_until(const struct sfc_log_index *x, uint64_t step)
{
    size_t low = 0, high = x->prepare_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (x->prepares[middle].step <= step) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static size_t commits_until(const struct sfc_log_index *x, uint64_t step)
{
    size_t low = 0, high = x->commit_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (x->commits[middle].step <= step) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const struct sfc_log_place_of *sfc_log_index_find(const struct sfc_log_index *x, uint64_t step,
                                                  struct sfc_attempt round)
{
    for (size_t i = prepares_until(x, step); i > 0 && x->prepares[i - 1].step == step; i--) {
        if (sfc_attempt_compare(x->prepares[i - 1].round, round) == 0) {
            return &x->prepares[i - 1];
        }
    }
    return NULL;
}

const struct sfc_log_commit *sfc_log_index_commit_of(const struct sfc_log_index *x, uint64_t step)
{
    size_t i = commits_until(x, step);
    return i > 0 && x->commits[i - 1].step == step ? &x->commits[i - 1] : NULL;
}

uint64_t sfc_log_index_drop(struct sfc_log_index *x, uint64_t segment, uint64_t offset)
{
    size_t kept = 0;
    uint64_t lowest = UINT64_MAX;
    for (size_t i = 0; i < x->prepare_count; i++) {
        if (x->prepares[i].segment != segment || x->prepares[i].offset < offset) {
            x->prepares[kept++] = x->prepares[i];
        } else if (x->prepares[i].step < lowest) {
            lowest = x->prepares[i].step;
        }
    }
    x->prepare_count = kept;
    return lowest;
}

void sfc_log_index_trim(struct sfc_log_index *x, uint64_t segment, uint64_t floor)
{
    size_t kept = 0;
    for (size_t i = 0; i < x->prepare_count; i++) {
        if (x->prepares[i].segment >= segment) {
            x->prepares[kept++] = x->prepares[i];
        }
    }
    x->prepare_count = kept;
    size_t gone = commits_until(x, floor);
    x->commit_count -= gone;
    if (gone > 0) {
        memmove(x->commits, x->commits + gone, x->commit_count * sizeof *x->commits);
    }
}

void sfc_log_index_free(struct sfc_log_index *x)
{
    free(x->prepares);
    free(x->commits);
    *x = (struct sfc_log_index){0};
}
