/* The emulator that runs kernels/cuda on the CPU finds what it is there to find. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/cuda_host/cuda_host.h"
#include "tests/unit/test_cuda_host.h"

#define POISON 0x7fff7fffu

static void ok(cudaError_t rc)
{
    if (rc != cudaSuccess)
        fail_msg("%s", cudaGetErrorName(rc));
}

static void *device(size_t bytes)
{
    void *p = NULL;
    ok(cudaMalloc(&p, bytes));
    assert_non_null(p);
    return p;
}

static void to_host(void *to, const void *from, size_t bytes)
{
    ok(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static void nothing_left(void)
{
    struct sfc_cuda_host_use use = sfc_cuda_host_use();
    assert_int_equal(use.allocations, 0);
    assert_int_equal(use.device_bytes, 0);
    assert_int_equal(use.streams, 0);
    assert_int_equal(use.events, 0);
}

/* ---- grids */

static void test_barriers_keep_what_they_promise(void **state)
{
    (void)state;
    enum { BLOCKS = 7, N = 256 * BLOCKS };
    unsigned in[N], out[N];
    unsigned *from = device(sizeof in), *to = device(sizeof out);
    for (unsigned i = 0; i < N; i++)
        in[i] = i * 3 + 1;
    ok(cudaMemcpy(from, in, sizeof in, cudaMemcpyHostToDevice));
    for (uint64_t seed = 0; seed < 20; seed++) {
        sfc_cuda_host_seed(seed);
        ok(launch_reverse(BLOCKS, from, to, NULL));
        to_host(out, to, sizeof out);
        for (unsigned i = 0; i < N; i++)
            assert_int_equal(out[i], in[i / 256 * 256 + 255 - i % 256]);
    }
    ok(cudaFree(from));
    ok(cudaFree(to));
    nothing_left();
}

/* Without its barrier the same kernel reads what was never written, for every seed but few. */
static void test_a_missing_barrier_shows(void **state)
{
    (void)state;
    unsigned in[256], out[256];
    unsigned *from = device(sizeof in), *to = device(sizeof out);
    memset(in, 0, sizeof in);
    ok(cudaMemcpy(from, in, sizeof in, cudaMemcpyHostToDevice));
    for (uint64_t seed = 0; seed < 10; seed++) {
        sfc_cuda_host_seed(seed);
        ok(launch_racing_reverse(from, to, NULL));
        to_host(out, to, sizeof out);
        unsigned wrong = 0;
        for (unsigned i = 0; i < 256; i++) {
            assert_true(out[i] == 0 || out[i] == POISON);
            wrong += out[i] != 0;
        }
        assert_true(wrong > 32);
    }
    ok(cudaFree(from));
    ok(cudaFree(to));
}

static void order_of(uint64_t seed, unsigned *out)
{
    enum { BLOCKS = 6, THREADS = 64 };
    unsigned *counter = device(sizeof *counter), *order = device(BLOCKS * THREADS * sizeof *order);
    sfc_cuda_host_seed(seed);
    ok(cudaMemset(counter, 0, sizeof *counter));
    ok(launch_order(BLOCKS, THREADS, counter, order, NULL));
    to_host(out, order, BLOCKS * THREADS * sizeof *out);
    ok(cudaFree(counter));
    ok(cudaFree(order));
}

static void test_orders_follow_from_the_seed(void **state)
{
    (void)state;
    enum { N = 6 * 64 };
    unsigned plain[N], one[N], again[N], two[N];
    uint8_t seen[N] = {0};
    order_of(0, plain);
    order_of(1, one);
    order_of(1, again);
    order_of(2, two);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(plain[i], i);
        assert_true(one[i] < N && !seen[one[i]]);
        seen[one[i]] = 1;
    }
    assert_memory_equal(one, again, sizeof one);
    assert_memory_not_equal(one, two, sizeof one);
    assert_memory_not_equal(one, plain, sizeof one);
}

static void test_coordinates(void **state)
{
    (void)state;
    enum { N = 12 * 24 };
    unsigned out[N], *at = device(sizeof out);
    ok(launch_places(at, NULL));
    to_host(out, at, sizeof out);
    for (unsigned i = 0; i < N; i++) {
        unsigned b = i / 24, t = i % 24;
        assert_int_equal(out[i], (b % 2) | (b / 2 % 3) << 4 | (b / 6) << 8 | (t % 4) << 12 |
                                     (t / 4 % 2) << 16 | (t / 8) << 20);
    }
    ok(cudaFree(at));
}

