#include "proto/rpc_guard.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "proto/rpc_trust.h"

enum { LOOK_MS = 100, SHARE = 50 }; /* it takes at most a 50th of a processor */

struct connection {
    struct sfc_rpc_place place;
    uint64_t since;    /* us; first seen */
    uint64_t received; /* bytes */
    bool known;        /* was there at the last look */
    bool closing;      /* was shut down, and gRPC has not closed it yet */
    int fd;
};

struct list {
    struct connection *all;
    size_t count, size;
};

struct sfc_rpc_guard {
    pthread_t thread;
    pthread_mutex_t lock; /* of the next four */
    pthread_cond_t told;
    uint64_t most, of_one_address;
    bool stopping;
    int port;
    pthread_mutex_t seen; /* of the next one, which is sorted */
    struct list before;
    struct list now; /* the thread's */
    struct sfc_rpc_guard *next;
};

static pthread_mutex_t guards_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sfc_rpc_guard *guards; /* of this process */

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- what there is */

/* Whether fd is a connection that this server has accepted, and of whom. */
static bool look_at(int fd, int port, struct connection *out)
{
    struct sockaddr_storage here = {0}, there = {0};
    struct sfc_rpc_place own;
    socklen_t size = sizeof here;
    if (getsockname(fd, (struct sockaddr *)&here, &size) != 0 || !sfc_rpc_place_of(&here, &own) ||
        own.port != port) {
        return false;
    }
    size = sizeof there;
    *out = (struct connection){.fd = fd};
    if (getpeername(fd, (struct sockaddr *)&there, &size) != 0 ||
        !sfc_rpc_place_of(&there, &out->place)) {
        return false;
    }
    out->received = sfc_rpc_place_received(fd);
    return true;
}

static bool append(struct list *list, const struct connection *connection)
{
    if (list->count == list->size) {
        size_t size = list->size > 0 ? 2 * list->size : 64;
        struct connection *all = realloc(list->all, size * sizeof *all);
        if (all == NULL) {
            return false;
        }
        list->all = all;
        list->size = size;
    }
    list->all[list->count++] = *connection;
    return true;
}

static void collect(int port, struct list *list)
{
    struct connection connection;
    list->count = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL) {
        return; /* no descriptor left for it now */
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.' && look_at(atoi(entry->d_name), port, &connection) &&
            !append(list, &connection)) {
            break;
        }
    }
    closedir(folder);
}

static int by_place(const void *a, const void *b)
{
    const struct connection *x = a, *y = b;
    return sfc_rpc_place_compare(&x->place, &y->place);
}

/* Of one address those come first that were there before. */
static int by_age(const void *a, const void *b)
{
    const struct connection *x = a, *y = b;
    int order = memcmp(x->place.address, y->place.address, sizeof x->place.address);
    return order != 0 ? order : (int)y->known - (int)x->known;
}

/* ---- what is too much */

/* The descriptor may be another connection's by now: a copy of it stays what it is while it is
 * looked at. */
static void shut(const struct connection *connection, int port)
{
    struct connection seen;
    int copy = fcntl(connection->fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) {
        return; /* at the next look */
    }
    if (look_at(copy, port, &seen) && by_place(&seen, connection) == 0) {
        shutdown(copy, SHUT_RDWR);
    }
    close(copy);
}

static void host_of(const struct connection *connection, char host[INET6_ADDRSTRLEN])
{
    bool four = memcmp(connection->place.address + 10, "\xff\xff", 2) == 0;
    host[0] = '\0';
    inet_ntop(four ? AF_INET : AF_INET6, connection->place.address + (four ? 12 : 0), host,
              INET6_ADDRSTRLEN);
}

static void tell(const struct connection *connection, const char *whose, const char *option,
                 uint64_t limit)
{
    char host[INET6_ADDRSTRLEN], text[192];
    host_of(connection, host);
    snprintf(text, sizeof text, "a connection: there are %" PRIu64 " %s (--%s)", limit, whose,
             option);
    sfc_rpc_trust_tell_limit(host, text);
}

