#!/usr/bin/python3
"""What it costs a run when shards and workers come and go.

    elastic.py gaps [--classes N] [--batch N] [--dim N] [--quiet-wait SECONDS] [--out DIR]
    elastic.py move [--classes N] [--steps N] [--quiet-wait SECONDS] ...

gaps: a run goes from 1 to 4 to 2 to 3 shards and from 1 to 3 to 1 workers; the times between two commits come from
the commit records, and blocks are on their way while `status` says so. Longest gap during moves beside the median step;
with --out DIR a plot, elastic-gaps.svg (python3-matplotlib). The state must be that of a run on one shard.
move: all of a shard's blocks (half of the classes) go to another one over loopback (`drain`): first while the run is
paused, as fast as it goes; then, after as many have come back, while it trains, at the scheduler's default --move-rate,
with the step before and during the move. Just before and just after the first move as many bytes (at most a GB) go from
one process to another by nothing but TCP and the same checksum (bench_tcp): into one buffer, into new memory, and from
there into a synced file on the disk that the shards write to.

A table goes to stderr, one JSON object to stdout. `others` is the share of all processors that other programs used.
"""
import argparse
import calendar
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster, pb, run_config, wait_until  # noqa: E402
from loopback import block_size, commit_times, control, pause, say  # noqa: E402
from machine import Others, used_seconds, wait_quiet  # noqa: E402

WARM_UP = 5
BETWEEN = 40  # steps in peace between two changes


def create(c, a):
    config = run_config(classes=a.classes, samples=max(a.classes, a.batch), dim=a.dim, steps=1000000,
                        global_batch=a.batch, micro_batch=a.batch // 4, scale=64.0, sample_ppm=100000,
                        block_size=block_size(a.classes), warmup_steps=0, lr_end=1.0, momentum_mode="dense")
    c.stub.CreateRun(pb.CreateRunRequest(config=config), timeout=600)


