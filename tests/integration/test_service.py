#!/usr/bin/python3
"""What daemons do with the service manager, and how they end and reload when it says so.

    test_service.py [notify|stuck|reload|end|every|alone ...]     default: all

`notify` listens where systemd would; `stuck` stops the compute thread of a shard, and nothing else of it; `end`
ends shards in the middle of a run again and again: every block is on the disk as it is after one step, the next
start needs no logged step, and the run ends with the bits of one that nothing happened to; `every` does that with
durable points every 5 steps; `alone` ends a shard that waits for a scheduler that is gone.
"""
import ctypes
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time

from cluster import BIN, TIME_SCALE, Cluster, Port, once, scratch, wait_until
from inputs import check
from test_recovery import images, result

STEPS = 200  # the run is far from its end when the last shard has come back
ROOM_MB = 1000


class Manager:
    """The socket of a service manager, read all the time: its queue is short, and who finds it full waits. What came, by
    sender's process id."""

    def __init__(self, folder):
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.said, self.marks = {}, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            data, extra, _, _ = self.socket.recvmsg(4096, 64)
            pid = int.from_bytes(extra[0][2][:4], "little")
            with self.lock:
                self.said.setdefault(pid, []).extend(data.decode().splitlines())

    def env(self, **more):
        return dict(NOTIFY_SOCKET=self.path, **more)

    def read(self):
        with self.lock:
            return {pid: list(said) for pid, said in self.said.items()}

    def catch_up(self):
        """Until what was sent to it before this call has been read."""
        self.marks += 1
        mark = f"MARK={self.marks}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(mark.encode(), self.path)
        wait_until("the manager to read", lambda: mark in self.read().get(os.getpid(), []), 20)

    def lines(self, process, word):
        return [line for line in self.read().get(process.pid, []) if line.startswith(word)]

    def wait(self, process, word, seconds=20):
        return wait_until(f"{process.name} to say {word}", lambda: self.lines(process, word), seconds,
                          context=lambda: f"{self.read().get(process.pid)}\n{process.tail()}")


def notify():
    with Cluster() as c:
        manager = Manager(c.folder)
        port = Port()  # nobody else's until the scheduler comes
        c.port = port.number
        shard = c.start_shard(env=manager.env())
        manager.wait(shard, "STATUS=waiting for the scheduler at 127.0.0.1:")
        check(not manager.lines(shard, "READY=1"), "a shard is not ready before the scheduler knows it")
        c.start_scheduler(env=manager.env(WATCHDOG_USEC=str(int(2e6 * TIME_SCALE))))
        manager.wait(c.scheduler, "READY=1")
        manager.wait(c.scheduler, "STATUS=no run")
        manager.wait(shard, "READY=1")
        manager.wait(shard, "STATUS=no run is open here")
        check(not manager.lines(shard, "STATUS=stopping"), "nothing is stopping")
        worker = c.start("worker", [BIN / "shardfc-worker", "--scheduler", c.address, "--data", "synthetic"],
                         manager.env())
        manager.wait(worker, "READY=1")
        c.create_run(steps=30)
        c.wait_state("finished")
        manager.wait(c.scheduler, "STATUS=run 1, finished: step 30 of 30, loss ")
        manager.wait(shard, "STATUS=run 1, step 30, ")
        manager.wait(worker, "STATUS=run test, ")
        fed = len(manager.lines(c.scheduler, "WATCHDOG=1"))
        wait_until("the watchdog to be fed", lambda: len(manager.lines(c.scheduler, "WATCHDOG=1")) > fed, 20)
        c.scheduler.signal(signal.SIGSTOP)
        stands(c.scheduler.pid)
        manager.catch_up()
        fed = len(manager.lines(c.scheduler, "WATCHDOG=1"))
        time.sleep(2 * TIME_SCALE)
        manager.catch_up()
        check(len(manager.lines(c.scheduler, "WATCHDOG=1")) == fed, "who stands still does not feed the watchdog")
        c.scheduler.signal(signal.SIGCONT)
        for process in (worker, shard, c.scheduler):
            check(len(manager.lines(process, "READY=1")) == 1, f"{process.name} is ready once")
            check(process.terminate() == 0, f"{process.name} ends well")
            manager.wait(process, "STOPPING=1")


