#!/usr/bin/python3
"""Identities are added to a run that trains. Old ones keep their bits, and what the run was at a growth and after it comes
back exactly: after kill -9 of everything, from a checkpoint, on other shards.

    test_grow.py [usage|together|live|killed|dies|dies_often|mirrored|around|modes|restored|data ...]     default: all
SFC_SEED (default 1) draws the moments of the kills; it is printed on failure.
"""
import json
import os
import random
import subprocess
import sys
import threading
import time

import grpc
import numpy as np

from cluster import BIN, TIME_SCALE, Cluster, pb, run_config, wait_until
from inputs import check, expect, one_json, tool
from test_etcd import Schedulers
from test_head_session import Session, batch, session_config
from test_mirror import LEASE, destroy, given_up, members
from test_recovery import IMAGE_TOOL
from test_scale import command

SEED = int(os.environ.get("SFC_SEED", "1"))
OFTEN = ("--recovery-target", "50ms")
OLD, NEW, BLOCK = 700, 1500, 256  # the last block of three fills up, three are new
AT, STEPS = 12, 30


def start(c, shards=2, *options):
    c.start_scheduler()
    c.start_shards(shards, *OFTEN, *options)


def create(c, keeping=None, **fields):
    config = run_config(**dict(dict(classes=OLD, block_size=BLOCK, steps=STEPS, samples=700, global_batch=64), **fields))
    c.stub.CreateRun(pb.CreateRunRequest(config=config, keeping=keeping), timeout=60 * TIME_SCALE)


def grow(c, classes=NEW, *extra):
    return one_json(c.ctl("grow", "--classes", classes, *extra, "--json", check=False, seconds=120))


def pause_at(c, step, go_on):
    """Paused at exactly this step. go_on(): the run, which stands until then, goes on."""
    asked = c.ask_hold(step)
    result = go_on()
    held = c.hold(asked=asked.result())
    c.ctl("pause")
    c.release(held)
    return result


def finish(c, steps=STEPS):
    """Digest of the end."""
    c.ctl("resume")
    held = c.hold(steps, 120)
    c.release(held)
    return c.state_digest()


def blocks(c):
    held = c.hold()
    state = dict(c.read_state(held))
    c.release(held)
    return held, state


def matrix(state, what, dim=32):
    parts = [np.frombuffer(state[name], np.float32).reshape(-1, dim) for name in
             sorted((n for n in state if n.startswith("class") and n.endswith(what)), key=lambda n: int(n.split()[1]))]
    return np.concatenate(parts)


def grown_run(shards=2, at=AT, before=lambda c: None, after=lambda c: None, **fields):
    """A run that grows after step `at`; what is done before and after it. Digest and losses of the end."""
    with Cluster() as c:
        start(c, shards)
        create(c, **fields)
        pause_at(c, at, c.start_worker)
        before(c)
        done = grow(c)
        check(done["from_step"] == at + 1 and done["classes"] == NEW, f"{done}")
        after(c)
        steps = fields.get("steps", STEPS)
        step, digest = finish(c, steps)
        check(step == steps, f"step {step}")
        return digest, [(p.step, p.loss) for p in c.history()]


