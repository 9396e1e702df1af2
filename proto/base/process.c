#include "proto/base/process.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    MMAP_FROM = 32 << 20, /* the largest threshold that glibc takes on 64-bit machines */
    TRIM_FROM = 1 << 30,
};

static void openmp_passive(char **argv)
{
    /* GOMP_SPINCOUNT is what libgomp derives from the policy; a user who set it knows better. */
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL) {
        return;
    }
    if (setenv("OMP_WAIT_POLICY", "passive", 1) == 0) {
        execv("/proc/self/exe", argv); /* returns only on failure: then OpenMP just spins */
    }
}

void sfc_process_tune(char **argv)
{
    openmp_passive(argv);
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, MMAP_FROM);
    mallopt(M_TRIM_THRESHOLD, TRIM_FROM);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void mask_hangup(int how)
{
    sigset_t hangup;
    sigemptyset(&hangup);
    sigaddset(&hangup, SIGHUP);
    pthread_sigmask(how, &hangup, NULL);
}

void sfc_process_hold_hangup(void)
{
    mask_hangup(SIG_BLOCK);
}

void sfc_process_take_hangup(void)
{
    mask_hangup(SIG_UNBLOCK);
}

int sfc_process_end(const char *program, int code)
{
    errno = 0;
    bool lost = fflush(stdout) != 0 || ferror(stdout) != 0;
    if (code != 0 || !lost) {
        return code;
    }
    fprintf(stderr, "%s: standard output: not everything could be written%s%s\n", program,
            errno != 0 ? ": " : "", errno != 0 ? strerror(errno) : "");
    return 1;
}

uint64_t sfc_process_memory(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    unsigned long long kib = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "Pss: %llu kB", &kib) == 1) {
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return (uint64_t)kib * 1024;
}

uint64_t sfc_process_resident(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned long long pages = 0;
    bool known = file != NULL && fscanf(file, "%*u %llu", &pages) == 1;
    if (file != NULL) {
        fclose(file);
    }
    return known ? pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

uint64_t sfc_memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[256];
    uint64_t kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0)
            kib = strtoull(line + 13, NULL, 10);
    if (f)
        fclose(f);
    return kib * 1024;
}
