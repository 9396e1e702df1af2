"""Steps of the class layer in several processes that take turns on one machine: `shardfc bench head --on-demand` and
torch_head.py. Who has no turn is stopped (SIGSTOP), so that no thread of his spins meanwhile."""
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("SFC_BIN", TOP / "build" / "release" / "bin"))
TORCH_HEAD = pathlib.Path(__file__).resolve().parent / "torch_head.py"
# What one may ask of `shardfc bench head`, by name.
OURS = {
    "f32": ["--dtype", "f32", "--gemm", "f32", "--momentum-mode", "sampled"],
    "f32-dense": ["--dtype", "f32", "--gemm", "f32", "--momentum-mode", "dense"],
    "split": ["--dtype", "f32", "--gemm", "bf16", "--momentum-mode", "sampled"],
    "bf16": ["--dtype", "bf16", "--gemm", "bf16", "--momentum-mode", "sampled"],
    "bf16-dense": ["--dtype", "bf16", "--gemm", "bf16", "--momentum-mode", "dense"],
}
PEERS = ("v1", "hand", "v2")


class Failed(Exception):
    """A process ended or answered nonsense; the text says which."""


class Process:
    """One that answers lines with lines of JSON. Stopped whenever it has no turn."""

    def __init__(self, name, argv, environment=None):
        self.name = name
        self.child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      env=dict(os.environ, **(environment or {})))

    def ask(self, line):
        self.child.send_signal(signal.SIGCONT)
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: nothing comes back either
        return self.hear()

    def hear(self):
        line = self.child.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended with status {self.child.wait()}")
        self.child.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def finish(self):
        """Ends the input; whatever it says last."""
        self.child.send_signal(signal.SIGCONT)
        said, _ = self.child.communicate()
        if self.child.returncode:
            raise Failed(f"{self.name} ended with status {self.child.returncode}")
        return json.loads(said) if said.strip() else None

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.communicate()


class Ours(Process):
    def __init__(self, name, o, dump=None):
        argv = [BIN / "shardfc", "bench", "head", "--classes", o["classes"], "--sample-rate", o["rate"], "--batch",
                o["batch"], "--dim", o["dim"], "--threads", o["threads"], *OURS[name], "--on-demand", "--json"]
        super().__init__(name, argv + (["--dump", dump] if dump else []))
        self.ms, self.rounds = [], []

    def get_ready(self):
        """Returns when it has done a step, and its dump is written."""
        self.ask("1")

    def turn(self, n):
        """One step to get warm again, and n that count."""
        times = self.ask(str(n + 1))["step_ms"][1:]
        self.ms += times
        self.rounds.append(statistics.median(times))

    def report(self):
        said = self.finish()
        return {"step_ms": statistics.median(self.ms), "rounds_ms": self.rounds, "sampled": said["sampled"],
                "floor_ms": said["floor_ms"], "quiet": said["quiet"], "gemm": said["gemm"],
                "numerics": said["numerics"], "state_bytes": said["state_bytes"],
                "peak_rss_bytes": said["peak_rss_bytes"]}


class Torch(Process):
    def __init__(self, o, variants, environment):
        super().__init__("torch_head.py", [sys.executable, TORCH_HEAD], environment)
        self.variants = variants
        self.about = self.ask(json.dumps({k: o[k] for k in ("threads", "classes", "dim", "batch", "rate")}))
        self.times = {}

    def do(self, what, **more):
        return self.ask(json.dumps({"do": what, **more}))

    def turn(self, n):
        for variant in self.variants:
            self.steps(variant, n)

    def steps(self, variant, n):
        said = self.do("steps", variant=variant, steps=n + 1)
        kept = self.times.setdefault(variant, {"step_ms": [], "sample_ms": [], "rounds_ms": []})
        kept["step_ms"] += said["step_ms"][1:]
        kept["sample_ms"] += said["sample_ms"][1:]
        kept["rounds_ms"].append(statistics.median(said["step_ms"][1:]))
        kept["sampled"] = said["sampled"]

    def report(self):
        """Per variant; the peak of memory is that of the whole process, up to here."""
        peak = self.do("memory")["peak_rss_bytes"]
        self.finish()
        return {variant: {**kept, "step_ms": statistics.median(kept["step_ms"]),
                          "sample_ms": statistics.median(kept["sample_ms"]), "peak_rss_bytes": peak}
                for variant, kept in self.times.items()}


def take_turns(processes, rounds, steps):
    for _ in range(rounds):
        for process in processes:
            process.turn(steps)
