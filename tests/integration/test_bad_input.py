#!/usr/bin/python3
"""Whatever is wrong from outside gets a clear error that names the field, file or record, is counted where
a daemon saw it, and every daemon lives on and finishes a run afterwards.

    test_bad_input.py [calls|noise|runs|overflow|files|data|broken ...]     default: all
Seeds come from SFC_SEED (default 1) and are printed on failure.
"""
import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import sys
import time

import grpc
import numpy as np

import cluster
from cluster import Cluster, Failure, pb, run_config, wait_until
from inputs import (Records, check, expect, make_images, one_json, small_run, tool, write_pairs, xxh3_64)
from test_head_session import Session, batch, session_config

SEED = int(os.environ.get("SFC_SEED", "1"))
MAX = 2**64 - 1


def refused(what, call, *words, codes=()):
    """The call fails with a message that has one of the words of every group ("a|b")."""
    try:
        answer = call()
    except grpc.RpcError as e:
        details = e.details() or ""
        check(e.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE),
              f"{what}: {e.code()}: {details}")
        check(details, f"{what}: {e.code()} without a message")
        for group in words:
            check(any(w in details for w in group.split("|")), f"{what}: no {group!r} in: {details}")
        status = dict(e.trailing_metadata() or ()).get("sfc-status")
        check(not codes or status in [str(c) for c in codes], f"{what}: sfc-status {status}: {details}")
        return details
    raise Failure(f"{what} was accepted: {answer}")


def counters(c):
    return {k.name: k.value for k in c.status().counters}


def all_alive(c, *ended):
    for process in c.processes:
        check(process in ended or process.running(), f"a daemon died\n{process.tail()}")


def finish_a_run(c, **fields):
    """Proof of life: a whole run with a worker."""
    worker = c.start_worker()
    c.create_run(name="proof", steps=10, **fields)
    c.wait_state("finished", 60)
    check(worker.terminate() == 0, f"the worker ended badly\n{worker.tail()}")
    all_alive(c, worker)


def stop_run(c):
    c.stub.Control(pb.ControlRequest(action=pb.ControlRequest.STOP), timeout=30 * cluster.TIME_SCALE)


def tensor(dtype, array):
    data = array.tobytes()
    return dict(payload=data, payload_digest=xxh3_64(data),
                payload_type=pb.TensorType(dtype=dtype, shape=array.shape))


# ---- calls of a training step

def logits_cases(s, good):
    def request(array=good, dtype=pb.DTYPE_F32, **changes):
        fields = dict(run_id=s.reply.run_id, step=s.step, micro_batch=0, attempt=s.reply.attempt,
                      map_version=s.reply.map.version, **tensor(dtype, array))
        fields.update(changes)
        return pb.LogitsRequest(**{k: v for k, v in fields.items() if v is not None})

    def with_value(value):
        x = good.copy()
        x[2, 3] = value
        return x
    attempt = s.reply.attempt
    wide = good.astype(np.float64)
    yield "another run", request(run_id=99), "run_id"
    yield "run 0", request(run_id=0), "run_id"
    yield "a step of the future", request(step=s.step + 40), "step"
    yield "step 0", request(step=0), "step"
    yield "the largest step", request(step=MAX), "step"
    yield "a micro-batch that no step has", request(micro_batch=3), "micro_batch"
    yield "the largest micro-batch", request(micro_batch=2**32 - 1), "micro_batch"
    yield "no attempt", request(attempt=None), "attempt"
    yield "an attempt of an earlier scheduler", request(
        attempt=pb.Attempt(incarnation=0, counter=attempt.counter)), "attempt"
    yield "yesterday's block map", request(map_version=s.reply.map.version + 7), "map"
    yield "no block map", request(map_version=0), "map"
    yield "f64 features", request(wide, pb.DTYPE_F64), "dtype|F64|f64"
    yield "f64 said, f32 sent", request(payload_type=pb.TensorType(dtype=pb.DTYPE_F64, shape=good.shape)), \
        "dtype|F64|f64"
    yield "a dtype that does not exist", request(payload_type=pb.TensorType(dtype=77, shape=good.shape)), "type"
    yield "no tensor type", request(payload_type=None), "payload"
    yield "fewer rows", request(good[:4]), "dimension"
    yield "another dim", request(np.ascontiguousarray(good[:, :-1])), "dimension"
    yield "a rank of 1", request(payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=[good.size])), "dimension"
    yield "a rank of 1000", request(payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=[1] * 1000)), "dimension"
    yield "a shape whose size overflows", request(
        payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=[2**62, 2**62])), "dimension"
    yield "a payload cut short", request(payload=good.tobytes()[:-4]), "payload"
    yield "an empty payload", request(payload=b""), "payload"
    yield "a payload with a tail", request(payload=good.tobytes() + b"tail"), "payload"
    yield "another digest", request(payload_digest=5), "payload_digest"
    for value in (np.nan, np.inf, -np.inf):
        yield f"a feature of {value}", request(with_value(value)), "finite"


