#!/usr/bin/env python3
"""The table of tests/bench/gpu.sh: gpu_table.py FILE.jsonl, lines {"kind": "ceilings"|"ours"|"peer", "data": {...}}.
What was not measured is left out or shown as '-'."""
import json
import sys


def read(path):
    found = {"ceilings": [], "ours": [], "peer": []}
    for line in open(path):
        try:
            item = json.loads(line)
            found[item["kind"]].append(item["data"])
        except (ValueError, KeyError) as error:  # the line that was being written when everything ended
            print(f"gpu_table.py: left out {line.strip()[:80]!r}: {error}", file=sys.stderr)
    return found


def number(value, form="{:.2f}"):
    return "-" if value is None else form.format(value)


def floors(ceilings, run):
    """Milliseconds: products, bytes, by the ceilings that were measured apart from the backend."""
    if not ceilings or not run:
        return None
    bf16 = run["gemm"] == "bf16"
    rate = ceilings["bf16" if bf16 else "f32"]["mean_tflops"]
    if not rate:
        return None
    rows, dim, batch = run["sampled"], run["dim"], run["batch"]
    stored, kept = (2 if run["dtype"] == "bf16" else 4), (2 if bf16 else 4)
    row = 2 * stored if run["momentum_mode"] == "dense" else (2 if bf16 else stored)
    tensors = 3 if run["optimizer"] == "adamw" else 2
    moved = 2 * rows * dim * row + 4 * rows * batch * kept + 2 * tensors * rows * dim * stored
    return 6 * rows * dim * batch / rate * 1e-9, moved / ceilings["copy_gb_s"] * 1e-6


def show(title, head, rows):
    if not rows:
        return
    print(f"\n{title}")
    rows = [head] + rows
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))))


def ours_rows(found, ceilings):
    rows = []
    for run in found["ours"]:
        floor = floors(ceilings, run)
        total, largest = (sum(floor), max(floor)) if floor else (None, None)
        own = run["floor_ms"]
        phases = run["phases_ms"]
        rows.append([f"{run['classes']:,} {run['dtype']} {run['momentum_mode']}", number(run["step_ms"]), number(run["best_ms"]),
                     *(number(phases[p]) for p in ("plan", "logits", "gradient", "commit")),
                     number(own), number(own and run["step_ms"] / own), number(total),
                     number(total and run["step_ms"] / total), number(largest and run["step_ms"] / largest),
                     number(run["peak_device_bytes"] and run["peak_device_bytes"] * 1e-9), number(run["init_ms"] * 1e-3, "{:.1f}")])
    return rows


def peer_rows(found):
    ours = {(run["classes"], run["momentum_mode"]): run for run in found["ours"] if run["dtype"] == "bf16"}
    rows = []
    for run in (r for r in found["peer"] if r.get("kind") == "peer"):
        mine = ours.get((run["classes"], "dense" if run["variant"] == "v2" else "sampled"))
        rows.append([f"{run['variant']} {run['classes']:,}{' (largest)' if run.get('largest') else ''}", number(run["step_ms"]),
                     number(run["best_ms"]), number(run["sample_ms"]),
                     number(run["peak_device_bytes"] and run["peak_device_bytes"] * 1e-9), number(mine and mine["step_ms"]),
                     number(mine and run["step_ms"] / mine["step_ms"]),
                     number(mine and (run["step_ms"] - run["sample_ms"]) / mine["step_ms"])])
    return rows


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = read(sys.argv[1])
    ceilings = next((c for c in found["ceilings"]), None)
    if ceilings:
        print(f"{ceilings['device']}: copy {ceilings['copy_gb_s']:.0f} GB/s (bytes read and written)")
        show("products, TFLOP/s", ["format", "logits", "gradient", "commit", "mean"],
             [[f, *(number(ceilings[f][k + "_tflops"], "{:.0f}") for k in ("logits", "gradient", "commit", "mean"))]
              for f in ("bf16", "f32")])
    for numerics in sorted({run["numerics"] for run in found["ours"]}):
        print(f"\nnumerics: {numerics}")
    show("our step, ms (floor: by the backend's own ceilings; roofline: products + bytes by those above; /max: by the larger "
         "of the two)",
         ["identities", "step", "best", "plan", "logits", "grad", "commit", "floor", "x floor", "roofline", "x roofline",
          "x max", "GB peak", "init s"], ours_rows(found, ceilings))
    for item in found["peer"]:
        if item.get("kind") == "torch":
            print(f"\nPyTorch {item['version']}, CUDA {item['cuda']}, {item['device']}")
        elif item.get("kind") == "check":
            print(f"  {item['variant']} autocast {item['autocast']}: off double precision by loss {item['loss']:.1e}, "
                  f"dx {item['dx']:.1e}, W {item['w']:.1e}{'' if item['ok'] else '  WRONG'}")
        elif item.get("kind") == "note":
            print(f"  {item['text']}")
        elif item.get("refused"):
            print(f"  v2 does not fit with {', '.join(f'{c:,}' for c in item['refused'])} identities")
    show("PyTorch's step, ms (faster: ours against it with and without its sampling)",
         ["variant", "step", "best", "sampling", "GB peak", "ours", "x faster", "x without sampling"], peer_rows(found))


if __name__ == "__main__":
    main()
