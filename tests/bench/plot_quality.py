#!/usr/bin/python3
"""Draws the losses of a study of tests/bench/quality.py as an SVG picture: per method the mean over its seeds,
smoothed over 50 steps, with the range over the seeds as a band.

usage: tests/bench/plot_quality.py CURVES-FOLDER OUT.svg [METHOD,...]
"""
import collections
import csv
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "shardfc"  # the same curves give the same file
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

MEAN_OVER = 50


def read(folder):
    """Losses [seeds][steps] of each method; files are METHOD-SEED.csv."""
    curves = collections.defaultdict(list)
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="") as file:
            try:
                losses = [float(row["loss"]) for row in csv.DictReader(file)]
            except (KeyError, TypeError, ValueError):
                sys.exit(f"{path}: a line without a number in the column loss")
            curves[path.stem.rpartition("-")[0]].append(losses)
    return curves


def problem(curves, methods):
    """What makes these curves undrawable, or None."""
    missing = [m for m in methods if m not in curves]
    if missing or not curves:
        return f"no curves of {missing[0] if missing else 'any method'}"
    for method in methods:
        steps = sorted({len(losses) for losses in curves[method]})
        if len(steps) > 1:
            return f"the seeds of {method} have from {steps[0]} to {steps[-1]} steps: a mean needs as many of each"
        if steps[0] < 2 * MEAN_OVER:
            return f"{method} has {steps[0]} steps, a mean over {MEAN_OVER} of them needs at least {2 * MEAN_OVER}"
    return None


def smooth(losses):
    kernel = np.ones(MEAN_OVER) / MEAN_OVER
    return np.convolve(losses, kernel, mode="valid")


def draw(curves, methods, out):
    figure, (whole, end) = plt.subplots(1, 2, figsize=(9.5, 4))
    for method in methods:
        smoothed = np.array([smooth(losses) for losses in curves[method]])
        steps = np.arange(MEAN_OVER, MEAN_OVER + smoothed.shape[1])
        for axes, first in ((whole, 0), (end, smoothed.shape[1] * 3 // 4)):
            shown = slice(first, None, 10)
            line, = axes.plot(steps[shown], smoothed.mean(axis=0)[shown], label=method, linewidth=1.4)
            axes.fill_between(steps[shown], smoothed.min(axis=0)[shown], smoothed.max(axis=0)[shown],
                              color=line.get_color(), alpha=0.2, linewidth=0)
    for axes, title in ((whole, "whole training"), (end, "last quarter")):
        axes.set(xlabel="step", ylabel=f"loss over the sample, mean of {MEAN_OVER} steps", title=title)
        axes.grid(alpha=0.3)
    whole.legend()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[1] == "--help":
        print(__doc__, file=sys.stderr)
        sys.exit(0 if "--help" in sys.argv else 2)
    curves = read(pathlib.Path(sys.argv[1]))
    methods = sys.argv[3].split(",") if len(sys.argv) == 4 else list(curves)
    wrong = problem(curves, methods)
    if wrong:
        print(f"{sys.argv[1]}: {wrong}", file=sys.stderr)
        sys.exit(2)
    try:
        draw(curves, methods, sys.argv[2])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
