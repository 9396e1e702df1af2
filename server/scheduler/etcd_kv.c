/* Keys and values of the state in etcd. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "server/scheduler/store_etcd.h"

enum {
    PIECE = 1 << 20, /* etcd takes requests of 1.5 MiB */
    BLOB_MAX = SFC_LIMIT_HEAD,
    PAGE_FIRST = 4, /* keys of the first page of a long read, doubled from page to page */
    PAGE_MAX = 512
};

/* ---- keys */

void sfc_kv_key(const struct sfc_etcd_store *s, char out[SFC_KV_KEY], const char *format, ...)
{
    int size = snprintf(out, SFC_KV_KEY, "%s/", sfc_etcd_prefix(s->etcd));
    va_list args;
    va_start(args, format);
    vsnprintf(out + size, SFC_KV_KEY - (size_t)size, format, args);
    va_end(args);
}

void sfc_kv_end(char out[SFC_KV_KEY], const char *folder)
{
    size_t size = strlen(folder);
    memcpy(out, folder, size + 1);
    out[size - 1] = '/' + 1;
}

uint64_t sfc_kv_number(const Etcdserverpb__KeyValue *kv, unsigned back)
{
    char text[SFC_KV_KEY];
    size_t size = kv->key.len < SFC_KV_KEY ? kv->key.len : SFC_KV_KEY - 1;
    memcpy(text, kv->key.data, size);
    text[size] = '\0';
    char *slash = strrchr(text, '/');
    for (; slash && back > 0; back--) {
        *slash = '\0';
        slash = strrchr(text, '/');
    }
    return slash ? strtoull(slash + 1, NULL, 10) : 0;
}

/* ---- reading */

const Etcdserverpb__RangeResponse *sfc_kv_reply(const struct sfc_answer *answer)
{
    return (const Etcdserverpb__RangeResponse *)answer->message;
}

int sfc_kv_read(struct sfc_etcd_store *s, const char *key, struct sfc_answer *answer,
                ProtobufCBinaryData *value, const char *what, struct sfc_error *err)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r.key = sfc_etcd_text(key);
    int code = sfc_lead_read(s->lead, &r, answer, what, err);
    if (code == SFC_OK && sfc_kv_reply(answer)->n_kvs != 1) {
        sfc_answer_free(answer);
        return sfc_fail(err, SFC_ENOTFOUND, "%s: etcd has no %s", what, key);
    }
    if (code == SFC_OK)
        *value = sfc_kv_reply(answer)->kvs[0]->value;
    return code;
}

int sfc_kv_read_message(struct sfc_etcd_store *s, const char *key,
                        const ProtobufCMessageDescriptor *type, void *out, const char *what,
                        struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    int code = sfc_kv_read(s, key, &answer, &value, what, err);
    if (code == SFC_OK)
        code = sfc_stored_unpack(value, type, key, out, err);
    sfc_answer_free(&answer);
    return code;
}

int sfc_kv_range(struct sfc_etcd_store *s, const char *from, const char *end, size_t limit,
                 bool backwards, struct sfc_answer *answer, const char *what, struct sfc_error *err)
{
    Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
    r.key = sfc_etcd_text(from);
    r.range_end = sfc_etcd_text(end);
    r.limit = (int64_t)limit;
    r.sort_order = backwards ? ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND
                             : ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE; /* ascending */
    return sfc_lead_read(s->lead, &r, answer, what, err);
}

int sfc_kv_walk(struct sfc_etcd_store *s, const char *from, const char *end,
                int (*take)(const Etcdserverpb__KeyValue *kv, void *ctx, bool *more,
                            struct sfc_error *err),
                void *ctx, const char *what, struct sfc_error *err)
{
    char at[SFC_KV_KEY + 1];
    bool more = true;
    snprintf(at, sizeof at, "%s", from);
    for (size_t page = PAGE_FIRST; more; page = page < PAGE_MAX ? 2 * page : page) {
        struct sfc_answer answer = {0};
        int code = sfc_kv_range(s, at, end, page, false, &answer, what, err);
        if (code != SFC_OK)
            return code;
        const Etcdserverpb__RangeResponse *r = sfc_kv_reply(&answer);
        for (size_t i = 0; i < r->n_kvs && more && code == SFC_OK; i++) {
            const Etcdserverpb__KeyValue *kv = r->kvs[i];
            code = take(kv, ctx, &more, err);
            /* the next key that there can be */
            snprintf(at, sizeof at, "%.*s!", (int)kv->key.len, (const char *)kv->key.data);
        }
        more = more && r->more && r->n_kvs > 0;
        sfc_answer_free(&answer);
        if (code != SFC_OK)
            return code;
    }
    return SFC_OK;
}

