#!/usr/bin/python3
"""A run goes back to an earlier step and then on with the bits of a run that never went further.

    test_rewind.py [session|crashes|far|floor|waits|workers|off|damaged|lost|checkpoint|foreign|given_up ...]     default: all
SFC_SEED (default 1) draws batches and moments; it is printed on failure.
"""
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
from concurrent import futures

import grpc
import numpy as np

import cluster
from cluster import Cluster, Failure, once, pb, wait_until
from inputs import check, expect, one_json, tool
from test_checkpoint import begin, checkpoint, end as end_of, made, partial, stopped_in_the_middle
from test_head_session import Session, batch, session_config
from test_lost_log import content, flip, owners, records, records_in, segments
from standin import RUN, Standin
from test_recovery import images

SEED = int(os.environ.get("SFC_SEED", "1"))
# Copies of every block every few steps, so that snapshots of all ages are there.
OFTEN = ("--recovery-target", "50ms")


def start(c, *extra):
    c.start_scheduler()
    c.start_shards(2, *(extra or OFTEN))


def session_run(c, steps, window=0, **fields):
    c.stub.CreateRun(pb.CreateRunRequest(
        config=pb.RunConfig(**dict(run_defaults(), **session_config(steps=steps, **fields))),
        keeping=pb.RunKeeping(rewind_window=window)), timeout=60)


def run_defaults():
    return dict(name="session", seed=SEED, margin_m1=1.0, margin_m2=0.0, margin_m3=0.4, margin_grad="exact",
                correction="none", dtype="f32", gemm="f32", rounding="stochastic", optimizer="sgd",
                momentum_mode="dense", momentum=0.9, weight_decay=5e-4, lr_power=1.0, lr_end=0.0, clip=5.0,
                backbone="none", dense_block_size=65536)


def train(c, to_step, world=0):
    """A new session trains to a step. The batch of a step follows from (seed, world, step)."""
    session = Session(c)
    first = session.step
    while session.step <= to_step:
        session.train_step(*batch(np.random.default_rng((SEED, world, session.step)), session.config))
        c.wait_step(session.step - 1)
    return first


def end(c):
    return c.state_digest(), [p.loss for p in c.history()]


def rewind(c, step):
    done = c.ctl_json("rewind", "--to-step", step)
    check(done["step"] == step, f"rewound to {step}: {done}")
    check([p.step for p in c.history()] == list(range(1, step + 1)), f"history after a rewind to {step}")


@once
def undisturbed(steps):
    with Cluster() as c:
        start(c)
        session_run(c, steps)
        train(c, steps)
        c.wait_state("finished")
        return end(c)


def compare(c, steps, expected):
    c.wait_state("finished")
    got = end(c)
    check(got[0] == expected[0], f"state {got[0]}, undisturbed {expected[0]}")
    check(got[1] == expected[1], "the losses differ")


def test_session():
    """A client whose own state comes back at an older step takes the head along, again and again, also from
    the end of the run; what it did meanwhile with other batches leaves no trace."""
    steps = 40
    expected = undisturbed(steps)
    with Cluster() as c:
        start(c)
        session_run(c, steps)
        train(c, 20)
        train(c, 31, world=1)
        rewind(c, 20)
        check(train(c, 25, world=2) == 21, "the session goes on behind the step")
        rewind(c, 20)
        rewind(c, 20)  # nothing to do
        check(train(c, 40, world=3) == 21, "the session goes on behind the step")
        c.wait_state("finished")
        rewind(c, 7)
        rewind(c, 0)
        check(train(c, steps) == 1, "from the beginning")
        compare(c, steps, expected)


def test_crashes():
    """Shards and the scheduler die before, in and after rewinds."""
    steps, chance = 60, random.Random(SEED)
    expected = undisturbed(steps)
    with Cluster() as c:
        start(c)
        session_run(c, steps)
        at = 0
        for world in range(1, 7):
            train(c, at + 5)
            at += 5
            train(c, at + 1 + chance.randrange(15), world)
            victims = [s for s in c.shards if chance.random() < 0.5]
            for victim in victims:
                victim.kill()
            if world % 3 == 0:
                c.scheduler.kill()
                c.start_scheduler()
            for victim in victims:
                c.restart_shard(victim)
            wait_until("the rewind", lambda: try_rewind(c, at), 60, context=c.tails)
            if world % 2:
                victim = chance.choice(c.shards)
                victim.kill()
                c.restart_shard(victim)
            if world % 3 == 1:
                c.scheduler.kill()
                c.start_scheduler()
            check([p.step for p in c.history()] == list(range(1, at + 1)), "history")
        train(c, steps)
        compare(c, steps, expected)


