#!/usr/bin/env python3
"""Shards whose blocks are on a device, and workers whose backbone is: both as plugins, on the emulated device of
the tests (tests/lib/cuda_host), in real processes. SFC_PLUGIN_DIR is the folder of those plugins."""
import os
import subprocess
import sys
import time

import cluster
from cluster import Cluster, Failure
from inputs import check, expect, one_json, tool

SEED = 20261126
STEPS = 24
DEVICE = ("--backend", "cuda")
MODES = {
    "dense": dict(momentum_mode="dense"),
    "half": dict(dtype="bf16", gemm="bf16", momentum_mode="dense"),
    "adamw": dict(gemm="bf16", optimizer="adamw", momentum=0, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1,
                  lr=0.01),
}


def run(shards, disturbed, **fields):
    """State and losses of a run; disturbed: a shard is killed and comes back, and a checkpoint is made meanwhile."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(shards, *DEVICE)
        c.start_workers(2)
        c.create_run(**{**dict(classes=1200, samples=2000, steps=STEPS, dim=24, seed=SEED, block_size=128), **fields})
        if disturbed:
            c.wait_step(STEPS // 4)
            c.shards[0].kill()
            c.restart_shard(c.shards[0])
            c.wait_step(STEPS // 2)
            made = one_json(c.ctl("checkpoint", "--out", c.folder / "made", "--json"))
            made.pop("dir")
            told = one_json(tool("shardfc", "verify", c.folder / "made", "--json"))
            check(told == made, f"verify: {told}, checkpoint: {made}")
        c.wait_state("finished")
        for shard in c.shards:
            check("Emulated GPU" in shard.stderr().replace("-", " "), f"no device named\n{shard.tail()}")
            check("device memory plan" in shard.stderr(), f"no plan of device memory\n{shard.tail()}")
        return c.state_digest(), [p.loss for p in c.history()]


def test_mode(mode):
    """One shard; two; two with a death and a checkpoint: the same bits."""
    first = run(1, False, **MODES[mode])
    check(sum(first[1][-5:]) < sum(first[1][:5]), f"losses: {first[1]}")
    check(run(2, False, **MODES[mode]) == first, "two shards differ from one")
    check(run(2, True, **MODES[mode]) == first, "a death and a checkpoint changed the run")


def test_dense():
    test_mode("dense")


def test_half():
    test_mode("half")


def test_adamw():
    test_mode("adamw")


def test_memory():
    """--memory is the device's: more than it has is refused at start, a run that needs more before its first step."""
    base = ("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--durable", "off", *DEVICE)
    expect(tool(*base, "--memory", "100T"), 2, "--memory", "the device has", "MiB of memory")
    expect(tool(*base[:-1], "cuda:9"), 2, "cuda:9", "no usable GPU 9", "cuda:0")
    expect(tool(*base, "--store-dir", "/tmp"), 2, "--store-dir", "memory only")
    with Cluster() as c:
        c.start_scheduler()
        c.wait_ready(c.start_shard(*DEVICE, "--memory", "2M"))
        refused = c.ctl("create", "--run", "large", "--classes", "100000", "--samples", "1000", "--dim", "64", "--steps", "5",
                        "--global-batch", "32", "--micro-batch", "8", check=False)
        expect(refused, 1, "memory", "--memory")
        limits = [s["memory_limit"] for s in c.ctl_json("status", "--json")["shards"] if "memory_limit" in s]
        check(all(limit == 2 << 20 for limit in limits), f"limits: {limits}")


IMAGES = ("--backbone", "tiny", "--dim", "16", "--sample-rate", "0.5", "--global-batch", "4", "--micro-batch", "2", "--lr",
          "0.05", "--steps", "3", "--block-size", "32", "--seed", SEED)


def make_images(c):
    folder = c.folder / "images"
    subprocess.run([cluster.BIN.parent / "tests" / "make_images", folder, "60", "2", str(SEED)], check=True)
    return folder


def backbone_run(workers, threads, precision):
    """State and losses of a run whose workers compute on the device."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        data = make_images(c)
        c.start_workers(workers, "--device", "cuda", "--precision", precision, data=data, threads=threads)
        c.ctl("create", "--run", "images", "--data", data, *IMAGES)
        c.wait_state("finished", seconds=240)
        for worker in c.workers:
            log = worker.stderr()
            check("MiB on cuda:0 (Emulated GPU), " + precision in log or workers > 1, f"no lane described\n{worker.tail()}")
        return c.state_digest(), [p.loss for p in c.history()]


def test_backbone():
    """One lane, and two workers with two each: the same bits; another precision, and the CPU, are other classes."""
    first = backbone_run(1, 1, "bf16")
    check(all(0 < loss < 100 for loss in first[1]), f"losses: {first[1]}")
    check(backbone_run(2, 2, "bf16") == first, "other lanes changed the run")
    base = ("shardfc-worker", "--scheduler", "127.0.0.1:1", "--data", "synthetic", "--device")
    expect(tool(*base, "cuda:9"), 2, "cuda:9", "CUDA sees 1 devices")
    expect(tool(*base, "cuda", "--precision", "f64"), 2, "f64", "fp16")
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        data = make_images(c)
        c.start_worker("--device", "cuda", "--precision", "fp16", data=data)
        c.ctl("create", "--run", "images", "--data", data, *IMAGES)
        c.wait_step(1, seconds=240)
        c.start_worker("--exit-when-done", data=data)
        code = c.workers[-1].wait()
        check(code == 2 and "fp16" in c.workers[-1].stderr(), f"exit {code}\n{c.workers[-1].tail()}")


def main():
    if not os.environ.get("SFC_PLUGIN_DIR"):
        raise Failure("SFC_PLUGIN_DIR is not set")
    for name in sys.argv[1:] or ["memory", *MODES, "backbone"]:
        begin = time.monotonic()
        globals()[f"test_{name}"]()
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
