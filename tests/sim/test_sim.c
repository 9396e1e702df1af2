/* Runs the simulator over many seeds.
 *
 *   test_sim [--seeds N] [--first N] [--full]     every seed must pass; a failing one is printed
 *   test_sim --seed N --verbose                   replays one
 *   test_sim --expect-failure                     passes only if some seed fails (planted bugs) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

struct options {
    uint64_t first, seeds;
    bool verbose, expect_failure;
};

static bool number(const char *text, uint64_t *out)
{
    char *end;
    *out = strtoull(text, &end, 10);
    return *text != '\0' && *end == '\0';
}

static bool parse(int argc, char **argv, struct options *o)
{
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--full") == 0) {
            o->seeds = 5000;
        } else if (strcmp(argv[i], "--verbose") == 0) {
            o->verbose = true;
        } else if (strcmp(argv[i], "--expect-failure") == 0) {
            o->expect_failure = true;
        } else if (strcmp(argv[i], "--seed") == 0 && more && number(argv[i + 1], &o->first)) {
            o->seeds = 1;
            i++;
        } else if (strcmp(argv[i], "--seeds") == 0 && more && number(argv[i + 1], &o->seeds)) {
            i++;
        } else if (strcmp(argv[i], "--first") == 0 && more && number(argv[i + 1], &o->first)) {
            i++;
        } else {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.first = 1, .seeds = 1000};
    static struct counts stats;
    char failure[512];
    uint64_t failures = 0;
    if (!parse(argc, argv, &o)) {
        fprintf(stderr,
                "usage: %s [--full] [--seeds N] [--first N] [--seed N] [--verbose] "
                "[--expect-failure]\n",
                argv[0]);
        return 2;
    }
    for (uint64_t seed = o.first; seed < o.first + o.seeds; seed++) {
        if (sim_run(seed, o.verbose, failure, sizeof(failure), &stats) == 0)
            continue;
        failures++;
        printf("seed %llu: %s\n  replay: %s --seed %llu --verbose\n", (unsigned long long)seed,
               failure, argv[0], (unsigned long long)seed);
        if (o.expect_failure || failures == 5)
            break;
    }
    printf(
        "%llu seeds, %llu events, %llu workers killed, %llu shard crashes, %llu recoveries, %llu "
        "scheduler restarts, %llu cuts, %llu failed flushes, %llu failed writes of the store, %llu "
        "records kept of those unsure at a crash, %llu sessions, %llu aborts sent, %llu rates set, "
        "%llu rewinds, "
        "%llu "
        "refused, %llu returns with %llu steps given up, %llu steps from other shards, %llu "
        "old copies of a disk, %llu second grants, %llu second data tickets, %llu joins, %llu "
        "moves, %llu leaves, %llu growths, %llu void orders, %llu refused maps, %llu shards given "
        "up, %llu disks "
        "vanished, %llu failures\n",
        (unsigned long long)o.seeds, (unsigned long long)stats.events,
        (unsigned long long)stats.kills, (unsigned long long)stats.crashes,
        (unsigned long long)stats.recoveries, (unsigned long long)stats.restarts,
        (unsigned long long)stats.cuts, (unsigned long long)stats.flush_errors,
        (unsigned long long)stats.store_errors, (unsigned long long)stats.unsure_records,
        (unsigned long long)stats.sessions, (unsigned long long)stats.aborts,
        (unsigned long long)stats.rates, (unsigned long long)stats.rewinds,
        (unsigned long long)stats.refused_rewinds, (unsigned long long)stats.returns,
        (unsigned long long)stats.given_up, (unsigned long long)stats.fetched,
        (unsigned long long)stats.old_copies, (unsigned long long)stats.second_grants,
        (unsigned long long)stats.second_data, (unsigned long long)stats.joins,
        (unsigned long long)stats.moves, (unsigned long long)stats.leaves,
        (unsigned long long)stats.growths, (unsigned long long)stats.void_orders,
        (unsigned long long)stats.refused_maps, (unsigned long long)stats.losses,
        (unsigned long long)stats.vanished, (unsigned long long)failures);
    return (failures > 0) == o.expect_failure ? 0 : 1;
}
