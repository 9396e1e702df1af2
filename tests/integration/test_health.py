"""grpc.health.v1.Health/Check of a real scheduler, asked by an independent gRPC implementation's client; and the
port that it comes back on."""
import os
import socket
import subprocess
import sys
import tempfile

import grpc

from cluster import Port


def check(channel, service):
    request = b"" if not service else bytes([10, len(service)]) + service.encode()
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    return call(request, timeout=10)


def code_of(action):
    try:
        action()
    except grpc.RpcError as error:
        return error.code(), dict(error.trailing_metadata() or ())
    return grpc.StatusCode.OK, {}


def run(state):
    program = os.path.join(os.environ["SFC_BIN"], "shardfc-scheduler")
    process = subprocess.Popen([program, "--listen", "127.0.0.1:0", "--state", state],
                               stdout=subprocess.PIPE, text=True)
    try:
        word, address = process.stdout.readline().split()
        assert word == "listening", word
        with grpc.insecure_channel(address) as channel:
            assert check(channel, "") == b"\x08\x01"
            assert check(channel, "shardfc.v1.Scheduler") == b"\x08\x01"
            code, trailing = code_of(lambda: check(channel, "no.such.Service"))
            assert code == grpc.StatusCode.NOT_FOUND, code
            assert trailing["sfc-status"] == "3", trailing
            unknown = channel.unary_unary("/shardfc.v1.Scheduler/Nothing")
            code, _ = code_of(lambda: unknown(b"", timeout=10))
            assert code == grpc.StatusCode.UNIMPLEMENTED, code
            status = channel.unary_unary("/shardfc.v1.Scheduler/Status")
            code, _ = code_of(lambda: status(b"\x0a\xff", timeout=10))
            assert code == grpc.StatusCode.DATA_LOSS, code
            code, _ = code_of(lambda: status(bytes(1 << 20), timeout=10))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, code
            code, _ = code_of(lambda: unknown_compressed(channel))
            assert code == grpc.StatusCode.UNIMPLEMENTED, code
            assert check(channel, "") == b"\x08\x01"
        process.terminate()
        assert process.wait(timeout=60) == 0, process.returncode
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def listening(state):
    """Starts a scheduler on a port of the kernel's choice; its address, after it has ended well."""
    program = os.path.join(os.environ["SFC_BIN"], "shardfc-scheduler")
    process = subprocess.Popen([program, "--listen", "127.0.0.1:0", "--state", state], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        words = process.stdout.readline().split()
        process.terminate()
        _, messages = process.communicate(timeout=60)
        return words[1] if words else None, process.returncode, messages
    finally:
        process.kill()
        process.wait()


def first_port(folder):
    """A state whose scheduler has ended well, and the port that it had, which is nobody else's now. Somebody may have
    taken it in the moment between: then with another state."""
    for i in range(5):
        state = os.path.join(folder, f"state{i}")
        first, code, messages = listening(state)
        assert first and code == 0, messages
        try:
            return state, Port(int(first.rsplit(":", 1)[1]))
        except OSError as error:
            print(f"{first}: {error}")
    raise AssertionError("every port is taken at once")


def kept_port(folder):
    state, kept = first_port(folder)
    port = kept.number
    assert listening(state)[:2] == (kept.address, 0)
    with socket.create_server(("127.0.0.1", port)):
        address, code, messages = listening(state)
        assert address is None and code != 0, (address, code)
        assert str(port) in messages and os.path.join(state, "port") in messages, messages
    for text in ("", "0", "65536", "-1", "12x", "99999999999999999999"):
        with open(os.path.join(state, "port"), "w", encoding="ascii") as file:
            file.write(text)
        address, code, messages = listening(state)
        assert address is None and code != 0 and "--listen HOST:PORT" in messages, (text, address, code, messages)
    kept.close()


def unknown_compressed(channel):
    status = channel.unary_unary("/shardfc.v1.Scheduler/Status")
    return status(bytes(4096), timeout=10, compression=grpc.Compression.Gzip)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run(os.path.join(folder, "state"))
        kept_port(folder)
    print("ok")
    sys.exit(0)
