/* An SQLite VFS over a folder in memory (memory_files.h), so that databases see its faults and
 * losses of power. It asks of the disk what SQLite's own "unix" VFS asks, the sync of the folder
 * after a journal's first sync included. One process: locks are granted, shared memory is heap. */
#ifndef SFC_TESTS_MEMORY_VFS_H
#define SFC_TESTS_MEMORY_VFS_H

#include <stdbool.h>

#include "tests/lib/memory_files.h"

/* Registers the VFS as the default one; once, before any database is opened. */
void memory_vfs_register(void);
/* Databases opened from now on live here; only the last part of a path counts. The folder stays
 * the caller's. */
void memory_vfs_use(struct sfc_folder *folder);
/* Syncs of the journal are answered and not done. */
void memory_vfs_lie(bool lies);

#endif
