#!/usr/bin/python3
"""Shards and the scheduler die while a run is created, opened, or loaded by restore. Afterwards the run is there
and trains to the bits of one that nothing happened to, or the command said why it is not, nothing is in the way,
and the command can be repeated.

    test_create_kills.py [--rounds N] [--seed S]

A round creates and a round restores: who dies, how far into the command, and for how long follows from the seed.
A failure prints the seed and the round.
"""
import argparse
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import grpc  # noqa: E402

import cluster  # noqa: E402
from cluster import Cluster, Failure, wait_until  # noqa: E402
from inputs import check  # noqa: E402

SHARDS, STEPS, MIDDLE = 2, 12, 5
CREATE = ("create", "--run", "kills", "--data", "synthetic", "--classes", "600", "--samples", "1200", "--dim",
          "32", "--sample-rate", "0.3", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05",
          "--schedule", "poly:3", "--global-batch", "32", "--micro-batch", "8", "--steps", str(STEPS), "--seed", "7",
          "--block-size", "16", "--momentum-mode", "dense")
PARTIES = (("shard",), ("shard",), ("scheduler",), ("scheduler",), ("shard", "shard"), ("shard", "scheduler"))


class Round:
    """One command under fire on one cluster."""

    def __init__(self, c, command):
        self.cluster = c
        self.command = [str(cluster.BIN / "shardfc"), command[0], "--scheduler", c.address, *command[1:]]

    def run(self):
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def peek(self):
        try:
            return self.cluster.status()
        except grpc.RpcError:
            self.cluster.forget_channel(self.cluster.address)
            return None

    def strike(self, chance, party, pause):
        """Kills them at once; each comes back after a pause of its own."""
        c = self.cluster
        shards = chance.sample(c.shards, party.count("shard"))
        for shard in shards:
            shard.kill()
        if "scheduler" in party:
            c.scheduler.kill()
        time.sleep(pause)
        if "scheduler" in party:
            c.start_scheduler()
        for shard in shards:
            c.restart_shard(shard)

    def settle(self):
        """The command again until the run is there; what it says otherwise must help."""
        c = self.cluster
        wait_until("the shards to register",
                   lambda: (now := self.peek()) and sum(s.state == "ready" for s in now.shards) == SHARDS, 60,
                   context=c.tails)
        for _ in range(20):
            now = wait_until("the scheduler", self.peek, 60, context=c.tails)
            if now.state == "loading" and self.command[1] == "create":  # a scheduler that came back opens it
                now = wait_until("the run to be opened",
                                 lambda: next((s for s in [self.peek()] if s and s.state != "loading"), None), 60,
                                 context=c.tails)
            if now.state in ("running", "finished"):
                return
            if now.state == "loading":  # nobody loads it any more
                c.ctl("stop")
            self.again()
        raise Failure(f"the command never worked again: {self.peek()}\n{c.tails()}")

    def again(self):
        done = self.run()
        _, err = done.communicate(timeout=60 * cluster.TIME_SCALE)
        if done.returncode:
            self.check_message(err)

    def finish(self):
        """Trains to the end, with nothing to be done again."""
        def there():
            now = self.peek()
            if not any(w.running() for w in self.cluster.workers):  # they end with a run that is stopped
                self.cluster.start_worker(data="synthetic")
            check(not now or "restore" not in now.reason, f"the command said that all is well: {now and now.reason}")
            return now and now.state == "finished"
        wait_until("the end of the run", there, 90, context=lambda: f"{self.peek()}\n{self.cluster.tails()}")
        for worker in self.cluster.workers:
            worker.kill()
        return end_of(self.cluster)

    def check_message(self, text):
        check(text.strip(), "the command failed without a word")
        words = ("again", "stop it", "does not answer", "start ", "is running")
        check(any(word in text for word in words), f"no word about what to do: {text}")


def end_of(c):
    """State and losses of a run that is finished."""
    step, digest = c.state_digest()
    check(step == STEPS, f"ended at step {step}")
    return digest, [p.loss for p in c.history() if p.step > MIDDLE]


def undisturbed(folder):
    """Its end and how long each command takes; leaves a checkpoint of its middle in folder."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(SHARDS)
        begin = time.monotonic()
        c.ctl(*CREATE)
        took = time.monotonic() - begin
        worker = c.start_worker(data="synthetic")
        c.ctl("checkpoint", "--out", folder / "middle", "--at-step", MIDDLE)
        c.wait_state("finished")
        worker.kill()
        return end_of(c), took


def disturbed(command, chance, took):
    party = chance.choice(PARTIES)
    at, pause = chance.random() * 1.3 * took, chance.choice((0, 0, 0.3)) * chance.random()
    what = f"{command[0]}: {' + '.join(party)} after {at * 1e3:.0f} ms for {pause * 1e3:.0f} ms"
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(SHARDS)
        r = Round(c, command)
        try:
            first = r.run()
            time.sleep(at)
            r.strike(chance, party, pause)
            _, err = first.communicate(timeout=90 * cluster.TIME_SCALE)
            if first.returncode:
                r.check_message(err)
            r.settle()
            return r.finish()
        except BaseException:
            print(f"{what}\n{c.tails()}", file=sys.stderr)
            raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with Cluster() as scratch:
        expected, took = undisturbed(scratch.folder)
        commands = [CREATE, ("restore", "--from", str(scratch.folder / "middle"))]
        for i in range(options.rounds):
            for command in commands:
                try:
                    got = disturbed(command, random.Random(f"{options.seed} {i} {command[0]}"), took)
                    check(got == expected, f"{command[0]}: another end of the run: {got}, undisturbed {expected}")
                except BaseException:
                    print(f"FAILED: --seed {options.seed}, round {i + 1}", file=sys.stderr)
                    raise
    print(f"ok {options.rounds} rounds of create and of restore")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
