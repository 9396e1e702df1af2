#!/usr/bin/python3
"""A shard whose step log is damaged below the last commit takes the lost steps from another shard of the run and
ends with the bits of a run that nothing happened to; what no other shard has is refused, with file, offset and
what to do.

    test_lost_log.py [flip|segment|all|both|backbone|owner|alone|answers ...]     default: all
"""
import random
import re
import signal
import struct
import subprocess
import sys
import time

import grpc

import cluster
from cluster import Cluster, once, pb, wait_until
from inputs import check

STEPS = 90
KILL_AT = 60
SEED = 1
# Some block has no snapshot at KILL_AT: recovery needs the whole log. Segments are an eighth of the limit: a few
# are closed by then.
WHOLE_LOG = ("--recovery-target", "1h", "--log-limit", "8M")
RECORD = struct.Struct("<4sIQQQQIIQQ")  # docs/FORMATS.md


def create(c, at=0):
    """Returns a hold of step `at`, asked for before there are workers."""
    c.create_run(classes=3000, samples=5000, steps=STEPS, seed=SEED, block_size=256, momentum_mode="dense",
                 dim=64, global_batch=128, micro_batch=32)
    asked = c.held_at(at) if at else None
    c.start_workers(2)
    return asked


def start(c, *extra):
    c.start_scheduler()
    c.start_shards(2, *(extra or WHOLE_LOG))


def result(c):
    return c.state_digest(), [p.loss for p in c.history()]


@once
def undisturbed():
    with Cluster() as c:
        start(c)
        create(c)
        c.wait_state("finished", 120)
        return result(c)


def segments(shard):
    return sorted(shard.state.glob("run-*/*.sfl"))


