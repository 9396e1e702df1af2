#!/usr/bin/python3
"""Ten million identities on one machine, end to end: a scheduler, shards and a worker on loopback.

    ten_million.py [--classes N] [--steps N] [--shards N] [--threads N] [--micro-batch N] [--dim N]
                   [--sample-rate R] [--dtype D] [--gemm D] [--momentum-mode M] [--hot N] [--others N]
                   [--plan-error SHARE] [--max-gb GB] [--max-step SECONDS] [--json FILE]

The worker's features are synthetic: all samples are of --hot classes spread evenly over the ids, each with a
hidden direction (worker/synthetic.h). Before and after training, `shardfc rank` ranks the hidden directions'
own class centres among --others more.

Asserted: the loss falls, the ranks rise, the memory that all processes use at most (sum of their proportional
set sizes, polled; pages of files as they were at the plan, because whoever runs the same programs beside these
takes a part of them, for a while) is within --plan-error of what they planned before the first step (or within
PLAN_FLOOR bytes: what libraries take of small runs is not known that well), and, where they are given, --max-gb
(10^9 bytes) and --max-step (median of the steps after the first three). Exit status 1 when one of them does not
hold. A summary goes to stdout, one JSON object to FILE.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import Cluster, wait_until  # noqa: E402
from machine import report_path  # noqa: E402

PLAN_FLOOR = 8 << 20
MAX_LANES = 256  # of a worker
WARM_UP = 3  # steps that don't count: pages and connections are new


def say(*words):
    print("ten-million:", *words, flush=True)


def proportional_bytes(pid):
    """Proportional set size, without files and of files: what is shared by n processes counts for a n-th in each."""
    found = dict(re.findall(r"^(Pss|Pss_File): +([0-9]+) kB$", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M))
    files = int(found["Pss_File"]) * 1024
    return int(found["Pss"]) * 1024 - files, files


def available_bytes():
    for line in open("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable in /proc/meminfo")


class Meter(threading.Thread):
    """Polls the memory of some processes, with what each has of files; `peak` is the largest sum, `at_peak` its parts
    by name."""

    def __init__(self, processes, files):
        super().__init__(daemon=True)
        self.processes, self.files = processes, files
        self.done, self.peak, self.at_peak = threading.Event(), 0, {}

    def run(self):
        while not self.done.wait(0.5):
            parts = {p.name: proportional_bytes(p.pid)[0] + self.files[p.name] for p in self.processes if p.running()}
            if sum(parts.values()) > self.peak:
                self.peak, self.at_peak = sum(parts.values()), parts

    def stop(self):
        self.done.set()
        self.join()


def planned_bytes(process):
    """What the process said before the first step, and what it has of files then."""
    def told():
        return re.findall(r"memory plan: ([0-9.]+) MiB", process.stderr())
    plan = float(wait_until(f"the memory plan of {process.name}", told, 60, context=process.tail)[-1]) * (1 << 20)
    return plan, proportional_bytes(process.pid)[1]


def create(c, a):
    began = time.monotonic()
    c.ctl("create", "--run", "ten-million", "--classes", a.classes, "--hot-classes", a.hot,
          "--samples", 10 * max(a.hot, a.batch), "--dim", a.dim, "--sample-rate", a.sample_rate,
          "--global-batch", a.batch, "--micro-batch", a.micro_batch, "--steps", a.steps,
          "--dtype", a.dtype, "--gemm", a.gemm, "--momentum-mode", a.momentum_mode, "--lr", "0.1",
          "--schedule", "poly:0:1:1", "--seed", "1", seconds=600)
    say(f"{a.classes} identities of {a.dim} numbers are ready after {time.monotonic() - began:.1f} s")


def rank(c, a):
    r = c.ctl_json("rank", "--others", a.others, seconds=300)
    say(f"step {r['step']}: {r['queries']} hidden directions ranked among {r['candidates']} class centres: "
        f"mean rank {r['rank_mean']:.1f}, first in {100 * r['rank_first']:.1f} %, mean cosine {r['cosine_mean']:.4f}")
    return r


def train(c, a):
    """Lets a worker do all steps; returns the history."""
    shown = 0.0

    def finished():
        nonlocal shown
        s = c.status()
        if s.state in ("failed", "blocked"):
            raise RuntimeError(f"the run is {s.state}: {s.reason}")
        if time.monotonic() - shown > 5 and s.step:
            shown = time.monotonic()
            say(f"step {s.step}/{s.steps}, loss {s.loss:.4f}, {s.images_per_s:.0f} samples/s")
        return s.state == "finished"
    wait_until("the steps", finished, 60 + 20 * a.steps, pause=0.2, context=c.tails)
    return c.history()


def measure(a):
    with Cluster() as c:
        c.start_scheduler()
        # step log and snapshots would take twice the run's memory of disk
        c.start_shards(a.shards, "--threads", a.threads, "--durable", "off",
                       "--memory", available_bytes() * 95 // 100 // a.shards)
        create(c, a)
        told = {p.name: planned_bytes(p) for p in c.processes}
        before = rank(c, a)
        worker = c.start_worker(threads=a.batch // a.micro_batch)
        told[worker.name] = planned_bytes(worker)
        plan, files = ({name: both[i] for name, both in told.items()} for i in (0, 1))
        say(f"memory plan: {sum(plan.values()) / 1e9:.3f} GB (" +
            ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in plan.items()) + ")")
        meter = Meter(c.processes, files)
        meter.start()
        points = train(c, a)
        after = rank(c, a)
        meter.stop()
    steps = [(y.time_us - x.time_us) * 1e-6 for x, y in zip(points, points[1:])][WARM_UP:]
    part = max(1, len(points) // 5)
    return {"classes": a.classes, "dim": a.dim, "sample_rate": a.sample_rate, "batch": a.batch,
            "micro_batch": a.micro_batch, "dtype": a.dtype, "gemm": a.gemm, "momentum_mode": a.momentum_mode,
            "shards": a.shards, "threads": a.threads, "steps": len(points),
            "step_s": statistics.median(steps), "step_s_worst": max(steps),
            "loss_first": statistics.mean(p.loss for p in points[:part]),
            "loss_last": statistics.mean(p.loss for p in points[-part:]),
            "rank_before": before, "rank_after": after,
            "planned_bytes": round(sum(plan.values())), "planned": {n: round(b) for n, b in plan.items()},
            "used_bytes": meter.peak, "used": meter.at_peak}


def claims(a, r):
    """(text, holds) of everything that is asserted."""
    before, after = r["rank_before"], r["rank_after"]
    error = r["used_bytes"] / r["planned_bytes"] - 1
    yield f"all {a.steps} steps are committed", r["steps"] == a.steps
    yield (f"loss {r['loss_first']:.3f} -> {r['loss_last']:.3f} (mean of the first and last fifth of the steps)",
           r["loss_last"] < r["loss_first"])
    yield (f"mean rank {before['rank_mean']:.1f} -> {after['rank_mean']:.1f} of {after['candidates']}",
           after["rank_mean"] < before["rank_mean"] / 2)
    yield (f"mean cosine {before['cosine_mean']:.3f} -> {after['cosine_mean']:.3f}",
           after["cosine_mean"] > before["cosine_mean"] + 0.1)
    yield (f"memory {r['used_bytes'] / 1e9:.3f} GB used at most, {r['planned_bytes'] / 1e9:.3f} GB planned "
           f"({100 * error:+.1f} %)", not a.plan_error or abs(error) <= a.plan_error or
           abs(r["used_bytes"] - r["planned_bytes"]) <= PLAN_FLOOR)
    if a.max_gb:
        yield f"at most {a.max_gb} GB used", r["used_bytes"] <= a.max_gb * 1e9
    step = f"step {r['step_s']:.3f} s (median; worst {r['step_s_worst']:.3f} s)"
    yield (f"{step}, at most {a.max_step} s" if a.max_step else step,
           not a.max_step or r["step_s"] <= a.max_step)


def count(most):
    def parse(text):
        value = int(text) if text.isdecimal() else 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: from 1 to {most}")
        return value
    return parse


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: above 0, at most 1")
    return value


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=count(1 << 40), default=10000000)
    parser.add_argument("--steps", type=count(1 << 24), default=50)
    parser.add_argument("--shards", type=count(256), default=1)
    parser.add_argument("--threads", type=count(1024), default=os.cpu_count(), help="of each shard")
    parser.add_argument("--batch", type=count(65536), default=128)
    parser.add_argument("--micro-batch", type=count(65536), default=32)
    parser.add_argument("--dim", type=count(8192), default=512)
    parser.add_argument("--sample-rate", type=share, default=0.1)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--gemm", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--momentum-mode", choices=("auto", "sampled", "dense"), default="sampled")
    parser.add_argument("--hot", type=count(1 << 20), default=512, help="classes with samples")
    parser.add_argument("--others", type=count(1 << 40), default=100000, help="classes without samples to rank among")
    parser.add_argument("--plan-error", type=float, default=0.03, help="0: not asserted (sanitizers use more)")
    parser.add_argument("--max-gb", type=float)
    parser.add_argument("--max-step", type=float)
    parser.add_argument("--json", type=report_path)
    a = parser.parse_args()
    if a.steps < 2 * WARM_UP:
        parser.error(f"--steps {a.steps}: at least {2 * WARM_UP}")
    if a.hot > a.classes:
        parser.error(f"--hot {a.hot}: more than --classes {a.classes}")
    if a.batch % a.micro_batch:
        parser.error(f"--micro-batch {a.micro_batch}: --batch {a.batch} is not a multiple of it")
    if a.batch // a.micro_batch > MAX_LANES:
        parser.error(f"--micro-batch {a.micro_batch}: more than {MAX_LANES} of them in a batch of {a.batch}")
    return a


def main():
    a = options()
    result = measure(a)
    result["claims"] = [{"text": text, "holds": bool(holds)} for text, holds in claims(a, result)]
    for claim in result["claims"]:
        say("ok  " if claim["holds"] else "NOT ", claim["text"])
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(claim["holds"] for claim in result["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
