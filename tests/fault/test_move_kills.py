#!/usr/bin/python3
"""Source, destination and scheduler die while blocks move, and the run ends with the bits of a run that nothing
happened to, every block on exactly one shard (I1, I2, I3).

    test_move_kills.py [--kills N] [--seed S] [--durable-every N]

A run of a backbone and a class layer is scaled between 1 and 4 shards again and again, with 2 workers. While blocks
are on their way, the source, the destination or the scheduler gets a SIGKILL at a random moment and is started again,
until each of the three has died N times. Then the state is compared with that of an undisturbed run on one shard, and
every other shard is asked for every block: none may have one that is not its own. A failure prints the seed and
keeps the folder.
"""
import argparse
import hashlib
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
from test_kills import Member  # noqa: E402

SHARDS, WORKERS = 4, 2
CLASSES, PER_CLASS = 640, 2
GOALS = (4, 2, 3, 1)
ROLES = ("source", "destination", "scheduler")
MOVE_RATE = "256K"  # bytes per second: a batch is on its way for a second or so
PATIENCE_S = 90  # for a goal
PER_GOAL = 4  # at most so many die on the way to one goal
STEPS = 1000000  # more than the test will see


class Party:
    def __init__(self, c):
        self.cluster, self.data = c, c.folder / "images"
        c.start_scheduler()
        shards = [c.start_shard() for _ in range(SHARDS)]  # for their addresses
        for process in [c.scheduler, *shards]:
            process.kill()
            c.processes.remove(process)
        subprocess.run([cluster.BIN.parent / "tests" / "make_images", self.data, str(CLASSES), str(PER_CLASS), "1"],
                       check=True)
        subprocess.run(["rm", "-rf", c.folder / "scheduler"], check=True)
        self.scheduler = Member(c, "scheduler", [
            cluster.BIN / "shardfc-scheduler", "--listen", c.address, "--state", c.folder / "scheduler",
            "--move-rate", MOVE_RATE])
        self.argv = {s.address: [
            cluster.BIN / "shardfc-shard", "--scheduler", c.address, "--listen", s.address, "--state", s.state,
            "--threads", "1", "--recovery-target", "50ms"] for s in shards}
        self.shards, self.workers = {}, []

    def begin(self, every):
        """One shard has all; the others come then."""
        c = self.cluster
        for address in self.argv:
            self.shards[address] = Member(c, "shard", self.argv[address])
            self.wait_ready(len(self.shards))
            if not self.workers:
                create(c, self.data, every)
                self.workers = [Member(c, "worker", [
                    cluster.BIN / "shardfc-worker", "--scheduler", c.address, "--data", self.data, "--threads", "1"])
                    for _ in range(WORKERS)]

    def wait_ready(self, count):
        wait_until(f"{count} shards to register",
                   lambda: (now := self.peek()) and sum(s.state == "ready" for s in now.shards) >= count, 30,
                   context=self.tails)

    def peek(self):
        """Status, or None while the scheduler is not there."""
        try:
            now = self.cluster.stub.Status(pb.StatusRequest(), timeout=2 * cluster.TIME_SCALE)
        except grpc.RpcError:
            self.cluster.forget_channel(self.cluster.address)
            return None
        check(now.state not in ("failed", "blocked"), f"the run is {now.state}: {now.reason}")
        return now

    def ask(self, goal):
        def asked():
            try:
                return self.cluster.stub.Scale(pb.ScaleRequest(action=pb.ScaleRequest.SHARDS, shards=goal),
                                               timeout=10 * cluster.TIME_SCALE)
            except grpc.RpcError as e:
                if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    self.cluster.forget_channel(self.cluster.address)
                    return None
                if "does not answer: blocks move when it is back" in (e.details() or ""):
                    return None  # killed with the last flip of the goal before; it comes back
                raise
        wait_until(f"the scheduler to take the goal of {goal} shards", asked, 30, context=self.tails)

    def reached(self, goal):
        now = self.peek()
        return now if now and not now.goal and sum(s.member for s in now.shards) == goal else None

    def wait_goal(self, goal):
        return wait_until(f"{goal} shards", lambda: self.reached(goal), PATIENCE_S,
                          context=lambda: f"{self.peek()}\n{self.tails()}")

    def victim(self, now, role):
        if role == "scheduler":
            return self.scheduler
        move = now.moves[0]
        wanted = move.to if role == "destination" else getattr(move, "from")
        return next((self.shards[s.address] for s in now.shards if s.id == wanted), None)

    def tails(self):
        return "\n".join(m.tail() for m in [self.scheduler, *self.shards.values(), *self.workers])


