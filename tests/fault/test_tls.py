#!/usr/bin/python3
"""A cluster with mutual TLS over several hosts, and those that it must not let in.

    test_tls.py

Scheduler, shard, worker and an intruder each have a network namespace (hosts.py). The run trains with certificates of
`shardfc cert`. From the intruder's host: no certificate, a stranger's authority, an expired certificate, plaintext and a
worker's certificate on what only admins, shards or schedulers may do, towards scheduler and shard: each is refused, with
a line in the server's log that says why, and nothing is served; a worker's certificate for another run sees nothing of
this one. Certificates are renewed while it trains. Exit status 77: namespaces can't be made here.
"""
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import hosts  # noqa: E402

if __name__ == "__main__":
    hosts.enter()

from cluster import BIN, TIME_SCALE, Cluster, wait_until  # noqa: E402
from inputs import check  # noqa: E402

HOSTS = ["scheduler", "shard", "worker", "intruder"]
TOOL = BIN / "shardfc"
# What a client that knows only Python can do with a certificate: one call, then its outcome.
CALL = """
import sys, grpc
target, method, folder, root = sys.argv[1:5]
if folder == "plaintext":
    channel = grpc.insecure_channel(target)
else:
    read = lambda name: open(f"{folder}/{name}.pem", "rb").read() if folder != "none" else None
    channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(open(root, "rb").read(), read("key"), read("cert")))
try:
    answer = channel.unary_unary(method)(bytes.fromhex(sys.argv[5]), timeout=20)
    print("SERVED", len(answer))
except grpc.RpcError as e:
    print(e.code().name, e.details())
"""


def tool(*argv, on=(), ok=True):
    done = subprocess.run([*on, TOOL, *map(str, argv)], capture_output=True, text=True, timeout=120 * TIME_SCALE)
    check(done.returncode == 0 or not ok, f"{' '.join(map(str, argv))}: {done.stdout}{done.stderr}")
    return done


class Secured(Cluster):
    def __init__(self, net):
        super().__init__()
        self.net, self.pki = net, self.folder / "pki"
        self.pki.mkdir()

    def cert(self, name, role, *extra, ca="ca", replace=False):
        host = ("--host", self.net.address(name)) if name in HOSTS else ()
        tool("cert", "issue", "--ca", self.pki / ca, "--role", role, "--name", name, "--out", self.pki / name, *host, *extra,
             *(("--replace",) if replace else ()))
        return self.pki / name

    def make_certificates(self):
        tool("cert", "init", "--out", self.pki / "ca")
        tool("cert", "init", "--out", self.pki / "strangers")
        for name, role in (("scheduler", "scheduler"), ("shard", "shard"), ("worker", "worker"), ("admin", "admin")):
            self.cert(name, role)
        self.cert("guest", "worker", "--run", "another")
        self.cert("stranger", "worker,admin", ca="strangers")

    def run_on(self, host, program, *argv):
        return self.start(host, [*self.net.prefix(host), BIN / program, "--tls", self.pki / host, *argv])

    def begin(self):
        self.make_certificates()
        self.scheduler = self.run_on("scheduler", "shardfc-scheduler", "--listen",
                                     f"{self.net.address('scheduler')}:0", "--state", self.folder / "scheduler")
        self.where = self.scheduler.wait_listening()
        self.shard = self.run_on("shard", "shardfc-shard", "--scheduler", self.where, "--listen",
                                 f"{self.net.address('shard')}:0", "--state", self.folder / "s", "--threads", "1")
        self.shard_where = self.shard.wait_listening()
        wait_until("the shard to register", lambda: [s for s in self.state()["shards"] if s["state"] == "ready"], 30,
                   context=self.tails)
        self.admin("create", "--run", "faces", "--classes", 2000, "--samples", 4000, "--dim", 16, "--steps", 1000000,
                   "--global-batch", 32, "--backbone", "none")
        self.run_on("worker", "shardfc-worker", "--scheduler", self.where, "--data", "synthetic", "--threads", "1")

    def admin(self, *argv, **more):
        return tool(*argv, "--scheduler", self.where, "--tls", self.pki / "admin", **more)

    def state(self):
        return json.loads(self.admin("status", "--json").stdout)

    def wait_more(self, steps=20):
        at = self.state()["step"]
        wait_until(f"{steps} more steps", lambda: self.state()["step"] >= at + steps, 60, context=self.tails)

    def call(self, target, method, folder, body=b""):
        """What a call from the intruder's host gets."""
        done = subprocess.run([*self.net.prefix("intruder"), sys.executable, "-c", CALL, target, method, str(folder),
                               str(self.pki / "ca" / "ca.pem"), body.hex()],
                              capture_output=True, text=True, timeout=60 * TIME_SCALE)
        check(done.returncode == 0, done.stderr)
        return done.stdout.strip()


def expired(c):
    """A worker's certificate of our authority whose time is over."""
    folder = c.pki / "expired"
    c.cert("expired", "worker")
    request = c.folder / "request.pem"
    subprocess.run(["openssl", "req", "-new", "-key", folder / "key.pem", "-subj", "/CN=expired", "-out", request],
                   check=True, capture_output=True)
    extensions = c.folder / "extensions"
    extensions.write_text("subjectAltName=URI:urn:shardfc:role:worker\n")
    subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", c.pki / "ca" / "ca.pem", "-CAkey",
                    c.pki / "ca" / "ca-key.pem", "-extfile", extensions, "-days", "-1", "-out", folder / "cert.pem"],
                   check=True, capture_output=True)
    return folder


