#include "proto/rpc_internal.h"
#include "proto/rpc_trust.h"

#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

/* Failures reach the caller as status codes, but for those before there is a call. */
static void take_log(gpr_log_func_args *args)
{
    sfc_rpc_trust_log(args->message);
}

/* ---- queue between gRPC's threads and the loop thread */

void sfc_rpc_op_begin(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag,
                      void (*fire)(struct sfc_rpc_tag *tag, bool ok))
{
    *tag = (struct sfc_rpc_tag){.fire = fire, .counted = true};
    loop->ops++;
    /* Hands the tag to the poller, who takes the lock before it touches it: gRPC's own hand-over is
     * one that ThreadSanitizer can't see. */
    pthread_mutex_lock(&loop->lock);
    pthread_mutex_unlock(&loop->lock);
}

void sfc_rpc_op_abandon(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag)
{
    tag->counted = false;
    loop->ops--;
}

void sfc_rpc_enqueue(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag, bool ok)
{
    pthread_mutex_lock(&loop->lock);
    tag->ok = ok;
    tag->next = NULL;
    bool was_empty = loop->first == NULL;
    if (was_empty) {
        loop->first = tag;
    } else {
        loop->last->next = tag;
    }
    loop->last = tag;
    if (was_empty) {
        /* Under the lock: the loop can't take the tag and go away before the send is over. */
        uv_async_send(&loop->wake);
    }
    pthread_mutex_unlock(&loop->lock);
}

static void *poll_queue(void *arg)
{
    struct sfc_rpc_loop *loop = arg;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(loop->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            break;
        }
        if (event.type == GRPC_OP_COMPLETE) {
            sfc_rpc_enqueue(loop, event.tag, event.success != 0);
        }
    }
    sfc_rpc_enqueue(loop, &loop->poller_gone, true);
    return NULL;
}

struct posted {
    struct sfc_rpc_tag tag;
    void (*fn)(void *ctx);
    void *ctx;
};

static void run_posted(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct posted posted = *SFC_CONTAINER(tag, struct posted, tag);
    gpr_free(SFC_CONTAINER(tag, struct posted, tag));
    posted.fn(posted.ctx);
}

struct sfc_rpc_traffic sfc_rpc_loop_traffic(const struct sfc_rpc_loop *loop)
{
    return (struct sfc_rpc_traffic){
        .received = atomic_load_explicit(&loop->received, memory_order_relaxed),
        .sent = atomic_load_explicit(&loop->sent, memory_order_relaxed),
        .retries = atomic_load_explicit(&loop->retries, memory_order_relaxed)};
}

void sfc_rpc_loop_post(struct sfc_rpc_loop *loop, void (*fn)(void *ctx), void *ctx)
{
    struct posted *posted = gpr_malloc(sizeof *posted);
    *posted = (struct posted){.tag = {.fire = run_posted}, .fn = fn, .ctx = ctx};
    sfc_rpc_enqueue(loop, &posted->tag, true);
}

/* ---- timers */

void sfc_rpc_timer_init(struct sfc_rpc_timer *timer, void (*fire)(struct sfc_rpc_timer *timer))
{
    sfc_rpc_list_init(&timer->link);
    timer->due = 0;
    timer->fire = fire;
}

static struct sfc_rpc_timer *timer_of(struct sfc_rpc_link *link)
{
    return SFC_CONTAINER(link, struct sfc_rpc_timer, link);
}

static void timers_due(uv_timer_t *handle);

static void timers_arm(struct sfc_rpc_loop *loop)
{
    if (sfc_rpc_list_empty(&loop->timers)) {
        uv_timer_stop(&loop->timer);
        return;
    }
    uint64_t now = uv_now(loop->uv), due = timer_of(loop->timers.next)->due;
    uv_timer_start(&loop->timer, timers_due, due > now ? due - now : 0, 0);
}

