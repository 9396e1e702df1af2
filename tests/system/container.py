"""A booted Debian 12 in a container, from nothing: debootstrap once (kept in build/system), an overlay for each
test, systemd-nspawn with a network of its own.

    with Container(packages) as c:
        c.run("systemctl", "start", "shardfc-scheduler")
Needs root, debootstrap, systemd-nspawn, overlayfs, and an apt mirror for the first time; Skip says what is missing.
"""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
KEPT = pathlib.Path(os.environ.get("SFC_SYSTEM_BASE", TOP / "build" / "system"))
MIRROR = os.environ.get("SFC_DEBIAN_MIRROR", "http://deb.debian.org/debian")
IN_BASE = ("systemd", "systemd-sysv", "dbus")


class Skip(Exception):
    pass


class Ended(AssertionError):
    """The container is no more."""


def call(*argv, check=True, seconds=60, **more):
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=seconds, stdin=subprocess.DEVNULL, **more)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def requirements():
    if os.geteuid() != 0:
        raise Skip("only root can boot a container")
    for program, package in (("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"),
                             ("nsenter", "util-linux")):
        if not shutil.which(program):
            raise Skip(f"no {program} (apt-get install {package})")


def depends(packages):
    """Names of what the packages need beside each other."""
    names = set()
    for package in packages:
        for group in call("dpkg-deb", "-f", package, "Depends").split(","):
            names.add(re.match(r"\s*([^\s|(]*)", group)[1])
    return sorted(n for n in names if n and not n.startswith(("shardfc", "libshardfc")))


def install(root, *options, seconds):
    return call("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "install", "-y", "-q",
                "--no-install-recommends", *options, seconds=seconds)


def fetch(root, names):
    """A mirror that does not answer skips the test; a package that Debian does not have fails it."""
    install(root, "--simulate", *names, seconds=60)
    try:
        install(root, "--download-only", "-o", "Acquire::Retries=3", *names, seconds=600)
    except AssertionError as error:
        raise Skip(f"apt-get from {MIRROR} (SFC_DEBIAN_MIRROR): {str(error)[-1000:]}") from None


def base(packages):
    """A Debian with what the packages need, made once."""
    names = depends(packages)
    path = KEPT / ("base-" + hashlib.sha256(repr((MIRROR, IN_BASE, names)).encode()).hexdigest()[:16])
    if path.exists():
        return path
    KEPT.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=KEPT, prefix="new-"))
    try:
        done = subprocess.run(["debootstrap", "--variant=minbase", f"--include={','.join(IN_BASE)}", "bookworm",
                               scratch, MIRROR], capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise Skip(f"debootstrap from {MIRROR} (SFC_DEBIAN_MIRROR): {done.stdout[-500:]}{done.stderr[-500:]}")
        (scratch / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (scratch / "usr/sbin/policy-rc.d").chmod(0o755)
        fetch(scratch, names)
        install(scratch, "--no-download", *names, seconds=300)
        (scratch / "usr/sbin/policy-rc.d").unlink()
        scratch.rename(path)
    except subprocess.SubprocessError as error:
        raise Skip(f"a Debian for the container: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def contained(pid):
    """Whether a process is there and in another pid namespace than we are. One of ours is no container's: whoever entered
    its namespaces would be on the host."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


class Container:
    def __init__(self, packages):
        requirements()
        self.lower = base(packages)
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=KEPT, prefix="boot-"))
        self.root = self.folder / "root"
        self.spawned = None
        self.leader = 0
        self.mount("-t", "tmpfs", "shardfc-test", self.folder)  # others keep the disk busy, and its limits are seconds
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir()
        self.mount("-t", "overlay", "shardfc-test", "-o",
                   f"lowerdir={self.lower},upperdir={self.folder}/upper,workdir={self.folder}/work", self.root)
        self.log = open(self.folder / "console", "w+")

    def mount(self, *argv):
        done = subprocess.run(["mount", *argv], capture_output=True, text=True)
        if done.returncode:
            self.remove()
            raise Skip(f"mount {argv[1]}: {done.stderr.strip()}")

    def __enter__(self):
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None and contained(self.leader):
            print(self.run("journalctl", "--no-pager", "-q", "-n", "60", "-o", "short-precise", "-u", "shardfc-*", check=False))
        self.close()

    def boot(self):
        self.spawned = subprocess.Popen(
            ["systemd-nspawn", "-q", "--boot", "-D", self.root, "--register=no", "--keep-unit", "--private-network",
             "--console=pipe"], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        end = time.monotonic() + 60
        while time.monotonic() < end and self.spawned.poll() is None:
            children = pathlib.Path(f"/proc/{self.spawned.pid}/task/{self.spawned.pid}/children").read_text().split()
            self.leader = next((int(child) for child in children if contained(child)), 0)  # the first helper is not
            if self.leader and self.is_up():
                return
            time.sleep(0.1)
        self.log.seek(0)
        self.leader = 0
        raise Skip(f"systemd-nspawn does not boot here: {self.log.read()[-800:]}")

    def is_up(self):
        try:
            return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")
        except Ended:
            return False

    def run(self, *argv, check=True, seconds=120):
        if not contained(self.leader):
            raise Ended("the container has ended")
        return call("nsenter", "-t", self.leader, "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                    "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", *argv, check=check, seconds=seconds)

    def close(self):
        if self.spawned and self.spawned.poll() is None:
            try:
                self.run("systemctl", "poweroff", "--force", "--force", check=False)  # never on the host: see there
            except Ended:
                pass
            try:
                self.spawned.wait(20)
            except subprocess.TimeoutExpired:
                self.spawned.kill()
                self.spawned.wait()
        self.log.close()
        subprocess.run(["umount", "-l", self.root], check=False)
        self.remove()

    def remove(self):
        subprocess.run(["umount", "-l", self.folder], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