static void judge(struct sfc_rpc_guard *guard, uint64_t most, uint64_t of_one_address)
{
    struct list *now = &guard->now;
    size_t kept = 0, of_this = 0;
    qsort(now->all, now->count, sizeof *now->all, by_age);
    for (size_t i = 0; i < now->count; i++) {
        kept += now->all[i].known && !now->all[i].closing;
    }
    for (size_t i = 0; i < now->count; i++) {
        struct connection *c = &now->all[i];
        bool same =
            i > 0 && memcmp(c->place.address, c[-1].place.address, sizeof c->place.address) == 0;
        of_this = (same ? of_this : 0) + !c->closing;
        bool address = of_this > of_one_address, all = !c->known && kept >= most;
        if (!c->closing && (address || all)) {
            tell(c, address ? "of this address" : "in all",
                 address ? "peer-connections" : "connections", address ? of_one_address : most);
            c->closing = true;
            of_this--;
        }
        kept += !c->known && !c->closing;
        if (c->closing) {
            shut(c, guard->port);
        }
    }
}

static void compare(const struct list *before, struct connection *c)
{
    const struct connection *seen =
        before->count > 0 ? bsearch(c, before->all, before->count, sizeof *c, by_place) : NULL;
    c->known = seen != NULL;
    c->since = seen != NULL ? seen->since : now_us();
    c->closing = seen != NULL && seen->closing;
}

static void look(struct sfc_rpc_guard *guard, uint64_t most, uint64_t of_one_address)
{
    collect(guard->port, &guard->now);
    for (size_t i = 0; i < guard->now.count; i++) {
        compare(&guard->before, &guard->now.all[i]);
    }
    if (guard->now.count > most || guard->now.count > of_one_address) {
        judge(guard, most, of_one_address);
    }
    if (guard->now.count > 0) {
        qsort(guard->now.all, guard->now.count, sizeof *guard->now.all, by_place);
    }
    pthread_mutex_lock(&guard->seen);
    struct list spare = guard->before;
    guard->before = guard->now;
    guard->now = spare;
    pthread_mutex_unlock(&guard->seen);
}

/* ---- one connection */

static bool find(struct sfc_rpc_guard *guard, const struct sfc_rpc_place *place,
                 struct connection *out)
{
    const struct connection wanted = {.place = *place};
    pthread_mutex_lock(&guard->seen);
    const struct list *list = &guard->before;
    const struct connection *found =
        list->count > 0 ? bsearch(&wanted, list->all, list->count, sizeof wanted, by_place) : NULL;
    if (found != NULL) {
        *out = *found;
    }
    pthread_mutex_unlock(&guard->seen);
    return found != NULL;
}

bool sfc_rpc_guard_received(struct sfc_rpc_guard *guard, const struct sfc_rpc_place *place,
                            uint64_t *bytes)
{
    struct connection connection;
    if (!find(guard, place, &connection)) {
        return false;
    }
    *bytes = connection.received;
    return true;
}

void sfc_rpc_guard_close(struct sfc_rpc_guard *guard, const struct sfc_rpc_place *place)
{
    struct connection connection;
    if (find(guard, place, &connection)) {
        shut(&connection, guard->port);
    }
}

/* ---- who is new */

enum { NAMED = 3, NEW_US = 2000000 }; /* hosts; how long they are new */

static void name_new(struct sfc_rpc_guard *guard, struct list *named)
{
    struct list now = {0};
    collect(guard->port, &now);
    pthread_mutex_lock(&guard->seen);
    for (size_t i = 0; i < now.count && named->count < NAMED; i++) {
        bool again = false;
        compare(&guard->before, &now.all[i]);
        for (size_t k = 0; k < named->count; k++) {
            again = again || memcmp(named->all[k].place.address, now.all[i].place.address, 16) == 0;
        }
        if (now_us() - now.all[i].since <= NEW_US && !again && !append(named, &now.all[i])) {
            break;
        }
    }
    pthread_mutex_unlock(&guard->seen);
    free(now.all);
}

