#!/usr/bin/env python3
"""The class layer's step of Partial FC in PyTorch on one GPU, as somebody would write it who has no ShardFC:
what tests/bench/gpu.sh compares with. Prints one JSON object a line, as soon as each is known.

  v1  the paper's first code: the sampled rows are gathered into a small matrix, autograd gives its gradient, SGD
      updates it and the momentum of the same rows, both are scattered back
  v2  the second code: autograd through the gather into W, torch.optim.SGD (fused) over the whole of W, so all rows
      coast and decay in every step; it holds W, its momentum and its gradient

Products in bf16 by autocast, W and momentum in f32. CosFace: cos = x^ w^T clamped to [-1, 1], the target's minus
0.4, times 64, mean cross-entropy over the sample. Sampling is part of the step. Before anything is timed, losses,
feature gradients and updates of small steps are compared with a computation in double precision.

  peer_torch_gpu.py [--classes N,N,...] [--batch 1024] [--dim 512] [--rate 0.1] [--steps 10] [--seconds 60]
                    [--device cuda|cpu] [--no-largest]
"""
import argparse
import gc
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

MARGIN, SCALE, LR, MOMENTUM, DECAY = 0.4, 64.0, 0.1, 0.9, 5e-4
WARM_UP = 3


def say(**what):
    print(json.dumps(what), flush=True)


