from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.planning.cost_query import (
    CostQuery,
    describe,
    from_ns,
    parse_by,
    parse_filters,
    parse_time,
    split_filters,
    to_ns,
)

NOW = datetime(2026, 11, 28, 20, 44, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90m", "2026-11-28T19:14:00"),
        ("24h", "2026-11-27T20:00:00"),
        ("7d", "2026-11-21T00:00:00"),
        ("2w", "2026-11-14T00:00:00"),
        ("2026-11-01", "2026-11-01T00:00:00"),
        ("2026-11-01T09:30", "2026-11-01T09:30:00"),
        ("2026-11-01T09:30+02:00", "2026-11-01T07:30:00"),
        ("2026-11-01T09:30Z", "2026-11-01T09:30:00"),
        ("all", "1970-01-01T00:00:00"),
    ],
)
def test_times(text: str, time: str) -> None:
    assert from_ns(parse_time(text, NOW)) == datetime.fromisoformat(f"{time}+00:00")


@pytest.mark.parametrize("text", ["", "7", "7y", "yesterday", "2026-13-01", "-7d", "999999w"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_time(text, NOW)


@given(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)))
def test_times_come_back(moment: datetime) -> None:
    assert from_ns(to_ns(moment)) == moment


def test_by() -> None:
    assert parse_by("feature, day,tag:team") == ("feature", "day", "tag:team")
    assert parse_by("") == ()
    for text, words in (
        ("fature", "use feature, tenant"),
        ("feature,feature", "twice"),
        ("day,hour", "one of hour, day, month"),
        ("tag:", "tag:NAME"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_by(text)


def test_filters() -> None:
    assert parse_filters(["feature=a=b", "tag:x=", "feature=c", "feature=c"]) == (
        ("feature", ("a=b", "c")),
        ("tag:x", ("",)),
    )
    for text in ("feature", "day=2026-11-01", "size=3"):
        with pytest.raises(ConfigError):
            parse_filters([text])


def test_filters_of_any_name() -> None:
    assert split_filters(["rule=a=b", " tier =x", "rule=c", "rule=c"]) == {
        "rule": ("a=b", "c"),
        "tier": ("x",),
    }
    assert split_filters([]) == {}
    with pytest.raises(ConfigError, match="--filter 'rule' has no value"):
        split_filters(["rule"])


def test_in_words() -> None:
    query = CostQuery(since_ns=to_ns(NOW), until_ns=to_ns(NOW), filters=(("feature", ("a", "b")),))
    assert describe(query) == (
        "requests that ended from 2026-11-28T20:44 to 2026-11-28T20:44 UTC, feature 'a' or 'b'"
    )
    assert describe(CostQuery(since_ns=0)) == "requests that ended from ever to now"
