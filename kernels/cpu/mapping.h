/* Large memory of the CPU backend: zeroed, allocated once, in huge pages where there are some; or
 * in a file without a name for blocks that are larger than memory. */
#ifndef SFC_KERNELS_CPU_MAPPING_H
#define SFC_KERNELS_CPU_MAPPING_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/status.h"

struct sfc_cpu_mapping {
    void *base, *data; /* data: aligned to huge pages where it is that large */
    size_t size;
    bool file;
};

/* What a mapping of so many bytes takes. */
size_t sfc_cpu_mapped_bytes(size_t bytes);
/* what: for the message of SFC_ENOMEM. */
int sfc_cpu_map(struct sfc_cpu_mapping *mapping, size_t bytes, const char *what,
                struct sfc_error *err);
/* The same in a file in `dir`, whose blocks are reserved now, so that no later access can fail for
 * lack of space. It has no name, so it ends with the mapping or the process, whatever ends that.
 * SFC_EIO: no file can be made there; SFC_ENOMEM: the file system lacks the space (both numbers in
 * the message). */
int sfc_cpu_map_file(struct sfc_cpu_mapping *mapping, size_t bytes, const char *dir,
                     struct sfc_error *err);
/* Can map_file make a file there? */
int sfc_cpu_try_dir(const char *dir, struct sfc_error *err);
void sfc_cpu_unmap(struct sfc_cpu_mapping *mapping); /* zeroed is fine */

/* These bytes are not needed any more: the whole pages among them go back to the system (and the
 * file's to its file system) and read as zeros from now on. Returns how many bytes went. */
size_t sfc_cpu_give_back(const struct sfc_cpu_mapping *mapping, void *from, size_t bytes);

/* Asks for the bytes of a file to be read soon; for memory it does nothing. Never waits for a disk.
 */
void sfc_cpu_read_ahead(const struct sfc_cpu_mapping *mapping, const void *from, size_t bytes);

#endif
