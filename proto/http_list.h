/* A text of many items with ascending numbers, of which a reader gets those after a number that it
 * says: what it does not have yet. Pure. */
#ifndef SFC_PROTO_HTTP_LIST_H
#define SFC_PROTO_HTTP_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

/* All zero: empty, without a head. */
struct sfc_http_list {
    char *text; /* head, items with commas between them, tail */
    size_t size, room;
    size_t tail; /* where it begins */
    struct sfc_http_item {
        uint64_t number;
        size_t at;
    } * items;
    size_t count, items_room;
    bool failed; /* no memory: what follows is dropped */
};

/* In this order: what comes before the first item, items, what comes after the last one. */
void sfc_http_list_head(struct sfc_http_list *list, const char *text);
void sfc_http_list_item(struct sfc_http_list *list, uint64_t number, const char *text);
void sfc_http_list_tail(struct sfc_http_list *list, const char *text);
void sfc_http_list_free(struct sfc_http_list *list); /* all zero afterwards */

/* Head, the items with a greater number, tail. The caller frees *out. SFC_ENOMEM. */
int sfc_http_list_since(const struct sfc_http_list *list, uint64_t since, char **out, size_t *size);

#endif
