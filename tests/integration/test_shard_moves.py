#!/usr/bin/python3
"""Blocks go from one shard to another while training goes on, shards join and leave, and whoever dies at whatever stage,
every block ends with the bits of a run that nothing happened to.

    test_shard_moves.py [sampled|dense|...]     default: all
A Python stand-in (standin.py) is the scheduler, so that each stage is met exactly.
"""
import hashlib
import random
import signal
import sys
import time

import grpc

from cluster import TIME_SCALE, Cluster, Failure, pb, run_config, wait_until
from inputs import check, expect, tool
from standin import ENOMEM, ENOTFOUND, ESTALE, ESTATE, EINVAL, WAIT, Standin, code_of

# Copies of every block every few steps, so that a crash finds snapshots of all ages.
OFTEN = ("--recovery-target", "50ms")


def config(**more):
    fields = dict(classes=1500, dim=24, block_size=256, sample_ppm=200000, steps=1000, global_batch=16, micro_batch=8,
                  clip=0.0)
    fields.update(more)
    return run_config(**fields)


_undisturbed = {}


def undisturbed(c, steps):
    """Digests after so many steps of a run of one shard that nothing happens to."""
    key = c.SerializeToString(deterministic=True), steps
    if key not in _undisturbed:
        with Cluster() as cluster:
            run = Standin(cluster, c, shards=1)
            run.open()
            run.steps(steps)
            _undisturbed[key] = run.digests(), run.dx
    return _undisturbed[key]


def check_same(run):
    expected, dx = undisturbed(run.config, run.step)
    got = run.digests()
    check(got == expected, f"step {run.step}: other bits in {[k for k in expected if got.get(k) != expected[k]]}")
    check(run.dx == dx, f"step {run.step}: other gradients of the features")


def refused(code, words, call):
    try:
        call()
    except grpc.RpcError as e:
        check(code_of(e) == code, f"status {code_of(e)}, not {code}: {e.details()}")
        check(words in e.details(), f"no {words!r} in: {e.details()}")
        return
    raise Failure(f"not refused ({words})")


def wander(c):
    """1 -> 2 -> 3 -> 2 shards, blocks going around."""
    with Cluster() as cluster:
        run = Standin(cluster, c, shards=1, options=OFTEN)
        run.open()
        run.steps(3)
        second = run.join()
        check_same(run)
        run.move(0, second, class_blocks=[0, 2, 5])
        run.steps(3)
        check_same(run)
        third = run.join()
        run.move(second, third, class_blocks=[2])
        run.move(0, third, class_blocks=[1, 3, 4])
        run.steps(2)
        check_same(run)
        run.leave(0)  # it owned nothing any more
        run.steps(2)
        run.move(third, second, class_blocks=[1, 2])
        run.steps(2)
        check_same(run)
        for slot in (second, third):  # each from its own disk
            run.restart(slot)
            run.recover([slot])
            run.steps(1)
        check_same(run)
        run.stop()


def test_sampled():
    wander(config())


def test_dense():
    wander(config(momentum_mode="dense"))


def backbone(**more):
    """With three dense blocks and statistics; their gradients come from the stand-in."""
    segments = [pb.DenseSegment(name="w", shape=[700], init_std=0.1),
                pb.DenseSegment(name="b", shape=[60], role=pb.DenseSegment.WEIGHT_NO_DECAY),
                pb.DenseSegment(name="mean", shape=[140], role=pb.DenseSegment.STATISTIC)]
    return config(backbone="tiny", segments=segments, dense_block_size=300, **more)


def wander_dense(c, *options):
    """Dense blocks go too, and come back; each log has steps of several sets of them."""
    with Cluster() as cluster:
        run = Standin(cluster, c, shards=2, options=options)
        run.open()
        run.steps(3)
        run.move(0, 1, class_blocks=[0], dense_blocks=[0])
        run.steps(1)
        check_same(run)
        run.move(1, 0, class_blocks=[1], dense_blocks=[1])
        for slot in (0, 1):
            run.restart(slot)
            run.recover([slot])
        run.steps(2)
        check_same(run)
        third = run.join()
        run.move(0, third, dense_blocks=[1, 2])  # 0 has no dense block any more
        run.steps(1)
        run.move(1, third, class_blocks=[3], dense_blocks=[0])
        for slot in (third, 0, 1):
            run.restart(slot)
            run.recover([slot])
            run.steps(1)
        check_same(run)
        run.move(third, 0, dense_blocks=[0, 2])
        run.steps(2)
        run.restart(third)
        run.recover([third])
        run.steps(1)
        check_same(run)


def test_backbone():
    wander_dense(backbone(), *OFTEN)
    wander_dense(backbone())  # no snapshot but those of moves: from the seed, through steps of several sets of blocks


def test_backbone_half():
    wander_dense(backbone(log_dense_bf16=True, momentum_mode="dense"))


