#include "worker/step_client.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"
#include "kernels/rng/permutation.h"
#include "worker/synthetic.h"

struct sfc_step_client {
    const struct sfc_source *source;
    struct sfc_lap lap;
    struct sfc_exchange *exchange;
    struct sfc_lane *lane;
    _Atomic uint64_t computes_since;            /* ms; 0: it waits */
    bool broken; /* the lane's device failed */ /* NULL without model */
    struct sfc_decoder *decoder;                /* NULL: synthetic */
    float *features, *dfeatures;                /* [micro_batch, dim] */
    float *gradient;                            /* [dense_size] */
    uint64_t *digests;                          /* [dense blocks] */
    uint64_t *no_labels;                        /* [micro_batch], all SFC_LABEL_NONE */
};

/* ---- rows */

static bool has_backbone(const Shardfc__V1__RunConfig *config)
{
    return strcmp(config->backbone, "none") != 0;
}

size_t sfc_source_row_values(const struct sfc_member *member)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(member);
    if (!has_backbone(c))
        return c->dim;
    return (size_t)c->data->width * c->data->height * c->data->channels;
}

static int check_segments(const Shardfc__V1__RunConfig *c, const struct sfc_model *model,
                          struct sfc_error *err)
{
    size_t count;
    const struct sfc_param *params = sfc_model_params(model, &count);
    if (count != c->n_segments)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backbone %s has %zu segments here and %zu in the run: another version",
                        c->backbone, count, c->n_segments);
    for (size_t i = 0; i < count; i++) {
        uint64_t length = 1;
        for (size_t d = 0; d < c->segments[i]->n_shape; d++)
            length *= c->segments[i]->shape[d];
        if (length != params[i].length || strcmp(c->segments[i]->name, params[i].name) ||
            (int)c->segments[i]->role != (int)params[i].role)
            return sfc_fail(err, SFC_EUNSUPPORTED,
                            "backbone %s, segment %zu: %s here, %s in the run: another version",
                            c->backbone, i, params[i].name, c->segments[i]->name);
    }
    return SFC_OK;
}

int sfc_source_check(const struct sfc_member *member, bool synthetic, struct sfc_model **model,
                     struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(member);
    bool run_synthetic = c->data->kind == SHARDFC__V1__DATA_SET__KIND__SYNTHETIC;
    if (run_synthetic != synthetic)
        return sfc_fail(err, SFC_EINVAL, "run %s wants %s data, --data is %s", c->name,
                        run_synthetic ? "synthetic" : "recorded",
                        synthetic ? "synthetic" : "recorded");
    if (has_backbone(c) == run_synthetic)
        return sfc_fail(err, SFC_EINVAL, "run %s: backbone %s does not go with %s data", c->name,
                        c->backbone, run_synthetic ? "synthetic" : "image");
    if (!has_backbone(c)) {
        *model = NULL;
        return SFC_OK;
    }
    struct sfc_model_input input = {c->data->width, c->data->height, c->data->channels};
    struct sfc_model *made;
    int rc = sfc_model_new(c->backbone, input, c->dim, &made, err);
    if (rc)
        return rc;
    rc = check_segments(c, made, err);
    if (rc) {
        sfc_model_free(made);
        return rc;
    }
    *model = made;
    return SFC_OK;
}

static void mark_broken(struct sfc_slot *slot, uint32_t row, float *values, size_t count,
                        const struct sfc_error *cause)
{
    if (!slot->broken_count)
        slot->error = *cause;
    slot->broken[slot->broken_count++] = row;
    slot->labels[row] = SFC_LABEL_NONE;
    memset(values, 0, count * sizeof *values);
}

/* What all rows of a ticket share of the run. */
struct fill {
    const struct sfc_source *source;
    struct sfc_decoder *decoder;
    uint64_t classes;
    struct sfc_synthetic_growth growths[SFC_LIMIT_GROWTHS];
    struct sfc_synthetic synthetic;
};

