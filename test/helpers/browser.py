"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

CAPTIONS = "document.querySelector('#chunk')?.options.length > 0"  # the page of captions has spoken with its server


class Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        async for message in self._socket:
            answer = message.json()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]
        raise ConnectionError("the browser has gone")

    async def evaluate(self, expression: str) -> Any:
        """What the (awaited) expression is in the page, as a user's click would run it."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str, timeout: float = 20) -> None:
        """Wait for a condition in the page."""
        try:
            async with asyncio.timeout(timeout):
                while not await self.evaluate(condition):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.evaluate("document.body.dataset.state + ': ' + document.body.innerText")
            raise AssertionError(f"never came: {condition}; the page shows {shown}") from None

    async def screenshot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        await asyncio.sleep(0.3)
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@contextlib.asynccontextmanager
async def browse(url: str, profile: Path, *flags: str, ready: str = CAPTIONS) -> AsyncIterator[Page]:
    """The page at ``url``, once ``ready`` is true in it, in a new browser, whose ``profile`` must not exist."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *options, f"--user-data-dir={profile}", "--remote-debugging-port=0", *flags, "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not address.exists() or not address.read_text().strip():
                await asyncio.sleep(0.05)
        port = address.read_text().split()[0]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(t for t in await answer.json() if t["type"] == "page")
            async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.call("Page.enable")
                await page.call("Page.navigate", url=url)
                await page.until(ready)
                yield page
    finally:
        browser.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(browser.wait(), 10)
        except TimeoutError:
            browser.kill()
            await browser.wait()
