from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.planning.outcome_import import LineError, guess_format, read_outcomes
from octavo.protocol.outcomes import OutcomeItem

CSV = b"""\
\xef\xbb\xbfname,success,session_id,value,time,tag:channel
ticket_resolved,true,s-1,4.50,2026-11-28T09:30:00Z,email
ticket_resolved,no,s-2,,,

"ticket
resolved",true,s-3,,,
ticket_resolved,maybe,s-4,,,
ticket_resolved,true,s-5
ticket_resolved,1,,,,
ticket_resolved,true,s-6,lots,,
"""


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_csv() -> None:
    found = list(read_outcomes(lines(CSV), "csv"))
    good = [item for item in found if isinstance(item, OutcomeItem)]
    assert [(item.session_id, item.success) for item in good] == [("s-1", True), ("s-2", False)]
    assert (good[0].value, good[0].tags) == ("4.50", {"channel": "email"})
    wrong = [(item.line, item.param) for item in found if isinstance(item, LineError)]
    assert wrong == [(5, "name"), (7, "success"), (8, None), (9, "request_id"), (10, "value")]


def test_json_lines() -> None:
    good = {"name": "n", "success": True, "request_id": "r", "value": 0.25}
    texts = [json.dumps(good), "", "{", json.dumps({**good, "sucess": 1}), json.dumps([good])]
    found = list(read_outcomes(lines("\n".join(texts).encode()), "jsonl"))
    first, *wrong = found
    assert isinstance(first, OutcomeItem)
    assert [item.line for item in wrong if isinstance(item, LineError)] == [3, 4, 5]


def test_ids_are_made_of_contents() -> None:
    """So that a file may be imported again; what differs in anything is another outcome."""
    text = b"name,success,session_id,value\nn,true,s,1.50\nn,true,s,1.5\nn,false,s,1.5\n"
    ids = [item.id for item in read_outcomes(lines(text), "csv") if isinstance(item, OutcomeItem)]
    again = [item.id for item in read_outcomes(lines(text), "csv") if isinstance(item, OutcomeItem)]
    assert ids == again
    assert ids[0] == ids[1] != ids[2]
    (given_id,) = read_outcomes(
        [b'{"id": "x", "name": "n", "success": true, "session_id": "s"}'], "jsonl"
    )
    assert isinstance(given_id, OutcomeItem)
    assert given_id.id == "x"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("name,success,sesion_id", "'sesion_id' is no field"),
        ("name,success,name", "name is there twice"),
        ("name,session_id", "no column success"),
        ("success,tag:", "'tag:' is no field"),
    ],
)
def test_heads_of_csv(head: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list(read_outcomes([head.encode() + b"\n", b"a,b,c\n"], "csv"))


def test_formats() -> None:
    assert guess_format(".CSV", b"{}") == "csv"
    assert guess_format(".ndjson", b"name,success") == "jsonl"
    assert guess_format("", b'  {"name"') == "jsonl"
    assert guess_format(".txt", b"name,success") == "csv"


@given(st.lists(st.lists(st.text(max_size=6), min_size=3, max_size=3), max_size=8))
def test_any_csv_is_read_to_its_end(rows: list[list[str]]) -> None:
    """Whatever stands in the fields: each row is an outcome or an error of its own line."""
    target = io.StringIO(newline="")
    writer = csv.writer(target)
    writer.writerow(["name", "success", "session_id"])
    writer.writerows(rows)
    data = target.getvalue().encode("utf-8", "replace")
    found = list(read_outcomes(io.BytesIO(data), "csv"))
    assert len(found) == sum(any(row) for row in rows)
    numbers = [item.line for item in found if isinstance(item, LineError)]
    assert numbers == sorted(numbers)


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_are_outcomes_or_errors(data: bytes, kind: str) -> None:
    try:
        found = list(read_outcomes(io.BytesIO(data), kind))  # type: ignore[arg-type]
    except ConfigError as error:
        assert "line 1" in str(error)  # noqa: PT017
        return
    assert all(isinstance(item, LineError | OutcomeItem) for item in found)
