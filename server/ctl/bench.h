/* The subcommands of `shardfc bench`. argv[0] is the word before the options; returns the exit
 * code. */
#ifndef SFC_CTL_BENCH_H
#define SFC_CTL_BENCH_H

#include <stdint.h>

#include "proto/base/status.h"

/* How many compute threads --threads means: 0 one per processor; at most 8 per processor, beyond
 * which they would only wait for each other. */
int sfc_bench_threads(uint64_t asked, unsigned *out, struct sfc_error *err);

int sfc_bench_rpc_main(int argc, char **argv);
int sfc_bench_snapshots_main(int argc, char **argv);
int sfc_bench_kernels_main(int argc, char **argv);

#endif
