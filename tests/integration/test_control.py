#!/usr/bin/python3
"""The command line as people and scripts meet it: options, exit codes, JSON, checkpoints.

    test_control.py [usage|data|lifecycle|words|checkpoint|dense|half|adamw|memory|store|glyphs ...]     default: all
"""
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

import cluster
from cluster import Cluster, pb, wait_until
from inputs import (check, expect, jpegs, make_images, one_json, small_run, tool, write_pairs)

PROGRAMS = ("shardfc", "shardfc-scheduler", "shardfc-shard", "shardfc-worker")
COMMANDS = ("create", "status", "watch", "pause", "resume", "set", "stop", "rewind", "checkpoint", "restore", "verify", "log",
            "export", "eval", "rank", "bench")


# ---- options, without a cluster

def test_usage():
    """--help and --version everywhere; 2 and the option's name for wrong usage; a config file, the
    environment and flags say the same thing."""
    for program in PROGRAMS:
        done = expect(tool(program, "--help"), 0)
        check("usage" in done.stdout.lower(), f"{program} --help: {done.stdout}")
        done = expect(tool(program, "--version"), 0)
        check(done.stdout.startswith(program) and len(done.stdout.split()) >= 2,
              f"{program} --version: {done.stdout}")
    for command in COMMANDS + ("data glyphs", "data pack", "data info"):
        words = command.split()
        done = expect(tool("shardfc", *words, "--help"), 0)
        check(f"shardfc {command}" in done.stdout, f"{command} --help: {done.stdout}")
        expect(tool("shardfc", *words, "--version"), 0)
        expect(tool("shardfc", *words, "--no-such-option", "1"), 2, "no-such-option")
    expect(tool("shardfc", "data", "--help"), 0)
    expect(tool("shardfc", "bench", "head", "--help"), 0)
    expect(tool("shardfc"), 2)
    expect(tool("shardfc", "trian"), 2, "trian", "--help")
    expect(tool("shardfc", "data", "glyps"), 2)
    expect(tool("shardfc-shard", "--listen", "127.0.0.1:0"), 2, "scheduler")
    expect(tool("shardfc-shard", "--scheduler", "nowhere", "--listen", "127.0.0.1:0", "--durable", "off"), 2,
           "nowhere")
    expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0"), 2, "--state",
           "--durable off")
    expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--state", "/tmp/x",
                "--backend", "reference"), 2, "--durable off")
    for backend, word in (("cuda", "/no/such/folder"), ("cuda:1", "/no/such/folder"), ("cuda:x", "cuda:N"),
                          ("abacus", "unknown")):
        expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--durable", "off",
                    "--backend", backend, env=os.environ | {"SFC_PLUGIN_DIR": "/no/such/folder"}), 2,
               f"--backend {backend}", word)
    expect(tool("shardfc-worker", "--scheduler", "nowhere", "--data", "synthetic"), 2, "nowhere")
    expect(tool("shardfc-scheduler", "--listen", "127.0.0.1:0"), 2, "state")
    expect(tool("shardfc-worker", "--scheduler", "127.0.0.1:1"), 2, "--data")
    expect(tool("shardfc-worker", "--scheduler", "127.0.0.1:1", "--data", "/no/such/folder"), 2,
           "/no/such/folder")
    expect(tool("shardfc-worker", "--scheduler", "127.0.0.1:1", "--data", "synthetic", "--threads", "0"), 2,
           "--threads")
    expect(tool("shardfc-worker", "--scheduler", "127.0.0.1:1", "--data", "synthetic", "--device", "tpu"), 2,
           "--device", "tpu")
    with Cluster() as c:
        for bad in ("", "nonsense", "127.0.0.1", "127.0.0.1:999999", "host:port"):
            expect(tool("shardfc-scheduler", "--listen", bad, "--state", c.folder / "s"), 2, "--listen")
            expect(tool("shardfc", "status", "--scheduler", bad), 2, "--scheduler")
    started = time.monotonic()
    expect(tool("shardfc", "status", "--scheduler", "127.0.0.1:1"), 1, "127.0.0.1:1")
    check(time.monotonic() - started < 30 * cluster.TIME_SCALE, "status without a scheduler takes too long")
    full_disk()
    impossible_flags()
    one_table_three_sources()


