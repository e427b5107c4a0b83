from __future__ import annotations

import io
import logging
import re

from octavo.observability.logs import CONFIGURED_LOGGERS, configure_logs

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ([A-Z]+) ([\w.]+): (.*)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_per_event() -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    logging.getLogger("octavo.test").info("loaded %d files", 3)
    logging.getLogger("octavo.test").debug("not shown")
    logging.getLogger("octavo.test").warning("forged\n2026-01-01 INFO fake\r\x1b[31m")
    lines = stream.getvalue().splitlines()
    matches = [LINE.fullmatch(line) for line in lines]
    assert [match.groups() for match in matches if match] == [
        ("INFO", "octavo.test", "loaded 3 files"),
        ("WARNING", "octavo.test", "forged\\n2026-01-01 INFO fake\\r\\x1b[31m"),
    ]
    assert len(lines) == 2


def test_uvicorn_goes_the_same_way() -> None:
    stream = io.StringIO()
    logging.getLogger("uvicorn.access").addHandler(logging.NullHandler())
    configure_logs("INFO", stream)
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info('%s - "%s"', "127.0.0.1", "GET /")
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(" INFO uvicorn: Started")
    assert lines[1].endswith(' INFO uvicorn.access: 127.0.0.1 - "GET /"')


def test_tracebacks_are_indented_below_their_event() -> None:
    stream = io.StringIO()
    configure_logs("INFO", stream)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("octavo").exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR octavo: failed")
    assert rest[-1] == "    ValueError: why"
    assert all(line.startswith("    ") for line in rest)


def test_colours_on_terminals_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logs("INFO", stream)
        logging.getLogger("octavo").error("x")
    assert "\x1b[31mERROR\x1b[0m" in terminal.getvalue()
    assert "\x1b" not in pipe.getvalue()


def test_setting_up_twice_does_not_double_lines() -> None:
    stream = io.StringIO()
    configure_logs("INFO", stream)
    configure_logs("WARNING", stream)
    logging.getLogger("octavo").info("hidden")
    logging.getLogger("octavo").warning("shown")
    assert len(stream.getvalue().splitlines()) == 1


def test_only_the_loggers_that_are_named_are_changed() -> None:
    def state() -> dict[str, object]:
        known = ["", *logging.root.manager.loggerDict]
        loggers = {name: logging.getLogger(name) for name in known}
        return {name: (lg.handlers[:], lg.level, lg.propagate) for name, lg in loggers.items()}

    for name in CONFIGURED_LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.CRITICAL)
    logging.getLogger("octavo.test")
    before = state()
    configure_logs("INFO", io.StringIO())
    after = state()
    assert {name for name in after if before.get(name) != after[name]} == set(CONFIGURED_LOGGERS)
