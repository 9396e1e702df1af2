#!/usr/bin/python3
"""Skewed data: the time of each shard's step before and after `shardfc rebalance`, in a session whose labels
follow a Zipf law over sorted ids.

    rebalance.py [--shards N] [--classes N] [--block N] [--batch N] [--dim N] [--sample-rate R] [--exponent X]
                 [--steps N] [--seeds N] [--json FILE]

Two times are taken per shard, on average over --steps steps each: of the computing thread as a clock on the wall sees
it (`step_ms` of `shardfc status --json`, the last 20 steps), and the processor time of that thread, which is what
the step takes where the shard has a core for itself. Where shards share cores only the latter says how unequal they
are. Labels and features come from the seed; each seed is a run of its own.
"""
import argparse
import json
import pathlib
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import Cluster  # noqa: E402
from test_head_session import Session, session_config  # noqa: E402


class InTurn:
    """A call that is over before the next one begins."""

    def __init__(self, method):
        self.method = method

    def future(self, request, timeout):
        call = self.method.future(request, timeout=timeout)
        call.result()
        return call


class TurnSession(Session):
    """Asks one shard after another: shards that share cores don't wait for each other while they compute."""

    def take_map(self, block_map):
        super().take_map(block_map)
        self.shards = [SimpleNamespace(Logits=InTurn(s.Logits), Gradient=InTurn(s.Gradient)) for s in self.shards]


class Training(threading.Thread):
    """Steps until it is told to stop."""

    def __init__(self, c, weights, seed):
        super().__init__(daemon=True)
        self.c, self.weights, self.stop, self.failed = c, weights, False, None
        self.rng = np.random.default_rng(seed)
        self.session = TurnSession(c)

    def run(self):
        try:
            while not self.stop:
                config = self.session.config
                labels = self.rng.choice(config.classes, config.global_batch, p=self.weights)
                features = self.rng.standard_normal((config.global_batch, config.dim), dtype=np.float32)
                self.session.train_step(features, labels.astype(np.uint64))
        except Exception as error:  # noqa: BLE001: shown by whoever waits
            self.failed = error

    def wait(self, steps):
        """Until so many more are committed; the step of then."""
        target = self.c.status().step + steps
        while True:
            if self.failed:
                raise self.failed
            step = self.c.status().step
            if step >= target:
                return step
            self.join(0.05)


def cpu_ms(process):
    """Processor time of each thread so far."""
    times = {}
    for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        times[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e6
    return times


def step_times(c, steps, training):
    """Of a step, in ms, by shard: {"wall": ..., "cpu": ...}. The thread that computes is the busiest one."""
    first, begin = training.wait(2), [cpu_ms(s) for s in c.shards]
    last, end = training.wait(steps), [cpu_ms(s) for s in c.shards]
    cpu = [max(b[t] - a.get(t, 0) for t in b) / (last - first) for a, b in zip(begin, end)]
    training.join(1.5)  # a heartbeat
    wall = {s["address"]: s["step_ms"] for s in c.ctl_json("status")["shards"]}
    return {"wall": [round(wall[s.address], 2) for s in c.shards], "cpu": [round(ms, 2) for ms in cpu]}


def ratio(times):
    return max(times) * len(times) / sum(times)


def measure(o, seed):
    weights = np.arange(1, o.classes + 1, dtype=float) ** -o.exponent
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(o.shards)
        c.create_run(**session_config(classes=o.classes, block_size=o.block, dim=o.dim, global_batch=o.batch,
                                      micro_batch=o.batch // 4, steps=1000000, momentum_mode="dense",
                                      sample_ppm=int(o.sample_rate * 1e6), seed=seed))
        training = Training(c, weights / weights.sum(), seed)
        training.start()
        before = step_times(c, o.steps, training)
        plan = json.loads(c.ctl("rebalance", "--json", seconds=300).stdout)
        after = step_times(c, o.steps, training)
        training.stop = True
        training.join(30)
    expected = re.search(r"slowest shard: ([0-9.]+) x the mean now, ([0-9.]+) x", plan["explanation"])
    return {"seed": seed, "blocks_moved": len(plan["moves"]), "bytes_moved": plan["bytes"],
            "expected_before": float(expected[1]), "expected_after": float(expected[2]),
            "step_ms_before": before, "step_ms_after": after,
            "slowest_before": ratio(before["cpu"]), "slowest_after": ratio(after["cpu"])}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shards", type=int, default=3)
    p.add_argument("--classes", type=int, default=262144)
    p.add_argument("--block", type=int, default=4096)
    p.add_argument("--batch", type=int, default=4096)
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--sample-rate", type=float, default=0.0005)
    p.add_argument("--exponent", type=float, default=1.0)
    p.add_argument("--steps", type=int, default=22)
    p.add_argument("--seed", type=int, default=1, help="the first one")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--json")
    o = p.parse_args()
    seeds = []
    for seed in range(o.seed, o.seed + o.seeds):
        seeds.append(measure(o, seed))
        s = seeds[-1]
        print(f"seed {seed}: slowest {s['slowest_before']:.2f} x the mean before, {s['slowest_after']:.2f} x after; "
              f"{s['blocks_moved']} blocks moved; {s['step_ms_before']} -> {s['step_ms_after']}", flush=True)
    result = dict(vars(o), runs=seeds)
    print(json.dumps(result))
    if o.json:
        pathlib.Path(o.json).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
