#!/usr/bin/python3
"""Everything that may happen to a run, in an order drawn from a seed: shards join, leave, die and are lost for good, blocks
move, identities come, the rate is set, the run is rewound, paused and checkpointed, and scheduler and workers die, also in the
middle of all that. At the end state, losses and checkpoints are those of a run on one shard that had the same rates and
identities from the same steps on, and to which nothing else happened.

    test_mixed.py [OPERATIONS]     default: 10 of each run
SFC_SEED is the first seed (default 1), SFC_SEEDS how many runs (default 2); a failure prints what was done.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from cluster import BIN, TIME_SCALE, Cluster, Failure, pb, run_config, wait_until  # noqa: E402
from inputs import check  # noqa: E402
from test_mirror import LEASE, destroy, members  # noqa: E402

OFTEN = ("--recovery-target", "50ms")
STEPS, CLASSES, MOST_SHARDS = 1000000, 1000, 4
WAIT = 120
FIELDS = (dict(), dict(momentum_mode="dense"), dict(dtype="bf16", gemm="bf16", momentum_mode="dense"),
          dict(optimizer="adamw", momentum=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8))


def create(c, fields, keeping=None):
    config = run_config(**dict(dict(classes=CLASSES, block_size=64, dim=16, steps=STEPS, samples=3000, global_batch=64,
                                    micro_batch=16), **fields))
    c.stub.CreateRun(pb.CreateRunRequest(config=config, keeping=keeping), timeout=60 * TIME_SCALE)


class Run:
    def __init__(self, c, chance):
        self.c, self.chance, self.done = c, chance, []
        self.fields = chance.choice(FIELDS)
        self.mirrors = chance.choice((0, 1, 1))
        self.keeping = pb.RunKeeping(durable_every=chance.choice((1, 1, 5)), rewind_window=30, mirrors=self.mirrors,
                                     grace_s=int(3 * TIME_SCALE))
        self.checkpoints = {}  # step: digest
        self.asked = []        # commands that are not waited for
        c.start_scheduler(*LEASE)
        c.start_shards(3, *OFTEN)
        create(c, self.fields, self.keeping)
        c.start_workers(2)
        c.wait_step(3)

    # ---- looks

    def status(self):
        def there():
            done = self.c.ctl("status", "--json", check=False)
            return done.returncode == 0 and json.loads(done.stdout)
        return wait_until("status", there, WAIT, context=self.c.tails)

    def goes_on(self, steps=3):
        """The run makes steps again."""
        first = self.status()["step"]

        def there():
            now = self.status()
            if now["state"] == "paused":
                self.c.ctl("resume", check=False)
            check(now["state"] not in ("failed", "stopped"), f"{now['state']}: {now['reason']}")
            return now["step"] >= first + steps
        wait_until("steps", there, WAIT, context=lambda: f"{self.status()}\n{self.c.tails()}")

    def whole(self):
        """Nobody is missing, and with mirrors anybody may go."""
        def there():
            now = members(self.c)
            return all(s["missing_s"] == 0 and s["state"] == "ready" and (not self.mirrors or len(now) < 2 or
                       any(m["complete"] and m["oldest_step"] > 0 for m in s["mirrors"])) for s in now)
        wait_until("everybody to be there", there, WAIT, context=lambda: f"{members(self.c)}\n{self.c.tails()}")

    def ask(self, *words):
        """Perhaps something dies meanwhile: whatever comes of it is fine, and said."""
        asked = subprocess.Popen([BIN / "shardfc", words[0], "--scheduler", self.c.address, *map(str, words[1:])],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        victim = self.chance.choice([None, None, "scheduler", "shard", "worker"])
        if victim:
            time.sleep(self.chance.random() * 0.3)
            self.kill(victim)
        try:
            out, said = asked.communicate(timeout=WAIT * TIME_SCALE)
        except subprocess.TimeoutExpired:
            asked.kill()
            raise Failure(f"{words} does not end: {self.status()}\n{self.c.tails()}") from None
        self.done[-1] += (f" ({victim} killed)" if victim else "") + f": {asked.returncode} {said.strip()[:200]}"
        check(asked.returncode >= 0 and (asked.returncode == 0 or said.strip()), f"{words}: {asked.returncode} without a word")
        return out if asked.returncode == 0 else None

    # ---- deeds

    def kill(self, victim):
        if victim == "scheduler":
            self.c.scheduler.kill()
            self.c.start_scheduler(*LEASE)
        elif victim == "worker":
            self.c.workers.pop(self.chance.randrange(len(self.c.workers))).kill()
            self.c.start_worker()
        else:
            shard = self.chance.choice(self.c.shards)
            shard.kill()
            self.c.restart_shard(shard)

    def die(self):
        for _ in range(self.chance.randint(1, 2)):
            self.kill(self.chance.choice(["scheduler", "shard", "worker"]))

    def scale(self):
        wanted = self.chance.randint(1 + (self.mirrors > 0), MOST_SHARDS)
        while len(self.c.shards) < wanted:
            self.c.start_shard(*OFTEN)
        self.done[-1] += f" to {wanted}"
        self.ask("scale", "--shards", wanted)

    def drain(self):
        there = members(self.c)
        if len(there) > 2:
            self.ask("drain", self.chance.choice(there)["id"])

    def rebalance(self):
        self.ask("rebalance")

    def grow(self):
        self.ask("grow", "--classes", self.status()["classes"] + self.chance.randint(1, 200), "--samples",
                 self.samples() + self.chance.randint(0, 500))

    def samples(self):
        grown = self.c.status().growths
        return max([3000, *[g.samples for g in grown]])

    def lose(self):
        """The machine, if mirrors have what it has."""
        if not self.mirrors or len(members(self.c)) < 2:
            return
        self.goes_on(1)  # mirrors copy what a step makes due
        self.whole()
        lost = self.chance.choice(members(self.c))
        destroy(self.c, next(s for s in self.c.shards if s.address == lost["address"]))
        gone = lambda: lost["id"] not in [s["id"] for s in members(self.c)]  # noqa: E731
        wait_until(f"shard {lost['id']} to be given up", gone, WAIT, context=lambda: f"{self.status()}\n{self.c.tails()}")

    def rate(self):
        words = ("--from-step", self.status()["step"] + self.chance.randint(50, 300)) if self.chance.random() < 0.5 else ()
        self.ask("set", "lr", round(self.chance.uniform(0.01, 0.1), 4), *words)

    def rewind(self):
        now = self.status()
        oldest = max([now["oldest_step"], *[g["from_step"] - 1 for g in now["growths"]]])
        step = max(oldest, now["step"] - self.chance.randint(1, 25))
        self.done[-1] += f" to {step}"
        before = self.c.status().step
        if self.ask("rewind", "--to-step", step) is not None or self.status()["step"] < before:
            self.checkpoints = {k: d for k, d in self.checkpoints.items() if k <= step}

    def checkpoint(self):
        out = self.c.folder / f"checkpoint{len(self.done)}"
        said = self.ask("checkpoint", "--out", out, "--json")
        if said:
            made = json.loads(said)
            self.checkpoints[made["step"]] = made["digest"]

    def pause(self):
        self.ask("pause")

    def story(self, operations):
        for _ in range(operations):
            what = self.chance.choice([self.die, self.scale, self.scale, self.drain, self.rebalance, self.grow, self.lose,
                                       self.rate, self.rewind, self.checkpoint, self.pause])
            self.done.append(what.__name__)
            what()
            if self.chance.random() < 0.7:
                self.goes_on(self.chance.randint(1, 20))
        self.goes_on()
        self.whole()

    def end(self):
        """What came of it."""
        self.c.ctl("pause")
        self.c.wait_state("paused")
        step, digest = self.c.state_digest()
        now = self.c.status()
        return dict(step=step, digest=digest, losses=[(p.step, p.loss) for p in self.c.history()],
                    growths=[(g.from_step, g.classes, g.samples) for g in now.growths],
                    rates=[(r.from_step, r.lr) for r in now.lr_changes])


def stand_at(c, step):
    """Paused there; what was planned for later is void."""
    held = c.hold(step, WAIT)
    c.ctl("pause")
    c.release(held)


def undisturbed(fields, end, checkpoints):
    """The same on one shard; digests of the checkpoints' steps as `shardfc checkpoint` says them."""
    with Cluster() as c:
        c.start_scheduler()
        c.start_shards(1)
        create(c, fields)
        c.ctl("pause")
        for step, rate in end["rates"]:
            c.ctl("set", "lr", *([rate] if rate else ["schedule"]), "--from-step", step)
        c.start_workers(1)
        digests = {}
        stops = [(f - 1, 1, (classes, samples)) for f, classes, samples in end["growths"]]
        stops += [(step, 0, None) for step in checkpoints] + [(end["step"], 2, None)]
        for step, kind, growth in sorted(stops, key=lambda s: s[:2]):
            if c.status().step < step:
                held = c.stub.Hold(pb.HoldRequest(at_step=step), timeout=30 * TIME_SCALE)  # before it goes on
                c.ctl("resume")
                stand_at(c, step)
                c.release(held)
            check(c.status().step == step, f"stands at {c.status().step}, not at {step}")
            if kind == 0:
                digests[step] = json.loads(c.ctl("checkpoint", "--out", c.folder / f"at{step}", "--json").stdout)["digest"]
            elif kind == 1:
                c.ctl("grow", "--classes", growth[0], *(["--samples", growth[1]] if growth[1] else []))
        return c.state_digest(), [(p.step, p.loss) for p in c.history()], digests


def one(seed, operations):
    chance = random.Random(seed)
    run = None
    try:
        with Cluster() as c:
            run = Run(c, chance)
            run.story(operations)
            end = run.end()
        (step, digest), losses, digests = undisturbed(run.fields, end, run.checkpoints)
        check(step == end["step"] and digest == end["digest"], f"other bits at step {step}")
        check(losses == end["losses"], f"other losses: {[p for p, q in zip(losses, end['losses']) if p != q][:3]}")
        check(digests == run.checkpoints, f"other checkpoints: {digests} {run.checkpoints}")
        print(f"seed {seed}: step {step}, {len(end['growths'])} growths, {len(end['rates'])} rates, {len(digests)} "
              f"checkpoints: " + ", ".join(d.split(":")[0] for d in run.done), flush=True)
    except BaseException:
        if run:
            print(f"SFC_SEED={seed}: {run.fields} {run.keeping}".replace("\n", " "), *run.done, sep="\n", file=sys.stderr)
        raise


if __name__ == "__main__":
    first = int(os.environ.get("SFC_SEED", "1"))
    for number in range(first, first + int(os.environ.get("SFC_SEEDS", "2"))):
        one(number, int(sys.argv[1]) if len(sys.argv) > 1 else 10)
