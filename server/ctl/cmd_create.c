/* shardfc create: turns options and the data set into a RunConfig and starts the run. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/run_config.h"
#include "server/core/block_map.h"
#include "server/ctl/command.h"
#include "worker/data/dataset.h"
#include "worker/model/model.h"

#define CREATE_DEADLINE_MS 600000 /* shards initialise their blocks before they answer */
#define DENSE_BLOCK_FLOATS 65536
#define CLASS_INIT_STD     0.01

static const char *const margin_grads[] = {"exact", "identity", NULL};
static const char *const corrections[] = {"none", "logq", NULL};
static const char *const momentum_modes[] = {"auto", "sampled", "dense", NULL};
static const char *const optimizers[] = {"sgd", "adamw", NULL};
static const char *const dtypes[] = {"f32", "bf16", NULL};
static const char *const roundings[] = {"stochastic", "nearest", NULL};
static const char *const gemms[] = {"auto", "f32", "bf16", NULL};

struct create_options {
    const char *scheduler, *run, *data, *margin, *filter, *schedule, *backbone, *augment;
    struct sfc_security security;
    bool json, session, skip_broken, mixed;
    uint64_t classes, samples, hot_classes, dim, global_batch, micro_batch, steps, block_size, seed;
    uint64_t rewind_window, durable_every, mirrors, grace_ms;
    int elastic;
    double sample_rate, scale, momentum, beta1, beta2, epsilon, weight_decay, lr, epochs, clip;
    int margin_grad, correction, momentum_mode, optimizer, dtype, gemm, rounding, log_dense;
};

