/* shardfc rank: how well the class centres of a synthetic run know the hidden directions that its
 * features are made of. For each of some classes with samples, all candidates (those classes and a
 * sample of the others) are ranked by their cosine to the class's hidden direction; rank 1 means
 * that its own centre is nearest. The run stands still while its rows are read. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/lag.h"
#include "proto/limits.h"
#include "server/ctl/checkpoint.h"
#include "server/ctl/hold.h"
#include "worker/synthetic.h"

#define MAX_QUERIES 4096

struct rank_options {
    const char *scheduler;
    struct sfc_security security;
    uint64_t queries, others;
    bool json;
};

#define AT(field) offsetof(struct rank_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "queries",
     .type = SFC_OPTION_U64,
     .offset = AT(queries),
     .min = 1,
     .max = MAX_QUERIES,
     .fallback = "512",
     .help = "classes with samples to rank, spread evenly; at most all of them"},
    {.name = "others",
     .type = SFC_OPTION_U64,
     .offset = AT(others),
     .max = SFC_LIMIT_CLASSES,
     .fallback = "100000",
     .help = "other classes to rank them among, spread evenly over the blocks"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc rank",
    .summary = "Ranks the true class of a synthetic run's hidden directions among its class "
               "centres as they are now. The run stands still while they are read.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

struct ranking {
    struct sfc_hold hold;
    struct sfc_synthetic set;
    uint32_t block_size, dim;
    bool dense;          /* momentum mode: rows are caught up with the step of the hold */
    struct sfc_lag *lag; /* [step + 1], mode dense */
    uint64_t step;
    size_t n;                      /* queries */
    uint64_t *classes;             /* [n] ascending */
    float *directions;             /* [dim, n] unit columns */
    float *own;                    /* [n, dim] the queries' class centres */
    float *true_cosine;            /* [n] */
    float *cosine;                 /* [n] of one candidate */
    uint64_t *above;               /* [n] candidates nearer than the true class */
    uint64_t candidates;           /* seen */
    uint64_t run_rows;             /* rows of the longest run of others */
    float *rows, *momentum, *last; /* [run_rows, dim], the same, [run_rows] */
};

static void ranking_free(struct ranking *r)
{
    free(r->lag);
    free(r->classes);
    free(r->directions);
    free(r->own);
    free(r->true_cosine);
    free(r->cosine);
    free(r->above);
    free(r->rows);
    free(r->momentum);
    free(r->last);
}

/* ---- reading class centres */

static int read_history(struct ranking *r, const Shardfc__V1__RunConfig *config,
                        struct sfc_error *err)
{
    float *rates = malloc((size_t)(r->step + 1) * sizeof *rates);
    r->lag = malloc((size_t)(r->step + 1) * sizeof *r->lag);
    double momentum = config->momentum, weight_decay = config->weight_decay;
    int code = rates == NULL || r->lag == NULL
                   ? sfc_fail(err, SFC_ENOMEM, "out of memory for the history of %" PRIu64 " steps",
                              r->step)
                   : sfc_hold_read(&r->hold, SHARDFC__V1__BLOCK_KIND__HISTORY, 0,
                                   SHARDFC__V1__BLOCK_PART__VALUES, 0, r->step, rates, err);
    if (code == SFC_OK) {
        sfc_lag_table(rates, momentum, weight_decay, 0, r->step, r->lag);
    }
    free(rates);
    return code;
}

static int catch_up(struct ranking *r, uint64_t block, uint64_t first, uint64_t count, float *rows,
                    struct sfc_error *err)
{
    const Shardfc__V1__BlockKind kind = SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK;
    int code = sfc_hold_read(&r->hold, kind, block, SHARDFC__V1__BLOCK_PART__MOMENTUM,
                             first * r->dim, count * r->dim, r->momentum, err);
    if (code == SFC_OK) {
        code = sfc_hold_read(&r->hold, kind, block, SHARDFC__V1__BLOCK_PART__LAST_STEP, first,
                             count, r->last, err);
    }
    for (uint64_t i = 0; i < count && code == SFC_OK; i++) {
        if (!(r->last[i] >= 0 && r->last[i] <= (float)r->step)) {
            return sfc_fail(err, SFC_ECORRUPT, "a row of block %" PRIu64 " is of step %g", block,
                            (double)r->last[i]);
        }
        sfc_lag_apply(&r->lag[(uint64_t)r->last[i]], rows + i * r->dim, r->momentum + i * r->dim,
                      r->dim);
    }
    return code;
}

