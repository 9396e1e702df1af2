/* Judgements of a host. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "proto/security.h"
#include "server/ctl/doctor.h"

#define HERE "this host"

static double gb(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

/* ---- memory */

static void judge_memory(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->memory_total == 0) {
        sfc_finding_add(out, SFC_FINDING_NOTE, HERE, "memory", "the system doesn't tell");
        return;
    }
    double share = (double)h->memory_available / (double)h->memory_total;
    bool little = h->memory_available < 512000000;
    sfc_finding_add(out,
                    little        ? SFC_FINDING_PROBLEM
                    : share < 0.1 ? SFC_FINDING_WARNING
                                  : SFC_FINDING_OK,
                    HERE, "memory", "%.1f of %.1f GB are available", gb(h->memory_available),
                    gb(h->memory_total));
    if (little || share < 0.1) {
        sfc_finding_cure(out, "see who has it: ps -eo rss,comm --sort=-rss | head; a shard takes "
                              "80 %% of what is available when it starts, unless --memory says");
    }
}

static void judge_group(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->group_limit == 0 || h->group_limit >= h->memory_total) {
        return;
    }
    bool full = h->group_used > h->group_limit / 10 * 9;
    sfc_finding_add(out, full ? SFC_FINDING_WARNING : SFC_FINDING_NOTE, HERE, "memory",
                    "a control group holds this shell to %.1f GB, of which %.1f GB are in use: a "
                    "process that takes more is killed, and ShardFC doesn't see this limit",
                    gb(h->group_limit), gb(h->group_used));
    sfc_finding_cure(out, "give shards their part: memory = %.0fG in /etc/shardfc/shard-N.conf",
                     gb(h->group_limit) * 0.7);
}

static void judge_swap(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    uint64_t used = h->swap_total - h->swap_free;
    if (h->swap_total == 0) {
        sfc_finding_add(out, SFC_FINDING_OK, HERE, "swap", "none");
    } else if (used < h->swap_total / 100) {
        sfc_finding_add(out, SFC_FINDING_NOTE, HERE, "swap",
                        "%.1f GB, not in use; blocks that are swapped out make each step wait for "
                        "the disk",
                        gb(h->swap_total));
    } else {
        sfc_finding_add(out, SFC_FINDING_WARNING, HERE, "swap",
                        "%.1f of %.1f GB are in use: a step that reads blocks from there takes "
                        "seconds",
                        gb(used), gb(h->swap_total));
        sfc_finding_cure(out, "swapoff -a (needs that much free memory), and a smaller --memory");
    }
}

static void judge_overcommit(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->overcommit < 0) {
        return;
    }
    bool strict = h->overcommit == 2;
    sfc_finding_add(out, strict ? SFC_FINDING_WARNING : SFC_FINDING_OK, HERE, "overcommit",
                    "vm.overcommit_memory = %d%s", h->overcommit,
                    strict ? ": memory is refused before it is full, and a run may not open" : "");
    if (strict) {
        sfc_finding_cure(out, "sysctl vm.overcommit_memory=0");
    }
}

static void judge_huge_pages(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->huge_pages[0] == '\0') {
        return;
    }
    bool never = strcmp(h->huge_pages, "never") == 0;
    sfc_finding_add(out, never ? SFC_FINDING_WARNING : SFC_FINDING_OK, HERE, "huge pages",
                    "transparent huge pages: %s%s", h->huge_pages,
                    never ? "; blocks ask for them, steps on CPUs are some percent slower" : "");
    if (never) {
        sfc_finding_cure(out, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    }
}

static void judge_files(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    enum { FEW = 256, FINE = 1024 };
    if (h->open_files == 0) {
        return;
    }
    sfc_finding_add(out,
                    h->open_files < FEW    ? SFC_FINDING_PROBLEM
                    : h->open_files < FINE ? SFC_FINDING_WARNING
                                           : SFC_FINDING_OK,
                    HERE, "open files", "%" PRIu64 " (at most %" PRIu64 ")", h->open_files,
                    h->open_files_most);
    if (h->open_files < FINE) {
        sfc_finding_cure(out, "each peer is a connection: ulimit -n 4096, or LimitNOFILE=4096 in a "
                              "drop-in of the unit");
    }
}

/* ---- what computes */

