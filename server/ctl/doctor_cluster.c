/* Judgements of a cluster. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/ctl/doctor.h"
#include "server/ctl/show.h"

/* Clocks: only times in logs and events depend on them, and when certificates are valid. */
#define CLOCK_OFF_S 2.0
#define CLOCK_BAD_S 300.0
/* A run that stands still: so long, and ten times as long as its steps take. */
#define STILL_S     60.0
#define STILL_STEPS 10.0

static bool running(const Shardfc__V1__StatusReply *s)
{
    return strcmp(s->state, "running") == 0;
}

static bool gone(const Shardfc__V1__ShardStatus *h)
{
    return strcmp(h->state, "gone") == 0;
}

/* ---- what each process says of itself */

static void judge_version(const char *ours, const char *theirs, const char *where,
                          struct sfc_findings *out)
{
    if (strcmp(ours, theirs) != 0) {
        sfc_finding_add(out, SFC_FINDING_WARNING, where, "version",
                        "%s, while this `shardfc` is %s: a cluster should be of one version",
                        theirs, ours);
        sfc_finding_cure(out, "apt install ./shardfc-*_VERSION_*.deb on the host that is behind");
    }
}

static void judge_ahead(double ahead_s, double give_or_take_s, const char *where, const char *whose,
                        struct sfc_findings *out)
{
    double off = fabs(ahead_s) - give_or_take_s;
    if (off < CLOCK_OFF_S) {
        return;
    }
    sfc_finding_add(out, off < CLOCK_BAD_S ? SFC_FINDING_WARNING : SFC_FINDING_PROBLEM, where,
                    "clock", "it is %.1f s %s of %s", fabs(ahead_s),
                    ahead_s > 0 ? "ahead" : "behind", whose);
    sfc_finding_cure(out, "timedatectl set-ntp true on both hosts (`shardfc doctor` there says "
                          "which one isn't synchronised)");
}

static void judge_state_disk(const struct sfc_about_facts *a, const char *where,
                             struct sfc_findings *out)
{
    if (a->state_total == 0) {
        return;
    }
    double share = (double)a->state_free / (double)a->state_total;
    bool none = share < 0.02;
    if (share >= 0.1) {
        return;
    }
    sfc_finding_add(out, none ? SFC_FINDING_PROBLEM : SFC_FINDING_WARNING, where, "disk",
                    "%.1f of %.1f GB of its state's disk are free", (double)a->state_free / 1e9,
                    (double)a->state_total / 1e9);
    sfc_finding_cure(out, "make room on %s, use a larger volume, or lower log-limit",
                     a->host[0] != '\0' ? a->host : "its host");
}

static void judge_its_certificate(const struct sfc_about_facts *a, int64_t now, const char *where,
                                  struct sfc_findings *out)
{
    int64_t days = (a->certificate_end - now) / 86400;
    if (a->certificate_end == 0 || days >= 14) {
        return;
    }
    sfc_finding_add(out, days < 1 ? SFC_FINDING_PROBLEM : SFC_FINDING_WARNING, where, "certificate",
                    "it expires in %" PRId64 " days", days);
    sfc_finding_cure(out,
                     "shardfc cert issue ... --replace, and the files to %s; it takes them up "
                     "by itself",
                     a->host);
}

/* True: it answered. */
static bool judge_about(const struct sfc_cluster_facts *c, const struct sfc_about_facts *a,
                        const char *where, const char *unit, struct sfc_findings *out)
{
    if (a->code == SFC_OK) {
        judge_version(c->version, a->version, where, out);
        judge_ahead(a->ahead_s, a->round_trip_s / 2, where, "this host", out);
        judge_state_disk(a, where, out);
        judge_its_certificate(a, c->now, where, out);
        return true;
    }
    if (a->code == SFC_EDENIED) {
        sfc_finding_add(out, SFC_FINDING_NOTE, where, "access", "it tells nothing: %s", a->error);
        sfc_finding_cure(out, "give --tls the folder of an admin's certificate");
    } else if (a->code == SFC_EUNSUPPORTED) {
        sfc_finding_add(out, SFC_FINDING_WARNING, where, "version",
                        "older than this `shardfc` (%s): it can't say which", c->version);
        sfc_finding_cure(out, "apt install ./shardfc-*_VERSION_*.deb on its host");
    } else {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, where, "process", "it does not answer: %s",
                        a->error);
        sfc_finding_cure(out,
                         "on its host: systemctl status '%s'; systemctl start %s; if it runs, "
                         "the way from here is cut (firewall, address)",
                         unit, unit);
    }
    return a->code == SFC_EDENIED || a->code == SFC_EUNSUPPORTED;
}

static void judge_scheduler(const struct sfc_cluster_facts *c, struct sfc_findings *out)
{
    char where[96];
    snprintf(where, sizeof where, "scheduler at %.70s", c->address);
    const struct sfc_about_facts *a = &c->scheduler;
    if (judge_about(c, a, where, "shardfc-scheduler", out) && a->code == SFC_OK) {
        sfc_finding_add(out, SFC_FINDING_OK, where, "process",
                        "version %s on %s answers in %.1f ms", a->version, a->host,
                        a->round_trip_s * 1e3);
    }
}

