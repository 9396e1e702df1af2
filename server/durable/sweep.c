#include "server/durable/sweep.h"

#include <stdlib.h>

int sfc_sweep_init(struct sfc_sweep *sweep, const struct sfc_sweep_config *config,
                   const uint64_t *bytes, size_t count, struct sfc_error *err)
{
    struct sfc_sweep_block *blocks = calloc(count + 1, sizeof *blocks);
    if (blocks == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the sweep over %zu blocks", count);
    }
    *sweep = (struct sfc_sweep){
        .config = *config, .blocks = blocks, .count = count, .step = config->start_step};
    for (size_t i = 0; i < count; i++) {
        blocks[i] = (struct sfc_sweep_block){.bytes = bytes[i], .stamp = config->start_step};
        sweep->total_bytes += bytes[i];
    }
    return SFC_OK;
}

void sfc_sweep_close(struct sfc_sweep *sweep)
{
    free(sweep->blocks);
    *sweep = (struct sfc_sweep){0};
}

int sfc_sweep_change(struct sfc_sweep *sweep, const uint64_t *bytes, const size_t *was,
                     size_t count, struct sfc_error *err)
{
    struct sfc_sweep_block *blocks = calloc(count + 1, sizeof *blocks);
    if (blocks == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the sweep over %zu blocks", count);
    }
    sweep->total_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        blocks[i] = (struct sfc_sweep_block){.stamp = sweep->config.start_step};
        if (was[i] < sweep->count) {
            blocks[i] = sweep->blocks[was[i]];
        }
        blocks[i].bytes = bytes[i];
        sweep->total_bytes += bytes[i];
    }
    free(sweep->blocks);
    sweep->blocks = blocks;
    sweep->count = count;
    double total = (double)sweep->total_bytes;
    sweep->credit = sweep->credit < total ? sweep->credit : total;
    return SFC_OK;
}

void sfc_sweep_stamped(struct sfc_sweep *sweep, size_t index, uint64_t stamp)
{
    struct sfc_sweep_block *block = &sweep->blocks[index];
    if (!block->has || stamp > block->stamp) {
        block->stamp = stamp;
    }
    block->has = true;
}

uint64_t sfc_sweep_round_steps(const struct sfc_sweep *sweep)
{
    const struct sfc_sweep_config *c = &sweep->config;
    double steps = 1e15;
    if (c->recovery_target_ms != 0 && sweep->replay_ms > 0) {
        steps = 0.8 * (double)c->recovery_target_ms / sweep->replay_ms;
    }
    if (c->log_limit != 0 && sweep->step_bytes != 0) {
        double budget = 0.75 * (double)c->log_limit / (2 * (double)sweep->step_bytes);
        steps = budget < steps ? budget : steps;
    }
    return steps < 1 ? 1 : (uint64_t)steps;
}

void sfc_sweep_applied(struct sfc_sweep *sweep, uint64_t step, double replay_ms,
                       uint64_t step_bytes, uint64_t log_used)
{
    sweep->step = step;
    sweep->replay_ms = replay_ms;
    sweep->step_bytes = step_bytes;
    sweep->log_used = log_used;
    /* A round's worth at most: after a long stop the sweep doesn't burst. */
    double total = (double)sweep->total_bytes;
    sweep->credit += total / (double)sfc_sweep_round_steps(sweep);
    sweep->credit = sweep->credit < total ? sweep->credit : total;
}

void sfc_sweep_urgent(struct sfc_sweep *sweep, bool urgent)
{
    sweep->urgent = urgent;
}

static bool pressed(const struct sfc_sweep *sweep)
{
    return sweep->urgent || (sweep->config.log_limit != 0 &&
                             (double)sweep->log_used > 0.75 * (double)sweep->config.log_limit);
}

/* Blocks without a snapshot first, then the oldest; of equals the first. */
static bool older(const struct sfc_sweep_block *a, const struct sfc_sweep_block *b)
{
    return a->has != b->has ? !a->has : a->stamp < b->stamp;
}

bool sfc_sweep_next(struct sfc_sweep *sweep, size_t *index)
{
    size_t oldest = 0;
    for (size_t i = 1; i < sweep->count; i++) {
        if (older(&sweep->blocks[i], &sweep->blocks[oldest])) {
            oldest = i;
        }
    }
    const struct sfc_sweep_block *block = &sweep->blocks[oldest];
    bool fresh = sweep->count == 0 ||
                 (block->has ? block->stamp >= sweep->step
                             : sweep->step == sweep->config.start_step && !sweep->urgent);
    double bytes = (double)block->bytes;
    if (fresh || (!pressed(sweep) && sweep->credit < bytes)) {
        return false;
    }
    sweep->credit -= sweep->credit < bytes ? sweep->credit : bytes;
    *index = oldest;
    return true;
}

uint64_t sfc_sweep_allowance(struct sfc_sweep *sweep, uint64_t now_ms)
{
    double rate = (double)sweep->config.rate;
    if (sweep->config.rate == 0 || pressed(sweep)) {
        return UINT64_MAX;
    }
    if (now_ms > sweep->tokens_at_ms) {
        sweep->tokens += rate * (double)(now_ms - sweep->tokens_at_ms) / 1000;
        sweep->tokens_at_ms = now_ms;
    }
    sweep->tokens = sweep->tokens < rate ? sweep->tokens : rate;
    return sweep->tokens > 0 ? (uint64_t)sweep->tokens : 0;
}

void sfc_sweep_wrote(struct sfc_sweep *sweep, uint64_t bytes)
{
    if (sweep->config.rate != 0) {
        sweep->tokens -= (double)bytes;
    }
}

bool sfc_sweep_complete(const struct sfc_sweep *sweep)
{
    for (size_t i = 0; i < sweep->count; i++) {
        if (!sweep->blocks[i].has) {
            return false;
        }
    }
    return true;
}

uint64_t sfc_sweep_lag(const struct sfc_sweep *sweep)
{
    uint64_t oldest = sweep->step;
    for (size_t i = 0; i < sweep->count; i++) {
        oldest = sweep->blocks[i].stamp < oldest ? sweep->blocks[i].stamp : oldest;
    }
    return sweep->step - oldest;
}

double sfc_sweep_recovery_ms(const struct sfc_sweep *sweep)
{
    return (double)sfc_sweep_lag(sweep) * sweep->replay_ms;
}
