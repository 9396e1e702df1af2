/* cuDNN's engines for the backbones' convolutions, asked for devices that are not here: cuDNN takes
 * their properties instead. Every direction in every precision must have one that is wanted
 * (worker/model/cuda/conv.h); else plain loops would compute it, slowly. Prints what is chosen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/model_rig.h"
#include "worker/model/cuda/conv.h"

void rig_fail(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fail_msg("%s", text);
    abort(); /* fail_msg does not come back */
}

/* What cuDNN asks of a device. */
struct device {
    const char *name;
    int version, processors, clock, memory_clock, l2, shared, shared_processor, threads, blocks;
    bool bf16;
};

static const struct device devices[] = {
    {"NVIDIA H100 80GB HBM3", 900, 132, 1980000, 2619000, 52428800, 232448, 233472, 2048, 32, true},
    {"NVIDIA A100-SXM4-80GB", 800, 108, 1410000, 1593000, 41943040, 166912, 167936, 2048, 32, true},
    {"Tesla T4", 750, 40, 1590000, 5001000, 4194304, 65536, 65536, 1024, 16, false},
};

#define PROPERTIES                                                                                 \
    "{\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], "           \
    "\"regsPerBlock\": 65536, \"multiProcessorCount\": %d, \"smClockRateKHz\": %d, "               \
    "\"memClockRateKHz\": %d, \"l2CacheSize\": %d, \"warpSize\": 32, "                             \
    "\"maxSharedMemoryPerBlock\": 49152, \"maxSharedMemoryPerBlockOptin\": %d, "                   \
    "\"reservedSharedMemoryPerBlock\": 1024, \"maxSharedMemoryPerSM\": %d, "                       \
    "\"maxRegistersPerSM\": 65536, \"pciDeviceId\": 0, \"maxCtasPerSM\": %d, "                     \
    "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": %d, \"isTccDriver\": 0, "                  \
    "\"supportCoopLaunch\": 1, \"deviceVer\": %d, \"driverVer\": 13000, \"cudaDeviceId\": 0, "     \
    "\"totalGlobalMem\": 16000000000, \"deviceName\": \"%s\", \"name\": \"%s\"}"

static cudnnBackendDescriptor_t properties_of(const struct device *d)
{
    cudnnBackendDescriptor_t made = NULL;
    char json[1024];
    int n = snprintf(json, sizeof json, PROPERTIES, d->processors, d->clock, d->memory_clock, d->l2,
                     d->shared, d->shared_processor, d->blocks, d->threads, d->version, d->name,
                     d->name);
    assert_true(n > 0 && (size_t)n < sizeof json);
    assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &made),
                     CUDNN_STATUS_SUCCESS);
    assert_int_equal(cudnnBackendSetAttribute(made, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                              CUDNN_TYPE_CHAR, n, json),
                     CUDNN_STATUS_SUCCESS);
    assert_int_equal(cudnnBackendFinalize(made), CUDNN_STATUS_SUCCESS);
    return made;
}

static void check_layer(const struct sfc_gpu *gpu, const struct sfc_conv_target *target,
                        const struct sfc_layer *layer, uint32_t batch)
{
    static const char *const directions[] = {"forward", "data", "weights"};
    print_message("  %s:", layer->name);
    for (int d = SFC_CONV_FORWARD; d <= SFC_CONV_WEIGHTS; d++) {
        struct sfc_conv conv;
        struct sfc_error err = {0};
        if (sfc_conv_init(&conv, gpu, target, layer, batch, (enum sfc_conv_direction)d, &err)) {
            fail_msg("%s, %s: %s", layer->name, directions[d], err.text);
        }
        if (conv.plan == NULL) {
            fail_msg("%s, %s: cuDNN has no engine that is wanted", layer->name, directions[d]);
        }
        print_message(" %s %lld (%zu KiB)", directions[d], (long long)conv.engine,
                      conv.workspace >> 10);
        sfc_conv_close(&conv);
    }
    print_message("\n");
}

static void check_model(const struct device *device, struct sfc_model *model, uint32_t batch)
{
    struct sfc_conv_target target = {.properties = properties_of(device)};
    for (enum sfc_number number = SFC_NUMBER_F32; number <= SFC_NUMBER_F16; number++) {
        struct sfc_gpu gpu = {.number = number};
        if (number == SFC_NUMBER_BF16 && !device->bf16) {
            continue;
        }
        snprintf(gpu.label, sizeof gpu.label, "%s", device->name);
        print_message("%s, %zu bytes\n", device->name, sfc_number_size(number));
        for (size_t i = 0; i < model->layer_count; i++) {
            const struct sfc_layer *l = &model->layers[i];
            if (l->kind == SFC_LAYER_CONV && !sfc_layer_is_window(l) && l->kernel > 1) {
                check_layer(&gpu, &target, l, batch);
            }
        }
    }
    cudnnBackendDestroyDescriptor(target.properties);
    sfc_model_free(model);
}

static void test_known(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        check_model(&devices[i], rig_known("tiny", 128), 128);
        check_model(&devices[i], rig_known("mbf", 512), 128);
        check_model(&devices[i], rig_known("mbf", 512), 16);
    }
}

static void test_small(void **state)
{
    (void)state;
    for (size_t i = 0; i < rig_case_count; i++) {
        check_model(&devices[0], rig_build(&rig_cases[i], 6), 17);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known), cmocka_unit_test(test_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
