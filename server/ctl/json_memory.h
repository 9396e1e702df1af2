/* Whether memory failed inside jansson: it says so only for some of its allocations, takes others
 * for bad input, and may leave a piece out of a text that it writes. */
#ifndef SFC_CTL_JSON_MEMORY_H
#define SFC_CTL_JSON_MEMORY_H

#include <stdbool.h>

/* From here on allocations of this thread's jansson calls are watched (jansson's allocator becomes
 * ours; it is malloc and free all the same). */
void sfc_json_watch(void);
bool sfc_json_out_of_memory(void); /* one has failed since sfc_json_watch */

#endif
