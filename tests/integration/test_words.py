#!/usr/bin/python3
"""Whatever a scheduler says (texts of replies and of errors, well-formed and not), shardfc prints UTF-8 without control
characters, and JSON where JSON was asked for.

    test_words.py [replies|errors|long ...]     default: all
"""
import concurrent.futures
import json
import subprocess
import sys

import grpc

from cluster import BIN, TIME_SCALE, pb
from inputs import check

# A window's title, colours, a line that looks like ours, C1 as a character, DEL, and what is no UTF-8 (put in below).
EVIL = "grün \x1b]0;t\x07\x1b[31m\r\x9b2J\x7f\nshardfc: all is well @@@@"
MALFORMED = (b"@@@@", b"\x9b\xff\xc3\xe2")
COMMANDS = (("status",), ("events",), ("doctor",), ("pause",), ("resume",), ("set", "lr", "0.1"), ("drain", "1", "--dry-run"),
            ("scale", "--shards", "2", "--dry-run"), ("rebalance", "--dry-run"), ("rewind", "--to-step", "1"),
            ("create", "--run", "x", "--classes", "100", "--samples", "100"), ("trace", "--out", "/dev/null", "--timeout", "1s"))


def fill(message, text):
    """Every text of it, and of one of each message inside it; the numbers are 1."""
    for field in message.DESCRIPTOR.fields:
        many = field.label == field.LABEL_REPEATED
        if field.type == field.TYPE_MESSAGE:
            fill(getattr(message, field.name).add() if many else getattr(message, field.name), text)
        elif not many and field.type != field.TYPE_BYTES:
            words = text.replace("\n", " ") if field.name == "explanation" else text  # which may have lines
            value = words if field.type == field.TYPE_STRING else True if field.type == field.TYPE_BOOL else 1
            setattr(message, field.name, value)
    return message


class Liar(grpc.GenericRpcHandler):
    """Answers every call with texts of its own; with `error` with that error's text."""

    def __init__(self, text, error=False):
        self.text, self.error = text, error
        self.methods = {m.name: getattr(pb, m.output_type.name)
                        for s in ("Scheduler", "Shard") for m in pb.DESCRIPTOR.services_by_name[s].methods}

    def service(self, details):
        reply = self.methods[details.method.rsplit("/", 1)[1]]

        def answer(request, context):
            if self.error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.text)
            return fill(reply(), self.text).SerializeToString().replace(*MALFORMED)
        return grpc.unary_unary_rpc_method_handler(answer)


class Server:
    def __init__(self, liar):
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=(liar,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None)

    def says(self, *argv, wait=True):
        """What a command prints, after the check that it is text. wait=False: it goes on, and is ended after its first lines."""
        p = subprocess.Popen([BIN / "shardfc", *argv, "--scheduler", self.address], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if wait:
            raw = p.communicate(timeout=60 * TIME_SCALE)[0]
            check(p.returncode in (0, 1, 2), f"{argv}: {p.returncode} {raw}")
        else:
            raw = p.stdout.readline() + p.stdout.readline()
            p.kill()
            p.communicate()
        text = raw.decode()  # strictly
        bad = [c for c in text if (c < " " and c != "\n") or "\x7f" <= c < "\xa0"]
        check(not bad and text, f"{argv} printed {bad}: {raw}")
        check("\nshardfc: all" not in text, f"{argv}: a forged line: {text}")
        return text


def check_all(server):
    said = [server.says(*argv) for argv in COMMANDS]
    said += [server.says("events", "--follow", wait=False), server.says("watch", wait=False)]
    return "".join(said)


def replies():
    with Server(Liar(EVIL)) as server:
        said = check_all(server)
        check("grün ?]0;t??[31m?" in said, said)
        for argv in ("status",), ("events",), ("doctor",), ("scale", "--shards", "2", "--dry-run"), ("pause",):
            json.loads(server.says(*argv, "--json"))


def errors():
    with Server(Liar(EVIL, error=True)) as server:
        said = check_all(server)
        check("grün ?]0;t??[31m?" in said, said)
        json.loads(server.says("doctor", "--json"))


def long():
    """What is cut is cut between characters."""
    for size in range(4):
        with Server(Liar("x" * size + "€" * 700)) as server:
            for argv in ("status",), ("doctor",), ("events",):
                server.says(*argv)
                json.loads(server.says(*argv, "--json"))
        with Server(Liar("x" * size + "€" * 700, error=True)) as server:
            server.says("status")
            json.loads(server.says("doctor", "--json"))


def main():
    cases = dict(replies=replies, errors=errors, long=long)
    for name in sys.argv[1:] or cases:
        cases[name]()


if __name__ == "__main__":
    main()
