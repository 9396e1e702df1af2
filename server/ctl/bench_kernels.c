/* shardfc bench kernels: rates of the CPU backend's building blocks on this machine. */
#include <stdio.h>

#include "kernels/cpu/rates.h"
#include "server/ctl/bench.h"
#include "server/ctl/command.h"

struct kernels_options {
    uint64_t dim, batch, threads;
    bool json;
};

#define AT(field) offsetof(struct kernels_options, field)
static const struct sfc_option table[] = {
    {.name = "dim",
     .type = SFC_OPTION_U64,
     .offset = AT(dim),
     .min = 1,
     .max = SFC_MAX_DIM,
     .fallback = "512",
     .help = "width of the embedding"},
    {.name = "batch",
     .type = SFC_OPTION_U64,
     .offset = AT(batch),
     .min = 1,
     .max = 4096,
     .fallback = "128",
     .help = "rows of a step"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .offset = AT(threads),
     .max = 1024,
     .fallback = "0",
     .help = "compute threads, at most 8 per processor; 0: one per processor"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc bench kernels",
    .summary = "Measures what a step of the class layer is made of, all threads together: matrix "
               "products in the step's shapes, memory (contiguous, and one row of ten in order), "
               "random numbers and rounding, exact sums, exponentials. Best of five repetitions.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

static const char *products_of(const struct sfc_backend *backend)
{
    return sfc_cpu_uses_native_bf16(backend) ? "native" : "f32";
}

static void print_json(const struct kernels_options *o, const struct sfc_backend *backend,
                       unsigned threads, const struct sfc_cpu_rate *rates, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:f}", "name", rates[i].name, "unit",
                                              rates[i].unit, "value", rates[i].value));
    }
    sfc_command_json(json_pack(
        "{s:s, s:b, s:s, s:I, s:I, s:i, s:o}", "numerics", sfc_backend_numerics(backend),
        "native_bf16", (int)sfc_cpu_multiplies_bf16(), "gemm_bf16", products_of(backend), "dim",
        (json_int_t)o->dim, "batch", (json_int_t)o->batch, "threads", (int)threads, "rates", list));
}

static void print_table(const struct kernels_options *o, const struct sfc_backend *backend,
                        unsigned threads, const struct sfc_cpu_rate *rates, size_t count)
{
    printf("dim %llu, batch %llu, %u threads; %s\n", (unsigned long long)o->dim,
           (unsigned long long)o->batch, threads, sfc_backend_numerics(backend));
    for (size_t i = 0; i < count; i++) {
        printf("%-42s %9.2f %s\n", rates[i].what, rates[i].value, rates[i].unit);
    }
    printf("--gemm bf16 (and auto with --dtype bf16) means %s products of bf16 operands here%s\n",
           products_of(backend),
           sfc_cpu_multiplies_bf16() ? "" : "; this CPU has no bf16 instructions");
}

static int run(const struct kernels_options *o, struct sfc_error *err)
{
    struct sfc_cpu_rate rates[SFC_CPU_MAX_RATES];
    struct sfc_backend *backend;
    size_t count = 0;
    unsigned threads = 0;
    int code = sfc_bench_threads(o->threads, &threads, err);
    if (code == SFC_OK) {
        code = sfc_backend_open("cpu", threads, &backend, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_cpu_rates(backend, (uint32_t)o->dim, (uint32_t)o->batch, rates, &count, err);
    if (code == SFC_OK) {
        (o->json ? print_json : print_table)(o, backend, threads, rates, count);
    }
    sfc_backend_close(backend);
    return code;
}

int sfc_bench_kernels_main(int argc, char **argv)
{
    struct kernels_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = run(&o, &err);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("bench kernels", &err);
}
