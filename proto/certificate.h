/* Certificates of members, as files and as text (PEM), read with OpenSSL's libcrypto. */
#ifndef SFC_PROTO_CERTIFICATE_H
#define SFC_PROTO_CERTIFICATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_certificate {
    char name[64];     /* common name; "?" where it has none */
    unsigned roles;    /* bits of enum sfc_role */
    char run[64];      /* the only run that it is for; "": any */
    int64_t from, end; /* Unix time of its first and last second */
};

/* The first certificate of a text. SFC_ECORRUPT: there is none. */
int sfc_certificate_read(const char *pem, struct sfc_certificate *out, struct sfc_error *err);
/* What one alternative name of a certificate says, a URI; others change nothing. */
void sfc_certificate_add_uri(struct sfc_certificate *certificate, const char *uri, size_t size);
/* Unix time of the last second of cert.pem in a folder, checked or not; 0: there is none. */
int64_t sfc_certificate_end(const char *folder);
/* Whether it names this host (a name or an address, without port). */
bool sfc_certificate_names(const char *pem, const char *host);

/* Checks ca.pem, cert.pem and key.pem of a folder: readable, the key is the certificate's and
 * nobody else's to read, the authority issued it, it is valid at `now` (Unix time) and has a role.
 * Fails with what is wrong in which file and what to do. */
int sfc_certificate_check(const char *folder, int64_t now, struct sfc_certificate *own,
                          struct sfc_error *err);

#endif
