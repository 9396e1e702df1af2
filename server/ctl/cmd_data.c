/* shardfc data glyphs | pack | info. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/ctl/command.h"
#include "worker/data/glyphs.h"
#include "worker/data/info.h"
#include "worker/data/pack.h"

struct data_options {
    const char *out, *fonts;
    bool json, flip, check, replace;
    uint64_t classes, holdout, faces, size, pairs, threads, seed, min_images;
};

#define AT(field) offsetof(struct data_options, field)
#define OPTION_JSON                                                                                \
    {                                                                                              \
        .name = "json", .type = SFC_OPTION_BOOL, .offset = AT(json),                               \
        .help = "print one JSON object", .flags = SFC_OPTION_FLAG_ONLY                             \
    }
#define OPTION_OUT                                                                                 \
    {                                                                                              \
        .name = "out", .type = SFC_OPTION_STRING, .offset = AT(out), .min = 1, .metavar = "DIR",   \
        .help = "directory to write", .flags = SFC_OPTION_REQUIRED                                 \
    }

#define OPTION_REPLACE                                                                             \
    {                                                                                              \
        .name = "replace", .type = SFC_OPTION_BOOL, .offset = AT(replace),                         \
        .help = "write over a data set that is there already", .flags = SFC_OPTION_FLAG_ONLY       \
    }

/* What a set consists of may have taken hours, or be somebody's only copy. */
static int check_out(const struct data_options *o, struct sfc_error *err)
{
    static const char *const files[] = {"train.rec",     "train.idx", "holdout.rec",
                                        "holdout.idx",   "meta.json", "pairs_easy.bin",
                                        "pairs_hard.bin"};
    for (size_t i = 0; !o->replace && i < sizeof files / sizeof *files; i++) {
        char path[PATH_MAX];
        int n = snprintf(path, sizeof path, "%s/%s", o->out, files[i]);
        if (n >= (int)sizeof path) {
            return sfc_fail(err, SFC_EINVAL, "--out: the name is too long");
        }
        if (access(path, F_OK) == 0) {
            return sfc_fail(err, SFC_EEXIST,
                            "--out %s holds a data set already (%s): name another directory, or "
                            "add --replace to write over it",
                            o->out, files[i]);
        }
    }
    return SFC_OK;
}

static int print_text(char *text, struct sfc_error *err)
{
    if (text == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the report");
    }
    puts(text);
    free(text);
    return SFC_OK;
}

/* ---- glyphs */

static const struct sfc_option glyph_table[] = {
    OPTION_OUT,
    {.name = "classes",
     .type = SFC_OPTION_U64,
     .offset = AT(classes),
     .min = 2,
     .max = 100000,
     .fallback = "10000",
     .help = "training identities"},
    {.name = "faces",
     .type = SFC_OPTION_U64,
     .offset = AT(faces),
     .max = 1000,
     .fallback = "0",
     .help = "at most this many font faces in training; 0: all"},
    {.name = "size",
     .type = SFC_OPTION_U64,
     .offset = AT(size),
     .min = 32,
     .max = 112,
     .fallback = "32",
     .unit = "pixels",
     .help = "width and height: 32 or 112"},
    {.name = "holdout",
     .type = SFC_OPTION_U64,
     .offset = AT(holdout),
     .min = 2,
     .max = 100000,
     .fallback = "1500",
     .help = "held-out identities"},
    {.name = "pairs",
     .type = SFC_OPTION_U64,
     .offset = AT(pairs),
     .min = 20,
     .max = 1000000,
     .fallback = "6000",
     .help = "pairs in each verification file"},
    {.name = "fonts",
     .type = SFC_OPTION_STRING,
     .offset = AT(fonts),
     .fallback = "/usr/share/fonts",
     .metavar = "DIR",
     .help = "where fonts are searched"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .offset = AT(threads),
     .min = 1,
     .max = 256,
     .fallback = "2",
     .help = "rendering threads"},
    {.name = "seed",
     .type = SFC_OPTION_U64,
     .offset = AT(seed),
     .fallback = "1",
     .help = "choice of identities and pairs"},
    OPTION_REPLACE,
    OPTION_JSON,
};
static const struct sfc_program glyph_program = {
    .name = "shardfc data glyphs",
    .summary =
        "Makes a data set of real images with many identities from installed fonts: an identity "
        "is a character, a sample is how one font face draws it. Held-out identities are drawn "
        "by font families that training never sees.",
    .options = glyph_table,
    .count = sizeof glyph_table / sizeof *glyph_table,
};

static int make_glyphs(const struct data_options *o, struct sfc_error *err)
{
    if (o->size != 32 && o->size != 112) {
        return sfc_fail(err, SFC_EINVAL, "--size %" PRIu64 ": 32 or 112", o->size);
    }
    struct sfc_progress_printer printer = {.file = stderr};
    struct sfc_glyph_report report = {0};
    struct sfc_glyph_options options = {
        .out = o->out,
        .fonts = o->fonts,
        .classes = (uint32_t)o->classes,
        .holdout = (uint32_t)o->holdout,
        .faces = (uint32_t)o->faces,
        .size = (uint32_t)o->size,
        .pairs = (uint32_t)o->pairs,
        .threads = (uint32_t)o->threads,
        .seed = o->seed,
        .progress = sfc_progress_print,
        .progress_arg = &printer,
    };
    int code = sfc_data_glyphs(&options, &report, err);
    if (code == SFC_OK && o->json) {
        code = print_text(sfc_glyph_report_json(&report), err);
    } else if (code == SFC_OK) {
        sfc_glyph_report_text(&report, stdout);
    }
    if (code == SFC_OK && report.identities < o->classes)
        fprintf(stderr,
                "only %" PRIu64 " of %" PRIu64
                " identities: the others are not in enough of the fonts "
                "(more --faces, or the packages that deploy/font-packages lists)\n",
                (uint64_t)report.identities, o->classes);
    sfc_glyph_report_free(&report);
    return code;
}

