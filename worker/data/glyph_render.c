#include "worker/data/glyph_render.h"

#include <stdlib.h>
#include <string.h>

#include <ft2build.h>
#include FT_FREETYPE_H

struct sfc_renderer {
    FT_Library library;
    FT_Face *faces;
    uint32_t count, size;
};

int sfc_renderer_new(const struct sfc_font *fonts, uint32_t count, uint32_t size,
                     struct sfc_renderer **out, struct sfc_error *err)
{
    int rc = SFC_OK;
    struct sfc_renderer *r = calloc(1, sizeof *r);
    if (r == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a renderer");
    r->size = size;
    r->faces = calloc(count, sizeof *r->faces);
    if (r->faces == NULL || FT_Init_FreeType(&r->library) != 0)
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for FreeType");
    for (uint32_t i = 0; i < count && rc == SFC_OK; i++) {
        FT_Error code =
            FT_New_Face(r->library, fonts[i].path, (FT_Long)fonts[i].face.index, &r->faces[i]);
        if (code == 0) {
            r->count = i + 1;
            code = FT_Set_Pixel_Sizes(r->faces[i], 0, size * 7 / 8);
        }
        if (code == 0)
            code = FT_Select_Charmap(r->faces[i], FT_ENCODING_UNICODE);
        if (code != 0)
            rc = sfc_fail(err, SFC_ECORRUPT, "font %s: FreeType error %d", fonts[i].path, code);
    }
    if (rc != SFC_OK) {
        sfc_renderer_free(r);
        return rc;
    }
    *out = r;
    return SFC_OK;
}

void sfc_renderer_free(struct sfc_renderer *r)
{
    if (r == NULL)
        return;
    for (uint32_t i = 0; i < r->count; i++)
        FT_Done_Face(r->faces[i]);
    if (r->library != NULL)
        FT_Done_FreeType(r->library);
    free(r->faces);
    free(r);
}

bool sfc_renderer_has(struct sfc_renderer *r, uint32_t font, uint32_t character)
{
    return FT_Get_Char_Index(r->faces[font], character) != 0;
}

/* The bitmap's box in the middle of the picture; what is larger is cut on all sides alike. */
static void place(const FT_Bitmap *bitmap, uint32_t size, uint8_t *pixels)
{
    memset(pixels, 0, (size_t)size * size);
    int width = (int)bitmap->width, rows = (int)bitmap->rows, side = (int)size;
    int left = (side - width) / 2, top = (side - rows) / 2;
    int from = left < 0 ? -left : 0, to = left + width > side ? side - left : width;
    for (int y = 0; y < rows; y++) {
        if (top + y < 0 || top + y >= side)
            continue;
        const uint8_t *row = bitmap->buffer + (ptrdiff_t)y * bitmap->pitch;
        memcpy(pixels + (top + y) * side + left + from, row + from, (size_t)(to - from));
    }
}

bool sfc_renderer_draw(struct sfc_renderer *r, uint32_t font, uint32_t character, uint8_t *pixels)
{
    FT_Face face = r->faces[font];
    FT_UInt glyph = character == 0 ? 0 : FT_Get_Char_Index(face, character);
    if (glyph == 0 && character != 0)
        return false;
    if (FT_Load_Glyph(face, glyph, FT_LOAD_NO_HINTING | FT_LOAD_NO_BITMAP) != 0 ||
        FT_Render_Glyph(face->glyph, FT_RENDER_MODE_NORMAL) != 0)
        return false;
    const FT_Bitmap *bitmap = &face->glyph->bitmap;
    if (bitmap->pixel_mode != FT_PIXEL_MODE_GRAY || bitmap->pitch < 0)
        return false;
    place(bitmap, r->size, pixels);
    return true;
}

bool sfc_glyph_is_blank(const uint8_t pixels[SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY])
{
    int inked = 0;
    for (int i = 0; i < SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY; i++)
        inked += pixels[i] > 40;
    return inked < 20;
}
