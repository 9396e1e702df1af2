#!/usr/bin/env python3
"""Whole trainings whose class layer and backbone are on a device, with real daemons, while shards come and go.

    test_device_run.py [--card] [images|synthetic|large ...]

images: a backbone on pictures, 2 shards on one device, one worker on the same. A shard joins and gets blocks, another
one is killed and comes back, a checkpoint is made, a shard is drained: state and losses must be those of one shard that
nothing happens to. synthetic: the same without a backbone. large: a million classes in bf16 go to a second shard
while the run trains; prints rates, gaps between commits and memory (needs --card; is not among the defaults).
By default sizes are for the emulated device of the tests (SFC_PLUGIN_DIR is the folder of its plugins); --card: for a
real one. Uses nothing beside Python, grpc and protobuf, so it travels (gpu-kit/run cluster)."""
import argparse
import json
import statistics
import subprocess
import time

import cluster
from cluster import TIME_SCALE, Cluster, Failure, pb, wait_until

SEED = 20261126
FOREVER = 1000000  # steps; a run is held where it is compared
EMULATED = {
    "images": dict(classes=60, per_class=2, between=1, worker=("--device", "cuda", "--precision", "bf16"),
                   run=("--backbone", "tiny", "--dim", 16, "--sample-rate", 0.5, "--global-batch", 4, "--micro-batch", 2,
                        "--lr", 0.05, "--schedule", "poly:1", "--block-size", 8)),
    "synthetic": dict(between=4, worker=(),
                      run=("--classes", 1200, "--samples", 2000, "--dim", 24, "--sample-rate", 0.1, "--global-batch", 32,
                           "--micro-batch", 8, "--momentum-mode", "dense", "--schedule", "poly:5", "--block-size", 64)),
}
CARD = {
    "images": dict(classes=2000, per_class=6, between=20, worker=("--device", "cuda:0", "--precision", "bf16"),
                   run=("--backbone", "tiny", "--dim", 512, "--sample-rate", 0.2, "--margin", "cosface:0.2", "--scale", 32,
                        "--global-batch", 256, "--micro-batch", 64, "--lr", 0.1, "--schedule", "poly:50",
                        "--block-size", 128, "--dtype", "bf16", "--augment", "0.12,0.5,0.08")),
    "synthetic": dict(between=50, worker=(),
                      run=("--classes", 100000, "--samples", 100000, "--dim", 256, "--sample-rate", 0.1, "--global-batch",
                           256, "--micro-batch", 64, "--momentum-mode", "dense", "--schedule", "poly:50")),
    "large": dict(run=("--classes", 1 << 20, "--samples", 1 << 20, "--dim", 512, "--sample-rate", 0.1, "--global-batch",
                       1024, "--micro-batch", 256, "--dtype", "bf16", "--block-size", 8192, "--schedule", "poly:10")),
}
DEVICE = ("--backend", "cuda:0")


def check(condition, message):
    if not condition:
        raise Failure(message)


BEGAN = time.monotonic()


