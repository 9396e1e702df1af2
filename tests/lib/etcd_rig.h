/* A real etcd of one member on loopback, for tests in C. Debian's etcd-server must be installed: a
 * test without it fails. */
#ifndef SFC_TESTS_ETCD_RIG_H
#define SFC_TESTS_ETCD_RIG_H

#include <stdbool.h>
#include <sys/types.h>

struct etcd_rig {
    pid_t pid;
    int port;
    char folder[64];
    bool in_memory; /* the folder is */
};

/* Fails the test with what etcd said when it does not come up. */
void etcd_rig_start(struct etcd_rig *rig);
void etcd_rig_stop(struct etcd_rig *rig);
void etcd_rig_signal(const struct etcd_rig *rig, int number);
/* SIGSTOP, and waits until all of it stands still: until then it may answer. */
void etcd_rig_freeze(const struct etcd_rig *rig);

#endif