def full_disk():
    """What was to be printed and wasn't is a failure, whatever printed it."""
    commands = [(p, "--help") for p in PROGRAMS] + [("shardfc", "--version"), ("shardfc", "status", "--help")]
    for command in (*commands, ("shardfc", "bench", "head", "--classes", "1000", "--steps", "2", "--json")):
        with open("/dev/full", "w") as full:
            expect(tool(*command, stdout=full), 1, "standard output", "No space left")


def impossible_flags():
    """Each is named, and nobody has to be there to find it."""
    base = ("shardfc", "create", "--scheduler", "127.0.0.1:1", "--run", "r", "--classes", "100", "--steps", "5")
    for flags, word in (
            (("--dim", "0"), "--dim"), (("--dim", "512k5"), "--dim"), (("--dim", "9000"), "--dim"),
            (("--dim", "-3"), "--dim"), (("--sample-rate", "0"), "--sample-rate"),
            (("--sample-rate", "1.5"), "--sample-rate"), (("--sample-rate", "nan"), "--sample-rate"),
            (("--lr", "inf"), "--lr"), (("--lr", "-1"), "--lr"), (("--margin", "cosface"), "--margin"),
            (("--margin", "arcface:nan"), "--margin"), (("--margin", "combined:1,2"), "--margin"),
            (("--margin", "cosface:1e300"), "margin"), (("--scale", "0"), "--scale"),
            (("--scale", "1000"), "scale"), (("--momentum", "1"), "--momentum"),
            (("--schedule", "cosine"), "--schedule"), (("--schedule", "poly:-1"), "--schedule"),
            (("--schedule", "poly:1:nan"), "--schedule"), (("--global-batch", "0"), "--global-batch"),
            (("--global-batch", "48"), "--micro-batch"), (("--micro-batch", "0"), "--micro-batch"),
            (("--epochs", "2"), "--epochs"), (("--dtype", "f8"), "--dtype"), (("--rounding", "up"), "--rounding"),
            (("--backbone", "resnet9000"), "--backbone"), (("--augment", "1,2"), "--augment"),
            (("--filter", "2"), "--filter"), (("--filter", "nan"), "--filter"),
            (("--momentum-mode", "never"), "--momentum-mode"), (("--optimizer", "lion"), "--optimizer"),
            (("--optimizer", "adamw", "--momentum-mode", "dense"), "adamw"),
            (("--optimizer", "adamw", "--momentum", "0.5"), "--momentum"), (("--beta1", "0.8"), "--beta1"),
            (("--beta2", "0.99"), "--beta2"), (("--epsilon", "1e-7"), "--epsilon"),
            (("--beta1", "1"), "--beta1"), (("--beta2", "-1"), "--beta2"), (("--epsilon", "0"), "--epsilon"),
            (("--block-size", "9999999999"), "block-size"), (("--seed", "x"), "--seed"),
            (("--hot-classes", "101"), "hot_classes"), (("--hot-classes", "9999999"), "--hot-classes"),
            (("--hot-classes", "5", "--session"), "hot_classes"),
            (("--data", "/no/such/folder"), "/no/such/folder"),
            (("--data", "/no/such/folder", "--session"), "--session")):
        expect(tool(*base, *flags), 2, word)
    expect(tool("shardfc", "create", "--scheduler", "127.0.0.1:1", "--classes", "5", "--steps", "5"), 2, "--run")
    expect(tool("shardfc", "create", "--scheduler", "127.0.0.1:1", "--run", "r", "--steps", "5"), 2, "--classes")
    expect(tool("shardfc", "create", "--scheduler", "127.0.0.1:1", "--run", "r", "--classes", "5"), 2, "--steps")
    expect(tool("shardfc", "resume", "--scheduler", "127.0.0.1:1", "--drop", "soon"), 2, "--drop")
    expect(tool("shardfc", "export", "--checkpoint", "/no/such", "--out", "/no/such/out", "--format", "onnx"), 2,
           "--format", "onnx")
    expect(tool("shardfc", "export", "--checkpoint", "/no/such", "--out", "/no/such/out"), 2, "/no/such")
    for others in (1 << 63, (1 << 64) - 1):
        expect(tool("shardfc", "rank", "--scheduler", "127.0.0.1:1", "--others", others), 2, "--others")
    expect(tool("shardfc", "verify", "/no/such"), 2, "/no/such")
    expect(tool("shardfc", "verify"), 2, "DIR")
    expect(tool("shardfc", "eval", "--checkpoint", "/no/such"), 2, "--pairs")
    expect(tool("shardfc", "restore", "--from", "/no/such"), 2, "/no/such")


