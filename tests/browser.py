"""A headless Chromium, driven over a pipe by its own protocol: no library, and no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --mute-audio --hide-scrollbars "
    "--disable-dev-shm-usage --remote-debugging-pipe"
)


class Browser:
    """One tab.

    Args:
        folder: for its profile.
    """

    def __init__(self, folder: Path):
        (theirs_in, self._out), (inward, theirs_out) = os.pipe(), os.pipe()

        places = "a, b = (fcntl(int(n), F_DUPFD, 10) for n in sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4)"
        launch = f"import os, sys; from fcntl import *; {places}; os.execv(sys.argv[3], sys.argv[3:])"
        command = [sys.executable, "-c", launch, str(theirs_in), str(theirs_out), str(CHROMIUM), *QUIET.split()]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._count, self._session = os.fdopen(inward, "rb"), 0, None
        self._events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Network.enable")

    def _message(self) -> dict[str, Any]:
        found = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has ended.")
            found += byte
        return json.loads(found)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._count:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path, wide: int = 1280, high: int = 800, dark: bool = False, at: str = "") -> None:
        """Open a file in a window of this size, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=wide < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._go_to("about:blank")
        self._go_to(page.as_uri() + at)
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _go_to(self, url: str) -> None:
        self._events.clear()
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self._events):
            self._events.append(self._message())

    def run(self, script: str) -> Any:
        """Run an expression in the page, wait for it if it is a promise, and return its value."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", found))
        return found["result"].get("value")

    def work(self, act: Callable[[], object]) -> dict[str, int]:
        """Act, and count how often each of the page's functions ran meanwhile, or a block in it the most often: work
        that takes as long as it takes, on a busy machine too. What the browser forgot of it is not counted.
        """
        self.call("Profiler.enable")
        self.call("Profiler.startPreciseCoverage", callCount=True, detailed=True)
        act()
        scripts = self.call("Profiler.takePreciseCoverage")["result"]
        self.call("Profiler.stopPreciseCoverage")
        found: dict[str, int] = {}
        for f in (f for s in scripts if s["url"].startswith("file:") for f in s["functions"]):
            most = max(block["count"] for block in f["ranges"])
            found[f["functionName"]] = max(most, found.get(f["functionName"], 0))
        return found

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        box = f"JSON.stringify(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        where = json.loads(self.run(box))
        self.click_at(where["x"] + where["width"] / 2, where["y"] + where["height"] / 2)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Press keys by name, as "ArrowDown", or the letters of a text one after the other."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def shot(self, path: Path) -> None:
        """Write a picture of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def problems(self) -> list[str]:
        """Errors in the page's script since it was opened, and whatever it asked of the network."""
        self.run("0")
        found = []
        for event in self._events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            url = params.get("request", {}).get("url", "")
            if event.get("method") == "Network.requestWillBeSent" and not url.startswith(("file:", "data:", "about:")):
                found.append(url)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        self._in.close()
