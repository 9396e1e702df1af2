#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "proto/limits.h"
#include "proto/run_config.h"
#include "proto/tensor.h"

#define F32 SHARDFC__V1__DTYPE__DTYPE_F32
#define U64 SHARDFC__V1__DTYPE__DTYPE_U64

static const uint64_t shape[] = {3, 4};

static int check(Shardfc__V1__DType dtype, const uint64_t *given, size_t rank, size_t bytes,
                 struct sfc_error *err)
{
    static const uint8_t memory[64];
    struct sfc_tensor_type t;
    return sfc_tensor_check(sfc_tensor_type(&t, dtype, given, rank),
                            (struct sfc_bytes){memory, bytes}, F32, shape, 2, "features", err);
}

static void test_check(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    static const uint64_t other[] = {3, 5}, flat[] = {12};
    assert_int_equal(check(F32, shape, 2, 48, &err), SFC_OK);
    assert_int_equal(check(U64, shape, 2, 48, &err), SFC_EINVAL);
    assert_string_equal(err.text, "features: element type u64 (4), wanted f32");
    assert_int_equal(check((Shardfc__V1__DType)77, shape, 2, 48, &err), SFC_EINVAL);
    assert_int_equal(check(F32, other, 2, 60, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "dimension 1 is 5, wanted 4"));
    assert_int_equal(check(F32, flat, 1, 48, &err), SFC_EINVAL);
    assert_int_equal(check(F32, shape, 2, 47, &err), SFC_EINVAL);
    assert_int_equal(check(F32, shape, 2, 0, &err), SFC_EINVAL);
    assert_int_equal(sfc_tensor_check(NULL, (struct sfc_bytes){NULL, 0}, F32, shape, 2, "x", &err),
                     SFC_EINVAL);
}

static void test_overflow(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_tensor_type t;
    static const uint64_t wraps[] = {1ull << 32,
                                     1ull << 32}; /* 2^64 elements: 0 bytes if it wrapped */
    assert_int_equal(sfc_tensor_check(sfc_tensor_type(&t, F32, wraps, 2),
                                      (struct sfc_bytes){NULL, 0}, F32, wraps, 2, "x", &err),
                     SFC_EINVAL);
    assert_non_null(strstr(err.text, "overflows"));
    uint64_t count = 9, n = 1ull << 62;
    assert_int_equal(sfc_tensor_check_vector(sfc_tensor_type(&t, F32, &n, 1),
                                             (struct sfc_bytes){NULL, 0}, F32, UINT64_MAX, &count,
                                             "x", &err),
                     SFC_EINVAL);
    assert_int_equal(count, 9);
}

static void test_vector(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_tensor_type t;
    static const uint8_t memory[40];
    uint64_t count = 0, n = 5;
    Shardfc__V1__TensorType *type = sfc_tensor_type(&t, U64, &n, 1);
    struct sfc_bytes payload = {memory, 40};
    assert_int_equal(sfc_tensor_check_vector(type, payload, U64, 5, &count, "x", &err), SFC_OK);
    assert_int_equal(count, 5);
    assert_int_equal(sfc_tensor_check_vector(type, payload, U64, 4, &count, "x", &err), SFC_EINVAL);
    assert_int_equal(sfc_tensor_check_vector(type, payload, F32, 5, &count, "x", &err), SFC_EINVAL);
}

/* ---- configuration of a run */

static Shardfc__V1__DataSet data;
static Shardfc__V1__DenseSegment segment;
static Shardfc__V1__DenseSegment *segments[] = {&segment};
static uint64_t segment_shape[2];

static Shardfc__V1__RunConfig good(void)
{
    data = (Shardfc__V1__DataSet)SHARDFC__V1__DATA_SET__INIT;
    data.kind = SHARDFC__V1__DATA_SET__KIND__SYNTHETIC;
    data.samples = 1000;
    segment = (Shardfc__V1__DenseSegment)SHARDFC__V1__DENSE_SEGMENT__INIT;
    segment_shape[0] = 8;
    segment_shape[1] = 4;
    segment.name = "conv1.weight";
    segment.n_shape = 2;
    segment.shape = segment_shape;
    Shardfc__V1__RunConfig c = SHARDFC__V1__RUN_CONFIG__INIT;
    c.name = "faces";
    c.classes = 1000;
    c.dim = 64;
    c.block_size = 256;
    c.sample_ppm = 100000;
    c.margin_m1 = 1;
    c.margin_m3 = 0.4;
    c.scale = 64;
    c.margin_grad = "exact";
    c.correction = "none";
    c.dtype = "f32";
    c.gemm = "f32";
    c.rounding = "stochastic";
    c.init_std = 0.01;
    c.optimizer = "sgd";
    c.momentum_mode = "sampled";
    c.momentum = 0.9;
    c.lr = 0.1;
    c.lr_power = 1;
    c.steps = 10;
    c.global_batch = 32;
    c.micro_batch = 8;
    c.backbone = "tiny";
    c.segments = segments;
    c.n_segments = 1;
    c.dense_block_size = 16;
    c.data = &data;
    return c;
}

