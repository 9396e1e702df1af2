#include "kernels/bench_head_dump.h"

#include <stdio.h>
#include <stdlib.h>

#define DX_UNIT 0x1p-44

static const char *const number_formats[] = {"f32", "bf16"};
static const char *const roundings[] = {"stochastic", "nearest"};
static const char *const momentum_modes[] = {"sampled", "dense"};
static const char *const optimizers[] = {"sgd", "adamw"};

/* A file NAME or STEP.NAME that is being written; errors are kept until it is closed. */
struct sink {
    FILE *file;
    char path[4096];
};

static int sink_open(struct sink *sink, const struct sfc_bench_dump *dump, uint64_t step,
                     const char *name, struct sfc_error *err)
{
    int n = step ? snprintf(sink->path, sizeof sink->path, "%s/%llu.%s", dump->directory,
                            (unsigned long long)step, name)
                 : snprintf(sink->path, sizeof sink->path, "%s/%s", dump->directory, name);
    if (n < 0 || (size_t)n >= sizeof sink->path)
        return sfc_fail(err, SFC_EINVAL, "dump: the name of the directory is too long");
    sink->file = fopen(sink->path, "wb");
    return sink->file ? SFC_OK : sfc_fail_errno(err, "dump: %s", sink->path);
}

static int sink_close(struct sink *sink, struct sfc_error *err)
{
    bool failed = ferror(sink->file) != 0;
    if (fclose(sink->file) || failed)
        return sfc_fail_errno(err, "dump: %s", sink->path);
    return SFC_OK;
}

static int write_array(const struct sfc_bench_dump *dump, uint64_t step, const char *name,
                       const void *data, size_t size, size_t count, struct sfc_error *err)
{
    struct sink sink;
    int rc = sink_open(&sink, dump, step, name, err);
    if (rc)
        return rc;
    fwrite(data, size, count, sink.file);
    return sink_close(&sink, err);
}

static int write_config(const struct sfc_bench_dump *dump, struct sfc_error *err)
{
    const struct sfc_head_config *c = dump->config;
    struct sink sink;
    int rc = sink_open(&sink, dump, 0, "head.json", err);
    if (rc)
        return rc;
    fprintf(sink.file,
            "{\"classes\": %llu, \"dim\": %u, \"batch\": %u, \"steps\": %d, \"scale\": %.17g, "
            "\"margin\": [%.17g, %.17g, %.17g], \"rate\": %.17g, ",
            (unsigned long long)c->classes, c->dim, c->batch, SFC_BENCH_DUMP_STEPS, c->scale,
            c->margin_m1, c->margin_m2, c->margin_m3, dump->rate);
    fprintf(sink.file,
            "\"optimizer\": \"%s\", \"momentum_mode\": \"%s\", \"momentum\": %.17g, "
            "\"beta1\": %.17g, \"beta2\": %.17g, \"epsilon\": %.17g, \"weight_decay\": %.17g, "
            "\"dtype\": \"%s\", \"gemm\": \"%s\", \"rounding\": \"%s\"}\n",
            optimizers[c->optimizer], momentum_modes[c->momentum_mode], c->momentum, c->beta1,
            c->beta2, c->epsilon, c->weight_decay, number_formats[c->dtype],
            number_formats[c->gemm], roundings[c->rounding]);
    return sink_close(&sink, err);
}

/* Rows of the block, one after another through `row`; classes NULL: its first n. */
static int write_rows(const struct sfc_bench_dump *dump, uint64_t block, enum sfc_block_part part,
                      const uint64_t *classes, size_t n, float *row, FILE *file,
                      struct sfc_error *err)
{
    uint64_t dim = dump->config->dim, first = block * dump->config->block_size;
    int rc = SFC_OK;
    for (size_t i = 0; !rc && i < n; i++) {
        uint64_t at = classes ? classes[i] - first : i;
        rc = sfc_head_read(dump->head, block, part, at * dim, dim, row, err);
        fwrite(row, sizeof *row, dim, file);
    }
    return rc;
}

