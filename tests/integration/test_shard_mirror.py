#!/usr/bin/python3
"""Shards whose machine and disk are gone for good: their mirrors take their blocks over from their own disks, with the
bits of a run that nothing happened to.

    test_shard_mirror.py [sampled|dense|...]     default: all
A Python stand-in (standin.py) is the scheduler, so that each stage is met exactly.
"""
import os
import random
import signal
import sys

import grpc

from cluster import Cluster, pb, wait_until
from inputs import check
from standin import ENOMEM, ESTATE, EUNAVAILABLE, RUN, WAIT, Standin, code_of
from test_shard_moves import OFTEN, backbone, check_same, config


def covered(run, slot, lost, steps=True):
    """Waits until `slot` could take over what `lost` has, while training goes on."""
    def there():
        if steps:
            run.steps(1)
        return run.covers(slot, lost) is None
    wait_until(f"shard {slot} to mirror shard {lost}", there, 60,
               context=lambda: f"{run.covers(slot, lost)}\n{run.c.tails()}")


def all_covered(run):
    for lost in run.members():
        for slot in run.map.shards[lost].mirrors:
            covered(run, slot, lost)


def lose_all_but_one(c, options=(), mirrors=1, shards=3):
    with Cluster() as cluster:
        run = Standin(cluster, c, shards=shards, options=options, mirrors=mirrors)
        run.open()
        run.steps(7)
        while len(run.members()) > 1:
            all_covered(run)
            run.lose(run.members()[len(run.members()) // 2])
            check_same(run)
            run.steps(3)
            check_same(run)
        run.stop()


def test_seed():
    """Without any snapshot: the seed and the log of the mirror."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(), shards=2, mirrors=1)
        run.open()
        run.steps(5)
        check(run.covers(1, 0) is None, "a mirror of a fresh run lacks something")
        run.lose(0)
        check_same(run)
        run.steps(2)
        check_same(run)
        run.stop()


def test_sampled():
    lose_all_but_one(config(), OFTEN)


def test_dense():
    lose_all_but_one(config(momentum_mode="dense"), OFTEN)


def test_backbone():
    lose_all_but_one(backbone(momentum_mode="dense"), OFTEN)


def test_half():
    lose_all_but_one(backbone(log_dense_bf16=True, dtype="bf16", gemm="bf16", momentum_mode="dense"), OFTEN)


def test_adamw():
    lose_all_but_one(backbone(optimizer="adamw", momentum_mode="sampled", momentum=0.0, beta1=0.9, beta2=0.999,
                              epsilon=1e-8), OFTEN)


def test_two():
    """Two mirrors of each shard; two shards are lost at once, and of each one mirror is left."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(momentum_mode="dense"), shards=4, options=OFTEN, mirrors=2)
        run.open()
        run.steps(6)
        for lost in (1, 2):  # the mirrors of 1 are 2 and 3, those of 2 are 0 and 3
            covered(run, 3, lost)
        run.destroy(1)
        run.destroy(2)
        new, run.round = pb.BlockMap(), run.new_round()
        new.CopyFrom(run.map)
        new.version += 1
        for owners in (new.class_owner, new.dense_owner):
            for b, owner in enumerate(owners):
                owners[b] = 3 if owner in (1, 2) else owner
        for slot in (1, 2):
            new.shards[slot].address, new.shards[slot].shard = "", 0
        run.choose_mirrors(new)
        run.map = new
        run.abort()
        run.open_run(3, recover=True)
        run.set_map(0)
        run.steps(3)
        check_same(run)
        run.stop()


def test_restart():
    """A mirror that dies knows from its disk what it has; that of a shard that is lost meanwhile too."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(), shards=3, options=OFTEN, mirrors=1)
        run.open()
        run.steps(3)
        run.move(0, 2, class_blocks=[0], dense_blocks=[0])  # no mirror has had its gradients from the beginning
        all_covered(run)
        for slot in run.members():
            run.restart(slot)
            run.recover([slot])
            for lost in run.members():
                for mirror in run.map.shards[lost].mirrors:
                    check(run.covers(mirror, lost) is None, f"{mirror} of {lost}: {run.covers(mirror, lost)}")
        mirror = run.map.shards[2].mirrors[0]
        run.destroy(2)
        run.restart(mirror)  # power failure: both
        run.adopt(2)
        check_same(run)
        run.steps(2)
        check_same(run)
        run.stop()


def test_moves():
    """Blocks that move between mirrored shards: to the mirror itself, and away; then each is lost."""
    for lost in (0, 1, 2):
        with Cluster() as cluster:
            run = Standin(cluster, backbone(momentum_mode="dense"), shards=3, options=OFTEN, mirrors=1)
            run.open()
            run.steps(4)
            run.move(0, 1, class_blocks=[0], dense_blocks=[0])  # 1 mirrors 0
            run.move(1, 0, class_blocks=[1], dense_blocks=[1])  # and now what it had itself
            run.move(2, 1, class_blocks=[2])
            check_same(run)
            all_covered(run)
            run.lose(lost)
            run.steps(2)
            check_same(run)
            third = run.join()
            all_covered(run)
            run.lose([k for k in run.members() if k != third][0])
            run.steps(1)
            check_same(run)
            run.stop()


def test_rewind():
    """Copies of steps that were given up don't count; new ones do."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(), shards=2, options=OFTEN, mirrors=1)
        run.open()
        run.steps(12)
        all_covered(run)
        back = run.step - 4
        run.rewind(back)
        run.steps(1)
        all_covered(run)
        run.lose(0)
        check_same(run)
        run.steps(2)
        check_same(run)
        run.stop()


def test_full_log():
    """Logs that hold a few steps only: copies come as often as that needs, the run never stands still, and the log
    alone leads to nothing."""
    for limit, steps in (("200K", 60), ("24K", 20)):
        with Cluster() as cluster:
            run = Standin(cluster, backbone(momentum_mode="dense"), shards=3, options=("--log-limit", limit), mirrors=1)
            run.open()
            for _ in range(2):
                run.steps(steps)
                all_covered(run)
                lost = run.members()[0]
                covered(run, run.map.shards[lost].mirrors[0], lost)  # last: its log went on while others were looked at
                run.lose(lost)
                check_same(run)
                run.steps(3)
                check_same(run)
            run.stop()


def refused(run, slot, lost, code, words):
    e = run.covers(slot, lost, [slot])
    check(e is not None and code_of(e) == code and words in e.details(), f"not refused ({words}): {e}")


def test_words():
    """Whether a shard could take over is asked beforehand: of its disk, and of its memory."""
    c = config(classes=60000, block_size=8192, dim=128, sample_ppm=1000)  # blocks of 8 MiB
    with Cluster() as cluster:
        run = Standin(cluster, c, shards=3, options=OFTEN + ("--memory", "75M"), mirrors=1)
        run.open()
        run.steps(3)
        refused(run, 1, 0, ENOMEM, "but may use 75.0 MiB")
        refused(run, 2, 0, ESTATE, "neither has nor mirrors")
        run.steps(1)
        run.stop()
    with Cluster() as cluster:
        run = Standin(cluster, config(), shards=2, mirrors=1)
        run.open()
        run.steps(4)
        check(run.covers(1, 0) is None, run.covers(1, 0))
        for log in run.processes[1].state.glob("run-7/log-*.sfl"):
            log.write_bytes(b"x" * log.stat().st_size)
        e = run.covers(1, 0)  # from the seed on nothing leads anywhere; the owner still has the steps, and gives them
        check(e is None, f"{e}")
        run.processes[0].kill()
        refused(run, 1, 0, EUNAVAILABLE, "step 1")


def place_is_taken(run, slot):
    """Whether somebody copies for a mirror from there; nothing is left of the question."""
    request = dict(run_id=RUN, copy=99)
    try:
        run.stub(slot).BeginCopy(pb.BeginCopyRequest(kind=pb.CLASS_BLOCK, untracked=True, **request), timeout=WAIT)
    except grpc.RpcError as e:
        check(code_of(e) == EUNAVAILABLE and "as many copies" in e.details(), f"{e}")
        return True
    run.stub(slot).EndCopy(pb.EndCopyRequest(**request), timeout=WAIT)
    return False


def test_dies():
    """A mirror that dies while it copies, and is given up, leaves the place of its copy to the next one at once."""
    with Cluster() as cluster:
        run = Standin(cluster, backbone(momentum_mode="dense"), shards=3, options=OFTEN, mirrors=1)
        run.open()
        check(list(run.map.shards[0].mirrors) == [1], f"{run.map.shards}")

        def caught():
            run.steps(1)
            run.processes[1].signal(signal.SIGSTOP)
            if place_is_taken(run, 0):
                return True
            run.processes[1].signal(signal.SIGCONT)
            return False
        covered(run, 2, 1)
        wait_until("the mirror to be in the middle of a copy", caught, 120, pause=0, context=cluster.tails)
        run.lose(1)
        check(list(run.map.shards[0].mirrors) == [2], f"{run.map.shards}")
        covered(run, 2, 0)
        check("has been silent" not in run.processes[0].stderr(), "only its lease ended the copy")
        run.stop()


def test_leaves():
    """A mirror whose run is closed while it copies gives the place of its copy back at once."""
    with Cluster() as cluster:
        c = config(classes=4096, block_size=2048, dim=256)  # four pieces each, of which the second waits for a long time
        run = Standin(cluster, c, shards=2, options=OFTEN + ("--snapshot-rate", "64K"), mirrors=1)
        run.open()

        def copies():
            run.steps(1)
            return place_is_taken(run, 0)
        wait_until("a mirror to copy", copies, 60, context=cluster.tails)
        run.stub(1).CloseRun(pb.CloseRunRequest(run_id=RUN, incarnation=run.incarnation), timeout=WAIT)
        wait_until("the place of its copy to be free", lambda: not place_is_taken(run, 0), 60, context=cluster.tails)
        check("has been silent" not in run.processes[0].stderr(), "only its lease ended the copy")
        run.stop()


def some_move(run, chance):
    source, destination = chance.sample(run.members(), 2)
    some = lambda owners: sorted(b for b, k in enumerate(owners) if k == source and chance.random() < 0.5)
    blocks = dict(class_blocks=some(run.map.class_owner), dense_blocks=some(run.map.dense_owner))
    if any(blocks.values()):
        run.move(source, destination, **blocks)


def some_loss(run, chance):
    """Now and then its mirror dies with it, but keeps its disk."""
    lost = chance.choice(run.members())
    mirrors = list(run.map.shards[lost].mirrors)
    for slot in mirrors:
        covered(run, slot, lost)
    run.destroy(lost)
    if chance.random() < 0.3:
        run.restart(chance.choice(mirrors))
    run.adopt(lost)


def some_restart(run, chance):
    slot = chance.choice(run.members())
    run.restart(slot)
    run.recover([slot])


def test_chance():
    """Whatever comes after whatever. SFC_SEED is the first seed, SFC_SEEDS how many."""
    first, count = int(os.environ.get("SFC_SEED", "1")), int(os.environ.get("SFC_SEEDS", "2"))
    for seed in range(first, first + count):
        chance = random.Random(seed)
        options = chance.choice([(), OFTEN, ("--log-limit", "60K"), ("--log-limit", "24K")])
        c = chance.choice([backbone(), backbone(momentum_mode="dense"), config(momentum_mode="dense")])
        done = []
        with Cluster() as cluster:
            run = Standin(cluster, c, shards=3, options=options, mirrors=chance.choice((1, 2)))
            run.open()
            run.steps(1)
            for _ in range(8):
                members = len(run.members())
                what = chance.choice(["steps", "move", "restart"] + ["lose"] * 2 * (members > 2) + ["join"] * (members < 5))
                done.append(what)
                print(f"seed {seed}: {done}", flush=True)
                {"steps": lambda: run.steps(chance.randrange(1, 12)), "move": lambda: some_move(run, chance),
                 "restart": lambda: some_restart(run, chance), "lose": lambda: some_loss(run, chance),
                 "join": run.join}[what]()
                check_same(run)
            run.steps(2)
            check_same(run)
            run.stop()


TESTS = {name[5:]: f for name, f in list(globals().items()) if name.startswith("test_")}

if __name__ == "__main__":
    for name in sys.argv[1:] or TESTS:
        TESTS[name]()
        print(f"{name}: ok", flush=True)