/* ---- pack */

static const struct sfc_option pack_table[] = {
    OPTION_OUT,
    {.name = "flip",
     .type = SFC_OPTION_BOOL,
     .offset = AT(flip),
     .fallback = "true",
     .help = "a mirrored image keeps its identity (faces); --no-flip for characters"},
    {.name = "min-images",
     .type = SFC_OPTION_U64,
     .offset = AT(min_images),
     .min = 1,
     .max = 1000000,
     .fallback = "1",
     .help = "leave out identities with fewer images"},
    OPTION_REPLACE,
    OPTION_JSON,
};
static const struct sfc_program pack_program = {
    .name = "shardfc data pack",
    .summary = "Packs a folder with one subfolder of JPEG files per identity into train.rec.",
    .arguments = "FOLDER",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = pack_table,
    .count = sizeof pack_table / sizeof *pack_table,
};

static int pack(const struct data_options *o, const char *folder, struct sfc_error *err)
{
    struct sfc_progress_printer printer = {.file = stderr};
    struct sfc_pack_report r = {0};
    struct sfc_pack_options options = {
        .folder = folder,
        .out = o->out,
        .no_flip = !o->flip,
        .min_images = (uint32_t)o->min_images,
        .progress = sfc_progress_print,
        .progress_arg = &printer,
    };
    int code = sfc_data_pack(&options, &r, err);
    if (code == SFC_OK && o->json) {
        sfc_command_json(json_pack(
            "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "identities", (json_int_t)r.identities,
            "samples", (json_int_t)r.samples, "bytes", (json_int_t)r.bytes, "dropped_identities",
            (json_int_t)r.dropped_identities, "ignored_files", (json_int_t)r.ignored_files, "width",
            (json_int_t)r.width, "height", (json_int_t)r.height, "channels", (json_int_t)r.channels,
            "digest", r.digest));
    } else if (code == SFC_OK) {
        printf("%" PRIu64 " identities, %" PRIu64 " images of %u x %u x %u, %.1f MB, digest %s\n",
               r.identities, r.samples, r.width, r.height, r.channels, (double)r.bytes / 1e6,
               r.digest);
        if (r.dropped_identities + r.ignored_files > 0) {
            printf("left out: %" PRIu64 " identities with too few images, %" PRIu64
                   " files that are no JPEG\n",
                   r.dropped_identities, r.ignored_files);
        }
    }
    return code;
}

/* ---- info */

static const struct sfc_option info_table[] = {
    {.name = "check",
     .type = SFC_OPTION_BOOL,
     .offset = AT(check),
     .help = "decode every image and count broken ones"},
    OPTION_JSON,
};
static const struct sfc_program info_program = {
    .name = "shardfc data info",
    .summary = "Describes a data set directory or record file.",
    .arguments = "DIR",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = info_table,
    .count = sizeof info_table / sizeof *info_table,
};

static int info(const struct data_options *o, const char *path, struct sfc_error *err)
{
    struct sfc_progress_printer printer = {.file = stderr};
    struct sfc_data_report report = {0};
    int code = sfc_data_info(path, o->check, sfc_progress_print, &printer, &report, err);
    if (code == SFC_OK && o->json) {
        code = print_text(sfc_data_report_json(&report), err);
    } else if (code == SFC_OK) {
        sfc_data_report_text(&report, stdout);
    }
    return code;
}

/* ---- dispatch */

static int run(const struct sfc_program *program, int argc, char **argv)
{
    struct data_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = program == &info_program ? SFC_OK : check_out(&o, &err);
    if (code != SFC_OK) {
        /* nothing is written */
    } else if (program == &glyph_program) {
        code = make_glyphs(&o, &err);
    } else if (program == &pack_program) {
        code = pack(&o, sfc_options_argument(parsed, 0), &err);
    } else {
        code = info(&o, sfc_options_argument(parsed, 0), &err);
    }
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(program->name + strlen("shardfc "), &err);
}

int sfc_cmd_data(int argc, char **argv)
{
    static const struct {
        const char *name;
        const struct sfc_program *program;
    } kinds[] = {{"glyphs", &glyph_program}, {"pack", &pack_program}, {"info", &info_program}};
    for (size_t i = 0; argc > 1 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(argv[1], kinds[i].name) == 0) {
            return run(kinds[i].program, argc - 1, argv + 1);
        }
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        puts("shardfc data " SFC_VERSION);
        return 0;
    }
    for (size_t i = 0; argc > 1 && strcmp(argv[1], "--help=words") == 0; i++) {
        if (i == sizeof kinds / sizeof *kinds) {
            return 0;
        }
        puts(kinds[i].name);
    }
    bool help = argc > 1 && strcmp(argv[1], "--help") == 0;
    if (!help && argc > 1) {
        fprintf(stderr, "shardfc data: unknown command '%s'\n", argv[1]);
    }
    fprintf(help ? stdout : stderr, "usage: shardfc data glyphs|pack|info [OPTIONS]\n\n"
                                    "  glyphs   make a data set from installed fonts\n"
                                    "  pack     pack a folder of images\n"
                                    "  info     describe a data set\n");
    return help ? 0 : 2;
}
