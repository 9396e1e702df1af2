/* Any bytes as what somebody sends to a daemon's pages: paths, query strings, headers, bodies,
 * several requests on one connection, over a real connection to the real server. Whatever it
 * answers is HTTP, nothing but its own pages, and it answers a sane request afterwards. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ROOM = 1 << 17, SANE_EACH = 256, PATIENCE_MS = 2 };

static int port;
static struct sfc_http *http;

static void must(int condition)
{
    if (!condition) {
        abort();
    }
}

/* A call of the system, which says what was wrong. */
static void works(const char *what, int rc)
{
    if (rc < 0) {
        fprintf(stderr, "fuzz_http: %s: %s\n", what, strerror(errno));
        abort();
    }
}

static void stop(void)
{
    sfc_http_stop(http);
}

static void start(void)
{
    const struct sfc_security security = {.tls = NULL};
    struct sfc_error err = {0};
    must(sfc_http_start("127.0.0.1:0", &security, &http, &port, &err) == SFC_OK);
    atexit(stop);
    sfc_http_put(http, SFC_HTTP_METRICS, strdup("shardfc_up 1\n"));
    sfc_http_put(http, SFC_HTTP_STATUS, strdup("{\"state\":\"idle\"}\n"));
    static const char page[] = "<!doctype html>";
    static const struct sfc_http_file file = {"/", "text/html; charset=utf-8", "\"1\"",
                                              (const unsigned char *)page, sizeof page - 1};
    must(sfc_http_put_files(http, &file, 1, &err) == SFC_OK);
    struct sfc_http_list list = {0};
    sfc_http_list_head(&list, "{\"points\":[");
    for (uint64_t i = 1; i <= 20; i++) {
        sfc_http_list_item(&list, i, "[1]");
    }
    sfc_http_list_tail(&list, "]}");
    sfc_http_put_items(http, SFC_HTTP_SERIES, &list);
}

/* The fuzzer's alarm clock came while it was made; it goes on. */
static void await_connection(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t size = sizeof error;
    while (poll(&one, 1, -1) <= 0) {
        /* the clock again */
    }
    works("getsockopt", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size));
    errno = error;
    works("connect", error == 0 ? 0 : -1);
}

/* From one of many addresses: each has its own ports, of which closed connections keep some for a
 * while. */
static int connect_to_it(void)
{
    static uint32_t turn;
    const struct sockaddr_in from = {.sin_family = AF_INET,
                                     .sin_addr.s_addr = htonl(0x7f000100u + turn++ % 0xffff00u)};
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                   .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    works("socket", fd);
    works("bind", bind(fd, (const struct sockaddr *)&from, sizeof from));
    int rc = connect(fd, (const struct sockaddr *)&to, sizeof to);
    if (rc != 0 && errno == EINTR) {
        await_connection(fd);
    } else {
        works("connect", rc);
    }
    return fd;
}

static void send_all(int fd, const void *data, size_t size)
{
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(fd, (const uint8_t *)data + sent, size - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            break; /* it has heard enough */
        }
        sent += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
}

/* What it answers to these bytes; an unfinished request gets no answer, so there is little patience
 * between two pieces of one. */
static size_t ask(const void *data, size_t size, int patience_ms, char *answer)
{
    int fd = connect_to_it();
    size_t got = 0;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    const struct linger at_once = {.l_onoff = 1};
    send_all(fd, data, size);
    while (got < ROOM - 1 && poll(&one, 1, patience_ms) > 0) {
        ssize_t n = recv(fd, answer + got, ROOM - 1 - got, 0);
        if (n <= 0) {
            break;
        }
        got += (size_t)n;
    }
    answer[got] = '\0';
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
    return got;
}

static void ask_sanely(char *answer)
{
    static const char sane[] = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    do { /* until it has a place for one more: those that were given up are being closed */
        ask(sane, sizeof sane - 1, 1000, answer);
    } while (answer[0] == '\0');
    must(strstr(answer, " 200 ") != NULL && strstr(answer, "shardfc_up 1\n") != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char answer[ROOM];
    static unsigned runs;
    if (port == 0) {
        start();
    }
    sfc_http_alive(http, NULL);
    size_t got = ask(data, size, PATIENCE_MS, answer);
    must(got == 0 || strncmp(answer, "HTTP/1.", 7) == 0);
    if (++runs % SANE_EACH == 0) {
        ask_sanely(answer);
    }
    return 0;
}
