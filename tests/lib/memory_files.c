#include "tests/lib/memory_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECTOR = 512, NAME = 96, NAMES = 256, INODES = 8192 };
enum sector { CLEAN, DIRTY, LOST };

struct inode {
    uint8_t *now, *durable, *sectors; /* all of `room` bytes, sectors of room / SECTOR */
    size_t size, durable_size, room;
};

struct name {
    char text[NAME];
    struct inode *inode;
};

struct directory {
    struct name names[NAMES];
    size_t count;
};

struct change { /* of the folder, not yet durable */
    char from[NAME], to[NAME];
    struct inode *inode; /* of a creation */
};

struct memory_files {
    uint64_t random;
    struct inode *inodes[INODES];
    size_t inode_count;
    struct directory now, durable;
    struct change *pending;
    size_t pending_count, pending_room;
    uint64_t space;
    enum memory_fault fault;
    uint64_t countdown, times; /* countdown 0: none */
    bool reads, hit, crashed;
};

struct folder {
    struct sfc_folder base;
    struct memory_files *files;
};

struct file {
    struct sfc_file base;
    struct inode *inode;
    bool writable, direct;
};

static uint64_t draw(struct memory_files *m)
{
    uint64_t z = (m->random += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void must(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "memory_files: %s\n", what);
        abort();
    }
}

static struct memory_files *files_of(const struct sfc_folder *folder)
{
    return ((const struct folder *)folder)->files;
}

/* ---- names */

static struct name *find(struct directory *d, const char *text)
{
    for (size_t i = 0; i < d->count; i++) {
        if (strcmp(d->names[i].text, text) == 0) {
            return &d->names[i];
        }
    }
    return NULL;
}

static void drop_name(struct directory *d, const char *text)
{
    struct name *name = find(d, text);
    if (name != NULL) {
        *name = d->names[--d->count];
    }
}

static void add_name(struct directory *d, const char *text, struct inode *inode)
{
    drop_name(d, text);
    must(d->count < NAMES && strlen(text) < NAME, "too many or too long names");
    struct name *name = &d->names[d->count++];
    snprintf(name->text, NAME, "%s", text);
    name->inode = inode;
}

/* A creation, a removal (to empty) or a rename. */
static void apply(struct directory *d, const struct change *change)
{
    if (change->inode != NULL) {
        add_name(d, change->to, change->inode);
        return;
    }
    struct name *name = find(d, change->from);
    if (name == NULL) {
        return; /* its creation was lost */
    }
    struct inode *inode = name->inode;
    drop_name(d, change->from);
    if (change->to[0] != '\0') {
        add_name(d, change->to, inode);
    }
}

static void change_names(struct memory_files *m, struct inode *inode, const char *from,
                         const char *to)
{
    if (m->pending_count == m->pending_room) {
        m->pending_room = 2 * m->pending_room + 16;
        m->pending = realloc(m->pending, m->pending_room * sizeof *m->pending);
        must(m->pending != NULL, "out of memory");
    }
    struct change *change = &m->pending[m->pending_count++];
    *change = (struct change){.inode = inode};
    snprintf(change->from, NAME, "%s", from);
    snprintf(change->to, NAME, "%s", to);
    apply(&m->now, change);
}

/* ---- content */

static void reserve(struct inode *inode, size_t size)
{
    if (size > inode->room) {
        size_t room = (2 * size + SECTOR - 1) / SECTOR * SECTOR;
        inode->now = realloc(inode->now, room);
        inode->durable = realloc(inode->durable, room);
        inode->sectors = realloc(inode->sectors, room / SECTOR);
        must(inode->now && inode->durable && inode->sectors, "out of memory");
        memset(inode->now + inode->room, 0, room - inode->room);
        memset(inode->durable + inode->room, 0, room - inode->room);
        memset(inode->sectors + inode->room / SECTOR, CLEAN, (room - inode->room) / SECTOR);
        inode->room = room;
    }
}

static void touch(struct inode *inode, size_t from, size_t to)
{
    for (size_t s = from / SECTOR; s * SECTOR < to; s++) {
        inode->sectors[s] = DIRTY;
    }
}

