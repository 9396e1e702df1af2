"""What somebody hostile does to a server, over and over until told to stop. Each attack is a function (chance, target,
stop); whatever answer or end of a connection it gets is fine.

A Siege runs some of them in a process of their own (this file as a program), each on a thread with its own seed.
"""
import json
import pathlib
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import grpc  # noqa: E402

import cluster  # noqa: E402
from cluster import Failure, pb  # noqa: E402

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW = 0, 1, 4, 6, 8
END_HEADERS = 4
SLOW_S = 0.05
ELSEWHERE = "127.0.0.66"
BROKEN = (OSError, ssl.SSLError, grpc.RpcError)


class Target:
    """One daemon. tls: a folder with a certificate, or None; pages: address of its HTTP server."""

    def __init__(self, address, authority=None, tls=None, pages=None):
        self.address, self.pages = address, pages
        self.authority, self.tls = (pathlib.Path(p) if p else None for p in (authority, tls))

    def place(self, pages=False):
        host, port = (self.pages if pages else self.address).rsplit(":", 1)
        return host, int(port)

    def plain(self, pages=False):
        """From another address than that of the honest, who would have no place left beside 1,000 connections."""
        return socket.create_connection(self.place(pages), timeout=20, source_address=(ELSEWHERE, 0))

    def connect(self):
        sock = self.plain()
        if not self.tls:
            return sock
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.tls / "cert.pem", self.tls / "key.pem")
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(sock, server_hostname=self.place()[0])

    def channel(self):
        options = [("grpc.use_local_subchannel_pool", 1)]
        if not self.tls:
            return grpc.insecure_channel(self.address, options)
        parts = (self.authority, self.tls / "key.pem", self.tls / "cert.pem")
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(*(p.read_bytes() for p in parts)), options)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call_headers(path):
    text = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
            "content-type": "application/grpc"}
    return b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in text.items())


class Http2:
    """A connection that opens calls, and sends as much of their requests as the server lets it."""

    def __init__(self, target, settings=b""):
        self.sock = target.connect()
        self.sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        self.stream, self.room, self.rooms, self.got = -1, 65535, {}, b""

    def open(self, path):
        self.stream += 2
        self.rooms[self.stream] = 65535
        self.sock.sendall(frame(HEADERS, END_HEADERS, self.stream, call_headers(path)))
        return self.stream

    def send(self, stream, data):
        self.sock.sendall(frame(DATA, 0, stream, data))
        self.room -= len(data)
        self.rooms[stream] -= len(data)

    def pump(self, seconds):
        """Reads for so long, and answers what has to be answered."""
        self.sock.settimeout(seconds)
        try:
            piece = self.sock.recv(1 << 16)
            if not piece:
                raise ConnectionResetError
            self.got += piece
        except (TimeoutError, ssl.SSLWantReadError):
            pass
        self.sock.settimeout(20)
        while len(self.got) >= 9 + (size := int.from_bytes(self.got[:3], "big")):
            kind, flags, stream = self.got[3], self.got[4], int.from_bytes(self.got[5:9], "big")
            self.take(kind, flags, stream, self.got[9:9 + size])
            self.got = self.got[9 + size:]

    def take(self, kind, flags, stream, payload):
        if kind == WINDOW and stream == 0:
            self.room += int.from_bytes(payload, "big")
        elif kind == WINDOW and stream in self.rooms:
            self.rooms[stream] += int.from_bytes(payload, "big")
        elif kind in (SETTINGS, PING) and not flags & 1:
            self.sock.sendall(frame(kind, 1, 0, payload if kind == PING else b""))

    def close(self):
        self.sock.close()


def shut(sockets):
    for sock in sockets:
        sock.close()


# ---- connections

def half_open(chance, target, stop):
    """Connections that say nothing, and then a few bytes that are no handshake's."""
    while not stop.is_set():
        sockets = []
        try:
            for _ in range(chance.randint(1, 60)):
                sockets.append(target.plain())
            stop.wait(chance.random() * 2)
            for sock in sockets:
                sock.sendall(chance.randbytes(chance.randint(0, 40)))
            stop.wait(chance.random())
        except BROKEN:
            pass
        shut(sockets)


