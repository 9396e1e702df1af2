#include "proto/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/rpc.h"
#include "proto/http_files.h"
#include "proto/http_tls.h"

enum { CONNECTIONS = 64, OF_ONE_ADDRESS = 16, PATIENCE_S = 10, SILENCE_S = 10, BODY_MAX = 1 << 20 };
enum { URI_MAX = 8192, ARGUMENTS_MAX = 64 }; /* have room in a connection's memory (32 KiB) */

static const struct {
    const char *path, *type;
} pages[SFC_HTTP_PAGES] = {
    [SFC_HTTP_METRICS] = {"/metrics", "text/plain; version=0.0.4; charset=utf-8"},
    [SFC_HTTP_STATUS] = {"/api/status", "application/json"},
    [SFC_HTTP_BLOCKS] = {"/api/blocks", "application/json"},
    [SFC_HTTP_RUNS] = {"/api/runs", "application/json"},
};

static const char *const lists[SFC_HTTP_ITEMS] = {
    [SFC_HTTP_SERIES] = "/api/series",
    [SFC_HTTP_EVENTS] = "/api/events",
};

struct sfc_http {
    struct MHD_Daemon *daemon;
    pthread_mutex_t lock; /* of all below */
    struct MHD_Response *put[SFC_HTTP_PAGES];
    struct sfc_http_list items[SFC_HTTP_ITEMS];
    struct sfc_http_files *files; /* NULL: none */
    time_t alive;                 /* CLOCK_MONOTONIC */
    char why[256];                /* it is not ready; "": it is */
};

static time_t now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* ---- answers */

static void add_headers(struct MHD_Response *response, const char *type)
{
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
}

static enum MHD_Result answer_text(struct MHD_Connection *connection, unsigned status,
                                   const char *text)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(
        strlen(text), (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (response == NULL) {
        return MHD_NO;
    }
    add_headers(response, "text/plain; charset=utf-8");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    }
    enum MHD_Result queued = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return queued;
}

static enum MHD_Result answer_health(struct sfc_http *http, struct MHD_Connection *connection)
{
    char text[128];
    pthread_mutex_lock(&http->lock);
    long silent = (long)(now_s() - http->alive);
    pthread_mutex_unlock(&http->lock);
    if (silent <= SILENCE_S) {
        return answer_text(connection, MHD_HTTP_OK, "ok\n");
    }
    snprintf(text, sizeof text, "the event loop has stood still for %ld s\n", silent);
    return answer_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result answer_ready(struct sfc_http *http, struct MHD_Connection *connection)
{
    char text[sizeof http->why + 1];
    pthread_mutex_lock(&http->lock);
    snprintf(text, sizeof text, "%s\n", http->why);
    pthread_mutex_unlock(&http->lock);
    return text[0] == '\n' ? answer_text(connection, MHD_HTTP_OK, "ready\n")
                           : answer_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

/* The response outlives a newer one for as long as it is sent: libmicrohttpd counts its users. */
static enum MHD_Result answer_page(struct sfc_http *http, struct MHD_Connection *connection,
                                   enum sfc_http_page page)
{
    enum MHD_Result queued = MHD_NO;
    pthread_mutex_lock(&http->lock);
    bool there = http->put[page] != NULL;
    if (there) {
        queued = MHD_queue_response(connection, MHD_HTTP_OK, http->put[page]);
    }
    pthread_mutex_unlock(&http->lock);
    return there ? queued : answer_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "nothing yet\n");
}

/* Only a number: nothing else is a place in a list. */
static bool since_of(struct MHD_Connection *connection, uint64_t *out)
{
    const char *text = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "since");
    *out = 0;
    return text == NULL || sfc_parse_u64(text, out) == SFC_OK;
}

static enum MHD_Result answer_items(struct sfc_http *http, struct MHD_Connection *connection,
                                    enum sfc_http_items items)
{
    uint64_t since;
    char *text = NULL;
    size_t size = 0;
    if (!since_of(connection, &since)) {
        return answer_text(connection, MHD_HTTP_BAD_REQUEST, "since is no number\n");
    }
    pthread_mutex_lock(&http->lock);
    bool there = http->items[items].size > 0;
    int code = there ? sfc_http_list_since(&http->items[items], since, &text, &size) : SFC_OK;
    pthread_mutex_unlock(&http->lock);
    if (!there || code != SFC_OK) {
        return answer_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                           there ? "no memory\n" : "nothing yet\n");
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(text);
        return MHD_NO;
    }
    add_headers(response, "application/json");
    enum MHD_Result queued = MHD_queue_response(connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return queued;
}

