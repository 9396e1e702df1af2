#include "proto/certificate_make.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/security.h"

enum { SKEW_S = 300, NAME_MAX_SIZE = 63, ALTERNATIVES_MAX = 2048, DAY_S = 86400 };

/* The authority and its key, or the one to come. */
struct authority {
    X509 *certificate;
    EVP_PKEY *key;
};

static void authority_free(struct authority *a)
{
    X509_free(a->certificate);
    EVP_PKEY_free(a->key);
    ERR_clear_error();
}

/* ---- certificates */

static bool set_serial(X509 *certificate)
{
    BIGNUM *number = BN_new();
    bool fine = number != NULL && BN_rand(number, 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
                BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != NULL;
    BN_free(number);
    return fine;
}

/* authority NULL: of itself. */
static bool add_extension(X509 *certificate, X509 *authority, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, authority != NULL ? authority : certificate, certificate, NULL, NULL,
                   0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool fine = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return fine;
}

/* Without extensions and signature. */
static X509 *draft(const char *name, int64_t from, unsigned days, EVP_PKEY *key, X509 *issuer)
{
    X509 *certificate = X509_new();
    if (certificate == NULL) {
        return NULL;
    }
    X509_NAME *subject = X509_get_subject_name(certificate);
    time_t start = from != 0 ? (time_t)from : time(NULL);
    bool fine =
        X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate) &&
        ASN1_TIME_set(X509_getm_notBefore(certificate), start - SKEW_S) != NULL &&
        ASN1_TIME_set(X509_getm_notAfter(certificate), start + (time_t)days * DAY_S) != NULL &&
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1,
                                   -1, 0) == 1 &&
        X509_set_issuer_name(certificate,
                             issuer != NULL ? X509_get_subject_name(issuer) : subject) == 1 &&
        X509_set_pubkey(certificate, key) == 1;
    if (!fine) {
        X509_free(certificate);
        return NULL;
    }
    return certificate;
}

/* ---- files */

static int check_name(const char *what, const char *name, struct sfc_error *err)
{
    size_t size = strlen(name);
    bool fine = size > 0 && size <= NAME_MAX_SIZE;
    for (size_t i = 0; i < size; i++) {
        fine = fine && name[i] > ' ' && name[i] <= '~' && strchr(",:/\\\"", name[i]) == NULL;
    }
    return fine ? SFC_OK
                : sfc_fail(err, SFC_EINVAL,
                           "%s \"%.80s\": 1 to %d visible characters of ASCII without , : / \\ \"",
                           what, name, NAME_MAX_SIZE);
}

static int make_folder(const char *folder, struct sfc_error *err)
{
    return mkdir(folder, 0700) == 0 || errno == EEXIST ? SFC_OK
                                                       : sfc_fail_errno(err, "make %s", folder);
}

static int check_absent(const char *folder, const char *name, const char *instead,
                        struct sfc_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) != 0
               ? SFC_OK
               : sfc_fail(err, SFC_EEXIST, "%s exists already: %s", path, instead);
}

/* Writes a certificate or a key beside its file; put_pem puts it in its place. */
static int write_pem(const char *folder, const char *name, X509 *certificate, EVP_PKEY *key,
                     struct sfc_error *err)
{
    char fresh[4104];
    snprintf(fresh, sizeof fresh, "%s/%s.new", folder, name);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, key != NULL ? 0600 : 0644);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL) {
        int code = sfc_fail_errno(err, "make %s", fresh);
        if (fd >= 0) {
            close(fd);
        }
        return code;
    }
    bool fine = key != NULL ? PEM_write_PKCS8PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) == 1
                            : PEM_write_X509(file, certificate) == 1;
    fine = fflush(file) == 0 && fine && fsync(fd) == 0;
    fine = fclose(file) == 0 && fine;
    if (!fine) {
        int code = sfc_fail_errno(err, "write %s", fresh);
        unlink(fresh);
        return code;
    }
    return SFC_OK;
}

static int put_pem(const char *folder, const char *name, struct sfc_error *err)
{
    char path[4096], fresh[4104];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    if (rename(fresh, path) != 0) {
        int code = sfc_fail_errno(err, "write %s", path);
        unlink(fresh);
        return code;
    }
    return SFC_OK;
}

