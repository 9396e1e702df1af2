#!/usr/bin/python3
"""Identities are added to a run that trains on pictures of characters: does it learn them, does it go on learning the others, and is
what it is afterwards exact?

    grow.py [--classes N] [--grown N] [--faces N] [--held-out N] [--at STEP] [--kill-after N] [--steps N] [--seed N]
            [--data DIR] [--pairs N] [--far X] [--block-size N] [--no-alone] [--json FILE]

Data: `shardfc data glyphs` draws --grown identities in --faces font faces; of each identity the last --held-out pictures
are never trained on. The first --classes identities are the set that the run begins with, all of them the one that it
grows to.

grown: 2 shards, 2 workers; with step --at committed `shardfc grow` is called while it trains. --kill-after steps after the first new
sample everything (scheduler, shards, workers) is killed with SIGKILL, started again, and trains to the end.
undisturbed: a run on 1 shard with 1 worker that is paused before the same step, grows, and is never killed. Its checkpoint must have the
same digest, and every step the same loss.
alone: the same run without a growth.

Verified are pictures that were held out, of the old identities and of the new ones, each set by itself: ten-fold
accuracy over --pairs pairs, half of them random impostors, and TAR at the given FAR over all pairs. A table goes to
stdout, --json keeps every number. Exit status 1 if the two runs differ, or if an accuracy has not risen.
"""
import argparse
import json
import pathlib
import pickle
import random
import statistics
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from cluster import BIN, Cluster, Failure, wait_until  # noqa: E402
from quality import say  # noqa: E402

RECIPE = ["--backbone", "tiny", "--dim", "128", "--sample-rate", "0.1", "--momentum-mode", "dense", "--correction", "logq",
          "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.1", "--weight-decay", "5e-4", "--clip", "5",
          "--global-batch", "128", "--micro-batch", "32", "--augment", "0.12,0.5,0.08"]
MAGIC = struct.pack("<I", 0xced7230a)