def stands(task):
    def is_stopped():
        return pathlib.Path(f"/proc/{task}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt"
    wait_until("it to stand still", is_stopped, 10)


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


def ptrace(request, task):
    if LIBC.ptrace(request, task, None, None) != 0:
        print(f"skipped: ptrace: {os.strerror(ctypes.get_errno())}")
        sys.exit(77)


def named(task):
    """The name of a thread; None when it has ended."""
    try:
        return pathlib.Path(f"/proc/{task}/comm").read_text().strip()
    except OSError:
        return None


def stuck():
    """Only the thread that computes stands still: the loop runs on, and does not feed the watchdog."""
    with Cluster() as c:
        manager = Manager(c.folder)
        c.start_scheduler()
        shard = c.start_shard(env=manager.env(WATCHDOG_USEC=str(int(1e6 * TIME_SCALE))))
        manager.wait(shard, "READY=1")
        c.start_workers(1)
        c.create_run(steps=100000)
        c.wait_step(3)
        task = next(t for t in map(int, os.listdir(f"/proc/{shard.pid}/task")) if named(t) == "sfc-compute")
        period = TIME_SCALE

        def starves():
            """Stopped for a while. Inside a copy of a block, which may take as long as it likes, it owes nothing."""
            ptrace(PTRACE_SEIZE, task)
            try:
                ptrace(PTRACE_INTERRUPT, task)
                os.waitpid(task, 0x40000000)  # __WALL
                time.sleep(3 * period)  # the period, and what the loop has on its way
                before = len(manager.lines(shard, "WATCHDOG=1"))
                check(before > 0, "the watchdog was never fed")
                time.sleep(2 * period)  # fed every half of one where the work goes on
                return len(manager.lines(shard, "WATCHDOG=1")) == before
            finally:  # a thread that is traced keeps its process from ending
                LIBC.ptrace(PTRACE_DETACH, task, None, None)
        check(any(starves() for _ in range(5)), "the loop feeds the watchdog while nothing computes")
        step, fed = c.status().step, len(manager.lines(shard, "WATCHDOG=1"))
        wait_until("the watchdog to be fed again", lambda: len(manager.lines(shard, "WATCHDOG=1")) > fed, 20)
        c.wait_step(step + 3)


def reload():
    with Cluster() as c:
        c.start_scheduler()
        config = c.folder / "shard.conf"
        config.write_text("snapshot-rate = 64M\nthreads = 1\n")
        shard = c.start("shard", [BIN / "shardfc-shard", "--config", config, "--scheduler", c.address,
                                  "--state", c.folder / "state"])
        shard.wait_listening()
        c.start_worker()
        c.shards.append(shard)
        wait_until("the shard to register", lambda: len(c.status().shards) == 1, 30)
        c.create_run(steps=20)
        config.write_text("snapshot-rate = 1M\nthreads = 2\nlog-level = debug\nlog-format = json\n")

        def said(process, text):
            return lambda: text in process.stderr()
        wait_until("the worker to join", said(c.workers[0], "joined run"), 30)  # before it is one, SIGHUP ends it
        for process in (shard, c.workers[0], c.scheduler):
            process.signal(signal.SIGHUP)
        wait_until("the rate to be taken", said(shard, "reload: --snapshot-rate has a new value"), 20)
        wait_until("threads to wait", said(shard, "reload: --threads is another now, which the next start"), 20)
        wait_until("the level to be taken", said(shard, "reload: --log-level has a new value"), 20)
        wait_until("the scheduler", said(c.scheduler, "reload: no option has another value"), 20)
        config.write_text("snapshot-rate = much\n")
        shard.signal(signal.SIGHUP)
        wait_until("a refusal", said(shard, f"reload: nothing is changed: {config} line 1: snapshot-rate"), 20)
        c.wait_state("finished")
        lines = shard.stderr().splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("{"))
        messages = [json.loads(line) for line in lines[first:]]  # from the reload on every line is an object
        check(all(m["program"] == "shardfc-shard" and m["pid"] == shard.popen.pid and m["time"].endswith("Z") for m in messages),
              str(messages))
        refused = next(m for m in messages if "nothing is changed" in m["message"])
        check(refused["level"] == "error" and refused["run"] == c.status().run_id and refused["step"] <= 20, str(refused))
        check(all(p.running() for p in (shard, c.workers[0], c.scheduler)), "all run on")
        for program, *argv in (("shardfc-shard", "--state", c.folder / "early"), ("shardfc-worker", "--data", "synthetic")):
            early(c, program, argv)