static void judge_cpu(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->cpu_error[0] != '\0') {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "CPU", "the CPU backend doesn't start: %s",
                        h->cpu_error);
        sfc_finding_cure(out,
                         "apt install --reinstall shardfc-server; ldd $(which shardfc-shard) | "
                         "grep 'not found'");
        return;
    }
    const char *has = h->bf16     ? "AVX-512 with bf16"
                      : h->avx512 ? "AVX-512, no bf16 (runs of bf16 use f32 products)"
                      : h->avx2   ? "AVX2, no AVX-512"
                                  : "neither AVX2 nor AVX-512";
    sfc_finding_add(out, h->avx2 ? SFC_FINDING_OK : SFC_FINDING_WARNING, HERE, "CPU",
                    "%s; shards and workers compute as \"%s\"", has, h->cpu);
    if (!h->avx2) {
        sfc_finding_cure(out, "steps are several times slower: use another machine, or let the "
                              "virtual machine have its host's CPU");
    }
}

static void judge_gpu(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (h->gpu_error[0] == '\0') {
        sfc_finding_add(out, SFC_FINDING_OK, HERE, "GPU", "\"%s\", %.1f of %.1f GB free", h->gpu,
                        gb(h->gpu_free), gb(h->gpu_total));
    } else if (h->gpu_device) {
        sfc_finding_add(out, SFC_FINDING_WARNING, HERE, "GPU",
                        "there is one, but it can't be used: %s", h->gpu_error);
        sfc_finding_cure(out, "apt install shardfc-cuda; nvidia-smi; and for services the drop-in "
                              "/usr/share/doc/shardfc-server/examples/gpu.conf");
    } else {
        sfc_finding_add(out, SFC_FINDING_OK, HERE, "GPU", "none; shards and workers use the CPU");
    }
}

static void judge_clock(const struct sfc_host_facts *h, struct sfc_findings *out)
{
    if (!h->clock_known) {
        sfc_finding_add(out, SFC_FINDING_NOTE, HERE, "clock", "the system doesn't tell how it is");
    } else if (h->clock_synchronized) {
        sfc_finding_add(out, SFC_FINDING_OK, HERE, "clock", "synchronised");
    } else {
        sfc_finding_add(out, SFC_FINDING_WARNING, HERE, "clock",
                        "nothing synchronises it: times in logs and events won't fit those of "
                        "other hosts, certificates may seem expired");
        sfc_finding_cure(out, "apt install systemd-timesyncd && timedatectl set-ntp true");
    }
}

void sfc_judge_host(const struct sfc_host_facts *facts, struct sfc_findings *out)
{
    judge_memory(facts, out);
    judge_group(facts, out);
    judge_swap(facts, out);
    judge_overcommit(facts, out);
    judge_huge_pages(facts, out);
    judge_files(facts, out);
    judge_cpu(facts, out);
    judge_gpu(facts, out);
    judge_clock(facts, out);
}

/* ---- disk */

static void judge_space(const struct sfc_disk_facts *d, struct sfc_findings *out)
{
    double share = d->total > 0 ? (double)d->free / (double)d->total : 0;
    bool none = d->free < 64000000, little = share < 0.1;
    sfc_finding_add(out,
                    none     ? SFC_FINDING_PROBLEM
                    : little ? SFC_FINDING_WARNING
                             : SFC_FINDING_OK,
                    HERE, "disk", "%s: %.1f of %.1f GB free", d->folder, gb(d->free), gb(d->total));
    if (none || little) {
        sfc_finding_cure(out,
                         "make room (du -xh --max-depth=2 %s | sort -h), use a larger volume, "
                         "or lower log-limit of the shards there: a full disk stops the run",
                         d->folder);
    }
}

static void judge_speed(const struct sfc_disk_facts *d, struct sfc_findings *out)
{
    bool late = d->flush_s > 0.05, slow = d->bytes_per_s < 50e6;
    sfc_finding_add(out, late || slow ? SFC_FINDING_WARNING : SFC_FINDING_OK, HERE, "disk speed",
                    "%.0f MB/s written and flushed, %.1f ms for a small flush%s",
                    d->bytes_per_s / 1e6, d->flush_s * 1e3,
                    late   ? ": each step waits for one"
                    : slow ? ": snapshots and moves will be slow"
                           : "");
    if (late) {
        sfc_finding_cure(out, "put --state on an SSD or NVMe, or flush less often: shardfc create "
                              "--durable-every 10");
    } else if (slow) {
        sfc_finding_cure(out, "a faster disk for --state, or a lower snapshot-rate");
    }
}

static void judge_refusal(const struct sfc_disk_facts *d, struct sfc_findings *out)
{
    const char *f = d->folder;
    bool file = d->code == ENOTDIR;
    sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "disk", "%s%s: %s", f,
                    file ? " is no folder" : " can't be written", d->error);
    if (file) {
        sfc_finding_cure(out, "give --state a folder, as `state` in the daemon's file names it");
    } else if (d->code == EACCES || d->code == EPERM) {
        sfc_finding_cure(out,
                         "ask as the user who is to write there: runuser -u shardfc -- shardfc "
                         "doctor --state %s; if that fails too: chown -R shardfc: %s",
                         f, f);
    } else {
        sfc_finding_cure(out, "df -h %s; ls -ld %s; mount | grep ' ro'; dmesg | tail", f, f);
    }
}

