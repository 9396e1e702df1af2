#!/usr/bin/python3
"""The limits per peer are taken up by a reload while a run is trained, and it goes on.

    test_limits.py [rate|calls|memory|connections ...]     default: all
"""
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "fault"))

import grpc

import attacks
from cluster import Cluster, wait_until
from inputs import check

HEALTH = "/grpc.health.v1.Health/Check"
CREATE = "/shardfc.v1.Scheduler/CreateRun"


class Limited(Cluster):
    """A scheduler with a file of options, a shard, a worker and a run."""

    def __init__(self):
        super().__init__()
        self.config = self.folder / "scheduler.conf"

    def begin(self, **limits):
        self.say(limits)
        self.start_scheduler("--config", self.config)
        self.start_shards(1)
        self.start_workers(1)
        self.create_run(steps=100000)
        self.wait_step(3)

    def say(self, limits):
        self.config.write_text("".join(f"{k.replace('_', '-')} = {v}\n" for k, v in limits.items()))

    def reload(self, **limits):
        taken = [f"reload: --{k.replace('_', '-')} has a new value" for k in limits]
        before = [self.scheduler.stderr().count(text) for text in taken]
        self.say(limits)
        self.scheduler.signal(signal.SIGHUP)
        for text, count in zip(taken, before):
            wait_until(text, lambda: self.scheduler.stderr().count(text) > count, 20, context=self.scheduler.tail)

    def goes_on(self):
        self.wait_step(wait_until("the status", self.patient_status, 60).step + 3)

    def patient_status(self):
        try:
            return self.status()
        except grpc.RpcError as e:
            check(e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, str(e))
            return None

    def wait_step(self, step):
        wait_until(f"step {step}", lambda: (now := self.patient_status()) and now.step >= step, 120, context=self.tails)

    def refused(self, text):
        return lambda: any("refused" in line and text in line for line in self.scheduler.stderr().splitlines())


def burst(c, count):
    """Health checks, all at once: what was refused, as text."""
    method = c.channel(c.address).unary_unary(HEALTH)
    refused = []
    for answer in [method.future(b"", timeout=60) for _ in range(count)]:
        try:
            answer.result()
        except grpc.RpcError as e:
            check(e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"{e.code()}: {e.details()}")
            refused.append(e.details())
    return refused


def rate():
    with Limited() as c:
        c.begin(peer_rate=0)
        check(burst(c, 500) == [], "no limit, and something was refused")
        c.reload(peer_rate=100)
        said = wait_until("a refusal", lambda: burst(c, 1000), 60)
        check(all("calls more often than --peer-rate 100 times per second: try later" in text for text in said), said[0])
        c.goes_on()
        c.reload(peer_rate=1000000)
        wait_until("all to be answered", lambda: burst(c, 500) == [], 60)
        c.goes_on()


def calls():
    with Limited() as c:
        c.begin(peer_calls=1000)
        c.reload(peer_calls=16)
        connection = attacks.Http2(attacks.Target(c.address))
        for _ in range(17):  # whose messages don't come
            connection.open("/shardfc.v1.Scheduler/Ticket")
        wait_until("a refusal", c.refused(f"{attacks.ELSEWHERE} has 16 calls that are not yet answered, limit --peer-calls 16"),
                   30, context=c.scheduler.tail)
        c.goes_on()
        connection.close()


def memory():
    with Limited() as c:
        c.begin(peer_memory="64M")
        body = b"\x9a\x3f" + bytes(n | 128 for n in (0, 0, 0)) + b"\1" + bytes(1 << 21)  # a field that nobody knows
        create = c.channel(c.address).unary_unary(CREATE)

        def answer():
            try:
                create(body, timeout=60)
            except grpc.RpcError as e:
                return e.code(), e.details()
            return None
        check(answer()[0] == grpc.StatusCode.INVALID_ARGUMENT, "2 MiB are within 64")
        c.reload(peer_memory="1M")
        code, text = answer()
        check(code == grpc.StatusCode.RESOURCE_EXHAUSTED and "limit --peer-memory 1048576" in text, f"{code} {text}")
        c.goes_on()


def connections():
    with Limited() as c:
        c.begin(peer_connections=100)
        c.reload(peer_connections=20)
        target = attacks.Target(c.address)
        sockets = [target.plain() for _ in range(25)]
        wait_until("a refusal", c.refused("there are 20 of this address (--peer-connections)"), 30, context=c.scheduler.tail)
        c.goes_on()
        attacks.shut(sockets)


PARTS = {"rate": rate, "calls": calls, "memory": memory, "connections": connections}


def main():
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
        print(f"ok   {part}", flush=True)


if __name__ == "__main__":
    main()
