/* shardfc doctor: looks at this host and at the cluster, says what is wrong and what to do. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/ctl/command.h"
#include "server/ctl/doctor_probe.h"

#define DEADLINE_MS 10000

struct doctor_options {
    const char *scheduler, *state, *listen;
    struct sfc_security security;
    bool json;
};

#define AT(field) offsetof(struct doctor_options, field)
static const struct sfc_option doctor_table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "state",
     .type = SFC_OPTION_STRING,
     .offset = AT(state),
     .min = 1,
     .metavar = "DIR",
     .help = "folder of a shard's or the scheduler's state, whose disk is to be looked at and "
             "measured for two seconds (default: " SFC_USUAL_STATE ", if it is there)"},
    {.name = "listen",
     .type = SFC_OPTION_STRING,
     .offset = AT(listen),
     .min = 1,
     .metavar = "HOST:PORT",
     .help = "address that a daemon is to have here: is it free, and does the certificate name it"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program doctor_program = {
    .name = "shardfc doctor",
    .summary = "Looks at this host (memory, disk, processors, clock, ports, certificate) and, if a "
               "scheduler answers, at its cluster (versions, clocks, shards, disks, mirrors, "
               "workers, the run), and says what is wrong and what to do. Changes nothing. Exit "
               "status: 0 no problem, 1 problems, 2 wrong usage.",
    .options = doctor_table,
    .count = sizeof doctor_table / sizeof *doctor_table,
};

/* ---- this host */

/* False: its certificate is of no use, so nobody would talk to us. */
static bool look_at_host(const struct doctor_options *o, struct sfc_findings *out)
{
    struct sfc_host_facts host;
    struct sfc_disk_facts disk;
    struct sfc_port_facts port;
    struct sfc_certificate_facts certificate = {0};
    char name[SFC_HOST_MAX];
    sfc_probe_host(&host);
    sfc_judge_host(&host, out);
    const char *state = o->state != NULL                            ? o->state
                        : access(SFC_USUAL_STATE, R_OK | X_OK) == 0 ? SFC_USUAL_STATE
                                                                    : NULL;
    if (o->state != NULL && strncmp(o->state, "etcd://", 7) == 0) {
        sfc_finding_add(out, SFC_FINDING_NOTE, "this host", "disk",
                        "not looked at: %s is no folder", o->state);
        sfc_finding_cure(out, "of etcd itself: etcdctl endpoint health; etcdctl check perf");
    } else if (state != NULL && (o->state != NULL || access(state, W_OK) == 0)) {
        sfc_probe_disk(state, &disk);
        sfc_judge_disk(&disk, out);
    } else {
        sfc_finding_add(out, SFC_FINDING_NOTE, "this host", "disk", "not looked at");
        sfc_finding_cure(out, "shardfc doctor --state DIR, as a user who may write there");
    }
    if (o->listen != NULL) {
        sfc_probe_port(o->listen, &port);
        sfc_judge_port(&port, out);
    }
    if (o->security.tls != NULL) {
        sfc_probe_certificate(o->security.tls, o->listen, name, &certificate);
        sfc_judge_certificate(&certificate, out);
    }
    return certificate.error[0] == '\0';
}

/* ---- the cluster */

static double wall_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* shard: an address; NULL: the scheduler. The clock of the peer is compared with the middle of the
 * call; the second call, over a connection that stands, is the better one. */
static void ask_about(struct sfc_cluster *cluster, const char *shard, struct sfc_about_facts *out)
{
    for (int i = 0; i < 2; i++) {
        struct sfc_answer answer = {0};
        struct sfc_error err = {0};
        double before = wall_clock();
        *out = (struct sfc_about_facts){0};
        out->code = sfc_cluster_about(cluster, shard, &answer, &err);
        double after = wall_clock();
        if (out->code != SFC_OK) {
            snprintf(out->error, sizeof out->error, "%s", err.text);
            return;
        }
        const Shardfc__V1__AboutReply *r = (const Shardfc__V1__AboutReply *)answer.message;
        snprintf(out->version, sizeof out->version, "%s", r->version);
        snprintf(out->host, sizeof out->host, "%s", r->host);
        out->round_trip_s = after - before;
        out->ahead_s = 1e-6 * (double)r->time_us - (before + after) / 2;
        out->state_total = r->state_total;
        out->state_free = r->state_free;
        out->certificate_end = (int64_t)r->certificate_end;
        sfc_answer_free(&answer);
    }
}