/* Everything is written before the first file gets its place: a daemon that looks for new ones all
 * the time must not find the key of one certificate beside another for as long as a disk takes. */
static int put_all(const char *folder, const char *const names[], size_t count,
                   struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i < count && code == SFC_OK; i++) {
        code = put_pem(folder, names[i], err);
    }
    return code;
}

static FILE *open_pem(const char *folder, const char *name, char *path, size_t size,
                      struct sfc_error *err)
{
    snprintf(path, size, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        sfc_fail_errno(err, "%s (`shardfc cert init` makes an authority)", path);
    }
    return file;
}

static int authority_read(const char *folder, struct authority *a, struct sfc_error *err)
{
    char path[4096];
    FILE *file = open_pem(folder, "ca.pem", path, sizeof path, err);
    if (file == NULL) {
        return SFC_ENOTFOUND;
    }
    a->certificate = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    if (a->certificate == NULL) {
        return sfc_fail(err, SFC_ECORRUPT, "%s: no certificate in PEM form", path);
    }
    if ((file = open_pem(folder, "ca-key.pem", path, sizeof path, err)) == NULL) {
        return SFC_ENOTFOUND;
    }
    a->key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    fclose(file);
    if (a->key == NULL || X509_check_private_key(a->certificate, a->key) != 1) {
        return sfc_fail(err, SFC_ECORRUPT, "%s: not the private key of ca.pem", path);
    }
    return SFC_OK;
}

/* ---- authority */

