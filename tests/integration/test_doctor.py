#!/usr/bin/python3
"""`shardfc doctor` finds planted faults, and says what to do, in 80 columns and as JSON.

    test_doctor.py [host|full|cluster|tls ...]     default: all
"""
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import tempfile

from cluster import BIN, Cluster, Port, wait_until
from inputs import check

TOOL = BIN / "shardfc"


def lacks(finding):
    """What a problem of the host's memory or disk is, without its numbers and folder; else None."""
    if (finding["level"], finding["where"]) == ("problem", "this host") and finding["what"] in ("memory", "disk"):
        return re.sub(r"^.*: |[\d.]+", "", finding["found"])
    return None


def doctor(*argv, code, env=None):
    """Its findings; both kinds of output agree and exit with this code. What this host lacks whatever is asked is no problem
    here, but "of the host"."""
    plain = subprocess.run([TOOL, "doctor", "--json", "--state", tempfile.gettempdir()], capture_output=True, timeout=300)
    before = {lacks(f) for f in json.loads(plain.stdout)["findings"]} - {None}
    argv = [str(a) for a in argv]
    environment = dict(os.environ, **(env or {}))
    shown = subprocess.run([TOOL, "doctor", *argv], capture_output=True, text=True, timeout=300, env=environment)
    told = subprocess.run([TOOL, "doctor", "--json", *argv], capture_output=True, text=True, timeout=300, env=environment)
    wide = [line for line in shown.stdout.splitlines() if len(line) > 80 and len(line.split()) > 1]
    check(not wide, f"wider than 80 columns: {wide}")
    report = json.loads(told.stdout)
    problems = [f for f in report["findings"] if f["level"] == "problem"]
    check(shown.returncode == told.returncode == bool(problems) and report["problems"] == len(problems),
          f"{argv}: {shown.returncode} {told.returncode}\n{shown.stdout}{shown.stderr}{told.stdout}")
    check(all(f["cure"] for f in problems), f"a problem without a cure: {problems}")
    check(f"{len(problems)} problem" in shown.stdout, shown.stdout)
    for f in problems:
        f["level"] = "of the host" if lacks(f) in before else "problem"
    check(code == any(f["level"] == "problem" for f in problems), told.stdout)
    return report["findings"]


def only(findings, level, what, words):
    found = [f for f in findings if f["level"] == level and f["what"] == what]
    check(len(found) == 1 and words in found[0]["found"], f"{level} {what} {words}: {json.dumps(findings, indent=1)}")
    return found[0]


def problems(findings):
    return [(f["where"], f["what"]) for f in findings if f["level"] == "problem"]


def host():
    """A host alone: what is there, a port that is taken, folders that are no folders, wrong usage."""
    with Cluster() as c:
        here = c.folder / "state"
        here.mkdir()
        free = Port()
        findings = doctor("--state", here, "--listen", free.address, code=0)
        free.close()
        whats = {f["what"] for f in findings if f["where"] == "this host"}
        check({"memory", "swap", "overcommit", "open files", "CPU", "GPU", "clock", "disk", "port"} <= whats, str(whats))
        check("numerics" not in whats and list(here.iterdir()) == [], "it left something behind")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            findings = doctor("--state", here, "--listen", f"127.0.0.1:{port}", code=1)
        check(f"sport = :{port}" in only(findings, "problem", "port", "in use")["cure"], str(findings))
        check(problems(findings) == [("this host", "port")], str(findings))
        findings = doctor("--state", here / "none", code=1)
        check("install -d" in only(findings, "problem", "disk", "No such file")["cure"], str(findings))
        for folder, words, cure in (("/proc", "keeps no files", "folder on a disk"), ("/dev/null", "no folder", "--state"),
                                    ("/dev/null/below", "no folder", "--state")):
            check(cure in only(doctor("--state", folder, code=1), "problem", "disk", words)["cure"], folder)
        only(doctor("--state", "etcd://10.0.0.1:2379/faces", code=0), "note", "disk", "etcd://10.0.0.1:2379/faces is no folder")
        for listen, words, cure in (
                ("1.2.3.4:99999", "port is not within 0..65535", "10.0.0.2:7410"), ("127.0.0.1:http", "port", "10.0.0.2:7410"),
                ("7410", "not HOST:PORT", "10.0.0.2:7410"), (":7410", "not HOST:PORT", "10.0.0.2:7410"),
                ("203.0.113.7:7410", "assign", "no interface here has it"), ("no-such-host.invalid:7410", "", "getent hosts")):
            check(cure in only(doctor("--state", "etcd://10.0.0.1:2379", "--listen", listen, code=1), "problem", "port", words)["cure"], listen)
        findings = doctor("--state", here, "--scheduler", "127.0.0.1:1", code=1)  # nobody is there
        only(findings, "problem", "process", "does not answer")
        for wrong in (["--nonsense"], ["--state"], ["more"], ["--state", ""]):
            done = subprocess.run([TOOL, "doctor", *wrong], capture_output=True, text=True, timeout=60)
            check(done.returncode == 2 and done.stderr, f"{wrong}: {done.returncode} {done.stderr}")