/* ---- shards */

static void judge_mirrors(const struct sfc_cluster_facts *c, const Shardfc__V1__ShardStatus *h,
                          const char *where, struct sfc_findings *out)
{
    const Shardfc__V1__RunKeeping *keeping = c->status->keeping;
    if (!h->member || keeping == NULL || keeping->mirrors == 0) {
        return;
    }
    const char *why = "";
    for (size_t i = 0; i < h->n_mirrors; i++) {
        if (h->mirrors[i]->complete) {
            return;
        }
        why = h->mirrors[i]->reason[0] != '\0' ? h->mirrors[i]->reason : why;
    }
    sfc_finding_add(out, why[0] != '\0' ? SFC_FINDING_PROBLEM : SFC_FINDING_WARNING, where,
                    "mirrors", "no other shard can restore its blocks%s%s", why[0] ? ": " : " yet",
                    why);
    sfc_finding_cure(out, "shardfc status says how far the copies are; until then shardfc "
                          "checkpoint --out DIR");
}

static void judge_shard_disk(const Shardfc__V1__ShardStatus *h, const char *where, double step_s,
                             struct sfc_findings *out)
{
    const Shardfc__V1__ShardDurability *d = h->durability;
    if (d == NULL) {
        return;
    }
    if (d->error[0] != '\0') {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, where, "disk", "%s", d->error);
        sfc_finding_cure(out, "make room on its disk, it goes on by itself; input/output errors: "
                              "dmesg, and its state to another disk");
    }
    double replay_s = (double)d->snapshot_lag * step_s;
    if (replay_s > 1800) {
        char takes[32];
        sfc_show_duration(replay_s, takes, sizeof takes);
        sfc_finding_add(out, SFC_FINDING_WARNING, where, "snapshots",
                        "the oldest is %" PRIu64 " steps old: after a crash it goes through them "
                        "again for about %s",
                        d->snapshot_lag, takes);
        sfc_finding_cure(out, "raise snapshot-rate in its file, and systemctl reload its unit");
    }
}

static void judge_shard_memory(const Shardfc__V1__ShardStatus *h, const char *where,
                               struct sfc_findings *out)
{
    if (h->memory_limit == 0 || (double)h->memory_bytes < 0.97 * (double)h->memory_limit) {
        return;
    }
    sfc_finding_add(out, SFC_FINDING_NOTE, where, "memory",
                    "%.1f of %.1f GB are in use: no block can move here",
                    (double)h->memory_bytes / 1e9, (double)h->memory_limit / 1e9);
    sfc_finding_cure(out, "shardfc scale --shards N with one more, or a larger memory at its next "
                          "start");
}

static void judge_missing(const Shardfc__V1__ShardStatus *h, const char *where,
                          struct sfc_findings *out)
{
    char since[32];
    sfc_show_duration(h->missing_s, since, sizeof since);
    sfc_finding_add(out, h->member ? SFC_FINDING_PROBLEM : SFC_FINDING_WARNING, where, "process",
                    "the scheduler hasn't heard of it%s%s%s%s", h->missing_s > 0 ? " for " : "",
                    h->missing_s > 0 ? since : "", h->loss[0] != '\0' ? ": " : "", h->loss);
    if (h->member) {
        sfc_finding_cure(out,
                         "start it again with the state that it had: systemctl start "
                         "shardfc-shard@N. Its machine is lost: shardfc drain %" PRIu64 " --lost",
                         h->id);
    } else {
        sfc_finding_cure(out, "it takes no part in the run; start it if it is to");
    }
}

static void judge_shard(const struct sfc_cluster_facts *c, size_t i, struct sfc_findings *out)
{
    const Shardfc__V1__ShardStatus *h = c->status->shards[i];
    bool answered = false;
    char where[96];
    snprintf(where, sizeof where, "shard %" PRIu64 " at %.60s", h->id, h->address);
    if (gone(h)) {
        judge_missing(h, where, out);
    } else {
        answered = judge_about(c, &c->shards[i], where, "shardfc-shard@N", out) &&
                   c->shards[i].code == SFC_OK;
    }
    if (h->recovery != NULL) {
        sfc_finding_add(out, SFC_FINDING_NOTE, where, "recovery",
                        "at step %" PRIu64 " of %" PRIu64 ", about %.0f s for all of it",
                        h->recovery->step, h->recovery->to_step, h->recovery->eta_s);
    }
    judge_shard_disk(h, where, c->step_s, out);
    judge_shard_memory(h, where, out);
    judge_mirrors(c, h, where, out);
    if (answered) {
        sfc_finding_add(out, SFC_FINDING_OK, where, "shard",
                        "%s, %" PRIu64 " blocks, %.1f GB, %.1f ms away",
                        h->member ? "takes part" : "spare", h->blocks + h->dense_blocks,
                        (double)h->memory_bytes / 1e9, c->shards[i].round_trip_s * 1e3);
    }
}

/* ---- all together */

static const char *numerics_of(const Shardfc__V1__StatusReply *s, bool workers, size_t i)
{
    return workers ? s->workers[i]->numerics : gone(s->shards[i]) ? "" : s->shards[i]->numerics;
}

