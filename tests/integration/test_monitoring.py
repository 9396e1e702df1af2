#!/usr/bin/python3
"""Alert rules, Grafana's board and the example for Prometheus are true: names, runbook, and Prometheus with a live run.

    test_monitoring.py [rules|names|scrape ...]     default: all
"""
import json
import pathlib
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

from cluster import BIN, TOP, Cluster, Failure, Port, wait_until
from inputs import check
from test_http import get, pages_of

RULES = TOP / "deploy" / "prometheus" / "alerts.yml"
EXAMPLE = TOP / "deploy" / "prometheus" / "prometheus.yml"
BOARD = TOP / "deploy" / "grafana" / "shardfc.json"
WITH_GPU = {"shardfc_shard_gpu_memory_bytes", "shardfc_shard_gpu_memory_free_bytes"}  # of shards that have one
HANDBOOK = TOP / "docs" / "OPERATIONS.md"


def needs(program):
    if not shutil.which(program):
        print(f"skipped: {program} is not installed")
        sys.exit(77)


def run(*argv, **more):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=120, **more)
    check(done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}")
    return done.stdout


def rules():
    """promtool has nothing to say, each alert is tested by name and has a section that its runbook leads to."""
    needs("promtool")
    run("promtool", "check", "rules", RULES)
    with Cluster() as c:
        example = c.folder / "prometheus.yml"
        example.write_text(EXAMPLE.read_text().replace("/usr/share/shardfc/prometheus/alerts.yml", str(RULES)))
        run("promtool", "check", "config", example)
    cases = pathlib.Path(__file__).with_name("test_alerts.yml")
    run("promtool", "test", "rules", cases)
    alerts = re.findall(r"^\s*- alert: (\w+)$", RULES.read_text(), re.M)
    links = re.findall(r"^\s*runbook: file:///usr/share/doc/shardfc-server/OPERATIONS.md#(\w+)$", RULES.read_text(), re.M)
    check(len(alerts) > 10 and [a.lower() for a in alerts] == links, f"{alerts} {links}")
    sections = re.findall(r"^### (ShardFC\w+)$", HANDBOOK.read_text(), re.M)
    check(sorted(sections) == sorted(alerts), f"{HANDBOOK}: sections {sections}, alerts {alerts}")
    for alert in alerts:
        check(alert in cases.read_text(), f"{cases} does not test {alert}")


def expressions():
    """PromQL of the rules and of the board."""
    found = re.findall(r"expr: >?\s*(.*?)\n\s*(?:for|labels):", RULES.read_text(), re.S)
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        found += [t["expr"] for t in panel.get("targets", [])]
    return found + [v["definition"] for v in board["templating"]["list"] if v["type"] == "query"]