def refused(c, server, target, method, folder, log, codes):
    """The call fails with one of these codes, and (log not None) the server says why in a new line of its log."""
    def told():
        before = len(server.stderr())
        answer = c.call(target, method, folder)
        check(answer.split()[0] in codes, f"{method} with {folder}: {answer}")
        return log is None or log in server.stderr()[before:] or wait_a_second()

    def wait_a_second():  # a server says one such line a second
        time.sleep(1)
        return False
    wait_until(f"'{log}' in the log of {server.name}", told, 20, context=server.tail)
    print(f"  {method.rsplit('/', 1)[1]} with {pathlib.Path(str(folder)).name}: refused" + (f', "{log}"' if log else ""),
          flush=True)


def test_refused(c):
    late = expired(c)
    for server, target, method in ((c.scheduler, c.where, "/shardfc.v1.Scheduler/Status"),
                                   (c.shard, c.shard_where, "/shardfc.v1.Shard/Logits")):
        for folder, log in (("none", "the peer has no certificate"), ("plaintext", "plaintext"),
                            (late, "has expired"), (c.pki / "stranger", "not in our ca.pem")):
            refused(c, server, target, method, folder, log, ("UNAVAILABLE",))


def test_roles(c):
    """A worker can't steer, read the checkpoint, move blocks; nor can an admin pose as the scheduler."""
    for name in ("CreateRun", "Control", "Scale", "Hold", "Release", "Events", "RegisterShard", "ShardHeartbeat"):
        refused(c, c.scheduler, c.where, f"/shardfc.v1.Scheduler/{name}", c.pki / "worker",
                "has worker, this needs admin" if name == "Control" else None, ("PERMISSION_DENIED",))
    for name in ("OpenRun", "CloseRun", "Commit", "FetchBlocks", "SetMap", "BeginCopy", "ReadCopy", "ReadStep", "PinStep",
                 "ReadBlock", "WriteBlock"):
        refused(c, c.shard, c.shard_where, f"/shardfc.v1.Shard/{name}", c.pki / "worker",
                "has worker, this needs scheduler" if name == "Commit" else None, ("PERMISSION_DENIED",))
    refused(c, c.shard, c.shard_where, "/shardfc.v1.Shard/Commit", c.pki / "admin", "has admin, this needs scheduler",
            ("PERMISSION_DENIED",))
    done = tool("checkpoint", "--scheduler", c.where, "--tls", c.pki / "worker", "--out", c.folder / "stolen",
                on=c.net.prefix("intruder"), ok=False)
    check(done.returncode == 1 and "this needs admin" in done.stderr, f"{done.returncode} {done.stderr}")


def test_another_run(c):
    for name in ("Status", "History", "Join", "GetMap", "Ticket"):
        refused(c, c.scheduler, c.where, f"/shardfc.v1.Scheduler/{name}", c.pki / "guest",
                "is for run another" if name == "Join" else None, ("PERMISSION_DENIED",))
    for run, folder, words in ((7, "worker", "PERMISSION_DENIED"), (7, "admin", "SERVED"), (1, "worker", "SERVED"),
                               (0, "worker", "SERVED")):
        answer = c.call(c.where, "/shardfc.v1.Scheduler/History", c.pki / folder, bytes((8, run)))
        check(answer.startswith(words), f"History of run {run} with {folder}: {answer}")
    refused(c, c.shard, c.shard_where, "/shardfc.v1.Shard/PullDense", c.pki / "guest", "is for run another",
            ("PERMISSION_DENIED",))


def test_our_own_programs(c):
    """What people see who forgot --tls, or whose certificate has run out."""
    done = tool("status", "--scheduler", c.where, on=c.net.prefix("intruder"), ok=False)
    check(done.returncode != 0 and "--tls" in done.stderr, done.stderr)
    done = tool("status", "--scheduler", c.where, "--insecure", on=c.net.prefix("intruder"), ok=False)
    check(done.returncode == 1 and "TLS" in done.stderr, done.stderr)
    done = tool("status", "--scheduler", c.where, "--tls", c.pki / "expired", ok=False)
    check(done.returncode != 0 and "expired" in done.stderr, done.stderr)


def test_renewed(c):
    """All certificates are replaced while the run goes on; a new worker meets the new ones."""
    c.wait_more()
    for name, role in (("scheduler", "scheduler"), ("shard", "shard"), ("worker", "worker"), ("admin", "admin")):
        c.cert(name, role, replace=True)
    c.wait_more()
    other = c.run_on("worker", "shardfc-worker", "--scheduler", c.where, "--data", "synthetic", "--threads", "1")
    wait_until("a second worker", lambda: len(c.state()["workers"]) == 2, 60, context=c.tails)
    c.wait_more()
    check(other.terminate() == 0, other.tail())


def main():
    with hosts.Hosts(HOSTS) as net, Secured(net) as c:
        c.begin()
        c.wait_more(5)
        for test in (test_refused, test_roles, test_another_run, test_our_own_programs, test_renewed):
            test(c)
            c.wait_more(5)
            print(f"ok   {test.__name__}", flush=True)
        check(c.state()["state"] == "running", str(c.state()))


if __name__ == "__main__":
    main()
