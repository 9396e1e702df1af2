#include "proto/certificate.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "proto/security.h"

/* ---- one certificate */

static int64_t unix_time(const ASN1_TIME *time)
{
    struct tm parts;
    return ASN1_TIME_to_tm(time, &parts) == 1 ? (int64_t)timegm(&parts) : 0;
}

/* What follows `prefix`; NULL: another name. */
static const char *after(const char *uri, size_t *size, const char *prefix)
{
    size_t skip = strlen(prefix);
    if (*size <= skip || memcmp(uri, prefix, skip) != 0) {
        return NULL;
    }
    *size -= skip;
    return uri + skip;
}

void sfc_certificate_add_uri(struct sfc_certificate *certificate, const char *uri, size_t size)
{
    size_t role_size = size, run_size = size;
    const char *role = after(uri, &role_size, SFC_ROLE_URI);
    const char *run = after(uri, &run_size, SFC_RUN_URI);
    if (role != NULL) {
        certificate->roles |= sfc_role_named(role, role_size);
    }
    if (run != NULL) {
        snprintf(certificate->run, sizeof certificate->run, "%.*s", (int)run_size, run);
    }
}

static void read_uris(X509 *certificate, struct sfc_certificate *out)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type == GEN_URI) {
            const ASN1_STRING *uri = name->d.uniformResourceIdentifier;
            sfc_certificate_add_uri(out, (const char *)ASN1_STRING_get0_data(uri),
                                    (size_t)ASN1_STRING_length(uri));
        }
    }
    GENERAL_NAMES_free(names);
}

static void describe(X509 *certificate, struct sfc_certificate *out)
{
    *out = (struct sfc_certificate){.name = "?"};
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, out->name,
                              sizeof out->name);
    out->from = unix_time(X509_get0_notBefore(certificate));
    out->end = unix_time(X509_get0_notAfter(certificate));
    read_uris(certificate, out);
}

static X509 *parse(const char *pem)
{
    BIO *text = BIO_new_mem_buf(pem, -1);
    X509 *certificate = text != NULL ? PEM_read_bio_X509(text, NULL, NULL, NULL) : NULL;
    BIO_free(text);
    ERR_clear_error();
    return certificate;
}

int sfc_certificate_read(const char *pem, struct sfc_certificate *out, struct sfc_error *err)
{
    X509 *certificate = parse(pem);
    if (certificate == NULL) {
        return sfc_fail(err, SFC_ECORRUPT, "no certificate in PEM form");
    }
    describe(certificate, out);
    X509_free(certificate);
    return SFC_OK;
}

bool sfc_certificate_names(const char *pem, const char *host)
{
    X509 *certificate = parse(pem);
    if (certificate == NULL) {
        return false;
    }
    bool named = X509_check_ip_asc(certificate, host, 0) == 1 ||
                 X509_check_host(certificate, host, 0, 0, NULL) == 1;
    X509_free(certificate);
    return named;
}

/* ---- a folder */

static FILE *open_file(const char *folder, const char *name, char *path, size_t size,
                       struct sfc_error *err)
{
    snprintf(path, size, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        sfc_fail_errno(err,
                       "%s (--tls wants a folder with ca.pem, cert.pem and key.pem; `shardfc "
                       "cert issue` makes one)",
                       path);
    }
    return file;
}

static int read_certificate(const char *folder, const char *name, X509 **out, struct sfc_error *err)
{
    char path[4096];
    FILE *file = open_file(folder, name, path, sizeof path, err);
    if (file == NULL) {
        return err != NULL ? err->code : SFC_EIO;
    }
    *out = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    ERR_clear_error();
    return *out != NULL ? SFC_OK
                        : sfc_fail(err, SFC_ECORRUPT, "%s: no certificate in PEM form", path);
}

/* No passphrase is asked for: a daemon has nobody to ask. */
static int no_passphrase(char *buffer, int size, int writing, void *ctx)
{
    (void)buffer;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1;
}

