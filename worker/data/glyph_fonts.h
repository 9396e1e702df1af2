/* Which installed font faces draw glyph identities, and on which side each may stand. Pure table
 * plus a search of the font folder; no font configuration is consulted, so that the result depends
 * on the files alone. */
#ifndef SFC_WORKER_DATA_GLYPH_FONTS_H
#define SFC_WORKER_DATA_GLYPH_FONTS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "worker/data/glyphs.h"

struct sfc_font {
    struct sfc_glyph_face face; /* for the report; counters 0 */
    char *path;
    uint32_t rank;   /* position in the table */
    uint64_t glyphs; /* in the file */
};

/* Known faces below `folder` in the order of the table: of several files with one family and style,
 * the one with most glyphs. *fonts is malloc'ed. SFC_ENOTFOUND: not one training face or not one
 * held-out face. */
int sfc_fonts_find(const char *folder, struct sfc_font **fonts, uint32_t *count,
                   struct sfc_error *err);
void sfc_fonts_free(struct sfc_font *fonts, uint32_t count); /* NULL is fine */

#endif
