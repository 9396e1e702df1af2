#!/usr/bin/python3
"""Training through real daemons: the same bits for every topology (I2), and whatever dies (I3, I4).

    test_train.py [synthetic|dense|half|adamw|images|kill|scheduler|broken ...]     default: all
Seeds come from SFC_SEED (default 1) and are printed on failure.
"""
import math
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time

import cluster
from cluster import Cluster, Failure, pb, wait_until

SEED = int(os.environ.get("SFC_SEED", "1"))
IMAGE_TOOL = cluster.BIN.parent / "tests" / "make_images"
IMAGE_CLASSES, PER_CLASS = 300, 4
STEPS = 60


def check(condition, message):
    if not condition:
        raise Failure(message)


def make_images(c, *broken):
    folder = c.folder / "images"
    subprocess.run([IMAGE_TOOL, folder, str(IMAGE_CLASSES), str(PER_CLASS), str(SEED), *broken],
                   check=True)
    return folder


def create_images(c, data, *extra, steps=STEPS):
    c.ctl("create", "--run", "images", "--data", data, "--backbone", "tiny", "--dim", "64",
          "--sample-rate", "0.2", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05",
          "--schedule", "poly:10", "--global-batch", "64", "--micro-batch", "16", "--steps", steps,
          "--augment", "0.12,0.5,0.08", "--momentum-mode", "sampled", "--seed", SEED,
          "--block-size", "32", *extra)


def check_records(c, run_id, steps, batch, micro):
    """Every step has one commit record, the records' positions tile the sample sequence, and each names
    one attempt of every micro-batch: so every sample of an epoch is in one committed step. Ends the
    scheduler (its store is exclusive)."""
    check(c.scheduler.terminate() == 0, "the scheduler did not end well")
    files = [p for p in (c.folder / "scheduler").iterdir()
             if p.suffix in (".db", ".sqlite", ".sqlite3")]
    check(len(files) == 1, f"no store among {list((c.folder / 'scheduler').iterdir())}")
    with sqlite3.connect(files[0]) as db:
        rows = db.execute("SELECT step, position, attempts FROM commits WHERE run_id = ? ORDER BY step",
                          (run_id,)).fetchall()
    check([r[0] for r in rows] == list(range(1, steps + 1)), f"committed steps: {[r[0] for r in rows]}")
    counters = set()
    for step, position, blob in rows:
        check(position == step * batch, f"step {step} ends at position {position}")
        attempts = pb.PrepareRequest.FromString(blob).attempts
        check([a.micro_batch for a in attempts] == list(range(batch // micro)),
              f"step {step}: attempts {attempts}")
        for a in attempts:
            key = (a.attempt.incarnation, a.attempt.counter)
            check(key not in counters, f"attempt {key} is committed twice")
            counters.add(key)


def synthetic_run(shards, workers, threads, **fields):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(shards)
        c.create_run(**{**dict(classes=3000, samples=5000, steps=40, dim=32, seed=SEED, lr=0.5, lr_end=0.1),
                        **fields})
        asked = c.held_at(1)
        c.start_workers(workers, "--exit-when-done", threads=threads)
        trace = c.folder / "trace.csv"
        c.start_worker("--exit-when-done", "--trace", trace)
        wait_until("all workers to join", lambda: c.hold(asked=asked) and len(c.status().workers) == workers + 1, 60,
                   context=c.tails)  # a run of few steps would end before the last one is there
        c.release(asked)
        c.wait_state("finished")
        for w in c.workers:
            check(w.wait() == 0, f"a worker failed\n{w.tail()}")
        points = c.history()
        check([p.step for p in points] == list(range(1, 41)), f"history has {[p.step for p in points]}")
        lines = trace.read_text().splitlines()
        check(lines[0] == "step,loss,lr,images_per_s" and len(lines) == 41, f"trace: {lines}")
        check(all(math.isfinite(p.loss) for p in points), "a loss is not finite")
        return c.state_digest(), [p.loss for p in points]


def test_dense():
    """I2 with momentum mode dense."""
    test_synthetic(momentum_mode="dense", block_size=512)


def test_half():
    """I2 with products of bf16, over both stores."""
    for dtype in ("f32", "bf16"):
        test_synthetic(dtype=dtype, gemm="bf16", momentum_mode="dense")


ADAMW = dict(optimizer="adamw", momentum=0, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1)


def test_adamw():
    """I2 with AdamW, over two formats of the store and with a backbone."""
    test_synthetic(lr=0.01, **ADAMW)
    test_synthetic(lr=0.01, dtype="bf16", gemm="bf16", **ADAMW)
    options = ("--optimizer", "adamw", "--lr", "2e-3", "--weight-decay", "0.1")
    digest, losses = image_run(1, 1, 1, *options)
    check(sum(losses[-5:]) < sum(losses[:5]), f"losses: {losses}")
    other, other_losses = image_run(3, 2, 1, *options)
    check(other == digest and other_losses == losses, f"3 shards: state {other}, expected {digest}")


def test_synthetic(**fields):
    digest, losses = synthetic_run(1, 1, 1, **fields)
    check(digest[0] == 40, f"state of step {digest[0]}")
    check(sum(losses[-5:]) < sum(losses[:5]), f"the loss does not fall: {losses}")
    for topology in ((3, 1, 2), (2, 3, 1)):
        other, other_losses = synthetic_run(*topology, **fields)
        check(other == digest, f"shards, workers, threads {topology}: state {other}, expected {digest}")
        check(other_losses == losses, f"{topology}: other losses")


def image_run(shards, workers, threads, *options):
    with Cluster() as c:
        data = make_images(c)
        c.start_scheduler()
        c.start_shards(shards)
        create_images(c, data, *options)
        c.start_workers(workers, "--exit-when-done", data=data, threads=threads)
        c.wait_state("finished", 180)
        for w in c.workers:
            check(w.wait() == 0, f"a worker failed\n{w.tail()}")
        losses = [p.loss for p in c.history()]
        return c.state_digest(), losses


def test_images():
    """I2 with a backbone: 60 steps, three topologies, one state."""
    digest, losses = image_run(1, 1, 1)
    check(len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5]), f"losses: {losses}")
    for topology in ((4, 3, 1), (2, 1, 2)):
        other, other_losses = image_run(*topology)
        check(other == digest, f"shards, workers, threads {topology}: state {other}, expected {digest}")
        check(other_losses == losses, f"{topology}: other losses")


