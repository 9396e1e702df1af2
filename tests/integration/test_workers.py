"""Workers come and go while a run goes on, and stand still: the run doesn't wait for them, and nothing of it
is in the result.

    test_workers.py [elastic] [slow] [map]
"""
import random
import signal
import sys
import time

from cluster import Cluster, Failure, once, wait_until
from test_train import SEED, check, check_records, make_images

STEPS, BATCH, MICRO = 200, 64, 8
LEASE = "600s"  # a worker that stands still counts as alive: only a second grant goes on without it


def counters(status):
    return {c.name: c.value for c in status.counters}


def second_tickets(status):
    found = counters(status)
    return found.get("second_grants", 0) + found.get("second_data_tickets", 0)


def worker_of(cluster, process):
    """What status says of a worker's process; None: it is no member."""
    return next((w for w in cluster.status().workers if w.name.endswith(f":{process.pid}")), None)


def start_run(cluster, shards=2):
    data = make_images(cluster)
    cluster.start_scheduler("--lease", LEASE)
    cluster.start_shards(shards)
    cluster.ctl("create", "--run", "workers", "--data", data, "--backbone", "tiny", "--dim", "64",
                "--sample-rate", "0.2", "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05",
                "--schedule", "poly:10", "--global-batch", BATCH, "--micro-batch", MICRO, "--steps", STEPS,
                "--augment", "0.12,0.5,0.08", "--seed", SEED, "--block-size", "32")
    return data


def finish(cluster):
    """(digest, losses) of a run that has ended, every sample having been used once per epoch."""
    status = cluster.wait_state("finished", 300)
    digest = cluster.state_digest()
    losses = [p.loss for p in cluster.history()]
    check_records(cluster, status.run_id, STEPS, BATCH, MICRO)
    return digest, losses


@once
def undisturbed():
    with Cluster() as c:
        data = start_run(c)
        c.start_worker(data=data)
        return finish(c)


def stand_still(cluster, worker, steps):
    """A worker with work stops for that many steps."""
    wait_until("the worker to hold a grant", lambda: worker_of(cluster, worker).tickets, 60, pause=0.001,
               context=cluster.tails)
    worker.signal(signal.SIGSTOP)
    before = cluster.status()
    after = cluster.wait_step(before.step + steps, 25)  # before the first of the scheduler's timeouts
    check(worker_of(cluster, worker), "the worker that stands still is no member any more")
    worker.signal(signal.SIGCONT)
    return second_tickets(after) - second_tickets(before)


def test_elastic():
    """1, 3, 1 workers, one of them killed, one stopped for a while: the same state and losses."""
    expected = undisturbed()
    chance = random.Random(SEED)
    with Cluster() as c:
        data = start_run(c)
        first = c.start_worker(data=data)
        c.wait_step(10)
        held = c.hold()  # however long they take to begin, there are steps left for them
        with c.keeping(held):
            second, third = c.start_workers(2, data=data, threads=2)
            wait_until("three workers", lambda: len(c.status().workers) == 3, 60, context=c.tails)
        c.release(held)
        c.wait_step(c.status().step + chance.randrange(5))
        wait_until("three workers at work", lambda: all(
            (s := worker_of(c, w)) and s.micro_batches for w in c.workers), 60, context=c.tails)
        again = stand_still(c, second, 20)
        check(again > 0, "nothing was given to a second worker while one stood still")
        member = worker_of(c, second)
        wait_until("the worker that stood still to work again",
                   lambda: worker_of(c, second).micro_batches > member.micro_batches, 60, context=c.tails)
        check(worker_of(c, second).id == member.id, "it joined again")
        check(" giving up " not in second.stderr(), f"it gave up more than void attempts\n{second.tail()}")
        time.sleep(chance.random() * 0.05)  # anywhere inside a step
        third.kill()
        c.wait_step(c.status().step + 5)
        check(second.terminate() == 0, f"a worker ended badly\n{second.tail()}")
        check(c.status().step < STEPS - 10, "the run ended before its last worker was alone")
        check(finish(c) == expected, "other results than those of the undisturbed run")
        check(first.running(), f"the first worker ended\n{first.tail()}")


def test_slow():
    """A worker that runs only a tenth of the time neither sets the pace nor changes the result."""
    expected = undisturbed()
    with Cluster() as c:
        data = start_run(c)
        fast, slow = c.start_workers(2, data=data)
        c.wait_step(10)
        while (status := c.status()).step < STEPS - 10:
            slow.signal(signal.SIGCONT)
            runs = time.monotonic()
            time.sleep(0.02)
            slow.signal(signal.SIGSTOP)
            time.sleep(9 * (time.monotonic() - runs))
            if status.state != "running":
                raise Failure(f"the run is {status.state}: {status.reason}")
        slow.signal(signal.SIGCONT)
        both = wait_until("both to be members", lambda: all(m := [worker_of(c, w) for w in (fast, slow)]) and m, 60,
                          context=c.tails)
        done = [m.micro_batches for m in both]
        check(done[1] * 3 < done[0], f"the slow worker has done {done[1]} micro-batches, the other {done[0]}")
        check(finish(c) == expected, "other results than those of the undisturbed run")


def test_map():
    """Shards come and go with dense blocks: workers take each new map, and stay the members that they were."""
    expected = undisturbed()
    with Cluster() as c:
        data = start_run(c, shards=1)
        c.start_shards(2)
        held = c.hold()  # however long they take to begin, there are steps left for them
        with c.keeping(held):
            workers = c.start_workers(2, data=data, threads=2)
            wait_until("both workers", lambda: all(worker_of(c, w) for w in workers), 60, context=c.tails)
        c.release(held)
        c.wait_step(5)
        members = [worker_of(c, w).id for w in workers]
        versions = {c.status().map_version}
        for shards in ("3", "2"):
            c.ctl("scale", "--shards", shards)
            versions.add(c.status().map_version)
        check(len(versions) == 3, f"versions of the map: {versions}")
        check(c.status().step < STEPS, "the run ended before its shards had moved")
        check([worker_of(c, w).id for w in workers] == members, "a worker joined again")
        digest, losses = finish(c)
        check(losses == expected[1], "other losses than those of the undisturbed run")
        check(digest == expected[0], "another state than that of the undisturbed run")
        for w in workers:
            check(w.stderr().count("joined run") == 1, f"it joined more than once\n{w.tail()}")


def main():
    for name in sys.argv[1:] or ["elastic", "slow", "map"]:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}, seed {SEED}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    # A signal from the test driver must still end the daemons.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