def try_rewind(c, step):
    done = c.ctl("rewind", "--to-step", step, check=False)
    check(done.returncode == 0 or "try again" in done.stderr, done.stderr)
    return done.returncode == 0


def test_far():
    """What is refused says why and leaves the run where it is; the lowest step that is named is possible."""
    with Cluster() as c:
        start(c, *OFTEN, "--log-limit", "400K")  # at most 48 steps between two copies, however fast the machine is
        session_run(c, 400, window=20)
        train(c, 150)
        expect(c.ctl("rewind", "--to-step", "151", check=False), 2, "above the last commit", "150")
        expect(c.ctl("rewind", check=False), 2, "--to-step")
        wait_until("a lowest step", lambda: c.ctl_json("status")["oldest_step"] > 10, 30, context=c.tails)
        tried = c.ctl("rewind", "--to-step", "1", check=False)
        expect(tried, 2, "step 1 is too far back", "--rewind-window")
        check(c.status().step == 150, "the run is where it was")
        while tried.returncode:  # the log is deleted meanwhile, but not within the window
            low = int(re.search(r"leads to step (\d+) and", tried.stderr).group(1))
            check(10 < low <= 130, f"the lowest step is {low}")
            tried = c.ctl("rewind", "--to-step", low, check=False)
        check("can be rewound to step" in c.ctl("status").stdout, c.ctl("status").stdout)
        check(c.status().step == low, "the run is at the lowest step")
        train(c, low + 30)
        now = c.ctl_json("status")
        check(now["oldest_step"] <= low + 10, f"the window moves on with the run: it began at {low}, now at "
              f"{now['oldest_step']} of step {now['step']}")
        c.ctl("stop")
        expect(c.ctl("rewind", "--to-step", "1", check=False), 1, "idle")


class Floors(grpc.GenericRpcHandler):
    """Of a scheduler what tells shards which steps of the log they may delete: as the test likes."""

    def __init__(self, c):
        self.floor = self.answers = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(self,))
        c.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def service(self, details):
        return {"/shardfc.v1.Scheduler/RegisterShard": grpc.unary_unary_rpc_method_handler(
                    self.register, response_serializer=pb.RegisterShardReply.SerializeToString),
                "/shardfc.v1.Scheduler/ShardHeartbeat": grpc.unary_unary_rpc_method_handler(
                    self.heartbeat, response_serializer=pb.ShardHeartbeatReply.SerializeToString)}.get(details.method)

    def register(self, request, context):
        return pb.RegisterShardReply(shard=1, incarnation=1)

    def heartbeat(self, request, context):
        self.answers += 1
        return pb.ShardHeartbeatReply(registered=True, incarnation=1, run_id=RUN, has_log_floor=True,
                                      log_floor=self.floor)


def test_floor():
    """Floors of before a rewind, which come with heartbeats that the scheduler held meanwhile, delete nothing that the
    shard needs: the step that it went back to can be had again, and after a death it is where it was."""
    with Cluster() as c:
        floors = Floors(c)
        run = Standin(c, cluster.run_config(classes=1500, dim=24, block_size=256, steps=1000, global_batch=16,
                                            micro_batch=8, clip=0.0), shards=1, options=OFTEN)
        run.open()
        run.steps(40)
        run.rewind(25)
        run.steps(5)
        floors.floor, before = 39, floors.answers
        wait_until("floors to come", lambda: floors.answers >= before + 3, 30, context=c.tails)
        run.check_rewind(0, 25)
        digests = run.digests()
        run.restart(0)
        run.recover([0])
        check(run.digests() == digests, "other bits after a death")
        floors.server.stop(None)


def test_waits():
    """The command says what it waits for while it waits, and status does so too, whatever the run's state is."""
    with Cluster() as c:
        start(c)
        session_run(c, 30)
        train(c, 30)
        c.wait_state("finished")
        slow = c.shards[1]
        slow.signal(signal.SIGSTOP)
        said = c.folder / "rewind.err"
        with said.open("wb") as err:
            command = subprocess.Popen([cluster.BIN / "shardfc", "rewind", "--scheduler", c.address, "--to-step", "12"],
                                       stdout=subprocess.PIPE, stderr=err, text=True)
        wait_until("the command to say what it waits for",
                   lambda: re.search(r"^rewind waits for shard \d+, which (checks|does not)", said.read_text(), re.M), 60,
                   context=lambda: said.read_text() + c.tails())
        check("waits for shard" in c.status().reason, c.status().reason)
        slow.signal(signal.SIGCONT)
        out, _ = command.communicate(timeout=60 * cluster.TIME_SCALE)
        check(command.returncode == 0 and "at step 12" in out, f"{command.returncode}: {out}{said.read_text()}")
        check(c.status().step == 12, f"{c.status()}")