def create(c, data, every):
    c.ctl("create", "--run", "moves", "--data", data, "--backbone", "tiny", "--dim", "32", "--sample-rate", "0.3",
          "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule", "poly:10", "--global-batch", "32",
          "--micro-batch", "8", "--steps", STEPS, "--augment", "0.12,0.5,0.08", "--seed", "7", "--block-size", "16",
          "--momentum-mode", "dense", "--durable-every", every)


def moving(now):
    return now and now.moves and now.moves[0].state in ("copying", "following", "taking")


def strike_once(party, chance, left, goal):
    """Waits for a move, and kills one of those who still have to die. False: the goal was reached before."""
    def seen():
        return "moves" if moving(party.peek()) else "reached" if party.reached(goal) else None
    if wait_until(f"a move to {goal} shards", seen, PATIENCE_S, 0.01, lambda: f"{party.peek()}\n{party.tails()}") == "reached":
        return False
    time.sleep(chance.random() * 0.6)
    now = party.peek()
    if not moving(now):
        return True
    role = chance.choice([r for r in ROLES if left[r] > 0])
    victim = party.victim(now, role)
    if not victim:
        return True
    victim.kill()
    time.sleep(chance.choice((0, 0, 0.3, 1)) * chance.random())
    victim.start()
    left[role] -= 1
    print(f"step {now.step}, to {goal} shards, {now.moves[0].state}: {role} dies; left {left}", flush=True)
    return True


def digest_at(c, step):
    held = c.hold(step, 600)
    try:
        digest = hashlib.sha256()
        for name, data in c.read_state(held):
            if name != "history":
                digest.update(name.encode() + data)
        return held, digest.hexdigest()
    finally:
        c.release(held)


def check_owners(c, held):
    """No member has a block of another."""
    for kind, owners in ((pb.CLASS_BLOCK, held.map.class_owner), (pb.DENSE_BLOCK, held.map.dense_owner)):
        for block, owner in enumerate(owners):
            for index, shard in enumerate(held.map.shards):
                if index == owner or not shard.address:
                    continue
                try:
                    c.shard_stub(shard.address).ReadBlock(pb.ReadBlockRequest(
                        run_id=held.run_id, step=held.step, kind=kind, block=block, part=pb.VALUES, offset=0,
                        count=1), timeout=10 * cluster.TIME_SCALE)
                except grpc.RpcError as e:
                    check(e.code() == grpc.StatusCode.NOT_FOUND, f"block {block} of {shard.address}: {e}")
                    continue
                raise Failure(f"block {block} of shard {owner} is on {shard.address} as well")


def disturbed(kills, seed, every):
    chance = random.Random(seed)
    left = dict.fromkeys(ROLES, kills)
    with Cluster() as c:
        party = Party(c)
        try:
            party.begin(every)
            c.wait_step(5)
            round_ = 0
            while any(left.values()) or round_ < len(GOALS):
                goal = GOALS[round_ % len(GOALS)]
                round_ += 1
                party.ask(goal)
                until = sum(left.values()) - PER_GOAL
                while sum(left.values()) > max(until, 0) and strike_once(party, chance, left, goal):
                    pass
                party.wait_goal(goal)
            party.ask(3)
            party.wait_goal(3)
            c.scheduler = party.scheduler.process
            held = c.hold()
            check_owners(c, held)
            c.release(held)
            held, digest = digest_at(c, 0)
            losses = [p.loss for p in c.history()][:held.step]
            check(len(losses) == held.step, f"{len(losses)} records of {held.step} steps")
            return held.step, digest, losses, round_
        except BaseException:
            os.environ["SFC_KEEP"] = "1"
            print(f"{party.tails()}\nfolders: {c.folder}", file=sys.stderr)
            raise


def undisturbed(step):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        data = c.folder / "images"
        subprocess.run([cluster.BIN.parent / "tests" / "make_images", data, str(CLASSES), str(PER_CLASS), "1"],
                       check=True)
        create(c, data, 1)
        c.start_workers(1, data=data)
        held, digest = digest_at(c, step)
        check(held.step == step, f"held at step {held.step} instead of {step}")
        return digest, [p.loss for p in c.history()][:step]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3, help="of each: source, destination, scheduler")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFC_SEED", "1")))
    parser.add_argument("--durable-every", type=int, default=1, dest="every")
    options = parser.parse_args()
    try:
        begin = time.monotonic()
        step, digest, losses, rounds = disturbed(options.kills, options.seed, options.every)
        middle = time.monotonic()
        expected, lines = undisturbed(step)
        check(losses == lines, "the losses differ")
        check(digest == expected, f"the state of step {step} is another one than that of an undisturbed run")
    except BaseException:
        print(f"FAILED: --kills {options.kills} --seed {options.seed} --durable-every {options.every}", file=sys.stderr)
        raise
    print(f"ok {3 * options.kills} kills during moves, {rounds} times scaled, {step} steps: {middle - begin:.0f} s, "
          f"undisturbed {time.monotonic() - middle:.0f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
