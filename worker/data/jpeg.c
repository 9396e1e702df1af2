#include "worker/data/jpeg.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

struct sfc_jpeg {
    struct jpeg_error_mgr manager; /* first: libjpeg's pointer is ours */
    jmp_buf escape;
    char warning[JMSG_LENGTH_MAX]; /* the first one that means lost data */
    char failure[JMSG_LENGTH_MAX];
    struct jpeg_decompress_struct reader;
    struct jpeg_compress_struct writer;
    uint8_t *encoded; /* as large as any image of the size can become */
    size_t capacity;
    unsigned char *target; /* what libjpeg writes to: encoded */
    unsigned long target_length;
};

static struct sfc_jpeg *owner(j_common_ptr info)
{
    return (struct sfc_jpeg *)(void *)info->err;
}

static void on_error(j_common_ptr info)
{
    struct sfc_jpeg *jpeg = owner(info);
    (*info->err->format_message)(info, jpeg->failure);
    longjmp(jpeg->escape, 1);
}

static void on_message(j_common_ptr info, int level)
{
    struct sfc_jpeg *jpeg = owner(info);
    int code = info->err->msg_code;
    /* Bytes between segments and an unknown Adobe transform lose nothing. */
    if (level >= 0 || code == JWRN_EXTRANEOUS_DATA || code == JWRN_ADOBE_XFORM)
        return;
    if (jpeg->warning[0] == 0)
        (*info->err->format_message)(info, jpeg->warning);
}

static void on_output(j_common_ptr info)
{
    (void)info; /* libraries don't print */
}

static void begin(struct sfc_jpeg *jpeg)
{
    jpeg->warning[0] = 0;
    jpeg->failure[0] = 0;
}

