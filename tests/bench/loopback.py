#!/usr/bin/python3
"""What the network costs: steps through real daemons on loopback beside the same work in one process.

    loopback.py head [--classes N] [--sample-rate R] [--batch N] [--micro-batch N] [--lanes N] [--dim N]
                     [--shards N] [--threads N] [--steps N] [--rounds N] [--quiet-wait SECONDS]
    loopback.py tiny --data DIR [--steps N] [--rounds N] [--quiet-wait SECONDS]

head: the class layer's step. A scheduler, shards of --threads threads each and one worker (synthetic features,
no backbone) train; the time from commit to commit is read from the commit records. `shardfc bench head` does
the same step with as many threads in one process. Rounds alternate between the two (the cluster is paused
while the other one runs), so that both see the same machine.
tiny: images per second of the quick start's training: 2 shards, 2 workers, `tiny`, r = 0.1; DIR is a data set
of `shardfc data glyphs`.

A table goes to stderr, one JSON object to stdout. `others` is the share of all processors that programs other
than the measured ones used meanwhile: where it is more than a few percent, the times mean little. --quiet-wait
waits up to so long for a quiet machine before each measurement.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster, pb, wait_until  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
PROCESSORS = os.cpu_count()
WARM_UP = 3  # steps after a start or a pause that don't count
QUIET = 0.05


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- who else uses the machine

def busy_seconds():
    """Of all processors since the start; waiting for disks and stolen time don't count."""
    fields = open("/proc/stat").readline().split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(f) for f in fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def used_seconds(pids):
    """Of these processes, of this one and of its children that have ended."""
    total = 0
    for pid in pids:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


class Others:
    """with Others(pids) as o: ...; o.share is what others used of the machine."""

    def __init__(self, pids=()):
        self.pids = list(pids)

    def __enter__(self):
        self.began, self.busy, self.used = time.monotonic(), busy_seconds(), used_seconds(self.pids)
        return self

    def __exit__(self, *_):
        took = (time.monotonic() - self.began) * PROCESSORS
        other = busy_seconds() - self.busy - (used_seconds(self.pids) - self.used)
        self.share = max(0.0, other / took)


def wait_quiet(seconds, pids):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with Others(pids) as o:
            time.sleep(1)
        if o.share < QUIET:
            return


# ---- the class layer's step

def block_size(classes):
    """The default of a run (sfc_default_block_size)."""
    size = 1024
    while size < 8192 and size * 2 <= classes // 64:
        size *= 2
    return size


def in_process(a):
    argv = [BIN / "shardfc", "bench", "head", "--classes", a.classes, "--sample-rate", a.sample_rate,
            "--batch", a.batch, "--micro-batch", a.micro_batch, "--dim", a.dim, "--steps", a.steps,
            "--threads", a.threads * a.shards, "--block-size", block_size(a.classes), "--json"]
    env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    with Others() as others:
        done = subprocess.run([str(x) for x in argv], check=True, stdout=subprocess.PIPE, env=env)
    return json.loads(done.stdout), others.share


def control(c, action):
    c.stub.Control(pb.ControlRequest(action=action), timeout=30)


def pause(c):
    """Returns when nothing moves any more."""
    control(c, pb.ControlRequest.PAUSE)
    c.wait_state("paused", 60)
    step = -1

    def still():
        nonlocal step
        time.sleep(0.5)
        before, step = step, c.status().step
        return before == step
    wait_until("the run to stand still", still, 60)
    return step


def commit_times(c, after):
    """{step: seconds} of the commits after a step."""
    times = {}
    while True:
        points = c.stub.History(pb.HistoryRequest(after_step=after, limit=1000), timeout=30).points
        if not points:
            return times
        times.update((p.step, p.time_us * 1e-6) for p in points)
        after = points[-1].step


def cluster_steps(c, a):
    """Lets the cluster do steps; returns the median and the best in ms, and the share of others."""
    before = c.status().step
    pids = [p.pid for p in c.processes]
    control(c, pb.ControlRequest.RESUME)
    with Others(pids) as others:
        c.wait_step(before + WARM_UP + a.steps + 1, 600)
    pause(c)
    times = commit_times(c, before)
    steps = [times[t + 1] - times[t] for t in times if t > before + WARM_UP and t + 1 in times]
    steps = [1e3 * s for s in steps[:a.steps]]
    return statistics.median(steps), min(steps), others.share


