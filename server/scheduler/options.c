#include "server/scheduler/options.h"

#define AT(field) offsetof(struct sfc_scheduler_options, field)

static const struct sfc_option table[] = {
    {.name = "listen",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR",
     .max = 255,
     .fallback = "127.0.0.1:0",
     .offset = AT(listen),
     .help = "address to serve on, printed as 'listening ADDR'; port 0: the one that the kernel "
             "chose when "
             "this --state was first served, so that others find it again (with etcd: any)"},
    {.name = "advertise",
     .type = SFC_OPTION_STRING,
     .metavar = "HOST",
     .max = 200,
     .offset = AT(advertise),
     .help = "with a state in etcd: host name or address under which others reach this scheduler "
             "(default: the host of --listen)"},
    {.name = "state",
     .type = SFC_OPTION_STRING,
     .metavar = "DIR|etcd[s]://HOST:PORT,...[/PREFIX]",
     .max = 3000,
     .flags = SFC_OPTION_REQUIRED,
     .offset = AT(state),
     .help =
         "folder of the durable state (SQLite), made with mode 0700 and used by one scheduler at a "
         "time; or the members of an etcd cluster and what the keys begin with there (default "
         "/shardfc), used by several schedulers: one leads, and another takes over when it is "
         "gone; etcds:// with the certificates of --tls"},
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "http",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR",
     .max = 255,
     .offset = AT(http),
     .help =
         "address of the status page and of pages for monitoring, printed as 'http ADDR': / for "
         "people, /metrics (Prometheus), /healthz, /readyz, and as JSON /api/status, /api/series "
         "(curves), /api/blocks, "
         "/api/events and /api/runs; with --tls over HTTPS with that certificate, "
         "to be read by anybody (default: none)"},
    {.name = "lease",
     .type = SFC_OPTION_DURATION,
     .min = 1000,
     .max = 600000,
     .fallback = "10s",
     .offset = AT(lease_ms),
     .help = "a worker or shard that was silent for this long counts as dead"},
    {.name = "move-rate",
     .type = SFC_OPTION_SIZE,
     .fallback = "100M",
     .flags = SFC_OPTION_RELOAD,
     .offset = AT(move_rate),
     .help = "bytes per second at which blocks are copied from shard to shard while the run trains "
             "(a run that stands still copies as fast as it can); 0: no limit"},
    SFC_PEER_OPTIONS(
        AT(peers), "512M",
        "most bytes of requests, half of them on their way in and half of them held until they are "
        "answered; larger requests are refused"),
};

const struct sfc_program sfc_scheduler_program = {
    .name = "shardfc-scheduler",
    .summary = "Decides who computes what in a ShardFC cluster and keeps the record of committed "
               "steps. One leads in a cluster; with a state in etcd others stand by.",
    .options = table,
    .count = sizeof table / sizeof *table,
};
