#include "worker/model/product.h"

#include <string.h>

int sfc_product_fail(dnnl_status_t status, const char *layer, const char *what,
                     struct sfc_error *err)
{
    int code = status == dnnl_out_of_memory   ? SFC_ENOMEM
               : status == dnnl_unimplemented ? SFC_EUNSUPPORTED
                                              : SFC_EDEVICE;
    return sfc_fail(err, code, "%s: %s: oneDNN status %d", layer, what, (int)status);
}

/* What the primitives of a layer are made from. */
struct maker {
    dnnl_engine_t engine;
    dnnl_primitive_attr_t attr;
    dnnl_memory_desc_t src, weights, dst; /* weights: any layout */
    dnnl_memory_desc_t plain;
    dnnl_dims_t stride, pad;
    bool conv;
    dnnl_primitive_desc_t forward, backward_data, backward_weights;
};

/* Own scratchpads, and f32 arithmetic whatever the environment says. */
static dnnl_status_t make_attr(dnnl_primitive_attr_t *attr)
{
    dnnl_status_t s = dnnl_primitive_attr_create(attr);
    if (s == dnnl_success) {
        s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    }
    return s != dnnl_success ? s
                             : dnnl_primitive_attr_set_fpmath_mode(*attr, dnnl_fpmath_mode_strict);
}

static dnnl_status_t describe_conv(struct maker *m, const struct sfc_layer *l, uint32_t batch)
{
    dnnl_dims_t src = {batch, l->in.channels, l->in.height, l->in.width};
    dnnl_dims_t dst = {batch, l->out.channels, l->out.height, l->out.width};
    uint32_t g = l->groups;
    dnnl_dims_t one = {l->out.channels, l->in.channels, l->kernel, l->kernel};
    dnnl_dims_t grouped = {g, l->out.channels / g, l->in.channels / g, l->kernel, l->kernel};
    int rank = g > 1 ? 5 : 4;
    const dnnl_dim_t *weights = g > 1 ? grouped : one;
    m->stride[0] = m->stride[1] = l->stride;
    m->pad[0] = m->pad[1] = l->pad;
    m->conv = true;
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&m->src, 4, src, dnnl_f32, dnnl_nhwc);
    if (s == dnnl_success) {
        s = dnnl_memory_desc_init_by_tag(&m->dst, 4, dst, dnnl_f32, dnnl_nhwc);
    }
    if (s == dnnl_success) {
        s = dnnl_memory_desc_init_by_tag(&m->weights, rank, weights, dnnl_f32, dnnl_format_tag_any);
    }
    return s != dnnl_success ? s
                             : dnnl_memory_desc_init_by_tag(&m->plain, rank, weights, dnnl_f32,
                                                            g > 1 ? dnnl_goihw : dnnl_oihw);
}

static dnnl_status_t describe_dense(struct maker *m, const struct sfc_layer *l, uint32_t batch)
{
    dnnl_dims_t src = {batch, l->in.channels, l->in.height, l->in.width};
    dnnl_dims_t dst = {batch, l->out.channels};
    dnnl_dims_t weights = {l->out.channels, l->in.channels, l->in.height, l->in.width};
    m->conv = false;
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&m->src, 4, src, dnnl_f32, dnnl_nhwc);
    if (s == dnnl_success) {
        s = dnnl_memory_desc_init_by_tag(&m->dst, 2, dst, dnnl_f32, dnnl_nc);
    }
    if (s == dnnl_success) {
        s = dnnl_memory_desc_init_by_tag(&m->weights, 4, weights, dnnl_f32, dnnl_format_tag_any);
    }
    return s != dnnl_success
               ? s
               : dnnl_memory_desc_init_by_tag(&m->plain, 4, weights, dnnl_f32, dnnl_oihw);
}

static dnnl_status_t plan_forward(struct maker *m)
{
    dnnl_status_t s;
    if (m->conv) {
        dnnl_convolution_desc_t d;
        s = dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, dnnl_convolution_direct,
                                               &m->src, &m->weights, NULL, &m->dst, m->stride,
                                               m->pad, m->pad);
        return s != dnnl_success
                   ? s
                   : dnnl_primitive_desc_create(&m->forward, &d, m->attr, m->engine, NULL);
    }
    dnnl_inner_product_desc_t d;
    s = dnnl_inner_product_forward_desc_init(&d, dnnl_forward_training, &m->src, &m->weights, NULL,
                                             &m->dst);
    return s != dnnl_success
               ? s
               : dnnl_primitive_desc_create(&m->forward, &d, m->attr, m->engine, NULL);
}

