#!/usr/bin/python3
"""The class layer's step here and in PyTorch (python3-torch of Debian; deploy/install-deps --bench), on one machine in
turns.

    peer_torch.py [--classes N] [--sample-rate R] [--batch N] [--dim N] [--threads N] [--rounds N] [--steps N]
                  [--parts sampled,dense] [--core-type NAME] [--json FILE]
    peer_torch.py --sweep [--points NAME,...] ... --json FILE        what plot_head.py draws

Two comparisons: `sampled`, the momentum of sampled rows only, beside the first code of Partial FC (v1) and the
same written by hand for speed (hand); `dense`, all rows coast and decay, beside the second code (v2). torch_head.py
has all three and says what they are.

First both sides take the same two steps from the same W, features, labels and samples (`shardfc bench head --dump`)
and must agree on loss, gradient of the features, update and momentum; the tolerances are below. Then they take turns:
in each round every one does a step that warms up and --steps that count, while the others are stopped. The peer's
sampling is timed apart (sample ms) and not part of its step, ours is.

The peer gets what makes it fast here: memory that malloc does not give back and map again in every step, huge pages,
OpenBLAS on OpenMP so that it shares its threads with the rest of PyTorch, and the fastest of OpenBLAS's kernels that
run here (--core-type auto tries them: OpenBLAS itself falls back to kernels of 2004 on processors that it does not
know). A table goes to stderr, one JSON object to --json. Exit status: 0 done, 1 the two don't agree or one failed, 2
wrong usage.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from machine import Others, describe, memory, report_path  # noqa: E402
from turns import BIN, PEERS, Failed, Ours, Torch, take_turns  # noqa: E402

PARTS = {"sampled": (("f32", "split", "bf16"), ("v1", "hand")), "dense": (("f32-dense", "bf16-dense"), ("v2",))}
BLAS = "openblas-openmp"
CORE_TYPES = ("", "SkylakeX", "Haswell", "Zen")  # "": what OpenBLAS finds by itself
RATE_OF_PRODUCT = """
import time, torch
torch.set_num_threads({threads})
w, x = torch.ones(25600, 512), torch.ones(128, 512)
def seconds():
    began = time.perf_counter()
    torch.mm(x, w.T)
    return time.perf_counter() - began
print(2e-9 * w.numel() * len(x) / min(seconds() for _ in range(8)))
"""
CORE_TYPE = """
import sys
import torch
sys.path.insert(0, {folder!r})
from torch_head import blas_libraries, core_type
torch.mm(torch.ones(64, 64), torch.ones(64, 64))
print(core_type(blas_libraries()))
"""
# How far apart the two may be: of the loss, of the largest number in the gradient of the features, in the update of W
# and in the momentum. bf16 storage rounds stochastically, so after it only the first step has the same W, and
# an update is as good as its rounding.
EXACT = {"loss_off": 1e-5, "dx_off": 1e-4, "update_off": 1e-3, "momentum_off": 1e-3}
STORED_HALF = {"loss_off": 1e-3, "dx_off": 2e-2}
MULTIPLIED_HALF = {"loss_off": 1e-3, "dx_off": 2e-2, "update_off": 5e-2, "momentum_off": 5e-2}


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- the peer's environment

def blas_folder():
    folders = list(pathlib.Path("/usr/lib").glob(f"*/{BLAS}"))
    if not folders:
        raise Failed(f"no {BLAS}: deploy/install-deps --bench")
    return str(folders[0])


def environment(threads, core_type):
    keep = str(1 << 40)
    variables = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads),
                 "LD_LIBRARY_PATH": blas_folder(), "MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": keep,
                 "MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    return {**variables, "OPENBLAS_CORETYPE": core_type} if core_type else variables


def run_peer(program, threads, core_type):
    """What a program of Python prints in the peer's environment, or None where it fails."""
    clean = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", program], text=True,
                          env={**clean, **environment(threads, core_type)}, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
    return done.stdout.strip() if done.returncode == 0 else None


def rate_of_product(threads, core_type):
    """GFLOP/s, or 0 where the processor can't run these kernels."""
    return float(run_peer(RATE_OF_PRODUCT.format(threads=threads), threads, core_type) or 0)


