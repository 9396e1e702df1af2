#include "server/core/series.h"

#include <math.h>
#include <string.h>

static uint64_t group_of(const struct sfc_series *s, uint64_t step)
{
    return (step - 1) / s->length;
}

/* Adds what came later in the run. */
static void join(struct sfc_series_point *to, const struct sfc_series_point *later)
{
    to->last = later->last;
    to->lr = later->lr;
    if (later->losses) {
        to->loss_min = to->losses ? fmin(to->loss_min, later->loss_min) : later->loss_min;
        to->loss_max = to->losses ? fmax(to->loss_max, later->loss_max) : later->loss_max;
    }
    to->loss_sum += later->loss_sum;
    to->losses += later->losses;
    to->rate_sum += later->rate_sum;
    to->rates += later->rates;
}

static void take(struct sfc_series_point *p, const struct sfc_series_step *step)
{
    if (step->step > p->last) {
        p->last = step->step;
        p->lr = step->lr;
    }
    p->first = step->step < p->first ? step->step : p->first;
    if (isfinite(step->loss)) {
        p->loss_min = p->losses ? fmin(p->loss_min, step->loss) : step->loss;
        p->loss_max = p->losses ? fmax(p->loss_max, step->loss) : step->loss;
        p->loss_sum += step->loss;
        p->losses++;
    }
    if (isfinite(step->images_per_s) && step->images_per_s > 0) {
        p->rate_sum += step->images_per_s;
        p->rates++;
    }
}

static void double_length(struct sfc_series *s)
{
    uint32_t kept = 0;
    s->length *= 2;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct sfc_series_point point = s->points[i];
        if (kept > 0 && group_of(s, s->points[kept - 1].last) == group_of(s, point.first))
            join(&s->points[kept - 1], &point);
        else
            s->points[kept++] = point;
    }
    s->count = kept;
    s->changed++;
}

/* The first point that is not of an earlier group. Most steps come at the end. */
static uint32_t find(const struct sfc_series *s, uint64_t group)
{
    uint32_t at = s->count;
    while (at > 0 && group_of(s, s->points[at - 1].first) >= group)
        at--;
    return at;
}

void sfc_series_add(struct sfc_series *s, const struct sfc_series_step *step)
{
    if (s->length == 0)
        s->length = 1;
    uint32_t at = find(s, group_of(s, step->step));
    bool there = at < s->count && group_of(s, s->points[at].first) == group_of(s, step->step);
    while (!there && s->count == SFC_SERIES_POINTS) {
        double_length(s);
        at = find(s, group_of(s, step->step));
        there = at < s->count && group_of(s, s->points[at].first) == group_of(s, step->step);
    }
    if (at + there < s->count)
        s->changed++;
    if (!there) {
        memmove(&s->points[at + 1], &s->points[at], (s->count - at) * sizeof *s->points);
        s->points[at] = (struct sfc_series_point){.first = step->step};
        s->count++;
    }
    take(&s->points[at], step);
}

void sfc_series_cut(struct sfc_series *s, uint64_t step)
{
    uint32_t before = s->count;
    while (s->count > 0 && s->points[s->count - 1].last > step)
        s->count--;
    s->changed += s->count != before;
}

double sfc_series_loss(const struct sfc_series_point *p)
{
    return p->losses ? p->loss_sum / (double)p->losses : (double)NAN;
}

double sfc_series_rate(const struct sfc_series_point *p)
{
    return p->rates ? p->rate_sum / (double)p->rates : (double)NAN;
}
