/* What one process can hand to another over loopback with nothing but TCP and the checksum of the
 * RPC layer: bench_tcp BYTES stream | keep | disk FOLDER. Prints one JSON object.
 *
 * The sender reads BYTES from memory that is there already. Each piece of 1 MiB goes behind its
 * digest, and the receiver checks it. stream: into one buffer, again and again. keep: into new
 * memory, as somebody who wants to have the bytes must. disk: and from there into a file, which is
 * synced before the sender is told that it may forget them. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/digest.h"

#define PIECE     ((size_t)1 << 20)
#define HUGE_PAGE ((size_t)2 << 20)
#define SYNC_EACH ((size_t)64 << 20) /* bytes of the file between two syncs */

enum mode { STREAM, KEEP, DISK };

struct transfer {
    size_t bytes;
    enum mode mode;
    const char *folder;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Memory as the class blocks of a shard have it. */
static uint8_t *map(size_t bytes, struct sfc_error *err)
{
    void *base =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        sfc_fail_errno(err, "%zu bytes of memory", bytes);
        return NULL;
    }
    madvise(base, bytes + HUGE_PAGE, MADV_HUGEPAGE);
    return (uint8_t *)(((uintptr_t)base + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
}

static size_t piece_at(const struct transfer *t, size_t at)
{
    return t->bytes - at < PIECE ? t->bytes - at : PIECE;
}

static int send_bytes(int peer, const void *data, size_t size, struct sfc_error *err)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(peer, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (n < 0)
            return sfc_fail_errno(err, "send");
        at += (size_t)n;
    }
    return SFC_OK;
}

static int receive_bytes(int peer, void *data, size_t size, struct sfc_error *err)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = recv(peer, (char *)data + at, size - at, 0);
        if (n < 0)
            return sfc_fail_errno(err, "receive");
        if (n == 0)
            return sfc_fail(err, SFC_EUNAVAILABLE, "the other end has closed");
        at += (size_t)n;
    }
    return SFC_OK;
}

/* ---- receiver, in a process of its own */

static int write_piece(int file, const uint8_t *data, size_t at, size_t size, size_t *synced,
                       struct sfc_error *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(file, data + done, size - done, (off_t)(at + done));
        if (n < 0)
            return sfc_fail_errno(err, "write");
        done += (size_t)n;
    }
    if (at + size - *synced < SYNC_EACH)
        return SFC_OK;
    *synced = at + size;
    return fdatasync(file) == 0 ? SFC_OK : sfc_fail_errno(err, "sync");
}

static int make_file(const char *folder, int *out, struct sfc_error *err)
{
    *out = open(folder, O_TMPFILE | O_RDWR, 0600);
    return *out < 0 ? sfc_fail_errno(err, "a file in %s", folder) : SFC_OK;
}

static int receive(const struct transfer *t, int peer, struct sfc_error *err)
{
    int file = -1, code = t->mode == DISK ? make_file(t->folder, &file, err) : SFC_OK;
    uint8_t *memory = map(t->mode == STREAM ? PIECE : t->bytes, err);
    size_t synced = 0;
    code = memory ? code : err->code;
    for (size_t at = 0; code == SFC_OK && at < t->bytes; at += PIECE) {
        size_t size = piece_at(t, at);
        uint8_t *to = t->mode == STREAM ? memory : memory + at;
        uint64_t digest = 0;
        code = receive_bytes(peer, &digest, sizeof digest, err);
        if (code == SFC_OK)
            code = receive_bytes(peer, to, size, err);
        if (code == SFC_OK && sfc_digest64(to, size) != digest)
            code = sfc_fail(err, SFC_ECORRUPT, "a piece has not the digest that it says");
        if (code == SFC_OK && file >= 0)
            code = write_piece(file, to, at, size, &synced, err);
    }
    if (code == SFC_OK && file >= 0 && fdatasync(file) != 0)
        code = sfc_fail_errno(err, "sync");
    return code == SFC_OK ? send_bytes(peer, "", 1, err) : code;
}