def test_usage():
    for words, what in ((("--classes", "1"), "--classes"), (("--data", "/nowhere"), "")):
        done = tool("shardfc", "grow", "--scheduler", "127.0.0.1:1", *words)
        check(done.returncode in (1, 2) and what in done.stderr, f"{words}: {done.returncode} {done.stderr}")
    with Cluster() as c:
        start(c)
        expect(c.ctl("grow", "--classes", "2000", check=False), 1, "run")
        create(c)
        expect(c.ctl("grow", check=False), 2, "--classes")
        expect(c.ctl("grow", "--classes", str(OLD), check=False), 2, f"{OLD} classes already")
        expect(c.ctl("grow", "--classes", str(OLD - 1), check=False), 2, "only grow")
        expect(c.ctl("grow", "--classes", "2000", "--data", "/tmp", check=False), 2, "no data set")
        expect(c.ctl("grow", "--classes", "2000", "--samples", "3", check=False), 2, "samples")
        expect(c.ctl("grow", "--classes", 1 << 31, check=False), 2, "limits")
        c.ctl("pause")
        done = grow(c, NEW)
        check(done["from_step"] == 1, f"before the first step: {done}")
        shown = c.ctl_json("status")
        check(shown["classes"] == NEW and sum(s["classes"] for s in shown["shards"]) == NEW, f"{shown}")
        expect(c.ctl("grow", "--classes", NEW + 1, check=False), 1, "not done yet")
        said = [e["what"] for e in c.ctl_json("events")["events"]]
        check(any(f"{NEW} classes from step 1 on" in t for t in said), f"{said}")
    with Cluster() as c:
        start(c)
        c.ctl("create", "--run", "hot", "--classes", "2000", "--hot-classes", "20", "--steps", "100")
        expect(c.ctl("grow", "--classes", "3000", check=False), 2, "--hot-classes", "create a run with all its identities")
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, "--backend", "reference", "--durable", "off")
        create(c, keeping=pb.RunKeeping())
        c.ctl("pause")
        shards = lambda: [(s["blocks"], s["classes"], s["memory_bytes"]) for s in c.ctl_json("status")["shards"]]
        before = shards()
        expect(c.ctl("grow", "--classes", NEW, check=False), 2, "has not grown", "reference backend", "--backend cpu")
        wait_until("what was made for it to be gone", lambda: shards() == before, 60, context=lambda: f"{shards()} {before}")
        check(c.ctl_json("status")["classes"] == OLD and not c.ctl_json("status")["growths"], f"{c.ctl_json('status')}")
        c.ctl("resume")
        c.start_worker()
        c.wait_step(STEPS)


def test_together():
    """A growth that is asked for while another one waits is asked for again after it, and is refused where it is none
    then."""
    with Cluster() as c:
        start(c)
        create(c)
        held = c.hold()
        with c.keeping(held):
            first = command(c, "grow", "--classes", NEW)
            wait_until("the growth to be asked for", lambda: any("grow" in e["what"] for e in c.ctl_json("events")["events"]), 60,
                       context=c.tails)
            data = pb.DataSet(kind=pb.DataSet.SYNTHETIC, samples=10**6)
            try:
                c.stub.Grow(pb.GrowRequest(classes=NEW - 1, data=data), timeout=60 * TIME_SCALE)
                check(False, "a growth on top of one that waits")
            except grpc.RpcError as e:
                check(e.code() == grpc.StatusCode.UNAVAILABLE and "another growth waits" in e.details(), f"{e}")
            others = [command(c, "grow", "--classes", n) for n in (NEW, NEW - 1)]
        c.release(held)
        first(0)
        others[0](2, f"{NEW} classes already")
        others[1](2, "only grows")
        check(c.ctl_json("status")["classes"] == NEW, "other classes")


def test_live():
    """Old rows are what they were, new ones what the seed makes; steps go on, and new samples come."""
    seen = {}

    def before(c):
        seen["held"], seen["old"] = blocks(c)

    def after(c):
        held, state = blocks(c)
        check(held.step == AT and held.map.growths[0].classes == NEW, f"{held}")
        for what in ("values", "momentum"):
            old, now = matrix(seen["old"], what), matrix(state, what)
            check(len(old) == OLD and len(now) == NEW and old.tobytes() == now[:OLD].tobytes(), f"old {what}")
            seen[what] = now[OLD:]
        check(not seen["momentum"].any() and 0.009 < seen["values"].std() < 0.011, "new rows are not as the seed makes them")
        expect(c.ctl("rewind", "--to-step", AT - 1, check=False), 2, "grew")

    digest, losses = grown_run(before=before, after=after)
    check([s for s, _ in losses] == list(range(1, STEPS + 1)), f"{losses}")
    with Cluster() as c:  # a run that has them from the beginning has the same initial values
        start(c)
        create(c, classes=NEW, samples=700 + 10 * (NEW - OLD))
        c.ctl("pause")
        _, state = blocks(c)
        check(matrix(state, "values")[OLD:].tobytes() == seen["values"].tobytes(), "the seed's rows")
    for shards in (1, 3):
        check(grown_run(shards)[0] == digest, f"other bits on {shards} shards")


