#!/usr/bin/python3
"""Many members on one machine: nobody waits for ever, and nobody's memory grows.

    test_many.py [--shards N] [--workers N] [--steps N]

Small dimensions, synthetic features. Prints the largest resident set of each kind of process. Asserted: all steps are
committed, the state is that of a run on one shard, and no process takes more than LIMIT_MB or grows by more than
GROWTH_MB between the first fifth of the steps and the end.
"""
import argparse

from cluster import Cluster, wait_until
from inputs import check

LIMIT_MB, GROWTH_MB = 150, 16
CLASSES, BLOCK, BATCH = 32768, 1024, 128


def create(c, steps):
    c.create_run(classes=CLASSES, samples=CLASSES, dim=16, block_size=BLOCK, global_batch=BATCH, micro_batch=2,
                 steps=steps, momentum_mode="dense")


def resident_mb(process):
    for line in open(f"/proc/{process.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmRSS of {process.name}")


def many(o):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(o.shards)
        create(c, o.steps)
        asked = c.held_at(1)
        with c.keeping(asked):  # whoever is slow to begin has its share all the same
            c.start_workers(o.workers)
            wait_until("the workers to join", lambda: len(c.status().workers) == o.workers, 120, context=c.tails)
        c.release(asked)
        c.wait_step(o.steps // 5, 600)
        early = {p.name: resident_mb(p) for p in c.processes}
        c.wait_state("finished", 1200)
        late = {p.name: resident_mb(p) for p in c.processes}
        now = c.status()
        check(all(w.micro_batches > 0 for w in now.workers), "a worker has done nothing")
        for kind in ("scheduler", "shard", "worker"):
            most = max((late[n], n) for n in late if n.startswith(kind))
            growth = max((late[n] - early[n], n) for n in late if n.startswith(kind))
            print(f"{kind}: at most {most[0]:.0f} MB resident, {growth[0]:+.1f} MB since step {o.steps // 5}", flush=True)
            check(most[0] <= LIMIT_MB, f"{most[1]} takes {most[0]:.0f} MB")
            check(growth[0] <= GROWTH_MB, f"{growth[1]} grew by {growth[0]:.0f} MB")
        return c.state_digest()


def one(steps):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        create(c, steps)
        c.start_workers(1)
        c.wait_state("finished", 600)
        return c.state_digest()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    o = parser.parse_args()
    got, expected = many(o), one(o.steps)
    check(got == expected, f"state {got}, on one shard {expected}")
    print(f"ok {o.shards} shards, {o.workers} workers, {o.steps} steps")


if __name__ == "__main__":
    main()
