#include "proto/span_list.h"

#include <stdlib.h>

static void fill(const struct sfc_span *s, Shardfc__V1__Span *out)
{
    shardfc__v1__span__init(out);
    out->phase = s->phase;
    out->thread = s->thread;
    out->index = s->index;
    out->step = s->step;
    out->micro_batch = s->micro_batch;
    out->rows = s->rows;
    out->bytes = s->bytes;
    out->begin_ns = s->begin_ns;
    out->end_ns = s->end_ns;
}

int sfc_span_list_take(const struct sfc_spans *spans, uint64_t first, uint64_t last,
                       struct sfc_span_list *out, struct sfc_error *err)
{
    struct sfc_span_list list = {.spans = malloc(SFC_SPANS_KEPT * sizeof *list.spans)};
    if (list.spans != NULL) {
        list.count = sfc_spans_take(spans, first, last, list.spans, SFC_SPANS_KEPT, &list.gone);
    }
    list.items = calloc(list.count + 1, sizeof *list.items);
    list.list = calloc(list.count + 1, sizeof *list.list);
    if (list.spans == NULL || list.items == NULL || list.list == NULL) {
        sfc_span_list_free(&list);
        return sfc_fail(err, SFC_ENOMEM, "no memory for the spans of a trace");
    }
    for (size_t i = 0; i < list.count; i++) {
        fill(&list.spans[i], &list.items[i]);
        list.list[i] = &list.items[i];
    }
    *out = list;
    return SFC_OK;
}

void sfc_span_list_free(struct sfc_span_list *list)
{
    free(list->spans);
    free(list->items);
    free(list->list);
    *list = (struct sfc_span_list){0};
}

bool sfc_span_of_message(const Shardfc__V1__Span *m, struct sfc_span *out)
{
    if (sfc_phase_name(m->phase) == NULL || sfc_thread_name(m->thread) == NULL ||
        m->end_ns < m->begin_ns || m->end_ns > INT64_MAX) {
        return false;
    }
    *out = (struct sfc_span){.begin_ns = m->begin_ns,
                             .end_ns = m->end_ns,
                             .step = m->step,
                             .bytes = m->bytes,
                             .rows = m->rows,
                             .micro_batch = m->micro_batch,
                             .index = m->index,
                             .phase = (uint8_t)m->phase,
                             .thread = (uint8_t)m->thread};
    return true;
}
