#include "proto/daemon_metrics.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/process.h"
#include "proto/certificate.h"

void sfc_metrics_gauge(struct sfc_metrics *m, const char *name, const char *help, double value)
{
    sfc_metrics_family(m, name, "gauge", help);
    sfc_metrics_sample(m, name, value, NULL);
}

void sfc_metrics_counter(struct sfc_metrics *m, const char *name, const char *help, double value)
{
    sfc_metrics_family(m, name, "counter", help);
    sfc_metrics_sample(m, name, value, NULL);
}

/* ---- the process */

struct stat_fields {
    uint64_t ticks;   /* of processor time */
    uint64_t started; /* ticks since the machine's start */
};

/* The name in parentheses may hold anything; the numbers follow its last ')'. */
static bool read_stat(struct stat_fields *out)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    size_t size = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    text[size] = '\0';
    const char *rest = strrchr(text, ')');
    uint64_t user, system;
    if (rest == NULL || sscanf(rest + 1,
                               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64
                               " %*d %*d %*d %*d %*d %*d %" SCNu64,
                               &user, &system, &out->started) != 3) {
        return false;
    }
    out->ticks = user + system;
    return true;
}

static double started_at(uint64_t ticks)
{
    struct timespec now, up;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up);
    double since = (double)ticks / (double)sysconf(_SC_CLK_TCK);
    return (double)(now.tv_sec - up.tv_sec) + 1e-9 * (double)(now.tv_nsec - up.tv_nsec) + since;
}

static double open_files(void)
{
    double count = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL) {
        return 0;
    }
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count - 3; /* ".", ".." and this folder */
}

void sfc_metrics_process(struct sfc_metrics *m)
{
    struct stat_fields stat;
    struct rlimit files;
    uint64_t resident = sfc_process_resident();
    if (resident > 0) {
        sfc_metrics_gauge(m, "process_resident_memory_bytes",
                          "Memory of the process that is there.", (double)resident);
    }
    if (read_stat(&stat)) {
        sfc_metrics_counter(m, "process_cpu_seconds_total", "Processor time, user and system.",
                            (double)stat.ticks / (double)sysconf(_SC_CLK_TCK));
        sfc_metrics_gauge(m, "process_start_time_seconds", "When it started, Unix time.",
                          started_at(stat.started));
    }
    sfc_metrics_gauge(m, "process_open_fds", "Open file descriptors.", open_files());
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        sfc_metrics_gauge(m, "process_max_fds", "Most file descriptors that it may have.",
                          (double)files.rlim_cur);
    }
}

void sfc_metrics_traffic(struct sfc_metrics *m, const struct sfc_rpc_traffic *traffic)
{
    sfc_metrics_counter(m, "shardfc_rpc_received_bytes_total", "Bytes of messages received.",
                        (double)traffic->received);
    sfc_metrics_counter(m, "shardfc_rpc_sent_bytes_total", "Bytes of messages sent.",
                        (double)traffic->sent);
    sfc_metrics_counter(m, "shardfc_rpc_retries_total", "Calls made again because nobody answered.",
                        (double)traffic->retries);
}

void sfc_metrics_certificate(struct sfc_metrics *m, struct sfc_certificate_metric *of,
                             const char *folder)
{
    enum { EACH = 60 };
    if (folder == NULL) {
        return;
    }
    if (of->calls++ % EACH == 0) {
        of->end = sfc_certificate_end(folder);
    }
    sfc_metrics_gauge(m, "shardfc_certificate_expiry_timestamp_seconds",
                      "Last second of its certificate, since 1970.", (double)of->end);
}

void sfc_metrics_build(struct sfc_metrics *m)
{
    sfc_metrics_family(m, "shardfc_build_info", "gauge", "Version of the program.");
    sfc_metrics_sample(m, "shardfc_build_info", 1, "version", SFC_VERSION, NULL);
}

/* ---- steps */

void sfc_metrics_phases(struct sfc_metrics *m, const char *name, const char *help,
                        const struct sfc_spans *spans, enum sfc_phase first, enum sfc_phase last)
{
    sfc_metrics_family(m, name, "histogram", help);
    sfc_metrics_more_phases(m, name, spans, first, last);
}

void sfc_metrics_more_phases(struct sfc_metrics *m, const char *name, const struct sfc_spans *spans,
                             enum sfc_phase first, enum sfc_phase last)
{
    for (unsigned phase = first; phase <= (unsigned)last; phase++) {
        struct sfc_histogram h;
        if (sfc_phase_name(phase) == NULL) {
            continue;
        }
        sfc_spans_histogram(spans, (enum sfc_phase)phase, &h);
        sfc_metrics_histogram(m, name, &h, "phase", sfc_phase_name(phase), NULL);
    }
}

void sfc_metrics_errors(struct sfc_metrics *m, const char *name, const char *help,
                        const uint64_t *counts)
{
    sfc_metrics_family(m, name, "counter", help);
    for (int code = SFC_EINVAL; code <= SFC_EINTERNAL; code++) {
        sfc_metrics_sample(m, name, (double)counts[code], "kind",
                           sfc_status_name(code) + strlen("SFC_"), NULL);
    }
}

void sfc_http_print(const char *listen, int port)
{
    const char *colon = strrchr(listen, ':');
    printf("http %.*s:%d\n", (int)(colon - listen), listen, port);
    fflush(stdout);
}
