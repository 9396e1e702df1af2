/* Compute capability 9.0 in PTX (device code): barriers in shared memory, the copy engine that
 * fills it, and products of whole warpgroups (four warps) that read it. Addresses are those of the
 * shared memory of a cluster of two blocks of threads. */
#ifndef SFC_KERNELS_CUDA_HOPPER_CUH
#define SFC_KERNELS_CUDA_HOPPER_CUH

#include <cuda.h>
#include <stdint.h>

namespace hopper
{

__device__ static inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* The same place in the shared memory of another block of the cluster. */
__device__ static inline uint32_t address_in(uint32_t address, uint32_t block)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
    return there;
}

__device__ static inline uint32_t rank_in_cluster()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of the cluster; what they wrote before is seen after. */
__device__ static inline void meet_cluster()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* The 128 threads of a warpgroup. */
__device__ static inline void meet_group(uint32_t group)
{
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

/* ---- barriers: a phase is over after so many arrivals, and all bytes that were promised */

__device__ static inline void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

__device__ static inline void barriers_are_ready()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Arrives, and promises bytes of the copy engine. */
__device__ static inline void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* barrier: of any block of the cluster (address_in). Says that what came before has been read. */
__device__ static inline void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Until the phase of this parity is over. */
__device__ static inline void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@done bra over;\n\t"
                 "bra again;\n\t"
                 "over:\n\t"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* ---- the copy engine: boxes of matrices, of which rows of 64 numbers of 16 bits become 128 bytes
 * each; what is beyond the matrix is zeros */

__device__ static inline void load_box(const CUtensorMap *matrix, uint32_t to, uint32_t barrier,
                                       uint32_t column, uint32_t row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(matrix), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

/* The same place and barrier in both blocks of the cluster. */
__device__ static inline void load_box_for_both(const CUtensorMap *matrix, uint32_t to,
                                                uint32_t barrier, uint32_t column, uint32_t row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(matrix), "r"(barrier), "r"(column), "r"(row), "h"((uint16_t)3)
                 : "memory");
}

__device__ static inline void fetch_map(const CUtensorMap *matrix)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(matrix) : "memory");
}

/* ---- products of warpgroups */

/* What a product reads from `address` on: rows of 128 bytes of k, in the copy engine's pattern,
 * which repeats after eight. */
__device__ static inline uint64_t operand_at(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ static inline void product_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void product_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Nothing that uses d is moved across. */
__device__ static inline void hold(float (&d)[128])
{
#pragma unroll
    for (int i = 0; i < 128; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* Until at most N of the committed groups are under way. */
template <int N> __device__ static inline void product_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Of a whole warpgroup's threads: those of the block before and after are as many. */
template <int REGISTERS> __device__ static inline void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> __device__ static inline void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#define HOPPER_8(d, i)                                                                             \
    "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]),  \
        "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
#define HOPPER_32(d, i)                                                                            \
    HOPPER_8(d, i), HOPPER_8(d, (i) + 8), HOPPER_8(d, (i) + 16), HOPPER_8(d, (i) + 24)

/* d[64, 256] += a[64, 16] b[256, 16]'. A thread has of rows r = its warp in the group * 16 + lane /
 * 4 and r + 8 the columns 8 j + lane % 4 * 2 + {0, 1}: d[4 j + {0, 1}] and d[4 j + {2, 3}]. */
__device__ static inline void multiply(float (&d)[128], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "
                 "%110, %111, "
                 " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
                 "%125, %126, %127}, "
                 "%128, %129, 1, 1, 1, 0, 0;"
                 : HOPPER_32(d, 0), HOPPER_32(d, 32), HOPPER_32(d, 64), HOPPER_32(d, 96)
                 : "l"(a), "l"(b));
}

} // namespace hopper

#endif
