"""A real browser for tests: headless Chromium, asked over its DevTools protocol.

    with open_browser(tmp_path) as browser:
        page = browser.open("file:///…/report.html")
        page.wait_for("document.querySelector('svg')")
        assert page.errors == []
        assert page.requested_elsewhere("file:") == []

The protocol goes through a pair of pipes (--remote-debugging-pipe), so that nothing listens and no
package is needed. https://chromedevtools.github.io/devtools-protocol/ has the methods' names.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    # a page that asks for another host is an error, and its request goes nowhere
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0  # of a machine that is busy with other tests
READ_FROM, WRITE_TO = 3, 4  # where Chromium expects its pipes


class BrowserFailed(AssertionError):
    """The browser ended, did not answer in time, or a script in it failed."""


def chromium() -> str:
    """The path of Chromium; the test is skipped where there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium here (on Debian: apt-get install chromium)")
    return found


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in a folder; it ends with the block."""
    program = chromium()
    to_child, to_us = os.pipe(), os.pipe()
    # out of the way of the numbers that the child needs
    reads = fcntl.fcntl(to_child[0], fcntl.F_DUPFD_CLOEXEC, 10)
    writes = fcntl.fcntl(to_us[1], fcntl.F_DUPFD_CLOEXEC, 10)

    def place_pipes() -> None:
        os.dup2(reads, READ_FROM)
        os.dup2(writes, WRITE_TO)

    profile = folder / "chromium"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(READ_FROM, WRITE_TO),
            preexec_fn=place_pipes,
            start_new_session=True,
        )
    for number in (to_child[0], to_us[1], reads, writes):
        os.close(number)
    try:
        yield Browser(to_child[1], to_us[0])
    finally:
        os.close(to_child[1])  # Chromium ends when its pipe does
        os.close(to_us[0])
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(profile, ignore_errors=True)


class Browser:
    """Sends commands, one at a time, and hands events to the pages that they are of."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to, self._read_from = write_to, read_from
        self._number = 0
        self._rest = b""
        self._messages: deque[dict[str, Any]] = deque()
        self._pages: dict[str, Page] = {}

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """A new tab with a page that has loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        page.use_theme(dark=dark)
        page.go(url)
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A command's result.

        Raises:
            BrowserFailed: it is refused, or there is no answer.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self.receive(deadline, method)
            if answer.get("id") != self._number:
                continue
            if "error" in answer:
                raise BrowserFailed(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

    def receive(self, deadline: float, what: str) -> dict[str, Any]:
        """The next message; events are kept by their pages too."""
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read_from], [], [], left)[0]:
                raise BrowserFailed(f"no answer to {what} in {PATIENCE_S:g} seconds")
            read = os.read(self._read_from, 1 << 20)
            if not read:
                raise BrowserFailed(f"Chromium ended before it answered to {what}")
            *whole, self._rest = (self._rest + read).split(b"\0")
            self._messages.extend(map(json.loads, whole))
        message = self._messages.popleft()
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.hear(message["method"], message["params"])
        return message


class Page:
    """One tab.

    Attributes:
        errors: what its console holds of errors and warnings, uncaught exceptions, and what the
            browser refused (a content-security-policy, a failed request).
        requests: addresses that it asked for, its own first.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = 0
        self._width = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this tab: see `Browser.send`."""
        return self._browser.send(method, self._session, **parameters)

    def hear(self, method: str, told: dict[str, Any]) -> None:
        """Keep what an event tells."""
        match method:
            case "Page.loadEventFired":
                self._loaded += 1
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.errors.append(
                    details.get("exception", {}).get("description") or details["text"]
                )
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                said = [str(a.get("value", a.get("description"))) for a in told["args"]]
                self.errors.append(" ".join(said))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                entry = told["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def requested_elsewhere(self, *own: str) -> list[str]:
        """Requests that do not begin with one of these; what a page holds in itself is its own."""
        return [url for url in self.requests if not url.startswith((*own, "data:", "blob:"))]

    def go(self, url: str) -> None:
        """Load an address; returns when the page and what it needs have loaded."""
        before = self._loaded
        failed = self.send("Page.navigate", url=url).get("errorText")
        if failed:
            raise BrowserFailed(f"{url}: {failed}")
        deadline = time.monotonic() + PATIENCE_S
        while self._loaded == before:
            self._browser.receive(deadline, f"loading {url}")

    def resize(self, width: int, height: int) -> None:
        """The window's inner size in CSS pixels; narrow ones count as phones."""
        self._width = width
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def use_theme(self, *, dark: bool) -> None:
        """What prefers-color-scheme says."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """The value of an expression, a promise's awaited; it must be what JSON can say.

        Raises:
            BrowserFailed: it throws.
        """
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            told = details.get("exception", {}).get("description") or details["text"]
            raise BrowserFailed(f"{script}: {told}")
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = PATIENCE_S / 2) -> Any:
        """The value of an expression once it is true; asked again before each frame.

        Raises:
            BrowserFailed: it is not in time.
        """
        found = self.evaluate(
            f"""new Promise(done => {{
              const end = performance.now() + {seconds * 1000};
              const look = () => {{
                const value = ({script});
                if (value || performance.now() > end) done(value instanceof Node ? true : value);
                else setTimeout(look, 20);
              }};
              look();
            }})"""
        )
        if not found:
            raise BrowserFailed(f"{script}: not so in {seconds:g} seconds")
        return found

    def text(self, selector: str = "body") -> str:
        """What can be read of the first element that a CSS selector finds."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, scrolled into sight."""
        x, y = self.evaluate(
            f"""(() => {{
              const found = document.querySelector({json.dumps(selector)});
              found.scrollIntoView({{block: "center", behavior: "instant"}});
              const box = found.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as a user's paste does."""
        quoted = json.dumps(selector)
        self.evaluate(f"document.querySelector({quoted}).focus()")
        self.evaluate(f"document.querySelector({quoted}).select()")
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int, times: int = 1, modifiers: int = 0) -> None:
        """Press a key where the focus is; `code` is its Windows virtual key code (Tab 9, Enter 13,
        End 35, Home 36, arrows left 37, up 38, right 39, down 40). Modifiers add up: Alt 1, Ctrl 2,
        Shift 8.
        """
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.send(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key,
                    windowsVirtualKeyCode=code,
                    modifiers=modifiers,
                    **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
                )

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """A PNG of the page, all of it or what is in sight."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def overflow(self) -> int:
        """How many pixels the page is wider than its window: 0 where nothing must be scrolled."""
        # not of innerWidth: a phone's grows with a page that is too wide
        return int(self.evaluate("document.documentElement.scrollWidth")) - self._width
