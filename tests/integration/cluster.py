"""Real ShardFC processes for tests: start them on ports that the kernel chooses, wait for conditions
with deadlines, kill them, collect what they say.

    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.start_workers(2, data="synthetic")
        c.create_run(classes=2000, samples=4000, steps=20)
        c.wait_state("finished")
        print(c.state_digest())

Programs are looked for in $SFC_BIN, else in build/release/bin of this tree. Every wait has a deadline
(times $SFC_TIME_SCALE for sanitizer builds); when it passes, the error shows the last state and the end of
each program's output. Leaving the `with` block kills what still runs and removes the scratch folder, unless
SFC_KEEP=1.
"""
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib
import json
import os
import pathlib
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import grpc

TOP = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("SFC_BIN", TOP / "build" / "release" / "bin"))
TIME_SCALE = float(os.environ.get("SFC_TIME_SCALE", "1"))
# A program ends with the test that started it. Not by preexec_fn: that runs Python between fork and
# exec in a process whose other threads (gRPC's) are gone with the locks they held, and may never come back.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def _load_stubs():
    """Python stubs of proto/shardfc.proto: made afresh, or those in the folder $SFC_STUBS (gpu-kit)."""
    if "SFC_STUBS" in os.environ:
        sys.path.insert(0, os.environ["SFC_STUBS"])
        return importlib.import_module("proto.shardfc_pb2"), importlib.import_module("proto.shardfc_pb2_grpc")
    from grpc_tools import protoc
    out = tempfile.mkdtemp(prefix="sfc-stubs-")
    try:
        if protoc.main(["protoc", f"--proto_path={TOP}", f"--python_out={out}",
                        f"--grpc_python_out={out}", "proto/shardfc.proto"]):
            raise RuntimeError("protoc failed on proto/shardfc.proto")
        sys.path.insert(0, out)
        try:
            return (importlib.import_module("proto.shardfc_pb2"),
                    importlib.import_module("proto.shardfc_pb2_grpc"))
        finally:
            sys.path.remove(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


pb, pb_grpc = _load_stubs()
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                   # a test that starts a scheduler again must not wait for a long backoff
                   ("grpc.max_reconnect_backoff_ms", 1000)]


class Failure(AssertionError):
    pass


def wait_until(what, condition, seconds, pause=0.05, context=lambda: ""):
    """Asks condition() until it gives something true, and returns that."""
    end = time.monotonic() + seconds * TIME_SCALE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise Failure(f"waited {seconds * TIME_SCALE:.0f} s for {what}\n{context()}")
        time.sleep(pause)


def wait_steps(what, look, seconds, context):
    """Asks look() until it gives something true first; second, the step of the run. The time begins anew with every
    step, ten times at most: how long one takes is the machine's affair."""
    begun, reached, end = time.monotonic(), None, 0
    while True:
        result, step = look()
        if result:
            return result
        now = time.monotonic()
        if reached is None or step > reached:
            reached, end = step, min(now, begun + 9 * seconds * TIME_SCALE) + seconds * TIME_SCALE
        if now > end:
            raise Failure(f"waited {now - begun:.0f} s for {what}, the last {seconds * TIME_SCALE:.0f} at step {reached}\n"
                          f"{context()}")
        time.sleep(0.05)


def has_room(folder, room_mb):
    """Whether a folder is there and has as much room."""
    try:
        there = os.statvfs(folder)
    except OSError:
        return False
    return there.f_bavail * there.f_frsize >> 20 >= room_mb


def scratch(room_mb):
    """A new folder in memory where that has room, else where temporary files are: for what must not wait for a disk that
    others keep busy, and that nobody asks what survives."""
    return tempfile.mkdtemp(prefix="sfc-cluster-", dir="/dev/shm" if has_room("/dev/shm", room_mb) else None)


def _changed(paths):
    """Without what tests make and remove there meanwhile."""
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(paths)
            if not p.name.startswith("sfc-store-")]


class Port:
    """A port of loopback that the kernel gives to nobody who asks for any, as long as this is not closed. Whoever asks
    for this very one with SO_REUSEADDR, as servers do, gets it; who connects before is refused."""

    def __init__(self, number=0):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", number))
        self.number = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.number}"

    def close(self):
        self._socket.close()


def once(run):
    """Decorator of an undisturbed run that several tests compare with: what run(*args) returned is kept beside the
    programs, and done again only when programs, tests or settings have changed."""
    folder = BIN.parent / "undisturbed"
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith(("SFC_", "DNNL_")))

    @functools.wraps(run)
    def kept(*args):
        what = (run.__code__.co_filename, run.__qualname__, args, settings,
                _changed([*BIN.iterdir(), *TOP.glob("tests/*/*.py")]))
        folder.mkdir(exist_ok=True)
        path = folder / hashlib.sha256(repr(what).encode()).hexdigest()
        with open(path, "a+b") as file:  # a second test waits here for the first
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            whole = file.read()
            if whole:
                return pickle.loads(whole)
            result = run(*args)
            file.write(pickle.dumps(result))
            return result
    return kept