static enum MHD_Result answer(struct sfc_http *http, struct MHD_Connection *connection,
                              const char *url)
{
    enum MHD_Result queued;
    if (strcmp(url, "/healthz") == 0) {
        return answer_health(http, connection);
    }
    if (strcmp(url, "/readyz") == 0) {
        return answer_ready(http, connection);
    }
    for (int page = 0; page < SFC_HTTP_PAGES; page++) {
        if (strcmp(url, pages[page].path) == 0) {
            return answer_page(http, connection, (enum sfc_http_page)page);
        }
    }
    for (int items = 0; items < SFC_HTTP_ITEMS; items++) {
        if (strcmp(url, lists[items]) == 0) {
            return answer_items(http, connection, (enum sfc_http_items)items);
        }
    }
    pthread_mutex_lock(&http->lock);
    const struct sfc_http_files *files = http->files;
    pthread_mutex_unlock(&http->lock);
    if (sfc_http_files_answer(files, connection, url, &queued)) {
        return queued;
    }
    return answer_text(connection, MHD_HTTP_NOT_FOUND,
                       "there are /metrics, /healthz, /readyz and, at the scheduler, /, "
                       "/api/status, /api/series, /api/events, /api/blocks and /api/runs\n");
}

/* ---- requests */

static const struct {
    unsigned status;
    const char *text;
} refusals[] = {
    {MHD_HTTP_BAD_REQUEST, "%00 is no text\n"},
    {MHD_HTTP_BAD_REQUEST, "more than 64 arguments\n"},
    {MHD_HTTP_URI_TOO_LONG, "more than 8192 bytes of an address\n"},
};
static const size_t refusal_count = sizeof refusals / sizeof *refusals;

static int fault_of(const char *uri)
{
    size_t arguments = 1;
    const char *query = strchr(uri, '?');
    for (const char *at = query; at != NULL && (at = strchr(at, '&')) != NULL; at++) {
        arguments++;
    }
    return strlen(uri) > URI_MAX        ? 2
           : arguments > ARGUMENTS_MAX  ? 1
           : strstr(uri, "%00") != NULL ? 0
                                        : -1;
}

/* What is returned is *seen of the request: a refusal, or NULL. libmicrohttpd takes the query apart
 * after this. When the pieces don't fit into its memory it goes on without them, answers nothing
 * and waits until the connection times out; so a query that is refused ends here, in
 * libmicrohttpd's own buffer. */
static void *on_uri(void *ctx, const char *uri, struct MHD_Connection *connection)
{
    int fault = fault_of(uri);
    (void)ctx;
    (void)connection;
    if (fault < 0) {
        return NULL;
    }
    char *query = strchr((char *)(uintptr_t)uri, '?');
    if (query != NULL) {
        query[1] = '\0';
    }
    return (void *)(uintptr_t)&refusals[fault];
}

static bool is_refused(struct MHD_Connection *connection, const void *seen, enum MHD_Result *queued)
{
    for (size_t i = 0; i < refusal_count; i++) {
        if (seen == &refusals[i]) {
            *queued = answer_text(connection, refusals[i].status, refusals[i].text);
            return true;
        }
    }
    return false;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_size, void **seen)
{
    struct sfc_http *http = ctx;
    uintptr_t read = (uintptr_t)*seen; /* bytes of its body so far, and 1 */
    enum MHD_Result queued;
    (void)version;
    (void)body;
    if (is_refused(connection, *seen, &queued)) {
        return queued;
    }
    if (read == 0) { /* the head is there, a body may follow */
        *seen = (void *)(uintptr_t)1;
        return MHD_YES;
    }
    if (*body_size > 0) { /* read and dropped, in pieces of libmicrohttpd's buffer */
        read += *body_size;
        *seen = (void *)read;
        *body_size = 0;
        return read <= BODY_MAX ? MHD_YES : MHD_NO; /* no: the connection ends */
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        return answer_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    }
    return answer(http, connection, url);
}

/* ---- start and stop */

static int resolve(const char *listen, struct addrinfo **out, struct sfc_error *err)
{
    char host[256];
    const char *colon = strrchr(listen, ':');
    size_t size = colon != NULL ? (size_t)(colon - listen) : 0;
    uint64_t port = 0;
    if (size == 0 || size >= sizeof host || sfc_parse_u64(colon + 1, &port) != SFC_OK ||
        port > 65535) {
        return sfc_fail(err, SFC_EINVAL, "%s is not HOST:PORT with a port of 0 to 65535", listen);
    }
    bool brackets = listen[0] == '[' && listen[size - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(brackets ? size - 2 : size), listen + brackets);
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    int code = getaddrinfo(host, colon + 1, &hints, out);
    return code == 0 ? SFC_OK : sfc_fail(err, SFC_EINVAL, "%s: %s", listen, gai_strerror(code));
}