def test_workers():
    """A run with a backbone and workers, whose data position follows from the step."""
    steps = 60
    with Cluster() as c:
        start(c)
        images(c, steps)
        c.wait_state("finished", 300)
        expected = end(c)
    with Cluster() as c:
        start(c)
        images(c, steps, "--rewind-window", "100")
        for at, to in ((20, 12), (30, 0), (steps, 45)):
            c.wait_step(at)
            c.ctl("rewind", "--to-step", to)
        c.start_workers(1, data=c.folder / "images")
        c.wait_state("finished", 300)
        compare(c, steps, expected)


def test_off():
    """Shards that write nothing down say so and are left as they are."""
    with Cluster() as c:
        start(c, "--durable", "off")
        session_run(c, 30)
        train(c, 10)
        wait_until("the lowest step", lambda: c.status().oldest_step == 10, 30)
        expect(c.ctl("rewind", "--to-step", "5", check=False), 2, "step 10")
        rewind(c, 10)
        train(c, 30)
        c.wait_state("finished")


def damage(path):
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))


def first_logged(shard):
    """The first step that is in the files of the log. Trimming deletes whole files, and later than `status` says."""
    return min((step for path in segments(shard) for _, step, _, _ in records(path)), default=0)


def newest_copies(folder):
    """{block: step} of the newest snapshots."""
    newest = {}
    for path in folder.glob("class-*.sfs"):
        block, step = path.stem.rsplit("-", 1)
        newest[block] = max(newest.get(block, 0), int(step))
    return newest


def commit_record(shard, step):
    """That of the scheduler, or None where the shard's log has none of this step."""
    for data in map(content, segments(shard)):
        for kind, of, at, _ in records_in(data):
            if (kind, of) == (2, step):
                incarnation, counter = struct.unpack_from("<QQ", data, at + 24)
                return pb.CommitRecord(step=step, round=pb.Attempt(incarnation=incarnation, counter=counter), apply=True)
    return None


def leads_to(c, step):
    """Every shard says that its disk leads to this step. Then it does until the run goes on."""
    now, record = c.status(), commit_record(c.shards[0], step)
    if record is None or any(s.step != now.step for s in now.shards):
        return False
    try:
        for shard in c.shards:
            c.shard_stub(shard.address).CheckRewind(pb.CheckRewindRequest(
                run_id=now.run_id, incarnation=now.incarnation, step=step, last_commit=record), timeout=60)
    except grpc.RpcError:  # a full log had to be trimmed behind it, or one is being trimmed
        return False
    return True


def needed_copies(c):
    """(block, step) where every disk leads to the step, and that of the first shard by this block's snapshots of up
    to it alone: no log goes back to the seed (another shard would give the steps that are missing), and as there is a
    later snapshot, no other of those steps comes. None: not yet."""
    if any(first_logged(shard) <= 1 for shard in c.shards):
        return None
    copies = newest_copies(c.shards[0].state / "run-1")
    block = max(copies, key=copies.get)
    return (block, copies[block] - 1) if leads_to(c, copies[block] - 1) else None


def train_until(c, what, condition, steps):
    """Trains step by step until condition() gives something, which does not hang on how fast anything is; returns
    (step, that)."""
    for step in range(1, steps):
        train(c, step)
        found = condition()
        if found:
            return step, found
    raise Failure(f"no {what} up to step {steps}\n{c.tails()}")


def test_damaged():
    """A shard whose disk doesn't lead back, which only shows when it is read, says so before any gives up what it
    has in memory: the run goes on as if nobody had asked."""
    steps = 70
    expected = undisturbed(steps)
    with Cluster() as c:
        start(c, *OFTEN, "--log-limit", "100K")
        session_run(c, steps, window=10)
        at, (block, to) = train_until(c, "block that needs its snapshots", lambda: needed_copies(c), steps - 10)
        damaged = 0
        for path in (c.shards[0].state / "run-1").glob(f"{block}-*.sfs"):
            if int(path.stem.rsplit("-", 1)[1]) <= to:
                damage(path)
                damaged += 1
        check(damaged, f"{block} has no snapshot of step {to} or before")
        expect(c.ctl("rewind", "--to-step", to, check=False), 2, block, "Nothing has changed", f"step {at}")
        check(c.status().step == at, "the run is where it was")
        train(c, steps)
        compare(c, steps, expected)