class Process:
    """One program. stdout lines and stderr go to files in the scratch folder; `address` is what it
    printed as `listening ADDR`."""

    def __init__(self, name, argv, folder, env=None):
        self.name, self.argv = name, [str(a) for a in argv]
        self.out_path = folder / f"{name}.out"
        self.err_path = folder / f"{name}.err"
        self.address = None
        self._kept = None
        full_env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", **(env or {}))
        with open(self.err_path, "ab") as err:
            self.popen = subprocess.Popen(
                [*ENDS_WITH_US, *self.argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err,
                env=full_env)
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read_stdout, daemon=True)
        self._reader.start()

    def _read_stdout(self):
        with open(self.out_path, "ab") as out:
            for line in self.popen.stdout:
                out.write(line)
                out.flush()
                words = line.decode(errors="replace").split()
                if len(words) == 2 and words[0] == "listening":
                    self.address = words[1]
                    self._listening.set()
        self._listening.set()

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def wait_listening(self, seconds=30):
        self._listening.wait(seconds * TIME_SCALE)
        if not self.address:
            raise Failure(f"{self.name} did not print its address\n{self.tail()}")
        return self.address

    def signal(self, number):
        if self.running():
            self.popen.send_signal(number)

    def kill(self):
        """SIGKILL, and reaps it."""
        self.signal(signal.SIGKILL)
        self.popen.wait()
        self._reader.join()
        self._keep_port()

    def _keep_port(self):
        """Nobody else gets the port of one that has ended before it is started again on it."""
        host, _, port = (self.address or "").rpartition(":")
        if self._kept or host != "127.0.0.1":
            return
        try:
            self._kept = Port(int(port))
        except OSError:  # its successor is there already, or it is of another network namespace
            pass

    def forget(self):
        """Ends it for good: its port is free."""
        self.kill()
        if self._kept:
            self._kept.close()

    def terminate(self, seconds=20):
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds=60):
        try:
            status = self.popen.wait(seconds * TIME_SCALE)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} still runs after {seconds * TIME_SCALE:.0f} s\n{self.tail()}") from None
        self._reader.join()
        self._keep_port()
        return status

    def stdout(self):
        return self.out_path.read_text(errors="replace")

    def stderr(self):
        return self.err_path.read_text(errors="replace")

    def tail(self, lines=40):
        text = [f"--- {self.name} (pid {self.pid}, status {self.popen.poll()}): {' '.join(self.argv)}"]
        for path in (self.out_path, self.err_path):
            if path.exists():
                text += path.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(text)


