/* Images per second of a backbone's training pass (forward + backward) on lanes: one thread each.
 *
 *   bench_backbone [BACKBONE [BATCH [DIM [LANES [PASSES]]]]]     default: tiny 32 128 1 20
 *
 * Prints one JSON line; the rate is from the median pass of the slowest lane. DNNL_VERBOSE=1 shows
 * what oneDNN chose and its times. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/model/model.h"

#define LANE_LIMIT 256

struct job {
    const struct sfc_model *model;
    const float *params;
    struct sfc_model_input input;
    uint32_t batch, dim, passes;
    double forward, backward; /* medians, seconds */
    uint64_t memory;
    int rc;
    struct sfc_error err;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

/* Roughly normal: the sum of 12 uniform numbers. */
static float noise(uint64_t *state)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        sum += (double)next(state) / 2147483648.0;
    }
    return (float)sum;
}

static float *fill(size_t count, double mean, double std, uint64_t seed)
{
    float *x = malloc(count * sizeof *x);
    for (size_t i = 0; x != NULL && i < count; i++) {
        x[i] = (float)(mean + std * (double)noise(&seed));
    }
    return x;
}

static float *initial_params(const struct sfc_model *model)
{
    float *params = malloc(sfc_model_size(model) * sizeof *params);
    size_t count;
    const struct sfc_param *table = sfc_model_params(model, &count);
    uint64_t seed = 1;
    for (size_t i = 0; params != NULL && i < count; i++) {
        for (uint64_t k = 0; k < table[i].length; k++) {
            params[table[i].offset + k] =
                (float)(table[i].init_mean + table[i].init_std * (double)noise(&seed));
        }
    }
    return params;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times, size_t count)
{
    qsort(times, count, sizeof *times, by_value);
    return times[count / 2];
}

static int time_passes(struct job *job, struct sfc_lane *lane, const float *images, float *features,
                       const float *dfeatures, float *gradient)
{
    double *times = calloc(2 * (size_t)job->passes, sizeof *times);
    if (times == NULL) {
        return sfc_fail(&job->err, SFC_ENOMEM, "times");
    }
    int rc = SFC_OK;
    for (uint32_t i = 0; i < job->passes + 2 && rc == SFC_OK; i++) { /* two to warm up */
        double start = now();
        rc = sfc_lane_forward(lane, job->params, images, features, &job->err);
        double middle = now();
        if (rc == SFC_OK) {
            rc = sfc_lane_backward(lane, dfeatures, gradient, &job->err);
        }
        if (i >= 2) {
            times[i - 2] = middle - start;
            times[job->passes + i - 2] = now() - middle;
        }
    }
    job->forward = median(times, job->passes);
    job->backward = median(times + job->passes, job->passes);
    free(times);
    return rc;
}

static void *run(void *arg)
{
    struct job *job = arg;
    size_t image = (size_t)job->input.width * job->input.height * job->input.channels;
    float *images = fill(job->batch * image, 1.0, 0.5, 2);
    float *dfeatures = fill((size_t)job->batch * job->dim, 0.0, 0.01, 3);
    float *features = malloc((size_t)job->batch * job->dim * sizeof *features);
    float *gradient = malloc(sfc_model_size(job->model) * sizeof *gradient);
    struct sfc_lane *lane = NULL;
    job->rc = SFC_ENOMEM;
    if (images != NULL && dfeatures != NULL && features != NULL && gradient != NULL) {
        job->rc = sfc_lane_new(sfc_lane_device_cpu(), job->model, job->batch, &lane, &job->err);
    }
    if (job->rc == SFC_OK) {
        job->memory = sfc_lane_memory(lane);
        job->rc = time_passes(job, lane, images, features, dfeatures, gradient);
    }
    sfc_lane_free(lane);
    free(gradient);
    free(features);
    free(dfeatures);
    free(images);
    return NULL;
}

static int report(const char *name, const struct job *jobs, unsigned lanes)
{
    double forward = 0, backward = 0;
    for (unsigned i = 0; i < lanes; i++) {
        if (jobs[i].rc != SFC_OK) {
            fprintf(stderr, "bench_backbone: %s\n", jobs[i].err.text);
            return 1;
        }
        if (jobs[i].forward + jobs[i].backward > forward + backward) {
            forward = jobs[i].forward;
            backward = jobs[i].backward;
        }
    }
    double rate = jobs[0].batch / (forward + backward);
    printf("{\"backbone\":\"%s\",\"batch\":%u,\"dim\":%u,\"lanes\":%u,\"parameters\":%llu,"
           "\"forward_ms\":%.3f,\"backward_ms\":%.3f,\"images_per_s_per_lane\":%.1f,"
           "\"images_per_s\":%.1f,\"lane_bytes\":%llu}\n",
           name, jobs[0].batch, jobs[0].dim, lanes,
           (unsigned long long)sfc_model_size(jobs[0].model), forward * 1e3, backward * 1e3, rate,
           rate * lanes, (unsigned long long)jobs[0].memory);
    return 0;
}

static int run_lanes(const char *name, struct job job, unsigned lanes)
{
    static struct job jobs[LANE_LIMIT];
    pthread_t threads[LANE_LIMIT];
    unsigned started = 0;
    for (; started < lanes; started++) {
        jobs[started] = job;
        if (pthread_create(&threads[started], NULL, run, &jobs[started]) != 0) {
            break;
        }
    }
    for (unsigned i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
    if (started < lanes) {
        fprintf(stderr, "bench_backbone: cannot start thread %u\n", started);
        return 1;
    }
    return report(name, jobs, lanes);
}

static unsigned number(int argc, char **argv, int i, unsigned fallback)
{
    return argc > i ? (unsigned)strtoul(argv[i], NULL, 10) : fallback;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "tiny";
    unsigned lanes = number(argc, argv, 4, 1);
    struct sfc_model_input input = {32, 32, 1};
    if (strcmp(name, "tiny") != 0) {
        input = (struct sfc_model_input){112, 112, 3};
    }
    struct job job = {.input = input,
                      .batch = number(argc, argv, 2, 32),
                      .dim = number(argc, argv, 3, 128),
                      .passes = number(argc, argv, 5, 20)};
    if (lanes == 0 || lanes > LANE_LIMIT || job.passes == 0) {
        fprintf(stderr, "usage: bench_backbone [BACKBONE [BATCH [DIM [LANES [PASSES]]]]]\n");
        return 2;
    }
    struct sfc_error err;
    struct sfc_model *model = NULL;
    if (sfc_model_new(name, input, job.dim, &model, &err) != SFC_OK) {
        fprintf(stderr, "bench_backbone: %s\n", err.text);
        return 2;
    }
    float *params = initial_params(model);
    job.model = model;
    job.params = params;
    int rc = params == NULL ? 1 : run_lanes(name, job, lanes);
    free(params);
    sfc_model_free(model);
    return rc;
}
