"""A process that checks JSON schemas and searches regular expressions, and may be killed.

Both come from others, and both can take for ever: a pattern that backtracks, a schema whose
references double at every step. Neither lets itself be interrupted, nor gives up the interpreter
lock, so that no thread can guard against it: a process can. It is run by its path, isolated
(`python -I`), with next to no environment, and reads jobs from its input, a JSON object a line.

It imports nothing of Octavo, so that it starts fast and holds no secrets.

    {"kind": "regex", "must": [...], "must_not": [...], "texts": [...], "limit": seconds}
    {"kind": "schema", "checks": [[name, schema, text], ...], "limit": seconds}
    {"kind": "find", "pattern": "...", "text": "...", "limit": seconds}

The first line of its output says that it is ready. Answers are `{"fault": "..."}`, empty where all
is well; `{"found": "..."}` for `find`, null where there is none; `{"error": "..."}` where a pattern
or a schema cannot be read.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from functools import lru_cache
from typing import Any

MAX_BYTES = 1 << 30
"""Of address space: a pattern or a schema may not take the machine's memory either."""


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for what, most in ((resource.RLIMIT_AS, MAX_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS does not let all be set
            resource.setrlimit(what, (most, most))


@lru_cache(64)
def _validator(schema: str) -> Any:
    """A validator that fetches no schema from anywhere.

    Raises:
        ValueError: it is no JSON schema.
    """
    from jsonschema import (  # type: ignore[import-untyped]
        Draft202012Validator,
        SchemaError,
    )
    from jsonschema.validators import validator_for  # type: ignore[import-untyped]
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    value = json.loads(schema)
    kind = validator_for(value, default=Draft202012Validator)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message}") from None
    return kind(value, registry=REGISTRY)


def _schema_fault(name: str, schema: Any, text: str) -> str:
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable

    validator = _validator(json.dumps(schema))
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return f"{name} is no JSON"
    try:
        first = next(validator.iter_errors(value), None)
    except Unresolvable as error:
        raise ValueError(f"no JSON schema: it refers to {error.ref}") from None
    if first is None:
        return ""
    best = best_match([first]) or first
    return f"{name} does not fit its schema at {best.json_path}: {best.message}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _regex_fault(job: dict[str, Any]) -> str:
    for text in job["texts"]:
        for pattern in job["must"]:
            if re.search(pattern, text) is None:
                return f"must have {pattern!r}"
        for pattern in job["must_not"]:
            if re.search(pattern, text) is not None:
                return f"must not have {pattern!r}"
    return ""


def _last(pattern: str, text: str) -> str | None:
    found = None
    for match in re.finditer(pattern, text):
        if match[1] is not None:
            found = match[1]
    return found


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """The answer to one job."""
    try:
        match job["kind"]:
            case "regex":
                return {"fault": _regex_fault(job)}
            case "schema":
                faults = (_schema_fault(*check) for check in job["checks"])
                return {"fault": next(filter(None, faults), "")}
            case "find":
                return {"found": _last(job["pattern"], job["text"])}
    except (ValueError, re.error, RecursionError, MemoryError, OverflowError) as error:
        return {"error": str(error) or type(error).__name__}
    return {"error": f"no such job: {job['kind']}"}


def main() -> None:
    """Answer jobs until the input ends."""
    _limit_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's, which then ends us
    has_alarm = hasattr(signal, "setitimer")
    _validator("{}")  # what it imports takes a tenth of a second
    _write({"ready": True})
    for line in sys.stdin.buffer:
        job = json.loads(line)
        if has_alarm:  # ends this process, even where the gateway is no more
            signal.setitimer(signal.ITIMER_REAL, job["limit"] + 1.0)
        answer = run_job(job)
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answer)


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