/* When the last step was committed, and how long it took. */
static void ask_history(struct sfc_cluster *cluster, const Shardfc__V1__StatusReply *status,
                        struct sfc_cluster_facts *out)
{
    Shardfc__V1__HistoryRequest request = SHARDFC__V1__HISTORY_REQUEST__INIT;
    struct sfc_answer answer = {0};
    struct sfc_error err = {0};
    out->since_commit_s = -1;
    if (status->run_id == 0 || status->step == 0) {
        return;
    }
    request.run_id = status->run_id;
    request.after_step = status->step > 2 ? status->step - 2 : 0;
    request.limit = 100;
    if (sfc_cluster_scheduler(cluster, "History", &request.base,
                              &shardfc__v1__history_reply__descriptor, DEADLINE_MS, &answer,
                              &err) != SFC_OK) {
        return;
    }
    const Shardfc__V1__HistoryReply *h = (const Shardfc__V1__HistoryReply *)answer.message;
    if (h->n_points > 0) {
        double last = 1e-6 * (double)h->points[h->n_points - 1]->time_us;
        out->since_commit_s = wall_clock() + out->scheduler.ahead_s - last;
        if (h->n_points > 1) {
            out->step_s = last - 1e-6 * (double)h->points[h->n_points - 2]->time_us;
        }
    }
    sfc_answer_free(&answer);
}

static void judge(const struct doctor_options *o, struct sfc_cluster *cluster,
                  const Shardfc__V1__StatusReply *status, struct sfc_findings *out)
{
    struct sfc_about_facts *shards = calloc(status->n_shards + 1, sizeof *shards);
    if (shards == NULL) {
        out->failed = true;
        return;
    }
    struct sfc_cluster_facts facts = {.address = o->scheduler,
                                      .version = SFC_VERSION,
                                      .now = (int64_t)time(NULL),
                                      .status = status,
                                      .shards = shards};
    ask_about(cluster, NULL, &facts.scheduler);
    for (size_t i = 0; i < status->n_shards; i++) {
        if (strcmp(status->shards[i]->state, "gone") != 0) {
            ask_about(cluster, status->shards[i]->address, &shards[i]);
        }
    }
    ask_history(cluster, status, &facts);
    sfc_judge_cluster(&facts, out);
    free(shards);
}

static void no_cluster(const struct doctor_options *o, bool asked_for, const struct sfc_error *err,
                       struct sfc_findings *out)
{
    char where[96];
    snprintf(where, sizeof where, "scheduler at %.70s", o->scheduler);
    sfc_finding_add(out, asked_for ? SFC_FINDING_PROBLEM : SFC_FINDING_NOTE, where, "process", "%s",
                    err->text);
    if (!asked_for) {
        sfc_finding_cure(out, "to look at a cluster: shardfc doctor --scheduler ADDR");
    } else if (err->code == SFC_EDENIED) {
        sfc_finding_cure(out, "give --tls the folder of an admin's certificate");
    } else {
        sfc_finding_cure(out, "is it the right port? on its host: systemctl status "
                              "shardfc-scheduler; ss -ltn; journalctl -u shardfc-scheduler -n 20");
    }
}

static void look_at_cluster(const struct doctor_options *o, bool asked_for,
                            struct sfc_findings *out)
{
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    struct sfc_error err = {0};
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_about_facts first = {0};
    int code = sfc_cluster_connect(o->scheduler, &o->security, &cluster, &err);
    if (code == SFC_OK) {
        ask_about(cluster, NULL, &first);
        if (first.code == SFC_EUNAVAILABLE || first.code == SFC_ETIMEOUT) {
            code = sfc_fail(&err, first.code, "it does not answer: %.400s", first.error);
        }
    }
    if (code == SFC_OK) {
        code = sfc_cluster_scheduler(cluster, "Status", &request.base,
                                     &shardfc__v1__status_reply__descriptor, DEADLINE_MS, &answer,
                                     &err);
    }
    if (code == SFC_OK) {
        judge(o, cluster, (const Shardfc__V1__StatusReply *)answer.message, out);
    } else {
        no_cluster(o, asked_for, &err, out);
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
}

static void print(const struct sfc_findings *findings, bool json)
{
    if (json) {
        sfc_command_json(sfc_findings_json(findings));
        return;
    }
    size_t problems = sfc_findings_of(findings, SFC_FINDING_PROBLEM);
    size_t warnings = sfc_findings_of(findings, SFC_FINDING_WARNING);
    sfc_findings_print(findings, stdout);
    printf("\n%zu problem%s, %zu warning%s\n", problems, problems == 1 ? "" : "s", warnings,
           warnings == 1 ? "" : "s");
}

int sfc_cmd_doctor(int argc, char **argv)
{
    struct doctor_options o = {0};
    struct sfc_options *parsed;
    struct sfc_findings findings = {0};
    int exit_code = sfc_options_main(&doctor_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    if (look_at_host(&o, &findings)) {
        look_at_cluster(&o, sfc_options_given(parsed, "scheduler"), &findings);
    }
    print(&findings, o.json);
    bool failed = findings.failed || sfc_findings_of(&findings, SFC_FINDING_PROBLEM) > 0;
    sfc_findings_free(&findings);
    sfc_options_free(parsed);
    return failed ? 1 : 0;
}
