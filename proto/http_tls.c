#include "proto/http_tls.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "proto/base/log.h"
#include "proto/certificate.h"

enum { PEM_MAX = 1 << 20, CHAIN_MAX = 16, FILES = 3 };

static const char *const names[FILES] = {"cert.pem", "key.pem", "ca.pem"};

/* What tells that a file is another one. */
struct stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec written;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static char *folder;                                     /* NULL: closed */
static struct stamp seen[FILES]; /* of the last try, whether it could be used or not */
static char *certificate, *key;  /* PEM, in use */

static void path_of(int file, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s", folder, names[file]);
}

static void look(struct stamp stamps[FILES])
{
    memset(stamps, 0, FILES * sizeof *stamps);
    for (int i = 0; i < FILES; i++) {
        char path[PATH_MAX];
        struct stat status;
        path_of(i, path);
        if (stat(path, &status) == 0) {
            stamps[i].device = status.st_dev;
            stamps[i].inode = status.st_ino;
            stamps[i].size = status.st_size;
            stamps[i].written = status.st_mtim;
        }
    }
}

/* A whole file with a 0 behind it; the caller frees it. NULL: err says why. */
static char *read_pem(int file, struct sfc_error *err)
{
    char path[PATH_MAX];
    path_of(file, path);
    FILE *stream = fopen(path, "re");
    char *text = stream != NULL ? malloc(PEM_MAX) : NULL;
    if (text == NULL) {
        sfc_fail_errno(err, "read %s", path);
    } else {
        text[fread(text, 1, PEM_MAX - 1, stream)] = '\0';
    }
    if (stream != NULL) {
        fclose(stream);
    }
    return text;
}

/* Takes what is in the folder if it fits together. */
static int load(const struct stamp now[FILES], struct sfc_error *err)
{
    struct sfc_certificate own;
    struct stamp after[FILES];
    memcpy(seen, now, sizeof seen);
    int code = sfc_certificate_check(folder, (int64_t)time(NULL), &own, err);
    if (code != SFC_OK) {
        return code;
    }
    char *new_certificate = read_pem(0, err);
    char *new_key = new_certificate != NULL ? read_pem(1, err) : NULL;
    look(after);
    if (new_key == NULL || memcmp(after, now, sizeof after) != 0) {
        code = new_key == NULL ? SFC_EIO : sfc_fail(err, SFC_ESTALE, "%s changes just now", folder);
        free(new_certificate);
        free(new_key);
        return code;
    }
    free(certificate);
    free(key);
    certificate = new_certificate;
    key = new_key;
    return SFC_OK;
}

static void refresh(void)
{
    struct stamp now[FILES];
    struct sfc_error err = {0};
    look(now);
    if (memcmp(now, seen, sizeof now) == 0) {
        return;
    }
    if (load(now, &err) == SFC_OK) {
        sfc_info_log("pages are served with the renewed certificate in %s", folder);
    } else {
        sfc_warning_log("pages are served with the certificate of before: %s", err.text);
    }
}

int sfc_http_tls_open(const char *at, struct sfc_error *err)
{
    struct stamp now[FILES];
    pthread_mutex_lock(&lock);
    folder = strdup(at);
    int code = SFC_OK;
    if (folder == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "no memory for the certificate of pages");
    } else {
        look(now);
        code = load(now, err);
    }
    pthread_mutex_unlock(&lock);
    if (code != SFC_OK) {
        sfc_http_tls_close();
    }
    return code;
}

void sfc_http_tls_close(void)
{
    pthread_mutex_lock(&lock);
    free(folder);
    free(certificate);
    free(key);
    folder = certificate = key = NULL;
    pthread_mutex_unlock(&lock);
}

static gnutls_datum_t text_of(char *pem)
{
    return (gnutls_datum_t){(unsigned char *)pem, (unsigned)strlen(pem)};
}

/* Parsed for each connection, and owned by it: so what is renewed needs no counting of users. */
static int parse(gnutls_pcert_st **chain, unsigned *length, gnutls_privkey_t *out)
{
    gnutls_datum_t certificate_text = text_of(certificate), key_text = text_of(key);
    gnutls_privkey_t own = NULL;
    unsigned count = CHAIN_MAX;
    gnutls_pcert_st *list = gnutls_calloc(CHAIN_MAX, sizeof *list);
    int code = list != NULL ? gnutls_privkey_init(&own) : GNUTLS_E_MEMORY_ERROR;
    if (code == 0) {
        code = gnutls_privkey_import_x509_raw(own, &key_text, GNUTLS_X509_FMT_PEM, NULL, 0);
    }
    if (code == 0) {
        code = gnutls_pcert_list_import_x509_raw(list, &count, &certificate_text,
                                                 GNUTLS_X509_FMT_PEM, 0);
    }
    if (code != 0) {
        gnutls_privkey_deinit(own);
        gnutls_free(list);
        return -1;
    }
    *chain = list;
    *length = count;
    *out = own;
    return 0;
}

int sfc_http_tls_retrieve(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
                          gnutls_pcert_st **chain, unsigned *length, gnutls_ocsp_data_st **ocsp,
                          unsigned *ocsp_length, gnutls_privkey_t *own, unsigned *flags)
{
    (void)session;
    (void)info;
    *ocsp = NULL;
    *ocsp_length = 0;
    pthread_mutex_lock(&lock);
    refresh();
    int code = parse(chain, length, own);
    pthread_mutex_unlock(&lock);
    *flags = GNUTLS_CERT_RETR_DEINIT_ALL;
    return code;
}
