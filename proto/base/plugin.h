/* Shared libraries of ours that are loaded at run time, so that nobody who doesn't use them needs
 * their libraries: libshardfc-NAME.so, which exports one symbol.
 *
 * It is taken from the folder SFC_PLUGIN_DIR of the environment where that is set (an absolute
 * path), else from lib/ beside the folder of the running program, else from the folder where
 * ShardFC is installed; never from the working directory or the search path of libraries. It stays
 * loaded until the process ends. */
#ifndef SFC_PROTO_BASE_PLUGIN_H
#define SFC_PROTO_BASE_PLUGIN_H

#include <stdint.h>

#include "proto/base/status.h"

/* What the exported structure begins with. */
struct sfc_plugin_mark {
    uint32_t abi;        /* of the interface */
    uint32_t layout;     /* a sum over the sizes of the structures that both sides use */
    const char *version; /* of ShardFC */
};

struct sfc_plugin_wanted {
    const char *who;    /* begins each message: "backend 'cuda'" */
    const char *name;   /* libshardfc-NAME.so */
    const char *preset; /* of cmake, that builds it */
    const char *symbol;
    uint32_t abi, layout;
};

/* *out: the symbol. SFC_EUNSUPPORTED: no plugin, or not ours, with the cause and what to do. */
int sfc_plugin_load(const struct sfc_plugin_wanted *wanted, const void **out,
                    struct sfc_error *err);

#endif
