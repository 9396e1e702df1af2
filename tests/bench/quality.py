#!/usr/bin/python3
"""What sampling and the momentum mode do to accuracy: trainings with the quick start's recipe through real
daemons, several seeds each, verified on held-out identities in held-out fonts.

    quality.py --data DIR [--steps N] [--seeds N] [--methods NAME,...] [--json FILE] [--curves DIR]

DIR is a data set of `shardfc data glyphs`. Methods: full (r = 1), sampled (r = 0.1, momentum of sampled
rows only), dense (r = 0.1, all rows coast and decay as a dense optimiser would do it), and whatever
METHODS below has. Seeds rotate inside, so that drift of the machine meets every method. A table with mean and
range over the seeds goes to stdout, --json keeps every number, --curves the loss of each run.
"""
import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster  # noqa: E402
import subprocess  # noqa: E402

METHODS = {
    "full": ["--sample-rate", "1"],
    "sampled": ["--sample-rate", "0.1", "--momentum-mode", "sampled"],
    "dense": ["--sample-rate", "0.1", "--momentum-mode", "dense"],
    "dense+logq": ["--sample-rate", "0.1", "--momentum-mode", "dense", "--correction", "logq"],
}
RECIPE = ["--backbone", "tiny", "--dim", "128", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.1",
          "--schedule", "poly:100:1.5:0.02", "--weight-decay", "5e-4", "--clip", "5", "--global-batch", "128",
          "--micro-batch", "32", "--augment", "0.12,0.5,0.08"]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def evaluate(checkpoint, data):
    def run(*what):
        command = [str(BIN / "shardfc"), "eval", "--checkpoint", str(checkpoint), *what, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    easy = run("--pairs", str(data / "pairs_easy.bin"))
    hard = run("--pairs", str(data / "pairs_hard.bin"))
    labelled = run("--rec", str(data / "holdout.rec"))
    return {"easy": easy["accuracy"], "hard": hard["accuracy"], "tar_1e-3": labelled["tar_at_far"]["1e-3"]}


def train(cluster, name, method, seed, options):
    cluster.ctl("create", "--run", name, "--data", options.data, "--steps", options.steps, "--seed", seed,
                *RECIPE, *METHODS[method])
    cluster.wait_state("finished", seconds=7200)
    points = cluster.history()
    losses = [p.loss for p in points]
    seconds = (points[-1].time_us - points[0].time_us) / 1e6
    checkpoint = cluster.folder / name
    cluster.ctl("checkpoint", "--out", checkpoint)
    result = evaluate(checkpoint, options.data)
    result.update(method=method, seed=seed, seconds=seconds, loss_last_200=sum(losses[-200:]) / len(losses[-200:]))
    subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    if options.curves:
        options.curves.mkdir(parents=True, exist_ok=True)
        lines = ["step,loss,lr,images_per_s"] + [f"{p.step},{p.loss!r},{p.lr!r},{p.images_per_s!r}" for p in points]
        (options.curves / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return result


def table(results, steps):
    rows = [f"{'method':12} {'runs':>4} {'easy %':>16} {'hard %':>16} {'TAR@1e-3 %':>16} {'loss':>7} {'s':>6}"]
    for method in dict.fromkeys(r["method"] for r in results):
        mine = [r for r in results if r["method"] == method]

        def cell(key):
            values = sorted(100 * r[key] for r in mine)
            return f"{sum(values) / len(values):5.2f} ({values[0]:.1f}-{values[-1]:.1f})"
        mean = {key: sum(r[key] for r in mine) / len(mine) for key in ("loss_last_200", "seconds")}
        rows.append(f"{method:12} {len(mine):4} {cell('easy'):>16} {cell('hard'):>16} {cell('tar_1e-3'):>16} "
                    f"{mean['loss_last_200']:7.3f} {mean['seconds']:6.0f}")
    return "\n".join([f"{steps} steps of 128; mean (range) over seeds"] + rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="full,sampled,dense")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--curves", type=pathlib.Path)
    options = parser.parse_args()
    methods = options.methods.split(",")
    unknown = [m for m in methods if m not in METHODS]
    if unknown or options.seeds < 1 or options.steps < 1:
        parser.error(f"unknown method {unknown[0]}" if unknown else "--seeds and --steps must be positive")
    results = []
    with Cluster() as cluster:
        cluster.start_scheduler()
        cluster.start_shards(2)
        cluster.start_workers(2, data=options.data.resolve())
        for seed in range(1, options.seeds + 1):
            for method in methods:
                result = train(cluster, f"{method}-{seed}", method, seed, options)
                results.append(result)
                say(json.dumps(result))
    print(table(results, options.steps))
    if options.json:
        options.json.write_text(json.dumps({"steps": options.steps, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