static void read_row(const struct fill *f, uint64_t sample, uint64_t epoch, uint32_t row,
                     struct sfc_slot *slot)
{
    const struct sfc_source *source = f->source;
    struct sfc_decoder *decoder = f->decoder;
    const Shardfc__V1__RunConfig *c = sfc_member_config(source->member);
    size_t count = sfc_source_row_values(source->member);
    float *values = slot->values + row * count;
    if (!decoder) {
        slot->labels[row] = sfc_synthetic_label(&f->synthetic, sample);
        sfc_synthetic_feature(&f->synthetic, sample, values);
        return;
    }
    struct sfc_augment augment = {.flip = c->data->flip};
    if (c->augmentation) {
        augment.affine = c->augmentation->affine;
        augment.blur = c->augmentation->blur;
        augment.noise = c->augmentation->noise;
    }
    struct sfc_error err = {0};
    uint64_t label = sfc_dataset_label(source->set, sample);
    int rc = label < f->classes
                 ? sfc_decoder_read(decoder, sample, &augment, c->seed, epoch, values, &err)
                 : sfc_fail(&err, SFC_ECORRUPT, "sample %llu has label %llu of %llu classes",
                            (unsigned long long)sample, (unsigned long long)label,
                            (unsigned long long)f->classes);
    slot->labels[row] = label;
    if (rc)
        mark_broken(slot, row, values, count, &err);
}

void sfc_source_fill(const struct sfc_source *source, struct sfc_decoder *decoder,
                     const struct sfc_ticket *ticket, struct sfc_slot *slot)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(source->member);
    struct fill f = {.source = source,
                     .decoder = decoder,
                     .classes = sfc_member_classes(source->member),
                     .synthetic = {.seed = c->seed,
                                   .classes = c->classes,
                                   .hot_classes = c->data->hot_classes,
                                   .dim = c->dim,
                                   .samples = c->data->samples}};
    f.synthetic.growths = f.growths;
    f.synthetic.growth_count = sfc_member_growth(source->member, f.growths, SFC_LIMIT_GROWTHS);
    for (uint32_t r = 0; r < c->micro_batch; r++) {
        uint64_t epoch = ticket->grown && ticket->epochs
                             ? ticket->epochs[r]
                             : sfc_epoch_at(c->data->samples, ticket->first_position + r);
        read_row(&f, ticket->samples[r], epoch, r, slot);
    }
}

static struct sfc_slot *open_batch(const struct sfc_source *source, struct sfc_decoder *decoder,
                                   const struct sfc_ticket *ticket)
{
    bool fill;
    struct sfc_slot *slot =
        sfc_slot_open(source->batches, ticket->step, ticket->micro_batch, &fill);
    if (fill) {
        sfc_source_fill(source, decoder, ticket, slot);
        sfc_slot_filled(source->batches, slot);
    }
    return slot;
}

static int announce_dropped(const struct sfc_source *source, const struct sfc_ticket *ticket,
                            struct sfc_error *err)
{
    uint32_t rows = sfc_member_config(source->member)->micro_batch;
    uint64_t *labels = malloc(rows * sizeof *labels);
    if (!labels)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for labels");
    memset(labels, 0xff, rows * sizeof *labels);
    int rc = sfc_member_announce(source->member, ticket->step, ticket->micro_batch, labels, NULL, 0,
                                 NULL, err);
    free(labels);
    return rc;
}

int sfc_source_announce(const struct sfc_source *source, struct sfc_decoder *decoder,
                        const struct sfc_ticket *ticket, struct sfc_lap *lap, struct sfc_error *err)
{
    if (ticket->dropped)
        return announce_dropped(source, ticket, err);
    struct sfc_slot *slot = open_batch(source, decoder, ticket);
    sfc_lap_end(lap, SFC_SPAN_READ, 0);
    int rc;
    if (slot->broken_count && !sfc_member_config(source->member)->skip_broken) {
        struct sfc_work work = {.step = ticket->step, .micro_batch = ticket->micro_batch};
        sfc_slot_forget(source->batches, slot); /* the disk may be better the next time */
        rc =
            sfc_member_give_up_data(source->member, &work, slot->error.code, slot->error.text, err);
    } else {
        rc = sfc_member_announce(source->member, ticket->step, ticket->micro_batch, slot->labels,
                                 slot->broken, slot->broken_count,
                                 slot->broken_count ? slot->error.text : NULL, err);
    }
    sfc_slot_close(source->batches, slot);
    sfc_lap_end(lap, SFC_SPAN_ANNOUNCE, 0);
    return rc;
}