def thousand(chance, target, stop):
    """1,000 connections at once."""
    while not stop.is_set():
        sockets = []
        for _ in range(1000):
            sock = socket.socket()
            sock.bind((ELSEWHERE, 0))
            sock.setblocking(False)
            sock.connect_ex(target.place())
            sockets.append(sock)
        stop.wait(1 + chance.random())
        shut(sockets)
        stop.wait(2 + chance.random() * 6)


def one_byte_at_a_time(chance, target, stop):
    """A whole call, one byte after another, or only as far as patience goes."""
    request = pb.TicketRequest(run_id=99, worker=1).SerializeToString()
    body = b"\0" + struct.pack(">I", len(request)) + request
    words = (PREFACE + frame(SETTINGS, 0, 0) +
             frame(HEADERS, END_HEADERS, 1, call_headers("/shardfc.v1.Scheduler/Ticket")) + frame(DATA, 1, 1, body))
    while not stop.is_set():
        sock = None
        try:
            sock = target.connect()
            for byte in words[:chance.randint(1, 2 * len(words))]:
                if stop.wait(SLOW_S * chance.random()):
                    break
                sock.sendall(bytes([byte]))
        except BROKEN:
            pass
        shut([sock] if sock else [])


def slow_readers(chance, target, stop):
    """Calls whose answers nobody reads: no window for them, and nothing taken from the socket."""
    while not stop.is_set():
        connection = None
        try:
            connection = Http2(target, struct.pack(">HI", 4, chance.choice((0, 1, 100))))
            empty = b"\0\0\0\0\0"
            for _ in range(chance.randint(1, 300)):
                connection.send(connection.open(chance.choice(
                    ("/shardfc.v1.Scheduler/Status", "/shardfc.v1.Scheduler/History", "/grpc.health.v1.Health/Check"))),
                    empty)
            stop.wait(chance.random() * 3)
        except BROKEN:
            pass
        if connection:
            connection.close()


def unfinished_bodies(chance, target, stop):
    """Many calls whose large requests never end."""
    while not stop.is_set():
        connection = None
        try:
            connection = Http2(target)
            for _ in range(chance.randint(1, 40)):
                stream = connection.open(chance.choice(("/shardfc.v1.Shard/PushDense", "/shardfc.v1.Shard/Logits",
                                                        "/shardfc.v1.Scheduler/Announce")))
                connection.send(stream, b"\0" + struct.pack(">I", chance.choice((1 << 20, 10 << 20, 15 << 20))))
            for _ in range(chance.randint(1, 400)):
                if stop.is_set():
                    break
                connection.pump(0.01)
                ready = [s for s, room in connection.rooms.items() if min(room, connection.room) > 0]
                if ready:
                    stream = chance.choice(ready)
                    connection.send(stream, bytes(min(connection.room, connection.rooms[stream], 16384)))
            stop.wait(chance.random())
        except BROKEN:
            pass
        if connection:
            connection.close()


def all_but_the_end(chance, target, stop):
    """Large requests without their last byte, as many and as fast as the server takes them, on some connections; who is
    sent away comes back at once.
    """
    size = 15 << 20
    while not stop.is_set():
        connection = None
        try:
            connection = Http2(target)
            left = {connection.open(chance.choice(("/shardfc.v1.Shard/Logits", "/shardfc.v1.Scheduler/Announce"))): size
                    for _ in range(40)}
            for stream in left:
                connection.send(stream, b"\0" + struct.pack(">I", size + 1))
            while not stop.is_set():
                connection.pump(0.001)
                frames = []
                for stream, rest in left.items():
                    room = min(connection.room, connection.rooms[stream], rest, 1 << 18)
                    for at in range(0, room, 16384):
                        frames.append(frame(DATA, 0, stream, bytes(min(16384, room - at))))
                    if room > 0:
                        connection.room -= room
                        connection.rooms[stream] -= room
                        left[stream] -= room
                connection.sock.sendall(b"".join(frames))
        except BROKEN:
            pass
        if connection:
            connection.close()


def given_up(chance, target, stop):
    """Calls that are opened and given up at once."""
    while not stop.is_set():
        connection = None
        try:
            connection = Http2(target)
            for _ in range(chance.randint(1, 200)):
                stream = connection.open("/shardfc.v1.Scheduler/Ticket")
                connection.sock.sendall(frame(3, 0, stream, struct.pack(">I", 8)))  # RST_STREAM: cancelled
            connection.pump(0.01)
        except BROKEN:
            pass
        if connection:
            connection.close()
        stop.wait(0.1)


