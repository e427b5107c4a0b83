"""`octavo` as processes of their own, on Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@contextlib.asynccontextmanager
async def process(*args: str, socket: Path, log: Path) -> AsyncIterator[None]:
    """`octavo ARGS`, from when it is ready until it has ended well."""

    def said() -> str:
        return log.read_text()

    with log.open("wb") as out:
        command = [sys.executable, "-m", "octavo.cli.main", *args]
        env = os.environ | {
            "CLOUD_KEY": "sk-cloud",
            "OCTAVO_HOME": os.environ.get("OCTAVO_HOME", ""),
        }
        running = await asyncio.create_subprocess_exec(*command, stderr=out, stdout=out, env=env)
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/health")).status_code == 200:
                        break
                assert running.returncode is None, said()
                assert time.monotonic() < until, said()
                await asyncio.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 30) == 0, said()