void sfc_source_got_ticket(const struct sfc_source *source, const struct sfc_ticket *ticket,
                           enum sfc_phase phase, uint64_t granted_ns, struct sfc_lap *lap)
{
    lap->span.step = ticket->step;
    lap->span.micro_batch = ticket->micro_batch;
    lap->span.rows = sfc_member_config(source->member)->micro_batch;
    if (granted_ns) {
        sfc_lap_end_at(lap, phase, 0, granted_ns);
        sfc_lap_end(lap, SFC_SPAN_MAP, 0);
    } else {
        sfc_lap_end(lap, phase, 0);
    }
}

/* ---- a lane */

void sfc_step_client_free(struct sfc_step_client *client)
{
    if (!client)
        return;
    sfc_exchange_free(client->exchange);
    sfc_lane_free(client->lane);
    sfc_decoder_free(client->decoder);
    free(client->features);
    free(client->dfeatures);
    free(client->gradient);
    free(client->digests);
    free(client->no_labels);
    free(client);
}

int sfc_step_client_new(const struct sfc_source *source, uint32_t index,
                        struct sfc_step_client **out, struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(source->member);
    size_t values = (size_t)c->micro_batch * c->dim;
    struct sfc_step_client *client = calloc(1, sizeof *client);
    if (!client)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a lane");
    client->source = source;
    client->lap = (struct sfc_lap){source->spans, {.thread = SFC_THREAD_LANE, .index = index}};
    client->features = calloc(values, sizeof *client->features);
    client->dfeatures = calloc(values, sizeof *client->dfeatures);
    client->gradient = calloc((size_t)source->member->dense_size + 1, sizeof *client->gradient);
    client->digests = calloc(sfc_member_dense_blocks(source->member) + 1, sizeof *client->digests);
    client->no_labels = malloc(c->micro_batch * sizeof *client->no_labels);
    int rc = SFC_OK;
    if (!client->features || !client->dfeatures || !client->gradient || !client->digests ||
        !client->no_labels)
        rc = sfc_fail(err, SFC_ENOMEM, "out of memory for a lane");
    if (!rc)
        memset(client->no_labels, 0xff, c->micro_batch * sizeof *client->no_labels);
    if (!rc)
        rc = sfc_exchange_new(source->member, &client->exchange, err);
    if (!rc)
        sfc_record_exchange(client->exchange, &client->lap);
    if (!rc && source->set)
        rc = sfc_decoder_new(source->set, &client->decoder, err);
    if (!rc && source->model)
        rc = sfc_lane_new(source->device, source->model, c->micro_batch, &client->lane, err);
    if (rc) {
        sfc_step_client_free(client);
        return rc;
    }
    *out = client;
    return SFC_OK;
}

uint64_t sfc_step_client_memory(const struct sfc_step_client *client)
{
    const struct sfc_member *m = client->source->member;
    uint64_t values = (uint64_t)m->config->micro_batch * m->config->dim;
    uint64_t pushed = sfc_member_push_floats(client->source->member);
    return (client->lane ? sfc_lane_memory(client->lane) : 0) + 2 * values * sizeof(float) +
           2 * values * sizeof(int64_t) + (m->dense_size + pushed) * sizeof(float);
}

struct sfc_lap *sfc_step_client_lap(struct sfc_step_client *client)
{
    return &client->lap;
}

const struct sfc_lane *sfc_step_client_lane(const struct sfc_step_client *client)
{
    return client->lane;
}

/* A dropped micro-batch moves nothing: zero gradient, and the present running statistics. */
static void dropped_gradient(const struct sfc_step_client *client, const float *params)
{
    size_t count;
    const struct sfc_param *p = sfc_model_params(client->source->model, &count);
    memset(client->gradient, 0, client->source->member->dense_size * sizeof *client->gradient);
    for (size_t i = 0; i < count; i++)
        if (p[i].role == SFC_PARAM_STATISTIC)
            memcpy(client->gradient + p[i].offset, params + p[i].offset,
                   p[i].length * sizeof *client->gradient);
}

bool sfc_step_client_broken(const struct sfc_step_client *client)
{
    return client->broken;
}

uint64_t sfc_step_client_computes_since(const struct sfc_step_client *client)
{
    return atomic_load(&client->computes_since);
}

static void computes(struct sfc_step_client *client, bool begins)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t now = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
    atomic_store(&client->computes_since, begins ? now : 0);
}