/* Centres of classes [first, first + count), all of one block, as they are at the hold's step. */
static int read_classes(struct ranking *r, uint64_t first, uint64_t count, float *rows,
                        struct sfc_error *err)
{
    uint64_t block = first / r->block_size, row = first % r->block_size;
    int code =
        sfc_hold_read(&r->hold, SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK, block,
                      SHARDFC__V1__BLOCK_PART__VALUES, row * r->dim, count * r->dim, rows, err);
    return code == SFC_OK && r->dense ? catch_up(r, block, row, count, rows, err) : code;
}

/* ---- ranks */

static void cosines(struct ranking *r, const float *row)
{
    double square = 0;
    for (uint32_t k = 0; k < r->dim; k++) {
        square += (double)row[k] * (double)row[k];
    }
    float inverse = square > 0 ? (float)(1 / sqrt(square)) : 0;
    memset(r->cosine, 0, r->n * sizeof *r->cosine);
    for (uint32_t k = 0; k < r->dim; k++) {
        float w = row[k] * inverse;
        const float *direction = r->directions + (size_t)k * r->n;
        for (size_t j = 0; j < r->n; j++) {
            r->cosine[j] += w * direction[j];
        }
    }
}

static void count_candidate(struct ranking *r, const float *row)
{
    cosines(r, row);
    for (size_t j = 0; j < r->n; j++) {
        r->above[j] += r->cosine[j] > r->true_cosine[j];
    }
    r->candidates++;
}

/* The queries' own centres first: they say what is above. */
static int rank_queries(struct ranking *r, struct sfc_error *err)
{
    for (size_t j = 0; j < r->n; j++) {
        float *row = r->own + j * r->dim;
        int code = read_classes(r, r->classes[j], 1, row, err);
        if (code != SFC_OK) {
            return code;
        }
        cosines(r, row);
        r->true_cosine[j] = r->cosine[j];
    }
    for (size_t j = 0; j < r->n; j++) {
        count_candidate(r, r->own + j * r->dim);
    }
    return SFC_OK;
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The first rows of every block, as many of each as its share asks for. */
static int rank_others(struct ranking *r, uint64_t others, struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "rank", .unit = "blocks"};
    uint64_t blocks = (r->set.classes - 1) / r->block_size + 1;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t first = b * r->block_size, rest = r->set.classes - first;
        uint64_t rows = rest < r->block_size ? rest : r->block_size;
        uint64_t count = (uint64_t)ceil((double)others * (double)rows / (double)r->set.classes);
        count = count < rows ? count : rows;
        int code = read_classes(r, first, count, r->rows, err);
        if (code != SFC_OK) {
            return code;
        }
        for (uint64_t i = 0; i < count; i++) {
            uint64_t id = first + i;
            if (bsearch(&id, r->classes, r->n, sizeof id, compare_ids) == NULL) {
                count_candidate(r, r->rows + i * r->dim);
            }
        }
        sfc_command_progress(&progress, b + 1, blocks);
    }
    return SFC_OK;
}

/* ---- set-up and report */

static int allocate(struct ranking *r, uint64_t others, struct sfc_error *err)
{
    double share = (double)others / (double)r->set.classes;
    r->run_rows = 1 + (share < 1 ? (uint64_t)ceil(share * r->block_size) : r->block_size);
    size_t rows = (size_t)r->run_rows, dim = r->dim;
    r->classes = calloc(r->n, sizeof *r->classes);
    r->directions = calloc(r->n * dim, sizeof *r->directions);
    r->own = calloc(r->n * dim, sizeof *r->own);
    r->true_cosine = calloc(r->n, sizeof *r->true_cosine);
    r->cosine = calloc(r->n, sizeof *r->cosine);
    r->above = calloc(r->n, sizeof *r->above);
    r->rows = calloc(rows * dim, sizeof *r->rows);
    r->momentum = calloc(rows * dim, sizeof *r->momentum);
    r->last = calloc(rows, sizeof *r->last);
    return r->classes && r->directions && r->own && r->true_cosine && r->cosine && r->above &&
                   r->rows && r->momentum && r->last
               ? SFC_OK
               : sfc_fail(err, SFC_ENOMEM, "out of memory for %zu queries", r->n);
}