# ---- bodies of any size

def bodies(chance, target, stop):
    """Requests at, just below and over their limits."""
    sizes = {"/shardfc.v1.Scheduler/Ticket": 64 << 10, "/shardfc.v1.Scheduler/Announce": 16 << 20,
             "/shardfc.v1.Shard/PullDense": 64 << 10, "/shardfc.v1.Shard/Gradient": 16 << 20,
             "/shardfc.v1.Shard/PushDense": 20 << 20, "/grpc.health.v1.Health/Check": 64 << 10}
    with target.channel() as channel:
        while not stop.is_set():
            path = chance.choice(sorted(sizes))
            size = sizes[path] + chance.choice((-1, 0, 1, 2, 1000))
            head = b"\x9a\x3f"  # field 1011, length follows: unknown to all, and skipped
            length = size - len(head) - 5
            body = head + bytes([length >> 7 * i & 127 | 128 for i in range(4)] + [length >> 28]) + bytes(length)
            call(channel, path, body)
            stop.wait(chance.random() * 0.5)


def call(channel, path, body, seconds=2):
    try:
        return channel.unary_unary(path)(body, timeout=seconds)
    except grpc.RpcError as e:
        return e.code()


# ---- calls made of random fields

def random_message(chance, message, depth=0):
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.15:
            continue
        if field.label == field.LABEL_REPEATED:
            for _ in range(chance.choice((0, 1, 2, 5, 32))):
                if field.message_type:
                    if depth < 3:
                        random_message(chance, getattr(message, field.name).add(), depth + 1)
                else:
                    getattr(message, field.name).append(random_value(chance, field))
        elif field.message_type:
            if depth < 3:
                getattr(message, field.name).SetInParent()
                random_message(chance, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, random_value(chance, field))
    return message


def random_value(chance, field):
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 8, 16, 64, 4096)))
        return chance.choice(("", "test", "f32", "sgd", "127.0.0.1:1", "\x07", "x" * 5000, "\u20ac" * 40, "none"))
    if kind == field.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return chance.choice((0.0, 1.0, -1.0, 0.5, 64.0, float("nan"), float("inf"), 1e300, chance.random()))
    if kind == field.CPPTYPE_ENUM:
        return chance.choice([v.number for v in field.enum_type.values])
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    value = chance.choice((0, 1, 2, 3, 8, 32, 1000, chance.getrandbits(16), chance.getrandbits(bits), 2**bits - 1))
    return value - 2**(bits - 1) if signed and chance.random() < 0.3 else value % 2**(bits - signed)


def methods(service):
    return list(pb.DESCRIPTOR.services_by_name[service].methods)


def message_of(method):
    return getattr(pb, method.input_type.name)()


def random_calls(chance, target, stop, change):
    """Of every method of both services, with what `change` makes of each request; many at a time, some again and again.
    """
    every = methods("Scheduler") + methods("Shard")
    with target.channel() as channel:
        while not stop.wait(0.1):
            waiting = []
            for _ in range(chance.randint(1, 20)):
                method = chance.choice(every)
                request = change(chance, method, random_message(chance, message_of(method)))
                body = request.SerializeToString()
                path = f"/{method.containing_service.full_name}/{method.name}"
                for _ in range(chance.choice((1, 1, 1, 2, 5))):
                    waiting.append(channel.unary_unary(path).future(body, timeout=chance.choice((0.05, 0.5, 1))))
            for answer in waiting:
                if chance.random() < 0.1:
                    answer.cancel()
                outcome(answer)


def outcome(answer):
    try:
        answer.result()
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass


# ---- pages

PATHS = ("/", "/metrics", "/api/status", "/healthz", "/readyz", "/../etc/passwd", "/%2e%2e/", "/metrics?x=" + "y" * 3000,
         "/api/status?since=-1", "/" + "a" * 30000, "*", "http://x/metrics", "/\x00", "/api/series?since=99999999999999999999")
VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "", "GET" * 1000)


