"""Whether a call is what a rule is for: `When` made ready, to be asked for each request. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway.patterns import is_literal, matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from octavo.gateway.config_routes import When
    from octavo.gateway.model import Call, KeyInfo

    Test = Callable[[Call], bool]


class Condition:
    """What a request must be like.

    Args:
        when: as the configuration has it.
        known: models' names that are served without a rule.
    """

    def __init__(self, when: When, known: Collection[str]) -> None:
        # In order of cost; those that are not given cost nothing.
        tests: list[Test | None] = [
            _flag("stream", when.stream),
            _flag("has_tools", when.has_tools),
            _flag("has_schema", when.has_schema),
            _flag("has_images", when.has_images),
            _one_of("route", when.routes),
            _one_of("language", when.languages),
            _range("num_prompt_chars", when.min_prompt_chars, when.max_prompt_chars),
            _range("num_prompt_tokens", when.min_prompt_tokens, when.max_prompt_tokens),
            _one_of("model", when.models) or (lambda call: call.model in known),
            _one_of("feature", when.features),
            _one_of("tenant", when.tenants),
            _of_key("team", when.teams),
            _of_key("key_id", when.keys),
            *(_header(name.lower(), pattern) for name, pattern in when.headers.items()),
            *(_tag(name, pattern) for name, pattern in when.tags.items()),
        ]
        self._tests = tuple(test for test in tests if test is not None)

    def holds(self, call: Call) -> bool:
        """Whether a call meets all of it."""
        return all(test(call) for test in self._tests)


def may_ask(key: KeyInfo, when: When, *, trust_tenant: bool) -> bool:
    """Whether a request with this key can meet a condition at all, as far as that rests on the key.

    Args:
        key: of the caller.
        when: the condition.
        trust_tenant: callers whose key has no tenant may name one.
    """
    features = key.features if all(map(is_literal, key.features)) else ()
    by_key: list[tuple[Collection[str] | None, Collection[str]]] = [
        (when.keys, (key.key_id,)),
        (when.teams, (key.team,)),
        (when.tenants, () if trust_tenant and not key.tenant else (key.tenant,)),
        (when.features, features),
        (when.routes, key.routes),
    ]
    return all(
        patterns is None or not values or any(map(_is_one_of(patterns), values))
        for patterns, values in by_key
    )


def _flag(field: str, wanted: bool | None) -> Test | None:
    return None if wanted is None else lambda call: getattr(call, field) is wanted


def _range(field: str, least: int | None, most: int | None) -> Test | None:
    if least is None and most is None:
        return None
    low, high = least or 0, float("inf") if most is None else most
    return lambda call: low <= getattr(call, field) <= high


def _is_one_of(patterns: Collection[str]) -> Callable[[str], bool]:
    """Whether a name is one of some, or is matched by one of some patterns."""
    names = frozenset(patterns)
    if all(map(is_literal, patterns)):
        return names.__contains__
    match = matcher(patterns).match
    return lambda name: name in names or match(name) is not None


def _one_of(field: str, patterns: Collection[str] | None) -> Test | None:
    if patterns is None:
        return None
    fits = _is_one_of(patterns)
    return lambda call: fits(getattr(call, field))


def _of_key(field: str, patterns: Collection[str] | None) -> Test | None:
    if patterns is None:
        return None
    fits = _is_one_of(patterns)
    return lambda call: fits(getattr(call.key, field))


def _header(name: str, pattern: str) -> Test:
    fits = _is_one_of([pattern])
    return lambda call: fits(call.headers.get(name, ""))


def _tag(name: str, pattern: str) -> Test:
    fits = _is_one_of([pattern])
    return lambda call: fits(call.tags.get(name, ""))
