#!/usr/bin/python3
"""Hostile peers, from all sides at once: daemons stay within the memory that they print, keep training, and leak nothing.

    test_abuse.py [trained|open|filled|filled_open ...] [--minutes M] [--seed S]

`trained`: with TLS, run after run is trained while peers without a certificate, with that of a worker of another run, of
a worker and of an admin do what tests/fault/attacks.py has: slow readers and writers, half-open connections, 1,000
connections at once, bodies at and over their limits, unfinished ones, random calls of every method, rubbish over HTTP.
Each run ends with the bits of one that nothing happened to; descriptors and threads are back to what they were in
the end. `open`: in plaintext everybody may call everything; random calls of every method in every role, in any order.
Whatever run comes of that, the daemons live, answer, stay within their memory and end well. `filled`: with TLS, somebody
with a worker's certificate sends large requests without their last bytes to both kinds of daemons, as many and as fast as
they take them: he is sent away each time, nobody else is, and runs are trained. `filled_open`: in plaintext.
At least M minutes each (default: as long as one run takes, or a few seconds).
"""
import argparse
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import grpc  # noqa: E402

import attacks  # noqa: E402
import cluster  # noqa: E402
from cluster import BIN, Cluster, once, wait_until  # noqa: E402
from inputs import check  # noqa: E402

STEPS = 60
AT_LEAST_S = 5
RUN = dict(classes=3000, samples=5000, block_size=256, momentum_mode="dense", seed=3, steps=STEPS)
# So little that the attacks reach it.
LIMITS = ("--message-memory", "256M", "--peer-connections", "300", "--connections", "600", "--peer-calls", "600",
          "--handshake-timeout", f"{15 * cluster.TIME_SCALE:.0f}s")
MORE_THREADS = 8  # gRPC keeps some of those that it started for work


@once
def undisturbed():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.create_run(**RUN)
        c.start_workers(2)
        c.wait_state("finished")
        return c.state_digest()


# ---- what a daemon has

def status_of(process):
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {k: int(v.split()[0]) for k, _, v in (line.partition(":") for line in lines)
            if k.startswith(("Vm", "Rss", "Threads"))}


def descriptors(process):
    return len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir()))


def sanitized(process):
    return re.search(r"lib[at]san", pathlib.Path(f"/proc/{process.pid}/maps").read_text()) is not None


def check_memory(process, what):
    """The most that it ever had, pages of files aside, against the plans in its log: what the program had when it
    planned its first run (what it has later is what is to be checked), the largest run, and requests beyond these."""
    plans = [[float(part or 0) for part in parts] for parts in re.findall(
        r"memory plan: ([0-9.]+) MiB(?:: the program [0-9.]+ and the run ([0-9.]+))?.*may take ([0-9.]+) MiB more",
        process.stderr())]
    check(plans, f"{process.name} printed no plan\n{process.tail()}")
    plan = plans[0][0] - plans[0][1] + max(run for _, run, _ in plans)
    more = max(more for _, _, more in plans)
    now = status_of(process)
    most, rest = (now["VmHWM"] - now["RssFile"]) / 1024, (now["VmRSS"] - now["RssFile"]) / 1024
    print(f"{what}: {process.name}: at most {most:.0f} MiB, now {rest:.0f}, planned {plan:.0f} and {more:.0f} for requests",
          flush=True)
    check(sanitized(process) or most <= plan + more, f"{process.name} had {most:.0f} MiB, planned {plan + more:.0f}")


# ---- with certificates

def cert(*argv):
    subprocess.run([BIN / "shardfc", "cert", *map(str, argv)], check=True, capture_output=True)


class Secured(Cluster):
    def __init__(self):
        super().__init__()
        self.pki = self.folder / "pki"
        self.pki.mkdir()
        cert("init", "--out", self.pki / "ca")
        for name, role in (("scheduler", "scheduler"), ("shard", "shard"), ("worker", "worker"), ("admin", "admin")):
            cert("issue", "--ca", self.pki / "ca", "--role", role, "--name", name, "--host", "127.0.0.1", "--out",
                 self.pki / name)
        cert("issue", "--ca", self.pki / "ca", "--role", "worker", "--name", "guest", "--run", "another", "--out",
             self.pki / "guest")
        cert("issue", "--ca", self.pki / "ca", "--role", "worker", "--name", "filler", "--out", self.pki / "filler")
        self.authority = self.pki / "ca" / "ca.pem"

    def channel(self, address):
        if address not in self._channels:
            parts = [(self.pki / "admin" / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
            self._channels[address] = grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts),
                                                          cluster.CHANNEL_OPTIONS)
        return self._channels[address]

    def target(self, address, name, pages=None):
        return attacks.Target(address, self.authority, self.pki / name if name else None, pages)


def besiege(c, seed):
    pages = next(line.split()[1] for line in c.scheduler.stdout().splitlines() if line.startswith("http "))
    scheduler, shard, plan = c.address, c.shards[0].address, []
    for address in (scheduler, shard):
        plan += [(name, c.target(address, "worker")) for name in (
            "one_byte_at_a_time", "slow_readers", "unfinished_bodies", "bodies", "given_up", "worker_calls")]
        plan += [("all_but_the_end", c.target(address, "filler"))]
        plan += [("half_open", c.target(address, None)), ("thousand", c.target(address, None)),
                 ("guest_calls", c.target(address, "guest")), ("admin_calls", c.target(address, "admin"))]
    plan.append(("rubbish_over_http", c.target(scheduler, None, pages)))
    return attacks.Siege(seed, plan)


def patient(ask):
    """None where an honest peer got no answer: it asks again."""
    try:
        return ask()
    except grpc.RpcError as e:
        check(e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
                           grpc.StatusCode.RESOURCE_EXHAUSTED), f"an honest call failed: {e.code()}: {e.details()}")
        return None


