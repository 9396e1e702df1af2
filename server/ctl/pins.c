#include "server/ctl/pins.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "proto/limits.h"
#include "server/ctl/hold.h"
#include "server/ctl/reach.h"

#define WATCH_DEADLINE_MS 30000
#define PATIENCE_S        60.0 /* without a scheduler */
#define PUT_AWAY_MS       200
#define NEWEST_TRIES      5

static const Shardfc__V1__HoldReply *reply_of(const struct sfc_pins *pins)
{
    return (const Shardfc__V1__HoldReply *)pins->answer.message;
}

static const Shardfc__V1__BlockMap *first_map(const struct sfc_pins *pins)
{
    return reply_of(pins)->map;
}

static const Shardfc__V1__BlockMap *newest_map(const struct sfc_pins *pins)
{
    const Shardfc__V1__HoldReply *newest = (const Shardfc__V1__HoldReply *)pins->newest.message;
    return newest != NULL ? newest->map : first_map(pins);
}

static bool is_in(const Shardfc__V1__BlockMap *map, const char *address)
{
    for (size_t i = 0; i < map->n_shards; i++) {
        if (strcmp(map->shards[i]->address, address) == 0) {
            return true;
        }
    }
    return false;
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
    if (code == SFC_OK) {
        pins->start_classes =
            sfc_hold_reply_grow((Shardfc__V1__HoldReply *)(void *)pins->answer.message);
    }
    return code == SFC_OK && (reply_of(pins)->config == NULL || reply_of(pins)->map == NULL)
               ? sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no run configuration or no map")
               : code;
}

static int watch(struct sfc_pins *pins, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    int code = ask_watch(pins, reply_of(pins)->run_id, pins->step, &answer, err);
    const Shardfc__V1__HoldReply *reply = (const Shardfc__V1__HoldReply *)answer.message;
    if (code == SFC_OK && reply->map != NULL && reply->map->version > newest_map(pins)->version) {
        sfc_answer_free(&pins->newest);
        pins->newest = answer;
        return SFC_OK;
    }
    sfc_answer_free(&answer);
    return code;
}

const Shardfc__V1__BlockMap *sfc_pins_map(const struct sfc_pins *pins)
{
    return reply_of(pins)->map;
}

/* A scheduler that restarts is waited for: the pins don't need it. */
static int watch_patiently(struct sfc_pins *pins, double *silent_since, struct sfc_error *err)
{
    double now = sfc_command_clock();
    int code = watch(pins, err);
    if (code == SFC_OK) {
        *silent_since = 0;
    } else if (sfc_command_is_silence(code)) {
        *silent_since = *silent_since == 0 ? now : *silent_since;
        code = now - *silent_since < PATIENCE_S ? SFC_OK : code;
    }
    return code;
}

/* ---- the shards */

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

/* One call of PinStep; a shard that is away is asked again as long as the run lives and has it. One
 * that has left the run and does not answer is as good as one that can't make the step. */
