/* Any bytes as manifest.json of a checkpoint that is whole otherwise. Bit 0 of the first byte: the
 * checksum beside it is that of the bytes, so that the fuzzer gets behind it; else it is that of
 * the real manifest. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/checkpoint_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], dir[80], real_sum[SFC_DIGEST_HEX + 1], state_digest[SFC_DIGEST_HEX];

static void must(int condition)
{
    if (!condition) {
        abort();
    }
}

static void remove_all(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    (void)!system(command);
}

static void read_sum(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/manifest.xxh3", dir);
    FILE *file = fopen(path, "rb");
    must(file != NULL && fread(real_sum, 1, SFC_DIGEST_HEX - 1, file) == SFC_DIGEST_HEX - 1);
    fclose(file);
}

static void set_up(void)
{
    struct checkpoint_rig rig;
    strcpy(folder, "/dev/shm/sfc_fuzz_XXXXXX");
    must(mkdtemp(folder) != NULL);
    atexit(remove_all);
    snprintf(dir, sizeof dir, "%s/c", folder);
    checkpoint_rig_init(&rig);
    must(checkpoint_rig_write(&rig, dir, state_digest, NULL) == SFC_OK);
    read_sum();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_checkpoint *checkpoint = NULL;
    struct sfc_error err;
    char sum[SFC_DIGEST_HEX];
    if (folder[0] == '\0') {
        set_up();
    }
    if (size == 0) {
        return 0;
    }
    checkpoint_rig_digest(data + 1, size - 1, sum);
    checkpoint_rig_file(dir, "manifest.json", data + 1, size - 1);
    checkpoint_rig_file(dir, "manifest.xxh3", (data[0] & 1) != 0 ? sum : real_sum,
                        SFC_DIGEST_HEX - 1);
    int code = sfc_checkpoint_open(dir, &checkpoint, &err);
    /* Whatever opens describes exactly this state, or blocks that are not there (the fuzzer does
     * find the digest that fits a changed one); whatever does not is refused in words. */
    if (code == SFC_OK) {
        int same = strcmp(sfc_checkpoint_digest(checkpoint), state_digest) == 0;
        must(sfc_checkpoint_step(checkpoint) == CHECKPOINT_RIG_STEP);
        code = sfc_checkpoint_verify(checkpoint, &err);
        must((code == SFC_OK) == same);
    }
    must(code == SFC_OK || strstr(err.text, dir) != NULL);
    sfc_checkpoint_close(checkpoint);
    return 0;
}
