#!/usr/bin/python3
"""Runs with --mirror: a shard machine that is lost for good, with its disk, is given up, and the run goes on with
the bits of a run that nothing happened to.

    test_mirror.py [lost|backbone|scheduler|only|wish|window|memory|late|lame|move|words ...]     default: all
"""
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from cluster import TIME_SCALE, Cluster, wait_until
from inputs import check, expect
from test_recovery import IMAGE_TOOL, OFTEN
from test_scale import blocks, command, digest, events

LEASE = ("--lease", f"{int(2500 * TIME_SCALE)}ms")


def start(c, shards, *extra):
    c.start_scheduler(*LEASE, *extra)
    c.start_shards(shards, *OFTEN)


def create(c, *extra):
    c.ctl("create", "--run", "r", "--classes", 8192, "--samples", 4096, "--dim", 16, "--block-size", 256,
          "--global-batch", 64, "--micro-batch", 16, "--steps", 1000000, *extra)


def create_images(c, *extra):
    data = c.folder / "images"
    subprocess.run([IMAGE_TOOL, data, "300", "4", "1"], check=True)
    c.ctl("create", "--run", "images", "--data", data, "--backbone", "tiny", "--dim", 64, "--sample-rate", 0.2, "--lr",
          0.05, "--global-batch", 64, "--micro-batch", 16, "--steps", 100000, "--block-size", 32, *extra)


def members(c):
    return [s for s in c.ctl_json("status")["shards"] if s["member"]]


def complete(c, n, seconds=120):
    """Waits until the run has n shards, and others can restore each of them, from copies."""
    def there():
        now = members(c)
        return len(now) == n and all(any(m["complete"] and m["oldest_step"] > 0 for m in s["mirrors"]) for s in now)
    wait_until(f"{n} shards to be mirrored", there, seconds, context=lambda: f"{members(c)}\n{c.tails()}")


def destroy(c, shard):
    """The machine: process and disk."""
    shard.kill()
    shutil.rmtree(shard.state)
    c.shards.remove(shard)


def given_up(c, n, seconds=120):
    wait_until(f"{n} shards to be left", lambda: len(members(c)) == n, seconds,
               context=lambda: f"{c.ctl_json('status')}\n{c.tails()}")


def check_bits(c, run):
    """Those of a run on one shard that nothing happened to."""
    got = digest(c, c.hold())
    with Cluster() as alone:
        start(alone, 1)
        run(alone)
        asked = alone.held_at(got[0])
        alone.start_workers(1, data=alone.folder / "images" if (alone.folder / "images").exists() else "synthetic")
        check(got == digest(alone, alone.hold(asked=asked)), "other bits than those of a run that nothing happened to")


