from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.ledger.outcome_items import id_of_content, to_outcome
from octavo.protocol.decode import decode
from octavo.protocol.outcomes import OutcomeItem, OutcomeRequest

GOOD: dict[str, Any] = {"name": "ticket_resolved", "success": True, "request_id": "abc"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def read(**fields: Any) -> list[OutcomeItem]:
    return decode(json.dumps(fields).encode(), OutcomeRequest).items()


def refusal(**fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    return caught.value


def test_one_and_many() -> None:
    (one,) = read(**GOOD, id="o1", value=4.5, time="2026-11-28T09:30:00+01:00", tags={"a": "b"})
    kept = to_outcome(one, "made", 7)
    assert (kept.id, kept.value, kept.tags) == ("o1", Decimal("4.5"), {"a": "b"})
    assert kept.time_ns == 1_795_854_600 * 10**9
    first, second = read(
        outcomes=[GOOD, {"name": "n", "success": False, "trace_id": TRACE.upper()}]
    )
    assert (first.request_id, second.success) == ("abc", False)
    kept = to_outcome(second, "made", 7)
    assert (kept.id, kept.time_ns, kept.trace_id) == ("made", 7, TRACE)


@pytest.mark.parametrize(
    "text", ["0.1", "-2.000000001", "9000000000", "1e3", '"0.1"', '"12"', "0.123456789"]
)
def test_values_are_decimals(text: str) -> None:
    data = json.dumps(GOOD)[:-1] + f', "value": {text}}}'
    (item,) = decode(data.encode(), OutcomeRequest).items()
    assert to_outcome(item, "x", 0).value == Decimal(text.strip('"'))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"success": True, "request_id": "a"}, "name"),
        ({"name": "n", "request_id": "a"}, "success"),
        ({"name": "n", "success": True}, "request_id"),
        ({**GOOD, "session_id": "s"}, "session_id"),
        ({**GOOD, "trace_id": TRACE}, "trace_id"),
        ({"name": "n", "success": True, "trace_id": "short"}, "trace_id"),
        ({**GOOD, "request_id": ""}, "request_id"),
        ({**GOOD, "name": ""}, "name"),
        ({**GOOD, "name": "é" * 101}, "name"),
        ({**GOOD, "name": "a\nb"}, "name"),
        ({**GOOD, "success": "true"}, "success"),
        ({**GOOD, "success": 1}, "success"),
        ({**GOOD, "value": "NaN"}, "value"),
        ({**GOOD, "value": "Infinity"}, "value"),
        ({**GOOD, "value": 9e9 + 1}, "value"),
        ({**GOOD, "value": "0.0000000001"}, "value"),
        ({**GOOD, "value": True}, "value"),
        ({**GOOD, "value": 1234567890.123456}, "value"),
        ({**GOOD, "value": "1e3"}, "value"),
        ({**GOOD, "time": "2026-11-28T09:30:00"}, "time"),
        ({**GOOD, "time": "1969-11-28T09:30:00Z"}, "time"),
        ({**GOOD, "time": 5}, "time"),
        ({**GOOD, "tags": {"a": 1}}, "tags"),
        ({**GOOD, "tags": {str(n): "" for n in range(17)}}, "tags"),
        ({**GOOD, "tags": {"a": "b" * 513}}, "tags"),
        ({**GOOD, "sucess": True}, "sucess"),
        ({"outcomes": []}, "outcomes"),
        ({"outcomes": [GOOD] * 1001}, "outcomes"),
        ({"outcomes": [GOOD], "name": "n"}, "name"),
        ({"outcomes": [GOOD, {**GOOD, "session_id": "s"}]}, "outcomes[1].session_id"),
        ({"outcomes": [GOOD, {"name": "n", "request_id": "a"}]}, "outcomes[1].success"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    assert (refusal(**fields).param or "").startswith(param)


def test_the_schema_knows_values_as_numbers_and_texts() -> None:
    schema = msgspec.json.schema(OutcomeItem)
    validator = jsonschema_rs.Draft202012Validator(schema)
    for value in (1, -0.5, "12.5", None):
        assert validator.is_valid({**GOOD, "value": value})
    for value in ("many", True, 1e10, [1]):
        assert not validator.is_valid({**GOOD, "value": value})


a_text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
an_item = st.builds(
    OutcomeItem,
    name=a_text,
    success=st.booleans(),
    session_id=a_text,
    value=st.none() | st.integers(-9, 9) | st.decimals(-1000, 1000, places=9).map(str),
    tags=st.none() | st.dictionaries(a_text, a_text, max_size=2),
)


@given(first=an_item, second=an_item)
def test_ids_of_contents(first: OutcomeItem, second: OutcomeItem) -> None:
    """The same contents have one id, others another; tags' order and zeros are no contents."""
    assert id_of_content(first) == id_of_content(msgspec.structs.replace(first))
    is_same = to_outcome(first, "", 0) == to_outcome(second, "", 0)
    assert (id_of_content(first) == id_of_content(second)) == is_same
    turned = dict(reversed(list((first.tags or {}).items())))
    assert id_of_content(msgspec.structs.replace(first, tags=turned)) == id_of_content(first)
