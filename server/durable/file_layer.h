/* The files of one folder behind a table of functions, so that tests can lose, tear and reorder
 * what was not synced, refuse any call, and stop at any call (tests/lib/memory_files.h). Names are
 * plain file names, without '/'.
 *
 * Errors: SFC_ELIMIT when the disk or a quota is full (the same call may succeed later),
 * SFC_ENOTFOUND, SFC_EEXIST, SFC_EDENIED, SFC_ENOMEM, otherwise SFC_EIO. Messages name folder and
 * file. A folder and its files are used by one thread at a time; different folder objects are
 * independent, also of the same path. */
#ifndef SFC_DURABLE_FILE_LAYER_H
#define SFC_DURABLE_FILE_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

struct sfc_folder;
struct sfc_file;

#define SFC_FILE_PARTS  1024u /* most parts of one write that go to the system in one call */
#define SFC_FILE_DIRECT 4096u /* see direct() */

struct sfc_folder_ops {
    /* A new, empty file for reading and writing; SFC_EEXIST. Its name survives a crash only after
     * sync_names. */
    int (*create)(struct sfc_folder *folder, const char *name, struct sfc_file **out,
                  struct sfc_error *err);
    /* An existing file for reading; writable: also for writing. */
    int (*open)(struct sfc_folder *folder, const char *name, bool writable, struct sfc_file **out,
                struct sfc_error *err);
    int (*rename)(struct sfc_folder *folder, const char *from, const char *to,
                  struct sfc_error *err);
    int (*remove)(struct sfc_folder *folder, const char *name, struct sfc_error *err);
    /* visit is called for each regular file, in no order; it must not change the folder. Its code,
     * unless SFC_OK, ends the listing and is returned. */
    int (*list)(struct sfc_folder *folder,
                int (*visit)(void *arg, const char *name, struct sfc_error *err), void *arg,
                struct sfc_error *err);
    /* All creations, renames and removals so far survive a crash (fsync of the folder). */
    int (*sync_names)(struct sfc_folder *folder, struct sfc_error *err);
    /* Bytes that may still be written to the disk of this folder. */
    int (*free_space)(struct sfc_folder *folder, uint64_t *bytes, struct sfc_error *err);
    void (*close)(struct sfc_folder *folder);

    /* Writes all parts one after another from offset on, or fails; then any bytes from offset on
     * may have been written. */
    int (*write)(struct sfc_file *file, uint64_t offset, const struct sfc_bytes *parts,
                 size_t count, struct sfc_error *err);
    /* Reads up to size bytes; *got is less only at the end of the file. */
    int (*read)(struct sfc_file *file, uint64_t offset, void *out, size_t size, size_t *got,
                struct sfc_error *err);
    int (*size)(struct sfc_file *file, uint64_t *size, struct sfc_error *err);
    int (*resize)(struct sfc_file *file, uint64_t size, struct sfc_error *err);
    /* Content and length so far survive a crash (fdatasync). After a failure nobody knows which of
     * the bytes written since the last success do, and a second call may well answer SFC_OK. */
    int (*sync)(struct sfc_file *file, struct sfc_error *err);
    /* on: from now on the file is written past the system's cache, in multiples of SFC_FILE_DIRECT
     * bytes, at such offsets, from memory at such addresses; false: that can't be had here, and
     * nothing has changed. Off again: like any file. What is durable is as without it. */
    bool (*direct)(struct sfc_file *file, bool on);
    void (*close_file)(struct sfc_file *file); /* NULL is fine */
};

/* First member of every implementation. */
struct sfc_folder {
    const struct sfc_folder_ops *ops;
    const char *path; /* for messages */
};
struct sfc_file {
    struct sfc_folder *folder;
};

/* The folder at path. create: made with mode 0700 where it is missing, durably (fsync of its
 * parent). */
int sfc_folder_open(const char *path, bool create, struct sfc_folder **out, struct sfc_error *err);
void sfc_folder_close(struct sfc_folder *folder); /* NULL is fine */

#endif
