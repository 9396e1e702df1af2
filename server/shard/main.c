#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/run/daemon.h"
#include "server/shard/shard.h"

static void stop(void *ctx)
{
    sfc_shard_stop(ctx);
}

static int exit_code(int status)
{
    return status == SFC_OK ? 0 : status == SFC_EINVAL || status == SFC_EUNSUPPORTED ? 2 : 1;
}

int main(int argc, char **argv)
{
    sfc_process_tune(argv);
    struct sfc_shard_options options;
    struct sfc_options *parsed = NULL;
    int code = sfc_options_main(&sfc_shard_program, argc, argv, &options, &parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-shard", code);
    struct sfc_daemon daemon;
    struct sfc_shard *shard = NULL;
    struct sfc_error err = {0};
    const char *address = NULL;
    code = sfc_shard_options_check(&options, &err);
    if (code == SFC_OK)
        code = sfc_daemon_init(&daemon, &err);
    if (code == SFC_OK) {
        code = sfc_shard_start(daemon.rpc, &daemon.uv, &options, &shard, &address, &err);
        if (code != SFC_OK)
            address = NULL;
        if (code != SFC_OK)
            sfc_error_log("%s", err.text);
        sfc_daemon_run(&daemon, address, stop, shard);
        sfc_shard_free(shard);
    } else {
        sfc_error_log("%s", err.text);
    }
    sfc_options_free(parsed);
    return exit_code(code);
}