static int lane_said(struct sfc_step_client *client, int rc)
{
    computes(client, false);
    client->broken = client->broken || rc == SFC_EDEVICE;
    return rc;
}

/* Head exchange, backward and push. params NULL without model. */
static int exchange(struct sfc_step_client *client, const struct sfc_work *work,
                    const uint64_t *labels, const float *params, bool dropped,
                    struct sfc_exchange_result *result, struct sfc_error *err)
{
    struct sfc_member *m = client->source->member;
    int rc = sfc_exchange_run(client->exchange, m, work, client->features, labels,
                              client->dfeatures, result, err);
    if (rc || !client->lane)
        return rc;
    if (dropped) {
        dropped_gradient(client, params);
    } else {
        computes(client, true);
        rc = lane_said(client,
                       sfc_lane_backward(client->lane, client->dfeatures, client->gradient, err));
        sfc_lap_end(&client->lap, SFC_SPAN_BACKWARD, 0);
    }
    if (rc)
        return rc;
    return sfc_exchange_push_dense(client->exchange, m, work, client->gradient, client->digests,
                                   err);
}

/* Forward of the rows in `batch` (NULL: a dropped micro-batch has zero features). */
static int forward(struct sfc_step_client *client, const struct sfc_slot *batch,
                   const float *params, struct sfc_error *err)
{
    const Shardfc__V1__RunConfig *c = sfc_member_config(client->source->member);
    size_t bytes = (size_t)c->micro_batch * c->dim * sizeof *client->features;
    if (batch && client->lane) {
        computes(client, true);
        return lane_said(
            client, sfc_lane_forward(client->lane, params, batch->values, client->features, err));
    }
    if (batch)
        memcpy(client->features, batch->values, bytes);
    else
        memset(client->features, 0, bytes);
    return SFC_OK;
}

static int open_params(const struct sfc_source *source, const struct sfc_ticket *ticket,
                       struct sfc_slot **out, struct sfc_error *err)
{
    bool fill;
    uint64_t step = ticket->step - 1;
    struct sfc_slot *slot = sfc_slot_open(source->params, step, 0, &fill);
    if (fill) {
        int rc = sfc_member_pull_dense(source->member, step, &ticket->attempt, slot->values, err);
        if (rc) {
            sfc_slot_close(source->params, slot);
            return rc;
        }
        sfc_slot_filled(source->params, slot);
    }
    *out = slot;
    return SFC_OK;
}

int sfc_step_client_run(struct sfc_step_client *client, const struct sfc_ticket *ticket,
                        bool *accepted, struct sfc_error *err)
{
    const struct sfc_source *source = client->source;
    struct sfc_work work = {ticket->step, ticket->micro_batch, ticket->attempt};
    struct sfc_slot *batch = NULL, *params = NULL;
    struct sfc_exchange_result result;
    int rc = SFC_OK;
    if (source->model) {
        rc = open_params(source, ticket, &params, err);
        sfc_lap_end(&client->lap, SFC_SPAN_PARAMETERS,
                    rc ? 0 : source->member->dense_size * sizeof *params->values);
    }
    if (rc)
        return rc;
    const float *p = params ? params->values : NULL;
    if (!ticket->dropped)
        batch = open_batch(source, client->decoder, ticket);
    sfc_lap_end(&client->lap, SFC_SPAN_ROWS, 0);
    if (batch && batch->broken_count && !sfc_member_config(source->member)->skip_broken) {
        sfc_slot_forget(source->batches, batch);
        rc = sfc_fail(err, batch->error.code, "%s", batch->error.text);
    }
    if (!rc) {
        rc = forward(client, batch, p, err);
        sfc_lap_end(&client->lap, SFC_SPAN_FORWARD, 0);
    }
    if (!rc)
        rc = exchange(client, &work, batch ? batch->labels : client->no_labels, p, ticket->dropped,
                      &result, err);
    if (batch)
        sfc_slot_close(source->batches, batch);
    if (params)
        sfc_slot_close(source->params, params);
    if (rc)
        return rc;
    rc = sfc_member_done(source->member, &work, &result, client->digests, accepted, err);
    sfc_lap_end(&client->lap, SFC_SPAN_DONE, 0);
    return rc;
}
