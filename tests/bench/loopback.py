#!/usr/bin/python3
"""What the network costs: steps through real daemons on loopback beside the same work in one process.

    loopback.py head [--classes N] [--sample-rate R] [--batch N] [--micro-batch N] [--lanes N] [--dim N]
                     [--shards N] [--threads N] [--steps N] [--rounds N] [--quiet-wait SECONDS]
    loopback.py durable [the same, and --recovery-target TIME --dense-params N --log-dense f32|bf16
                        --durable-every N]
    loopback.py recovery [--classes N] [--shards N] [--steps N] [--dtype f32|bf16] ...
    loopback.py tiny --data DIR [--steps N] [--rounds N] [--quiet-wait SECONDS]
    loopback.py snapshots --data DIR [--steps N] [--quiet-wait SECONDS]

head: the class layer's step. A scheduler, shards of --threads threads each and one worker (synthetic features,
no backbone) train; the time from commit to commit is read from the commit records. `shardfc bench head` does
the same step with as many threads in one process. Rounds alternate between the two (the cluster is paused
while the other one runs), so that both see the same machine.
durable: what the step log and rolling snapshots cost: clusters with them and with --durable off take turns; and the
bytes of log per step beside the inputs of a step. With --dense-params a foreign session pushes gradients of a
backbone of so many parameters (44000000: an R50) in every step, beside the class layer's; --log-dense and
--durable-every are the run's. With --durable-every above 1 times are means, since few steps pay for all.
recovery: SIGKILL of a shard after --steps steps; the time from its start to its first answer of a step, and the
rate at which it goes through its log beside the rate of the steps.
tiny: images per second of the quick start's training: 2 shards, 2 workers, `tiny`, r = 0.1; DIR is a data set
of `shardfc data glyphs`.
snapshots: what compression gains and costs (`shardfc bench snapshots`) on the blocks that the same training in f32
and in bf16 leaves, of class centres and backbone.

A table goes to stderr, one JSON object to stdout. `others` is the share of all processors that programs other
than the measured ones used meanwhile: where it is more than a few percent, the times mean little. --quiet-wait
waits up to so long for a quiet machine before each measurement.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster, pb, run_config, wait_until  # noqa: E402
from machine import Others, wait_quiet  # noqa: E402

WARM_UP = 3  # steps after a start or a pause that don't count


def say(*words):
    print(*words, file=sys.stderr, flush=True)


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
            "--threads", a.threads * a.shards, "--block-size", block_size(a.classes),
            "--momentum-mode", "sampled", "--json"]
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


def middle(a, times):
    return (statistics.mean if a.durable_every > 1 else statistics.median)(times)


def cluster_steps(c, a):
    """Lets the cluster do steps; returns the middle and the best in ms, and the share of others."""
    before = c.status().step
    pids = [p.pid for p in c.processes]
    control(c, pb.ControlRequest.RESUME)
    with Others(pids) as others:
        c.wait_step(before + WARM_UP + a.steps + 1, 600)
    pause(c)
    times = commit_times(c, before)
    steps = [times[t + 1] - times[t] for t in times if t > before + WARM_UP and t + 1 in times]
    steps = [1e3 * s for s in steps[:a.steps]]
    return middle(a, steps), min(steps), others.share


def head(a):
    rounds = []
    with Cluster() as c:
        head_cluster(c, a)
        create_head(c, a)
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


def create_head(c, a, **more):
    config = run_config(classes=a.classes, samples=max(a.classes, a.batch), dim=a.dim, steps=1000000,
                        global_batch=a.batch, micro_batch=a.micro_batch, scale=64.0,
                        sample_ppm=round(a.sample_rate * 1e6), block_size=block_size(a.classes),
                        warmup_steps=0, lr_end=1.0, dtype=a.dtype, gemm=a.dtype, **more)
    keeping = pb.RunKeeping(durable_every=a.durable_every)
    c.stub.CreateRun(pb.CreateRunRequest(config=config, keeping=keeping), timeout=600)
    if not more:
        c.start_worker(threads=a.lanes)


def head_cluster(c, a, *extra):
    c.start_scheduler()
    for _ in range(a.shards):
        c.start_shard("--threads", str(a.threads), *extra)
    wait_until("the shards", lambda: len(c.status().shards) == a.shards, 30)


# ---- step log and snapshots

def disk_bytes(shard):
    """(log, snapshots) of a shard's run, snapshots as stamps of block files."""
    files = list(shard.state.glob("run-*/*"))
    return (sum(p.stat().st_size for p in files if p.suffix == ".sfl"),
            {p.name for p in files if p.suffix == ".sfs"})


def session_steps(c, a):
    """Steps of a foreign session with a backbone; middle in ms from commit to commit, and the share of others."""
    import dense_session  # needs NumPy, as nothing else here does
    create_head(c, a, data=pb.DataSet(kind=pb.DataSet.SESSION), backbone="parameters", clip=0.0,
                segments=dense_session.segments(a.dense_params), log_dense_bf16=a.log_dense == "bf16")
    session = dense_session.DenseSession(c)
    session.steps(WARM_UP)
    pids = [os.getpid(), *(p.pid for p in c.processes)]
    wait_quiet(a.quiet_wait, pids)
    with Others(pids) as others:
        session.steps(a.steps + 1)
    last = WARM_UP + a.steps + 1
    c.wait_step(last, 600)
    times = commit_times(c, WARM_UP)  # up to the last durable step
    return middle(a, [1e3 * (times[t + 1] - times[t]) for t in times if t + 1 in times]), others.share


