#!/usr/bin/python3
"""The scheduler's pages: metrics, status, health, over HTTP and HTTPS; readers that misbehave do no harm."""
import http.client
import json
import math
import re
import shutil
import socket
import ssl
import subprocess

from cluster import BIN, Cluster, pb, wait_until
from inputs import check

SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)$')
OF_ONE_ADDRESS = 16


def get(address, path, method="GET", body=None, context=None, headers={}):
    host, port = address.rsplit(":", 1)
    connection = (http.client.HTTPSConnection(host, int(port), timeout=20, context=context) if context else
                  http.client.HTTPConnection(host, int(port), timeout=20))
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def pages_of(c):
    return next(line.split()[1] for line in c.scheduler.stdout().splitlines() if line.startswith("http "))


def metrics(text):
    """{(name, labels): value}; fails on a line that is none."""
    found = {}
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        parts = SAMPLE.match(line)
        check(parts, f"no sample: {line}")
        key = (parts[1], parts[2] or "")
        check(key not in found, f"twice: {line}")
        found[key] = float(parts[3])
    return found


def test_pages(c, at):
    c.start_shards(2)
    wait_until("ready", lambda: get(at, "/readyz")[0] == 200, 20)
    check(get(at, "/healthz")[:2] == (200, "ok\n"), "healthz")
    c.create_run(steps=40, classes=2000, samples=4000)
    c.start_workers(1, data="synthetic")
    c.wait_state("finished")

    def last():
        found = metrics(get(at, "/metrics")[1])
        return found.get(("shardfc_run_step", "")) == 40 and found.get(("shardfc_run_state", 'state="finished"')) == 1
    wait_until("the last step in the metrics", last, 20)
    status, text, headers = get(at, "/metrics")
    check(headers["Content-Type"].startswith("text/plain; version=0.0.4"), str(headers))
    found = metrics(text)
    check(found[("shardfc_run_state", 'state="finished"')] == 1, text)
    check(sum(v for (n, _), v in found.items() if n == "shardfc_shard_up") == 2, text)
    check(sum(v for (n, _), v in found.items() if n == "shardfc_shard_classes") == 2000, text)
    check(found[("shardfc_step_duration_seconds_count", "")] == 39, text)
    check(abs(found[("shardfc_run_loss", "")] - c.status().loss) < 1e-12, text)
    check(not any(math.isnan(v) for v in found.values()), text)
    promtool = shutil.which("promtool")
    if promtool:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        check(done.returncode == 0 and not done.stderr, done.stderr)
    page = json.loads(get(at, "/api/status")[1])
    told = json.loads(c.ctl("status", "--json").stdout)
    check(page.keys() == told.keys() and page["step"] == told["step"] == 40, str(page))


def api(at, path):
    status, text, headers = get(at, path)
    check(status == 200 and headers["Content-Type"] == "application/json", f"{path}: {status} {text}")
    check(headers["X-Content-Type-Options"] == "nosniff", f"{path}: {headers}")
    return json.loads(text)


def near(a, b):
    """Numbers of the pages have six digits; the time of a step has no end of them."""
    return (a is None and not b > 0) or abs(a - b) <= 1e-5 * abs(b)


def check_curves(c, at):
    """The curves of the run of 40 steps are its commit records, from any step on."""
    wait_until("the last step in the curves", lambda: (api(at, "/api/series")["points"] or [[0, 0]])[-1][1] == 40, 20)
    series, records = api(at, "/api/series"), c.history()
    check(series["run_id"] == c.status().run_id and series["steps_per_point"] == 1, str(series)[:200])
    check(len(series["points"]) == len(records) == 40, f"{len(series['points'])} points, {len(records)} records")
    for point, record in zip(series["points"], records):
        first, last, loss, least, most, lr, rate = point
        check(first == last == record.step and near(lr, record.lr), f"{point} {record}")
        check(near(loss, record.loss) and loss == least == most, f"{point} {record}")
        check(near(rate, record.images_per_s), f"{point} {record}")
    for since in (0, 1, 39, 40, 2**64 - 1):
        some = api(at, f"/api/series?since={since}")
        check(some["points"] == [p for p in series["points"] if p[1] > since], f"since {since}: {str(some)[:200]}")
        check(some["version"] == series["version"], str(some)[:200])


