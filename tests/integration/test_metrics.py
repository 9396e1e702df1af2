#!/usr/bin/python3
"""Metrics of shards and workers (--http), and docs/OPERATIONS.md, which lists what every daemon prints."""
import json
import pathlib
import re
import shutil
import ssl
import subprocess

from cluster import BIN, Cluster, wait_until
from inputs import check
from test_http import get, metrics

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "OPERATIONS.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (gauge|counter|histogram) \| ([a-z, ]+) \| (.*) \|$", re.M)
SOMETIMES = ("(with TLS)", "(with a GPU)")
STEPS, BATCH = 30, 64


def pages_of(process):
    return wait_until("the address of the pages",
                      lambda: process.out_path.exists() and  # it has said something
                      next((line.split()[1] for line in process.stdout().splitlines() if line.startswith("http ")), None), 20)


def families(text):
    """{name: (type, help)} of a page of metrics."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    return {name: (kind, helps[name]) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)}


def promtool_likes(text):
    promtool = shutil.which("promtool")
    if promtool:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        check(done.returncode == 0 and not done.stderr, done.stderr)


def count(found, family, phase):
    return found[(f"{family}_count", f'phase="{phase}"')]


def test_shard(at):
    wait_until("the last step", lambda: metrics(get(at, "/metrics")[1])[("shardfc_shard_applied_step", "")] == STEPS, 30)
    text = get(at, "/metrics")[1]
    found = metrics(text)
    promtool_likes(text)
    for phase in ("plan", "prepare", "commit", "flush"):
        check(count(found, "shardfc_shard_phase_seconds", phase) >= STEPS, f"{phase}\n{text}")
    for phase in ("queue", "logits", "gradient"):
        check(count(found, "shardfc_shard_phase_seconds", phase) > 0, f"{phase}\n{text}")
    for name in ("sampled_rows_total", "owned_blocks", "run_memory_bytes", "memory_budget_bytes", "log_size_bytes", "registered"):
        check(found[(f"shardfc_shard_{name}", "")] > 0, f"{name}\n{text}")
    check(found[("shardfc_shard_disk_error", "")] == 0, text)
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
                 "shardfc_rpc_received_bytes_total", "shardfc_rpc_sent_bytes_total"):
        check(found[(name, "")] > 0, f"{name}\n{text}")
    check(get(at, "/healthz")[0] == get(at, "/readyz")[0] == 200, "health of a shard")
    return text


def test_worker(at):
    wait_until("all images", lambda: metrics(get(at, "/metrics")[1])[("shardfc_worker_images_total", "")] == STEPS * BATCH, 30)
    text = get(at, "/metrics")[1]
    found = metrics(text)
    promtool_likes(text)
    micro_batches = found[("shardfc_worker_done_micro_batches_total", "")]
    for phase in ("ticket", "rows", "forward", "logits", "gradient", "loss", "done"):
        check(count(found, "shardfc_worker_phase_seconds", phase) >= micro_batches > 0, f"{phase}\n{text}")
    for phase in ("data_ticket", "read", "announce"):
        check(count(found, "shardfc_worker_phase_seconds", phase) >= micro_batches, f"{phase}\n{text}")
    check(found[("shardfc_worker_threads", "")] == 2, text)
    check(not any(value for (name, _), value in found.items() if name == "shardfc_worker_errors_total"), text)
    check(get(at, "/healthz")[0] == get(at, "/readyz")[0] == 200, "health of a worker")
    return text


def test_docs(pages):
    """pages: {program: text}. Every metric that a daemon prints is in the table, and nothing else."""
    printed = {}
    for program, text in pages.items():
        for name, (kind, words) in families(text).items():
            printed.setdefault(name, (kind, [], words))[1].append(program)
    told = {name: (kind, programs, words) for name, kind, programs, words in ROW.findall(DOCS.read_text())}
    right = {name: (kind, ", ".join(programs), words) for name, (kind, programs, words) in printed.items()}
    sometimes = {name for name, row in told.items() if row[2].endswith(SOMETIMES)}
    wrong = {n for n in right if told.get(n) != right[n]} | (told.keys() - right.keys() - sometimes)
    table = "\n".join(f"| `{n}` | {k} | {p} | {w} |" for n, (k, p, w) in sorted(right.items()))
    check(not wrong, f"the table of metrics in docs/OPERATIONS.md is not what daemons print ({sorted(wrong)}); it should be\n{table}")


def test_alone():
    """Without a scheduler: alive and not ready; addresses that may not be served are refused."""
    with Cluster() as c:
        shard = c.start("shard", [BIN / "shardfc-shard", "--scheduler", "127.0.0.1:9", "--state", c.folder / "s",
                                  "--http", "127.0.0.1:0"])
        worker = c.start("worker", [BIN / "shardfc-worker", "--scheduler", "127.0.0.1:9", "--data", "synthetic",
                                    "--http", "127.0.0.1:0"])
        for process in (shard, worker):
            at = pages_of(process)
            wait_until("alive", lambda: get(at, "/healthz")[0] == 200, 20)
            wait_until("why it is not ready", lambda: "scheduler" in get(at, "/readyz")[1], 20)
            check(get(at, "/readyz")[0] == 503, "ready without a scheduler")
        for program, more in (("shardfc-shard", ("--state", c.folder / "t")), ("shardfc-worker", ("--data", "synthetic"))):
            for bad in ("0.0.0.0:0", "nowhere"):
                done = subprocess.run([BIN / program, "--scheduler", "127.0.0.1:9", *more, "--http", bad],
                                      capture_output=True, text=True, timeout=120)
                check(done.returncode in (1, 2) and "--http" in done.stderr, f"{program} {bad}: {done.stderr}")


def test_certificates():
    """With TLS each says when its certificate ends."""
    with Cluster() as c:
        def cert(*argv):
            subprocess.run([BIN / "shardfc", "cert", *argv], cwd=c.folder, check=True, capture_output=True)
        cert("init", "--out", "ca")
        trust = ssl.create_default_context(cafile=str(c.folder / "ca" / "ca.pem"))
        away = ("--scheduler", "127.0.0.1:9", "--http", "127.0.0.1:0")
        for days, role, more in ((30, "scheduler", ("--state", c.folder / "d", "--http", "127.0.0.1:0")),
                                 (20, "shard", ("--state", c.folder / "s", *away)), (10, "worker", ("--data", "synthetic", *away))):
            cert("issue", "--ca", "ca", "--role", role, "--host", "127.0.0.1", "--days", str(days), "--out", role)
            end = json.loads(subprocess.run([BIN / "shardfc", "cert", "show", c.folder / role, "--json"], capture_output=True,
                                            check=True).stdout)["expires"]
            at = pages_of(c.start(role, [BIN / f"shardfc-{role}", "--tls", c.folder / role, *more]))
            text = wait_until("its page", lambda: (lambda code, text, _: code == 200 and text)(*get(at, "/metrics", context=trust)), 20)
            check(metrics(text)[("shardfc_certificate_expiry_timestamp_seconds", "")] == end, f"{role}: {end}: {text}")
            promtool_likes(text)


def main():
    with Cluster() as c:
        http = ("--http", "127.0.0.1:0")
        c.start_scheduler(*http)
        shards = c.start_shards(2, *http)
        c.create_run(steps=STEPS, classes=4000, samples=8000, global_batch=BATCH, micro_batch=16)
        worker = c.start_worker(*http, threads=2)
        c.wait_state("finished")
        at = pages_of(c.scheduler)
        wait_until("the last step", lambda: metrics(get(at, "/metrics")[1])[("shardfc_run_step", "")] == STEPS, 30)
        pages = {"scheduler": get(at, "/metrics")[1]}
        found = metrics(pages["scheduler"])
        for phase in ("compute", "prepare", "record", "ask_plan", "ask_prepare", "ask_commit"):
            check(count(found, "shardfc_scheduler_phase_seconds", phase) > 0, f"{phase}\n{pages['scheduler']}")
        pages["shard"] = [test_shard(pages_of(shard)) for shard in shards][0]
        pages["worker"] = test_worker(pages_of(worker))
        test_docs(pages)
    test_alone()
    test_certificates()


if __name__ == "__main__":
    main()
