/* An answer of ReadStep is believed only when every part of it has the shape that was asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/tensor.h"
#include "server/run/step_inputs.h"

enum { ROWS = 3, DIM = 5, BATCH = 6, PIECES = 2, CLASSES = 100 };

static const struct sfc_step_shape shape = {BATCH, BATCH / PIECES, DIM, CLASSES};

struct answer {
    uint64_t labels[ROWS];
    double lse[ROWS];
    float features[ROWS * DIM];
    uint8_t digest[SFC_DIGEST_SIZE];
    Shardfc__V1__Attempt round, attempts[PIECES], *list[PIECES];
    struct sfc_tensor_type type;
    Shardfc__V1__ReadStepReply reply;
};

static void good(struct answer *a)
{
    uint64_t dims[] = {ROWS, DIM};
    memset(a, 0, sizeof *a);
    shardfc__v1__read_step_reply__init(&a->reply);
    shardfc__v1__attempt__init(&a->round);
    for (int j = 0; j < PIECES; j++) {
        shardfc__v1__attempt__init(&a->attempts[j]);
        a->list[j] = &a->attempts[j];
    }
    a->labels[1] = CLASSES - 1;
    a->labels[2] = UINT64_MAX; /* a row of weight 0 */
    a->reply.round = &a->round;
    a->reply.lr = 0.1;
    a->reply.clip_scale = 1;
    a->reply.apply = 1;
    a->reply.labels = a->labels;
    a->reply.lse = a->lse;
    a->reply.n_labels = a->reply.n_lse = ROWS;
    a->reply.attempts = a->list;
    a->reply.n_attempts = PIECES;
    a->reply.digest = (ProtobufCBinaryData){sizeof a->digest, a->digest};
    a->reply.payload_type = sfc_tensor_type(&a->type, SHARDFC__V1__DTYPE__DTYPE_F32, dims, 2);
}

static int check(const struct answer *a, size_t bytes, uint32_t rows)
{
    struct sfc_bytes features = {(const uint8_t *)a->features, bytes};
    return sfc_step_reply_check(&a->reply, features, &shape, rows, NULL);
}

static void a_whole_answer_is_taken(void **state)
{
    (void)state;
    struct answer a;
    good(&a);
    assert_int_equal(check(&a, sizeof a.features, ROWS), SFC_OK);
}

static void a_skipped_step_has_a_commit_only(void **state)
{
    (void)state;
    struct answer a;
    good(&a);
    a.reply.apply = 0;
    a.reply.n_labels = a.reply.n_lse = a.reply.n_attempts = 0;
    a.reply.digest.len = 0;
    a.reply.payload_type = NULL;
    assert_int_equal(check(&a, 0, ROWS), SFC_OK);
    a.reply.round = NULL;
    assert_int_equal(check(&a, 0, ROWS), SFC_EINVAL);
}

#define REFUSED(change)                                                                            \
    do {                                                                                           \
        struct answer a;                                                                           \
        good(&a);                                                                                  \
        change;                                                                                    \
        assert_int_equal(check(&a, sizeof a.features, ROWS), SFC_EINVAL);                          \
    } while (0)

static void anything_else_is_refused(void **state)
{
    (void)state;
    struct answer whole;
    good(&whole);
    assert_int_equal(check(&whole, sizeof whole.features - 4, ROWS), SFC_EINVAL);
    assert_int_equal(check(&whole, sizeof whole.features, ROWS - 1), SFC_EINVAL);
    REFUSED(a.reply.round = NULL);
    REFUSED(a.reply.lr = -1);
    REFUSED(a.reply.lr = (double)NAN);
    REFUSED(a.reply.clip_scale = 2);
    REFUSED(a.reply.clip_scale = (double)NAN);
    REFUSED(a.reply.n_labels--);
    REFUSED(a.reply.n_lse--);
    REFUSED(a.reply.n_attempts--);
    REFUSED(a.reply.digest.len--);
    REFUSED(a.labels[0] = CLASSES);
    REFUSED(a.lse[2] = (double)INFINITY);
    REFUSED(a.reply.payload_type = NULL);
    REFUSED(a.type.message.dtype = SHARDFC__V1__DTYPE__DTYPE_F64);
    REFUSED(a.type.shape[0]--);
}

static void pieces_fit_in_a_message(void **state)
{
    (void)state;
    static const struct sfc_step_shape shapes[] = {
        {128, 32, 512, 10},
        {SFC_LIMIT_BATCH, 1024, SFC_LIMIT_DIM, 10},
        {SFC_LIMIT_BATCH, 1024, 1, 10},
    };
    assert_int_equal(sfc_step_piece_rows(&shapes[0]), 128);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        uint64_t rows = sfc_step_piece_rows(&shapes[i]);
        assert_true(rows > 0 && rows * shapes[i].dim * 4 <= SFC_LIMIT_STEP_PIECE);
        /* labels as varints, LSE, attempts */
        assert_true(rows * (10 + 8) + SFC_LIMIT_MICRO_BATCHES * 24u < SFC_LIMIT_HEAD);
    }
}

static void the_digest_covers_every_part(void **state)
{
    (void)state;
    uint64_t labels[BATCH] = {1};
    float features[BATCH * DIM] = {2};
    struct sfc_attempt attempts[PIECES] = {{3, 4}};
    double lse[BATCH] = {5};
    struct sfc_step_inputs inputs = {labels, features, attempts, lse};
    struct sfc_digest *scratch = sfc_digest_new();
    uint8_t first[SFC_DIGEST_SIZE], other[SFC_DIGEST_SIZE];
    uint8_t *last[] = {(uint8_t *)&labels[BATCH - 1], (uint8_t *)&features[BATCH * DIM - 1],
                       (uint8_t *)&attempts[PIECES - 1], (uint8_t *)&lse[BATCH - 1]};
    sfc_step_inputs_digest(&shape, &inputs, scratch, first);
    for (size_t i = 0; i < sizeof last / sizeof *last; i++) {
        *last[i] ^= 1;
        sfc_step_inputs_digest(&shape, &inputs, scratch, other);
        assert_memory_not_equal(first, other, sizeof first);
        *last[i] ^= 1;
    }
    sfc_step_inputs_digest(&shape, &inputs, scratch, other);
    assert_memory_equal(first, other, sizeof first);
    sfc_digest_free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_answer_is_taken),
        cmocka_unit_test(a_skipped_step_has_a_commit_only),
        cmocka_unit_test(anything_else_is_refused),
        cmocka_unit_test(pieces_fit_in_a_message),
        cmocka_unit_test(the_digest_covers_every_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
