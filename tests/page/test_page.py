#!/usr/bin/python3
"""The status page in headless Chromium: every state of a run, and a real run with moves and a crash.

    test_page.py [states|keyboard|hostile|run ...]     default: all
"""
import json
import pathlib
import sys
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from browser import Browser, BrowserFailure, find  # noqa: E402
from cluster import Cluster, wait_until  # noqa: E402
from inputs import check  # noqa: E402
from states import HOSTILE, STATES, status  # noqa: E402
from test_http import api, get, pages_of  # noqa: E402

LOOK = (pathlib.Path(__file__).parent / "look.js").read_text()
PHONE, DESK = 360, 1280
CONTRAST = 4.5  # WCAG 2, AA, for text of any size
WORD = "document.getElementById('state-word').textContent"


def look(page, question):
    complaints = page.eval(f"{{{LOOK}\n{question}}}")
    check(not complaints, f"{question}: " + "\n".join(complaints or []))


def looks_right(page, what):
    """In both schemes and on a desk and a phone."""
    try:
        for width in (DESK, PHONE):
            page.size(width, 900)
            look(page, "wide()")
            look(page, "structure()")
            for scheme in ("light", "dark"):
                page.media(scheme)
                look(page, f"faint({CONTRAST})")
    except AssertionError as e:
        raise AssertionError(f"{what}, {page.eval('innerWidth')} px: {e}") from None


def only_ours(page, at):
    foreign = {r for r in page.requests if urllib.parse.urlsplit(r).netloc != at}
    check(not foreign and page.requests, f"asked elsewhere: {foreign}")


def told(page, name):
    _, word, reason = STATES[name]
    page.wait(f"{WORD} === {json.dumps(word)}")
    page.wait(f"document.getElementById('reason').textContent.includes({json.dumps(reason)})")
    if name not in ("standby", "silent", "nothing"):
        page.wait("document.querySelectorAll('#runs tbody tr').length > 0")


def test_states(c, at):
    """Each state has its word and its reason, and looks right; what it says has the shape of the scheduler's answers."""
    real = api(at, "/api/status")
    check(status().keys() <= real.keys(), f"states.py tells what no scheduler does: {status().keys() - real.keys()}")
    with Browser() as browser:
        for name, (answers, _, _) in STATES.items():
            page = browser.open(f"http://{at}/", answers=dict(answers))
            told(page, name)
            looks_right(page, name)
            if name not in ("standby", "silent"): # the console names refused requests
                check(not page.errors, f"{name}: {page.errors}")
            only_ours(page, at)
            browser.call("Target.closeTarget", targetId=page.target)
        check_changes(browser, at)


def check_changes(browser, at):
    """The same page when the run moves, is lost and comes back."""
    page = browser.open(f"http://{at}/", answers=dict(STATES["running"][0]), reduced=False)
    told(page, "running")
    check(page.eval("document.querySelectorAll('.cells .moving').length") == 0, "moves of nothing")
    page.answers.update(STATES["moves"][0])
    page.wait("document.querySelectorAll('#class-map .moving').length === 4 && document.querySelectorAll('#dense-map .moving').length === 1")
    numbers = page.eval("document.querySelector('#moves .numbers').textContent")
    check(numbers == "120 MB of 300 MB · 41.0 MB/s · 4 s left", numbers)
    check(page.eval("document.querySelector('#moves [role=progressbar]').getAttribute('aria-valuenow')") == "40", "how far")
    check("4 of them move" in page.eval("document.querySelector('#class-map .cells').getAttribute('aria-label')"), "in words")
    moving = "getComputedStyle(document.querySelector('.moving')).animationName"
    check(page.eval(moving) == "moving", "a move is seen to move")
    page.media("light", reduced=True)
    check(page.eval(moving) == "none", "unless somebody wants no motion")
    page.answers.update({"/api/": (0, ""), **{p: (0, "") for p in STATES["moves"][0]}})
    page.wait(f"{WORD} === 'No answer'")
    check("What you see is from" in page.eval("document.getElementById('reason').textContent"), "since when")
    look(page, f"faint({CONTRAST})")
    page.answers.clear()
    page.answers.update(STATES["finished"][0])
    page.wait(f"{WORD} === 'Finished'")
    check(page.eval("document.body.classList.contains('stale')") is False, "it is there again")