def gradient_cases(s, lse):
    def request(array=lse, dtype=pb.DTYPE_F64, **changes):
        fields = dict(run_id=s.reply.run_id, step=s.step, micro_batch=0, attempt=s.reply.attempt,
                      map_version=s.reply.map.version, **tensor(dtype, array))
        fields.update(changes)
        return pb.GradientRequest(**fields)
    for value in (np.nan, np.inf, -np.inf, -1e300, 0.0):
        bad = lse.copy()
        bad[1] = value
        yield f"a log-sum-exp of {value}", request(bad), "finite|smaller|below|log-sum-exp"
    yield "f32 log-sum-exps", request(lse.astype(np.float32), pb.DTYPE_F32), "dtype|F32|f32"
    yield "fewer rows", request(lse[:-1]), "dimension"
    yield "another run", request(run_id=99), "run_id"
    yield "another map", request(map_version=99), "map"
    yield "another micro-batch, without Logits", request(micro_batch=1), "never begun"


def test_calls():
    """Every wrong field of the calls of a step; then the same step is trained to the right end."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        c.create_run(**session_config())
        s = Session(c)
        shard = s.shards[0]
        x, y = batch(np.random.default_rng(SEED), s.config)
        good = np.ascontiguousarray(x[:8])
        before = counters(c)
        announce_cases(c, s, y)
        s.announce(y)
        n = 0
        for what, request, *words in logits_cases(s, good):
            refused(f"Logits: {what}", lambda r=request: shard.Logits(r, timeout=20 * cluster.TIME_SCALE), *words)
            n += 1
        zero = good.copy()
        zero[5] = 0
        lse = logits(s, shard, 0, zero)  # a zero feature is counted, not an error
        for what, request, *words in gradient_cases(s, lse):
            refused(f"Gradient: {what}", lambda r=request: shard.Gradient(r, timeout=20 * cluster.TIME_SCALE),
                    *words)
            n += 1
        done_cases(c, s)
        others(c, s, shard)
        s = Session(c)  # gives up what was begun
        s.train_step(x, y)
        c.wait_step(1)
        all_alive(c)
        seen = wait_until("the shard's counters", lambda: (lambda now: now if sum(
            v - before.get(k, 0) for k, v in now.items() if k.startswith("shard_refused")) >= n else None)(
                counters(c)), 20, context=lambda: f"{n} refusals, {counters(c)}")
        check(seen.get("shard_refused_EINVAL", 0) > 0 and seen.get("shard_refused_ESTALE", 0) > 0, f"{seen}")
        check(seen.get("scheduler_refused_EINVAL", 0) > 0, f"{seen}")
        stop_run(c)
        finish_a_run(c)


def logits(s, shard, j, features):
    answer = shard.Logits(s.logits_request(j, features), timeout=20 * cluster.TIME_SCALE)
    check(answer.zero_features == int((features == 0).all(axis=1).sum()), f"zero features: {answer.zero_features}")
    sums = [int.from_bytes(answer.payload[32 * i:32 * i + 32], "little") for i in range(len(features))]
    return np.array([np.log(v / 2**128) for v in sums])


def announce_cases(c, s, y):
    def announce(labels=y[:8], **changes):
        fields = dict(run_id=s.reply.run_id, session=s.reply.session, step=s.step, micro_batch=0,
                      labels=[int(v) for v in labels])
        fields.update(changes)
        return lambda: c.stub.Announce(pb.AnnounceRequest(**fields), timeout=20 * cluster.TIME_SCALE)
    over = y[:8].copy()
    over[3] = s.config.classes
    refused("a label out of range", announce(over), "label", str(s.config.classes))
    over[3] = 2**63
    refused("a huge label", announce(over), "label")
    refused("too few labels", announce(y[:7]), "labels")
    refused("too many labels", announce(np.zeros(100000, int)), "labels")
    refused("labels of another run", announce(run_id=9), "run_id")
    refused("labels of no session", announce(session=0), "worker|session")
    refused("labels of another session", announce(session=s.reply.session + 5), "session")
    refused("a step far ahead", announce(step=10**9), "step")
    refused("a micro-batch that no step has", announce(micro_batch=77), "micro_batch")
    refused("more broken rows than rows", announce(broken_rows=[1] * 9), "broken_rows")
    refused("broken rows without --skip-broken", announce(broken_rows=[1], broken_reason="test"), "broken")
    announce()()
    other = y[:8].copy()
    other[0] = (int(other[0]) + 1) % s.config.classes
    refused("other labels for the same rows", announce(other), "label")


def done_cases(c, s):
    def done(**changes):
        fields = dict(run_id=s.reply.run_id, session=s.reply.session, step=s.step, micro_batch=0,
                      attempt=s.reply.attempt, head_digest=bytes(16), loss_sum=1.0)
        fields.update(changes)
        return lambda: c.stub.Done(pb.DoneRequest(**{k: v for k, v in fields.items() if v is not None}),
                                   timeout=20 * cluster.TIME_SCALE)
    refused("Done without an attempt", done(attempt=None), "attempt")
    refused("Done with a short digest", done(head_digest=b"x"), "head_digest")
    refused("Done with dense digests", done(dense_digests=[1, 2]), "dense_digests")
    refused("Done with too many zero features", done(zero_features=99), "zero_features")
    refused("Done of another run", done(run_id=44), "run_id")
    refused("Done of a micro-batch that no step has", done(micro_batch=99), "micro_batch")
    for value in (float("nan"), float("inf")):
        refused(f"Done with a loss of {value}", done(loss_sum=value), "loss_sum")


def others(c, s, shard):
    limit = 20 * cluster.TIME_SCALE
    run = s.reply.run_id
    for what, request, *words in (
            ("a block that does not exist", dict(block=10**9, count=1), "block"),
            ("too many elements", dict(block=0, count=2**63), "count"),
            ("an offset beyond the end", dict(block=0, offset=MAX, count=1), "offset"),
            ("no elements", dict(block=0, count=0), "count"),
            ("an unknown kind", dict(kind=9, block=0, count=1), "kind"),
            ("an unknown part", dict(part=9, block=0, count=1), "part"),
            ("another step", dict(block=0, count=1, step=55), "step"),
            ("another run", dict(block=0, count=1, run_id=run + 1), "run_id")):
        fields = dict(dict(run_id=run, step=s.step - 1), **request)
        refused(f"ReadBlock: {what}", lambda f=fields: shard.ReadBlock(pb.ReadBlockRequest(**f), timeout=limit),
                *words)
    values = np.zeros(4, np.float32)
    refused("WriteBlock into a running run", lambda: shard.WriteBlock(pb.WriteBlockRequest(
        run_id=run, block=0, payload=values.tobytes(),
        payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=[4])), timeout=limit), "loading")
    refused("dense gradients in a run without a backbone", lambda: shard.PushDense(pb.PushDenseRequest(
        run_id=run, step=s.step, micro_batch=0, attempt=s.reply.attempt, map_version=s.reply.map.version,
        **tensor(pb.DTYPE_F32, values)), timeout=limit), "payload")
    plan = dict(run_id=run, incarnation=s.reply.attempt.incarnation, step=s.step, map_version=1, lr=0.1,
                labels=[0] * 24, round=s.reply.attempt)
    for what, change, word in (
            ("an earlier scheduler", dict(incarnation=0), "incarnation"), ("few labels", dict(labels=[1]), "labels"),
            ("a label out of range", dict(labels=[10**6] * 24), "labels"), ("lr NaN", dict(lr=float("nan")), "lr"),
            ("a negative lr", dict(lr=-1), "lr"), ("no round", dict(round=None), "round")):
        refused(f"Plan: {what}", lambda f=dict(plan, **change): shard.Plan(pb.PlanRequest(
            **{k: v for k, v in f.items() if v is not None}), timeout=limit), word)
    refused("Prepare with attempts missing", lambda: shard.Prepare(pb.PrepareRequest(
        run_id=run, incarnation=s.reply.attempt.incarnation, step=s.step, round=s.reply.attempt),
        timeout=limit), "attempts")
    for scale in (float("nan"), -1, 2):
        refused(f"Commit with a clip scale of {scale}", lambda v=scale: shard.Commit(pb.CommitRequest(
            run_id=run, incarnation=s.reply.attempt.incarnation, step=s.step, clip_scale=v, apply=True,
            round=s.reply.attempt), timeout=limit), "clip_scale")
    end, nan = s.config.steps, float("nan")
    opening = dict(run_id=run + 1, incarnation=s.reply.attempt.incarnation, config=s.config, map=s.reply.map)
    for what, change, word in (
            ("no configuration", dict(config=None), "config"), ("a start beyond the end", dict(start_step=end + 1),
                                                                "start_step"),
            ("recovery beyond the end", dict(recover=True, last_commit=pb.CommitRecord(step=end + 1)), "last_commit"),
            ("recovery to before the start", dict(recover=True, start_step=2, last_commit=pb.CommitRecord(step=1)),
             "last_commit"),
            ("a clip scale of NaN", dict(recover=True, last_commit=pb.CommitRecord(step=1, clip_scale=nan)),
             "clip_scale"),
            ("returns that don't ascend", dict(returns=[pb.Return(step=2), pb.Return(step=1)]), "returns[1]"),
            ("too many returns", dict(returns=[pb.Return(step=i) for i in range(257)]), "returns"),
            ("an lr of NaN", dict(recover=True, last_commit=pb.CommitRecord(step=1, lr=nan)), "lr")):
        refused(f"OpenRun: {what}", lambda f=dict(opening, **change): shard.OpenRun(pb.OpenRunRequest(
            **{k: v for k, v in f.items() if v is not None}), timeout=limit), word)
    scheduler_calls(c, run, limit)


def scheduler_calls(c, run, limit):
    stub = c.stub
    data = pb.DataSet(kind=pb.DataSet.SYNTHETIC, samples=1)
    join = dict(protocol=1, name="t:1", lanes=1, numerics="x", data=data)
    for what, change, *words in (
            ("another protocol", dict(protocol=99), "protocol"), ("no name", dict(name=""), "name"),
            ("a name with control characters", dict(name="a\nb"), "name"),
            ("a name that colours a terminal", dict(name="\x9b31m"), "name", "control characters"),
            ("a version that colours a terminal", dict(version="9\x1b[31m"), "version", "control characters"),
            ("a long name", dict(name="x" * 5000), "name"), ("no lanes", dict(lanes=0), "lanes"),
            ("too many lanes", dict(lanes=2**31), "lanes"), ("no data", dict(data=None), "data"),
            ("a run without workers", {}, "session")):
        refused(f"Join: {what}", lambda f=dict(join, **change): stub.Join(pb.JoinRequest(
            **{k: v for k, v in f.items() if v is not None}), timeout=limit), *words)
    shard = dict(protocol=1, boot_id=1, address="127.0.0.1:1", backend="cpu", numerics="x", memory_limit=1)
    for what, change, word in (
            ("another protocol", dict(protocol=0), "protocol"), ("no boot id", dict(boot_id=0), "boot_id"),
            ("no address", dict(address="somewhere"), "address"),
            ("an impossible port", dict(address="127.0.0.1:70000"), "address|HOST:PORT"),
            ("a long address", dict(address="x" * 3000 + ":1"), "address"),
            ("no numerics", dict(numerics=""), "numerics")):
        refused(f"RegisterShard: {what}", lambda f=dict(shard, **change): stub.RegisterShard(
            pb.RegisterShardRequest(**f), timeout=limit), word)
    refused("a counter that forges a line", lambda: stub.Heartbeat(pb.HeartbeatRequest(
        worker=1, counters=[pb.Counter(name="a\nb", value=1)]), timeout=limit), "name", "control characters")
    refused("an unknown action", lambda: stub.Control(pb.ControlRequest(action=77), timeout=limit), "action")
    refused("control of another run", lambda: stub.Control(pb.ControlRequest(run_id=77), timeout=limit), "run_id")
    refused("START of a running run", lambda: stub.Control(pb.ControlRequest(
        action=pb.ControlRequest.START), timeout=limit), "running|loading")
    refused("a drop of a micro-batch that no step has", lambda: stub.Control(pb.ControlRequest(
        action=pb.ControlRequest.DROP, step=1, micro_batch=99), timeout=limit), "micro_batch")
    refused("a hold at a step beyond the end", lambda: stub.Hold(pb.HoldRequest(at_step=10**9), timeout=limit),
            "step")
    refused("an unknown hold", lambda: stub.Hold(pb.HoldRequest(hold_id=4711), timeout=limit), "hold")
    refused("a session of another protocol", lambda: stub.OpenSession(
        pb.OpenSessionRequest(protocol=5), timeout=limit), "protocol")
    refused("an unknown ticket kind", lambda: stub.Ticket(pb.TicketRequest(
        worker=1, run_id=run, kind=9), timeout=limit), "kind")
    check(stub.Ticket(pb.TicketRequest(worker=12345, run_id=run), timeout=limit).rejoin,
          "a stranger may have a ticket")
    refused("labels of a stranger", lambda: stub.Announce(pb.AnnounceRequest(
        worker=12345, run_id=run, step=1, labels=[0] * 8), timeout=limit), "worker")
    check(not stub.Heartbeat(pb.HeartbeatRequest(worker=12345), timeout=limit).known, "a stranger is known")
    refused("a stranger's GetMap", lambda: stub.GetMap(pb.GetMapRequest(worker=12345, run_id=run), timeout=limit),
            "worker")
    refused("GetMap of a session that is none", lambda: stub.GetMap(pb.GetMapRequest(
        session=12345, run_id=run), timeout=limit), "session")
    refused("GetMap of another run", lambda: stub.GetMap(pb.GetMapRequest(worker=1, run_id=77), timeout=limit),
            "run_id")
    history = stub.History(pb.HistoryRequest(run_id=987654, limit=2**32 - 1), timeout=limit)
    check(not history.points, "history of a run that never was")


# ---- bytes that are no messages

def methods():
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield service.name, f"/{service.full_name}/{method.name}"


def raw(channel, path, body, timeout):
    return channel.unary_unary(path, request_serializer=None, response_deserializer=None)(body, timeout=timeout)


def test_noise():
    """Garbage as a message, messages cut and flipped, oversized ones, unknown methods, bytes that are not
    HTTP/2, connections that stop in the middle."""
    chance = random.Random(SEED)
    limit = 20 * cluster.TIME_SCALE
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        c.create_run(**session_config())
        s = Session(c)
        x, y = batch(np.random.default_rng(SEED), s.config)
        s.announce(y)
        addresses = {"Scheduler": c.address, "Shard": c.shards[0].address}
        for service, path in methods():
            channel = c.channel(addresses[service])
            refused(f"{path}: garbage", lambda: raw(channel, path, b"\xff" * 100, limit))
            refused(f"{path}: a length beyond the end", lambda: raw(channel, path, b"\x0a\xff\xff\xff\x7f", limit))
        for address in addresses.values():
            channel = c.channel(address)
            refused("an unknown method", lambda: raw(channel, "/shardfc.v1.Shard/Explode", b"", limit))
            refused("an unknown service", lambda: raw(channel, "/x/y", b"", limit))
            refused("another service", lambda: raw(channel, "/grpc.health.v1.Health/Fly", b"", limit))
        refused("an oversized ticket", lambda: raw(c.channel(c.address), "/shardfc.v1.Scheduler/Ticket",
                                                   bytes(1 << 20), limit), "65536|limit|bytes")
        refused("an oversized commit", lambda: raw(c.channel(addresses["Shard"]), "/shardfc.v1.Shard/Commit",
                                                   bytes(1 << 20), limit), "65536|limit|bytes")
        refused("oversized labels", lambda: raw(c.channel(c.address), "/shardfc.v1.Scheduler/Announce",
                                                bytes(17 << 20), limit), "larger than max")
        good = s.logits_request(0, np.ascontiguousarray(x[:8])).SerializeToString()
        mutated(c, addresses["Shard"], "/shardfc.v1.Shard/Logits", good, chance, limit)
        config = pb.CreateRunRequest(config=run_config()).SerializeToString()
        stop_run(c)
        mutated(c, c.address, "/shardfc.v1.Scheduler/CreateRun", config, chance, 60 * cluster.TIME_SCALE, 40)
        not_http(c, addresses.values(), chance)
        all_alive(c)
        if c.status().state not in ("idle", "finished"):
            stop_run(c)
        finish_a_run(c)


def mutated(c, address, path, message, chance, limit, count=150):
    """Messages with flipped, lost and doubled bytes: any answer is fine, no answer is not."""
    channel = c.channel(address)
    for n in range(count):
        body = bytearray(message)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            kind = chance.randrange(3)
            if kind == 0:
                body[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del body[at:at + chance.randint(1, 9)]
                body = body or bytearray(b"\0")
            else:
                body[at:at] = chance.randbytes(chance.randint(1, 9))
        try:
            raw(channel, path, bytes(body), limit)
            if path.endswith("CreateRun"):
                stop_run(c)
        except grpc.RpcError as e:
            check(e.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE),
                  f"{path}, mutation {n} of seed {SEED}: {e.code()}: {e.details()}")
    all_alive(c)


def not_http(c, addresses, chance):
    for address in addresses:
        host, port = address.rsplit(":", 1)
        open_ends = []
        for data in (b"GET / HTTP/1.1\r\n\r\n", chance.randbytes(5000), b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(1000)):
            sock = socket.create_connection((host, int(port)), timeout=10)
            sock.sendall(data)
            open_ends.append(sock)
        check(c.status() is not None, "status beside half-open connections")
        for sock in open_ends:
            sock.close()


# ---- configurations that can't be run

def test_runs():
    """CreateRun with every kind of impossible number: named and refused; the scheduler stays idle."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1, "--memory", "64M")
        synth = pb.DataSet.SYNTHETIC
        nan, inf = float("nan"), float("inf")
        for fields, word in (
                (dict(classes=0), "classes"), (dict(classes=MAX), "classes"), (dict(dim=0), "dim"),
                (dict(dim=2**32 - 1), "dim"), (dict(block_size=2**31), "block_size"),
                (dict(classes=2**40, block_size=1), "block"), (dict(sample_ppm=0), "sample_ppm"),
                (dict(sample_ppm=1000001), "sample_ppm"), (dict(margin_m1=nan), "margin_m1"),
                (dict(margin_m2=inf), "margin_m2"), (dict(margin_m3=-1e9), "margin_m3"), (dict(scale=0), "scale"),
                (dict(scale=81), "scale"), (dict(scale=nan), "scale"), (dict(has_filter=True, filter=2), "filter"),
                (dict(margin_grad="maybe"), "margin_grad"), (dict(correction="all"), "correction"),
                (dict(dtype="f8"), "dtype"), (dict(gemm="f8"), "gemm"), (dict(rounding=""), "rounding"), (dict(init_std=nan), "init_std"), (dict(init_std=-1), "init_std"),
                (dict(optimizer="lion"), "optimizer"), (dict(momentum_mode=""), "momentum_mode"),
                (dict(optimizer="adamw", momentum_mode="dense"), "adamw"),
                (dict(optimizer="adamw"), "epsilon"), (dict(optimizer="adamw", epsilon=1e-8, beta1=1), "beta1"),
                (dict(beta2=nan), "beta2"), (dict(epsilon=inf), "epsilon"),
                (dict(momentum=1.5), "momentum"),
                (dict(momentum=nan), "momentum"), (dict(weight_decay=-1), "weight_decay"), (dict(lr=inf), "lr"),
                (dict(lr=-0.1), "lr"), (dict(lr_power=nan), "lr_power"), (dict(lr_end=7), "lr_end"),
                (dict(clip=nan), "clip"), (dict(steps=0), "steps"), (dict(steps=MAX), "steps"),
                (dict(warmup_steps=MAX), "warmup_steps"), (dict(global_batch=0), "global_batch"),
                (dict(micro_batch=0), "micro_batch"), (dict(micro_batch=7), "micro_batch"),
                (dict(global_batch=2**32 - 1, micro_batch=1), "batch"), (dict(backbone=""), "backbone"),
                (dict(backbone="tiny"), "backbone"), (dict(name=""), "name"), (dict(name="x" * 5000), "name"),
                (dict(name="a\x07b"), "name"), (dict(data=None), "data"),
                (dict(data=pb.DataSet(kind=synth, samples=0)), "samples"),
                (dict(data=pb.DataSet(kind=synth, samples=MAX)), "samples"),
                (dict(data=pb.DataSet(kind=synth, samples=5, hot_classes=1001)), "hot_classes"),
                (dict(classes=2**30, data=pb.DataSet(kind=synth, samples=5, hot_classes=2**20 + 1)), "hot_classes"),
                (dict(data=pb.DataSet(kind=pb.DataSet.SESSION, hot_classes=2)), "hot_classes"),
                (dict(data=pb.DataSet(kind=77, samples=5)), "kind"),
                (dict(data=pb.DataSet(kind=synth, samples=5, width=2**31)), "width"),
                (dict(backbone="x", segments=[pb.DenseSegment(name="a", shape=[0])]), "segment"),
                (dict(backbone="x", segments=[pb.DenseSegment(name="a", shape=[2**62, 2**62])]), "segment"),
                (dict(backbone="x", segments=[pb.DenseSegment(name="a", shape=[1] * 99)]), "segment"),
                (dict(backbone="x", segments=[pb.DenseSegment(name="a", shape=[4], role=9)]), "role"),
                (dict(backbone="x", segments=[pb.DenseSegment(name="a", shape=[4], init_std=nan)]), "init_std"),
                (dict(backbone="x", dense_block_size=2**31, segments=[pb.DenseSegment(name="a", shape=[4])]),
                 "dense_block_size"),
                (dict(augmentation=pb.Augmentation(affine=nan)), "affine")):
            refused(f"CreateRun {fields}", lambda f=fields: c.create_run(**f), word, codes=(1,))
        refused("more classes than fit", lambda: c.create_run(classes=10**7), "memory", "64.0 MiB", codes=(2,))
        refused("classes beyond all memory", lambda: c.create_run(classes=2**39, block_size=2**20), "memory")
        refused("a batch beyond all memory", lambda: c.create_run(global_batch=2**20, micro_batch=2**20, dim=8192),
                "memory")
        stub = c.status().shards[0]
        registered = c.stub.RegisterShard(pb.RegisterShardRequest(
            protocol=1, boot_id=7, address="127.0.0.1:1", backend="cpu", numerics=stub.numerics,
            memory_limit=2**30), timeout=20)  # an address where nobody listens
        refused("a shard that can't be reached", lambda: c.create_run(classes=3000), "127.0.0.1:1", "create")
        said = c.stub.ShardHeartbeat.future(pb.ShardHeartbeatRequest(
            shard=registered.shard, boot_id=7, durability=pb.ShardDurability(error="no\x1b[2J\nro\x9b\u00f6m")),
            timeout=60)
        wait_until("what a disk said, in one line",
                   lambda: any(s.durability.error == "no?[2J?ro??\u00f6m" for s in c.status().shards), 20, context=c.status)
        said.cancel()  # where it comes too late the lease ends
        wait_until("that shard to be gone", lambda: all(
            s.state == "gone" for s in c.status().shards if s.id == registered.shard), 60, context=c.status)
        refused("no configuration", lambda: c.stub.CreateRun(pb.CreateRunRequest(), timeout=20), "config")
        refused("a start beyond the end", lambda: c.stub.CreateRun(pb.CreateRunRequest(
            config=run_config(), load=True, start_step=10**6), timeout=20), "start_step")
        check(c.status().state == "idle", f"{c.status()}")
        check(counters(c)["scheduler_refused_EINVAL"] >= 50, f"{counters(c)}")
        finish_a_run(c)


