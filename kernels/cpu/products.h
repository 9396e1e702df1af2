/* How a head with `--gemm bf16` multiplies on this CPU. The formats are the same either way: W and
 * unit features rounded to bf16, kept cosines of 16 bits, p in bf16 (docs/ARCHITECTURE.md).
 *
 * NATIVE   the products' operands are bf16, multiplied by the CPU's bf16 instructions
 * BY_F32   operands are widened on the way into the product, which is the f32 one: products of two
 *          bf16 numbers are exact in f32, so this is at least as exact
 *
 * Which one is a fact of the CPU (its features and vendor), never of a timing, because it belongs
 * to the numerics class. With oneDNN 2.6.3 native bf16 multiplies nearly 2 x as fast as f32 on
 * AMD's avx512_bf16 (Zen 5: 660 to 727 against 355 to 395 GFLOP/s) and four times as fast in AMX
 * (1,565 to 1,593 against 395), but half as fast on Intel's avx512_bf16 without AMX (165 against
 * 303). */
#ifndef SFC_KERNELS_CPU_PRODUCTS_H
#define SFC_KERNELS_CPU_PRODUCTS_H

#include <stdbool.h>

#include "proto/base/status.h"

struct sfc_backend;

enum sfc_cpu_products { SFC_CPU_PRODUCTS_BY_F32, SFC_CPU_PRODUCTS_NATIVE };

struct sfc_cpu_features {
    bool avx512_bf16, amx_bf16, amd;
};

/* The rule. */
enum sfc_cpu_products sfc_cpu_products_of(struct sfc_cpu_features features);
/* The features of this CPU that oneDNN uses (DNNL_MAX_CPU_ISA limits them). */
struct sfc_cpu_features sfc_cpu_features(void);

/* The cpu backend with products of the caller's choice, for tests of what this CPU's rule does not
 * choose; oneDNN emulates native products where it has AVX-512. */
int sfc_backend_cpu_open_products(unsigned threads, enum sfc_cpu_products products,
                                  struct sfc_backend **out, struct sfc_error *err);

#endif