#define AT(field) offsetof(struct create_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "run",
     .type = SFC_OPTION_STRING,
     .offset = AT(run),
     .min = 1,
     .max = 128,
     .metavar = "NAME",
     .help = "name of the run",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "data",
     .type = SFC_OPTION_STRING,
     .offset = AT(data),
     .metavar = "DIR",
     .help = "data set with train.rec; without it synthetic features are used"},
    {.name = "session",
     .type = SFC_OPTION_BOOL,
     .offset = AT(session),
     .help = "a foreign framework brings labels and features (no workers)"},
    {.name = "classes",
     .type = SFC_OPTION_U64,
     .offset = AT(classes),
     .metavar = "N",
     .help = "identities; default: what the data set holds"},
    {.name = "samples",
     .type = SFC_OPTION_U64,
     .offset = AT(samples),
     .metavar = "N",
     .help = "samples of a synthetic set; default: 10 per identity"},
    {.name = "hot-classes",
     .type = SFC_OPTION_U64,
     .offset = AT(hot_classes),
     .max = SFC_LIMIT_HOT_CLASSES,
     .metavar = "N",
     .help = "all samples of a synthetic set are of N identities spread evenly over the ids; "
             "default: of all identities"},
    {.name = "dim",
     .type = SFC_OPTION_U64,
     .offset = AT(dim),
     .min = 1,
     .max = 8192,
     .fallback = "512",
     .help = "width of the embedding"},
    {.name = "sample-rate",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(sample_rate),
     .low = 1e-6,
     .high = 1,
     .fallback = "0.1",
     .help = "share of the classes in each step"},
    {.name = "margin",
     .type = SFC_OPTION_STRING,
     .offset = AT(margin),
     .fallback = "cosface:0.4",
     .metavar = "KIND",
     .help = "cosface:M, arcface:M or combined:M1,M2,M3"},
    {.name = "margin-grad",
     .type = SFC_OPTION_ENUM,
     .offset = AT(margin_grad),
     .choices = margin_grads,
     .fallback = "exact",
     .help = "derivative of the margin; identity is what insightface's ArcFace does"},
    {.name = "scale",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(scale),
     .low = 0.001,
     .high = SFC_LIMIT_SCALE,
     .fallback = "64",
     .help = "factor of the cosine"},
    {.name = "filter",
     .type = SFC_OPTION_STRING,
     .offset = AT(filter),
     .metavar = "T",
     .help = "negatives with a cosine above T get logit 0 and no gradient"},
    {.name = "correction",
     .type = SFC_OPTION_ENUM,
     .offset = AT(correction),
     .choices = corrections,
     .fallback = "none",
     .help = "correction of logits for sampling"},
    {.name = "optimizer",
     .type = SFC_OPTION_ENUM,
     .offset = AT(optimizer),
     .choices = optimizers,
     .fallback = "sgd",
     .help =
         "optimiser of class layer and backbone; adamw wants other rates (insightface: --lr 1e-3 "
         "--weight-decay 0.1)"},
    {.name = "momentum",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(momentum),
     .low = 0,
     .high = 0.9999,
     .fallback = "0.9",
     .help = "momentum of sgd; refused with adamw"},
    {.name = "beta1",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(beta1),
     .low = 0,
     .high = SFC_LIMIT_BETA1,
     .fallback = "0.9",
     .help = "decay of adamw's first moment; refused with sgd"},
    {.name = "beta2",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(beta2),
     .low = 0,
     .high = SFC_LIMIT_BETA2,
     .fallback = "0.999",
     .help = "decay of adamw's second moment; refused with sgd"},
    {.name = "epsilon",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(epsilon),
     .low = SFC_LIMIT_EPSILON_MIN,
     .high = SFC_LIMIT_EPSILON_MAX,
     .fallback = "1e-8",
     .help = "added to the root of adamw's second moment; refused with sgd"},
    {.name = "momentum-mode",
     .type = SFC_OPTION_ENUM,
     .offset = AT(momentum_mode),
     .choices = momentum_modes,
     .fallback = "auto",
     .help =
         "classes that a step does not sample stand still (sampled), or coast and decay as under "
         "a dense optimiser (dense, sgd only); auto: dense with sgd, sampled with adamw"},
    {.name = "weight-decay",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(weight_decay),
     .low = 0,
     .high = 1,
     .fallback = "5e-4",
     .help = "weight decay (not on batch norm and PReLU); adamw: decoupled, times the rate"},
    {.name = "lr",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(lr),
     .low = 1e-9,
     .high = 1000,
     .fallback = "0.1",
     .help = "learning rate after the warm-up"},
    {.name = "schedule",
     .type = SFC_OPTION_STRING,
     .offset = AT(schedule),
     .metavar = "SPEC",
     .help =
         "poly:WARMUP[:POWER[:END]]: linear warm-up over WARMUP steps, then polynomial decay to "
         "END times the rate; default: a tenth of the steps (at most 1000), power 1, end 0"},
    {.name = "clip",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(clip),
     .low = 0,
     .high = 1e9,
     .fallback = "5",
     .help = "largest norm of the backbone's gradient; 0: no clipping"},
    {.name = "global-batch",
     .type = SFC_OPTION_U64,
     .offset = AT(global_batch),
     .min = 1,
     .max = 65536,
     .fallback = "128",
     .help = "rows of a step"},
    {.name = "micro-batch",
     .type = SFC_OPTION_U64,
     .offset = AT(micro_batch),
     .min = 1,
     .max = 65536,
     .fallback = "32",
     .help = "rows of a micro-batch; divides the global batch"},
    {.name = "steps",
     .type = SFC_OPTION_U64,
     .offset = AT(steps),
     .metavar = "N",
     .help = "length of the run"},
    {.name = "epochs",
     .type = SFC_OPTION_DOUBLE,
     .offset = AT(epochs),
     .low = 0,
     .high = 1e6,
     .metavar = "N",
     .help = "length of the run, instead of --steps"},
    SFC_KEEPING_OPTIONS(AT(durable_every), AT(rewind_window), AT(elastic), AT(mirrors),
                        AT(grace_ms)),
    {.name = "dtype",
     .type = SFC_OPTION_ENUM,
     .offset = AT(dtype),
     .choices = dtypes,
     .fallback = "f32",
     .help = "storage of the class centres and their momentum"},
    {.name = "gemm",
     .type = SFC_OPTION_ENUM,
     .offset = AT(gemm),
     .choices = gemms,
     .fallback = "auto",
     .help = "number format that the products read; auto: that of --dtype"},
    {.name = "rounding",
     .type = SFC_OPTION_ENUM,
     .offset = AT(rounding),
     .choices = roundings,
     .fallback = "stochastic",
     .help = "of bf16 class centres and momentum; nearest, there to compare with, loses updates "
             "that are small against what they change, as late ones are"},
    {.name = "log-dense",
     .type = SFC_OPTION_ENUM,
     .offset = AT(log_dense),
     .choices = dtypes,
     .fallback = "f32",
     .help = "how a step's summed backbone gradient is logged; bf16 halves its bytes and rounds it "
             "to bf16 before the update as well, so that a recovery has the same bits"},
    {.name = "backbone",
     .type = SFC_OPTION_STRING,
     .offset = AT(backbone),
     .metavar = "NAME",
     .help = "tiny, mbf or none; default: what the images ask for"},
    {.name = "augment",
     .type = SFC_OPTION_STRING,
     .offset = AT(augment),
     .fallback = "none",
     .metavar = "SPEC",
     .help = "none or AFFINE,BLUR,NOISE (e.g. 0.12,0.5,0.08)"},
    {.name = "block-size",
     .type = SFC_OPTION_U64,
     .offset = AT(block_size),
     .max = SFC_LIMIT_BLOCK_SIZE,
     .metavar = "N",
     .help =
         "classes per block; default: the power of two at most classes/64, within 1024 and 8192"},
    {.name = "seed",
     .type = SFC_OPTION_U64,
     .offset = AT(seed),
     .fallback = "1",
     .help = "everything random in the run follows from it"},
    {.name = "skip-broken",
     .type = SFC_OPTION_BOOL,
     .offset = AT(skip_broken),
     .help = "broken samples get weight 0 instead of blocking the run"},
    {.name = "mixed",
     .type = SFC_OPTION_BOOL,
     .offset = AT(mixed),
     .help = "allow members whose arithmetic may differ in the last bits"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc create",
    .summary = "Creates a run: places its blocks on the shards that are there and starts it.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* ---- options that are little languages */

/* Splits "a<sep>b<sep>c" into at most `limit` doubles; returns how many, 0 = malformed. */
static unsigned split_numbers(const char *text, char separator, double *out, unsigned limit)
{
    char buffer[256];
    size_t length = strlen(text);
    if (length >= sizeof buffer) {
        return 0;
    }
    memcpy(buffer, text, length + 1);
    unsigned count = 0;
    char *rest = buffer;
    while (rest != NULL) {
        char *word = rest;
        rest = strchr(rest, separator);
        if (rest != NULL) {
            *rest++ = '\0';
        }
        if (count == limit || sfc_parse_double(word, &out[count]) != SFC_OK) {
            return 0;
        }
        count++;
    }
    return count;
}

static int parse_margin(const char *text, Shardfc__V1__RunConfig *config, struct sfc_error *err)
{
    double m[3];
    if (strncmp(text, "cosface:", 8) == 0 && split_numbers(text + 8, ',', m, 1) == 1) {
        config->margin_m1 = 1;
        config->margin_m3 = m[0];
        return SFC_OK;
    }
    if (strncmp(text, "arcface:", 8) == 0 && split_numbers(text + 8, ',', m, 1) == 1) {
        config->margin_m1 = 1;
        config->margin_m2 = m[0];
        return SFC_OK;
    }
    if (strncmp(text, "combined:", 9) == 0 && split_numbers(text + 9, ',', m, 3) == 3) {
        config->margin_m1 = m[0];
        config->margin_m2 = m[1];
        config->margin_m3 = m[2];
        return SFC_OK;
    }
    return sfc_fail(err, SFC_EINVAL,
                    "--margin %s: expected cosface:M, arcface:M or combined:M1,M2,M3", text);
}

static int parse_schedule(const char *text, Shardfc__V1__RunConfig *config, struct sfc_error *err)
{
    config->lr_power = 1;
    config->lr_end = 0;
    if (text == NULL) {
        config->warmup_steps = config->steps / 10 < 1000 ? config->steps / 10 : 1000;
        return SFC_OK;
    }
    double v[3];
    unsigned n = strncmp(text, "poly:", 5) == 0 ? split_numbers(text + 5, ':', v, 3) : 0;
    if (n == 0 || v[0] < 0 || v[0] > 1e15 || floor(v[0]) != v[0]) {
        return sfc_fail(err, SFC_EINVAL, "--schedule %s: expected poly:WARMUP[:POWER[:END]]", text);
    }
    config->warmup_steps = (uint64_t)v[0];
    if (n > 1) {
        config->lr_power = v[1];
    }
    if (n > 2) {
        config->lr_end = v[2];
    }
    return SFC_OK;
}

static int parse_augment(const char *text, Shardfc__V1__Augmentation *out, struct sfc_error *err)
{
    double v[3];
    if (strcmp(text, "none") == 0) {
        return SFC_OK;
    }
    if (split_numbers(text, ',', v, 3) != 3) {
        return sfc_fail(err, SFC_EINVAL, "--augment %s: expected none or AFFINE,BLUR,NOISE", text);
    }
    out->affine = v[0];
    out->blur = v[1];
    out->noise = v[2];
    return SFC_OK;
}

/* ---- the parts of the configuration */

struct built {
    Shardfc__V1__RunConfig config;
    Shardfc__V1__DataSet data;
    Shardfc__V1__Augmentation augmentation;
    Shardfc__V1__DenseSegment *segments;
    Shardfc__V1__DenseSegment **segment_list;
    char digest[33];
    char backbone[64];
    struct sfc_model *model;
};

static int use_records(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    struct sfc_dataset *set;
    int code = sfc_dataset_open(o->data, &set, err);
    if (code != SFC_OK) {
        return code;
    }
    const struct sfc_dataset_info *info = sfc_dataset_info(set);
    memcpy(b->digest, info->digest, sizeof b->digest);
    b->data.kind = SHARDFC__V1__DATA_SET__KIND__RECORDS;
    b->data.digest = b->digest;
    b->data.samples = info->samples;
    b->data.width = info->width;
    b->data.height = info->height;
    b->data.channels = info->channels;
    b->data.flip = info->flip;
    b->data.hot_classes = o->hot_classes; /* refused by the check of the configuration */
    b->config.classes = o->classes > 0 ? o->classes : info->classes;
    if (o->samples > 0) {
        code = sfc_fail(err, SFC_EINVAL, "--samples is for synthetic runs; %s has %" PRIu64,
                        o->data, info->samples);
    } else if (b->config.classes < info->classes) {
        code = sfc_fail(err, SFC_EINVAL, "--classes %" PRIu64 ": %s has labels up to %" PRIu64,
                        o->classes, o->data, info->classes - 1);
    }
    sfc_dataset_close(set);
    return code;
}

static int use_data(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    b->data = (Shardfc__V1__DataSet)SHARDFC__V1__DATA_SET__INIT;
    b->config.data = &b->data;
    if (o->data != NULL && strcmp(o->data, "synthetic") != 0) {
        return o->session ? sfc_fail(err, SFC_EINVAL, "--data and --session exclude each other")
                          : use_records(o, b, err);
    }
    if (o->classes == 0) {
        return sfc_fail(err, SFC_EINVAL, "give --data DIR or --classes N");
    }
    b->config.classes = o->classes;
    b->data.kind =
        o->session ? SHARDFC__V1__DATA_SET__KIND__SESSION : SHARDFC__V1__DATA_SET__KIND__SYNTHETIC;
    b->data.samples = o->samples > 0 ? o->samples : 10 * o->classes;
    b->data.hot_classes = o->hot_classes;
    return SFC_OK;
}

static int use_length(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    if ((o->steps > 0) == (o->epochs > 0)) {
        return sfc_fail(err, SFC_EINVAL, "give either --steps N or --epochs N");
    }
    if (o->global_batch % o->micro_batch != 0) {
        return sfc_fail(err, SFC_EINVAL,
                        "--micro-batch %" PRIu64 " does not divide --global-batch %" PRIu64,
                        o->micro_batch, o->global_batch);
    }
    double rows = o->epochs * (double)b->data.samples;
    b->config.steps = o->steps > 0 ? o->steps : (uint64_t)ceil(rows / (double)o->global_batch);
    return SFC_OK;
}

static const char *default_backbone(const Shardfc__V1__DataSet *data)
{
    if (data->kind != SHARDFC__V1__DATA_SET__KIND__RECORDS) {
        return "none";
    }
    return data->channels == 1 ? "tiny" : "mbf";
}

static void describe_segment(Shardfc__V1__DenseSegment *segment, const struct sfc_param *param)
{
    static const Shardfc__V1__DenseSegment__Role roles[] = {
        [SFC_PARAM_WEIGHT] = SHARDFC__V1__DENSE_SEGMENT__ROLE__WEIGHT,
        [SFC_PARAM_WEIGHT_NO_DECAY] = SHARDFC__V1__DENSE_SEGMENT__ROLE__WEIGHT_NO_DECAY,
        [SFC_PARAM_STATISTIC] = SHARDFC__V1__DENSE_SEGMENT__ROLE__STATISTIC,
    };
    *segment = (Shardfc__V1__DenseSegment)SHARDFC__V1__DENSE_SEGMENT__INIT;
    segment->name = (char *)(uintptr_t)param->name;
    segment->shape = (uint64_t *)(uintptr_t)param->shape;
    segment->n_shape = param->rank;
    segment->role = roles[param->role];
    segment->init_mean = param->init_mean;
    segment->init_std = param->init_std;
}

static int use_backbone(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    const char *name = o->backbone != NULL ? o->backbone : default_backbone(&b->data);
    bool none = strcmp(name, "none") == 0;
    if (strlen(name) >= sizeof b->backbone) {
        return sfc_fail(err, SFC_EINVAL, "--backbone: name too long");
    }
    if (none != (b->data.kind != SHARDFC__V1__DATA_SET__KIND__RECORDS)) {
        return sfc_fail(err, SFC_EINVAL, "--backbone %s: %s", name,
                        none ? "images need a backbone"
                             : "synthetic features and sessions have none");
    }
    memcpy(b->backbone, name, strlen(name) + 1);
    b->config.backbone = b->backbone;
    if (none) {
        return SFC_OK;
    }
    struct sfc_model_input input = {b->data.width, b->data.height, b->data.channels};
    int code = sfc_model_new(name, input, (uint32_t)o->dim, &b->model, err);
    if (code != SFC_OK) {
        return code;
    }
    size_t count;
    const struct sfc_param *params = sfc_model_params(b->model, &count);
    b->segments = calloc(count, sizeof *b->segments);
    b->segment_list = calloc(count, sizeof *b->segment_list);
    if (b->segments == NULL || b->segment_list == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu parameters", count);
    }
    for (size_t i = 0; i < count; i++) {
        describe_segment(&b->segments[i], &params[i]);
        b->segment_list[i] = &b->segments[i];
    }
    b->config.segments = b->segment_list;
    b->config.n_segments = count;
    return SFC_OK;
}

static int use_filter(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    if (o->filter == NULL) {
        return SFC_OK;
    }
    if (sfc_parse_double(o->filter, &b->config.filter) != SFC_OK || b->config.filter > 1) {
        return sfc_fail(err, SFC_EINVAL, "--filter %s: expected a cosine", o->filter);
    }
    b->config.has_filter = true;
    return SFC_OK;
}

/* What the other optimiser has is left out, so that it makes no two runs differ. */
static void use_optimizer(const struct create_options *o, Shardfc__V1__RunConfig *c)
{
    bool sgd = strcmp(optimizers[o->optimizer], "sgd") == 0;
    const char *automatic = sgd ? "dense" : "sampled";
    c->optimizer = (char *)(uintptr_t)optimizers[o->optimizer];
    c->momentum_mode =
        (char *)(uintptr_t)(o->momentum_mode > 0 ? momentum_modes[o->momentum_mode] : automatic);
    if (sgd) {
        c->momentum = o->momentum;
    } else {
        c->beta1 = o->beta1;
        c->beta2 = o->beta2;
        c->epsilon = o->epsilon;
    }
}

static void use_numbers(const struct create_options *o, struct built *b)
{
    Shardfc__V1__RunConfig *c = &b->config;
    c->name = (char *)(uintptr_t)o->run;
    c->seed = o->seed;
    c->dim = (uint32_t)o->dim;
    c->sample_ppm = (uint32_t)llround(o->sample_rate * 1e6);
    c->scale = o->scale;
    c->margin_grad = (char *)(uintptr_t)margin_grads[o->margin_grad];
    c->correction = (char *)(uintptr_t)corrections[o->correction];
    c->dtype = (char *)(uintptr_t)dtypes[o->dtype];
    c->gemm = o->gemm > 0 ? (char *)(uintptr_t)gemms[o->gemm] : c->dtype;
    c->rounding = (char *)(uintptr_t)roundings[o->rounding];
    c->init_std = CLASS_INIT_STD;
    use_optimizer(o, c);
    c->weight_decay = o->weight_decay;
    c->lr = o->lr;
    c->clip = o->clip;
    c->global_batch = (uint32_t)o->global_batch;
    c->micro_batch = (uint32_t)o->micro_batch;
    c->dense_block_size = DENSE_BLOCK_FLOATS;
    c->log_dense_bf16 = o->log_dense > 0;
    c->skip_broken = o->skip_broken;
    c->mixed = o->mixed;
    c->augmentation = &b->augmentation;
}

static int build(const struct create_options *o, struct built *b, struct sfc_error *err)
{
    b->config = (Shardfc__V1__RunConfig)SHARDFC__V1__RUN_CONFIG__INIT;
    b->augmentation = (Shardfc__V1__Augmentation)SHARDFC__V1__AUGMENTATION__INIT;
    use_numbers(o, b);
    int code = parse_margin(o->margin, &b->config, err);
    if (code == SFC_OK) {
        code = parse_augment(o->augment, &b->augmentation, err);
    }
    if (code == SFC_OK) {
        code = use_data(o, b, err);
    }
    if (code == SFC_OK) {
        code = use_length(o, b, err);
    }
    if (code == SFC_OK) {
        code = parse_schedule(o->schedule, &b->config, err);
    }
    if (code == SFC_OK) {
        code = use_filter(o, b, err);
    }
    if (code == SFC_OK) {
        code = use_backbone(o, b, err);
    }
    if (code == SFC_OK) {
        b->config.block_size =
            o->block_size > 0 ? (uint32_t)o->block_size : sfc_default_block_size(b->config.classes);
        code = sfc_run_config_check(&b->config, err); /* as the scheduler will, but at once */
    }
    return code;
}

static void built_free(struct built *b)
{
    free(b->segments);
    free(b->segment_list);
    sfc_model_free(b->model);
}

/* ---- the call */

static void report(const struct create_options *o, const struct built *b,
                   const Shardfc__V1__CreateRunReply *reply)
{
    uint64_t shards = reply->map == NULL ? 0 : reply->map->n_shards;
    uint64_t blocks = reply->map == NULL ? 0 : reply->map->n_class_owner;
    if (o->json) {
        sfc_command_json(json_pack(
            "{s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "run_id", (json_int_t)reply->run_id,
            "run", o->run, "classes", (json_int_t)b->config.classes, "samples",
            (json_int_t)b->data.samples, "steps", (json_int_t)b->config.steps, "shards",
            (json_int_t)shards, "class_blocks", (json_int_t)blocks, "bytes_per_shard_max",
            (json_int_t)reply->bytes_per_shard_max, "wire_bytes_per_step",
            (json_int_t)reply->wire_bytes_per_step));
        return;
    }
    printf("run %s (%" PRIu64 "): %" PRIu64 " identities, %" PRIu64 " samples, %" PRIu64
           " steps of %u rows, sample rate %g\n",
           o->run, reply->run_id, b->config.classes, b->data.samples, b->config.steps,
           b->config.global_batch, o->sample_rate);
    printf("%" PRIu64 " class blocks of %u on %" PRIu64
           " shards, at most %.1f MB per shard%s, %.2f MB on the wire per step\n",
           blocks, b->config.block_size, shards, (double)reply->bytes_per_shard_max / 1e6,
           o->mirrors > 0 ? " and what it needs to mirror others (`shardfc status`)" : "",
           (double)reply->wire_bytes_per_step / 1e6);
    puts("next: `shardfc watch` follows it, `shardfc status` shows what it waits for");
}

static int create(const struct create_options *o, struct sfc_error *err)
{
    struct built b = {0};
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    int code = build(o, &b, err);
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o->scheduler, &o->security, &cluster, err);
    }
    if (code == SFC_OK) {
        Shardfc__V1__CreateRunRequest request = SHARDFC__V1__CREATE_RUN_REQUEST__INIT;
        Shardfc__V1__RunKeeping keeping = SHARDFC__V1__RUN_KEEPING__INIT;
        request.config = &b.config;
        keeping.rewind_window = o->rewind_window;
        keeping.durable_every = (uint32_t)o->durable_every;
        keeping.elastic = o->elastic == 1;
        keeping.mirrors = (uint32_t)o->mirrors;
        keeping.grace_s = (uint32_t)((o->grace_ms + 999) / 1000);
        request.keeping = &keeping;
        code = sfc_cluster_scheduler(cluster, "CreateRun", &request.base,
                                     &shardfc__v1__create_run_reply__descriptor, CREATE_DEADLINE_MS,
                                     &answer, err);
    }
    if (code == SFC_OK) {
        report(o, &b, (const Shardfc__V1__CreateRunReply *)answer.message);
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    built_free(&b);
    return code;
}

/* What would do nothing is refused: whoever gives it expects something of it. */
static int check_optimizer(const struct create_options *o, const struct sfc_options *parsed,
                           struct sfc_error *err)
{
    static const char *const of_sgd[] = {"momentum", NULL};
    static const char *const of_adamw[] = {"beta1", "beta2", "epsilon", NULL};
    bool sgd = strcmp(optimizers[o->optimizer], "sgd") == 0;
    for (const char *const *name = sgd ? of_adamw : of_sgd; *name != NULL; name++) {
        if (sfc_options_given(parsed, *name)) {
            return sfc_fail(err, SFC_EINVAL,
                            "--%s: optimizer %s has none; leave it out, or give --optimizer %s",
                            *name, optimizers[o->optimizer], sgd ? "adamw" : "sgd");
        }
    }
    return SFC_OK;
}

int sfc_cmd_create(int argc, char **argv)
{
    struct create_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = check_optimizer(&o, parsed, &err);
    if (code == SFC_OK) {
        code = create(&o, &err);
    }
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("create", &err);
}