def test_lost():
    """Steps of the way back whose records are damaged come from the other shard; what both have lost, or what a
    dense block needs, is refused while nothing has changed."""
    steps, whole = 40, ("--recovery-target", "1h", "--log-limit", "64M")
    expected = undisturbed(steps)
    with Cluster() as c:
        start(c, *whole)
        session_run(c, steps)
        train(c, 20)
        train(c, 30, world=1)
        flip(c.shards[0], 7)
        flip(c.shards[1], 9)
        rewind(c, 20)
        for shard, step in zip(c.shards, (7, 9)):
            check(f"step {step} is not in this shard's log" in shard.stderr(), shard.stderr())
        train(c, 25, world=2)
        for shard in c.shards:
            flip(shard, 12)
        expect(c.ctl("rewind", "--to-step", "20", check=False), 2, "step 12: lost", "no other shard gives it",
               "Nothing has changed: the run is at step 25")
        check(c.status().step == 25, "the run is where it was")
        flip(c.shards[0], 12)
        rewind(c, 20)
        train(c, steps)
        compare(c, steps, expected)
    with Cluster() as c:
        start(c, *whole)
        images(c, 400)
        c.wait_step(20)
        c.ctl("pause")
        own = owners(c)
        at = wait_until("the pause", lambda: next((s.step for s in [c.status()] if s.state == "paused"), None), 30)
        flip(c.shards[own.index(True)], 10)
        expect(c.ctl("rewind", "--to-step", "15", check=False), 2, "step 10: its backbone gradient is lost",
               "Nothing has changed")
        check(c.status().step == at, "the run is where it was")


def near_batch(step, world, config):
    """The batches of all worlds differ a little, so that a wrong one is no more than other bits."""
    features, labels = batch(np.random.default_rng((SEED, 0, step)), config)
    noise = np.random.default_rng((SEED, world, step)).standard_normal(features.shape)
    return (features + np.float32(1e-3 * world) * noise.astype(np.float32)).astype(np.float32), labels


def train_near(c, to_step, world=0):
    session = Session(c)
    while session.step <= to_step:
        session.train_step(*near_batch(session.step, world, session.config))
        c.wait_step(session.step - 1)


def second_history(c, *extra):
    """To 60, back to 40, and to 55 another way. A copy of the first shard's folder of before the return."""
    start(c, *extra)
    session_run(c, 100)
    train_near(c, 40)
    train_near(c, 60, world=1)
    first = c.shards[0]
    first.kill()
    shutil.copytree(first.state / "run-1", c.folder / "before")
    c.restart_shard(first)
    wait_until("the rewind", lambda: try_rewind(c, 40), 60, context=c.tails)
    train_near(c, 55, world=2)
    return c.shards[0] if c.shards[0].state == first.state else c.shards[-1]


def blocks_run(c, *worlds):
    """A run of many blocks, trained to each step in another world."""
    start(c, "--recovery-target", "1h", "--log-limit", "64M")
    session_run(c, 60, classes=3000)
    for world, step in enumerate(worlds):
        train_near(c, step, world)


def truth(at, *worlds):
    with Cluster() as c:
        blocks_run(c, *worlds)
        return checkpoint(c, "truth", "--at-step", at)


def test_checkpoint():
    """A rewind beside a checkpoint: of a step that stays the command ends with its state, of one to come with the one
    that comes; where a step is taken anew with other batches it refuses, or has read nothing before, and never mixes
    both."""
    with Cluster() as c:
        blocks_run(c, 30)
        stays = stopped_in_the_middle(c, "stays", "--at-step", 12)
        rewind(c, 20)
        train_near(c, 30, world=1)
        stays.send_signal(signal.SIGCONT)
        told = made(end_of(stays))
        check(told == truth(12, 20), f"step 12: {told}")

        gone = stopped_in_the_middle(c, "gone", "--at-step", 25)
        rewind(c, 20)
        gone.send_signal(signal.SIGCONT)
        train_near(c, 30, world=2)
        out, said = gone.communicate(timeout=120)[0], gone.said()
        if gone.returncode == 0:  # it had read nothing before
            told = made(subprocess.CompletedProcess(gone.args, 0, out, said))
            check(told == checkpoint(c, "anew", "--at-step", 25), f"step 25: {told}")
        else:
            check(gone.returncode == 1 and "was rewound and has taken step 25 anew" in said, f"{gone.returncode}: {said}")
            check(not partial(c, "gone") and not (c.folder / "gone").exists(), "something of a refused checkpoint")

        late = begin(c, "late", "--at-step", 40)
        wait_until("the pins", lambda: all("of step 40 begins" in s.stderr() for s in c.shards), 30, context=c.tails)
        rewind(c, 20)
        train_near(c, 24, world=3)
        train_near(c, 45, world=4)
        told = made(end_of(late))
        check(told == checkpoint(c, "again", "--at-step", 40), f"step 40: {told}")
        told = checkpoint(c, "past", "--at-step", 22)
        check(told == truth(22, 20, 20, 20, 24), f"step 22: {told}")


