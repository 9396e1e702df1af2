#include "kernels/extent.h"

#include <math.h>
#include <stdlib.h>

uint64_t sfc_extents_bytes(size_t count)
{
    return (uint64_t)count * (2 * sizeof(struct sfc_extent) + sizeof(double));
}

int sfc_extents_init(struct sfc_extents *e, const struct sfc_extent_rule *rule, size_t count,
                     double w, struct sfc_error *err)
{
    *e = (struct sfc_extents){
        .rule = *rule,
        .count = count,
        .now = calloc(count, sizeof *e->now),
        .next = calloc(count, sizeof *e->next),
        .gradient = calloc(count, sizeof *e->gradient),
    };
    if (!e->now || !e->next || !e->gradient)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu blocks", count);
    for (size_t i = 0; i < count; i++)
        e->now[i].w = w;
    return SFC_OK;
}

void sfc_extents_free(struct sfc_extents *e)
{
    free(e->now);
    free(e->next);
    free(e->gradient);
}

void sfc_extents_forget(struct sfc_extents *e, size_t index)
{
    e->now[index] = (struct sfc_extent){INFINITY, INFINITY, INFINITY};
    e->asked = false;
}

/* The largest |m| / (sqrt(v) + epsilon) after a step of AdamW. */
static double ratio_after(const struct sfc_extent_rule *r, struct sfc_extent x, double g)
{
    if (r->beta2 == 0)
        return fmax(x.m, g) / r->epsilon;
    double fresh = g > 0 ? (1 - r->beta1) / sqrt(1 - r->beta2) : 0;
    return r->beta1 / sqrt(r->beta2) * x.ratio + fresh;
}

static struct sfc_extent after(const struct sfc_extent_rule *r, struct sfc_extent x, double g,
                               double lr, uint64_t t)
{
    struct sfc_extent y = {0};
    if (r->optimizer == SFC_OPTIMIZER_SGD) {
        y.m = r->momentum * x.m + g + r->weight_decay * x.w;
        y.w = x.w + lr * y.m;
    } else {
        y.m = fmax(x.m, g);
        y.ratio = ratio_after(r, x, g);
        y.w = x.w + lr * (y.ratio / (1 - pow(r->beta1, (double)t)) + r->weight_decay * x.w);
    }
    /* what the step doesn't touch stays as large as it is */
    y.w = fmax(x.w, r->slack * y.w);
    y.m = fmax(x.m, r->slack * y.m);
    y.ratio = fmax(x.ratio, r->slack * y.ratio);
    return y;
}

bool sfc_extents_fits(const struct sfc_extents *e, size_t index)
{
    const struct sfc_extent *next = &e->next[index];
    return next->w <= e->rule.limit && next->m <= e->rule.limit &&
           e->gradient[index] <= e->rule.gradient;
}

bool sfc_extents_fit(struct sfc_extents *e, double lr, uint64_t t)
{
    bool fit = true;
    for (size_t i = 0; i < e->count; i++) {
        e->next[i] = after(&e->rule, e->now[i], e->gradient[i], lr, t);
        fit = fit && sfc_extents_fits(e, i);
    }
    e->asked = true;
    return fit;
}

void sfc_extents_commit(struct sfc_extents *e)
{
    for (size_t i = 0; i < e->count; i++)
        if (e->asked)
            e->now[i] = e->next[i];
        else
            sfc_extents_forget(e, i);
    e->asked = false;
}

/* In lanes, so that the compiler may use vectors. */
enum { LANES = 16 };

static double largest(const float lanes[LANES])
{
    float most = 0;
    for (size_t l = 0; l < LANES; l++)
        most = lanes[l] > most ? lanes[l] : most;
    return most;
}

static double magnitude(const float *v, size_t n)
{
    float most[LANES] = {0};
    size_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float x = fabsf(v[k + l]);
            most[l] = x > most[l] ? x : most[l];
        }
    for (size_t l = 0; k + l < n; l++)
        most[l] = fmaxf(most[l], fabsf(v[k + l]));
    return largest(most);
}

static double step_ratio(const float *m, const float *v, size_t n, float epsilon)
{
    float most[LANES] = {0};
    size_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (size_t l = 0; l < LANES; l++) {
            float x = fabsf(m[k + l]) / (sqrtf(v[k + l]) + epsilon);
            most[l] = x > most[l] ? x : most[l];
        }
    for (size_t l = 0; k + l < n; l++)
        most[l] = fmaxf(most[l], fabsf(m[k + l]) / (sqrtf(v[k + l]) + epsilon));
    return largest(most);
}

void sfc_extent_add(struct sfc_extent *extent, const float *w, const float *m, const float *v,
                    size_t n, double epsilon)
{
    extent->w = fmax(extent->w, magnitude(w, n));
    extent->m = fmax(extent->m, magnitude(m, n));
    if (v)
        extent->ratio = fmax(extent->ratio, step_ratio(m, v, n, (float)epsilon));
}

double sfc_extent_largest(const float *v, size_t n)
{
    return magnitude(v, n);
}
