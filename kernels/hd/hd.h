/* Functions that the host and CUDA devices share: pure, plain C that is C++ too. Device code
 * includes no other headers of the kernels than those of this folder (and those of kernels/cuda
 * that say so); what is in here is proven on the host (tests/unit/test_hd.c).
 *
 * Where bits must be the same everywhere, sums and products go through the functions below: nvcc
 * fuses plain ones. */
#ifndef SFC_KERNELS_HD_HD_H
#define SFC_KERNELS_HD_HD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SFC_HD __host__ __device__
#else /* always inlined, so that functions compiled for wider vectors take them in */
#define SFC_HD __attribute__((always_inline))
#endif

static SFC_HD inline float sfc_hd_add(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

static SFC_HD inline float sfc_hd_mul(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

static SFC_HD inline double sfc_hd_dadd(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

static SFC_HD inline double sfc_hd_dmul(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

static SFC_HD inline uint32_t sfc_hd_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static SFC_HD inline float sfc_hd_float(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static SFC_HD inline uint64_t sfc_hd_dbits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static SFC_HD inline double sfc_hd_double(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

#endif