def names():
    """Every metric that the rules and the board name is exported, and the board stands for itself."""
    wanted = set(re.findall(r"\b(?:shardfc|process)_\w+", " ".join(expressions()))) - WITH_GPU
    check(len(wanted) > 20, str(wanted))
    with Cluster() as c:
        tool = BIN / "shardfc"
        for argv in (("init", "--out", "ca"),
                     ("issue", "--ca", "ca", "--role", "scheduler,shard,worker,admin", "--host", "127.0.0.1", "--out", "all")):
            run(tool, "cert", *argv, cwd=c.folder)
        tls = ("--tls", c.folder / "all")
        c.scheduler = c.start("scheduler", [BIN / "shardfc-scheduler", "--state", c.folder / "state", "--http", "127.0.0.1:0",
                                            "--listen", "127.0.0.1:0", *tls])
        c.port = int(c.scheduler.wait_listening().rsplit(":", 1)[1])
        others = [c.start_shard("--http", "127.0.0.1:0", *tls), c.start_worker("--http", "127.0.0.1:0", *tls)]

        def shards():
            return json.loads(run(tool, "status", "--json", "--scheduler", c.address, *tls))["shards"]
        wait_until("the shard to register", lambda: [s for s in shards() if s["state"] == "ready"], 30, context=c.tails)
        run(tool, "create", "--scheduler", c.address, *tls, "--run", "names", "--classes", "1000", "--samples", "2000", "--dim",
            "32", "--global-batch", "32", "--micro-batch", "8", "--steps", "1000000")
        trust = ssl.create_default_context(cafile=str(c.folder / "all" / "ca.pem"))

        def exported():
            text = "\n".join(get(page_of(p), "/metrics", context=trust)[1] for p in (c.scheduler, *others))
            there = set(re.findall(r"^(?:# TYPE )?((?:shardfc|process)_\w+)", text, re.M))
            goes = re.search(r"^shardfc_run_step [1-9]", text, re.M)
            return there if goes and "shardfc_worker_micro_batches_total{" in text else None
        there = wait_until("the run's metrics", exported, 60, context=c.tails)
    check(wanted <= there, f"named, but not exported: {sorted(wanted - there)}")
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        sources = [panel] + panel.get("targets", []) if panel["type"] != "row" else []
        check(all(s["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for s in sources), panel["title"])
    ids = [panel["id"] for panel in board["panels"]]
    check(len(set(ids)) == len(ids), "panels of one id")
    check({p["type"] for p in board["panels"]} <= {"row", "stat", "timeseries", "table"}, "a panel of a plugin")


def page_of(process):
    def address():
        return next((line.split()[1] for line in process.stdout().splitlines() if line.startswith("http ")), None)
    return wait_until(f"{process.name}'s pages", address, 20, context=process.tail)


def query(at, text):
    try:
        with urllib.request.urlopen(f"http://{at}/api/v1/query?" + urllib.parse.urlencode({"query": text}), timeout=20) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as refused:
        if refused.code == 503:  # it starts
            raise
        raise Failure(f"{text}: {refused.read().decode()}") from None
    return [float(sample["value"][1]) for sample in result]


def scrape():
    """Prometheus scrapes a run, understands everything, and sees it go on; the rules work there and are silent."""
    needs("prometheus")
    with Cluster() as c:
        c.start_scheduler("--http", "127.0.0.1:0")
        shards = c.start_shards(2, "--http", "127.0.0.1:0")
        c.create_run(steps=1000000, classes=2000, samples=4000)
        c.start_workers(1, "--http", "127.0.0.1:0", data="synthetic")
        c.wait_step(2)
        text = EXAMPLE.read_text().replace("/usr/share/shardfc/prometheus/alerts.yml", str(RULES))
        check(all(part in text for part in ("127.0.0.1:7480", "127.0.0.1:7481", "127.0.0.1:7482", "15s")), text)
        config = c.folder / "prometheus.yml"
        text = text.replace('"127.0.0.1:7481"', ", ".join(f'"{page_of(p)}"' for p in shards))
        text = text.replace("127.0.0.1:7482", page_of(c.workers[0]))
        config.write_text(text.replace("127.0.0.1:7480", pages_of(c)).replace("15s", "1s"))
        port = Port()  # nobody else's until Prometheus comes
        at = port.address
        prometheus = c.start("prometheus", ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={c.folder}/tsdb",
                                            f"--web.listen-address={at}", "--log.level=warn"])

        def asks(text, holds):
            def answer():
                try:
                    values = query(at, text)
                except OSError:
                    check(prometheus.running(), prometheus.tail())
                    return False
                return values if holds(values) else None
            return wait_until(text, answer, 60, context=c.tails)
        asks('up{job="shardfc-scheduler"}', lambda v: v == [1])
        asks('up{job="shardfc-shard"}', lambda v: v == [1, 1])
        asks('up{job="shardfc-worker"}', lambda v: v == [1])
        first, = asks("shardfc_run_step", lambda v: v and v[0] >= 2)
        asks("shardfc_run_step", lambda v: v and v[0] > first)
        asks("changes(shardfc_run_step[1m])", lambda v: v and v[0] > 0)
        asks("sum(shardfc_shard_up)", lambda v: v == [2])
        asks("histogram_quantile(0.5, sum by (le) (rate(shardfc_step_duration_seconds_bucket[1m])))", lambda v: v and 0 < v[0] < 100)
        for expression in expressions():  # the board's and the rules' are questions that it understands
            if not expression.startswith("label_values"):
                query(at, expression.replace("$job", ".*").replace("$instance", ".*"))
        check(query(at, 'ALERTS{alertstate="firing"}') == [], "an alert fires on a run that goes on")
        asks("count(scrape_samples_scraped > 30)", lambda v: v == [4])
        check(prometheus.terminate() == 0, prometheus.tail())


def main():
    parts = {f.__name__: f for f in (rules, names, scrape)}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
