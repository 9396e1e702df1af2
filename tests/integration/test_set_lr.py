#!/usr/bin/python3
"""The learning rate is set while a run lives, and everything else that people do to one is in its records: a run that
used all of it and in which things died ends with the bits of one that used it undisturbed.

    test_set_lr.py [usage|live|checkpoint|session|record|provisional ...]     default: all
SFC_SEED (default 1) draws the moments of the kills; it is printed on failure.
"""
import concurrent.futures
import os
import random
import re
import subprocess
import sys
import threading
import time

import grpc

from cluster import Cluster, pb, run_config, wait_until
from inputs import check, expect, one_json, tool
from test_head_session import Session, session_config
from test_recovery import IMAGE_TOOL
from test_rewind import run_defaults, train

SEED = int(os.environ.get("SFC_SEED", "1"))
OFTEN = ("--recovery-target", "50ms")
LR, WARMUP, STEPS = 0.1, 5, 40
# A death came between the look at the run and the drop.
NOT_NOW = ("not possible while the run is", "nothing blocks the run", "is not being read yet", "is committed, and keeps",
           "does not block the run")


def start(c):
    c.start_scheduler()
    c.start_shards(2, *OFTEN)


def scheduled(step, lr=LR, steps=STEPS):
    """Warm-up and linear decay, as the scheduler computes them."""
    if step <= WARMUP:
        return lr * step / WARMUP
    return lr * (0.0 + 1.0 * (1.0 - (step - WARMUP) / (steps - WARMUP)))


def set_lr(c, value, *extra):
    return one_json(c.ctl("set", "lr", value, *extra, "--json", check=False))


def changes(c):
    return [(x["from_step"], x["lr"]) for x in c.ctl_json("status")["lr_changes"]]


def paused(c):
    """The step at which the run stands still."""
    c.ctl("pause")
    held = c.hold()
    c.release(held)
    return held.step


def held_at(c, step):
    """A hold of a step to come, or None while the run is not open yet: whatever is slow, the run does not pass it."""
    try:
        return c.stub.Hold(pb.HoldRequest(at_step=step), timeout=30)
    except grpc.RpcError:
        return None


def stands(c, hold):
    """Asks, which keeps the hold, until the run stands there."""
    wait_until("the hold", lambda: c.stub.Hold(pb.HoldRequest(hold_id=hold.hold_id), timeout=30).held, 120,
               context=c.tails)


def check_rates(c, said):
    """Every committed step has the rate that was said for it."""
    for p in c.history():
        lr = next((lr for first, lr in reversed(said) if first <= p.step), None) or LR
        check(p.lr == scheduled(p.step, lr), f"step {p.step}: rate {p.lr}, expected {scheduled(p.step, lr)}")


def test_usage():
    at = ("--scheduler", "127.0.0.1:1")
    for words, what in ((("lr",), "missing argument"), (("lr", "fast"), "fast"), (("lr", "0"), "above 0"), (("lr", "-1"), ""),
                        (("momentum", "0.9"), "only lr"), (("lr", "0.1", "--from-step", "0"), "--from-step")):
        done = tool("shardfc", "set", *at, *words)
        check(done.returncode == 2 and what in done.stderr, f"{words}: {done.returncode} {done.stderr}")
    with Cluster() as c:
        start(c)
        expect(c.ctl("set", "lr", "0.1", check=False), 1, "run")
        c.create_run(block_size=256, steps=STEPS)
        expect(c.ctl("set", "lr", "2e6", check=False), 2, "1e+06")
        expect(c.ctl("set", "lr", "0.1", "--from-step", STEPS + 1, check=False), 2, f"1 to {STEPS}")
        c.start_workers(1)
        c.wait_state("finished")
        expect(c.ctl("set", "lr", "0.1", check=False), 1, "finished")
        check(changes(c) == [], f"{changes(c)}")


def create(c, window=0, **fields):
    config = run_config(block_size=256, steps=STEPS, warmup_steps=WARMUP, lr=LR, **fields)
    c.stub.CreateRun(pb.CreateRunRequest(config=config, keeping=pb.RunKeeping(rewind_window=window)), timeout=60)


def test_together():
    """Changes that are asked for at once are all made, one after another."""
    with Cluster() as c:
        start(c)
        create(c)
        for _ in range(3):
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                told = list(pool.map(lambda k: c.ctl("set", "lr", f"0.{k}", check=False), range(1, 7)))
            for done in told:
                expect(done, 0)


