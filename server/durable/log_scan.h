/* Reads segments of a step log record by record, as bytes: recovery (step_log.c), `shardfc log` and
 * the fuzzer share it. Nothing is trusted; what is not whole is listed and passed over.
 *
 * After a bad record the scan looks at every multiple of 8 for the next one: a record says where it
 * was written, so features that look like a record are not taken for one.
 *
 * Memory: one buffer of SFC_LOG_SCAN_BUFFER bytes, and at most 4 bytes per byte of the segment (a
 * record or a bad stretch is at least 64 and 8 bytes long; of bad stretches at most
 * SFC_LOG_SCAN_BAD are kept). */
#ifndef SFC_DURABLE_LOG_SCAN_H
#define SFC_DURABLE_LOG_SCAN_H

#include "server/durable/file_layer.h"
#include "server/durable/log_codec.h"

#define SFC_LOG_SCAN_BUFFER (1u << 20)
#define SFC_LOG_SCAN_BAD    16u

/* Bytes of one segment. */
struct sfc_log_source {
    /* Exactly size bytes from offset on, which lie inside `size` below. */
    int (*read)(void *ctx, uint64_t offset, void *out, size_t size, struct sfc_error *err);
    void *ctx;
    uint64_t size;
};

struct sfc_log_entry {
    struct sfc_log_record record;
    struct sfc_log_commit commit; /* of a COMMIT */
};

/* Bytes that are no whole record. */
struct sfc_log_bad {
    uint64_t offset, end;
    uint64_t step; /* where the record's header is whole, else 0 */
    bool proven;   /* it was durable once: corruption, not a torn write */
    char why[128];
};

struct sfc_log_scan {
    struct sfc_log_segment header;
    int header_code; /* SFC_OK: header and entries are valid; else only `why` and `proven` */
    char why[128];
    struct sfc_log_entry *entries; /* in the order of the file */
    size_t count, room;
    struct sfc_log_bad bad[SFC_LOG_SCAN_BAD];
    size_t bad_count;  /* may be greater than SFC_LOG_SCAN_BAD */
    bool corrupt;      /* some bad stretch, or the header, is proven to have been durable */
    uint64_t end;      /* bytes scanned */
    uint64_t flushed;  /* bytes that are known to be on the disk: a record written later says so */
    uint64_t good_end; /* of the last record before the first bad stretch that is not proven */
};

/* end: bytes that count (of the newest segment: all of it). A source that is shorter has a bad
 * stretch from its size to end, which is proven. Fails with SFC_ENOMEM and the codes of read only.
 */
int sfc_log_scan(const struct sfc_log_source *source, uint64_t end, struct sfc_log_scan *out,
                 struct sfc_error *err);
/* The segment header alone, into out->header, header_code and why. */
int sfc_log_scan_header(const struct sfc_log_source *source, struct sfc_log_scan *out,
                        struct sfc_error *err);
void sfc_log_scan_free(struct sfc_log_scan *scan);

/* ---- the segments of a folder */

enum sfc_log_place {
    SFC_LOG_CHAINED, /* part of the log */
    SFC_LOG_VOID, /* a segment whose records count elsewhere, after a failed write or before trim */
    SFC_LOG_UNFINISHED /* newer than the log's last segment, header never finished */
};

struct sfc_log_file {
    uint64_t number;
    uint64_t bytes; /* of the file */
    enum sfc_log_place place;
    struct sfc_log_scan scan; /* of CHAINED and UNFINISHED */
};

struct sfc_log_chain {
    struct sfc_log_file *files; /* ascending */
    size_t count;
    uint64_t
        absent; /* segment that the oldest one names and that is not there (trimmed), 0: none */
};

/* Lists, opens and scans. Damage is in the result; only the folder's own errors fail. A segment that
 * is removed meanwhile, as a shard that is running does, is as one that was not there. */
int sfc_log_chain_read(struct sfc_folder *folder, struct sfc_log_chain *out, struct sfc_error *err);
void sfc_log_chain_free(struct sfc_log_chain *chain);
/* The newest chained file, NULL: none. */
const struct sfc_log_file *sfc_log_chain_newest(const struct sfc_log_chain *chain);
/* "log-00000003.sfl: byte 4096: why" of the first bad place that is (or isn't) proven; false: none.
 */
bool sfc_log_chain_bad(const struct sfc_log_chain *chain, bool proven, char *out, size_t size);

#endif