int sfc_jpeg_new(struct sfc_jpeg **out, struct sfc_error *err)
{
    struct sfc_jpeg *jpeg = calloc(1, sizeof *jpeg);
    if (jpeg == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a JPEG decoder");
    jpeg->reader.err = jpeg_std_error(&jpeg->manager);
    jpeg->writer.err = &jpeg->manager;
    jpeg->manager.error_exit = on_error;
    jpeg->manager.emit_message = on_message;
    jpeg->manager.output_message = on_output;
    if (setjmp(jpeg->escape) != 0) {
        int rc = sfc_fail(err, SFC_ENOMEM, "JPEG decoder: %s", jpeg->failure);
        sfc_jpeg_free(jpeg);
        return rc;
    }
    jpeg_create_decompress(&jpeg->reader);
    jpeg_create_compress(&jpeg->writer);
    *out = jpeg;
    return SFC_OK;
}

void sfc_jpeg_free(struct sfc_jpeg *jpeg)
{
    if (jpeg == NULL)
        return;
    jpeg_destroy_decompress(&jpeg->reader);
    jpeg_destroy_compress(&jpeg->writer);
    free(jpeg->encoded);
    free(jpeg);
}

static int broken(struct sfc_jpeg *jpeg, struct sfc_error *err)
{
    int code = strstr(jpeg->failure, "nsufficient memory") != NULL ? SFC_ENOMEM : SFC_ECORRUPT;
    return sfc_fail(err, code, "JPEG: %s", jpeg->failure);
}

/* Reads the header; jumps on error. */
static int read_header(struct sfc_jpeg *jpeg, const uint8_t *data, size_t length,
                       struct sfc_error *err)
{
    struct jpeg_decompress_struct *reader = &jpeg->reader;
    jpeg_mem_src(reader, data, length);
    jpeg_read_header(reader, TRUE);
    if (reader->image_width > SFC_JPEG_MAX_SIDE || reader->image_height > SFC_JPEG_MAX_SIDE)
        return sfc_fail(err, SFC_EUNSUPPORTED, "JPEG of %u x %u: sides up to %u are read",
                        reader->image_width, reader->image_height, SFC_JPEG_MAX_SIDE);
    if (reader->num_components != 1 && reader->num_components != 3)
        return sfc_fail(err, SFC_EUNSUPPORTED, "JPEG with %d components: only grey and colour",
                        reader->num_components);
    return SFC_OK;
}

static int check_input(const uint8_t *data, size_t length, struct sfc_error *err)
{
    if (length < 4 || data[0] != 0xff || data[1] != 0xd8)
        return sfc_fail(err, SFC_ECORRUPT, "not a JPEG (%zu bytes)", length);
    return SFC_OK;
}

int sfc_jpeg_info(struct sfc_jpeg *jpeg, const uint8_t *data, size_t length,
                  struct sfc_jpeg_info *out, struct sfc_error *err)
{
    int rc = check_input(data, length, err);
    if (rc != SFC_OK)
        return rc;
    begin(jpeg);
    if (setjmp(jpeg->escape) != 0) {
        jpeg_abort_decompress(&jpeg->reader);
        return broken(jpeg, err);
    }
    rc = read_header(jpeg, data, length, err);
    if (rc == SFC_OK)
        *out = (struct sfc_jpeg_info){jpeg->reader.image_width, jpeg->reader.image_height,
                                      (uint32_t)jpeg->reader.num_components};
    jpeg_abort_decompress(&jpeg->reader);
    return rc;
}

/* Decodes after the header; jumps on error. */
static void read_pixels(struct sfc_jpeg *jpeg, uint32_t channels, uint8_t *pixels)
{
    struct jpeg_decompress_struct *reader = &jpeg->reader;
    reader->out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    reader->dct_method = JDCT_ISLOW; /* the same bits on every machine */
    jpeg_start_decompress(reader);
    size_t stride = (size_t)reader->output_width * channels;
    while (reader->output_scanline < reader->output_height) {
        JSAMPROW row = pixels + stride * reader->output_scanline;
        jpeg_read_scanlines(reader, &row, 1);
    }
    jpeg_finish_decompress(reader);
}

int sfc_jpeg_decode(struct sfc_jpeg *jpeg, const uint8_t *data, size_t length, uint32_t width,
                    uint32_t height, uint32_t channels, uint8_t *pixels, struct sfc_error *err)
{
    int rc = check_input(data, length, err);
    if (rc != SFC_OK)
        return rc;
    begin(jpeg);
    if (setjmp(jpeg->escape) != 0) {
        jpeg_abort_decompress(&jpeg->reader);
        return broken(jpeg, err);
    }
    rc = read_header(jpeg, data, length, err);
    if (rc == SFC_OK && (jpeg->reader.image_width != width || jpeg->reader.image_height != height))
        rc = sfc_fail(err, SFC_ECORRUPT, "JPEG of %u x %u instead of %u x %u",
                      jpeg->reader.image_width, jpeg->reader.image_height, width, height);
    if (rc != SFC_OK) {
        jpeg_abort_decompress(&jpeg->reader);
        return rc;
    }
    read_pixels(jpeg, channels, pixels);
    if (jpeg->warning[0] != 0)
        return sfc_fail(err, SFC_ECORRUPT, "JPEG: %s", jpeg->warning);
    return SFC_OK;
}

static int grow(struct sfc_jpeg *jpeg, size_t capacity, struct sfc_error *err)
{
    if (capacity <= jpeg->capacity)
        return SFC_OK;
    uint8_t *larger = realloc(jpeg->encoded, capacity);
    if (larger == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a JPEG of %zu bytes", capacity);
    jpeg->encoded = larger;
    jpeg->capacity = capacity;
    return SFC_OK;
}

/* Jumps on error. */
static void write_pixels(struct sfc_jpeg *jpeg, const uint8_t *pixels, uint32_t width,
                         uint32_t height, int quality)
{
    struct jpeg_compress_struct *writer = &jpeg->writer;
    jpeg->target = jpeg->encoded;
    jpeg->target_length = jpeg->capacity;
    jpeg_mem_dest(writer, &jpeg->target, &jpeg->target_length);
    writer->image_width = width;
    writer->image_height = height;
    writer->input_components = 1;
    writer->in_color_space = JCS_GRAYSCALE;
    jpeg_set_defaults(writer);
    writer->dct_method = JDCT_ISLOW;
    jpeg_set_quality(writer, quality, TRUE);
    jpeg_start_compress(writer, TRUE);
    uint8_t line[SFC_JPEG_MAX_SIDE];
    while (writer->next_scanline < writer->image_height) {
        memcpy(line, pixels + (size_t)width * writer->next_scanline, width);
        JSAMPROW row = line;
        jpeg_write_scanlines(writer, &row, 1);
    }
    jpeg_finish_compress(writer);
}

int sfc_jpeg_encode_grey(struct sfc_jpeg *jpeg, const uint8_t *pixels, uint32_t width,
                         uint32_t height, int quality, const uint8_t **data, size_t *length,
                         struct sfc_error *err)
{
    if (width == 0 || height == 0 || width > SFC_JPEG_MAX_SIDE || height > SFC_JPEG_MAX_SIDE)
        return sfc_fail(err, SFC_EINVAL, "an image of %u x %u can't be a JPEG", width, height);
    int rc = grow(jpeg, (size_t)width * height * 4 + 4096, err);
    if (rc != SFC_OK)
        return rc;
    begin(jpeg);
    if (setjmp(jpeg->escape) != 0) {
        jpeg_abort_compress(&jpeg->writer);
        return broken(jpeg, err);
    }
    write_pixels(jpeg, pixels, width, height, quality);
    if (jpeg->target != jpeg->encoded) { /* libjpeg took a larger buffer of its own */
        free(jpeg->target);
        return sfc_fail(err, SFC_EINTERNAL, "JPEG of %u x %u outgrew its bound", width, height);
    }
    *data = jpeg->encoded;
    *length = jpeg->target_length;
    return SFC_OK;
}
