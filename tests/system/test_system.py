#!/usr/bin/python3
"""The packages of this build in a booted Debian 12, with apt and systemctl alone: install, configure, train, a shard
that is killed, one that stands still, reload, a good end, an upgrade in the middle of a run, removal and purge.

    test_system.py [--keep-base]     SFC_BUILD: the build folder, default build/release
"""
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

from container import TOP, Container, Skip, call

BUILD = pathlib.Path(os.environ.get("SFC_BUILD", TOP / "build" / "release"))
NEXT_VERSION = "99.0.0"
STEPS = 1000000  # more than the test waits for
SHARDS = (0, 1)


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def packages(version, folder):
    """cpack's packages of a version, in a folder."""
    more = ["-D", f"CPACK_PACKAGE_VERSION={version}"] if version else []
    call("cpack", "--config", BUILD / "CPackConfig.cmake", "-B", folder, *more, seconds=300, cwd=BUILD)
    found = {p.name.split("_")[0]: p for p in folder.glob("*.deb")}
    check({"shardfc-server", "shardfc-worker", "libshardfc0", "libshardfc-dev"} <= set(found), f"{found}")
    return found


def has_what_debian_wants(found):
    """Whose packages they are, what programs that link the library need, and pictures beside the text that shows them."""
    for package in found.values():
        maintainer = call("dpkg-deb", "-f", package, "Maintainer")
        check("@" in maintainer and "root@" not in maintainer and "localhost" not in maintainer, f"{package}: {maintainer}")
    library = found["libshardfc0"]
    shlibs, triggers = (call("dpkg-deb", "-I", library, name) for name in ("shlibs", "triggers"))
    version = call("dpkg-deb", "-f", library, "Version").strip()
    check(shlibs.strip() == f"libshardfc 0 libshardfc0 (>= {version})", shlibs)
    check(triggers.strip() == "activate-noawait ldconfig", triggers)
    for name, package in found.items():
        with tempfile.TemporaryDirectory() as folder:
            call("dpkg-deb", "-x", package, folder)
            doc = pathlib.Path(folder, "usr/share/doc", name)
            check({"copyright", "changelog.gz"} <= {p.name for p in doc.iterdir()}, f"{name}: {list(doc.iterdir())}")
            for page in doc.glob("*.md"):
                links = re.findall(r"\]\(([^)#:]+)[)#]", page.read_text())
                lost = [link for link in links if not (doc / link).exists()]
                check(not lost, f"{name}: {page.name} leads to {lost}")


class Machine:
    def __init__(self, container):
        self.c = container

    def run(self, *argv, **more):
        return self.c.run(*argv, **more)

    def wait(self, what, condition, seconds=60):
        end = time.monotonic() + seconds
        while True:
            result = condition()
            if result:
                return result
            check(time.monotonic() < end, f"waited {seconds} s for {what}: {self.run('systemctl', '--no-pager', 'status', 'shardfc-*', check=False)}")
            time.sleep(0.1)

    def show(self, unit, field):
        return self.run("systemctl", "show", "-P", field, unit).strip()

    def restarts(self, unit):
        return int(self.show(unit, "NRestarts"))

    def active(self, unit):
        return self.show(unit, "ActiveState") == "active"

    def status(self):
        text = self.run("shardfc", "status", "--json", check=False)
        return json.loads(text) if text.startswith("{") else {}

    def step(self):
        return self.status().get("step", -1)

    def wait_step(self, step, seconds=60):
        self.wait(f"step {step}", lambda: self.step() >= step, seconds)

    def goes_on(self):
        self.wait_step(self.step() + 3)

    def journal(self, unit, *more):
        return self.run("journalctl", "--no-pager", "-q", "-o", "cat", "-u", unit, *more)

    def install(self, found, *names):
        for name in names:
            shutil.copy(found[name], self.c.root / "root")
        self.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *[f"/root/{found[n].name}" for n in names])

    def configure(self):
        examples = "/usr/share/doc/shardfc-server/examples"
        self.run("cp", f"{examples}/scheduler.conf", f"{examples}/shard-0.conf", "/etc/shardfc/")
        self.run("cp", "/usr/share/doc/shardfc-worker/examples/worker-0.conf", "/etc/shardfc/")
        etc = self.c.root / "etc" / "shardfc"
        text = (etc / "shard-0.conf").read_text() + "memory = 256M\nthreads = 1\n"
        (etc / "shard-0.conf").write_text(text)
        (etc / "shard-1.conf").write_text(text.replace("7410", "7411").replace("shard-0", "shard-1"))


UNITS = ["shardfc-scheduler", *[f"shardfc-shard@{k}" for k in SHARDS], "shardfc-worker@0"]