class Cluster:
    def __init__(self, folder=None):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="sfc-cluster-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        self.shards, self.workers = [], []
        self.scheduler = None
        self.port = 0
        self._channels = {}
        self._counter = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            print(self.tails(), file=sys.stderr)
        self.close()

    def close(self):
        for channel in self._channels.values():
            channel.close()
        for process in self.processes:
            process.forget()
        if os.environ.get("SFC_KEEP") != "1":
            shutil.rmtree(self.folder, ignore_errors=True)

    def tails(self):
        return "\n".join(p.tail() for p in self.processes)

    # ---- processes

    def start(self, kind, argv, env=None):
        self._counter += 1
        process = Process(f"{kind}{self._counter}", argv, self.folder, env)
        self.processes.append(process)
        return process

    def start_scheduler(self, *extra, env=None):
        """A second call after a kill starts it again on the same port and state."""
        self.scheduler = self.start("scheduler", [
            BIN / "shardfc-scheduler", "--listen", f"127.0.0.1:{self.port}",
            "--state", self.folder / "scheduler", *extra], env)
        address = self.scheduler.wait_listening()
        self.port = int(address.rsplit(":", 1)[1])
        wait_until("the scheduler to answer", self._answers, 30, context=self.tails)
        return self.scheduler

    def _answers(self):
        try:
            return self.status()
        except grpc.RpcError:
            if not self.scheduler.running():
                raise Failure(f"the scheduler ended\n{self.scheduler.tail()}") from None
            return None

    def start_shard(self, *extra, listen="127.0.0.1:0", state=None, env=None):
        self._counter += 1
        state = state or self.folder / f"shard-state{self._counter}"
        shard = self.start("shard", [
            BIN / "shardfc-shard", "--scheduler", self.address, "--listen", listen,
            "--state", state, "--threads", "1", *extra], env)
        shard.wait_listening()
        shard.state, shard.extra, shard.env = state, extra, env
        self.shards.append(shard)
        return shard

    def restart_shard(self, shard, state=None):
        """Starts a shard that has ended again, on the same address (its state folder keeps the port) and, unless
        given, the same state."""
        self.shards.remove(shard)
        kept = state is None and (shard.state / "port").exists()
        again = self.start_shard(*shard.extra, listen="127.0.0.1:0" if kept else shard.address,
                                 state=state or shard.state, env=shard.env)
        if again.address != shard.address:
            raise Failure(f"{shard.address} came back as {again.address}")
        return again

    def start_shards(self, count, *extra):
        """Starts `count` shards, each when the scheduler has the one before: so they get their ids in order."""
        for _ in range(count):
            self.wait_ready(self.start_shard(*extra))
        return self.shards

    def wait_ready(self, *shards):
        """Waits until the scheduler has these shards."""
        addresses = {s.address for s in shards}
        wait_until("shards to register",
                   lambda: addresses <= {s.address for s in self.status().shards if s.state == "ready"}, 30,
                   context=self.tails)

    def start_worker(self, *extra, data="synthetic", threads=1):
        worker = self.start("worker", [
            BIN / "shardfc-worker", "--scheduler", self.address, "--data", data,
            "--threads", threads, *extra])
        self.workers.append(worker)
        return worker

    def start_workers(self, count, *extra, data="synthetic", threads=1):
        return [self.start_worker(*extra, data=data, threads=threads) for _ in range(count)]

    def ctl(self, *argv, check=True, seconds=120):
        """Runs `shardfc ARGV...` with --scheduler added after the command; returns CompletedProcess."""
        command = [str(BIN / "shardfc"), str(argv[0]), "--scheduler", self.address,
                   *[str(a) for a in argv[1:]]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * TIME_SCALE)
        if check and done.returncode:
            raise Failure(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ctl_json(self, *argv, seconds=120):
        return json.loads(self.ctl(*argv, "--json", seconds=seconds).stdout)

    # ---- calls

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def channel(self, address):
        if address not in self._channels:
            self._channels[address] = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        return self._channels[address]

    def forget_channel(self, address):
        channel = self._channels.pop(address, None)
        if channel:
            channel.close()

    @property
    def stub(self):
        return pb_grpc.SchedulerStub(self.channel(self.address))

    def shard_stub(self, address):
        return pb_grpc.ShardStub(self.channel(address))

    def status(self):
        return self.stub.Status(pb.StatusRequest(), timeout=10 * TIME_SCALE)

    def create_run(self, **fields):
        """CreateRun with a small synthetic run without backbone; fields override RunConfig's."""
        return self.stub.CreateRun(pb.CreateRunRequest(config=run_config(**fields)),
                                   timeout=60 * TIME_SCALE)

    def wait_state(self, state, seconds=120):
        bad = {"failed", "blocked"} - {state}

        def there():
            now = self.status()
            if now.state in bad:
                raise Failure(f"the run is {now.state}: {now.reason}")
            return now if now.state == state else None, now.step
        return wait_steps(f"state {state}", there, seconds,
                          context=lambda: f"{self.status()}\n{self.tails()}")

    def wait_step(self, step, seconds=120):
        def there():
            now = self.status()
            if now.step < step and now.state in ("failed", "blocked"):
                raise Failure(f"the run is {now.state}: {now.reason}")
            return now if now.step >= step else None, now.step
        return wait_steps(f"step {step}", there, seconds,
                          context=lambda: f"{self.status()}\n{self.tails()}")

    def history(self, run_id=0):
        points = []
        while True:
            after = points[-1].step if points else 0
            reply = self.stub.History(pb.HistoryRequest(run_id=run_id, after_step=after, limit=10000),
                                      timeout=10 * TIME_SCALE)
            if not reply.points:
                return points
            points += reply.points

    # ---- state

    def ask_hold(self, step):
        """Asks for a hold of a step to come where the run can't get there yet (no worker, another hold): however slow
        the test is, the run does not pass it. result() waits until the scheduler has heard it."""
        return self.stub.Hold.future(pb.HoldRequest(at_step=step), timeout=30 * TIME_SCALE)

    def held_at(self, step):
        """The same, heard: for hold(asked=...) within 10 s."""
        return self.ask_hold(step).result()

    def hold(self, at_step=0, seconds=60, asked=None):
        """Stops the run at a boundary, or where it was asked to; returns the HoldReply. release() lets it go on."""
        hold_id = asked.hold_id if asked else 0

        def held():
            nonlocal hold_id
            reply = self.stub.Hold(pb.HoldRequest(at_step=at_step, hold_id=hold_id), timeout=30 * TIME_SCALE)
            hold_id = reply.hold_id
            return reply if reply.held else None, reply.step
        return wait_steps("the run to be held", held, seconds, context=self.tails)

    @contextlib.contextmanager
    def keeping(self, asked):
        """A hold, asked for or there, goes on in here, whatever takes how long; its lease is ten seconds."""
        over = threading.Event()

        def renew():
            while not over.wait(2):
                self.stub.Hold(pb.HoldRequest(hold_id=asked.hold_id), timeout=30 * TIME_SCALE)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            renewing = pool.submit(renew)
            try:
                yield asked
            finally:
                over.set()
        renewing.result()

    def release(self, held):
        self.stub.Release(pb.ReleaseRequest(hold_id=held.hold_id), timeout=10 * TIME_SCALE)

    def read_state(self, held, pin=0):
        """Yields (name, bytes) of every part of every block, in a fixed order; then, in momentum mode
        dense, "history" as each shard has it. pin: of shards that held.step is pinned on; without one the hold is
        renewed meanwhile."""
        config, owners = held.config, held.map
        dense_mode = config.momentum_mode == "dense"
        classes = owners.growths[-1].classes if owners.growths else config.classes
        parts = [(pb.VALUES, "values"), (pb.MOMENTUM, "momentum")]
        if config.optimizer == "adamw":
            parts.append((pb.SECOND_MOMENT, "second"))
        jobs = []
        for block, owner in enumerate(owners.class_owner):
            rows = min(config.block_size, classes - block * config.block_size)
            for part, name in parts:
                jobs.append((f"class {block} {name}", pb.CLASS_BLOCK, block, owner, part, rows * config.dim))
            if dense_mode:
                jobs.append((f"class {block} last", pb.CLASS_BLOCK, block, owner, pb.LAST_STEP, rows))
        size = dense_size(config)
        for block, owner in enumerate(owners.dense_owner):
            count = min(config.dense_block_size, size - block * config.dense_block_size)
            for part, name in parts:
                jobs.append((f"dense {block} {name}", pb.DENSE_BLOCK, block, owner, part, count))
        for owner, shard in enumerate(owners.shards if dense_mode else []):
            if shard.address:  # else its place is empty
                jobs.append(("history", pb.HISTORY, 0, owner, pb.VALUES, held.step))
        renewed = time.monotonic()
        for name, kind, block, owner, part, count in jobs:
            if not pin and time.monotonic() - renewed > 2:
                self.stub.Hold(pb.HoldRequest(hold_id=held.hold_id), timeout=30 * TIME_SCALE)
                renewed = time.monotonic()
            stub = self.shard_stub(owners.shards[owner].address)
            data = b""
            while len(data) < 4 * count:
                at = len(data) // 4
                reply = stub.ReadBlock(pb.ReadBlockRequest(
                    run_id=held.run_id, step=held.step, kind=kind, block=block, part=part,
                    offset=at, count=min(count - at, 1 << 18), pin=pin), timeout=30 * TIME_SCALE)
                if reply.making:
                    continue
                if not reply.payload:
                    raise Failure(f"ReadBlock gave nothing for {name} at {at}")
                data += reply.payload
            yield name, data

    def state_digest(self):
        """(step, SHA-256 over all blocks): equal for equal training states, wherever blocks are."""
        held = self.hold()
        try:
            digest, history = hashlib.sha256(), None
            for name, data in self.read_state(held):
                if name == "history" and history is not None:
                    if data != history:
                        raise Failure("two shards have different histories")
                    continue
                history = data if name == "history" else None
                digest.update(name.encode() + b"\0" + data)
            return held.step, digest.hexdigest()
        finally:
            self.release(held)


def dense_size(config):
    total = 0
    for segment in config.segments:
        count = 1
        for n in segment.shape:
            count *= n
        total += count
    return total


def run_config(**fields):
    """RunConfig of a small synthetic run without backbone. samples=N sets the data set's size."""
    samples = fields.pop("samples", 2000)
    config = dict(name="test", seed=1, classes=1000, dim=32, block_size=1024, sample_ppm=100000,
                  margin_m1=1.0, margin_m2=0.0, margin_m3=0.4, scale=32.0, margin_grad="exact",
                  correction="none", dtype="f32", gemm="f32", rounding="stochastic", init_std=0.01,
                  optimizer="sgd", momentum_mode="sampled", momentum=0.9, weight_decay=5e-4, lr=0.1, warmup_steps=5,
                  lr_power=1.0, lr_end=0.0, clip=5.0, steps=20, global_batch=32, micro_batch=8,
                  backbone="none", dense_block_size=65536,
                  data=pb.DataSet(kind=pb.DataSet.SYNTHETIC, samples=samples))
    config.update(fields)
    return pb.RunConfig(**config)
