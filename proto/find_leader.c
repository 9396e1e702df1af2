#include "proto/find_leader.h"

#include "proto/rpc_blocking.h"
#include "proto/shardfc.pb-c.h"

enum { ROUNDS = 2, DEADLINE_MS = 3000 };

int sfc_find_leader(struct sfc_rpc_client *client, struct sfc_error *err)
{
    unsigned count = sfc_rpc_client_addresses(client);
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_ask ask = {.method = "/shardfc.v1.Scheduler/Status",
                          .message = &request.base,
                          .deadline_ms = DEADLINE_MS,
                          .retries = ROUNDS * count - 1,
                          .reply_type = &shardfc__v1__status_reply__descriptor};
    struct sfc_answer answer = {0};
    struct sfc_error why = {0};
    if (count == 1) {
        return SFC_OK;
    }
    int code = sfc_ask(client, &ask, &answer, &why);
    sfc_answer_free(&answer);
    if (code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT) {
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "none of the schedulers %.200s leads (the last one said: %s)",
                        sfc_rpc_client_address(client), why.text);
    }
    return code == SFC_OK ? SFC_OK : sfc_fail(err, code, "%s", why.text);
}
