#!/usr/bin/python3
"""The class layer's step of Partial FC in PyTorch on CPU, as somebody would write it who has no ShardFC: what
peer_torch.py compares with. Reads requests from standard input, one JSON object a line, and answers each with one line
of JSON; peer_torch.py starts it with its threads, its BLAS and its malloc set up.

Three implementations of the step, on the same W and momentum:

v1    the paper's first code: the sampled rows are gathered into a small matrix of their own, autograd gives its
      gradient, SGD updates it and the momentum of the same rows, both are scattered back.
hand  the same step written by hand for this comparison: no autograd, buffers made once, every operation in place.
v2    the second code: autograd through the gather into W, torch.optim.SGD over the whole of W, so all rows coast and
      decay in every step.

A step is CosFace on unit features: cos = x^ w^T clamped to [-1, 1], the target's minus margin, times scale, mean
cross-entropy over the sample.
"""
import ctypes
import json
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F


def peak_rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


class Head:
    def __init__(self, classes, dim, batch, rate, margin=0.4, scale=64.0, lr=0.1, momentum=0.9, decay=5e-4):
        self.classes, self.dim, self.batch, self.rate = classes, dim, batch, rate
        self.margin, self.scale, self.lr, self.momentum, self.decay = margin, scale, lr, momentum, decay
        self.weight = torch.empty(classes, dim)
        self.moment = torch.zeros(classes, dim)
        self.optimiser = None
        self.buffers = None
        rows = min(classes, 65536)  # one chunk of normals again and again: times don't depend on the values
        chunk = torch.empty(rows, dim).normal_(0, 0.01)
        for first in range(0, classes, rows):
            self.weight[first:first + rows] = chunk[:min(rows, classes - first)]
        self.features = torch.empty(batch, dim).uniform_(-1, 1)

    def sample(self, labels):
        """As the reference code draws it: positives get a score above all, the best scores are in."""
        score = torch.rand(self.classes)
        score[labels] = 2.0
        count = max(int(self.rate * self.classes), torch.unique(labels).numel())
        return torch.sort(torch.topk(score, count)[1])[0]

    def loss_of(self, unit, rows, target):
        cosine = F.linear(unit, F.normalize(rows)).clamp(-1, 1)
        at = torch.arange(len(target))
        cosine[at, target] -= self.margin
        return F.cross_entropy(cosine * self.scale, target)

    def unit_features(self, features):
        return F.normalize(features).requires_grad_()

    def v1(self, features, labels, index):
        target = torch.searchsorted(index, labels)
        unit = self.unit_features(features)
        rows = torch.index_select(self.weight, 0, index).requires_grad_()
        loss = self.loss_of(unit, rows, target)
        loss.backward()
        with torch.no_grad():
            gradient = rows.grad.add_(rows, alpha=self.decay)
            moment = torch.index_select(self.moment, 0, index).mul_(self.momentum).add_(gradient)
            rows.add_(moment, alpha=-self.lr)
            self.weight.index_copy_(0, index, rows)
            self.moment.index_copy_(0, index, moment)
        return loss.detach(), unit.grad

    def v2(self, features, labels, index):
        if self.optimiser is None:
            self.weight.requires_grad_()
            self.optimiser = torch.optim.SGD([self.weight], lr=self.lr, momentum=self.momentum,
                                             weight_decay=self.decay)
            self.optimiser.state[self.weight]["momentum_buffer"] = self.moment
        target = torch.searchsorted(index, labels)
        unit = self.unit_features(features)
        rows = self.gather(index)
        loss = self.loss_of(unit, rows, target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach(), unit.grad

    def gather(self, index):
        return torch.index_select(self.weight, 0, index)

    def rest(self):
        """Gives back what only v2 holds between steps."""
        if self.optimiser is not None:
            self.weight.grad = None
            self.weight.requires_grad_(False)
            self.optimiser = None

    def hand(self, features, labels, index):
        n = len(index)
        if self.buffers is None or len(self.buffers[0]) < n:
            self.buffers = [torch.empty(n, self.dim) for _ in range(3)] + [torch.empty(n) for _ in range(2)] + \
                           [torch.empty(self.batch, n) for _ in range(2)]
        rows, gradient, moment, norm, along = (b[:n] for b in self.buffers[:5])
        z, p = (b.view(-1)[:self.batch * n].view(self.batch, n) for b in self.buffers[5:])
        target, at = torch.searchsorted(index, labels), torch.arange(self.batch)
        unit = F.normalize(features)
        torch.index_select(self.weight, 0, index, out=rows)
        torch.linalg.vector_norm(rows, dim=1, out=norm)
        inverse = norm.clamp_(min=1e-12).reciprocal_()
        torch.mm(unit, rows.T, out=z)
        z.mul_(inverse).clamp_(-1, 1)
        z[at, target] -= self.margin
        z.mul_(self.scale).sub_(z.amax(1, keepdim=True))
        total = torch.exp(z, out=p).sum(1, keepdim=True)
        loss = (total.log()[:, 0] - z[at, target]).mean()
        p.div_(total)
        p[at, target] -= 1
        p.mul_(self.scale / self.batch)
        torch.mm(p.T, unit, out=gradient)
        dx = torch.mm(p.mul_(inverse), rows)
        # back through the normalisation: (g - w^ (w^ . g)) / |w|
        torch.mul(rows, gradient, out=moment)
        torch.sum(moment, 1, out=along)
        along.mul_(inverse).mul_(inverse)
        gradient.addcmul_(rows, along[:, None], value=-1).mul_(inverse[:, None])
        gradient.add_(rows, alpha=self.decay)
        torch.index_select(self.moment, 0, index, out=moment)
        moment.mul_(self.momentum).add_(gradient)
        rows.add_(moment, alpha=-self.lr)
        self.weight.index_copy_(0, index, rows)
        self.moment.index_copy_(0, index, moment)
        return loss, dx


# ---- requests

def do_steps(head, variant, steps, state):
    """Times in ms: of the sampling, and of the rest of the step."""
    sample_ms, step_ms = [], []
    for _ in range(steps):
        state["step"] += 1
        labels = torch.from_numpy((state["step"] * 2654435761 + np.arange(head.batch) * 40503 * 65537) % head.classes)
        began = time.perf_counter()
        index = head.sample(labels)
        sampled = time.perf_counter()
        loss, _ = getattr(head, variant)(head.features, labels, index)
        done = time.perf_counter()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{variant}: the loss of step {state['step']} is {loss}")
        sample_ms.append(1e3 * (sampled - began))
        step_ms.append(1e3 * (done - sampled))
    head.rest()
    return {"sample_ms": sample_ms, "step_ms": step_ms, "sampled": len(index)}


def worst(mine, theirs):
    """The largest difference, relative to the largest number."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    return float((mine.double() - theirs).abs().max() / theirs.abs().max())


def check(head, variant, folder):
    """Takes the steps that `shardfc bench head --dump` has written, from its W, and tells how far the results are
    apart."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "head.json").read_text())
    if config["margin"][:2] != [1, 0]:
        raise ValueError("the dump is not of CosFace")
    if config["optimizer"] != "sgd":
        raise ValueError(f"the dump is of {config['optimizer']}, not of sgd")
    head.margin, head.scale, head.lr = config["margin"][2], config["scale"], config["rate"]
    head.momentum, head.decay = config["momentum"], config["weight_decay"]

    def array(name, kind):
        return np.fromfile(folder / name, dtype=kind)
    head.weight.view(-1).copy_(torch.from_numpy(array("w.f32", "<f4")))
    head.moment.zero_()
    steps = []
    for step in range(1, config["steps"] + 1):
        labels = torch.from_numpy(array(f"{step}.labels.u64", "<u8").astype(np.int64))
        index = torch.from_numpy(array(f"{step}.sample.u64", "<u8").astype(np.int64))
        features = torch.from_numpy(array(f"{step}.features.f32", "<f4").reshape(head.batch, head.dim))
        before = head.weight.detach()[index]
        loss, dx = getattr(head, variant)(features, labels, index)
        theirs = float(np.mean(array(f"{step}.lse.f64", "<f8") - array(f"{step}.target_logit.f32", "<f4")))
        w, m = (torch.from_numpy(array(f"{step}.{part}.f32", "<f4").reshape(-1, head.dim)) for part in "wm")
        steps.append({"step": step, "loss": float(loss), "their_loss": theirs, "loss_off": abs(float(loss) / theirs - 1),
                      "dx_off": worst(dx, array(f"{step}.dx.f64", "<f8").reshape(head.batch, head.dim)),
                      "update_off": worst(head.weight.detach()[index] - before, w - before),
                      "momentum_off": worst(head.moment[index], m)})
    head.rest()
    return {"variant": variant, "steps": steps}


def blas_libraries():
    return sorted({line.split()[-1] for line in open("/proc/self/maps") if "blas" in line.rsplit("/", 1)[-1]})


def core_type(libraries):
    """The kernels that OpenBLAS runs; None where another BLAS is loaded."""
    for path in libraries:
        name = getattr(ctypes.CDLL(path), "openblas_get_corename", None)
        if name:
            name.restype = ctypes.c_char_p
            return name().decode()
    return None


def main():
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request["threads"])
    torch.manual_seed(1)
    head = Head(request["classes"], request["dim"], request["batch"], request["rate"])
    state = {"step": 0}

    def answer(what):
        print(json.dumps(what), flush=True)
    blas = blas_libraries()
    answer({"torch": torch.__version__, "blas": blas, "core_type": core_type(blas), "threads": torch.get_num_threads()})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "steps":
            answer(do_steps(head, request["variant"], request["steps"], state))
        elif request["do"] == "check":
            answer(check(head, request["variant"], request["dump"]))
        elif request["do"] == "memory":
            answer({"peak_rss_bytes": peak_rss()})
        else:
            raise ValueError(f"unknown request {request['do']!r}")


if __name__ == "__main__":
    main()
