#include "worker/model/cuda/conv.h"

#include <stdlib.h>
#include <string.h>

#define ENGINES_MOST 64
#define ALIGNMENT    16 /* bytes; every place is 256 */

enum { X = 1, W = 2, Y = 3 }; /* names of the tensors in a graph */

int sfc_cudnn_check(const struct sfc_gpu *gpu, cudnnStatus_t status, const char *what,
                    struct sfc_error *err)
{
    if (status == CUDNN_STATUS_SUCCESS) {
        return SFC_OK;
    }
    char more[160] = "";
    bool memory = status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
                  status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
    cudnnGetLastErrorString(more, sizeof more);
    cudaGetLastError(); /* told here */
    return sfc_fail(err, memory ? SFC_ENOMEM : SFC_EDEVICE, "%s: %s: %s (cuDNN %s%s%s); %s",
                    gpu->label, what, cudnnGetErrorString(status), "status", more[0] ? ": " : "",
                    more, sfc_gpu_advice(memory ? cudaErrorMemoryAllocation : cudaErrorUnknown));
}

/* ---- descriptors: every step only where the steps before went well */

struct builder {
    cudnnStatus_t status;
    cudnnBackendDescriptor_t made[16]; /* to be destroyed, in reverse */
    size_t count;
};

static cudnnBackendDescriptor_t make(struct builder *b, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (b->status == CUDNN_STATUS_SUCCESS && b->count == sizeof b->made / sizeof b->made[0]) {
        b->status = CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND;
    }
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = cudnnBackendCreateDescriptor(type, &d);
    }
    if (d != NULL) {
        b->made[b->count++] = d;
    }
    return d;
}

static void set(struct builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = cudnnBackendSetAttribute(d, name, type, count, values);
    }
}

static void set_descriptor(struct builder *b, cudnnBackendDescriptor_t d,
                           cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value)
{
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(struct builder *b, cudnnBackendDescriptor_t d)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = cudnnBackendFinalize(d);
    }
}

static void close_builder(struct builder *b)
{
    while (b->count > 0) {
        cudnnBackendDestroyDescriptor(b->made[--b->count]);
    }
}

/* ---- the graph: one operation */

static cudnnDataType_t type_of(enum sfc_number number)
{
    switch (number) {
    case SFC_NUMBER_BF16:
        return CUDNN_DATA_BFLOAT16;
    case SFC_NUMBER_F16:
        return CUDNN_DATA_HALF;
    case SFC_NUMBER_F32:
        break;
    }
    return CUDNN_DATA_FLOAT;
}

/* [a, b, c, d] in memory as [a, c, d, b]. */
static cudnnBackendDescriptor_t tensor(struct builder *b, int64_t name, enum sfc_number number,
                                       int64_t first, int64_t channels, int64_t height,
                                       int64_t width)
{
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    cudnnDataType_t type = type_of(number);
    int64_t alignment = ALIGNMENT, sizes[4] = {first, channels, height, width};
    int64_t strides[4] = {channels * height * width, 1, width * channels, channels};
    set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &name);
    set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    finalize(b, d);
    return d;
}

