/* An authority of one's own, for clusters without a public key infrastructure: makes its key and
 * issues certificates of members, with OpenSSL's libcrypto (ECDSA on P-256, SHA-256). */
#ifndef SFC_PROTO_CERTIFICATE_MAKE_H
#define SFC_PROTO_CERTIFICATE_MAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

/* Makes `folder` (mode 0700) with ca.pem and ca-key.pem (mode 0600). SFC_EEXIST: there is one. */
int sfc_authority_make(const char *folder, const char *name, unsigned days, struct sfc_error *err);

struct sfc_certificate_order {
    const char *authority; /* folder of sfc_authority_make */
    const char *name;      /* common name, 1 to 63 characters */
    unsigned roles;        /* bits of enum sfc_role, at least one */
    const char
        *hosts; /* names and addresses with commas between; NULL: none (a part that only calls) */
    const char *run; /* NULL: any run */
    int64_t from;    /* Unix time from which it is valid, for `days`; 0: now */
    unsigned days;
    bool replace; /* renew what `out` holds: every file is replaced as a whole */
};
/* Makes `out` with ca.pem, cert.pem and key.pem (mode 0600), what --tls takes. SFC_EEXIST: it has
 * one of them and replace is false. */
int sfc_certificate_issue(const struct sfc_certificate_order *order, const char *out,
                          struct sfc_error *err);

#endif
