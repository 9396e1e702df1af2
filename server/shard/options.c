#include "server/shard/options.h"

#include <string.h>

#include "proto/daemon_metrics.h"
#include "server/durable/snapshot_store.h"

#define AT(field) offsetof(struct sfc_shard_options, field)

static const char *const durable_names[] = {"on", "off", NULL};
static const char *const join_names[] = {"manual", "auto", NULL};

static const struct sfc_option table[] = {
    {.name = "scheduler",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR[,ADDR...]",
     .max = 4000,
     .flags = SFC_OPTION_REQUIRED,
     .offset = AT(scheduler),
     .help = "address of the scheduler, or those of several of which one leads"},
    {.name = "listen",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR",
     .max = 255,
     .fallback = "127.0.0.1:0",
     .offset = AT(listen),
     .help = "address to serve on, printed as 'listening ADDR'; port 0: the one that the kernel "
             "chose when "
             "this --state was first served, so that others find it again"},
    {.name = "advertise",
     .type = SFC_OPTION_STRING,
     .metavar = "HOST",
     .max = 200,
     .offset = AT(advertise),
     .help =
         "host name or address under which workers and the scheduler reach this shard (default: "
         "the host of --listen)"},
    {.name = "state",
     .type = SFC_OPTION_STRING,
     .metavar = "DIR",
     .max = 3000,
     .offset = AT(state),
     .help = "folder of this shard, made with mode 0700 and used by one shard at a time: step log "
             "and snapshots of the run, from which a shard that died comes back when it is started "
             "again with the same --state and the same address"},
    SFC_SECURITY_OPTIONS(AT(security)),
    SFC_HTTP_OPTION(AT(http)),
    {.name = "durable",
     .type = SFC_OPTION_ENUM,
     .choices = durable_names,
     .fallback = "on",
     .offset = AT(durable),
     .help = "off: nothing is written, and a run ends with the first shard that dies; for "
             "measurements and throw-away runs"},
    {.name = "join",
     .type = SFC_OPTION_ENUM,
     .choices = join_names,
     .fallback = "manual",
     .offset = AT(join),
     .help =
         "auto: once it has registered this shard gets blocks of the run that goes on, if that was "
         "created with --elastic auto; manual: when somebody says `shardfc scale`"},
    {.name = "recovery-target",
     .type = SFC_OPTION_DURATION,
     .min = 10,
     .max = UINT64_C(7) * 86400 * 1000,
     .fallback = "5m",
     .flags = SFC_OPTION_RELOAD,
     .offset = AT(recovery_target),
     .help =
         "how long the logged steps should take at most after a crash; sets how often each block "
         "is copied to disk"},
    {.name = "log-limit",
     .type = SFC_OPTION_SIZE,
     .min = 1 << 10,
     .offset = AT(log_limit),
     .help = "most bytes of the step log; where it is full, steps wait for snapshots (default: a "
             "fifth of the free space when the run begins, at least 16 steps; a shard that comes "
             "back keeps it); a run of which it holds less than 4 steps is refused"},
    {.name = "snapshot-rate",
     .type = SFC_OPTION_SIZE,
     .min = 64 << 10,
     .fallback = "128M",
     .flags = SFC_OPTION_RELOAD,
     .offset = AT(snapshot_rate),
     .unit = "bytes per second",
     .help = "most bytes of blocks that are written to snapshots per second, before compression"},
    {.name = "snapshot-compression",
     .type = SFC_OPTION_STRING,
     .metavar = "HOW",
     .max = 16,
     .fallback = "none",
     .offset = AT(snapshot_compression),
     .help = "none, zstd or zstd:LEVEL (1 to 19; zstd alone is 1): smaller snapshots for processor "
             "time that training then lacks; what is on the disk is read either way"},
    {.name = "backend",
     .type = SFC_OPTION_STRING,
     .metavar = "NAME",
     .max = 32,
     .fallback = "cpu",
     .offset = AT(backend),
     .help = "cpu; cuda (a GPU, through the plugin libshardfc-cuda.so) or cuda:N for device N; or "
             "reference (double precision, slow, for tests)"},
    {.name = "memory",
     .type = SFC_OPTION_SIZE,
     .min = 1 << 20,
     .offset = AT(memory),
     .help =
         "most memory that runs may use; a run that needs more is refused before anything is "
         "allocated (default: 80 % of what is available at start). With a GPU it is the device's "
         "memory (default: what is free there at start)"},
    {.name = "store-dir",
     .type = SFC_OPTION_STRING,
     .metavar = "DIR",
     .min = 1,
     .max = 3000,
     .offset = AT(store_dir),
     .help =
         "keep class blocks in a scratch file in this folder instead of memory, for class layers "
         "larger than memory (a fast local disk; refused on tmpfs; the file has no name and ends "
         "with the run); "
         "--memory then counts only the rest"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .min = 1,
     .max = 1024,
     .offset = AT(threads),
     .help = "compute threads; never changes a bit of any result (default: all processors)"},
    SFC_PEER_OPTIONS(
        AT(peers), NULL,
        "most bytes of requests, half of them on their way in and half of them held until they are "
        "answered; larger requests are refused (default: 512M and four times what a run needs, "
        "up to 4G)"),
};

int sfc_shard_compression(const struct sfc_shard_options *o, int *level, struct sfc_error *err)
{
    const char *how = o->snapshot_compression;
    uint64_t number = 1;
    if (!strcmp(how, "none")) {
        *level = 0;
        return SFC_OK;
    }
    bool right = !strncmp(how, "zstd", 4) && (how[4] == 0 || how[4] == ':');
    if (right && how[4])
        right = sfc_parse_u64(how + 5, &number) == SFC_OK;
    if (!right || number < 1 || number > SFC_SNAPSHOT_LEVEL_MAX)
        return sfc_fail(err, SFC_EINVAL,
                        "--snapshot-compression %s: give none, zstd, or zstd:LEVEL with a level "
                        "from 1 to %d",
                        how, SFC_SNAPSHOT_LEVEL_MAX);
    *level = (int)number;
    return SFC_OK;
}

int sfc_shard_options_check(const struct sfc_shard_options *o, struct sfc_error *err)
{
    if (o->durable == SFC_DURABLE_ON && !o->state)
        return sfc_fail(err, SFC_EINVAL,
                        "--state DIR is needed: the shard keeps step log and snapshots there "
                        "(or --durable off, and a run ends with the first shard that dies)");
    if (o->durable == SFC_DURABLE_ON && !strcmp(o->backend, "reference"))
        return sfc_fail(err, SFC_EINVAL,
                        "--backend reference computes in double precision, which no snapshot "
                        "holds exactly: use it with --durable off");
    int level, code = SFC_OK;
    if (o->advertise)
        code = sfc_host_check("advertise", o->advertise, err);
    return code == SFC_OK ? sfc_shard_compression(o, &level, err) : code;
}

const struct sfc_program sfc_shard_program = {
    .name = "shardfc-shard",
    .summary = "Serves blocks of class centres and of backbone parameters of a ShardFC cluster. "
               "Registers with the scheduler and waits for a run.",
    .options = table,
    .count = sizeof table / sizeof *table,
};
