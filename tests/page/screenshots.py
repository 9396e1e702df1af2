#!/usr/bin/python3
"""Pictures of the status page for docs/, from a real run in the middle of a move.

    screenshots.py [FOLDER]     default: docs/; needs chromium and python3-pil (deploy/install-deps --browser)
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from browser import Browser  # noqa: E402
from cluster import TOP, Cluster  # noqa: E402
from PIL import Image  # noqa: E402
from test_http import pages_of  # noqa: E402

MOST_BYTES = 150_000
SHOTS = (("light", 1280, 1330, 1, "light"), ("dark", 1280, 1330, 1, "dark"), ("phone", 360, 1180, 2, "light"))  # name, width, height, scale


def shrink(path):
    """Few colours are enough for a page of few colours."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(colors=128, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} has {path.stat().st_size} bytes, more than {MOST_BYTES}")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "docs")
    with Cluster() as c, Browser() as browser:
        c.start_scheduler("--http", "127.0.0.1:0", "--move-rate", "3M")
        c.start_shards(3)
        c.start_workers(1)
        common = dict(classes=32768, samples=131072, dim=128, block_size=256, global_batch=64, micro_batch=16)
        c.create_run(name="faces, first try", steps=60, **common)
        c.wait_state("finished")
        c.create_run(name="faces", steps=1600, warmup_steps=100, **common)
        c.wait_step(600, 400)
        c.start_shards(1)
        c.ctl("scale", "--shards", "4", "--no-wait")
        page = browser.open(f"http://{pages_of(c)}/")
        page.wait("document.querySelectorAll('#legend button').length === 4 && document.querySelectorAll('.moving').length > 0 && "
                  "/ left/.test(document.querySelector('#moves .numbers')?.textContent ?? '')", 120)
        for name, width, height, scale, scheme in SHOTS:
            path = folder / f"status-page-{name}.png"
            page.media(scheme)
            page.size(width, height, scale)
            page.eval("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            page.screenshot(path, full=False)
            shrink(path)
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