def test_live():
    """Set, set again, ahead of time, back to the schedule, rewound; the scheduler dies in between."""
    with Cluster() as c:
        start(c)
        create(c, window=100)
        said = [(7, 0.25), (9, None), (12, 0.5)]
        for first, lr in said:
            done = set_lr(c, lr or "schedule", "--from-step", first)
            check((done["from_step"], done["lr"]) == (first, lr), f"{done}")
        check(changes(c) == said, f"{changes(c)}")
        check("lr set to 0.25 from step 7 on" in c.ctl("status").stdout, "status for people")
        c.scheduler.kill()
        c.start_scheduler()
        check(changes(c) == said, f"after a restart: {changes(c)}")
        at = 14
        hold = wait_until("the shards", lambda: held_at(c, at), 60, context=c.tails)
        c.start_workers(1)
        stands(c, hold)
        expect(c.ctl("set", "lr", "0.1", "--from-step", "3", check=False), 2, "too late")
        check(paused(c) == at, "the hold was kept")
        c.release(hold)
        done = set_lr(c, "0.03")
        check(done["from_step"] == at + 1, f"paused at {at}: {done}")
        check(set_lr(c, "0.03", "--from-step", at + 3)["from_step"] == at + 3, "the same again changes nothing")
        said.append((at + 1, 0.03))
        check(changes(c) == said, f"{changes(c)}")
        hold = held_at(c, at + 2)
        c.ctl("resume")
        stands(c, hold)
        c.ctl("pause")
        c.release(hold)
        c.ctl("rewind", "--to-step", at)  # as if it had never been said
        check(changes(c) == said[:-1], f"{changes(c)}")
        said[-1] = (at + 1, 0.04)
        check(set_lr(c, "0.04")["from_step"] == at + 1, "after a rewind")
        check_rates(c, said)
        hold = held_at(c, at + 6)
        c.ctl("resume")
        stands(c, hold)
        done = set_lr(c, "0.01")  # not paused: from a step on that was not planned
        check(at + 6 < done["from_step"] <= at + 9, f"{done}")
        c.release(hold)
        said.append((done["from_step"], 0.01))
        c.wait_state("finished")
        check(changes(c) == said, f"{changes(c)}")
        check_rates(c, said)
        check(any("learning rate 0.03 from step" in p.stderr() for p in c.processes), "no event says it")


def test_checkpoint():
    """A run from a checkpoint goes on with the same rates, those of later steps too."""
    at = 12
    with Cluster() as c:
        start(c)
        create(c, momentum_mode="dense")
        for first, lr in ((3, "0.3"), (8, "0.2"), (30, "0.01")):
            set_lr(c, lr, "--from-step", first)
        hold = held_at(c, at)
        c.start_workers(1)
        c.ctl("checkpoint", "--at-step", at, "--out", c.folder / "at")
        c.release(hold)
        c.wait_state("finished")
        expected = c.state_digest(), [(p.step, p.lr, p.loss) for p in c.history()]
        c.ctl("restore", "--from", c.folder / "at")
        check(changes(c) == [(8, 0.2), (30, 0.01)], f"{changes(c)}")
        c.wait_state("finished")
        got = c.state_digest(), [(p.step, p.lr, p.loss) for p in c.history()]
        check(got[0] == expected[0], f"restored: {got[0]}, expected {expected[0]}")
        check(got[1] == expected[1][at:], "the rates or losses differ")
        manifest = c.folder / "at" / "manifest.json"
        check('"version": 4' in manifest.read_text(), "version")


def test_session():
    """A foreign session goes on: the rate changes behind what it has begun."""
    with Cluster() as c:
        start(c)
        c.stub.CreateRun(pb.CreateRunRequest(config=pb.RunConfig(**dict(run_defaults(), **session_config(steps=20)))),
                         timeout=60)
        train(c, 5)
        session = Session(c)
        check(session.step == 6, f"{session.step}")
        done = set_lr(c, "0.007")
        check(done["from_step"] in (6, 7), f"{done}")
        train(c, 20)
        c.wait_state("finished")
        rates = {p.step: p.lr for p in c.history()}
        first = done["from_step"]
        check(rates[first] / rates[20] > 0 if rates[20] else True, f"{rates}")
        unset = [s for s in range(1, first) if rates[s] == 0]
        check(not unset, f"{rates}")


# ---- everything together

class Peace:
    """Nothing happens before, during and after a command."""

    def before(self):
        pass

    after = settle = before


class Killer:
    """Something dies before, during or after a command, and comes back."""

    def __init__(self, c):
        self.c, self.chance, self.kills, self.timer = c, random.Random(SEED), {"scheduler": 0, "shard": 0}, None

    def before(self):
        if self.chance.random() < 0.4:
            self.timer = threading.Timer(self.chance.random() * 0.04, self.c.scheduler.kill)
            self.timer.start()
        else:
            self.after()

    def after(self):
        victims = self.chance.choice(("none", "scheduler", "shard", "scheduler and shard"))
        if "scheduler" in victims:
            self.c.scheduler.kill()
        if "shard" in victims:
            shard = self.chance.choice(self.c.shards)
            shard.kill()
            self.kills["shard"] += 1
        self.settle()
        if "shard" in victims:
            self.c.restart_shard(shard)

    def settle(self):
        """A scheduler that was killed meanwhile is started again."""
        if self.timer:
            self.timer.join()
            self.timer = None
        if not self.c.scheduler.running():
            self.kills["scheduler"] += 1
            self.c.start_scheduler()


