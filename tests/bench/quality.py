#!/usr/bin/python3
"""What sampling and the momentum mode do to accuracy: trainings with the quick start's recipe through real
daemons, several seeds each, verified on held-out identities in held-out fonts.

    quality.py --data DIR [--steps N] [--seeds N] [--methods NAME,...] [--equal-time METHOD]
               [--json FILE] [--curves DIR]

DIR is a data set of `shardfc data glyphs`. Methods: full (r = 1), sampled (r = 0.1, momentum of sampled
rows only), dense (r = 0.1, all rows coast and decay as a dense optimiser would do it), and whatever
METHODS below has. Seeds rotate inside, so that drift of the machine meets every method.

By default every method takes --steps steps. With --equal-time every method takes as many as fit the
time in which METHOD takes --steps: the rates are measured before, in short runs of each method in turns
(the median of three), so the machine has to be quiet for that minute, and for that minute only.

A table with mean and range over the seeds goes to stdout, --json keeps every number, --curves the loss
of each run.
"""
import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster  # noqa: E402
import subprocess  # noqa: E402

METHODS = {
    "full": ["--sample-rate", "1"],
    "sampled": ["--sample-rate", "0.1", "--momentum-mode", "sampled"],
    "dense": ["--sample-rate", "0.1", "--momentum-mode", "dense"],
    "bf16": ["--sample-rate", "0.1", "--momentum-mode", "dense", "--dtype", "bf16"],
    "bf16-nearest": ["--sample-rate", "0.1", "--momentum-mode", "dense", "--dtype", "bf16", "--rounding",
                     "nearest"],
    "split": ["--sample-rate", "0.1", "--momentum-mode", "dense", "--gemm", "bf16"],
    "dense+logq": ["--sample-rate", "0.1", "--momentum-mode", "dense", "--correction", "logq"],
}
RECIPE = ["--backbone", "tiny", "--dim", "128", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.1",
          "--schedule", "poly:100:1.5:0.02", "--weight-decay", "5e-4", "--clip", "5", "--global-batch", "128",
          "--micro-batch", "32", "--augment", "0.12,0.5,0.08"]


RATE_STEPS = 150


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def evaluate(checkpoint, data):
    def measure(*what):
        command = [str(BIN / "shardfc"), "eval", "--checkpoint", str(checkpoint), *what, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    easy = measure("--pairs", str(data / "pairs_easy.bin"))
    hard = measure("--pairs", str(data / "pairs_hard.bin"))
    labelled = measure("--rec", str(data / "holdout.rec"))
    return {"easy": easy["accuracy"], "hard": hard["accuracy"], "tar_1e-3": labelled["tar_at_far"]["1e-3"]}


def run(cluster, name, method, seed, steps, options):
    cluster.ctl("create", "--run", name, "--data", options.data, "--steps", steps, "--seed", seed,
                *RECIPE, *METHODS[method])
    cluster.wait_state("finished", seconds=7200)
    return cluster.history()


def seconds_of(points):
    return (points[-1].time_us - points[0].time_us) / 1e6


def measure_rates(cluster, methods, options):
    """Steps per second of each method: runs of RATE_STEPS steps in turns."""
    seconds = {method: [] for method in methods}
    for turn in range(3):
        for method in methods:
            points = run(cluster, f"rate-{method}-{turn}", method, 1, RATE_STEPS, options)
            seconds[method].append(seconds_of(points) / (len(points) - 1))
    return {method: 1 / statistics.median(each) for method, each in seconds.items()}


def train(cluster, name, method, seed, steps, options):
    points = run(cluster, name, method, seed, steps, options)
    losses = [p.loss for p in points]
    seconds = seconds_of(points)
    checkpoint = cluster.folder / name
    cluster.ctl("checkpoint", "--out", checkpoint)
    result = evaluate(checkpoint, options.data)
    result.update(method=method, seed=seed, steps=steps, seconds=seconds, loss_last_200=sum(losses[-200:]) / len(losses[-200:]))
    subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    if options.curves:
        options.curves.mkdir(parents=True, exist_ok=True)
        lines = ["step,loss,lr,images_per_s"] + [f"{p.step},{p.loss!r},{p.lr!r},{p.images_per_s!r}" for p in points]
        (options.curves / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return result


def table(results):
    rows = [f"{'method':12} {'runs':>4} {'steps':>6} {'easy %':>16} {'hard %':>16} {'TAR@1e-3 %':>16} {'loss':>7} {'s':>6}"]
    for method in dict.fromkeys(r["method"] for r in results):
        mine = [r for r in results if r["method"] == method]

        def cell(key):
            values = sorted(100 * r[key] for r in mine)
            return f"{sum(values) / len(values):5.2f} ({values[0]:.1f}-{values[-1]:.1f})"
        mean = {key: sum(r[key] for r in mine) / len(mine) for key in ("loss_last_200", "seconds")}
        rows.append(f"{method:12} {len(mine):4} {mine[0]['steps']:6} {cell('easy'):>16} {cell('hard'):>16} {cell('tar_1e-3'):>16} "
                    f"{mean['loss_last_200']:7.3f} {mean['seconds']:6.0f}")
    return "\n".join(["batch 128; mean (range) over seeds"] + rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="full,sampled,dense")
    parser.add_argument("--equal-time", metavar="METHOD")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--curves", type=pathlib.Path)
    options = parser.parse_args()
    methods = options.methods.split(",")
    unknown = [m for m in methods if m not in METHODS]
    if options.equal_time and options.equal_time not in methods:
        parser.error(f"--equal-time {options.equal_time} must be one of --methods")
    if unknown or options.seeds < 1 or options.steps < 1:
        parser.error(f"unknown method {unknown[0]}" if unknown else "--seeds and --steps must be positive")
    results = []
    with Cluster() as cluster:
        cluster.start_scheduler()
        cluster.start_shards(2)
        cluster.start_workers(2, data=options.data.resolve())
        steps = dict.fromkeys(methods, options.steps)
        rates = {}
        if options.equal_time:
            rates = measure_rates(cluster, methods, options)
            say(json.dumps({"steps_per_second": rates}))
            steps = {m: round(options.steps * rates[m] / rates[options.equal_time]) for m in methods}
        for seed in range(1, options.seeds + 1):
            for method in methods:
                result = train(cluster, f"{method}-{seed}", method, seed, steps[method], options)
                results.append(result)
                say(json.dumps(result))
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps({"steps_per_second": rates, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