static unsigned float_bits(float x)
{
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static unsigned high_word(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (unsigned)(bits >> 32);
}

static void test_warp_functions(void **state)
{
    (void)state;
    unsigned out[WARP_RESULTS][32], *at = device(sizeof out), thirds = 0;
    for (unsigned i = 0; i < 32; i += 3)
        thirds |= 1u << i;
    for (uint64_t seed = 0; seed < 20; seed++) {
        sfc_cuda_host_seed(seed);
        ok(launch_warp(at, NULL));
        to_host(out, at, sizeof out);
        for (unsigned i = 0; i < 32; i++) {
            assert_int_equal(out[0][i], 107);
            assert_int_equal(out[1][i], 131 - i);
            assert_int_equal(out[2][i], 100 + (i ^ 5));
            assert_int_equal(out[3][i], 100 + (i < 3 ? i : i - 3));
            assert_int_equal(out[4][i], 100 + (i + 3 < 32 ? i + 3 : i));
            assert_int_equal(out[5][i], thirds);
            assert_int_equal(out[6][i], 1);
            assert_int_equal(out[7][i], 1);
            assert_int_equal(out[8][i], float_bits((float)(i ^ 1)));
            assert_int_equal(out[9][i], high_word(1.0 / (1 + (i < 31 ? i + 1 : i))));
            assert_int_equal(out[10][i], 100 + i / 8 * 8 + 2);
            assert_int_equal(out[11][i], 100 + (i % 16 + 5 < 16 ? i + 5 : i));
        }
    }
    ok(cudaFree(at));
}

static void test_sums_of_blocks(void **state)
{
    (void)state;
    enum { BLOCKS = 5 };
    unsigned long long out[BLOCKS], *at = device(sizeof out);
    for (uint64_t seed = 0; seed < 20; seed++) {
        sfc_cuda_host_seed(seed);
        ok(launch_sums(BLOCKS, at, NULL));
        to_host(out, at, sizeof out);
        for (unsigned long long b = 0; b < BLOCKS; b++)
            assert_int_equal(out[b], 256 * (256 * b) + 256 * 257 / 2);
    }
    ok(cudaFree(at));
}

static void test_atomics(void **state)
{
    (void)state;
    unsigned out[5] = {0, 0, UINT32_MAX, 0, 0}, *at = device(sizeof out);
    unsigned long long wide[3] = {0, 0, UINT64_MAX}, *wide_at = device(sizeof wide);
    unsigned sum = 0, most = 0, least = UINT32_MAX;
    ok(cudaMemcpy(at, out, sizeof out, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(wide_at, wide, sizeof wide, cudaMemcpyHostToDevice));
    ok(launch_atomics(at, wide_at, NULL));
    to_host(out, at, sizeof out);
    to_host(wide, wide_at, sizeof wide);
    for (unsigned i = 0; i < 320; i++) {
        unsigned v = i * 2654435761u;
        sum += i;
        most = v > most ? v : most;
        least = v < least ? v : least;
    }
    assert_int_equal(out[0], sum);
    assert_int_equal(out[1], most);
    assert_int_equal(out[2], least);
    assert_int_equal(out[3], UINT32_MAX);
    assert_int_equal(out[4], 0u - sum);
    assert_int_equal(wide[0], (unsigned long long)sum << 40);
    assert_int_equal(wide[1], 319ull << 40);
    assert_int_equal(wide[2], 1ull << 40);
    ok(cudaFree(at));
    ok(cudaFree(wide_at));
}

static void test_numbers(void **state)
{
    (void)state;
    static const long long want[NUMBER_RESULTS] = {
        2,
        -4,
        INT64_MAX,
        INT64_MIN,
        4503599627370498,
        0,
        INT32_MAX,
        0xc0000000,
        3,
        0xb092ab7b,
        9,
        5,
        25,
        32,
        0x3ff0000000000000,
        1026,
        0,
        0,
        (long long)0xddbf6475696ce0c2u,
        34,
    };
    long long out[NUMBER_RESULTS], *at = device(sizeof out);
    ok(launch_numbers(at, NULL));
    to_host(out, at, sizeof out);
    for (unsigned i = 0; i < NUMBER_RESULTS; i++)
        if (out[i] != want[i])
            fail_msg("number %u: %llx is not %llx", i, (unsigned long long)out[i],
                     (unsigned long long)want[i]);
    ok(cudaFree(at));
}

static void test_what_was_never_written_is_no_number(void **state)
{
    (void)state;
    enum { BLOCKS = 3 };
    unsigned out[3 * BLOCKS], *at = device(sizeof out), *pinned = NULL;
    to_host(out, at, sizeof out);
    ok(cudaMallocHost((void **)&pinned, sizeof out));
    for (unsigned i = 0; i < 3 * BLOCKS; i++) {
        assert_int_equal(out[i], POISON);
        assert_int_equal(pinned[i], POISON);
    }
    ok(launch_shared_at_first(BLOCKS, at, NULL));
    to_host(out, at, sizeof out);
    for (unsigned b = 0; b < BLOCKS; b++) {
        assert_int_equal(out[3 * b], POISON);
        assert_int_equal(out[3 * b + 1], POISON & 0xffff);
        assert_int_equal(out[3 * b + 2], POISON);
    }
    ok(cudaFree(at));
    ok(cudaFreeHost(pinned));
}

/* ---- ends of the process */

/* What the process says when `act` ends it by abort. */
static void assert_dies(void (*act)(uint64_t what), uint64_t what, const char *message)
{
    int pipes[2], status = 0;
    char text[4096] = "";
    size_t used = 0;
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        act(what);
        _exit(0);
    }
    close(pipes[1]);
    for (ssize_t n = 1; n > 0 && used<sizeof text - 1; used += n> 0 ? (size_t)n : 0)
        n = read(pipes[0], text + used, sizeof text - 1 - used);
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || !strstr(text, message))
        fail_msg("status %#x, and not '%s': %s", (unsigned)status, message, text);
}

