#include "server/run/about.h"

#include <stdio.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "proto/certificate.h"
#include "server/run/messages.h"

uint64_t sfc_about_clock_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void sfc_about_answer(struct sfc_rpc_call *call, const char *state, const char *tls)
{
    Shardfc__V1__AboutReply m = SHARDFC__V1__ABOUT_REPLY__INIT;
    char host[256] = "";
    struct statvfs disk;
    gethostname(host, sizeof host - 1);
    m.version = (char *)(uintptr_t)SFC_VERSION;
    m.host = host;
    m.state = (char *)(uintptr_t)(state ? state : "");
    if (state && statvfs(state, &disk) == 0) { /* fails where the state is no folder */
        m.state_total = (uint64_t)disk.f_blocks * disk.f_frsize;
        m.state_free = (uint64_t)disk.f_bavail * disk.f_frsize;
    }
    m.certificate_end = tls ? (uint64_t)sfc_certificate_end(tls) : 0;
    m.time_us = sfc_about_clock_us();
    sfc_call_reply(call, &m);
}
