#!/usr/bin/python3
"""Shards that come and go by command, and what people see of it.

    test_scale.py [events ...]     default: all
"""
import json
import sys

from cluster import Cluster, wait_until
from inputs import check, expect


def events(c, *argv):
    return json.loads(expect(c.ctl("events", *argv, "--json", check=False), 0).stdout)["events"]


def test_events():
    """Who, what, when, why: also after a restart of the scheduler."""
    with Cluster() as c:
        c.start_scheduler()
        check(events(c) == [], "events of nothing")
        c.start_shards(1)
        c.ctl("create", "--run", "seen", "--classes", "2000", "--samples", "2000", "--steps", "100000")
        c.ctl("pause")
        stored = lambda: any("PAUSE" in e["what"] for e in events(c)) and events(c)
        happened = wait_until("the pause to be noted", stored, 20, context=lambda: str(events(c)))
        texts = [e["what"] for e in happened]
        check([e["id"] for e in happened] == sorted(e["id"] for e in happened), f"order: {happened}")
        check(any("shard 1 joined at 127.0.0.1:" in t for t in texts), f"a shard: {texts}")
        check(any("run 1 (seen) created" in t for t in texts), f"a run: {texts}")
        asked = next(e for e in happened if "asks run seen to PAUSE" in e["what"])
        check("127.0.0.1" in asked["who"] and asked["run_id"] == 1, f"who: {asked}")
        check(all(e["who"] == "scheduler" for e in happened if "asks" not in e["what"]), f"who: {happened}")
        check(all(e["time"].startswith("20") and e["time"].endswith("Z") for e in happened), f"when: {happened}")
        c.scheduler.kill()
        c.start_scheduler()
        check(events(c, "--limit", "10000")[:len(happened)] == happened, "events after a restart")
        check(len(events(c, "--limit", "2")) == 2, "--limit")
        lines = expect(c.ctl("events", check=False), 0).stdout.splitlines()
        check(any(line.endswith("asks run seen to PAUSE") for line in lines), f"text: {lines}")
        expect(c.ctl("events", "--limit", "0", check=False), 2, "limit")


def main():
    tests = {name[5:]: f for name, f in globals().items() if name.startswith("test_")}
    for name in sys.argv[1:] or tests:
        tests[name]()
        print(f"{name}: ok")


if __name__ == "__main__":
    main()
