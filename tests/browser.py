"""A headless Chromium, driven over the pipe of its DevTools: what it shows, logs and asks for."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab; `events` are all that it has told."""

    def __init__(self, process, into, out):
        self.process, self.into, self.out = process, into, out
        self.number, self.buffer, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self, patience=60):
        ends = time.monotonic() + patience
        while b"\0" not in self.buffer:
            if not select.select([self.out], [], [], max(0, ends - time.monotonic()))[0]:
                raise TimeoutError("the browser is silent")
            self.buffer += os.read(self.out, 1 << 20)
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def show(self, path, *, width=1200, height=900, dark=False):
        """Loads a file, waits until it is drawn, and forgets what was told before."""
        self.events.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, script):
        """The value of an expression of JavaScript; the page itself may run none."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def requests(self):
        """Addresses that the page asked for, besides itself and what it holds."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if not each["request"]["url"].startswith(("file:", "data:"))]

    def complaints(self):
        """What stands in the console, and errors."""
        told = [event for event in self.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        return told + [event for event in self.events if event["method"] == "Runtime.consoleAPICalled"]

    def picture(self, path):
        """Writes the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browsing(folder):
    """A browser with a profile in a folder."""
    to_browser, into = os.pipe()
    out, from_browser = os.pipe()

    def wire():  # DevTools reads from 3 and writes to 4
        spare = os.dup(from_browser)
        os.dup2(os.dup(to_browser), 3)
        os.dup2(spare, 4)

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-background-networking"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([CHROMIUM, *options, "about:blank"], preexec_fn=wire, close_fds=False, **quiet)  # noqa: PLW1509
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(process, into, out)
    finally:
        process.kill()
        process.wait()
        os.close(into)
        os.close(out)
