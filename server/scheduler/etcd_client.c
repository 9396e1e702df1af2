#include "server/scheduler/etcd_client.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"

#define DEFAULT_PREFIX "/shardfc"

struct sfc_etcd {
    struct sfc_rpc_runner *runner;
    struct sfc_rpc_client *members[SFC_ETCD_MEMBERS];
    unsigned count;
    atomic_uint current; /* the one that answered last */
    char prefix[SFC_ETCD_PREFIX];
};

ProtobufCBinaryData sfc_etcd_text(const char *text)
{
    return (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
}

/* ---- what --state says */

static int take_prefix(struct sfc_etcd *etcd, const char *slash, struct sfc_error *err)
{
    const char *prefix = slash && slash[1] ? slash : DEFAULT_PREFIX;
    size_t size = strlen(prefix);
    if (size >= sizeof etcd->prefix)
        return sfc_fail(err, SFC_EINVAL, "the prefix is longer than %zu characters",
                        sizeof etcd->prefix - 1);
    for (size_t i = 0; i < size; i++)
        if (prefix[i] <= ' ' || prefix[i] > '~')
            return sfc_fail(err, SFC_EINVAL, "the prefix has characters other than ASCII's");
    if (prefix[size - 1] == '/')
        return sfc_fail(err, SFC_EINVAL, "the prefix ends with '/'");
    memcpy(etcd->prefix, prefix, size + 1);
    return SFC_OK;
}

static int add_member(struct sfc_etcd *etcd, const char *text, size_t size, struct sfc_error *err)
{
    char address[SFC_LIMIT_ADDRESS + 1];
    if (etcd->count == SFC_ETCD_MEMBERS)
        return sfc_fail(err, SFC_EINVAL, "more than %d members", SFC_ETCD_MEMBERS);
    if (size >= sizeof address)
        return sfc_fail(err, SFC_EINVAL, "an address is longer than %zu characters",
                        sizeof address - 1);
    memcpy(address, text, size);
    address[size] = '\0';
    int code = sfc_rpc_runner_connect(etcd->runner, address, &etcd->members[etcd->count], err);
    if (code == SFC_OK)
        etcd->count++;
    return code;
}

static int add_members(struct sfc_etcd *etcd, const char *list, const char *end,
                       struct sfc_error *err)
{
    int code = SFC_OK;
    for (const char *at = list; code == SFC_OK && at <= end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *stop = comma ? comma : end;
        code = add_member(etcd, at, (size_t)(stop - at), err);
        at = stop + 1;
    }
    return code;
}

/* "etcds://" with the folder of --tls, "etcd://" in plaintext. */
static int start_runner(struct sfc_etcd *etcd, const char *where,
                        const struct sfc_security *security, struct sfc_error *err)
{
    struct sfc_security own = security ? *security : (struct sfc_security){0};
    if (strncmp(where, "etcds:", 6) != 0)
        own.tls = NULL;
    else if (!own.tls)
        return sfc_fail(err, SFC_EINVAL, "etcds:// is with TLS: give --tls DIR too");
    int code = sfc_rpc_runner_start(&own, &etcd->runner, err);
    if (code == SFC_OK)
        sfc_rpc_loop_call_foreign(sfc_rpc_runner_loop(etcd->runner));
    return code;
}

int sfc_etcd_new(const char *where, const struct sfc_security *security, struct sfc_etcd **out,
                 struct sfc_error *err)
{
    const char *list = strstr(where, "://") + 3, *slash = strchr(list, '/');
    struct sfc_etcd *etcd = calloc(1, sizeof *etcd);
    if (!etcd)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a connection to etcd");
    int code = take_prefix(etcd, slash, err);
    if (code == SFC_OK)
        code = start_runner(etcd, where, security, err);
    if (code == SFC_OK)
        code = add_members(etcd, list, slash ? slash : list + strlen(list), err);
    if (code == SFC_OK) {
        *out = etcd;
        return SFC_OK;
    }
    sfc_etcd_free(etcd);
    return sfc_prefix(err, "--state %s", where), code;
}

void sfc_etcd_free(struct sfc_etcd *etcd)
{
    if (!etcd)
        return;
    for (unsigned i = 0; i < etcd->count; i++)
        sfc_rpc_runner_disconnect(etcd->runner, etcd->members[i]);
    sfc_rpc_runner_stop(etcd->runner);
    free(etcd);
}

const char *sfc_etcd_prefix(const struct sfc_etcd *etcd)
{
    return etcd->prefix;
}

/* ---- calls */

static const struct {
    const char *path;
    const ProtobufCMessageDescriptor *reply;
} methods[] = {
    [SFC_ETCD_RANGE] = {"/etcdserverpb.KV/Range", &etcdserverpb__range_response__descriptor},
    [SFC_ETCD_TXN] = {"/etcdserverpb.KV/Txn", &etcdserverpb__txn_response__descriptor},
    [SFC_ETCD_COMPACT] = {"/etcdserverpb.KV/Compact",
                          &etcdserverpb__compaction_response__descriptor},
    [SFC_ETCD_LEASE_GRANT] = {"/etcdserverpb.Lease/LeaseGrant",
                              &etcdserverpb__lease_grant_response__descriptor},
    /* A stream in both directions; on the wire a stream of one message each way is a plain call. */
    [SFC_ETCD_LEASE_KEEP_ALIVE] = {"/etcdserverpb.Lease/LeaseKeepAlive",
                                   &etcdserverpb__lease_keep_alive_response__descriptor},
    [SFC_ETCD_LEASE_REVOKE] = {"/etcdserverpb.Lease/LeaseRevoke",
                               &etcdserverpb__lease_revoke_response__descriptor},
};

/* Another member may do better; none has to. */
static bool no_answer(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT;
}

int sfc_etcd_call(struct sfc_etcd *etcd, enum sfc_etcd_method method, const void *request,
                  unsigned deadline_ms, struct sfc_answer *out, struct sfc_error *err)
{
    struct sfc_ask ask = {.method = methods[method].path,
                          .message = request,
                          .deadline_ms = deadline_ms,
                          .reply_type = methods[method].reply};
    struct sfc_error why = {0};
    unsigned first = atomic_load(&etcd->current);
    for (unsigned i = 0; i < etcd->count; i++) {
        unsigned at = (first + i) % etcd->count;
        int code = sfc_ask(etcd->members[at], &ask, out, &why);
        if (!no_answer(code)) {
            atomic_store(&etcd->current, at);
            return code == SFC_OK ? code : sfc_fail(err, code, "etcd: %s", why.text);
        }
    }
    return sfc_fail(err, SFC_EUNAVAILABLE, "etcd: no member answers (%s: %s)",
                    sfc_rpc_client_address(etcd->members[(first + etcd->count - 1) % etcd->count]),
                    why.text);
}