def one_history(*extra):
    with Cluster() as c:
        start(c, *extra)
        session_run(c, 100)
        train_near(c, 40)
        train_near(c, 55, world=2)
        return c.state_digest()


def comes_back(c, shard, expected, what):
    """What the shard lacks comes from the other one."""
    shard = c.restart_shard(shard)
    wait_until(f"recovery after {what}", lambda: " recovered to step 55" in shard.stderr(), 60, context=c.tails)
    got = c.state_digest()
    check(got == expected, f"{what}: state {got}, undisturbed {expected}")
    return shard


def listed(shard, whole):
    """`shardfc log` of a shard that went from 60 back to 40 and on to 55 calls void what it gave up, and nothing else;
    whole: its whole log is there."""
    told = one_json(tool("shardfc", "log", "--json", "--records", shard.state / "run-1"))
    old = [r for r in told["records"] if r["void"]]
    commits = [r["step"] for r in told["records"] if r["type"] == "commit" and not r["void"]]
    check(commits == sorted(set(commits)) and commits[-1] >= 54, f"commits that count: {commits}")
    check(all(r["step"] > 40 and "came again" in r["why"] for r in old), f"void: {old}")
    check(told["recoverable"]["to"] in (54, 55) and told["problems"] == 0, f"{told}")
    if whole:
        check(commits[0] == 1 and set(range(41, 60)) <= {r["step"] for r in old}, f"void: {old}, counting: {commits}")


def test_given_up():
    """Records and snapshots of steps that were given up stay on the disk, or come back with an old copy of it:
    recovery never takes one of them for what is lost."""
    for extra in (("--recovery-target", "1h", "--log-limit", "64M"), OFTEN):
        expected = one_history(*extra)
        with Cluster() as c:
            shard = second_history(c, *extra)
            shard.kill()
            listed(shard, whole=extra != OFTEN)
            if extra != OFTEN:  # the whole log is there
                path, at = [(p, at) for p in segments(shard) for kind, step, at, _ in records(p)
                            if (kind, step) == (2, 41)][-1]
                data = bytearray(path.read_bytes())
                data[at + 67] ^= 1
                path.write_bytes(data)
                shard = comes_back(c, shard, expected, "a flipped bit in the commit of step 41")
                shard.kill()
            shutil.rmtree(shard.state / "run-1")
            shutil.copytree(c.folder / "before", shard.state / "run-1")
            shard = comes_back(c, shard, expected, "an old copy of the folder")
            if extra != OFTEN:
                said = re.search(r"lacks .*: the log ends at step 40: .* old copy.*; (\d+) of its records are of what the "
                                 "run gave up", shard.stderr())
                check(said and int(said.group(1)) > 0, shard.stderr())


def test_foreign():
    """The state folder of run 1 of another cluster, with the same configuration, is refused by all of its files."""
    with Cluster() as other, Cluster() as c:
        for cluster, world in ((other, 5), (c, 0)):
            start(cluster)
            session_run(cluster, 60)
            train(cluster, 20, world)
        victim = c.shards[0]
        other.shards[0].kill()
        victim.kill()
        run = victim.state / "run-1"
        for kind in ("*", "*.sfl", "log.limit"):
            shutil.rmtree(run)
            shutil.copytree(other.shards[0].state / "run-1", run)
            for path in run.iterdir():
                if not path.match(kind):
                    path.unlink()
            victim = c.restart_shard(victim)
            wait_until(f"a refusal of {kind}", lambda: "belongs to another run 1" in c.status().reason, 30, context=c.tails)
            victim.kill()


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok")


if __name__ == "__main__":
    main()
