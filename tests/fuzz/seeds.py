#!/usr/bin/python3
"""Inputs of fuzz_request to begin with: requests of every method, each named after its method. The first byte of an
input is its method's place in the services, so a new method moves those after it: make them anew then.

    seeds.py            writes them into corpus/request
    seeds.py --check    says which are missing, or are not of the method that they are named after
"""
import pathlib
import random
import sys

FUZZ = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(FUZZ.parent / "integration"), str(FUZZ.parent / "fault")]

import attacks  # noqa: E402
import cluster  # noqa: E402
from cluster import pb  # noqa: E402

MOST = 900  # bytes of a seed: short ones are mutated more often


def fill(chance, method):
    """Random fields; a configuration that is valid, so that mutations get behind its checks."""
    for _ in range(200):
        message = attacks.random_message(chance, attacks.message_of(method))
        if method.name in ("CreateRun", "OpenRun"):
            message.config.CopyFrom(cluster.run_config())
        if message.ByteSize() < MOST:
            return message
    raise SystemExit(f"{method.name}: no request of it is shorter than {MOST} bytes")


def whole():
    """Requests with everything in them that a chance may have left out."""
    span = dict(phase=32, thread=5, index=1, step=7, micro_batch=2, rows=64, bytes=4096, begin_ns=10**12, end_ns=10**12 + 5)
    spans = [pb.Span(**span), pb.Span(**{**span, "phase": 2**32 - 1, "end_ns": 2**64 - 1}), pb.Span()]
    return {"Scheduler.Trace": pb.TraceRequest(first_step=5, steps=100, trace=2**32 + 1, run_id=1),
            "Scheduler.PutSpans": pb.PutSpansRequest(trace=1, run_id=1, worker=2, spans=spans, gone=True, since_ns=9, offset_ns=-5,
                                                     uncertainty_ns=2**63),
            "Scheduler.Scale": pb.ScaleRequest(action=pb.ScaleRequest.LOST, shard=3, lost=[1, 2**64 - 1]),
            "Scheduler.Grow": pb.GrowRequest(classes=2**40, data=pb.DataSet(kind=pb.DataSet.RECORDS, samples=9, digest="0" * 32),
                                             begin=pb.DataBegin(samples=8, digest="1" * 32)),
            "Shard.CloseRun": pb.CloseRunRequest(run_id=1, leaves=True),
            "Shard.ReadSpans": pb.ReadSpansRequest(run_id=1, first_step=2**64 - 1, last_step=0)}


def services():
    return [m for service in ("Scheduler", "Shard") for m in attacks.methods(service)]


def seeds():
    made, filled = {}, whole()
    for number, method in enumerate(services()):
        chance = random.Random(method.name)
        name = f"{method.containing_service.name}.{method.name}"
        made[name] = number, fill(chance, method)
        if name in filled:
            made[f"{name}.whole"] = number, filled[name]
    return {name: bytes([number, len(name)]) + message.SerializeToString() for name, (number, message) in made.items()}


def check(folder):
    wrong = []
    for number, method in enumerate(services()):
        path = folder / f"{method.containing_service.name}.{method.name}"
        if not path.exists() or path.read_bytes()[0] != number:
            wrong.append(path.name)
    return wrong


def main():
    folder = FUZZ / "corpus" / "request"
    if "--check" in sys.argv[1:]:
        wrong = check(folder)
        sys.exit(f"corpus/request: not of their methods, or not there: {' '.join(wrong)}: run {__file__}" if wrong else 0)
    for path in folder.glob("S*.*"):
        path.unlink()
    for name, seed in seeds().items():
        (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
