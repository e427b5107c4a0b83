"""Headless Chromium by the WebDriver protocol, for tests of pages; Debian's packages suffice.

Source: https://www.w3.org/TR/webdriver2/
"""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Browser:
    """One tab. Made by `browsing`."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._path = f"/session/{session}"

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._client.post(self._path + path, json=body)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The visible text of the first such element."""
        found: str = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return found

    def wait_for(self, condition: str, timeout_s: float = 30.0) -> None:
        """Until an expression is true in the page."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"return !!({condition})"):
            assert time.monotonic() < deadline, f"{condition}: {self.text('body')}"
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Keys, one after another, wherever the focus is; special ones by their WebDriver codes."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def log(self) -> list[dict[str, Any]]:
        """Messages of the console since it was asked for last."""
        entries: list[dict[str, Any]] = self._post("/se/log", {"type": "browser"})
        return entries

    def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """The page's area, and the reader's taste."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self) -> bytes:
        """The page's area as PNG."""
        response = self._client.get(f"{self._path}/screenshot")
        return base64.b64decode(response.json()["value"])

    def _cdp(self, command: str, parameters: dict[str, Any]) -> None:
        self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser that keeps what it keeps in a new folder, and ends with the context."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = None
        while port is None:
            line = driver.stdout.readline()
            assert line, "the driver did not start"
            port = re.search(r"started successfully on port (\d+)", line)
        url = f"http://127.0.0.1:{port[1]}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            options = {
                "binary": CHROMIUM,
                "args": [*FLAGS, f"--user-data-dir={folder / 'chromium'}"],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
            assert made.status_code == 200, made.text
            session = made.json()["value"]["sessionId"]
            try:
                yield Browser(client, session)
            finally:
                client.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(20)
        if driver.stdout is not None:
            driver.stdout.close()
