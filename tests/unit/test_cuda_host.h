/* Kernels of test_cuda_host. */
#ifndef SFC_TESTS_TEST_CUDA_HOST_H
#define SFC_TESTS_TEST_CUDA_HOST_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum divergence {
    RETURNS_BEFORE_BARRIER,
    TWO_BARRIERS,
    LANE_LEAVES_WARP,
    LANES_IN_TWO_PLACES,
    PART_OF_THE_MASK,
    BEYOND_SHARED /* AddressSanitizer's */
};

/* out[block * 256 + i] = in[block * 256 + 255 - i], through shared memory. */
cudaError_t launch_reverse(unsigned blocks, const unsigned *in, unsigned *out, cudaStream_t stream);
/* The same without the barrier between writing and reading. */
cudaError_t launch_racing_reverse(const unsigned *in, unsigned *out, cudaStream_t stream);
/* out[thread]: position in the order in which the threads of a block, and the blocks, ran. */
cudaError_t launch_order(unsigned blocks, unsigned threads, unsigned *counter, unsigned *out,
                         cudaStream_t stream);
/* One warp: out[k][lane] of every warp function, see the kernel. */
enum { WARP_RESULTS = 12 };
cudaError_t launch_warp(unsigned *out, cudaStream_t stream);
/* Sums of 1 .. 256 * blocks by shuffles and shared memory, one per block. */
cudaError_t launch_sums(unsigned blocks, unsigned long long *out, cudaStream_t stream);
/* out: what atomics of 64 * 5 threads make of it. */
cudaError_t launch_atomics(unsigned *out, unsigned long long *wide, cudaStream_t stream);
/* out[k]: every device number function on fixed inputs. */
enum { NUMBER_RESULTS = 20 };
cudaError_t launch_numbers(long long *out, cudaStream_t stream);
/* Writes what a shared array has at first: of the second block too. */
cudaError_t launch_shared_at_first(unsigned blocks, unsigned *out, cudaStream_t stream);
/* *out += add, one thread. */
cudaError_t launch_add(unsigned *out, unsigned add, cudaStream_t stream);
cudaError_t launch_divergence(enum divergence how, cudaStream_t stream);
cudaError_t launch_nothing(unsigned x, unsigned y, unsigned threads, cudaStream_t stream);
/* out[i] = thread and block coordinates of a grid of (2, 3, 2) blocks of (4, 2, 3) threads. */
cudaError_t launch_places(unsigned *out, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