def durable_turn(a, *extra):
    """Middle of a fresh cluster's steps in ms, the share of others, snapshots, and bytes of all logs per step."""
    with Cluster() as c:
        head_cluster(c, a, *extra)
        if a.dense_params:
            before = set()
            took, others = session_steps(c, a)
        else:
            create_head(c, a)
            c.wait_step(WARM_UP, 600)
            pause(c)
            wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
            before = set().union(*(disk_bytes(s)[1] for s in c.shards))
            took, _, others = cluster_steps(c, a)
        written = set().union(*(disk_bytes(s)[1] for s in c.shards)) - before
        return took, others, len(written), sum(log_step_bytes(s, c.status().step) for s in c.shards)


def log_step_bytes(shard, steps):
    """Bytes of a step in the log of a shard that has deleted none of it; 0 without a log."""
    if any(shard.state.glob("run-*/*.sfl")) and not any(shard.state.glob("run-*/log-00000001.sfl")):
        raise SystemExit("the log was trimmed meanwhile: fewer --steps, or a longer --recovery-target")
    return disk_bytes(shard)[0] / steps


def durable(a):
    rounds, per_step = [], 0
    number = 2 if a.log_dense == "bf16" else 4
    inputs = a.shards * a.batch * (a.dim * 4 + 8 + 8) + a.dense_params * number
    say(f"{a.classes} classes, r {a.sample_rate}, batch {a.batch} of {a.micro_batch}, dim {a.dim}; "
        f"{a.shards} shards of {a.threads} threads; {'means' if a.durable_every > 1 else 'medians'} of {a.steps} "
        f"steps; --recovery-target {a.recovery_target}; --durable-every {a.durable_every}"
        + (f"; {a.dense_params} dense parameters, logged as {a.log_dense}" if a.dense_params else ""))
    say(f"{'round':>5} {'on ms':>8} {'off ms':>8} {'others':>7} {'ratio':>6} {'snapshots':>10}")
    for i in range(a.rounds):
        on, others, written, per_step = durable_turn(a, "--recovery-target", a.recovery_target)
        off, others_off, _, _ = durable_turn(a, "--durable", "off")
        rounds.append({"on_ms": round(on, 3), "off_ms": round(off, 3),
                       "others": round(max(others, others_off), 3), "snapshots": written,
                       "ratio": round(on / off, 3)})
        say(f"{i + 1:5} {on:8.1f} {off:8.1f} {rounds[-1]['others']:7.1%} {on / off:6.3f} {written:10}")
    ratio = statistics.median(r["ratio"] for r in rounds)
    more = statistics.median(r["on_ms"] - r["off_ms"] for r in rounds)
    say(f"median of the ratios: {ratio:.3f}, of the differences: {more:.1f} ms; the logs of all shards take "
        f"{per_step:.0f} bytes per step, the inputs {inputs}: {per_step / inputs:.3f}")
    return {"bench": "loopback durable", "classes": a.classes, "batch": a.batch, "dim": a.dim,
            "shards": a.shards, "dense_params": a.dense_params, "log_dense": a.log_dense,
            "durable_every": a.durable_every, "ratio": ratio,
            "more_ms": round(more, 3), "log_bytes_per_step": round(per_step),
            "input_bytes_per_step": inputs, "rounds": rounds}


def recovery(a):
    with Cluster() as c:
        head_cluster(c, a, "--recovery-target", a.recovery_target)
        create_head(c, a)
        c.wait_step(a.steps, 3600)
        pause(c)
        times = commit_times(c, 0)
        steps = sorted(times)
        took = statistics.median(times[t + 1] - times[t] for t in steps[WARM_UP:-1] if t + 1 in times)
        log = disk_bytes(c.shards[0])[0]
        victim = c.shards[0]
        victim.kill()
        began = time.monotonic()
        shard = c.restart_shard(victim)
        wait_until("the recovery", lambda: " recovered to step " in shard.stderr(), 3600)
        ready = time.monotonic() - began
        control(c, pb.ControlRequest.RESUME)
        c.wait_step(steps[-1] + 1, 600)
        answered = time.monotonic() - began
        line = next(x for x in shard.stderr().splitlines() if " recovered to step " in x)
    say(line)
    first, last, replayed_s = re.search(r"steps (\d+)\.\.(\d+) from the log in ([\d.]+) s", line).groups()
    replayed = int(last) - int(first) + 1
    rate = replayed / float(replayed_s)
    say(f"steps took {1e3 * took:.1f} ms each, {1 / took:.2f} a second; of the log {replayed} steps, {rate:.2f} a "
        f"second, {rate * took:.2f} x; recovered {ready:.1f} s after the start, next step committed after "
        f"{answered:.1f} s; log {log / 1e6:.0f} MB")
    return {"bench": "loopback recovery", "classes": a.classes, "shards": a.shards, "steps": a.steps,
            "dtype": a.dtype, "step_ms": round(1e3 * took, 3), "replayed": replayed,
            "replay_steps_per_s": round(rate, 3), "replay_to_steps": round(rate * took, 3),
            "recovered_s": round(ready, 3), "answered_s": round(answered, 3), "log_bytes": log, "line": line}