def content(path):
    """The bytes of a segment; none if it is trimmed meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def records(path):
    """(type, step, offset, bytes of the body) of the records of a segment."""
    return records_in(content(path))


def records_in(data):
    at = 256
    while at + RECORD.size <= len(data):
        magic, kind, size, step = RECORD.unpack_from(data, at)[:4]
        if magic != b"SFCr":
            at += 8
            continue
        yield kind, step, at, size
        at += 64 + (size + 7) // 8 * 8


def flip(shard, step):
    """One bit of the features of a step."""
    for path in segments(shard):
        for kind, of, at, size in records(path):
            if kind == 1 and of == step:
                with open(path, "r+b") as file:
                    file.seek(at + 64 + size // 2)
                    byte = file.read(1)[0]
                    file.seek(at + 64 + size // 2)
                    file.write(bytes([byte ^ 1]))
                return path.name
    raise cluster.Failure(f"no step {step} in {segments(shard)}")


def kill_at(c, asked, *shards):
    """Kills them at the step that was asked for, and not some steps later: what is in the log and in snapshots follows
    from the step."""
    held = c.hold(asked=asked)
    for shard in shards:
        shard.kill()
    c.release(held)


def stop_at(c, asked):
    kill_at(c, asked, *c.shards)
    for shard in c.shards:
        check(len(segments(shard)) > 2, f"{segments(shard)}")
        copied = {p.name.rsplit("-", 1)[0] for p in shard.state.glob("run-*/*.sfs")}
        check(len(copied) < 7, f"every block has a snapshot already: {copied}")


def back(c):
    """A shard that died in the last steps is needed for the digest only."""
    wait_until("the shards to be back", lambda: all("blocks are ready" in s.stderr() for s in c.shards), 60,
               context=c.tails)


def disturbed(damage):
    """A run whose shards both die; damage(shards) before they come back. Their stderr in the end."""
    with Cluster() as c:
        start(c)
        stop_at(c, create(c, KILL_AT))
        damage(*c.shards)
        for shard in list(c.shards):
            c.restart_shard(shard)
        c.wait_state("finished", 120)
        back(c)
        return result(c), [p.stderr() for p in c.shards]


def compare(damage, *words):
    expected = undisturbed()
    got, said = disturbed(damage)
    check(got == expected, f"state {got[0]}, undisturbed {expected[0]}; losses equal: {got[1] == expected[1]}")
    for word in words:
        check(any(re.search(word, text) for text in said), f"no '{word}' in\n{said[0]}\n{said[1]}")
    return said


def test_flip():
    """One bit of an old record. The step is in the shard's own log again afterwards: the second death needs
    nobody."""
    expected = undisturbed()
    with Cluster() as c:
        start(c)
        asked = create(c, KILL_AT)
        victim = c.shards[0]
        kill_at(c, asked, victim)
        name = flip(victim, 20)
        victim = c.restart_shard(victim)
        c.wait_step(KILL_AT + 10)
        said = victim.stderr()
        for word in (rf"{name}: bytes \d+ to \d+ of step 20", r"taking it from shard 127\.0\.0\.1:",
                     r" 1 steps of this shard's log were lost"):
            check(re.search(word, said), f"no '{word}' in {said}")
        told = rf"shard \d+: 1 steps of its log were lost \({name}: bytes \d+ to \d+.*came from other shards; check its disk"
        check(re.search(told, c.scheduler.stderr()), f"no '{told}' in {c.scheduler.stderr()}")
        counters = {x.name: x.value for x in c.status().counters}
        check(counters.get("log_steps_from_other_shards") == 1, f"{counters}")
        victim.kill()
        victim = c.restart_shard(victim)
        c.wait_state("finished", 120)
        back(c)
        check("taking it from" not in victim.stderr(), victim.stderr())
        got = result(c)
        check(got == expected, f"state {got[0]}, undisturbed {expected[0]}")


def test_segment():
    """A whole segment is gone, with its commits: the first, one in the middle."""
    for which in (0, 1):
        compare(lambda a, _: segments(a)[which].unlink(), "steps of this shard's log were lost")


def test_all():
    """The whole log is gone."""
    def damage(a, _):
        for path in segments(a):
            path.unlink()
    compare(damage, "segments are gone", r"steps of this shard's log were lost")


def test_both():
    """Two shards with different damage help each other while both recover."""
    def damage(a, b):
        flip(a, 12)
        flip(a, 40)
        flip(b, 13)
        flip(b, 41)
    said = compare(damage)
    check(all("taking it from" in text for text in said), f"{said[0]}\n{said[1]}")


def refused(c, shard, *words):
    now = wait_until("the refusal", lambda: next((s for s in [c.status()] if "can't recover" in s.reason), None), 60,
                     context=lambda: f"{c.status()}\n{c.tails()}")
    check(now.state == "running", f"{now}")
    for word in words:
        check(re.search(word, now.reason), f"no '{word}' in {now.reason}")


def test_alone():
    """Nobody to ask: refused as before, with file, offset, step and what to do. So is a step that the other shard
    has lost too, and with the undamaged files the run goes on."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1, *WHOLE_LOG)
        kill_at(c, create(c, 30), c.shards[0])
        name = flip(c.shards[0], 12)
        c.restart_shard(c.shards[0])
        refused(c, c.shards[0], "step 12", rf"{name}: bytes \d+ to \d+", "shardfc log", "checkpoint")
    with Cluster() as c:
        start(c)
        stop_at(c, create(c, KILL_AT))
        a, b = c.shards
        names = flip(a, 12), flip(b, 12)
        for shard in list(c.shards):
            c.restart_shard(shard)
        # one of them knows it from the other, which then waits for that one
        words = rf"step 12: lost \({names[0]}: bytes \d+ to \d+.*no other shard gives it.*no record of step 12.*checkpoint"
        wait_until("the refusal", lambda: any(re.search(words, s.stderr()) for s in c.shards), 30, context=c.tails)
        wait_until("`status` to say it", lambda: "step 12: lost" in c.status().reason, 60, context=lambda: f"{c.status()}")
        check(c.status().state == "running", f"{c.status()}")
        for shard in list(c.shards):
            shard.kill()
        flip(a, 12)
        for shard in list(c.shards):
            c.restart_shard(shard)
        c.wait_state("finished", 120)


def images(c, steps=STEPS, at=0):
    """A run with a small backbone. Returns a hold of step `at`, asked for before there are workers."""
    data = c.folder / "images"
    subprocess.run([cluster.BIN.parent / "tests" / "make_images", data, "300", "4", str(SEED)], check=True)
    c.ctl("create", "--run", "images", "--data", data, "--backbone", "tiny", "--dim", "64", "--sample-rate", "0.2",
          "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule", "poly:10", "--global-batch", "32",
          "--micro-batch", "16", "--steps", steps, "--seed", SEED, "--block-size", "32", "--momentum-mode", "sampled")
    asked = c.held_at(at) if at else None
    c.start_workers(2, data=data)
    return asked


def owners(c):
    """Shards in the order of c.shards: do they own dense blocks?"""
    held = c.hold()
    c.release(held)
    addresses = [s.address for s in held.map.shards]
    own = {addresses[o] for o in held.map.dense_owner}
    return [s.address in own for s in c.shards]


def test_backbone():
    """The gradient of a backbone's block is on its owner alone: a step that the block needs is refused."""
    with Cluster() as c:
        start(c, "--recovery-target", "1h", "--log-limit", "1G")
        held = c.hold(asked=images(c, at=30))
        own = owners(c)
        check(any(own), f"{own}")
        k = own.index(True)
        victim = c.shards[k]
        kill_at(c, held, victim)
        name = flip(victim, 10)
        victim = c.restart_shard(victim)
        refused(c, victim, "step 10", rf"{name}: bytes \d+ to \d+ of step 10", "dense block", "no other shard",
                "checkpoint")
        victim.kill()
        flip(victim, 10)
        victim = c.restart_shard(victim)
        c.wait_step(40)


