/* The subcommands of `shardfc bench`. argv[0] is the word before the options; returns the exit
 * code. */
#ifndef SFC_CTL_BENCH_H
#define SFC_CTL_BENCH_H

int sfc_bench_rpc_main(int argc, char **argv);
int sfc_bench_snapshots_main(int argc, char **argv);
int sfc_bench_kernels_main(int argc, char **argv);

#endif