static dnnl_status_t plan_backward_data(struct maker *m)
{
    dnnl_primitive_desc_t *out = &m->backward_data;
    dnnl_status_t s;
    if (m->conv) {
        dnnl_convolution_desc_t d;
        s = dnnl_convolution_backward_data_desc_init(
            &d, dnnl_convolution_direct, &m->src, &m->weights, &m->dst, m->stride, m->pad, m->pad);
        return s != dnnl_success
                   ? s
                   : dnnl_primitive_desc_create(out, &d, m->attr, m->engine, m->forward);
    }
    dnnl_inner_product_desc_t d;
    s = dnnl_inner_product_backward_data_desc_init(&d, &m->src, &m->weights, &m->dst);
    return s != dnnl_success ? s
                             : dnnl_primitive_desc_create(out, &d, m->attr, m->engine, m->forward);
}

static dnnl_status_t plan_backward_weights(struct maker *m)
{
    dnnl_primitive_desc_t *out = &m->backward_weights;
    dnnl_status_t s;
    if (m->conv) {
        dnnl_convolution_desc_t d;
        s = dnnl_convolution_backward_weights_desc_init(&d, dnnl_convolution_direct, &m->src,
                                                        &m->weights, NULL, &m->dst, m->stride,
                                                        m->pad, m->pad);
        return s != dnnl_success
                   ? s
                   : dnnl_primitive_desc_create(out, &d, m->attr, m->engine, m->forward);
    }
    dnnl_inner_product_desc_t d;
    s = dnnl_inner_product_backward_weights_desc_init(&d, &m->src, &m->weights, NULL, &m->dst);
    return s != dnnl_success ? s
                             : dnnl_primitive_desc_create(out, &d, m->attr, m->engine, m->forward);
}

static const dnnl_memory_desc_t *weights_of(dnnl_primitive_desc_t pd, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(pd, what, 0);
}

static void note_sizes(struct sfc_product *p, const dnnl_memory_desc_t *weights,
                       const_dnnl_primitive_desc_t pd)
{
    size_t size = weights == NULL ? 0 : dnnl_memory_desc_get_size(weights);
    if (size > p->weights_size) {
        p->weights_size = size;
    }
    const dnnl_memory_desc_t *pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    size = pad == NULL ? 0 : dnnl_memory_desc_get_size(pad);
    if (size > p->scratchpad_size) {
        p->scratchpad_size = size;
    }
}

static void set_args(struct sfc_call *call, int a, dnnl_memory_t am, int b, dnnl_memory_t bm, int c,
                     dnnl_memory_t cm)
{
    int ids[3] = {a, b, c};
    dnnl_memory_t memories[3] = {am, bm, cm};
    call->count = 0;
    for (int i = 0; i < 3; i++) {
        if (memories[i] != NULL) {
            call->args[call->count].arg = ids[i];
            call->args[call->count++].memory = memories[i];
        }
    }
}

static dnnl_status_t make_reorder(struct sfc_product *p, struct maker *m, struct sfc_call *call,
                                  const dnnl_memory_desc_t *from, dnnl_memory_t from_memory,
                                  const dnnl_memory_desc_t *to, dnnl_memory_t to_memory)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s =
        dnnl_reorder_primitive_desc_create(&pd, from, m->engine, to, m->engine, m->attr);
    if (s == dnnl_success) {
        note_sizes(p, NULL, pd);
        s = dnnl_primitive_create(&call->primitive, pd);
        dnnl_primitive_desc_destroy(pd);
    }
    set_args(call, DNNL_ARG_FROM, from_memory, DNNL_ARG_TO, to_memory, 0, NULL);
    return s;
}

static dnnl_status_t make_forward(struct sfc_product *p, struct maker *m)
{
    dnnl_status_t s = plan_forward(m);
    if (s != dnnl_success) {
        return s;
    }
    const dnnl_memory_desc_t *w = weights_of(m->forward, dnnl_query_weights_md);
    note_sizes(p, w, m->forward);
    s = dnnl_primitive_create(&p->forward.primitive, m->forward);
    if (s == dnnl_success) {
        s = dnnl_memory_create(&p->forward_weights, w, m->engine, DNNL_MEMORY_NONE);
    }
    if (s == dnnl_success) {
        s = make_reorder(p, m, &p->to_forward, &m->plain, p->plain, w, p->forward_weights);
    }
    set_args(&p->forward, DNNL_ARG_SRC, p->src, DNNL_ARG_WEIGHTS, p->forward_weights, DNNL_ARG_DST,
             p->dst);
    return s;
}