static void set_size(struct inode *inode, size_t size)
{
    reserve(inode, size);
    if (size < inode->size) {
        memset(inode->now + size, 0, inode->size - size);
        touch(inode, size, inode->size);
    }
    inode->size = size;
}

static void keep_sector(struct inode *inode, size_t s)
{
    memcpy(inode->durable + s * SECTOR, inode->now + s * SECTOR, SECTOR);
    inode->sectors[s] = CLEAN;
}

static void make_durable(struct inode *inode)
{
    for (size_t s = 0; s < inode->room / SECTOR; s++) {
        if (inode->sectors[s] == DIRTY) {
            keep_sector(inode, s);
        }
    }
    inode->durable_size = inode->size;
}

static void lose_some(struct memory_files *m, struct inode *inode)
{
    for (size_t s = 0; s < inode->room / SECTOR; s++) {
        if (inode->sectors[s] == DIRTY && draw(m) % 2 == 0) {
            inode->sectors[s] = LOST;
        }
    }
}

/* percent: how likely each unsynced sector is on the disk all the same. */
static void power_off(struct memory_files *m, struct inode *inode, uint64_t percent)
{
    for (size_t s = 0; s < inode->room / SECTOR; s++) {
        if (inode->sectors[s] == DIRTY && draw(m) % 100 < percent) {
            keep_sector(inode, s);
        }
        inode->sectors[s] = CLEAN;
    }
    size_t low = inode->durable_size < inode->size ? inode->durable_size : inode->size;
    size_t high = inode->durable_size < inode->size ? inode->size : inode->durable_size;
    size_t size = percent == 0     ? inode->durable_size
                  : percent == 100 ? inode->size
                                   : low + draw(m) % (high - low + 1);
    if (inode->room > 0) {
        memset(inode->durable + size, 0, inode->room - size);
        memcpy(inode->now, inode->durable, inode->room);
    }
    inode->size = inode->durable_size = size;
}

/* ---- faults */

static int refuse(struct memory_files *m, bool takes_space, struct sfc_error *err)
{
    if (m->crashed) {
        return sfc_fail(err, SFC_EIO, "memory: the process is dead");
    }
    if (takes_space && (m->fault == MEMORY_FULL || m->fault == MEMORY_SHORT)) {
        return sfc_fail(err, SFC_ELIMIT, "memory: the disk is full");
    }
    return sfc_fail(err, SFC_EIO, "memory: injected error");
}

/* True: this call fails. */
static bool fails(struct memory_files *m, bool is_read)
{
    if (m->crashed) {
        return true;
    }
    if (m->countdown == 0 || (is_read && !m->reads)) {
        return false;
    }
    if (m->countdown > 1) {
        m->countdown--;
        return false;
    }
    m->hit = true;
    m->crashed = m->fault == MEMORY_CRASH;
    if (--m->times == 0) {
        m->countdown = 0;
    }
    return true;
}

/* A call in whose middle the process dies may have had its effect. */
static bool effect(struct memory_files *m)
{
    return m->crashed && draw(m) % 2 == 0;
}

/* ---- the layer */

static struct sfc_file *open_inode(struct sfc_folder *folder, struct inode *inode, bool writable)
{
    struct file *file = malloc(sizeof *file);
    must(file != NULL, "out of memory");
    *file = (struct file){.base = {.folder = folder}, .inode = inode, .writable = writable};
    return &file->base;
}

static int memory_create(struct sfc_folder *folder, const char *name, struct sfc_file **out,
                         struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    bool was = m->crashed, fail = fails(m, false);
    if (!was && find(&m->now, name) != NULL) {
        return sfc_fail(err, SFC_EEXIST, "memory: %s exists", name);
    }
    if (was || (fail && !effect(m))) {
        return refuse(m, true, err);
    }
    must(m->inode_count < INODES, "too many files");
    struct inode *inode = calloc(1, sizeof *inode);
    must(inode != NULL, "out of memory");
    m->inodes[m->inode_count++] = inode;
    change_names(m, inode, "", name);
    if (fail) {
        return refuse(m, true, err);
    }
    *out = open_inode(folder, inode, true);
    return SFC_OK;
}

