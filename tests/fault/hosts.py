"""Network namespaces as hosts, and a switch between them whose links can be cut and delayed.

    hosts.enter()                       # first: goes on in a network namespace of its own, or skips the test
    with hosts.Hosts(["scheduler", "shard1"]) as net:
        net.address("shard1")           # 10.0.0.3
        net.prefix("shard1")            # argv that runs a program there: ip netns exec ...
        net.cut("scheduler", "shard1")  # frames between the two are lost, both ways
        net.delay("shard1", "desk", 0.1)
        net.heal()

The test itself is the host "desk". The switch is a process with a raw socket at the other end of each host's veth:
kernels need to know nothing of netem or filters. Everything goes with the namespace.
"""
import array
import fcntl
import heapq
import itertools
import multiprocessing
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

SKIPPED = 77
INSIDE = "SFC_INSIDE_NAMESPACE"
# linux/ethtool.h, linux/sockios.h
SIOCETHTOOL = 0x8946
OFFLOADS = (0x17, 0x1f, 0x24, 0x2c)  # ETHTOOL_STXCSUM, _STSO, _SGSO, _SGRO
MAX_FRAME = 65536


def enter():
    """Runs the program again in network and mount namespaces of its own. Temporary files are in memory there, unless
    SFC_KEEP=1: what is tested are links, within limits that a disk that others keep busy would pass."""
    if os.environ.get(INSIDE):
        run("mount", "-t", "tmpfs", "none", "/run/netns")
        if os.environ.get("SFC_KEEP") != "1" and os.path.isdir("/dev/shm"):
            run("mount", "-t", "tmpfs", "none", "/dev/shm")
            tempfile.tempdir = "/dev/shm"
        run("ip", "link", "set", "lo", "up")
        return
    if os.geteuid() == 0:
        os.makedirs("/run/netns", exist_ok=True)  # ip netns keeps names there; inside, another one lies over it
    lacks = [p for p in ("ip", "unshare", "mount") if not shutil.which(p)]
    if lacks or subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        print("skipped: needs " + (" and ".join(lacks) if lacks else "the right to make network namespaces"))
        sys.exit(SKIPPED)
    os.execvpe("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv], dict(os.environ, **{INSIDE: "1"}))


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def switch_offloads_off(device):
    """A frame must be whole on the wire: its checksum made, at most one segment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for command in OFFLOADS:
            value = array.array("I", (command, 0))
            fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sP", device.encode(), value.buffer_info()[0]))


class Switch:
    """Forwards frames between ports 0..n-1 by the last byte of their destination. Runs in a process of its own."""

    def __init__(self, devices):
        self.sockets = []
        for device in devices:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            s.bind((device, 0))
            self.sockets.append(s)
        self.cut, self.delays = set(), {}
        self.late, self.order = [], itertools.count()  # heap of (time, number, port, frame)

    def serve(self, orders):
        ports = {s.fileno(): i for i, s in enumerate(self.sockets)}
        poll = select.poll()
        for fd in [*ports, orders.fileno()]:
            poll.register(fd, select.POLLIN)
        while True:
            wait = 1000 if not self.late else max(0, (self.late[0][0] - time.monotonic()) * 1000)
            for fd, _ in poll.poll(wait):
                if fd != orders.fileno():
                    self.receive(ports[fd])
                elif not self.obey(orders):
                    return
            while self.late and self.late[0][0] <= time.monotonic():
                _, _, port, frame = heapq.heappop(self.late)
                self.send(port, frame)

    def obey(self, orders):
        try:
            what, *rest = orders.recv()
        except EOFError:
            return False
        if what == "heal":
            self.cut.clear()
            self.delays.clear()
        elif what == "cut":
            self.cut.add(tuple(rest))
        else:
            self.delays[tuple(rest[:2])] = rest[2]
        orders.send("done")
        return True

    def receive(self, source):
        for _ in range(64):
            try:
                frame, (_, _, kind, _, _) = self.sockets[source].recvfrom(MAX_FRAME, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            target = frame[5] - 1
            if kind == socket.PACKET_OUTGOING or not 0 <= target < len(self.sockets) or frame[0] & 1:
                continue
            link = (source, target)
            if link in self.cut:
                continue
            if link in self.delays or self.late:
                heapq.heappush(self.late, (time.monotonic() + self.delays.get(link, 0), next(self.order), target, frame))
            else:
                self.send(target, frame)

    def send(self, port, frame):
        try:
            self.sockets[port].send(frame)
        except OSError:
            pass  # a full queue loses frames, as networks do


class Hosts:
    def __init__(self, names):
        self.names = ["desk", *names]
        devices = []
        for i, name in enumerate(self.names):
            devices.append(f"port{i}")
            run("ip", "link", "add", devices[-1], "type", "veth", "peer", "name", "eth0" if i == 0 else f"host{i}")
            if i:
                run("ip", "netns", "add", name)
                run("ip", "link", "set", f"host{i}", "netns", name)
                self.on(name, "ip", "link", "set", f"host{i}", "name", "eth0")
                self.on(name, "ip", "link", "set", "lo", "up")
            self.on(name, "ip", "link", "set", "eth0", "address", self.mac(i))
            self.on(name, "ip", "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            self.on(name, "ip", "link", "set", "eth0", "up")
            run("ip", "link", "set", devices[-1], "up")
            self.on(name, sys.executable, "-c",
                    f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); "
                    "import hosts; hosts.switch_offloads_off('eth0')")
            for j, other in enumerate(self.names):  # nobody asks for addresses: frames have one target
                if j != i:
                    self.on(name, "ip", "neigh", "add", self.address(other), "lladdr", self.mac(j), "dev", "eth0")
        ours, theirs = multiprocessing.Pipe()
        self.orders = ours
        switch = Switch(devices)
        self.process = multiprocessing.get_context("fork").Process(target=self._serve, args=(switch, ours, theirs),
                                                                   daemon=True)
        self.process.start()
        theirs.close()

    @staticmethod
    def _serve(switch, ours, theirs):
        ours.close()
        switch.serve(theirs)

    @staticmethod
    def mac(i):
        return f"02:00:00:00:00:{i + 1:02x}"

    def address(self, name):
        return f"10.0.0.{self.names.index(name) + 1}"

    def prefix(self, name):
        return ["ip", "netns", "exec", name] if name != "desk" else []

    def on(self, name, *argv):
        run(*self.prefix(name), *argv)

    def _order(self, *words):
        self.orders.send(words)
        if not self.orders.poll(10):
            raise RuntimeError("the switch does not answer")
        self.orders.recv()

    def _both(self, what, a, b, *more):
        i, j = self.names.index(a), self.names.index(b)
        self._order(what, i, j, *more)
        self._order(what, j, i, *more)

    def cut(self, a, b):
        self._both("cut", a, b)

    def delay(self, a, b, seconds):
        self._both("delay", a, b, seconds)

    def heal(self):
        self._order("heal")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.orders.close()
        self.process.join(5)
        self.process.kill()
