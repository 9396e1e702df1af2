"""Headless Chromium for tests, by its DevTools protocol over two pipes: nothing but Chromium is needed.

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:7480/")
        page.wait("document.querySelector('h1').textContent != '…'")
        page.screenshot("page.png")

A page keeps what it complained about (page.errors) and every address that it asked for (page.requests).
"""
import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse

TIME_SCALE = float(os.environ.get("SFC_TIME_SCALE", "1"))
PATIENCE = 60


class BrowserFailure(AssertionError):
    pass


def find():
    """The path of Chromium, or None."""
    return os.environ.get("SFC_CHROMIUM") or shutil.which("chromium")


class Browser:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="sfc-chromium-")
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        argv = [find(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self.folder}", "--disable-gpu",
                "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio", "--hide-scrollbars",
                "--force-color-profile=srgb", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank"]
        # Chromium reads commands from 3 and answers to 4. With it its children end: they watch their parent.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "chromium", *argv],
            pass_fds=(to_read, from_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.folder})
        os.close(to_read)
        os.close(from_write)
        self._out = os.fdopen(to_write, "wb", buffering=0)
        self._in = os.fdopen(from_read, "rb", buffering=0)
        self._number = 0
        self._answers, self._listeners, self._lock = {}, {}, threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()

    def close(self):
        if self.process.poll() is None:
            try:
                self.call("Browser.close")
                self.process.wait(10)
            except (BrowserFailure, OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self._out.close()
        self._reader.join()
        self._in.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self):
        rest = b""
        while True:
            piece = self._in.read(1 << 16)
            if not piece:
                break
            *messages, rest = (rest + piece).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    with self._lock:
                        waiting = self._answers.pop(message["id"], None)
                    if waiting:
                        waiting.put(message)
                else:
                    listener = self._listeners.get(message.get("sessionId"))
                    if listener:
                        listener(message["method"], message["params"])
        with self._lock:
            for waiting in self._answers.values():
                waiting.put({"error": {"message": "Chromium has ended"}})

    def post(self, method, session=None, answer=None, **params):
        """A command whose answer goes to a queue, or nowhere."""
        with self._lock:
            self._number += 1
            message = {"id": self._number, "method": method, "params": params}
            if answer:
                self._answers[self._number] = answer
            if session:
                message["sessionId"] = session
            self._out.write(json.dumps(message).encode() + b"\0")

    def call(self, method, session=None, **params):
        answer = queue.Queue()
        self.post(method, session, answer, **params)
        try:
            reply = answer.get(timeout=PATIENCE * TIME_SCALE)
        except queue.Empty:
            raise BrowserFailure(f"{method}: no answer") from None
        if "error" in reply:
            raise BrowserFailure(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def open(self, address, **size):
        return Page(self, address, **size)


class Page:
    """answers: {path: (status, text)} instead of what the server would say; may change at any time. A path that
    begins with one of them counts. (0, "") is no answer."""

    def __init__(self, browser, address, width=1280, height=900, scheme="light", reduced=True, answers=None):
        self.browser = browser
        self.errors, self.requests, self.answers = [], [], answers
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        browser._listeners[self.session] = self._heard
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        self.media(scheme, reduced)
        if answers is not None:
            self.call("Fetch.enable", patterns=[{"urlPattern": "*"}])
        self.call("Page.navigate", url=address)
        self.loaded()

    def _heard(self, method, params):
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Fetch.requestPaused":
            self._answer(params["requestId"], urllib.parse.urlsplit(params["request"]["url"]).path)

    def _answer(self, request, path):
        status, text = next((a for p, a in self.answers.items() if path.startswith(p)), (None, None))
        if status is None:
            self.browser.post("Fetch.continueRequest", self.session, requestId=request)
        elif status == 0:
            self.browser.post("Fetch.failRequest", self.session, requestId=request, errorReason="ConnectionRefused")
        else:
            self.browser.post("Fetch.fulfillRequest", self.session, requestId=request, responseCode=status,
                              responseHeaders=[{"name": "Content-Type", "value": "application/json"}],
                              body=base64.b64encode(text.encode()).decode())

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def size(self, width, height, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 500)

    def media(self, scheme, reduced=True):
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"}])

    def eval(self, script):
        """The value of an expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserFailure(f"{script}: {result['exceptionDetails'].get('exception', {}).get('description')}")
        return result["result"].get("value")

    def loaded(self):
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, script, seconds=PATIENCE):
        """Asks until the expression is true, and returns its value."""
        end = time.monotonic() + seconds * TIME_SCALE
        while True:
            value = self.eval(script)
            if value:
                return value
            if time.monotonic() > end:
                raise BrowserFailure(f"waited {seconds * TIME_SCALE:.0f} s for {script}; the page says:\n"
                                     f"{self.eval('document.body && document.body.innerText')}\n{self.errors}")
            time.sleep(0.05)

    def key(self, key, shift=False):
        """Presses a key, by its name in KeyboardEvent."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32}
        event = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path, full=True):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        with open(path, "wb") as out:
            out.write(base64.b64decode(data))
