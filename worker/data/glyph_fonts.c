#include "worker/data/glyph_fonts.h"

#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <ft2build.h>
#include FT_FREETYPE_H

struct known {
    const char *family, *style; /* style NULL: any */
    const char *group;
    bool holdout;
};

/* Families of one descent share a group: WenQuanYi Micro Hei is drawn from Droid, Takao from IPA,
 * VL, UmePlus, Ume's kanji and Konatu from or with M+, BabelStone Han and the U* fonts from Arphic,
 * LXGW WenKai from Klee. MMCedar mixes Motoya with M+, so it may stand on neither side and is not
 * here. The first part comes from deploy/font-packages; the second is used where it is installed.
 */
static const struct known table[] = {
    {"WenQuanYi Zen Hei", NULL, "wenquanyi", false},
    {"WenQuanYi Micro Hei", NULL, "droid", false},
    {"Droid Sans Fallback", NULL, "droid", false},
    {"AR PL KaitiM Big5", NULL, "arphic", false},
    {"AR PL Mingti2L Big5", NULL, "arphic", false},
    {"AR PL SungtiL GB", NULL, "arphic", false},
    {"AR PL KaitiM GB", NULL, "arphic", false},
    {"AR PL UKai CN", NULL, "arphic", false},
    {"AR PL UMing CN", NULL, "arphic", false},
    {"BabelStone Han", NULL, "arphic", false},
    {"HanaMinA", NULL, "hanazono", false},
    {"IPAGothic", NULL, "ipa", false},
    {"IPAMincho", NULL, "ipa", false},
    {"VL Gothic", NULL, "mplus", false},
    {"UmePlus Gothic", NULL, "mplus", false},
    {"Ume Mincho", NULL, "mplus", false},
    {"Konatu", NULL, "mplus", false},
    {"Sawarabi Gothic", NULL, "sawarabi", false},
    {"Sawarabi Mincho", NULL, "sawarabi", false},
    {"BIZ UDGothic", "Regular", "bizud", false},
    {"BIZ UDMincho", NULL, "bizud", false},
    {"Unifont", NULL, "unifont", false},
    {"Unifont-JP", NULL, "unifont", false},

    {"Noto Sans CJK JP", "Regular", "noto", false},
    {"Noto Sans CJK SC", "Regular", "noto", false},
    {"Noto Sans CJK TC", "Regular", "noto", false},
    {"Noto Serif CJK JP", "Regular", "noto", false},
    {"Noto Serif CJK SC", "Regular", "noto", false},
    {"Noto Serif CJK TC", "Regular", "noto", false},
    {"Noto Sans CJK JP", "Bold", "noto", false},
    {"Noto Serif CJK JP", "Bold", "noto", false},
    {"IPAexGothic", NULL, "ipa", false},
    {"IPAexMincho", NULL, "ipa", false},
    {"IPAmjMincho", NULL, "ipa", false},
    {"TakaoGothic", NULL, "ipa", false},
    {"TakaoMincho", NULL, "ipa", false},
    {"MigMix 1P", "Regular", "mplus", false},
    {"Komatuna", NULL, "mplus", false},
    {"Ume Gothic O5", NULL, "mplus", false},
    {"BIZ UDGothic", "Bold", "bizud", false},
    {"Klee One", "Regular", "klee", false},
    {"LXGW WenKai", "Regular", "klee", false},
    {"TW-Kai", NULL, "cns11643", false},
    {"TW-Sung", NULL, "cns11643", false},

    {"cwTeXMing", NULL, "cwtex", true},
    {"cwTeXKai", NULL, "cwtex", true},
    {"cwTeXFangSong", NULL, "cwtex", true},
    {"cwTeXHeiBold", NULL, "cwtex", true},
    {"cwTeXYen", NULL, "cwtex", true},
    {"MotoyaLCedar", NULL, "motoya", true},
    {"MotoyaLMaru", NULL, "motoya", true},
    {"Dejima", NULL, "dejima", true},
};
#define TABLE_SIZE (sizeof table / sizeof table[0])

static uint32_t find_known(const char *family, const char *style)
{
    uint32_t i = 0;
    while (i < TABLE_SIZE && (strcmp(table[i].family, family) != 0 ||
                              (table[i].style != NULL && strcmp(table[i].style, style) != 0)))
        i++;
    return i;
}

