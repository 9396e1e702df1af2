#!/usr/bin/python3
"""shardfc trace: a step's timeline across scheduler, shards and workers, and where its time went.

    test_trace.py [step|gaps|map|restart|two|roles ...]     default: all
"""
import json
import signal
import subprocess
import sys
import threading

import grpc

from cluster import BIN, TIME_SCALE, Cluster, pb, wait_until
from inputs import check


def trace(c, *argv, code=0):
    out = c.folder / "trace.json"
    done = c.ctl("trace", "--out", out, *argv, check=False)
    check(done.returncode == code, f"trace {argv}: {done.returncode}\n{done.stdout}{done.stderr}\n{c.tails()}")
    return (json.loads(out.read_text()) if code == 0 else None), done


TRIES = 5  # until no slow machine keeps a worker from sending its part for as long as the command waits


def late_workers(data):
    return [p["name"] for p in data["metadata"]["processes"]
            if p["name"].startswith("worker") and "did not send it in time" in p.get("missing", "")]


def whole_trace(take):
    """take() -> (trace, ...), of workers that all live: again where one was too slow."""
    for _ in range(TRIES):
        got = take()
        if not late_workers(got[0]):
            break
        print(f"not in time, again: {late_workers(got[0])}", flush=True)
    return got


def spans(events):
    return [e for e in events if e["ph"] == "X"]


def check_events(events):
    """What Chrome's viewer asks of each event."""
    ids = {}
    for e in events:
        check(isinstance(e["pid"], int) and isinstance(e["tid"], int) and e["name"], str(e))
        check(e["ph"] in "MXbesf", str(e))
        check(e["ph"] == "M" or e["ts"] >= 0, str(e))
        check(e["ph"] != "X" or e["dur"] >= 0, str(e))
        if e["ph"] in "besf":
            ids.setdefault((e["cat"], e["id"]), []).append(e["ph"])
    check(all(phases in (["b", "e"], ["s", "f"]) for phases in ids.values()), "a flow or a wait without an end")
    named = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    check({e["pid"] for e in events} == named, "a process without a name")


def union(intervals):
    """Length of the union."""
    total, at = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, at))
        at = max(at, end)
    return total


def apart(data):
    """How far the clocks of two processes may be apart in it, as it says itself, in us."""
    return 2 * max(p["clock_uncertainty_us"] for p in data["metadata"]["processes"] if "missing" not in p)


def check_known(data):
    """Every step is covered by what processes measured, but for 5 % and what their clocks may be apart."""
    for step in data["metadata"]["steps"]:
        check(0.95 - apart(data) / (1e3 * step["ms"]) <= step["known"] <= 1.0, f"{step}\n{data['metadata']['processes']}")


def check_step(data, step):
    """Its phases add up to the time from commit to commit, within 5 % and what clocks may be apart."""
    events = data["traceEvents"]
    own = {e["name"]: e for e in spans(events) if e["cat"] == "scheduler" and e["args"]["step"] == step and e["tid"] == 0}
    check(own.keys() == {"compute", "prepare", "record"}, f"phases of the scheduler: {own.keys()}")
    begin, end = own["compute"]["ts"], own["record"]["ts"] + own["record"]["dur"]
    path = [e for e in spans(events) if e["cat"] == "path" and e["args"]["step"] == step]
    added = sum(e["dur"] for e in path)
    least = 0.95 * (end - begin) - apart(data)
    check(least <= added <= 1.05 * (end - begin), f"step {step}: {added} of {end - begin} us\n{path}")
    # the same of the spans themselves, whoever's they are
    inside = [(max(e["ts"], begin), min(e["ts"] + e["dur"], end)) for e in spans(events)
              if e["cat"] in ("worker", "shard") or e["name"] in ("prepare", "record")]
    covered = union([(a, b) for a, b in inside if a < b])
    check(covered >= least, f"step {step}: spans cover {covered} of {end - begin} us")
    return path


