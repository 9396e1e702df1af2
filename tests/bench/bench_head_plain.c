/* `shardfc bench head` for a bare machine: the backends cuda and reference, without the libraries
 * that the rest of ShardFC stands on (tests/bench/gpu.sh). */
#include <math.h>
#include <stdio.h>

#include "kernels/bench_head.h"
#include "proto/base/options.h"
#include "server/core/block_map.h"

struct options {
    const char *backend;
    bool json;
    uint64_t classes, batch, micro_batch, dim, steps;
    double sample_rate;
    int dtype, gemm, optimizer, momentum_mode;
};

/* In the order of the enumerations of kernels/backend.h. */
static const char *const dtypes[] = {"f32", "bf16", NULL};
static const char *const optimizers[] = {"sgd", "adamw", NULL};
static const char *const momentum_modes[] = {"sampled", "dense", NULL};

#define AT(field) offsetof(struct options, field)
#define NUMBER(option, field, least, most, given, words)                                           \
    {                                                                                              \
        .name = option, .type = SFC_OPTION_U64, .offset = AT(field), .min = least, .max = most,    \
        .fallback = given, .help = words                                                           \
    }
#define CHOICE(option, field, list, given, words)                                                  \
    {                                                                                              \
        .name = option, .type = SFC_OPTION_ENUM, .offset = AT(field), .choices = list,             \
        .fallback = given, .help = words                                                           \
    }
static const struct sfc_option table[] = {
    {.name = "backend",
     .type = SFC_OPTION_STRING,
     .offset = AT(backend),
     .fallback = "cuda",
     .metavar = "NAME",
     .help = "cuda, cuda:N or reference"},
    NUMBER("classes", classes, 1, 1000000000, "1000000", "identities"),
    {.name = "sample-rate",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(sample_rate),
     .low = 1e-6,
     .high = 1,
     .fallback = "0.1",
     .help = "share of the classes in each step"},
    NUMBER("batch", batch, 1, 65536, "1024", "rows of a step"),
    NUMBER("micro-batch", micro_batch, 0, 65536, "0", "rows of a micro-batch; 0: the whole batch"),
    NUMBER("dim", dim, 1, SFC_MAX_DIM, "512", "width of the embedding"),
    NUMBER("steps", steps, 1, 100000, "15", "timed steps"),
    CHOICE("dtype", dtype, dtypes, "bf16", "storage of the class centres"),
    CHOICE("gemm", gemm, dtypes, "bf16", "number format of the products"),
    CHOICE("optimizer", optimizer, optimizers, "sgd", "what commit updates with"),
    CHOICE("momentum-mode", momentum_mode, momentum_modes, "dense",
           "rows that a step does not sample stand still (sampled) or coast (dense)"),
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = AT(json),
     .help = "print one JSON object",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program program = {
    .name = "bench_head_plain",
    .summary = "Times the class layer's step in this process, as `shardfc bench head` does.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

int main(int argc, char **argv)
{
    struct options o;
    struct sfc_options *parsed;
    struct sfc_bench_head_result result;
    struct sfc_error err;
    int code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (code >= 0)
        return code;
    struct sfc_bench_head_options options = {
        .backend = o.backend,
        .threads = 1,
        .classes = o.classes,
        .sample_ppm = (uint32_t)llround(o.sample_rate * 1e6),
        .batch = (uint32_t)o.batch,
        .micro_batch = (uint32_t)(o.micro_batch ? o.micro_batch : o.batch),
        .dim = (uint32_t)o.dim,
        .block_size = sfc_default_block_size(o.classes),
        .steps = (uint32_t)o.steps,
        .dtype = (enum sfc_dtype)o.dtype,
        .gemm = (enum sfc_dtype)o.gemm,
        .optimizer = (enum sfc_optimizer)o.optimizer,
        .momentum_mode = (enum sfc_momentum_mode)o.momentum_mode,
    };
    code = sfc_bench_head(&options, &result, &err);
    if (code == SFC_OK)
        (o.json ? sfc_bench_head_json : sfc_bench_head_table)(stdout, &options, &result);
    else
        fprintf(stderr, "bench_head_plain: %s\n", err.text);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : 1;
}