static int pin_shard(struct sfc_pins *pins, const char *address, uint64_t *first, bool *pinned,
                     struct sfc_error *err)
{
    Shardfc__V1__PinStepRequest request = SHARDFC__V1__PIN_STEP_REQUEST__INIT;
    struct sfc_answer answer = {0};
    double silent = 0;
    request.run_id = reply_of(pins)->run_id;
    request.pin = pins->id;
    request.step = pins->step;
    *pinned = false;
    int code;
    for (;;) {
        code = sfc_cluster_shard(pins->cluster, address, "PinStep", &request.base,
                                 (struct sfc_bytes){0}, &shardfc__v1__pin_step_reply__descriptor,
                                 &answer, err);
        if (code == SFC_ELIMIT) { /* it puts the one before away */
            sfc_command_wait(PUT_AWAY_MS);
        } else if (sfc_command_is_silence(code) || code == SFC_ENOTFOUND) {
            say_waiting(pins, address); /* not found: it has not recovered the run yet */
        } else if (code != SFC_ESTALE) {
            break;
        }
        struct sfc_error ended;
        int run = watch_patiently(pins, &silent, &ended);
        if (run == SFC_OK && !is_in(newest_map(pins), address)) {
            return SFC_OK;
        }
        if (code == SFC_ESTALE) {
            break;
        }
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

/* What came of pinning the shards of a map. */
struct all_pinned {
    bool all;
    uint64_t first;
};

/* Once the map has changed shards of the first one answer, and those that came: a shard that joined
 * when the step had passed can't make it, and has nothing that others can't. */
static int pin_one(struct sfc_pins *pins, const char *address, struct all_pinned *out,
                   struct sfc_error *err)
{
    bool pinned = false;
    uint64_t from = 0;
    int code = pin_shard(pins, address, &from, &pinned, err);
    if (code == SFC_OK && is_in(first_map(pins), address) && is_in(newest_map(pins), address)) {
        out->all = out->all && pinned;
        out->first = from > out->first ? from : out->first;
    }
    return code;
}

/* Of every shard of both maps, each once; "" where nobody is. NULL: no memory. */
static char (*addresses_of(const struct sfc_pins *pins, size_t *count))[SFC_LIMIT_ADDRESS + 1]
{
    const Shardfc__V1__BlockMap *first = first_map(pins), *newest = newest_map(pins);
    char(*list)[SFC_LIMIT_ADDRESS + 1] = calloc(first->n_shards + newest->n_shards, sizeof *list);
    size_t n = 0;
    for (size_t i = 0; list != NULL && i < first->n_shards; i++) {
        snprintf(list[n++], sizeof *list, "%s", first->shards[i]->address);
    }
    for (size_t i = 0; list != NULL && i < newest->n_shards; i++) {
        if (!is_in(first, newest->shards[i]->address)) {
            snprintf(list[n++], sizeof *list, "%s", newest->shards[i]->address);
        }
    }
    *count = n;
    return list;
}

/* On every shard; also keeps the pins alive. The map may change meanwhile. */
static int pin_all(struct sfc_pins *pins, struct sfc_error *err)
{
    struct all_pinned got = {.all = true};
    uint64_t version = 0;
    int code = SFC_OK;
    pins->renewed = sfc_command_clock();
    while (code == SFC_OK && version != newest_map(pins)->version) {
        size_t count = 0;
        char(*list)[SFC_LIMIT_ADDRESS + 1] = addresses_of(pins, &count);
        version = newest_map(pins)->version;
        if (list == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu addresses", count);
        }
        for (size_t i = 0; i < count && code == SFC_OK; i++) {
            code = list[i][0] != '\0' ? pin_one(pins, list[i], &got, err) : SFC_OK;
        }
        free(list);
    }
    if (code != SFC_OK) {
        return code;
    }
    return got.all
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL,
                          "step %" PRIu64 " has passed and can't be made any more: steps %" PRIu64
                          " to %" PRIu64 " can be had (the run is at step %" PRIu64 ")",
                          pins->step, got.first, sfc_pins_config(pins)->steps, pins->committed);
}

static double lease_of(const struct sfc_pins *pins)
{
    return 0.001 * (double)pins->lease_ms;
}

/* Blocks of a run that has grown meanwhile are others. */
static int check_growth(struct sfc_pins *pins, struct sfc_error *err)
{
    struct sfc_command_waiting waiting = {0};
    double silent = 0;
    int code = watch_patiently(pins, &silent, err);
    while (code == SFC_OK && silent != 0) {
        sfc_command_waiting(&waiting, err->text);
        sfc_command_wait(PUT_AWAY_MS);
        if (sfc_command_clock() - pins->renewed > lease_of(pins) / 3) {
            code = pin_all(pins, err);
        }
        code = code == SFC_OK ? watch_patiently(pins, &silent, err) : code;
    }
    sfc_command_waited(&waiting);
    return code == SFC_OK && newest_map(pins)->n_growths != first_map(pins)->n_growths
               ? sfc_fail(err, SFC_ESTATE, "the run has grown meanwhile: take the checkpoint again")
               : code;
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
    if (code == SFC_OK) {
        code = check_growth(pins, err);
    }
    return code == SFC_EINVAL ? (sfc_prefix(err, "%s, and meanwhile the run went on", why), code)
                              : code;
}

static int renew(struct sfc_pins *pins, struct sfc_error *err)
{
    double lease = lease_of(pins), silent = sfc_command_clock() - pins->renewed;
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
        uint64_t version = newest_map(pins)->version;
        code = watch_patiently(pins, &silent, err);
        if (code == SFC_OK) {
            bool changed = version != newest_map(pins)->version;
            code = changed ? pin_all(pins, err) : renew(pins, err);
        }
        if (code == SFC_OK && pins->committed < pins->step) {
            sfc_reach_show(&reach, pins->cluster, pins->committed, pins->step);
        }
    }
    sfc_reach_end(&reach);
    return code;
}

static int acquire(struct sfc_pins *pins, struct sfc_cluster *cluster, uint64_t at_step,
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
    if (code == SFC_OK) {
        code = wait_for_step(pins, err);
    }
    return code == SFC_OK ? check_growth(pins, err) : code;
}

/* Where blocks move the newest step may have passed before every shard was asked to keep it. */
int sfc_pins_acquire(struct sfc_pins *pins, struct sfc_cluster *cluster, uint64_t at_step,
                     struct sfc_error *err)
{
    int code = acquire(pins, cluster, at_step, err);
    for (int tries = 1; code == SFC_EINVAL && at_step == 0 && tries < NEWEST_TRIES; tries++) {
        sfc_pins_release(pins);
        code = acquire(pins, cluster, 0, err);
    }
    return code;
}

