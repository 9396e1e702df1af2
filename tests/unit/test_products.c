/* How bf16 operands are multiplied: the rule over all CPUs, and that the numerics class says it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/cpu/products.h"

static void the_rule(void **state)
{
    (void)state;
    static const struct {
        struct sfc_cpu_features features; /* avx512_bf16, amx_bf16, amd */
        enum sfc_cpu_products products;
    } cpus[] = {
        {{false, false, false}, SFC_CPU_PRODUCTS_BY_F32}, /* Ice Lake and all before */
        {{true, false, false}, SFC_CPU_PRODUCTS_BY_F32},  /* Cooper Lake, AMX switched off */
        {{true, true, false}, SFC_CPU_PRODUCTS_NATIVE},   /* Sapphire Rapids */
        {{false, false, true}, SFC_CPU_PRODUCTS_BY_F32},  /* Zen 3 */
        {{true, false, true}, SFC_CPU_PRODUCTS_NATIVE},   /* Zen 4, Zen 5 */
    };
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++)
        assert_int_equal(sfc_cpu_products_of(cpus[i].features), cpus[i].products);
}

static void expect_class(struct sfc_backend *backend, enum sfc_cpu_products products)
{
    const char *class = sfc_backend_numerics(backend);
    bool native = products == SFC_CPU_PRODUCTS_NATIVE;
    assert_true(!strstr(class, " gemm-bf16-native ") == !native);
    assert_true(!strstr(class, " gemm-bf16-by-f32 ") == native);
    sfc_backend_close(backend);
}

static void the_numerics_class_says_it(void **state)
{
    (void)state;
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    for (int p = SFC_CPU_PRODUCTS_BY_F32; p <= SFC_CPU_PRODUCTS_NATIVE; p++) {
        assert_int_equal(sfc_backend_cpu_open_products(1, (enum sfc_cpu_products)p, &backend, &err),
                         SFC_OK);
        expect_class(backend, (enum sfc_cpu_products)p);
    }
    assert_int_equal(sfc_backend_open("cpu", 1, &backend, &err), SFC_OK);
    expect_class(backend, sfc_cpu_products_of(sfc_cpu_features()));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rule),
        cmocka_unit_test(the_numerics_class_says_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
