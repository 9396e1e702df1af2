#include "kernels/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SFC_PLUGIN_INSTALL_DIR
#error "SFC_PLUGIN_INSTALL_DIR is the folder where ShardFC's plugins are installed"
#endif
#define ENTRY "sfc_backend_plugin"

/* dir/libshardfc-KIND.so; false where it is too long to be a path. */
static bool join(char *path, size_t size, const char *dir, const char *kind)
{
    int n = snprintf(path, size, "%s/libshardfc-%s.so", dir, kind);
    return n > 0 && (size_t)n < size;
}

/* lib/ beside the folder that the running program is in; false where the system doesn't tell. */
static bool beside_program(char *dir, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", dir, size - 1);
    if (n <= 0 || (size_t)n >= size - 1)
        return false;
    dir[n] = 0;
    for (int up = 0; up < 2; up++) { /* the program, the folder of programs */
        char *slash = strrchr(dir, '/');
        if (!slash)
            return false;
        *slash = 0;
    }
    size_t length = strlen(dir);
    return snprintf(dir + length, size - length, "/lib") < (int)(size - length);
}

/* The first place that has the file; only SFC_PLUGIN_DIR where it is set. */
static int find(const char *kind, char *path, size_t size, struct sfc_error *err)
{
    const char *given = getenv("SFC_PLUGIN_DIR");
    char beside[PATH_MAX] = "";
    if (given && given[0] != '/')
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend '%s': SFC_PLUGIN_DIR '%s' is no absolute path; give one", kind,
                        given);
    if (given) {
        if (join(path, size, given, kind) && !access(path, F_OK))
            return SFC_OK;
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend '%s': no libshardfc-%s.so in %.200s (SFC_PLUGIN_DIR); give the "
                        "folder that has it, or unset SFC_PLUGIN_DIR",
                        kind, kind, given);
    }
    bool known = beside_program(beside, sizeof beside);
    if (known && join(path, size, beside, kind) && !access(path, F_OK))
        return SFC_OK;
    if (join(path, size, SFC_PLUGIN_INSTALL_DIR, kind) && !access(path, F_OK))
        return SFC_OK;
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "backend '%s': no libshardfc-%s.so in %.150s or %.100s; build ShardFC with "
                    "cmake --preset %s, or set SFC_PLUGIN_DIR to the folder that has it",
                    kind, kind, known ? beside : "lib/ beside the program", SFC_PLUGIN_INSTALL_DIR,
                    kind);
}

static int check(const char *kind, const char *path, const struct sfc_backend_plugin *plugin,
                 struct sfc_error *err)
{
    if (plugin->abi != SFC_PLUGIN_ABI)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend '%s': %.200s speaks version %u of the plugin interface, this "
                        "program version %u; install both from one build",
                        kind, path, plugin->abi, SFC_PLUGIN_ABI);
    if (plugin->layout != SFC_PLUGIN_LAYOUT || strcmp(plugin->version, SFC_VERSION) != 0)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend '%s': %.200s is of ShardFC %.40s (layout %u), this program is %s "
                        "(layout %u); install both from one build",
                        kind, path, plugin->version, plugin->layout, SFC_VERSION,
                        SFC_PLUGIN_LAYOUT);
    return SFC_OK;
}

/* The library stays: threads, streams and handlers of what it links outlive any of our objects. */
static int load(const char *kind, const char *path, const struct sfc_backend_plugin **out,
                struct sfc_error *err)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        const char *why = dlerror();
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend '%s': %.200s can't be loaded: %.200s; install the libraries that "
                        "it names (LD_LIBRARY_PATH finds them elsewhere)",
                        kind, path, why ? why : "unknown reason");
    }
    const struct sfc_backend_plugin *plugin = dlsym(library, ENTRY);
    int rc = plugin ? check(kind, path, plugin, err)
                    : sfc_fail(err, SFC_EUNSUPPORTED,
                               "backend '%s': %.200s has no symbol " ENTRY
                               ": it is no plugin of ShardFC; install the one of this build",
                               kind, path);
    dlclose(library);
    if (rc == SFC_OK)
        *out = plugin;
    return rc;
}

int sfc_plugin_open(const char *kind, unsigned device, unsigned threads, struct sfc_backend **out,
                    struct sfc_error *err)
{
    char path[PATH_MAX];
    const struct sfc_backend_plugin *plugin = NULL;
    int rc = find(kind, path, sizeof path, err);
    if (rc == SFC_OK)
        rc = load(kind, path, &plugin, err);
    return rc == SFC_OK ? plugin->open(device, threads, out, err) : rc;
}
