"""Logging set-up of a serving process: one line per event on standard error.

A line is `2026-01-31 12:00:00.123 INFO octavo.server: text`. Line breaks in a message are escaped,
so nobody can forge a line; the lines of a traceback are indented below their event. Usage records
are bare JSON instead, which escapes them too.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

_COLOURS = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_RESET = "\x1b[0m"
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROL.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\t"})
BARE_LOGGER = "octavo.usage"
"""Its messages are lines of JSON, and stand alone in theirs, for programs that read them."""
_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_QUIET_LOGGERS = ("httpx", "httpcore", "alembic")
CONFIGURED_LOGGERS = ("", *_UVICORN_LOGGERS, *_QUIET_LOGGERS)
"""Names of those that `configure_logs` changes; the empty one is the root's."""


class LineFormatter(logging.Formatter):
    """Formats records as the module describes.

    Args:
        use_colours: mark levels by ANSI colours.
    """

    def __init__(self, *, use_colours: bool = False) -> None:
        super().__init__()
        self._use_colours = use_colours

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback's lines if it has one."""
        if record.name == BARE_LOGGER:
            return record.getMessage()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = record.levelname
        colour = _COLOURS.get(record.levelno) if self._use_colours else None
        if colour:
            level = f"{colour}{level}{_RESET}"
        name = "uvicorn" if record.name == "uvicorn.error" else record.name
        message = record.getMessage().strip().translate(_CONTROL)
        line = f"{when}.{int(record.msecs):03d} {level} {name}: {message}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {part}" for part in trace.splitlines())
        return line


def configure_logs(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of this process through one handler, uvicorn's included.

    Run uvicorn with `log_config=None`, or it puts its own handlers back. May be called again: the
    new settings replace the old ones.

    Args:
        level: least level that is written, by its name.
        stream: where to; None: standard error. Colours only where it is a terminal.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(LineFormatter(use_colours=target.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
