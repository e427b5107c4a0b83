"""Outcomes out of files: CSV with a line of names, or a JSON object a line. Knows no ledger.

A line that is wrong is told with its number and does not stop the others. A line without an id gets
one that is made of what it says, so that a file that is imported again adds nothing; two lines that
say the same and have neither ids nor times are then one outcome.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Literal

import msgspec

from octavo.errors import ConfigError, InvalidRequestError
from octavo.ledger.outcome_items import id_of_content
from octavo.protocol.decode import decode
from octavo.protocol.outcomes import OutcomeItem, check_outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Format = Literal["csv", "jsonl"]

TAG = "tag:"
MAX_LINE_BYTES = 1024**2
_SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line; `line` counts from 1."""

    line: int
    message: str
    param: str | None = None


def guess_format(suffix: str, first_line: bytes) -> Format:
    """By the file's suffix, else by how its first line begins."""
    known = _SUFFIXES.get(suffix.lower())
    if known is not None:
        return known
    return "jsonl" if first_line.lstrip().startswith(b"{") else "csv"


def read_outcomes(lines: Iterable[bytes], kind: Format) -> Iterator[OutcomeItem | LineError]:
    """Each outcome, checked, with an id; or what is wrong with its line.

    Args:
        lines: of the file, with their ends.
        kind: what they are.

    Raises:
        ConfigError: the names in a CSV's first line are not those of outcomes.
    """
    found = _read_csv(lines) if kind == "csv" else _read_json(lines)
    for line, item in found:
        if isinstance(item, OutcomeItem):
            try:
                check_outcome(item)
            except InvalidRequestError as error:
                yield LineError(line=line, message=error.message, param=error.param)
                continue
            item.id = item.id or id_of_content(item)
            yield item
        else:
            yield item


def _read_json(lines: Iterable[bytes]) -> Iterator[tuple[int, OutcomeItem | LineError]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            yield number, LineError(line=number, message="the line is longer than 1 MiB")
            continue
        yield number, _item(line, number)


def _read_csv(lines: Iterable[bytes]) -> Iterator[tuple[int, OutcomeItem | LineError]]:
    texts = (line.decode("utf-8-sig", "replace") for line in lines)  # spreadsheets write a mark
    reader = csv.reader(texts, strict=True)
    names: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, LineError(line=number, message=f"not CSV: {error}")
            continue
        if not any(row):
            continue
        if names is None:
            names = [name.strip() for name in row]
            _check_names(names)
        elif len(row) != len(names):
            message = f"it has {len(row)} values, and the first line {len(names)} names"
            yield number, LineError(line=number, message=message)
        else:
            yield number, _csv_item(dict(zip(names, row, strict=True)), number)


def _check_names(names: list[str]) -> None:
    known = [name for name in OutcomeItem.__struct_fields__ if name != "tags"]
    for name in names:
        if name not in known and not (name.startswith(TAG) and len(name) > len(TAG)):
            raise ConfigError(
                f"line 1: {name!r} is no field of outcomes: write {', '.join(known)} or tag:NAME"
            )
        if names.count(name) > 1:
            raise ConfigError(f"line 1: {name} is there twice")
    for name in ("name", "success"):
        if name not in names:
            raise ConfigError(f"line 1: there is no column {name}")


def _csv_item(row: dict[str, str], number: int) -> OutcomeItem | LineError:
    fields: dict[str, object] = {}
    tags: dict[str, str] = {}
    for name, text in row.items():
        value = text.strip()
        if not value:
            continue
        if name.startswith(TAG):
            tags[name.removeprefix(TAG)] = value
        elif name != "success":
            fields[name] = value
        elif value.lower() in _TRUTH:
            fields[name] = _TRUTH[value.lower()]
        else:
            message = f"success: {value[:50]!r} is neither true nor false"
            return LineError(line=number, message=message, param="success")
    if tags:
        fields["tags"] = tags
    return _item(msgspec.json.encode(fields), number)


def _item(data: bytes, number: int) -> OutcomeItem | LineError:
    try:
        return decode(data, OutcomeItem)
    except InvalidRequestError as error:
        message = error.message.replace("The request body", "the line")
        return LineError(line=number, message=message, param=error.param)
