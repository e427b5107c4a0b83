"""What every field of every request does, as tables; `test_nothing_ignored.py` checks them.

A new route brings a module here with a `TABLE`; a new field brings a line in its table. Nothing
else is needed, and the test fails until they are there.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.server.conftest import RunningServer


@dataclass(frozen=True)
class Probe:
    """Shows what a field does: a request with it is held against one without it.

    Attributes:
        asks: fields of the body that use the field.
        without: those of the request that it is compared with, where it is not the table's body.
        gives: `change`: another answer, or the engine or the template is asked for something else;
            `refusal`: an error that names the field; `nothing`: the very same, and `why` says so.
        why: the reason why a field may do nothing.
        name: of the field in the error, where it is not the field's path.
        status: of the refusal.
        neutral: values of the field that are the same as leaving it out.
        serves: what the server is started with, over the table's.
    """

    asks: dict[str, Any]
    without: dict[str, Any] = field(default_factory=dict)
    gives: Literal["change", "refusal", "nothing"] = "change"
    why: str = ""
    name: str = ""
    status: int = 400
    neutral: tuple[dict[str, Any], ...] = ()
    serves: dict[str, Any] = field(default_factory=dict)


def changes(asks: dict[str, Any], without: dict[str, Any] | None = None, **rest: Any) -> Probe:
    """The field has an effect."""
    return Probe(asks, without or {}, **rest)


def refused(asks: dict[str, Any], without: dict[str, Any] | None = None, **rest: Any) -> Probe:
    """The field gives an error that names it."""
    return Probe(asks, without or {}, "refusal", **rest)


def harmless(asks: dict[str, Any], why: str, without: dict[str, Any] | None = None) -> Probe:
    """The field cannot change an answer."""
    return Probe(asks, without or {}, "nothing", why)


@dataclass(frozen=True)
class Table:
    """One route's fields.

    Attributes:
        path: of the route.
        body: a good request.
        probes: by the field's path, as `fields_of` spells it.
        elsewhere: paths of fields whose inner fields another test shows, and which test.
        serves: what the server is started with (`conftest.serve`).
        prepare: called with the started server, such as for the fake engine's answer.
    """

    path: str
    body: dict[str, Any]
    probes: dict[str, Probe]
    elsewhere: dict[str, str] = field(default_factory=dict)
    serves: Callable[[], dict[str, Any]] = dict
    prepare: Callable[[RunningServer], None] = lambda _: None


def tables() -> dict[str, Table]:
    """Every table in this package, by its route's path."""
    found: dict[str, Table] = {}
    for module in pkgutil.iter_modules(__path__):
        table = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TABLE", ())
        for one in table if isinstance(table, tuple) else (table,):
            assert one.path not in found, f"two tables for {one.path}"
            found[one.path] = one
    return found


def fields_of(kind: Any) -> Iterator[str]:
    """Paths of all fields of a struct, with those of the structs in it.

    `a.b` is field b of a's value, `a[].b` of an item of a's, `a[tag].b` of a value or an item of a
    tagged type. A struct within itself is walked once.
    """
    yield from _fields(inspect.type_info(kind), "", ())


def _fields(kind: inspect.Type, path: str, above: tuple[type, ...]) -> Iterator[str]:
    if isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _fields(member, path, above)
    elif isinstance(kind, inspect.ListType):
        yield from _fields(kind.item_type, f"{path}[]", above)
    elif isinstance(kind, inspect.DictType):
        yield from _fields(kind.value_type, f"{path}{{}}", above)
    elif isinstance(kind, inspect.StructType) and kind.cls not in above:
        if kind.tag is not None:
            path = f"{path.removesuffix('[]')}[{kind.tag}]"
        for one in kind.fields:
            below = f"{path}.{one.encode_name}".removeprefix(".")
            yield below
            yield from _fields(one.type, below, (*above, kind.cls))