# ---- the quick start's training

def create_tiny(c, a, *extra):
    c.ctl("create", "--run", "tiny", "--data", a.data, "--backbone", "tiny", "--dim", "128",
          "--sample-rate", "0.1", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.1",
          "--schedule", f"poly:{min(100, a.steps // 10)}:1.5:0.02", "--weight-decay", "5e-4",
          "--clip", "5", "--global-batch", "128", "--micro-batch", "32",
          "--augment", "0.12,0.5,0.08", "--steps", a.steps, "--seed", "1", *extra)


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
            create_tiny(c, a)
            with Others(pids) as others:
                done = c.wait_state("finished", 1200)
            rounds.append({"images_per_s": round(done.images_per_s, 1), "others": round(others.share, 3)})
            say(f"{i + 1:5} {done.images_per_s:9.0f} {others.share:7.1%}")
    return {"bench": "loopback tiny", "steps": a.steps,
            "images_per_s": statistics.median(r["images_per_s"] for r in rounds), "rounds": rounds}


# ---- compression of snapshots

def snapshots(a):
    """The bf16 run's backbone is f32 like that of the other, which is why its blocks are in the f32 line of both."""
    found = {}
    for dtype in ("f32", "bf16"):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1, "--threads", "2", "--recovery-target", "1s")
            c.start_workers(2, data=a.data)
            create_tiny(c, a, "--dtype", dtype)
            c.wait_state("finished", 1200)
            for process in c.processes:
                process.kill()
            wait_quiet(a.quiet_wait, [])
            folder = next(c.shards[0].state.glob("run-*"))
            with Others([os.getpid()]) as others:
                done = subprocess.run([str(BIN / "shardfc"), "bench", "snapshots", "--json", folder],
                                      check=True, stdout=subprocess.PIPE)
            found[dtype] = json.loads(done.stdout)
            found[dtype]["others"] = round(others.share, 3)
    say(f"{'run':>5} {'numbers':>8} {'files':>6} {'raw MB':>8} {'level':>6} {'ratio':>6} {'pack MB/s':>10} "
        f"{'unpack MB/s':>12}")
    for dtype, said in found.items():
        for numbers in ("f32", "bf16"):
            for x in said[numbers]["levels"]:
                say(f"{dtype:>5} {numbers:>8} {said[numbers]['files']:6} {said[numbers]['raw_bytes'] / 1e6:8.1f} "
                    f"{x['level']:6} {x['ratio']:6.3f} {x['pack_mb_s']:10.0f} {x['unpack_mb_s']:12.0f}")
    return {"bench": "loopback snapshots", "steps": a.steps, **found}


def check_numbers(parser, a):
    least = {"steps": 10 if a.mode in ("tiny", "snapshots") else WARM_UP + 2 if a.mode == "recovery" else 1}
    for name in ("classes", "batch", "micro_batch", "lanes", "dim", "shards", "threads", "steps", "rounds"):
        value = getattr(a, name, None)
        if value is not None and value < least.get(name, 1):
            parser.error(f"--{name.replace('_', '-')} {value}: at least {least.get(name, 1)}")
    if not 0 < getattr(a, "sample_rate", 1) <= 1:
        parser.error(f"--sample-rate {a.sample_rate}: above 0 and at most 1")
    if getattr(a, "micro_batch", None) and a.batch % a.micro_batch:
        parser.error(f"--micro-batch {a.micro_batch} does not divide --batch {a.batch}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    heads = [modes.add_parser(mode) for mode in ("head", "durable", "recovery")]
    for h in heads:
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
        h.add_argument("--recovery-target", default="5m")
        h.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="of class centres and products")
    for h in heads:
        h.add_argument("--durable-every", type=int, default=1)
    heads[1].add_argument("--dense-params", type=int, default=0)
    heads[1].add_argument("--log-dense", choices=("f32", "bf16"), default="f32")
    trainings = [modes.add_parser(mode) for mode in ("tiny", "snapshots")]
    for t in trainings:
        t.add_argument("--data", type=pathlib.Path, required=True)
        t.add_argument("--steps", type=int, default=400)
    trainings[0].add_argument("--rounds", type=int, default=1)
    for mode in (*heads, *trainings):
        mode.add_argument("--quiet-wait", type=float, default=0, metavar="SECONDS")
    a = parser.parse_args()
    check_numbers(parser, a)
    if a.mode not in ("tiny", "snapshots"):
        a.micro_batch = a.micro_batch or a.batch
        a.lanes = a.lanes or a.batch // a.micro_batch
    print(json.dumps(globals()[a.mode](a)))


if __name__ == "__main__":
    main()