def is_new(page):
    try:
        return page.eval("!window.old && document.readyState === 'complete'")
    except BrowserFailure:  # between the old and the new
        return False


def test_keyboard(c, at):
    """Tab reaches everything, and it is seen where it is; keys do what pointers do."""
    with Browser() as browser:
        page = browser.open(f"http://{at}/", answers=dict(STATES["moves"][0]))
        told(page, "moves")
        places, names = [], []
        while True:
            page.key("Tab")
            at_ = page.eval(f"{{{LOOK}\nfocused()}}")
            if at_ is None or at_["place"] in places:
                break
            check(at_["ring"], f"focus is not seen: {at_['name']}")
            places.append(at_["place"])
            names.append(at_["name"])
        check(places == sorted(places), f"out of order: {places}")
        wanted = page.eval(f"{{{LOOK}\nreachable()}}")
        check(len(places) == wanted, f"Tab reaches {len(places)} of {wanted}: {names}")

        reading = "document.querySelector('[data-curve=loss] .plot').getAttribute('aria-valuetext')"
        page.eval("document.querySelector('[data-curve=loss] .plot').focus()")
        newest = page.eval(reading)
        page.key("ArrowLeft")
        earlier = page.eval(reading)
        page.key("Home")
        check(len({newest, earlier, page.eval(reading)}) == 3 and "step" in earlier, f"{newest} {earlier} {page.eval(reading)}")
        check(page.eval("document.querySelectorAll('.cursor line').length") == 3, "a reading line on each curve")
        page.key("Escape")
        check(page.eval(reading) == newest, "back to the newest")

        page.eval("document.querySelector('#legend button').focus()")
        page.key("Enter")
        page.wait("document.querySelector('#legend button').getAttribute('aria-pressed') === 'true' && document.querySelectorAll('#class-map .chosen').length === 40")
        page.key(" ")
        page.wait("document.querySelector('#legend button').getAttribute('aria-pressed') === 'false'")
        page.eval("document.querySelector('summary').focus()")
        page.key("Enter")
        page.wait("document.querySelectorAll('#curves-table tbody tr').length > 10")
        looks_right(page, "table of curves")

        page.eval("document.querySelector('input[value=auto]').focus()")
        page.media("light")
        page.key("ArrowRight")
        page.key("ArrowRight")
        page.wait("getComputedStyle(document.documentElement).colorScheme === 'dark'")
        page.eval("window.old = true")
        page.call("Page.reload")
        wait_until("the page again", lambda: is_new(page), 60)
        page.wait("document.querySelector('input[value=dark]').checked && "
                  "getComputedStyle(document.documentElement).colorScheme === 'dark'")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "link", "slider", "progressbar", "image", "radio", "table", "region"}
        nameless = [n for n in nodes if n.get("role", {}).get("value") in roles and not n.get("ignored") and not n.get("name", {}).get("value")]
        check(not nameless, f"without a name: {nameless[:3]}")
        check(not page.errors, str(page.errors))


def test_hostile(c, at):
    """Names are text. A scheduler's own: one that people chose for a run."""
    c.create_run(name=HOSTILE[:100], steps=8, classes=2000, samples=4000)
    c.wait_state("finished")
    with Browser() as browser:
        for answers in (None, dict(STATES["hostile"][0])):
            page = browser.open(f"http://{at}/", answers=answers)
            page.eval("window.alert = () => { throw new Error('markup'); }")
            name = HOSTILE if answers else HOSTILE[:100]
            page.wait(f"document.querySelector('h1').textContent === {json.dumps(name)}")
            page.wait("document.querySelectorAll('#runs tbody tr').length > 0 && document.querySelectorAll('#events tbody tr').length > 0")
            check(page.eval("document.querySelectorAll('body script, #main img').length") == 0, "markup came from a name")
            check(page.eval("document.querySelectorAll('[onerror], [onload]').length") == 0, "a handler came from a name")
            looks_right(page, "hostile names")
            check(not page.errors, str(page.errors))
            only_ours(page, at)
        # What the server forbids, whatever a page would do.
        kept = page.eval("new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)); "
                         "fetch('http://127.0.0.1:1/').catch(() => {}); })")
        check(kept == "connect-src", f"a request to elsewhere: {kept}")
        check(page.eval("(() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } })()"), "innerHTML")


