#include "server/durable/packed_state.h"

#include "server/durable/run_folder.h"
#include "server/durable/snapshot_file.h"

struct search {
    struct sfc_folder *folder;
    bool found;
};

static int look(void *arg, const char *name, struct sfc_error *err)
{
    struct search *s = arg;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_header header;
    struct sfc_file *file;
    (void)err; /* recovery tells of damage */
    if (!s->found && sfc_snapshot_parse_name(name, &key) &&
        sfc_snapshot_file_open(s->folder, name, &file, &header, NULL) == SFC_OK) {
        s->found = header.storage != SFC_SNAPSHOT_RAW;
        s->folder->ops->close_file(file);
    }
    return SFC_OK;
}

static int look_in(void *arg, struct sfc_folder *folder, struct sfc_error *err)
{
    struct search *s = arg;
    s->folder = folder;
    return s->found ? SFC_OK : folder->ops->list(folder, look, s, err);
}

int sfc_state_has_packed(const char *state, bool *out, struct sfc_error *err)
{
    struct search search = {.found = false};
    int code = sfc_run_folder_each(state, look_in, &search, err);
    if (code == SFC_OK) {
        *out = search.found;
    }
    return code;
}
