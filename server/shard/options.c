#include "server/shard/options.h"

#define AT(field) offsetof(struct sfc_shard_options, field)

static const struct sfc_option table[] = {
    {.name = "scheduler",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR",
     .max = 255,
     .flags = SFC_OPTION_REQUIRED,
     .offset = AT(scheduler),
     .help = "address of the scheduler"},
    {.name = "listen",
     .type = SFC_OPTION_STRING,
     .metavar = "ADDR",
     .max = 255,
     .fallback = "127.0.0.1:0",
     .offset = AT(listen),
     .help = "address to serve on; port 0 is chosen by the kernel and printed as 'listening ADDR'"},
    {.name = "advertise",
     .type = SFC_OPTION_STRING,
     .metavar = "HOST",
     .max = 200,
     .offset = AT(advertise),
     .help =
         "host name or address under which workers and the scheduler reach this shard (default: "
         "the host of --listen)"},
    {.name = "state",
     .type = SFC_OPTION_STRING,
     .metavar = "DIR",
     .max = 3000,
     .offset = AT(state),
     .help = "folder of this shard, made with mode 0700 and used by one shard at a time"},
    {.name = "backend",
     .type = SFC_OPTION_STRING,
     .metavar = "NAME",
     .max = 32,
     .fallback = "cpu",
     .offset = AT(backend),
     .help = "cpu, cuda[:N] (device N), or reference (double precision, slow, for tests)"},
    {.name = "memory",
     .type = SFC_OPTION_SIZE,
     .min = 1 << 20,
     .offset = AT(memory),
     .help = "most memory that runs may use; a run that needs more is refused before anything is "
             "allocated (default: 80 % of what is available at start)"},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .min = 1,
     .max = 1024,
     .offset = AT(threads),
     .help = "compute threads; never changes a bit of any result (default: all processors)"},
};

const struct sfc_program sfc_shard_program = {
    .name = "shardfc-shard",
    .summary = "Serves blocks of class centres and of backbone parameters of a ShardFC cluster. "
               "Registers with the scheduler and waits for a run.",
    .options = table,
    .count = sizeof table / sizeof *table,
};
