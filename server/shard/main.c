#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/run/daemon.h"
#include "server/shard/shard.h"

struct program {
    struct sfc_shard_options options;
    struct sfc_shard *shard;
    struct sfc_daemon daemon;
};

static void stop(void *ctx)
{
    sfc_shard_stop(((struct program *)ctx)->shard);
}

static void finished(void *ctx)
{
    sfc_daemon_quit(&((struct program *)ctx)->daemon);
}

static bool finish(void *ctx)
{
    return sfc_shard_finish(((struct program *)ctx)->shard, finished, ctx);
}

static void look(void *ctx, struct sfc_service_state *state)
{
    sfc_shard_look(((struct program *)ctx)->shard, state);
}

static void reloaded(void *ctx)
{
    struct program *p = ctx;
    sfc_rpc_loop_limit(p->daemon.rpc, &p->options.peers);
    sfc_shard_reloaded(p->shard);
}

static int exit_code(int status)
{
    return status == SFC_OK ? 0 : status == SFC_EINVAL || status == SFC_EUNSUPPORTED ? 2 : 1;
}

int main(int argc, char **argv)
{
    sfc_process_hold_hangup();
    sfc_process_tune(argv);
    struct program p = {.shard = NULL};
    struct sfc_options *parsed = NULL;
    int code = sfc_options_main(&sfc_shard_program, argc, argv, &p.options, &parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-shard", code);
    sfc_service_begin();
    const struct sfc_daemon_calls calls = {stop, finish, look, reloaded, &p};
    struct sfc_error err = {0};
    const char *address = NULL;
    code = sfc_shard_options_check(&p.options, &err);
    if (code == SFC_OK)
        code = sfc_daemon_init(&p.daemon, parsed, &p.options.security, &err);
    if (code == SFC_OK) {
        sfc_rpc_loop_limit(p.daemon.rpc, &p.options.peers);
        code = sfc_shard_start(p.daemon.rpc, &p.daemon.uv, &p.options, &p.shard, &address, &err);
        if (code != SFC_OK)
            address = NULL;
        if (code != SFC_OK)
            sfc_error_log("%s", err.text);
        sfc_daemon_run(&p.daemon, address, &calls);
        sfc_shard_free(p.shard);
    } else {
        sfc_error_log("%s", err.text);
    }
    sfc_options_free(parsed);
    return exit_code(code);
}
