#!/usr/bin/python3
"""Links between hosts are cut, slow and come back, and the run ends with the bits of a run on one host (I2, I3).

    test_links.py [--rounds N] [--seed S] [--longest SECONDS]

Scheduler, shards and workers each have a network namespace (hosts.py). In each round some links are cut or take 100 ms
each way for some seconds; a seed says which and for how long. Asserted: within 10 s of healing there are new
commits, whoever was cut off meanwhile; no commit is lost or done anew (losses that were seen stay); the state in the end
is that of an undisturbed run. Exit status 77: namespaces can't be made here.
"""
import argparse
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import hosts  # noqa: E402

if __name__ == "__main__":
    hosts.enter()

import grpc  # noqa: E402

import cluster  # noqa: E402
from cluster import Cluster, wait_until  # noqa: E402
from inputs import check  # noqa: E402

HOSTS = ["scheduler", "shard1", "shard2", "worker1", "worker2"]
# Workers don't talk to each other; shards do when one asks the other for lost steps or copies its blocks.
PAIRS = [(a, b) for i, a in enumerate(HOSTS) for b in HOSTS[i + 1:] if not a.startswith("worker")]
RESUMES_S = 10  # after healing
STEPS = 100000  # more than the test will see


class Spread(Cluster):
    """A cluster of one process per host."""

    def __init__(self, net, shards=("shard1", "shard2")):
        super().__init__()
        self.net, self.names = net, shards

    @property
    def address(self):
        return f"{self.net.address('scheduler')}:{self.port}"

    def run_on(self, host, program, *argv):
        return self.start(host, [*self.net.prefix(host), cluster.BIN / program, "--insecure", *argv])

    def begin(self, create, *options):
        self.scheduler = self.run_on("scheduler", "shardfc-scheduler", "--listen",
                                     f"{self.net.address('scheduler')}:0", "--state", self.folder / "scheduler", *options)
        self.port = int(self.scheduler.wait_listening().rsplit(":", 1)[1])
        for name in self.names:
            self.run_on(name, "shardfc-shard", "--scheduler", self.address, "--listen", f"{self.net.address(name)}:0",
                        "--state", self.folder / name, "--threads", "1").wait_listening()
        wait_until("the shards to register", lambda: sum(s.state == "ready" for s in self.status().shards) == len(self.names), 30,
                   context=self.tails)
        create(self)
        for name in ("worker1", "worker2"):
            self.run_on(name, "shardfc-worker", "--scheduler", self.address, "--data", "synthetic", "--threads", "1")

    def committed(self):
        """Last step, or None where the desk can't reach the scheduler just now."""
        try:
            now = self.status()
        except grpc.RpcError:
            return None
        check(now.state not in ("failed", "blocked"), f"the run is {now.state}: {now.reason}")
        return now.step


def create(c):
    c.create_run(steps=STEPS, momentum_mode="dense", classes=3000, block_size=1024, samples=4000, seed=3)


class Trouble:
    """What happens to the links in one round."""

    def __init__(self, chance, longest, pairs=PAIRS):
        self.pairs = chance.sample(pairs, min(len(pairs), chance.choice((1, 1, 2, 3))))
        if chance.random() < 0.3:  # one host is alone
            alone = chance.choice(sorted({host for p in pairs for host in p}, key=HOSTS.index))
            self.pairs = [p for p in pairs if alone in p]
        self.slow = chance.random() < 0.3
        self.seconds = chance.choice((0.3, 2, longest)) * (0.5 + chance.random())

    def __str__(self):
        links = ", ".join("-".join(p) for p in self.pairs)
        return f"{links}: {'100 ms slower' if self.slow else 'cut'} for {self.seconds:.1f} s"

    def strike(self, net):
        for a, b in self.pairs:
            if self.slow:
                net.delay(a, b, 0.1)
            else:
                net.cut(a, b)
        time.sleep(self.seconds)


def losses(c):
    return [(p.step, p.loss) for p in c.history()]


def two_more(c, what, seconds):
    """Waits for two commits after the first that the scheduler tells of."""
    first = None

    def there():
        nonlocal first
        now = c.committed()
        if first is None:
            first = now  # step 0 is an answer as well
        return now is not None and now > first + 1
    wait_until(what, there, seconds, context=c.tails)


def strike(c, net, trouble):
    """Strikes and heals; how long new commits took then."""
    before = losses(c)
    trouble.strike(net)
    if trouble.slow:
        two_more(c, "commits over slow links", 60)
    net.heal()
    healed = time.monotonic()
    two_more(c, "new commits after healing", RESUMES_S)
    waited = time.monotonic() - healed
    check(losses(c)[:len(before)] == before, "commits that were there before are gone or others now")
    return waited


def disturbed(rounds, seed, longest):
    chance = random.Random(seed)
    waits = []
    with hosts.Hosts(HOSTS) as net, Spread(net) as c:
        c.begin(create)
        c.wait_step(5)
        for i in range(rounds):
            trouble = Trouble(chance, longest)
            print(f"round {i + 1}: {trouble}", flush=True)
            waits.append(strike(c, net, trouble))
        step, digest = c.state_digest()
        return step, digest, losses(c)[:step], waits


def undisturbed(step):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        create(c)
        c.start_workers(1)
        held = c.hold(step, 300)
        try:
            check(held.step == step, f"held at step {held.step} instead of {step}")
            return c.state_digest()[1], losses(c)[:step]
        finally:
            c.release(held)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFC_SEED", "1")))
    parser.add_argument("--longest", type=float, default=8, help="seconds, times 0.5 to 1.5")
    options = parser.parse_args()
    try:
        step, digest, seen, waits = disturbed(options.rounds, options.seed, options.longest)
        expected, lines = undisturbed(step)
        check(digest == expected, f"the state of step {step} is another one than that of an undisturbed run")
        check(seen == lines, "the losses differ")
    except BaseException:
        print(f"FAILED: --rounds {options.rounds} --seed {options.seed} --longest {options.longest}", file=sys.stderr)
        raise
    print(f"ok {options.rounds} rounds, {step} steps; new commits at most {max(waits):.1f} s after healing")


if __name__ == "__main__":
    main()
