/* Record, image header and label codecs on arbitrary bytes; what decodes must encode and decode to
 * the same payload. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/recordio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const uint8_t *payload, size_t length)
{
    uint8_t *record = malloc(sfc_record_bound(length)), *again = malloc(sfc_record_bound(length));
    size_t got = 0, span = 0;
    size_t bytes = sfc_record_encode(payload, length, record);
    if (sfc_record_decode(record, bytes, again, &got, &span, NULL) != SFC_OK || got != length ||
        span != bytes || memcmp(again, payload, length) != 0)
        abort();
    free(record);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_image_header header;
    struct sfc_error err;
    uint8_t *payload = malloc(size + 1);
    size_t length = 0, span = 0;
    uint64_t label = 0, end = 0;
    if (sfc_record_decode(data, size, payload, &length, &span, &err) == SFC_OK) {
        if (length > size || span > size)
            abort();
        check_round_trip(payload, length);
        if (sfc_image_header_decode(payload, length, &header, &err) == SFC_OK) {
            if (sfc_image_label(&header, &label, &err) == SFC_OK && label >= SFC_LABEL_LIMIT)
                abort();
            (void)sfc_range_header_values(&header, &label, &end, &err);
        }
    }
    free(payload);
    return 0;
}
