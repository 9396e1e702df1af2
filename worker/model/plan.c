#include "worker/model/plan.h"

#include <stdlib.h>
#include <string.h>

/* Symbolic state while the layers are walked backwards. */
struct walk {
    struct sfc_backward_plan *plan;
    bool *busy;      /* per slot */
    size_t *slot_of; /* per tensor: the slot of its gradient so far */
};

/* The smallest free slot that is large enough, else the largest free one made larger, else a new
 * one. */
static size_t take(struct walk *w, size_t floats)
{
    struct sfc_backward_plan *plan = w->plan;
    size_t best = SFC_NO_SLOT;
    for (size_t i = 0; i < plan->slot_count; i++) {
        if (w->busy[i]) {
            continue;
        }
        size_t have = plan->slot_floats[i];
        size_t held = best == SFC_NO_SLOT ? 0 : plan->slot_floats[best];
        bool fits = have >= floats, held_fits = held >= floats;
        bool better = fits ? !held_fits || have < held : !held_fits && have > held;
        if (best == SFC_NO_SLOT || better) {
            best = i;
        }
    }
    if (best == SFC_NO_SLOT) {
        best = plan->slot_count++;
    }
    if (plan->slot_floats[best] < floats) {
        plan->slot_floats[best] = floats;
    }
    w->busy[best] = true;
    return best;
}

/* The gradient in `slot` belongs to `tensor`: it becomes the tensor's, or is added to what is
 * there. */
static size_t deliver(struct walk *w, size_t tensor, size_t slot)
{
    if (w->slot_of[tensor] == SFC_NO_SLOT) {
        w->slot_of[tensor] = slot;
        return SFC_NO_SLOT;
    }
    w->busy[slot] = false;
    return w->slot_of[tensor];
}

static void visit(struct walk *w, const struct sfc_layer *layer, size_t output,
                  struct sfc_backward_step *step)
{
    *step = (struct sfc_backward_step){w->slot_of[output], SFC_NO_SLOT, SFC_NO_SLOT, SFC_NO_SLOT};
    bool in_place = layer->kind == SFC_LAYER_NORM;
    if (layer->input != 0) {
        step->dx = in_place ? step->dy : take(w, sfc_shape_floats(layer->in));
    } else if (in_place) {
        step->dx = step->dy; /* computed for its sums; nobody reads it */
    }
    if (layer->kind == SFC_LAYER_ADD && layer->other != 0) {
        step->other_sum_into = deliver(w, layer->other, step->dy);
    } else if (!in_place || layer->input == 0) {
        w->busy[step->dy] = false;
    }
    if (layer->input != 0) {
        step->sum_into = deliver(w, layer->input, step->dx);
    }
}

int sfc_backward_plan_init(struct sfc_backward_plan *plan, const struct sfc_model *model,
                           struct sfc_error *err)
{
    size_t layers = model->layer_count, room = 2 * layers + 2;
    memset(plan, 0, sizeof *plan);
    struct walk w = {.plan = plan};
    plan->steps = calloc(layers, sizeof *plan->steps);
    plan->slot_floats = calloc(room, sizeof *plan->slot_floats);
    w.busy = calloc(room, sizeof *w.busy);
    w.slot_of = malloc((layers + 1) * sizeof *w.slot_of);
    int rc = SFC_OK;
    if (plan->steps == NULL || plan->slot_floats == NULL || w.busy == NULL || w.slot_of == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "backward plan of %zu layers", layers);
        goto out;
    }
    for (size_t i = 0; i <= layers; i++) {
        w.slot_of[i] = SFC_NO_SLOT;
    }
    plan->first = take(&w, model->dim);
    w.slot_of[layers] = plan->first;
    for (size_t i = layers; i-- > 0;) {
        visit(&w, &model->layers[i], i + 1, &plan->steps[i]);
    }
out:
    free(w.busy);
    free(w.slot_of);
    if (rc != SFC_OK) {
        sfc_backward_plan_close(plan);
    }
    return rc;
}

void sfc_backward_plan_close(struct sfc_backward_plan *plan)
{
    free(plan->steps);
    free(plan->slot_floats);
    memset(plan, 0, sizeof *plan);
}
