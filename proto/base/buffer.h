/* Memory that much is copied through. */
#ifndef SFC_BASE_BUFFER_H
#define SFC_BASE_BUFFER_H

#include <stddef.h>

/* 64-byte aligned; from 2 MiB on in huge pages where the system has them (4096-byte aligned then).
 * NULL: there is none. free() gives it back. */
void *sfc_buffer_new(size_t size);

#endif