static void diverge(uint64_t how)
{
    launch_divergence((enum divergence)how, NULL);
}

static void test_divergence_ends_the_process(void **state)
{
    (void)state;
    static const struct {
        enum divergence how;
        const char *message;
    } cases[] = {
        {RETURNS_BEFORE_BARRIER, "thread (37, 0, 0) has returned"},
        {TWO_BARRIERS, "is in __syncthreads at"},
        {LANE_LEAVES_WARP, "thread (37, 0, 0) has returned"},
        {LANES_IN_TWO_PLACES, "is in __any_sync at"},
        {PART_OF_THE_MASK, "all 32 lanes of a warp must take part"},
    };
    for (uint64_t seed = 0; seed < 4; seed++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            sfc_cuda_host_seed(seed);
            assert_dies(diverge, cases[i].how, cases[i].message);
            assert_dies(diverge, cases[i].how, "kernel diverge");
        }
}

static void beyond_shared(uint64_t what)
{
    (void)what;
    launch_divergence(BEYOND_SHARED, NULL);
}

static void test_ends_of_arrays_are_seen(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    assert_dies(beyond_shared, 0, "heap-buffer-overflow");
#else
    (void)beyond_shared;
    skip(); /* it takes AddressSanitizer */
#endif
}

static void misuse(uint64_t how)
{
    char host[16] = "", *at = device(16);
    cudaStream_t stream;
    ok(cudaStreamCreate(&stream));
    switch (how) {
    case 0:
        cudaMemcpy(host, at + 8, 16, cudaMemcpyDeviceToHost);
        break;
    case 1:
        launch_add((unsigned *)host, 1, NULL);
        break;
    case 2:
        cudaFree(at + 8);
        break;
    case 3:
        ok(cudaStreamDestroy(stream));
        launch_add((unsigned *)at, 1, stream);
        break;
    case 4:
        cudaMemset(host, 0, sizeof host);
        break;
    default:
        sfc_cuda_host_guard(true);
        at = device(16);
        write(STDERR_FILENO, "touching\n", 9);
        at[3] = 1;
        break;
    }
}

static void test_misuse_ends_the_process(void **state)
{
    (void)state;
    static const char *const messages[] = {
        "16 bytes from byte 8 of an allocation of 16",
        "which is no memory of the device",
        "not one of its allocations",
        "a stream that does not exist",
        "which is no memory of the device",
        "touching",
    };
    for (uint64_t i = 0; i < sizeof messages / sizeof *messages; i++)
        assert_dies(misuse, i, messages[i]);
}

/* ---- streams */

