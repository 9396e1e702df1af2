#!/usr/bin/python3
"""Several schedulers with one state in etcd: who leads, who waits, and what happens when the leader, or etcd,
dies, stands still or is cut off. Real etcd members on loopback (Debian's etcd-server); without it the tests fail.

    test_etcd.py [failover|commands|fenced|gone|refusals]...
"""
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc

from cluster import BIN, TIME_SCALE, Cluster, Failure, Port, has_room, pb, pb_grpc, wait_until
from test_control import begun
from test_scale import command, create

SEED = random.SystemRandom().randrange(1 << 31)
STEPS = 300
TAKES_OVER_S = 10
ROOM_MB = 600  # three members' logs and what they make ahead of them
# Runs a program with a file system in memory, all its own, over the folder given before it.
OWN_DISK = ("unshare", "--mount", "--", "sh", "-c", f'mount -t tmpfs -o size={ROOM_MB}m none "$0" && exec "$@"')


def check(condition, message):
    if not condition:
        raise Failure(message)


class Unreachable:
    """An address where connections are neither taken nor refused: its queue is full, so packets are dropped."""

    def __init__(self):
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0)
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.waiting = []
        for _ in range(4):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(self.listener.getsockname())
            self.waiting.append(s)


def has_own_disk(folder):
    """Whether we may mount one."""
    return subprocess.run([*OWN_DISK, folder, "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


class Schedulers(Cluster):
    """A cluster whose scheduler is whoever leads of several."""

    def __init__(self):
        super().__init__()
        self.members, self.clients = [], []
        self.schedulers = []
        self.unreachable, self.ports = [], []
        self.etcd_folder = None

    def close(self):
        super().close()
        if self.etcd_folder and os.environ.get("SFC_KEEP") != "1":
            shutil.rmtree(self.etcd_folder, ignore_errors=True)

    def etcd_disk(self, name):
        """(what to run etcd with, its folder): in memory, if /dev/shm has room for several tests or we may mount a disk of
        its own, which goes with it. Nobody asks here what survives, and a lease must not end because others keep a disk
        busy."""
        if not self.etcd_folder and has_room("/dev/shm", 4 * ROOM_MB):
            self.etcd_folder = tempfile.mkdtemp(prefix="sfc-etcd-", dir="/dev/shm")
        if self.etcd_folder:
            return (), f"{self.etcd_folder}/{name}"
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return ((*OWN_DISK, folder) if has_own_disk(folder) else ()), folder

    def start_etcd(self, count):
        self.ports = [Port() for _ in range(2 * count)]  # kept until the end, see there
        urls = [f"http://{port.address}" for port in self.ports]
        clients, peers = urls[:count], urls[count:]
        together = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        for i in range(count):
            on_disk, folder = self.etcd_disk(f"etcd{i}")
            self.members.append(self.start("etcd", [
                *on_disk, "etcd", "--name", f"m{i}", "--data-dir", folder, "--listen-client-urls", clients[i],
                "--advertise-client-urls", clients[i], "--listen-peer-urls", peers[i],
                "--initial-advertise-peer-urls", peers[i], "--initial-cluster", together]))
        self.clients = [url.removeprefix("http://") for url in clients]

    @property
    def state(self):
        return f"etcd://{','.join(self.clients)}/test"

    def start_one(self, *extra):
        scheduler = self.start("scheduler", [BIN / "shardfc-scheduler", "--listen", "127.0.0.1:0",
                                             "--state", self.state, *extra])
        scheduler.wait_listening()
        self.schedulers.append(scheduler)
        return scheduler

    def start_all(self, count):
        for _ in range(count):
            self.start_one()
        self.leader()

    @property
    def address(self):
        return ",".join(s.address for s in [*self.unreachable, *self.schedulers])

    def ask(self, scheduler):
        return pb_grpc.SchedulerStub(self.channel(scheduler.address)).Status(pb.StatusRequest(), timeout=2 * TIME_SCALE)

    def answers(self, scheduler):
        try:
            return self.ask(scheduler)
        except grpc.RpcError:
            return None

    def leads(self, seconds=30, but=None):
        """The one that answers, and its answer, as soon as one does."""
        def there():
            return next(((s, now) for s in self.schedulers
                         if s is not but and s.running() and (now := self.answers(s))), None)
        return wait_until("a scheduler that leads", there, seconds, context=self.tails)

    def leader(self, seconds=30, but=None):
        return self.leads(seconds, but)[0]

    def goes_on(self, scheduler, step, seconds):
        """Waits until it says that the run is past the step."""
        wait_until("the run to go on", lambda: (now := self.answers(scheduler)) and now.step > step, seconds,
                   context=self.tails)

    def refusal(self, scheduler):
        """What a standby says."""
        try:
            self.ask(scheduler)
        except grpc.RpcError as e:
            return e.details() if e.code() == grpc.StatusCode.UNAVAILABLE else None
        return None

    @property
    def stub(self):
        return pb_grpc.SchedulerStub(self.channel(self.leader().address))

    def status(self):
        return self.leads()[1]

    def begin(self, steps=STEPS):
        self.start_shards(2)
        self.run_id = self.create_run(classes=2000, samples=3000, steps=steps, seed=SEED).run_id
        self.start_workers(1)

    def finish(self, steps=STEPS):
        self.wait_state("finished", 240)
        digest = self.state_digest()
        done = [p.step for p in self.history()]
        check(done == list(range(1, steps + 1)), f"steps in the record: {len(done)} of {steps}: {done[-5:]}")
        check(digest[0] == steps, f"the state is of step {digest[0]}")
        return digest


def etcd_leader(c):
    """The member that leads etcd, as soon as one does: losing that one is the hard case."""
    living = [client for client, member in zip(c.clients, c.members) if member.running()]

    def leads():
        done = subprocess.run(["etcdctl", "--endpoints", ",".join(living), "endpoint", "status"], capture_output=True,
                              text=True, timeout=30 * TIME_SCALE, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"})
        lines = [line.split(", ") for line in done.stdout.splitlines()]
        return next((c.members[c.clients.index(words[0])] for words in lines if words[4] == "true"), None)
    return wait_until("an etcd member that leads", leads, 30, context=c.tails)


def undisturbed():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.create_run(classes=2000, samples=3000, steps=STEPS, seed=SEED)
        c.start_workers(1)
        c.wait_state("finished", 240)
        return c.state_digest()


def test_failover():
    """An etcd member dies, then the active scheduler: a standby goes on within 10 s of etcd's own election, with every
    step once and the bits of an undisturbed run."""
    expected = undisturbed()
    with Schedulers() as c:
        c.start_etcd(3)
        c.start_all(2)
        c.begin()
        step = c.wait_step(20).step
        old, before = c.leads()
        etcd_leader(c).kill()
        old.kill()
        etcd_leader(c)
        begin = time.monotonic()
        new, now = c.leads(TAKES_OVER_S)
        check(now.incarnation == before.incarnation + 1, f"incarnation {now.incarnation} after {before.incarnation}")
        took = time.monotonic() - begin
        check(now.step >= step, f"back at step {now.step}, {step} was committed")
        c.goes_on(new, now.step, TAKES_OVER_S - took / TIME_SCALE)
        print(f"led after {took:.1f} s, went on after {time.monotonic() - begin:.1f} s", flush=True)
        digest = c.finish()
        check(digest == expected, f"state {digest}, undisturbed {expected}")


def test_commands():
    """The first scheduler of the list can't be reached, and the leader dies in the middle of commands that last: each
    comes to its end with the next one, and so does one that is given while nobody leads."""
    with Schedulers() as c:
        c.start_etcd(1)
        c.unreachable = [Unreachable()]
        for _ in range(3):
            c.start_one("--move-rate", "100K")
        c.leader()
        c.start_shards(1)
        create(c)
        c.start_workers(1)
        step = c.wait_step(20).step
        c.start_shards(1)
        ends = [command(c, "scale", "--shards", "2"),
                command(c, "checkpoint", "--out", c.folder / "ck", "--at-step", step + 400),
                command(c, "watch", "--until-done", "--trace", c.folder / "trace")]
        wait_until("blocks to move", lambda: len(c.status().moves) > 0, 60, pause=0.01, context=c.tails)
        old = c.leader()
        c.members[0].signal(signal.SIGSTOP)  # until then nobody can take over
        old.kill()
        before = begun(c, "before", "status")
        wait_until("it to say that nobody leads", lambda: "leads" in before.said(), 20, context=before.said)
        c.members[0].signal(signal.SIGCONT)
        check(before.wait(60 * TIME_SCALE) == 0 and "run r" in before.said(), before.said())
        c.wait_step(step + 400)
        ends[0](0)
        ends[1](0)
        here = c.leader()
        here.signal(signal.SIGSTOP)  # as if its machine was unreachable
        c.ctl("stop")
        ends[2](1, "was stopped")
        rows = (c.folder / "trace").read_text().splitlines()[1:]
        check([int(r.split(",")[0]) for r in rows] == list(range(1, len(rows) + 1)), f"trace: {rows[:5]} {rows[-5:]}")
        check(here.running(), "the one that stood still has ended")


def test_fenced():
    """The leader stands still, a standby takes over; the old one wakes up, commits nothing, says so and waits for
    its turn, which comes when the new one ends."""
    expected = undisturbed()
    with Schedulers() as c:
        c.start_etcd(1)
        c.start_all(2)
        c.begin()
        c.wait_step(20)
        old = c.leader()
        old.signal(signal.SIGSTOP)
        new, now = c.leads(TAKES_OVER_S, but=old)
        c.goes_on(new, now.step + 5, 30)
        old.signal(signal.SIGCONT)
        wait_until("the old leader to notice", lambda: "leads no more" in old.stderr(), 20, context=c.tails)
        wait_until("it to wait and to name the leader", lambda: new.address in (c.refusal(old) or ""), 20,
                   context=c.tails)
        check(old.running(), "the old leader has ended")
        c.wait_step(150)
        check(new.terminate() == 0, f"the leader ended badly\n{new.tail()}")
        check(c.leader(TAKES_OVER_S) is old, "somebody else leads")
        digest = c.finish()
        check(digest == expected, f"state {digest}, undisturbed {expected}")
        check(old.terminate() == 0, f"the last one ended badly\n{old.tail()}")


def test_gone():
    """etcd stands still for longer than the leader waits: it gives up by itself, and when etcd is back somebody
    leads again, with its page where it was."""
    expected = undisturbed()
    with Schedulers() as c:
        c.start_etcd(1)
        c.start_one("--http", "127.0.0.1:0")
        c.leader()
        c.begin()
        c.wait_step(20)
        only = c.leader()
        c.members[0].signal(signal.SIGSTOP)
        wait_until("the leader to give up", lambda: "could not be renewed" in only.stderr(), 20, context=c.tails)
        wait_until("it to wait", lambda: "standby" in (c.refusal(only) or ""), 20, context=c.tails)
        c.members[0].signal(signal.SIGCONT)
        c.leader(TAKES_OVER_S)
        check(only.running() and c.status().incarnation == 2, "not the same process with its next incarnation")
        pages = re.findall("^http .*$", only.stdout(), re.M)
        check(len(pages) == 2 and pages[0] == pages[1], f"{pages}")
        digest = c.finish()
        check(digest == expected, f"state {digest}, undisturbed {expected}")


def test_refusals():
    """What people see: a standby names the leader, commands find it in a list, and etcd that is not there is
    waited for."""
    with Schedulers() as c:
        c.start_etcd(1)
        c.start_all(2)
        leader = c.leader()
        standby = next(s for s in c.schedulers if s is not leader)
        wait_until("the standby to know who leads", lambda: leader.address in (c.refusal(standby) or ""), 20,
                   context=c.tails)
        c.schedulers = [standby]
        done = c.ctl("status", check=False)
        check(done.returncode == 1 and f"at {leader.address}" in done.stderr, f"{done.returncode}: {done.stderr}")
        c.schedulers = [standby, leader]
        check(c.ctl_json("status")["incarnation"] == 1, "another incarnation")
        c.begin(20)
        c.finish(20)
        done = c.ctl("events")
        check(re.search(rf"the scheduler at {leader.address} leads, incarnation 1", done.stdout), done.stdout)
        check(leader.terminate() == 0 and c.leader(5) is standby, "the standby does not lead at once")
        standby.terminate()
        c.schedulers = [leader, standby]
        done = c.ctl("status", check=False)
        check(done.returncode == 1 and "none of the schedulers" in done.stderr, f"{done.returncode}: {done.stderr}")
        for where, word in (("etcd://", "HOST:PORT"), ("etcd://127.0.0.1:1/", None), ("etcd://x:1/a b", "ASCII")):
            waiting = c.start("scheduler", [BIN / "shardfc-scheduler", "--state", where])
            if word:
                check(waiting.wait(20) == 2 and word in waiting.stderr(), f"{where}: {waiting.tail()}")
            else:
                wait_until("no etcd to be noticed", lambda: "no member answers" in waiting.stderr(), 20,
                           context=waiting.tail)
                check(waiting.terminate() == 0, waiting.tail())


def main():
    for name in sys.argv[1:] or ["failover", "commands", "fenced", "gone", "refusals"]:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}, seed {SEED}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
