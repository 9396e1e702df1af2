#include "proto/rpc_trust.h"

#include <grpc/grpc_security_constants.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/string_util.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/certificate.h"
#include "proto/rpc_guard.h"

enum { REFRESH_S = 2 };

struct sfc_rpc_trust {
    grpc_tls_certificate_provider *provider; /* NULL: plaintext */
    bool insecure;
    bool foreign;
};

/* ---- what a client asks of a server, on a thread of gRPC's */

static int refuse_server(grpc_status_code *status, char **details, const char *text)
{
    *status = GRPC_STATUS_UNAUTHENTICATED;
    *details = gpr_strdup(text);
    return 1; /* decided */
}

static int verify_server(void *user_data, grpc_tls_custom_verification_check_request *request,
                         grpc_tls_on_custom_verification_check_done_cb callback, void *callback_arg,
                         grpc_status_code *status, char **details)
{
    (void)callback;
    (void)callback_arg;
    const unsigned *roles = user_data;
    struct sfc_certificate peer;
    struct sfc_error err = {0};
    char host[SFC_HOST_MAX], text[768];
    sfc_address_host(request->target_name != NULL ? request->target_name : "", host);
    if (sfc_certificate_read(request->peer_info.peer_cert, &peer, &err) != SFC_OK) {
        return refuse_server(status, details, err.text);
    }
    if (*roles != 0 && (peer.roles & *roles) == 0) {
        snprintf(text, sizeof text, "the certificate of %s (%s) is no scheduler's and no shard's",
                 host, peer.name);
        return refuse_server(status, details, text);
    }
    if (!sfc_certificate_names(request->peer_info.peer_cert, host)) {
        snprintf(text, sizeof text,
                 "the certificate of %s (%s) does not name this host: issue it with --host %s",
                 host, peer.name, host);
        return refuse_server(status, details, text);
    }
    *status = GRPC_STATUS_OK;
    return 1;
}

static void verify_cancelled(void *user_data, grpc_tls_custom_verification_check_request *request)
{
    (void)user_data;
    (void)request;
}

static unsigned of_servers = SFC_ROLE_SCHEDULER | SFC_ROLE_SHARD, of_anybody = 0;
static grpc_tls_certificate_verifier_external our_servers = {
    .user_data = &of_servers, .verify = verify_server, .cancel = verify_cancelled};
static grpc_tls_certificate_verifier_external foreign_servers = {
    .user_data = &of_anybody, .verify = verify_server, .cancel = verify_cancelled};

/* ---- credentials */

static int check_plaintext(const struct sfc_rpc_trust *trust, const char *verb, const char *address,
                           struct sfc_error *err)
{
    const struct sfc_security security = {.insecure = trust->insecure};
    return sfc_security_check_plaintext(&security, verb, address, err);
}

static grpc_tls_credentials_options *options_of(const struct sfc_rpc_trust *trust)
{
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();
    grpc_tls_credentials_options_set_certificate_provider(options, trust->provider);
    grpc_tls_credentials_options_watch_root_certs(options);
    grpc_tls_credentials_options_watch_identity_key_cert_pairs(options);
    return options;
}

int sfc_rpc_trust_call(const struct sfc_rpc_trust *trust, const char *address,
                       grpc_channel_credentials **out, struct sfc_error *err)
{
    if (trust->provider == NULL) {
        int code = check_plaintext(trust, "calling", address, err);
        if (code == SFC_OK) {
            *out = grpc_insecure_credentials_create();
        }
        return code;
    }
    grpc_tls_credentials_options *options = options_of(trust);
    grpc_tls_certificate_verifier *verifier = grpc_tls_certificate_verifier_external_create(
        trust->foreign ? &foreign_servers : &our_servers);
    grpc_tls_credentials_options_set_certificate_verifier(options, verifier);
    grpc_tls_certificate_verifier_release(verifier);
    grpc_tls_credentials_options_set_check_call_host(options, 0); /* the verifier has done it */
    *out = grpc_tls_credentials_create(options);
    return SFC_OK;
}