def shardfc(*words):
    done = subprocess.run([str(BIN / "shardfc"), *[str(w) for w in words], "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failure(f"shardfc {' '.join(str(w) for w in words)}: exit {done.returncode}")
    return json.loads(done.stdout)


# ---- data

def records(path):
    """(label, JPEG) of each image of a .rec file whose identities are below 2^24 (docs/FORMATS.md)."""
    data, at, parts = path.read_bytes(), 0, []
    while at < len(data):
        word = struct.unpack_from("<I", data, at + 4)[0]
        part, length = word >> 29, word & (1 << 29) - 1
        parts.append(data[at + 8:at + 8 + length])
        at += 8 + (length + 3 & ~3)
        if part in (0, 3):
            payload, parts = MAGIC.join(parts), []
            flag, label = struct.unpack_from("<If", payload)
            if flag == 0:
                yield int(label), payload[24:]


def write(folder, pictures):
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        (folder / f"{i:03}.jpg").write_bytes(picture)


def pack(folder, out):
    return shardfc("data", "pack", folder, "--no-flip", "--out", out)


def write_pairs(path, identities, count, seed):
    """As many pairs of one identity as of two, in turn."""
    rng, images = random.Random(seed), []
    for i in range(count):
        one, other = rng.sample(range(len(identities)), 2)
        images += rng.sample(identities[one], 2) if i % 2 == 0 else [rng.choice(identities[one]), rng.choice(identities[other])]
    path.write_bytes(pickle.dumps((images, [i % 2 == 0 for i in range(count)]), protocol=3))


def make_data(a, folder):
    """Packed sets `old`, `new` (which begins with it), `test-old`, `test-new` (held-out pictures), with pairs.bin in these."""
    glyphs = folder / "glyphs"
    shardfc("data", "glyphs", "--out", glyphs, "--classes", a.grown, "--faces", a.faces, "--holdout", 20, "--pairs", 20, "--seed", a.seed)
    of = {}
    for label, picture in records(glyphs / "train.rec"):
        of.setdefault(label, []).append(picture)
    if len(of) < a.grown:
        raise Failure(f"the fonts have only {len(of)} identities")
    sets = {"old": range(a.classes), "new": range(a.classes, a.grown)}
    for name, identities in sets.items():
        for c in identities:
            write(folder / "pictures" / f"{c:06}", of[c][:-a.held_out])
            write(folder / f"pictures-{name}" / f"{c:06}", of[c][-a.held_out:])
        packed = pack(folder / "pictures", folder / name)  # the new ones beside the old ones
        say(f"{name}: {json.dumps(packed)}")
        pack(folder / f"pictures-{name}", folder / f"test-{name}")
        write_pairs(folder / f"test-{name}" / "pairs.bin", [of[c][-a.held_out:] for c in identities], a.pairs, a.seed)


def evaluate(a, checkpoint, data):
    result = {}
    for name in ("old", "new"):
        test = data / f"test-{name}"
        pairs = shardfc("eval", "--checkpoint", checkpoint, "--pairs", test / "pairs.bin")
        far = shardfc("eval", "--checkpoint", checkpoint, "--rec", test / "train.rec")["tar_at_far"]
        if far.get(a.far) is None:
            raise Failure(f"--far {a.far}: eval of {name} has {json.dumps(far)}")
        result[name] = {"accuracy": pairs["accuracy"], "tar": far[a.far]}
    return result


# ---- runs

def cluster(a, c, data, shards, workers):
    c.start_scheduler()
    c.start_shards(shards)
    c.ctl("create", "--run", "glyphs", "--data", data / "old", "--steps", a.steps, "--seed", a.seed, "--schedule",
          f"poly:{min(100, a.steps // 10)}:1.5:0.02", *(["--block-size", a.block_size] if a.block_size else []), *RECIPE)
    c.start_workers(workers, data=data / "old")


def grow(c, data, workers):
    """Workers with the larger set come, the run grows, those with the old set leave by themselves."""
    before = list(c.workers)
    c.start_workers(workers, data=data / "new")
    wait_until("the new workers", lambda: len(c.status().workers) == len(before) + workers, 120, context=c.tails)
    said = c.ctl_json("grow", "--data", data / "new", seconds=300)
    c.workers = [w for w in c.workers if w not in before]
    return said


def checkpoint(c, name):
    out = c.folder / name
    said = c.ctl_json("checkpoint", "--out", out, seconds=600)
    return out, said


def kill_all(c, data, workers):
    """SIGKILL of everything that runs; scheduler and shards come back with what their disks have."""
    for process in (c.scheduler, *c.shards, *c.workers):
        process.kill()
    c.start_scheduler()
    for shard in list(c.shards):
        c.restart_shard(shard)
    c.workers = []
    c.start_workers(workers, data=data / "new")


def first_new(a, samples, said):
    """The step with the first sample of the larger set: that of the first epoch which begins at data_step or later."""
    position = (said["data_step"] - 1) * 128
    return -(-position // samples) * samples // 128 + 1


def grown_run(a, data):
    result = {}
    with Cluster() as c:
        cluster(a, c, data, 2, 2)
        c.wait_step(a.at, 7200)
        before, at = checkpoint(c, "before")
        result["grow"] = said = grow(c, data, 2)
        result["first_new_step"] = first_new(a, a.old_samples, said)
        say(f"before: step {at['step']}; {json.dumps(said)}; new samples from step {result['first_new_step']} on")
        c.wait_step(result["first_new_step"] + a.kill_after, 7200)
        killed = c.status().step
        kill_all(c, data, 2)
        c.wait_step(killed, 600)
        result["killed_at_step"] = killed
        c.wait_state("finished", 7200)
        after, end = checkpoint(c, "after")
        points = c.history()
        result.update(points=points, digest=end["digest"], step=end["step"], before_step=at["step"],
                      before=evaluate(a, before, data), after=evaluate(a, after, data))
    return result


def undisturbed_run(a, data, from_step):
    with Cluster() as c:
        cluster(a, c, data, 1, 1)
        held = c.hold(from_step - 1, 7200)
        c.ctl("pause")
        c.release(held)
        said = grow(c, data, 1)
        if said["from_step"] != from_step:
            raise Failure(f"asked to grow before step {from_step}: {said}")
        c.ctl("resume")
        c.wait_state("finished", 7200)
        return {"digest": checkpoint(c, "end")[1]["digest"], "points": c.history()}


def alone_run(a, data):
    with Cluster() as c:
        cluster(a, c, data, 2, 2)
        c.wait_state("finished", 7200)
        return evaluate(a, checkpoint(c, "end")[0], data)


def losses(points):
    return [(p.step, p.loss) for p in points]


def gap(points, step):
    """(ms between the commits before and of a step, median of all)."""
    took = {b.step: (b.time_us - a.time_us) / 1e3 for a, b in zip(points, points[1:])}
    return took[step], statistics.median(took.values())


def report(a, grown, undisturbed, alone):
    at_growth, median = gap(grown["points"], grown["grow"]["from_step"])
    result = {"bench": "grow", "classes": a.classes, "grown": a.grown, "steps": a.steps, "from_step": grown["grow"]["from_step"],
              "first_new_step": grown["first_new_step"], "killed_at_step": grown["killed_at_step"], "before_step": grown["before_step"],
              "gap_ms": round(at_growth, 1), "median_ms": round(median, 1), "digest": grown["digest"],
              "same_digest": grown["digest"] == undisturbed["digest"],
              "same_losses": losses(grown["points"]) == losses(undisturbed["points"]),
              "far": a.far, "before": grown["before"], "after": grown["after"], "alone": alone}
    result["rises"] = all(grown["after"][s][k] > grown["before"][s][k] for s in ("old", "new") for k in ("accuracy", "tar"))
    rows = [("before the growth", grown["before_step"], grown["before"]), ("grown, at its end", a.steps, grown["after"])]
    rows += [("without a growth", a.steps, alone)] if alone else []
    print(f"{a.classes} identities, {a.grown} from step {result['from_step']} on (samples from step {result['first_new_step']} "
          f"on), everything killed at step {result['killed_at_step']}, {a.steps} steps of 128")
    print(f"{'':20} {'step':>6} {'old: pairs %':>13} {'TAR@' + a.far + ' %':>13} {'new: pairs %':>13} {'TAR@' + a.far + ' %':>13}")
    for name, step, of in rows:
        print(f"{name:20} {step:6} " + " ".join(f"{100 * of[s][k]:13.2f}" for s in ("old", "new") for k in ("accuracy", "tar")))
    print(f"at the growth {at_growth:.1f} ms between two commits, median {median:.1f}")
    print("an undisturbed run on one shard that grew before the same step has " +
          ("the same digest and the same losses" if result["same_digest"] and result["same_losses"] else "ANOTHER digest or losses"))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--classes", 10000), ("--grown", 12000), ("--faces", 12), ("--held-out", 2), ("--at", 400), ("--kill-after", 100),
                        ("--steps", 1800), ("--seed", 1), ("--pairs", 6000), ("--block-size", 0)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--far", default="1e-3", help="as `shardfc eval` writes it")
    parser.add_argument("--data", type=pathlib.Path, help="folder for the data, used again if it is there; default: a scratch folder")
    parser.add_argument("--no-alone", action="store_true", help="leave out the run without a growth")
    parser.add_argument("--json", type=pathlib.Path)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sfc-grow-") as scratch:
        data = (a.data or pathlib.Path(scratch)).resolve()
        if not (data / "test-new" / "pairs.bin").exists():
            make_data(a, data)
        a.old_samples = json.loads((data / "old" / "meta.json").read_text())["files"]["train.rec"]["samples"]
        grown = grown_run(a, data)
        undisturbed = undisturbed_run(a, data, grown["grow"]["from_step"])
        result = report(a, grown, undisturbed, None if a.no_alone else alone_run(a, data))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["same_digest"] and result["same_losses"] and result["rises"] else 1


if __name__ == "__main__":
    sys.exit(main())
