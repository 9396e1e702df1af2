"""What a scheduler may say, for tests of the status page: each state as {path: (status, JSON)}."""
import json
import math

NOW = 1_795_700_000_000
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


def shard(number, **changes):
    return {"id": number, "address": f"10.0.0.{number}:7401", "state": "ready", "blocks": 40, "dense_blocks": 4, "classes": 40960,
            "memory_bytes": 9_600_000_000, "memory_limit": 64_000_000_000, "step": 1200, "backend": "cpu", "numerics": "cpu",
            "member": True, "leaving": False, "step_ms": 11.4, "mirrors": [], "missing_s": 0.0, "loss": "", "log_floor": 0,
            "log_bytes": 210_000_000, "snapshot_lag": 310, "oldest_step": 0, "disk_error": "", "recovery": None, **changes}


def status(**changes):
    return {"run": "faces", "run_id": 3, "state": "running", "reason": "", "step": 1200, "steps": 5000, "loss": 7.31,
            "images_per_s": 2410.5, "lr": 0.0973, "eta_s": 4210.0, "epoch": 1.24, "map_version": 4, "incarnation": 2,
            "skipped_steps": 0, "shards": [shard(k) for k in (1, 2, 3)],
            "workers": [{"id": 4294967297, "state": "alive", "tickets": 2, "name": "trainer-1:4711", "lanes": 4, "micro_batches": 91234, "memory_bytes": 812_000_000}],
            "counters": {}, "version": "0.1.0", "oldest_step": 0, "rewind_window": 0, "durable_step": 1200, "durable_every": 1,
            "goal": "", "goal_bytes": 0, "goal_moved": 0, "lr_changes": [], "moves": [], "classes": 122880, "grows": "", "growths": [], "elastic": False, "mirrors": 0, "grace_s": 0,
            **changes}


def points(count=1200, run=3):
    return {"run_id": run, "version": "2.0", "steps_per_point": 1, "points": [
        [t, t, round(6 + 24 * math.exp(-t / 300) + math.sin(t * 12.9898) * 0.8, 4), 5, 31, 0.1 * min(1, t / 100), 2400 + 60 * math.sin(t / 9)]
        if t % 97 else [t, t, None, None, None, 0.1, None] for t in range(1, count + 1)]}