# ---- files, read by the tools

def test_overflow():
    """Rates at which the class centres would leave f32 within a few steps: those steps are skipped by
    every shard alike, the run stops with a reason, and what it leaves is finite."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.start_worker()
        for mode in ("sampled", "dense"):
            c.create_run(classes=2000, steps=100, sample_ppm=1000000, lr=1e4, weight_decay=0.05, warmup_steps=0,
                         lr_end=1.0, momentum_mode=mode)
            status = c.wait_state("blocked", 60)
            check("not finite" in status.reason and "learning rate" in status.reason, status.reason)
            check(status.skipped_steps == 10 and status.step > 12, f"{status.skipped_steps} of {status.step}")
            applied = [p.applied for p in c.history()]
            check(applied == [True] * (status.step - 10) + [False] * 10, f"steps applied: {applied}")
            held = c.hold()
            for name, data in c.read_state(held):
                check(np.isfinite(np.frombuffer(data, dtype="<f4")).all(), f"{name} is not finite")
            c.release(held)
            stop_run(c)
        finish_a_run(c)


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])


def test_files():
    """Damaged record files, indices, meta files and pairs: `data info`, `create` and `shardfc-worker` name
    file and record; labels out of range or above 2^24 are refused."""
    with Cluster() as c:
        good = make_images(c.folder / "good", 20, 3)
        create = ("--scheduler", "127.0.0.1:1")

        def bad(name, *words, damage, check_images=False):
            folder = c.folder / name
            shutil.copytree(good, folder)
            damage(folder)
            info = ("data", "info", folder) + (("--check",) if check_images else ())
            if not check_images:
                expect(tool("shardfc", *info), 2, *words)
                expect(tool("shardfc", "create", *create, *small_run(folder, 5)), 2, *words)
                expect(tool("shardfc-worker", *create, "--data", folder), 2, *words)
            return folder, info

        def edit(name, change, *words, meta=True):
            def damage(folder):
                records = Records(folder)
                change(records)
                for path in folder.iterdir():
                    path.unlink()
                records.write(folder, meta)
            return bad(name, *words, damage=damage)

        def text(file, change):
            return lambda folder: (folder / file).write_text(change((folder / file).read_text()))

        def flip(file, at):
            def damage(folder):
                data = bytearray((folder / file).read_bytes())
                data[at] ^= 0x40
                (folder / file).write_bytes(data)
            return damage

        bad("cut.rec", "train.rec", damage=lambda f: cut(f / "train.rec"))
        bad("empty.rec", "train.rec", damage=lambda f: cut(f / "train.rec", 0))
        bad("no.rec", "train.rec", damage=lambda f: (f / "train.rec").unlink())
        bad("flipped.magic", "train.rec", damage=flip("train.rec", 1))
        bad("cut.idx", "train.idx", damage=lambda f: cut(f / "train.idx"))
        bad("empty.idx", "train.idx", damage=lambda f: cut(f / "train.idx", 0))
        bad("no.idx", "train.idx", damage=lambda f: (f / "train.idx").unlink())
        bad("binary.idx", "train.idx", damage=lambda f: (f / "train.idx").write_bytes(b"\0\xff" * 100))
        bad("double.idx", "train.idx", damage=text("train.idx", lambda t: t + t.splitlines()[3] + "\n"))
        bad("beyond.idx", "train.", damage=text("train.idx", lambda t: t.replace(t.split("\n")[4], "4\t99999996")))
        bad("unaligned.idx", "train.idx", damage=text("train.idx", lambda t: t.replace(
            t.split("\n")[4], "4\t" + str(int(t.split("\n")[4].split("\t")[1]) + 1))))
        bad("shifted.idx", "train.", damage=text("train.idx", lambda t: t.replace(
            t.split("\n")[4], "4\t" + str(int(t.split("\n")[4].split("\t")[1]) + 4))))
        bad("negative.idx", "train.idx", damage=text("train.idx", lambda t: t.replace("\n2\t", "\n-2\t")))
        bad("no.json", "meta.json", damage=lambda f: (f / "meta.json").write_text("{"))
        bad("other.json", "meta.json", damage=lambda f: (f / "meta.json").write_text('{"format": "other"}'))
        bad("wide.json", "meta.json", damage=text("meta.json", lambda t: t.replace('"width": 32', '"width": 99999')))
        bad("deep.json", "meta.json", damage=lambda f: (f / "meta.json").write_text("[" * 100000))
        edit("nan", lambda r: r.set_label(5, float("nan")), "train.rec", "label")
        edit("inf", lambda r: r.set_label(5, float("inf")), "train.rec", "label")
        edit("negative", lambda r: r.set_label(5, -1), "train.rec", "label")
        edit("half", lambda r: r.set_label(5, 1.5), "train.rec", "label")
        edit("large", lambda r: r.set_label(5, 2.0**24 + 2), "train.rec", "label")
        edit("range", lambda r: r.set_label(5, 20, 0x5346000000000014), "train.rec", "label 20")
        edit("two", lambda r: r.set_label(5, 3, 0x5346000000000007), "train.rec", "label")
        edit("header", lambda r: r.payload.__setitem__(5, r.payload[5][:10]), "train.rec", "record")
        edit("flags", lambda r: r.payload.__setitem__(5, struct.pack("<I", 2**31) + r.payload[5][4:]),
             "train.rec", "label")
        edit("zero", lambda r: r.payload.__setitem__(0, r.payload[0][:20]), "train.rec", "record 0")
        expect(tool("shardfc", "data", "info", good, "--check"), 0)
        images_are_checked(c, good)
        pairs_are_checked(c, good)


def images_are_checked(c, good):
    """data info --check counts broken images and does not call them fine."""
    for name, change in (("cut", lambda r: r.set_image(7, r.image(7)[:100])),
                         ("noise", lambda r: r.set_image(7, b"\xff\xd8" + bytes(300))),
                         ("none", lambda r: r.set_image(7, b"")),
                         ("text", lambda r: r.set_image(7, b"hello"))):
        records = Records(good)
        change(records)
        folder = records.write(c.folder / f"jpeg.{name}")
        done = tool("shardfc", "data", "info", folder, "--check", "--json")
        check(json.loads(done.stdout)["broken"] == 1, f"{name}: {done.stdout}{done.stderr}")


def pairs_are_checked(c, good):
    """A .bin that is cut, is no pair of lists or would run code: refused with its name."""
    with Cluster() as run:
        run.start_scheduler()
        run.start_shards(1)
        run.start_worker(data=good)
        run.ctl("create", *small_run(good, 3))
        run.wait_state("finished", 60)
        run.ctl("checkpoint", "--out", c.folder / "checkpoint")
    path = write_pairs(c.folder / "pairs.bin", good, 20)
    images, same = pickle.loads(path.read_bytes())
    expect(tool("shardfc", "eval", "--checkpoint", c.folder / "checkpoint", "--pairs", path), 0)

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {c.folder}/executed",)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[2] = 0xfe
    for name, data in (
            ("cut", whole[:len(whole) // 2]), ("empty", b""), ("text", b"not a pickle"), ("opcode", bytes(flipped)),
            ("code", pickle.dumps(Code(), 3)), ("inside", pickle.dumps((images, [Code()]), 3)),
            ("one list", pickle.dumps(images, 3)), ("count", pickle.dumps((images, same[:-1]), 3)),
            ("types", pickle.dumps(([1] * len(images), same), 3)), ("maybe", pickle.dumps((images, [2.5] * 20), 3)),
            ("jpeg", pickle.dumps(([images[0][:50]] + images[1:], same), 3)),
            ("huge", b"\x80\x03\x8e" + struct.pack("<Q", 2**62) + b"x"),
            ("deep", b"\x80\x03" + b"(" * 100000)):
        bad = c.folder / f"{name}.bin"
        bad.write_bytes(data)
        expect(tool("shardfc", "eval", "--checkpoint", c.folder / "checkpoint", "--pairs", bad), 2, f"{name}.bin")
    check(not (c.folder / "executed").exists(), "a pickle ran code")
    expect(tool("shardfc", "eval", "--checkpoint", c.folder / "checkpoint", "--pairs", c.folder / "none.bin"), 2,
           "none.bin")
    expect(tool("shardfc", "eval", "--checkpoint", c.folder / "checkpoint", "--rec", c.folder / "none.rec"), 2,
           "none.rec")


# ---- data sets of workers

def test_data():
    """A worker with another data set, or none that fits, is refused with both digests or kinds; it and the
    cluster live on. A backbone that nobody knows ends the run's workers with its name, not the cluster."""
    with Cluster() as c:
        good = make_images(c.folder / "good", 20, 3)
        other = make_images(c.folder / "other", 20, 3, 2)
        c.start_scheduler()
        c.start_shards(1)
        c.ctl("create", *small_run(good, 10))
        strangers = [c.start_worker(data=other), c.start_worker(data="synthetic")]
        for worker, word in zip(strangers, ("waiting for a run", "synthetic")):
            wait_until(f"a word about {word}", lambda: word in worker.stderr(), 20, context=worker.tail)
        check(c.status().step == 0, "a stranger's data was used")
        check(counters(c).get("scheduler_refused_EINVAL", 0) > 0, f"{counters(c)}")
        mine = c.start_worker(data=good)
        c.wait_state("finished", 60)
        check(mine.running() and c.scheduler.running(), c.tails())
        c.ctl("create", *small_run(other, 5))
        c.wait_state("finished", 60)  # the stranger's turn; mine waits
        for worker in strangers:
            check(worker.running(), f"a stranger ended instead of waiting for its run\n{worker.tail()}")
            check(worker.terminate() == 0, worker.tail())
        info = one_json(tool("shardfc", "data", "info", good, "--json"))
        unknown = run_config(name="unknown", classes=20, backbone="resnet9000", dim=8, steps=9,
                             segments=[pb.DenseSegment(name="w", shape=[8], init_std=0.1)],
                             data=pb.DataSet(kind=pb.DataSet.RECORDS, digest=info["digest"], samples=60, width=32,
                                             height=32, channels=1))
        c.stub.CreateRun(pb.CreateRunRequest(config=unknown), timeout=60 * cluster.TIME_SCALE)
        wait_until("the unknown backbone's name", lambda: "resnet9000" in mine.stderr(), 20, context=mine.tail)
        stop_run(c)
        if not mine.running():
            mine = c.start_worker(data=good)
        c.ctl("create", *small_run(good, 5))
        c.wait_state("finished", 60)
        expect(c.ctl("create", *small_run(good, 5), "--classes", "10", check=False), 2, "--classes", "19")
        expect(c.ctl("create", *small_run(good, 5), "--backbone", "vgg", check=False), 2, "vgg")
        expect(c.ctl("create", *small_run(good, 5), "--backbone", "none", check=False), 2, "backbone")
        check(mine.terminate() == 0, mine.tail())


