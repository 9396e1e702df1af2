#!/usr/bin/python3
"""Anything dies at any time, and the run ends with the bits of a run that nothing happened to (I2, I3).

    test_kills.py [--kills N] [--seed S] [--steps N] [--durable-every N]

One run of a backbone and a class layer in momentum mode dense on 2 shards, 2 workers and a scheduler, without
harm, and one that suffers N SIGKILLs. A seed makes the schedule: who dies (some two at once, some again while
they come back, shards and workers while the scheduler is dead), how far the run has got by then and how far
inside a step, in which order and after how long they start again. At the end the state (class matrix, momentum,
last steps, backbone, statistics, history), the losses and the committed samples are compared. A failure prints
seed and schedule, and keeps the folder. With --durable-every the disturbed run flushes only so often.
"""
import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import grpc  # noqa: E402

import cluster  # noqa: E402
from cluster import Cluster, Failure, pb, wait_until  # noqa: E402
from inputs import check  # noqa: E402
from test_train import check_records  # noqa: E402

CLASSES, PER_CLASS, BATCH, MICRO_BATCH = 120, 4, 32, 8
SHARDS, WORKERS = 2, 2
PAUSE, STEP_S = 8, 0.025  # of Blow
WAIT_S = 60  # for a step after a kill; a recovery takes less than a second
# Who dies together. Weights make shards more than a third and the scheduler more than a tenth of the dead.
PARTIES = (
    (8, ("shard",)), (5, ("worker",)), (3, ("scheduler",)),
    (2, ("shard", "shard")), (1, ("shard", "scheduler")), (1, ("shard", "worker")),
    (1, ("worker", "scheduler")), (1, ("worker", "worker")))


class Member:
    """A scheduler, shard or worker through all its lives."""

    def __init__(self, c, kind, argv):
        self.cluster, self.kind, self.argv = c, kind, argv
        self.lives = []
        self.start()

    def start(self):
        self.lives.append(self.cluster.start(self.kind, self.argv))

    @property
    def process(self):
        return self.lives[-1]

    def kill(self):
        """Whoever ends by itself is a failure of its own."""
        check(self.process.running(), f"a {self.kind} ended by itself\n{self.process.tail(60)}")
        self.process.kill()
        self.cluster.processes.remove(self.process)

    def tail(self):
        return "\n".join(p.tail(25) for p in self.lives[-2:])


class Party:
    """One cluster whose members can die; their addresses and folders stay."""

    def __init__(self, c):
        c.start_scheduler()
        shards = [c.start_shard("--recovery-target", "50ms") for _ in range(SHARDS)]
        for process in [c.scheduler, *shards]:
            process.kill()
            c.processes.remove(process)
        self.cluster = c
        self.data = c.folder / "images"
        subprocess.run([cluster.BIN.parent / "tests" / "make_images", self.data, str(CLASSES), str(PER_CLASS),
                        "1"], check=True)
        self.scheduler = Member(c, "scheduler", [
            cluster.BIN / "shardfc-scheduler", "--listen", c.address, "--state", c.folder / "scheduler"])
        self.shards = [Member(c, "shard", [
            cluster.BIN / "shardfc-shard", "--scheduler", c.address, "--listen", s.address, "--state", s.state,
            "--threads", "1", "--recovery-target", "50ms"]) for s in shards]
        self.workers = []
        c.scheduler = self.scheduler.process
        wait_until("the shards to register",
                   lambda: (now := self.peek()) and sum(s.state == "ready" for s in now.shards) == SHARDS, 30,
                   context=self.tails)

    def create(self, steps, every=1):
        c = self.cluster
        c.ctl("create", "--run", "kills", "--data", self.data, "--backbone", "tiny", "--dim", "32",
              "--sample-rate", "0.3", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule",
              "poly:10", "--global-batch", BATCH, "--micro-batch", MICRO_BATCH, "--steps", steps, "--augment",
              "0.12,0.5,0.08", "--seed", "7", "--block-size", "16", "--momentum-mode", "dense", "--durable-every", every)
        self.workers = [Member(c, "worker", [
            cluster.BIN / "shardfc-worker", "--scheduler", c.address, "--data", self.data, "--threads", "1"])
            for _ in range(WORKERS)]

    def peek(self):
        """Status, or None while the scheduler is not there."""
        try:
            now = self.cluster.stub.Status(pb.StatusRequest(), timeout=2 * cluster.TIME_SCALE)
        except grpc.RpcError:
            self.cluster.forget_channel(self.cluster.address)  # a fresh one does not back off
            return None
        check(now.state not in ("failed", "blocked"), f"the run is {now.state}: {now.reason}")
        return now

    def wait_step(self, step):
        """Up to that step, with patience for every single step."""
        reached, end = -1, 0
        while True:
            now = self.peek()
            if now and now.step >= step:
                return now.step
            if now and now.step > reached:
                reached, end = now.step, time.monotonic() + WAIT_S * cluster.TIME_SCALE
            elif end == 0:
                end = time.monotonic() + WAIT_S * cluster.TIME_SCALE
            if time.monotonic() > end:
                raise Failure(f"no step after {reached} for {WAIT_S * cluster.TIME_SCALE:.0f} s: {now}")
            time.sleep(0.003)

    def members(self, kind):
        return {"scheduler": [self.scheduler], "shard": self.shards, "worker": self.workers}[kind]

    def tails(self):
        return "\n".join(m.tail() for m in [self.scheduler, *self.shards, *self.workers])

    def result(self):
        """(state, losses); ends the scheduler, whose records it reads."""
        c = self.cluster
        end = wait_until("the end of the run", lambda: self.peek(), 30)
        end = c.wait_state("finished", 60)
        out = c.state_digest(), [p.loss for p in c.history()]
        c.scheduler = self.scheduler.process
        check_records(c, end.run_id, end.steps, BATCH, MICRO_BATCH)
        return out