def undisturbed(a, step):
    """(state, losses) of a run on one shard after a step."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shard("--threads", "2")
        settle(c, 1)
        create(c, a)
        c.start_worker(threads=4)
        held = c.hold(step, 600)
        digest, losses = c.state_digest()[1], [p.loss for p in c.history()]
        c.release(held)
        return digest, losses[:step]


class Watch(threading.Thread):
    """Notes when blocks are on their way: [(begin, end)], seconds since 1970."""

    def __init__(self, c):
        super().__init__(daemon=True)
        self.cluster, self.spans, self.ends = c, [], threading.Event()

    def run(self):
        began = None
        while not self.ends.wait(0.02):
            moves = bool(self.cluster.status().goal)
            if moves and began is None:
                began = time.time()
            elif not moves and began is not None:
                self.spans.append((began, time.time()))
                began = None

    def stop(self):
        self.ends.set()
        self.join()


def scale(c, shards):
    c.ctl("scale", "--shards", shards, seconds=900)


def gaps(a):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shard("--threads", "1")
        wait_until("the shard", lambda: len(c.status().shards) == 1, 30)
        create(c, a)
        c.start_worker(threads=2)
        for _ in range(3):
            c.start_shard("--threads", "1")
        c.wait_step(WARM_UP, 600)
        wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
        watch = Watch(c)
        watch.start()
        with Others([p.pid for p in c.processes]) as others:
            for shards, workers in ((4, 3), (2, 3), (3, 1)):
                c.wait_step(c.status().step + BETWEEN, 600)
                scale(c, shards)
                while len(c.workers) < workers:
                    c.start_worker(threads=2)
                while len(c.workers) > workers:
                    c.workers.pop().terminate()
            c.wait_step(c.status().step + BETWEEN, 600)
            pause(c)
        watch.stop()
        times = commit_times(c, WARM_UP)
        step, digest = c.state_digest()
        losses = [p.loss for p in c.history()]
        noted = c.ctl_json("events", "--limit", "1000")["events"]
    same = undisturbed(a, step) == (digest, losses)
    ends = sorted(times)
    steps = [(times[t], 1e3 * (times[t] - times[t - 1])) for t in ends if t - 1 in times]
    moving = [ms for at, ms in steps if any(b <= at and at - 1e-3 * ms <= e for b, e in watch.spans)]
    quiet = [ms for at, ms in steps if not any(b <= at and at - 1e-3 * ms <= e for b, e in watch.spans)]
    median = statistics.median(ms for _, ms in steps)
    allowed = 2 * median + 50
    say(f"{a.classes} classes, r 0.1, batch {a.batch}, dim {a.dim}; 1 -> 4 -> 2 -> 3 shards, 1 -> 3 -> 1 workers in "
        f"{step} steps; others {others.share:.1%}")
    for at, ms in sorted(steps, key=lambda s: -s[1])[:5]:
        say(f"{ms:7.1f} ms up to {clock(at)}: {near(noted, at, ms)}")
    say(f"step: median {median:.1f} ms, without moves {statistics.median(quiet):.1f}, during moves "
        f"{statistics.median(moving):.1f}; longest gap between commits during moves {max(moving):.1f} ms, "
        f"2 x the median + 50 ms = {allowed:.1f}")
    report = {"bench": "elastic gaps", "classes": a.classes, "batch": a.batch, "dim": a.dim, "steps": step,
              "others": round(others.share, 3), "median_ms": round(median, 3),
              "quiet_ms": round(statistics.median(quiet), 3), "moving_ms": round(statistics.median(moving), 3),
              "longest_quiet_ms": round(max(quiet), 3), "longest_moving_ms": round(max(moving), 3),
              "allowed_ms": round(allowed, 3), "digest": digest, "same_as_one_shard": same}
    say("state and losses are " + ("those of a run on one shard" if same else "OTHERS than those of a run on one shard"))
    if a.out:
        plot(a, steps, watch.spans, allowed)
    return report


def clock(at):
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f"{at % 1:.3f}"[1:]


def near(events, at, ms):
    """What the scheduler noted from just before a gap to just after it."""
    def when(text):
        day, _, part = text.rstrip("Z").partition(".")
        return calendar.timegm(time.strptime(day, "%Y-%m-%dT%H:%M:%S")) + float("0." + (part or "0"))
    return "; ".join(e["what"] for e in events if at - 1e-3 * ms - 0.05 <= when(e["time"]) <= at + 0.05) or "no event"


def plot(a, steps, spans, allowed):
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    zero = steps[0][0]
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for i, (begin, end) in enumerate(spans):
        axes.axvspan(begin - zero, end - zero, color="#dce6f5", label="blocks on their way" if i == 0 else None)
    axes.plot([at - zero for at, _ in steps], [ms for _, ms in steps], ".", color="#1f4e9c", markersize=4,
              label="time since the commit before")
    axes.axhline(allowed, color="#c2334d", linestyle="--", linewidth=1.2, label="2 x the median step + 50 ms")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms")
    axes.set_title(f"1 → 4 → 2 → 3 shards while training: {a.classes} classes, batch {a.batch}, dim {a.dim}", fontsize=11)
    axes.grid(True, color="#d9d9d9", linewidth=0.6)
    axes.legend(fontsize=9, facecolor="white", framealpha=1)
    figure.tight_layout()
    path = pathlib.Path(a.out) / "elastic-gaps.svg"
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    say(path)


def tcp_rates(c, size):
    """GB/s of so many bytes (a GB of them is enough) by plain TCP with checksum: {mode of bench_tcp: rate}."""
    rates, size = {}, min(size, 10**9)
    for mode in ("stream", "keep", "disk"):
        argv = [str(BIN / "bench_tcp"), str(size), mode] + ([str(c.folder)] if mode == "disk" else [])
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
        rates[mode] = json.loads(done.stdout)["gb_per_s"]
    return rates


def processor_seconds(pids):
    return used_seconds(pids) - used_seconds([])


def drain(c, shard):
    """Seconds that it took, and bytes."""
    size = c.ctl_json("drain", shard, "--dry-run")["bytes"]
    began = time.monotonic()
    c.ctl("drain", shard, seconds=1800)
    return time.monotonic() - began, size


def settle(c, count):
    wait_until("the shards", lambda: sum(s.state == "ready" for s in c.status().shards) >= count, 60)


def step_ms(c, after, before=None):
    times = commit_times(c, after)
    took = [1e3 * (times[t + 1] - times[t]) for t in times if t + 1 in times and (before is None or t < before)]
    return statistics.median(took)


def move(a):
    with Cluster() as c:
        c.start_scheduler()
        shards = [c.start_shard("--threads", "2")]
        settle(c, 1)
        create(c, a)
        c.start_worker(threads=4)
        shards.append(c.start_shard("--threads", "2"))
        settle(c, 2)
        first, second = (s.id for s in c.status().shards)
        c.wait_step(WARM_UP, 600)
        pause(c)
        scale_to_both(c)
        wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
        size = c.ctl_json("drain", first, "--dry-run")["bytes"]
        tcp = [tcp_rates(c, size)]
        used = processor_seconds([p.pid for p in shards])
        with Others([p.pid for p in c.processes]) as idle_others:
            seconds, size = drain(c, first)
        used = processor_seconds([p.pid for p in shards]) - used
        tcp.append(tcp_rates(c, size))
        idle, cost = size / seconds, used / size * 1e9
        say(f"paused: {size / 1e9:.2f} GB in {seconds:.1f} s, {idle / 1e9:.2f} GB/s; the two shards computed for "
            f"{cost:.2f} s per GB; others {idle_others.share:.1%}")
        for mode in tcp[0]:
            rates = [t[mode] for t in tcp]
            say(f"plain TCP with checksum, {mode}: {rates[0]:.2f} GB/s before, {rates[1]:.2f} after; the move has "
                f"{idle / 1e9 / statistics.mean(rates):.0%}")
        scale_to_both(c)
        control(c, pb.ControlRequest.RESUME)
        wait_quiet(a.quiet_wait, [p.pid for p in c.processes])
        at = c.status().step
        c.wait_step(at + WARM_UP + a.steps, 1200)
        begin = c.status().step
        alone = step_ms(c, at + WARM_UP)
        with Others([p.pid for p in c.processes]) as others:
            seconds, size = drain(c, second)
        end = c.status().step
        during = step_ms(c, begin, end)
        pause(c)
    say(f"training: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s; step {alone:.1f} ms before, "
        f"{during:.1f} during ({during / alone:.2f} x, {end - begin} steps); others {others.share:.1%}")
    return {"bench": "elastic move", "classes": a.classes, "batch": a.batch, "dim": a.dim, "idle_bytes_per_s": round(idle),
            "idle_others": round(idle_others.share, 3), "idle_processor_s_per_gb": round(cost, 3),
            "plain_tcp_gb_per_s": tcp, "training_bytes_per_s": round(size / seconds),
            "step_ms": round(alone, 3), "step_during_ms": round(during, 3), "ratio": round(during / alone, 3),
            "others": round(others.share, 3)}


def scale_to_both(c):
    """The second shard becomes a member without a block of the first, if a plan of the scheduler says so; else with some."""
    c.ctl("scale", "--shards", 2, seconds=1800)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gaps", "move"))
    parser.add_argument("--classes", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quiet-wait", type=float, default=0)
    parser.add_argument("--out")
    a = parser.parse_args()
    a.classes = a.classes or (100_000 if a.what == "gaps" else 1_000_000)
    report = gaps(a) if a.what == "gaps" else move(a)
    print(json.dumps(report))
    return 0 if report.get("same_as_one_shard", True) else 1


if __name__ == "__main__":
    sys.exit(main())
