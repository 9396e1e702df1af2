#include "server/ctl/doctor_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "proto/base/options.h"
#include "proto/security.h"
#include "server/ctl/command.h"

/* ---- files of the system */

/* The first line of a file; false: there is none. */
static bool read_line(const char *path, char *out, size_t size)
{
    FILE *file = fopen(path, "re");
    bool there = file != NULL && fgets(out, (int)size, file) != NULL;
    if (file != NULL) {
        fclose(file);
    }
    if (there) {
        out[strcspn(out, "\n")] = '\0';
    }
    return there;
}

/* Bytes of a file that holds one number; 0: no file, or "max". */
static uint64_t read_bytes(const char *path)
{
    char line[64];
    uint64_t value = 0;
    return read_line(path, line, sizeof line) && sfc_parse_u64(line, &value) == SFC_OK ? value : 0;
}

static void probe_memory(struct sfc_host_facts *out)
{
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char name[32];
        uint64_t kb;
        if (sscanf(line, "%31[^:]: %" SCNu64, name, &kb) != 2) {
            continue;
        }
        uint64_t bytes = kb * 1024;
        if (strcmp(name, "MemTotal") == 0) {
            out->memory_total = bytes;
        } else if (strcmp(name, "MemAvailable") == 0) {
            out->memory_available = bytes;
        } else if (strcmp(name, "SwapTotal") == 0) {
            out->swap_total = bytes;
        } else if (strcmp(name, "SwapFree") == 0) {
            out->swap_free = bytes;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static void take_group(struct sfc_host_facts *out, uint64_t limit, uint64_t used)
{
    if (limit > 0 && (out->group_limit == 0 || limit < out->group_limit)) {
        out->group_limit = limit;
        out->group_used = used;
    }
}

/* From our control group (version 2) up to the root; of version 1 our own. */
static void probe_group(struct sfc_host_facts *out)
{
    char line[1024], path[1200];
    take_group(out, read_bytes("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
               read_bytes("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    take_group(out, read_bytes("/sys/fs/cgroup/memory.max"),
               read_bytes("/sys/fs/cgroup/memory.current"));
    if (!read_line("/proc/self/cgroup", line, sizeof line) || strncmp(line, "0::/", 4) != 0) {
        return;
    }
    for (char *slash = line + 3; slash != NULL && slash[1] != '\0';
         slash = strrchr(line + 3, '/')) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", line + 3);
        uint64_t limit = read_bytes(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", line + 3);
        take_group(out, limit, read_bytes(path));
        *strrchr(line + 3, '/') = '\0';
    }
}

/* "always [madvise] never" */
static void probe_huge_pages(struct sfc_host_facts *out)
{
    char line[64];
    if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line)) {
        char *begin = strchr(line, '['), *end = strchr(line, ']');
        if (begin != NULL && end > begin) {
            snprintf(out->huge_pages, sizeof out->huge_pages, "%.*s", (int)(end - begin - 1),
                     begin + 1);
        }
    }
}

/* ---- what computes */

static void probe_backend(const char *name, char *numerics, size_t numerics_size, char *error,
                          size_t error_size, struct sfc_device_memory *memory)
{
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    int code = sfc_backend_open(name, 1, &backend, &err);
    if (code == SFC_OK) {
        snprintf(numerics, numerics_size, "%s", sfc_backend_numerics(backend));
        code = sfc_backend_device_memory(backend, memory, &err);
    }
    sfc_backend_close(backend);
    if (code != SFC_OK) {
        snprintf(error, error_size, "%s", err.text);
    }
}

static void probe_processors(struct sfc_host_facts *out)
{
    struct sfc_device_memory memory = {0};
    probe_backend("cpu", out->cpu, sizeof out->cpu, out->cpu_error, sizeof out->cpu_error, &memory);
    probe_backend("cuda", out->gpu, sizeof out->gpu, out->gpu_error, sizeof out->gpu_error,
                  &memory);
    out->gpu_total = memory.total_bytes;
    out->gpu_free = memory.free_bytes;
    out->gpu_device = access("/dev/nvidia0", F_OK) == 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    out->avx2 = __builtin_cpu_supports("avx2") != 0;
    out->avx512 = __builtin_cpu_supports("avx512f") != 0;
    out->bf16 = __builtin_cpu_supports("avx512bf16") != 0;
#endif
}

void sfc_probe_host(struct sfc_host_facts *out)
{
    struct rlimit files;
    struct timex clock = {0};
    char line[16];
    *out = (struct sfc_host_facts){.overcommit = -1};
    probe_memory(out);
    probe_group(out);
    probe_huge_pages(out);
    if (read_line("/proc/sys/vm/overcommit_memory", line, sizeof line)) {
        out->overcommit = line[0] - '0';
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        out->open_files = files.rlim_cur;
        out->open_files_most = files.rlim_max;
    }
    int state = adjtimex(&clock);
    out->clock_known = state >= 0;
    out->clock_synchronized = state >= 0 && state != TIME_ERROR && (clock.status & STA_UNSYNC) == 0;
    probe_processors(out);
}

/* ---- disk */

enum { PIECE = 1 << 20, PIECES = 32, FLUSHES = 21 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* errno, or 0. */
static int write_pieces(int fd, char *piece, struct sfc_disk_facts *out)
{
    double begin = sfc_command_clock(), spent = 0;
    size_t written = 0;
    for (int i = 0; i < PIECES && spent < 1.5; i++) {
        ssize_t size = write(fd, piece, PIECE);
        if (size != PIECE) {
            return size < 0 ? errno : ENOSPC;
        }
        written += PIECE;
        if (fsync(fd) != 0) {
            return errno;
        }
        spent = sfc_command_clock() - begin;
    }
    out->bytes_per_s = spent > 0 ? (double)written / spent : 0;
    return 0;
}

static int flush_often(int fd, char *piece, struct sfc_disk_facts *out)
{
    double took[FLUSHES], spent = 0;
    int count = 0;
    while (count < FLUSHES && spent < 1) {
        double begin = sfc_command_clock();
        if (pwrite(fd, piece, 4096, (off_t)count * 4096) != 4096 || fdatasync(fd) != 0) {
            return errno;
        }
        took[count] = sfc_command_clock() - begin;
        spent += took[count++];
    }
    qsort(took, (size_t)count, sizeof *took, by_value);
    out->flush_s = took[count / 2];
    return 0;
}

/* A file that nobody sees; where the file system has no such thing, one that is removed at once. */
static int open_scratch(const char *folder)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        char path[4096];
        snprintf(path, sizeof path, "%s/doctor-XXXXXX", folder);
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
            unlink(path);
        }
    }
    return fd;
}

