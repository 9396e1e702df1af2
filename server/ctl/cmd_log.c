/* shardfc log: checks and dumps the state folder of a shard, or a checkpoint, offline. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/ctl/checkpoint_report.h"
#include "server/ctl/command.h"
#include "server/ctl/state_report.h"

struct log_options {
    bool json, records;
};

#define AT(field) offsetof(struct log_options, field)
static const struct sfc_option table[] = {
    {.name = "records",
     .type = SFC_OPTION_BOOL,
     .offset = AT(records),
     .help = "list every record of the step log",
     .flags = SFC_OPTION_FLAG_ONLY},
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = AT(json),
     .help = "print one JSON object per run, or one of the checkpoint",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program program = {
    .name = "shardfc log",
    .summary =
        "Checks every byte of the step log and the snapshots of a shard, offline, and says which "
        "steps can be recovered; or every byte of a checkpoint, and says what is in it. DIR is the "
        "shard's --state folder, one run-ID folder in it, or a folder that `shardfc checkpoint` "
        "made. Of a shard that is running, what it removes meanwhile is left out, and the newest "
        "steps "
        "may look torn or be missing behind newer snapshots: stop it for an answer to rely on.",
    .arguments = "DIR",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = table,
    .count = sizeof table / sizeof *table,
    .footer =
        "Records and snapshots of steps that the run gave up (a rewind, the return to a durable "
        "step, an aborted try) are called void where the folder shows it: by a newer round of "
        "the same or an earlier step. What was given up since the shard wrote last is known "
        "to the scheduler alone, so it is listed as if it counted.\n"
        "Exit status: 0 everything is whole, 1 problems were found, 2 wrong usage or no such "
        "state or checkpoint.\n",
};

static void say(const struct log_options *o, json_t *report,
                void (*print)(const json_t *report, FILE *file))
{
    if (o->json) {
        sfc_command_json(report);
    } else {
        print(report, stdout);
        json_decref(report);
    }
}

static bool has_none(const json_t *report)
{
    return json_integer_value(json_object_get(report, "problems")) == 0;
}

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
    sfc_command_progress(ctx, done, total);
}

static int report_checkpoint(const char *path, const struct log_options *o, bool *clean,
                             struct sfc_error *err)
{
    struct sfc_command_progress progress = {.what = "check", .unit = "blocks"};
    json_t *report;
    int code = sfc_checkpoint_report(path, show_progress, &progress, &report, err);
    if (code == SFC_OK) {
        *clean = has_none(report);
        say(o, report, sfc_checkpoint_report_print);
    }
    return code;
}

/* *clean stays true when there are no problems. */
static int report_folder(const char *path, const struct log_options *o, bool *clean,
                         struct sfc_error *err)
{
    struct sfc_folder *folder;
    json_t *report;
    int code = sfc_folder_open(path, false, &folder, err);
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_state_report(folder, o->records, &report, err);
    sfc_folder_close(folder);
    if (code != SFC_OK) {
        return code;
    }
    *clean = *clean && has_none(report);
    say(o, report, sfc_state_report_print);
    return SFC_OK;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_run(const struct dirent *entry)
{
    return strncmp(entry->d_name, "run-", 4) == 0;
}

/* Those of a state folder. One that a running shard has removed meanwhile is left out, unless there
 * is no other. */
static int report_runs(const char *dir, struct dirent *const *runs, int count,
                       const struct log_options *o, bool *clean, struct sfc_error *err)
{
    int code = SFC_OK;
    bool any = false;
    for (int i = 0; i < count && code == SFC_OK; i++) {
        char path[PATH_MAX];
        int n = snprintf(path, sizeof path, "%s/%s", dir, runs[i]->d_name);
        code = n < (int)sizeof path ? report_folder(path, o, clean, err)
                                    : sfc_fail(err, SFC_EINVAL, "the name is too long: %s", dir);
        bool gone = code == SFC_ENOTFOUND && access(path, F_OK) != 0;
        code = gone && (any || i + 1 < count) ? SFC_OK : code;
        any = any || !gone;
    }
    return code;
}

/* A state folder: all its runs; otherwise DIR itself. */
static int report_all(const char *dir, const struct log_options *o, bool *clean,
                      struct sfc_error *err)
{
    struct dirent **runs;
    int count = scandir(dir, &runs, is_run, by_name);
    if (count < 0 && errno == ENOTDIR) {
        return sfc_fail(err, SFC_EINVAL, "%s is a file; name the folder that it is in", dir);
    }
    if (count < 0) {
        return sfc_fail_errno(err, "open folder %s", dir);
    }
    int code = count == 0 ? report_folder(dir, o, clean, err)
                          : report_runs(dir, runs, count, o, clean, err);
    for (int i = 0; i < count; i++) {
        free(runs[i]);
    }
    free(runs);
    return code;
}

int sfc_cmd_log(int argc, char **argv)
{
    struct log_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    bool clean = true;
    const char *dir = sfc_options_argument(parsed, 0);
    int code = sfc_checkpoint_is_one(dir) ? report_checkpoint(dir, &o, &clean, &err)
                                          : report_all(dir, &o, &clean, &err);
    sfc_options_free(parsed);
    if (code != SFC_OK) {
        return sfc_command_failed("log", &err);
    }
    return clean ? 0 : 1;
}