def rubbish_over_http(chance, target, stop):
    while not stop.is_set():
        sock = None
        try:
            sock = target.plain(pages=True)
            head = f"{chance.choice(VERBS)} {chance.choice(PATHS)} HTTP/1.{chance.randint(0, 9)}\r\n"
            for _ in range(chance.choice((0, 1, 3, 200))):
                head += f"{chance.choice(('Host', 'Content-Length', 'X', 'Range', 'Transfer-Encoding', 'Cookie'))}: " \
                        f"{chance.choice(('x', '-1', '99999999999', 'chunked', 'bytes=0-', 'y' * 2000))}\r\n"
            words = head.encode("latin-1", "replace") + b"\r\n" + chance.randbytes(chance.choice((0, 10, 100000)))
            if chance.random() < 0.2:
                for byte in words[:60]:
                    if stop.wait(SLOW_S * chance.random()):
                        break
                    sock.sendall(bytes([byte]))
            else:
                sock.sendall(words)
            if chance.random() < 0.7:
                sock.recv(1 << 16)
        except BROKEN:
            pass
        shut([sock] if sock else [])


# ---- whose calls

SPOIL = ("Announce", "Done", "OpenSession", "Leave", "GiveUp", "Ticket", "Heartbeat")
CHANGES = ("CreateRun", "Control", "Hold", "Release", "Scale", "PinStep", "UnpinStep", "WriteBlock", "KeepBlocks", "Grow")


def as_worker(chance, method, request):
    """A worker's certificate lets its owner spoil the run: this one keeps out of it, and does all else."""
    if method.name == "Join":  # the first worker's numerics are the run's, and this one has none
        request.ClearField("numerics")
    if method.name in SPOIL:
        for name in ("run_id", "worker", "session"):
            if name in method.input_type.fields_by_name:
                setattr(request, name, 2**40 + chance.getrandbits(8))
    return request


def as_admin(chance, method, request):
    """An admin who only looks, and calls what is not for him: what he may change he says in words that mean nothing."""
    return Garbage(chance) if method.name in CHANGES else request


class Garbage:
    def __init__(self, chance):
        self.bytes = b"\xff" + chance.randbytes(20)

    def SerializeToString(self):
        return self.bytes


def as_anybody(chance, method, request):
    """Some fields as they really are, so that more of them get behind the first check."""
    for name in ("run_id", "step"):
        field = method.input_type.fields_by_name.get(name)
        if field and chance.random() < 0.7:
            setattr(request, name, chance.choice((0, 1, 1, 2)))
    if method.name == "CreateRun" and chance.random() < 0.5:
        request.config.CopyFrom(cluster.run_config(steps=3 + chance.randrange(10), dim=chance.choice((8, 16))))
    return request


def worker_calls(chance, target, stop):
    random_calls(chance, target, stop, as_worker)


def guest_calls(chance, target, stop):
    random_calls(chance, target, stop, lambda chance, method, request: request)


def admin_calls(chance, target, stop):
    random_calls(chance, target, stop, as_admin)


def any_calls(chance, target, stop):
    random_calls(chance, target, stop, as_anybody)


# ---- sieges

class Siege:
    """attacks: (name of a function here, Target) of each."""

    def __init__(self, seed, attacks):
        plan = dict(seed=seed, attacks=[(name, dict(address=t.address, authority=t.authority and str(t.authority),
                                                    tls=t.tls and str(t.tls), pages=t.pages)) for name, t in attacks])
        self.process = subprocess.Popen([*cluster.ENDS_WITH_US, sys.executable, __file__, json.dumps(plan)],
                                        stdin=subprocess.PIPE, text=True)

    def end(self):
        """All attacks end; those that came to an end by themselves failed."""
        self.process.stdin.close()
        if self.process.wait(120 * cluster.TIME_SCALE) != 0:
            raise Failure("an attacker failed, see above")


def run_siege(plan):
    stop, failed = threading.Event(), []
    threading.excepthook = lambda args: (failed.append(args), threading.__excepthook__(args))
    threads = []
    for n, (name, where) in enumerate(plan["attacks"]):
        chance = random.Random(f"{plan['seed']} {n} {name}")
        threads.append(threading.Thread(target=globals()[name], args=(chance, Target(**where), stop)))
        threads[-1].start()
    sys.stdin.read()  # until the end
    stop.set()
    for thread in threads:
        thread.join()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_siege(json.loads(sys.argv[1])))