def test_step():
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2)
        c.create_run(steps=4000, classes=40000, samples=80000, dim=128, global_batch=256, micro_batch=64)
        c.start_workers(2, threads=1)
        c.wait_step(5)
        data, done = whole_trace(lambda: trace(c, "--steps", "3"))
        events = data["traceEvents"]
        check_events(events)
        first, last = data["metadata"]["first_step"], data["metadata"]["last_step"]
        check(last == first + 2, str(data["metadata"]))
        steps = data["metadata"]["steps"]
        check([s["step"] for s in steps] == [first, first + 1, last], str(steps))
        check_known(data)
        for step in steps:
            check_step(data, step["step"])
            check(f"step {step['step']}:" in done.stdout, done.stdout)
        processes = data["metadata"]["processes"]
        check(len(processes) == 5 and not any("missing" in p for p in processes), str(processes))
        check(all(0 <= p["clock_uncertainty_us"] < 1e6 for p in processes), str(processes))
        names = {(e["cat"], e["name"]) for e in spans(events)}
        for cat, name in (("worker", "ticket"), ("worker", "forward"), ("worker", "logits"), ("worker", "gradient"),
                          ("worker", "done"), ("worker", "read"), ("shard", "plan"), ("shard", "logits"),
                          ("shard", "gradient"), ("shard", "prepare"), ("shard", "flush"), ("shard", "commit"),
                          ("scheduler", "ask_prepare"), ("scheduler", "ask_commit"), ("scheduler", "ask_plan")):
            check((cat, name) in names, f"no {cat} {name}: {sorted(names)}")
        logits = [e for e in spans(events) if e["cat"] == "worker" and e["name"] == "logits" and e["args"]["step"] == last]
        # one that is slow is granted once more
        check({e["args"]["micro_batch"] for e in logits} == {0, 1, 2, 3} and
              all(e["args"]["rows"] == 64 and e["args"]["bytes"] == 2 * 64 * 128 * 4 for e in logits), str(logits))
        # a step of a worker's span lies within that of the scheduler, on clocks that agree
        commits = [e for e in events if e["ph"] == "s" and e["name"] == "Commit"]
        check(len(commits) >= 2, "no arrow from the scheduler to a shard")
        out, ahead = c.folder / "trace.json", 20
        while True:  # a slow machine may be past the step before the command asks
            step = c.status().step + ahead
            done = c.ctl("trace", "--out", out, "--step", step, "--json", check=False)
            if "is over" not in done.stderr:
                break
            ahead *= 2
        check(done.returncode == 0, f"{done.stderr}\n{c.tails()}")
        data, told = json.loads(out.read_text()), json.loads(done.stdout)
        check(told["first_step"] == told["last_step"] == step and told["steps"] == data["metadata"]["steps"], str(told))
        _, done = trace(c, "--step", "1", code=1)
        check("is over" in done.stderr, done.stderr)
        _, done = trace(c, "--step", "5000", code=1)
        check("ends with step 4000" in done.stderr, done.stderr)
        for bad in ("0", "soon"):
            _, done = trace(c, "--step", bad, code=2)
            check("--step" in done.stderr, done.stderr)
        c.ctl("pause")
        wait_until("the pause", lambda: c.status().state == "paused", 30)
        _, done = trace(c, "--timeout", "1s", code=1)
        check("paused" in done.stderr, done.stderr)
        c.ctl("stop")
        _, done = trace(c, "--timeout", "600s", code=1)
        check("has been stopped" in done.stderr, done.stderr)


DELAYS = ("away", "recovery", "abort", "boundary", "take", "write_map", "set_map")
STEPS = 100


def check_whole(data):
    """Every step is covered by what processes measured, whatever happened in it. The steps in which something of the
    scheduler's delays did, with the names that their time went to."""
    events = data["traceEvents"]
    check_events(events)
    check_known(data)
    delays = [e for e in spans(events) if e["cat"] == "scheduler" and e["name"] in DELAYS]
    own = sorted((e["ts"], e["ts"] + e["dur"]) for e in delays)
    check(all(a[1] <= b[0] + 0.001 for a, b in zip(own, own[1:])), f"one delay over another: {delays}")
    late = {e["args"]["step"] for e in delays}
    return {s["step"]: s["phases"] for s in data["metadata"]["steps"] if s["step"] in late}