/* The part of all rows, or of the sampled ones. */
static int write_part(const struct sfc_bench_dump *dump, uint64_t step, const char *name,
                      enum sfc_block_part part, bool all, struct sfc_error *err)
{
    const struct sfc_head_config *c = dump->config;
    uint64_t blocks = sfc_head_block_count(c);
    struct sink sink;
    float *row = calloc(c->dim, sizeof *row);
    if (!row)
        return sfc_fail(err, SFC_ENOMEM, "dump: out of memory");
    int rc = sink_open(&sink, dump, step, name, err);
    if (rc) {
        free(row);
        return rc;
    }
    for (uint64_t block = 0, at = 0; !rc && block < blocks; block++) {
        uint64_t rows = sfc_head_block_rows(c, block), end = block * c->block_size + rows, n = 0;
        while (!all && at + n < dump->sampled && dump->sample[at + n] < end)
            n++;
        rc = write_rows(dump, block, part, all ? NULL : dump->sample + at, all ? rows : n, row,
                        sink.file, err);
        at += n;
    }
    free(row);
    struct sfc_error late;
    int closed = sink_close(&sink, rc ? &late : err);
    return rc ? rc : closed;
}

int sfc_bench_dump_start(const struct sfc_bench_dump *dump, struct sfc_error *err)
{
    int rc = write_config(dump, err);
    return rc ? rc : write_part(dump, 0, "w.f32", SFC_PART_VALUES, true, err);
}

static int take_sample(struct sfc_bench_dump *dump, struct sfc_error *err)
{
    const struct sfc_head_config *c = dump->config;
    uint64_t blocks = sfc_head_block_count(c);
    dump->sampled = 0;
    for (uint64_t block = 0; block < blocks; block++) {
        const uint32_t *rows;
        uint32_t count;
        int rc = sfc_head_sample(dump->head, block, &rows, &count, err);
        if (rc)
            return rc;
        uint64_t *more = realloc(dump->sample, (dump->sampled + count + 1) * sizeof *more);
        if (!more)
            return sfc_fail(err, SFC_ENOMEM, "dump: out of memory for the sample");
        dump->sample = more;
        for (uint32_t i = 0; i < count; i++)
            dump->sample[dump->sampled++] = block * c->block_size + rows[i];
    }
    return SFC_OK;
}

static int write_dx(const struct sfc_bench_dump *dump, uint64_t step, struct sfc_error *err)
{
    size_t n = (size_t)dump->config->batch * dump->config->dim;
    double *dx = calloc(n, sizeof *dx);
    if (!dx)
        return sfc_fail(err, SFC_ENOMEM, "dump: out of memory");
    for (size_t i = 0; i < n; i++)
        dx[i] = (double)dump->dx[i] * DX_UNIT;
    int rc = write_array(dump, step, "dx.f64", dx, sizeof *dx, n, err);
    free(dx);
    return rc;
}

int sfc_bench_dump_answers(struct sfc_bench_dump *dump, uint64_t step, struct sfc_error *err)
{
    size_t batch = dump->config->batch, numbers = batch * dump->config->dim;
    int rc = take_sample(dump, err);
    if (!rc)
        rc = write_array(dump, step, "sample.u64", dump->sample, sizeof *dump->sample,
                         dump->sampled, err);
    if (!rc)
        rc = write_array(dump, step, "labels.u64", dump->labels, sizeof *dump->labels, batch, err);
    if (!rc)
        rc = write_array(dump, step, "features.f32", dump->features, sizeof *dump->features,
                         numbers, err);
    if (!rc)
        rc = write_array(dump, step, "lse.f64", dump->lse, sizeof *dump->lse, batch, err);
    if (!rc)
        rc = write_array(dump, step, "target_logit.f32", dump->target_logit,
                         sizeof *dump->target_logit, batch, err);
    return rc ? rc : write_dx(dump, step, err);
}

int sfc_bench_dump_rows(const struct sfc_bench_dump *dump, uint64_t step, struct sfc_error *err)
{
    int rc = write_part(dump, step, "w.f32", SFC_PART_VALUES, false, err);
    if (!rc)
        rc = write_part(dump, step, "m.f32", SFC_PART_MOMENTUM, false, err);
    if (!rc && dump->config->optimizer == SFC_OPTIMIZER_ADAMW)
        rc = write_part(dump, step, "v.f32", SFC_PART_SECOND_MOMENT, false, err);
    return rc;
}

void sfc_bench_dump_close(struct sfc_bench_dump *dump)
{
    free(dump->sample);
}