def kill_all(c, shards):
    """kill -9 of scheduler and shards; all come back."""
    c.scheduler.kill()
    for shard in shards:
        shard.kill()
    c.start_scheduler()
    for i, shard in enumerate(shards):
        shards[i] = c.restart_shard(shard)


def test_killed():
    """Everything dies right after the growth, some steps later, and twice."""
    rng = random.Random(SEED)
    digest, losses = grown_run()
    for moment in (0, rng.randint(1, 5), rng.randint(6, STEPS - AT - 2)):
        with Cluster() as c:
            c.start_scheduler()
            shards = [*c.start_shards(2, *OFTEN)]
            create(c)
            pause_at(c, AT, c.start_worker)
            grow(c)
            for _ in range(2):
                kill_all(c, shards)
                wait_until("the run", lambda: c.status().state == "paused" and c.status(), 60, context=c.tails)
                if moment:
                    pause_at(c, AT + moment, lambda: c.ctl("resume"))
            step, end = finish(c)
            check((step, end) == (STEPS, digest), f"killed {moment} steps after the growth: other bits")
            check([(p.step, p.loss) for p in c.history()] == losses, "other losses")


def grown_in_spite(c, shards, victim, delay):
    """Somebody is killed so long after `grow` was called, and comes back; whoever asked asks again if nothing came of it."""
    asked = subprocess.Popen([BIN / "shardfc", "grow", "--scheduler", c.address, "--classes", str(NEW)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    if victim == "scheduler":
        c.scheduler.kill()
        c.start_scheduler()
    elif victim == "worker":
        c.workers.pop().kill()
        c.start_worker()
    elif victim == "all":
        kill_all(c, shards)
    else:
        shards[victim].kill()
        shards[victim] = c.restart_shard(shards[victim])
    said = [asked.communicate(timeout=60 * TIME_SCALE)[1].strip()]

    def grown():
        shown = c.ctl_json("status")
        check(shown["state"] in ("paused", "running", "loading"), f"{shown}")
        if shown["classes"] == NEW:
            return True
        done = c.ctl("grow", "--classes", NEW, check=False)
        check(done.returncode == 0 or done.stderr.strip(), "refused without a word")
        said.append(done.stderr.strip())
        return done.returncode == 0
    wait_until("the growth", grown, 60, context=lambda: "\n".join([*said, c.tails()]))
    return said


def die_while_it_grows(cases, live):
    """cases: (victim, durable_every). Paused, or (live) while it trains: then the reference is made for the step that came out."""
    rng, clock, steps = random.Random(SEED), [], 300 if live else STEPS
    note = lambda c: clock.append(time.monotonic())  # noqa: E731
    reference = {AT + 1: grown_run(before=note, after=note, steps=steps)}
    took = clock[1] - clock[0]
    for victim, every in cases:
        delay = rng.uniform(0, 1.3 * took)
        with Cluster() as c:
            c.start_scheduler()
            shards = [*c.start_shards(2, *OFTEN)]
            create(c, keeping=pb.RunKeeping(durable_every=every), steps=steps)
            if live:
                c.start_worker()
                c.wait_step(AT // 2)
            else:
                pause_at(c, AT, c.start_worker)
            said = grown_in_spite(c, shards, victim, delay)
            step, end = finish(c, steps)
            losses = [(p.step, p.loss) for p in c.history()]
            held = c.hold()
            (growth,) = held.map.growths
            c.release(held)
        if growth.from_step not in reference:
            reference[growth.from_step] = grown_run(at=growth.from_step - 1, steps=steps)
        check((step, end) == (steps, reference[growth.from_step][0]) and losses == reference[growth.from_step][1],
              f"{victim} killed {delay:.3f} s after a growth was asked for, durable every {every}: other bits from step "
              f"{growth.from_step} on; {said}")


def test_dies():
    """Scheduler, shard, worker or everybody dies somewhere between the wish and the map: one growth comes of it, and exact state."""
    die_while_it_grows([("scheduler", 1), (0, 1), (1, 4), ("all", 4)], False)


def test_dies_often():
    die_while_it_grows([(victim, every) for every in (1, 5) for victim in ("scheduler", 0, 1, "all") for _ in range(4)], False)
    die_while_it_grows([(victim, every) for every in (1, 5) for victim in ("scheduler", 0, "worker", "all")], True)


def mirrored(c, n):
    """Waits until others can restore each of the n shards, with all the blocks that it has."""
    def there():
        now = members(c)
        return len(now) == n and all(any(m["complete"] and m["blocks"] == s["blocks"] for m in s["mirrors"]) for s in now)
    wait_until(f"{n} shards to be mirrored", there, 120, context=lambda: f"{members(c)}\n{c.tails()}")


def test_mirrored():
    """New blocks and new rows are mirrored like the others: two of three machines may go for good, one after the other."""
    digest, losses = grown_run()
    with Cluster() as c:
        c.start_scheduler(*LEASE)
        c.start_shards(3, *OFTEN)
        create(c, keeping=pb.RunKeeping(durable_every=1, mirrors=1, grace_s=1))
        pause_at(c, AT, c.start_worker)
        mirrored(c, 3)
        grow(c)
        for left in (2, 1):
            mirrored(c, left + 1)
            destroy(c, c.shards[left // 2])
            given_up(c, left)
        check(finish(c) == (STEPS, digest), "other bits")
        check([(p.step, p.loss) for p in c.history()] == losses, "other losses")


def test_etcd():
    """The leader dies right after a growth, and the standby has it from etcd."""
    digest, losses = grown_run()
    with Schedulers() as c:
        c.start_etcd(1)
        c.start_all(2)
        c.start_shards(2, *OFTEN)
        create(c)
        pause_at(c, AT, c.start_worker)
        grow(c)
        gone = c.leader()
        gone.kill()
        c.schedulers.remove(gone)
        wait_until("the standby", lambda: c.status().state == "paused" and c.status(), 60, context=c.tails)
        growths = c.ctl_json("status")["growths"]
        check([g["classes"] for g in growths] == [NEW], f"{growths}")
        check(finish(c) == (STEPS, digest), "other bits")
        check([(p.step, p.loss) for p in c.history()] == losses, "other losses")


class Labelled:
    """A session whose labels are those of the old identities up to a step, and of new ones after it."""

    def __init__(self, c):
        c.create_run(**session_config(steps=400))
        self.c, self.session, self.first_new = c, Session(c), 1 << 40
        self.classes = self.session.config.classes

    def steps(self, n):
        for _ in range(n):
            t = self.session.step
            features, labels = batch(np.random.default_rng(t), self.session.config)
            labels[0] = self.classes + 499 if t >= self.first_new else self.classes - 1
            self.session.train_step(features, labels)

    def grow(self):
        return grow(self.c, self.classes + 500)["from_step"]


def test_session():
    """A foreign framework trains on while the run grows, or stands; then it uses the new labels. The bits are the same."""
    with Cluster() as c:
        start(c)
        run, grown = Labelled(c), []
        run.steps(3)
        asks = threading.Thread(target=lambda: grown.append(run.grow()))
        asks.start()
        while asks.is_alive():
            run.steps(1)
        asks.join()
        check(len(grown) == 1 and c.ctl_json("status")["classes"] == run.classes + 500, f"{c.ctl_json('status')}")
        run.first_new = run.session.step
        run.steps(3)
        try:
            run.session.announce([run.classes + 500] * run.session.config.global_batch)
            check(False, "a label that is no identity was taken")
        except grpc.RpcError as e:
            check(e.code() == grpc.StatusCode.INVALID_ARGUMENT and "900 of 900 classes" in e.details(), f"{e}")
        expected = c.state_digest()
    with Cluster() as c:
        start(c, 1)
        other = Labelled(c)
        other.steps(grown[0] - 1)
        check(other.grow() == grown[0], "a session that stands still grows with its next step")
        other.first_new = run.first_new
        other.steps(expected[0] - grown[0] + 1)
        check(c.state_digest() == expected, "other bits where the session stood still")


def test_tls():
    """Where members know each other by certificates, a growth takes an admin's; its bits are those without."""
    words = ("--run", "r", "--classes", OLD, "--samples", 7000, "--dim", 16, "--block-size", BLOCK, "--global-batch", 64,
             "--micro-batch", 16, "--steps", STEPS)

    def story(c, ctl, train):
        wait_until("the shards", lambda: sum(s["state"] == "ready" for s in json.loads(ctl("status", "--json"))["shards"]) == 2,
                   30, context=c.tails)
        ctl("create", *words)
        ctl("pause")
        check(json.loads(ctl("grow", "--classes", NEW, "--json"))["from_step"] == 1, "not with the first step")
        ctl("resume")
        train()
        wait_until("the end", lambda: json.loads(ctl("status", "--json"))["state"] == "finished", 60, context=c.tails)
        return json.loads(ctl("checkpoint", "--out", c.folder / "end", "--json"))["digest"]

    with Cluster() as c:
        start(c)
        plain = story(c, lambda *argv: c.ctl(*argv).stdout, c.start_worker)
    with Cluster() as c:
        pki = c.folder / "pki"
        pki.mkdir()
        expect(tool("shardfc", "cert", "init", "--out", pki / "ca"), 0)
        for role in ("scheduler", "shard", "worker", "admin"):
            expect(tool("shardfc", "cert", "issue", "--ca", pki / "ca", "--role", role, "--name", role, "--out", pki / role,
                        "--host", "127.0.0.1"), 0)
        begin = lambda role, *argv: c.start(role, [BIN / f"shardfc-{role}", "--tls", pki / role, *argv])
        there = begin("scheduler", "--listen", "127.0.0.1:0", "--state", c.folder / "scheduler").wait_listening()
        for k in range(2):
            begin("shard", "--scheduler", there, "--listen", "127.0.0.1:0", "--state", c.folder / f"shard{k}", "--threads", 1)
        train = lambda: begin("worker", "--scheduler", there, "--data", "synthetic", "--threads", 1)
        ask = lambda who, command, *argv: tool("shardfc", command, "--scheduler", there, "--tls", pki / who, *argv)
        secured = story(c, lambda *argv: expect(ask("admin", *argv), 0).stdout, train)
        check(secured == plain, f"other bits: {secured}, not {plain}")
        expect(ask("worker", "grow", "--classes", NEW + 1), 1, "admin")


def test_modes():
    """Lazy momentum, AdamW, bf16, durable points; a second growth; a move of a block that grew."""
    for fields in (dict(momentum_mode="dense"), dict(optimizer="adamw", momentum=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8),
                   dict(dtype="bf16", gemm="bf16", momentum_mode="dense")):
        digest, losses = grown_run(**fields)
        with Cluster() as c:
            c.start_scheduler()
            shards = [*c.start_shards(3, *OFTEN)]
            create(c, **fields)
            pause_at(c, AT, c.start_worker)
            grow(c)
            kill_all(c, shards)
            c.wait_ready(*shards)
            c.ctl("drain", str(c.status().shards[0].id))
            kill_all(c, shards)
            wait_until("the run", lambda: c.status().state == "paused" and c.status(), 60, context=c.tails)
            step, end = finish(c)
            check((step, end) == (STEPS, digest), f"{fields}: other bits")
            check([(p.step, p.loss) for p in c.history()] == losses, "other losses")


def test_restored():
    """A checkpoint of after the growth goes on with the same bits, on another number of shards; then it grows again."""
    digest, losses = grown_run()
    with Cluster() as c:
        start(c)
        create(c)
        worker = pause_at(c, AT, c.start_worker)
        before = c.folder / "before"
        c.ctl("checkpoint", "--out", before)
        grow(c)
        at_growth, later = c.folder / "growth", c.folder / "later"
        c.ctl("checkpoint", "--out", at_growth)
        pause_at(c, AT + 6, lambda: c.ctl("resume"))
        c.ctl("checkpoint", "--out", later)
        c.ctl("stop")
        worker.terminate()
        for folder, step in ((at_growth, AT), (later, AT + 6)):
            checked = one_json(tool("shardfc", "verify", folder, "--json"))
            check(checked["step"] == step, f"{checked}")
            c.ctl("restore", "--from", folder)  # stands at its step without a worker
            c.ctl("pause")
            worker = c.start_worker()
            shown = c.ctl_json("status")
            check(shown["classes"] == NEW, f"{shown}")
            check(finish(c) == (STEPS, digest), f"restored from step {step}: other bits")
            check([(p.step, p.loss) for p in c.history()] == losses[step:], "other losses")
            c.ctl("stop")
            worker.terminate()
        c.ctl("restore", "--from", before)
        c.ctl("pause")
        grow(c)
        c.start_worker()
        check(finish(c) == (STEPS, digest), "restored from before the growth: other bits")


def test_data():
    """Images: the larger set begins with the old one. Workers with the old set leave, those with the new one join before."""
    def run(kill):
        with Cluster() as c:
            c.start_scheduler()
            shards = [*c.start_shards(2, *OFTEN)]
            old, new, other = (c.folder / name for name in ("old", "new", "other"))
            for folder, count, seed in ((old, 80, 1), (new, 140, 1), (other, 140, 2)):
                subprocess.run([IMAGE_TOOL, folder, str(count), "8", str(seed)], check=True)
            c.ctl("create", "--run", "images", "--data", old, "--backbone", "tiny", "--dim", "32", "--sample-rate", "0.2",
                  "--global-batch", "64", "--micro-batch", "16", "--steps", STEPS, "--augment", "0.12,0.5,0.08",
                  "--block-size", "32", "--momentum-mode", "dense")
            before = pause_at(c, AT - 4, lambda: c.start_worker(data=old))
            expect(c.ctl("grow", "--classes", "140", check=False), 2, "--data")
            expect(c.ctl("grow", "--data", new, check=False), 1, "no worker has the new data set")
            expect(c.ctl("grow", "--data", other, check=False), 2, "does not begin with")
            wrong = c.start_worker(data=other)
            c.start_worker(data=new)
            wait_until("the worker with the new set", lambda: len(c.status().workers) == 2, 60, context=c.tails)
            done = one_json(c.ctl("grow", "--data", new, "--json", check=False))
            check((done["classes"], done["from_step"], done["data_step"]) == (140, AT - 3, AT + 1), f"{done}")
            wait_until("the old worker to be refused", lambda: "grown to" in before.stderr(), 60, context=c.tails)
            wait_until("the other one to be refused", lambda: "nor one that begins with it" in wrong.stderr(), 60, context=c.tails)
            check(len(c.status().workers) == 1, c.tails())
            if kill:
                kill_all(c, shards)
                wait_until("the run", lambda: c.status().state == "paused" and c.status(), 60, context=c.tails)
                c.start_worker(data=new)
            end = finish(c)
            # 640 samples are 10 steps: epochs of the larger set begin at step 21, and it has 17.5 steps
            check(abs(c.status().epoch - (2 + (STEPS - 20) * 64 / 1120)) < 1e-9, f"epoch {c.status().epoch}")
            return end, [(p.step, p.loss) for p in c.history()]
    check(run(False) == run(True), "kill -9 of everything: other bits")


TESTS = {"usage": test_usage, "together": test_together, "live": test_live, "killed": test_killed, "dies": test_dies, "dies_often": test_dies_often,
         "mirrored": test_mirrored, "etcd": test_etcd, "session": test_session, "tls": test_tls, "modes": test_modes,
         "restored": test_restored, "data": test_data}

if __name__ == "__main__":
    for name in sys.argv[1:] or TESTS:
        try:
            TESTS[name]()
        except BaseException:
            print(f"{name}: SFC_SEED={SEED}", file=sys.stderr)
            raise
        print(f"{name}: ok")