static void timers_due(uv_timer_t *handle)
{
    struct sfc_rpc_loop *loop = handle->data;
    uint64_t now = uv_now(loop->uv);
    while (!sfc_rpc_list_empty(&loop->timers) && timer_of(loop->timers.next)->due <= now) {
        struct sfc_rpc_timer *timer = timer_of(loop->timers.next);
        sfc_rpc_list_remove(&timer->link);
        timer->fire(timer);
    }
    timers_arm(loop);
}

void sfc_rpc_timer_start(struct sfc_rpc_loop *loop, struct sfc_rpc_timer *timer, uint64_t ms)
{
    sfc_rpc_list_remove(&timer->link);
    timer->due = uv_now(loop->uv) + ms;
    struct sfc_rpc_link *at = &loop->timers; /* most timers are the latest: search from the end */
    while (at->prev != &loop->timers && timer_of(at->prev)->due > timer->due) {
        at = at->prev;
    }
    sfc_rpc_list_insert_before(at, &timer->link);
    if (loop->timers.next == &timer->link) {
        timers_arm(loop);
    }
}

/* The uv timer may then fire for nothing once; that is cheaper than re-arming it each time. */
void sfc_rpc_timer_stop(struct sfc_rpc_timer *timer)
{
    sfc_rpc_list_remove(&timer->link);
}