static void refused(const Shardfc__V1__RunConfig *c, const char *field)
{
    struct sfc_error err = {0};
    assert_int_equal(sfc_run_config_check(c, &err), SFC_EINVAL);
    if (strstr(err.text, field) == NULL) {
        fail_msg("\"%s\" does not name %s", err.text, field);
    }
}

#define REFUSED(change, field)                                                                     \
    do {                                                                                           \
        Shardfc__V1__RunConfig c = good();                                                         \
        change;                                                                                    \
        refused(&c, field);                                                                        \
    } while (0)

static void test_run_config(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    Shardfc__V1__RunConfig ok = good();
    assert_int_equal(sfc_run_config_check(&ok, &err), SFC_OK);
    assert_int_equal(sfc_run_dense_size(&ok), 32);
    ok.optimizer = "adamw";
    ok.beta1 = 0.9;
    ok.beta2 = 0.999;
    ok.epsilon = 1e-8;
    assert_int_equal(sfc_run_config_check(&ok, &err), SFC_OK);
    assert_int_equal(sfc_run_config_check(NULL, &err), SFC_EINVAL);
    REFUSED(c.name = "", "name");
    REFUSED(c.classes = 0, "classes");
    REFUSED(c.classes = 1ull << 41, "classes");
    REFUSED((c.classes = 1ull << 40, c.block_size = 1), "block_size");
    REFUSED(c.dim = 0, "dim");
    REFUSED(c.dim = SFC_LIMIT_DIM + 1, "dim");
    REFUSED(c.block_size = 0, "block_size");
    REFUSED(c.sample_ppm = 1000001, "sample_ppm");
    REFUSED(c.scale = 81, "scale");
    REFUSED(c.scale = (double)NAN, "scale");
    REFUSED(c.lr = (double)INFINITY, "lr");
    REFUSED(c.momentum = 1, "momentum");
    REFUSED(c.margin_grad = "none", "margin_grad");
    REFUSED(c.dtype = "f16", "dtype");
    REFUSED(c.gemm = "", "gemm");
    REFUSED(c.rounding = "up", "rounding");
    REFUSED((c.momentum_mode = "dense", c.optimizer = "adamw"), "momentum_mode dense");
    REFUSED((c.optimizer = "adamw", c.epsilon = 0), "epsilon");
    REFUSED((c.optimizer = "adamw", c.epsilon = 1e-8, c.beta1 = 1), "beta1");
    REFUSED((c.optimizer = "adamw", c.epsilon = 1e-8, c.beta2 = (double)NAN), "beta2");
    REFUSED((c.momentum_mode = "dense", c.steps = (1u << 24) + 1), "steps");
    REFUSED(c.optimizer = "", "optimizer");
    REFUSED(c.steps = 0, "steps");
    REFUSED(c.micro_batch = 0, "micro_batch");
    REFUSED(c.micro_batch = 7, "micro_batch");
    REFUSED((c.global_batch = 1u << 20, c.micro_batch = 1), "micro-batches");
    REFUSED(c.backbone = "none", "backbone");
    REFUSED(c.n_segments = 0, "backbone");
    REFUSED(c.dense_block_size = 0, "dense_block_size");
    REFUSED(segment_shape[0] = 0, "conv1.weight");
    REFUSED((segment_shape[0] = 1ull << 40, segment_shape[1] = 1ull << 40), "conv1.weight");
    REFUSED(segment.role = (Shardfc__V1__DenseSegment__Role)3, "role");
    REFUSED(c.data = NULL, "data");
    REFUSED(data.samples = 0, "data.samples");
    REFUSED(data.kind = (Shardfc__V1__DataSet__Kind)9, "data.kind");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_vector),
        cmocka_unit_test(test_run_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
