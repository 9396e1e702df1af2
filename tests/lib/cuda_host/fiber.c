#include "tests/lib/cuda_host/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SFC_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define SFC_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(SFC_ASAN)
#include <sanitizer/common_interface_defs.h>
#define ABOUT_TO_SWITCH(keep, bottom, size) __sanitizer_start_switch_fiber(keep, bottom, size)
#define HAVE_SWITCHED(kept, bottom, size)   __sanitizer_finish_switch_fiber(kept, bottom, size)
#else
#define ABOUT_TO_SWITCH(keep, bottom, size) ((void)(keep), (void)(bottom), (void)(size))
#define HAVE_SWITCHED(kept, bottom, size)   ((void)(kept), (void)(bottom), (void)(size))
#endif
#if defined(__SANITIZE_THREAD__) || defined(SFC_TSAN)
#include <sanitizer/tsan_interface.h>
#define NEW_SHADOW()      __tsan_create_fiber(0)
#define PRESENT_SHADOW()  __tsan_get_current_fiber()
#define SWITCH_SHADOW(to) __tsan_switch_to_fiber(to, 0)
#else
#define NEW_SHADOW()      NULL
#define PRESENT_SHADOW()  NULL
#define SWITCH_SHADOW(to) ((void)(to))
#endif

#define STACK_BYTES ((size_t)256 << 10)
#define GUARD_BYTES ((size_t)4096)
/* Stacks begin at different places of their pages: else all would share a few lines of the caches.
 */
#define COLOURS      32
#define COLOUR_BYTES ((size_t)128)

#if defined(__x86_64__)
/* Keeps what a function must keep, stores the stack pointer in *from and goes on at to. */
void sfc_fiber_jump(void **from, void *to);
__asm__(".text\n"
        ".globl sfc_fiber_jump\n"
        ".hidden sfc_fiber_jump\n"
        ".type sfc_fiber_jump, @function\n"
        "sfc_fiber_jump:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size sfc_fiber_jump, . - sfc_fiber_jump\n");
typedef void *context;
#else
typedef ucontext_t context;
static void sfc_fiber_jump(context *from, context to)
{
    swapcontext(from, &to);
}
#endif

struct sfc_fiber {
    context at;
    char *stack;
    size_t size;         /* of what is used of it */
    void *fake, *shadow; /* of the sanitizers */
    void (*run)(void *arg);
    void *arg;
    bool ended;
    struct sfc_fiber *next; /* in the pool */
};

/* One grid runs at a time (stream.c), so one scheduler is enough. */
static struct {
    struct sfc_fiber *pool, *now;
    unsigned made;
    context scheduler;
    void *fake, *shadow;
    const void *bottom; /* of the scheduler's stack */
    size_t size;
} fibers;

/* Never returns: the stack is begun anew by the next sfc_fiber_take. */
static void body(void)
{
    HAVE_SWITCHED(NULL, &fibers.bottom, &fibers.size);
    struct sfc_fiber *fiber = fibers.now;
    fiber->run(fiber->arg);
    fiber->ended = true;
    SWITCH_SHADOW(fibers.shadow);
    ABOUT_TO_SWITCH(NULL, fibers.bottom, fibers.size);
    sfc_fiber_jump(&fiber->at, fibers.scheduler);
    abort();
}

static struct sfc_fiber *new_fiber(void)
{
    struct sfc_fiber *fiber = calloc(1, sizeof *fiber);
    char *memory = mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!fiber || memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE))
        sfc_host_die("no memory for another stack");
    fiber->stack = memory + GUARD_BYTES;
    fiber->size = STACK_BYTES - fibers.made++ % COLOURS * COLOUR_BYTES;
    fiber->shadow = NEW_SHADOW();
    return fiber;
}

static void begin_at_body(struct sfc_fiber *fiber)
{
#if defined(__x86_64__)
    void **top =
        (void **)(fiber->stack + fiber->size) - 2; /* as after a call: no one to return to */
    void (*entry)(void) = body;
    top[1] = NULL;
    memcpy(top, &entry, sizeof entry);
    memset(top - 6, 0, 6 * sizeof *top); /* the registers */
    fiber->at = top - 6;
#else
    getcontext(&fiber->at);
    fiber->at.uc_stack.ss_sp = fiber->stack;
    fiber->at.uc_stack.ss_size = fiber->size;
    fiber->at.uc_link = NULL;
    makecontext(&fiber->at, body, 0);
#endif
}

struct sfc_fiber *sfc_fiber_take(void (*run)(void *arg), void *arg)
{
    struct sfc_fiber *fiber = fibers.pool;
    if (fiber)
        fibers.pool = fiber->next;
    else
        fiber = new_fiber();
    fiber->run = run;
    fiber->arg = arg;
    fiber->ended = false;
    begin_at_body(fiber);
    return fiber;
}

bool sfc_fiber_enter(struct sfc_fiber *fiber)
{
    fibers.now = fiber;
    fibers.shadow = PRESENT_SHADOW();
    SWITCH_SHADOW(fiber->shadow);
    ABOUT_TO_SWITCH(&fibers.fake, fiber->stack, fiber->size);
    sfc_fiber_jump(&fibers.scheduler, fiber->at);
    HAVE_SWITCHED(fibers.fake, NULL, NULL);
    fibers.now = NULL;
    if (!fiber->ended)
        return false;
    fiber->next = fibers.pool;
    fibers.pool = fiber;
    return true;
}

void sfc_fiber_yield(void)
{
    struct sfc_fiber *fiber = fibers.now;
    SWITCH_SHADOW(fibers.shadow);
    ABOUT_TO_SWITCH(&fiber->fake, fibers.bottom, fibers.size);
    sfc_fiber_jump(&fiber->at, fibers.scheduler);
    HAVE_SWITCHED(fiber->fake, &fibers.bottom, &fibers.size);
}