def installs(m, found):
    m.install(found, "shardfc-server", "shardfc-worker", "libshardfc0", "libshardfc-dev")
    check("shardfc" in m.run("getent", "passwd", "shardfc"), "the user is there")
    check(not m.run("systemctl", "list-units", "--plain", "--no-legend", "shardfc-*.service").strip(), "nothing was started")
    done = m.run("systemctl", "start", "shardfc-scheduler", check=False)
    check("Assertion failed" in done and not m.active("shardfc-scheduler"), f"it does not start unconfigured: {done}")
    said = m.run("sh", "-c", "systemd-analyze verify --man=no shardfc-scheduler.service shardfc-shard@0.service "
                             "shardfc-worker@0.service 2>&1 | grep -i shardfc || true")
    check(not said.strip(), f"systemd-analyze verify: {said}")


def starts(m):
    """systemctl returns when they answer: the very next call is answered."""
    m.configure()
    m.run("systemctl", "enable", "-q", *UNITS)
    m.run("systemctl", "start", "shardfc.target", *UNITS)
    now = m.status()
    check(len(now["shards"]) == 2, f"both shards are known when systemctl returns: {now}")
    for unit in UNITS:
        check(m.active(unit), f"{unit} is active")
    check(m.run("stat", "-c", "%U %a", "/var/lib/shardfc/shard-0").split() == ["shardfc", "700"], "whose state it is")


def trains(m):
    m.run("shardfc", "create", "--run", "first", "--classes", "20000", "--dim", "64", "--sample-rate", "0.1",
          "--global-batch", "64", "--micro-batch", "16", "--steps", str(STEPS), "--block-size", "1024")
    m.wait_step(20)
    m.wait("the status text of a shard", lambda: re.match(r"run 1, step \d+, 10 class blocks", m.show("shardfc-shard@0", "StatusText")))
    m.wait("that of the scheduler", lambda: re.match(r"run 1, running: step \d+ of", m.show("shardfc-scheduler", "StatusText")))
    m.wait("that of the worker", lambda: re.match(r"run first, running: step \d+ of", m.show("shardfc-worker@0", "StatusText")))
    fields = m.run("journalctl", "-q", "--no-pager", "-u", "shardfc-shard@0", "-o", "json", "-n", "1")
    check(json.loads(fields).get("SYSLOG_IDENTIFIER") == "shardfc-shard", f"fields of the journal: {fields}")


def killed(m):
    pid, before = m.show("shardfc-shard@1", "MainPID"), m.restarts("shardfc-shard@1")
    m.run("sh", "-c", f"kill -KILL {pid}")
    m.wait("systemd to start it again", lambda: m.restarts("shardfc-shard@1") > before and m.active("shardfc-shard@1"))
    m.goes_on()
    check("recovered to step" in m.journal("shardfc-shard@1"), "it recovered")
    check(m.run("journalctl", "-q", "-o", "cat", "-u", "shardfc-shard@1", "SFC_RUN=1").strip(), "messages of the run by its number")


def starved(m):
    """A drop-in makes the watchdog quick; everything else is as it is shipped."""
    folder = m.c.root / "etc/systemd/system/shardfc-shard@0.service.d"
    folder.mkdir(parents=True)
    (folder / "watchdog.conf").write_text("[Service]\nWatchdogSec=3s\n")
    m.run("systemctl", "daemon-reload")
    m.run("systemctl", "restart", "shardfc-shard@0")
    m.goes_on()
    check(m.restarts("shardfc-shard@0") == 0, "a shard that works is left alone")
    m.run("sh", "-c", f"kill -STOP {m.show('shardfc-shard@0', 'MainPID')}")
    shutil.rmtree(folder)  # who runs keeps its watchdog; the next start has the one that is shipped
    m.run("systemctl", "daemon-reload")
    m.wait("the watchdog", lambda: m.restarts("shardfc-shard@0") == 1 and m.active("shardfc-shard@0"))
    check("watchdog" in m.run("journalctl", "-q", "--no-pager", "-u", "shardfc-shard@0").lower(), "because of the watchdog")
    check(m.show("shardfc-shard@0", "WatchdogUSec") == "2min", "from here on it is the one that is shipped")
    m.goes_on()


