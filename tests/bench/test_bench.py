#!/usr/bin/python3
"""`shardfc bench` tells the truth about what it computes, has the keys that scripts rely on, and refuses wrong usage.
No time is asserted.

    test_bench.py [head|exact|reference|device|gpu_table|memory|dump|demand|rpc|kernels|tools|usage ...]     default: all
"""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TOP = pathlib.Path(__file__).resolve().parents[2]
SHARDFC = pathlib.Path(os.environ.get("SFC_BIN", TOP / "build" / "release" / "bin")) / "shardfc"
SMALL = ("--classes", 3000, "--dim", 40, "--batch", 12, "--block-size", 1024)


def check(held, what):
    if not held:
        raise AssertionError(what)


def bench(*arguments, status=0, said=""):
    done = subprocess.run([str(a) for a in (SHARDFC, "bench", *arguments)], input=said, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
    check(done.returncode == status, f"{arguments}: status {done.returncode}, {done.stderr}")
    check(status == 0 or done.stderr, f"{arguments}: nothing said about status {status}")
    return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in arguments else done.stdout


def test_head():
    for mode, more in (("dense", ()), ("sampled", ("--momentum-mode", "sampled")), ("sampled", ("--optimizer", "adamw")),
                       ("dense", ("--dtype", "bf16", "--gemm", "bf16"))):
        (said,) = bench("head", *SMALL, "--steps", 3, "--json", *more)
        check(said["momentum_mode"] == mode, f"{more}: mode {said['momentum_mode']}")
        missing = {"step_ms", "phases_ms", "floor_ms", "floor_before", "floor_after", "quiet", "classes", "sampled",
                   "batch", "dim", "dtype", "gemm", "peak_rss_bytes", "state_bytes"} - said.keys()
        check(not missing, f"keys are missing: {missing}")
        before, after = said["floor_before"]["ms"], said["floor_after"]["ms"]
        check(min(before, after) > 0, "a floor is 0")
        check(abs(said["floor_ms"] - (before + after) / 2) < 0.002, "the floor is not the mean of the two")
        far = max(before, after) > 1.05 * min(before, after)
        half = 0.0005  # printed numbers are rounded: of a small floor that is some percent
        near_limit = max(before, after) - half < 1.05 * (min(before, after) + half) and \
            max(before, after) + half > 1.05 * (min(before, after) - half)
        check(near_limit or said["quiet"] != far, "`quiet` does not follow from the floors")
        check(said["steps"] == 3 and 300 <= said["sampled"] <= 320, f"steps or sample: {said}")
        check(said["peak_rss_bytes"] < 100e6, "the floor's buffers count as the head's memory")


def test_exact():
    (said,) = bench("head", *SMALL, "--steps", 1, "--json")
    check(said["exact_ms"] is None, f"exact sums that nobody asked for: {said['exact_ms']}")
    (said,) = bench("head", *SMALL, "--steps", 1, "--exact", "--json")
    check(said["exact_ms"] > 0, f"the exact sums take {said['exact_ms']} ms")
    check("exact sums" in bench("head", *SMALL, "--steps", 1, "--exact"), "no exact sums in the table")
    check("exact sums" not in bench("head", *SMALL, "--steps", 1), "exact sums in the table of a run without them")


def test_reference():
    (said,) = bench("head", *SMALL, "--steps", 1, "--backend", "reference", "--json")
    known = {k for k in ("floor_ms", "floor", "floor_before", "floor_after", "quiet", "exact_ms") if said[k] is not None}
    check(not known, f"not measured, but told: {known}")
    check("floor" not in bench("head", *SMALL, "--steps", 1, "--backend", "reference"), "a floor that nobody measured")


def test_device():
    """More than the device has (the tests' emulated one) is refused as the device's memory, before anything is allocated."""
    os.environ["SFC_PLUGIN_DIR"] = str(SHARDFC.parent.parent.resolve() / "tests" / "plugins" / "emulated")
    try:
        done = subprocess.run([SHARDFC, "bench", "head", "--backend", "cuda", "--classes", "100000000", "--dim", "512"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=100)
        check(done.returncode == 1 and "of device memory, available are" in done.stderr, f"too large: {done.stderr}")
    finally:
        del os.environ["SFC_PLUGIN_DIR"]


def gpu_lines():
    """What tests/bench/gpu.sh collects, and a last line that was cut."""
    rates = {"logits_tflops": 600.0, "gradient_tflops": 700.0, "commit_tflops": 600.0, "mean_tflops": 630.0}
    ours = {"step_ms": 20.0, "best_ms": 19.0, "phases_ms": {"plan": 1, "logits": 8, "gradient": 6, "commit": 5}, "floor_ms": None,
            "init_ms": 900, "classes": 10000000, "sampled": 1000000, "batch": 1024, "dim": 512, "dtype": "bf16", "gemm": "bf16",
            "optimizer": "sgd", "momentum_mode": "dense", "numerics": "cuda sm_90 X n1", "peak_device_bytes": 23500000000}
    peer = {"kind": "peer", "variant": "v2", "classes": 10000000, "step_ms": 100.0, "best_ms": 90.0, "sample_ms": 20.0,
            "peak_device_bytes": 70000000000, "largest": True, "refused": [10250000]}
    kinds = (("ceilings", {"device": "X", "copy_gb_s": 3000.0, "bf16": rates, "f32": rates}), ("ours", ours), ("peer", peer))
    return "".join(json.dumps({"kind": k, "data": d}) + "\n" for k, d in kinds) + '{"kind": "ours", "data": {"st'


def test_gpu_table():
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "gpu.jsonl"
        for text, words in ((gpu_lines(), ("3000 GB/s", "10.45", "1.91", "23.50", "5.00", "4.00", "10,250,000")), ("", ())):
            file.write_text(text)
            done = subprocess.run([sys.executable, str(TOP / "tests" / "bench" / "gpu_table.py"), str(file)], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
            check(done.returncode == 0 and "Traceback" not in done.stderr, f"gpu_table.py: {done.stderr}")
            for word in words:
                check(word in done.stdout, f"no {word} in {done.stdout}")


def test_memory():
    for more in ((), ("--block-size", 1)):  # the plan; the list of the blocks alone
        done = subprocess.run([SHARDFC, "bench", "head", "--classes", "1000000000", "--dim", "8192", *map(str, more)],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=100)
        check(done.returncode in (1, 2), f"{more}: status {done.returncode}, {done.stderr}")
        check("MiB" in done.stderr and "available" in done.stderr, f"{more}: {done.stderr}")


def unit(rows):
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norm, norm


def step(t, w, m, v, x, labels, ids, c):
    """Step t in double: loss, gradient of the unit features; w, m and, with adamw, v are updated."""
    features, _ = unit(x)
    centres, norm = unit(w[ids])
    cosine = features @ centres.T
    at = np.arange(len(labels)), np.searchsorted(ids, labels)
    cosine[at] -= c["margin"][2]
    z = c["scale"] * cosine
    top = z.max(axis=1, keepdims=True)
    p = np.exp(z - top)
    loss = (np.log(p.sum(axis=1)) + top[:, 0] - z[at]).mean()
    p /= p.sum(axis=1, keepdims=True)
    p[at] -= 1
    p *= c["scale"] / len(labels)
    towards = p.T @ features
    gradient = (towards - centres * (towards * centres).sum(axis=1, keepdims=True)) / norm
    if c["optimizer"] == "sgd":
        m[ids] = c["momentum"] * m[ids] + gradient + c["weight_decay"] * w[ids]
        w[ids] -= c["rate"] * m[ids]
    else:
        m[ids] = c["beta1"] * m[ids] + (1 - c["beta1"]) * gradient
        v[ids] = c["beta2"] * v[ids] + (1 - c["beta2"]) * gradient ** 2
        mean, square = m[ids] / (1 - c["beta1"] ** t), v[ids] / (1 - c["beta2"] ** t)
        w[ids] -= c["rate"] * (mean / (np.sqrt(square) + c["epsilon"]) + c["weight_decay"] * w[ids])
    return loss, p @ centres


def test_dump():
    check_dump("sgd")
    check_dump("adamw")
    with tempfile.TemporaryDirectory() as folder:
        bench("head", *SMALL, "--steps", 1, "--dump", folder, "--dtype", "bf16", "--rounding", "nearest")
        c = json.loads((pathlib.Path(folder) / "head.json").read_text())
        check((c["momentum_mode"], c["dtype"], c["rounding"]) == ("dense", "bf16", "nearest"), f"head.json: {c}")


def check_dump(optimizer):
    with tempfile.TemporaryDirectory() as folder:
        def array(name, kind, columns=None):
            found = np.fromfile(pathlib.Path(folder) / name, dtype=kind)
            return found.reshape(-1, columns) if columns else found

        def near(what, mine, theirs):
            off = np.abs(mine - theirs) / np.abs(mine).max()
            # AdamW divides by the size of the gradient: where that is tiny its rounding is what counts
            adamw = optimizer == "adamw" and what != "loss"
            off, tolerance = (np.median(off), 1e-6) if adamw else (off.max(), 1e-5)
            check(off < tolerance, f"{optimizer}: {what} is off by {off:.2g}")
        bench("head", *SMALL, "--momentum-mode", "sampled", "--optimizer", optimizer, "--steps", 1, "--dump", folder)
        c = json.loads((pathlib.Path(folder) / "head.json").read_text())
        check((c["optimizer"], c["momentum_mode"]) == (optimizer, "sampled"), f"head.json: {c}")
        check(c["steps"] == 2 and c["dtype"] == c["gemm"] == "f32", f"head.json: {c}")
        w = array("w.f32", "<f4", c["dim"]).astype(float)
        check(len(w) == c["classes"], "not all rows of W")
        m, v = np.zeros_like(w), np.zeros_like(w)
        for t in (1, 2):
            ids, labels = array(f"{t}.sample.u64", "<u8").astype(int), array(f"{t}.labels.u64", "<u8").astype(int)
            check((np.diff(ids) > 0).all() and set(labels) <= set(ids), "the sample")
            loss, dx = step(t, w, m, v, array(f"{t}.features.f32", "<f4", c["dim"]).astype(float), labels, ids, c)
            near("loss", loss, (array(f"{t}.lse.f64", "<f8") - array(f"{t}.target_logit.f32", "<f4")).mean())
            near("dx", dx, array(f"{t}.dx.f64", "<f8", c["dim"]))
            near("W", w[ids], array(f"{t}.w.f32", "<f4", c["dim"]))
            near("momentum", m[ids], array(f"{t}.m.f32", "<f4", c["dim"]))
            second = pathlib.Path(folder) / f"{t}.v.f32"
            check(second.exists() == (optimizer == "adamw"), f"{optimizer}: the second moment")
            if second.exists():
                near("second moment", v[ids], array(second.name, "<f4", c["dim"]))


def test_demand():
    *answers, report = bench("head", *SMALL, "--on-demand", "--json", said="2\n5\n")
    check([len(a["step_ms"]) for a in answers] == [2, 5], "as many times as steps were asked for")
    check(report["steps"] == 7, "all steps are in the report")
    every = sorted(sum((a["step_ms"] for a in answers), []))
    check(abs(report["step_ms"] - every[3]) < 0.001, "the median of all steps")


def test_rpc():
    (said,) = bench("rpc", "--pings", 20, "--volume", "2M", "--outstanding", 2, "--json")
    check([b["bytes"] for b in said["bodies"]] == [64 << 10, 1 << 20, 16 << 20], "sizes of bodies")
    for way in ("rpc", "tcp"):
        check(0 < said["round_trip_us"][way]["p50"] <= said["round_trip_us"][way]["p99"], f"round trips by {way}")
        for body in said["bodies"]:
            check(min(body[f"{way}_gb_s"].values()) > 0, f"throughput by {way}")
    (said,) = bench("rpc", "--pings", 10, "--volume", "1M", "--outstanding", 1, "--body", 1000, "--json")
    check([b["bytes"] for b in said["bodies"]] == [1000], "the size that was asked for")


def test_kernels():
    (said,) = bench("kernels", "--dim", 50, "--batch", 20, "--threads", 1, "--json")
    rates = {r["name"]: r["value"] for r in said["rates"]}
    wanted = {"product_logits_f32", "product_gradient_f32", "product_commit_f32", "copy", "read", "update",
              "gather_f32", "gather_bf16", "update_rows_f32", "update_rows_bf16", "update_rows_bf16_nearest",
              "philox", "draw", "add_fixed", "add_wide", "exp"}
    wanted |= {n.replace("f32", "bf16") for n in wanted if n.startswith("product")} if said["native_bf16"] else set()
    check(rates.keys() == wanted, f"rates: {sorted(rates.keys() ^ wanted)}")
    check(min(rates.values()) > 0, f"a rate is 0: {rates}")


def test_usage():
    for wrong in ((), ("feet",), ("head", "--steps", 0), ("head", "--on-demand"), ("head", "--dump", "/nowhere/at/all"),
                  ("head", "--batch", 8, "--micro-batch", 3), ("head", "--exact", "--backend", "reference"), ("head", "--classes", 1, "--batch", 1), ("rpc", "--outstanding", 0), ("rpc", "--body", "200M"),
                  ("rpc", "--outstanding", 1024), ("rpc", "--body", 1, "--volume", "1G"), ("rpc", "--volume", 5),
                  ("kernels", "--dim", 0), ("kernels", "--batch", 5000), ("kernels", "extra")):
        small = SMALL if wrong[:1] == ("head",) and "--batch" not in wrong else ()
        bench(*wrong[:1], *small, *wrong[1:], status=2)
    for name, more in (("head", SMALL), ("kernels", ())):
        bench(name, *more, "--threads", 1024 if os.cpu_count() < 128 else 100000, status=2)
    for text in ("x\n", "0\n", "-1\n", "\n", "100001\n", "9" * 60 + "\n"):
        bench("head", *SMALL, "--on-demand", said=text, status=2)
    for what in ("head", "rpc", "kernels"):
        check("--json" in bench(what, "--help"), f"{what} --help")
    for wrong in (("--shards", "0"), ("--micro-batch", "0"), ("--micro-batch", "33"), ("--threads", "0"),
                  ("--dtype", "foo"), ("--classes", "100"), ("--steps", "5"), ("--sample-rate", "nan")):
        done = subprocess.run([sys.executable, TOP / "tests" / "bench" / "ten_million.py", *wrong], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
        check(done.returncode == 2 and "Traceback" not in done.stderr, f"{wrong}: {done.returncode}, {done.stderr}")


def refused(tool, *arguments):
    """The tool ends with status 2 and a message."""
    done = subprocess.run([sys.executable, str(TOP / "tests" / "bench" / tool), *map(str, arguments)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
    check(done.returncode == 2 and "Traceback" not in done.stderr, f"{tool} {arguments}: {done.returncode}, {done.stderr}")


def test_tools():
    for wrong in (("head", "--steps", 0), ("recovery", "--steps", 4), ("head", "--batch", 8, "--micro-batch", 3)):
        refused("loopback.py", *wrong)
    for tool in ("ten_million.py", "peer_torch.py"):
        refused(tool, "--json", "/nowhere/report.json")
    if not importlib.util.find_spec("matplotlib"):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "report.json"
        refused("plot_head.py", file)
        for text in ("x", "[1]", "{}", '{"machine": {}, "sweep": [1]}'):
            file.write_text(text)
            refused("plot_head.py", file)
        for seed, steps in ((1, 40), (2, 120)):
            (pathlib.Path(folder) / f"full-{seed}.csv").write_text("loss\n" + "1.5\n" * steps)
            refused("plot_quality.py", folder, pathlib.Path(folder) / "out.svg")


def main():
    tests = {name[5:]: test for name, test in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok")


if __name__ == "__main__":
    main()