static int memory_open(struct sfc_folder *folder, const char *name, bool writable,
                       struct sfc_file **out, struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    if (fails(m, true)) {
        return refuse(m, false, err);
    }
    struct name *found = find(&m->now, name);
    if (found == NULL) {
        return sfc_fail(err, SFC_ENOTFOUND, "memory: no file %s", name);
    }
    *out = open_inode(folder, found->inode, writable);
    return SFC_OK;
}

static int change(struct sfc_folder *folder, const char *from, const char *to,
                  struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    bool was = m->crashed, fail = fails(m, false);
    if (!was && find(&m->now, from) == NULL) {
        return sfc_fail(err, SFC_ENOTFOUND, "memory: no file %s", from);
    }
    if (!was && (!fail || effect(m))) {
        change_names(m, NULL, from, to);
    }
    return fail ? refuse(m, false, err) : SFC_OK;
}

static int memory_rename(struct sfc_folder *folder, const char *from, const char *to,
                         struct sfc_error *err)
{
    return change(folder, from, to, err);
}

static int memory_remove(struct sfc_folder *folder, const char *name, struct sfc_error *err)
{
    return change(folder, name, "", err);
}

static int memory_list(struct sfc_folder *folder,
                       int (*visit)(void *arg, const char *name, struct sfc_error *err), void *arg,
                       struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    int code = fails(m, true) ? refuse(m, false, err) : SFC_OK;
    for (size_t i = 0; i < m->now.count && code == SFC_OK; i++) {
        code = visit(arg, m->now.names[i].text, err);
    }
    return code;
}

static int memory_sync_names(struct sfc_folder *folder, struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    bool was = m->crashed, fail = fails(m, false);
    if (!was && (!fail || effect(m))) {
        m->durable = m->now;
        m->pending_count = 0;
    }
    return fail ? refuse(m, false, err) : SFC_OK;
}

static int memory_free_space(struct sfc_folder *folder, uint64_t *bytes, struct sfc_error *err)
{
    struct memory_files *m = files_of(folder);
    if (fails(m, true)) {
        return refuse(m, false, err);
    }
    *bytes = m->space;
    return SFC_OK;
}

static void memory_close(struct sfc_folder *folder)
{
    free(folder);
}

static int memory_write(struct sfc_file *base, uint64_t offset, const struct sfc_bytes *parts,
                        size_t count, struct sfc_error *err)
{
    struct memory_files *m = files_of(base->folder);
    struct inode *inode = ((struct file *)base)->inode;
    bool was = m->crashed, fail = fails(m, false);
    must(((struct file *)base)->writable, "write to a file that was opened for reading");
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        must(!((struct file *)base)->direct ||
                 (offset | parts[i].size | (uintptr_t)parts[i].data) % SFC_FILE_DIRECT == 0,
             "a direct write is not aligned");
        total += parts[i].size;
    }
    size_t left = total;
    if (was || (fail && (m->fault == MEMORY_EIO || m->fault == MEMORY_FULL))) {
        left = 0;
    } else if (fail) {
        left = m->fault == MEMORY_SHORT ? total / 2 : draw(m) % (total + 1);
    }
    for (size_t i = 0; i < count && left > 0; i++) {
        size_t n = parts[i].size < left ? parts[i].size : left;
        if (n > 0) {
            reserve(inode, offset + n);
            memcpy(inode->now + offset, parts[i].data, n);
            touch(inode, offset, offset + n);
            offset += n;
            left -= n;
            inode->size = offset > inode->size ? offset : inode->size;
        }
    }
    return fail ? refuse(m, true, err) : SFC_OK;
}

static int memory_read(struct sfc_file *base, uint64_t offset, void *out, size_t size, size_t *got,
                       struct sfc_error *err)
{
    struct memory_files *m = files_of(base->folder);
    const struct inode *inode = ((struct file *)base)->inode;
    if (fails(m, true)) {
        return refuse(m, false, err);
    }
    size_t left = offset < inode->size ? inode->size - offset : 0;
    size_t n = left < size ? left : size;
    if (n > 0) {
        memcpy(out, inode->now + offset, n);
    }
    *got = n;
    return SFC_OK;
}

static int memory_size(struct sfc_file *base, uint64_t *size, struct sfc_error *err)
{
    struct memory_files *m = files_of(base->folder);
    if (fails(m, true)) {
        return refuse(m, false, err);
    }
    *size = ((struct file *)base)->inode->size;
    return SFC_OK;
}