def stamps(shard, kind):
    """{block: steps of its snapshots, newest first}."""
    found = {}
    for path in shard.state.glob(f"run-*/{kind}-*.sfs"):
        _, block, step = path.stem.split("-")
        found.setdefault(int(block), []).append((int(step), path))
    return {block: sorted(steps, reverse=True) for block, steps in found.items()}


def needed_by_classes(shard):
    """Makes a step that a class block of the shard needs and no dense block; None: not with these snapshots."""
    dense = min((steps[0][0] for steps in stamps(shard, "dense").values()), default=0)
    logged = {of for path in segments(shard) for kind, of, _, _ in records(path) if kind == 1}
    for steps in stamps(shard, "class").values():
        if len(steps) > 1 and steps[1][0] + 1 <= dense and steps[1][0] + 1 in logged:
            steps[0][1].unlink()
            return steps[1][0] + 1
    return None


def test_owner():
    """The owner of dense blocks takes a lost step from another shard when its dense blocks are past it."""
    with Cluster() as c:
        start(c, "--recovery-target", "50ms", "--log-limit", "1G")
        images(c, 600)
        k, step, at = None, None, 15
        while step is None:
            c.wait_step(at)
            k = owners(c).index(True) if k is None else k
            c.shards[k].kill()
            step = needed_by_classes(c.shards[k])
            if step is not None:
                flip(c.shards[k], step)
            victim = c.shards[k]
            again = c.restart_shard(victim)
            c.shards.insert(k, c.shards.pop())
            at += 30 # rounds of snapshots between two deaths
        c.wait_state("finished", 120)
        back(c)
        check(re.search(rf"step {step} is not in this shard's log .* taking it from shard", again.stderr()),
              again.stderr())
        got = result(c)
    with Cluster() as c:
        start(c)
        images(c, 600)
        c.wait_state("finished", 120)
        expected = result(c)
    check(got == expected, f"state {got[0]}, undisturbed {expected[0]}")


def ask(c, shard, **fields):
    try:
        return c.shard_stub(shard.address).ReadStep(pb.ReadStepRequest(**fields), timeout=60 * cluster.TIME_SCALE)
    except grpc.RpcError as error:
        return error.code()


def test_answers():
    """ReadStep answers whatever it is asked, of committed steps alone, alike on every shard, and no step waits."""
    code = grpc.StatusCode
    with Cluster() as c:
        start(c, "--recovery-target", "1h", "--log-limit", "1G")
        c.create_run(classes=3000, samples=5000, steps=100000, seed=SEED, block_size=256)
        c.start_workers(1)
        c.wait_step(20)
        run = c.status().run_id
        a, b = c.shards
        whole = ask(c, a, run_id=run, step=10, rows=32)
        check(whole.apply and len(whole.labels) == 32 and len(whole.payload) == 32 * 32 * 4, f"{whole}")
        check(whole == ask(c, b, run_id=run, step=10, rows=32, round=whole.round), "the shards differ")
        part = ask(c, a, run_id=run, step=10, first_row=30, rows=2)
        check(part.labels == whole.labels[30:] and part.payload == whole.payload[-256:], f"{part}")
        check(part.digest == whole.digest, "another digest")
        for fields, expected in ((dict(run_id=run + 1, step=10, rows=1), code.UNAVAILABLE),
                                 (dict(run_id=run, step=0, rows=1), code.INVALID_ARGUMENT),
                                 (dict(run_id=run, step=10, rows=0), code.INVALID_ARGUMENT),
                                 (dict(run_id=run, step=10, rows=33), code.INVALID_ARGUMENT),
                                 (dict(run_id=run, step=10, first_row=32, rows=1), code.INVALID_ARGUMENT),
                                 (dict(run_id=run, step=10, first_row=2**32 - 1, rows=2), code.INVALID_ARGUMENT),
                                 (dict(run_id=run, step=2**63, rows=1), code.UNAVAILABLE),
                                 (dict(run_id=run, step=10, rows=1, round=pb.Attempt(incarnation=9)), code.NOT_FOUND)):
            check(ask(c, a, **fields) == expected, f"{fields}: {ask(c, a, **fields)}")
        chance, end, answered = random.Random(SEED), c.status().step + 20, 0
        while (now := c.status().step) < end:
            got = ask(c, chance.choice(c.shards), run_id=run, step=chance.randrange(1, now + 3), rows=32)
            check(got in (code.UNAVAILABLE, code.NOT_FOUND) or got.apply, f"{got}")
            answered += not isinstance(got, code)
        check(answered > 0, "no answer beside a step")


def main():
    for name in sys.argv[1:] or ["flip", "segment", "all", "both", "backbone", "owner", "alone", "answers"]:
        begin = time.monotonic()
        globals()[f"test_{name}"]()
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
