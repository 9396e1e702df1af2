#!/usr/bin/python3
"""Durable points every N steps: a crash takes all back to the last one, and the run ends with the bits and the
losses of a run that flushed every step and that nothing happened to.

    test_durable_every.py [shards|scheduler|both|stands|void|usage ...]     default: all
Seeds come from SFC_SEED (default 1).
"""
import os
import random
import signal
import sys
import threading
import time

from cluster import Cluster, once, pb, wait_until
from inputs import check, expect
from test_head_session import Session, session_config
from test_lost_log import records, segments
from test_recovery import images, result
from test_rewind import near_batch, run_defaults, train_near

SEED = int(os.environ.get("SFC_SEED", "1"))
OFTEN = ("--recovery-target", "50ms")
EVERY = 5


def start(c):
    c.start_scheduler()
    c.start_shards(2, *OFTEN)


@once
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


def session_run(c):
    c.stub.CreateRun(pb.CreateRunRequest(config=pb.RunConfig(**dict(run_defaults(), **session_config(steps=40))),
                                         keeping=pb.RunKeeping(durable_every=EVERY)), timeout=60)


def of_step(shard, kind, step):
    """Where the records of a kind (1: inputs, 2: commit) of a step are, in the order of the log."""
    return [(path, at) for path in segments(shard) for k, of, at, _ in records(path) if (k, of) == (kind, step)]


def flip_last(shard, kind, step):
    path, at = of_step(shard, kind, step)[-1]
    data = bytearray(path.read_bytes())
    data[at + 66] ^= 1
    path.write_bytes(data)


def prepare_without(c, session, stops, world):
    """The step of a session is prepared, but one shard stops before it can say so."""
    features, labels = near_batch(session.step, world, session.config)
    m = session.config.micro_batch
    session.announce(labels)
    for j in range(len(labels) // m):
        session.exchange(j, features[j * m:(j + 1) * m], labels[j * m:(j + 1) * m])
        if (j + 1) * m == len(labels):
            stops.signal(signal.SIGSTOP)
        session.done(j)


def die_beside_durable_step(c, keeps, dies, step, world):
    """One shard has all steps before this one on its disk for certain, because the durable step is prepared twice, when
    the other dies and takes them all back."""
    opened = []
    prepare_without(c, Session(c), dies, world)
    wait_until("the flush", lambda: len(of_step(keeps, 1, step)) == 1, 30, context=c.tails)
    again = threading.Thread(target=lambda: opened.append(Session(c)))
    again.start()
    wait_until("the new round", lambda: "Abort of shard" in c.status().reason, 30, context=lambda: f"{c.status()}")
    dies.signal(signal.SIGCONT)
    again.join()
    prepare_without(c, opened[0], dies, world)
    wait_until("the second flush", lambda: len(of_step(keeps, 1, step)) == 2, 30, context=c.tails)
    check(c.status().step == step - 1, f"{c.status()}")
    dies.kill()


def test_void():
    """A shard's log has provisional steps that a crash voided, flushed with their commits, and the same steps of other
    batches that count. When it dies later the void ones are never used, also when a later record is damaged: then
    another shard has it."""
    whole = ("--recovery-target", "1h", "--log-limit", "64M")
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, *whole)
        session_run(c)
        for world, step in enumerate((10, 20, 40)):
            train_near(c, step, (0, 2, 3)[world])
            if step == 20:
                counts = c.state_digest()
        c.wait_state("finished")
        expected = result(c)
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, *whole)
        session_run(c)
        train_near(c, 10)
        train_near(c, 14, world=1)
        keeps, dies = c.shards
        die_beside_durable_step(c, keeps, dies, 15, world=1)
        dies = c.restart_shard(dies)
        wait_until("the return", lambda: c.status().step == 10, 30, context=c.tails)
        train_near(c, 22, world=2)
        check(c.status().durable_step == 20, f"{c.status()}")
        check(all(len(of_step(keeps, kind, 11)) >= 2 for kind in (1, 2)), "no void record is in the log")
        for kind in (0, 1, 2):
            keeps.kill()
            if kind:
                flip_last(keeps, kind, 11)
            keeps = c.restart_shard(keeps)
            wait_until("the recovery", lambda: "recovered to step 20" in keeps.stderr(), 30, context=c.tails)
            check(("taking it from shard" in keeps.stderr()) == (kind > 0), keeps.stderr())
            got = c.state_digest()
            check(got == counts, f"damage {kind}: state {got}, undisturbed {counts}")
        train_near(c, 40, world=3)
        c.wait_state("finished")
        got = result(c)
        check(got == expected, f"state {got[0]}, undisturbed {expected[0]}; losses equal: {got[1] == expected[1]}")


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