static dnnl_status_t make_backward_data(struct sfc_product *p, struct maker *m)
{
    dnnl_status_t s = plan_backward_data(m);
    if (s != dnnl_success) {
        return s;
    }
    const dnnl_memory_desc_t *w = weights_of(m->backward_data, dnnl_query_weights_md);
    note_sizes(p, w, m->backward_data);
    s = dnnl_primitive_create(&p->backward_data.primitive, m->backward_data);
    if (s == dnnl_success) {
        s = dnnl_memory_create(&p->backward_weights_in, w, m->engine, DNNL_MEMORY_NONE);
    }
    if (s == dnnl_success) {
        s = make_reorder(p, m, &p->to_backward, &m->plain, p->plain, w, p->backward_weights_in);
    }
    set_args(&p->backward_data, DNNL_ARG_DIFF_SRC, p->diff_src, DNNL_ARG_WEIGHTS,
             p->backward_weights_in, DNNL_ARG_DIFF_DST, p->diff_dst);
    return s;
}

static dnnl_status_t make_backward_weights(struct sfc_product *p, struct maker *m)
{
    dnnl_status_t s = plan_backward_weights(m);
    if (s != dnnl_success) {
        return s;
    }
    const dnnl_memory_desc_t *w = weights_of(m->backward_weights, dnnl_query_diff_weights_md);
    note_sizes(p, w, m->backward_weights);
    s = dnnl_primitive_create(&p->backward_weights.primitive, m->backward_weights);
    if (s == dnnl_success) {
        s = dnnl_memory_create(&p->diff_weights, w, m->engine, DNNL_MEMORY_NONE);
    }
    if (s == dnnl_success) {
        s = make_reorder(p, m, &p->to_plain, w, p->diff_weights, &m->plain, p->plain);
    }
    set_args(&p->backward_weights, DNNL_ARG_SRC, p->src, DNNL_ARG_DIFF_WEIGHTS, p->diff_weights,
             DNNL_ARG_DIFF_DST, p->diff_dst);
    return s;
}

static dnnl_status_t make_memories(struct sfc_product *p, struct maker *m,
                                   struct sfc_product_place place)
{
    dnnl_status_t s = dnnl_memory_create(&p->src, &m->src, m->engine, place.x);
    if (s == dnnl_success) {
        s = dnnl_memory_create(&p->dst, &m->dst, m->engine, place.y);
    }
    if (s == dnnl_success && place.dx != NULL) {
        s = dnnl_memory_create(&p->diff_src, &m->src, m->engine, place.dx);
    }
    if (s == dnnl_success) {
        s = dnnl_memory_create(&p->diff_dst, &m->dst, m->engine, place.dy);
    }
    return s != dnnl_success
               ? s
               : dnnl_memory_create(&p->plain, &m->plain, m->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t make_scratchpad(struct sfc_product *p, dnnl_engine_t engine)
{
    dnnl_memory_desc_t md;
    dnnl_dims_t size = {(dnnl_dim_t)p->scratchpad_size};
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&md, 1, size, dnnl_u8, dnnl_a);
    return s != dnnl_success ? s
                             : dnnl_memory_create(&p->scratchpad, &md, engine, DNNL_MEMORY_NONE);
}

int sfc_product_init(struct sfc_product *p, dnnl_engine_t engine, const struct sfc_layer *layer,
                     uint32_t batch, struct sfc_product_place place, struct sfc_error *err)
{
    struct maker m = {.engine = engine};
    memset(p, 0, sizeof *p);
    p->name = layer->name;
    const char *what = "attributes";
    dnnl_status_t s = make_attr(&m.attr);
    if (s == dnnl_success) {
        what = "memory";
        s = layer->kind == SFC_LAYER_CONV ? describe_conv(&m, layer, batch)
                                          : describe_dense(&m, layer, batch);
    }
    if (s == dnnl_success) {
        s = make_memories(p, &m, place);
    }
    if (s == dnnl_success) {
        what = "forward";
        s = make_forward(p, &m);
    }
    if (s == dnnl_success && place.dx != NULL) {
        what = "gradient of the data";
        s = make_backward_data(p, &m);
    }
    if (s == dnnl_success) {
        what = "gradient of the weights";
        s = make_backward_weights(p, &m);
    }
    if (s == dnnl_success) {
        what = "scratchpad";
        s = make_scratchpad(p, engine);
    }
    dnnl_primitive_desc_destroy(m.backward_weights);
    dnnl_primitive_desc_destroy(m.backward_data);
    dnnl_primitive_desc_destroy(m.forward);
    dnnl_primitive_attr_destroy(m.attr);
    return s == dnnl_success ? SFC_OK : sfc_product_fail(s, layer->name, what, err);
}

void sfc_product_close(struct sfc_product *p)
{
    struct sfc_call *calls[] = {&p->forward,    &p->backward_data, &p->backward_weights,
                                &p->to_forward, &p->to_backward,   &p->to_plain};
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        if (calls[i]->primitive != NULL) {
            dnnl_primitive_destroy(calls[i]->primitive);
        }
    }
    dnnl_memory_t memories[] = {p->src,
                                p->dst,
                                p->diff_src,
                                p->diff_dst,
                                p->plain,
                                p->forward_weights,
                                p->backward_weights_in,
                                p->diff_weights,
                                p->scratchpad};
    for (size_t i = 0; i < sizeof memories / sizeof memories[0]; i++) {
        if (memories[i] != NULL) {
            dnnl_memory_destroy(memories[i]);
        }
    }
    memset(p, 0, sizeof *p);
}