def full():
    """A disk without room, in a mount namespace of its own: needs root."""
    with Cluster() as c:
        disk = c.folder / "disk"
        disk.mkdir()
        script = ('mount -t tmpfs -o size=4m tmpfs "$1" && head -c "$2" /dev/zero >"$1/fill"; '
                  '"$3" doctor --json --state "$1"; echo " $?"')

        def inside(fill):
            done = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script, "-", str(disk), str(fill), TOOL],
                                  capture_output=True, text=True, timeout=120)
            if "mount:" in done.stderr or "unshare:" in done.stderr:
                print(f"skipped: no mount namespace here: {done.stderr.strip()}")
                sys.exit(77)
            report, code = done.stdout.rsplit(" ", 1)
            return json.loads(report)["findings"], int(code)
        findings, code = inside(8 << 20)  # more than there is: full
        check(code == 1, f"{code}: {findings}")
        found = [f for f in findings if f["what"] == "disk" and f["level"] == "problem"]
        check(any("No space left" in f["found"] for f in found), str(findings))
        check(any("make room" in f["cure"] for f in found), str(findings))


def cluster():
    """A run in good health has no problem; a shard that dies is named, with what the run waits for."""
    with Cluster() as c:
        c.start_scheduler()
        shards = c.start_shards(2)
        c.create_run(steps=1000000, classes=2000, samples=4000)
        c.start_workers(1, data="synthetic")
        c.wait_step(3)
        state = ("--state", c.folder)
        findings = doctor("--scheduler", c.address, *state, code=0)
        wheres = {f["where"] for f in findings}
        check(len([w for w in wheres if w.startswith("shard ")]) == 2 and "the cluster" in wheres, str(wheres))
        said = [f["found"] for f in findings if f["what"] == "numerics" and f["level"] == "ok"]
        check(len(said) == 2 and "shards: " in said[0] and "workers: " in said[1], str(said))
        only(findings, "ok", "workers", "1 with 1 lanes")
        only(findings, "ok", "run", "test is at step ")
        check(not [f for f in findings if f["what"] == "version"], str(findings))
        address = shards[1].address
        shards[1].kill()
        wait_until("the scheduler to miss it", lambda: any(s.state == "gone" for s in c.status().shards), 60, context=c.tails)
        findings = doctor("--scheduler", c.address, *state, code=1)
        found = only(findings, "problem", "process", "hasn't heard of it")
        check(address in found["where"] and "systemctl start" in found["cure"], str(found))
        c.workers[0].kill()
        c.workers.clear()
        wait_until("the scheduler to miss the worker", lambda: not c.status().workers, 60, context=c.tails)
        findings = doctor("--scheduler", c.address, *state, code=1)
        only(findings, "problem", "workers", "none")
        c.restart_shard(shards[1])
        c.start_workers(1, data="synthetic")
        step = c.status().step
        c.wait_step(step + 2)
        check(problems(doctor("--scheduler", c.address, *state, code=0)) == [], "not well again")


