#include "worker/report_spans.h"

#include "proto/span_list.h"

enum { CLOCK_CALLS = 5, REPORT_MS = 5000 };

struct clock {
    int64_t offset_ns; /* the scheduler's minus ours */
    uint64_t uncertainty_ns;
};

static int put(struct sfc_member *m, const Shardfc__V1__PutSpansRequest *request,
               struct clock *best, struct sfc_error *err)
{
    struct sfc_ask ask = {.method = "/shardfc.v1.Scheduler/PutSpans",
                          .message = &request->base,
                          .deadline_ms = REPORT_MS,
                          .reply_type = &shardfc__v1__put_spans_reply__descriptor};
    struct sfc_answer answer = {0};
    uint64_t sent = sfc_spans_now();
    int rc = sfc_member_ask(m, &ask, &answer, err);
    if (rc)
        return rc;
    const Shardfc__V1__PutSpansReply *reply = (const void *)answer.message;
    sfc_clock_estimate(sent, reply->received_ns, reply->replied_ns, sfc_spans_now(),
                       &best->offset_ns, &best->uncertainty_ns);
    sfc_answer_free(&answer);
    return SFC_OK;
}

int sfc_member_report_spans(struct sfc_member *m, const struct sfc_spans *spans,
                            struct sfc_error *err)
{
    Shardfc__V1__PutSpansRequest request = SHARDFC__V1__PUT_SPANS_REQUEST__INIT;
    struct clock clock = {0, UINT64_MAX};
    struct sfc_span_list list = {0};
    if (!m->trace.id)
        return SFC_OK;
    request.run_id = m->run_id;
    request.worker = m->worker;
    int rc = sfc_span_list_take(spans, m->trace.first - 1, m->trace.last, &list, err);
    for (int i = 0; i < CLOCK_CALLS && !rc; i++)
        rc = put(m, &request, &clock, err);
    request.trace = m->trace.id;
    request.spans = list.list;
    request.n_spans = list.count;
    request.gone = list.gone;
    request.since_ns = sfc_spans_since(spans);
    request.offset_ns = clock.offset_ns;
    request.uncertainty_ns = clock.uncertainty_ns;
    if (!rc)
        rc = put(m, &request, &clock, err);
    sfc_span_list_free(&list);
    m->trace.id = 0;
    return rc;
}