def check_core_type(o):
    """For a name that it does not know OpenBLAS takes its own choice, which may be slow: that would flatter us."""
    folder = str(pathlib.Path(__file__).resolve().parent)
    runs = run_peer(CORE_TYPE.format(folder=folder), o.threads, o.core_type)
    if runs is None:
        raise Failed(f"--core-type {o.core_type or chr(39) * 2}: a product of PyTorch fails with it")
    if o.core_type and runs.lower() != o.core_type.lower():
        raise Failed(f"--core-type {o.core_type}: OpenBLAS runs the kernels of {runs} instead; known here: "
                     f"{', '.join(name for name in CORE_TYPES if name)} and what else its build has")
    if runs not in CORE_TYPES:
        say(f"note: OpenBLAS runs the kernels of {runs}, which may be slow; for numbers to quote take --core-type auto")


def choose_core_type(o):
    """(name, {name: GFLOP/s})"""
    if o.core_type != "auto":
        check_core_type(o)
        return o.core_type, {}
    rates = {name: round(rate_of_product(o.threads, name), 1) for name in CORE_TYPES}
    best = max(rates, key=rates.get)
    if rates[best] == 0:
        raise Failed("python3-torch can't multiply: deploy/install-deps --bench")
    say("OpenBLAS GFLOP/s:", ", ".join(f"{name or 'its own choice'} {rate}" for name, rate in rates.items()))
    return best, rates


# ---- agreement

def tolerance(config):
    if config["dtype"] == "bf16":
        return STORED_HALF
    return MULTIPLIED_HALF if config["gemm"] == "bf16" else EXACT


def agree(ours, variant, off, limits):
    for step in off["steps"]:
        for what, limit in limits.items():
            if not step[what] <= limit:
                raise Failed(f"{ours} and {variant} don't agree in step {step['step']}: {what} {step[what]:.3g} is "
                             f"over {limit:g}")
    return {what: max(step[what] for step in off["steps"]) for what in limits}


def check(process, torch, variants, dump):
    checks, limits = {}, tolerance(json.loads((dump / "head.json").read_text()))
    for variant in variants:
        off = torch.do("check", variant=variant, dump=str(dump))
        checks[variant] = agree(process.name, variant, off, limits)
        say(f"{process.name} and {variant} agree:", ", ".join(f"{k} {v:.1e}" for k, v in checks[variant].items()))
    return checks


# ---- one comparison

def start_ours(o, point, names, variants, around, running):
    """They run and, if there is somebody to compare with, are checked: {name: {variant: differences}}."""
    checks = {}
    if not variants:
        running += [Ours(name, point) for name in names]
        return checks
    torch = Torch(point, variants, around)  # the check costs it memory that the steps don't: it does not stay
    try:
        for name in names:
            with tempfile.TemporaryDirectory(prefix="sfc-dump-", dir=o.scratch) as folder:
                process = Ours(name, point, folder)
                running.append(process)
                try:
                    process.get_ready()
                    checks[name] = check(process, torch, variants, pathlib.Path(folder))
                except BaseException:
                    process.kill()  # before its folder goes, or it makes it anew
                    raise
    finally:
        torch.kill()
    return checks


def compare(o, point, names, peers, around, checked=True):
    """All of them at the same time, in turns. peers: the variants of each process of PyTorch."""
    ours, torch, result = [], [], {"point": point, "peers": {}}
    try:
        checks = [v for variants in peers for v in variants] if checked else []
        result["checks"] = start_ours(o, point, names, checks, around, ours)
        for process in ours:
            process.get_ready()
        for variants in peers:
            torch.append(Torch(point, variants, around))
            result["torch"] = torch[-1].about
        with Others([p.child.pid for p in ours + torch]) as others:
            take_turns(ours + torch, o.rounds, o.steps)
        result["others"] = round(others.share, 3)
        for process in torch:
            result["peers"].update(process.report())
        result["ours"] = {p.name: p.report() for p in ours}
        return result
    finally:
        for process in ours + torch:
            process.kill()


def table(result):
    say(f"{'':12} {'step ms':>9} {'x floor':>8} {'sample ms':>10} {'peak MB':>8}  " +
        " ".join(f"{v + '/ours':>10}" for v in result["peers"]) + "  (with its sampling)")
    for name, r in result["ours"].items():
        ratios = " ".join(f"{p['step_ms'] / r['step_ms']:10.2f}" for p in result["peers"].values())
        sampling = " ".join(f"{(p['step_ms'] + p['sample_ms']) / r['step_ms']:.2f}" for p in result["peers"].values())
        say(f"{name:12} {r['step_ms']:9.1f} {r['step_ms'] / r['floor_ms']:8.2f} {'':10} "
            f"{r['peak_rss_bytes'] / 1e6:8.0f}  {ratios}  ({sampling})" + ("" if r["quiet"] else "  not quiet"))
    for name, p in result["peers"].items():
        say(f"{'torch ' + name:12} {p['step_ms']:9.1f} {'':8} {p['sample_ms']:10.1f} {p['peak_rss_bytes'] / 1e6:8.0f}")


