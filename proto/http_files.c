#include "proto/http_files.h"

#include <stdlib.h>
#include <string.h>

/* A page may load what comes from here, be framed by nobody, send nothing, and make nothing but
 * text of what it hears. */
#define POLICY                                                                                     \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "        \
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "                        \
    "require-trusted-types-for 'script'; trusted-types 'none'"

struct sfc_http_files {
    const struct sfc_http_file *files;
    size_t count;
    struct MHD_Response **whole, **same; /* [count]: with the file, and 304 */
};

static struct MHD_Response *response_of(const struct sfc_http_file *file, size_t size)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(size, (void *)(uintptr_t)file->bytes,
                                                             MHD_RESPMEM_PERSISTENT);
    if (r == NULL) {
        return NULL;
    }
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, file->type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_ETAG, file->etag);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache"); /* asks each time */
    MHD_add_response_header(r, "Content-Security-Policy", POLICY);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(r, "Cross-Origin-Resource-Policy", "same-origin");
    MHD_add_response_header(r, "Cross-Origin-Opener-Policy", "same-origin");
    return r;
}

struct sfc_http_files *sfc_http_files_new(const struct sfc_http_file *files, size_t count)
{
    struct sfc_http_files *all = calloc(1, sizeof *all);
    bool made = all != NULL;
    if (made) {
        all->files = files;
        all->count = count;
        all->whole = calloc(count, sizeof(struct MHD_Response *));
        all->same = calloc(count, sizeof(struct MHD_Response *));
        made = all->whole != NULL && all->same != NULL;
    }
    for (size_t i = 0; made && i < count; i++) {
        all->whole[i] = response_of(&files[i], files[i].size);
        all->same[i] = response_of(&files[i], 0);
        made = all->whole[i] != NULL && all->same[i] != NULL;
    }
    if (!made) {
        sfc_http_files_free(all);
        return NULL;
    }
    return all;
}

static void free_responses(struct MHD_Response **list, size_t count)
{
    for (size_t i = 0; list != NULL && i < count; i++) {
        if (list[i] != NULL) {
            MHD_destroy_response(list[i]);
        }
    }
    free(list);
}

void sfc_http_files_free(struct sfc_http_files *all)
{
    if (all == NULL) {
        return;
    }
    free_responses(all->whole, all->count);
    free_responses(all->same, all->count);
    free(all);
}

/* Does If-None-Match name it? Entries are quoted, so a part of one is none. */
static bool has(struct MHD_Connection *connection, const char *etag)
{
    const char *said =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_IF_NONE_MATCH);
    return said != NULL && (strcmp(said, "*") == 0 || strstr(said, etag) != NULL);
}

bool sfc_http_files_answer(const struct sfc_http_files *all, struct MHD_Connection *connection,
                           const char *path, enum MHD_Result *queued)
{
    for (size_t i = 0; all != NULL && i < all->count; i++) {
        if (strcmp(path, all->files[i].path) == 0) {
            *queued = has(connection, all->files[i].etag)
                          ? MHD_queue_response(connection, MHD_HTTP_NOT_MODIFIED, all->same[i])
                          : MHD_queue_response(connection, MHD_HTTP_OK, all->whole[i]);
            return true;
        }
    }
    return false;
}
