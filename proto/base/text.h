/* Texts that somebody else wrote. */
#ifndef SFC_BASE_TEXT_H
#define SFC_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the UTF-8 character at text (1..4); 0: malformed, overlong, a surrogate or too large. */
size_t sfc_utf8_length(const unsigned char *text);

/* C0, DEL, C1: they move a terminal's cursor, forge lines or do worse. at: a well-formed character.
 */
bool sfc_is_control(const unsigned char *at);

/* Control characters and bytes that are no UTF-8 become question marks, a byte each; with `lines`
 * newlines stay. */
void sfc_clean_text(char *text, bool lines);

/* After an snprintf of `wanted` bytes: marks a text that did not fit, so that nobody takes a cut
 * sentence for the whole one. No character is cut. */
void sfc_mark_cut(char *text, size_t size, int wanted);

#endif