static void test_streams_wait_for_events_alone(void **state)
{
    (void)state;
    unsigned started = 0, late = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        cudaStream_t a, b;
        cudaEvent_t event;
        unsigned *at = device(2 * sizeof *at), *pinned = NULL;
        sfc_cuda_host_seed(seed);
        ok(cudaMallocHost((void **)&pinned, 2 * sizeof *pinned));
        ok(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
        ok(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
        ok(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        ok(cudaMemset(at, 0, 2 * sizeof *at));
        ok(launch_add(at, 5, a));
        ok(cudaEventRecord(event, a));
        ok(launch_add(at + 1, 7, a));
        ok(cudaStreamWaitEvent(b, event, 0));
        ok(cudaMemcpyAsync(pinned, at, 2 * sizeof *at, cudaMemcpyDeviceToHost, b));
        started += pinned[0] != POISON; /* the host did not wait */
        ok(cudaStreamSynchronize(b));
        assert_int_equal(pinned[0], 5);
        assert_true(pinned[1] == 0 || pinned[1] == 7);
        late += pinned[1] == 0;
        ok(cudaEventDestroy(event));
        ok(cudaStreamDestroy(a));
        ok(cudaStreamDestroy(b));
        ok(cudaFree(at));
        ok(cudaFreeHost(pinned));
        nothing_left();
    }
    assert_int_equal(started, 0);
    assert_true(late > 5 && late < 35); /* what nobody waited for is there or not */
}

/* A source in pinned memory is read when the copy is done, one in other memory at the call. */
static void test_copies_read_their_source_late(void **state)
{
    (void)state;
    cudaStream_t stream;
    unsigned *at = device(sizeof *at), *pinned = NULL, plain = 3, out = 0;
    sfc_cuda_host_seed(1);
    ok(cudaMallocHost((void **)&pinned, sizeof *pinned));
    ok(cudaStreamCreate(&stream));
    *pinned = 3;
    ok(cudaMemcpyAsync(at, pinned, sizeof *at, cudaMemcpyHostToDevice, stream));
    *pinned = 4;
    ok(cudaMemcpyAsync(&out, at, sizeof out, cudaMemcpyDeviceToHost, stream));
    assert_int_equal(out, 4);
    ok(cudaMemcpyAsync(at, &plain, sizeof *at, cudaMemcpyHostToDevice, stream));
    plain = 5;
    ok(cudaMemcpyAsync(&out, at, sizeof out, cudaMemcpyDeviceToHost, stream));
    assert_int_equal(out, 3);
    ok(cudaStreamDestroy(stream));
    ok(cudaFree(at));
    ok(cudaFreeHost(pinned));
}

/* ---- failures */

static void test_memory_has_an_end(void **state)
{
    (void)state;
    size_t free_bytes = 0, total = 0;
    void *p = NULL, *q = NULL;
    sfc_cuda_host_memory(1000);
    ok(cudaMalloc(&p, 600));
    ok(cudaMemGetInfo(&free_bytes, &total));
    assert_int_equal(free_bytes, 400);
    assert_int_equal(total, 1000);
    assert_int_equal(cudaMalloc(&q, 401), cudaErrorMemoryAllocation);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    ok(cudaMalloc(&q, 400));
    ok(cudaFree(p));
    ok(cudaFree(q));
    sfc_cuda_host_memory(0);
}

static void test_the_nth_call_fails(void **state)
{
    (void)state;
    unsigned *at = device(sizeof *at), out = 0;
    ok(cudaMemset(at, 0, sizeof *at));
    sfc_cuda_host_fail(2, false);
    ok(launch_add(at, 1, NULL));
    assert_int_equal(launch_add(at, 1, NULL), cudaErrorLaunchFailure);
    assert_true(sfc_cuda_host_failed());
    ok(launch_add(at, 1, NULL));
    to_host(&out, at, sizeof out);
    assert_int_equal(out, 2);
    sfc_cuda_host_fail(1, true);
    assert_int_equal(cudaMemset(at, 0, sizeof *at), cudaErrorIllegalAddress);
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    assert_int_equal(cudaFree(at), cudaErrorIllegalAddress);
    sfc_cuda_host_fail(0, false);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    nothing_left();
}

static void test_impossible_grids_are_refused(void **state)
{
    (void)state;
    uint64_t launches = sfc_cuda_host_use().launches;
    assert_int_equal(launch_nothing(0, 1, 32, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(launch_nothing(1, 65536, 32, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(launch_nothing(1, 1, 1025, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(sfc_cuda_host_use().launches, launches);
    ok(launch_nothing(3, 2, 1024, NULL));
    assert_int_equal(sfc_cuda_host_use().launches, launches + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barriers_keep_what_they_promise),
        cmocka_unit_test(test_a_missing_barrier_shows),
        cmocka_unit_test(test_orders_follow_from_the_seed),
        cmocka_unit_test(test_coordinates),
        cmocka_unit_test(test_warp_functions),
        cmocka_unit_test(test_sums_of_blocks),
        cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_what_was_never_written_is_no_number),
        cmocka_unit_test(test_divergence_ends_the_process),
        cmocka_unit_test(test_ends_of_arrays_are_seen),
        cmocka_unit_test(test_misuse_ends_the_process),
        cmocka_unit_test(test_streams_wait_for_events_alone),
        cmocka_unit_test(test_copies_read_their_source_late),
        cmocka_unit_test(test_memory_has_an_end),
        cmocka_unit_test(test_the_nth_call_fails),
        cmocka_unit_test(test_impossible_grids_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
