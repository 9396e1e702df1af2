/* Any bytes as a list of dense blocks (blocks-*.sfb). Bit 0 of the first byte: the checksum at the
 * end is made right, so that the fuzzer gets behind it. What is taken ascends, and its own encoding
 * is those bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/digest.h"
#include "server/durable/dense_list.h"
#include "server/durable/log_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct sfc_run_identity RUN = {.run_id = 7, .nonce = 9};

static void must(bool condition)
{
    if (!condition) {
        abort();
    }
}

static void repair(uint8_t *bytes, size_t size)
{
    struct sfc_writer w;
    sfc_writer_init(&w, bytes + size - 8, 8);
    sfc_write_u64(&w, sfc_digest64(bytes, size - 8));
}

static void check_taken(const struct sfc_dense_list *list, const uint8_t *bytes, size_t size)
{
    uint8_t *again;
    size_t length;
    for (size_t i = 1; i < list->count; i++) {
        must(list->blocks[i - 1] < list->blocks[i]);
    }
    must(list->digest == sfc_log_blocks_digest(list->blocks, list->count));
    must(sfc_dense_list_encode(&RUN, list->blocks, list->count, &again, &length, NULL) == SFC_OK);
    must(length == size && memcmp(again, bytes, size) == 0);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_dense_list list = {0};
    struct sfc_error err = {0};
    if (size == 0) {
        return 0;
    }
    uint8_t *bytes = malloc(size);
    must(bytes != NULL);
    memcpy(bytes, data + 1, --size);
    if ((data[0] & 1) != 0 && size >= 8) {
        repair(bytes, size);
    }
    int code = sfc_dense_list_decode(bytes, size, &RUN, &list, &err);
    if (code == SFC_OK) {
        check_taken(&list, bytes, size);
    }
    must(code == SFC_OK || err.text[0] != '\0');
    free(list.blocks);
    free(bytes);
    return 0;
}
