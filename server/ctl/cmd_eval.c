/* shardfc eval: verification accuracy of a checkpoint on identities that training never saw. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/ctl/checkpoint.h"
#include "server/ctl/command.h"
#include "worker/data/dataset.h"
#include "worker/data/pickle_bin.h"
#include "worker/eval/embed.h"
#include "worker/eval/metrics.h"

struct eval_options {
    const char *checkpoint, *pairs, *rec, *device, *precision;
    bool json;
    uint64_t threads;
};

#define AT(field) offsetof(struct eval_options, field)
static const struct sfc_option table[] = {
    {.name = "checkpoint",
     .type = SFC_OPTION_STRING,
     .offset = AT(checkpoint),
     .min = 1,
     .metavar = "DIR",
     .help = "checkpoint of a run with a backbone",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "pairs",
     .type = SFC_OPTION_STRING,
     .offset = AT(pairs),
     .metavar = "FILE.bin",
     .help = "pairs in insightface's .bin format: ten-fold accuracy and TAR at FAR"},
    {.name = "rec",
     .type = SFC_OPTION_STRING,
     .offset = AT(rec),
     .metavar = "FILE.rec",
     .help = "labelled images: TAR at FAR over all pairs"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .offset = AT(threads),
     .max = 256,
     .fallback = "0",
     .help = "threads; 0: one per processor"},
    {.name = "device",
     .type = SFC_OPTION_STRING,
     .offset = AT(device),
     .fallback = "cpu",
     .metavar = "cpu|cuda[:N]",
     .help = "where the backbone is computed; cuda needs the plugin libshardfc-cudnn.so"},
    {.name = "precision",
     .type = SFC_OPTION_STRING,
     .offset = AT(precision),
     .fallback = "f32",
     .metavar = "f32|bf16|fp16",
     .help = "number format of the backbone's products and activations; cpu knows f32 alone"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc eval",
    .summary =
        "Embeds images with a checkpoint's backbone (image and its mirror where the data set "
        "allows it) and measures verification.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* ---- the backbone of a checkpoint */

struct backbone {
    struct sfc_checkpoint *checkpoint;
    struct sfc_model *model;
    const struct sfc_lane_device *device;
    struct sfc_dataset_info images; /* how the backbone reads images */
    float *params;
};

static int load_params(struct backbone *b, struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *config = sfc_checkpoint_config(b->checkpoint);
    uint64_t size = sfc_config_dense_size(config);
    uint64_t per_block = config->dense_block_size;
    if (size != sfc_model_size(b->model)) {
        return sfc_fail(err, SFC_ECORRUPT,
                        "checkpoint has %" PRIu64 " backbone parameters, '%s' has %" PRIu64, size,
                        config->backbone, sfc_model_size(b->model));
    }
    uint64_t count = sfc_config_block_count(config, SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK);
    uint64_t largest =
        sfc_checkpoint_block_floats(b->checkpoint, SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK, 0);
    b->params = malloc((size_t)size * sizeof *b->params);
    float *block = malloc((size_t)largest * sizeof *block);
    int code = SFC_OK;
    if (b->params == NULL || block == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for %" PRIu64 " parameters", size);
    }
    for (uint64_t i = 0; i < count && code == SFC_OK; i++) {
        code =
            sfc_checkpoint_read(b->checkpoint, SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK, i, block, err);
        if (code == SFC_OK) {
            uint64_t n = sfc_checkpoint_block_elements(b->checkpoint,
                                                       SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK, i);
            memcpy(b->params + i * per_block, block, (size_t)n * sizeof *block);
        }
    }
    free(block);
    return code;
}

static int open_device(const struct eval_options *o, struct backbone *b, struct sfc_error *err)
{
    enum sfc_precision precision;
    int code = sfc_precision_parse(o->precision, &precision, err);
    return code != SFC_OK ? code : sfc_lane_device_open(o->device, precision, &b->device, err);
}

static int open_backbone(const char *dir, struct backbone *b, struct sfc_error *err)
{
    int code = sfc_checkpoint_open(dir, &b->checkpoint, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__RunConfig *config = sfc_checkpoint_config(b->checkpoint);
    const Shardfc__V1__DataSet *data = config->data;
    if (config->n_segments == 0) {
        return sfc_fail(err, SFC_EINVAL, "%s: the run has no backbone, so it can't embed images",
                        dir);
    }
    b->images.width = data->width;
    b->images.height = data->height;
    b->images.channels = data->channels;
    b->images.flip = data->flip;
    struct sfc_model_input input = {data->width, data->height, data->channels};
    code = sfc_model_new(config->backbone, input, config->dim, &b->model, err);
    return code == SFC_OK ? load_params(b, err) : code;
}

static void close_backbone(struct backbone *b)
{
    sfc_model_free(b->model);
    free(b->params);
    sfc_checkpoint_close(b->checkpoint);
    sfc_lane_device_close(b->device);
}

/* ---- images */

struct images {
    const struct sfc_pairs *pairs; /* or, when NULL, a data set */
    struct sfc_decoder **decoders; /* one per thread */
};

static int image_at(void *ctx, unsigned thread, uint64_t index, float *image, struct sfc_error *err)
{
    const struct images *images = ctx;
    struct sfc_decoder *decoder = images->decoders[thread];
    if (images->pairs == NULL) {
        return sfc_decoder_read(decoder, index, NULL, 0, 0, image, err);
    }
    int code = sfc_decoder_jpeg(decoder, images->pairs->images[index].data,
                                images->pairs->images[index].size, image, err);
    if (code != SFC_OK) {
        sfc_prefix(err, "image %" PRIu64 " of the pairs", index);
    }
    return code;
}

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
    sfc_command_progress(ctx, done, total);
}

