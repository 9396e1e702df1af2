#include "server/shard/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/durable/packed_state.h"
#include "server/run/listen.h"
#include "server/shard/shard_internal.h"
#include "server/shard/web.h"

#define MEMORY_SHARE 0.8
#define PIN_TICK_MS  250
#define MOVE_TICK_MS 20

/* Snapshots that a former start of this shard compressed are read all the same. */
static int take_packing(struct sfc_shard *shard, struct sfc_error *err)
{
    const struct sfc_shard_options *o = shard->options;
    bool packed = shard->compression > 0;
    int code = SFC_OK;
    if (!packed && o->state && o->durable != SFC_DURABLE_OFF)
        code = sfc_state_has_packed(o->state, &packed, err);
    if (code != SFC_OK || !packed)
        return code;
    shard->packing_bytes = sfc_snapshot_compression_memory(shard->compression);
    if (shard->compression == 0)
        sfc_info_log("--state %s has compressed snapshots: reading them takes %.1f MiB", o->state,
                     (double)shard->packing_bytes / (1 << 20));
    return SFC_OK;
}

/* With a backend whose blocks live on a device, --memory is of the device, and all that is free
 * there without it; the rest of a run then may take the default share of the machine's memory. */
static int take_device_limit(struct sfc_shard *shard, struct sfc_error *err)
{
    struct sfc_device_memory device;
    int code = sfc_backend_device_memory(sfc_compute_backend(shard->compute), &device, err);
    if (code != SFC_OK || !device.total_bytes)
        return code;
    if (shard->options->memory > device.total_bytes)
        return sfc_fail(err, SFC_EINVAL,
                        "--memory: the device has %.1f MiB of memory, %.1f were given; give at "
                        "most what is free there, or leave --memory out",
                        (double)device.total_bytes / (1 << 20),
                        (double)shard->options->memory / (1 << 20));
    shard->device_limit = shard->options->memory ? shard->options->memory : device.free_bytes;
    if (!shard->device_limit)
        return sfc_fail(err, SFC_ENOMEM,
                        "the device has no free memory: end what uses it (nvidia-smi shows it)");
    sfc_info_log("class and dense blocks live on the device, up to %.1f MiB of its memory",
                 (double)shard->device_limit / (1 << 20));
    return SFC_OK;
}

static int take_memory_limit(struct sfc_shard *shard, struct sfc_error *err)
{
    uint64_t limit = shard->device_limit ? 0 : shard->options->memory;
    uint64_t available = limit ? 0 : sfc_memory_available();
    if (!limit && !available)
        return sfc_fail(err, SFC_EIO, "can't read MemAvailable of /proc/meminfo; give --memory");
    limit = limit ? limit : (uint64_t)((double)available * MEMORY_SHARE);
    if (limit <= shard->packing_bytes)
        return sfc_fail(err, SFC_ENOMEM,
                        "%s takes %.1f MiB of memory and there are %.1f; give more with --memory%s",
                        shard->compression ? "compressing snapshots"
                                           : "reading the compressed snapshots in --state",
                        (double)shard->packing_bytes / (1 << 20), (double)limit / (1 << 20),
                        shard->compression ? ", or a smaller --snapshot-compression" : "");
    shard->memory_limit = limit - shard->packing_bytes;
    return SFC_OK;
}

/* A file there would be memory, counted neither by --memory nor as a disk. */
static int check_on_disk(const char *dir, struct sfc_error *err)
{
    struct statfs system;
    if (statfs(dir, &system))
        return sfc_fail_errno(err, "%s", dir);
    if (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC)
        return sfc_fail(err, SFC_EINVAL,
                        "%s is on a %s, which is memory; give a folder on a disk, or leave "
                        "--store-dir out and keep class blocks in memory",
                        dir, system.f_type == TMPFS_MAGIC ? "tmpfs" : "ramfs");
    return SFC_OK;
}

