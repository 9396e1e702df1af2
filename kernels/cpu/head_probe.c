/* Finds out whether joint products keep the bits of a single micro-batch on this CPU. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"

struct probe {
    struct sfc_cpu_head *head;
    void *x;       /* [columns, max(pitch, tile)] operand that is cut into micro-batches */
    void *packed;  /* the same as the products of the logits read it */
    float *joint;  /* the joint result */
    float *single; /* the result of one micro-batch */
    bool same;
};

/* Numbers of all magnitudes whose sums depend on the order of addition. */
static void fill(const struct sfc_cpu_head *head, void *out, size_t n, uint32_t seed)
{
    uint32_t x = seed;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        float v = ((float)(x >> 8) * 0x1p-23f - 1.0f) * (x & 64 ? 1.0f : 0.03125f);
        if (head->operand == SFC_OPERAND_BF16)
            head->simd->half->pack(&v, 1, SFC_STORE_BF16, (uint16_t *)out + i, NULL);
        else
            ((float *)out)[i] = v;
    }
}

/* Columns [first, first + mp) of the joint logits [tile, columns] against a single product. */
static bool same_logits(struct probe *p, struct sfc_cpu_worker *worker, size_t g, size_t k)
{
    const struct sfc_cpu_sizes *s = &p->head->sizes;
    sfc_gemm_pack(&worker->logits[0], sfc_cpu_at(p->head, p->x, k * s->mp * s->pitch), 0, s->mp,
                  p->packed);
    if (sfc_gemm_run(&worker->logits[0], worker->stream, worker->tile, p->packed, p->single,
                     worker->gemm, &worker->error))
        return false;
    for (size_t i = 0; i < s->tile; i++)
        if (memcmp(p->single + i * s->mp, p->joint + (i * ((size_t)1 << g) + k) * s->mp,
                   s->mp * sizeof(float)))
            return false;
    return true;
}

static bool logits_agree(struct probe *p, struct sfc_cpu_worker *worker, size_t g)
{
    sfc_gemm_pack(&worker->logits[g], p->x, 0, p->head->sizes.mp << g, p->packed);
    if (sfc_gemm_run(&worker->logits[g], worker->stream, worker->tile, p->packed, p->joint,
                     worker->gemm, &worker->error))
        return false;
    for (size_t k = 0; k < (size_t)1 << g; k++)
        if (!same_logits(p, worker, g, k))
            return false;
    return true;
}

static bool gradient_agrees(struct probe *p, struct sfc_cpu_worker *worker, size_t g)
{
    const struct sfc_cpu_sizes *s = &p->head->sizes;
    const struct sfc_cpu_head *head = p->head;
    size_t columns = s->mp << g;
    memset(p->joint, 0, columns * s->pitch * sizeof(float)); /* these products accumulate */
    if (sfc_gemm_run(&worker->gradient[g], worker->stream, p->x, worker->tile, p->joint,
                     worker->gemm, &worker->error))
        return false;
    for (size_t k = 0; k < (size_t)1 << g; k++) {
        for (size_t i = 0; i < s->tile; i++)
            memcpy(sfc_cpu_at(head, worker->product, i * s->mp),
                   sfc_cpu_at(head, p->x, i * columns + k * s->mp), s->mp * head->operand_bytes);
        memset(p->single, 0, s->mp * s->pitch * sizeof(float));
        if (sfc_gemm_run(&worker->gradient[0], worker->stream, worker->product, worker->tile,
                         p->single, worker->gemm, &worker->error))
            return false;
        if (memcmp(p->single, p->joint + k * s->mp * s->pitch, s->mp * s->pitch * sizeof(float)))
            return false;
    }
    return true;
}

static void probe_worker(void *arg, size_t item, unsigned index)
{
    struct probe *p = arg;
    struct sfc_cpu_worker *worker = &p->head->workers[index];
    const struct sfc_cpu_sizes *s = &p->head->sizes;
    size_t columns = s->mp << (s->groups - 1);
    (void)item;
    p->same = true;
    for (size_t g = 0; g < s->groups; g++)
        p->same = p->same && worker->logits[g].brg && worker->gradient[g].brg;
    fill(p->head, worker->tile, s->tile * s->pitch, 1);
    fill(p->head, p->x, columns * (s->tile > s->pitch ? s->tile : s->pitch), 2);
    for (size_t g = 1; p->same && g < s->groups; g++)
        p->same = logits_agree(p, worker, g) && gradient_agrees(p, worker, g);
}

int sfc_cpu_head_probe(struct sfc_cpu_head *head, struct sfc_error *err)
{
    const struct sfc_cpu_sizes *s = &head->sizes;
    if (s->groups == 1)
        return SFC_OK;
    size_t columns = s->mp << (s->groups - 1), k = s->tile > s->pitch ? s->tile : s->pitch;
    struct probe p = {.head = head};
    /* oneDNN wants nothing of the alignment, but its speed and, in gemm:jit, its bits follow it */
    p.x = aligned_alloc(64, columns * k * sizeof(float));
    p.packed = aligned_alloc(64, columns * k * sizeof(float));
    p.joint = aligned_alloc(64, columns * k * sizeof(float));
    p.single = aligned_alloc(64, s->mp * k * sizeof(float));
    int rc = SFC_OK;
    if (p.x && p.packed && p.joint && p.single) {
        sfc_cpu_pool_run(head->cpu->pool, probe_worker, &p, 1);
        rc = sfc_cpu_head_error(head, err);
        head->joint = p.same;
    } else {
        rc = sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    }
    free(p.x);
    free(p.packed);
    free(p.joint);
    free(p.single);
    return rc;
}