void sfc_rpc_guard_newest(char *text, size_t size)
{
    struct list named = {0};
    size_t used = 0;
    pthread_mutex_lock(&guards_lock);
    for (struct sfc_rpc_guard *guard = guards; guard != NULL; guard = guard->next) {
        name_new(guard, &named);
    }
    pthread_mutex_unlock(&guards_lock);
    snprintf(text, size, "?");
    for (size_t i = 0; i < named.count && used < size; i++) {
        char host[INET6_ADDRSTRLEN];
        host_of(&named.all[i], host);
        used += (size_t)snprintf(text + used, size - used, "%s%s", i > 0 ? " or " : "", host);
    }
    free(named.all);
}

static void enlist(struct sfc_rpc_guard *guard)
{
    pthread_mutex_lock(&guards_lock);
    guard->next = guards;
    guards = guard;
    pthread_mutex_unlock(&guards_lock);
}

static void delist(struct sfc_rpc_guard *guard)
{
    pthread_mutex_lock(&guards_lock);
    struct sfc_rpc_guard **at = &guards;
    while (*at != guard) {
        at = &(*at)->next;
    }
    *at = guard->next;
    pthread_mutex_unlock(&guards_lock);
}

/* ---- the thread */

/* false: to stop. */
static bool wait_us(struct sfc_rpc_guard *guard, uint64_t us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + us * 1000;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    int rc = 0;
    while (!guard->stopping && rc == 0) {
        rc = pthread_cond_timedwait(&guard->told, &guard->lock, &until);
    }
    return !guard->stopping;
}

static void *watch(void *arg)
{
    struct sfc_rpc_guard *guard = arg;
    uint64_t pause = LOOK_MS * 1000;
    pthread_mutex_lock(&guard->lock);
    while (wait_us(guard, pause)) {
        uint64_t most = guard->most, of_one_address = guard->of_one_address, began = now_us();
        pthread_mutex_unlock(&guard->lock);
        look(guard, most, of_one_address);
        uint64_t took = now_us() - began;
        pause = took * SHARE > LOOK_MS * 1000 ? took * SHARE : LOOK_MS * 1000;
        pthread_mutex_lock(&guard->lock);
    }
    pthread_mutex_unlock(&guard->lock);
    return NULL;
}

void sfc_rpc_guard_set(struct sfc_rpc_guard *guard, uint64_t most, uint64_t of_one_address)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && most > files.rlim_cur / 2) {
        most = files.rlim_cur / 2;
    }
    pthread_mutex_lock(&guard->lock);
    guard->most = most;
    guard->of_one_address = of_one_address;
    pthread_mutex_unlock(&guard->lock);
}

int sfc_rpc_guard_start(int port, uint64_t most, uint64_t of_one_address,
                        struct sfc_rpc_guard **out, struct sfc_error *err)
{
    struct sfc_rpc_guard *guard = calloc(1, sizeof *guard);
    pthread_condattr_t monotonic;
    if (guard == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a server");
    }
    guard->port = port;
    pthread_mutex_init(&guard->lock, NULL);
    pthread_mutex_init(&guard->seen, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&guard->told, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sfc_rpc_guard_set(guard, most, of_one_address);
    int rc = pthread_create(&guard->thread, NULL, watch, guard);
    if (rc != 0) {
        pthread_cond_destroy(&guard->told);
        pthread_mutex_destroy(&guard->seen);
        pthread_mutex_destroy(&guard->lock);
        free(guard);
        return sfc_fail(err, SFC_EIO, "cannot start the thread that counts connections: %s",
                        strerror(rc));
    }
    enlist(guard);
    *out = guard;
    return SFC_OK;
}

void sfc_rpc_guard_stop(struct sfc_rpc_guard *guard)
{
    if (guard == NULL) {
        return;
    }
    delist(guard);
    pthread_mutex_lock(&guard->lock);
    guard->stopping = true;
    pthread_cond_signal(&guard->told);
    pthread_mutex_unlock(&guard->lock);
    pthread_join(guard->thread, NULL);
    pthread_cond_destroy(&guard->told);
    pthread_mutex_destroy(&guard->seen);
    pthread_mutex_destroy(&guard->lock);
    free(guard->before.all);
    free(guard->now.all);
    free(guard);
}
