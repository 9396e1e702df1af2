#!/usr/bin/python3
"""Checkpoints that don't hold the training, and runs that go on from them.

    test_checkpoint.py [sampled|dense|half|split|adamw|goes_on|killed|client|silent|range|full|damaged|shards|epoch ...]

Default: all.
"""
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import grpc

import cluster
from cluster import Cluster, pb, wait_until
from inputs import check, expect, make_images, one_json, small_run, tool
from test_lost_log import flip

STEPS, EARLY, LATE = 40, 7, 23
MODES = {
    "sampled": ("--momentum-mode", "sampled"),
    "dense": ("--momentum-mode", "dense"),
    "half": ("--dtype", "bf16", "--momentum-mode", "dense"),
    "split": ("--gemm", "bf16", "--momentum-mode", "sampled"),
    "adamw": ("--optimizer", "adamw", "--lr", "2e-3", "--weight-decay", "0.1"),
}
MINUTE = 60 * cluster.TIME_SCALE


def begin(c, name, *extra):
    """`shardfc checkpoint --out NAME` beside the test."""
    command = [cluster.BIN / "shardfc", "checkpoint", "--scheduler", c.address, "--out", c.folder / name, "--json",
               *extra]
    with open(c.folder / f"{name}.err", "wb") as err:
        process = subprocess.Popen([str(a) for a in (*cluster.ENDS_WITH_US, *command)],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, text=True)
    process.said = (c.folder / f"{name}.err").read_text
    return process


def end(process):
    out, _ = process.communicate(timeout=2 * MINUTE)
    return expect(subprocess.CompletedProcess(process.args, process.returncode, out, process.said()), 0)


def made(done):
    told = one_json(done)
    return told["step"], told["digest"]


def checkpoint(c, name, *extra):
    return made(c.ctl("checkpoint", "--out", c.folder / name, "--json", *extra, check=False))


def partial(c, name):
    """The folder that a checkpoint is being written to."""
    return next(iter(c.folder.glob(f"{name}.partial-*")), None)


def held_digests(data, steps, *mode):
    """What the shards hold when the run stands still: they keep no log here, and the command says so."""
    digests = {}
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, "--durable", "off")
        c.ctl("create", *small_run(data, STEPS), *mode)
        asked = [begin(c, f"held{step}", "--at-step", step) for step in steps]
        wait_until("the holds", lambda: all(p.poll() is None for p in asked) and c.status().state, 10)
        # a hold before there is a worker can't come too late
        holds = [c.stub.Hold(pb.HoldRequest(at_step=step), timeout=MINUTE) for step in steps]
        c.start_worker(data=data)
        for step, process, hold in zip(steps, asked, holds):
            done = end(process)
            check("stands still" in done.stderr and "--durable off" in done.stderr, f"not said: {done.stderr}")
            digests[step] = made(done)
            c.release(hold)
    return digests


def equal(name):
    """The same digests as those of a run that stood still: of a step in the past, from the seed and from
    snapshots, of one in the future, of a finished run, and of its end."""
    mode = MODES[name]
    with Cluster() as c:
        data = make_images(c.folder / "images")
        truth = held_digests(data, (EARLY, LATE, STEPS), *mode)
        c.start_scheduler()
        # one shard sweeps without a pause, the other has no snapshots at all
        c.start_shard("--recovery-target", "10ms")
        c.start_shards(1)
        c.ctl("create", *small_run(data, STEPS), *mode)
        future = begin(c, "late", "--at-step", LATE)
        wait_until("the pins", lambda: all(f"step {LATE} begins" in s.stderr() for s in c.shards), 20,
                   context=c.tails)
        c.start_worker(data=data)
        check(made(end(future)) == truth[LATE], f"step {LATE}, asked for before: not {truth[LATE]}")
        c.wait_state("finished")
        check(checkpoint(c, "end") == truth[STEPS], f"the end: not {truth[STEPS]}")
        now = c.ctl("checkpoint", "--out", c.folder / "now", "--json", check=False)
        check(made(now) == truth[STEPS] and "stands still" not in now.stderr, f"{now}")
    with Cluster() as c:  # everything from the seed
        c.start_scheduler()
        c.start_shards(2)
        c.ctl("create", *small_run(data_again(c), STEPS), *mode)
        c.start_worker(data=c.folder / "images")
        c.wait_state("finished")
        for step in (EARLY, LATE):
            check(checkpoint(c, f"at{step}", "--at-step", step) == truth[step], f"step {step}: not {truth[step]}")
        verify(c, f"at{LATE}", truth[LATE])


def data_again(c):
    return make_images(c.folder / "images")


def verify(c, name, expected):
    check(made(tool("shardfc", "verify", c.folder / name, "--json")) == expected, f"verify {name}")


