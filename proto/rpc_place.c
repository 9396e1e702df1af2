#include "proto/rpc_place.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "proto/rpc_peers.h"

static void map_four(const struct in_addr *from, uint8_t address[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    memcpy(address, mapped, sizeof mapped);
    memcpy(address + sizeof mapped, from, 4);
}

bool sfc_rpc_place_of(const struct sockaddr_storage *from, struct sfc_rpc_place *out)
{
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)from;
        map_four(&in->sin_addr, out->address);
        out->port = ntohs(in->sin_port);
        return true;
    }
    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)from;
        memcpy(out->address, &in->sin6_addr, 16);
        out->port = ntohs(in->sin6_port);
        return true;
    }
    return false;
}

bool sfc_rpc_place_read(const char *peer, struct sfc_rpc_place *out)
{
    char host[SFC_RPC_PEER_NAME];
    struct in_addr four;
    const char *port = strrchr(peer, ':');
    sfc_rpc_peer_name(peer, NULL, host);
    host[strcspn(host, "%")] = '\0'; /* a scope */
    if (port == NULL) {
        return false;
    }
    out->port = (uint16_t)strtoul(port + 1, NULL, 10);
    if (inet_pton(AF_INET, host, &four) == 1) {
        map_four(&four, out->address);
        return true;
    }
    return inet_pton(AF_INET6, host, out->address) == 1;
}

uint64_t sfc_rpc_place_received(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_received : 0;
}

int sfc_rpc_place_compare(const struct sfc_rpc_place *a, const struct sfc_rpc_place *b)
{
    int order = memcmp(a->address, b->address, sizeof a->address);
    return order != 0 ? order : (a->port > b->port) - (a->port < b->port);
}
