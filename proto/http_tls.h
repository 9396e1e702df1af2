/* The certificate of pages over HTTPS. Each new connection gets what is in the folder then: files
 * that are replaced are taken up without a restart, once they fit together; until then the ones
 * before stay in use, and the log says why. */
#ifndef SFC_PROTO_HTTP_TLS_H
#define SFC_PROTO_HTTP_TLS_H

#include <gnutls/abstract.h>

#include "proto/base/status.h"

/* Reads cert.pem and key.pem of the folder and checks them like those of RPC. One folder at a time
 * in a process: libmicrohttpd gives its callback no context. */
int sfc_http_tls_open(const char *folder, struct sfc_error *err);
void sfc_http_tls_close(void); /* no connection is left; without an open one fine */

/* For MHD_OPTION_HTTPS_CERT_CALLBACK2. */
gnutls_certificate_retrieve_function3 sfc_http_tls_retrieve;

#endif
