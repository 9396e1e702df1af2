/* A folder in memory (server/durable/file_layer.h) that knows what is durable. Until a file is
 * synced its sectors of 512 bytes and its length survive a loss of power one by one or not, by a
 * seed; names likewise until the folder is synced, each creation, rename and removal for itself.
 * After a sync that failed, some of the unsynced sectors are never written any more although reads
 * show them and later syncs succeed.
 *
 * Faults: the n-th call from now fails, or everything ends there. */
#ifndef SFC_TESTS_MEMORY_FILES_H
#define SFC_TESTS_MEMORY_FILES_H

#include "server/durable/file_layer.h"

struct memory_files;

enum memory_fault {
    MEMORY_EIO,
    MEMORY_FULL,  /* writes and creations answer SFC_ELIMIT; other calls SFC_EIO */
    MEMORY_SHORT, /* like FULL, after half of the bytes were written */
    MEMORY_CRASH  /* the call may have had its effect; every later one fails until restart */
};

struct memory_files *memory_files_new(uint64_t seed);
void memory_files_free(struct memory_files *files);

/* The folder as a process that starts now opens it; close it with sfc_folder_close. */
struct sfc_folder *memory_files_folder(struct memory_files *files);

/* The n-th call from now (1: the next) and the times - 1 after it fail. Only calls that change
 * something count, unless reads is set. */
void memory_files_fault(struct memory_files *files, enum memory_fault fault, uint64_t n,
                        uint64_t times, bool reads);
bool memory_files_hit(const struct memory_files *files); /* the fault happened */
/* The process is dead; power: and what was not durable is lost or not, by the seed. */
void memory_files_restart(struct memory_files *files, bool power);
void memory_files_space(struct memory_files *files, uint64_t bytes); /* what free_space says */

/* Content as it is now, NULL: no such file. Changes of it are changes of the disk. */
uint8_t *memory_files_data(struct memory_files *files, const char *name, size_t *size);
void memory_files_resize(struct memory_files *files, const char *name, size_t size);
size_t memory_files_count(const struct memory_files *files);
const char *memory_files_name(const struct memory_files *files, size_t index);

#endif
