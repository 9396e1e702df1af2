#include "proto/base/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SFC_PLUGIN_INSTALL_DIR
#error "SFC_PLUGIN_INSTALL_DIR is the folder where ShardFC's plugins are installed"
#endif

/* dir/libshardfc-NAME.so; false where it is too long to be a path. */
static bool join(char *path, size_t size, const char *dir, const char *name)
{
    int n = snprintf(path, size, "%s/libshardfc-%s.so", dir, name);
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
static int find(const struct sfc_plugin_wanted *w, char *path, size_t size, struct sfc_error *err)
{
    const char *given = getenv("SFC_PLUGIN_DIR");
    char beside[PATH_MAX] = "";
    if (given && given[0] != '/')
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: SFC_PLUGIN_DIR '%s' is no absolute path; give one", w->who, given);
    if (given) {
        if (join(path, size, given, w->name) && !access(path, F_OK))
            return SFC_OK;
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: no libshardfc-%s.so in %.200s (SFC_PLUGIN_DIR); give the folder that "
                        "has it, or unset SFC_PLUGIN_DIR",
                        w->who, w->name, given);
    }
    bool known = beside_program(beside, sizeof beside);
    if (known && join(path, size, beside, w->name) && !access(path, F_OK))
        return SFC_OK;
    if (join(path, size, SFC_PLUGIN_INSTALL_DIR, w->name) && !access(path, F_OK))
        return SFC_OK;
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "%s: no libshardfc-%s.so in %.150s or %.100s; build ShardFC with cmake "
                    "--preset %s, or set SFC_PLUGIN_DIR to the folder that has it",
                    w->who, w->name, known ? beside : "lib/ beside the program",
                    SFC_PLUGIN_INSTALL_DIR, w->preset);
}

static int check(const struct sfc_plugin_wanted *w, const char *path, const void *symbol,
                 struct sfc_error *err)
{
    struct sfc_plugin_mark mark;
    memcpy(&mark, symbol, sizeof mark);
    if (mark.abi != w->abi)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: %.200s speaks version %u of the plugin interface, this program "
                        "version %u; install both from one build",
                        w->who, path, mark.abi, w->abi);
    if (mark.layout != w->layout || strcmp(mark.version, SFC_VERSION) != 0)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: %.200s is of ShardFC %.40s (layout %u), this program is %s (layout "
                        "%u); install both from one build",
                        w->who, path, mark.version, mark.layout, SFC_VERSION, w->layout);
    return SFC_OK;
}

/* The library stays: threads, streams and handlers of what it links outlive any of our objects. */
static int load(const struct sfc_plugin_wanted *w, const char *path, const void **out,
                struct sfc_error *err)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        const char *why = dlerror();
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s: %.200s can't be loaded: %.200s; install the libraries that it names "
                        "(LD_LIBRARY_PATH finds them elsewhere)",
                        w->who, path, why ? why : "unknown reason");
    }
    const void *symbol = dlsym(library, w->symbol);
    int rc = symbol ? check(w, path, symbol, err)
                    : sfc_fail(err, SFC_EUNSUPPORTED,
                               "%s: %.200s has no symbol %s: it is no plugin of ShardFC; install "
                               "the one of this build",
                               w->who, path, w->symbol);
    dlclose(library);
    if (rc == SFC_OK)
        *out = symbol;
    return rc;
}

int sfc_plugin_load(const struct sfc_plugin_wanted *wanted, const void **out, struct sfc_error *err)
{
    char path[PATH_MAX];
    int rc = find(wanted, path, sizeof path, err);
    return rc == SFC_OK ? load(wanted, path, out, err) : rc;
}