def head(a):
    rounds = []
    with Cluster() as c:
        c.start_scheduler()
        for _ in range(a.shards):
            c.start_shard("--threads", str(a.threads))
        wait_until("the shards", lambda: len(c.status().shards) == a.shards, 30)
        c.create_run(classes=a.classes, samples=max(a.classes, a.batch), dim=a.dim, steps=1000000,
                     global_batch=a.batch, micro_batch=a.micro_batch, scale=64.0,
                     sample_ppm=round(a.sample_rate * 1e6), block_size=block_size(a.classes),
                     warmup_steps=0, lr_end=1.0)
        c.start_worker(threads=a.lanes)
        c.wait_step(WARM_UP, 600)
        pause(c)
        say(f"{a.classes} classes, r {a.sample_rate}, batch {a.batch} of {a.micro_batch}, dim {a.dim}; "
            f"{a.shards} shards of {a.threads} threads and a worker of {a.lanes} lanes; medians of {a.steps} steps")
        say(f"{'round':>5} {'loopback ms':>12} {'(best)':>8} {'others':>7} {'in process ms':>14} {'(best)':>8} "
            f"{'others':>7} {'ratio':>6}")
        for i in range(a.rounds):
            wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
            loop, loop_best, loop_others = cluster_steps(c, a)
            wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
            own, own_others = in_process(a)
            rounds.append({"loopback_ms": round(loop, 3), "loopback_best_ms": round(loop_best, 3),
                           "loopback_others": round(loop_others, 3), "in_process_ms": own["step_ms"],
                           "in_process_best_ms": own["best_ms"], "in_process_others": round(own_others, 3),
                           "in_process_phases_ms": own["phases_ms"], "ratio": round(loop / own["step_ms"], 3)})
            say(f"{i + 1:5} {loop:12.1f} {loop_best:8.1f} {loop_others:7.1%} {own['step_ms']:14.1f} "
                f"{own['best_ms']:8.1f} {own_others:7.1%} {loop / own['step_ms']:6.2f}")
    ratio = statistics.median(r["ratio"] for r in rounds)
    say(f"median of the ratios: {ratio:.2f}")
    return {"bench": "loopback head", "classes": a.classes, "sample_rate": a.sample_rate, "batch": a.batch,
            "micro_batch": a.micro_batch, "dim": a.dim, "shards": a.shards, "threads": a.threads,
            "lanes": a.lanes, "steps": a.steps,
            "loopback_ms": statistics.median(r["loopback_ms"] for r in rounds),
            "in_process_ms": statistics.median(r["in_process_ms"] for r in rounds),
            "ratio": ratio, "rounds": rounds}


# ---- the quick start's training

def tiny(a):
    rounds = []
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.start_workers(2, data=a.data)
        pids = [p.pid for p in c.processes]
        say(f"tiny, batch 128 of 32, {a.steps} steps of {a.data}; 2 shards, 2 workers, 1 thread each")
        say(f"{'round':>5} {'images/s':>9} {'others':>7}")
        for i in range(a.rounds):
            wait_quiet(a.quiet_wait, pids)
            c.ctl("create", "--run", "tiny", "--data", a.data, "--backbone", "tiny", "--dim", "128",
                  "--sample-rate", "0.1", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.1",
                  "--schedule", f"poly:{min(100, a.steps // 10)}:1.5:0.02", "--weight-decay", "5e-4",
                  "--clip", "5", "--global-batch", "128", "--micro-batch", "32",
                  "--augment", "0.12,0.5,0.08", "--steps", a.steps, "--seed", "1")
            with Others(pids) as others:
                done = c.wait_state("finished", 1200)
            rounds.append({"images_per_s": round(done.images_per_s, 1), "others": round(others.share, 3)})
            say(f"{i + 1:5} {done.images_per_s:9.0f} {others.share:7.1%}")
    return {"bench": "loopback tiny", "steps": a.steps,
            "images_per_s": statistics.median(r["images_per_s"] for r in rounds), "rounds": rounds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    h = modes.add_parser("head")
    h.add_argument("--classes", type=int, default=1000000)
    h.add_argument("--sample-rate", type=float, default=0.1)
    h.add_argument("--batch", type=int, default=128)
    h.add_argument("--micro-batch", type=int, help="default: the batch")
    h.add_argument("--lanes", type=int, help="default: one for each micro-batch")
    h.add_argument("--dim", type=int, default=512)
    h.add_argument("--shards", type=int, default=2)
    h.add_argument("--threads", type=int, default=1, help="of each shard")
    h.add_argument("--steps", type=int, default=15)
    h.add_argument("--rounds", type=int, default=3)
    t = modes.add_parser("tiny")
    t.add_argument("--data", type=pathlib.Path, required=True)
    t.add_argument("--steps", type=int, default=400)
    t.add_argument("--rounds", type=int, default=1)
    for mode in (h, t):
        mode.add_argument("--quiet-wait", type=float, default=0, metavar="SECONDS")
    a = parser.parse_args()
    if a.mode == "head":
        a.micro_batch = a.micro_batch or a.batch
        a.lanes = a.lanes or a.batch // a.micro_batch
    print(json.dumps(head(a) if a.mode == "head" else tiny(a)))


if __name__ == "__main__":
    main()