int sfc_rpc_trust_serve(const struct sfc_rpc_trust *trust, const char *listen,
                        grpc_server_credentials **out, struct sfc_error *err)
{
    if (trust->provider == NULL) {
        int code = check_plaintext(trust, "serving", listen, err);
        if (code == SFC_OK) {
            *out = grpc_insecure_server_credentials_create();
        }
        return code;
    }
    grpc_tls_credentials_options *options = options_of(trust);
    grpc_tls_credentials_options_set_cert_request_type(
        options, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    *out = grpc_tls_server_credentials_create(options);
    return SFC_OK;
}

/* ---- the peer of a call */

bool sfc_rpc_trust_secure(const struct sfc_rpc_trust *trust)
{
    return trust->provider != NULL;
}

void sfc_rpc_trust_peer(const struct sfc_rpc_trust *trust, grpc_call *call,
                        struct sfc_certificate *out)
{
    *out = (struct sfc_certificate){.name = "?"};
    if (trust->provider == NULL) {
        out->roles = SFC_ROLES_ALL;
        return;
    }
    grpc_auth_context *context = grpc_call_auth_context(call);
    grpc_auth_property_iterator all = grpc_auth_context_property_iterator(context);
    for (const grpc_auth_property *p; (p = grpc_auth_property_iterator_next(&all)) != NULL;) {
        if (strcmp(p->name, GRPC_X509_SAN_PROPERTY_NAME) == 0) {
            sfc_certificate_add_uri(out, p->value, p->value_length);
        } else if (strcmp(p->name, GRPC_X509_CN_PROPERTY_NAME) == 0) {
            snprintf(out->name, sizeof out->name, "%.*s", (int)p->value_length, p->value);
        }
    }
    grpc_auth_context_release(context);
}

/* ---- what was refused */

static _Atomic(void (*)(const char *text)) told;

void sfc_rpc_on_refused(void (*hears)(const char *text))
{
    atomic_store(&told, hears);
}

/* A stranger who tries again and again must not fill the log. */
struct tongue {
    atomic_llong last; /* CLOCK_MONOTONIC, ms */
    atomic_uint kept;  /* messages since */
};
static struct tongue of_handshakes, of_calls, of_limits;

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* whom NULL: somebody in a TLS handshake, of whom gRPC says nothing. */
static void say(struct tongue *tongue, const char *whom, const char *what)
{
    void (*tell)(const char *text) = atomic_load(&told);
    if (tell == NULL) {
        return;
    }
    long long now = now_ms(), last = atomic_load(&tongue->last);
    if (now - last < 1000 || !atomic_compare_exchange_strong(&tongue->last, &last, now)) {
        atomic_fetch_add(&tongue->kept, 1);
        return;
    }
    char text[480], more[64] = "", newest[160];
    if (whom == NULL) {
        sfc_rpc_guard_newest(newest, sizeof newest);
    }
    unsigned others = atomic_exchange(&tongue->kept, 0);
    if (others > 0) {
        snprintf(more, sizeof more, " (and %u more since the last message)", others);
    }
    if (whom != NULL) {
        snprintf(text, sizeof text, "refused %.60s: %.320s%s", whom, what, more);
    } else {
        snprintf(text, sizeof text,
                 "refused a connection in its TLS handshake (from %.140s): %.200s%s", newest, what,
                 more);
    }
    tell(text);
}

void sfc_rpc_trust_tell(const char *peer, const char *what)
{
    say(&of_calls, peer, what);
}

void sfc_rpc_trust_tell_limit(const char *peer, const char *what)
{
    say(&of_limits, peer, what);
}

/* OpenSSL's words come last, after numbers. */
static const char *reason_of(const char *message)
{
    static const struct {
        const char *words, *meaning;
    } known[] = {
        {"did not return a certificate", "the peer has no certificate (--tls)"},
        {"certificate verify failed", "the peer's certificate has expired, is not valid yet, or is "
                                      "of an authority that is not in "
                                      "our ca.pem (`shardfc cert show` on its side tells)"},
        {"wrong version number", "the peer speaks plaintext, or no TLS of our version"},
        {"http request", "the peer speaks plaintext HTTP"},
        {"unknown ca", "the peer does not trust our certificate's authority"},
        {"certificate expired", "the peer says that our certificate has expired"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strstr(message, known[i].words) != NULL) {
            return known[i].meaning;
        }
    }
    const char *last = strrchr(message, ':');
    return last != NULL ? last + 1 : message;
}

void sfc_rpc_trust_log(const char *message)
{
    if (strncmp(message, "Handshake failed", 16) == 0) {
        say(&of_handshakes, NULL, reason_of(message));
    }
    if (strncmp(message, "Failed accept4", 14) == 0) {
        say(&of_limits, "all new connections, for good",
            "the process may not open more files: restart it with more (LimitNOFILE= in a unit, "
            "ulimit -n)");
    }
}

/* ---- life */

int sfc_rpc_trust_new(const struct sfc_security *security, struct sfc_rpc_trust **out,
                      struct sfc_error *err)
{
    struct sfc_certificate own;
    int code = SFC_OK;
    if (security != NULL && security->tls != NULL) {
        code = sfc_certificate_check(security->tls, (int64_t)time(NULL), &own, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_rpc_trust *trust = calloc(1, sizeof *trust);
    if (trust == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for credentials");
    }
    if (security != NULL) {
        trust->insecure = security->insecure;
    }
    if (security != NULL && security->tls != NULL) {
        char key[4096], certificate[4096], authorities[4096];
        snprintf(key, sizeof key, "%s/key.pem", security->tls);
        snprintf(certificate, sizeof certificate, "%s/cert.pem", security->tls);
        snprintf(authorities, sizeof authorities, "%s/ca.pem", security->tls);
        trust->provider = grpc_tls_certificate_provider_file_watcher_create(key, certificate,
                                                                            authorities, REFRESH_S);
        gpr_set_log_verbosity(GPR_LOG_SEVERITY_INFO); /* failed handshakes come at this level */
    }
    *out = trust;
    return SFC_OK;
}

void sfc_rpc_trust_call_foreign(struct sfc_rpc_trust *trust)
{
    trust->foreign = true;
}

void sfc_rpc_trust_free(struct sfc_rpc_trust *trust)
{
    if (trust != NULL && trust->provider != NULL) {
        grpc_tls_certificate_provider_release(trust->provider);
    }
    free(trust);
}
