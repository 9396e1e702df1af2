"""A foreign framework's training step, with nothing but grpcio, numpy and proto/shardfc.proto.

Starts a real scheduler and real shards, opens a session and trains a class layer for some steps: announce
the labels, send features (Logits), merge the shards' answers, send the log-sum-exp (Gradient), say Done.
Everything is compared with the formulas in double precision in numpy: loss, gradient of the features,
and the class centres and their momentum after each update, read back with ReadBlock.

`Session` below is all that a client needs; read it as an example.
"""
import ctypes
import signal
import struct
import time
import unittest

import grpc
import numpy as np

from cluster import TIME_SCALE, Cluster, pb, wait_until

_xxh = ctypes.CDLL("libxxhash.so.0")
_xxh.XXH3_64bits.restype = ctypes.c_uint64
_xxh.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


class _Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


_xxh.XXH3_128bits.restype = _Hash128
_xxh.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh3_64(data):
    return _xxh.XXH3_64bits(data, len(data))


def xxh3_128(data):
    h = _xxh.XXH3_128bits(data, len(data))
    return struct.pack(">QQ", h.high, h.low)


NO_LABEL = 2**64 - 1


class Session:
    """Trains a class layer that lives on shards. One object = one session of one client."""

    def __init__(self, cluster):
        self.scheduler = cluster.stub
        self.reply = self.scheduler.OpenSession(pb.OpenSessionRequest(protocol=1, name="numpy"), timeout=30)
        self.config = self.reply.config
        self.cluster = cluster
        self.take_map(self.reply.map)
        self.step = self.reply.next_step

    def take_map(self, block_map):
        """A place of the map whose shard has left the run has no address."""
        self.map_version = block_map.version
        self.shards = [self.cluster.shard_stub(s.address) for s in block_map.shards if s.address]

    def has_new_map(self):
        """Shards refuse calls (ABORTED) when blocks have moved since: the same again with the new map is right."""
        old = self.map_version
        self.take_map(self.scheduler.GetMap(pb.GetMapRequest(
            session=self.reply.session, run_id=self.reply.run_id), timeout=30).map)
        return self.map_version != old

    def announce(self, labels):
        """labels of the global batch; shards draw their samples when they have them all."""
        m = self.config.micro_batch
        for j in range(len(labels) // m):
            self.scheduler.Announce(pb.AnnounceRequest(
                run_id=self.reply.run_id, session=self.reply.session, step=self.step, micro_batch=j,
                labels=[int(y) for y in labels[j * m:(j + 1) * m]]), timeout=30)

    def key(self, j, payload, **more):
        """What Logits and Gradient have in common."""
        return dict(run_id=self.reply.run_id, step=self.step, micro_batch=j, attempt=self.reply.attempt,
                    map_version=self.map_version, payload_digest=xxh3_64(payload), payload=payload,
                    **more)

    def logits_request(self, j, features):
        return pb.LogitsRequest(**self.key(j, features.tobytes(), payload_type=pb.TensorType(
            dtype=pb.DTYPE_F32, shape=features.shape)))

    def exchange(self, j, features, labels):
        """One micro-batch: raw features [m, dim] -> (sum of losses, gradient of the *unit* features)."""
        while True:
            try:
                return self.exchange_once(j, features, labels)
            except grpc.RpcError as e:
                if e.code() != grpc.StatusCode.ABORTED or not self.has_new_map():
                    raise

    def exchange_once(self, j, features, labels):
        features = np.ascontiguousarray(features, dtype="<f4")
        request = self.logits_request(j, features)
        calls = [shard.Logits.future(request, timeout=60) for shard in self.shards]
        sums, target, owners = [0] * len(features), np.zeros(len(features)), np.zeros(len(features), int)
        for call in calls:
            answer = call.result()
            for row in range(len(features)):  # 256-bit integers: the order of the shards does not matter
                sums[row] += int.from_bytes(answer.payload[32 * row:32 * row + 32], "little")
            has = np.frombuffer(answer.has_target, dtype=np.uint8)
            target += np.where(has == 1, answer.target_logit, 0.0)
            owners += has
        real = labels != NO_LABEL
        assert (owners == real).all(), "every target is on exactly one shard"
        lse = np.array([np.log(s / 2**128) for s in sums], dtype="<f8")

        request = pb.GradientRequest(**self.key(j, lse.tobytes(), payload_type=pb.TensorType(
            dtype=pb.DTYPE_F64, shape=lse.shape)))
        calls = [shard.Gradient.future(request, timeout=60) for shard in self.shards]
        dx = sum(np.frombuffer(call.result().payload, dtype="<i8") for call in calls)
        self.digest = xxh3_128(features.tobytes() + lse.tobytes())
        self.loss = float(np.where(real, lse - target, 0.0).sum())
        return self.loss, (dx / 2.0**44).reshape(features.shape)

    def done(self, j):
        reply = self.scheduler.Done(pb.DoneRequest(
            run_id=self.reply.run_id, session=self.reply.session, step=self.step, micro_batch=j,
            attempt=self.reply.attempt, head_digest=self.digest, loss_sum=self.loss), timeout=30)
        assert reply.accepted

    def train_step(self, features, labels):
        """features [global batch, dim], labels -> (mean loss, gradient of the unit features)."""
        m, total, dx = self.config.micro_batch, 0.0, []
        self.announce(labels)
        for j in range(len(labels) // m):
            rows = slice(j * m, (j + 1) * m)
            loss, part = self.exchange(j, features[rows], labels[rows])
            self.done(j)
            total += loss
            dx.append(part)
        self.step += 1
        return total / len(labels), np.concatenate(dx)


class Reference:
    """The same class layer in numpy, double precision (kernels/backend.h has the formulas)."""

    def __init__(self, config, weights):
        self.c = config
        self.w = weights.astype(np.float64)
        self.m = np.zeros_like(self.w)

    def step(self, features, labels, lr, sampled=None):
        c, rows = self.c, np.arange(len(labels))
        real = labels != NO_LABEL
        y = np.where(real, labels, 0).astype(np.int64)
        if sampled is None:
            sampled = np.ones(len(self.w), bool)
        x = features.astype(np.float64)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        norm = np.linalg.norm(self.w, axis=1, keepdims=True)
        w = self.w / norm
        cos = np.clip(x @ w.T, -1, 1)
        z, slope = c.scale * cos, np.ones_like(cos)
        theta = np.arccos(cos[rows, y])
        phi = c.margin_m1 * theta + c.margin_m2
        k = np.floor(phi / np.pi)
        z[rows, y] = np.where(real, c.scale * ((-1) ** k * np.cos(phi) - 2 * k - c.margin_m3), z[rows, y])
        slope[rows, y] = np.where(
            real, (-1) ** k * c.margin_m1 * np.sin(phi) / np.maximum(np.sin(theta), 1e-4), 1.0)
        z[:, ~sampled] = -np.inf
        lse = np.log(np.exp(z).sum(axis=1))
        loss = np.where(real, lse - z[rows, y], 0.0).sum() / len(labels)
        p = np.exp(z - lse[:, None])
        p[rows, y] -= real
        dcos = c.scale * p * slope / len(labels) * real[:, None]
        dx = dcos @ w
        dw_unit = dcos.T @ x
        dw = (dw_unit - w * (w * dw_unit).sum(axis=1, keepdims=True)) / norm
        g = dw + c.weight_decay * self.w
        self.m[sampled] = c.momentum * self.m[sampled] + g[sampled]
        self.w[sampled] -= lr * self.m[sampled]
        return loss, dx


def lr_at(config, step):
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.lr * (config.lr_end + (1 - config.lr_end) * left ** config.lr_power)


def session_config(**fields):
    return dict(dict(classes=400, block_size=64, dim=24, global_batch=24, micro_batch=8, steps=12,
                     warmup_steps=2, scale=16.0, lr=0.5, init_std=0.05, sample_ppm=1000000,
                     data=pb.DataSet(kind=pb.DataSet.SESSION)), **fields)


def read_weights(cluster, part="values"):
    """(step, [classes, dim]) of the run, standing still at a step."""
    held = cluster.hold()
    try:
        rows = [np.frombuffer(data, "<f4").reshape(-1, held.config.dim)
                for name, data in cluster.read_state(held) if name.startswith("class") and name.endswith(part)]
        return held.step, np.concatenate(rows)
    finally:
        cluster.release(held)


def close(got, want, tolerance):
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert error < tolerance, f"relative error {error:.2e}, more than {tolerance:.0e}"


def batch(rng, config):
    x = rng.standard_normal((config.global_batch, config.dim)).astype(np.float32)
    x *= rng.uniform(0.1, 10, (config.global_batch, 1)).astype(np.float32)  # raw: any length
    return x, rng.integers(0, config.classes, config.global_batch).astype(np.uint64)


class HeadSession(unittest.TestCase):
    def train(self, shards, steps=4, **fields):
        """Trains and compares every step with numpy; returns the final weights' bytes."""
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(shards)
            created = c.create_run(**session_config(**fields))
            self.assertEqual(len(created.map.shards), shards)
            session = Session(c)
            step, weights = read_weights(c)
            self.assertEqual(step, 0)
            reference = Reference(session.config, weights)
            rng = np.random.default_rng(7)
            for t in range(1, steps + 1):
                x, y = batch(rng, session.config)
                if t == 2:
                    y[5] = y[6]        # duplicate label
                    y[3] = NO_LABEL    # a row of weight 0
                self.assertEqual(session.step, t)
                loss, dx = session.train_step(x, y)
                c.wait_step(t)
                step, after = read_weights(c)
                self.assertEqual(step, t)
                sampled = (after != weights).any(axis=1)
                if session.config.sample_ppm == 1000000:
                    self.assertTrue(sampled.all())
                want_loss, want_dx = reference.step(x, y, lr_at(session.config, t), sampled)
                close(np.array([loss]), np.array([want_loss]), 1e-5)
                close(dx, want_dx, 1e-5)
                close(after, reference.w, 1e-5)
                close(read_weights(c, "momentum")[1], reference.m, 1e-4)
                weights = after
            self.assertAlmostEqual(c.history()[-1].loss, loss, places=9)
            self.assertEqual(len(c.history()), steps)
            return weights.tobytes()

    def test_one_shard_and_three_shards_agree_with_numpy(self):
        one = self.train(1)
        three = self.train(3)
        self.assertEqual(one, three)  # bit for bit: placement never matters

    def test_sampled_classes(self):
        self.train(3, sample_ppm=250000, margin_m1=1.0, margin_m2=0.5, margin_m3=0.0)

    def walk(self, c, until):
        """Trains until `until(steps done)` says so: (steps, session, final weights' bytes)."""
        session, rng, t = Session(c), np.random.default_rng(11), 0
        while not until(t):
            x, y = batch(rng, session.config)
            session.train_step(x, y)
            t += 1
        c.wait_step(t)
        return t, session, read_weights(c)[1].tobytes()

    def test_session_goes_on_while_blocks_move(self):
        fields = dict(session_config(steps=100000), seed=3)
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1)
            c.create_run(**fields)
            c.start_shards(1)
            c.ctl("scale", "--shards", "2", "--no-wait")
            end = []

            def moved(t):  # and three steps more
                if not end and c.status().map_version > 1 and not c.status().goal:
                    end.append(t + 3)
                return end and t >= end[0]
            steps, session, weights = self.walk(c, moved)
            self.assertEqual(len(session.shards), 2)
            self.assertGreater(session.map_version, 1)
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1)
            c.create_run(**fields)
            self.assertEqual(self.walk(c, lambda t: t >= steps)[2], weights)

    def test_new_session_voids_the_open_step(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(2)
            c.create_run(**session_config())
            first = Session(c)
            weights = read_weights(c)[1]
            x, y = batch(np.random.default_rng(1), first.config)
            first.announce(y)
            first.exchange(0, x[:8], y[:8])
            second = Session(c)
            self.assertEqual(second.step, 1)
            with self.assertRaises(grpc.RpcError):
                first.done(0)
            loss, dx = second.train_step(x, y)
            want_loss, want_dx = Reference(second.config, weights).step(x, y, lr_at(second.config, 1))
            close(np.array([loss]), np.array([want_loss]), 1e-5)
            close(dx, want_dx, 1e-5)
            c.wait_step(1)

    def test_bad_input_is_named_and_counted(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1)
            with self.assertRaises(grpc.RpcError) as e:
                c.create_run(**session_config(dim=0))
            self.assertIn("dim", e.exception.details())
            c.create_run(**session_config())
            join = pb.JoinRequest(protocol=1, name="host:1", lanes=1, numerics="n", data=pb.DataSet())
            for text in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"):
                raw = join.SerializeToString().replace(b"host:1", (text + b"......")[:6])
                self.refused(lambda r=raw: c.channel(c.address).unary_unary(
                    "/shardfc.v1.Scheduler/Join")(r, timeout=20), "name: not UTF-8")
            s = Session(c)
            x, y = batch(np.random.default_rng(1), s.config)
            bad = y.copy()
            bad[0] = s.config.classes
            self.refused(lambda: s.announce(bad), "label")
            s.announce(y)
            good = np.ascontiguousarray(x[:8])
            nan = good.copy()
            nan[2, 3] = np.nan
            shard = s.shards[0]

            def changed(**fields):
                request = s.logits_request(0, good)
                for name, value in fields.items():
                    setattr(request, name, value)
                return request
            cases = [
                ("not finite|finite", s.logits_request(0, nan)),
                ("payload", s.logits_request(0, good[:4])),
                ("payload_digest", changed(payload_digest=1)),
                ("run_id", changed(run_id=99)),
                ("micro_batch", changed(micro_batch=99)),
                ("step", changed(step=77)),
                ("map", changed(map_version=9)),
                ("attempt", pb.LogitsRequest(**dict(
                    s.key(0, good.tobytes()), attempt=None,
                    payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=good.shape)))),
                ("dtype|F64|f64", pb.LogitsRequest(**s.key(0, good.tobytes(), payload_type=pb.TensorType(
                    dtype=pb.DTYPE_F64, shape=good.shape)))),
            ]
            for word, request in cases:
                self.refused(lambda r=request: shard.Logits(r, timeout=20), word)
            s.exchange(0, x[:8], y[:8])
            lse = np.full(8, -1e9)
            self.refused(lambda: shard.Gradient(pb.GradientRequest(**s.key(
                0, lse.tobytes(), payload_type=pb.TensorType(dtype=pb.DTYPE_F64, shape=lse.shape))),
                timeout=20), "")  # another body under the same key
            self.refused(lambda: shard.ReadBlock(pb.ReadBlockRequest(
                run_id=s.reply.run_id, kind=pb.CLASS_BLOCK, block=10**9, count=1), timeout=20), "block")
            self.refused(lambda: shard.ReadBlock(pb.ReadBlockRequest(
                run_id=s.reply.run_id, kind=pb.CLASS_BLOCK, block=0, count=2**63), timeout=20), "count")
            s.train_step(x, y)  # the daemons live on, and nothing bad left a trace
            c.wait_step(1)
            self.assertTrue(all(p.running() for p in c.processes))
            refused = {k.name: k.value for k in wait_counters(c, "shard_refused_EINVAL", 5).counters}
            self.assertGreaterEqual(refused["shard_refused_EINVAL"], 5)
            self.assertGreaterEqual(refused["scheduler_refused_EINVAL"], 1)

    def refused(self, call, words):
        with self.assertRaises(grpc.RpcError) as e:
            call()
        details = e.exception.details()
        self.assertTrue(any(w in details for w in words.split("|")), details)

    def test_two_runs_one_after_the_other(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(2)
            for seed in (1, 2):
                c.create_run(**session_config(steps=2, warmup_steps=1, seed=seed))
                s = Session(c)
                for _ in range(2):
                    s.train_step(*batch(np.random.default_rng(seed), s.config))
                c.wait_state("finished")
            self.assertEqual(c.status().run_id, 2)
            self.assertEqual(len(c.history(1)), 2)

    def test_sigterm_ends_everything_cleanly(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(2)
            c.create_run(**session_config())
            s = Session(c)
            x, y = batch(np.random.default_rng(1), s.config)
            s.train_step(x, y)
            c.wait_step(1)
            s.announce(y)  # a step is open, calls are on their way
            waiting = [shard.PullDense.future(pb.PullDenseRequest(
                run_id=s.reply.run_id, step=2, map_version=s.reply.map.version)) for shard in s.shards]
            for p in c.processes:
                p.signal(signal.SIGTERM)
                p.signal(signal.SIGTERM)  # again while it shuts down: only the first counts
                self.assertEqual(p.terminate(), 0, p.tail())
            for call in waiting:
                self.assertIsNotNone(call.exception(timeout=10))

    def test_a_shard_without_its_folder_is_waited_for_and_the_next_run_works(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(2)
            c.create_run(**session_config())
            s = Session(c)
            s.train_step(*batch(np.random.default_rng(1), s.config))
            c.wait_step(1)
            port = c.shards[0].address.rsplit(":", 1)[1]
            c.shards[0].kill()
            c.start_shard("--listen", f"127.0.0.1:{port}")
            status = wait_until("the refusal", lambda: next(
                (now for now in [c.status()] if "can't recover" in now.reason), None), 30, context=c.tails)
            self.assertIn("checkpoint", status.reason)
            c.ctl("stop")
            c.create_run(**session_config(seed=5))
            s = Session(c)
            s.train_step(*batch(np.random.default_rng(2), s.config))
            c.wait_step(1)

    def test_the_run_remembers_the_numerics_of_its_workers(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1)
            c.create_run()

            def join(numerics):
                return c.stub.Join(pb.JoinRequest(
                    protocol=1, name="host:1", lanes=1, numerics=numerics,
                    data=pb.DataSet(kind=pb.DataSet.SYNTHETIC)), timeout=20)
            self.assertTrue(join("one").joined)
            self.refused(lambda: join("two"), "numerics")
            self.assertEqual(c.scheduler.terminate(), 0)
            c.start_scheduler()
            self.refused(lambda: join("two"), "numerics")
            self.assertTrue(join("one").joined)

    def test_members_outlive_a_short_lease(self):
        lease = 2 * TIME_SCALE  # more than a slow machine makes of its quarter
        with Cluster() as c:
            c.start_scheduler("--lease", f"{int(1000 * lease)}ms")
            c.start_shards(1)
            c.create_run(steps=10**6)
            c.start_worker()
            worker = wait_until("a worker", lambda: c.status().workers, 30)[0].id
            for _ in range(60):
                time.sleep(0.1 * TIME_SCALE)
                self.assertEqual([w.id for w in c.status().workers], [worker])
                self.assertEqual([s.state for s in c.status().shards], ["ready"])

    def test_heartbeats_follow_the_lease(self):
        """Held for a quarter of a short lease, not for the second that they are under a long one."""
        with Cluster() as c:
            c.start_scheduler("--lease", "2s")
            c.start_shards(1)
            c.create_run(steps=10**6)

            def worker():
                id = c.stub.Join(pb.JoinRequest(protocol=1, name="host:1", lanes=1, numerics="one",
                                                data=pb.DataSet(kind=pb.DataSet.SYNTHETIC)), timeout=20).worker
                return lambda: c.stub.Heartbeat(pb.HeartbeatRequest(worker=id), timeout=20).known

            def shard():
                id = c.stub.RegisterShard(pb.RegisterShardRequest(
                    protocol=1, boot_id=7, address="127.0.0.1:1", backend="cpu", numerics=c.status().shards[0].numerics,
                    memory_limit=2**30), timeout=20).shard
                return lambda: c.stub.ShardHeartbeat(pb.ShardHeartbeatRequest(shard=id, boot_id=7), timeout=20).registered
            for become in worker, shard:
                held = []
                while not any(known and 0.4 < s < 0.9 for known, s in held):  # longer of a machine that stands still
                    self.assertLess(len(held), 30, f"{become.__name__}: {held}")
                    heartbeat, begin = become(), time.monotonic()
                    held.append((heartbeat(), time.monotonic() - begin))

    def test_too_little_memory_is_refused(self):
        with Cluster() as c:
            c.start_scheduler()
            c.start_shards(1, "--memory", "2M")
            with self.assertRaises(grpc.RpcError) as e:
                c.create_run(**session_config(classes=1000000, dim=128, block_size=8192))
            self.assertIn("memory", e.exception.details())
            self.assertEqual(c.status().state, "idle")


def wait_counters(cluster, name, least):
    def there():
        status = cluster.status()
        return status if any(k.name == name and k.value >= least for k in status.counters) else None
    return wait_until(f"counter {name} of {least}", there, 20, context=lambda: str(cluster.status().counters))


if __name__ == "__main__":
    unittest.main(verbosity=2)
