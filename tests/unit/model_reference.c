#include "tests/unit/model_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *block)
{
    if (block == NULL) {
        abort();
    }
    return block;
}

void reference_init(struct reference *r, const struct sfc_model *model, uint32_t batch)
{
    r->model = model;
    r->batch = batch;
    r->tensors = must(calloc(model->layer_count + 1, sizeof *r->tensors));
    r->statistics = must(calloc(model->size, sizeof *r->statistics));
    struct sfc_model_input in = model->input;
    r->tensors[0] =
        must(calloc((size_t)batch * in.width * in.height * in.channels, sizeof(double)));
    for (size_t i = 0; i < model->layer_count; i++) {
        r->tensors[i + 1] =
            must(calloc(batch * sfc_shape_floats(model->layers[i].out), sizeof(double)));
    }
}

void reference_close(struct reference *r)
{
    for (size_t i = 0; i <= r->model->layer_count; i++) {
        free(r->tensors[i]);
    }
    free(r->tensors);
    free(r->statistics);
}

static size_t at(struct sfc_shape s, size_t b, size_t c, size_t y, size_t x)
{
    return ((b * s.channels + c) * s.height + y) * s.width + x;
}

/* Adds one input plane, weighted by one kernel plane, to one output plane. */
static void add_plane(const struct sfc_layer *l, const double *in, const double *kernel,
                      double *out)
{
    for (size_t ky = 0; ky < l->kernel; ky++) {
        for (size_t kx = 0; kx < l->kernel; kx++) {
            double w = kernel[ky * l->kernel + kx];
            for (size_t y = 0; y < l->out.height; y++) {
                size_t iy = y * l->stride + ky - l->pad; /* wraps below 0: too large */
                for (size_t x = 0; iy < l->in.height && x < l->out.width; x++) {
                    size_t ix = x * l->stride + kx - l->pad;
                    if (ix < l->in.width) {
                        out[y * l->out.width + x] += w * in[iy * l->in.width + ix];
                    }
                }
            }
        }
    }
}

static void conv(const struct reference *r, const struct sfc_layer *l, const double *w,
                 const double *x, double *y)
{
    size_t in_group = l->in.channels / l->groups, out_group = l->out.channels / l->groups;
    memset(y, 0, r->batch * sfc_shape_floats(l->out) * sizeof *y);
    for (size_t b = 0; b < r->batch; b++) {
        for (size_t oc = 0; oc < l->out.channels; oc++) {
            size_t first = oc / out_group * in_group;
            for (size_t ic = 0; ic < in_group; ic++) {
                add_plane(l, x + at(l->in, b, first + ic, 0, 0),
                          w + (oc * in_group + ic) * l->kernel * l->kernel,
                          y + at(l->out, b, oc, 0, 0));
            }
        }
    }
}

static void dense(const struct reference *r, const struct sfc_layer *l, const double *w,
                  const double *x, double *y)
{
    size_t wide = sfc_shape_floats(l->in);
    for (size_t b = 0; b < r->batch; b++) {
        for (size_t o = 0; o < l->out.channels; o++) {
            double sum = 0;
            for (size_t i = 0; i < wide; i++) {
                sum += w[o * wide + i] * x[b * wide + i];
            }
            y[b * l->out.channels + o] = sum;
        }
    }
}

/* w NULL: the mean of the pixels. */
static void global(const struct reference *r, const struct sfc_layer *l, const double *w,
                   const double *x, double *y)
{
    size_t pixels = (size_t)l->in.height * l->in.width;
    for (size_t b = 0; b < r->batch; b++) {
        for (size_t c = 0; c < l->in.channels; c++) {
            const double *plane = x + (b * l->in.channels + c) * pixels;
            double sum = 0;
            for (size_t i = 0; i < pixels; i++) {
                sum += w == NULL ? plane[i] / (double)pixels : plane[i] * w[c * pixels + i];
            }
            y[b * l->in.channels + c] = sum;
        }
    }
}

static void measure(const struct reference *r, const struct sfc_layer *l, const double *x, size_t c,
                    double *mean, double *var)
{
    size_t pixels = (size_t)l->in.height * l->in.width;
    double count = (double)(r->batch * pixels), sum = 0, squares = 0;
    for (size_t b = 0; b < r->batch; b++) {
        for (size_t i = 0; i < pixels; i++) {
            sum += x[at(l->in, b, c, 0, 0) + i];
        }
    }
    *mean = sum / count;
    for (size_t b = 0; b < r->batch; b++) {
        for (size_t i = 0; i < pixels; i++) {
            double d = x[at(l->in, b, c, 0, 0) + i] - *mean;
            squares += d * d;
        }
    }
    *var = squares / count;
    r->statistics[r->model->params[l->params.mean].offset + c] = *mean;
    r->statistics[r->model->params[l->params.var].offset + c] = squares / (count - 1);
}

static void norm(const struct reference *r, const struct sfc_layer *l, const double *params,
                 const double *x, double *y, bool training)
{
    const struct sfc_param *table = r->model->params;
    size_t pixels = (size_t)l->in.height * l->in.width;
    for (size_t c = 0; c < l->in.channels; c++) {
        double mean = params[table[l->params.mean].offset + c];
        double var = params[table[l->params.var].offset + c];
        if (training) {
            measure(r, l, x, c, &mean, &var);
        }
        double gamma = params[table[l->params.gamma].offset + c];
        double beta = params[table[l->params.beta].offset + c];
        double slope = l->prelu ? params[table[l->params.slope].offset + c] : 1.0;
        double factor = gamma / sqrt(var + 1e-5);
        for (size_t b = 0; b < r->batch; b++) {
            for (size_t i = 0; i < pixels; i++) {
                size_t k = at(l->in, b, c, 0, 0) + i;
                double z = (x[k] - mean) * factor + beta;
                y[k] = z > 0 ? z : slope * z;
            }
        }
    }
}

const double *reference_forward(struct reference *r, const double *params, const float *images,
                                bool training)
{
    const struct sfc_model *m = r->model;
    size_t image = (size_t)m->input.width * m->input.height * m->input.channels;
    for (size_t i = 0; i < r->batch * image; i++) {
        r->tensors[0][i] = (double)images[i];
    }
    for (size_t i = 0; i < m->layer_count; i++) {
        const struct sfc_layer *l = &m->layers[i];
        const double *x = r->tensors[l->input], *other = r->tensors[l->other];
        const double *w = params + m->params[l->params.weight].offset;
        double *y = r->tensors[i + 1];
        switch (l->kind) {
        case SFC_LAYER_CONV:
            conv(r, l, w, x, y);
            break;
        case SFC_LAYER_DENSE:
            dense(r, l, w, x, y);
            break;
        case SFC_LAYER_NORM:
            norm(r, l, params, x, y, training);
            break;
        case SFC_LAYER_ADD:
            for (size_t k = 0; k < r->batch * sfc_shape_floats(l->out); k++) {
                y[k] = x[k] + other[k];
            }
            break;
        case SFC_LAYER_GLOBAL_DEPTHWISE:
            global(r, l, w, x, y);
            break;
        case SFC_LAYER_GLOBAL_POOL:
            global(r, l, NULL, x, y);
            break;
        }
    }
    return r->tensors[m->layer_count];
}