/* Shards of a run should compute alike, and its workers. */
static void judge_numerics(const Shardfc__V1__StatusReply *s, bool workers,
                           struct sfc_findings *out)
{
    const char *first = "", *other = "", *who = workers ? "workers" : "shards";
    for (size_t i = 0; i < (workers ? s->n_workers : s->n_shards); i++) {
        const char *one = numerics_of(s, workers, i);
        if (first[0] == '\0') {
            first = one;
        } else if (one[0] != '\0' && strcmp(first, one) != 0) {
            other = one;
        }
    }
    if (other[0] != '\0') {
        bool mixed = s->config != NULL && s->config->mixed;
        sfc_finding_add(out, mixed ? SFC_FINDING_NOTE : SFC_FINDING_WARNING, "the cluster",
                        "numerics", "%s compute differently in the last bits: \"%s\" and \"%s\"",
                        who, first, other);
        sfc_finding_cure(out, "%s",
                         mixed ? ""
                               : "a run takes members of one class only: equal hosts "
                                 "and versions, or shardfc create --mixed");
    } else if (first[0] != '\0') {
        sfc_finding_add(out, SFC_FINDING_OK, "the cluster", "numerics", "%s: \"%s\"", who, first);
    }
}

static void judge_workers(const struct sfc_cluster_facts *c, struct sfc_findings *out)
{
    const Shardfc__V1__StatusReply *s = c->status;
    uint64_t lanes = 0;
    for (size_t i = 0; i < s->n_workers; i++) {
        const Shardfc__V1__WorkerStatus *w = s->workers[i];
        char where[96];
        snprintf(where, sizeof where, "worker %" PRIu64 " (%.60s)", w->id, w->name);
        lanes += w->lanes;
        if (w->version[0] != '\0') {
            judge_version(c->version, w->version, where, out);
        }
        judge_ahead(w->clock_ahead_s, 1, where, "the scheduler", out);
    }
    bool session = s->config != NULL && s->config->data != NULL &&
                   s->config->data->kind == SHARDFC__V1__DATA_SET__KIND__SESSION;
    if (s->n_workers == 0 && running(s) && !session) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, "the cluster", "workers",
                        "none, so the run stands still");
        sfc_finding_cure(out, "systemctl start shardfc-worker@N on the workers' hosts; journalctl "
                              "-u 'shardfc-worker@*' says what keeps one away");
    } else {
        sfc_finding_add(out, SFC_FINDING_OK, "the cluster", "workers", "%zu with %" PRIu64 " lanes",
                        s->n_workers, lanes);
    }
}

static void judge_still(const struct sfc_cluster_facts *c, struct sfc_findings *out)
{
    const Shardfc__V1__StatusReply *s = c->status;
    bool still = c->since_commit_s > STILL_S && c->since_commit_s > STILL_STEPS * c->step_s;
    char since[32];
    sfc_show_duration(c->since_commit_s, since, sizeof since);
    if (still) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, "the cluster", "run",
                        "%s has made no step for %s: %s", s->run, since,
                        s->reason[0] != '\0' ? s->reason : "nothing says why");
        sfc_finding_cure(out, "mend what is found above; shardfc events; docs/OPERATIONS.md, "
                              "\"ShardFCRunStandsStill\"");
    } else {
        sfc_finding_add(out, SFC_FINDING_OK, "the cluster", "run",
                        "%s is at step %" PRIu64 " of %" PRIu64, s->run, s->step, s->steps);
    }
}

static void judge_run(const struct sfc_cluster_facts *c, struct sfc_findings *out)
{
    const Shardfc__V1__StatusReply *s = c->status;
    if (s->run_id == 0) {
        sfc_finding_add(out, SFC_FINDING_OK, "the cluster", "run",
                        "none; shardfc create begins one");
    } else if (strcmp(s->state, "blocked") == 0) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, "the cluster", "run", "%s is blocked: %s", s->run,
                        s->reason);
        sfc_finding_cure(out, "mend the cause, then shardfc resume; or without these rows: shardfc "
                              "resume --drop T,J");
    } else if (strcmp(s->state, "failed") == 0) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, "the cluster", "run", "%s has failed: %s", s->run,
                        s->reason);
        sfc_finding_cure(out, "shardfc stop, then shardfc restore from the last checkpoint");
    } else if (running(s)) {
        judge_still(c, out);
    } else {
        sfc_finding_add(out, SFC_FINDING_OK, "the cluster", "run",
                        "%s is %s at step %" PRIu64 " of %" PRIu64 "%s%s", s->run, s->state,
                        s->step, s->steps, s->reason[0] != '\0' ? ": " : "", s->reason);
    }
}

void sfc_judge_cluster(const struct sfc_cluster_facts *facts, struct sfc_findings *out)
{
    judge_scheduler(facts, out);
    for (size_t i = 0; i < facts->status->n_shards; i++) {
        judge_shard(facts, i, out);
    }
    judge_workers(facts, out);
    judge_numerics(facts->status, false, out);
    judge_numerics(facts->status, true, out);
    judge_run(facts, out);
}