def early(c, program, argv):
    """SIGHUP while a program still reads its configuration for the first time: it reads it again later."""
    config = c.folder / f"{program}.fifo"
    os.mkfifo(config)
    process = c.start(program, [BIN / program, "--scheduler", c.address, "--config", config, *argv])
    with open(config, "w", encoding="utf-8") as first:  # open when the program has opened it
        process.signal(signal.SIGHUP)
        first.write("# nothing\n")
    wait_until(f"{program} to answer the signal", lambda: "reload: " in process.stderr() or not process.running() or
               feeds(config, "# nothing\n"), 30, context=process.tail)
    check(process.running(), f"SIGHUP ended {program}\n{process.tail()}")
    process.kill()


def feeds(fifo, text):
    """Gives the text to whoever reads a FIFO now, if anybody does."""
    try:
        end = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(end, text.encode())
        finally:  # an end that stays open would keep the reader waiting
            os.close(end)
    except OSError:
        pass


@once
def undisturbed():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        images(c, STEPS)
        c.wait_state("finished", 300)
        return result(c)


def ended(shard):
    """The step at which it said that it left every block on the disk."""
    found = re.findall(r"every block is on disk as it is after step (\d+)", shard.stderr())
    check(len(found) == 1, f"it says once where it ended\n{shard.tail()}")
    return int(found[0])


def no_replay(c, shard, step):
    """Where a shard began again: nothing of the log was gone through."""
    pattern = rf"recovered to step {step} in .* steps {step + 1}\.\.{step} from the log"
    wait_until(f"{shard.name} to go on from step {step}", lambda: re.search(pattern, shard.stderr()), 60,
               context=shard.tail)
    check(c.status().state == "running", "the run goes on")


def ends(*create):
    """In memory: a shard that waits 5 s for a disk that others keep busy ends before a step that is committed."""
    with Cluster(scratch(ROOM_MB)) as c:
        c.start_scheduler()
        c.start_shards(2)
        images(c, STEPS, *create)
        c.wait_step(5)
        one = c.shards[0]
        check(one.terminate(60) == 0, "it ends well")
        step = ended(one)
        check(step == c.status().step, f"it ended at step {step}, the run is at {c.status().step}")
        no_replay(c, c.restart_shard(one), step)
        c.wait_step(step + 8)
        both = list(c.shards)
        for shard in both:
            shard.signal(signal.SIGTERM)
        check([shard.wait(60) for shard in both] == [0, 0], "both end well")
        steps = {ended(shard) for shard in both}
        check(len(steps) == 1, f"both ended at one step: {steps}")
        for shard in both:
            no_replay(c, c.restart_shard(shard), steps.copy().pop())
        c.wait_state("finished", 300)
        got = result(c)
        check(got == undisturbed(), "the bits and losses of an undisturbed run")


def end():
    ends()


def every():
    ends("--durable-every", "5")


def alone():
    """A shard that said Ready waits for the scheduler, but not for ever."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        c.start_workers(1)
        c.create_run(steps=100000)
        c.wait_step(5)
        c.scheduler.kill()
        check(c.shards[0].terminate(60) == 0, "it ends well")
        c.start_scheduler()
        c.restart_shard(c.shards[0])
        c.wait_step(c.status().step + 5)


if __name__ == "__main__":
    cases = dict(notify=notify, stuck=stuck, reload=reload, end=end, every=every, alone=alone)
    for name in sys.argv[1:] or cases:
        cases[name]()
        print(f"{name}: fine", flush=True)
