#include "kernels/backend_impl.h"

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