def test_adamw():
    wander(config(optimizer="adamw", momentum_mode="sampled", momentum=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8))


def test_half():
    wander(config(dtype="bf16", gemm="bf16", momentum_mode="dense"))


BLOCKS = dict(class_blocks=[0, 2, 4])
STAGES = ("begun", "close", "taken", "decided", "set")


def disturb(run, victim, stage, **blocks):
    """One move from 0 to 1, in which the victim dies at this stage. What a scheduler does then."""
    request = run.fetch_request(0, **blocks, bytes_per_s=20000 if stage == "begun" else 0)
    if stage == "begun":
        check(not run.fetch_once(1, request), "a slow move was there at once")
        run.one_step()
    else:
        while not run.fetch_once(1, request):
            run.one_step()
    if stage in ("taken", "decided", "set"):
        run.take(1, request)
    if stage in ("decided", "set"):  # the map is durable
        run.map = run.map_with(1, request)
        if stage == "set":
            run.set_map(victim, request.move)
    run.restart(victim)
    run.recover([victim])
    if stage in ("decided", "set"):
        for slot in run.members():
            if slot != victim:
                run.set_map(slot, request.move)
        return True
    for slot in (0, 1):
        run.cancel(slot, request)
    return False


def killed(c, **blocks):
    for victim in (0, 1):
        for stage in STAGES:
            with Cluster() as cluster:
                run = Standin(cluster, c, shards=2, options=OFTEN)
                run.open()
                run.steps(4)
                moved = disturb(run, victim, stage, **blocks)
                run.steps(2)
                check_same(run)
                if not moved:
                    run.move(0, 1, **blocks)
                run.steps(1)
                run.move(1, 0, **blocks)  # and back
                run.restart(1 - victim)
                run.recover([1 - victim])
                run.steps(1)
                check_same(run)


def test_killed():
    killed(config(momentum_mode="dense"), **BLOCKS)


def test_killed_backbone():
    killed(backbone(), **BLOCKS, dense_blocks=[0, 2])


def test_words():
    """What can't be done is refused with a reason, and leaves nothing behind."""
    with Cluster() as cluster:
        run = Standin(cluster, config(momentum_mode="dense"), shards=2, options=OFTEN)
        run.open()
        run.steps(3)
        fetch = run.stub(1).FetchBlocks
        wrong = run.fetch_request(0, class_blocks=[1])
        refused(EINVAL, "has block 1 already", lambda: fetch(wrong))
        wrong.source = 1
        refused(EINVAL, "no other shard", lambda: fetch(wrong))
        wrong.source, wrong.class_blocks[:] = 0, [4, 2]
        refused(EINVAL, "not ascending", lambda: fetch(wrong))
        wrong.class_blocks[:] = [0, 99]
        refused(EINVAL, "class_blocks[1]: 99", lambda: fetch(wrong))
        request = run.fetch(0, 1, **BLOCKS)
        late = pb.FetchBlocksRequest()
        late.CopyFrom(request)
        late.move = 1
        refused(ESTALE, "older", lambda: fetch(late))
        take = pb.TakeBlocksRequest(run_id=7, incarnation=1, move=request.move, step=run.step - 1)
        refused(ESTATE, "not at step", lambda: run.stub(1).TakeBlocks(take))
        new = run.map_with(1, request)
        old, run.map = run.map, new
        refused(ESTATE, "not staged", lambda: run.set_map(1, request.move))
        run.map = old
        run.take(1, request)
        run.steps(1)  # the batch was given up: what is staged is of another step now
        run.map = new
        refused(ESTATE, "not staged", lambda: run.set_map(1, request.move))
        run.map = old
        run.cancel(1, request)
        run.cancel(0, request)
        refused(ENOTFOUND, "not here", lambda: run.take(1, request))
        run.move(0, 1, **BLOCKS)
        run.steps(2)
        copy = pb.BeginCopyRequest(run_id=7, copy=5, kind=pb.CLASS_BLOCK, block=0)
        refused(ENOTFOUND, "not one of this shard's", lambda: run.stub(0).BeginCopy(copy))
        refused(ENOTFOUND, "map version 2", lambda: run.read(0, pb.CLASS_BLOCK, 0, pb.VALUES, 10))
        check_same(run)


def test_ends():
    """Shards that end in the middle of a move, at each stage, end at once and leave nothing over; so does a run."""
    for stage in ("begun", "close", "taken"):
        for close in (False, True):
            with Cluster() as cluster:
                run = Standin(cluster, backbone(momentum_mode="dense"), shards=2, options=OFTEN)
                run.open()
                run.steps(2)
                blocks = dict(class_blocks=[0, 2, 4], dense_blocks=[0])
                if stage == "begun":
                    check(not run.fetch_once(1, run.fetch_request(0, **blocks, bytes_per_s=20000)), "at once")
                else:
                    request = run.fetch(0, 1, **blocks)
                    run.take(1, request) if stage == "taken" else None
                for slot in run.members() if close else ():
                    run.stub(slot).CloseRun(pb.CloseRunRequest(run_id=7, incarnation=1), timeout=30)
                run.stop()