def begun(c, before):
    """The number of a run later than `before`, once it is there; asks for one otherwise."""
    now = patient(c.status)
    if now and now.run_id > before and now.state != "idle":
        return now.run_id
    try:
        c.create_run(**RUN)
    except grpc.RpcError:
        pass
    return None


def over(c):
    """How the run ended, once it has: "idle" where the call that made it was cut off, which takes it back."""
    now = patient(c.status)
    check(now is None or now.state in ("running", "finished", "loading", "held", "idle"), f"the run is {now and now.state}")
    return now.state if now and now.state in ("finished", "idle") else None


def train_one(c, before, expected):
    """(number of a run later than `before`, whether it was trained): then its state is that of a run in peace."""
    number = wait_until("another run", lambda: begun(c, before), 120, context=c.tails)
    if wait_until("the run to be over", lambda: over(c), 300, pause=0.5, context=c.tails) == "idle":
        return number, False
    now = wait_until("its state", lambda: patient(c.state_digest), 120)
    check(now == expected, f"run {number}: {now}, without attacks {expected}")
    return number, True


def trained(options):
    expected = undisturbed()
    with Secured() as c:
        c.start_scheduler("--tls", c.pki / "scheduler", "--http", "127.0.0.1:0", *LIMITS)
        c.start_shards(2, "--tls", c.pki / "shard", *LIMITS)
        c.start_workers(2, "--tls", c.pki / "worker")
        daemons = [c.scheduler, *c.shards]
        c.create_run(**RUN)
        c.wait_state("finished")
        before = {p.name: (descriptors(p), status_of(p)["Threads"]) for p in daemons}
        siege, end = besiege(c, options.seed), time.monotonic() + max(60 * options.minutes, AT_LEAST_S)
        number, runs = 1, 0
        while runs == 0 or time.monotonic() < end:
            number, good = train_one(c, number, expected)
            runs += good
        siege.end()
        for process in daemons:
            files, threads = before[process.name]
            wait_until(f"{process.name} to have its {files} descriptors and {threads} threads again",
                       lambda: descriptors(process) <= files + 2 and
                       status_of(process)["Threads"] <= threads + MORE_THREADS, 60,
                       context=lambda: f"{descriptors(process)} {status_of(process)['Threads']}\n{process.tail()}")
            check_memory(process, f"trained {runs} runs")
        for process in daemons[:2]:
            check("refused" in process.stderr(), f"{process.name} refused nothing: the attacks have missed it")
        finish(c)


def finish(c):
    """Everybody ends well: a sanitizer that found something, a leak among it, would say so by the exit status."""
    for process in [*c.workers, *c.shards, c.scheduler]:
        check(process.terminate(60) == 0, f"{process.name} ended badly\n{process.tail()}")


# ---- without

def open_to_all(options):
    with Cluster() as c:
        c.start_scheduler("--http", "127.0.0.1:0", *LIMITS)
        c.start_shards(2, "--memory", "256M", *LIMITS)
        c.create_run(**RUN)
        c.start_workers(2)
        c.wait_step(20)
        siege = attacks.Siege(options.seed, [
            ("any_calls", attacks.Target(address)) for address in (c.address, c.shards[0].address) for _ in range(3)])
        end = time.monotonic() + max(60 * options.minutes, AT_LEAST_S)
        wait_until("the siege to be over", lambda: time.monotonic() > end or not running(c), 60 * options.minutes + 60)
        siege.end()
        running(c)
        wait_until("the scheduler to answer", c.status, 30)
        for process in (c.scheduler, *c.shards):
            check_memory(process, "open")
        finish(c)


# ---- requests that never end

def fill(c, options, target, expected):
    siege = attacks.Siege(options.seed, [("all_but_the_end", target(address))
                                         for address in (c.address, c.shards[0].address) for _ in range(2)])
    daemons = (c.scheduler, c.shards[0])
    sent_away = rf"refused (?:filler at )?{re.escape(attacks.ELSEWHERE)}: its requests that are not complete have"
    number, runs, end = 0, 0, time.monotonic() + max(60 * options.minutes, AT_LEAST_S)

    def seen():
        return all(re.search(sent_away, process.stderr()) for process in daemons)
    while runs == 0 or not seen() or time.monotonic() < end:
        number, good = train_one(c, number, expected)
        runs += good
    siege.end()
    for process in (c.scheduler, *c.shards):
        others = re.findall(r"refused (\S.*): its requests that are not complete have", process.stderr())
        check(all(who.endswith(attacks.ELSEWHERE) for who in others), f"{process.name} sent away {set(others)}")
        check_memory(process, f"filled {runs} runs")
    finish(c)


def filled(options):
    expected = undisturbed()
    with Secured() as c:
        c.start_scheduler("--tls", c.pki / "scheduler", *LIMITS)
        c.start_shards(2, "--tls", c.pki / "shard", *LIMITS)
        c.start_workers(2, "--tls", c.pki / "worker")
        fill(c, options, lambda address: c.target(address, "filler"), expected)


def filled_open(options):
    expected = undisturbed()
    with Cluster() as c:
        c.start_scheduler(*LIMITS)
        c.start_shards(2, *LIMITS)
        c.start_workers(2)
        fill(c, options, attacks.Target, expected)


def running(c):
    for process in (c.scheduler, *c.shards, *c.workers):
        check(process.running(), f"{process.name} died\n{process.tail(60)}")
    return True


PARTS = {"trained": trained, "open": open_to_all, "filled": filled, "filled_open": filled_open}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for part in options.parts or PARTS:
        print(f"{part}: seed {options.seed}", flush=True)
        begun = time.monotonic()
        PARTS[part](options)
        print(f"ok   {part} {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
