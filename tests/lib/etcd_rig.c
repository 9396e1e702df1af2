#include "tests/lib/etcd_rig.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { START_TRIES = 3, WAIT_MS = 20, WAITS = 1500, ROOM_MB = 512 };

static int loopback(int port, struct sockaddr_in *out)
{
    *out = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    out->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

/* One that the kernel chose just now. */
static int free_port(void)
{
    struct sockaddr_in at;
    socklen_t size = sizeof at;
    int fd = loopback(0, &at);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&at, size) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    close(fd);
    return ntohs(at.sin_port);
}

/* Does it say that it can decide something? Its port is open before that. */
static int answers(int port)
{
    static const char request[] = "GET /health HTTP/1.0\r\n\r\n";
    const struct timeval patience = {.tv_sec = 5};
    struct sockaddr_in at;
    char text[1024] = "";
    int fd = loopback(port, &at);
    size_t size = 0;
    ssize_t got = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0 &&
        send(fd, request, sizeof request - 1, MSG_NOSIGNAL) == (ssize_t)sizeof request - 1)
        while (size < sizeof text - 1 && got > 0) {
            got = recv(fd, text + size, sizeof text - 1 - size, 0);
            size += got > 0 ? (size_t)got : 0;
        }
    close(fd);
    return strstr(text, "\"health\":\"true\"") != NULL;
}

/* A file system in memory over the folder, which goes with this process, where that may be mounted.
 */
static void own_disk(const char *folder)
{
    char options[32];
    snprintf(options, sizeof options, "size=%dm", ROOM_MB);
    if (mkdir(folder, 0700) == 0 && unshare(CLONE_NEWNS) == 0 &&
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        (void)mount("tmpfs", folder, "tmpfs", 0, options);
}

static void run_etcd(const struct etcd_rig *rig, int peer_port)
{
    char data[80], log[80], client[40], peer[40], cluster[48];
    snprintf(data, sizeof data, "%s/data", rig->folder);
    snprintf(log, sizeof log, "%s/log", rig->folder);
    snprintf(client, sizeof client, "http://127.0.0.1:%d", rig->port);
    snprintf(peer, sizeof peer, "http://127.0.0.1:%d", peer_port);
    snprintf(cluster, sizeof cluster, "m=%s", peer);
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, 1);
    dup2(fd, 2);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!rig->in_memory)
        own_disk(data);
    execlp("etcd", "etcd", "--name", "m", "--data-dir", data, "--listen-client-urls", client,
           "--advertise-client-urls", client, "--listen-peer-urls", peer,
           "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster, "--logger", "zap",
           (char *)NULL);
    dprintf(2, "etcd can't be started: install etcd-server (deploy/install-deps)\n");
    _exit(127);
}

static int come_up(struct etcd_rig *rig)
{
    const struct timespec pause = {.tv_nsec = WAIT_MS * 1000000};
    int peer_port = free_port();
    rig->port = free_port();
    rig->pid = fork();
    assert_true(rig->pid >= 0);
    if (rig->pid == 0)
        run_etcd(rig, peer_port);
    for (int i = 0; i < WAITS; i++) {
        if (waitpid(rig->pid, NULL, WNOHANG) == rig->pid) {
            rig->pid = 0;
            return 0;
        }
        if (answers(rig->port))
            return 1;
        nanosleep(&pause, NULL);
    }
    return 0;
}

static void clear(const struct etcd_rig *rig)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", rig->folder);
    assert_int_equal(system(command), 0);
}

/* In memory, if it has room for etcd's logs: nobody asks here what survives, and a call's deadline
 * must not be missed because others keep a disk busy. */
static void make_folder(struct etcd_rig *rig)
{
    struct statvfs at;
    strcpy(rig->folder, "/dev/shm/sfc_etcd_XXXXXX");
    if (statvfs("/dev/shm", &at) == 0 && at.f_bavail * at.f_frsize >> 20 >= ROOM_MB &&
        mkdtemp(rig->folder) != NULL) {
        rig->in_memory = true;
        return;
    }
    strcpy(rig->folder, "/tmp/sfc_etcd_XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
}

/* Somebody else may take a port between our look and etcd's. */
void etcd_rig_start(struct etcd_rig *rig)
{
    char command[96];
    *rig = (struct etcd_rig){0};
    make_folder(rig);
    for (int i = 0; i < START_TRIES; i++) {
        if (come_up(rig))
            return;
        etcd_rig_signal(rig, SIGKILL);
    }
    snprintf(command, sizeof command, "cat %s/log >&2", rig->folder);
    (void)!system(command);
    clear(rig);
    fail_msg("etcd does not come up; see above");
}

void etcd_rig_signal(const struct etcd_rig *rig, int number)
{
    if (rig->pid > 0)
        kill(rig->pid, number);
}

void etcd_rig_freeze(const struct etcd_rig *rig)
{
    int status = 0;
    etcd_rig_signal(rig, SIGSTOP);
    assert_int_equal(waitpid(rig->pid, &status, WUNTRACED), rig->pid);
    assert_true(WIFSTOPPED(status));
}

void etcd_rig_stop(struct etcd_rig *rig)
{
    etcd_rig_signal(rig, SIGKILL);
    if (rig->pid > 0)
        waitpid(rig->pid, NULL, 0);
    rig->pid = 0;
    clear(rig);
}