/* Embeddings of all images of a pairs file or a data set; *out is malloc'ed [count, dim]. */
static int embed_images(const struct backbone *b, unsigned threads, const struct sfc_pairs *pairs,
                        const struct sfc_dataset *set, uint64_t count, float **out,
                        struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "embed", .unit = "images"};
    uint32_t dim = sfc_checkpoint_config(b->checkpoint)->dim;
    struct images images = {pairs, calloc(threads, sizeof(struct sfc_decoder *))};
    float *rows = malloc((size_t)count * dim * sizeof *rows);
    int code = SFC_OK;
    if (images.decoders == NULL || rows == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for %" PRIu64 " embeddings", count);
    }
    for (unsigned t = 0; t < threads && code == SFC_OK; t++) {
        code = set != NULL ? sfc_decoder_new(set, &images.decoders[t], err)
                           : sfc_decoder_new_plain(&b->images, &images.decoders[t], err);
    }
    if (code == SFC_OK) {
        struct sfc_embed_job job = {
            .device = b->device,
            .model = b->model,
            .params = b->params,
            .input = {b->images.width, b->images.height, b->images.channels},
            .dim = dim,
            .flip = b->images.flip,
            .threads = threads,
            .count = count,
            .source = image_at,
            .ctx = &images,
            .progress = show_progress,
            .progress_ctx = &progress,
        };
        code = sfc_embed(&job, rows, err);
    }
    for (unsigned t = 0; images.decoders != NULL && t < threads; t++) {
        sfc_decoder_free(images.decoders[t]);
    }
    free(images.decoders);
    if (code != SFC_OK) {
        free(rows);
        return code;
    }
    *out = rows;
    return SFC_OK;
}

/* ---- results */

static json_t *far_json(const struct sfc_far_result *far)
{
    json_t *object = json_object();
    for (int i = 0; i < SFC_EVAL_FAR_LEVEL; i++) {
        char name[16];
        snprintf(name, sizeof name, "1e-%d", i + 1);
        json_object_set_new(object, name,
                            far->level[i].supported ? json_real(far->level[i].tar) : json_null());
    }
    return object;
}

static void far_text(const struct sfc_far_result *far)
{
    printf("TAR at FAR over %" PRIu64 " genuine and %" PRIu64 " impostor pairs:\n", far->genuine,
           far->impostor);
    for (int i = 0; i < SFC_EVAL_FAR_LEVEL; i++) {
        if (far->level[i].supported) {
            printf("  FAR 1e-%d  TAR %.4f  (cosine above %.4f)\n", i + 1, far->level[i].tar,
                   far->level[i].threshold);
        } else {
            printf("  FAR 1e-%d  not supported: fewer than %d false accepts\n", i + 1,
                   SFC_EVAL_MIN_FALSE_ACCEPTS);
            break;
        }
    }
}

static void scores_of(const float *rows, uint64_t pairs, uint32_t dim, float *distance,
                      float *cosine)
{
    for (uint64_t i = 0; i < pairs; i++) {
        const float *a = rows + 2 * i * dim;
        const float *b = a + dim;
        double square = 0;
        double dot = 0;
        for (uint32_t k = 0; k < dim; k++) {
            double d = (double)a[k] - (double)b[k];
            square += d * d;
            dot += (double)a[k] * (double)b[k];
        }
        distance[i] = (float)square;
        cosine[i] = (float)dot;
    }
}

static void print_pairs(const struct eval_options *o, const struct sfc_pair_result *result,
                        const struct sfc_far_result *far)
{
    if (o->json) {
        sfc_command_json(json_pack(
            "{s:s, s:I, s:f, s:f, s:f, s:I, s:I, s:o}", "file", o->pairs, "pairs",
            (json_int_t)result->pairs, "accuracy", result->accuracy, "accuracy_std",
            result->deviation, "threshold", result->threshold, "genuine", (json_int_t)far->genuine,
            "impostor", (json_int_t)far->impostor, "tar_at_far", far_json(far)));
        return;
    }
    printf("%s: %" PRIu64 " pairs, accuracy %.4f +- %.4f (10 folds, squared distance %.3f)\n",
           o->pairs, result->pairs, result->accuracy, result->deviation, result->threshold);
    far_text(far);
}