def blocks(moves=()):
    return {"run_id": 3, "map_version": 4, "block_size": 1024, "class": {"blocks": 120, "per_cell": 1, "owners": [1 + b % 3 for b in range(120)]},
            "dense": {"blocks": 12, "per_cell": 1, "owners": [1 + b // 4 for b in range(12)]}, "moves": list(moves)}


def events(texts):
    return {"incarnation": 2, "events": [{"id": i + 1, "time_ms": NOW + 1000 * i, "run_id": 3, "who": who, "text": text}
                                         for i, (who, text) in enumerate(texts)]}


def runs(*lines):
    return {"runs": [{"run_id": i, "run": name, "state": state, "reason": reason, "step": 1200, "steps": 5000, "loss": 7.31,
                      "first_ms": NOW, "last_ms": NOW + 900_000} for i, name, state, reason in lines]}


def answers(told, series=None, map_=None, happened=None, known=None):
    said = {"/api/status": told, "/api/series": series or points(), "/api/blocks": map_ or blocks(),
            "/api/events": happened or events([("scheduler", "shard 1 joined at 10.0.0.1:7401"), ("10.0.0.9:5000", "asks run faces to pause")]),
            "/api/runs": known or runs((3, "faces", "running", ""), (2, "trial", "failed", "shard 2 was lost"))}
    return {path: (200, json.dumps(said_)) for path, said_ in said.items()}


MOVE = {"move": 7, "from": 1, "to": 3, "blocks": 3, "bytes": 300_000_000, "copied": 120_000_000, "bytes_per_s": 41_000_000.0, "eta_s": 4.4,
        "state": "copying", "reason": ""}
WAITING_MOVE = {**MOVE, "move": 8, "from": 2, "copied": 0, "bytes_per_s": 0.0, "eta_s": 0.0, "state": "waiting"}

# name: (answers, the word for the state, a part of the reason)
STATES = {
    "running": (answers(status()), "Running", ""),
    "moves": (answers(status(goal="4 shards", goal_bytes=600_000_000, goal_moved=300_000_000, moves=[MOVE, WAITING_MOVE]),
                      map_=blocks([{"move": 7, "kind": "move", "from": 1, "to": 3, "class_cells": [0, 3, 6], "dense_cells": [0]},
                                   {"move": 8, "kind": "move", "from": 2, "to": 3, "class_cells": [1], "dense_cells": []}])), "Running", ""),
    "waiting": (answers(status(images_per_s=0.0, reason="waits for shard 2 (10.0.0.2:7401): its lease has ended", shards=[
        shard(1), shard(2, state="gone", missing_s=31.0, loss="in 29 s shards that mirror it restore its blocks"),
        shard(3, mirrors=[{"shard": 1, "complete": False, "blocks": 44, "copied": 12, "oldest_step": 0, "bytes": 1, "reason": ""}])])),
        "Waiting", "Waits for shard 2"),
    "recovering": (answers(status(images_per_s=0.0, reason="waits for the recovery of shard 2", shards=[
        shard(1), shard(2, state="recovering", recovery={"step": 900, "to_step": 1200, "eta_s": 8.0})])), "Waiting", "recovery"),
    "paused": (answers(status(state="paused", images_per_s=0.0, reason="paused by 10.0.0.9:5000")), "Paused", "Paused by"),
    "blocked": (answers(status(state="blocked", images_per_s=0.0, reason="the disk of shard 1 is full", shards=[
        shard(1, disk_error="write step log: No space left on device")])), "Blocked", "The disk"),
    "failed": (answers(status(state="failed", reason="ten steps in a row were not finite", skipped_steps=10)), "Failed", "Ten steps"),
    "finished": (answers(status(state="finished", step=5000, eta_s=0.0)), "Finished", ""),
    "loading": (answers(status(state="loading", step=0, loss=None, images_per_s=0.0, lr=0.0, reason="waits for the blocks"),
                        series=points(0)), "Loading", "Waits for the blocks"),
    "nothing": (answers(status(run="", run_id=0, state="idle", step=0, steps=0, loss=None, images_per_s=0.0, shards=[], workers=[]),
                        series=points(0, 0), map_={"run_id": 0}, happened=events([]), known=runs()), "Idle", "shardfc create"),
    "standby": ({"/api/": (503, "nothing yet"), "/readyz": (503, "standing by: another scheduler leads, or none yet")},
                "Standing by", "Standing by: another scheduler leads"),
    "silent": ({"/api/": (0, "")}, "No answer", "does not answer"),
    "large": (answers(status(shards=[shard(k, blocks=4000) for k in range(1, 65)],
                             workers=[{"id": k, "state": "alive", "tickets": 1, "name": f"trainer-{k}:1", "lanes": 8, "micro_batches": 10**9, "memory_bytes": 10**12}
                                      for k in range(1, 101)]),
                      map_={"run_id": 3, "map_version": 4, "block_size": 1024, "moves": [],
                            "class": {"blocks": 1024 * 250, "per_cell": 250, "owners": [1 + b % 64 for b in range(1024)]},
                            "dense": {"blocks": 256, "per_cell": 1, "owners": [1 + b % 64 for b in range(256)]}}), "Running", ""),
    "hostile": (answers(status(run=HOSTILE, state="paused", reason=HOSTILE, version=HOSTILE, goal=HOSTILE, moves=[{**MOVE, "state": HOSTILE, "reason": HOSTILE}],
                               shards=[shard(1, address=HOSTILE, state=HOSTILE, loss=HOSTILE, disk_error=HOSTILE)],
                               workers=[{"id": 1, "state": HOSTILE, "tickets": 1, "name": HOSTILE * 3, "lanes": 1, "micro_batches": 1, "memory_bytes": 0}]),
                        happened=events([(HOSTILE, HOSTILE * 8), ("x" * 60, "y" * 500)]), known=runs((3, HOSTILE, HOSTILE, HOSTILE))), "Paused", HOSTILE),
}
