#include "tests/lib/checkpoint_rig.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "server/ctl/checkpoint_common.h"

enum { CLASSES = 25, BLOCK = 10, DIM = 3, DENSE = 50, DENSE_BLOCK = 32, MOST = 128 };

void checkpoint_rig_init(struct checkpoint_rig *rig)
{
    rig->data = (Shardfc__V1__DataSet)SHARDFC__V1__DATA_SET__INIT;
    rig->data.samples = 100;
    rig->segment = (Shardfc__V1__DenseSegment)SHARDFC__V1__DENSE_SEGMENT__INIT;
    rig->shape[0] = DENSE;
    rig->segment.name = "all";
    rig->segment.shape = rig->shape;
    rig->segment.n_shape = 1;
    rig->segments[0] = &rig->segment;
    Shardfc__V1__RunConfig *c = &rig->config;
    *c = (Shardfc__V1__RunConfig)SHARDFC__V1__RUN_CONFIG__INIT;
    c->name = "a";
    c->classes = CLASSES;
    c->block_size = BLOCK;
    c->dim = DIM;
    c->dense_block_size = DENSE_BLOCK;
    c->data = &rig->data;
    c->sample_ppm = 1000000;
    c->scale = 16;
    c->margin_m1 = 1;
    c->margin_grad = "exact";
    c->correction = "none";
    c->dtype = "f32";
    c->gemm = "f32";
    c->rounding = "stochastic";
    c->optimizer = "sgd";
    c->momentum_mode = "dense";
    c->steps = 10;
    c->global_batch = 8;
    c->micro_batch = 4;
    c->backbone = "tiny";
    c->segments = rig->segments;
    c->n_segments = 1;
}

static int write_block(const struct checkpoint_rig *rig, struct sfc_checkpoint_writer *writer,
                       Shardfc__V1__BlockKind kind, uint64_t block, struct sfc_error *err)
{
    float values[MOST];
    int code = sfc_checkpoint_begin(writer, kind, block, err);
    for (int part = 0; part < SFC_CHECKPOINT_PARTS && code == SFC_OK; part++) {
        uint64_t n = sfc_config_part_elements(&rig->config, CHECKPOINT_RIG_STEP, kind, block,
                                              (Shardfc__V1__BlockPart)part);
        for (uint64_t i = 0; i < n; i++) {
            values[i] = (float)(part + 1) / (float)(i + block + 1);
        }
        code = sfc_checkpoint_append(writer, values, n, err);
    }
    return code == SFC_OK ? sfc_checkpoint_end(writer, err) : code;
}

int checkpoint_rig_write(const struct checkpoint_rig *rig, const char *dir,
                         char digest[SFC_DIGEST_HEX], struct sfc_error *err)
{
    struct sfc_checkpoint_writer *writer;
    int code = sfc_checkpoint_create(dir, &rig->config, CHECKPOINT_RIG_STEP, &writer, err);
    if (code != SFC_OK) {
        return code;
    }
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        Shardfc__V1__BlockKind k = (Shardfc__V1__BlockKind)kind;
        for (uint64_t b = 0; b < sfc_config_block_count(&rig->config, k) && code == SFC_OK; b++) {
            code = write_block(rig, writer, k, b, err);
        }
    }
    if (code != SFC_OK) {
        sfc_checkpoint_discard(writer);
        return code;
    }
    return sfc_checkpoint_finish(writer, digest, err);
}

void checkpoint_rig_file(const char *dir, const char *name, const void *data, size_t size)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        abort();
    }
    close(fd);
}

void checkpoint_rig_digest(const void *data, size_t size, char out[SFC_DIGEST_HEX])
{
    sfc_digest_hex(XXH3_128bits(data, size), out);
}
