/* ReadSpans: a shard's part of a trace. */
#include <inttypes.h>

#include "proto/span_list.h"
#include "server/shard/shard_internal.h"

void sfc_shard_read_spans(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    uint64_t received = sfc_spans_now();
    struct sfc_span_list list = {0};
    Shardfc__V1__ReadSpansRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__read_spans_request__descriptor);
    if (!r)
        return;
    int code = SFC_OK;
    if (!shard->run || shard->run->id != r->run_id)
        code = sfc_fail(&err, SFC_ESTATE, "run_id: run %" PRIu64 " is not open here", r->run_id);
    if (code == SFC_OK && r->first_step <= r->last_step) /* else only the clock is asked */
        code = sfc_span_list_take(shard->spans, r->first_step, r->last_step, &list, &err);
    if (code == SFC_OK) {
        Shardfc__V1__ReadSpansReply m = SHARDFC__V1__READ_SPANS_REPLY__INIT;
        m.n_spans = list.count;
        m.spans = list.list;
        m.gone = list.gone;
        m.since_ns = sfc_spans_since(shard->spans);
        m.received_ns = received;
        m.replied_ns = sfc_spans_now();
        sfc_call_reply(call, &m);
    } else {
        sfc_shard_refuse(shard, call, code, err.text);
    }
    sfc_span_list_free(&list);
    sfc_message_free(r);
}