def expired(folder):
    """Replaces the certificate by one of the same key and authority that ended yesterday."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.utcnow()
    authority = folder.parent / "ca"
    (folder / "names").write_text("subjectAltName=URI:urn:shardfc:role:admin\n")
    (folder.parent / "db").write_text("")
    config = folder.parent / "ca.cnf"
    config.write_text(f"""[ca]
default_ca=a
[a]
database={folder.parent}/db
new_certs_dir={folder.parent}
serial={folder.parent}/serial
default_md=sha256
policy=p
rand_serial=yes
unique_subject=no
[p]
commonName=supplied
""")
    request = folder / "request.pem"
    subprocess.run(["openssl", "req", "-new", "-key", folder / "key.pem", "-subj", "/CN=old", "-out", request], check=True,
                   capture_output=True)
    subprocess.run(["openssl", "ca", "-batch", "-config", config, "-cert", authority / "ca.pem", "-keyfile",
                    authority / "ca-key.pem", "-in", request, "-out", folder / "cert.pem", "-extfile", folder / "names",
                    "-startdate", (now - 2 * day).strftime("%Y%m%d%H%M%SZ"), "-enddate", (now - day).strftime("%Y%m%d%H%M%SZ")],
                   check=True, capture_output=True)


def tls():
    """Certificates: fine, soon to end, expired, a key for everybody, one of no admin."""
    with Cluster() as c:
        def cert(*argv):
            subprocess.run([TOOL, "cert", *argv], cwd=c.folder, check=True, capture_output=True)
        cert("init", "--out", "ca")
        for role, more in (("scheduler", ["--host", "127.0.0.1"]), ("shard", ["--host", "127.0.0.1"]), ("worker", []),
                           ("admin", [])):
            cert("issue", "--ca", "ca", "--role", role, "--out", role, *more)
        c.scheduler = c.start("scheduler", [BIN / "shardfc-scheduler", "--state", c.folder / "s", "--listen", "127.0.0.1:0",
                                            "--tls", c.folder / "scheduler"])
        c.port = int(c.scheduler.wait_listening().rsplit(":", 1)[1])
        c.start_shard("--tls", c.folder / "shard")
        at = ("--state", c.folder, "--scheduler", c.address)

        def shards():
            argv = [TOOL, "status", "--json", "--scheduler", c.address, "--tls", c.folder / "admin"]
            return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)["shards"]
        wait_until("the shard to register", lambda: [s for s in shards() if s["state"] == "ready"], 30, context=c.tails)
        findings = doctor(*at, "--tls", c.folder / "admin", code=0)
        only(findings, "ok", "certificate", "admin, for 36")
        only(findings, "ok", "shard", "spare")
        findings = doctor(*at, code=1)  # plaintext to a server with TLS
        only(findings, "problem", "process", "does not answer")
        findings = doctor(*at, "--tls", c.folder / "worker", code=0)  # may not ask the processes
        check([f for f in findings if f["what"] == "access" and "admin" in f["cure"]], str(findings))
        findings = doctor("--state", c.folder, "--tls", c.folder / "scheduler", "--listen", "127.0.0.2:0", code=1)
        only(findings, "problem", "certificate", "127.0.0.2")
        cert("issue", "--ca", "ca", "--role", "admin", "--out", "admin", "--replace", "--days", "5")
        findings = doctor(*at, "--tls", c.folder / "admin", code=0)
        check("--replace" in only(findings, "warning", "certificate", " more days")["cure"], str(findings))
        (c.folder / "admin" / "key.pem").chmod(0o644)
        findings = doctor(*at, "--tls", c.folder / "admin", code=1)
        only(findings, "problem", "certificate", "can be read by others")
        check(not [f for f in findings if f["where"].startswith("scheduler")], "it asked with a certificate of no use")
        (c.folder / "admin" / "key.pem").chmod(0o600)
        expired(c.folder / "admin")
        findings = doctor(*at, "--tls", c.folder / "admin", code=1)
        only(findings, "problem", "certificate", "has expired")


def main():
    parts = {f.__name__: f for f in (host, full, cluster, tls)}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
