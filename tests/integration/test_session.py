#!/usr/bin/python3
"""A foreign framework as a worker: Python with stubs from shardfc.proto opens a session and brings steps;
the gradients that it gets agree with numpy's, the new state with a numpy update.

    test_session.py        seed from SFC_SEED (default 1)
"""
import ctypes
import os
import struct
import sys

import grpc
import numpy as np

from cluster import Cluster, Failure, pb

SEED = int(os.environ.get("SFC_SEED", "1"))
CLASSES, DIM, BATCH, MICRO = 300, 24, 12, 4
SCALE, MARGIN, LR, MOMENTUM, DECAY = 16.0, 0.3, 0.1, 0.9, 5e-4
NO_LABEL = 2**64 - 1


def check(condition, message):
    if not condition:
        raise Failure(message)


def xxh(kind, *parts):
    """XXH3 through the xxhash library that the daemons use."""
    lib = ctypes.CDLL("libxxhash.so.0")
    data = b"".join(parts)
    if kind == 64:
        lib.XXH3_64bits.restype = ctypes.c_uint64
        return lib.XXH3_64bits(data, ctypes.c_size_t(len(data)))

    class H128(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]
    lib.XXH3_128bits.restype = H128
    h = lib.XXH3_128bits(data, ctypes.c_size_t(len(data)))
    return struct.pack(">QQ", h.high, h.low)


def tensor(dtype, array):
    return dict(payload_type=pb.TensorType(dtype=dtype, shape=array.shape), payload=array.tobytes())


class Session:
    def __init__(self, c):
        self.c = c
        self.open = c.stub.OpenSession(pb.OpenSessionRequest(protocol=1, name="numpy"), timeout=30)
        self.shards = [c.shard_stub(s.address) for s in self.open.map.shards]

    def key(self, step, j):
        return dict(run_id=self.open.run_id, step=step, micro_batch=j, attempt=self.open.attempt,
                    map_version=self.open.map.version)

    def announce(self, step, j, labels):
        self.c.stub.Announce(pb.AnnounceRequest(run_id=self.open.run_id, session=self.open.session,
                                                step=step, micro_batch=j, labels=labels), timeout=30)

    def exchange(self, step, j, x):
        """(log-sum-exp, target logits, gradient of the unit features)."""
        body = tensor(pb.DTYPE_F32, x)
        total = [0] * len(x)
        target, owners = np.zeros(len(x)), np.zeros(len(x), int)
        for s in self.shards:
            r = s.Logits(pb.LogitsRequest(payload_digest=xxh(64, body["payload"]), **self.key(step, j),
                                          **body), timeout=60)
            words = np.frombuffer(r.payload, "<u8").reshape(len(x), 4)
            for i, row in enumerate(words):
                total[i] += sum(int(w) << (64 * n) for n, w in enumerate(row))
            has = np.frombuffer(r.has_target, np.uint8)
            owners += has
            target += np.where(has == 1, r.target_logit, 0)
        lse = np.log(np.array([t / 2**128 for t in total]))
        body = tensor(pb.DTYPE_F64, lse)
        dx = [0] * x.size
        for s in self.shards:
            r = s.Gradient(pb.GradientRequest(payload_digest=xxh(64, body["payload"]),
                                              **self.key(step, j), **body), timeout=60)
            for i, v in enumerate(np.frombuffer(r.payload, "<i8")):
                dx[i] += int(v)
        return lse, target, owners, np.array(dx, dtype=float).reshape(x.shape) / 2**44

    def done(self, step, j, x, lse, loss_sum):
        return self.c.stub.Done(pb.DoneRequest(
            run_id=self.open.run_id, session=self.open.session, step=step, micro_batch=j,
            attempt=self.open.attempt, head_digest=xxh(128, x.tobytes(), lse.tobytes()),
            loss_sum=loss_sum), timeout=60).accepted


def read_centres(c):
    held = c.hold()
    try:
        parts = [np.frombuffer(data, "<f4") for name, data in c.read_state(held)
                 if name.startswith("class") and name.endswith("values")]
        return held.step, np.concatenate(parts).reshape(CLASSES, DIM).astype(float)
    finally:
        c.release(held)


def unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def softmax_step(w, x, labels):
    """Full softmax with CosFace in double: (log-sum-exp, target, d loss / d unit x, d loss / d w)."""
    rows = np.array([i for i, t in enumerate(labels) if t != NO_LABEL])
    wn, xn = unit(w), unit(x.astype(float))
    cos = np.clip(xn @ wn.T, -1, 1)
    z = SCALE * cos
    for i in rows:
        z[i, labels[i]] = SCALE * (cos[i, labels[i]] - MARGIN)
    lse = np.log(np.exp(z).sum(axis=1))
    p = np.exp(z - lse[:, None])
    for i in rows:
        p[i, labels[i]] -= 1
    weight = np.zeros((len(x), 1))
    weight[rows] = SCALE / BATCH
    d = p * weight
    dwn = d.T @ xn
    dw = (dwn - wn * (wn * dwn).sum(axis=1, keepdims=True)) / np.linalg.norm(w, axis=1, keepdims=True)
    target = np.array([z[i, labels[i]] if labels[i] != NO_LABEL else 0 for i in range(len(x))])
    return lse, target, d @ wn, dw


