/* Draws characters with the faces of a font list: centred, unhinted, white on black. */
#ifndef SFC_WORKER_DATA_GLYPH_RENDER_H
#define SFC_WORKER_DATA_GLYPH_RENDER_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/data/glyph_fonts.h"

#define SFC_GLYPH_SURVEY 32 /* pixels a side at which glyphs are judged */

struct sfc_renderer; /* all faces open; one thread at a time */

/* Pictures of size x size. The em square takes 7/8 of a side. */
int sfc_renderer_new(const struct sfc_font *fonts, uint32_t count, uint32_t size,
                     struct sfc_renderer **out, struct sfc_error *err);
void sfc_renderer_free(struct sfc_renderer *renderer); /* NULL is fine */

/* The face's character map holds the character. */
bool sfc_renderer_has(struct sfc_renderer *renderer, uint32_t font, uint32_t character);
/* pixels [size, size]. false: no such glyph, or FreeType can't draw it. character 0: the glyph that
 * stands for missing ones. */
bool sfc_renderer_draw(struct sfc_renderer *renderer, uint32_t font, uint32_t character,
                       uint8_t *pixels);
/* Fewer than 20 of 32 x 32 pixels above 40. */
bool sfc_glyph_is_blank(const uint8_t pixels[SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY]);

#endif
