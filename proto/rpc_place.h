/* Private to proto/rpc_*.c: the other end of a connection. */
#ifndef SFC_PROTO_RPC_PLACE_H
#define SFC_PROTO_RPC_PLACE_H

#include <stdbool.h>
#include <stdint.h>

struct sockaddr_storage;

struct sfc_rpc_place {
    uint8_t address[16]; /* IPv4 as IPv6 has it */
    uint16_t port;
};

/* false: of another family. */
bool sfc_rpc_place_of(const struct sockaddr_storage *from, struct sfc_rpc_place *out);
/* "ipv4:10.0.0.1:5000" or "ipv6:%5Bfe80::1%25eth0%5D:5000", as gRPC says it. false: something else.
 */
bool sfc_rpc_place_read(const char *peer, struct sfc_rpc_place *out);
/* Bytes that came over a TCP connection since it was made, TLS's own among them. */
uint64_t sfc_rpc_place_received(int fd);
/* By address, then port. */
int sfc_rpc_place_compare(const struct sfc_rpc_place *a, const struct sfc_rpc_place *b);

#endif
