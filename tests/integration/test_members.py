#!/usr/bin/python3
"""Shards that are not what the map of the run says they are.

    test_members.py [without|pinned|staged ...]     default: all
"""
import contextlib
import hashlib
import json
import shutil
import sys
import threading

import grpc

from cluster import BIN, TIME_SCALE, Cluster, pb, wait_until
from inputs import check, expect
from test_recovery import OFTEN
from test_scale import blocks, check_bits, command, create, digest, events, held_alone


def open_other(c, shard):
    """Another scheduler's OpenRun of a newer run; what the shard answers."""
    held = c.hold()
    c.release(held)
    request = pb.OpenRunRequest(run_id=held.run_id + 1, incarnation=c.status().incarnation, config=held.config,
                                map=held.map, self=c.shards.index(shard), nonce=1)
    try:
        c.shard_stub(shard.address).OpenRun(request, timeout=60 * TIME_SCALE)
        return ""
    except grpc.RpcError as e:
        return e.details()


def test_without():
    """A member loses the run and is not restarted: it opens it again, with the same bits, also while nothing is asked
    of it."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        create(c)
        c.start_workers(1)
        c.wait_step(5)
        c.ctl("pause")
        c.wait_state("paused")
        said = open_other(c, c.shards[1])
        check("is closing what it had open" in said, f"OpenRun of another run: {said}")
        noticed = lambda: any("shard 2 has no run open" in e["what"] for e in events(c))
        wait_until("that it has no run", noticed, 60, context=c.tails)
        c.ctl("resume")
        c.wait_step(c.status().step + 5)
        check_bits(c)


def process(c, id):
    """The process of a shard."""
    address = next(s.address for s in c.status().shards if s.id == id)
    return next(s for s in c.shards if s.address == address)


class Pins:
    """The newest step, which is pinned on the shards of now, and kept so by a thread, as a checkpoint does it."""

    def __init__(self, c, number):
        self.c = c
        self.over = threading.Event()
        wait_until("a step that every shard can make", lambda: self.take(number), 60, context=c.tails)
        self.thread = threading.Thread(target=self.renew)
        self.thread.start()

    def take(self, number):
        """False: the step had passed before every shard was asked to keep it."""
        self.watch = self.c.stub.Hold(pb.HoldRequest(watch=True), timeout=30 * TIME_SCALE)
        self.watch.held = True
        self.stubs = [self.c.shard_stub(s.address) for s in self.watch.map.shards if s.address]
        self.request = pb.PinStepRequest(run_id=self.watch.run_id, pin=number, step=self.watch.step)
        pinned = self.pin()
        if not pinned:
            self.unpin()
        return pinned

    def pin(self):
        return all(wait_until("the checkpoint before to be put away", lambda: self.pin_on(stub), 30,
                              context=self.c.tails).pinned for stub in self.stubs)

    def unpin(self):
        for stub in self.stubs:
            stub.UnpinStep(self.request, timeout=30 * TIME_SCALE)

    def pin_on(self, stub):
        """The shard's answer, or None while it puts away the checkpoint before this one."""
        try:
            return stub.PinStep(self.request, timeout=30 * TIME_SCALE)
        except grpc.RpcError as e:
            check(e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"PinStep: {e}")
            return None

    def renew(self):
        while not self.over.wait(2):
            check(self.pin(), f"step {self.watch.step} is not pinned any more")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.unpin()

    def digest(self):
        state = hashlib.sha256()
        for name, data in self.c.read_state(self.watch, self.request.pin):
            if name != "history":
                state.update(name.encode() + data)
        return self.watch.step, state.hexdigest()


def truth(step):
    """What a run on one shard that nothing happens to has after a step: digests of its blocks, and of a checkpoint."""
    with Cluster() as c:
        with c.keeping(held_alone(c, step)) as held:
            made = json.loads(c.ctl("checkpoint", "--out", c.folder / "ck", "--json").stdout)
            check(made["step"] == step, f"{made}")
            return digest(c, held), made["digest"]


@contextlib.contextmanager
def paused(c):
    """While steps are repeated elsewhere the run makes no more that would have to be repeated."""
    c.ctl("pause")
    yield
    c.ctl("resume")


