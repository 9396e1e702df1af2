#include "server/durable/snapshot_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/snapshot_internal.h"

#define KEPT      2u
#define ALIGNMENT 64u

/* ---- the list */

/* By kind, block, then newest first; of one step, after a growth first. */
static int compare(const struct sfc_snapshot_key *a, const struct sfc_snapshot_key *b)
{
    if (a->kind != b->kind) {
        return a->kind < b->kind ? -1 : 1;
    }
    if (a->block != b->block) {
        return a->block < b->block ? -1 : 1;
    }
    if (a->step != b->step) {
        return a->step > b->step ? -1 : 1;
    }
    return a->grown > b->grown ? -1 : a->grown < b->grown;
}

/* First position whose key is not before this one. */
static size_t lower_bound(const struct sfc_snapshot_store *store,
                          const struct sfc_snapshot_key *key)
{
    size_t low = 0, high = store->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare(&store->keys[middle], key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

size_t sfc_snapshot_store_find(const struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                               uint64_t block, size_t *count)
{
    struct sfc_snapshot_key newest = {
        .kind = kind, .block = block, .step = UINT64_MAX, .grown = UINT64_MAX};
    size_t first = lower_bound(store, &newest), n = 0;
    while (first < store->count && store->keys[first].kind == kind &&
           store->keys[first].block == block && store->keys[first].step > store->top) {
        first++;
    }
    while (first + n < store->count && store->keys[first + n].kind == kind &&
           store->keys[first + n].block == block) {
        n++;
    }
    *count = n;
    return first;
}

int sfc_snapshot_store_reserve(struct sfc_snapshot_store *store, struct sfc_error *err)
{
    if (store->count == store->room) {
        size_t room = store->room + store->room / 2 + 16;
        struct sfc_snapshot_key *keys = reallocarray(store->keys, room, sizeof *keys);
        if (keys == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu snapshots", room);
        }
        store->keys = keys;
        store->room = room;
    }
    return SFC_OK;
}

bool sfc_snapshot_store_add(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key)
{
    size_t at = lower_bound(store, key);
    if (at < store->count && compare(&store->keys[at], key) == 0) {
        return false;
    }
    memmove(store->keys + at + 1, store->keys + at, (store->count - at) * sizeof *store->keys);
    store->keys[at] = *key;
    store->count++;
    return true;
}

static void remove_file(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key)
{
    char name[SFC_SNAPSHOT_NAME_SIZE];
    sfc_snapshot_name(key, name);
    (void)store->folder->ops->remove(store->folder, name, NULL);
}

/* Of n snapshots of a block, newest first: the first one that is not after the horizon; n: none. */
static size_t at_horizon(const struct sfc_snapshot_store *store,
                         const struct sfc_snapshot_key *keys, size_t n)
{
    size_t i = 0;
    while (i < n && keys[i].step > store->horizon) {
        i++;
    }
    return i;
}

/* The newest that the pinned step can be made from. */
static size_t at_pin(const struct sfc_snapshot_store *store, const struct sfc_snapshot_key *keys,
                     size_t n)
{
    size_t i = store->pinned ? 0 : n;
    while (i < n && keys[i].step > store->pinned_step) {
        i++;
    }
    return i;
}

/* A removal that fails or is lost in a crash leaves a file that the next prune of its block
 * removes. */
void sfc_snapshot_store_prune(struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                              uint64_t block)
{
    size_t n, first = sfc_snapshot_store_find(store, kind, block, &n), kept = 0;
    struct sfc_snapshot_key *keys = store->keys + first;
    size_t back = at_horizon(store, keys, n), pinned = at_pin(store, keys, n);
    for (size_t i = 0; i < n; i++) {
        if (i < KEPT || i == back || i + 1 == back || i == pinned) {
            keys[kept++] = keys[i];
        } else {
            remove_file(store, &keys[i]);
        }
    }
    memmove(keys + kept, keys + n, (store->count - first - n) * sizeof *keys);
    store->count -= n - kept;
}

void sfc_snapshot_store_keep_from(struct sfc_snapshot_store *store, uint64_t step)
{
    store->horizon = step;
}

void sfc_snapshot_store_hide_after(struct sfc_snapshot_store *store, uint64_t step)
{
    store->top = step;
}

static bool is_void(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                    const struct sfc_lineage *lineage)
{
    char name[SFC_SNAPSHOT_NAME_SIZE];
    struct sfc_snapshot_header header;
    struct sfc_file *file;
    if (lineage->count == 0 || key->step <= lineage->returns[0].step) {
        return false;
    }
    sfc_snapshot_name(key, name);
    if (sfc_snapshot_file_open(store->folder, name, &file, &header, NULL) != SFC_OK) {
        return false;
    }
    store->folder->ops->close_file(file);
    return sfc_lineage_void(lineage->returns, lineage->count, key->step, header.key.round);
}

int sfc_snapshot_store_hide_void(struct sfc_snapshot_store *store,
                                 const struct sfc_lineage *lineage, struct sfc_error *err)
{
    struct sfc_snapshot_key *voids = calloc(store->count + 1, sizeof *voids);
    size_t kept = 0;
    if (voids == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu snapshots", store->count);
    }
    free(store->voids);
    store->voids = voids;
    store->void_count = 0;
    for (size_t i = 0; i < store->count; i++) {
        const struct sfc_snapshot_key key = store->keys[i];
        if (is_void(store, &key, lineage)) {
            voids[store->void_count++] = key;
        } else {
            store->keys[kept++] = key;
        }
    }
    store->count = kept;
    return SFC_OK;
}

static int drop(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                struct sfc_error *err)
{
    char name[SFC_SNAPSHOT_NAME_SIZE];
    sfc_snapshot_name(key, name);
    int code = store->folder->ops->remove(store->folder, name, err);
    return code == SFC_ENOTFOUND ? SFC_OK : code;
}

int sfc_snapshot_store_drop_hidden(struct sfc_snapshot_store *store, struct sfc_error *err)
{
    size_t kept = 0;
    int code = SFC_OK;
    for (size_t i = 0; i < store->void_count && code == SFC_OK; i++) {
        code = drop(store, &store->voids[i], err);
    }
    for (size_t i = 0; i < store->count && code == SFC_OK; i++) {
        if (store->keys[i].step > store->top) {
            code = drop(store, &store->keys[i], err);
        }
    }
    if (code == SFC_OK) {
        code = store->folder->ops->sync_names(store->folder, err);
    }
    if (code != SFC_OK) {
        return code; /* all of them are listed still, and hidden */
    }
    store->void_count = 0;
    for (size_t i = 0; i < store->count; i++) {
        if (store->keys[i].step <= store->top) {
            store->keys[kept++] = store->keys[i];
        }
    }
    store->count = kept;
    store->top = UINT64_MAX;
    return SFC_OK;
}

static int compare_block(const void *key, const void *block)
{
    const struct sfc_snapshot_key *k = key;
    const struct sfc_snapshot_block *b = block;
    if (k->kind != b->kind) {
        return k->kind < b->kind ? -1 : 1;
    }
    return k->block < b->block ? -1 : k->block > b->block;
}

/* Whether a snapshot stays. */
typedef bool (*stays)(const struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                      const void *ctx);

/* One that can't be removed is still there, and so are those behind it. */
static int keep_those(struct sfc_snapshot_store *store, stays stay, const void *ctx,
                      struct sfc_error *err)
{
    size_t kept = 0, gone = 0;
    int code = SFC_OK;
    for (size_t i = 0; i < store->count; i++) {
        const struct sfc_snapshot_key key = store->keys[i];
        bool here = code != SFC_OK || stay(store, &key, ctx);
        if (!here) {
            code = drop(store, &key, err);
            here = code != SFC_OK;
            gone += !here;
        }
        if (here) {
            store->keys[kept++] = key;
        }
    }
    store->count = kept;
    return code == SFC_OK && gone > 0 ? store->folder->ops->sync_names(store->folder, err) : code;
}

struct owned {
    const struct sfc_snapshot_block *blocks; /* ascending */
    size_t count;
};

static bool is_owned(const struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                     const void *ctx)
{
    const struct owned *o = ctx;
    (void)store;
    return o->count > 0 && bsearch(key, o->blocks, o->count, sizeof *o->blocks, compare_block);
}

int sfc_snapshot_store_keep_only(struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *blocks, size_t count,
                                 struct sfc_error *err)
{
    return keep_those(store, is_owned, &(struct owned){blocks, count}, err);
}

struct rows_of {
    const struct sfc_snapshot_block *block;
    uint64_t rows;
};

/* Of another block, of so many rows, or not to be read: that is found where it is used. */
static bool has_rows(const struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                     const void *ctx)
{
    const struct rows_of *wanted = ctx;
    char name[SFC_SNAPSHOT_NAME_SIZE];
    struct sfc_snapshot_header header;
    struct sfc_file *file;
    if (compare_block(key, wanted->block) != 0) {
        return true;
    }
    sfc_snapshot_name(key, name);
    if (sfc_snapshot_file_open(store->folder, name, &file, &header, NULL) != SFC_OK) {
        return true;
    }
    store->folder->ops->close_file(file);
    return header.shape.rows == wanted->rows;
}

int sfc_snapshot_store_keep_rows(struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *block, uint64_t rows,
                                 struct sfc_error *err)
{
    return keep_those(store, has_rows, &(struct rows_of){block, rows}, err);
}

static void prune_all(struct sfc_snapshot_store *store)
{
    for (size_t i = 0; i < store->count; i++) {
        sfc_snapshot_store_prune(store, store->keys[i].kind, store->keys[i].block);
    }
}

void sfc_snapshot_store_pin(struct sfc_snapshot_store *store, uint64_t step)
{
    store->pinned = true;
    store->pinned_step = step;
}

void sfc_snapshot_store_unpin(struct sfc_snapshot_store *store)
{
    store->pinned = false;
    prune_all(store);
}

/* ---- opening */

struct listing {
    struct sfc_snapshot_store *store;
    struct sfc_snapshot_key *unfinished; /* of temporary files */
    size_t unfinished_count;
};

static bool is_temporary(const char *name, struct sfc_snapshot_key *key)
{
    char stem[SFC_SNAPSHOT_NAME_SIZE];
    size_t length = strlen(name), suffix = strlen(SFC_SNAPSHOT_TMP);
    if (length <= suffix || length - suffix >= sizeof stem ||
        strcmp(name + length - suffix, SFC_SNAPSHOT_TMP) != 0) {
        return false;
    }
    memcpy(stem, name, length - suffix);
    stem[length - suffix] = '\0';
    return sfc_snapshot_parse_name(stem, key);
}

static int visit(void *arg, const char *name, struct sfc_error *err)
{
    struct listing *listing = arg;
    struct sfc_snapshot_key key;
    if (sfc_snapshot_parse_name(name, &key)) {
        int code = sfc_snapshot_store_reserve(listing->store, err);
        if (code == SFC_OK) {
            (void)sfc_snapshot_store_add(listing->store, &key);
        }
        return code;
    }
    if (is_temporary(name, &key)) {
        struct sfc_snapshot_key *keys = reallocarray(
            listing->unfinished, listing->unfinished_count + 1, sizeof *listing->unfinished);
        if (keys == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for listing snapshots");
        }
        listing->unfinished = keys;
        keys[listing->unfinished_count++] = key;
    }
    return SFC_OK;
}

static void remove_unfinished(const struct listing *listing)
{
    struct sfc_folder *folder = listing->store->folder;
    for (size_t i = 0; i < listing->unfinished_count; i++) {
        char name[SFC_SNAPSHOT_NAME_SIZE], temporary[SFC_SNAPSHOT_NAME_SIZE + 8];
        sfc_snapshot_name(&listing->unfinished[i], name);
        snprintf(temporary, sizeof temporary, "%s" SFC_SNAPSHOT_TMP, name);
        (void)folder->ops->remove(folder, temporary, NULL);
    }
}

/* What is listed may be in the page cache only, when the process died and the machine lived; the
 * log will be trimmed by it, so the names are made durable first. */
static int list_folder(struct sfc_snapshot_store *store, struct sfc_error *err)
{
    struct sfc_folder *folder = store->folder;
    struct listing listing = {.store = store};
    int code = folder->ops->list(folder, visit, &listing, err);
    if (code == SFC_OK && SFC_PLANT_BUG != 5) { /* bug 5: trusts the page cache */
        code = folder->ops->sync_names(folder, err);
    }
    if (code == SFC_OK) {
        remove_unfinished(&listing);
        store->remains = listing.unfinished_count > 0;
    }
    free(listing.unfinished);
    return code;
}

int sfc_snapshot_store_open(struct sfc_folder *folder, const struct sfc_run_identity *identity,
                            struct sfc_snapshot_store **out, struct sfc_error *err)
{
    struct sfc_snapshot_store *store = calloc(1, sizeof *store);
    if (store == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the snapshots");
    }
    store->folder = folder;
    store->identity = *identity;
    store->horizon = UINT64_MAX;
    store->top = UINT64_MAX;
    store->digest = sfc_digest_new();
    int code = store->digest == NULL ? sfc_fail(err, SFC_ENOMEM, "out of memory for the snapshots")
                                     : sfc_snapshot_scratch_init(&store->scratch, err);
    if (code == SFC_OK) {
        code = list_folder(store, err);
    }
    if (code != SFC_OK) {
        sfc_snapshot_store_close(store);
        return code;
    }
    *out = store;
    return SFC_OK;
}

void sfc_snapshot_store_close(struct sfc_snapshot_store *store)
{
    if (store == NULL) {
        return;
    }
    sfc_digest_free(store->digest);
    sfc_snapshot_scratch_free(&store->scratch);
    sfc_packer_free(store->packer);
    free(store->direct);
    free(store->buffer);
    free(store->keys);
    free(store->voids);
    free(store);
}

int sfc_snapshot_store_compress(struct sfc_snapshot_store *store, int level, struct sfc_error *err)
{
    struct sfc_packer *packer = NULL;
    int code = level > 0 ? sfc_packer_new(level, &packer, err) : SFC_OK;
    if (code == SFC_OK) {
        sfc_packer_free(store->packer);
        store->packer = packer;
    }
    return code;
}

uint64_t sfc_snapshot_compression_memory(int level)
{
    return (level > 0 ? sfc_packer_memory(level) : 0) + sfc_unpacker_memory();
}

/* ---- what there is */

size_t sfc_snapshot_store_stamps(const struct sfc_snapshot_store *store,
                                 const struct sfc_snapshot_block *block, uint64_t grown,
                                 uint64_t stamps[2])
{
    size_t n, first = sfc_snapshot_store_find(store, block->kind, block->block, &n), count = 0;
    for (size_t i = 0; i < n && count < KEPT; i++) {
        if (store->keys[first + i].grown == grown) {
            stamps[count++] = store->keys[first + i].step;
        }
    }
    return count;
}

/* The second-newest counts, or where the run must be able to go back further, what leads there. */
static uint64_t floor_of(const struct sfc_snapshot_store *store,
                         const struct sfc_snapshot_block *block, uint64_t start_step)
{
    size_t n, first = sfc_snapshot_store_find(store, block->kind, block->block, &n);
    const struct sfc_snapshot_key *keys = store->keys + first;
    size_t back = at_horizon(store, keys, n);
    size_t last = n < KEPT ? n : KEPT;
    if (n == 0 || back == n) {
        return start_step;
    }
    return keys[back].step < keys[last - 1].step ? keys[back].step : keys[last - 1].step;
}

uint64_t sfc_snapshot_store_floor(const struct sfc_snapshot_store *store,
                                  const struct sfc_snapshot_block *blocks, size_t count,
                                  uint64_t start_step)
{
    uint64_t floor = count == 0 ? start_step : UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        uint64_t stamp = floor_of(store, &blocks[i], start_step);
        floor = stamp < floor ? stamp : floor;
    }
    return floor;
}

uint64_t sfc_snapshot_store_oldest(const struct sfc_snapshot_store *store,
                                   const struct sfc_snapshot_block *blocks, size_t count,
                                   uint64_t start_step, bool from_seed, uint64_t log_from)
{
    uint64_t oldest = start_step;
    for (size_t i = 0; i < count; i++) {
        size_t n, first = sfc_snapshot_store_find(store, blocks[i].kind, blocks[i].block, &n);
        uint64_t stamp = UINT64_MAX;
        for (size_t k = 0; k < n && store->keys[first + k].step >= log_from; k++) {
            stamp = store->keys[first + k].step;
        }
        stamp = from_seed && log_from == start_step ? start_step : stamp;
        oldest = stamp > oldest ? stamp : oldest;
    }
    return oldest;
}

bool sfc_snapshot_store_least(const struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                              uint64_t block, uint64_t at_least, uint64_t *stamp)
{
    size_t n, first = sfc_snapshot_store_find(store, kind, block, &n);
    while (n > 0 && store->keys[first + n - 1].step < at_least) {
        n--;
    }
    if (n == 0) {
        return false;
    }
    *stamp = store->keys[first + n - 1].step;
    return true;
}

/* ---- reading */

static int reserve_buffer(struct sfc_snapshot_store *store, uint64_t size, struct sfc_error *err)
{
    if (size <= store->buffer_size) {
        return SFC_OK;
    }
    free(store->buffer);
    store->buffer_size = 0;
    store->buffer = aligned_alloc(ALIGNMENT, (size_t)size);
    if (store->buffer == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a snapshot of %" PRIu64 " bytes", size);
    }
    store->buffer_size = (size_t)size;
    return SFC_OK;
}

static uint64_t aligned(uint64_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static bool same_shape(const struct sfc_snapshot_shape *a, const struct sfc_snapshot_shape *b)
{
    return a->dtype == b->dtype && a->rows == b->rows && a->dim == b->dim &&
           memcmp(a->has, b->has, sizeof a->has) == 0;
}

static int check_owner(const struct sfc_snapshot_store *store,
                       const struct sfc_snapshot_header *header,
                       const struct sfc_snapshot_shape *shape, const char *name,
                       struct sfc_error *err)
{
    int code = sfc_run_identity_check(&header->identity, &store->identity, err);
    if (code == SFC_OK && header->key.kind == SFC_SNAPSHOT_CLASS &&
        header->shape.rows != shape->rows && (shape->grown || header->key.grown != 0)) {
        return sfc_fail(err, SFC_ESTATE, "of before the block grew, or after it");
    }
    if (code == SFC_OK && !same_shape(&header->shape, shape)) {
        code = sfc_fail(err, SFC_ESTALE,
                        "has %" PRIu64 " rows of %u numbers; this run's block has %" PRIu64
                        " of %u, or other parts",
                        header->shape.rows, header->shape.dim, shape->rows, shape->dim);
    }
    return code == SFC_OK ? SFC_OK : (sfc_prefix(err, "%s/%s", store->folder->path, name), code);
}

static int read_parts(struct sfc_snapshot_store *store, struct sfc_file *file, const char *name,
                      const struct sfc_snapshot_header *header, struct sfc_snapshot_content *out,
                      struct sfc_error *err)
{
    uint64_t size = 0;
    for (int part = 0; part < SFC_SNAPSHOT_PARTS; part++) {
        size += aligned(sfc_snapshot_part_bytes(&header->shape, (enum sfc_snapshot_part)part));
    }
    int code = reserve_buffer(store, size + ALIGNMENT, err);
    uint8_t *at = store->buffer;
    struct sfc_snapshot_content content = {.step = header->key.step};
    for (int i = 0; i < SFC_SNAPSHOT_PARTS && code == SFC_OK; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        content.parts[i] = header->shape.has[i] ? at : NULL;
        code = sfc_snapshot_file_part(file, name, header, part, at, &store->scratch, err);
        at += aligned(sfc_snapshot_part_bytes(&header->shape, part));
    }
    if (code == SFC_OK) {
        *out = content;
    }
    return code;
}

static int read_one(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                    const struct sfc_snapshot_shape *shape, struct sfc_snapshot_content *out,
                    struct sfc_error *err)
{
    char name[SFC_SNAPSHOT_NAME_SIZE];
    struct sfc_snapshot_header header;
    struct sfc_snapshot_shape expected = *shape;
    struct sfc_file *file;
    sfc_snapshot_name(key, name);
    if (key->kind == SFC_SNAPSHOT_HISTORY) {
        expected.rows = key->step;
    }
    int code = sfc_snapshot_file_open(store->folder, name, &file, &header, err);
    if (code != SFC_OK) {
        return code;
    }
    code = check_owner(store, &header, &expected, name, err);
    if (code == SFC_OK) {
        code = read_parts(store, file, name, &header, out, err);
    }
    store->folder->ops->close_file(file);
    return code;
}

/* The disk gave other bytes than were written, or none. */
static bool is_damage(int code)
{
    return code == SFC_ECORRUPT || code == SFC_EIO || code == SFC_ENOTFOUND;
}

static void tell(char loud[512], const struct sfc_error *damage, uint64_t used)
{
    snprintf(loud, 512,
             "%.380s: used the snapshot of step %" PRIu64 " instead and more of the step log",
             damage->text, used);
}

int sfc_snapshot_store_read(struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                            uint64_t block, uint64_t max_step,
                            const struct sfc_snapshot_shape *shape,
                            struct sfc_snapshot_content *out, char loud[512], struct sfc_error *err)
{
    size_t n, first = sfc_snapshot_store_find(store, kind, block, &n);
    struct sfc_error damage = {0}, failure;
    loud[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        const struct sfc_snapshot_key *key = &store->keys[first + i];
        if (key->step > max_step) {
            continue;
        }
        int code = read_one(store, key, shape, out, &failure);
        if (code == SFC_OK) {
            if (damage.code != SFC_OK) {
                tell(loud, &damage, key->step);
            }
            return SFC_OK;
        }
        if (code == SFC_ESTATE) {
            continue; /* the block had other rows: no state of this one */
        }
        if (!is_damage(code)) {
            return sfc_fail(err, code, "%s", failure.text);
        }
        damage = damage.code == SFC_OK ? failure : damage;
    }
    if (damage.code == SFC_OK) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "%s: no snapshot of block %" PRIu64 " of step %" PRIu64 " or before",
                        store->folder->path, block, max_step);
    }
    return sfc_fail(
        err, damage.code == SFC_EIO ? SFC_EIO : SFC_ECORRUPT,
        "%.300s, and there is no other whole snapshot of this block; restore the run from "
        "a checkpoint, or this folder from a copy",
        damage.text);
}