class Story:
    """What people do to a run, at steps that nothing else decides: sample 78 is broken, and in the batches of steps 12
    and 26."""

    def __init__(self, c, keeping, deaths):
        self.c, self.deaths = c, deaths
        data = c.folder / "images"
        subprocess.run([IMAGE_TOOL, data, "300", "4", "1", "78"], check=True)
        c.ctl("create", "--run", "story", "--data", data, "--backbone", "tiny", "--dim", "64", "--sample-rate", "0.2",
              "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule", "poly:10", "--global-batch", "64",
              "--micro-batch", "16", "--steps", "36", "--seed", "1", "--block-size", "32", "--rewind-window", "100",
              *keeping)

    def do(self, *words):
        """Until it is done: where its answer was lost it is said again, which changes nothing."""
        self.deaths.before()
        wait_until(f"{words}", lambda: self.tried(words), 120, context=self.c.tails)
        self.deaths.settle()
        self.deaths.after()

    def tried(self, words, *more):
        done = self.c.ctl(*words, check=False)
        passing = ("does not answer", "try again", "was lost", "the run is loading", *more)
        check(done.returncode == 0 or any(w in done.stderr for w in passing), f"{words}: {done.stderr}")
        self.deaths.settle()
        return done.returncode == 0

    def blocked(self):
        def reason():
            now = self.c.status()
            return now.reason if now.state == "blocked" else None
        said = wait_until("the broken sample", reason, 120, context=self.c.tails)
        return tuple(map(int, re.search(r"--drop (\d+),(\d+)", said).groups()))

    def drop(self, step, j):
        """Until its step is there. With provisional steps a death unblocks the run, and it blocks again; or it is blocked
        before the step can be dropped, and resumes until it is blocked again."""
        self.deaths.before()

        def dropped():
            try:
                now = self.c.status()
            except grpc.RpcError:  # it died just now
                self.deaths.settle()
                return False
            if f"--drop {step},{j}" in now.reason and not self.tried(
                    ("resume", "--drop", f"{step},{j}"), *NOT_NOW):
                self.tried(("resume",))
            return now.step >= step
        wait_until("the drop", dropped, 120, context=self.c.tails)
        self.deaths.settle()
        self.deaths.after()

    def tell(self):
        c = self.c
        self.do("set", "lr", "0.08", "--from-step", "4")
        self.do("set", "lr", "0.03", "--from-step", "7")
        c.start_workers(2, data=c.folder / "images")
        c.wait_step(3)
        self.do("pause")
        self.do("resume")
        first = self.blocked()
        self.do("set", "lr", "0.06", "--from-step", "12")
        self.drop(*first)
        second = self.blocked()
        check((first[0], second[0]) == (12, 26), f"blocked at {first} and {second}")
        self.do("set", "lr", "0.5", "--from-step", "26")  # the rewind takes it back
        self.do("pause")
        self.do("rewind", "--to-step", "13")
        self.do("set", "lr", "0.02", "--from-step", "15")
        self.do("resume")
        check(self.blocked() == second, "another micro-batch is broken")
        self.drop(*second)
        c.wait_state("finished", 300)
        said = changes(c)
        check(said == [(4, 0.08), (7, 0.03), (12, 0.06), (15, 0.02)], f"{said}")
        return c.state_digest(), [(p.step, p.lr, p.loss) for p in c.history()]


def told(keeping, killed):
    with Cluster() as c:
        start(c)
        deaths = Killer(c) if killed else Peace()
        result = Story(c, keeping, deaths).tell()
        if killed:
            check(min(deaths.kills.values()) >= 4, f"kills {deaths.kills}: too few to test anything")
            print(f"kills: {deaths.kills}", flush=True)
        return result


def compare(*keeping):
    expected = told(keeping, False)
    got = told(keeping, True)
    check(got[0] == expected[0], f"state {got[0]}, undisturbed {expected[0]}")
    check(got[1] == expected[1], "steps, rates or losses differ")


def test_record():
    """pause, resume, set lr, rewind and resume --drop, with deaths around each."""
    compare()


def test_provisional():
    """The same where only every fourth step is durable."""
    compare("--durable-every", "4")


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        begin = time.monotonic()
        try:
            tests[name]()
        except BaseException:
            print(f"FAILED {name}, SFC_SEED={SEED}", file=sys.stderr)
            raise
        print(f"{name}: ok, {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
