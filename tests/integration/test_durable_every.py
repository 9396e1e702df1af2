#!/usr/bin/python3
"""Durable points every N steps: a crash takes all back to the last one, and the run ends with the bits and the
losses of a run that flushed every step and that nothing happened to.

    test_durable_every.py [shards|scheduler|both|stands|usage ...]     default: all
Seeds come from SFC_SEED (default 1).
"""
import os
import random
import sys
import time

from cluster import Cluster, wait_until
from inputs import check, expect
from test_recovery import images, result

SEED = int(os.environ.get("SFC_SEED", "1"))
OFTEN = ("--recovery-target", "50ms")
EVERY = 5


def start(c):
    c.start_scheduler()
    c.start_shards(2, *OFTEN)


def undisturbed(steps):
    with Cluster() as c:
        start(c)
        images(c, steps)
        c.wait_state("finished", 300)
        return result(c)


def watch(c, seen):
    """What is said to be durable stays so."""
    now = c.status()
    check(now.durable_step >= seen.get("durable", 0),
          f"step {now.durable_step} is durable, but {seen.get('durable')} was")
    check(now.durable_step <= now.step < now.durable_step + EVERY, f"durable {now.durable_step}, step {now.step}")
    seen["durable"] = now.durable_step
    points = [p.step for p in c.history()]
    check(points == list(range(1, len(points) + 1)), "the history has every step once")
    check(len(points) >= seen.get("points", 0), "the history never shrinks")
    seen["points"] = len(points)


def disturbed(steps, kills, who):
    chance = random.Random(SEED)
    with Cluster() as c:
        start(c)
        images(c, steps, "--durable-every", EVERY)
        seen = {}
        for k in range(kills):
            c.wait_step(1 + k * (steps - 10) // kills + chance.randrange(4))
            watch(c, seen)
            time.sleep(chance.random() * 0.05)
            victims = [s for s in c.shards if chance.random() < 0.5] or [chance.choice(c.shards)]
            both = who == "both" and k % 2
            if who == "scheduler" or both:
                c.scheduler.kill()
            if who == "shards" or both or (who == "both" and not both):
                for victim in victims:
                    victim.kill()
            else:
                victims = []
            time.sleep(chance.random() * 0.1)
            if who == "scheduler" or both:
                c.start_scheduler()
            for victim in victims:
                c.restart_shard(victim)
        c.wait_state("finished", 300)
        watch(c, seen)
        check(seen["durable"] == steps, "the end is durable")
        back = [line for p in c.processes for line in p.stderr().splitlines()
                if "goes back to its last durable step" in line or ": goes from step " in line]
        check(back, "no process went back: the kills tested nothing")
        return result(c)


def compare(steps, kills, who):
    expected = undisturbed(steps)
    got = disturbed(steps, kills, who)
    check(got[0] == expected[0], f"state {got[0]}, undisturbed {expected[0]}")
    check(got[1] == expected[1], "the losses differ")


def test_shards():
    compare(82, 6, "shards")


def test_scheduler():
    compare(82, 5, "scheduler")


def test_both():
    compare(82, 6, "both")


def test_stands():
    """Where the run stands still it is durable; a rewind makes its step so, and a checkpoint of a provisional
    step is that of the step."""
    with Cluster() as c:
        start(c)
        images(c, 3000, "--durable-every", "1000", "--rewind-window", "1000")
        c.wait_step(7)
        check(c.status().durable_step == 0, "nothing is durable before step 1000")
        c.ctl("pause")
        now = wait_until("a durable pause", lambda: next(
            (s for s in [c.status()] if s.state == "paused" and s.durable_step == s.step), None), 60)
        check(now.durable_step < 1000, f"paused at {now.step}")
        c.ctl("resume")
        at = now.step + 20
        done = c.ctl_json("checkpoint", "--at-step", at, "--out", c.folder / "at")
        check(done["step"] == at, f"{done}")
        c.wait_step(at + 10)
        c.ctl("pause")
        c.ctl("resume")
        now = c.wait_step(at + 30)
        c.ctl("rewind", "--to-step", at + 12)
        c.scheduler.kill()
        c.start_scheduler()
        check(c.status().durable_step >= at + 12, "a rewind's step is durable")
        c.wait_step(at + 20)


def test_usage():
    with Cluster() as c:
        start(c)
        for wrong in ("0", "1001", "x"):
            expect(c.ctl("create", "--classes", "100", "--samples", "100", "--steps", "5", "--durable-every", wrong,
                         check=False), 2, "durable-every")
        c.ctl("create", "--run", "r", "--classes", "3000", "--samples", "3000", "--steps", "50", "--durable-every",
              "7")
        c.start_workers(1)
        c.wait_state("finished")
        now = c.ctl_json("status")
        check((now["durable_every"], now["durable_step"]) == (7, 50), f"{now}")
        check("durable up to step 50 (every 7 steps)" in c.ctl("status").stdout, "status")


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok")


if __name__ == "__main__":
    main()
