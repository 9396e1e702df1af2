/* The other end of `shardfc bench rpc`: a process of its own on loopback that answers the same
 * exchange over the project's RPC layer and over plain TCP. An exchange sends a body of `up` bytes
 * and is answered by one of `down`. */
#ifndef SFC_CTL_BENCH_PEER_H
#define SFC_CTL_BENCH_PEER_H

#include <stdint.h>
#include <sys/types.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

#define SFC_BENCH_METHOD   "/shardfc.v1.Bench/Exchange"
#define SFC_BENCH_MAX_BODY (128u << 20)

struct sfc_bench_peer {
    pid_t pid;
    int rpc_port, tcp_port;
};

/* Forks: call it before the process has threads. */
int sfc_bench_peer_start(struct sfc_bench_peer *out, struct sfc_error *err);
void sfc_bench_peer_stop(const struct sfc_bench_peer *peer);

/* RPC: the head is field 1 of a message, a varint, `down`; the tensor is the body. */
enum { SFC_BENCH_HEAD_MAX = 6 };
struct sfc_bytes sfc_bench_head_pack(uint32_t down, uint8_t out[SFC_BENCH_HEAD_MAX]);

/* TCP: this, then `up` bytes; the answer is `down` bytes. Both ends are the same machine. */
struct sfc_bench_frame {
    uint32_t up, down;
};
/* Whole buffers; SFC_EUNAVAILABLE when the other end has closed. */
int sfc_bench_send(int socket, const void *data, size_t size, struct sfc_error *err);
int sfc_bench_receive(int socket, void *data, size_t size, struct sfc_error *err);

#endif