# ---- the points of the plots

def sweep_points(o):
    """{name: (classes, rate)}: c-*: r = 0.1; s-*: as many sampled rows as 1M classes at 0.1; r-*: 1M classes."""
    points = {f"c-{c}": (c, 0.1) for c in (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)}
    points.update({f"s-{c}": (c, round(100_000 / c, 6)) for c in (100_000, 300_000, 3_000_000, 10_000_000)})
    points.update({f"r-{r}": (1_000_000, r) for r in (0.01, 0.03, 0.3, 1.0)})
    return {name: at for name, at in points.items() if not o.points or name in o.points}


def needed(who, point):
    """Bytes, somewhat more than will be used."""
    numbers, sampled = point["classes"] * point["dim"], point["classes"] * point["rate"]
    kept = sampled * point["batch"] * 4 + 6e8
    if who.startswith("bf16"):
        return 4 * numbers + kept
    if who in PEERS:
        step = sampled * point["dim"] * 4 * {"v1": 12, "hand": 3, "v2": 12}[who]  # as measured at 300,000 sampled
        return (8 if who != "v2" else 16) * numbers + step + 2 * kept
    return 8 * numbers + kept


def groups(parties, point, room):
    """All at the same time if they fit, else one after another; who does not fit alone is left out."""
    if sum(needed(p, point) for p in parties) <= room:
        return [parties], []
    alone = [[p] for p in parties if needed(p, point) <= room]
    return alone, [p for p in parties if needed(p, point) > room]


def sweep(o, around):
    results = []
    for name, (classes, rate) in sweep_points(o).items():
        point = {"name": name, "classes": classes, "rate": rate, "batch": o.batch, "dim": o.dim, "threads": o.threads}
        together, out = groups(("f32", "bf16", *PEERS), point, 0.9 * memory()["MemAvailable"])
        merged = {"point": point, "ours": {}, "peers": {}, "left_out": out, "in_turns": len(together) == 1}
        say(f"{name}: {classes} classes, r = {rate}" + (f"; no memory for {', '.join(out)}" if out else ""))
        for parties in together:
            ours = [p for p in parties if p not in PEERS]
            # A process for each peer: its peak of memory is nobody else's.
            result = compare(o, point, ours, [[p] for p in parties if p in PEERS], around, checked=False)
            for side in ("ours", "peers"):
                merged[side].update(result[side])
        table(merged)
        results.append(merged)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--sample-rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="that count, of each round")
    parser.add_argument("--parts", default="sampled,dense")
    parser.add_argument("--core-type", default="auto", help="OPENBLAS_CORETYPE of the peer")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()),
                        help="where W is written for the check (4 bytes for each number)")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--points", type=lambda text: text.split(","), help="of the sweep; default: all")
    parser.add_argument("--json", type=report_path)
    o = parser.parse_args()
    parts = o.parts.split(",")
    unknown = [p for p in parts if p not in PARTS] + [p for p in o.points or [] if p not in sweep_points(o)]
    if unknown or min(o.classes, o.batch, o.dim, o.threads, o.rounds, o.steps) < 1 or not 0 < o.sample_rate <= 1:
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "numbers must be positive, the rate at most 1")
    point = {"classes": o.classes, "rate": o.sample_rate, "batch": o.batch, "dim": o.dim, "threads": o.threads}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind, stopped and full of W
    report = {"machine": describe(), "rounds": o.rounds, "steps": o.steps}
    try:
        core_type, rates = choose_core_type(o)
        around = environment(o.threads, core_type)
        report["peer"] = {"core_type": core_type or "own choice", "gflops": rates, "environment": around}
        if o.sweep:
            report["sweep"] = sweep(o, around)
        else:
            report["parts"] = {}
            for part in parts:
                names, variants = PARTS[part]
                result = report["parts"][part] = compare(o, point, names, [variants], around)
                table(result)
    except Failed as failure:
        say(f"peer_torch.py: {failure}")
        return 1
    if o.json:
        o.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
