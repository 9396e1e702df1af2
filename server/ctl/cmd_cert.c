/* shardfc cert init | issue | show. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/certificate.h"
#include "proto/certificate_make.h"
#include "proto/security.h"
#include "server/ctl/command.h"

struct cert_options {
    const char *out, *authority, *role, *name, *host, *run;
    uint64_t days;
    bool replace, json;
};

#define AT(field) offsetof(struct cert_options, field)
#define OPTION_OUT                                                                                 \
    {                                                                                              \
        .name = "out", .type = SFC_OPTION_STRING, .offset = AT(out), .min = 1, .max = 3000,        \
        .metavar = "DIR", .help = "folder to write, made with mode 0700",                          \
        .flags = SFC_OPTION_REQUIRED                                                               \
    }
#define OPTION_DAYS(default_days)                                                                  \
    {                                                                                              \
        .name = "days", .type = SFC_OPTION_U64, .offset = AT(days), .min = 1, .max = 36500,        \
        .fallback = (default_days), .help = "how long it is valid"                                 \
    }

static void format_day(int64_t when, char *text, size_t size)
{
    struct tm parts;
    time_t seconds = (time_t)when;
    snprintf(text, size, "?");
    if (gmtime_r(&seconds, &parts) != NULL) {
        strftime(text, size, "%Y-%m-%d %H:%M UTC", &parts);
    }
}

static int show(const char *folder, bool json, struct sfc_error *err)
{
    struct sfc_certificate c;
    char roles[64], end[32];
    int64_t now = (int64_t)time(NULL);
    int code = sfc_certificate_check(folder, now, &c, err);
    if (code != SFC_OK) {
        return code;
    }
    format_day(c.end, end, sizeof end);
    sfc_roles_text(c.roles, roles, sizeof roles);
    if (json) {
        json_t *names = json_array();
        for (unsigned role = 1; role <= SFC_ROLES_ALL; role <<= 1) {
            if (c.roles & role) {
                json_array_append_new(names, json_string(sfc_role_name((enum sfc_role)role)));
            }
        }
        sfc_command_json(json_pack("{s:s, s:o, s:s, s:I, s:I}", "name", c.name, "roles", names,
                                   "run", c.run, "expires", (json_int_t)c.end, "days_left",
                                   (json_int_t)((c.end - now) / 86400)));
    } else {
        printf("%s: %s, %s%s%s, until %s (%" PRId64 " days)\n", folder, c.name, roles,
               c.run[0] != '\0' ? ", only for run " : "", c.run, end, (c.end - now) / 86400);
    }
    return SFC_OK;
}

/* ---- init */

static const struct sfc_option init_table[] = {
    OPTION_OUT,
    {.name = "name",
     .type = SFC_OPTION_STRING,
     .offset = AT(name),
     .fallback = "ShardFC-authority",
     .help = "name of the authority in its certificate"},
    OPTION_DAYS("3650"),
};
static const struct sfc_program init_program = {
    .name = "shardfc cert init",
    .summary = "Makes an authority: ca.pem, which every part trusts, and ca-key.pem, which issues "
               "certificates and belongs on a machine that serves nobody.",
    .options = init_table,
    .count = sizeof init_table / sizeof *init_table,
};

static int init(const struct cert_options *o, const struct sfc_options *parsed,
                struct sfc_error *err)
{
    (void)parsed;
    int code = sfc_authority_make(o->out, o->name, (unsigned)o->days, err);
    if (code == SFC_OK) {
        printf("%s: an authority; next: shardfc cert issue --ca %s --role scheduler --host HOST "
               "--out DIR\n",
               o->out, o->out);
    }
    return code;
}

/* ---- issue */

