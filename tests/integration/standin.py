"""A scheduler and its workers in one Python object that drives real shard processes call by call: for tests of what a
shard does when blocks move, where every stage of a move has to be met exactly.

    with Cluster() as c:
        run = Standin(c, run_config(...), shards=2)
        run.open()
        run.steps(5)
        run.move(0, 1, class_blocks=[0, 2])
        print(run.digests())

Everything is a function of the step: labels, features, gradients of the backbone. So two runs have equal blocks however
blocks lie, whoever died. Calls are made one after another.
"""
import hashlib
import math
import shutil
import time

import grpc
import numpy as np

import cluster
from cluster import Failure, pb, wait_until
from inputs import xxh3_64, xxh3_128

RUN = 7
WAIT = 30 * cluster.TIME_SCALE


def code_of(error):
    """The exact status of a failed call."""
    return dict(error.trailing_metadata() or ()).get("sfc-status", "")


EUNAVAILABLE, ESTATE, ENOTFOUND, ENOMEM, ESTALE, EINVAL = "8", "5", "3", "2", "6", "1"


class Standin:
    def __init__(self, c, config, shards=2, options=(), mirrors=0):
        c.port = c.port or 1  # no scheduler is there: shards go on trying to register
        self.c, self.config, self.options = c, config, options
        self.processes = [c.start_shard(*options) for _ in range(shards)]
        size = cluster.dense_size(config)
        class_blocks = -(-config.classes // config.block_size)
        dense_blocks = -(-size // config.dense_block_size) if size else 0
        self.map = pb.BlockMap(version=1, shards=[pb.ShardAddress(shard=k + 1, address=p.address)
                                                  for k, p in enumerate(self.processes)],
                               class_owner=[b % shards for b in range(class_blocks)],
                               dense_owner=[b % shards for b in range(dense_blocks)])
        self.mirrors = mirrors
        self.choose_mirrors(self.map)
        self.incarnation, self.counter = 1, 0
        self.step, self.last, self.records, self.returns = 0, None, {}, []
        self.moves = 0
        self.round = self.new_round()

    # ---- places

    def stub(self, slot):
        return self.c.shard_stub(self.map.shards[slot].address)

    def members(self):
        return [k for k, s in enumerate(self.map.shards) if s.address]

    def new_round(self):
        self.counter += 1
        return pb.Attempt(incarnation=self.incarnation, counter=self.counter)

    def dense_length(self, block):
        size, most = cluster.dense_size(self.config), self.config.dense_block_size
        return min(most, size - block * most)

    def own_dense(self, slot):
        return [b for b, k in enumerate(self.map.dense_owner) if k == slot]

    def choose_mirrors(self, new):
        """Each place is mirrored by the next ones that are there."""
        there = [k for k, s in enumerate(new.shards) if s.address]
        for i, k in enumerate(there):
            after = there[i + 1:] + there[:i]
            new.shards[k].mirrors[:] = sorted(after[:self.mirrors])
        for k, s in enumerate(new.shards):
            if k not in there:
                del s.mirrors[:]

    def pushed(self, slot):
        """Dense blocks whose gradients a shard gets."""
        return [b for b, k in enumerate(self.map.dense_owner) if k == slot or slot in self.map.shards[k].mirrors]

    # ---- opening

    def open_request(self, slot, **more):
        return pb.OpenRunRequest(run_id=RUN, keeping=pb.RunKeeping(rewind_window=100), incarnation=self.incarnation, config=self.config, map=self.map,
                                 self=slot, round=self.round, nonce=99, last_commit=self.last, returns=self.returns, **more)

    def open_run(self, slot, **more):
        request = self.open_request(slot, **more)

        def opened():
            try:
                return self.stub(slot).OpenRun(request, timeout=WAIT)
            except grpc.RpcError as e:
                if code_of(e) == EUNAVAILABLE or e.code() == grpc.StatusCode.UNAVAILABLE:
                    return None
                raise
        return wait_until(f"shard {slot} to open the run", opened, 60, context=self.c.tails)

    def open(self):
        for slot in self.members():
            self.open_run(slot)

    def restart(self, slot):
        """After a kill: the process again, and what a scheduler does then."""
        old = self.processes[slot]
        old.kill()
        self.c.forget_channel(self.map.shards[slot].address)
        self.processes[slot] = self.c.restart_shard(old)

    def abort(self, but=()):
        """A new round: whatever is open is void."""
        self.round = self.new_round()
        for slot in self.members():
            if slot not in but:
                self.stub(slot).Abort(pb.AbortRequest(run_id=RUN, incarnation=self.incarnation, step=self.step + 1,
                                                      round=self.round), timeout=WAIT)

    def check_rewind(self, slot, step):
        self.stub(slot).CheckRewind(pb.CheckRewindRequest(run_id=RUN, incarnation=self.incarnation, step=step,
                                                          last_commit=self.records[step]), timeout=WAIT)

    def rewind(self, step):
        """Every shard goes back from its own disk; what came after never happened."""
        for slot in self.members():
            self.check_rewind(slot, step)
        self.returns.append(pb.Return(step=step, last=self.round))
        self.round = self.new_round()
        self.step, self.last = step, self.records[step]
        for slot in self.members():
            self.open_run(slot, recover=True)
        self.abort()

    def recover(self, slots):
        """Everybody else gives the open step up; these come back to the last commit."""
        self.abort(slots)
        for slot in slots:
            reply = self.open_run(slot, recover=True)
            if reply.step != self.step:
                raise Failure(f"shard {slot} is at step {reply.step}, not {self.step}")

    # ---- a step

    def inputs(self, t, j):
        rng = np.random.default_rng([self.config.seed, t, j])
        m = self.config.micro_batch
        return (rng.integers(0, self.config.classes, m).tolist(),
                rng.standard_normal((m, self.config.dim), dtype=np.float32).tobytes())

    def gradient(self, t, j, block):
        rng = np.random.default_rng([self.config.seed, t, j, 1000 + block])
        return (0.01 * rng.standard_normal(self.dense_length(block), dtype=np.float32)).tobytes()

    def call(self, slot, kind, t, j, attempt, payload, dtype, shape):
        stub = self.stub(slot)
        return getattr(stub, kind)(getattr(pb, kind + "Request")(
            run_id=RUN, step=t, micro_batch=j, attempt=attempt, map_version=self.map.version,
            payload_digest=xxh3_64(payload), payload_type=pb.TensorType(dtype=dtype, shape=shape),
            payload=payload), timeout=WAIT)

    def micro_batch(self, t, j):
        """What Prepare says of it, without the dense digests, which each shard's blocks decide."""
        m, dim, owners = self.config.micro_batch, self.config.dim, self.members()
        attempt, features = self.new_round(), self.inputs(t, j)[1]
        sums = [0] * m
        for slot in owners:
            reply = self.call(slot, "Logits", t, j, attempt, features, pb.DTYPE_F32, [m, dim])
            words = np.frombuffer(reply.payload, "<u8").reshape(m, 4)
            for row in range(m):
                sums[row] += sum(int(w) << (64 * i) for i, w in enumerate(words[row]))
        lse = np.array([math.log(s) - 128 * math.log(2) for s in sums], "<f8").tobytes()
        total = np.zeros(m * dim, np.int64)
        for slot in owners:
            reply = self.call(slot, "Gradient", t, j, attempt, lse, pb.DTYPE_F64, [m])
            total += np.frombuffer(reply.payload, "<i8")
        for slot in owners:
            blocks = self.pushed(slot)
            if blocks:
                payload = b"".join(self.gradient(t, j, b) for b in blocks)
                self.call(slot, "PushDense", t, j, attempt, payload, pb.DTYPE_F32, [len(payload) // 4])
        return attempt, xxh3_128(features + lse), total.tobytes()

    def prepare(self, slot, t, done, **more):
        blocks = self.pushed(slot)
        request = pb.PrepareRequest(
            run_id=RUN, incarnation=self.incarnation, step=t, round=self.round, attempts=[pb.PreparedAttempt(
                micro_batch=j, attempt=attempt, head_digest=digest,
                dense_digests=[xxh3_64(self.gradient(t, j, b)) for b in blocks])
                for j, (attempt, digest, _) in enumerate(done)], **more)

        def prepared():  # a log that is full makes room, and is asked again
            try:
                return self.stub(slot).Prepare(request, timeout=WAIT)
            except grpc.RpcError as e:
                if code_of(e) == EUNAVAILABLE:
                    return None
                raise
        reply = wait_until(f"shard {slot} to be ready for step {t}", prepared, 30, context=self.c.tails)
        if not reply.ready:
            raise Failure(f"shard {slot} lacks {list(reply.missing)} of step {t}")
        return [d.block for d in reply.dense]

    def plan(self, t):
        labels = [y for j in range(self.micro_batches) for y in self.inputs(t, j)[0]]
        for slot in self.members():
            self.stub(slot).Plan(pb.PlanRequest(
                run_id=RUN, incarnation=self.incarnation, step=t, map_version=self.map.version, lr=0.1 / (1 + t),
                labels=labels, round=self.round), timeout=WAIT)

    @property
    def micro_batches(self):
        return self.config.global_batch // self.config.micro_batch

    def one_step(self):
        t = self.step + 1
        self.plan(t)
        done = [self.micro_batch(t, j) for j in range(self.micro_batches)]
        for slot in self.members():
            blocks = self.prepare(slot, t, done)
            if blocks != self.own_dense(slot):
                raise Failure(f"shard {slot} has dense blocks {blocks}, not {self.own_dense(slot)}")
        self.records[t] = self.last = pb.CommitRecord(step=t, round=self.round, clip_scale=1.0, lr=0.1 / (1 + t), apply=t % 5 != 0)
        for slot in self.members():
            self.commit(slot)
        self.step = t
        self.dx = hashlib.sha256(b"".join(d for _, _, d in done)).hexdigest()

    def commit(self, slot):
        c = self.last
        self.stub(slot).Commit(pb.CommitRequest(run_id=RUN, incarnation=self.incarnation, step=c.step,
                                                clip_scale=c.clip_scale, apply=c.apply, round=c.round), timeout=WAIT)

    def steps(self, n):
        for _ in range(n):
            self.one_step()

    # ---- moves

    def fetch_request(self, source, class_blocks=(), dense_blocks=(), bytes_per_s=0):
        self.moves += 1
        return pb.FetchBlocksRequest(run_id=RUN, incarnation=self.incarnation, move=self.moves, source=source,
                                     class_blocks=class_blocks, dense_blocks=dense_blocks, bytes_per_s=bytes_per_s)

    def fetch_once(self, destination, request):
        """True when it is close, False while it is at work."""
        try:
            self.stub(destination).FetchBlocks(request, timeout=WAIT)
            return True
        except grpc.RpcError as e:
            if code_of(e) == EUNAVAILABLE:
                return False
            raise

    def fetch(self, source, destination, train=True, **blocks):
        """Copies, while training goes on."""
        request = self.fetch_request(source, **blocks)
        end = time.monotonic() + WAIT
        while not self.fetch_once(destination, request):
            if time.monotonic() > end:
                raise Failure(f"move {request.move} is not close\n{self.c.tails()}")
            if train:
                self.one_step()
        return request

    def take(self, destination, request):
        self.stub(destination).TakeBlocks(pb.TakeBlocksRequest(
            run_id=RUN, incarnation=self.incarnation, move=request.move, step=self.step), timeout=WAIT)

    def cancel(self, slot, request):
        self.stub(slot).CancelMove(pb.CancelMoveRequest(run_id=RUN, incarnation=self.incarnation, move=request.move),
                                   timeout=WAIT)

    def map_with(self, destination, request):
        new = pb.BlockMap()
        new.CopyFrom(self.map)
        new.version += 1
        for b in request.class_blocks:
            new.class_owner[b] = destination
        for b in request.dense_blocks:
            new.dense_owner[b] = destination
        return new

    def set_map(self, slot, move=0):
        request = pb.SetMapRequest(run_id=RUN, incarnation=self.incarnation, round=self.round, step=self.step,
                                   map=self.map, move=move)

        def done():
            try:
                self.stub(slot).SetMap(request, timeout=WAIT)
                return True
            except grpc.RpcError as e:
                if code_of(e) == EUNAVAILABLE:
                    return None
                raise
        wait_until(f"SetMap of shard {slot}", done, 30, context=self.c.tails)

    def flip(self, new, move=0, but=()):
        """The map is durable from here on."""
        self.choose_mirrors(new)
        self.map = new
        for slot in self.members():
            if slot not in but:
                self.set_map(slot, move)

    def move(self, source, destination, train=True, **blocks):
        request = self.fetch(source, destination, train, **blocks)
        self.take(destination, request)
        self.flip(self.map_with(destination, request), request.move)

    def map_with_place(self, address):
        """The present version, with a place for who joins."""
        new = pb.BlockMap()
        new.CopyFrom(self.map)
        for slot, s in enumerate(new.shards):
            if not s.address:
                s.address, s.shard = address, 100 + slot
                return new, slot
        new.shards.add(shard=100 + len(new.shards), address=address)
        return new, len(new.shards) - 1

    def start_joiner(self, *options):
        process = self.c.start_shard(*(options or self.options))
        new, slot = self.map_with_place(process.address)
        if slot == len(self.processes):
            self.processes.append(process)
        else:
            self.processes[slot] = process
        old, self.map = self.map, new
        try:
            self.open_run(slot, join=True)
        finally:
            self.map = old
        return new, slot

    def join(self, *options, train=2):
        new, slot = self.start_joiner(*options)
        self.steps(train)
        new.version += 1
        self.flip(new)
        return slot

    def leave(self, slot):
        """Owns nothing any more."""
        new = pb.BlockMap()
        new.CopyFrom(self.map)
        new.version += 1
        address = new.shards[slot].address
        new.shards[slot].address, new.shards[slot].shard = "", 0
        self.flip(new)
        self.c.shard_stub(address).CloseRun(pb.CloseRunRequest(run_id=RUN, incarnation=self.incarnation), timeout=WAIT)
        self.processes[slot].terminate()

    # ---- a shard that is lost for good

    def map_without(self, slot, to=None):
        """Its blocks go to its mirrors, in turn."""
        new = pb.BlockMap()
        new.CopyFrom(self.map)
        new.version += 1
        to = to or list(self.map.shards[slot].mirrors)
        for owners in (new.class_owner, new.dense_owner):
            for b, owner in enumerate(owners):
                if owner == slot:
                    owners[b] = to[b % len(to)]
        new.shards[slot].address, new.shards[slot].shard = "", 0
        self.choose_mirrors(new)
        return new

    def covers(self, slot, lost, to=None):
        """None, or why this shard could not take over what another one has."""
        try:
            self.stub(slot).CheckRewind(pb.CheckRewindRequest(
                run_id=RUN, incarnation=self.incarnation, step=self.step, last_commit=self.last,
                map=self.map_without(lost, to)), timeout=WAIT)
        except grpc.RpcError as e:
            return e
        return None

    def destroy(self, slot):
        """The machine and its disk."""
        self.processes[slot].kill()
        self.c.forget_channel(self.map.shards[slot].address)
        shutil.rmtree(self.processes[slot].state)

    def adopt(self, lost):
        """The run goes on without it; what was open is void."""
        new, mirrors = self.map_without(lost), list(self.map.shards[lost].mirrors)
        self.round = self.new_round()
        for slot in self.members():
            if slot != lost and slot not in mirrors:
                self.stub(slot).Abort(pb.AbortRequest(run_id=RUN, incarnation=self.incarnation, step=self.step + 1,
                                                      round=self.round), timeout=WAIT)
        self.map = new
        for slot in mirrors:
            reply = self.open_run(slot, recover=True)
            if reply.step != self.step:
                raise Failure(f"shard {slot} is at step {reply.step}, not {self.step}")
        for slot in self.members():
            if slot not in mirrors:
                self.set_map(slot)

    def lose(self, slot):
        self.destroy(slot)
        self.adopt(slot)

    def stop(self):
        """Every shard ends by itself, whatever it is at: under sanitizers nothing is left over."""
        for slot in self.members():
            status = self.processes[slot].terminate()
            if status:
                raise Failure(f"shard {slot} ended with {status}\n{self.processes[slot].tail()}")

    # ---- state

    def read(self, slot, kind, block, part, count):
        data = b""
        while len(data) < 4 * count:
            at = len(data) // 4
            reply = self.stub(slot).ReadBlock(pb.ReadBlockRequest(
                run_id=RUN, step=self.step, kind=kind, block=block, part=part, offset=at,
                count=min(count - at, 1 << 16)), timeout=WAIT)
            data += reply.payload
        return data

    def digests(self):
        """{name: digest} of every part of every block and, in momentum mode dense, of the history of every shard."""
        c, out = self.config, {}
        parts = [pb.VALUES, pb.MOMENTUM] + ([pb.SECOND_MOMENT] if c.optimizer == "adamw" else [])
        jobs = []
        for b, slot in enumerate(self.map.class_owner):
            rows = min(c.block_size, c.classes - b * c.block_size)
            jobs += [(slot, pb.CLASS_BLOCK, b, p, rows * c.dim) for p in parts]
            if c.momentum_mode == "dense":
                jobs.append((slot, pb.CLASS_BLOCK, b, pb.LAST_STEP, rows))
        for b, slot in enumerate(self.map.dense_owner):
            jobs += [(slot, pb.DENSE_BLOCK, b, p, self.dense_length(b)) for p in parts]
        for slot, kind, block, part, count in jobs:
            out[kind, block, part] = hashlib.sha256(self.read(slot, kind, block, part, count)).hexdigest()
        if c.momentum_mode == "dense" and self.step:
            rates = {self.read(slot, pb.HISTORY, 0, pb.VALUES, self.step) for slot in self.members()}
            if len(rates) != 1:
                raise Failure("shards have different histories")
            out["history"] = hashlib.sha256(rates.pop()).hexdigest()
        return out
