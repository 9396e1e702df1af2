"""What the tests of commands and of bad input share: data sets to take and to damage, and the tools'
answers to them.

    records = Records(folder)          # train.rec and train.idx, record by record
    records.payload[3] = b"..."        # damage one
    records.write(other_folder)
"""
import ctypes
import json
import pathlib
import struct
import subprocess

import cluster
from cluster import Failure

IMAGE_TOOL = cluster.BIN.parent / "tests" / "make_images"
MAGIC = 0xCED7230A

_xxh = ctypes.CDLL("libxxhash.so.0")
_xxh.XXH3_64bits.restype = ctypes.c_uint64
_xxh.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


class _Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


_xxh.XXH3_128bits.restype = _Hash128
_xxh.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh3_64(data):
    return _xxh.XXH3_64bits(data, len(data))


def xxh3_128(data):
    h = _xxh.XXH3_128bits(data, len(data))
    return struct.pack(">QQ", h.high, h.low)


def check(condition, message):
    if not condition:
        raise Failure(message)


def tool(*argv, stdin=None, stdout=subprocess.PIPE, env=None, seconds=120):
    """Runs a program of the build: tool("shardfc", "data", "info", folder)."""
    command = [str(cluster.BIN / str(argv[0])), *[str(a) for a in argv[1:]]]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace", env=env,
                          stdin=stdin or subprocess.DEVNULL, timeout=seconds * cluster.TIME_SCALE)


def expect(done, status, *words):
    """The exit status, and on failure words that standard error must have; nothing crashed."""
    what = " ".join(done.args)
    check(done.returncode == status,
          f"{what}: exit {done.returncode}, expected {status}\n{done.stdout}{done.stderr}")
    if status:
        check(done.stderr.strip(), f"{what}: failed without a message")
        check(not done.stdout or not done.stdout.strip() or "watch" in done.args,
              f"{what}: failed with something on standard output: {done.stdout}")
    for word in words:
        check(word in done.stderr, f"{what}: no {word!r} in: {done.stderr}")
    return done


def one_json(done):
    """The one JSON object on standard output."""
    expect(done, 0)
    value = json.loads(done.stdout)
    check(isinstance(value, dict), f"{' '.join(done.args)}: not an object: {done.stdout}")
    return value


def make_images(folder, classes=40, per_class=4, seed=1, *broken):
    subprocess.run([IMAGE_TOOL, folder, str(classes), str(per_class), str(seed), *map(str, broken)],
                   check=True)
    return pathlib.Path(folder)


class Records:
    """A record file in memory (docs/FORMATS.md), whole parts only. write() leaves meta.json out unless
    asked: its checksum belongs to the original file."""

    def __init__(self, folder, name="train"):
        folder = pathlib.Path(folder)
        blob = (folder / f"{name}.rec").read_bytes()
        self.meta = json.loads((folder / "meta.json").read_text())
        self.name, self.keys, self.payload = name, [], []
        for line in (folder / f"{name}.idx").read_text().splitlines():
            key, at = map(int, line.split("\t"))
            magic, word = struct.unpack_from("<II", blob, at)
            check(magic == MAGIC and word >> 29 == 0, f"record {key} of {folder} is not one whole part")
            self.keys.append(key)
            self.payload.append(blob[at + 8:at + 8 + word])

    def label(self, i):
        """(flag, label, id, id2) of record i."""
        return struct.unpack_from("<IfQQ", self.payload[i])

    def set_label(self, i, label, id2=0):
        flag, _, first, _ = self.label(i)
        check(flag == 0, f"record {i} is no image with a label in its header")
        self.payload[i] = struct.pack("<IfQQ", flag, label, first, id2) + self.payload[i][24:]

    def image(self, i):
        return self.payload[i][24:]

    def set_image(self, i, jpeg):
        self.payload[i] = self.payload[i][:24] + jpeg

    def images(self):
        """Numbers of the records that are images."""
        return [i for i in range(len(self.payload)) if self.label(i)[0] == 0]

    def write(self, folder, meta=True):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        blob, index = b"", []
        for key, payload in zip(self.keys, self.payload):
            index.append(f"{key}\t{len(blob)}")
            blob += struct.pack("<II", MAGIC, len(payload)) + payload + bytes(-len(payload) % 4)
        (folder / f"{self.name}.rec").write_bytes(blob)
        (folder / f"{self.name}.idx").write_text("\n".join(index) + "\n")
        if meta:
            text = json.loads(json.dumps(self.meta))
            text["files"].pop(f"{self.name}.rec", None)
            (folder / "meta.json").write_text(json.dumps(text))
        return folder


def jpegs(folder):
    """The JPEGs of a set, and the class of each."""
    records = Records(folder)
    return [(records.image(i), int(records.label(i)[1])) for i in records.images()]


def write_pairs(path, folder, pairs=60):
    """A .bin file of genuine and impostor pairs of a set's images."""
    import pickle
    images = jpegs(folder)
    by_class = {}
    for jpeg, label in images:
        by_class.setdefault(label, []).append(jpeg)
    labels, chosen, same = sorted(by_class), [], []
    for i in range(pairs):
        mine, other = by_class[labels[i % len(labels)]], by_class[labels[(i + 1) % len(labels)]]
        chosen += [mine[0], mine[1] if i % 2 == 0 else other[0]]
        same.append(i % 2 == 0)
    path.write_bytes(pickle.dumps((chosen, same), protocol=3))
    return path


def small_run(data, steps, *extra):
    """Options of `shardfc create` for a short run of the tiny backbone."""
    return ("--run", "small", "--data", data, "--backbone", "tiny", "--dim", "32", "--sample-rate", "0.5",
            "--margin", "cosface:0.2", "--scale", "32", "--lr", "0.05", "--schedule", "poly:3",
            "--global-batch", "32", "--micro-batch", "8", "--steps", steps, "--block-size", "16",
            "--augment", "0.12,0.5,0.08", "--seed", "5", *extra)
