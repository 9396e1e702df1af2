/* Which block is copied next, and when: pure arithmetic over steps, bytes and the time that the
 * caller passes in. The block whose newest snapshot is oldest is next, so after one round every
 * block is at most one round old.
 *
 * A round takes P steps: a crash replays up to P of them, which must fit the recovery target, and
 * the log spans up to 2 P (the floor is the second-newest), which must fit its budget:
 *
 *   P = max(1, min(0.8 * target / replay time of a step, 0.75 * log limit / (2 * log bytes of a
 * step)))
 *
 * Each step earns state bytes / P; a block is due when its bytes are earned. When three quarters of
 * the budget are used, or the caller says urgent (the log refused a step; a base snapshot before
 * the first Ready), blocks are due at once. Writing is held to `rate` bytes per second by a token
 * bucket of one second, except when urgent. */
#ifndef SFC_DURABLE_SWEEP_H
#define SFC_DURABLE_SWEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_sweep_config {
    uint64_t recovery_target_ms; /* --recovery-target; 0: the log budget alone sets the pace */
    uint64_t log_limit;          /* bytes; 0: none */
    uint64_t rate;               /* --snapshot-rate, bytes per second; 0: no bound */
    uint64_t start_step;
};

struct sfc_sweep_block {
    uint64_t bytes; /* of its snapshot */
    uint64_t stamp; /* newest snapshot; start_step where there is none */
    bool has;       /* there is a snapshot */
};

struct sfc_sweep {
    struct sfc_sweep_config config;
    struct sfc_sweep_block *blocks;
    size_t count;
    uint64_t total_bytes;
    uint64_t step; /* newest applied */
    double credit; /* bytes earned and not used */
    uint64_t log_used;
    double replay_ms;    /* of a step */
    uint64_t step_bytes; /* log bytes of a step */
    bool urgent;
    double tokens; /* bytes that may be written now */
    uint64_t tokens_at_ms;
};

/* bytes: of each block's snapshot. No block has a snapshot yet. SFC_ENOMEM. */
int sfc_sweep_init(struct sfc_sweep *sweep, const struct sfc_sweep_config *config,
                   const uint64_t *bytes, size_t count, struct sfc_error *err);
void sfc_sweep_close(struct sfc_sweep *sweep);

/* The blocks are others now: bytes as in init, was[i]: the index that block i had before, SIZE_MAX:
 * it is new and has no snapshot. Nothing else changes. SFC_ENOMEM leaves all as it was. */
int sfc_sweep_change(struct sfc_sweep *sweep, const uint64_t *bytes, const size_t *was,
                     size_t count, struct sfc_error *err);

/* Block `index` has a durable snapshot of this stamp (written now, or found at start). */
void sfc_sweep_stamped(struct sfc_sweep *sweep, size_t index, uint64_t stamp);
/* A step has been applied. replay_ms: how long its replay would take (the compute time of a step);
 * step_bytes, log_used: bytes of the log for a step, and of the whole log. */
void sfc_sweep_applied(struct sfc_sweep *sweep, uint64_t step, double replay_ms,
                       uint64_t step_bytes, uint64_t log_used);
void sfc_sweep_urgent(struct sfc_sweep *sweep, bool urgent);
/* Steps of a round, P above. */
uint64_t sfc_sweep_round_steps(const struct sfc_sweep *sweep);
/* True and the block that is to be copied now; its bytes are spent. False: nothing is due, or every
 * block has the state of the newest step. */
bool sfc_sweep_next(struct sfc_sweep *sweep, size_t *index);
/* Bytes that may be written at this time; wrote takes them. */
uint64_t sfc_sweep_allowance(struct sfc_sweep *sweep, uint64_t now_ms);
void sfc_sweep_wrote(struct sfc_sweep *sweep, uint64_t bytes);
/* Every block has a snapshot (a base is complete). */
bool sfc_sweep_complete(const struct sfc_sweep *sweep);
/* Steps that a crash now would replay, and about how long that takes. */
uint64_t sfc_sweep_lag(const struct sfc_sweep *sweep);
double sfc_sweep_recovery_ms(const struct sfc_sweep *sweep);

#endif