static int measure(const char *folder, struct sfc_disk_facts *out)
{
    char *piece = malloc(PIECE);
    int fd = open_scratch(folder), code = piece == NULL ? ENOMEM : fd < 0 ? errno : 0;
    if (code == 0) {
        memset(piece, 0x5a, PIECE);
        code = write_pieces(fd, piece, out);
    }
    if (code == 0) {
        code = flush_often(fd, piece, out);
    }
    if (fd >= 0) {
        close(fd);
    }
    free(piece);
    return code;
}

void sfc_probe_disk(const char *folder, struct sfc_disk_facts *out)
{
    struct statfs system;
    *out = (struct sfc_disk_facts){.folder = folder};
    if (statfs(folder, &system) != 0) {
        out->code = errno;
        out->missing = errno == ENOENT;
        snprintf(out->error, sizeof out->error, "%s", strerror(out->code));
        return;
    }
    out->total = (uint64_t)system.f_blocks * (uint64_t)system.f_bsize;
    out->free = (uint64_t)system.f_bavail * (uint64_t)system.f_bsize;
    out->in_memory = system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC;
    out->code = measure(folder, out);
    if (out->code != 0) {
        snprintf(out->error, sizeof out->error, "%s", strerror(out->code));
    }
}

/* ---- ports and certificates */

static int try_listen(const struct addrinfo *at)
{
    int on = 1, fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int code = bind(fd, at->ai_addr, at->ai_addrlen) != 0 || listen(fd, 1) != 0 ? errno : 0;
    close(fd);
    return code;
}

static void port_fault(struct sfc_port_facts *out, enum sfc_port_fault fault, const char *why)
{
    out->fault = fault;
    snprintf(out->error, sizeof out->error, "%s", why);
}

void sfc_probe_port(const char *address, struct sfc_port_facts *out)
{
    char host[SFC_HOST_MAX];
    const char *colon = strrchr(address, ':');
    uint64_t port;
    struct addrinfo *at = NULL;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    *out = (struct sfc_port_facts){.address = address};
    sfc_address_host(address, host);
    if (colon == NULL || host[0] == '\0') {
        port_fault(out, SFC_PORT_MALFORMED, "it is not HOST:PORT");
        return;
    }
    if (sfc_parse_u64(colon + 1, &port) != SFC_OK || port > 65535) {
        port_fault(out, SFC_PORT_MALFORMED, "its port is not within 0..65535");
        return;
    }
    int code = getaddrinfo(host, colon + 1, &hints, &at);
    if (code != 0) {
        port_fault(out, SFC_PORT_UNKNOWN, gai_strerror(code));
        return;
    }
    code = try_listen(at);
    if (code != 0) {
        port_fault(out,
                   code == EADDRINUSE      ? SFC_PORT_TAKEN
                   : code == EADDRNOTAVAIL ? SFC_PORT_FOREIGN
                                           : SFC_PORT_REFUSED,
                   strerror(code));
    }
    freeaddrinfo(at);
}

static bool names_host(const char *folder, const char *host)
{
    enum { MOST = 1 << 16 };
    char path[4096];
    snprintf(path, sizeof path, "%s/cert.pem", folder);
    FILE *file = fopen(path, "re");
    char *pem = file != NULL ? calloc(1, MOST) : NULL;
    bool named =
        pem != NULL && fread(pem, 1, MOST - 1, file) > 0 && sfc_certificate_names(pem, host);
    if (file != NULL) {
        fclose(file);
    }
    free(pem);
    return named;
}

void sfc_probe_certificate(const char *folder, const char *listen, char *host,
                           struct sfc_certificate_facts *out)
{
    struct sfc_error err = {0};
    *out = (struct sfc_certificate_facts){.folder = folder, .now = (int64_t)time(NULL)};
    if (sfc_certificate_check(folder, out->now, &out->own, &err) != SFC_OK) {
        snprintf(out->error, sizeof out->error, "%s", err.text);
        return;
    }
    if (listen != NULL && (out->own.roles & (SFC_ROLE_SCHEDULER | SFC_ROLE_SHARD)) != 0) {
        sfc_address_host(listen, host);
        out->host = host;
        out->names_host = names_host(folder, host);
    }
}