def say(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


class Training:
    """A run on `shards` shards of the device; its worker is started by go()."""

    def __init__(self, c, size, shards, name, *scheduler):
        self.c, self.size, self.name = c, size, name
        c.start_scheduler(*scheduler)
        c.start_shards(shards, *DEVICE)
        self.data, data = "synthetic", ()
        if "per_class" in size:
            self.data = c.folder / "images"
            subprocess.run([cluster.BIN.parent / "tests" / "make_images", self.data, str(size["classes"]),
                            str(size["per_class"]), str(SEED)], check=True)
            data = ("--data", self.data)
        c.ctl("create", "--run", name, "--seed", SEED, "--steps", FOREVER, *data, *size["run"])

    def go(self):
        self.c.start_worker(*self.size["worker"], data=self.data)

    def on(self, steps=None, after="the beginning"):
        """Waits for some more steps."""
        before = self.c.status().step
        self.c.wait_step(before + (steps or self.size["between"]), 240)
        say(f"{self.name}: step {before} after {after}, step {self.c.status().step} now")

    def result(self, held):
        """Step, state and losses of the run that is held; it goes on."""
        step, digest = self.c.state_digest()
        check(step == held.step, f"held at {held.step}, digest of {step}")
        self.c.release(held)
        return step, digest, [p.loss for p in self.c.history()][:step]


def undisturbed(size, name, step):
    with Cluster() as c:
        training = Training(c, size, 1, name)
        ask = lambda number: c.stub.Hold(pb.HoldRequest(at_step=step, hold_id=number), timeout=30 * TIME_SCALE)
        number = ask(0).hold_id  # before there is a worker, so that the step can't have passed
        training.go()
        return training.result(wait_until(f"step {step}", lambda: (lambda h: h if h.held else None)(ask(number)), 240,
                                          context=c.tails))


def members(c):
    """Blocks of each member, by its address."""
    return {s["address"]: s["blocks"] for s in c.ctl_json("status")["shards"] if s["member"]}


def disturbed(size, name):
    with Cluster() as c:
        training = Training(c, size, 2, name)
        training.go()
        training.on()
        first = c.shards[0]
        c.start_shards(1, *DEVICE)
        c.ctl("scale", "--shards", 3, seconds=240)
        shares = members(c)
        check(len(shares) == 3 and shares[c.shards[-1].address] > 0, f"blocks after a shard has joined: {shares}")
        training.on(after="moves to a third shard")
        first.kill()
        first = c.restart_shard(first)
        training.on(after="kill -9 of a shard")
        made = json.loads(c.ctl("checkpoint", "--out", c.folder / "made", "--json", seconds=240).stdout)
        made.pop("dir")
        told = json.loads(subprocess.run([cluster.BIN / "shardfc", "verify", c.folder / "made", "--json"], check=True,
                                         capture_output=True, text=True).stdout)
        check(told == made, f"verify: {told}, checkpoint: {made}")
        c.ctl("drain", first.address, seconds=240)
        check(first.address not in members(c) and len(members(c)) == 2, f"members after a drain: {members(c)}")
        training.on(after="a checkpoint and a drain")
        held = c.hold()
        for shard in c.shards:
            check("device memory plan" in shard.stderr(), f"no plan of device memory\n{shard.tail()}")
        return training.result(held)


def compare(name, size):
    step, digest, losses = disturbed(size, name)
    check(len(losses) == step, f"{len(losses)} losses of {step} steps")
    same = undisturbed(size, name, step)
    check(same[2] == losses, f"other losses than those of one shard, in {step} steps")
    check(same == (step, digest, losses), f"another state than that of one shard: {digest}, {same[1]}")
    say(f"{name}: {step} steps, state {digest[:16]} as on one shard; loss {statistics.mean(losses[:20]):.4f} "
        f"(first 20 steps) -> {statistics.mean(losses[-20:]):.4f} (last 20)")


def device_memory():
    """MiB of the device in use; by all, for programs in containers see themselves alone."""
    return int(subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], check=True,
                              capture_output=True, text=True).stdout.split()[0])


def gaps(c, after, until):
    """Milliseconds between commits that follow each other, of steps after .. until."""
    times = [p.time_us for p in c.history() if after <= p.step <= until]
    return [1e-3 * (b - a) for a, b in zip(times, times[1:])]


def move_million(c, training):
    """Half of the blocks go to a second shard, first while the run stands still, then back while it trains."""
    for action, begin, end in (("scale", lambda: c.ctl("pause"), lambda: c.ctl("resume")),
                               ("drain", lambda: training.on(30), lambda: training.on(30))):
        argv = ("scale", "--shards", 2) if action == "scale" else ("drain", c.shards[1].address)
        begin()
        before, step = device_memory(), c.status().step
        plan = c.ctl_json(*argv, "--dry-run")
        began = time.monotonic()
        c.ctl(*argv, seconds=240)
        seconds, until = time.monotonic() - began, c.status().step
        say(f"{action}: {len(plan['moves'])} blocks, {plan['bytes'] / 1e6:.0f} MB in {seconds:.2f} s, "
            f"{plan['bytes'] / 1e6 / seconds:.0f} MB/s; device memory {before} -> {device_memory()} MiB")
        end()
        if until > step:
            quiet, moving = gaps(c, max(1, step - 30), step), gaps(c, step, until)
            say(f"step: median {statistics.median(quiet):.1f} ms before, {statistics.median(moving):.1f} ms during moves, "
                f"longest {max(moving):.1f} ms")


def large(name, size):
    with Cluster() as c:
        training = Training(c, size, 1, name, "--move-rate", "0")
        c.start_worker(threads=4)
        training.on(30)
        c.start_shards(1, *DEVICE)
        move_million(c, training)
        for shard in c.shards:
            for line in shard.stderr().splitlines():
                if "memory plan" in line:
                    say(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", action="store_true", help="sizes for a real device")
    parser.add_argument("what", nargs="*", default=[])
    args = parser.parse_args()
    sizes = CARD if args.card else EMULATED
    for name in args.what or ["images", "synthetic"]:
        begin = time.monotonic()
        (large if name == "large" else compare)(name, sizes[name])
        say(f"ok {name} {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
