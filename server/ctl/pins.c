#include "server/ctl/pins.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "server/ctl/hold.h"
#include "server/ctl/reach.h"

#define WATCH_DEADLINE_MS 30000
#define PATIENCE_S        60.0 /* without a scheduler */
#define PUT_AWAY_MS       200

static const Shardfc__V1__HoldReply *reply_of(const struct sfc_pins *pins)
{
    return (const Shardfc__V1__HoldReply *)pins->answer.message;
}

const Shardfc__V1__RunConfig *sfc_pins_config(const struct sfc_pins *pins)
{
    return reply_of(pins)->config;
}

/* ---- the scheduler */

/* Waits a moment for the step. The answer is the caller's. */
static int ask_watch(struct sfc_pins *pins, uint64_t run_id, uint64_t step,
                     struct sfc_answer *answer, struct sfc_error *err)
{
    Shardfc__V1__HoldRequest request = SHARDFC__V1__HOLD_REQUEST__INIT;
    request.watch = true;
    request.at_step = step;
    request.run_id = run_id;
    int code =
        sfc_cluster_scheduler(pins->cluster, "Hold", &request.base,
                              &shardfc__v1__hold_reply__descriptor, WATCH_DEADLINE_MS, answer, err);
    if (code == SFC_OK) {
        pins->committed = ((const Shardfc__V1__HoldReply *)answer->message)->step;
    }
    return code;
}

static int first_watch(struct sfc_pins *pins, struct sfc_error *err)
{
    int code = ask_watch(pins, 0, 0, &pins->answer, err);
    return code == SFC_OK && (reply_of(pins)->config == NULL || reply_of(pins)->map == NULL)
               ? sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no run configuration or no map")
               : code;
}

static int watch(struct sfc_pins *pins, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    int code = ask_watch(pins, reply_of(pins)->run_id, pins->step, &answer, err);
    sfc_answer_free(&answer);
    return code;
}

/* A scheduler that restarts is waited for: the pins don't need it. */
static int watch_patiently(struct sfc_pins *pins, double *silent_since, struct sfc_error *err)
{
    double now = sfc_command_clock();
    int code = watch(pins, err);
    if (code == SFC_OK) {
        *silent_since = 0;
    } else if (code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT) {
        *silent_since = *silent_since == 0 ? now : *silent_since;
        code = now - *silent_since < PATIENCE_S ? SFC_OK : code;
    }
    return code;
}

/* ---- the shards */

static bool gone_for_now(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT;
}

static void say_waiting(struct sfc_pins *pins, const char *address)
{
    if (!pins->waited) {
        fprintf(stderr,
                "shardfc checkpoint: shard %s does not answer: waiting until it is back (if it was "
                "killed, start it again with the same --state)\n",
                address);
    }
    pins->waited = true;
}

/* One call of PinStep; a shard that is away is asked again as long as the run lives. */
static int pin_shard(struct sfc_pins *pins, const char *address, uint64_t *first, bool *pinned,
                     struct sfc_error *err)
{
    Shardfc__V1__PinStepRequest request = SHARDFC__V1__PIN_STEP_REQUEST__INIT;
    struct sfc_answer answer = {0};
    double silent = 0;
    request.run_id = reply_of(pins)->run_id;
    request.pin = pins->id;
    request.step = pins->step;
    int code;
    for (;;) {
        code = sfc_cluster_shard(pins->cluster, address, "PinStep", &request.base,
                                 (struct sfc_bytes){0}, &shardfc__v1__pin_step_reply__descriptor,
                                 &answer, err);
        if (code == SFC_ELIMIT) { /* it puts the one before away */
            sfc_command_wait(PUT_AWAY_MS);
        } else if (gone_for_now(code) || code == SFC_ENOTFOUND) {
            say_waiting(pins, address); /* not found: it has not recovered the run yet */
        } else {
            break;
        }
        struct sfc_error ended;
        int run = watch_patiently(pins, &silent, &ended);
        if (run != SFC_OK) {
            return sfc_fail(err, run, "%s", ended.text);
        }
    }
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__PinStepReply *reply = (const Shardfc__V1__PinStepReply *)answer.message;
    *pinned = reply->pinned;
    *first = reply->first;
    pins->lease_ms = reply->lease_ms;
    sfc_answer_free(&answer);
    return SFC_OK;
}

