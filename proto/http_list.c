#include "proto/http_list.h"

#include <stdlib.h>
#include <string.h>

static void append(struct sfc_http_list *l, const char *text)
{
    size_t size = strlen(text);
    if (!l->failed && l->size + size + 1 > l->room) {
        size_t room = (l->size + size + 1) * 2;
        char *larger = realloc(l->text, room);
        l->failed = larger == NULL;
        l->text = larger != NULL ? larger : l->text;
        l->room = larger != NULL ? room : l->room;
    }
    if (l->failed) {
        return;
    }
    memcpy(l->text + l->size, text, size + 1);
    l->size += size;
}

void sfc_http_list_head(struct sfc_http_list *l, const char *text)
{
    append(l, text);
    l->tail = l->size;
}

void sfc_http_list_item(struct sfc_http_list *l, uint64_t number, const char *text)
{
    if (l->count == l->items_room) {
        size_t room = l->items_room * 2 + 64;
        struct sfc_http_item *larger = realloc(l->items, room * sizeof *larger);
        if (larger == NULL) {
            l->failed = true;
            return;
        }
        l->items = larger;
        l->items_room = room;
    }
    if (l->count > 0) {
        append(l, ",");
    }
    l->items[l->count] = (struct sfc_http_item){number, l->size};
    append(l, text);
    l->count += !l->failed;
    l->tail = l->size;
}

void sfc_http_list_tail(struct sfc_http_list *l, const char *text)
{
    append(l, text);
}

void sfc_http_list_free(struct sfc_http_list *l)
{
    free(l->text);
    free(l->items);
    *l = (struct sfc_http_list){0};
}

/* Where the first item with a greater number begins; the tail if there is none. */
static size_t begin(const struct sfc_http_list *l, uint64_t since)
{
    size_t low = 0, high = l->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (l->items[middle].number > since) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low < l->count ? l->items[low].at : l->tail;
}

int sfc_http_list_since(const struct sfc_http_list *l, uint64_t since, char **out, size_t *size)
{
    size_t head = l->count > 0 ? l->items[0].at : l->tail, from = begin(l, since);
    char *text = malloc(head + (l->size - from) + 1);
    if (text == NULL) {
        return SFC_ENOMEM;
    }
    if (l->size > 0) {
        memcpy(text, l->text, head);
        memcpy(text + head, l->text + from, l->size - from);
    }
    *size = head + (l->size - from);
    text[*size] = '\0';
    *out = text;
    return SFC_OK;
}
