/* Spans of steps (proto/base/spans.h) as messages of a trace, and back. */
#ifndef SFC_PROTO_SPAN_LIST_H
#define SFC_PROTO_SPAN_LIST_H

#include "proto/base/spans.h"
#include "proto/shardfc.pb-c.h"

struct sfc_span_list {
    struct sfc_span *spans; /* owned, like the messages */
    Shardfc__V1__Span *items, **list;
    size_t count;
    bool gone; /* some may be missing: as sfc_spans_take has it */
};

/* What the recorder still has of these steps. */
int sfc_span_list_take(const struct sfc_spans *spans, uint64_t first, uint64_t last,
                       struct sfc_span_list *out, struct sfc_error *err);
void sfc_span_list_free(struct sfc_span_list *list); /* all zero is fine */

/* A peer's message; false: no span of a phase and a thread that are known, or it ends before it
 * begins. */
bool sfc_span_of_message(const Shardfc__V1__Span *message, struct sfc_span *out);

#endif
