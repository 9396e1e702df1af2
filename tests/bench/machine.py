"""The machine that benchmarks run on: what it is, who else uses it meanwhile, and whether it can hold a report."""
import argparse
import datetime
import os
import pathlib
import platform
import resource
import time

TICK = os.sysconf("SC_CLK_TCK")
PROCESSORS = os.cpu_count()
QUIET = 0.05
# What decides about the speed of products and of the loops around them.
FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16")


def cpu_fields():
    fields = {}
    for line in open("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def describe():
    fields = cpu_fields()
    flags = fields.get("flags", "").split()
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {"cpu": fields.get("model name", platform.machine()), "processors": PROCESSORS,
            "features": [f for f in FEATURES if f in flags], "memory_bytes": memory()["MemTotal"],
            "kernel": platform.release(), "huge_pages": huge.read_text().strip() if huge.exists() else "none",
            "date": datetime.date.today().isoformat()}


def memory():
    """/proc/meminfo in bytes."""
    found = {}
    for line in open("/proc/meminfo"):
        name, value = line.split(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def busy_seconds():
    """Of all processors since the start; waiting for disks and stolen time don't count."""
    fields = open("/proc/stat").readline().split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(f) for f in fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def used_seconds(pids):
    """Of these processes, of this one and of its children that have ended."""
    total = 0
    for pid in pids:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


class Others:
    """with Others(pids) as o: ...; o.share is what others used of the machine."""

    def __init__(self, pids=()):
        self.pids = list(pids)

    def __enter__(self):
        self.began, self.busy, self.used = time.monotonic(), busy_seconds(), used_seconds(self.pids)
        return self

    def __exit__(self, failed, *_):
        if failed:
            return  # some of them may have ended
        took = (time.monotonic() - self.began) * PROCESSORS
        other = busy_seconds() - self.busy - (used_seconds(self.pids) - self.used)
        self.share = max(0.0, other / took)


def report_path(text):
    """Type of an option that names a file to write at the end: better refused now than after all measuring."""
    path = pathlib.Path(text)
    writable = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir() or not os.access(writable, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} can't be written: it must be a file in a folder that exists")
    return path


def wait_quiet(seconds, pids):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with Others(pids) as o:
            time.sleep(1)
        if o.share < QUIET:
            return
