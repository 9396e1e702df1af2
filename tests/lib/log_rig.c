#include "tests/lib/log_rig.h"

#include <string.h>

const struct sfc_log_geometry rig_geometry = {.batch = RIG_BATCH,
                                              .micro_batch = RIG_MICRO_BATCH,
                                              .dim = RIG_DIM,
                                              .dense_floats = RIG_DENSE,
                                              .dense_halves = RIG_HALVES,
                                              .dense_blocks = 0x1234};

void rig_identity(struct sfc_run_identity *out)
{
    static const char config[] = "a packed run configuration";
    sfc_run_identity_init(out, 42, 7, config, sizeof config, "reference n1", NULL);
}

static uint64_t mix(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t words[3] = {a, b, c};
    return sfc_digest64(words, sizeof words);
}

void rig_fill(struct rig_step *s, uint64_t number, struct sfc_attempt round)
{
    uint64_t key = mix(number, round.incarnation, round.counter);
    for (uint64_t i = 0; i < RIG_BATCH; i++) {
        s->labels[i] = mix(key, i, 1) % 1000;
        s->lse[i] = (double)(mix(key, i, 2) % 10000) / 7;
    }
    for (uint64_t i = 0; i < RIG_BATCH * RIG_DIM; i++) {
        s->features[i] = (float)(mix(key, i, 3) % 10000) / 3;
    }
    for (uint64_t i = 0; i < RIG_DENSE; i++) {
        s->dense[i] = (float)(mix(key, i, 4) % 10000) / 9;
    }
    for (uint64_t j = 0; j < RIG_PIECES; j++) {
        s->attempts[j] = (struct sfc_attempt){round.incarnation, round.counter + j + 1};
        s->feature_pieces[j] = s->features + j * RIG_MICRO_BATCH * RIG_DIM;
        s->lse_pieces[j] = s->lse + j * RIG_MICRO_BATCH;
    }
    s->prepare = (struct sfc_log_prepare){
        .step = number,
        .round = round,
        .lr = 1.0 / (double)number,
        .labels = s->labels,
        .features = s->feature_pieces,
        .attempts = s->attempts,
        .lse = s->lse_pieces,
        .dense = s->dense,
    };
}

struct sfc_log_commit rig_commit(uint64_t number, struct sfc_attempt round)
{
    return (struct sfc_log_commit){.step = number,
                                   .round = round,
                                   .clip_scale = 1.0 / (double)(number + 1),
                                   .lr = 1.0 / (double)number,
                                   .apply = number % 7 != 0};
}

bool rig_same_commit(const struct sfc_log_commit *a, const struct sfc_log_commit *b)
{
    return a->step == b->step && sfc_attempt_compare(a->round, b->round) == 0 &&
           a->clip_scale == b->clip_scale && a->lr == b->lr && a->apply == b->apply;
}

bool rig_same(const struct sfc_log_prepare_view *view, uint64_t number, struct sfc_attempt round)
{
    struct rig_step s;
    rig_fill(&s, number, round);
    return view->lr == s.prepare.lr && memcmp(view->labels, s.labels, sizeof s.labels) == 0 &&
           memcmp(view->features, s.features, sizeof s.features) == 0 &&
           memcmp(view->attempts, s.attempts, sizeof s.attempts) == 0 &&
           memcmp(view->lse, s.lse, sizeof s.lse) == 0 &&
           (view->dense == NULL || memcmp(view->dense, s.dense, sizeof s.dense) == 0);
}
