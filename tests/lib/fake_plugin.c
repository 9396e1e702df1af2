/* Plugins for test_plugin: FAKE_KIND is what is wrong with this one. */
#include "kernels/plugin.h"

#define RIGHT   0 /* a plugin whose devices don't exist */
#define OLD     1 /* of another version of the interface */
#define RESIZED 2 /* of a build with other structures */
#define FOREIGN 3 /* not one of ours */
#define NEEDY   4 /* a library that it needs isn't there */

#if FAKE_KIND == FOREIGN
extern const int sfc_not_a_plugin;
const int sfc_not_a_plugin = 1;
#else

#if FAKE_KIND == NEEDY
int sfc_nobody_has_this(void);
#endif

static int open_none(unsigned device, unsigned threads, struct sfc_backend **out,
                     struct sfc_error *err)
{
    (void)out;
#if FAKE_KIND == NEEDY
    device += (unsigned)sfc_nobody_has_this();
#endif
    err->code = SFC_EUNSUPPORTED;
    err->text[0] = (char)('0' + device);
    err->text[1] = (char)('0' + threads);
    err->text[2] = 0;
    return SFC_EUNSUPPORTED;
}

extern const struct sfc_backend_plugin sfc_backend_plugin;
const struct sfc_backend_plugin sfc_backend_plugin = {
    .abi = SFC_PLUGIN_ABI + (FAKE_KIND == OLD),
    .layout = SFC_PLUGIN_LAYOUT + (FAKE_KIND == RESIZED),
    .version = SFC_VERSION,
    .open = open_none,
};
#endif