def lose_two(c, run, data="synthetic"):
    """Two of three, one after the other; the last one goes on alone."""
    start(c, 3)
    run(c, "--mirror", 1, "--grace", "1s")
    c.start_workers(1, data=data)
    for left in (2, 1):
        complete(c, left + 1)
        destroy(c, c.shards[left // 2])
        given_up(c, left)
        c.wait_step(c.status().step + 3)
    check(len(members(c)[0]["mirrors"]) == 0, f"mirrors of the last one: {members(c)}")
    said = [e["what"] for e in events(c)]
    check(sum("was given up for lost" in t for t in said) == 2, f"events: {said}")
    check_bits(c, run)


def test_lost():
    with Cluster() as c:
        lose_two(c, create)


def test_backbone():
    """Dense blocks, whose gradients are in the logs of owners and mirrors alone."""
    with Cluster() as c:
        lose_two(c, create_images, c.folder / "images")


def test_scheduler():
    """The scheduler dies again and again while a shard is given up: the map decides, and the command sees it."""
    chance = random.Random(1)
    with Cluster() as c:
        start(c, 3)
        create(c, "--mirror", 1, "--grace", "0")
        c.start_workers(1)
        complete(c, 3)
        lost = members(c)[1]
        destroy(c, next(s for s in c.shards if s.address == lost["address"]))
        wait_until("it to be missing", lambda: any(s["missing_s"] > 0 for s in members(c)), 60,
                   context=lambda: str(members(c)))
        end = command(c, "drain", lost["id"], "--lost")
        wait_until("it to be noted", lambda: any("up for lost" in e["what"] for e in events(c)), 60, pause=0.01)
        for _ in range(4):
            time.sleep(chance.random() * 0.2)
            c.scheduler.kill()
            c.start_scheduler(*LEASE)
        end(0)
        check(lost["id"] not in blocks(c), f"blocks: {blocks(c)}")
        check_bits(c, create)


def test_only():
    """A machine is lost for good, and its mirror, which has the only copies, is silent for longer than the grace time: the
    mirror stays, and once it is there again the lost one is given up."""
    with Cluster() as c:
        start(c, 3)
        create(c, "--mirror", 1, "--grace", f"{int(3 * TIME_SCALE)}s")  # longer than from one lease's end to the other's
        c.start_workers(1)
        complete(c, 3)
        lost = members(c)[1]
        mirror = next(s for s in members(c) if s["id"] == lost["mirrors"][0]["shard"])
        silent = next(s for s in c.shards if s.address == mirror["address"])
        destroy(c, next(s for s in c.shards if s.address == lost["address"]))
        silent.signal(signal.SIGSTOP)
        word = f"shard {mirror['id']} is not given up: it may have the only copies"
        wait_until("it to be said", lambda: any(word in e["what"] for e in events(c)), 120,
                   context=lambda: f"{c.ctl_json('status')} {events(c)}")
        check(word in c.ctl("status").stdout, c.ctl("status").stdout)
        expect(c.ctl("drain", mirror["id"], "--lost", check=False), 1, word)
        expect(c.ctl("drain", lost["id"], "--lost", check=False), 1, f"shard {mirror['id']} is missing as well")
        check(len(members(c)) == 3, f"members: {members(c)}")
        silent.signal(signal.SIGCONT)
        given_up(c, 2)
        check(lost["id"] not in blocks(c) and mirror["id"] in blocks(c), f"blocks: {blocks(c)}")
        check_bits(c, create)


def test_wish():
    """What was answered stays: a scheduler that dies right after it has noted that a shard is lost gives it up. In an
    elastic run the blocks of the lost shard are spread over the others without a word; else the words are there."""
    for elastic in ("auto", "manual"):
        with Cluster() as c:
            start(c, 4)
            create(c, "--mirror", 1, "--grace", "0", "--elastic", elastic)
            c.start_workers(1)
            complete(c, 4)
            lost = members(c)[1]
            destroy(c, next(s for s in c.shards if s.address == lost["address"]))
            wait_until("it to be missing", lambda: any(s["missing_s"] > 0 for s in members(c)), 60,
                       context=lambda: str(members(c)))
            done = expect(c.ctl("drain", lost["id"], "--lost", "--no-wait", check=False), 0)
            check(("blocks move" if elastic == "auto" else "`shardfc rebalance`") in done.stdout, done.stdout)
            c.scheduler.kill()
            c.start_scheduler(*LEASE)
            given_up(c, 3)
            said = lambda word: any(word in e["what"] for e in events(c))
            if elastic == "auto":
                even = lambda: said("rebalances, because") and said("done: rebalance")  # by how fast each is
                wait_until("blocks to be spread", even, 120, context=lambda: f"{blocks(c)} {events(c)}")
            else:
                wait_until("the words to be there", lambda: said("`shardfc rebalance` spreads them"), 60,
                           context=lambda: str(events(c)))
                check(max(blocks(c).values()) == 16, f"{blocks(c)}")
            c.scheduler.kill()
            c.start_scheduler(*LEASE)
            c.wait_step(c.status().step + 3)
            check(len(members(c)) == 3, f"{members(c)}")
            check_bits(c, create)


def test_spread():
    """A scheduler that dies after a shard was given up, and before the blocks could be spread, for another goal was
    under way, spreads them when that is over, and once."""
    with Cluster() as c:
        start(c, 4)
        create(c, "--mirror", 1, "--grace", "0", "--elastic", "auto")
        c.start_workers(1)
        complete(c, 4)
        c.ctl("scale", "--shards", 5, "--no-wait")  # waits for one that never comes
        lost = members(c)[1]
        destroy(c, next(s for s in c.shards if s.address == lost["address"]))
        wait_until("it to be missing", lambda: any(s["missing_s"] > 0 for s in members(c)), 60,
                   context=lambda: str(members(c)))
        c.ctl("drain", lost["id"], "--lost", "--no-wait")
        given_up(c, 3)
        spreads = lambda: [e for e in events(c) if "rebalances, because" in e["what"]]
        check(not spreads(), f"{events(c)}")
        c.scheduler.kill()
        c.start_scheduler(*LEASE)
        c.wait_step(c.status().step + 2)
        check(not spreads() and "5 shards" in c.ctl_json("status")["goal"], f"{c.ctl_json('status')}")
        c.ctl("scale", "--cancel")
        even = lambda: spreads() and any("done: rebalance" in e["what"] for e in events(c))
        wait_until("blocks to be spread", even, 120, context=lambda: f"{blocks(c)} {events(c)}")
        c.scheduler.kill()
        c.start_scheduler(*LEASE)
        c.wait_step(c.status().step + 3)
        check(len(spreads()) == 1, f"{events(c)}")
        check_bits(c, create)


def test_window():
    """A shard that has just got blocks is lost before anybody has copies of them: status says that there are none, what
    is missing is named, nothing wrong happens, and it may come back with its disk. (Where the copies are there in time,
    it is given up.)"""
    with Cluster() as c:
        c.start_scheduler(*LEASE)
        c.start_shards(2)  # which copy at their leisure
        create(c, "--mirror", 1, "--grace", "1s")
        c.start_workers(1)
        wait_until("mirrors", lambda: "mirrors complete" in c.ctl("status").stdout, 60)
        c.start_shards(1)
        c.ctl("scale", "--shards", "3", "--no-wait")
        seen = lambda: re.search(r"([1-9]\d*) blocks? not yet mirrored", c.ctl("status").stdout) and blocks(c).get(3)
        wait_until("blocks that are not mirrored", seen, 60, pause=0.01, context=lambda: c.ctl("status").stdout)
        victim = c.shards[2]
        victim.kill()
        says = lambda: next((s["loss"] for s in members(c) if s["address"] == victim.address), "given up")
        said = wait_until("what becomes of it", lambda: re.search("no other shard can restore|given up", says()), 60,
                          context=says)
        c.ctl("scale", "--cancel")
        done = c.ctl("drain", "3", "--lost", check=False) if said[0] != "given up" else None
        in_time = not done or done.returncode == 0 or "takes no part" in done.stderr  # the last copies were written meanwhile
        if not in_time:
            expect(done, 1, "no other shard can restore")
            c.restart_shard(victim)
            wait_until("mirrors", lambda: "mirrors complete" in c.ctl("status").stdout, 120,
                       context=lambda: c.ctl("status").stdout)
            gone = "was given up for lost" in c.ctl("events").stdout  # the last copies were written before it came back
            check(c.ctl_json("status")["unmirrored"] == 0 and len(members(c)) == 3 - gone, f"{c.ctl_json('status')}")
        print("window:", said[0], flush=True)
        check_bits(c, create)


def test_memory():
    """A plan counts the memory that shards need for what they mirror: a small shard gets fewer blocks than without."""
    def third(mirrors, memory):
        with Cluster() as c:
            c.start_scheduler(*LEASE)
            c.start_shards(2)
            c.ctl("create", "--run", "r", "--classes", 65536, "--samples", 4096, "--dim", 512, "--block-size", 8192,
                  "--global-batch", 16, "--micro-batch", 16, "--steps", 1000, "--mirror", mirrors)
            if not memory:
                said = re.search(r"blocks \(\d+ classes\).* need ([0-9.]+) MiB: head ([0-9.]+) state", c.shards[0].stderr())
                return float(said[1]) - float(said[2])
            c.start_shards(1, "--memory", f"{memory}M")
            done = c.ctl("scale", "--shards", "3", "--dry-run", "--json", check=False)
            return done if done.returncode else len(json.loads(done.stdout)["moves"])
    block = 8192 * 512 * 8 / (1 << 20)
    room = round(third(0, 0) + 2.5 * block + 40)
    check(third(0, room) == 2, "a shard with room for two blocks gets others")
    few = third(1, room)
    if isinstance(few, int):
        check(few < 2, f"{few} blocks, as without mirrors")
    else:
        expect(few, 1, "MiB for those that it mirrors")


def test_late():
    """A machine that was only silent: it comes back after it was given up, and is a shard like any new one."""
    with Cluster() as c:
        start(c, 3)
        create(c, "--mirror", 1, "--grace", "1s")
        c.start_workers(1)
        complete(c, 3)
        late = c.shards[0]
        late.signal(signal.SIGSTOP)
        given_up(c, 2)
        late.signal(signal.SIGCONT)
        ready = lambda: [s for s in c.ctl_json("status")["shards"]
                         if s["address"] == late.address and s["state"] == "ready" and not s["member"]]
        wait_until("it to be there", ready, 60, context=lambda: f"{c.ctl_json('status')}\n{c.tails()}")
        c.wait_step(c.status().step + 3)
        expect(c.ctl("scale", "--shards", "3", check=False, seconds=240), 0)
        check(len(blocks(c)) == 3, f"blocks: {blocks(c)}")
        complete(c, 3)
        check_bits(c, create)


def comes_back_empty(c, noticed):
    """A machine whose disk is lost comes back with an empty one: it answers and can't recover, and is given up by
    command. noticed: it was missing for a while before."""
    start(c, 3)
    create(c, "--mirror", 1, "--grace", "0")
    c.start_workers(1)
    complete(c, 3)
    lame = c.shards[1]
    lame.kill()
    shutil.rmtree(lame.state)
    seen = lambda: next(s for s in members(c) if s["address"] == lame.address)
    if noticed:
        wait_until("it to be missed", lambda: seen()["state"] == "gone" and "--lost" in seen()["loss"], 60, context=c.tails)
    lame = c.restart_shard(lame)
    wait_until("it to answer and be missing", lambda: seen()["state"] == "recovering" and "--lost" in seen()["loss"], 60,
               pause=0.001, context=lambda: f"{c.ctl_json('status')}\n{c.tails()}")
    expect(c.ctl("drain", seen()["id"], "--lost", check=False, seconds=240), 0)
    check(len(members(c)) == 2, f"{members(c)}")
    check_bits(c, create)


def test_lame():
    for noticed in (False, True):
        with Cluster() as c:
            comes_back_empty(c, noticed)


def test_move():
    """Source or destination are lost for good while blocks move between them."""
    for victim in ("from", "to"):
        with Cluster() as c:
            start(c, 3, "--move-rate", "4K")
            create(c, "--mirror", 1, "--grace", "1s")
            c.start_workers(1)
            c.start_shards(1, *OFTEN)
            end = command(c, "scale", "--shards", "4")
            wait_until("the new shard to be a member", lambda: len(members(c)) == 4, 60)
            complete(c, 4)
            move = wait_until("blocks to be on their way", lambda: c.ctl_json("status")["moves"], 60, pause=0.01,
                              context=lambda: str(c.ctl_json("status")))[0]
            address = next(s["address"] for s in members(c) if s["id"] == move[victim])
            destroy(c, next(s for s in c.shards if s.address == address))
            given_up(c, 3)
            c.ctl("scale", "--cancel")
            end(1)
            check_bits(c, create)


def test_words():
    """What is refused, and what people see."""
    with Cluster() as c:
        start(c, 2)
        for mirrors, status, word in ((2, 2, "2 mirrors of each shard need 3 shards"), (9, 2, "--mirror")):
            expect(c.ctl("create", "--run", "r", "--classes", 8192, "--samples", 4096, "--steps", 10, "--mirror",
                         mirrors, check=False), status, word)
        create(c, "--mirror", 1, "--grace", "0")
        c.start_workers(1)
        expect(c.ctl("drain", "1", "--lost", check=False), 1, "shard 1 answers")
        expect(c.ctl("drain", "7", "--lost", check=False), 2, "shard 7")
        complete(c, 2)
        now = c.ctl_json("status")
        check(now["mirrors"] == 1 and now["grace_s"] == 0, f"keeping: {now}")
        check([[m["shard"] for m in s["mirrors"]] for s in now["shards"]] == [[2], [1]], f"mirrors: {now['shards']}")
        check("mirrors complete: 2 of 2 shards can be lost, 1 at a time" in c.ctl("status").stdout, "status")
        for leaves in (("drain", 2), ("scale", "--shards", 1)):
            plan = expect(c.ctl(*leaves, "--dry-run", check=False), 0).stdout
            check("0 of the 1 mirrors of each shard" in plan and "would be lost" in plan, f"plan: {plan}")
        destroy(c, c.shards[1])
        says = lambda: "drain 2 --lost" in c.ctl("status").stdout
        wait_until("what can be done", says, 60, context=lambda: c.ctl("status").stdout)
        plan = json.loads(expect(c.ctl("drain", "2", "--lost", "--dry-run", "--json", check=False), 0).stdout)
        check("are restored by shard 1" in plan["explanation"] and len(members(c)) == 2, f"plan: {plan}")
        expect(c.ctl("drain", "2", "--lost", check=False), 0)
        check(sorted(blocks(c)) == [1], f"blocks: {blocks(c)}")
        c.wait_step(c.status().step + 3)
        destroy(c, c.shards[0])
        wait_until("it to be missing", lambda: members(c)[0]["missing_s"] > 0, 60, context=lambda: str(members(c)))
        expect(c.ctl("drain", "1", "--lost", check=False), 1, "none mirrors it")


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok", flush=True)


if __name__ == "__main__":
    main()