/* What the file system has now; the file of a run takes its part when the run is opened. */
static int take_store_dir(struct sfc_shard *shard, struct sfc_error *err)
{
    const char *dir = shard->options->store_dir;
    struct statvfs space;
    if (!dir)
        return SFC_OK;
    int code = sfc_compute_set_store(shard->compute, dir, err);
    if (code == SFC_OK)
        code = check_on_disk(dir, err);
    if (code == SFC_OK && statvfs(dir, &space))
        code = sfc_fail_errno(err, "%s", dir);
    if (code != SFC_OK)
        return sfc_prefix(err, "--store-dir"), code;
    shard->disk_limit = (uint64_t)space.f_bavail * space.f_frsize;
    if (shard->disk_limit == 0)
        return sfc_fail(err, SFC_ENOMEM, "--store-dir %s: its file system is full", dir);
    sfc_info_log("class blocks live in a scratch file in %s, up to %.1f MiB", dir,
                 (double)shard->disk_limit / (1 << 20));
    return SFC_OK;
}

static int take_state_dir(struct sfc_shard *shard, struct sfc_error *err)
{
    const char *dir = shard->options->state;
    if (!dir)
        return SFC_OK;
    char path[4096];
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return sfc_fail_errno(
            err, "--state: make folder %s (the folder above must exist and be writable)", dir);
    snprintf(path, sizeof path, "%s/lock", dir);
    shard->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (shard->lock < 0)
        return sfc_fail_errno(err, "open %s", path);
    if (flock(shard->lock, LOCK_EX | LOCK_NB) != 0)
        return sfc_fail(err, SFC_ESTATE, "--state %s is in use by another shard", dir);
    return SFC_OK;
}

/* "HOST:PORT" of listen with the bound port; an IPv6 host keeps its brackets. */
static void take_addresses(struct sfc_shard *shard, int port)
{
    const char *listen = shard->options->listen;
    const char *colon = strrchr(listen, ':');
    int host = colon ? (int)(colon - listen) : (int)strlen(listen);
    snprintf(shard->listening, sizeof shard->listening, "%.*s:%d", host, listen, port);
    if (shard->options->advertise)
        snprintf(shard->advertised, sizeof shard->advertised, "%s:%d", shard->options->advertise,
                 port);
    else
        snprintf(shard->advertised, sizeof shard->advertised, "%s", shard->listening);
}

struct sfc_lap sfc_shard_lap(const struct sfc_shard_run *run, enum sfc_span_thread thread,
                             uint64_t step)
{
    struct sfc_lap lap = {
        .spans = run->shard->spans,
        .span = {.step = step, .micro_batch = UINT32_MAX, .thread = (uint8_t)thread}};
    sfc_lap_begin(&lap);
    return lap;
}

struct sfc_span sfc_shard_span(const struct sfc_shard_run *run, enum sfc_phase phase,
                               uint64_t bytes)
{
    return (struct sfc_span){.phase = (uint8_t)phase,
                             .step = sfc_durability_stamp(run) + 1,
                             .micro_batch = UINT32_MAX,
                             .bytes = bytes};
}

static void post(void *ctx, void (*fn)(void *), void *arg)
{
    sfc_rpc_loop_post(ctx, fn, arg);
}