class Blow:
    """Some die at once. `step`: from which on; `within`: share of a typical step after it; `pauses`: steps until each
    comes back, in this order; `again`: steps after which who came back dies again, or None. In steps, so that a faster
    machine does not end the run before the last blow; on a slower one a step counts as STEP_S seconds."""

    def __init__(self, chance, step):
        self.step = step
        self.kinds = chance.choices([p for _, p in PARTIES], [w for w, _ in PARTIES])[0]
        self.which = [chance.randrange(2) for _ in self.kinds]
        if self.kinds[0] == self.kinds[-1]:
            self.which = list(range(len(self.kinds))) if len(self.kinds) == 2 else self.which
        self.within = chance.random()
        self.order = chance.sample(range(len(self.kinds)), len(self.kinds))
        self.pauses = [chance.choice((0, 0, PAUSE)) * chance.random() for _ in self.kinds]
        self.again = [chance.random() * PAUSE if chance.random() < 0.15 else None for _ in self.kinds]

    def kills(self):
        return [*self.kinds, *(k for k, a in zip(self.kinds, self.again) if a is not None)]

    def victims(self, party):
        return [party.members(kind)[which if kind != "scheduler" else 0]
                for kind, which in zip(self.kinds, self.which)]

    def strike(self, party, step_s):
        step_s = min(step_s, STEP_S)
        victims = self.victims(party)
        for victim in victims:
            victim.kill()
        for i in self.order:
            time.sleep(self.pauses[i] * step_s)
            victims[i].start()
            if self.again[i] is not None:
                time.sleep(self.again[i] * step_s)
                victims[i].kill()
                victims[i].start()

    def __str__(self):
        again = "".join(f", {k} again after {a:.2f}"
                        for k, a in zip(self.kinds, self.again) if a is not None)
        who = " + ".join(f"{k} {w}" if k != "scheduler" else k for k, w in zip(self.kinds, self.which))
        return (f"step {self.step} + {self.within:.2f}: {who}, back in order {self.order} after "
                f"{[round(p, 2) for p in self.pauses]} steps{again}")


def make_schedule(seed, kills, steps):
    """Blows with `kills` kills or one more, spread over the steps; drawn again until the shares are right."""
    chance = random.Random(seed)
    while True:
        blows, dead = [], []
        while len(dead) < kills:
            blows.append(Blow(chance, 0))
            dead += blows[-1].kills()
        if dead.count("shard") >= kills * 3 // 10 and dead.count("scheduler") >= kills // 10:
            break
    # Each in its own slice of the run; the tail is for those that come late.
    for i, blow in enumerate(blows):
        first, end = (k * (steps * 4 // 5) // len(blows) for k in (i, i + 1))
        blow.step = chance.randrange(first, max(end, first + 1))
    blows[0].step = blows[0].within = 0  # while the shards open the run
    return blows, dead


def undisturbed(steps):
    with Cluster() as c:
        party = Party(c)
        begin = time.monotonic()
        party.create(steps)
        party.wait_step(steps)
        return party.result(), (time.monotonic() - begin) / steps


def disturbed(steps, blows, step_s, every):
    with Cluster() as c:
        party, done = None, 0
        try:
            party = Party(c)
            party.create(steps, every)
            for blow in blows:
                at = party.wait_step(blow.step)
                check(at < steps, f"the run ended before blow {done + 1} of {len(blows)}: give it more steps")
                time.sleep(blow.within * step_s)
                blow.strike(party, step_s)
                done += 1
            party.wait_step(steps)
            return party.result()
        except BaseException:
            os.environ["SFC_KEEP"] = "1"
            print("\n".join([f"blow {i + 1}: {b}" for i, b in enumerate(blows[:done + 1])]), file=sys.stderr)
            if party:
                print(party.tails(), file=sys.stderr)
            print(f"folders: {c.folder}", file=sys.stderr)
            raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=0, help="default: 40 and 4 per kill")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFC_SEED", "1")))
    parser.add_argument("--durable-every", type=int, default=1, dest="every")
    options = parser.parse_args()
    steps = options.steps or 40 + 4 * options.kills
    try:
        begin = time.monotonic()
        expected, step_s = undisturbed(steps)
        middle = time.monotonic()
        blows, dead = make_schedule(options.seed, options.kills, steps)
        got = disturbed(steps, blows, step_s, options.every)
        check(expected[0][0] == steps, f"the undisturbed run ended at step {expected[0][0]}")
        check(got[0] == expected[0], f"state {got[0]}, undisturbed {expected[0]}")
        check(got[1] == expected[1], "the losses differ")
    except BaseException:
        print(f"FAILED: --kills {options.kills} --steps {steps} --seed {options.seed} "
              f"--durable-every {options.every}", file=sys.stderr)
        raise
    count = {kind: dead.count(kind) for kind in ("shard", "scheduler", "worker")}
    print(f"ok {len(dead)} kills ({count}) in {len(blows)} blows over {steps} steps: "
          f"{time.monotonic() - middle:.0f} s, undisturbed {middle - begin:.0f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
