#include "proto/find_leader.h"

#include <time.h>

#include "proto/rpc_blocking.h"
#include "proto/shardfc.pb-c.h"

enum {
    DEADLINE_MS = 3000,  /* of one address */
    PATIENCE_MS = 20000, /* a lease runs out in half of it, and a standby takes over */
    PAUSE_MS = 200
};

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Each address once, from the present one on. */
static int ask_all(struct sfc_rpc_client *client, unsigned count, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_ask ask = {.method = "/shardfc.v1.Scheduler/Status",
                          .message = &request.base,
                          .deadline_ms = DEADLINE_MS,
                          .retries = count - 1,
                          .reply_type = &shardfc__v1__status_reply__descriptor};
    struct sfc_answer answer = {0};
    int code = sfc_ask(client, &ask, &answer, err);
    sfc_answer_free(&answer);
    return code;
}

int sfc_find_leader(struct sfc_rpc_client *client, void (*waits)(void *ctx, const char *why),
                    void *ctx, struct sfc_error *err)
{
    const struct timespec pause = {0, PAUSE_MS * 1000000L};
    unsigned count = sfc_rpc_client_addresses(client);
    long long begin = now_ms();
    struct sfc_error why = {0}, text = {0};
    int code = count == 1 ? SFC_OK : ask_all(client, count, &why);
    while (code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT) {
        sfc_fail(&text, SFC_EUNAVAILABLE,
                 "none of the schedulers %.200s leads (the last one said: %s)",
                 sfc_rpc_client_address(client), why.text);
        if (now_ms() - begin >= PATIENCE_MS) {
            return sfc_fail(err, text.code, "%s", text.text);
        }
        if (waits != NULL) {
            waits(ctx, text.text);
        }
        nanosleep(&pause, NULL);
        code = ask_all(client, count, &why);
    }
    return code == SFC_OK ? SFC_OK : sfc_fail(err, code, "%s", why.text);
}
