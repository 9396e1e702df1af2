#!/usr/bin/python3
"""Links between those who have to do with a move are cut, slow and come back while shards join and leave and blocks are
on their way (I2, I3).

    test_links_moves.py [--rounds N] [--seed S] [--longest SECONDS]

As test_links.py, with three shards of which one to three are part of the run. In each round the run is scaled, and once
a shard joins or blocks move, links are struck between source, destination and scheduler, or to a random host. Asserted:
new commits within 10 s of healing, none lost; every goal is reached after healing; in the end every block is on one shard
alone, and state and losses are those of an undisturbed run. Exit status 77: namespaces can't be made here.
"""
import argparse
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import hosts  # noqa: E402

if __name__ == "__main__":
    hosts.enter()

import grpc  # noqa: E402

import test_links  # noqa: E402
from cluster import Cluster, pb, wait_until  # noqa: E402
from inputs import check  # noqa: E402
from test_links import Spread, Trouble, losses, strike  # noqa: E402
from test_move_kills import check_owners, digest_at  # noqa: E402

SHARDS = ("shard1", "shard2", "shard3")
test_links.HOSTS = ["scheduler", *SHARDS, "worker1", "worker2"]
PAIRS = [(a, b) for i, a in enumerate(test_links.HOSTS) for b in test_links.HOSTS[i + 1:] if not a.startswith("worker")]
GOALS = (1, 3, 2, 3, 1, 2)
MOVE_RATE = "1M"  # bytes per second: what a goal moves is on its way for seconds
GOAL_S = 90


def create(c):
    c.create_run(steps=test_links.STEPS, momentum_mode="dense", classes=8192, block_size=256, dim=64, samples=8192, seed=3)


def reached(c, goal):
    now = c.status()
    return not now.goal and members(c) == goal


def ask(c, goal):
    def asked():
        try:
            return c.stub.Scale(pb.ScaleRequest(action=pb.ScaleRequest.SHARDS, shards=goal), timeout=30)
        except grpc.RpcError as e:
            if e.code() != grpc.StatusCode.UNAVAILABLE and (  # the end of the goal before is being stored
                    "does not answer: blocks move when it is back" not in (e.details() or "")):
                raise
    wait_until(f"the scheduler to take the goal of {goal} shards", asked, 30, context=c.tails)


def wait_goal(c, goal):
    wait_until(f"{goal} shards after healing", lambda: reached(c, goal), GOAL_S, context=lambda: f"{c.status()}\n{c.tails()}")


def under_way(c, goal):
    """What moves now, or "reached"."""
    now = c.status()
    moves = [m for m in now.moves if m.state in ("copying", "following", "taking")]
    return moves[0] if moves else "reached" if reached(c, goal) else None


def pairs_of(c, chance, move):
    """Links of those who have to do with it; now and then any."""
    if chance.random() < 0.15:
        return PAIRS
    names = {s.id: next((n for n in SHARDS if s.address.startswith(c.net.address(n) + ":")), None) for s in c.status().shards}
    concerned = {"scheduler", names.get(move.to), names.get(getattr(move, "from"))} - {None}
    return [p for p in PAIRS if set(p) <= concerned]


def members(c):
    return sum(s.member for s in c.status().shards)


def disturb(c, net, chance, goal, longest):
    """One round; how long commits took after healing, None where the goal was reached before anything could happen."""
    joins = goal > members(c) and chance.random() < 0.4  # the first that happens then
    ask(c, goal)
    if joins:
        pairs, what = [p for p in PAIRS if set(p) <= {"scheduler", *SHARDS}], "as shards join"
    else:
        move = wait_until(f"a move to {goal} shards", lambda: under_way(c, goal), GOAL_S, 0.01,
                          lambda: f"{c.status()}\n{c.tails()}")
        if move == "reached":
            return None
        time.sleep(chance.random())
        pairs, what = pairs_of(c, chance, move), f"{getattr(move, 'from')} -> {move.to} ({move.blocks} blocks, {move.state})"
    trouble = Trouble(chance, longest, pairs)
    print(f"to {goal} shards, {what}: {trouble}", flush=True)
    return strike(c, net, trouble)


def disturbed(rounds, seed, longest):
    chance = random.Random(seed)
    waits = []
    with hosts.Hosts(test_links.HOSTS) as net, Spread(net, SHARDS) as c:
        c.begin(create, "--move-rate", MOVE_RATE)
        c.wait_step(5)
        for i in range(10 * rounds):
            goal = GOALS[i % len(GOALS)]
            waited = disturb(c, net, chance, goal, longest)
            if waited is not None:
                waits.append(waited)
            wait_goal(c, goal)
            if len(waits) == rounds:
                break
        check(len(waits) == rounds, f"only {len(waits)} moves were struck")
        ask(c, 3)
        wait_goal(c, 3)
        held = c.hold()
        check_owners(c, held)
        c.release(held)
        held, digest = digest_at(c, 0)
        return held.step, digest, losses(c)[:held.step], waits


def undisturbed(step):
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        create(c)
        c.start_workers(1)
        held, digest = digest_at(c, step)
        check(held.step == step, f"held at step {held.step} instead of {step}")
        return digest, losses(c)[:step]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SFC_SEED", "1")))
    parser.add_argument("--longest", type=float, default=8, help="seconds, times 0.5 to 1.5")
    options = parser.parse_args()
    try:
        step, digest, seen, waits = disturbed(options.rounds, options.seed, options.longest)
        expected, lines = undisturbed(step)
        check(digest == expected, f"the state of step {step} is another one than that of an undisturbed run")
        check(seen == lines, "the losses differ")
    except BaseException:
        print(f"FAILED: --rounds {options.rounds} --seed {options.seed} --longest {options.longest}", file=sys.stderr)
        raise
    print(f"ok {options.rounds} moves struck, {step} steps; new commits at most {max(waits):.1f} s after healing")


if __name__ == "__main__":
    main()