int sfc_product_bind(struct sfc_product *p, const struct sfc_product_buffers *buffers,
                     struct sfc_error *err)
{
    dnnl_memory_t in_weights[] = {p->forward_weights, p->backward_weights_in, p->diff_weights};
    dnnl_status_t s = dnnl_memory_set_data_handle(p->scratchpad, buffers->scratchpad);
    for (size_t i = 0; i < 3 && s == dnnl_success; i++) {
        if (in_weights[i] != NULL) {
            s = dnnl_memory_set_data_handle(in_weights[i], buffers->weights);
        }
    }
    struct sfc_call *calls[] = {&p->forward,    &p->backward_data, &p->backward_weights,
                                &p->to_forward, &p->to_backward,   &p->to_plain};
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        struct sfc_call *call = calls[i];
        call->args[call->count].arg = DNNL_ARG_SCRATCHPAD;
        call->args[call->count++].memory = p->scratchpad;
    }
    return s == dnnl_success ? SFC_OK : sfc_product_fail(s, p->name, "buffers", err);
}

static dnnl_status_t call_it(const struct sfc_call *call, dnnl_stream_t stream)
{
    return dnnl_primitive_execute(call->primitive, stream, call->count, call->args);
}

/* The plain weights are only read through this handle; oneDNN has no const one. */
static dnnl_status_t point_plain(struct sfc_product *p, const float *at)
{
    union {
        const float *read;
        void *handle;
    } u = {.read = at};
    return dnnl_memory_set_data_handle(p->plain, u.handle);
}

int sfc_product_forward(struct sfc_product *p, dnnl_stream_t stream, const float *weights,
                        struct sfc_error *err)
{
    dnnl_status_t s = point_plain(p, weights);
    if (s == dnnl_success) {
        s = call_it(&p->to_forward, stream);
    }
    if (s == dnnl_success) {
        s = call_it(&p->forward, stream);
    }
    return s == dnnl_success ? SFC_OK : sfc_product_fail(s, p->name, "forward", err);
}

int sfc_product_backward(struct sfc_product *p, dnnl_stream_t stream, const float *weights,
                         float *gradient, struct sfc_error *err)
{
    dnnl_status_t s = dnnl_success;
    if (p->backward_data.primitive != NULL) {
        s = point_plain(p, weights);
        if (s == dnnl_success) {
            s = call_it(&p->to_backward, stream);
        }
        if (s == dnnl_success) {
            s = call_it(&p->backward_data, stream);
        }
    }
    if (s == dnnl_success) {
        s = call_it(&p->backward_weights, stream);
    }
    if (s == dnnl_success) {
        s = dnnl_memory_set_data_handle(p->plain, gradient);
    }
    if (s == dnnl_success) {
        s = call_it(&p->to_plain, stream);
    }
    return s == dnnl_success ? SFC_OK : sfc_product_fail(s, p->name, "gradient", err);
}
