/* Backends that are loaded at run time: a plugin (proto/base/plugin.h) that exports
 * sfc_backend_plugin. */
#ifndef SFC_KERNELS_PLUGIN_H
#define SFC_KERNELS_PLUGIN_H

#include "kernels/backend_impl.h"

/* Changes whenever the structures of kernels/backend.h or backend_impl.h do. Their sizes and the
 * version of ShardFC are compared as well. */
#define SFC_PLUGIN_ABI 2u

struct sfc_backend_plugin { /* begins as struct sfc_plugin_mark */
    uint32_t abi;           /* SFC_PLUGIN_ABI of the build */
    uint32_t layout;        /* SFC_PLUGIN_LAYOUT of the build */
    const char *version;    /* of ShardFC */
    int (*open)(unsigned device, unsigned threads, struct sfc_backend **out, struct sfc_error *err);
};

#define SFC_PLUGIN_LAYOUT                                                                          \
    ((uint32_t)(sizeof(struct sfc_backend_ops) + 3 * sizeof(struct sfc_head_part) +                \
                5 * sizeof(struct sfc_dense_part) + 7 * sizeof(struct sfc_head_config) +           \
                11 * sizeof(struct sfc_dense_config) + 13 * sizeof(struct sfc_head_logits_item) +  \
                17 * sizeof(struct sfc_error)))

/* Loads libshardfc-KIND.so and opens its device. SFC_EUNSUPPORTED: no plugin, not ours, or no such
 * device, with the cause and what to do. */
int sfc_plugin_open(const char *kind, unsigned device, unsigned threads, struct sfc_backend **out,
                    struct sfc_error *err);

#endif
