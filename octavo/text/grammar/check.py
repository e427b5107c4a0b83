"""Tries grammars out in processes of their own, before anybody else compiles them.

Schemas and expressions of a few lines can take minutes and gigabytes to compile, or overflow the
stack of whoever does; the library's own bounds do not cover it all. Here the process that does can
be given up. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.text.grammar.check_process import Start, Verdict
from octavo.text.grammar.compiler import spec_key
from octavo.text.grammar.source import PARAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.text.tokenizer import Tokenizer
    from octavo.types import StructuredOutputs

NUM_PROCESSES = 2
"""One bad grammar does not hold up a good one, and one is there while the other starts anew."""

PATIENCE_S = 1.0
"""How long one grammar may take, seconds."""

START_PATIENCE_S = 60.0
"""How long a process may take until it answers, seconds: a second, on a machine with time."""

MAX_VERDICTS = 4096
"""Grammars whose verdicts are remembered, those asked for last."""

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from octavo.text.grammar.check_process import main; main()"
)

TOO_SLOW = f"compiling it takes longer than {PATIENCE_S:g} s: make it simpler"
TOO_LARGE = "compiling it takes too much memory or too deep a stack: make it simpler"


class GrammarChecker:
    """Says of grammars whether they can be used. Processes start when they are first needed.

    Args:
        start: makes what the processes begin with; called when the first one starts.
    """

    def __init__(self, start: Callable[[], Start]) -> None:
        self._processes = [_Process(start) for _ in range(NUM_PROCESSES)]
        self._idle: LifoQueue[_Process] = LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(NUM_PROCESSES, thread_name_prefix="grammar-check")
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = threading.Lock()
        self._is_warm = False

    def check(self, spec: StructuredOutputs) -> None:
        """Return if the grammar can be used; blocks, and may be called from any thread.

        Raises:
            InvalidRequestError: it cannot; the reason is the library's, or its cost.
        """
        key = spec_key(spec)
        is_known, reason = self._known(key)
        if not is_known:
            reason = self._ask(spec)
            with self._lock:
                self._verdicts[key] = reason
                if len(self._verdicts) > MAX_VERDICTS:
                    self._verdicts.popitem(last=False)
        if reason is not None:
            if not reason.startswith(PARAM):
                reason = f"{PARAM}: {reason}"
            raise InvalidRequestError(reason, param=PARAM)

    async def check_beside(self, spec: StructuredOutputs) -> None:
        """As `check`, for an event loop, which goes on meanwhile."""
        if self._known(spec_key(spec))[0]:
            self.check(spec)
        else:
            await asyncio.get_running_loop().run_in_executor(self._threads, self.check, spec)

    def close(self) -> None:
        """End the processes; grammars that are being tried out are refused."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.close()

    def _known(self, key: bytes) -> tuple[bool, str | None]:
        """Whether there is a verdict, and what is wrong with the grammar."""
        with self._lock:
            if key not in self._verdicts:
                return False, None
            self._verdicts.move_to_end(key)
            return True, self._verdicts[key]

    def _ask(self, spec: StructuredOutputs) -> str | None:
        process = self._idle.get()
        self._warm_up()
        reason: str | None = TOO_LARGE
        try:
            reason = process.ask(spec)
        finally:
            if reason in (TOO_SLOW, TOO_LARGE):  # the answer need not wait for a new process
                threading.Thread(target=self._renew, args=(process,), daemon=True).start()
            else:
                self._idle.put(process)
        return reason

    def _warm_up(self) -> None:
        """Start the other processes beside the first one."""
        with self._lock:
            is_warm, self._is_warm = self._is_warm, True
        if is_warm:
            return
        with contextlib.suppress(Empty):
            while True:
                other = self._idle.get_nowait()
                threading.Thread(target=self._renew, args=(other,), daemon=True).start()

    def _renew(self, process: _Process) -> None:
        try:
            with contextlib.suppress(RuntimeError):  # told when it is asked again
                process.begin()
        finally:
            self._idle.put(process)


def checker_for(tokenizer: Tokenizer, vocab_size: int) -> GrammarChecker:
    """What tries out grammars for a model; the caller closes it."""
    known = [token_id for token_id in sorted(tokenizer.eos_token_ids) if token_id < vocab_size]
    return GrammarChecker(lambda: Start(tokenizer.to_json(), vocab_size, known))


class _Process:
    """One process; begun anew after it was given up."""

    def __init__(self, start: Callable[[], Start]) -> None:
        self._start = start
        self._popen: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._in_use = threading.RLock()

    def ask(self, spec: StructuredOutputs) -> str | None:
        """What is wrong with the grammar, or None.

        Raises:
            RuntimeError: no process could be started.
        """
        with self._in_use:
            if self._popen is None or self._popen.poll() is not None:
                self.begin()
            line = self._exchange(msgspec.json.encode(spec), PATIENCE_S)
            if line is None:
                is_running = self._popen is not None and self._popen.poll() is None
                self._stop()
                return TOO_SLOW if is_running else TOO_LARGE
        return msgspec.json.decode(line, type=Verdict).reason

    def begin(self) -> None:
        """Start the process, and wait until it is ready."""
        with self._in_use:
            self._stop()
            if self._is_closed:
                raise RuntimeError("the server is shutting down")
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, "octavo-grammar", *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent
            )
            if self._exchange(msgspec.json.encode(self._start()), START_PATIENCE_S) is None:
                self._stop()
                raise RuntimeError(
                    "the process that checks grammars did not start; its log says why"
                )

    def close(self) -> None:
        """End it, and never begin again."""
        self._is_closed = True
        while not self._in_use.acquire(timeout=0.05):
            popen = self._popen
            if popen is not None:
                popen.kill()  # whoever waits for its answer gives up at once
        try:
            self._stop()
        finally:
            self._in_use.release()

    def _stop(self) -> None:
        popen, self._popen = self._popen, None
        if popen is None:
            return
        popen.kill()
        popen.wait()
        for stream in (popen.stdin, popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _exchange(self, line: bytes, patience_s: float) -> bytes | None:
        """Its answer to a line; None: it ended, or takes longer."""
        assert self._popen is not None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        deadline = time.monotonic() + patience_s
        try:
            self._popen.stdin.write(line + b"\n")
            self._popen.stdin.flush()
        except OSError:
            return None
        fd = self._popen.stdout.fileno()
        answer = b""
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if not select.select([fd], [], [], max(left, 0.0))[0]:
                return None
            piece = os.read(fd, 65536)
            if not piece:
                self._popen.wait()
                return None
            answer += piece
        return answer