/* On every shard; also keeps the pins alive. */
static int pin_all(struct sfc_pins *pins, struct sfc_error *err)
{
    bool all = true;
    uint64_t first = 0;
    pins->renewed = sfc_command_clock();
    for (size_t i = 0; i < reply_of(pins)->map->n_shards; i++) {
        const char *address = reply_of(pins)->map->shards[i]->address;
        bool pinned = false;
        uint64_t from = 0;
        if (address[0] == '\0') { /* a shard has left this place */
            continue;
        }
        int code = pin_shard(pins, address, &from, &pinned, err);
        if (code != SFC_OK) {
            return code;
        }
        all = all && pinned;
        first = from > first ? from : first;
    }
    return all ? SFC_OK
               : sfc_fail(err, SFC_EINVAL,
                          "step %" PRIu64 " has passed and can't be made any more: steps %" PRIu64
                          " to %" PRIu64 " can be had (the run is at step %" PRIu64 ")",
                          pins->step, first, sfc_pins_config(pins)->steps, pins->committed);
}

/* The shards, or one, have let go of the step; why is said once. */
static int pin_again(struct sfc_pins *pins, const char *why, struct sfc_error *err)
{
    if (!pins->again) {
        fprintf(stderr, "shardfc checkpoint: %s: asking for step %" PRIu64 " again\n", why,
                pins->step);
    }
    pins->again = true;
    int code = pin_all(pins, err);
    return code == SFC_EINVAL ? (sfc_prefix(err, "%s, and meanwhile the run went on", why), code)
                              : code;
}

static int renew(struct sfc_pins *pins, struct sfc_error *err)
{
    double lease = 0.001 * (double)pins->lease_ms, silent = sfc_command_clock() - pins->renewed;
    char why[128];
    if (silent < lease / 3) {
        return SFC_OK;
    }
    if (silent <= lease) {
        return pin_all(pins, err);
    }
    snprintf(why, sizeof why,
             "this command was silent for %.0f s, and shards keep a step for it for %.0f s", silent,
             lease);
    return pin_again(pins, why, err);
}

static int wait_for_step(struct sfc_pins *pins, struct sfc_error *err)
{
    struct sfc_reach reach = {0};
    double silent = 0;
    int code = SFC_OK;
    while (code == SFC_OK && pins->committed < pins->step) {
        code = watch_patiently(pins, &silent, err);
        if (code == SFC_OK) {
            code = renew(pins, err);
        }
        if (code == SFC_OK && pins->committed < pins->step) {
            sfc_reach_show(&reach, pins->cluster, pins->committed, pins->step);
        }
    }
    sfc_reach_end(&reach);
    return code;
}

int sfc_pins_acquire(struct sfc_pins *pins, struct sfc_cluster *cluster, uint64_t at_step,
                     struct sfc_error *err)
{
    *pins = (struct sfc_pins){.cluster = cluster};
    int code = first_watch(pins, err);
    if (code != SFC_OK) {
        return code;
    }
    if (at_step > sfc_pins_config(pins)->steps) {
        return sfc_fail(err, SFC_EINVAL, "the run ends at step %" PRIu64 ", before step %" PRIu64,
                        sfc_pins_config(pins)->steps, at_step);
    }
    pins->step = at_step != 0 ? at_step : pins->committed;
    while (pins->id == 0) {
        if (getrandom(&pins->id, sizeof pins->id, 0) != (ssize_t)sizeof pins->id) {
            return sfc_fail_errno(err, "random numbers");
        }
    }
    code = pin_all(pins, err);
    return code == SFC_OK ? wait_for_step(pins, err) : code;
}