static void unpin(struct sfc_pins *pins, const char *address)
{
    Shardfc__V1__PinStepRequest request = SHARDFC__V1__PIN_STEP_REQUEST__INIT;
    struct sfc_answer answer = {0};
    struct sfc_error ignored; /* the lease ends by itself */
    request.run_id = reply_of(pins)->run_id;
    request.pin = pins->id;
    request.step = pins->step;
    sfc_cluster_shard(pins->cluster, address, "UnpinStep", &request.base, (struct sfc_bytes){0},
                      &shardfc__v1__empty__descriptor, &answer, &ignored);
    sfc_answer_free(&answer);
}

void sfc_pins_release(struct sfc_pins *pins)
{
    size_t count = 0;
    char(*list)[SFC_LIMIT_ADDRESS + 1] = pins->id != 0 ? addresses_of(pins, &count) : NULL;
    for (size_t i = 0; list != NULL && i < count; i++) {
        if (list[i][0] != '\0') {
            unpin(pins, list[i]);
        }
    }
    free(list);
    sfc_answer_free(&pins->answer);
    sfc_answer_free(&pins->newest);
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

static int ask_piece(struct sfc_pins *pins, const Shardfc__V1__ReadBlockRequest *request,
                     const char *address, struct sfc_answer *answer, struct sfc_error *err)
{
    return sfc_cluster_shard(pins->cluster, address, "ReadBlock", &request->base,
                             (struct sfc_bytes){0}, &shardfc__v1__read_block_reply__descriptor,
                             answer, err);
}

/* The shard has not given it. *again: ask once more. Otherwise it can't, or has left the run and is
 * silent: another one may have the block. */
static int why_not(struct sfc_pins *pins, const char *address, int code, bool *again,
                   struct sfc_error *err)
{
    char why[192];
    double silent = 0;
    struct sfc_error text = *err;
    *again = false;
    int run = watch_patiently(pins, &silent, err); /* for the map */
    if (run != SFC_OK || code == SFC_ESTALE || !is_in(newest_map(pins), address)) {
        sfc_fail(err, run != SFC_OK ? run : SFC_ESTALE, "%s",
                 run != SFC_OK ? err->text : text.text);
        return run;
    }
    *again = true;
    if (code == SFC_ENOTFOUND) {
        snprintf(why, sizeof why, "shard %.100s was silent or has been started again", address);
        return pin_again(pins, why, err);
    }
    say_waiting(pins, address);
    return pin_all(pins, err);
}

/* The shard that had the block when the checkpoint began, or else the one that has it now. */
static int ask_owners(struct sfc_pins *pins, const Shardfc__V1__ReadBlockRequest *request,
                      struct sfc_answer *answer, bool *again, struct sfc_error *err)
{
    char before[SFC_LIMIT_ADDRESS + 1] = "";
    for (int newest = 0; newest < 2; newest++) {
        const Shardfc__V1__BlockMap *map = newest ? newest_map(pins) : first_map(pins);
        const char *address = NULL;
        int code = sfc_map_owner(map, request->kind, request->block, &address, err);
        if (code != SFC_OK) {
            return code;
        }
        if (strcmp(address, before) == 0) {
            break;
        }
        snprintf(before, sizeof before, "%s", address);
        code = ask_piece(pins, request, before, answer, err);
        if (code == SFC_OK ||
            (!sfc_command_is_silence(code) && code != SFC_ENOTFOUND && code != SFC_ESTALE)) {
            return code;
        }
        code = why_not(pins, before, code, again, err);
        if (code != SFC_OK || *again) {
            return code;
        }
    }
    return sfc_fail(err, SFC_ESTATE,
                    "block %" PRIu64 " has moved, and its shard can't make step %" PRIu64
                    " any more: take the checkpoint again",
                    request->block, pins->step);
}

/* A shard that lost its pin is pinned anew. */
static int read_piece(struct sfc_pins *pins, const Shardfc__V1__ReadBlockRequest *request,
                      float *out, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    const Shardfc__V1__ReadBlockReply *reply = NULL;
    int code = SFC_OK;
    while (code == SFC_OK && (reply == NULL || reply->making)) {
        bool again = false;
        sfc_answer_free(&answer);
        code = renew(pins, err);
        if (code == SFC_OK) {
            code = ask_owners(pins, request, &answer, &again, err);
        }
        reply =
            code == SFC_OK && !again ? (const Shardfc__V1__ReadBlockReply *)answer.message : NULL;
        if (reply != NULL) {
            code = check_round(pins, reply->round, err);
        }
    }
    if (code == SFC_OK) {
        code = sfc_answer_floats(&answer, "with the block", request, out, err);
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