def one_table_three_sources():
    with Cluster() as c:
        config = c.folder / "options"
        config.write_text("# where it is\nscheduler = 127.0.0.1:2\n")
        expect(tool("shardfc", "status", "--config", config), 1, "127.0.0.1:2")
        config.write_text("schedular = 127.0.0.1:2\n")
        expect(tool("shardfc", "status", "--config", config), 2, "schedular", "options")
        expect(tool("shardfc", "status", "--config", c.folder / "none"), 2, "none")
        env = dict(os.environ, SFC_SCHEDULER="127.0.0.1:3")
        expect(tool("shardfc", "status", env=env), 1, "127.0.0.1:3")
        expect(tool("shardfc", "status", "--scheduler", "127.0.0.1:4", env=env), 1, "127.0.0.1:4")
        expect(tool("shardfc", "status", "--log-level", "loud"), 2, "--log-level")


# ---- data

def test_data():
    """pack and info of a folder of JPEG files."""
    with Cluster() as c:
        images = jpegs(make_images(c.folder / "made", 12, 5))
        folder = c.folder / "photos"
        for n, (jpeg, label) in enumerate(images):
            (folder / f"person {label:02}").mkdir(parents=True, exist_ok=True)
            (folder / f"person {label:02}" / f"{n}.jpg").write_bytes(jpeg)
        (folder / "person 03" / "notes.txt").write_text("not an image")
        packed = one_json(tool("shardfc", "data", "pack", folder, "--out", c.folder / "set", "--no-flip",
                               "--json"))
        check((packed["identities"], packed["samples"]) == (12, 60), f"pack: {packed}")
        check((packed["width"], packed["height"], packed["channels"]) == (32, 32, 1), f"pack: {packed}")
        check(packed["ignored_files"] == 1, f"pack: {packed}")
        info = one_json(tool("shardfc", "data", "info", c.folder / "set", "--check", "--json"))
        check(info["samples"] == 60 and info["classes"] == 12, f"info: {info}")
        check(info["digest"] == packed["digest"], "info and pack disagree about the digest")
        check(sorted(jpegs(c.folder / "set")) == sorted(images), "packing changed an image or a class")
        again = one_json(tool("shardfc", "data", "pack", folder, "--out", c.folder / "set2", "--no-flip",
                              "--json"))
        check(again["digest"] == packed["digest"], "packing twice gives two digests")
        before = (c.folder / "set" / "train.rec").stat()
        expect(tool("shardfc", "data", "pack", folder, "--out", c.folder / "set"), 2, "holds a data set already", "--replace")
        expect(tool("shardfc", "data", "glyphs", "--out", c.folder / "set", "--classes", "20"), 2, "train.rec", "--replace")
        after = (c.folder / "set" / "train.rec").stat()
        check((after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "a refused command wrote a set")
        again = one_json(tool("shardfc", "data", "pack", folder, "--out", c.folder / "set", "--no-flip", "--replace",
                              "--json"))
        check(again["digest"] == packed["digest"], "packing in place of a set gives another digest")
        one_json(tool("shardfc", "data", "info", c.folder / "set" / "train.rec", "--json"))
        expect(tool("shardfc", "data", "info", c.folder / "photos"), 2, "train.")
        expect(tool("shardfc", "data", "pack", c.folder / "none", "--out", c.folder / "x"), 2, "none")
        (c.folder / "empty").mkdir()
        expect(tool("shardfc", "data", "pack", c.folder / "empty", "--out", c.folder / "x"), 2, "empty")
        (folder / "person 03" / "99.jpg").write_bytes(images[0][0][:200])
        expect(tool("shardfc", "data", "pack", folder, "--out", c.folder / "x"), 2, "person 03/99.jpg")
        check(not (c.folder / "x" / "train.rec").exists(), "a failed pack left a record file")


def test_glyphs():
    """A small set of glyphs, if the fonts are there."""
    with Cluster() as c:
        done = tool("shardfc", "data", "glyphs", "--out", c.folder / "g", "--classes", "300", "--holdout",
                    "60", "--pairs", "200", "--faces", "12", "--json", seconds=300)
        if done.returncode and "fonts" in done.stderr:
            print("skipped glyphs: no fonts", flush=True)
            return
        made = one_json(done)
        check(isinstance(made, dict) and made, f"glyphs: {made}")
        for name in ("train.rec", "train.idx", "holdout.rec", "holdout.idx", "pairs_easy.bin",
                     "pairs_hard.bin", "meta.json"):
            check((c.folder / "g" / name).stat().st_size > 0, f"{name} is empty")
        info = one_json(tool("shardfc", "data", "info", c.folder / "g", "--check", "--json"))
        check(info["classes"] == 300, f"info: {info}")
        expect(tool("shardfc", "data", "glyphs", "--out", c.folder / "h", "--fonts", c.folder / "none"), 2,
               "none")
        expect(tool("shardfc", "data", "glyphs", "--out", c.folder / "h", "--size", "64"), 2, "--size")


# ---- a run from outside

STATUS_KEYS = {"run": str, "state": str, "step": int, "steps": int, "loss": (float, int, type(None)),
               "images_per_s": (float, int), "map_version": int, "shards": list, "workers": list}
SHARD_KEYS = {"id": int, "address": str, "state": str, "blocks": int, "classes": int, "memory_bytes": int,
              "step": int}
WORKER_KEYS = {"id": int, "state": str, "tickets": int}


def check_keys(value, keys, what):
    for key, kind in keys.items():
        check(key in value and isinstance(value[key], kind), f"{what}: {key} in {value}")


def status(c):
    value = one_json(c.ctl("status", "--json", check=False))
    check_keys(value, STATUS_KEYS, "status")
    for shard in value["shards"]:
        check_keys(shard, SHARD_KEYS, "a shard in status")
    for worker in value["workers"]:
        check_keys(worker, WORKER_KEYS, "a worker in status")
    return value


def synthetic(steps, *extra):
    return ("--run", "syn", "--classes", "3000", "--samples", "5000", "--dim", "32", "--steps", steps,
            "--global-batch", "32", "--micro-batch", "8", "--scale", "32", "--block-size", "256", *extra)


def wait_step(c, step):
    return wait_until(f"step {step}", lambda: status(c)["step"] >= step, 60, context=c.tails)


def test_lifecycle():
    """create, status, watch, pause, resume, stop; several runs one after another in one cluster."""
    with Cluster() as c:
        c.start_scheduler()
        idle = status(c)
        check(idle["state"] == "idle" and idle["shards"] == [], f"idle: {idle}")
        expect(c.ctl("status", check=False), 0)
        with open("/dev/full", "w") as full:
            expect(tool("shardfc", "status", "--scheduler", c.address, stdout=full), 1, "standard output")
            expect(tool("shardfc", "watch", "--scheduler", c.address, stdout=full), 1, "standard output")
        expect(c.ctl("create", *synthetic(10), check=False), 1, "shardfc-shard")
        for command in (("pause",), ("resume",), ("stop",), ("checkpoint", "--out", c.folder / "never")):
            expect(c.ctl(*command, check=False), 1, "run")
        c.start_shards(2)
        created = one_json(c.ctl("create", *synthetic(100000), "--json", check=False))
        check(created["run"] == "syn" and created["run_id"] == 1 and created["shards"] == 2, f"{created}")
        check(created["class_blocks"] == 12 and created["bytes_per_shard_max"] > 0, f"create: {created}")
        expect(c.ctl("create", *synthetic(10), check=False), 1, "syn", "stop")
        waiting = status(c)
        check(waiting["state"] == "running" and waiting["loss"] is None or waiting["step"] == 0, f"{waiting}")
        c.start_workers(1)
        wait_step(c, 5)
        now = status(c)
        check(sum(s["classes"] for s in now["shards"]) == 3000, f"classes on shards: {now['shards']}")
        check(sum(s["blocks"] for s in now["shards"]) >= 12, f"blocks on shards: {now['shards']}")
        check(now["loss"] > 0 and len(now["workers"]) == 1, f"status: {now}")
        paused = one_json(c.ctl("pause", "--json", check=False))
        check(paused["state"] == "paused", f"pause: {paused}")
        held = c.hold()  # the step that was open may have been committed still
        c.release(held)
        time.sleep(0.5)
        now = status(c)
        check((now["step"], now["state"]) == (held.step, "paused"), f"a paused run goes on from step {held.step}: {now}")
        one_json(c.ctl("resume", "--json", check=False))
        wait_step(c, held.step + 5)
        expect(c.ctl("resume", "--drop", "1,999", check=False), 2, "micro_batch")
        stopped = one_json(c.ctl("stop", "--json", check=False))
        check(stopped["state"] in ("idle", "finished", "stopped"), f"stop: {stopped}")
        wait_until("blocks to be freed", lambda: all(s["blocks"] == 0 for s in status(c)["shards"]), 20,
                   context=lambda: str(status(c)))
        c.stub.CreateRun(pb.CreateRunRequest(config=cluster.run_config(), load=True, start_step=5), timeout=30)
        check(status(c)["state"] == "loading", "a run that waits for its blocks")
        expect(c.ctl("checkpoint", "--out", c.folder / "never", check=False), 1, "loading")
        expect(c.ctl("create", *synthetic(10), check=False), 1, "stop")
        expect(c.ctl("stop", check=False), 0)  # what a restore that died leaves behind
        for run in (3, 4):
            one_json(c.ctl("create", *synthetic(20), "--seed", run, "--json", check=False))
            trace = c.folder / "trace.csv"
            done = expect(c.ctl("watch", "--until-done", "--interval", "200ms", "--trace", trace, check=False), 0)
            check("20/20" in done.stdout, f"watch: {done.stdout}")
            lines = trace.read_text().splitlines()
            check(lines[0] == "step,loss,lr,images_per_s" and len(lines) == 21, f"trace: {lines}")
            over = status(c)
            check((over["state"], over["run_id"], over["step"]) == ("finished", run, 20), f"{over}")
        check(c.scheduler.terminate() == 0, f"the scheduler did not end well\n{c.scheduler.tail()}")
        for p in c.shards + c.workers:
            check(p.terminate() == 0, f"SIGTERM is not a clean end\n{p.tail()}")


def begun(c, name, *argv):
    """A command beside the test; said() is what it has printed."""
    path = c.folder / f"{name}.said"
    with path.open("wb") as out:
        process = subprocess.Popen([str(a) for a in (*cluster.ENDS_WITH_US, cluster.BIN / "shardfc", argv[0],
                                                     "--scheduler", c.address, *argv[1:])],
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    process.said = path.read_text
    return process


def test_words():
    """What is missing is called what people call it, and a command that waits says for what."""
    with Cluster() as c:
        c.start_scheduler()
        for command in (("pause",), ("resume",), ("stop",), ("rank",), ("rewind", "--to-step", "3"),
                        ("checkpoint", "--out", c.folder / "never")):
            done = expect(c.ctl(*command, check=False), 1, "there is no run", "shardfc create")
            check("run_id" not in done.stderr, done.stderr)
        (c.folder / "file").write_text("")
        expect(c.ctl("checkpoint", "--out", c.folder / "none" / "deep" / "x", check=False), 2,
               f"there is no folder {c.folder}/none/deep")
        expect(c.ctl("checkpoint", "--out", c.folder / "file" / "x", check=False), 2, "is no folder")
        watch = begun(c, "watch", "watch", "--until-done", "--interval", "200ms")
        wait_until("watch to say that there is no run", lambda: "waits for a run" in watch.said(), 20, context=watch.said)
        c.start_shards(2)
        c.start_worker()
        c.ctl("create", *synthetic(100000))
        wait_until("a rate", lambda: status(c)["images_per_s"] > 0 and status(c)["eta_s"] > 0, 60, context=c.tails)
        c.ctl("pause")
        far = begun(c, "far", "checkpoint", "--out", c.folder / "far", "--at-step", "90000")
        wait_until("the checkpoint to say why it waits", lambda: re.search(r"at step \d+/90000: the run is paused", far.said()),
                   60, context=far.said)
        far.terminate()
        far.wait()
        victim = c.shards[1]
        victim.kill()
        done = expect(c.ctl("rank", check=False), 1, f"shard {victim.address} is not available", "--state")
        check("ReadBlock" not in done.stderr, done.stderr)
        c.ctl("resume")
        wait_until("status to miss the shard", lambda: "does not answer" in status(c)["reason"], 60, context=c.tails)
        now = status(c)
        check(now["images_per_s"] == 0 and now["eta_s"] == 0, f"a rate without a shard: {now}")
        check(" left" not in c.ctl("status").stdout, c.ctl("status").stdout)
        c.ctl("stop")
        check(watch.wait(60 * cluster.TIME_SCALE) == 1 and "was stopped" in watch.said(), watch.said())


# ---- checkpoints

STEPS, AT = 30, 12


def checkpoint(c, name, *extra):
    made = one_json(c.ctl("checkpoint", "--out", c.folder / name, "--json", *extra, check=False))
    return {key: made[key] for key in ("step", "digest")}


def checkpoint_at(c, data, name, at, *mode):
    """A run from its beginning with a checkpoint at a step, to its end. The run has a hold at the step
    before it has a worker, so the tool can't come too late, however slow it is."""
    c.ctl("create", *small_run(data, STEPS), *mode)
    hold = c.stub.Hold(pb.HoldRequest(at_step=at), timeout=30 * cluster.TIME_SCALE)
    worker = c.start_worker(data=data)
    made = checkpoint(c, name, "--at-step", at)
    c.release(hold)
    c.wait_state("finished")
    expect_end(worker)
    return made


def expect_end(worker):
    check(worker.terminate() == 0, f"the worker did not end well\n{worker.tail()}")


def read_safetensors(path):
    blob = path.read_bytes()
    size, = struct.unpack_from("<Q", blob)
    header, data = json.loads(blob[8:8 + size]), blob[8 + size:]
    meta, end, tensors = header.pop("__metadata__"), 0, {}
    for name, t in header.items():
        begin, stop = t["data_offsets"]
        check(t["dtype"] == "F32" and stop - begin == 4 * int(np.prod(t["shape"], dtype=int)), f"{name}: {t}")
        tensors[name] = np.frombuffer(data[begin:stop], "<f4").reshape(t["shape"])
        end = max(end, stop)
    check(end == len(data), f"{path}: {len(data)} bytes of data, {end} described")
    return meta, tensors


def live_weights(c):
    """(class centres, dense parameters) of the held step, from what the shards hold."""
    held = c.hold()
    try:
        parts = {}
        for name, data in c.read_state(held):
            words = name.split()
            parts.setdefault((words[0], words[-1]), []).append(np.frombuffer(data, "<f4"))
        centres, moments = (np.concatenate(parts["class", part]).reshape(-1, held.config.dim)
                            for part in ("values", "momentum"))
        if held.config.momentum_mode == "dense":
            centres = caught_up(held.config, centres, moments, np.concatenate(parts["class", "last"]),
                                parts["history", "history"][0])
        return centres, np.concatenate(parts["dense", "values"])
    finally:
        c.release(held)


def caught_up(config, centres, moments, last, rates):
    """What a dense optimiser has: the steps that each row missed, one after the other, in double."""
    w, m = centres.astype(np.float64), moments.astype(np.float64)
    check(last.min() < last.max() == len(rates) == STEPS and (last % 1 == 0).all(), f"last steps {last}")
    for step, rate in enumerate(rates, 1):
        late = last < step
        m[late] = config.momentum * m[late] + config.weight_decay * w[late]
        w[late] -= float(rate) * m[late]
    return w


def test_dense():
    """The same with rows that lag: momentum mode dense."""
    test_checkpoint("--momentum-mode", "dense")


def test_half():
    """The same with class centres in bf16."""
    test_checkpoint("--dtype", "bf16", "--momentum-mode", "dense")


def test_adamw():
    """The same with AdamW: class layer and backbone with second moments."""
    test_checkpoint("--optimizer", "adamw", "--lr", "2e-3", "--weight-decay", "0.1")


def test_checkpoint(*mode):
    """A checkpoint of a running run is the undisturbed state of that step, and goes on to the same end
    on any number of shards; export and eval read it."""
    with Cluster() as c:
        data = make_images(c.folder / "images")
        c.start_scheduler()
        c.start_shards(2)
        at = checkpoint_at(c, data, "at", AT, *mode)
        check(at["step"] == AT, f"checkpoint --at-step {AT}: {at}")
        expect(c.ctl("checkpoint", "--out", c.folder / "at", check=False), 2, "at", "exists")
        end = checkpoint(c, "end")
        check(end["step"] == STEPS, f"checkpoint of a finished run: {end}")
        check(checkpoint(c, "late", "--at-step", AT) == at, f"step {AT} of a finished run is not {at}")
        centres, dense = live_weights(c)
        c.ctl("create", *small_run(data, STEPS), *mode)
        worker = c.start_worker(data=data)
        c.wait_step(2)
        some = checkpoint(c, "some")  # at whatever step the running run was
        c.wait_state("finished")
        expect_end(worker)
        check(checkpoint(c, "end2") == end, "a checkpoint in between changed the end")
        # held only here: what comes before is undisturbed
        same = checkpoint_at(c, data, "same", some["step"], *mode)
        check(same == some, f"{some} is not the state of its step: {same}")
        c.start_worker(data=data)
        for name, made in (("at", at), ("end", end)):
            told = one_json(tool("shardfc", "verify", c.folder / name, "--json"))
            check(told == made, f"verify {name}: {told}, checkpoint: {made}")
            listed = one_json(tool("shardfc", "log", c.folder / name, "--json"))
            check((listed["step"], listed["digest"], listed["problems"]) == (made["step"], made["digest"], 0),
                  f"log {name}: {listed}, checkpoint: {made}")
        exported(c, end, centres, dense)
        evaluated(c, data)
        restored(c, 2, at, end)
        damaged(c)
        folder = c.folder
        for shards in (1, 3):
            with Cluster() as other:
                other.start_scheduler()
                other.start_shards(shards)
                other.start_worker(data=data)
                other_end = restored(other, shards, at, end, folder / "at")
                check(len(other_end) == shards, f"{other_end}")


def restored(c, shards, at, end, source=None):
    back = one_json(c.ctl("restore", "--from", source or c.folder / "at", "--json", check=False))
    check((back["step"], back["digest"]) == (at["step"], at["digest"]), f"restore: {back}")
    c.wait_state("finished")
    made = checkpoint(c, f"restored{shards}")
    check(made == end, f"restored on {shards} shards: {made}, undisturbed {end}")
    return status(c)["shards"]


def exported(c, end, centres, dense):
    out = c.folder / "end.safetensors"
    told = one_json(tool("shardfc", "export", "--checkpoint", c.folder / "end", "--out", out, "--format",
                         "safetensors", "--json"))
    check(told["digest"] == end["digest"], f"export: {told}")
    meta, tensors = read_safetensors(out)
    check(meta["digest"] == end["digest"] and meta["step"] == str(STEPS), f"metadata: {meta}")
    exported = tensors.pop("class_centres")
    close = np.allclose(exported, centres, rtol=1e-6, atol=1e-7)  # f32 against double
    check(np.array_equal(exported, centres) or (centres.dtype == np.float64 and close),
          "exported class centres differ")
    check(all(n.startswith("backbone.") for n in tensors), f"tensors: {list(tensors)}")
    flat = np.concatenate([t.ravel() for t in tensors.values()])
    check(np.array_equal(np.sort(flat), np.sort(dense)) and np.isfinite(flat).all(),
          "exported parameters differ")


def evaluated(c, data):
    pairs = write_pairs(c.folder / "pairs.bin", data)
    result = one_json(tool("shardfc", "eval", "--checkpoint", c.folder / "end", "--pairs", pairs, "--json"))
    check(result["pairs"] == 60 and 0 <= result["accuracy"] <= 1 and result["accuracy_std"] >= 0, f"{result}")
    check(isinstance(result["tar_at_far"], dict), f"eval: {result}")
    expect(tool("shardfc", "eval", "--checkpoint", c.folder / "end", "--pairs", pairs), 0)
    result = one_json(tool("shardfc", "eval", "--checkpoint", c.folder / "end", "--rec", data / "train.rec",
                           "--json"))
    rates = result["tar_at_far"].values()  # null where there are too few impostor pairs
    check(any(v is not None for v in rates) and all(v is None or 0 <= v <= 1 for v in rates), f"{result}")
    check(result["pairs"] == 160 * 159 // 2, f"eval --rec: {result}")
    expect(tool("shardfc", "eval", "--checkpoint", c.folder / "end", "--pairs", pairs, "--rec",
                data / "train.rec"), 2, "--pairs", "--rec")


def damaged(c):
    """Every file of a checkpoint, damaged, is named; nothing is loaded from it."""
    before = status(c)["run_id"]
    for path in sorted((c.folder / "at").iterdir()):
        original = path.read_bytes()
        for damage in (original[:len(original) // 2], original[:-1] + bytes([original[-1] ^ 1])):
            path.write_bytes(damage)
            name = "manifest" if path.name.startswith("manifest") else path.name
            expect(tool("shardfc", "verify", c.folder / "at"), 2, name)
        path.unlink()
        expect(tool("shardfc", "verify", c.folder / "at"), 2, path.name)
        expect(c.ctl("restore", "--from", c.folder / "at", check=False), 2, path.name)
        path.write_bytes(original)
    block = c.folder / "at" / "class-000000.f32"
    original = block.read_bytes()
    block.write_bytes(b"\xff" + original[1:])
    expect(c.ctl("restore", "--from", c.folder / "at", check=False), 2, block.name)
    block.write_bytes(original)
    expect(tool("shardfc", "verify", c.folder / "at"), 0)
    now = status(c)
    check(now["state"] in ("finished", "idle"), f"after a refused restore: {now}")
    check(before <= now["run_id"], f"{now}")


# ---- memory

def test_memory():
    """A run that does not fit is refused with what it needs and what there is; the cluster goes on."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(2, "--memory", "4M")
        big = ("--run", "big", "--classes", "100000", "--dim", "64", "--steps", "5", "--block-size", "1024")
        done = expect(c.ctl("create", *big, check=False), 1, "--memory")
        check("4.0 MiB" in done.stderr and "needs" in done.stderr, f"needed and available: {done.stderr}")
        check(status(c)["state"] == "idle", f"{status(c)}")
        c.start_worker()
        one_json(c.ctl("create", *synthetic(10), "--json", check=False))
        c.wait_state("finished")
        now = status(c)
        check(all(0 < s["memory_bytes"] <= s["memory_limit"] for s in now["shards"]), f"{now['shards']}")
        check(all(p.running() for p in c.processes), c.tails())
        expect(tool("shardfc-shard", "--scheduler", c.address, "--listen", "127.0.0.1:0", "--state",
                    c.folder / "x", "--memory", "lots"), 2, "--memory")


def test_store():
    """Class blocks in a scratch file: the same state, no name left behind, memory counted without them."""
    digests = []
    for store in (False, True):
        # beside the programs, not in a temporary folder: that may be a tmpfs, which is refused
        with Cluster() as c, tempfile.TemporaryDirectory(prefix="sfc-store-", dir=cluster.BIN) as name:
            c.start_scheduler()
            folder = pathlib.Path(name)
            # 12.5 MiB of blocks on each of two shards: too much for memory, not for a disk
            c.start_shards(2, *(("--memory", "8M", "--store-dir", folder) if store else ("--memory", "64M")))
            c.create_run(classes=50000, dim=64, steps=12, global_batch=16, micro_batch=8)
            c.start_worker(threads=2)
            c.wait_state("finished")
            check(not list(folder.iterdir()), f"names in {folder}: {list(folder.iterdir())}")
            shards = status(c)["shards"]
            check(not store or all(0 < s["memory_bytes"] < 8 << 20 for s in shards), f"{shards}")
            digests.append(c.state_digest())
    check(digests[0] == digests[1], f"blocks in memory and on disk: {digests}")
    expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--durable", "off", "--store-dir", "/no/such"), 1,
           "--store-dir", "/no/such")
    if os.path.isdir("/dev/shm"):
        expect(tool("shardfc-shard", "--scheduler", "127.0.0.1:1", "--durable", "off", "--store-dir", "/dev/shm"), 2,
               "--store-dir", "/dev/shm", "tmpfs", "memory")


def main():
    names = sys.argv[1:] or ["usage", "data", "lifecycle", "checkpoint", "dense", "half", "adamw", "memory", "store",
                             "glyphs"]
    for name in names:
        begin = time.monotonic()
        try:
            globals()[f"test_{name}"]()
        except BaseException:
            print(f"FAILED {name}", file=sys.stderr)
            raise
        print(f"ok {name} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
