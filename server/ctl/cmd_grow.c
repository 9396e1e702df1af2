/* shardfc grow: more identities while the run goes on. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/ctl/command.h"
#include "server/ctl/hold.h"
#include "worker/data/dataset.h"

#define ASK_DEADLINE_MS  30000
#define GROW_DEADLINE_MS 600000
#define SAMPLES_EACH     10 /* of a new synthetic identity, as in `shardfc create` */

struct grow_options {
    const char *scheduler, *data;
    struct sfc_security security;
    uint64_t classes, samples;
    bool json;
};

#define AT(field) offsetof(struct grow_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "classes",
     .type = SFC_OPTION_U64,
     .offset = AT(classes),
     .min = 2,
     .metavar = "N",
     .help = "identities that the run is to have; default: those of --data"},
    {.name = "data",
     .type = SFC_OPTION_STRING,
     .offset = AT(data),
     .metavar = "DIR",
     .help = "the larger set, which begins with the run's set; at least one worker must have it "
             "already (shardfc-worker --data of it may join before)"},
    {.name = "samples",
     .type = SFC_OPTION_U64,
     .offset = AT(samples),
     .min = 1,
     .metavar = "N",
     .help = "samples of a synthetic set from then on; default: 10 more per new identity"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc grow",
    .summary =
        "Adds identities to the run while it trains. Their centres are made from the run's seed, "
        "on "
        "the shards that it has; identities that are there keep theirs, bit by bit, up to the "
        "first "
        "step with the new ones. Samples of --data that the run has not got yet join with the next "
        "epoch. Workers with the old set take part until the run has grown and then have to be "
        "started again with --data of the new one. The growth is durable when this command "
        "returns; "
        "checkpoints carry it, and the run can't be rewound to before it.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

struct growing {
    struct sfc_answer watched; /* HoldReply: configuration and map */
    struct sfc_dataset *set;
    Shardfc__V1__DataSet data;
    Shardfc__V1__DataBegin begin;
    char begin_digest[33];
    Shardfc__V1__GrowRequest request;
};

static const Shardfc__V1__HoldReply *reply_of(const struct growing *g)
{
    return (const Shardfc__V1__HoldReply *)g->watched.message;
}

static int watch(struct growing *g, struct sfc_cluster *cluster, struct sfc_error *err)
{
    Shardfc__V1__HoldRequest request = SHARDFC__V1__HOLD_REQUEST__INIT;
    request.watch = true;
    int code =
        sfc_cluster_scheduler(cluster, "Hold", &request.base, &shardfc__v1__hold_reply__descriptor,
                              ASK_DEADLINE_MS, &g->watched, err);
    if (code == SFC_OK && (!reply_of(g)->config || !reply_of(g)->config->data || !reply_of(g)->map))
        code = sfc_fail(err, SFC_ECORRUPT, "the scheduler sent no run configuration or no map");
    return code;
}

/* Samples of the run's set now. */
static uint64_t samples_now(const struct growing *g)
{
    const Shardfc__V1__BlockMap *map = reply_of(g)->map;
    return map->n_growths ? map->growths[map->n_growths - 1]->samples
                          : reply_of(g)->config->data->samples;
}

static int read_set(struct growing *g, const struct grow_options *o, struct sfc_error *err)
{
    uint64_t now = samples_now(g);
    int code = sfc_dataset_open(o->data, &g->set, err);
    if (code != SFC_OK)
        return code;
    const struct sfc_dataset_info *info = sfc_dataset_info(g->set);
    if (info->samples < now)
        return sfc_fail(err, SFC_EINVAL,
                        "%s has %" PRIu64 " samples, the run's set has %" PRIu64
                        ": a larger set must begin with the run's",
                        o->data, info->samples, now);
    if (o->classes && o->classes < info->classes)
        return sfc_fail(err, SFC_EINVAL, "--classes %" PRIu64 ": %s has labels up to %" PRIu64,
                        o->classes, o->data, info->classes - 1);
    g->data.kind = SHARDFC__V1__DATA_SET__KIND__RECORDS;
    g->data.digest = (char *)(uintptr_t)info->digest;
    g->data.samples = info->samples;
    g->data.width = info->width;
    g->data.height = info->height;
    g->data.channels = info->channels;
    g->data.flip = info->flip;
    g->request.classes = o->classes ? o->classes : info->classes;
    g->begin.samples = now;
    g->begin.digest = g->begin_digest;
    g->request.begin = &g->begin;
    return sfc_dataset_begin(g->set, now, g->begin_digest, err);
}

static int synthetic(struct growing *g, const struct grow_options *o, struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = reply_of(g)->map;
    uint64_t classes =
        map->n_growths ? map->growths[map->n_growths - 1]->classes : reply_of(g)->config->classes;
    uint64_t more = o->classes > classes ? SAMPLES_EACH * (o->classes - classes) : 0;
    g->data.kind = SHARDFC__V1__DATA_SET__KIND__SYNTHETIC;
    g->data.samples = o->samples ? o->samples : samples_now(g) + more;
    g->request.classes = o->classes;
    return o->classes ? SFC_OK : sfc_fail(err, SFC_EINVAL, "give --classes N");
}

static int fill(struct growing *g, const struct grow_options *o, struct sfc_error *err)
{
    int kind = (int)reply_of(g)->config->data->kind;
    bool records = kind == SHARDFC__V1__DATA_SET__KIND__RECORDS;
    if (records && !o->data)
        return sfc_fail(err, SFC_EINVAL,
                        "run %s has a data set: give --data DIR of one that begins with it and has "
                        "the new identities (shardfc data glyphs with the same seed and more "
                        "--classes, or shardfc data pack with folders that sort behind the old "
                        "ones)",
                        reply_of(g)->config->name);
    if (!records && o->data)
        return sfc_fail(err, SFC_EINVAL, "--data: run %s has no data set",
                        reply_of(g)->config->name);
    if (kind != SHARDFC__V1__DATA_SET__KIND__SYNTHETIC && o->samples)
        return sfc_fail(err, SFC_EINVAL, "--samples is for synthetic runs");
    g->request.run_id = reply_of(g)->run_id;
    if (kind == SHARDFC__V1__DATA_SET__KIND__SESSION) {
        g->request.classes = o->classes;
        return o->classes ? SFC_OK : sfc_fail(err, SFC_EINVAL, "give --classes N");
    }
    g->request.data = &g->data;
    return records ? read_set(g, o, err) : synthetic(g, o, err);
}

static void say(const struct growing *g, const Shardfc__V1__GrowReply *reply, bool json)
{
    const char *name = reply_of(g)->config->name;
    if (json) {
        sfc_command_json(
            json_pack("{s:I, s:I, s:I, s:I}", "classes", (json_int_t)g->request.classes,
                      "from_step", (json_int_t)reply->from_step, "data_step",
                      (json_int_t)reply->data_step, "map_version", (json_int_t)reply->map_version));
        return;
    }
    printf("run %s: %" PRIu64 " identities from step %" PRIu64 " on", name, g->request.classes,
           reply->from_step);
    if (reply->data_step)
        printf("; new samples with the first epoch that begins at step %" PRIu64 " or later",
               reply->data_step);
    printf("\n");
}

static int grow(struct growing *g, struct sfc_cluster *cluster, const struct grow_options *o,
                struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    shardfc__v1__data_set__init(&g->data);
    shardfc__v1__data_begin__init(&g->begin);
    shardfc__v1__grow_request__init(&g->request);
    int code = watch(g, cluster, err);
    if (code == SFC_OK)
        code = fill(g, o, err);
    if (code == SFC_OK)
        code = sfc_cluster_insist(cluster, "Grow", &g->request.base,
                                  &shardfc__v1__grow_reply__descriptor, GROW_DEADLINE_MS, &answer,
                                  err);
    if (code == SFC_OK)
        say(g, (const Shardfc__V1__GrowReply *)answer.message, o->json);
    sfc_answer_free(&answer);
    return code;
}

int sfc_cmd_grow(int argc, char **argv)
{
    struct grow_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0)
        return exit_code;
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct growing g = {0};
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK)
        code = grow(&g, cluster, &o, &err);
    sfc_dataset_close(g.set);
    sfc_answer_free(&g.watched);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}