def test_memory():
    """Blocks that don't fit are refused with the numbers, and the run goes on."""
    c = config(classes=60000, block_size=8192, dim=128)
    with Cluster() as cluster:
        run = Standin(cluster, c, shards=1)
        run.open()
        run.steps(1)
        slot = run.join("--memory", "40M", train=1)
        request = run.fetch_request(0, class_blocks=[0, 1, 2, 3, 4])
        refused(ENOMEM, "but may use 40.0 MiB", lambda: run.stub(slot).FetchBlocks(request))
        run.steps(1)
        check(run.step == 3, "the run stands still")


def test_lost_source():
    """A source that is gone for good: the destination says so, and has nothing left of it."""
    with Cluster() as cluster:
        run = Standin(cluster, config(), shards=2, options=OFTEN)
        run.open()
        run.steps(2)
        request = run.fetch_request(0, **BLOCKS, bytes_per_s=20000)
        check(not run.fetch_once(1, request), "a slow move was there at once")
        run.processes[0].kill()

        def gives_up():
            try:
                run.fetch_once(1, request)
            except grpc.RpcError as e:
                return e
            return None
        error = wait_until("the move to fail", gives_up, 40)
        check(code_of(error) == ESTATE and "which the blocks come from" in error.details(), error)

        def left():
            return [p.name for p in run.processes[1].state.glob("run-7/class-*.sfs")
                    if int(p.name.split("-")[1]) in BLOCKS["class_blocks"]]
        wait_until("snapshots of a move that failed to go", lambda: not left(), 10, context=left)


def pinned_digest(run, slot, pin, step, kind, block, part, count):
    def ready():
        reply = run.stub(slot).ReadBlock(pb.ReadBlockRequest(
            run_id=7, step=step, kind=kind, block=block, part=part, offset=0, count=count, pin=pin), timeout=30)
        return None if reply.making else reply.payload
    return hashlib.sha256(wait_until(f"block {block} of the pinned step", ready, 30)).hexdigest()


def move_between_steps(run, source, destination, **blocks):
    request = run.fetch(source, destination, train=False, **blocks)
    run.take(destination, request)
    run.flip(run.map_with(destination, request), request.move)


