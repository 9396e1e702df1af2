#!/usr/bin/python3
"""A shard that dies comes back from its own folder, and the run ends with the bits of a run that nothing
happened to (I2, I3).

    test_recovery.py [sampled|dense|adamw|half|gradients|packed|scheduler|restore|folder|full|tight|off ...]     default: all
SFC_KILLS sets the number of kills of sampled, dense and scheduler. Seeds come from SFC_SEED (default 1) and
are printed on failure.
"""
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import cluster
from cluster import Cluster, wait_until
from inputs import check, expect, tool
from test_lost_log import back, content, segments

SEED = int(os.environ.get("SFC_SEED", "1"))
IMAGE_TOOL = cluster.BIN.parent / "tests" / "make_images"
# Copies of every block every few steps, so that a crash finds snapshots of all ages.
OFTEN = ("--recovery-target", "50ms")


def start(c, shards=2, *extra):
    c.start_scheduler()
    c.start_shards(shards, *(extra or OFTEN))


def images(c, steps, *extra, at=0):
    """A run with a backbone; its workers. Returns a hold of step `at`, asked for before they come."""
    data = c.folder / "images"
    if not data.exists():
        subprocess.run([IMAGE_TOOL, data, "300", "4", str(SEED)], check=True)
    c.ctl("create", "--run", "images", "--data", data, "--backbone", "tiny", "--dim", "64", "--sample-rate",
          "0.2", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule", "poly:10",
          "--global-batch", "64", "--micro-batch", "16", "--steps", steps, "--augment", "0.12,0.5,0.08",
          "--seed", SEED, "--block-size", "32", *extra)
    asked = c.held_at(at) if at else None
    c.start_workers(2, data=data)
    return asked


def synthetic(c, steps, **fields):
    c.create_run(classes=3000, samples=5000, steps=steps, seed=SEED, block_size=256, **fields)
    c.start_workers(2)


def result(c):
    back(c)
    return c.state_digest(), [p.loss for p in c.history()]


