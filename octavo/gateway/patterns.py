"""Shell patterns over names, many as one regular expression; and which conditions take all that
others take. Pure.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from octavo.gateway.config_routes import When

_SPECIAL = frozenset("*?[")


def matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    """What matches the names that one of some shell patterns does; capitals count."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))


def matches_any(value: str, patterns: Sequence[str]) -> bool:
    """Whether one of some shell patterns matches a value, capitals told apart; none restrict it."""
    return not patterns or any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


def is_literal(pattern: str) -> bool:
    """Whether a pattern is one name."""
    return _SPECIAL.isdisjoint(pattern)


def takes(wide: Collection[str], narrow: Iterable[str]) -> bool:
    """Whether patterns take all that others do, as far as that is plain: the same, one name that a
    pattern has, or `*`.
    """
    if "*" in wide:
        return True
    rule = matcher(wide)
    return all(
        pattern in wide or (is_literal(pattern) and rule.match(pattern) is not None)
        for pattern in narrow
    )


def covers(wide: When, narrow: When, known: Collection[str]) -> bool:
    """Whether every request that meets `narrow` meets `wide` too; False also where that is not
    plain.

    Args:
        wide: conditions that are looked at first.
        narrow: conditions after them.
        known: the models' names that are served without a rule.
    """
    if wide.models is None:
        names = narrow.models
        if names is not None and not all(is_literal(n) and n in known for n in names):
            return False
    elif narrow.models is None:
        if not takes(wide.models, known):
            return False
    elif not takes(wide.models, narrow.models):
        return False
    return (
        all(
            _list_covers(getattr(wide, name), getattr(narrow, name))
            for name in ("routes", "features", "tenants", "teams", "keys", "languages")
        )
        and all(
            getattr(wide, name) in (None, getattr(narrow, name))
            for name in ("has_tools", "has_schema", "has_images", "stream")
        )
        and all(_range_covers(wide, narrow, unit) for unit in ("chars", "tokens"))
        and _mapping_covers(_lower(wide.headers), _lower(narrow.headers))
        and _mapping_covers(wide.tags, narrow.tags)
    )


def _list_covers(wide: Collection[str] | None, narrow: Iterable[str] | None) -> bool:
    return wide is None or (narrow is not None and takes(wide, narrow))


def _range_covers(wide: When, narrow: When, unit: str) -> bool:
    least, least_narrow = (getattr(when, f"min_prompt_{unit}") or 0 for when in (wide, narrow))
    most, most_narrow = (getattr(when, f"max_prompt_{unit}") for when in (wide, narrow))
    is_within = most is None or (most_narrow is not None and most_narrow <= most)
    return bool(least <= least_narrow and is_within)


def _mapping_covers(wide: Mapping[str, str], narrow: Mapping[str, str]) -> bool:
    return all(name in narrow and takes([wide[name]], [narrow[name]]) for name in wide)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