BLOCKS = 48  # of the run below, with its history


def running(c):
    """A run of many blocks that goes on for ever, and its truth at any step."""
    return c.create_run(classes=3000, block_size=64, steps=10**6, dim=16, momentum_mode="dense")


def stopped_in_the_middle(c, name, *extra):
    """A checkpoint that has begun to write and stands there. One that has ended before it is stopped is made again."""
    def stopped():
        process = begin(c, name, *extra)
        wait_until("a checkpoint to be written", lambda: partial(c, name) or process.poll() is not None, 60, pause=0.001,
                   context=c.tails)
        process.send_signal(signal.SIGSTOP)
        folder = partial(c, name)
        if folder is not None and len(list(folder.iterdir())) < BLOCKS - 8:
            return process
        process.send_signal(signal.SIGCONT)
        end(process)
        shutil.rmtree(c.folder / name)
        return None
    return wait_until("a checkpoint that stands in the middle", stopped, 60, context=c.tails)


def commits_more(c, count):
    """Waits until the run has committed so many further steps."""
    return c.wait_step(c.status().step + count).step


def truth_of(step):
    """Digest of the step of the run above in a cluster that nothing disturbs."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1, "--durable", "off")
        running(c)
        hold = c.stub.Hold(pb.HoldRequest(at_step=step), timeout=MINUTE)
        c.start_worker()
        told = checkpoint(c, "truth", "--at-step", step)
        c.release(hold)
        return told


def test_goes_on():
    """Steps are committed while a checkpoint is being written, and it has the state of its step all the
    same."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        running(c)
        c.start_worker()
        c.wait_step(5)
        process = stopped_in_the_middle(c, "some")
        commits_more(c, 10)
        check(partial(c, "some") is not None, "the checkpoint ended without its command")
        process.send_signal(signal.SIGCONT)
        told = made(end(process))
        check(c.status().step >= told[0] + 10 and c.status().state == "running", f"{told}: {c.status()}")
        check(told == truth_of(told[0]), f"{told} is not the state of its step")


def test_killed():
    """A shard dies while a checkpoint is being made, the scheduler too: the command says so, waits, and
    ends with the state of its step."""
    with Cluster() as c:
        c.start_scheduler()
        shards = c.start_shards(2)
        running(c)
        c.start_worker()
        c.wait_step(20)
        process = stopped_in_the_middle(c, "some", "--at-step", 12)
        shards[1].kill()
        c.scheduler.kill()
        process.send_signal(signal.SIGCONT)
        wait_until("the command to say so", lambda: "does not answer" in process.said(), 60, context=process.said)
        c.start_scheduler()
        c.restart_shard(shards[1])
        told = made(end(process))
        commits_more(c, 3)
        verify(c, "some", told)
        check(told == truth_of(12), f"{told} is not the state of its step")


def test_client():
    """A command that dies leaves a pin that ends by itself, and a folder that the next one removes."""
    with Cluster() as c:
        c.start_scheduler()
        shards = c.start_shards(2)
        running(c)
        c.start_worker()
        c.wait_step(5)
        process = stopped_in_the_middle(c, "some")
        left = partial(c, "some")
        second = c.ctl("checkpoint", "--out", c.folder / "second", check=False)
        expect(second, 1, "another checkpoint")
        check(not partial(c, "second") and not (c.folder / "second").exists(), "something of a refused checkpoint")
        process.kill()
        process.wait()
        foreign = c.folder / "mine.partial-1"
        foreign.mkdir()
        (foreign / "notes").write_text("not a checkpoint's")

        def again():
            done = c.ctl("checkpoint", "--out", c.folder / "again", check=False)
            return done if done.returncode == 0 else None
        done = wait_until("the pin to end", again, 60, pause=0.5, context=c.tails)
        check(left.name in done.stderr and not left.exists(), f"{left} is still there: {done.stderr}")
        check(foreign.exists(), "a folder that is not a checkpoint's was removed")
        check(all("nobody has asked for it" in s.stderr() for s in shards), c.tails())


def lets_go(c, hold=None):
    """Waits until the lease of the pins has ended; a hold goes on meanwhile."""
    def ended():
        if hold is not None:
            c.hold(asked=hold)
        return all("nobody has asked for it" in s.stderr() for s in c.shards)
    wait_until("the shards to let go of the step", ended, 60, context=c.tails)


def first_logged(shard):
    """First step in the log of a shard that is running; the end of the log may look torn."""
    done = tool("shardfc", "log", "--json", shard.state / "run-1")
    check(done.returncode in (0, 1), done.stderr)
    return min((s["first"] for s in json.loads(done.stdout)["segments"] if s["first"]), default=0)


