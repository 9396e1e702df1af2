#!/usr/bin/python3
"""The units, the manual pages, the completion and docs/CONFIGURATION.md are true.

    test_units.py [verify|security|man|completion|configuration|library ...]     default: all
"""
import gzip
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from cluster import BIN, TOP
from inputs import check

UNITS = TOP / "deploy" / "systemd"
MOST = 2.0  # of `systemd-analyze security`: 0 is safest, 10 open


def run(*argv, **more):
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, **more)


def needs(program):
    if not shutil.which(program):
        print(f"skipped: {program} is not installed")
        sys.exit(77)


def verify():
    """systemd has nothing to say about the units, once their programs are where they will be."""
    needs("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        units = []
        for unit in sorted(UNITS.glob("shardfc*")):
            text = unit.read_text().replace("/usr/bin/shardfc", f"{BIN}/shardfc")
            name = unit.name.replace("@.", "@0.")
            path = pathlib.Path(folder) / unit.name
            path.write_text(text)
            units.append(pathlib.Path(folder) / name)
        for unit, template in zip(units, sorted(UNITS.glob("shardfc*"))):
            if unit.name != template.name:
                unit.write_text((pathlib.Path(folder) / template.name).read_text())
        done = run("systemd-analyze", "verify", "--man=no", *units)
        said = [line for line in done.stderr.splitlines() if "shardfc" in line]
        check(done.returncode == 0 and not said, f"{done.stdout}{done.stderr}")


def security():
    needs("systemd-analyze")
    for unit in sorted(UNITS.glob("*.service")):
        done = run("systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST * 10:.0f}", unit)
        found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
        check(done.returncode == 0 and found and float(found[1]) <= MOST, f"{unit.name}: {done.stdout}{done.stderr}")
        print(f"{unit.name}: {found[1]}")


def pages(folder):
    done = run(TOP / "deploy" / "man-pages", BIN, folder)
    check(done.returncode == 0, done.stderr)
    return sorted(pathlib.Path(folder).glob("*.1.gz"))


def man():
    """Every command has a page that names each of its options, and no line that roff would take for a request."""
    with tempfile.TemporaryDirectory() as folder:
        found = pages(folder)
        names = {page.name[:-len(".1.gz")] for page in found}
        commands = run(BIN / "shardfc", "--help=words").stdout.split()
        groups = ("data", "bench", "cert")
        check({"shardfc", "shardfc-shard", "shardfc-scheduler", "shardfc-worker"} <= names, f"{names}")
        check({f"shardfc-{c}" for c in commands if c not in groups} <= names, f"{commands} {names}")
        for page in found:
            text = gzip.decompress(page.read_bytes()).decode()
            check(text.startswith(".TH SHARDFC"), page.name)
            check(all(re.match(r"\.(TH|SH|TP|PP|BR|nf|fi)\b", line) for line in text.splitlines()
                      if line.startswith((".", "'"))), page.name)
        shard = gzip.decompress((pathlib.Path(folder) / "shardfc-shard.1.gz").read_bytes()).decode()
        for line in run(BIN / "shardfc-shard", "--help=words").stdout.splitlines():
            check("\\fB" + line.split()[0].replace("-", "\\-") + "\\fR" in shard, f"{line} in shardfc-shard(1)")


def complete(line):
    """What the completion offers behind this line."""
    words = line.split(" ")
    script = f"""
source {TOP}/deploy/completion/shardfc
PATH={BIN}:$PATH
COMP_WORDS=({' '.join(w or "''" for w in words)})
COMP_CWORD={len(words) - 1}
_shardfc
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = run("bash", "-c", script)
    check(done.returncode == 0, done.stderr)
    return done.stdout.split()


def completion():
    check({"create", "status", "scale"} <= set(complete("shardfc ")), "commands")
    check(complete("shardfc crea") == ["create"], "a command")
    check("--sample-rate" in complete("shardfc create --sam"), "an option of a command")
    check(complete("shardfc create --optimizer ada") == ["adamw"], "a value")
    check(complete("shardfc bench he") == ["head"], "a command of a command")
    check(complete("shardfc-shard --durable ") == ["on", "off"], "values of a daemon's option")
    check("--state" in complete("shardfc-shard --sta"), "an option of a daemon")
    check(complete("shardfc-shard --memory ") == [], "a number is nobody's to guess")
    check(complete("shardfc set ") == ["lr"], "the word that a command wants")
    check(complete("shardfc set lr ") == ["schedule"], "its second one")
    check(complete("shardfc set --scheduler somewhere --json ") == ["lr"], "behind options, one of which has a value")
    check(complete("shardfc set --from-step = 3 lr sch") == ["schedule"], "behind a value with =")
    check("--from-step" in complete("shardfc set --fr"), "options nevertheless")
    roles = {"scheduler", "shard", "worker", "admin"}
    check(set(complete("shardfc cert issue --role ")) == roles, "roles")
    check(complete("shardfc cert issue --role worker,ad") == ["worker,admin"], "another role")
    for role in roles:  # each that is offered is one
        check("is none of" not in run(BIN / "shardfc", "cert", "issue", "--ca", "x", "--out", "y", "--role", role).stderr, role)
    check("proto" in complete(f"shardfc verify {TOP}/pro")[0], "a folder")
    check(complete("shardfc drain ") == [], "which shard is nobody's to guess")
    check("--json" in complete("shardfc status "), "a command without arguments")


def configuration():
    done = run(TOP / "deploy" / "man-pages", "--markdown", BIN)
    check(done.returncode == 0, done.stderr)
    check(done.stdout == (TOP / "docs" / "CONFIGURATION.md").read_text(),
          "docs/CONFIGURATION.md is old: deploy/man-pages --markdown build/release/bin > docs/CONFIGURATION.md")


def library():
    """A program with nothing but the public header and library: every function of the header is exported, and no other."""
    path = BIN.parent / "lib" / "libshardfc.so.0"
    if not path.exists():
        print("skipped: this build has no libshardfc.so.0")
        sys.exit(77)
    exported = set(re.findall(r" T (\w+)", run("nm", "-D", "--defined-only", path).stdout))
    header = (TOP / "worker/include/shardfc.h").read_text() + (TOP / "proto/base/status.h").read_text()
    declared = set(re.findall(r"^\w[\w ]*[ *](sfc_(?:client|member|exchange)_\w+)\(", header, re.M))
    check(declared and declared <= exported, f"not exported: {declared - exported}")
    with tempfile.TemporaryDirectory() as folder:
        done = run("cmake", "--install", BIN.parent, "--component", "dev", "--prefix", folder)
        check(done.returncode == 0, done.stderr)
        program = pathlib.Path(folder) / "program.c"
        program.write_text('#include "shardfc.h"\nint main(void) { sfc_client_free(0); return sfc_status_name(0)[0] != 83; }\n')
        done = run("cc", "-Wall", "-Werror", "-I", f"{folder}/include/shardfc", program, path, f"-Wl,-rpath,{path.parent}", "-o",
                   f"{folder}/program")
        check(done.returncode == 0, f"the installed headers are not enough: {done.stderr}")
        check(run(f"{folder}/program").returncode == 0, "a program that uses the library")
    extra = {name for name in exported - declared if not name.startswith("sfc_status_")}
    check(not extra, f"exported, but in no public header: {extra}")


if __name__ == "__main__":
    cases = dict(verify=verify, security=security, man=man, completion=completion, configuration=configuration,
                 library=library)
    for name in sys.argv[1:] or cases:
        cases[name]()
        print(f"{name}: fine", flush=True)