static cudnnBackendDescriptor_t convolution(struct builder *b, const struct sfc_window *w)
{
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    int64_t spatial = 2, one[2] = {1, 1}, stride[2] = {w->stride, w->stride};
    int64_t pad[2] = {w->pad, w->pad};
    set(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    set(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial);
    set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    finalize(b, d);
    return d;
}

/* cuDNN's names of the three operations and of what they read and write. */
static const struct operation_names {
    cudnnBackendDescriptorType_t operation;
    cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
} names[] = {
    [SFC_CONV_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    [SFC_CONV_DATA] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    [SFC_CONV_WEIGHTS] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static cudnnBackendDescriptor_t graph_of(struct builder *b, const struct sfc_conv_target *target,
                                         enum sfc_number number, const struct sfc_plain_conv *c,
                                         enum sfc_conv_direction direction)
{
    const struct sfc_window *w = &c->window;
    const struct operation_names *n = &names[direction];
    float alpha = 1, beta = 0;
    cudnnBackendDescriptor_t x =
        tensor(b, X, number, w->batch, w->channels, w->in_height, w->in_width);
    cudnnBackendDescriptor_t filter = tensor(b, W, number, c->out_channels, w->channels / c->groups,
                                             w->kernel_height, w->kernel_width);
    cudnnBackendDescriptor_t y =
        tensor(b, Y, number, w->batch, c->out_channels, w->out_height, w->out_width);
    cudnnBackendDescriptor_t conv = convolution(b, w);
    cudnnBackendDescriptor_t operation = make(b, n->operation);
    set_descriptor(b, operation, n->conv, conv);
    set_descriptor(b, operation, n->x, x);
    set_descriptor(b, operation, n->w, filter);
    set_descriptor(b, operation, n->y, y);
    set(b, operation, n->alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(b, operation, n->beta, CUDNN_TYPE_FLOAT, 1, &beta);
    finalize(b, operation);
    cudnnBackendDescriptor_t graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set_descriptor(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
    if (target->properties == NULL) {
        set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &target->handle);
    }
    finalize(b, graph);
    return graph;
}

/* ---- engines */

/* Deterministic, without shortcuts, and not compiled at run time: whether that works depends on
 * more than cuDNN's version. */
static bool is_wanted(cudnnBackendDescriptor_t engine, enum sfc_number number)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendBehaviorNote_t behaviour[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    int64_t note_count = 0, behaviour_count = 0;
    if (cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                 CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
                                 &note_count, notes) != CUDNN_STATUS_SUCCESS ||
        cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                 CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &behaviour_count,
                                 behaviour) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    for (int64_t i = 0; i < note_count; i++) {
        bool tensor_core = notes[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (tensor_core ? number == SFC_NUMBER_F32 /* TF32, though nothing else says so */
                        : notes[i] != CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP) {
            return false;
        }
    }
    for (int64_t i = 0; i < behaviour_count; i++) {
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) {
            return false;
        }
    }
    return true;
}

/* conv takes the plan over where the engine is wanted and can be planned. */
static void try_config(struct sfc_conv *conv, const struct sfc_conv_target *target,
                       enum sfc_number number, cudnnBackendDescriptor_t config)
{
    struct builder b = {0};
    int64_t count = 0, workspace = 0, index = -1;
    cudnnBackendDescriptor_t engine = make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (b.status != CUDNN_STATUS_SUCCESS ||
        cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 1, &count, &engine) != CUDNN_STATUS_SUCCESS ||
        !is_wanted(engine, number)) {
        close_builder(&b);
        return;
    }
    cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                             &index);
    cudnnBackendDescriptor_t plan = make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    if (target->properties == NULL) {
        set(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &target->handle);
    } else {
        set_descriptor(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target->properties);
    }
    set_descriptor(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    finalize(&b, plan);
    if (b.status == CUDNN_STATUS_SUCCESS &&
        cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                 1, &count, &workspace) == CUDNN_STATUS_SUCCESS &&
        workspace >= 0 && (uint64_t)workspace <= SFC_WORKSPACE_LIMIT) {
        *conv = (struct sfc_conv){plan, (size_t)workspace, index};
        b.count--; /* the plan is the last that was made */
    }
    close_builder(&b);
}

/* In the order that the heuristics of this mode propose. */
static cudnnStatus_t try_mode(struct sfc_conv *conv, const struct sfc_conv_target *target,
                              enum sfc_number number, cudnnBackendDescriptor_t graph,
                              cudnnBackendHeurMode_t mode)
{
    struct builder b = {0};
    cudnnBackendDescriptor_t configs[ENGINES_MOST] = {NULL};
    int64_t count = 0, made = 0;
    cudnnBackendDescriptor_t heuristics = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    if (target->properties != NULL) {
        set_descriptor(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target->properties);
    }
    set(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finalize(&b, heuristics);
    for (; made < ENGINES_MOST && b.status == CUDNN_STATUS_SUCCESS; made++) {
        b.status = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[made]);
    }
    if (b.status == CUDNN_STATUS_SUCCESS) {
        b.status =
            cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, ENGINES_MOST, &count, configs);
    }
    for (int64_t i = 0;
         i < count && i < ENGINES_MOST && b.status == CUDNN_STATUS_SUCCESS && conv->plan == NULL;
         i++) {
        try_config(conv, target, number, configs[i]);
    }
    for (int64_t i = 0; i < made; i++) {
        if (configs[i] != NULL) {
            cudnnBackendDestroyDescriptor(configs[i]);
        }
    }
    close_builder(&b);
    return b.status;
}

/* Heuristics that know nothing about an operation say that it is not supported. */
static bool is_no_proposal(cudnnStatus_t status)
{
    return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED;
}

int sfc_conv_init(struct sfc_conv *conv, const struct sfc_gpu *gpu,
                  const struct sfc_conv_target *target, const struct sfc_layer *layer,
                  uint32_t batch, enum sfc_conv_direction direction, struct sfc_error *err)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    struct sfc_plain_conv c = sfc_layer_plain(layer, batch);
    struct builder b = {0};
    memset(conv, 0, sizeof *conv);
    cudnnBackendDescriptor_t graph = graph_of(&b, target, gpu->number, &c, direction);
    cudnnStatus_t status = b.status;
    for (size_t i = 0; i < 2 && status == CUDNN_STATUS_SUCCESS && conv->plan == NULL; i++) {
        status = try_mode(conv, target, gpu->number, graph, modes[i]);
        status = is_no_proposal(status) ? CUDNN_STATUS_SUCCESS : status;
    }
    close_builder(&b);
    return sfc_cudnn_check(gpu, status, layer->name, err);
}

void sfc_conv_close(struct sfc_conv *conv)
{
    if (conv->plan != NULL) {
        cudnnBackendDestroyDescriptor(conv->plan);
    }
    memset(conv, 0, sizeof *conv);
}

int sfc_conv_run(const struct sfc_conv *conv, const struct sfc_gpu *gpu, cudnnHandle_t handle,
                 const void *x, const void *w, const void *y, void *workspace,
                 struct sfc_error *err)
{
    struct builder b = {0};
    int64_t ids[3] = {X, W, Y};
    const void *places[3] = {x, w, y};
    cudnnBackendDescriptor_t pack = make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, places);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finalize(&b, pack);
    if (b.status == CUDNN_STATUS_SUCCESS) {
        b.status = cudnnBackendExecute(handle, conv->plan, pack);
    }
    close_builder(&b);
    return sfc_cudnn_check(gpu, b.status, "cudnnBackendExecute of a convolution", err);
}