static int eval_pairs(const struct eval_options *o, const struct backbone *b, unsigned threads,
                      struct sfc_error *err)
{
    struct sfc_pairs pairs = {0};
    float *rows = NULL;
    float *scores = NULL;
    int code = sfc_pairs_read(o->pairs, &pairs, err);
    if (code == SFC_OK) {
        code = embed_images(b, threads, &pairs, NULL, 2 * (uint64_t)pairs.pairs, &rows, err);
    }
    if (code == SFC_OK) {
        scores = malloc(2 * pairs.pairs * sizeof *scores);
        code = scores == NULL ? sfc_fail(err, SFC_ENOMEM, "out of memory for scores") : SFC_OK;
    }
    if (code == SFC_OK) {
        struct sfc_pair_result result;
        struct sfc_far_result far;
        float *cosine = scores + pairs.pairs;
        scores_of(rows, pairs.pairs, sfc_checkpoint_config(b->checkpoint)->dim, scores, cosine);
        code = sfc_evaluate_pairs(scores, pairs.same, pairs.pairs, &result, err);
        if (code == SFC_OK) {
            code = sfc_evaluate_scores(cosine, pairs.same, pairs.pairs, &far, err);
        }
        if (code == SFC_OK) {
            print_pairs(o, &result, &far);
        }
    }
    free(scores);
    free(rows);
    sfc_pairs_free(&pairs);
    return code == SFC_OK ? SFC_OK : sfc_prefix(err, "%s", o->pairs);
}

static int check_images(const struct sfc_dataset_info *info, const struct backbone *b,
                        struct sfc_error *err)
{
    if (info->width != b->images.width || info->height != b->images.height ||
        info->channels != b->images.channels) {
        return sfc_fail(err, SFC_EINVAL, "images are %u x %u x %u, the backbone reads %u x %u x %u",
                        info->width, info->height, info->channels, b->images.width,
                        b->images.height, b->images.channels);
    }
    return SFC_OK;
}

static int eval_labelled(const struct eval_options *o, const struct backbone *b, unsigned threads,
                         struct sfc_error *err)
{
    struct sfc_dataset *set = NULL;
    float *rows = NULL;
    uint64_t *labels = NULL;
    uint64_t count = 0;
    struct sfc_far_result far;
    int code = sfc_dataset_open(o->rec, &set, err);
    if (code == SFC_OK) {
        count = sfc_dataset_info(set)->samples;
        code = check_images(sfc_dataset_info(set), b, err);
    }
    if (code == SFC_OK) {
        code = embed_images(b, threads, NULL, set, count, &rows, err);
    }
    if (code == SFC_OK) {
        labels = malloc((size_t)count * sizeof *labels);
        code = labels == NULL ? sfc_fail(err, SFC_ENOMEM, "out of memory for labels") : SFC_OK;
    }
    for (uint64_t i = 0; code == SFC_OK && i < count; i++) {
        labels[i] = sfc_dataset_label(set, i);
    }
    if (code == SFC_OK) {
        code = sfc_evaluate_labelled(rows, labels, count, sfc_checkpoint_config(b->checkpoint)->dim,
                                     threads, &far, err);
    }
    if (code == SFC_OK && o->json) {
        sfc_command_json(json_pack(
            "{s:s, s:I, s:I, s:I, s:I, s:o}", "file", o->rec, "images", (json_int_t)count, "pairs",
            (json_int_t)(far.genuine + far.impostor), "genuine", (json_int_t)far.genuine,
            "impostor", (json_int_t)far.impostor, "tar_at_far", far_json(&far)));
    } else if (code == SFC_OK) {
        printf("%s: %" PRIu64 " images\n", o->rec, count);
        far_text(&far);
    }
    free(labels);
    free(rows);
    sfc_dataset_close(set);
    return code == SFC_OK ? SFC_OK : sfc_prefix(err, "%s", o->rec);
}

static int eval(const struct eval_options *o, struct sfc_error *err)
{
    if ((o->pairs == NULL) == (o->rec == NULL)) {
        return sfc_fail(err, SFC_EINVAL, "give either --pairs FILE.bin or --rec FILE.rec");
    }
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned threads =
        o->threads > 0 ? (unsigned)o->threads : (processors > 0 ? (unsigned)processors : 1);
    struct backbone b = {0};
    int code = open_device(o, &b, err);
    if (code == SFC_OK) {
        code = open_backbone(o->checkpoint, &b, err);
    }
    if (code == SFC_OK) {
        code =
            o->pairs != NULL ? eval_pairs(o, &b, threads, err) : eval_labelled(o, &b, threads, err);
    }
    close_backbone(&b);
    return code;
}

int sfc_cmd_eval(int argc, char **argv)
{
    struct eval_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = eval(&o, &err);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("eval", &err);
}