/* ---- sender */

static int send_all(const struct transfer *t, int peer, const uint8_t *data, struct sfc_error *err)
{
    int code = SFC_OK;
    char answer;
    for (size_t at = 0; code == SFC_OK && at < t->bytes; at += PIECE) {
        size_t size = piece_at(t, at);
        uint64_t digest = sfc_digest64(data + at, size);
        code = send_bytes(peer, &digest, sizeof digest, err);
        if (code == SFC_OK)
            code = send_bytes(peer, data + at, size, err);
    }
    return code == SFC_OK ? receive_bytes(peer, &answer, 1, err) : code;
}

static int listen_here(struct sockaddr_in *address, int *out, struct sfc_error *err)
{
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)address, size) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)address, &size) != 0)
        return sfc_fail_errno(err, "listen on 127.0.0.1");
    *out = fd;
    return SFC_OK;
}

static int receiver(const struct transfer *t, int listener, struct sfc_error *err)
{
    int peer = accept(listener, NULL, NULL);
    int code = peer < 0 ? sfc_fail_errno(err, "accept") : receive(t, peer, err);
    if (code != SFC_OK)
        fprintf(stderr, "receiver: %s\n", err->text);
    return code == SFC_OK ? 0 : 1;
}

static int transfer(const struct transfer *t, double *seconds, struct sfc_error *err)
{
    struct sockaddr_in address;
    int listener = -1, code = listen_here(&address, &listener, err);
    uint8_t *data = code == SFC_OK ? map(t->bytes, err) : NULL;
    if (!data)
        return err->code;
    for (size_t i = 0; i < t->bytes / sizeof(uint64_t); i++) /* no zeros: they may cost less */
        ((uint64_t *)data)[i] = i * 0x9e3779b97f4a7c15u;
    pid_t child = fork();
    if (child == 0)
        _exit(receiver(t, listener, err));
    int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), status = 1;
    if (child < 0 || peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof address) != 0)
        code = sfc_fail_errno(err, "connect");
    double begin = now();
    if (code == SFC_OK)
        code = send_all(t, peer, data, err);
    *seconds = now() - begin;
    close(peer);
    if (child > 0 && (waitpid(child, &status, 0) != child || status != 0) && code == SFC_OK)
        code = sfc_fail(err, SFC_EINTERNAL, "the receiver has failed");
    return code;
}

static double processor_seconds(int who)
{
    struct rusage u;
    getrusage(who, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static bool parse(int argc, char **argv, struct transfer *t)
{
    static const char *const names[] = {"stream", "keep", "disk"};
    *t = (struct transfer){.bytes = argc > 1 ? (size_t)strtoull(argv[1], NULL, 10) : 0,
                           .folder = argc > 3 ? argv[3] : NULL};
    for (int i = 0; argc > 2 && i < 3; i++)
        if (strcmp(argv[2], names[i]) == 0) {
            t->mode = (enum mode)i;
            return t->bytes > 0 && argc == 3 + (t->mode == DISK);
        }
    return false;
}

int main(int argc, char **argv)
{
    struct transfer t;
    struct sfc_error err = {0};
    double seconds = 0;
    if (!parse(argc, argv, &t)) {
        fprintf(stderr, "usage: bench_tcp BYTES stream | keep | disk FOLDER\n");
        return 2;
    }
    int code = transfer(&t, &seconds, &err);
    if (code != SFC_OK) {
        fprintf(stderr, "bench_tcp: %s\n", err.text);
        return 1;
    }
    printf("{\"bytes\": %zu, \"mode\": \"%s\", \"seconds\": %.4f, \"gb_per_s\": %.3f, "
           "\"receiver_cpu_s\": %.3f}\n",
           t.bytes, argv[2], seconds, 1e-9 * (double)t.bytes / seconds,
           processor_seconds(RUSAGE_CHILDREN));
    return 0;
}
