/* What `shardfc doctor` makes of a host and of a cluster. Probes (doctor_probe.h) find facts; the
 * functions here judge them and are pure. Each judgement is a finding: how bad it is, what was
 * found, and what to do, with the command where there is one. */
#ifndef SFC_CTL_DOCTOR_H
#define SFC_CTL_DOCTOR_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/certificate.h"
#include "proto/shardfc.pb-c.h"

enum sfc_finding_level {
    SFC_FINDING_OK,      /* as it should be */
    SFC_FINDING_NOTE,    /* worth knowing */
    SFC_FINDING_WARNING, /* costs speed, or may become a problem */
    SFC_FINDING_PROBLEM  /* it doesn't work, or a fault now would cost work */
};

struct sfc_finding {
    enum sfc_finding_level level;
    char where[96];  /* "this host", "shard 2 at 10.0.0.2:7410" */
    char what[24];   /* "memory" */
    char found[768]; /* one sentence or part of one */
    char cure[480];  /* "": nothing to do */
};

struct sfc_findings { /* all zero at first */
    struct sfc_finding *items;
    size_t count;
    bool failed; /* no memory: what follows is lost */
    struct sfc_finding spare;
};

void sfc_findings_free(struct sfc_findings *findings);
/* Adds one; the cure of the last one is set by sfc_finding_cure. */
void sfc_finding_add(struct sfc_findings *findings, enum sfc_finding_level level, const char *where,
                     const char *what, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void sfc_finding_cure(struct sfc_findings *findings, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
size_t sfc_findings_of(const struct sfc_findings *findings, enum sfc_finding_level level);
/* In 80 columns. */
void sfc_findings_print(const struct sfc_findings *findings, FILE *out);
json_t *sfc_findings_json(const struct sfc_findings *findings);

/* ---- a host */

struct sfc_host_facts {
    uint64_t memory_total, memory_available; /* bytes; 0: the system doesn't say */
    uint64_t group_limit, group_used;        /* of the tightest control group; 0: none */
    uint64_t swap_total, swap_free;
    int overcommit;      /* vm.overcommit_memory; -1: not known */
    char huge_pages[16]; /* always, madvise, never; "": not known */
    uint64_t open_files, open_files_most;
    bool avx2, avx512, bf16;
    char cpu[128], cpu_error[512]; /* numerics class of the CPU backend, or why not */
    bool gpu_device;               /* the driver has made one */
    char gpu[128], gpu_error[512]; /* the same of the CUDA backend */
    uint64_t gpu_total, gpu_free;
    bool clock_known, clock_synchronized;
};
void sfc_judge_host(const struct sfc_host_facts *facts, struct sfc_findings *out);

#define SFC_USUAL_STATE "/var/lib/shardfc"
struct sfc_disk_facts {
    const char *folder;
    char error[256];      /* it can't be written, and why; "": it can */
    int code;             /* the errno of that */
    bool missing;         /* there is no such folder */
    bool in_memory;       /* tmpfs, ramfs */
    uint64_t total, free; /* bytes */
    double bytes_per_s;   /* written and flushed */
    double flush_s;       /* of a small write, the median */
};
void sfc_judge_disk(const struct sfc_disk_facts *facts, struct sfc_findings *out);

enum sfc_port_fault {
    SFC_PORT_FREE,
    SFC_PORT_MALFORMED, /* it is no HOST:PORT */
    SFC_PORT_UNKNOWN,   /* nobody knows the host by this name */
    SFC_PORT_TAKEN,
    SFC_PORT_FOREIGN, /* the address of another host */
    SFC_PORT_REFUSED
};
struct sfc_port_facts {
    const char *address;
    enum sfc_port_fault fault;
    char error[256]; /* nobody can listen there, and why; "": free */
};
void sfc_judge_port(const struct sfc_port_facts *facts, struct sfc_findings *out);

struct sfc_certificate_facts {
    const char *folder;
    int64_t now;
    char error[512]; /* it is of no use, and why */
    struct sfc_certificate own;
    const char *host; /* that others are to call it by; NULL: not said */
    bool names_host;
};
void sfc_judge_certificate(const struct sfc_certificate_facts *facts, struct sfc_findings *out);

/* ---- a cluster */

/* What a process said about itself. */
struct sfc_about_facts {
    int code;        /* of the call */
    char error[512]; /* it did not answer, and why */
    char version[32], host[64];
    double ahead_s; /* of our clock, give or take half of round_trip_s */
    double round_trip_s;
    uint64_t state_total, state_free; /* 0: not on a disk of its own */
    int64_t certificate_end;          /* 0: no TLS */
};

struct sfc_cluster_facts {
    const char *address; /* of the scheduler, as it was asked for */
    const char *version; /* ours */
    int64_t now;
    const Shardfc__V1__StatusReply *status;
    struct sfc_about_facts scheduler;
    const struct sfc_about_facts *shards; /* [status->n_shards] */
    double since_commit_s;                /* below 0: no step has been committed */
    double step_s;                        /* the last one; 0: not known */
};
void sfc_judge_cluster(const struct sfc_cluster_facts *facts, struct sfc_findings *out);

#endif