def trace_while(c, act, happened):
    """A trace of STEPS steps, during which act() is called; once more where it did not happen within them: on a slow
    machine the steps may be over before. What check_whole says of it, and the trace."""
    ahead, tries = 10, 0
    while True:
        ahead *= 2
        first = c.status().step + ahead
        asked = subprocess.Popen([BIN / "shardfc", "trace", "--scheduler", c.address, "--out", c.folder / "t.json", "--steps",
                                  str(STEPS), "--step", str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        c.wait_step(first + 10)
        act()
        out, err = asked.communicate(timeout=240 * TIME_SCALE)
        if "is over" in err:  # the command asked after the step
            continue
        check(asked.returncode == 0, f"{out}\n{err}\n{c.tails()}")
        data = json.loads((c.folder / "t.json").read_text())
        tries += 1
        if late_workers(data) and tries < TRIES:
            print(f"not in time, again: {late_workers(data)}", flush=True)
            continue
        late = check_whole(data)
        names = {f"{e['cat']} {e['name']}" for e in spans(data["traceEvents"])}
        if happened <= names:
            check(happened & {name for phases in late.values() for name in phases}, f"on nobody's way: {late}")
            return data, out
        print(f"not in these steps, again: {happened - names} of {late}", flush=True)


def test_map():
    """Steps at which blocks move, and shards join and leave: what their time went to has names."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(3)
        c.create_run(steps=1000000, classes=40000, samples=80000, dim=128, global_batch=128, micro_batch=32)
        c.start_workers(2)
        c.wait_step(5)
        wanted = [3]

        def scale():
            wanted[0] = 5 - wanted[0]  # 2 or 3
            done = c.ctl("scale", "--shards", wanted[0], check=False, seconds=240)
            check(done.returncode == 0, done.stderr)
        data, out = trace_while(c, scale, {"scheduler boundary", "scheduler take", "scheduler write_map", "shard take_map",
                                           "worker map"})
        check("a new block map is made durable" in out, out)
        rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in data["traceEvents"] if e["name"] == "thread_name"}
        on = {rows[(e["pid"], e["tid"])] for e in spans(data["traceEvents"]) if e["cat"] == "scheduler" and e["name"] in DELAYS}
        check(on == {"what keeps it waiting"}, f"{on}")


def test_restart():
    """A step over the restart of a shard: waiting for it, and its recovery, are named, not hidden in a worker's call."""
    with Cluster() as c:
        c.start_scheduler()
        shards = c.start_shards(2)
        c.create_run(steps=1000000, classes=40000, samples=80000, dim=128, global_batch=128, micro_batch=32)
        c.start_workers(2)
        c.wait_step(5)

        def kill():
            shards[1].kill()
            wait_until("the scheduler to miss it", lambda: any(s.state == "gone" for s in c.status().shards), 60)
            shards[1] = c.restart_shard(shards[1])
        data, out = trace_while(c, kill, {"scheduler away", "shard open", "shard replay"})
        ids = {p["args"]["name"].split()[1] for p in data["traceEvents"] if p["name"] == "process_name" and
               shards[1].address in p["args"]["name"]}
        for name in ("away", "recovery"):
            about = {str(e["args"]["shard"]) for e in spans(data["traceEvents"]) if e["name"] == name}
            check(about == ids, f"{name} of shard {about}, not {ids}")
        check("a shard is gone, until it has registered again" in out, out)


def test_gaps():
    """A worker and a shard that are gone when their part is asked for leave a trace that says so."""
    with Cluster() as c:
        c.start_scheduler()
        shards = c.start_shards(2)
        c.create_run(steps=100000, classes=40000, samples=80000, dim=128, global_batch=128, micro_batch=32)
        workers = c.start_workers(2)
        c.wait_step(5)
        for _ in range(TRIES):
            wait_until("both workers", lambda: len(c.status().workers) == 2, 60, context=c.tails)
            workers[0].signal(signal.SIGSTOP)  # alive and silent: it holds no grant for ever, and its part never comes
            data, done = trace(c, "--steps", "2")
            workers[0].signal(signal.SIGCONT)
            if len(late_workers(data)) < 2:  # the other one was not too slow
                break
        missing = [p for p in data["metadata"]["processes"] if "missing" in p]
        check(len(missing) == 1 and missing[0]["name"].startswith("worker") and "missing of worker" in done.stdout, done.stdout)
        check_events(data["traceEvents"])
        workers[0].kill()
        shard, ahead = shards[1], 10
        while True:  # until the shard dies in the middle of the steps
            ahead *= 2
            first = c.status().step + ahead
            asked = subprocess.Popen([BIN / "shardfc", "trace", "--scheduler", c.address, "--out", c.folder / "t.json", "--steps",
                                      "100", "--step", str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            c.wait_step(first + 20)
            shard.kill()
            over = c.status().step >= first + 99  # without it none is committed
            shard = c.restart_shard(shard)
            out, err = asked.communicate(timeout=240)
            late = "is over" in err  # the command asked after the step
            check(late or asked.returncode == 0, f"{out}\n{err}\n{c.tails()}")
            if not over and not late:
                break
        data = json.loads((c.folder / "t.json").read_text())
        check_events(data["traceEvents"])
        missing = [p["name"] for p in data["metadata"]["processes"] if "missing" in p and p["name"].startswith("shard")]
        check(len(missing) == 1 and shard.address in missing[0] and "missing of shard" in out, f"{missing}\n{out}")


def test_two():
    """A second trace is refused, with whose the first one is, until that is over or its command has died."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        c.create_run(steps=100000)
        c.start_workers(1)
        c.wait_step(3)
        c.ctl("pause")
        wait_until("the pause", lambda: c.status().state == "paused", 30)
        held = c.hold()  # the step that was being committed is over
        c.release(held)
        step = held.step
        first, enough = c.stub.Trace(pb.TraceRequest(steps=2)), threading.Event()

        def keep():  # as a command does, until the other one was there
            while not enough.wait(0.5):
                c.stub.Trace(pb.TraceRequest(trace=first.trace))
        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            _, done = trace(c, "--timeout", "1s", code=1)
        finally:
            enough.set()
            keeper.join()
        for word in f"steps {step + 1} to {step + 2}", "s for", "127.0.0.1", "try again":
            check(word in done.stderr, f"{word}: {done.stderr}")
        c.stub.Trace(pb.TraceRequest(trace=first.trace, over=True))
        for _ in range(2):  # a command that gives up leaves room for the next
            _, done = trace(c, "--timeout", "1s", code=1)
            check("paused" in done.stderr and "try again" not in done.stderr, done.stderr)
        first = c.stub.Trace(pb.TraceRequest(steps=1))  # and falls silent
        c.ctl("resume")

        def second():
            done = c.ctl("trace", "--out", c.folder / "second.json", check=False)
            check(done.returncode == 0 or "try again" in done.stderr, done.stderr)
            return done.returncode == 0
        wait_until("room for another", second, 60, context=c.tails)
        try:
            c.stub.Trace(pb.TraceRequest(trace=first.trace))
            check(False, "a trace of which nothing is left")
        except grpc.RpcError as error:
            check("trace again" in error.details(), error.details())


def test_roles():
    """With TLS only an admin's certificate may trace."""
    with Cluster() as c:
        tool = BIN / "shardfc"

        def cert(*argv):
            subprocess.run([tool, "cert", *argv], cwd=c.folder, check=True, capture_output=True)
        cert("init", "--out", "ca")
        for role in ("scheduler", "shard", "worker", "admin"):
            cert("issue", "--ca", "ca", "--role", role, "--host", "127.0.0.1", "--out", role)
        scheduler = c.start("scheduler", [BIN / "shardfc-scheduler", "--state", c.folder / "s", "--tls", c.folder / "scheduler"])
        address = scheduler.wait_listening()
        c.start("shard", [BIN / "shardfc-shard", "--scheduler", address, "--state", c.folder / "h", "--threads", "1",
                          "--tls", c.folder / "shard"]).wait_listening()

        def ctl(role, *argv):
            return subprocess.run([tool, argv[0], "--scheduler", address, "--tls", c.folder / role, *argv[1:]],
                                  capture_output=True, text=True, timeout=120)
        wait_until("a run", lambda: ctl("admin", "create", "--run", "r", "--classes", "1000", "--samples", "2000", "--steps",
                                        "100000", "--backbone", "none").returncode == 0, 60)
        c.start("worker", [BIN / "shardfc-worker", "--scheduler", address, "--data", "synthetic", "--tls", c.folder / "worker"])
        wait_until("a step", lambda: json.loads(ctl("admin", "status", "--json").stdout)["step"] > 3, 60)
        out = str(c.folder / "t.json")

        def take():
            done = ctl("admin", "trace", "--out", out)
            check(done.returncode == 0, done.stderr)
            return json.loads((c.folder / "t.json").read_text()), done
        data, _ = whole_trace(take)
        check(not any("missing" in p for p in data["metadata"]["processes"]), str(data["metadata"]))
        for role in ("worker", "shard"):
            done = ctl(role, "trace", "--out", str(c.folder / "no.json"))
            check(done.returncode == 1 and not (c.folder / "no.json").exists(), f"{role}: {done.returncode} {done.stderr}")


TESTS = {"step": test_step, "gaps": test_gaps, "map": test_map, "restart": test_restart, "two": test_two, "roles": test_roles}

if __name__ == "__main__":
    for name in sys.argv[1:] or TESTS:
        TESTS[name]()
