#!/usr/bin/python3
"""What it costs to be watched: steps of a loopback cluster with metrics of every daemon scraped, the status page polled and
JSON logs at level debug, against the same run with none of it. A B A B ..., each a cluster of its own.

    observe.py [--pairs 6] [--steps 400] [--classes 100000] [--json FILE]
    observe.py --idle SECONDS      processor time per second of daemons that have nothing to do but be watched

Prints a table, and with --json the numbers: time per step, and processor time per step of all daemons together, which says the same on a
machine that others use too. The claim in docs/benchmarks.md is at most 1 % of a step."""
import argparse
import http.client
import json
import os
import pathlib
import statistics
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import Cluster  # noqa: E402

HTTP = ("--http", "127.0.0.1:0")
LOG = ("--log-format", "json", "--log-level", "debug")
QUIET = ("--log-level", "error")
EVERY_S = 1.0  # Prometheus asks every 15 s, an open page every second or two
PAGE = ("/", "/api/status", "/api/series?since=0", "/api/events?since=0", "/api/blocks", "/api/runs")


def pages_of(process):
    return next(line.split()[1] for line in process.stdout().splitlines() if line.startswith("http "))


class Watcher:
    """Prometheus and a browser: asks everybody for everything, again and again."""

    def __init__(self, scheduler, others):
        self.asked = [(pages_of(scheduler), path) for path in ("/metrics", *PAGE)]
        self.asked += [(pages_of(p), "/metrics") for p in others]
        self.answers = self.bytes = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.over.wait(EVERY_S):
            for address, path in self.asked:
                host, port = address.rsplit(":", 1)
                connection = http.client.HTTPConnection(host, int(port), timeout=20)
                connection.request("GET", path)
                answer = connection.getresponse()
                self.bytes += len(answer.read())
                self.answers += answer.status == 200
                connection.close()

    def end(self):
        self.over.set()
        self.thread.join()


def processor_ms(processes):
    """User and system time of all of them since they started."""
    ticks = 0
    for p in processes:
        fields = pathlib.Path(f"/proc/{p.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return 1e3 * ticks / os.sysconf("SC_CLK_TCK")


def one_run(watched, steps, classes):
    """Milliseconds per step by the clock and of processors, and what was read meanwhile."""
    extra = (*HTTP, *LOG) if watched else QUIET
    with Cluster() as c:
        c.start_scheduler(*extra)
        shards = c.start_shards(2, *extra)
        workers = c.start_workers(2, *extra)
        watcher = None
        if watched:
            for worker in workers:
                while "http " not in worker.stdout():
                    threading.Event().wait(0.05)
            watcher = Watcher(c.scheduler, [*shards, *workers])
        daemons = [c.scheduler, *shards, *workers]
        before = processor_ms(daemons)
        try:
            c.create_run(steps=steps, classes=classes, samples=2 * classes, dim=128, global_batch=128, micro_batch=32, seed=5)
            c.wait_state("finished", 600)
        finally:
            spent = processor_ms(daemons) - before
            if watcher:
                watcher.end()
        return (128e3 / c.status().images_per_s, spent / steps), (watcher.answers, watcher.bytes) if watcher else (0, 0)


def idle(watched, seconds):
    """Milliseconds of processors per second, of a cluster without a run."""
    extra = (*HTTP, *LOG) if watched else QUIET
    with Cluster() as c:
        c.start_scheduler(*extra)
        shards = c.start_shards(2, *extra)
        workers = c.start_workers(2, *extra)
        while watched and not all("http " in worker.stdout() for worker in workers):
            threading.Event().wait(0.05)
        watcher = Watcher(c.scheduler, [*shards, *workers]) if watched else None
        daemons = [c.scheduler, *shards, *workers]
        before = processor_ms(daemons)
        threading.Event().wait(seconds)
        spent = processor_ms(daemons) - before
        if watcher:
            watcher.end()
        return spent / seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--classes", type=int, default=100000)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--idle", type=float)
    args = parser.parse_args()
    if args.idle:
        alone, watched = (idle(w, args.idle) for w in (False, True))
        print(f"{alone:.1f} ms of processors per second alone, {watched:.1f} watched: {(watched - alone) / 10:+.2f} % of one core")
        return
    off, on, read = [], [], []
    for pair in range(args.pairs):
        for watched in ((False, True), (True, False))[pair % 2]:  # A B, B A: what drifts meets both
            ms, got = one_run(watched, args.steps, args.classes)
            (on if watched else off).append(ms)
            if watched:
                read.append(got)
            print(f"pair {pair}: {'watched' if watched else 'alone':8} {ms[0]:8.3f} ms per step, {ms[1]:8.3f} ms of processors",
                  file=sys.stderr)
    result = {"steps": args.steps, "pages": sum(a for a, _ in read), "bytes": sum(b for _, b in read)}
    print("| per step, median (least to most) | alone | watched | cost, median of pairs (least to most) |\n|---|---|---|---|")
    for k, (key, name) in enumerate((("clock", "ms by the clock"), ("processor", "ms of processors, all daemons"))):
        a, b = [v[k] for v in off], [v[k] for v in on]
        ratios = [100 * (y / x - 1) for x, y in zip(a, b)]
        cells = [f"{statistics.median(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (a, b)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {statistics.median(ratios):+.2f} % ({min(ratios):+.2f} to {max(ratios):+.2f}) |")
        result[key] = {"alone_ms": a, "watched_ms": b, "cost_percent": statistics.median(ratios)}
    print(f"\n{args.pairs} pairs of {args.steps} steps; {result['pages']} pages and {result['bytes']} bytes read")
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
