/* Files that are part of the program (cmake/SfcEmbed.cmake), for readers of its pages. Private to
 * http.c. */
#ifndef SFC_PROTO_HTTP_FILES_H
#define SFC_PROTO_HTTP_FILES_H

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>

#include "proto/http.h"

struct sfc_http_files;

/* The files live for ever. NULL: no memory. */
struct sfc_http_files *sfc_http_files_new(const struct sfc_http_file *files, size_t count);
void sfc_http_files_free(struct sfc_http_files *files); /* NULL is fine */

/* Answers, with 304 if the reader says that it has this very file. false: no file has this path
 * (files NULL: none has). */
bool sfc_http_files_answer(const struct sfc_http_files *files, struct MHD_Connection *connection,
                           const char *path, enum MHD_Result *queued);

#endif
