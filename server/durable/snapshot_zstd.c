#define ZSTD_STATIC_LINKING_ONLY /* estimates of memory */
#include "server/durable/snapshot_zstd.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#define WINDOW_LOG 23 /* of SFC_ZSTD_WINDOW */

_Static_assert(SFC_ZSTD_WINDOW == (size_t)1 << WINDOW_LOG, "the window and its logarithm");

/* ---- packing */

struct sfc_packer {
    ZSTD_CCtx *context;
    void *out;
    size_t out_size;
};

uint64_t sfc_packer_memory(int level)
{
    return ZSTD_estimateCStreamSize(level) + ZSTD_CStreamOutSize() + sizeof(struct sfc_packer);
}

int sfc_packer_new(int level, struct sfc_packer **out, struct sfc_error *err)
{
    struct sfc_packer *packer = calloc(1, sizeof *packer);
    if (packer == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for compressing snapshots");
    }
    packer->context = ZSTD_createCCtx();
    packer->out_size = ZSTD_CStreamOutSize();
    packer->out = malloc(packer->out_size);
    if (packer->context == NULL || packer->out == NULL ||
        ZSTD_isError(ZSTD_CCtx_setParameter(packer->context, ZSTD_c_compressionLevel, level))) {
        sfc_packer_free(packer);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for compressing snapshots");
    }
    *out = packer;
    return SFC_OK;
}

void sfc_packer_free(struct sfc_packer *packer)
{
    if (packer == NULL) {
        return;
    }
    ZSTD_freeCCtx(packer->context);
    free(packer->out);
    free(packer);
}

static int packing_failed(size_t result, struct sfc_error *err)
{
    return sfc_fail(
        err, ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation ? SFC_ENOMEM : SFC_EINTERNAL,
        "zstd: %s", ZSTD_getErrorName(result));
}

int sfc_packer_begin(struct sfc_packer *packer, uint64_t size, struct sfc_error *err)
{
    size_t result = ZSTD_CCtx_reset(packer->context, ZSTD_reset_session_only);
    if (!ZSTD_isError(result)) {
        result = ZSTD_CCtx_setPledgedSrcSize(packer->context, size);
    }
    return ZSTD_isError(result) ? packing_failed(result, err) : SFC_OK;
}

static int drain(struct sfc_packer *packer, ZSTD_inBuffer *in, ZSTD_EndDirective how,
                 const struct sfc_packed_sink *sink, bool *done, struct sfc_error *err)
{
    ZSTD_outBuffer out = {packer->out, packer->out_size, 0};
    size_t result = ZSTD_compressStream2(packer->context, &out, in, how);
    if (ZSTD_isError(result)) {
        return packing_failed(result, err);
    }
    *done = how == ZSTD_e_end ? result == 0 : in->pos == in->size;
    return out.pos > 0 ? sink->put(sink->ctx, packer->out, out.pos, err) : SFC_OK;
}

static int compress(struct sfc_packer *packer, const void *bytes, size_t size,
                    ZSTD_EndDirective how, const struct sfc_packed_sink *sink,
                    struct sfc_error *err)
{
    ZSTD_inBuffer in = {bytes, size, 0};
    bool done = false;
    int code = SFC_OK;
    while (code == SFC_OK && !done) {
        code = drain(packer, &in, how, sink, &done, err);
    }
    return code;
}

int sfc_packer_take(struct sfc_packer *packer, const void *bytes, size_t size,
                    const struct sfc_packed_sink *sink, struct sfc_error *err)
{
    return compress(packer, bytes, size, ZSTD_e_continue, sink, err);
}

int sfc_packer_end(struct sfc_packer *packer, const struct sfc_packed_sink *sink,
                   struct sfc_error *err)
{
    return compress(packer, NULL, 0, ZSTD_e_end, sink, err);
}

/* ---- unpacking */

struct sfc_unpacker {
    ZSTD_DCtx *context;
    void *scratch; /* for content that is thrown away */
    size_t scratch_size;
    uint8_t *out;
    uint64_t size, done;
    bool begun, ended;
};

uint64_t sfc_unpacker_memory(void)
{
    return ZSTD_estimateDStreamSize(SFC_ZSTD_WINDOW) + ZSTD_DStreamOutSize() +
           sizeof(struct sfc_unpacker);
}

