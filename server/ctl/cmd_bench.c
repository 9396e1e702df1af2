/* shardfc bench, and bench head: the head's step in this process, beside the least that the machine
 * needs. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/bench_head.h"
#include "proto/run_config.h"
#include "server/core/block_map.h"
#include "server/ctl/bench.h"
#include "server/ctl/command.h"

#define MAX_THREADS_PER_PROCESSOR 8

struct bench_options {
    const char *backend, *dump;
    bool json, exact, on_demand;
    uint64_t classes, batch, micro_batch, dim, block_size, steps, threads;
    double sample_rate;
    int dtype, gemm, rounding, momentum_mode, optimizer;
};

/* As `shardfc create` has them. */
static const char *const momentum_modes[] = {"auto", "sampled", "dense", NULL};

#define AT(field) offsetof(struct bench_options, field)
static const struct sfc_option table[] = {
    {.name = "classes",
     .type = SFC_OPTION_U64,
     .offset = AT(classes),
     .min = 1,
     .max = 1000000000,
     .fallback = "1000000",
     .help = "identities"},
    {.name = "sample-rate",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(sample_rate),
     .low = 1e-6,
     .high = 1,
     .fallback = "0.1",
     .help = "share of the classes in each step"},
    {.name = "batch",
     .type = SFC_OPTION_U64,
     .offset = AT(batch),
     .min = 1,
     .max = 65536,
     .fallback = "128",
     .help = "rows of a step"},
    {.name = "micro-batch",
     .type = SFC_OPTION_U64,
     .offset = AT(micro_batch),
     .max = 65536,
     .fallback = "0",
     .help = "rows of a micro-batch; 0: the whole batch. Products take a multiple of 16 rows, so a "
             "smaller micro-batch costs as much as one of 16"},
    {.name = "dim",
     .type = SFC_OPTION_U64,
     .offset = AT(dim),
     .min = 1,
     .max = SFC_MAX_DIM,
     .fallback = "512",
     .help = "width of the embedding"},
    {.name = "block-size",
     .type = SFC_OPTION_U64,
     .offset = AT(block_size),
     .max = 1 << 24,
     .fallback = "0",
     .help = "classes per block; 0: the default of a run"},
    {.name = "steps",
     .type = SFC_OPTION_U64,
     .offset = AT(steps),
     .min = 1,
     .max = 100000,
     .fallback = "15",
     .help = "timed steps, after three that warm up"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .offset = AT(threads),
     .max = 1024,
     .fallback = "0",
     .help = "compute threads, at most 8 per processor; 0: one per processor"},
    {.name = "backend",
     .type = SFC_OPTION_STRING,
     .offset = AT(backend),
     .fallback = "cpu",
     .metavar = "NAME",
     .help = "cpu, reference, cuda, or cuda:N for device N"},
    {.name = "dtype",
     .type = SFC_OPTION_ENUM,
     .offset = AT(dtype),
     .choices = sfc_run_dtypes,
     .fallback = "f32",
     .help = "storage of the class centres"},
    {.name = "gemm",
     .type = SFC_OPTION_ENUM,
     .offset = AT(gemm),
     .choices = sfc_run_dtypes,
     .fallback = "f32",
     .help = "number format of the products"},
    {.name = "rounding",
     .type = SFC_OPTION_ENUM,
     .offset = AT(rounding),
     .choices = sfc_run_roundings,
     .fallback = "stochastic",
     .help = "of bf16 storage"},
    {.name = "optimizer",
     .type = SFC_OPTION_ENUM,
     .offset = AT(optimizer),
     .choices = sfc_run_optimizers,
     .fallback = "sgd",
     .help = "what commit updates with"},
    {.name = "momentum-mode",
     .type = SFC_OPTION_ENUM,
     .offset = AT(momentum_mode),
     .choices = momentum_modes,
     .fallback = "auto",
     .help = "rows that a step does not sample stand still (sampled) or coast (dense); auto, as in "
             "a run: dense with sgd, sampled with adamw"},
    {.name = "exact",
     .type = SFC_OPTION_BOOL,
     .offset = AT(exact),
     .help = "also time the exact sums alone (backend cpu)"},
    {.name = "on-demand",
     .type = SFC_OPTION_BOOL,
     .offset = AT(on_demand),
     .help =
         "instead of --steps: read numbers of steps from standard input, one a line, do so many "
         "and print their times as a line of JSON; the report comes after the last line"},
    {.name = "dump",
     .type = SFC_OPTION_STRING,
     .offset = AT(dump),
     .min = 1,
     .metavar = "DIR",
     .help = "write the first W and all that the first two steps took and gave to files in DIR "
             "(kernels/bench_head_dump.h lists them); W alone takes 4 bytes for each number"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc bench head",
    .summary =
        "Times the class layer's step (sample, logits, gradient, commit) in this process, and in "
        "the same process, just before and just after, the floor: three matrix products at the "
        "speed "
        "that the library has on these shapes plus the bytes at streaming speed. Measuring the "
        "floor takes 0.5 GB of memory, which `peak memory` leaves out.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

static enum sfc_momentum_mode momentum_mode(const struct bench_options *o)
{
    if (o->momentum_mode > 0) {
        return (enum sfc_momentum_mode)sfc_run_choice(sfc_run_momentum_modes,
                                                      momentum_modes[o->momentum_mode]);
    }
    return o->optimizer == SFC_OPTIMIZER_SGD ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
}

int sfc_bench_threads(uint64_t asked, unsigned *out, struct sfc_error *err)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t processors = online > 0 ? (uint64_t)online : 1;
    if (asked > MAX_THREADS_PER_PROCESSOR * processors) {
        return sfc_fail(err, SFC_EINVAL,
                        "--threads %llu: this machine has %llu processors, allowed are %d threads "
                        "for each",
                        (unsigned long long)asked, (unsigned long long)processors,
                        MAX_THREADS_PER_PROCESSOR);
    }
    *out = (unsigned)(asked > 0 ? asked : processors);
    return SFC_OK;
}

static int run(const struct bench_options *o, struct sfc_error *err)
{
    if (o->micro_batch > 0 && o->batch % o->micro_batch != 0) {
        return sfc_fail(err, SFC_EINVAL, "--micro-batch does not divide --batch");
    }
    unsigned threads = 0;
    int code = sfc_bench_threads(o->threads, &threads, err);
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_bench_head_options options = {
        .backend = o->backend,
        .threads = threads,
        .classes = o->classes,
        .sample_ppm = (uint32_t)llround(o->sample_rate * 1e6),
        .batch = (uint32_t)o->batch,
        .micro_batch = (uint32_t)(o->micro_batch > 0 ? o->micro_batch : o->batch),
        .dim = (uint32_t)o->dim,
        .block_size =
            o->block_size > 0 ? (uint32_t)o->block_size : sfc_default_block_size(o->classes),
        .steps = (uint32_t)o->steps,
        .dtype = (enum sfc_dtype)o->dtype,
        .gemm = (enum sfc_dtype)o->gemm,
        .rounding = (enum sfc_rounding)o->rounding,
        .momentum_mode = momentum_mode(o),
        .optimizer = (enum sfc_optimizer)o->optimizer,
        .exact = o->exact,
        .dump = o->dump,
        .requests = o->on_demand ? stdin : NULL,
        .answers = stdout,
    };
    struct sfc_bench_head_result result;
    code = sfc_bench_head(&options, &result, err);
    if (code == SFC_OK) {
        (o->json ? sfc_bench_head_json : sfc_bench_head_table)(stdout, &options, &result);
    }
    return code;
}

static int head_main(int argc, char **argv)
{
    struct bench_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = run(&o, &err);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("bench head", &err);
}

/* ---- shardfc bench */

static const struct benchmark {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} benchmarks[] = {
    {"head", head_main, "the class layer's step, beside its floor"},
    {"kernels", sfc_bench_kernels_main, "the building blocks of a step, one by one"},
    {"rpc", sfc_bench_rpc_main, "the network layer on loopback, beside plain TCP"},
    {"snapshots", sfc_bench_snapshots_main, "what compressing a shard's snapshots gains and costs"},
};

static void print_help(FILE *file)
{
    fprintf(file, "usage: shardfc bench COMMAND [OPTIONS]\n\n");
    for (size_t i = 0; i < sizeof benchmarks / sizeof *benchmarks; i++) {
        fprintf(file, "  %-10s %s\n", benchmarks[i].name, benchmarks[i].summary);
    }
}

int sfc_cmd_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        puts("shardfc bench " SFC_VERSION);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        print_help(stdout);
        return 0;
    }
    for (size_t i = 0; argc > 1 && strcmp(argv[1], "--help=words") == 0; i++) {
        if (i == sizeof benchmarks / sizeof *benchmarks) {
            return 0;
        }
        puts(benchmarks[i].name);
    }
    for (size_t i = 0; argc > 1 && i < sizeof benchmarks / sizeof *benchmarks; i++) {
        if (strcmp(argv[1], benchmarks[i].name) == 0) {
            return benchmarks[i].run(argc - 1, argv + 1);
        }
    }
    if (argc > 1) {
        fprintf(stderr, "shardfc bench: unknown command '%s'\n", argv[1]);
    }
    print_help(stderr);
    return 2;
}
