/* Who may talk to whom: what a program's options say about it, and the roles of the parts of a
 * cluster.
 *
 * With --tls DIR every connection is mutual TLS: DIR holds ca.pem (the authorities that are
 * trusted), cert.pem (who this part is, with its chain) and key.pem. A certificate names the roles
 * of its owner as URIs among its subject alternative names, "urn:shardfc:role:worker", and may bind
 * a worker to one run, "urn:shardfc:run:NAME". Servers serve a method to some roles only; clients
 * talk only to a server that has the role of one and whose certificate names the host that they
 * called. Without --tls nothing is encrypted, anybody may call anything, and so only loopback is
 * served and called unless --insecure says that the network is trusted. */
#ifndef SFC_PROTO_SECURITY_H
#define SFC_PROTO_SECURITY_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/options.h"

enum sfc_role { /* bits */
                SFC_ROLE_SCHEDULER = 1,
                SFC_ROLE_SHARD = 2,
                SFC_ROLE_WORKER = 4,
                SFC_ROLE_ADMIN = 8,
                SFC_ROLES_ALL = 15
};

#define SFC_ROLE_URI "urn:shardfc:role:"
#define SFC_RUN_URI  "urn:shardfc:run:"

/* What the options below say, and nothing else: so a table of options fills all of it. */
struct sfc_security {
    const char *tls; /* folder; NULL: plaintext */
    bool insecure;   /* plaintext beyond loopback */
};

/* Two entries for the option table of a program; at: offset of its struct sfc_security. */
#define SFC_SECURITY_OPTIONS(at)                                                                   \
    {                                                                                              \
        .name = "tls",                                                                             \
        .type = SFC_OPTION_STRING,                                                                 \
        .metavar = "DIR",                                                                          \
        .min = 1,                                                                                  \
        .max = 3000,                                                                               \
        .offset = (at) + offsetof(struct sfc_security, tls),                                       \
        .help = "folder with ca.pem, cert.pem and key.pem for mutual TLS (`shardfc cert issue` "   \
                "makes one); files that change are read again within seconds",                     \
    },                                                                                             \
    {                                                                                              \
        .name = "insecure", .type = SFC_OPTION_BOOL,                                               \
        .offset = (at) + offsetof(struct sfc_security, insecure),                                  \
        .help = "without --tls: serve and call other addresses than loopback too, in plaintext, "  \
                "open to everybody who reaches them",                                              \
    }

/* SFC_EDENIED: `verb` ("serving", "calling") this "HOST:PORT" in plaintext would go beyond
 * loopback, and is not said to be wanted. */
int sfc_security_check_plaintext(const struct sfc_security *security, const char *verb,
                                 const char *address, struct sfc_error *err);
enum { SFC_HOST_MAX = 256 };
/* The host of "HOST:PORT" into host[SFC_HOST_MAX], without the brackets of an IPv6 address. */
void sfc_address_host(const char *address, char *host);
/* SFC_EINVAL: what `option` says is no host without a port: a name, an IPv4 address, or an IPv6
 * address in brackets. */
int sfc_host_check(const char *option, const char *host, struct sfc_error *err);

/* "worker" of SFC_ROLE_WORKER. */
const char *sfc_role_name(enum sfc_role role);
/* 0: no role has this name. */
unsigned sfc_role_named(const char *name, size_t size);
/* "shard and admin" of several, "no role" of 0. */
const char *sfc_roles_text(unsigned roles, char *text, size_t size);

#endif