def kill_shards(c, kills, steps, chance, also=lambda k: None):
    """SIGKILLs spread over the run, each at any moment inside a step; the dead come back."""
    for k in range(kills):
        low = 1 + k * (steps - 10) // kills
        c.wait_step(low + chance.randrange(max(1, steps // (2 * kills))))
        time.sleep(chance.random() * 0.05)
        victims = [s for s in c.shards if chance.random() < 0.2] or [chance.choice(c.shards)]
        for victim in victims:
            victim.kill()
        also(k)
        time.sleep(chance.random() * 0.2)
        for victim in victims:
            c.restart_shard(victim)


def recovered_lines(c):
    return [line for p in c.processes if p.name.startswith("shard")
            for line in p.stderr().splitlines() if " recovered to step " in line]


def disturbed(kills, steps, create, also=None, options=()):
    chance = random.Random(SEED)
    with Cluster() as c:
        start(c, 2, *OFTEN, *options)
        create(c)
        kill_shards(c, kills, steps, chance, (lambda k: also(c, k, chance)) if also else lambda k: None)
        c.wait_state("finished", 300)
        end = result(c)
        lines = recovered_lines(c)
        check(len(lines) >= kills // 2, f"{kills} kills, but only {lines}")
        check(kills < 5 or any(not re.search(r": 0 of \d+ blocks from snapshots", line) for line in lines),
              f"no recovery used a snapshot: {lines}")
        return end


def undisturbed(create):
    with Cluster() as c:
        start(c)
        create(c)
        c.wait_state("finished", 300)
        return result(c)


def compare(kills, steps, create, also=None, options=()):
    expected = undisturbed(create)
    got = disturbed(kills, steps, create, also, options)
    check(expected[0][0] == steps and got[0] == expected[0], f"state {got[0]}, undisturbed {expected[0]}")
    check(got[1] == expected[1], "the losses differ")
    return expected


def kills(default):
    return int(os.environ.get("SFC_KILLS", default))


def test_sampled():
    """Blocks of classes and of a backbone."""
    compare(kills(6), 120, lambda c: images(c, 120, "--momentum-mode", "sampled"))


def test_dense():
    """Rows that wait, and the history of learning rates."""
    compare(kills(6), 150, lambda c: synthetic(c, 150, momentum_mode="dense"))


def test_adamw():
    """Second moments."""
    compare(kills(2), 60, lambda c: images(c, 60, "--optimizer", "adamw", "--momentum-mode", "sampled",
                                           "--lr", "0.001"))


def test_half():
    """State of bf16, which snapshots hold in 2 bytes."""
    compare(kills(2), 80, lambda c: synthetic(c, 80, dtype="bf16", gemm="bf16", momentum_mode="dense"))


def log_header(c):
    """(floats, how many of them bf16) of the sums in the first shard's log."""
    path = max(c.shards[0].state.glob("run-*/*.sfl"))
    with open(path, "rb") as log:
        header = log.read(256)
    return struct.unpack_from("<Q", header, 56)[0], struct.unpack_from("<Q", header, 240)[0]


def test_gradients():
    """Summed gradients that are logged in bf16."""
    def create(c, at=0):
        asked = images(c, 60, "--log-dense", "bf16", at=at)
        c.wait_step(2)
        floats, halves = log_header(c)
        check(0.9 * floats < halves < floats, f"{halves} of {floats} sums are bf16; all but statistics should be")
        return asked
    expected = compare(kills(2), 60, create)
    with Cluster() as c:
        start(c, 1)
        hold = create(c, 40)
        c.ctl("checkpoint", "--at-step", 40, "--out", c.folder / "at")
        c.release(hold)
        with Cluster() as d:
            start(d, 2)
            d.ctl("restore", "--from", c.folder / "at")
            d.start_workers(2, data=c.folder / "images")
            d.wait_state("finished", 120)
            check(log_header(d)[1] > 0, "the option is part of the checkpoint")
            check(d.state_digest() == expected[0], f"restored {d.state_digest()}, never stopped {expected[0]}")


def test_packed():
    """Compressed snapshots: the bits of a run without, and what the tools say of them."""
    options = ("--snapshot-compression", "zstd:3")
    base = ("--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--state", "/tmp/x", "--snapshot-compression")
    for wrong in ("gzip", "zstd:", "zstd:0", "zstd:20", "zstd3", "zstd:-1", "none:1"):
        expect(tool("shardfc-shard", *base, wrong), 2, "--snapshot-compression", wrong)
    compare(kills(2), 80, lambda c: synthetic(c, 80, dtype="bf16", gemm="bf16", momentum_mode="dense"),
            options=options)
    with Cluster() as c:
        start(c, 1, *OFTEN, *options)
        synthetic(c, 40, momentum_mode="dense")
        c.wait_state("finished", 120)
        folder = next(c.shards[0].state.glob("run-*"))
        c.shards[0].kill()
        report = json.loads(expect(tool("shardfc", "log", "--json", folder), 0).stdout)
        packed = [s for s in report["snapshots"] if s["bytes"] < s["raw_bytes"]]
        check(packed and all(s["ok"] for s in report["snapshots"]), f"snapshots: {report['snapshots']}")
        said = json.loads(expect(tool("shardfc", "bench", "snapshots", "--json", folder), 0).stdout)["f32"]
        check(said["files"] == len(report["snapshots"]), f"{said['files']} of {len(report['snapshots'])} files")
        check(all(0 < x["ratio"] < 1 for x in said["levels"]), f"ratios: {said['levels']}")
        expect(tool("shardfc", "bench", "snapshots", c.folder), 2, "no snapshots")
        bare = ("--scheduler", c.address, "--listen", "127.0.0.1:0", "--state", c.shards[0].state, "--memory")
        expect(tool("shardfc-shard", *bare, "8M"), 1, "reading the compressed snapshots")
        shard = c.shards[0]  # comes back without compression
        shard.extra = OFTEN
        shard = c.restart_shard(shard)
        wait_until("the recovery", lambda: " recovered to step 40" in shard.stderr(), 60, context=c.tails)
        check("has compressed snapshots: reading them takes" in shard.stderr(), shard.stderr())


def test_scheduler():
    """Scheduler and shards, at once and one after the other."""
    def also(c, k, chance):
        if k % 2 == 0:
            c.scheduler.kill()
            time.sleep(chance.random() * 0.2)
            c.start_scheduler()
    compare(kills(4), 150, lambda c: synthetic(c, 150), also)


def restored(checkpoint, steps, die):
    with Cluster() as c:
        start(c)
        c.ctl("restore", "--from", checkpoint)
        c.start_workers(2)
        if die:
            c.wait_step(45)
            for shard in list(c.shards):
                shard.kill()
                c.restart_shard(shard)
        c.wait_state("finished", 120)
        check(c.status().step == steps, f"{c.status()}")
        got = result(c)
        lines = recovered_lines(c)
        check(len(lines) == (2 if die else 0), f"recoveries: {lines}")
        check(all(": 0 of" not in line for line in lines), f"a base has every block: {lines}")
        return got


def test_restore():
    """A run that began from a checkpoint has a snapshot of every block before its first step."""
    with Cluster() as c:
        start(c)
        c.create_run(classes=3000, samples=5000, steps=80, seed=SEED, block_size=256, momentum_mode="dense")
        hold = c.held_at(40)
        c.start_workers(2)
        c.ctl("checkpoint", "--at-step", 40, "--out", c.folder / "at")
        c.release(hold)
        c.wait_state("finished", 120)
        whole = c.state_digest()
        expected, got = (restored(c.folder / "at", 80, die) for die in (False, True))
        check(expected[0] == whole, f"restored {expected[0]}, never stopped {whole}")
        check(got == expected, f"recovered {got[0]}, undisturbed {expected[0]}")


def refused(c, shard, state, *words):
    """The shard comes back with a folder that does not do: the run waits for it and says why. Returns the
    shard's new process."""
    shard.kill()
    wrong = c.restart_shard(shard, state=state)
    now = wait_until("the refusal", lambda: next((s for s in [c.status()] if "can't recover" in s.reason), None), 60,
                     context=lambda: f"{c.status()}\n{c.tails()}")
    for word in words:
        check(str(word) in now.reason, f"{word} is not in the reason: {now.reason}")
    check(now.state == "running", f"the run is {now.state}: {now.reason}")
    return wrong


def goes_on(c, wrong, state):
    """The right folder after the wrong one: nothing was lost by the mistake."""
    step = c.status().step
    wrong.kill()
    c.restart_shard(wrong, state=state)
    c.wait_step(step + 5)


def test_folder():
    """A folder that is gone, empty, or another run's is refused with what to do; the run never goes on from
    a wrong state, and goes on with the right one."""
    for case in ("gone", "other run", "other blocks"):
        with Cluster() as c:
            start(c, 2, "--log-limit", "60K" if case == "other blocks" else "1G")
            synthetic(c, 100000)
            c.wait_step(20)
            victim = c.shards[0]
            state = c.folder / "other"
            if case == "gone":
                right = victim.state
                goes_on(c, refused(c, victim, state, state, "run 1", "shardfc restore"), right)
            elif case == "other run":
                with Cluster() as d:
                    start(d)
                    d.create_run(classes=3000, samples=5000, steps=100000, seed=SEED + 1, block_size=256)
                    d.start_workers(1)
                    d.wait_step(20)
                    d.shards[0].kill()
                    shutil.copytree(d.shards[0].state, state)
                right = victim.state
                goes_on(c, refused(c, victim, state, "configuration"), right)
            else:  # the other shard's of this run; it would do as long as the log goes back to the seed
                wait_until("the log to be trimmed", lambda: not any(
                    (s.state / "run-1" / "log-00000001.sfl").exists() for s in c.shards), 60, context=c.tails)
                c.shards[1].kill()
                shutil.copytree(c.shards[1].state, state)
                c.restart_shard(c.shards[1])  # it would give what it still has, but the beginning is gone
                refused(c, victim, state, "snapshot")


def test_full():
    """A log with room for few steps: the sweep moves the floor, and the run never waits for long."""
    steps = 80
    with Cluster() as c:
        start(c, 2, "--log-limit", "120K", "--recovery-target", "1h")
        synthetic(c, steps)
        c.wait_state("finished", 120)
        for shard in c.shards:
            used = sum(len(content(path)) for path in segments(shard))
            check(0 < used <= 120 << 10, f"{used} bytes of log")
        c.shards[0].kill()
        c.restart_shard(c.shards[0])
        wait_until("the shard to come back", lambda: recovered_lines(c), 30, context=c.tails)


def test_tight():
    """Logs that are full before every block has two snapshots, beside one that never is, and a shard that dies
    while its log is full: the run waits for snapshots, and never for ever."""
    run = dict(classes=100000, dim=64, steps=250, global_batch=16, micro_batch=8, sample_ppm=1000, block_size=512)
    digests = []
    for limits in (("1G", "1G"), ("26K", "1G"), ("400K", "400K")):
        with Cluster() as c:
            c.start_scheduler()
            for limit in limits:
                c.start_shard("--log-limit", limit, "--recovery-target", "1h")
            wait_until("shards", lambda: sum(s.state == "ready" for s in c.status().shards) == 2, 30, context=c.tails)
            c.create_run(**dict(run, steps=40) if limits[0] == "26K" else run)
            c.start_worker()
            if limits[0] != "1G":
                wait_until("a full log", lambda: any("--log-limit" in s.durability.error for s in c.status().shards)
                           or c.status().state == "finished", 60, context=c.tails)
                c.shards[0].kill()
                c.restart_shard(c.shards[0])
                wait_until("the shard to come back", lambda: recovered_lines(c), 60, context=c.tails)
            c.wait_state("finished", 120)
            if limits[0] != "26K":
                digests.append(result(c)[0])
    check(digests[0] == digests[1], f"with room and without: {digests}")


def test_off():
    """--durable off is said aloud and writes nothing; a run waits for such a shard that died, and says why."""
    expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0"), 2, "--state",
           "--durable off")
    expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--state", "/tmp/x",
                "--backend", "reference"), 2, "--durable off")
    with Cluster() as c:
        start(c, 2, "--durable", "off")
        synthetic(c, 100000)
        c.wait_step(20)
        victim = c.shards[0]
        check("--durable off" in victim.stderr(), victim.tail())
        names = sorted(p.name for p in victim.state.iterdir())
        check(names == ["lock", "port"], f"{names}")
        refused(c, victim, victim.state, "--durable off", "checkpoint")


def main():
    names = sys.argv[1:] or ["sampled", "dense", "adamw", "half", "gradients", "packed", "scheduler", "restore", "folder", "full",
                             "tight", "off"]
    for name in names:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}, seed {SEED}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