int sfc_authority_make(const char *folder, const char *name, unsigned days, struct sfc_error *err)
{
    struct authority a = {NULL, NULL};
    int code = check_name("--name", name, err);
    if (code == SFC_OK) {
        code =
            check_absent(folder, "ca-key.pem",
                         "whoever trusts it would trust nobody any more; name another folder", err);
    }
    if (code == SFC_OK) {
        code = make_folder(folder, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    a.key = EVP_EC_gen("P-256");
    a.certificate = a.key != NULL ? draft(name, 0, days, a.key, NULL) : NULL;
    if (a.certificate == NULL ||
        !add_extension(a.certificate, NULL, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
        !add_extension(a.certificate, NULL, NID_key_usage, "critical,keyCertSign,cRLSign") ||
        !add_extension(a.certificate, NULL, NID_subject_key_identifier, "hash") ||
        X509_sign(a.certificate, a.key, EVP_sha256()) == 0) {
        code = sfc_fail(err, SFC_EINTERNAL, "libcrypto cannot make a certificate");
    }
    if (code == SFC_OK) {
        code = write_pem(folder, "ca-key.pem", NULL, a.key, err);
    }
    if (code == SFC_OK) {
        code = write_pem(folder, "ca.pem", a.certificate, NULL, err);
    }
    if (code == SFC_OK) {
        static const char *const files[] = {"ca-key.pem", "ca.pem"};
        code = put_all(folder, files, sizeof files / sizeof *files, err);
    }
    authority_free(&a);
    return code;
}

/* ---- members */

static bool append(char *text, const char *kind, const char *value, size_t size)
{
    size_t used = strlen(text);
    int n = snprintf(text + used, ALTERNATIVES_MAX - used, "%s%s%.*s", used > 0 ? "," : "", kind,
                     (int)size, value);
    return n > 0 && (size_t)n < ALTERNATIVES_MAX - used;
}

static bool is_address(const char *host, size_t size)
{
    return memchr(host, ':', size) != NULL ||
           (size > 0 && strspn(host, "0123456789.") >= size && memchr(host, '.', size) != NULL);
}

static int append_hosts(const char *hosts, char *text, struct sfc_error *err)
{
    for (const char *at = hosts; at != NULL;) {
        size_t size = strcspn(at, ",");
        bool fine = size > 0 && size < 256;
        for (size_t i = 0; i < size; i++) {
            fine = fine && (isalnum((unsigned char)at[i]) || strchr(".:-_*", at[i]) != NULL);
        }
        if (!fine) {
            return sfc_fail(err, SFC_EINVAL, "--host %s: no name or address at \"%.*s\"", hosts,
                            (int)(size < 64 ? size : 64), at);
        }
        if (!append(text, is_address(at, size) ? "IP:" : "DNS:", at, size)) {
            return sfc_fail(err, SFC_EINVAL, "--host: too many");
        }
        at = at[size] == ',' ? at + size + 1 : NULL;
    }
    return SFC_OK;
}

/* The alternative names, as libcrypto's configuration writes them. */
static int alternatives(const struct sfc_certificate_order *order, char *text,
                        struct sfc_error *err)
{
    bool fine = true;
    for (unsigned role = 1; role <= SFC_ROLES_ALL; role <<= 1) {
        if (order->roles & role) {
            const char *name = sfc_role_name((enum sfc_role)role);
            fine = fine && append(text, "URI:" SFC_ROLE_URI, name, strlen(name));
        }
    }
    if (order->run != NULL) {
        fine = fine && append(text, "URI:" SFC_RUN_URI, order->run, strlen(order->run));
    }
    if (!fine) {
        return sfc_fail(err, SFC_EINVAL, "the names are too long");
    }
    return append_hosts(order->hosts, text, err);
}

static int check_order(const struct sfc_certificate_order *order, const char *out,
                       struct sfc_error *err)
{
    static const char *const files[] = {"ca.pem", "cert.pem", "key.pem"};
    int code = check_name("--name", order->name, err);
    if (code == SFC_OK && order->run != NULL) {
        code = check_name("--run", order->run, err);
    }
    for (size_t i = 0; code == SFC_OK && !order->replace && i < sizeof files / sizeof *files; i++) {
        code =
            check_absent(out, files[i], "name another folder, or add --replace to renew it", err);
    }
    return code;
}

static X509 *member(const struct authority *a, const struct sfc_certificate_order *order,
                    EVP_PKEY *key, const char *names)
{
    X509 *certificate = draft(order->name, order->from, order->days, key, a->certificate);
    if (certificate != NULL &&
        add_extension(certificate, a->certificate, NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(certificate, a->certificate, NID_key_usage, "critical,digitalSignature") &&
        add_extension(certificate, a->certificate, NID_ext_key_usage, "serverAuth,clientAuth") &&
        add_extension(certificate, a->certificate, NID_subject_key_identifier, "hash") &&
        add_extension(certificate, a->certificate, NID_authority_key_identifier, "keyid") &&
        add_extension(certificate, a->certificate, NID_subject_alt_name, names) &&
        X509_sign(certificate, a->key, EVP_sha256()) != 0) {
        return certificate;
    }
    X509_free(certificate);
    return NULL;
}

int sfc_certificate_issue(const struct sfc_certificate_order *order, const char *out,
                          struct sfc_error *err)
{
    struct authority a = {NULL, NULL};
    EVP_PKEY *key = NULL;
    X509 *certificate = NULL;
    char names[ALTERNATIVES_MAX] = "";
    int code = check_order(order, out, err);
    if (code == SFC_OK) {
        code = alternatives(order, names, err);
    }
    if (code == SFC_OK) {
        code = authority_read(order->authority, &a, err);
    }
    if (code == SFC_OK) {
        code = make_folder(out, err);
    }
    if (code != SFC_OK) {
        goto out;
    }
    key = EVP_EC_gen("P-256");
    certificate = key != NULL ? member(&a, order, key, names) : NULL;
    if (certificate == NULL) {
        code = sfc_fail(err, SFC_EINVAL, "libcrypto takes no certificate for \"%.200s\"", names);
        goto out;
    }
    code = write_pem(out, "key.pem", NULL, key, err);
    if (code == SFC_OK) {
        code = write_pem(out, "cert.pem", certificate, NULL, err);
    }
    if (code == SFC_OK) {
        code = write_pem(out, "ca.pem", a.certificate, NULL, err);
    }
    if (code == SFC_OK) {
        static const char *const files[] = {"key.pem", "cert.pem", "ca.pem"};
        code = put_all(out, files, sizeof files / sizeof *files, err);
    }
out:
    X509_free(certificate);
    EVP_PKEY_free(key);
    authority_free(&a);
    return code;
}
