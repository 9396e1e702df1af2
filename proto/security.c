#include "proto/security.h"

#include <stdio.h>
#include <string.h>

static const struct {
    enum sfc_role role;
    const char *name;
} roles_known[] = {{SFC_ROLE_SCHEDULER, "scheduler"},
                   {SFC_ROLE_SHARD, "shard"},
                   {SFC_ROLE_WORKER, "worker"},
                   {SFC_ROLE_ADMIN, "admin"}};

enum { ROLES = sizeof roles_known / sizeof *roles_known };

const char *sfc_role_name(enum sfc_role role)
{
    for (size_t i = 0; i < ROLES; i++) {
        if (roles_known[i].role == role) {
            return roles_known[i].name;
        }
    }
    return "?";
}

unsigned sfc_role_named(const char *name, size_t size)
{
    for (size_t i = 0; i < ROLES; i++) {
        if (strlen(roles_known[i].name) == size && memcmp(roles_known[i].name, name, size) == 0) {
            return roles_known[i].role;
        }
    }
    return 0;
}

const char *sfc_roles_text(unsigned roles, char *text, size_t size)
{
    size_t used = 0;
    snprintf(text, size, "no role");
    for (size_t i = 0; i < ROLES && used < size; i++) {
        if (roles & roles_known[i].role) {
            used += (size_t)snprintf(text + used, size - used, "%s%s", used > 0 ? " and " : "",
                                     roles_known[i].name);
        }
    }
    return text;
}

void sfc_address_host(const char *address, char *host)
{
    const char *colon = strrchr(address, ':');
    size_t size = colon != NULL ? (size_t)(colon - address) : strlen(address);
    if (size >= 2 && address[0] == '[' && address[size - 1] == ']') {
        address++;
        size -= 2;
    }
    snprintf(host, SFC_HOST_MAX, "%.*s", (int)size, address);
}

int sfc_host_check(const char *option, const char *host, struct sfc_error *err)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char digits[] = "0123456789";
    bool ipv6 = host[0] == '[';
    size_t at = ipv6 ? 1 : 0, size = 0;
    while (host[at + size] != '\0' &&
           (strchr(letters, host[at + size]) != NULL || strchr(digits, host[at + size]) != NULL ||
            strchr(ipv6 ? ":.%" : ".-_", host[at + size]) != NULL)) {
        size++;
    }
    const char *rest = host + at + size;
    if (size > 0 && strcmp(rest, ipv6 ? "]" : "") == 0) {
        return SFC_OK;
    }
    return sfc_fail(err, SFC_EINVAL,
                    "--%s \"%.200s\" must be a host name or an address without a port (that of "
                    "--listen is added), an IPv6 address in brackets",
                    option, host);
}

static bool is_loopback(const char *address)
{
    char host[SFC_HOST_MAX];
    sfc_address_host(address, host);
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 ||
           (strncmp(host, "127.", 4) == 0 && host[strspn(host, "0123456789.")] == '\0');
}

int sfc_security_check_plaintext(const struct sfc_security *security, const char *verb,
                                 const char *address, struct sfc_error *err)
{
    if (security->insecure || is_loopback(address)) {
        return SFC_OK;
    }
    return sfc_fail(err, SFC_EDENIED,
                    "%s %s in plaintext would be open to everybody on the way: give --tls DIR (see "
                    "`shardfc cert --help`), or --insecure where the network is trusted",
                    verb, address);
}
