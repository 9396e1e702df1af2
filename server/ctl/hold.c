#include "server/ctl/hold.h"

#include <inttypes.h>
#include <string.h>

#include "server/ctl/reach.h"

#define HOLD_DEADLINE_MS 30000

const Shardfc__V1__HoldReply *sfc_hold_reply(const struct sfc_hold *hold)
{
    return (const Shardfc__V1__HoldReply *)hold->answer.message;
}

uint64_t sfc_hold_reply_grow(Shardfc__V1__HoldReply *reply)
{
    uint64_t start = reply->config ? reply->config->classes : 0;
    size_t n = reply->config && reply->map ? reply->map->n_growths : 0;
    if (n > 0) {
        reply->config->classes = reply->map->growths[n - 1]->classes;
    }
    return start;
}

static int ask_hold(struct sfc_hold *hold, uint64_t at_step, struct sfc_error *err)
{
    Shardfc__V1__HoldRequest request = SHARDFC__V1__HOLD_REQUEST__INIT;
    struct sfc_answer answer = {0};
    request.run_id = hold->run_id;
    request.at_step = at_step;
    request.hold_id = hold->id;
    int code =
        sfc_cluster_scheduler(hold->cluster, "Hold", &request.base,
                              &shardfc__v1__hold_reply__descriptor, HOLD_DEADLINE_MS, &answer, err);
    if (code == SFC_ENOTFOUND && hold->id != 0) { /* not what the user named is missing */
        return sfc_fail(err, SFC_ESTATE,
                        "the hold was lost, because its lease ended or the scheduler has "
                        "restarted; try again");
    }
    if (code != SFC_OK) {
        return code;
    }
    sfc_answer_free(&hold->answer);
    hold->answer = answer;
    hold->start_classes = sfc_hold_reply_grow((Shardfc__V1__HoldReply *)(void *)answer.message);
    hold->id = sfc_hold_reply(hold)->hold_id;
    hold->run_id = sfc_hold_reply(hold)->run_id;
    hold->renewed = sfc_command_clock();
    return SFC_OK;
}

int sfc_hold_acquire(struct sfc_hold *hold, struct sfc_cluster *cluster, uint64_t at_step,
                     struct sfc_error *err)
{
    struct sfc_reach reach = {0};
    *hold = (struct sfc_hold){.cluster = cluster};
    int code = ask_hold(hold, at_step, err);
    while (code == SFC_OK && !sfc_hold_reply(hold)->held) {
        sfc_reach_show(&reach, cluster, sfc_hold_reply(hold)->step, at_step);
        code = ask_hold(hold, at_step, err);
    }
    sfc_reach_end(&reach);
    if (code == SFC_OK && (!sfc_hold_reply(hold)->config || !sfc_hold_reply(hold)->map)) {
        code = sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no run configuration or no map");
    }
    return code;
}

static int renew(struct sfc_hold *hold, struct sfc_error *err)
{
    double half = 0.0005 * (double)sfc_hold_reply(hold)->lease_ms;
    if (sfc_command_clock() - hold->renewed < half) {
        return SFC_OK;
    }
    uint64_t step = sfc_hold_reply(hold)->step;
    int code;
    do { /* a shard that recovers meanwhile does so to this very step */
        code = ask_hold(hold, step, err);
    } while (code == SFC_OK && !sfc_hold_reply(hold)->held && sfc_hold_reply(hold)->step == step);
    if (code == SFC_OK && (!sfc_hold_reply(hold)->held || sfc_hold_reply(hold)->step != step)) {
        code = sfc_fail(err, SFC_ESTATE, "the hold at step %" PRIu64 " was lost; try again", step);
    }
    return code;
}

void sfc_hold_release(struct sfc_hold *hold)
{
    if (hold->id != 0) {
        struct sfc_error ignored; /* the lease ends by itself */
        struct sfc_answer answer = {0};
        Shardfc__V1__ReleaseRequest request = SHARDFC__V1__RELEASE_REQUEST__INIT;
        request.hold_id = hold->id;
        sfc_cluster_scheduler(hold->cluster, "Release", &request.base,
                              &shardfc__v1__empty__descriptor, HOLD_DEADLINE_MS, &answer, &ignored);
        sfc_answer_free(&answer);
    }
    sfc_answer_free(&hold->answer);
}

int sfc_map_owner(const Shardfc__V1__BlockMap *map, Shardfc__V1__BlockKind kind, uint64_t block,
                  const char **out, struct sfc_error *err)
{
    bool is_class = kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK;
    bool is_history = kind == SHARDFC__V1__BLOCK_KIND__HISTORY;
    for (size_t i = 0; is_history && map != NULL && i < map->n_shards; i++) {
        if (map->shards[i]->address[0] != '\0') { /* its place isn't empty */
            *out = map->shards[i]->address;       /* all have the same */
            return SFC_OK;
        }
    }
    size_t count = map == NULL ? 0 : is_class ? map->n_class_owner : map->n_dense_owner;
    if (block >= count) {
        return sfc_fail(err, SFC_ECORRUPT, "block map has %zu blocks, block %" PRIu64 " is missing",
                        count, block);
    }
    uint32_t owner = is_class ? map->class_owner[block] : map->dense_owner[block];
    if (owner >= map->n_shards) {
        return sfc_fail(err, SFC_ECORRUPT, "block %" PRIu64 " has owner %u of %zu shards", block,
                        owner, map->n_shards);
    }
    *out = map->shards[owner]->address;
    return SFC_OK;
}

static int read_piece(struct sfc_hold *hold, Shardfc__V1__ReadBlockRequest *request, float *out,
                      struct sfc_error *err)
{
    const char *address = NULL;
    struct sfc_answer answer = {0};
    int code = renew(hold, err);
    if (code == SFC_OK) {
        code =
            sfc_map_owner(sfc_hold_reply(hold)->map, request->kind, request->block, &address, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_cluster_shard(hold->cluster, address, "ReadBlock", &request->base,
                             (struct sfc_bytes){0}, &shardfc__v1__read_block_reply__descriptor,
                             &answer, err);
    if (code == SFC_OK) {
        code = sfc_answer_floats(&answer, address, request, out, err);
    }
    sfc_answer_free(&answer);
    return code;
}

int sfc_hold_read(struct sfc_hold *hold, Shardfc__V1__BlockKind kind, uint64_t block,
                  Shardfc__V1__BlockPart part, uint64_t offset, uint64_t count, float *out,
                  struct sfc_error *err)
{
    Shardfc__V1__ReadBlockRequest request = SHARDFC__V1__READ_BLOCK_REQUEST__INIT;
    request.run_id = hold->run_id;
    request.step = sfc_hold_reply(hold)->step;
    request.kind = kind;
    request.block = block;
    request.part = part;
    int code = SFC_OK;
    for (uint64_t done = 0; done < count && code == SFC_OK; done += request.count) {
        request.offset = offset + done;
        request.count = count - done < SFC_HOLD_PIECE ? count - done : SFC_HOLD_PIECE;
        code = read_piece(hold, &request, out + done, err);
    }
    return code;
}
