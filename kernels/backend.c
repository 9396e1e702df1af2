#include "kernels/backend_impl.h"

#include <string.h>

#include "kernels/plugin.h"

#define MAX_DEVICE 1023u

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
#ifdef SFC_BACKEND_CUDA_LINKED /* as a test on emulated devices has it; else it is a plugin */
    {"cuda", sfc_backend_cuda_open_linked},
#endif
    {NULL, NULL},
};

typedef int (*open_device_fn)(const char *kind, unsigned device, unsigned threads,
                              struct sfc_backend **out, struct sfc_error *err);

/* Kinds that have devices, "cuda" or "cuda:N". */
static const struct {
    const char *kind;
    open_device_fn open;
} device_registry[] = {
    {"cuda", sfc_plugin_open},
};

/* "KIND" is device 0. */
static int device_of(const char *name, const char *kind, unsigned *device, struct sfc_error *err)
{
    const char *digits = name + strlen(kind);
    unsigned n = 0;
    bool right = *digits == 0 || (*digits == ':' && digits[1]);
    for (digits += *digits == ':'; right && *digits; digits++) {
        right = *digits >= '0' && *digits <= '9';
        n = right && n <= MAX_DEVICE ? 10 * n + (unsigned)(*digits - '0') : n;
    }
    if (!right || n > MAX_DEVICE)
        return sfc_fail(err, SFC_EUNSUPPORTED, "backend '%s': give %s or %s:N with N within 0..%u",
                        name, kind, kind, MAX_DEVICE);
    *device = n;
    return SFC_OK;
}

/* True: the name is of a kind with devices, and *rc what opening it gave. */
static bool open_device(const char *name, unsigned threads, struct sfc_backend **out, int *rc,
                        struct sfc_error *err)
{
    for (size_t i = 0; i < sizeof device_registry / sizeof *device_registry; i++) {
        const char *kind = device_registry[i].kind;
        size_t length = strlen(kind);
        unsigned device = 0;
        if (strncmp(name, kind, length) != 0 || (name[length] && name[length] != ':'))
            continue;
        *rc = device_of(name, kind, &device, err);
        if (*rc == SFC_OK)
            *rc = device_registry[i].open(kind, device, threads, out, err);
        return true;
    }
    return false;
}

int sfc_backend_open(const char *name, unsigned threads, struct sfc_backend **out,
                     struct sfc_error *err)
{
    if (threads < 1 || threads > 1024)
        return sfc_fail(err, SFC_EINVAL, "backend '%s': threads %u is outside 1..1024", name,
                        threads);
    for (size_t i = 0; registry[i].name; i++)
        if (!strcmp(registry[i].name, name))
            return registry[i].open(threads, out, err);
    int rc = SFC_OK;
    if (open_device(name, threads, out, &rc, err))
        return rc;
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

int sfc_backend_device_memory(const struct sfc_backend *backend, struct sfc_device_memory *out,
                              struct sfc_error *err)
{
    struct sfc_device_memory memory = {0};
    int rc =
        backend->ops->device_memory ? backend->ops->device_memory(backend, &memory, err) : SFC_OK;
    if (rc == SFC_OK)
        *out = memory;
    return rc;
}

const char *sfc_backend_name(const struct sfc_backend *backend)
{
    return backend->ops->name;
}

const char *sfc_backend_numerics(const struct sfc_backend *backend)
{
    return backend->ops->numerics(backend);
}