class Head:
    def __init__(self, classes, dim, batch, rate, device, half=True, std=0.01):
        self.classes, self.batch, self.rate, self.device, self.half = classes, batch, rate, device, half
        self.weight = torch.empty(classes, dim, device=device).normal_(0, std)
        self.moment = torch.zeros(classes, dim, device=device)
        self.optimiser = None

    def sample(self, labels):
        """As the reference code draws it: positives score above all, the best scores are in."""
        score = torch.rand(self.classes, device=self.device)
        score[labels] = 2.0
        return torch.topk(score, max(int(self.rate * self.classes), self.batch)).indices.sort().values

    def loss_of(self, unit, rows, target):
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            cosine = F.linear(unit, F.normalize(rows))
        cosine = cosine.float().clamp(-1, 1)
        at = torch.arange(len(target), device=self.device)
        margin = torch.zeros_like(cosine)
        margin[at, target] = MARGIN
        return F.cross_entropy((cosine - margin) * SCALE, target)

    def v1(self, features, labels, index):
        target = torch.searchsorted(index, labels)
        unit = F.normalize(features).requires_grad_()
        rows = torch.index_select(self.weight, 0, index).requires_grad_()
        loss = self.loss_of(unit, rows, target)
        loss.backward()
        with torch.no_grad():
            gradient = rows.grad.add_(rows, alpha=DECAY)
            moment = torch.index_select(self.moment, 0, index).mul_(MOMENTUM).add_(gradient)
            rows.add_(moment, alpha=-LR)
            self.weight.index_copy_(0, index, rows)
            self.moment.index_copy_(0, index, moment)
        return loss.detach(), unit.grad

    def v2(self, features, labels, index):
        if self.optimiser is None:
            self.weight.requires_grad_()
            self.optimiser = torch.optim.SGD([self.weight], lr=LR, momentum=MOMENTUM, weight_decay=DECAY,
                                             **({"fused": True} if self.device.type == "cuda" else {}))
            self.optimiser.state[self.weight]["momentum_buffer"] = self.moment
        target = torch.searchsorted(index, labels)
        unit = F.normalize(features).requires_grad_()
        loss = self.loss_of(unit, torch.index_select(self.weight, 0, index), target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach(), unit.grad


# ---- against double precision

def in_double(weight, moment, features, labels, index, dense):
    """One step by hand, in place; returns the loss and the gradient of the unit features."""
    rows = weight[index]
    target = torch.searchsorted(index, labels)
    at = torch.arange(len(labels))
    unit = features / features.norm(dim=1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    direction = rows / norm
    z = (unit @ direction.T).clamp(-1, 1)
    z[at, target] -= MARGIN
    z *= SCALE
    lse = torch.logsumexp(z, 1)
    loss = (lse - z[at, target]).mean()
    g = torch.exp(z - lse[:, None])
    g[at, target] -= 1
    g *= SCALE / len(labels)
    dx, dw = g @ direction, g.T @ unit
    dw = (dw - direction * (direction * dw).sum(1, keepdim=True)) / norm
    gradient = torch.zeros_like(weight)
    gradient[index] = dw
    where = slice(None) if dense else index
    moment[where] = MOMENTUM * moment[where] + gradient[where] + DECAY * weight[where]
    weight[where] -= LR * moment[where]
    return loss, dx


def far(a, b):
    return float((a.double().cpu() - b).norm() / b.norm())


def check_variant(variant, half, device):
    """Largest relative distances of three steps from double precision."""
    torch.manual_seed(5)
    head = Head(2000, 64, 32, 0.2, device, half, std=0.1)
    weight, moment = head.weight.double().cpu(), head.moment.double().cpu()
    worst = {"loss": 0.0, "dx": 0.0, "w": 0.0}
    for _ in range(3):
        labels = torch.randint(0, head.classes, (head.batch,), device=device)
        features = torch.randn(head.batch, 64, device=device)
        index = head.sample(labels)
        loss, dx = getattr(head, variant)(features, labels, index)
        want, want_dx = in_double(weight, moment, features.double().cpu(), labels.cpu(), index.cpu(), variant == "v2")
        now = {"loss": abs(float(loss) - float(want)) / float(want), "dx": far(dx, want_dx),
               "w": far(head.weight.detach(), weight)}
        worst = {name: max(worst[name], now[name]) for name in worst}
        with torch.no_grad():  # both go on from the same state
            weight.copy_(head.weight.double())
            moment.copy_(head.moment.double())
    return worst


def check(device):
    torch.backends.cuda.matmul.allow_tf32 = False
    right = True
    for variant in ("v1", "v2"):
        for half, limits in ((False, {"loss": 1e-5, "dx": 1e-4, "w": 1e-5}), (True, {"loss": 5e-3, "dx": 5e-2, "w": 5e-3})):
            worst = check_variant(variant, half, device)
            fits = all(worst[name] <= limits[name] for name in worst)
            say(kind="check", variant=variant, autocast="bf16" if half else "off", ok=fits, **worst)
            right = right and fits
    return right


# ---- times

class Clock:
    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, begin, end):
        return begin.elapsed_time(end) if self.cuda else (end - begin) * 1e3

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()


def measure(variant, classes, options, device):
    """Medians over the steps; raises torch.cuda.OutOfMemoryError where it doesn't fit."""
    clock = Clock(device)
    if clock.cuda:
        torch.cuda.reset_peak_memory_stats()
    head = Head(classes, options.dim, options.batch, options.rate, device)
    features = torch.randn(options.batch, options.dim, device=device)
    marks = []
    for step in range(WARM_UP + options.steps):
        labels = torch.randint(0, classes, (options.batch,), device=device)
        begin = clock.now()
        index = head.sample(labels)
        drawn = clock.now()
        loss, _ = getattr(head, variant)(features, labels, index)
        marks.append((begin, drawn, clock.now()))
        if step < WARM_UP:
            clock.wait()
    clock.wait()
    marks = marks[WARM_UP:]
    steps = [clock.ms(a, c) for a, _, c in marks]
    return {"kind": "peer", "variant": variant, "classes": classes, "sampled": len(index), "batch": options.batch,
            "dim": options.dim, "steps": len(steps), "step_ms": statistics.median(steps), "best_ms": min(steps),
            "sample_ms": statistics.median(clock.ms(a, b) for a, b, _ in marks), "loss": float(loss),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if clock.cuda else None}


def try_measure(variant, classes, options, device):
    result = None
    try:
        result = measure(variant, classes, options, device)
    except torch.cuda.OutOfMemoryError:
        pass
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def largest(options, device, end):
    """V2 at the largest multiple of a quarter million identities that fits: W, momentum and gradient alone give the
    upper bound; in half millions down to what fits, then a quarter up."""
    free = torch.cuda.mem_get_info()[0]
    classes = int(free / (3 * 4 * options.dim) / 500000) * 500000
    refused = []
    while classes > 0 and time.monotonic() < end:
        result = try_measure("v2", classes, options, device)
        if result:
            more = try_measure("v2", classes + 250000, options, device)
            refused += [] if more else [classes + 250000]
            say(**(more or result), largest=True, refused=sorted(refused))
            return
        refused.append(classes)
        classes -= 500000
    say(kind="note", text=f"no largest C was found in the time: {refused} did not fit")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="1000000")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-largest", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("peer_torch_gpu.py: PyTorch sees no GPU")
    say(kind="torch", version=torch.__version__, cuda=torch.version.cuda,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    if not check(device):
        sys.exit("peer_torch_gpu.py: a step is not that of double precision")
    for variant in ("v1", "v2"):
        for classes in (int(c) for c in options.classes.split(",")):
            if time.monotonic() < end:
                result = try_measure(variant, classes, options, device)
                say(**(result or {"kind": "note", "text": f"{variant} at {classes} identities: out of device memory"}))
    if device.type == "cuda" and not options.no_largest:
        largest(options, device, end)


if __name__ == "__main__":
    main()
