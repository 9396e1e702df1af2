#include "server/core/step_cost.h"

#define DIFFERENT 0.2 /* of the mean load: what loads must differ by to say something */

struct sums {
    double n, load, time, load2, cross, least, most;
};

static struct sums add_up(const struct sfc_step_cost *shards, uint32_t count)
{
    struct sums s = {0};
    for (uint32_t k = 0; k < count; k++) {
        double load = shards[k].load, time = shards[k].time;
        if (!(time > 0))
            continue;
        s.least = s.n == 0 || load < s.least ? load : s.least;
        s.most = s.n == 0 || load > s.most ? load : s.most;
        s.n++;
        s.load += load;
        s.time += time;
        s.load2 += load * load;
        s.cross += load * time;
    }
    return s;
}

double sfc_step_cost_fit(struct sfc_step_cost *shards, uint32_t count)
{
    struct sums s = add_up(shards, count);
    double fixed = 0, each = s.load > 0 ? s.time / s.load : 0;
    if (s.n >= 2 && s.most - s.least >= DIFFERENT * s.load / s.n) {
        double slope = (s.n * s.cross - s.load * s.time) / (s.n * s.load2 - s.load * s.load);
        double start = (s.time - slope * s.load) / s.n;
        if (slope > 0 && start > 0) {
            fixed = start;
            each = slope;
        }
    }
    for (uint32_t k = 0; k < count; k++) {
        double line = fixed + each * shards[k].load;
        shards[k].slow = shards[k].time > 0 && line > 0 ? shards[k].time / line : 0;
    }
    return each > 0 ? fixed / each : 0;
}