static int memory_resize(struct sfc_file *base, uint64_t size, struct sfc_error *err)
{
    struct memory_files *m = files_of(base->folder);
    bool was = m->crashed, fail = fails(m, false);
    if (!was && (!fail || effect(m))) {
        set_size(((struct file *)base)->inode, size);
    }
    return fail ? refuse(m, false, err) : SFC_OK;
}

static int memory_sync(struct sfc_file *base, struct sfc_error *err)
{
    struct memory_files *m = files_of(base->folder);
    struct inode *inode = ((struct file *)base)->inode;
    bool was = m->crashed, fail = fails(m, false);
    if (!was && (!fail || effect(m))) {
        make_durable(inode);
    } else if (!was && !m->crashed) {
        lose_some(m, inode);
    }
    return fail ? refuse(m, false, err) : SFC_OK;
}

static bool memory_direct(struct sfc_file *base, bool on)
{
    ((struct file *)base)->direct = on;
    return true;
}

static void memory_close_file(struct sfc_file *file)
{
    free(file);
}

static const struct sfc_folder_ops memory_ops = {
    .create = memory_create,
    .open = memory_open,
    .rename = memory_rename,
    .remove = memory_remove,
    .list = memory_list,
    .sync_names = memory_sync_names,
    .free_space = memory_free_space,
    .close = memory_close,
    .write = memory_write,
    .read = memory_read,
    .size = memory_size,
    .resize = memory_resize,
    .sync = memory_sync,
    .direct = memory_direct,
    .close_file = memory_close_file,
};

/* ---- for the test */

struct memory_files *memory_files_new(uint64_t seed)
{
    struct memory_files *m = calloc(1, sizeof *m);
    must(m != NULL, "out of memory");
    m->random = seed;
    m->space = UINT64_MAX;
    return m;
}

void memory_files_free(struct memory_files *m)
{
    for (size_t i = 0; i < m->inode_count; i++) {
        free(m->inodes[i]->now);
        free(m->inodes[i]->durable);
        free(m->inodes[i]->sectors);
        free(m->inodes[i]);
    }
    free(m->pending);
    free(m);
}

struct sfc_folder *memory_files_folder(struct memory_files *m)
{
    struct folder *folder = malloc(sizeof *folder);
    must(folder != NULL, "out of memory");
    *folder = (struct folder){.base = {.ops = &memory_ops, .path = "memory"}, .files = m};
    return &folder->base;
}

void memory_files_fault(struct memory_files *m, enum memory_fault fault, uint64_t n, uint64_t times,
                        bool reads)
{
    m->fault = fault;
    m->countdown = n;
    m->times = times;
    m->reads = reads;
    m->hit = false;
}

bool memory_files_hit(const struct memory_files *m)
{
    return m->hit;
}

void memory_files_restart(struct memory_files *m, bool power)
{
    static const uint64_t percents[] = {0, 100, 50, 20, 80};
    m->crashed = false;
    m->countdown = 0;
    if (!power) {
        return;
    }
    uint64_t percent = percents[draw(m) % 5];
    for (size_t i = 0; i < m->inode_count; i++) {
        power_off(m, m->inodes[i], percent);
    }
    percent = percents[draw(m) % 5];
    for (size_t i = 0; i < m->pending_count; i++) {
        if (draw(m) % 100 < percent) {
            apply(&m->durable, &m->pending[i]);
        }
    }
    m->pending_count = 0;
    m->now = m->durable;
}

void memory_files_space(struct memory_files *m, uint64_t bytes)
{
    m->space = bytes;
}

uint8_t *memory_files_data(struct memory_files *m, const char *name, size_t *size)
{
    struct name *found = find(&m->now, name);
    if (found == NULL) {
        return NULL;
    }
    *size = found->inode->size;
    return found->inode->now;
}

void memory_files_resize(struct memory_files *m, const char *name, size_t size)
{
    struct name *found = find(&m->now, name);
    must(found != NULL, "no such file");
    set_size(found->inode, size);
}

size_t memory_files_count(const struct memory_files *m)
{
    return m->now.count;
}

const char *memory_files_name(const struct memory_files *m, size_t index)
{
    return m->now.names[index].text;
}