def reloads(m):
    conf = m.c.root / "etc/shardfc/shard-0.conf"
    pid = m.show("shardfc-shard@0", "MainPID")
    conf.write_text(conf.read_text().replace("threads = 1", "threads = 2") + "log-level = debug\n")
    m.run("systemctl", "reload", "shardfc-shard@0", "shardfc-scheduler", "shardfc-worker@0")
    m.wait("the reload", lambda: "--log-level has a new value" in m.journal("shardfc-shard@0"))
    check("--threads is another now, which the next start will use" in m.journal("shardfc-shard@0"), "what is not taken is said")
    check(m.show("shardfc-shard@0", "MainPID") == pid and m.active("shardfc-shard@0"), "the same process goes on")
    m.goes_on()


def replays(m, since):
    """Logged steps that starts since then went through."""
    found = []
    for k in SHARDS:
        for a, b in re.findall(r"recovered to step .* steps (\d+)\.\.(\d+) from the log", m.journal(f"shardfc-shard@{k}", "--since", since)):
            found.append(int(b) - int(a) + 1)
    return found


def ends_well(m):
    """All of it stops and starts again: no step is lost, and no logged step is gone through."""
    since = m.run("date", "+%F %T.%N").strip()[:-3]
    m.run("systemctl", "stop", "shardfc.target")
    for unit in UNITS:
        m.wait(f"{unit} to end", lambda: m.show(unit, "ActiveState") not in ("active", "deactivating"))
        check(m.show(unit, "ActiveState") == "inactive" and m.show(unit, "Result") == "success", f"{unit} ended well")
    steps = {re.findall(r"every block is on disk as it is after step (\d+)", m.journal(f"shardfc-shard@{k}", "--since", since))[-1]
             for k in SHARDS}
    check(len(steps) == 1, f"both shards ended at one step: {steps}")
    m.run("systemctl", "start", *UNITS)
    m.wait("the run to go on", lambda: m.status().get("state") == "running")
    check(m.step() >= int(*steps), f"nothing before step {steps} is done again")
    m.goes_on()
    check(replays(m, since) == [0, 0], f"no step of the log: {replays(m, since)}")


def upgrades(m, found):
    since = m.run("date", "+%F %T.%N").strip()[:-3]
    pids = {unit: m.show(unit, "MainPID") for unit in UNITS}
    before = m.step()
    m.install(found, "shardfc-server", "shardfc-worker", "libshardfc0", "libshardfc-dev")
    check(NEXT_VERSION in m.run("dpkg-query", "-W", "shardfc-server"), "the new version is there")
    for unit in UNITS:
        check(m.active(unit) and m.show(unit, "MainPID") != pids[unit], f"{unit} runs the new version")
    check("memory = 256M" in m.run("cat", "/etc/shardfc/shard-0.conf"), "the configuration stays")
    m.wait_step(before + 1)
    m.goes_on()
    check(replays(m, since) == [0, 0], f"the new version goes through no step of the old one's log: {replays(m, since)}")
    for name in ("shardfc-server", "shardfc-worker"):  # scripts may run again
        m.run("dpkg-reconfigure", name)
    m.goes_on()


def purges(m):
    m.run("apt-get", "remove", "-y", "-q", "shardfc-server", "shardfc-worker")
    check(not m.run("sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null | grep shardfc || true").strip(), "nothing runs any more")
    check("shard-0" in m.run("ls", "/var/lib/shardfc"), "removal keeps the state")
    check("shard-0.conf" in m.run("ls", "/etc/shardfc"), "and the configuration")
    m.run("apt-get", "purge", "-y", "-q", "shardfc-server", "shardfc-worker", "libshardfc0", "libshardfc-dev")
    left = m.run("sh", "-c", "find / -xdev -path /root -prune -o -path /proc -prune -o -path /sys -prune -o "
                             "-iname '*shardfc*' -print | grep -vE '^/var/(log|cache|lib/(dpkg|apt|systemd))/' || true")
    check(not left.strip(), f"purge leaves {left}")
    check(not m.run("systemctl", "--failed", "--no-legend", "--plain").strip(), "no unit has failed")


def timed(name, function, *args):
    began = time.monotonic()
    function(*args)
    print(f"{name}: fine, {time.monotonic() - began:.1f} s", flush=True)


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # by way of what removes the container
    scratch = BUILD / "system-packages"
    shutil.rmtree(scratch, ignore_errors=True)
    now, later = packages(None, scratch / "now"), packages(NEXT_VERSION, scratch / "next")
    try:
        timed("has_what_debian_wants", has_what_debian_wants, now)
        with Container(list(now.values())) as c:
            m = Machine(c)
            timed("installs", installs, m, now)
            for part in (starts, trains, killed, starved, reloads, ends_well):
                timed(part.__name__, part, m)
            timed("upgrades", upgrades, m, later)
            timed("purges", purges, m)
    except Skip as why:
        print(f"skipped: {why}")
        sys.exit(77)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
