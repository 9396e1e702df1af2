#!/usr/bin/python3
"""A disk that fills up stops the run with a clear text and not with a wrong state; when space returns the run
goes on to the bits of a run that nothing happened to. Needs root for a tmpfs; exit status 77 without.

    test_disk_full.py [log|shard|scheduler ...]     default: all
"""
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from cluster import Cluster, wait_until  # noqa: E402
from inputs import check  # noqa: E402
from test_lost_log import back  # noqa: E402

STEPS = 150
DISK = 300 << 20  # the log leaves 256 MiB to everybody else
SKIPPED = 77


def mount(path, size):
    path.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True,
                          text=True, check=False)


@contextlib.contextmanager
def small_disk(path, size):
    done = mount(path, size)
    check(done.returncode == 0, f"mount: {done.stderr}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def need_tmpfs():
    with Cluster() as c:
        path = c.folder / "probe"
        done = mount(path, 1 << 20)
        if done.returncode:
            print(f"skipped: no tmpfs can be mounted here (root is needed): {done.stderr.strip()}")
            sys.exit(SKIPPED)
        subprocess.run(["umount", path], check=True)


def fill(disk, leave):
    """Takes the space of a disk up to `leave` bytes."""
    with open(disk / "filler", "ab") as filler:
        while (take := free_space(disk) - leave) > 0:
            with contextlib.suppress(OSError):  # others took of it at the same time
                os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, take)


def fill_at(c, asked, disk, leave):
    """Fills it while the run stands at the step that was asked for, however long that takes."""
    held = c.hold(asked=asked)
    fill(disk, leave)
    c.release(held)


def free_space(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def create(c, at=0):
    """Returns a hold of step `at`, asked for before there are workers."""
    c.create_run(classes=3000, samples=5000, steps=STEPS, seed=1, block_size=256, momentum_mode="dense")
    asked = c.held_at(at) if at else None
    c.start_workers(2)
    return asked


def result(c):
    back(c)
    return c.state_digest(), [p.loss for p in c.history()]


def undisturbed():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        create(c)
        c.wait_state("finished", 120)
        return result(c)


def stands_still(c):
    """The step at which the run waits: every shard has answered heartbeats since, and no step came."""
    before = None

    def same():
        nonlocal before
        now = (c.status().step, [s.step for s in c.status().shards])
        still, before = now == before, now
        return still
    return wait_until("the run to stand still", same, 60, pause=1.5, context=c.tails) and before[0]


def waits_for_space(c, shard, disk):
    def told():
        now = c.status()
        check(now.state == "running", f"the run is {now.state}: {now.reason}")
        error = next(s.durability.error for s in now.shards if s.address == shard.address)
        said = shard.stderr()  # of this process: `status` may still show what the one before it said
        return all("pace" in text for text in (now.reason, error, said)) and str(disk) in now.reason and str(disk) in said
    wait_until("`status` and the shard's log to say that the disk is full", told, 60,
               context=lambda: f"{c.status()}\n{c.tails()}")
    return stands_still(c)


def test_shard():
    """Below the reserve, without any space, and with a shard that dies meanwhile."""
    expected = undisturbed()
    with Cluster() as c, small_disk(c.folder / "disk", DISK) as disk:
        c.start_scheduler()
        c.start_shard("--recovery-target", "50ms", state=disk / "shard")
        c.start_shard("--recovery-target", "50ms")
        wait_until("2 shards", lambda: len(c.status().shards) == 2, 30)
        asked = create(c, 20)
        for then, leave, dies in ((60, 100 << 20, False), (100, 0, False), (0, 0, True)):
            shard = next(s for s in c.shards if s.state == disk / "shard")
            fill_at(c, asked, disk, leave)
            step = waits_for_space(c, shard, disk)
            check(step < STEPS, f"the run ended at step {step} before the disk was full")
            if dies:
                shard.kill()
                shard = c.restart_shard(shard)
                check(waits_for_space(c, shard, disk) == step, "a step without space")
            asked = c.held_at(then) if then else None  # while the run stands
            (disk / "filler").unlink()
        c.wait_state("finished", 120)
        got = result(c)
        check(got == expected, f"state {got[0]}, undisturbed {expected[0]}; losses equal: {got[1] == expected[1]}")
        wait_until("`status` to be quiet again", lambda: not any(s.durability.error for s in c.status().shards), 30,
                   context=lambda: f"{c.status()}")


def test_scheduler():
    """No commit record, no step: the scheduler waits for space too, and may die meanwhile."""
    expected = undisturbed()
    with Cluster() as c, small_disk(c.folder / "scheduler", 8 << 20) as disk:
        c.start_scheduler()
        c.start_shards(2)
        asked = create(c, 20)
        for then, dies in ((60, False), (0, True)):
            fill_at(c, asked, disk, 0)
            wait_until("`status` to say that the disk is full",
                       lambda: str(disk) in c.status().reason or "full" in c.status().reason, 60,
                       context=lambda: f"{c.status()}\n{c.tails()}")
            check(c.status().state == "running", f"{c.status()}")
            step = stands_still(c)
            check(step < STEPS, f"the run ended at step {step} before the disk was full")
            if dies:
                c.scheduler.kill()
            else:
                asked = c.held_at(then)  # while the run stands
            (disk / "filler").unlink()
            if dies:
                c.start_scheduler()
        c.wait_state("finished", 120)
        got = result(c)
        check(got == expected, f"state {got[0]}, undisturbed {expected[0]}; losses equal: {got[1] == expected[1]}")


def test_log():
    """A log of few steps beside a shard that would not copy a block for hours."""
    expected = undisturbed()
    with Cluster() as c:
        c.start_scheduler()
        c.start_shard("--recovery-target", "1h", "--log-limit", "60K")
        c.start_shard("--recovery-target", "1h")
        wait_until("2 shards", lambda: len(c.status().shards) == 2, 30)
        create(c)
        c.wait_step(STEPS // 2)
        c.shards[0].kill()
        c.restart_shard(c.shards[0])
        c.wait_state("finished", 120)
        got = result(c)
        check(got == expected, f"state {got[0]}, undisturbed {expected[0]}")


def main():
    for name in sys.argv[1:] or ["log", "shard", "scheduler"]:
        if name != "log":
            need_tmpfs()
        begin = time.monotonic()
        globals()[f"test_{name}"]()
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
