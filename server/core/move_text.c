/* Why: a plan in words. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/move_plan_internal.h"

enum { LINE = 200, OTHER_LINES = 6 };

struct text {
    char *bytes;
    size_t used, size;
};

__attribute__((format(printf, 2, 3))) static void line(struct text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->bytes + t->used, t->size - t->used, format, args);
    va_end(args);
    if (n > 0)
        t->used += (size_t)n < t->size - t->used ? (size_t)n : t->size - t->used - 1;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

struct share {
    uint32_t blocks;
    double load;
    uint64_t bytes;
};

static void add(struct share *s, const struct sfc_plan_block *block)
{
    s->blocks++;
    s->load += block->load;
    s->bytes += block->bytes;
}

static void say_shard(struct text *t, const struct sfc_plan_shard *s, const char *what,
                      const struct share *before, const struct share *after, double all)
{
    line(t,
         "shard %llu (%.80s)%s: %u -> %u blocks, %.1f -> %.1f %% of the work, %.1f -> %.1f MiB of "
         "%.1f\n",
         (unsigned long long)s->id, s->host, what, before->blocks, after->blocks,
         100 * before->load / all, 100 * after->load / all, mib(s->fixed + before->bytes),
         mib(s->fixed + after->bytes), mib(s->limit));
}

static void say_shards(struct text *t, const struct sfc_plan_work *w,
                       const struct sfc_move_plan *plan)
{
    struct share before[SFC_CORE_MAX_SHARDS] = {0}, after[SFC_CORE_MAX_SHARDS];
    double all = 0;
    for (uint32_t b = 0; b < w->blocks; b++) {
        add(&before[w->input->blocks[b].owner], &w->input->blocks[b]);
        all += w->input->blocks[b].load;
    }
    memcpy(after, before, sizeof after);
    for (uint32_t i = 0; i < plan->move_count; i++) {
        const struct sfc_plan_block *block = &w->input->blocks[plan->moves[i].block];
        struct share *from = &after[plan->moves[i].from];
        add(&after[plan->moves[i].to], block);
        from->blocks--;
        from->load -= block->load;
        from->bytes -= block->bytes;
        if (from->blocks == 0)
            from->load = 0; /* no rounding errors */
    }
    for (uint32_t k = 0; k < w->input->shard_count; k++)
        if (w->input->shards[k].member || plan->joins[k])
            say_shard(t, &w->input->shards[k],
                      plan->joins[k]    ? " joins"
                      : plan->leaves[k] ? " leaves"
                                        : "",
                      &before[k], &after[k], all);
}

static void say_time(struct text *t, const struct sfc_move_plan *plan)
{
    if (plan->estimated_s > 0)
        line(t, ", about %.*f s", plan->estimated_s < 10 ? 1 : 0, plan->estimated_s);
    line(t, "\n");
}

int sfc_plan_explain(const struct sfc_plan_work *w, struct sfc_move_plan *plan,
                     struct sfc_error *err)
{
    size_t size = (size_t)LINE * (w->input->shard_count + OTHER_LINES);
    struct text t = {.bytes = calloc(size, 1), .size = size};
    if (!t.bytes)
        return sfc_fail(err, SFC_ENOMEM, "explanation of the plan");
    if (plan->missing > 0)
        line(&t, "waits for %u more shard%s to register; nothing moves before\n", plan->missing,
             plan->missing == 1 ? "" : "s");
    else if (plan->move_count == 0)
        line(&t, "no block moves\n");
    if (plan->move_count > 0) {
        line(&t, "%u of %u blocks move: %.1f MiB in %u batch%s", plan->move_count, w->blocks,
             mib(plan->bytes), plan->batch_count, plan->batch_count == 1 ? "" : "es");
        say_time(&t, plan);
    }
    say_shards(&t, w, plan);
    line(&t, "work is counted in rows that a step samples and in blocks, %s\n",
         w->input->measured ? "measured over the last steps"
                            : "as they are expected: nothing is measured yet");
    line(&t, "expected step of the slowest shard: %.2f x the mean now, %.2f x afterwards\n",
         plan->slowest_before, plan->slowest_after);
    if (plan->stuck > 0)
        line(&t,
             "%u blocks stay where they are, because no shard has room for them while others move "
             "(shardfc-shard --memory)\n",
             plan->stuck);
    plan->text = t.bytes;
    return SFC_OK;
}