static const char *const role_names[] = {"scheduler", "shard", "worker", "admin", NULL};
static const struct sfc_option issue_table[] = {
    {.name = "ca",
     .type = SFC_OPTION_STRING,
     .offset = AT(authority),
     .min = 1,
     .max = 3000,
     .metavar = "DIR",
     .help = "folder of the authority (`shardfc cert init`)",
     .flags = SFC_OPTION_REQUIRED},
    OPTION_OUT,
    {.name = "role",
     .type = SFC_OPTION_STRING,
     .offset = AT(role),
     .choices = role_names,
     .metavar = "ROLE[,ROLE...]",
     .help = "scheduler, shard, worker or admin: what its owner may do",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "name",
     .type = SFC_OPTION_STRING,
     .offset = AT(name),
     .help = "of its owner, as it appears in logs (default: the first role)"},
    {.name = "host",
     .type = SFC_OPTION_STRING,
     .offset = AT(host),
     .metavar = "HOST[,HOST...]",
     .help = "names and addresses under which others call it; needed for schedulers and shards"},
    {.name = "run",
     .type = SFC_OPTION_STRING,
     .offset = AT(run),
     .help = "a worker's: the only run that it may see"},
    OPTION_DAYS("365"),
    {.name = "replace",
     .type = SFC_OPTION_BOOL,
     .offset = AT(replace),
     .help = "renew the certificate in --out; what runs takes it up within seconds",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program issue_program = {
    .name = "shardfc cert issue",
    .summary = "Issues a certificate with its key: a folder for --tls of one part of the cluster.",
    .options = issue_table,
    .count = sizeof issue_table / sizeof *issue_table,
};

static int parse_roles(const char *text, unsigned *roles, struct sfc_error *err)
{
    *roles = 0;
    for (const char *at = text; at != NULL;) {
        size_t size = strcspn(at, ",");
        unsigned role = sfc_role_named(at, size);
        if (role == 0) {
            return sfc_fail(err, SFC_EINVAL,
                            "--role %s: \"%.*s\" is none of scheduler, shard, worker and admin",
                            text, (int)(size < 64 ? size : 64), at);
        }
        *roles |= role;
        at = at[size] == ',' ? at + size + 1 : NULL;
    }
    return SFC_OK;
}

static int issue(const struct cert_options *o, const struct sfc_options *parsed,
                 struct sfc_error *err)
{
    (void)parsed;
    char first[16];
    struct sfc_certificate_order order = {.authority = o->authority,
                                          .name = o->name,
                                          .hosts = o->host,
                                          .run = o->run,
                                          .days = (unsigned)o->days,
                                          .replace = o->replace};
    int code = parse_roles(o->role, &order.roles, err);
    if (code != SFC_OK) {
        return code;
    }
    if ((order.roles & (SFC_ROLE_SCHEDULER | SFC_ROLE_SHARD)) != 0 && o->host == NULL) {
        return sfc_fail(err, SFC_EINVAL,
                        "--role %s: others call it, so --host must say under which names", o->role);
    }
    snprintf(first, sizeof first, "%.*s", (int)strcspn(o->role, ","), o->role);
    order.name = o->name != NULL ? o->name : first;
    code = sfc_certificate_issue(&order, o->out, err);
    return code == SFC_OK ? show(o->out, false, err) : code;
}

/* ---- show */

static const struct sfc_option show_table[] = {
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program show_program = {
    .name = "shardfc cert show",
    .summary = "Checks a folder for --tls, and says whose certificate it is and until when.",
    .arguments = "DIR",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = show_table,
    .count = sizeof show_table / sizeof *show_table,
};

static int show_argument(const struct cert_options *o, const struct sfc_options *parsed,
                         struct sfc_error *err)
{
    return show(sfc_options_argument(parsed, 0), o->json, err);
}

/* ---- command */

static const struct {
    const char *name;
    const struct sfc_program *program;
    int (*run)(const struct cert_options *o, const struct sfc_options *parsed,
               struct sfc_error *err);
} verbs[] = {{"init", &init_program, init},
             {"issue", &issue_program, issue},
             {"show", &show_program, show_argument}};

static const char usage[] =
    "usage: shardfc cert init|issue|show [OPTIONS]\n\n"
    "Certificates for mutual TLS between the parts of a cluster (--tls DIR of every program):\n"
    "  init   an authority of one's own\n"
    "  issue  a certificate of a scheduler, a shard, a worker or an admin\n"
    "  show   whose certificate a folder holds, and until when\n";

int sfc_cmd_cert(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    struct sfc_options *parsed = NULL;
    struct cert_options o;
    struct sfc_error err = {0};
    if (strcmp(word, "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    for (size_t i = 0; strcmp(word, "--help=words") == 0; i++) {
        if (i == sizeof verbs / sizeof *verbs) {
            return 0;
        }
        puts(verbs[i].name);
    }
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(word, verbs[i].name) != 0) {
            continue;
        }
        int code = sfc_options_main(verbs[i].program, argc - 1, argv + 1, &o, &parsed);
        if (code >= 0) {
            return code;
        }
        code = verbs[i].run(&o, parsed, &err);
        sfc_options_free(parsed);
        return code == SFC_OK ? 0 : sfc_command_failed(verbs[i].program->name + 8, &err);
    }
    fputs(usage, stderr);
    return 2;
}