void sfc_judge_disk(const struct sfc_disk_facts *facts, struct sfc_findings *out)
{
    const char *f = facts->folder;
    if (facts->missing) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "disk", "%s: %s", f, facts->error);
        sfc_finding_cure(out, "install -d -m 700 -o shardfc -g shardfc %s", f);
        return;
    }
    if (facts->total == 0 && facts->code != ENOTDIR && facts->code != EACCES) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "disk",
                        "%s is no place for a state: its file system keeps no files%s%s", f,
                        facts->error[0] != '\0' ? ": " : "", facts->error);
        sfc_finding_cure(out, "give --state a folder on a disk, as below " SFC_USUAL_STATE);
        return;
    }
    if (facts->total > 0) {
        judge_space(facts, out);
    }
    if (facts->error[0] != '\0') {
        judge_refusal(facts, out);
        return;
    }
    if (facts->in_memory) {
        sfc_finding_add(out, SFC_FINDING_WARNING, HERE, "disk",
                        "%s is in memory (tmpfs): nothing of it survives a restart of the host",
                        facts->folder);
        sfc_finding_cure(out, "a folder on a disk for --state");
    }
    judge_speed(facts, out);
}

/* ---- ports and certificates */

static void cure_port(const struct sfc_port_facts *facts, struct sfc_findings *out)
{
    const char *colon = strrchr(facts->address, ':');
    switch (facts->fault) {
    case SFC_PORT_MALFORMED:
        sfc_finding_cure(out, "give an address of this host and a port, as in --listen "
                              "10.0.0.2:7410 or [fd00::2]:7410");
        return;
    case SFC_PORT_UNKNOWN:
        sfc_finding_cure(out, "give an address of this host (ip -brief address), or a name that "
                              "`getent hosts NAME` knows");
        return;
    case SFC_PORT_TAKEN:
        sfc_finding_cure(out, "see who has it: ss -ltnp 'sport = :%s'; or take another port",
                         colon != NULL ? colon + 1 : "");
        return;
    case SFC_PORT_FOREIGN:
        sfc_finding_cure(out, "no interface here has it: give an address of this host (ip -brief "
                              "address)");
        return;
    default:
        sfc_finding_cure(out, "take a port of 1024 or more, and an address of this host (ip "
                              "-brief address)");
    }
}

void sfc_judge_port(const struct sfc_port_facts *facts, struct sfc_findings *out)
{
    if (facts->fault == SFC_PORT_FREE) {
        sfc_finding_add(out, SFC_FINDING_OK, HERE, "port", "%s is free", facts->address);
        return;
    }
    sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "port", "%s can't be listened on: %s",
                    facts->address, facts->error);
    cure_port(facts, out);
}

static void judge_expiry(const struct sfc_certificate_facts *c, struct sfc_findings *out)
{
    char roles[64];
    int64_t days = (c->own.end - c->now) / 86400;
    bool soon = days < 14;
    sfc_finding_add(out, soon ? SFC_FINDING_WARNING : SFC_FINDING_OK, HERE, "certificate",
                    "%s: %s, %s%s%s, for %" PRId64 " more days", c->folder, c->own.name,
                    sfc_roles_text(c->own.roles, roles, sizeof roles),
                    c->own.run[0] != '\0' ? ", only for run " : "", c->own.run, days);
    if (soon) {
        sfc_finding_cure(out,
                         "shardfc cert issue --ca CA --role ROLE --host HOST --out %s "
                         "--replace; what runs takes it up by itself",
                         c->folder);
    }
}

void sfc_judge_certificate(const struct sfc_certificate_facts *facts, struct sfc_findings *out)
{
    if (facts->error[0] != '\0') {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "certificate", "%s", facts->error);
        sfc_finding_cure(out,
                         "shardfc cert issue --ca CA --role ROLE --host HOST --out %s "
                         "--replace",
                         facts->folder);
        return;
    }
    judge_expiry(facts, out);
    if (facts->host != NULL && !facts->names_host) {
        sfc_finding_add(out, SFC_FINDING_PROBLEM, HERE, "certificate",
                        "it does not name %s, so nobody will talk to a server there", facts->host);
        sfc_finding_cure(out, "shardfc cert issue ... --host %s --out %s --replace", facts->host,
                         facts->folder);
    }
}
