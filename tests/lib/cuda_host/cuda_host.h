/* Runs kernels/cuda on the CPU, for tests on machines without a GPU: CUDA's runtime in plain C and
 * kernels compiled by the host's C++ compiler. It is made to find what goes wrong on a device by
 * chance:
 *
 * - Order. Work in a stream is done when something waits for it, in an order of the streams that
 *   follows from the seed and keeps only to what streams and events promise; blocks of a grid,
 *   warps between two barriers and lanes between two meetings run in an order from the seed.
 * - Divergence. A barrier that not all threads of a block reach, or a warp function that not all 32
 *   lanes of a warp reach, ends the process with the kernel, the block, the threads and the lines.
 * - What was never written. Device and pinned memory and shared arrays are full of NaNs (0x7fff in
 * every 16 bits: NaN in bf16, f32 and f64, out of range as an index), shared ones at each block's
 * start.
 * - Bounds. Every allocation and shared array is one of the heap, so that AddressSanitizer sees its
 *   ends; copies are checked against allocations without it as well.
 * - Failures. The n-th call fails, or all from there on; device memory is as small as a test wants.
 *
 * Objects may be used by several threads; the device runs in the thread that waits. */
#ifndef SFC_TESTS_CUDA_HOST_H
#define SFC_TESTS_CUDA_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of orders. 0: everything in order and at once. At first SFC_CUDA_SEED of the environment, or 1.
 */
void sfc_cuda_host_seed(uint64_t seed);
/* Total bytes of the device's memory; 0: as at first. */
void sfc_cuda_host_memory(size_t bytes);
/* The n-th call from now that can fail does (0: none), with onwards all later ones too. */
void sfc_cuda_host_fail(uint64_t n, bool onwards);
/* Whether a call has failed since. */
bool sfc_cuda_host_failed(void);
/* From now on allocations are no memory of the host while nothing runs on the device: a host that
 * touches it gets a signal. Bounds are those of pages then. */
void sfc_cuda_host_guard(bool on);

/* What exists now. */
struct sfc_cuda_host_use {
    size_t allocations, device_bytes, streams, events, handles;
    uint64_t launches; /* so far */
};
struct sfc_cuda_host_use sfc_cuda_host_use(void);

#ifdef __cplusplus
}
#endif

#endif
