#include "server/scheduler/run_parts.h"

static const uint8_t phases[] = {
    [SFC_DELAY_NONE] = 0,
    [SFC_DELAY_AWAY] = SFC_SPAN_AWAY,
    [SFC_DELAY_RECOVERY] = SFC_SPAN_RECOVERY,
    [SFC_DELAY_TAKE] = SFC_SPAN_TAKE,
    [SFC_DELAY_WRITE_MAP] = SFC_SPAN_WRITE_MAP,
    [SFC_DELAY_SET_MAP] = SFC_SPAN_SET_MAP,
    [SFC_DELAY_BOUNDARY] = SFC_SPAN_BOUNDARY,
    [SFC_DELAY_ABORT] = SFC_SPAN_ABORT,
};

static void record(struct sfc_sched_run *run, uint64_t now)
{
    struct sfc_span span = {.phase = phases[run->delay.what],
                            .step = run->delay.step,
                            .micro_batch = UINT32_MAX,
                            .index = run->delay.place,
                            .begin_ns = run->delay.since,
                            .end_ns = now};
    if (span.phase && run->delay.since)
        sfc_spans_add(run->scheduler->spans, &span);
}

void sfc_sched_note_delay(struct sfc_sched_run *run)
{
    uint32_t place;
    uint64_t step = sfc_run_committed(&run->fsm) + 1;
    enum sfc_run_delay what = sfc_run_delayed(&run->fsm, &place);
    if (what == run->delay.what && place == run->delay.place && step == run->delay.step)
        return;
    uint64_t now = sfc_spans_now();
    record(run, now);
    run->delay.what = what;
    run->delay.place = place;
    run->delay.step = step;
    run->delay.since = now;
}

void sfc_sched_forget_times(struct sfc_sched_run *run)
{
    run->last_commit_us = run->times.committed = run->delay.since = 0;
    sfc_spans_forget(run->scheduler->spans);
}