uint64_t sfc_rpc_random(struct sfc_rpc_loop *loop)
{
    uint64_t z = loop->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- stop */

static bool members_gone(struct sfc_rpc_loop *loop)
{
    struct sfc_rpc_link *link = loop->servers.next;
    while (link != &loop->servers) {
        struct sfc_rpc_server *server = sfc_rpc_server_of_link(link);
        link = link->next;
        if (sfc_rpc_server_gone(server)) {
            sfc_rpc_server_destroy(server);
        }
    }
    return sfc_rpc_list_empty(&loop->servers) && sfc_rpc_list_empty(&loop->clients);
}

/* One step towards the end; called after every drain of the queue. */
static void stop_advance(struct sfc_rpc_loop *loop)
{
    if (loop->draining || !members_gone(loop) || loop->ops > 0) {
        return;
    }
    loop->draining = true;
    grpc_completion_queue_shutdown(loop->queue);
}

static void handle_closed(uv_handle_t *handle)
{
    struct sfc_rpc_loop *loop = handle->data;
    if (--loop->open_handles > 0) {
        return;
    }
    void (*done)(void *ctx) = loop->done;
    void *ctx = loop->done_ctx;
    sfc_rpc_pool_release(loop->pool);
    sfc_rpc_trust_free(loop->trust);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
    grpc_shutdown_blocking();
    if (done != NULL) {
        done(ctx);
    }
}

static void poller_gone(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_loop *loop = SFC_CONTAINER(tag, struct sfc_rpc_loop, poller_gone);
    pthread_join(loop->poller, NULL);
    grpc_completion_queue_destroy(loop->queue);
    uv_close((uv_handle_t *)&loop->wake, handle_closed);
    uv_close((uv_handle_t *)&loop->timer, handle_closed);
}

static void drain_queue(uv_async_t *handle)
{
    struct sfc_rpc_loop *loop = handle->data;
    pthread_mutex_lock(&loop->lock);
    struct sfc_rpc_tag *tag = loop->first;
    loop->first = loop->last = NULL;
    pthread_mutex_unlock(&loop->lock);
    while (tag != NULL) {
        struct sfc_rpc_tag *next = tag->next; /* fire may free or reuse the tag */
        if (tag->counted) {
            tag->counted = false;
            loop->ops--;
        }
        tag->fire(tag, tag->ok);
        tag = next;
    }
    if (loop->stopping) {
        stop_advance(loop);
    }
}

static void nothing(void *ctx)
{
    (void)ctx;
}

void sfc_rpc_loop_stop(struct sfc_rpc_loop *loop, void (*done)(void *ctx), void *ctx)
{
    loop->stopping = true;
    loop->done = done;
    loop->done_ctx = ctx;
    for (struct sfc_rpc_link *link = loop->servers.next; link != &loop->servers;
         link = link->next) {
        sfc_rpc_server_stop(sfc_rpc_server_of_link(link));
    }
    struct sfc_rpc_link *link = loop->clients.next;
    while (link != &loop->clients) {
        struct sfc_rpc_client *client = sfc_rpc_client_of_link(link);
        link = link->next;
        sfc_rpc_client_free(client);
    }
    sfc_rpc_loop_post(loop, nothing, NULL); /* stop_advance runs after the drain, never in here */
}

/* ---- start */

static int start_handles(struct sfc_rpc_loop *loop, struct sfc_error *err)
{
    int rc = uv_async_init(loop->uv, &loop->wake, drain_queue);
    if (rc != 0) {
        return sfc_fail(err, SFC_EIO, "cannot make a wake-up handle: %s", uv_strerror(rc));
    }
    rc = uv_timer_init(loop->uv, &loop->timer);
    (void)rc; /* can't fail */
    loop->wake.data = loop->timer.data = loop;
    loop->open_handles = 2;
    uv_unref((uv_handle_t *)&loop->timer); /* the async handle keeps the loop alive */
    return SFC_OK;
}

static void start_failed(struct sfc_rpc_loop *loop)
{
    sfc_rpc_trust_free(loop->trust);
    pthread_mutex_destroy(&loop->lock);
    sfc_rpc_pool_release(loop->pool);
    free(loop);
    grpc_shutdown_blocking();
}

static void handle_discarded(uv_handle_t *handle)
{
    struct sfc_rpc_loop *loop = handle->data;
    if (--loop->open_handles == 0) {
        start_failed(loop);
    }
}

void sfc_rpc_loop_call_foreign(struct sfc_rpc_loop *loop)
{
    sfc_rpc_trust_call_foreign(loop->trust);
}

void sfc_rpc_loop_limit(struct sfc_rpc_loop *loop, const struct sfc_peer_limits *limits)
{
    loop->limits = *limits;
    for (struct sfc_rpc_link *link = loop->servers.next; link != &loop->servers;
         link = link->next) {
        sfc_rpc_server_limit(sfc_rpc_server_of_link(link));
    }
}

static void start_grpc(void)
{
    if (getenv("GRPC_VERBOSITY") == NULL) {
        gpr_set_log_function(take_log);
    }
    grpc_init();
}

int sfc_rpc_loop_start(uv_loop_t *uv, const struct sfc_security *security,
                       struct sfc_rpc_loop **out, struct sfc_error *err)
{
    struct sfc_rpc_loop *loop = calloc(1, sizeof *loop);
    struct sfc_rpc_pool *pool = sfc_rpc_pool_new();
    if (loop == NULL || pool == NULL || pthread_mutex_init(&loop->lock, NULL) != 0) {
        free(loop);
        if (pool != NULL) {
            sfc_rpc_pool_release(pool);
        }
        return sfc_fail(err, SFC_ENOMEM, "no memory for the RPC loop");
    }
    loop->uv = uv;
    loop->pool = pool;
    loop->limits = sfc_peer_limits_usual;
    loop->random = uv_hrtime() ^ (uint64_t)(uintptr_t)loop; /* decides only when to retry */
    loop->next_handle = 1;
    loop->poller_gone.fire = poller_gone;
    sfc_rpc_list_init(&loop->timers);
    sfc_rpc_list_init(&loop->servers);
    sfc_rpc_list_init(&loop->clients);
    start_grpc();
    int code = sfc_rpc_trust_new(security, &loop->trust, err);
    if (code == SFC_OK) {
        code = start_handles(loop, err);
    }
    if (code != SFC_OK) {
        start_failed(loop);
        return code;
    }
    loop->queue = grpc_completion_queue_create_for_next(NULL);
    int rc = pthread_create(&loop->poller, NULL, poll_queue, loop);
    if (rc != 0) {
        grpc_completion_queue_shutdown(loop->queue);
        grpc_completion_queue_destroy(loop->queue);
        uv_close((uv_handle_t *)&loop->wake, handle_discarded);
        uv_close((uv_handle_t *)&loop->timer, handle_discarded);
        return sfc_fail(err, SFC_EIO, "cannot start the poller thread: %s", strerror(rc));
    }
    *out = loop;
    return SFC_OK;
}