KILL_STEPS = 120


def killed_run(kills):
    """The digest of an image run in which workers are killed at random moments."""
    chance = random.Random(SEED)
    with Cluster() as c:
        data = make_images(c)
        c.start_scheduler()
        c.start_shards(2)
        create_images(c, data, steps=KILL_STEPS)
        c.start_workers(2, data=data)
        for k in range(kills):
            low = 1 + k * (KILL_STEPS - 10) // kills
            c.wait_step(chance.randrange(low, low + KILL_STEPS // (2 * kills)))
            time.sleep(chance.random() * 0.05)  # anywhere inside a step
            victim = chance.choice([w for w in c.workers if w.running()])
            victim.kill()
            c.start_worker(data=data)
        status = c.wait_state("finished", 300)
        digest = c.state_digest()
        for w in c.workers:
            if w.running():
                check(w.terminate() == 0, f"a worker ended badly\n{w.tail()}")
        check_records(c, status.run_id, KILL_STEPS, 64, 16)
        return digest


def test_kill():
    """Ten SIGKILLs of workers leave no trace in the state; every sample is used once per epoch."""
    expected = killed_run(0)
    digest = killed_run(10)
    check(digest == expected, f"state {digest} after kills, undisturbed {expected}")


def scheduler_run(kills):
    chance = random.Random(SEED)
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        run = c.create_run(classes=2000, samples=3000, steps=150, seed=SEED)
        c.start_workers(2)
        for k in range(kills):
            c.wait_step(10 + 40 * k + chance.randrange(20))
            c.scheduler.kill()
            c.start_scheduler()
        c.wait_state("finished", 180)
        digest = c.state_digest()
        check_records(c, run.run_id, 150, 32, 8)
        return digest


def test_scheduler():
    """The scheduler dies and comes back: workers join again, the run goes on to the same state."""
    expected = scheduler_run(0)
    digest = scheduler_run(3)
    check(digest == expected, f"state {digest} after restarts, undisturbed {expected}")


def test_broken():
    """A broken sample blocks a run with a message that names it; the run goes on without its micro-batch
    after DROP; with --skip-broken only the row has weight 0."""
    with Cluster() as c:
        data = make_images(c, "17")
        c.start_scheduler()
        c.start_shards(1)
        create_images(c, data)
        worker = c.start_worker(data=data)
        status = c.wait_state("blocked", 60)
        check("train.rec" in status.reason or "17" in status.reason, f"reason: {status.reason}")
        check(worker.running(), "the worker died of a broken sample")
        step, j = map(int, re.search(r"--drop (\d+),(\d+)", status.reason).groups())
        c.stub.Control(pb.ControlRequest(action=pb.ControlRequest.DROP, step=step, micro_batch=j),
                       timeout=30)
        c.wait_step(step, 60)
        check(all(math.isfinite(p.loss) for p in c.history()), "a loss is not finite")
        c.stub.Control(pb.ControlRequest(action=pb.ControlRequest.STOP), timeout=30)
        create_images(c, data, "--skip-broken", steps=25)  # a little more than an epoch
        c.wait_state("finished", 120)
        check(worker.terminate() == 0, f"the worker ended badly\n{worker.tail()}")


def main():
    names = sys.argv[1:] or ["synthetic", "dense", "half", "adamw", "images", "kill", "scheduler", "broken"]
    for name in names:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}, seed {SEED}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    # A signal from the test driver must still end the daemons.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