static int make_queries(struct ranking *r, uint64_t known, struct sfc_error *err)
{
    float *direction = malloc(r->dim * sizeof *direction);
    if (direction == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a direction");
    }
    for (size_t j = 0; j < r->n; j++) {
        double square = 0;
        r->classes[j] = sfc_synthetic_label(&r->set, known * j / r->n);
        sfc_synthetic_direction(&r->set, r->classes[j], direction);
        for (uint32_t k = 0; k < r->dim; k++) {
            square += (double)direction[k] * (double)direction[k];
        }
        for (uint32_t k = 0; k < r->dim; k++) {
            r->directions[k * r->n + j] = (float)(direction[k] / sqrt(square));
        }
    }
    free(direction);
    return SFC_OK;
}

static int take_config(struct ranking *r, const struct rank_options *o, struct sfc_error *err)
{
    const Shardfc__V1__HoldReply *held = sfc_hold_reply(&r->hold);
    const Shardfc__V1__RunConfig *c = held->config;
    if (c->data == NULL || c->data->kind != SHARDFC__V1__DATA_SET__KIND__SYNTHETIC) {
        return sfc_fail(err, SFC_EINVAL, "run %s is not synthetic: nobody knows its directions",
                        c->name);
    }
    r->set = (struct sfc_synthetic){
        .seed = c->seed, .classes = c->classes, .hot_classes = c->data->hot_classes, .dim = c->dim};
    r->block_size = c->block_size;
    r->dim = c->dim;
    r->step = held->step;
    r->dense = sfc_config_is_dense(c);
    uint64_t known = c->data->hot_classes > 0 ? c->data->hot_classes : c->classes;
    size_t growths = held->map->n_growths;
    uint64_t samples = growths > 0 ? held->map->growths[growths - 1]->samples : c->data->samples;
    if (samples < known) { /* sample s is of class s mod known */
        known = samples;
    }
    r->n = (size_t)(o->queries < known ? o->queries : known);
    int code = allocate(r, o->others, err);
    if (code == SFC_OK) {
        code = make_queries(r, known, err);
    }
    return code == SFC_OK && r->dense ? read_history(r, c, err) : code;
}

static int rank(struct ranking *r, const struct rank_options *o, struct sfc_cluster *cluster,
                struct sfc_error *err)
{
    int code = sfc_hold_acquire(&r->hold, cluster, 0, err);
    if (code == SFC_OK) {
        code = take_config(r, o, err);
    }
    if (code == SFC_OK) {
        code = rank_queries(r, err);
    }
    if (code == SFC_OK && o->others > 0) {
        code = rank_others(r, o->others, err);
    }
    sfc_hold_release(&r->hold);
    return code;
}

static void report(struct ranking *r, const struct rank_options *o)
{
    double ranks = 0, cosine = 0, first = 0, n = (double)r->n;
    for (size_t j = 0; j < r->n; j++) {
        ranks += 1 + (double)r->above[j];
        cosine += (double)r->true_cosine[j];
        first += r->above[j] == 0;
    }
    qsort(r->above, r->n, sizeof *r->above, compare_ids);
    uint64_t median = 1 + r->above[(r->n - 1) / 2];
    if (o->json) {
        sfc_command_json(json_pack(
            "{s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:f}", "step", (json_int_t)r->step, "classes",
            (json_int_t)r->set.classes, "queries", (json_int_t)r->n, "candidates",
            (json_int_t)r->candidates, "rank_mean", ranks / n, "rank_median", (json_int_t)median,
            "rank_first", first / n, "cosine_mean", cosine / n));
        return;
    }
    printf("step %" PRIu64 ": %zu classes ranked among %" PRIu64 " of %" PRIu64
           ": mean rank %.1f, median %" PRIu64 ", first in %.1f %%; mean cosine %.4f\n",
           r->step, r->n, r->candidates, r->set.classes, ranks / n, median, 100 * first / n,
           cosine / n);
}

int sfc_cmd_rank(int argc, char **argv)
{
    struct rank_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct ranking r = {0};
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK) {
        code = rank(&r, &o, cluster, &err);
    }
    if (code == SFC_OK) {
        report(&r, &o);
    }
    ranking_free(&r);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("rank", &err);
}