static int read_key(const char *folder, EVP_PKEY **out, struct sfc_error *err)
{
    char path[4096];
    struct stat status;
    FILE *file = open_file(folder, "key.pem", path, sizeof path, err);
    if (file == NULL) {
        return err != NULL ? err->code : SFC_EIO;
    }
    int code = SFC_OK;
    if (fstat(fileno(file), &status) == 0 && (status.st_mode & (S_IRWXO | S_IWGRP)) != 0) {
        code = sfc_fail(err, SFC_EDENIED, "%s can be read by others: chmod 600 (or 640) %s", path,
                        path);
    } else if ((*out = PEM_read_PrivateKey(file, NULL, no_passphrase, NULL)) == NULL) {
        code = sfc_fail(err, SFC_ECORRUPT, "%s: no private key in PEM form without a passphrase",
                        path);
    }
    fclose(file);
    ERR_clear_error();
    return code;
}

/* Every certificate of ca.pem is trusted, those behind the first of cert.pem lead there. */
static int check_chain(const char *folder, X509 *own, int64_t now, struct sfc_error *err)
{
    char authorities[4096], chain[4096];
    snprintf(authorities, sizeof authorities, "%s/ca.pem", folder);
    snprintf(chain, sizeof chain, "%s/cert.pem", folder);
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    STACK_OF(X509) *between = NULL;
    BIO *text = BIO_new_file(chain, "r");
    int code = SFC_OK;
    if (store == NULL || context == NULL || text == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "no memory to check %s", chain);
        goto out;
    }
    if (X509_STORE_load_file(store, authorities) != 1) {
        code = sfc_fail(err, SFC_ECORRUPT, "%s: no certificate of an authority in PEM form",
                        authorities);
        goto out;
    }
    between = sk_X509_new_null();
    for (X509 *next; (next = PEM_read_bio_X509(text, NULL, NULL, NULL)) != NULL;) {
        sk_X509_push(between, next);
    }
    if (X509_STORE_CTX_init(context, store, own, between) != 1) {
        code = sfc_fail(err, SFC_ENOMEM, "no memory to check %s", chain);
        goto out;
    }
    X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(context), (time_t)now);
    if (X509_verify_cert(context) != 1) {
        code = sfc_fail(
            err, SFC_EDENIED, "%s: %s: issue it anew with the key of %s (`shardfc cert issue`)",
            chain, X509_verify_cert_error_string(X509_STORE_CTX_get_error(context)), authorities);
    }
out:
    sk_X509_pop_free(between, X509_free);
    BIO_free(text);
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    ERR_clear_error();
    return code;
}

int64_t sfc_certificate_end(const char *folder)
{
    X509 *certificate = NULL;
    if (read_certificate(folder, "cert.pem", &certificate, NULL) != SFC_OK) {
        return 0;
    }
    int64_t end = unix_time(X509_get0_notAfter(certificate));
    X509_free(certificate);
    return end;
}

static int check_role(const char *folder, const struct sfc_certificate *own, struct sfc_error *err)
{
    return own->roles != 0
               ? SFC_OK
               : sfc_fail(err, SFC_EDENIED,
                          "%s/cert.pem has no role (an alternative name like " SFC_ROLE_URI
                          "shard): issue it anew with `shardfc cert issue --role`",
                          folder);
}

int sfc_certificate_check(const char *folder, int64_t now, struct sfc_certificate *own,
                          struct sfc_error *err)
{
    X509 *certificate = NULL, *authority = NULL;
    EVP_PKEY *key = NULL;
    int code = read_certificate(folder, "ca.pem", &authority, err);
    if (code == SFC_OK) {
        code = read_certificate(folder, "cert.pem", &certificate, err);
    }
    if (code == SFC_OK) {
        code = read_key(folder, &key, err);
    }
    if (code == SFC_OK && X509_check_private_key(certificate, key) != 1) {
        code = sfc_fail(err, SFC_EINVAL, "%s/key.pem is not the key of cert.pem there", folder);
    }
    if (code == SFC_OK) {
        code = check_chain(folder, certificate, now, err);
    }
    if (code == SFC_OK) {
        describe(certificate, own);
        code = check_role(folder, own, err);
    }
    EVP_PKEY_free(key);
    X509_free(certificate);
    X509_free(authority);
    ERR_clear_error();
    return code;
}