def test_broken():
    """Broken samples stop a run as `blocked` with their ids; dropped or with --skip-broken their rows have
    weight 0 and the run ends; a file that is changed under a worker is noticed."""
    with Cluster() as c:
        good = make_images(c.folder / "good", 20, 3)
        records = Records(good)
        images = records.images()
        for sample in (7, 31):
            records.set_image(images[sample], records.image(images[sample])[:150])
        folder = records.write(c.folder / "holes")
        c.start_scheduler()
        c.start_shards(1)
        c.ctl("create", *small_run(folder, 6))
        worker = c.start_worker(data=folder)
        status = c.wait_state("blocked", 60)
        check("train.rec" in status.reason and ("sample 7" in status.reason or "sample 31" in status.reason),
              f"reason: {status.reason}")
        check("--skip-broken" in status.reason or "--drop" in status.reason, f"what to do: {status.reason}")
        expect(c.ctl("watch", "--until-done", check=False), 1, "blocked", "train.rec")
        drop_and_go_on(c)
        check(worker.running(), worker.tail())
        c.ctl("create", *small_run(folder, 6), "--skip-broken")
        c.wait_state("finished", 60)
        losses = [p.loss for p in c.history()]
        check(len(losses) == 6 and all(np.isfinite(losses)), f"losses: {losses}")
        skipped = [v for k, v in counters(c).items() if "broken" in k]
        check(skipped and sum(skipped) >= 2, f"broken rows are not counted: {counters(c)}")
        check(worker.running(), worker.tail())
        (folder / "train.rec").write_bytes(b"\0" * (folder / "train.rec").stat().st_size)
        c.ctl("create", *small_run_of(folder, good, c), check=True)
        status = c.wait_state("blocked", 60)
        check("train.rec" in status.reason, f"reason: {status.reason}")
        stop_run(c)
        check(worker.terminate() == 0, worker.tail())
        c.start_worker(data=good)
        c.ctl("create", *small_run(good, 5))
        c.wait_state("finished", 60)
        all_alive(c, worker)


def small_run_of(folder, good, c):
    """Options for a run on what `folder` held before it was overwritten."""
    before = Records(good)
    images = before.images()
    for sample in (7, 31):
        before.set_image(images[sample], before.image(images[sample])[:150])
    return small_run(before.write(c.folder / "before"), 6)


def drop_and_go_on(c):
    """resume --drop, micro-batch by micro-batch, as the reason says, until the run ends."""
    for _ in range(24):
        status = c.status()
        if status.state == "finished":
            return
        if status.state == "blocked":
            words = status.reason.replace(":", " ").replace(",", " ").split()
            step, j = int(words[words.index("step") + 1]), int(words[words.index("micro-batch") + 1])
            check(str(step) in status.reason, status.reason)
            c.ctl("resume", "--drop", f"{step},{j}")
        wait_until("the run to end or block again", lambda: c.status().state in ("finished", "blocked"), 60,
                   context=lambda: str(c.status()))
    raise Failure(f"the run does not end: {c.status()}")


def main():
    names = sys.argv[1:] or ["calls", "noise", "runs", "overflow", "files", "data", "broken"]
    for name in names:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}, seed {SEED}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