def close(a, b, tolerance, what):
    worst = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
    check(worst <= tolerance, f"{what}: relative difference {worst:.3g} above {tolerance}")


def bring_step(s, step, random, w, velocity):
    labels = [int(v) for v in random.integers(0, CLASSES, BATCH)]
    labels[5] = NO_LABEL
    x = random.standard_normal((BATCH, DIM)).astype(np.float32)
    lse, target, dx, dw = softmax_step(w, x, labels)
    for j in range(BATCH // MICRO):
        s.announce(step, j, labels[j * MICRO:(j + 1) * MICRO])
    for j in range(BATCH // MICRO):
        r = slice(j * MICRO, (j + 1) * MICRO)
        got_lse, got_target, owners, got_dx = s.exchange(step, j, x[r])
        weighted = np.array([t != NO_LABEL for t in labels[r]])
        check((owners == weighted).all(), f"owners of the targets: {owners}")
        close(got_lse, lse[r], 1e-5, f"step {step}: log-sum-exp")
        close(got_target, target[r], 1e-5, f"step {step}: target logits")
        close(got_dx, dx[r], 1e-4, f"step {step}: gradient")
        check((got_dx[~weighted] == 0).all(), "a row of weight 0 has a gradient")
        check(s.done(step, j, x[r], got_lse, float((got_lse - got_target)[weighted].sum())),
              f"Done of step {step}, micro-batch {j} was not accepted")
    velocity[:] = MOMENTUM * velocity + dw + DECAY * w
    w -= LR * velocity


def health(address):
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)


def expect_refused(call, codes, what):
    try:
        call()
    except grpc.RpcError as e:
        check(e.code() in codes, f"{what}: {e.code()}: {e.details()}")
        check(e.details(), f"{what}: refused without a message")
        return
    raise Failure(f"{what} was accepted")


def refusals(s, step, random):
    """What a shard must refuse: wrong run, attempt, map, shape, NaN, other bytes under the same key."""
    bad = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION,
           grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
           grpc.StatusCode.DATA_LOSS, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNKNOWN)
    x = random.standard_normal((MICRO, DIM)).astype(np.float32)

    def logits(x, **other):
        body = tensor(pb.DTYPE_F32, x)
        request = pb.LogitsRequest(payload_digest=xxh(64, body["payload"]), **self_key, **body)
        for name, value in other.items():
            if isinstance(value, (int, float)):
                setattr(request, name, value)
            else:
                getattr(request, name).CopyFrom(value)
        return s.shards[0].Logits(request, timeout=10)

    self_key = s.key(step, 0)
    expect_refused(lambda: logits(x, run_id=99), bad, "another run")
    expect_refused(lambda: logits(x, map_version=77), bad, "another map")
    expect_refused(lambda: logits(x, attempt=pb.Attempt(incarnation=0, counter=1)), bad, "an old attempt")
    expect_refused(lambda: logits(x[:, :-1].copy()), bad, "another dim")
    expect_refused(lambda: logits(x, payload_digest=5), bad, "a wrong digest")
    broken = x.copy()
    broken[1, 2] = np.nan
    expect_refused(lambda: logits(broken), bad, "a NaN feature")


def main():
    random = np.random.default_rng(SEED)
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.create_run(classes=CLASSES, dim=DIM, block_size=64, sample_ppm=1000000, scale=SCALE,
                     margin_m3=MARGIN, lr=LR, warmup_steps=0, lr_power=0.0, lr_end=1.0,
                     momentum=MOMENTUM, weight_decay=DECAY, steps=100, global_batch=BATCH,
                     micro_batch=MICRO, seed=SEED, data=pb.DataSet(kind=pb.DataSet.SESSION))
        check(health(c.address) == b"\x08\x01", "the scheduler is not SERVING")
        for shard in c.shards:
            check(health(shard.address) == b"\x08\x01", "a shard is not SERVING")
        s = Session(c)
        check(s.open.next_step == 1, f"the session begins at step {s.open.next_step}")
        step, w = read_centres(c)
        velocity = np.zeros_like(w)
        for t in range(1, 6):
            bring_step(s, t, random, w, velocity)
        c.wait_step(5, 30)
        step, got = read_centres(c)
        check(step == 5, f"state of step {step}")
        close(got, w, 1e-4, "class centres after five steps")
        s.announce(6, 0, [1] * MICRO)
        s.announce(6, 1, [1] * MICRO)
        s.announce(6, 2, [1] * MICRO)
        refusals(s, 6, random)
        newer = Session(c)  # voids the old one, and its half of step 6
        check(newer.open.next_step == 6, f"the new session begins at step {newer.open.next_step}")
        expect_refused(lambda: s.announce(6, 0, [1] * MICRO),
                       (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED,
                        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN), "the old session")
        for process in c.processes:
            check(process.running(), f"a daemon died\n{process.tail()}")
    print("ok session")


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        print(f"FAILED session, seed {SEED}", file=sys.stderr)
        raise
