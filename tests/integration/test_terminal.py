#!/usr/bin/python3
"""`shardfc status` and `watch` on a terminal of 80 columns: nothing is wider, the view follows the run, and stays while
the scheduler is away."""
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading

from cluster import BIN, Cluster, wait_until
from inputs import check

ESCAPES = re.compile(r"\033\[\??\d*[A-Za-z]")


class Terminal:
    """A program whose output is a terminal of 80 columns and 24 rows."""

    def __init__(self, *argv):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen([str(a) for a in argv], stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.master, self.text = master, b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            while piece := os.read(self.master, 65536):
                self.text += piece
        except OSError:
            pass  # the program has ended

    def said(self):
        return self.text.decode().replace("\r", "")

    def views(self):
        """What it has drawn, one after the other."""
        return [ESCAPES.sub("", view) for view in self.said().split("\033[J")[1:]]

    def end(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        os.close(self.master)


def narrow(text):
    wide = [line for line in text.splitlines() if len(line) > 80]
    check(not wide, f"wider than 80 columns: {wide}")


def main():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(3)
        c.ctl("create", "--run", "seen", "--classes", 6000, "--samples", 12000, "--dim", 32, "--steps", 1000000, "--global-batch",
              32, "--micro-batch", 8, "--block-size", 256, "--mirror", 1)
        c.start_workers(2, data="synthetic")
        c.wait_step(2)
        status = Terminal(BIN / "shardfc", "status", "--scheduler", c.address)
        check(status.process.wait(60) == 0, status.said())
        wait_until("its output", lambda: "micro-batches" in status.said(), 20)
        narrow(status.said())
        status.end()
        watch = Terminal(BIN / "shardfc", "watch", "--scheduler", c.address, "--interval", "200ms")

        def steps():
            return [int(s) for view in watch.views() for s in re.findall(r"^step (\d+)/", view, re.M)]
        wait_until("three views of a run that goes on", lambda: len(set(steps())) >= 3, 60, context=watch.said)
        c.ctl("drain", 3)
        wait_until("the shard that left", lambda: re.search(r"^ +3 .* spare ", watch.views()[-1], re.M), 60, context=watch.said)
        c.scheduler.kill()
        wait_until("the loss of the scheduler", lambda: "does not answer" in watch.views()[-1], 60, context=watch.said)
        c.start_scheduler()
        last = c.status().step
        wait_until("the run again", lambda: steps()[-1] > last and "does not answer" not in watch.views()[-1], 120,
                   context=lambda: c.tails() + watch.said())
        check(watch.process.poll() is None, watch.said())
        watch.end()
        for view in watch.views():
            narrow(view)
            check(len(view.splitlines()) <= 24, f"more rows than the terminal has: {view}")


if __name__ == "__main__":
    main()