int sfc_kv_last(struct sfc_etcd_store *s, const char *folder, uint64_t *out, const char *what,
                struct sfc_error *err)
{
    char end[SFC_KV_KEY];
    struct sfc_answer answer = {0};
    sfc_kv_end(end, folder);
    int code = sfc_kv_range(s, folder, end, 1, true, &answer, what, err);
    if (code == SFC_OK)
        *out = sfc_kv_reply(&answer)->n_kvs ? sfc_kv_number(sfc_kv_reply(&answer)->kvs[0], 0) : 0;
    sfc_answer_free(&answer);
    return code;
}

/* ---- writing */

int sfc_kv_write_text(struct sfc_etcd_store *s, const char *key, const char *text, const char *what,
                      struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    sfc_lead_put(&w, key, (struct sfc_bytes){(const uint8_t *)text, strlen(text)});
    return sfc_lead_commit(s->lead, &w, what, err);
}

int sfc_kv_write_message(struct sfc_etcd_store *s, const char *key, const void *message,
                         const char *what, struct sfc_error *err)
{
    struct sfc_lead_write w = {.count = 0};
    struct sfc_bytes bytes = {NULL, 0};
    int code = sfc_stored_pack(message, &bytes, err);
    if (code == SFC_OK) {
        sfc_lead_put(&w, key, bytes);
        code = sfc_lead_commit(s->lead, &w, what, err);
    }
    free((void *)(uintptr_t)bytes.data);
    return code;
}

/* ---- long values, in pieces */

enum { PIECE_KEY_MAX = SFC_KV_KEY + 24 };

static void piece_key(char out[PIECE_KEY_MAX], const char *folder, size_t i)
{
    snprintf(out, PIECE_KEY_MAX, "%s" SFC_KV_NUMBER, folder, (uint64_t)i);
}

int sfc_kv_write_pieces(struct sfc_etcd_store *s, const char *folder, const uint8_t *data,
                        size_t size, const char *what, struct sfc_error *err)
{
    int code = SFC_OK;
    for (size_t i = 0; i * PIECE < size && code == SFC_OK; i++) {
        char key[PIECE_KEY_MAX];
        struct sfc_lead_write w = {.count = 0};
        size_t left = size - i * PIECE;
        piece_key(key, folder, i);
        sfc_lead_put(&w, key, (struct sfc_bytes){data + i * PIECE, left < PIECE ? left : PIECE});
        code = sfc_lead_commit(s->lead, &w, what, err);
    }
    return code;
}

static int read_piece(struct sfc_etcd_store *s, const char *folder, size_t i, uint8_t *to,
                      size_t size, const char *what, struct sfc_error *err)
{
    char key[PIECE_KEY_MAX];
    struct sfc_answer answer = {0};
    ProtobufCBinaryData value = {0, NULL};
    piece_key(key, folder, i);
    int code = sfc_kv_read(s, key, &answer, &value, what, err);
    if (code == SFC_ENOTFOUND || (code == SFC_OK && value.len != size))
        code =
            sfc_fail(err, SFC_ECORRUPT,
                     "%s: etcd lacks a part of it, %s; restore etcd from a backup, or begin with "
                     "another prefix",
                     what, key);
    if (code == SFC_OK)
        memcpy(to, value.data, size);
    sfc_answer_free(&answer);
    return code;
}

int sfc_kv_read_pieces(struct sfc_etcd_store *s, const char *folder, uint64_t size, uint8_t **out,
                       const char *what, struct sfc_error *err)
{
    if (size > BLOB_MAX)
        return sfc_fail(err, SFC_ECORRUPT, "%s: etcd says that it has %" PRIu64 " bytes", what,
                        size);
    uint8_t *data = malloc(size ? size : 1);
    int code = data ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "%s: %" PRIu64 " bytes", what, size);
    for (size_t i = 0; i * PIECE < size && code == SFC_OK; i++) {
        size_t left = size - i * PIECE;
        code = read_piece(s, folder, i, data + i * PIECE, left < PIECE ? left : PIECE, what, err);
    }
    if (code == SFC_OK)
        *out = data;
    else
        free(data);
    return code;
}
