/* Pages of a daemon over HTTP, for monitoring and people (libmicrohttpd on a thread of its own).
 * The daemon puts texts, the thread serves the last ones: a slow or hostile reader never touches
 * the daemon's loop. */
#ifndef SFC_PROTO_HTTP_H
#define SFC_PROTO_HTTP_H

#include <stddef.h>

#include "proto/http_list.h"
#include "proto/security.h"

struct sfc_http;

enum sfc_http_page {
    SFC_HTTP_METRICS,
    SFC_HTTP_STATUS,
    SFC_HTTP_BLOCKS,
    SFC_HTTP_RUNS,
    SFC_HTTP_PAGES
};

enum sfc_http_items { SFC_HTTP_SERIES, SFC_HTTP_EVENTS, SFC_HTTP_ITEMS };

/* A file that is part of the program. */
struct sfc_http_file {
    const char *path, *type;
    const char *etag; /* with its quotes; another one for other bytes */
    const unsigned char *bytes;
    size_t size;
};

/* listen: "HOST:PORT", numeric or a name; port 0: the kernel chooses. *port: the one that it is.
 * Serves GET and HEAD of
 *   /metrics, /api/status, /api/blocks, /api/runs
 *                the last text that was put; 503 before the first
 *   /api/series, /api/events
 *                the last list that was put, with ?since=N its items after that number
 *   /healthz     200 while the daemon says that it lives (sfc_http_alive) at least each 10 s,
 *                else 503
 *   /readyz      200 when it is ready, else 503 and why not
 * and the files. With security->tls over TLS, with the certificate that the folder has when a
 * connection begins (proto/http_tls.h) and for anybody, one at a time in a process; without it
 * only on loopback, unless insecure. At most 64 connections, 16 of one address, and 10 s for a
 * request. A body is dropped, and its connection with it when it is larger than 1 MiB. An address
 * of more than 8192 bytes is refused with 414, one with %00 or more than 64 arguments with 400. */
int sfc_http_start(const char *listen, const struct sfc_security *security, struct sfc_http **out,
                   int *port, struct sfc_error *err);
void sfc_http_stop(struct sfc_http *http); /* NULL is fine */

/* Once, soon after the start; the files live for ever. SFC_ENOMEM. */
int sfc_http_put_files(struct sfc_http *http, const struct sfc_http_file *files, size_t count,
                       struct sfc_error *err);

/* One thread at a time. Takes the text, which free() releases. */
void sfc_http_put(struct sfc_http *http, enum sfc_http_page page, char *text);
/* Takes what is in the list, which is empty then; one that failed is dropped, and the one before
 * stays. */
void sfc_http_put_items(struct sfc_http *http, enum sfc_http_items items,
                        struct sfc_http_list *list);
/* why: NULL: ready; else what it waits for. */
void sfc_http_alive(struct sfc_http *http, const char *why);

#endif