int sfc_shard_start(struct sfc_rpc_loop *rpc, uv_loop_t *uv,
                    const struct sfc_shard_options *options, struct sfc_shard **out,
                    const char **address, struct sfc_error *err)
{
    struct sfc_shard *shard = calloc(1, sizeof *shard);
    if (!shard)
        return sfc_fail(err, SFC_ENOMEM, "start");
    shard->rpc = rpc;
    shard->uv = uv;
    shard->options = options;
    shard->lock = -1;
    *out = shard; /* the caller stops and frees it on failure, too */
    int code = SFC_OK;
    while (shard->boot_id == 0 && code == SFC_OK)
        if (getrandom(&shard->boot_id, sizeof shard->boot_id, 0) != (ssize_t)sizeof shard->boot_id)
            code = sfc_fail_errno(err, "random numbers");
    if (code != SFC_OK || (code = take_state_dir(shard, err)) != SFC_OK ||
        (code = sfc_shard_compression(options, &shard->compression, err)) != SFC_OK ||
        (code = take_packing(shard, err)) != SFC_OK ||
        (code = sfc_spans_new(&shard->spans, err)) != SFC_OK)
        return code;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned threads =
        options->threads ? (unsigned)options->threads : (unsigned)(processors > 0 ? processors : 1);
    code = sfc_compute_start(options->backend, threads, post, rpc, &shard->compute, err);
    if (code != SFC_OK)
        return sfc_prefix(err, "--backend %s", options->backend), code;
    sfc_compute_record(shard->compute, shard->spans);
    if ((code = take_device_limit(shard, err)) != SFC_OK ||
        (code = take_memory_limit(shard, err)) != SFC_OK ||
        (code = take_store_dir(shard, err)) != SFC_OK)
        return code;
    if (options->durable == SFC_DURABLE_OFF)
        sfc_warning_log("--durable off: nothing is written down; a run ends with the first shard "
                        "that dies");
    else if ((code = sfc_tasks_start(post, rpc, &shard->log_thread, err)) != SFC_OK ||
             (code = sfc_tasks_start(post, rpc, &shard->snapshot_thread, err)) != SFC_OK ||
             (code = sfc_tasks_start(post, rpc, &shard->checkpoint_thread, err)) != SFC_OK)
        return code;
    int port = 0;
    const struct sfc_listen listen = {options->listen, options->state, sfc_shard_methods,
                                      sfc_shard_method_count, shard};
    code = sfc_listen_start(rpc, &listen, &shard->server, &port, err);
    if (code != SFC_OK)
        return code;
    take_addresses(shard, port);
    sfc_info_log("%s, %u threads, up to %.1f MiB",
                 sfc_backend_numerics(sfc_compute_backend(shard->compute)), threads,
                 (double)shard->memory_limit / (1 << 20));
    *address = shard->listening;
    code = sfc_shard_register_start(shard, err);
    return code == SFC_OK ? sfc_shard_web_start(shard, err) : code;
}

static void on_tick(uv_timer_t *timer)
{
    struct sfc_shard *shard = timer->data;
    if (shard->run)
        sfc_durability_tick(shard->run);
}

void sfc_shard_tick_in(struct sfc_shard *shard, uint64_t ms)
{
    if (!shard->stopping)
        uv_timer_start(&shard->tick, on_tick, ms, 0);
}

static void on_pin_timer(uv_timer_t *timer)
{
    struct sfc_shard *shard = timer->data;
    if (!shard->run || !shard->run->pinned.id)
        uv_timer_stop(timer);
    else
        sfc_pinned_tick(shard->run);
}

void sfc_shard_watch_pin(struct sfc_shard *shard)
{
    if (!shard->stopping)
        uv_timer_start(&shard->pin, on_pin_timer, PIN_TICK_MS, PIN_TICK_MS);
}

static void on_moves_timer(uv_timer_t *timer)
{
    struct sfc_shard *shard = timer->data;
    struct sfc_shard_run *run = shard->run;
    bool any = run && sfc_copies_tick(run);
    any = (shard->run == run && run && sfc_history_tick(run)) || any;
    any = (shard->run == run && run && sfc_move_tick(run)) || any;
    any = (shard->run == run && run && sfc_set_map_tick(run)) || any;
    any = (shard->run == run && run && sfc_mirror_tick(run)) || any;
    if (!any && !shard->stopping)
        uv_timer_stop(timer);
}

void sfc_shard_watch_moves(struct sfc_shard *shard)
{
    if (!shard->stopping)
        uv_timer_start(&shard->moves, on_moves_timer, 0, MOVE_TICK_MS);
}

/* A run ends on the compute thread, then on those for checkpoints, snapshots and the log. */
void sfc_shard_stop(struct sfc_shard *shard)
{
    if (!shard || shard->stopping)
        return;
    shard->stopping = true;
    sfc_shard_web_stop(shard);
    sfc_shard_register_stop(shard);
    if (shard->compute)
        sfc_shard_close_run(shard, NULL, false);
    sfc_compute_stop(shard->compute);
    sfc_tasks_stop(shard->checkpoint_thread);
    sfc_tasks_stop(shard->snapshot_thread);
    sfc_tasks_stop(shard->log_thread);
}

void sfc_shard_free(struct sfc_shard *shard)
{
    if (!shard)
        return;
    sfc_shard_web_free(shard);
    sfc_compute_free(shard->compute);
    sfc_tasks_free(shard->checkpoint_thread);
    sfc_tasks_free(shard->snapshot_thread);
    sfc_tasks_free(shard->log_thread);
    if (shard->lock >= 0)
        close(shard->lock);
    sfc_spans_free(shard->spans);
    free(shard);
}