def test_silent():
    """A command whose machine was silent for longer than the lease takes its pins anew and ends with the state of
    its step, which the logs still have; where they don't, it says which steps can be had."""
    with Cluster() as c, Cluster() as tight:
        for one, extra in ((c, ()), (tight, ("--recovery-target", "10ms", "--log-limit", "1M"))):
            one.start_scheduler()
            one.start_shards(2, *extra)
            running(one)
        c.start_worker()
        c.wait_step(20)
        past, step = stopped_in_the_middle(c, "past", "--at-step", 12), 25
        gone = begin(tight, "gone", "--at-step", step)
        wait_until("the pins", lambda: all(f"step {step} begins" in s.stderr() for s in tight.shards), 20,
                   context=tight.tails)
        gone.send_signal(signal.SIGSTOP)
        asked = tight.held_at(step + 15)  # the log is not full there: it is the lease that ends
        tight.start_worker()
        held = tight.hold(asked=asked)
        lets_go(tight, held)
        check(first_logged(tight.shards[0]) <= step + 1, "the log of the step was deleted before its lease ended")
        tight.release(held)
        lets_go(c)
        wait_until("the log of the step to be deleted", lambda: first_logged(tight.shards[0]) > step + 1, 60, pause=0.5,
                   context=tight.tails)
        past.send_signal(signal.SIGCONT)
        gone.send_signal(signal.SIGCONT)
        done = end(past)
        told = made(done)
        check("asking for step 12 again" in done.stderr, done.stderr)
        check(told == truth_of(12), f"{told} is not the state of step 12: {done.stderr}")
        gone.communicate(timeout=2 * MINUTE)
        check(gone.returncode == 2 and re.search(r"has passed and can't be made any more: steps \d+ to \d+ can be had",
                                                 gone.said()), f"{gone.returncode}: {gone.said()}")
        check(partial(tight, "gone") is None and not (tight.folder / "gone").exists(), "something of it is left")


def test_range():
    """A step that is gone, or beyond the end, is refused with the steps that can be had."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, "--recovery-target", "10ms", "--log-limit", "256K")
        c.create_run(classes=3000, block_size=256, steps=300, dim=16)
        c.start_worker()
        c.wait_state("finished")
        first = None

        def stands():  # the last snapshots are still being written
            nonlocal first
            before = first
            refused = expect(c.ctl("checkpoint", "--out", c.folder / "never", "--at-step", 1, check=False), 2,
                             "can be had", "step 1 has passed")
            first, last = map(int, re.search(r"steps (\d+) to (\d+) can be had", refused.stderr).groups())
            check(1 < first <= last == 300, f"range {first} to {last}")
            return first == before and not list(c.folder.glob("shard-state*/run-*/*.tmp"))
        wait_until("the range to stand", stands, 60, pause=0.5, context=c.tails)
        expect(c.ctl("checkpoint", "--out", c.folder / "never", "--at-step", 301, check=False), 2, "300", "301")
        step, _ = checkpoint(c, "first", "--at-step", first)
        check(step == first, f"step {step}, asked for {first}")
        expect(c.ctl("checkpoint", "--out", c.folder / "never", "--at-step", first - 1, check=False), 2, str(first))
        check(not (c.folder / "never").exists() and not partial(c, "never"), "something of a refused checkpoint")


def test_full():
    """A log that a checkpoint keeps full takes its room back: steps come first, and the checkpoint is
    told."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1, "--recovery-target", "10ms", "--log-limit", "256K")
        c.create_run(classes=3000, block_size=256, steps=100000, dim=16)
        stub = c.shard_stub(c.shards[0].address)
        worker = c.start_worker()
        c.wait_step(5)
        run_id, numbers, pin = c.status().run_id, itertools.count(77), None

        def pinned():  # the log is short: the step may have gone before the call comes
            nonlocal pin
            pin = pb.PinStepRequest(run_id=run_id, pin=next(numbers), step=c.status().step)
            return stub.PinStep(pin, timeout=MINUTE).pinned
        wait_until("a step to be pinned", pinned, 60, context=c.tails)

        def lost():
            try:
                stub.PinStep(pin, timeout=MINUTE)
            except grpc.RpcError as e:
                return e.code() == grpc.StatusCode.FAILED_PRECONDITION and "--log-limit" in e.details()
            return False
        wait_until("the checkpoint to give way", lost, 60, context=c.tails)
        commits_more(c, 20)
        check(worker.running(), c.tails())