def test_api(c, at):
    check_curves(c, at)
    owners = api(at, "/api/blocks")
    blocks = -(-2000 // owners["block_size"])
    check(owners["class"]["blocks"] == blocks and owners["class"]["per_cell"] == 1 and owners["moves"] == [], str(owners))
    check(sorted(owners["class"]["owners"]) == sorted(s.id for s in c.status().shards)[:blocks], str(owners))
    told = c.stub.Events(pb.EventsRequest()).events
    wait_until("the last event", lambda: api(at, "/api/events")["events"][-1]["id"] == told[-1].id, 20)
    events = api(at, "/api/events")["events"]
    check([(e["id"], e["time_ms"], e["run_id"], e["who"], e["text"]) for e in events] ==
          [(e.id, e.time_ms, e.run_id, e.who, e.text) for e in told], f"{events} {told}")
    check(api(at, f"/api/events?since={told[-2].id}")["events"] == events[-1:], "events since")
    wait_until("the end in the list of runs", lambda: api(at, "/api/runs")["runs"][0]["state"] == "finished", 20)
    run, = api(at, "/api/runs")["runs"]
    check(run["run"] == "test" and run["step"] == run["steps"] == 40 and run["first_ms"] <= run["last_ms"], str(run))
    for bad in ("x", "-1", "", "1e3", "99999999999999999999"):
        code, text, _ = get(at, f"/api/series?since={bad}")
        check(code == 400 and "since" in text, f"since={bad}: {code} {text}")


def test_restart(c):
    """Curves, events and runs are there again after a crash; the next run has its own."""
    c.scheduler.kill()
    c.start_scheduler("--http", "127.0.0.1:0")
    at = pages_of(c)
    wait_until("pages", lambda: get(at, "/api/series")[0] == 200, 20)
    check_curves(c, at)
    check(api(at, "/api/runs")["runs"][0]["step"] == 40 and api(at, "/api/events")["events"], "records")
    c.wait_ready(*c.shards)
    c.create_run(name="<script>alert(1)</script>", steps=5, classes=2000, samples=4000)
    c.wait_state("finished")
    wait_until("the next run's curves", lambda: (api(at, "/api/series")["points"] or [[0, 0]])[-1][1] == 5, 20)
    wait_until("two runs", lambda: [r["step"] for r in api(at, "/api/runs")["runs"]] == [5, 40], 20)
    check(api(at, "/api/runs")["runs"][0]["run"] == "<script>alert(1)</script>", "a name is a name")
def ends_body_too_large(at):
    """A body without end is not read for ever."""
    host, port = at.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        sent = 0
        try:
            while sent < 200 << 20:
                sent += s.send(bytes(1 << 16))
        except OSError:
            pass
        check(sent < 200 << 20, f"{sent} bytes of a body were read")


def check_queries(at, context=None):
    """What is too long or no text is refused at once: a connection that got no answer would time out, and be closed without one."""
    def answer(path):
        return get(at, path, context=context)[0]
    for path in "/healthz%00x", "/healthz?a%00b=1", "/healthz?a=%00", "/healthz?%00":
        check(answer(path) == 400, path)
    for count in 65, 500, 1000, 4000:
        for argument in ("", "a", "a="):
            if count * (len(argument) + 1) < 8000:
                check(answer("/healthz?" + "&".join([argument] * count)) == 400, f"{count} times {argument}=")
    check(answer("/healthz?" + "&".join(["a"] * 64)) == 200, "64 arguments")
    check(answer("/healthz?" + "&".join(["a" * 120] * 64)) == 200, "64 long arguments")
    for size in 8192, 20000, 30000:  # of more libmicrohttpd says so itself, and may close while we send
        for path in "/" + "x" * size, "/healthz?" + "x" * size, "/healthz?" + "&" * size, "/healthz?" + "x&" * (size // 2):
            check(answer(path) == 414, f"{size} bytes: {path[:20]}")
    check(answer("/%") == 404 and answer("/healthz?a=%0") == 200 and answer("/healthz?a=%0100") == 200, "other escapes")
    check(get(at, "/healthz?a%00b", "HEAD", context=context)[0] == 400, "HEAD")


def test_misuse(c, at):
    host, port = at.rsplit(":", 1)
    check(get(at, "/nothing")[0] == 404, "404")
    check(get(at, "/metrics/")[0] == 404 and get(at, "/metrics?x=1")[0] == 200, "paths")
    check_queries(at)
    ends_body_too_large(at)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        code, _, headers = get(at, "/metrics", method, body="x" * 100000)
        check(code == 405 and headers["Allow"] == "GET, HEAD", f"{method}: {code}")
    code, text, headers = get(at, "/metrics", "HEAD")
    check(code == 200 and text == "" and int(headers["Content-Length"]) > 1000, "HEAD")
    for garbage in (b"\0" * 1000, b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"/" * 200000 + b" HTTP/1.1\r\n\r\n",
                    b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as s:
            try:
                s.sendall(garbage)
                s.recv(100)
            except OSError:
                pass  # it may close while we send
    # As many as it lets one address have, that say nothing; the next one is turned away, and all are let go.
    idle = [socket.create_connection((host, int(port)), timeout=60) for _ in range(OF_ONE_ADDRESS)]
    try:
        get(at, "/healthz")
        check(False, "a connection over the limit was served")
    except (OSError, http.client.HTTPException):
        pass
    for s in idle:
        check(s.recv(1) == b"", "an idle connection got an answer")
        s.close()
    wait_until("room again", lambda: served(at), 20)


def served(at):
    try:
        return get(at, "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_tls():
    with Cluster() as c:
        tool = BIN / "shardfc"
        for argv in (("init", "--out", "ca"), ("issue", "--ca", "ca", "--role", "scheduler", "--host", "127.0.0.1", "--out",
                                               "s")):
            subprocess.run([tool, "cert", *argv], cwd=c.folder, check=True, capture_output=True)
        c.scheduler = c.start("scheduler", [BIN / "shardfc-scheduler", "--state", c.folder / "state", "--tls", c.folder / "s",
                                            "--http", "127.0.0.1:0"])
        c.scheduler.wait_listening()
        trust = ssl.create_default_context(cafile=str(c.folder / "ca" / "ca.pem"))
        wait_until("ready", lambda: get(pages_of(c), "/readyz", context=trust)[0] == 200, 20)
        check("shardfc_build_info" in get(pages_of(c), "/metrics", context=trust)[1], "metrics over TLS")
        check_queries(pages_of(c), trust)
        check_renewal(c, tool, trust)
        check(c.scheduler.terminate() == 0, c.scheduler.tail())


def serial(c, trust):
    """Of the certificate that pages are served with."""
    host, port = pages_of(c).rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as plain, \
            trust.wrap_socket(plain, server_hostname=host) as s:
        return s.getpeercert()["serialNumber"]


def check_renewal(c, tool, trust):
    """A certificate that is replaced is served from the next connection on; one that is of no use is not."""
    first = serial(c, trust)
    host, port = pages_of(c).rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as plain, \
            trust.wrap_socket(plain, server_hostname=host) as stands:
        renew = ("issue", "--ca", "ca", "--role", "scheduler", "--host", "127.0.0.1", "--out", "s", "--replace")
        subprocess.run([tool, "cert", *renew], cwd=c.folder, check=True, capture_output=True)
        second = serial(c, trust)
        check(second != first, "the renewed certificate is not served")
        stands.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        check(stands.recv(100).startswith(b"HTTP/1.1 200"), "a connection that stood was cut")
    key = c.folder / "s" / "key.pem"
    good = key.read_bytes()
    key.write_bytes((c.folder / "ca" / "ca-key.pem").read_bytes())
    check(serial(c, trust) == second, "a key of another certificate was taken")
    wait_until("a warning", lambda: "certificate of before" in c.scheduler.stderr(), 20, context=c.scheduler.tail)
    key.write_bytes(good)
    check(serial(c, trust) == second, "the first pair again")
    check("renewed certificate" in c.scheduler.stderr(), c.scheduler.tail())


def main():
    with Cluster() as c:
        c.start_scheduler("--http", "127.0.0.1:0")
        at = pages_of(c)
        test_pages(c, at)
        test_api(c, at)
        test_misuse(c, at)
        test_restart(c)
        check(c.scheduler.terminate() == 0, c.scheduler.tail())
    test_tls()
    for bad in ("nowhere", "0.0.0.0:0", "127.0.0.1:99999", ":80"):
        with Cluster() as c:
            done = subprocess.run([BIN / "shardfc-scheduler", "--state", c.folder / "s", "--http", bad], capture_output=True,
                                  text=True, timeout=60)
        check(done.returncode in (1, 2) and "--http" in done.stderr, f"{bad}: {done.returncode} {done.stderr}")


if __name__ == "__main__":
    main()
