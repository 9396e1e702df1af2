#include "kernels/bench_head.h"

static const char *const number_formats[] = {"f32", "bf16"};
static const char *const roundings[] = {"stochastic", "nearest"};
static const char *const momentum_modes[] = {"sampled", "dense"};
static const char *const optimizers[] = {"sgd", "adamw"};

/* What the products multiply and, where that was looked at, how. */
static const char *products_name(const struct sfc_bench_head_options *o,
                                 const struct sfc_bench_head_result *r)
{
    if (o->gemm == SFC_DTYPE_F32 || !r->has_floor)
        return number_formats[o->gemm];
    return r->native ? "bf16 (native)" : "bf16 (in f32 arithmetic)";
}

static void floor_json(FILE *out, const char *name, const struct sfc_bench_floor *f)
{
    fprintf(out,
            "\"%s\": {\"ms\": %.3f, \"gemm_ms\": %.3f, \"bytes_ms\": %.3f, \"gflops\": %.1f, "
            "\"read_gb_s\": %.1f, \"update_gb_s\": %.1f}, ",
            name, f->ms, f->gemm_ms, f->bytes_ms, f->gflops, f->read_gb_s, f->update_gb_s);
}

/* null where there is none. */
static void floors_json(FILE *out, const struct sfc_bench_head_result *r)
{
    if (!r->has_floor) {
        fprintf(out, "\"floor_ms\": null, \"floor\": null, \"floor_before\": null, "
                     "\"floor_after\": null, \"quiet\": null, ");
        return;
    }
    fprintf(out, "\"floor_ms\": %.3f, ", r->floor.ms);
    floor_json(out, "floor", &r->floor);
    floor_json(out, "floor_before", &r->before);
    floor_json(out, "floor_after", &r->after);
    fprintf(out, "\"quiet\": %s, ", sfc_bench_head_quiet(r) ? "true" : "false");
}

static void exact_json(FILE *out, const struct sfc_bench_head_result *r)
{
    if (r->has_exact)
        fprintf(out, "\"exact_ms\": %.3f, ", r->exact_ms);
    else
        fprintf(out, "\"exact_ms\": null, ");
}

void sfc_bench_head_json(FILE *out, const struct sfc_bench_head_options *o,
                         const struct sfc_bench_head_result *r)
{
    fprintf(
        out,
        "{\"step_ms\": %.3f, \"best_ms\": %.3f, \"steps\": %llu, \"phases_ms\": {\"plan\": %.3f, "
        "\"logits\": %.3f, \"gradient\": %.3f, \"commit\": %.3f}, ",
        r->step_ms, r->best_ms, (unsigned long long)r->steps, r->plan_ms, r->logits_ms,
        r->gradient_ms, r->commit_ms);
    floors_json(out, r);
    exact_json(out, r);
    fprintf(out, "\"init_ms\": %.1f, ", r->init_ms);
    fprintf(out,
            "\"classes\": %llu, \"sampled\": %llu, \"batch\": %u, \"micro_batch\": %u, "
            "\"dim\": %u, \"block_size\": %u, \"dtype\": \"%s\", \"gemm\": \"%s\", \"products\": "
            "\"%s\", "
            "\"rounding\": \"%s\", \"optimizer\": \"%s\", \"momentum_mode\": \"%s\", \"backend\": "
            "\"%s\", "
            "\"threads\": %u, \"numerics\": \"%s\", "
            "\"peak_rss_bytes\": %llu, \"state_bytes\": %llu, \"peak_device_bytes\": ",
            (unsigned long long)o->classes, (unsigned long long)r->sampled, o->batch,
            o->micro_batch, o->dim, r->block_size, number_formats[o->dtype],
            number_formats[o->gemm], products_name(o, r), roundings[o->rounding],
            optimizers[o->optimizer], momentum_modes[o->momentum_mode], o->backend, o->threads,
            r->numerics, (unsigned long long)r->peak_rss_bytes, (unsigned long long)r->state_bytes);
    if (r->peak_device_bytes)
        fprintf(out, "%llu}\n", (unsigned long long)r->peak_device_bytes);
    else
        fprintf(out, "null}\n");
}

static void floor_table(FILE *out, const struct sfc_bench_head_result *r)
{
    const struct sfc_bench_floor *f = &r->floor;
    fprintf(out, "floor     %8.2f ms (before %.2f, after %.2f); the step is %.2f x\n", f->ms,
            r->before.ms, r->after.ms, r->step_ms / f->ms);
    fprintf(out, "  products%8.2f at %.0f GFLOP/s\n", f->gemm_ms, f->gflops);
    fprintf(out, "  bytes   %8.2f at %.1f GB/s read, %.1f GB/s updated\n", f->bytes_ms,
            f->read_gb_s, f->update_gb_s);
    if (!sfc_bench_head_quiet(r))
        fprintf(out,
                "          the two floors differ by more than 5 %%: the machine was not quiet, "
                "measure again\n");
}

void sfc_bench_head_table(FILE *out, const struct sfc_bench_head_options *o,
                          const struct sfc_bench_head_result *r)
{
    fprintf(out,
            "%llu classes x %u %s, products of %s, %llu sampled, batch %u in micro-batches of %u, "
            "%s, momentum %s, "
            "%u threads\n",
            (unsigned long long)o->classes, o->dim, number_formats[o->dtype], products_name(o, r),
            (unsigned long long)r->sampled, o->batch, o->micro_batch, optimizers[o->optimizer],
            momentum_modes[o->momentum_mode], o->threads);
    fprintf(out, "numerics  %s\n", r->numerics);
    fprintf(out, "step      %8.2f ms (median of %llu; best %.2f)\n", r->step_ms,
            (unsigned long long)r->steps, r->best_ms);
    fprintf(out, "  plan    %8.2f\n  logits  %8.2f\n  gradient%8.2f\n  commit  %8.2f\n", r->plan_ms,
            r->logits_ms, r->gradient_ms, r->commit_ms);
    if (r->has_floor)
        floor_table(out, r);
    if (r->has_exact)
        fprintf(out, "exact sums%8.2f ms, %.1f %% of the step\n", r->exact_ms,
                100 * r->exact_ms / r->step_ms);
    fprintf(out,
            "state     %8.1f MB, %.0f bytes per class; peak memory %.1f MB%s; made in %.0f ms\n",
            (double)r->state_bytes * 1e-6, (double)r->state_bytes / (double)o->classes,
            (double)r->peak_rss_bytes * 1e-6,
            r->has_floor ? " (without what measures the floor)" : "", r->init_ms);
    if (r->peak_device_bytes)
        fprintf(out, "device    %8.1f MB of its memory in use at most, CUDA's own included\n",
                (double)r->peak_device_bytes * 1e-6);
}