static struct MHD_Daemon *start_daemon(struct sfc_http *http, const struct addrinfo *at, bool tls)
{
    unsigned flags = MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD |
                     (at->ai_family == AF_INET6 ? MHD_USE_IPv6 : 0u) | (tls ? MHD_USE_TLS : 0u);
    const struct MHD_OptionItem with_tls[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK2, 0, (void *)(intptr_t)sfc_http_tls_retrieve},
        {MHD_OPTION_END, 0, NULL}};
    const struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
    return MHD_start_daemon(flags, 0, NULL, NULL, on_request, http, MHD_OPTION_SOCK_ADDR,
                            at->ai_addr, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                            MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)OF_ONE_ADDRESS,
                            MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)PATIENCE_S,
                            MHD_OPTION_URI_LOG_CALLBACK, on_uri, NULL, MHD_OPTION_ARRAY,
                            tls ? with_tls : none, MHD_OPTION_END);
}

static int open_up(struct sfc_http *http, const char *listen, const struct sfc_security *security,
                   struct sfc_error *err)
{
    struct addrinfo *at = NULL;
    bool tls = security->tls != NULL;
    int code = resolve(listen, &at, err);
    if (code == SFC_OK) {
        code = tls ? sfc_http_tls_open(security->tls, err)
                   : sfc_security_check_plaintext(security, "serving", listen, err);
    }
    if (code == SFC_OK && (http->daemon = start_daemon(http, at, tls)) == NULL) {
        code = sfc_fail(err, SFC_EUNAVAILABLE, "cannot serve pages on %s: %s", listen,
                        errno != 0 ? strerror(errno) : "libmicrohttpd refuses");
    }
    if (at != NULL) {
        freeaddrinfo(at);
    }
    return code;
}

int sfc_http_start(const char *listen, const struct sfc_security *security, struct sfc_http **out,
                   int *port, struct sfc_error *err)
{
    struct sfc_http *http = calloc(1, sizeof *http);
    if (http == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for pages");
    }
    pthread_mutex_init(&http->lock, NULL);
    http->alive = now_s();
    snprintf(http->why, sizeof http->why, "starting");
    errno = 0;
    int code = open_up(http, listen, security, err);
    if (code != SFC_OK) {
        sfc_http_stop(http);
        return code;
    }
    *port = (int)MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
    *out = http;
    return SFC_OK;
}

void sfc_http_stop(struct sfc_http *http)
{
    if (http == NULL) {
        return;
    }
    if (http->daemon != NULL) {
        MHD_stop_daemon(http->daemon);
    }
    sfc_http_tls_close();
    for (int page = 0; page < SFC_HTTP_PAGES; page++) {
        if (http->put[page] != NULL) {
            MHD_destroy_response(http->put[page]);
        }
    }
    for (int items = 0; items < SFC_HTTP_ITEMS; items++) {
        sfc_http_list_free(&http->items[items]);
    }
    sfc_http_files_free(http->files);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

/* ---- texts */

void sfc_http_put(struct sfc_http *http, enum sfc_http_page page, char *text)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(text);
        return; /* the one before stays */
    }
    add_headers(response, pages[page].type);
    pthread_mutex_lock(&http->lock);
    struct MHD_Response *before = http->put[page];
    http->put[page] = response;
    pthread_mutex_unlock(&http->lock);
    if (before != NULL) {
        MHD_destroy_response(before);
    }
}

void sfc_http_put_items(struct sfc_http *http, enum sfc_http_items items,
                        struct sfc_http_list *list)
{
    struct sfc_http_list before = *list;
    if (!list->failed) {
        pthread_mutex_lock(&http->lock);
        before = http->items[items];
        http->items[items] = *list;
        pthread_mutex_unlock(&http->lock);
    }
    *list = (struct sfc_http_list){0};
    sfc_http_list_free(&before);
}

int sfc_http_put_files(struct sfc_http *http, const struct sfc_http_file *files, size_t count,
                       struct sfc_error *err)
{
    struct sfc_http_files *all = sfc_http_files_new(files, count);
    if (all == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for pages");
    }
    pthread_mutex_lock(&http->lock);
    http->files = all;
    pthread_mutex_unlock(&http->lock);
    return SFC_OK;
}

void sfc_http_alive(struct sfc_http *http, const char *why)
{
    pthread_mutex_lock(&http->lock);
    http->alive = now_s();
    snprintf(http->why, sizeof http->why, "%s", why != NULL ? why : "");
    pthread_mutex_unlock(&http->lock);
}
