#!/usr/bin/python3
"""A disk that answers EIO stops the run with a clear text and loses nothing; when it works again, the run goes on to
the bits of a run that nothing happened to. A sync that fails loses what it should have written (failing_disk.c), and
the next one says yes: nobody may build on that.

    test_disk_error.py [shard|restart|scheduler ...]     default: all
"""
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import cluster  # noqa: E402
from cluster import Cluster, once, wait_until  # noqa: E402
from inputs import check  # noqa: E402

STEPS = 140
SHIM = cluster.BIN.parent / "tests" / "libfailing_disk.so"
# The limit, which no run here reaches, makes every step copy a part of the state, however fast the machine is.
SHARD = ("--recovery-target", "50ms", "--log-limit", "1M")


class Disk:
    """The disk below `folder` of programs that are started with `env`."""

    def __init__(self, c, folder):
        self.folder, self.flag = folder, c.folder / f"fail-{folder.name}"
        self.env = {"LD_PRELOAD": str(SHIM), "FAILING_DISK_BELOW": str(folder), "FAILING_DISK_FLAG": str(self.flag)}

    def fail(self, words):
        self.hits().unlink(missing_ok=True)
        temporary = self.flag.with_suffix(".new")
        temporary.write_text(words)
        temporary.rename(self.flag)

    def mend(self):
        """It failed meanwhile, and works again."""
        check(self.hits().exists(), f"nothing failed below {self.folder}")
        self.flag.unlink()

    def hits(self):
        return pathlib.Path(f"{self.flag}.hits")


def create(c, at=0):
    """Returns a hold of step `at`, asked for before there are workers."""
    c.create_run(classes=3000, samples=5000, steps=STEPS, seed=1, block_size=256, momentum_mode="dense")
    asked = c.held_at(at) if at else None
    c.start_workers(2)
    return asked


def result(c):
    return c.state_digest(), [p.loss for p in c.history()]


@once
def undisturbed():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        create(c)
        c.wait_state("finished", 120)
        return result(c)


def same(c, expected):
    c.wait_state("finished", 120)
    wait_until("the shards to be back", lambda: all("blocks are ready" in s.stderr() for s in c.shards), 60,
               context=c.tails)  # one that died in the last steps is needed for the digest only
    got = result(c)
    check(got == expected, f"state {got[0]}, undisturbed {expected[0]}; losses equal: {got[1] == expected[1]}")


def waits_for(c, *words):
    def told():
        now = c.status()
        check(now.state == "running", f"the run is {now.state}: {now.reason}")
        return now.step if all(str(word) in now.reason for word in words) else None
    return wait_until(f"`status` to say {words}", told, 60, context=lambda: f"{c.status()}\n{c.tails()}")


def fail_at(c, asked, disk, words):
    """From the step on that was asked for."""
    held = c.hold(asked=asked)
    disk.fail(words)
    c.release(held)


def start(c, at):
    """Two shards, the first on a disk of its own, and a hold of step `at`."""
    disk = Disk(c, c.folder / "disk")
    c.start_scheduler()
    c.start_shard(*SHARD, state=disk.folder, env=disk.env)
    c.start_shards(1, *SHARD)
    wait_until("2 shards", lambda: len(c.status().shards) == 2, 30)
    return disk, create(c, at)


def durability(c, shard):
    return next(s.durability for s in c.status().shards if s.address == shard.address)


def test_shard():
    """Syncs, writes, renames: a step waits for the first two, snapshots for all; no step is lost and none is in the
    log twice."""
    expected = undisturbed()
    with Cluster() as c:
        disk, asked = start(c, 15)
        shard = c.shards[0]
        for words, then in (("sync lose", 40), ("write", 65), ("write sync rename lose", 95)):
            fail_at(c, asked, disk, words)
            step = waits_for(c, disk.folder, "Input/output error")
            wait_until("the shard to say it", lambda: "Input/output error" in durability(c, shard).error, 30,
                       context=lambda: f"{c.status()}")
            check("Input/output error" in shard.stderr(), shard.tail())
            check(step < then, f"the run waits at step {step}")
            asked = c.held_at(then)  # while the run stands
            disk.mend()
        fail_at(c, asked, disk, "rename")  # the step log goes on
        wait_until("`status` to say that no snapshot can be written", lambda: "rename" in durability(c, shard).error
                   and "Input/output error" in durability(c, shard).error, 60, context=lambda: f"{c.status()}")
        disk.mend()
        c.wait_step(105)
        shard.kill()  # what is on the disk is what was promised
        c.restart_shard(shard)
        same(c, expected)
        wait_until("`status` to be quiet again", lambda: not any(s.durability.error for s in c.status().shards), 30,
                   context=lambda: f"{c.status()}")


def test_restart():
    """A shard that dies after a sync that failed, and one whose disk fails while it recovers."""
    expected = undisturbed()
    with Cluster() as c:
        disk, asked = start(c, 20)
        for words, mended, then in (("sync lose", True, 45), ("write sync lose", True, 70), ("sync", False, 0)):
            fail_at(c, asked, disk, words)
            waits_for(c, disk.folder, "Input/output error")
            shard = c.shards[0] if c.shards[0].state == disk.folder else c.shards[1]
            shard.kill()
            asked = c.held_at(then) if then else None  # while the run stands
            if mended:
                disk.mend()
            shard = c.restart_shard(shard)
            if not mended:
                waits_for(c, "recovers", disk.folder, "Input/output error")
                disk.mend()
        same(c, expected)


def test_scheduler():
    """No commit record, no step: SQLite's syncs and writes fail, and the scheduler dies meanwhile."""
    expected = undisturbed()
    with Cluster() as c:
        disk = Disk(c, c.folder / "scheduler")
        c.start_scheduler(env=disk.env)
        c.start_shards(2, *SHARD)
        asked = create(c, 15)
        for words, dies, then in (("sync lose", False, 40), ("write", False, 65), ("write sync lose", True, 0)):
            fail_at(c, asked, disk, words)
            waits_for(c, "I/O error")
            if dies:
                c.scheduler.kill()
            else:
                asked = c.held_at(then)  # while the run stands
            disk.mend()
            if dies:
                c.start_scheduler(env=disk.env)
        same(c, expected)


def main():
    for name in sys.argv[1:] or ["shard", "restart", "scheduler"]:
        begin = time.monotonic()
        globals()[f"test_{name}"]()
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