/* found[rank] becomes this face, unless the one there has as many glyphs. */
static int take_face(struct sfc_font *found, FT_Face face, const char *path, uint32_t index,
                     struct sfc_error *err)
{
    const char *family = face->family_name != NULL ? face->family_name : "";
    const char *style = face->style_name != NULL ? face->style_name : "";
    uint32_t rank = find_known(family, style);
    if (rank == TABLE_SIZE || !FT_IS_SCALABLE(face))
        return SFC_OK;
    struct sfc_font *font = &found[rank];
    uint64_t glyphs = (uint64_t)face->num_glyphs;
    if (font->path != NULL && font->glyphs >= glyphs)
        return SFC_OK;
    char *copy = strdup(path);
    if (copy == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    free(font->path);
    memset(font, 0, sizeof *font);
    font->path = copy;
    font->rank = rank;
    font->glyphs = glyphs;
    const char *slash = strrchr(path, '/');
    snprintf(font->face.family, sizeof font->face.family, "%s", family);
    snprintf(font->face.style, sizeof font->face.style, "%s", style);
    snprintf(font->face.group, sizeof font->face.group, "%s", table[rank].group);
    snprintf(font->face.file, sizeof font->face.file, "%s", slash != NULL ? slash + 1 : path);
    font->face.index = index;
    font->face.holdout = table[rank].holdout;
    return SFC_OK;
}

/* A file that FreeType can't open is not a font of ours: skipped. */
static int look_at(FT_Library library, const char *path, struct sfc_font *found,
                   struct sfc_error *err)
{
    FT_Face face = NULL;
    if (FT_New_Face(library, path, -1, &face) != 0)
        return SFC_OK;
    FT_Long faces = face->num_faces;
    FT_Done_Face(face);
    int rc = SFC_OK;
    for (FT_Long i = 0; i < faces && rc == SFC_OK; i++) {
        if (FT_New_Face(library, path, i, &face) != 0)
            continue;
        rc = take_face(found, face, path, (uint32_t)i, err);
        FT_Done_Face(face);
    }
    return rc;
}

static bool is_font(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL && (strcasecmp(dot, ".ttf") == 0 || strcasecmp(dot, ".ttc") == 0 ||
                           strcasecmp(dot, ".otf") == 0 || strcasecmp(dot, ".otc") == 0);
}

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static int search(FT_Library library, const char *folder, struct sfc_font *found,
                  struct sfc_error *err)
{
    char *copy = strdup(folder);
    if (copy == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    char *roots[2] = {copy, NULL};
    FTS *tree = fts_open(roots, FTS_LOGICAL | FTS_NOCHDIR, by_name);
    int rc = SFC_OK;
    if (tree == NULL)
        rc = sfc_fail_errno(err, "read font folder %s", folder);
    FTSENT *entry = NULL;
    while (rc == SFC_OK && (entry = fts_read(tree)) != NULL)
        if (entry->fts_info == FTS_F && is_font(entry->fts_name))
            rc = look_at(library, entry->fts_path, found, err);
    if (tree != NULL)
        fts_close(tree);
    free(copy);
    return rc;
}

/* Moves the faces that exist to the front, in the order of the table. */
static uint32_t compact(struct sfc_font *found)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < TABLE_SIZE; i++) {
        if (found[i].path == NULL)
            continue;
        struct sfc_font font = found[i];
        memset(&found[i], 0, sizeof found[i]);
        found[count++] = font;
    }
    return count;
}

static int check_sides(const struct sfc_font *fonts, uint32_t count, const char *folder,
                       struct sfc_error *err)
{
    uint32_t training = 0, holdout = 0;
    for (uint32_t i = 0; i < count; i++)
        *(fonts[i].face.holdout ? &holdout : &training) += 1;
    if (training > 0 && holdout > 0)
        return SFC_OK;
    return sfc_fail(err, SFC_ENOTFOUND,
                    "%u training and %u held-out font faces found below %s: install the packages "
                    "that deploy/font-packages lists",
                    training, holdout, folder);
}

int sfc_fonts_find(const char *folder, struct sfc_font **fonts, uint32_t *count,
                   struct sfc_error *err)
{
    FT_Library library = NULL;
    struct sfc_font *found = calloc(TABLE_SIZE, sizeof *found);
    if (found == NULL || FT_Init_FreeType(&library) != 0) {
        free(found);
        return sfc_fail(err, SFC_ENOMEM, "no memory for FreeType");
    }
    int rc = search(library, folder, found, err);
    FT_Done_FreeType(library);
    uint32_t n = compact(found);
    if (rc == SFC_OK)
        rc = check_sides(found, n, folder, err);
    if (rc != SFC_OK) {
        sfc_fonts_free(found, n);
        return rc;
    }
    *fonts = found;
    *count = n;
    return SFC_OK;
}

void sfc_fonts_free(struct sfc_font *fonts, uint32_t count)
{
    for (uint32_t i = 0; i < count && fonts != NULL; i++)
        free(fonts[i].path);
    free(fonts);
}
