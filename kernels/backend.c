#include "kernels/backend_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef int (*open_fn)(unsigned threads, struct sfc_backend **out, struct sfc_error *err);

static const struct {
    const char *name;
    open_fn open;
} registry[] = {
#ifdef SFC_BACKEND_CPU
    {"cpu", sfc_backend_cpu_open},
#endif
#ifdef SFC_BACKEND_REFERENCE
    {"reference", sfc_backend_reference_open},
#endif
    {NULL, NULL},
};

int sfc_backend_open(const char *name, unsigned threads, struct sfc_backend **out,
                     struct sfc_error *err)
{
    if (threads < 1 || threads > 1024)
        return sfc_fail(err, SFC_EINVAL, "backend '%s': threads %u is outside 1..1024", name,
                        threads);
    for (size_t i = 0; registry[i].name; i++)
        if (!strcmp(registry[i].name, name))
            return registry[i].open(threads, out, err);
    if (!strncmp(name, "cuda", 4))
        return sfc_fail(err, SFC_EUNSUPPORTED, "backend '%s': this build has no CUDA backend",
                        name);
    return sfc_fail(err, SFC_EUNSUPPORTED, "unknown backend '%s'", name);
}

void sfc_backend_close(struct sfc_backend *backend)
{
    if (backend)
        backend->ops->close(backend);
}

int sfc_backend_set_store(struct sfc_backend *backend, const char *dir, struct sfc_error *err)
{
    if (backend->ops->set_store)
        return backend->ops->set_store(backend, dir, err);
    return dir ? sfc_fail(err, SFC_EUNSUPPORTED, "backend '%s' keeps its blocks in memory only",
                          backend->ops->name)
               : SFC_OK;
}

const char *sfc_backend_name(const struct sfc_backend *backend)
{
    return backend->ops->name;
}

const char *sfc_backend_numerics(const struct sfc_backend *backend)
{
    return backend->ops->numerics(backend);
}

size_t sfc_block_index(const uint64_t *blocks, size_t count, uint64_t block)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && blocks[low] == block ? low : count;
}

int sfc_blocks_check(const char *what, const uint64_t *blocks, size_t count, uint64_t limit,
                     struct sfc_error *err)
{
    if (count < 1)
        return sfc_fail(err, SFC_EINVAL, "%s: no blocks given", what);
    for (size_t i = 0; i < count; i++) {
        if (blocks[i] >= limit)
            return sfc_fail(err, SFC_EINVAL, "%s: block %llu does not exist, there are %llu", what,
                            (unsigned long long)blocks[i], (unsigned long long)limit);
        if (i && blocks[i] <= blocks[i - 1])
            return sfc_fail(err, SFC_EINVAL, "%s: block ids are not ascending at block %llu", what,
                            (unsigned long long)blocks[i]);
    }
    return SFC_OK;
}

bool sfc_has_part(enum sfc_optimizer optimizer, bool last_step, enum sfc_block_part part)
{
    switch (part) {
    case SFC_PART_VALUES:
    case SFC_PART_MOMENTUM:
        return true;
    case SFC_PART_LAST_STEP:
        return last_step;
    case SFC_PART_SECOND_MOMENT:
        return optimizer == SFC_OPTIMIZER_ADAMW;
    }
    return false;
}

int sfc_values_check(const char *what, uint64_t block, enum sfc_block_part part, uint64_t offset,
                     uint64_t count, const float *values, struct sfc_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(values[i]))
            return sfc_fail(err, SFC_EINVAL, "%s: element %llu written to block %llu is not finite",
                            what, (unsigned long long)(offset + i), (unsigned long long)block);
        if (part == SFC_PART_SECOND_MOMENT && values[i] < 0)
            return sfc_fail(err, SFC_EINVAL,
                            "%s: second moment %llu written to block %llu is below 0", what,
                            (unsigned long long)(offset + i), (unsigned long long)block);
    }
    return SFC_OK;
}

int sfc_adamw_check(const char *what, double beta1, double beta2, double epsilon,
                    struct sfc_error *err)
{
    if (!(beta1 >= 0 && beta1 < 1))
        return sfc_fail(err, SFC_EINVAL, "%s: beta1 %g is not within 0..1", what, beta1);
    if (!(beta2 >= 0 && beta2 < 1))
        return sfc_fail(err, SFC_EINVAL, "%s: beta2 %g is not within 0..1", what, beta2);
    if (!(epsilon >= 1e-30 && epsilon <= 1))
        return sfc_fail(err, SFC_EINVAL, "%s: epsilon %g is not within 1e-30..1", what, epsilon);
    return SFC_OK;
}