void sfc_pins_release(struct sfc_pins *pins)
{
    for (size_t i = 0; pins->id != 0 && i < reply_of(pins)->map->n_shards; i++) {
        Shardfc__V1__PinStepRequest request = SHARDFC__V1__PIN_STEP_REQUEST__INIT;
        struct sfc_answer answer = {0};
        struct sfc_error ignored; /* the lease ends by itself */
        const char *address = reply_of(pins)->map->shards[i]->address;
        if (address[0] == '\0') {
            continue;
        }
        request.run_id = reply_of(pins)->run_id;
        request.pin = pins->id;
        request.step = pins->step;
        sfc_cluster_shard(pins->cluster, address, "UnpinStep", &request.base, (struct sfc_bytes){0},
                          &shardfc__v1__empty__descriptor, &answer, &ignored);
        sfc_answer_free(&answer);
    }
    sfc_answer_free(&pins->answer);
    pins->id = 0;
}

/* ---- blocks */

/* Every block must be of the same step, not of one that the run took anew after it went back. */
static int check_round(struct sfc_pins *pins, const Shardfc__V1__Attempt *round,
                       struct sfc_error *err)
{
    if (round == NULL) {
        return SFC_OK;
    }
    if (pins->incarnation == 0) {
        pins->incarnation = round->incarnation;
        pins->counter = round->counter;
    }
    return pins->incarnation == round->incarnation && pins->counter == round->counter
               ? SFC_OK
               : sfc_fail(err, SFC_ESTATE,
                          "the run was rewound and has taken step %" PRIu64
                          " anew meanwhile; try again",
                          pins->step);
}

/* *making: not there yet, ask again. A shard that lost its pin is pinned anew. */
static int ask_piece(struct sfc_pins *pins, const Shardfc__V1__ReadBlockRequest *request,
                     const char *address, struct sfc_answer *answer, bool *making,
                     struct sfc_error *err)
{
    *making = false;
    int code = sfc_cluster_shard(pins->cluster, address, "ReadBlock", &request->base,
                                 (struct sfc_bytes){0}, &shardfc__v1__read_block_reply__descriptor,
                                 answer, err);
    if (code == SFC_OK) {
        const Shardfc__V1__ReadBlockReply *reply =
            (const Shardfc__V1__ReadBlockReply *)answer->message;
        *making = reply->making;
        return check_round(pins, reply->round, err);
    }
    if (!gone_for_now(code) && code != SFC_ENOTFOUND) {
        return code;
    }
    *making = true;
    if (code == SFC_ENOTFOUND) {
        char why[192];
        snprintf(why, sizeof why, "shard %.100s was silent or has been started again", address);
        return pin_again(pins, why, err);
    }
    say_waiting(pins, address);
    return pin_all(pins, err);
}

static int read_piece(struct sfc_pins *pins, const Shardfc__V1__ReadBlockRequest *request,
                      float *out, struct sfc_error *err)
{
    const char *address = NULL;
    struct sfc_answer answer = {0};
    bool making = true;
    int code = SFC_OK;
    while (code == SFC_OK && making) {
        sfc_answer_free(&answer);
        code = renew(pins, err);
        if (code == SFC_OK) {
            code = sfc_map_owner(reply_of(pins)->map, request->kind, request->block, &address, err);
        }
        if (code == SFC_OK) {
            code = ask_piece(pins, request, address, &answer, &making, err);
        }
    }
    if (code == SFC_OK) {
        code = sfc_answer_floats(&answer, address, request, out, err);
    }
    sfc_answer_free(&answer);
    return code;
}

int sfc_pins_read(struct sfc_pins *pins, Shardfc__V1__BlockKind kind, uint64_t block,
                  Shardfc__V1__BlockPart part, uint64_t offset, uint64_t count, float *out,
                  struct sfc_error *err)
{
    Shardfc__V1__ReadBlockRequest request = SHARDFC__V1__READ_BLOCK_REQUEST__INIT;
    request.run_id = reply_of(pins)->run_id;
    request.step = pins->step;
    request.pin = pins->id;
    request.kind = kind;
    request.block = block;
    request.part = part;
    int code = SFC_OK;
    for (uint64_t done = 0; done < count && code == SFC_OK; done += request.count) {
        request.offset = offset + done;
        request.count = count - done < SFC_HOLD_PIECE ? count - done : SFC_HOLD_PIECE;
        code = read_piece(pins, &request, out + done, err);
    }
    return code;
}
