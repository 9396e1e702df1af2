#include "server/durable/log_limit.h"

#include <inttypes.h>
#include <string.h>

#include "proto/base/digest.h"

#define VERSION   2u
#define CHECKED   (SFC_LOG_LIMIT_BYTES - 8)
#define TEMPORARY SFC_LOG_LIMIT_FILE ".tmp"

static const uint8_t magic[8] = {'S', 'F', 'C', 'L', 'I', 'M', 'I', 'T'};

void sfc_log_limit_encode(const struct sfc_run_identity *own, uint64_t limit,
                          uint8_t out[SFC_LOG_LIMIT_BYTES])
{
    struct sfc_writer w;
    sfc_writer_init(&w, out, SFC_LOG_LIMIT_BYTES);
    sfc_write_bytes(&w, magic, sizeof magic);
    sfc_write_u32(&w, VERSION);
    sfc_write_u32(&w, SFC_LOG_LIMIT_BYTES);
    sfc_write_u64(&w, own->run_id);
    sfc_write_u64(&w, own->nonce);
    sfc_write_u64(&w, limit);
    sfc_write_u64(&w, sfc_digest64(out, CHECKED));
}

int sfc_log_limit_decode(const uint8_t *data, size_t size, const struct sfc_run_identity *own,
                         uint64_t *limit, struct sfc_error *err)
{
    struct sfc_reader r;
    sfc_reader_init(&r, data, size);
    const uint8_t *name = sfc_read_bytes(&r, sizeof magic);
    uint32_t version = sfc_read_u32(&r), bytes = sfc_read_u32(&r);
    struct sfc_run_identity file = {.run_id = sfc_read_u64(&r)};
    file.nonce = sfc_read_u64(&r);
    uint64_t value = sfc_read_u64(&r), checksum = sfc_read_u64(&r);
    if (r.failed || size != SFC_LOG_LIMIT_BYTES || memcmp(name, magic, sizeof magic) != 0) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: this is no log limit of %u bytes",
                        SFC_LOG_LIMIT_BYTES);
    }
    if (checksum != sfc_digest64(data, CHECKED)) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: the checksum is wrong");
    }
    if (version != VERSION || bytes != SFC_LOG_LIMIT_BYTES) {
        return sfc_fail(err, SFC_EUNSUPPORTED, "has format version %u; this program knows %u",
                        version, VERSION);
    }
    int code = sfc_run_identity_check_run(&file, own, err);
    if (code == SFC_OK) {
        *limit = value;
    }
    return code;
}

static int write_temporary(struct sfc_folder *folder, const uint8_t *data, struct sfc_error *err)
{
    struct sfc_bytes bytes = {data, SFC_LOG_LIMIT_BYTES};
    struct sfc_file *file;
    (void)folder->ops->remove(folder, TEMPORARY, NULL); /* that a crash left */
    int code = folder->ops->create(folder, TEMPORARY, &file, err);
    if (code != SFC_OK) {
        return code;
    }
    code = folder->ops->write(file, 0, &bytes, 1, err);
    if (code == SFC_OK) {
        code = folder->ops->sync(file, err);
    }
    folder->ops->close_file(file);
    if (code != SFC_OK) {
        (void)folder->ops->remove(folder, TEMPORARY, NULL);
    }
    return code;
}

int sfc_log_limit_store(struct sfc_folder *folder, const struct sfc_run_identity *own,
                        uint64_t limit, struct sfc_error *err)
{
    uint8_t data[SFC_LOG_LIMIT_BYTES];
    sfc_log_limit_encode(own, limit, data);
    int code = write_temporary(folder, data, err);
    if (code == SFC_OK) {
        code = folder->ops->rename(folder, TEMPORARY, SFC_LOG_LIMIT_FILE, err);
    }
    return code == SFC_OK ? folder->ops->sync_names(folder, err) : code;
}

int sfc_log_limit_load(struct sfc_folder *folder, const struct sfc_run_identity *own,
                       uint64_t *limit, struct sfc_error *err)
{
    uint8_t data[SFC_LOG_LIMIT_BYTES + 1]; /* one more: a longer file is not whole */
    struct sfc_file *file;
    size_t got;
    int code = folder->ops->open(folder, SFC_LOG_LIMIT_FILE, false, &file, err);
    if (code != SFC_OK) {
        return code;
    }
    code = folder->ops->read(file, 0, data, sizeof data, &got, err);
    folder->ops->close_file(file);
    if (code == SFC_OK) {
        code = sfc_log_limit_decode(data, got, own, limit, err);
        if (code != SFC_OK) {
            sfc_prefix(err, "%s/%s", folder->path, SFC_LOG_LIMIT_FILE);
        }
    }
    return code;
}