def test_damaged():
    """A record of the log that is damaged when a checkpoint goes through it: the command says file, bytes and step
    and leaves nothing, the run goes on; if the damage came too late the checkpoint is right."""
    with Cluster() as c:
        c.start_scheduler()
        first, second = c.start_shards(2, "--recovery-target", "1h", "--log-limit", "64M")
        running(c)
        c.start_worker()
        c.wait_step(30)
        name = flip(first, 7)
        refused = c.ctl("checkpoint", "--out", c.folder / "some", "--at-step", 20, check=False)
        expect(refused, 2, f"{name}: byte", "step 7", "shardfc log")
        check(not (c.folder / "some").exists() and not partial(c, "some"), "something of a refused checkpoint")
        commits_more(c, 3)
        flip(first, 7)
        process = stopped_in_the_middle(c, "some", "--at-step", 20)
        for shard in (first, second):
            name = flip(shard, 9)
        process.send_signal(signal.SIGCONT)
        out, said = process.communicate(timeout=2 * MINUTE)[0], process.said()
        if process.returncode == 0:
            told = made(subprocess.CompletedProcess(process.args, 0, out, said))
        else:
            check(process.returncode == 2 and "step 9" in said, f"{process.returncode}: {said}")
            check(not (c.folder / "some").exists() and not partial(c, "some"), "something of a refused checkpoint")
            for shard in (first, second):
                flip(shard, 9)
            told = checkpoint(c, "some", "--at-step", 20)
        commits_more(c, 3)
        verify(c, "some", told)
        check(told == truth_of(20), f"{told} is not the state of its step")


def test_shards():
    """A checkpoint of two shards goes on with 1, 3 and 5 of them, to the end of the undisturbed run."""
    steps, at = 40, 13
    with Cluster() as c:
        data = make_images(c.folder / "images", 100)  # 7 blocks
        c.start_scheduler()
        c.start_shards(2)
        c.ctl("create", *small_run(data, steps), "--momentum-mode", "dense")
        c.start_worker(data=data)
        c.wait_state("finished")
        checkpoint(c, "at", "--at-step", at)
        whole = checkpoint(c, "whole")
        for shards in (1, 3, 5):
            with Cluster() as other:
                other.start_scheduler()
                other.start_shards(shards)
                other.start_worker(data=data)
                back = made(other.ctl("restore", "--from", c.folder / "at", "--json", check=False))
                verify(c, "at", back)
                # of the step that it was restored at, and on the way
                other.wait_step(at + 3)
                check(checkpoint(other, "again", "--at-step", at) == back, f"{shards} shards: step {at}")
                other.wait_state("finished")
                check(len(other.status().shards) == shards and
                      all(s.blocks for s in other.status().shards), f"{other.status().shards}")
                told = checkpoint(other, "end")
                check(told == whole, f"{shards} shards: {told}, undisturbed {whole}")


CLASSES, BATCH = 100, 32


def used(c, first, last):
    """The labels of the committed steps first..last, in order, as the shards' logs have them: here every
    sample has a label of its own."""
    run_id = c.status().run_id
    stubs = [c.shard_stub(s.address) for s in c.shards]
    labels = []
    for step in range(first, last + 1):
        told = [stub.ReadStep(pb.ReadStepRequest(run_id=run_id, step=step, first_row=0, rows=BATCH), timeout=MINUTE)
                for stub in stubs]
        check(all(list(t.labels) == list(told[0].labels) for t in told), f"step {step}: two shards differ")
        check(len(told[0].labels) == BATCH, f"step {step} has {len(told[0].labels)} rows")
        labels += told[0].labels
    return labels


def test_epoch():
    """A run that goes on from the middle of an epoch uses each sample of it exactly once, and the others
    too."""
    steps, at = 14, 5  # four epochs of 100 samples; step 5 ends within the second
    with Cluster() as c:
        data = make_images(c.folder / "images", CLASSES, 1)
        c.start_scheduler()
        c.start_shards(2)
        c.ctl("create", *small_run(data, steps))
        c.start_workers(2, data=data)
        c.wait_state("finished")
        checkpoint(c, "at", "--at-step", at)
        before, undisturbed = used(c, 1, at), used(c, 1, steps)
        with Cluster() as other:
            other.start_scheduler()
            other.start_shards(3)
            other.start_workers(3, data=data)
            other.ctl("restore", "--from", c.folder / "at")
            other.wait_state("finished")
            labels = before + used(other, at + 1, steps)
    check(CLASSES < at * BATCH < 2 * CLASSES, "the checkpoint is not within an epoch")
    for epoch in range(steps * BATCH // CLASSES):
        mine = labels[epoch * CLASSES:(epoch + 1) * CLASSES]
        check(sorted(mine) == list(range(CLASSES)), f"epoch {epoch + 1}: {sorted(mine)}")
    check(labels == undisturbed, "the order differs from that of the undisturbed run")


def main():
    names = sys.argv[1:] or [*MODES, "goes_on", "killed", "client", "range", "full", "shards", "epoch"]
    for name in names:
        started = time.monotonic()
        try:
            equal(name) if name in MODES else globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
