/* shardfc: control and tools. */
#include <stdio.h>
#include <string.h>

#include "proto/base/edit_distance.h"
#include "proto/base/process.h"
#include "server/ctl/command.h"

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"create", sfc_cmd_create, "start a run on the cluster"},
    {"status", sfc_cmd_status, "run, step, loss, rate, shards and workers"},
    {"watch", sfc_cmd_watch, "follow the cluster; --until-done: until the run ends"},
    {"scale", sfc_cmd_scale, "how many shards the run has; blocks move while it goes on"},
    {"drain", sfc_cmd_drain, "every block leaves a shard, and then the shard the run"},
    {"rebalance", sfc_cmd_rebalance, "move blocks until every shard's step takes about as long"},
    {"doctor", sfc_cmd_doctor, "what is wrong with this host or the cluster, and what to do"},
    {"events", sfc_cmd_events, "what happened, when, because of whom"},
    {"trace", sfc_cmd_trace, "where the time of a step goes, across all processes"},
    {"pause", sfc_cmd_pause, "stop giving out work after the present step"},
    {"resume", sfc_cmd_resume, "go on after a pause or a block"},
    {"grow", sfc_cmd_grow, "add identities to the run while it trains"},
    {"set", sfc_cmd_set, "set the learning rate of the run that lives"},
    {"stop", sfc_cmd_stop, "end the run and free its blocks"},
    {"rewind", sfc_cmd_rewind, "back to an earlier step, as if nothing had come after it"},
    {"checkpoint", sfc_cmd_checkpoint, "write the whole state at a step to a directory"},
    {"restore", sfc_cmd_restore, "start a run from a checkpoint, on any number of shards"},
    {"verify", sfc_cmd_verify, "check a checkpoint and print its step and digest"},
    {"log", sfc_cmd_log, "check and list a shard's step log and snapshots, or a checkpoint"},
    {"export", sfc_cmd_export, "write a checkpoint as safetensors"},
    {"eval", sfc_cmd_eval, "verification accuracy and TAR at FAR of a checkpoint"},
    {"rank", sfc_cmd_rank, "rank of the true class in a synthetic run, as it is now"},
    {"data", sfc_cmd_data, "make, pack and describe data sets"},
    {"cert", sfc_cmd_cert, "certificates for mutual TLS between the parts of a cluster"},
    {"bench", sfc_cmd_bench, "measure this machine"},
};

static void print_help(FILE *file)
{
    fprintf(file, "usage: shardfc COMMAND [OPTIONS]\n\n"
                  "Control and tools of ShardFC, the sharded class layer training service.\n\n"
                  "commands:\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        fprintf(file, "  %-12s %s\n", commands[i].name, commands[i].summary);
    }
    fprintf(file,
            "\n`shardfc COMMAND --help` describes a command. Exit status: 0 done, 1 failed, 2 "
            "wrong usage or bad input.\n");
}

/* The overview as a manual page; commands have their own. */
static void print_man(void)
{
    puts(".TH SHARDFC 1 \"\" \"ShardFC " SFC_VERSION "\" \"ShardFC\"\n.SH NAME\n"
         "shardfc \\- control and tools of the sharded class layer training service\n"
         ".SH SYNOPSIS\n\\fBshardfc\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n.SH COMMANDS");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        printf(".TP\n.BR shardfc\\-%s (1)\n%s\n", commands[i].name, commands[i].summary);
    }
    puts(".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage or bad input.\n.SH SEE ALSO\n"
         ".BR shardfc\\-scheduler (1),\n.BR shardfc\\-shard (1),\n.BR shardfc\\-worker (1)");
}

static int unknown(const char *word)
{
    const char *nearest = NULL;
    size_t least = 3; /* further away is no typing error */
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        size_t d = sfc_edit_distance(word, commands[i].name);
        if (d < least) {
            least = d;
            nearest = commands[i].name;
        }
    }
    if (nearest != NULL) {
        fprintf(stderr, "shardfc: unknown command '%s'; did you mean `shardfc %s`?\n", word,
                nearest);
    } else {
        fprintf(stderr, "shardfc: unknown command '%s'; `shardfc --help` lists them\n", word);
    }
    return 2;
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help=man") == 0) {
        print_man();
        return 0;
    }
    if (strcmp(argv[1], "--help=words") == 0) {
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
            puts(commands[i].name);
        }
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("shardfc " SFC_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    return unknown(argv[1]);
}

int main(int argc, char **argv)
{
    sfc_process_tune(argv);
    return sfc_process_end("shardfc", run(argc, argv));
}
