/* How far a word that somebody typed is from one that exists. */
#ifndef SFC_BASE_EDIT_DISTANCE_H
#define SFC_BASE_EDIT_DISTANCE_H

#include <stddef.h>

/* Letters to add, leave out or change; SIZE_MAX: b is longer than 64. */
size_t sfc_edit_distance(const char *a, const char *b);

#endif
