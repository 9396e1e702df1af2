#include "server/run/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/base/options.h"

/* "0" was asked for: the length of "HOST:" before it, else 0. */
static int host_of_any_port(const char *address)
{
    const char *colon = strrchr(address, ':');
    return colon && strcmp(colon, ":0") == 0 ? (int)(colon - address) + 1 : 0;
}

/* *port: 0 if none is kept. */
static int read_port(const char *path, int *port, struct sfc_error *err)
{
    char text[16] = "";
    uint64_t value = 0;
    *port = 0;
    FILE *file = fopen(path, "re");
    if (!file && errno == ENOENT)
        return SFC_OK;
    if (!file)
        return sfc_fail_errno(err, "open %s", path);
    size_t got = fread(text, 1, sizeof text - 1, file);
    int failed = ferror(file);
    fclose(file);
    if (failed)
        return sfc_fail(err, SFC_EIO, "read %s", path);
    text[strcspn(text, "\n")] = '\0';
    if (got == sizeof text - 1 || sfc_parse_u64(text, &value) != SFC_OK || value < 1 ||
        value > 65535)
        return sfc_fail(err, SFC_EINVAL,
                        "%s holds no port: write the one into it that others know, or start with "
                        "--listen HOST:PORT and that port (`shardfc status` shows a shard's); "
                        "without this file another is chosen, where nobody looks",
                        path);
    *port = (int)value;
    return SFC_OK;
}

static int write_synced(const char *path, int port, struct sfc_error *err)
{
    char text[16];
    int size = snprintf(text, sizeof text, "%d\n", port);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return sfc_fail_errno(err, "make %s", path);
    int code = SFC_OK;
    if (write(fd, text, (size_t)size) != size || fsync(fd) != 0)
        code = sfc_fail_errno(err, "write %s", path);
    close(fd);
    return code;
}

static int write_port(const char *path, int port, struct sfc_error *err)
{
    char temporary[PATH_MAX];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    int code = write_synced(temporary, port, err);
    if (code == SFC_OK && rename(temporary, path) != 0)
        code = sfc_fail_errno(err, "rename %s", temporary);
    return code;
}

int sfc_listen_start(struct sfc_rpc_loop *rpc, const struct sfc_listen *l,
                     struct sfc_rpc_server **out, int *port, struct sfc_error *err)
{
    char path[PATH_MAX - 8], address[512];
    int host = host_of_any_port(l->address), kept = 0, code = SFC_OK;
    bool keep = host && l->state;
    if (keep) {
        snprintf(path, sizeof path, "%s/port", l->state);
        code = read_port(path, &kept, err);
    }
    if (code != SFC_OK)
        return code;
    snprintf(address, sizeof address, "%.*s%d", host, l->address, kept);
    code = sfc_rpc_server_start(rpc, kept ? address : l->address, l->methods, l->method_count,
                                l->ctx, out, port, err);
    if (code != SFC_OK && kept)
        sfc_prefix(err,
                   "port %d of the last time (%s; without this file another is chosen, where "
                   "those who know the old one don't look)",
                   kept, path);
    if (code != SFC_OK)
        return sfc_prefix(err, "--listen %s", l->address), code;
    return keep && !kept ? write_port(path, *port, err) : SFC_OK;
}
