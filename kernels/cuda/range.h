/* Names for stretches of work in profilers (Nsight Systems): NVTX, which costs nothing without one.
 */
#ifndef SFC_KERNELS_CUDA_RANGE_H
#define SFC_KERNELS_CUDA_RANGE_H

#include <nvtx3/nvToolsExt.h>

static inline void sfc_cuda_range_begin(const char *name)
{
    nvtxRangePushA(name);
}

static inline void sfc_cuda_range_end(void)
{
    nvtxRangePop();
}

#endif
