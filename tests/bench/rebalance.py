#!/usr/bin/python3
"""Skewed data: the time of each shard's step before and after `shardfc rebalance`, in a session whose labels
follow a Zipf law over sorted ids.

    rebalance.py [--shards N] [--classes N] [--block N] [--batch N] [--dim N] [--sample-rate R] [--exponent X]
                 [--steps N] [--json FILE]

The time is what each shard's computing thread takes for a step, on average over the last 20 (`step_ms` of
`shardfc status --json`); shards compute at the same time, so there should be a core for each.
"""
import argparse
import json
import pathlib
import re
import sys
import threading

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import Cluster  # noqa: E402
from test_head_session import Session, session_config  # noqa: E402


class Training(threading.Thread):
    """Steps until it is told to stop."""

    def __init__(self, c, weights):
        super().__init__(daemon=True)
        self.c, self.weights, self.stop, self.failed = c, weights, False, None
        self.rng = np.random.default_rng(1)
        self.session = Session(c)

    def run(self):
        try:
            while not self.stop:
                config = self.session.config
                labels = self.rng.choice(config.classes, config.global_batch, p=self.weights)
                features = self.rng.standard_normal((config.global_batch, config.dim)).astype(np.float32)
                self.session.train_step(features, labels.astype(np.uint64))
        except Exception as error:  # noqa: BLE001: shown by whoever waits
            self.failed = error


def step_ms(c, steps, training):
    """Of each shard, once it has gone so many steps further."""
    target = c.status().step + steps
    while c.status().step < target:
        if training.failed:
            raise training.failed
        training.join(0.2)
    training.join(1.5)  # a heartbeat
    return {s["id"]: s["step_ms"] for s in c.ctl_json("status")["shards"]}


def ratio(times):
    return max(times.values()) * len(times) / sum(times.values())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shards", type=int, default=2)
    p.add_argument("--classes", type=int, default=65536)
    p.add_argument("--block", type=int, default=256)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--dim", type=int, default=256)
    p.add_argument("--sample-rate", type=float, default=0.004)
    p.add_argument("--exponent", type=float, default=1.0)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--json")
    o = p.parse_args()
    weights = np.arange(1, o.classes + 1, dtype=float) ** -o.exponent
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(o.shards)
        c.create_run(**session_config(classes=o.classes, block_size=o.block, dim=o.dim, global_batch=o.batch,
                                      micro_batch=o.batch // 4, steps=1000000, momentum_mode="dense",
                                      sample_ppm=int(o.sample_rate * 1e6)))
        training = Training(c, weights / weights.sum())
        training.start()
        before = step_ms(c, o.steps, training)
        plan = json.loads(c.ctl("rebalance", "--json", seconds=300).stdout)
        after = step_ms(c, o.steps, training)
        training.stop = True
        training.join(30)
    expected = re.search(r"slowest shard: ([0-9.]+) x the mean now, ([0-9.]+) x", plan["explanation"])
    result = dict(vars(o), blocks_moved=len(plan["moves"]), bytes_moved=plan["bytes"],
                  expected_before=float(expected[1]), expected_after=float(expected[2]),
                  step_ms_before=before, step_ms_after=after,
                  slowest_before=ratio(before), slowest_after=ratio(after))
    print(json.dumps(result))
    if o.json:
        pathlib.Path(o.json).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
