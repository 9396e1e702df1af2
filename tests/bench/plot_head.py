#!/usr/bin/python3
"""Plots of the class layer's step from what `peer_torch.py --sweep --json FILE` has measured.

    plot_head.py FILE ... [--out DIR]    writes head-classes.svg, head-rate.svg and head-memory.svg to docs/

A sweep may have been measured in parts (--points), a file each; a point in several files is taken from the last one.

Needs python3-matplotlib (deploy/install-deps --bench).
"""
import argparse
import json
import os
import pathlib

import matplotlib
matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

TOP = pathlib.Path(__file__).resolve().parents[2]
# Distinct in hue, in lightness and in marker; on white they keep their contrast whatever the page around is.
LINES = {
    "f32": ("ShardFC f32", "#1f4e9c", "o", "-"),
    "bf16": ("ShardFC bf16", "#0b8a6a", "s", "-"),
    "hand": ("PyTorch, by hand", "#b86b00", "^", "--"),
    "v1": ("PyTorch, first code", "#c2334d", "D", "--"),
    "v2": ("PyTorch, second code", "#7a3aa0", "v", "--"),
}


def series(sweep, points, across, value):
    """{who: ([x], [y])} over the points whose names are asked for."""
    lines = {who: ([], []) for who in LINES}
    for result in sweep:
        if result["point"]["name"] not in points:
            continue
        for who, found in {**result["ours"], **result["peers"]}.items():
            lines[who][0].append(across(result["point"]))
            lines[who][1].append(value(found))
    return {who: sorted(zip(*xy)) for who, xy in lines.items() if xy[0]}


def draw(axes, lines, title, x, y):
    for who, points in lines.items():
        label, colour, marker, style = LINES[who]
        axes.plot(*zip(*points), style, color=colour, marker=marker, label=label, linewidth=1.8, markersize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="both", color="#d9d9d9", linewidth=0.6)
    axes.legend(fontsize=9, facecolor="white", framealpha=1)


def save(figure, report, path):
    m = report["machine"]
    figure.text(0.01, 0.01, f"{m['cpu']}, {m['processors']} processors, {m['date']}; batch 128, dim 512, medians",
                fontsize=7, color="#444444")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)
    print(path)


def read(parser, path):
    """The report of a sweep; ends the program where it is none."""
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        parser.error(f"{path}: {error.strerror}")
    except ValueError as error:
        parser.error(f"{path} is not JSON: {error}")
    points = report.get("sweep") if isinstance(report, dict) else None
    whole = isinstance(points, list) and points and "machine" in report and all(
        isinstance(p, dict) and {"point", "ours", "peers"} <= p.keys() for p in points)
    if not whole:
        parser.error(f"{path} is not of peer_torch.py --sweep")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default=TOP / "docs")
    o = parser.parse_args()
    reports = [read(parser, file) for file in o.file]
    report = reports[-1]
    sweep = list({r["point"]["name"]: r for each in reports for r in each["sweep"]}.values())
    if not o.out.is_dir() or not os.access(o.out, os.W_OK):
        parser.error(f"--out {o.out} is no folder that can be written to")
    matplotlib.rcParams["svg.hashsalt"] = "head"  # the same bytes from the same numbers
    names = [r["point"]["name"] for r in sweep]
    tenth = [n for n in names if n.startswith("c-")]
    same = [n for n in names if n.startswith("s-")] + ["c-1000000"]
    rates = [n for n in names if n.startswith("r-")] + ["c-1000000"]

    def classes(point):
        return point["classes"]

    def step(found):
        return found["step_ms"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.4))
    draw(left, series(sweep, tenth, classes, step), "One class of ten sampled", "identities", "step, ms")
    draw(right, series(sweep, same, classes, step), "100,000 classes sampled", "identities", "step, ms")
    save(figure, report, o.out / "head-classes.svg")
    figure, axes = pyplot.subplots(figsize=(6, 4.4))
    draw(axes, series(sweep, rates, lambda p: p["rate"], step), "1,000,000 identities", "sampled share of the classes",
         "step, ms")
    save(figure, report, o.out / "head-rate.svg")
    figure, axes = pyplot.subplots(figsize=(6, 4.4))
    draw(axes, series(sweep, tenth, classes, lambda f: f["peak_rss_bytes"] / 1e9), "Peak memory, one class of ten sampled",
         "identities", "GB")
    save(figure, report, o.out / "head-memory.svg")


if __name__ == "__main__":
    main()
