#!/usr/bin/python3
"""Blocks of a paused run come over a slow link: four pieces of 4 MiB at a time would take longer than each may, and the move
would be given up and planned anew for ever.

    test_slow_link.py
"""
import socket
import threading
import time

from cluster import Cluster, Port, wait_until
from inputs import check

BYTES_PER_S = 1e6  # 8 Mbit/s
LATE_S = 0.05  # that is made up for after a sleep
FAR = "127.0.0.2"  # where the others see the shard behind the link


def pump(source, sink, slow):
    due = 0.0
    try:
        while data := source.recv(16384):
            if slow.is_set():
                now = time.monotonic()
                due = max(due, now - LATE_S) + len(data) / BYTES_PER_S
                time.sleep(max(0.0, due - now))  # what is tested: not a wait for something
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def carry(listener, port, slow):
    """All that comes from the shard takes its time once `slow` is set."""
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(("127.0.0.1", port))
        except OSError:  # it is not there yet
            near.close()
            continue
        for ends, rate in (((near, far), threading.Event()), ((far, near), slow)):
            threading.Thread(target=pump, args=(*ends, rate), daemon=True).start()


def link():
    """(port that both have free and that is kept, whether the link is slow)"""
    while True:
        listener = socket.create_server((FAR, 0))
        try:
            port = Port(listener.getsockname()[1])
        except OSError:
            listener.close()
            continue
        slow = threading.Event()
        threading.Thread(target=carry, args=(listener, port.number, slow), daemon=True).start()
        return port, slow


def main():
    port, slow = link()
    with Cluster() as c:
        c.start_scheduler()
        c.start_shard("--advertise", FAR, listen=port.address)
        wait_until("the shard", lambda: [s.state for s in c.status().shards] == ["ready"], 30, context=c.tails)
        c.create_run(classes=24000, samples=24000, dim=128, block_size=12000, steps=100000)
        c.start_worker()
        c.wait_step(3)
        c.ctl("pause")
        wait_until("the pause", lambda: c.status().state == "paused", 30)
        second = c.start_shard()
        wait_until("the second shard", lambda: len(c.status().shards) == 2, 30, context=c.tails)
        slow.set()
        c.ctl("scale", "--shards", "2", seconds=100)
        check("come from shard" in second.stderr() and " ends: " not in second.stderr(), second.tail())


if __name__ == "__main__":
    main()