def test_pinned():
    """Blocks move away and back, and shards join and leave, between the moment at which a step is pinned and that at
    which its blocks are read; and a checkpoint waits for its step meanwhile."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, *OFTEN)
        create(c)
        c.start_workers(1)
        c.wait_step(20)
        c.start_shards(1, *OFTEN)
        later = c.status().step + 200
        checkpoint = command(c, "checkpoint", "--at-step", later, "--out", c.folder / "ck", "--json")
        expect(c.ctl("scale", "--shards", "3", check=False, seconds=240), 0)
        expect(c.ctl("scale", "--shards", "2", check=False, seconds=240), 0)
        made = json.loads(checkpoint(0).stdout)
        with Pins(c, 7) as pins:
            expect(c.ctl("scale", "--shards", "3", check=False, seconds=240), 0)
            expect(c.ctl("scale", "--shards", "2", check=False, seconds=240), 0)
            check(len(blocks(c)) == 2, f"blocks: {blocks(c)}")
            got = pins.digest()
            with paused(c):
                check(got == truth(pins.watch.step)[0], "other bits after blocks went away and came back")
                check((made["step"], made["digest"]) == (later, truth(later)[1]), f"a checkpoint of a step to come: {made}")
        before = set(blocks(c))
        with Pins(c, 8) as pins:  # which shards leave and stay, their loads say
            closed = {id: process(c, id).stderr().count("run 1: closed") for id in before}
            expect(c.ctl("scale", "--shards", "1", check=False, seconds=240), 0)
            got = pins.digest()
            with paused(c):
                check(got == truth(pins.watch.step)[0], "other bits from a shard that has left")
            stays = next(iter(blocks(c)))
            goes = next(iter(before - {stays}))
            now = lambda: process(c, goes).stderr().count("run 1: closed")
            check(now() == closed[goes], "the shard that is read from has closed the run")
        wait_until("the shard to leave", lambda: now() > closed[goes], 60, context=c.tails)
        seeds = lambda: [f.name for f in process(c, stays).state.glob("run-1/class-*.sfs")]
        expect(c.ctl("scale", "--shards", "2", check=False, seconds=240), 0)
        mine = {m["id"]: m["blocks"] for m in c.ctl_json("status")["shards"] if m["member"]}
        left = lambda: len({name.split("-")[1] for name in seeds()}) == mine[stays]
        wait_until("snapshots of blocks that left to go", left, 60, context=lambda: f"{mine} {sorted(seeds())}")
        check_bits(c)


def test_staged():
    """Memory of a shard counts what is on its way there, until it is given up."""
    with Cluster() as c:
        c.start_scheduler("--move-rate", "1K")
        c.start_shards(1)
        create(c)
        c.start_workers(1)
        c.start_shards(1)
        c.ctl("scale", "--shards", "2", "--no-wait")
        used = lambda: c.ctl_json("status")["shards"][1]["memory_bytes"]
        copies = lambda: [m for m in c.ctl_json("status")["moves"] if m["state"] == "copying" and m["copied"] > 0]
        wait_until("blocks to be on their way", copies, 60, context=lambda: str(c.ctl_json("status")))
        staged = used()
        c.ctl("scale", "--cancel")
        wait_until("the memory to be free", lambda: used() < staged, 60, context=lambda: f"{staged} {used()}")


def lose_state(c):
    """The scheduler's, which begins anew; shards go on with what they have."""
    c.scheduler.kill()
    shutil.rmtree(c.folder / "scheduler")
    c.start_scheduler()
    wait_until("shards", lambda: sum(s.state == "ready" for s in c.status().shards) == 2, 30, context=c.tails)


def files(c):
    """Names of what shards have of run 1."""
    return [sorted(p.name for p in (s.state / "run-1").iterdir()) for s in c.shards]


def test_foreign():
    """A scheduler whose state is lost gives the same number again: shards that still have the old run, at the step at
    which the new one begins or elsewhere, refuse it and keep what they have; the next number, and an empty folder, are
    another run."""
    for step in (0, 8):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(2)
            create(c, "--seed", 5)
            if step:
                c.start_workers(1)
                c.wait_step(step)
                c.workers.pop().terminate()
            lose_state(c)
            before = files(c)
            expect(c.ctl("create", "--run", "new", "--classes", 8192, "--samples", 4096, "--dim", 16, "--block-size", 256,
                         "--global-batch", 64, "--micro-batch", 16, "--steps", 100, check=False),
                   1, "belongs to another run 1", "--state")
            check(files(c) == before, f"{files(c)} were {before}")
            if step:  # now as those that are started again without their files
                for shard in list(c.shards):
                    shard.terminate()
                    shutil.rmtree(shard.state / "run-1")
                    c.restart_shard(shard)
            create(c)
            c.start_workers(1)
            c.wait_step(5)
            check_bits(c)


def test_stray():
    """A shard that has a run of the same number, and no place in the present one, is not told to end it."""
    with Cluster() as c, Cluster() as other:
        for cluster in (c, other):
            cluster.start_scheduler()
        c.start_shards(1)
        stray = other.start("shard", [BIN / "shardfc-shard", "--scheduler", f"{other.address},{c.address}", "--listen",
                                      "127.0.0.1:0", "--state", other.folder / "stray", "--threads", "1"])
        wait_until("the stray", lambda: len(other.status().shards) == 1, 30, context=other.tails)
        for cluster in (c, other):
            create(cluster)
            cluster.start_workers(1)
            cluster.wait_step(5)
        other.scheduler.kill()  # so it looks elsewhere
        said = lambda: any("has another run 1 open" in e["what"] for e in events(c))
        wait_until("the stray to be noticed", said, 60, context=c.tails)
        c.wait_step(c.status().step + 5)
        check(any((other.folder / "stray" / "run-1").iterdir()) and "run 1: closed" not in stray.stderr(), stray.stderr())
        check_bits(c)


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok", flush=True)


if __name__ == "__main__":
    main()