def test_files(at):
    """Files say what they are, may be kept, and are asked for again."""
    index = get(at, "/")
    check(index[0] == 200 and index[2]["Content-Type"] == "text/html; charset=utf-8", str(index[2]))
    policy = index[2]["Content-Security-Policy"]
    check("default-src 'none'" in policy and "'unsafe" not in policy and "*" not in policy, policy)
    check(index[2]["X-Content-Type-Options"] == "nosniff" and index[2]["Referrer-Policy"] == "no-referrer", str(index[2]))
    for path in ("/", "/page.css", "/page.js", "/icon.svg"):
        status_, text, headers = get(at, path)
        check(status_ == 200 and text and "://" not in text.replace("http://www.w3.org/2000/svg", ""), path)
        again = get(at, path, headers={"If-None-Match": headers["ETag"]})
        check(again[0] == 304 and again[1] == "" and again[2]["ETag"] == headers["ETag"], f"{path}: {again}")
        check(get(at, path, headers={"If-None-Match": '"another"'})[0] == 200, path)
        check(get(at, path, "HEAD")[:2] == (200, ""), path)
    check(get(at, "/index.html")[0] == 404 and get(at, "/../page.css")[0] == 404, "paths")


def test_run(c, at):
    """A real run: the curve grows, moves are seen, the map follows, and a scheduler that died is waited for."""
    test_files(at)
    with Browser() as browser:
        page = browser.open(f"http://{at}/")
        page.wait("document.querySelector('h1').textContent === 'No run yet'")
        c.start_shards(2)
        c.create_run(name="moves", steps=1000000, classes=65536, samples=100000, block_size=1024, dim=256)
        c.start_workers(1)
        page.wait(f"document.querySelector('h1').textContent === 'moves' && {WORD} === 'Running'")
        newest = "Number(document.querySelector('[data-curve=loss] .plot').getAttribute('aria-valuenow'))"
        length = "document.querySelector('[data-curve=loss] .line').getTotalLength()"
        page.wait(f"{newest} > 3")
        before, long = page.eval(newest), page.eval(length)
        page.wait(f"{newest} > {2 * before} && {length} !== {long}")
        check(page.eval("document.querySelectorAll('#class-map .cells i').length") == 64, "cells")
        c.start_shards(1)
        c.ctl("scale", "--shards", "3", "--no-wait")
        page.wait("document.querySelectorAll('#class-map .moving').length > 0 && document.querySelectorAll('#moves li').length > 0")
        page.wait("/ of .*B\\/s/.test(document.querySelector('#moves .numbers')?.textContent ?? '')")
        page.wait("document.querySelectorAll('#moves li').length === 0 && document.querySelectorAll('#legend button').length === 3 && "
                  "new Set([...document.querySelectorAll('#class-map i')].map(i => i.dataset.shard)).size === 3")
        looks_right(page, "a real run")
        happened = page.eval("document.querySelector('#events').textContent")
        check("moved from" in happened and "asks run moves for: 3 shards" in happened, happened)
        c.ctl("pause")
        page.wait(f"{WORD} === 'Paused'")
        check(not page.errors, str(page.errors))
        only_ours(page, at)
        c.scheduler.kill()
        page.wait(f"{WORD} === 'No answer'")
        c.start_scheduler("--http", at, "--move-rate", "4M")
        c.ctl("resume")
        page.wait(f"{WORD} === 'Running' && document.querySelectorAll('#class-map i').length === 64")
        check(page.eval(newest) > before, "the curve is there again")


def main():
    if not find():
        print("skipped: chromium is not installed (deploy/install-deps --browser installs it)")
        sys.exit(77)
    tests = {"states": test_states, "keyboard": test_keyboard, "hostile": test_hostile, "run": test_run}
    for name in sys.argv[1:] or tests:
        with Cluster() as c:
            c.start_scheduler("--http", "127.0.0.1:0", "--move-rate", "4M")
            at = pages_of(c)
            wait_until("pages", lambda: get(at, "/api/runs")[0] == 200, 20)
            if name == "hostile":
                c.start_shards(1)
                c.start_workers(1)
            tests[name](c, at)


if __name__ == "__main__":
    main()