int sfc_unpacker_new(struct sfc_unpacker **out, struct sfc_error *err)
{
    struct sfc_unpacker *unpacker = calloc(1, sizeof *unpacker);
    if (unpacker == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for reading snapshots");
    }
    unpacker->context = ZSTD_createDCtx();
    unpacker->scratch_size = ZSTD_DStreamOutSize();
    unpacker->scratch = malloc(unpacker->scratch_size);
    if (unpacker->context == NULL || unpacker->scratch == NULL ||
        ZSTD_isError(ZSTD_DCtx_setParameter(unpacker->context, ZSTD_d_windowLogMax, WINDOW_LOG))) {
        sfc_unpacker_free(unpacker);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for reading snapshots");
    }
    *out = unpacker;
    return SFC_OK;
}

void sfc_unpacker_free(struct sfc_unpacker *unpacker)
{
    if (unpacker == NULL) {
        return;
    }
    ZSTD_freeDCtx(unpacker->context);
    free(unpacker->scratch);
    free(unpacker);
}

void sfc_unpacker_begin(struct sfc_unpacker *unpacker, uint8_t *out, uint64_t size)
{
    (void)ZSTD_DCtx_reset(unpacker->context, ZSTD_reset_session_only);
    unpacker->out = out;
    unpacker->size = size;
    unpacker->done = 0;
    unpacker->begun = unpacker->ended = false;
}

static int check_frame(struct sfc_unpacker *unpacker, const void *bytes, size_t size,
                       struct sfc_error *err)
{
    unsigned long long content = ZSTD_getFrameContentSize(bytes, size);
    unpacker->begun = true;
    if (content == ZSTD_CONTENTSIZE_ERROR || content == ZSTD_CONTENTSIZE_UNKNOWN) {
        return sfc_fail(err, SFC_ECORRUPT, "no zstd frame of known length");
    }
    return content == unpacker->size
               ? SFC_OK
               : sfc_fail(err, SFC_ECORRUPT, "a zstd frame of %llu bytes instead of %" PRIu64,
                          content, unpacker->size);
}

static int unpack_some(struct sfc_unpacker *u, ZSTD_inBuffer *in, bool *stuck,
                       struct sfc_error *err)
{
    uint64_t left = u->size - u->done;
    size_t room = u->out != NULL || left < u->scratch_size ? (size_t)left : u->scratch_size;
    ZSTD_outBuffer out = {u->out != NULL ? u->out + u->done : u->scratch, room, 0};
    size_t before = in->pos;
    size_t result = ZSTD_decompressStream(u->context, &out, in);
    if (ZSTD_isError(result)) {
        bool memory = ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation;
        return sfc_fail(err, memory ? SFC_ENOMEM : SFC_ECORRUPT, "zstd: %s",
                        ZSTD_getErrorName(result));
    }
    u->done += out.pos;
    u->ended = result == 0;
    *stuck = in->pos == before && out.pos == 0;
    return SFC_OK;
}

int sfc_unpacker_take(struct sfc_unpacker *unpacker, const void *bytes, size_t size,
                      struct sfc_error *err)
{
    ZSTD_inBuffer in = {bytes, size, 0};
    int code = unpacker->begun ? SFC_OK : check_frame(unpacker, bytes, size, err);
    bool stuck = false;
    while (code == SFC_OK && !stuck && !unpacker->ended && in.pos < in.size) {
        code = unpack_some(unpacker, &in, &stuck, err);
    }
    if (code == SFC_OK && in.pos < in.size) {
        code = sfc_fail(err, SFC_ECORRUPT, "more bytes than the zstd frame has");
    }
    return code;
}

/* What the last piece left inside the context comes out here. */
int sfc_unpacker_end(struct sfc_unpacker *unpacker, struct sfc_error *err)
{
    ZSTD_inBuffer nothing = {NULL, 0, 0};
    int code = SFC_OK;
    bool stuck = !unpacker->begun;
    while (code == SFC_OK && !stuck && !unpacker->ended) {
        code = unpack_some(unpacker, &nothing, &stuck, err);
    }
    if (code == SFC_OK && (!unpacker->ended || unpacker->done != unpacker->size)) {
        code = sfc_fail(err, SFC_ECORRUPT, "the zstd frame ends after %" PRIu64 " bytes",
                        unpacker->done);
    }
    return code;
}
