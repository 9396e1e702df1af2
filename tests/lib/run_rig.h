/* A run's machine (server/core/run_fsm.h) of two shards at first, 10 and 11, by hand: events in,
 * actions looked up. Failures end the test. */
#ifndef SFC_TESTS_RUN_RIG_H
#define SFC_TESTS_RUN_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "server/core/run_fsm.h"

#define ORDER 77
#define STEPS 50

struct fixture {
    struct sfc_run_fsm run;
    struct sfc_run_actions a;
    struct sfc_run_config config;
    uint64_t ids[3];
    uint64_t now;
};

/* Of cmocka: *state is a struct fixture that is not begun. */
int set_up(void **state);
int tear_down(void **state);

/* ---- events */

/* An event at f->now; f->a has the actions. */
void step(struct fixture *f, struct sfc_run_event e);
void tick(struct fixture *f, uint64_t ms);

/* ---- what the machine does */

/* The first action of a type of the last event, NULL without one. */
const struct sfc_run_action *find(struct fixture *f, enum sfc_run_action_type type);
/* What it has just sent to shard k for a duty, NULL without it. */
const struct sfc_run_action *sent(struct fixture *f, uint32_t k, enum sfc_duty duty);
/* Whether it wants that of shard k, sent or not. */
bool wanted(const struct fixture *f, uint32_t k, enum sfc_duty duty);

/* ---- answers of shards */

struct sfc_run_event answer_of(struct fixture *f, uint32_t k, enum sfc_duty duty);
void answer(struct fixture *f, uint32_t k, enum sfc_duty duty);
void refuse(struct fixture *f, uint32_t k, enum sfc_duty duty, int code);
void answer_all(struct fixture *f, enum sfc_duty duty);
/* It is back, restarted: an event for step(). */
struct sfc_run_event back(uint32_t k, uint64_t version, uint64_t applied);

/* ---- a run */

/* Opened at all shards, or to be opened by restore. */
void begin(struct fixture *f, const struct sfc_run_restore *restore);
void announce(struct fixture *f, uint64_t t);
struct sfc_attempt grant(struct fixture *f);
void done(struct fixture *f, uint64_t t, struct sfc_attempt attempt);
/* The open step, whose plan is out, to its durable record; Commits are not answered. */
void record(struct fixture *f);
/* A whole step. */
void commit(struct fixture *f);

/* ---- orders, of number ORDER */

void order(struct fixture *f, enum sfc_order_kind kind, uint32_t shard, uint32_t from);
/* Its map is durable. */
void durable(struct fixture *f);
/* It came to nothing, with this code: map 1 stays. */
void assert_void(struct fixture *f, int code);
/* It is done, and map 2 counts. */
void assert_done(struct fixture *f);
/* Blocks of shard 0 go to shard 1; the copy is there, and step 1 is committed. */
void fetched(struct fixture *f);
/* Shard 12 is asked to join; step 1 is committed. */
void joined(struct fixture *f);
void order_growth(struct fixture *f, uint64_t classes);
/* Shard k's heartbeat names a run. */
void says(struct fixture *f, uint32_t k, uint64_t run_id);

#endif
