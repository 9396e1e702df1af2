/* bench_head [--classes N] [--sample-rate R] [--batch N] [--micro-batch N] [--dim N] [--block-size
 * N]
 * [--threads N] [--steps N] [--backend B] [--exact] [--json] */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bench_head.h"

static const struct option options[] = {
    {"classes", 1, NULL, 'c'},     {"sample-rate", 1, NULL, 'r'}, {"batch", 1, NULL, 'b'},
    {"micro-batch", 1, NULL, 'm'}, {"dim", 1, NULL, 'd'},         {"block-size", 1, NULL, 'k'},
    {"threads", 1, NULL, 't'},     {"steps", 1, NULL, 's'},       {"backend", 1, NULL, 'B'},
    {"exact", 0, NULL, 'x'},       {"json", 0, NULL, 'j'},        {NULL, 0, NULL, 0},
};

static uint64_t number(const char *text, const char *name)
{
    char *end = NULL;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || !*text || value > UINT32_MAX * (uint64_t)256) {
        fprintf(stderr, "bench_head: --%s '%s' is not a number\n", name, text);
        exit(2);
    }
    return value;
}

static uint32_t rate(const char *text)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (*end || !(value > 0 && value <= 1)) {
        fprintf(stderr, "bench_head: --sample-rate '%s' is not in (0, 1]\n", text);
        exit(2);
    }
    return (uint32_t)lround(value * 1e6);
}

int main(int argc, char **argv)
{
    struct sfc_bench_head_options o = {
        .backend = "cpu",
        .threads = 2,
        .classes = 1000000,
        .sample_ppm = 100000,
        .batch = 128,
        .dim = 512,
        .block_size = 8192,
        .steps = 15,
    };
    struct sfc_bench_head_result result;
    struct sfc_error err = {0};
    bool json = false;
    int c, index = 0;
    while ((c = getopt_long(argc, argv, "", options, &index)) != -1) {
        uint64_t n = optarg && c != 'r' && c != 'B' ? number(optarg, options[index].name) : 0;
        switch (c) {
        case 'c':
            o.classes = n;
            break;
        case 'r':
            o.sample_ppm = rate(optarg);
            break;
        case 'b':
            o.batch = (uint32_t)n;
            break;
        case 'm':
            o.micro_batch = (uint32_t)n;
            break;
        case 'd':
            o.dim = (uint32_t)n;
            break;
        case 'k':
            o.block_size = (uint32_t)n;
            break;
        case 't':
            o.threads = (unsigned)n;
            break;
        case 's':
            o.steps = (uint32_t)n;
            break;
        case 'B':
            o.backend = optarg;
            break;
        case 'x':
            o.exact = true;
            break;
        case 'j':
            json = true;
            break;
        default:
            return 2;
        }
    }
    if (!o.micro_batch)
        o.micro_batch = o.batch;
    int rc = sfc_bench_head(&o, &result, &err);
    if (rc) {
        fprintf(stderr, "bench_head: %s\n", err.text);
        return rc == SFC_EINVAL || rc == SFC_EUNSUPPORTED ? 2 : 1;
    }
    if (json)
        sfc_bench_head_json(stdout, &o, &result);
    else
        sfc_bench_head_table(stdout, &o, &result);
    return 0;
}