def test_pins():
    """A step to come is pinned anew when blocks move, one that is applied is read from the shards that had the blocks
    then; both from snapshots and a log that has steps of several sets of dense blocks."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(momentum_mode="dense"), shards=2)
        run.open()
        run.steps(3)
        pin = pb.PinStepRequest(run_id=7, pin=55, step=run.step + 3)
        pinned = lambda: all(run.stub(slot).PinStep(pin, timeout=WAIT).pinned for slot in (0, 1))
        check(pinned(), "not pinned")
        blocks = dict(class_blocks=[0, 2, 4], dense_blocks=[0])
        move_between_steps(run, 0, 1, **blocks)
        check(pinned(), "not pinned anew")  # until then a shard doesn't know whether it can make the step
        run.steps(3)
        step, expected = run.step, run.digests()
        check(pinned(), "not pinned any more")
        owners = run.map.class_owner[:], run.map.dense_owner[:]
        move_between_steps(run, 1, 0, **blocks)
        check(pinned(), "not pinned once it has moved back")
        run.steps(3)  # so that nothing comes from memory
        c = run.config
        for b, slot in enumerate(owners[0]):
            rows = min(c.block_size, c.classes - b * c.block_size)
            for part, count in ((pb.VALUES, rows * c.dim), (pb.MOMENTUM, rows * c.dim), (pb.LAST_STEP, rows)):
                got = pinned_digest(run, slot, 55, step, pb.CLASS_BLOCK, b, part, count)
                check(got == expected[pb.CLASS_BLOCK, b, part], f"class block {b}, part {part}")
        for b, slot in enumerate(owners[1]):
            got = pinned_digest(run, slot, 55, step, pb.DENSE_BLOCK, b, pb.VALUES, run.dense_length(b))
            check(got == expected[pb.DENSE_BLOCK, b, pb.VALUES], f"dense block {b}")
        read = pb.ReadBlockRequest(run_id=7, step=step, kind=pb.CLASS_BLOCK, block=2, count=1, pin=55)
        refused(ESTALE, "when the step was pinned", lambda: run.stub(0).ReadBlock(read))
        for slot in (0, 1):
            run.stub(slot).UnpinStep(pin, timeout=30)
        folders = [p.state for p in run.processes]
        run.stop()
        for folder in folders:  # segments of both sets are whole
            expect(tool("shardfc", "log", folder), 0)


def begin_read(run, slot, pin, step, block):
    read = pb.ReadBlockRequest(run_id=7, step=step, kind=pb.CLASS_BLOCK, block=block, part=pb.VALUES, count=1, pin=pin)
    return run.stub(slot).ReadBlock.future(read, timeout=WAIT)


def stop_somehow(run, request, chance, how):
    """Without waiting for one before the other: 0, 1: closed; 2: cancelled; then, or 3: stopped."""
    calls = []
    order = chance.sample((0, 1), 2)
    if how < 2:
        calls = [run.stub(slot).CloseRun.future(pb.CloseRunRequest(
            run_id=7, incarnation=run.incarnation), timeout=WAIT) for slot in order]
    elif how == 2:
        calls = [run.stub(1).CancelMove.future(pb.CancelMoveRequest(
            run_id=7, incarnation=run.incarnation, move=request.move), timeout=WAIT)]
    for slot in order:
        run.processes[slot].signal(signal.SIGTERM)
    for call in calls:
        call.exception()
    run.stop()


def test_stops():
    """Shards are closed or stopped at any moment of a move and of the reads of a pinned step, and end by themselves."""
    for seed in range(16):
        chance = random.Random(seed)
        with Cluster() as cluster:
            run = Standin(cluster, config(momentum_mode="dense", classes=48000, dim=64, block_size=8192), shards=2)
            run.open()
            run.steps(3)
            pin = pb.PinStepRequest(run_id=7, pin=55, step=run.step)
            for slot in (0, 1):
                check(run.stub(slot).PinStep(pin, timeout=WAIT).pinned, f"seed {seed}: not pinned")
            run.steps(2)  # so that the blocks are made from snapshots and the log
            request = run.fetch_request(0, class_blocks=[0, 2, 4])
            fetches = [run.stub(1).FetchBlocks.future(request, timeout=WAIT)]
            reads = [begin_read(run, slot, 55, pin.step, slot) for slot in (0, 1)]
            time.sleep(chance.random() * 0.1 * TIME_SCALE)
            stop_somehow(run, request, chance, seed % 4)
            for call in fetches + reads:
                call.exception()  # whatever it ends with, it ends


def test_rewind():
    """Back to a step after the move: through steps of several sets of blocks. To one before it there is no way: the
    destination has no state of that time, and says so while nothing has changed yet."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(momentum_mode="dense"), shards=2, options=OFTEN)
        run.open()
        run.steps(4)
        before = run.step
        run.steps(2)
        run.move(0, 1, class_blocks=[0, 2], dense_blocks=[2])
        run.steps(2)
        after = run.step
        run.move(1, 0, class_blocks=[1], dense_blocks=[1])
        run.steps(3)
        last = run.step
        refused(ENOTFOUND, "its disk leads to step", lambda: run.check_rewind(1, before))
        refused(ENOTFOUND, "its disk leads to step", lambda: run.check_rewind(0, after - 1))
        run.steps(3)
        run.rewind(last)
        expected, _ = undisturbed(run.config, last)
        check(run.digests() == expected, "other bits after a rewind")
        run.steps(3)
        check_same(run)
        run.stop()


def test_lost_map():
    """A shard that lives and has not got SetMap (or has not got its blocks any more) is opened anew with the map."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(momentum_mode="dense"), shards=2, options=OFTEN)
        run.open()
        run.steps(3)
        for source, destination, late in ((0, 1, 1), (1, 0, 1)):
            request = run.fetch(source, destination, **BLOCKS, dense_blocks=[0])
            run.take(destination, request)
            run.flip(run.map_with(destination, request), request.move, but=[late])
            run.recover([late])
            run.steps(2)
            check_same(run)
        run.stop()


def test_scheduler():
    """A scheduler that restarts: what is staged stays for its SetMap, and ends with its plan."""
    with Cluster() as cluster:
        run = Standin(cluster, config(momentum_mode="dense"), shards=2, options=OFTEN)
        run.open()
        run.steps(2)
        request = run.fetch(0, 1, **BLOCKS)
        run.take(1, request)
        run.incarnation += 1
        run.abort()
        run.flip(run.map_with(1, request), request.move)
        run.steps(2)
        check_same(run)
        request = run.fetch(1, 0, **BLOCKS)
        run.take(0, request)
        run.incarnation += 1
        run.abort()
        run.steps(1)
        refused(ENOTFOUND, "not here", lambda: run.take(0, request))
        run.move(1, 0, **BLOCKS)
        run.steps(1)
        check_same(run)


TESTS = {name[5:]: f for name, f in list(globals().items()) if name.startswith("test_")}

if __name__ == "__main__":
    for name in sys.argv[1:] or TESTS:
        TESTS[name]()
        print(f"{name}: ok", flush=True)
