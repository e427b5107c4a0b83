"""YAML's nodes into typed values, so that every error has its line, column and path. Knows no
section: what the structs' annotations say is all that it checks.

The type says how a scalar is read: `no` is a word where a word is asked for, and a truth where a
truth is. Errors are collected, not raised, so that one reading shows them all.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec

from octavo.errors import ConfigError
from octavo.gateway.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from yaml.nodes import Node

MAX_DEPTH = 40
MAX_NODES = 500_000
"""Visited, those of an anchor as often as it is used."""

_TRUTHS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?|[-+]?\.[0-9]+")
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_REASONS = (
    (r"^Expected `datetime` with a timezone.*", "must have a zone, as 2027-01-31T00:00:00Z has"),
    (r"^Expected `\w+` matching regex", "must match"),
    (r"^Expected `array` of length >= (\d+)", r"must have \1 or more"),
    (r"^Expected `array` of length <= (\d+)", r"must have at most \1"),
    (r"^Expected `str` of length >= (\d+)", r"must have \1 or more characters"),
    (r"^Expected `str` of length <= (\d+)", r"must have at most \1 characters"),
    (r"^Expected `\w+` >= (\S+)", r"must be at least \1"),
    (r"^Expected `\w+` <= (\S+)", r"must be at most \1"),
    (r"^Expected `\w+` > (\S+)", r"must be above \1"),
    (r"^Expected `\w+` < (\S+)", r"must be below \1"),
)
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_BAD = object()
_T = TypeVar("_T")


class Problem(NamedTuple):
    """What is wrong, and where.

    Attributes:
        line, column: from 1.
        path: of the field: `tiers.small.targets[0]`; empty: the whole file.
        message: what to do; one line.
    """

    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: "
        return where + (f"{self.path}: {self.message}" if self.path else self.message)


class Lines:
    """Where the fields of a file stand, and what is wrong with them.

    Attributes:
        problems: so far; `sorted` gives them by line.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._marks: dict[str, tuple[int, int]] = {"": (1, 1)}
        self._names: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {}
        self._num_nodes = 0

    def names(self, path: str) -> list[str]:
        """The names in a mapping, of values that are wrong too."""
        return self._names.get(path, [])

    def found(self, kind: type[_T]) -> Iterator[tuple[str, _T]]:
        """All structs of a kind that could be read, with their paths, wherever they stand."""
        return ((path, value) for path, value in self._values.items() if isinstance(value, kind))

    def get(self, path: str) -> Any:
        """The struct at a path; None: there is none, or it is wrong."""
        return self._values.get(path)

    def at(self, path: str) -> tuple[int, int]:
        """Line and column of a field, or of the nearest one around it."""
        while path not in self._marks:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._marks[path]

    def report(self, path: str, message: str) -> None:
        """Something is wrong with a field."""
        self.problems.append(Problem(*self.at(path), path, message))

    def report_at(self, node: Node, path: str, message: str) -> None:
        """Something is wrong at a node."""
        self.problems.append(Problem(*_mark(node), path, message))

    def read(self, node: Node, kind: Any, path: str = "", depth: int = 0) -> Any:
        """A node as a value of a type; `_BAD` where it is none, and then a problem is reported.

        Args:
            node: of YAML.
            kind: an annotation, as `msgspec.convert` takes it.
            path: of the node.
            depth: below the file's root.
        """
        self._marks.setdefault(path, _mark(node))
        self._num_nodes += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path[:100]}: nested more than {MAX_DEPTH} deep")
        if self._num_nodes > MAX_NODES:
            raise ConfigError(f"more than {MAX_NODES} values, with anchors written out")
        base, limits = _bare(kind)
        args = typing.get_args(base)
        origin = typing.get_origin(base)
        if origin in (typing.Union, types.UnionType):
            value = self._union(node, args, path, depth)
        elif base is Any:
            value = self._plain(node, path, depth)
        elif isinstance(base, type) and issubclass(base, msgspec.Struct):
            value = self._struct(node, base, path, depth)
        elif origin is dict:
            value = self._dict(node, args, path, depth)
        elif origin in (tuple, list, frozenset, set):
            value = self._items(node, args[0], origin, path, depth)
        else:
            value = self._scalar(node, base, path)
        if value is not _BAD and limits:
            value = self._check(node, value, kind, path)
        return value

    def _check(self, node: Node, value: Any, kind: Any, path: str) -> Any:
        """A value within its annotation's bounds, as msgspec has them."""
        try:
            if isinstance(value, int | float) and not isinstance(value, bool):
                msgspec.convert(value, kind)
            elif isinstance(value, Decimal):
                self._check_decimal(value, kind)
            elif isinstance(value, datetime):
                msgspec.convert(value, kind)
            else:
                plain = None if isinstance(value, str) else (None,) * len(value)
                bare = kind if plain is None else typing.Annotated[list[Any], *_bare(kind)[1]]
                msgspec.convert(value if plain is None else plain, bare)
        except (msgspec.ValidationError, ValueError) as error:
            self.report_at(node, path, _reason(str(error)))
            return _BAD
        return value

    def _check_decimal(self, value: Decimal, kind: Any) -> None:
        """A decimal within its bounds, which msgspec does not look at."""
        for meta in _bare(kind)[1]:
            if meta.ge is not None and value < meta.ge:
                raise ValueError(f"must be at least {meta.ge}")
            if meta.le is not None and value > meta.le:
                raise ValueError(f"must be at most {meta.le}")
            if meta.gt is not None and value <= meta.gt:
                raise ValueError(f"must be above {meta.gt}")

    def _union(self, node: Node, args: tuple[Any, ...], path: str, depth: int) -> Any:
        members = [arg for arg in args if arg is not type(None)]
        if len(members) < len(args) and _is_null(node):
            return None
        structs = [arg for arg in members if _is_struct(arg)]
        if node.id == "mapping" and structs:
            if len(structs) == 1:
                return self.read(node, structs[0], path, depth)
            return self._tagged(node, structs, path, depth)
        rest = [arg for arg in members if arg not in structs]
        shaped = [arg for arg in rest if _shape(arg) == node.id] or rest or structs
        if len(structs) > 1 and not rest:
            return self._tagged(node, structs, path, depth)
        for arg in shaped[:-1]:
            trial = Lines()
            value = trial.read(node, arg, path, depth)
            if not trial.problems:
                return value
        return self.read(node, shaped[-1], path, depth)

    def _tagged(self, node: Node, structs: list[Any], path: str, depth: int) -> Any:
        """One of several structs, by the field that tells them apart."""
        tags = {info.tag: struct for struct in structs for info in [struct.__struct_config__]}
        field = structs[0].__struct_config__.tag_field
        known = ", ".join(sorted(map(str, tags)))
        if node.id != "mapping":
            self.report_at(node, path, "must be a mapping, `name: value`")
            return _BAD
        for key, value in node.value:
            if key.value == field:
                if value.id == "scalar" and value.value in tags:
                    return self.read(node, tags[value.value], path, depth)
                hint = _did_you_mean(str(value.value), map(str, tags))
                where = f"{path}.{field}" if path else field
                self.report_at(value, where, f"must be one of {known}{hint}")
                return _BAD
        self.report_at(node, path, f"needs `{field}`: one of {known}")
        return _BAD

    def pairs(self, node: Node, path: str) -> dict[str, tuple[Node, Node]] | None:
        """A mapping's keys and values by name, with `<<` written out; None: it is none."""
        if node.id != "mapping":
            self.report_at(node, path, "must be a mapping, `name: value`")
            return None
        found: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.id != "scalar":
                self.report_at(key, path, "names must be words, not lists or mappings")
            elif key.tag == "tag:yaml.org,2002:merge":
                for source in [value] if value.id == "mapping" else value.value:
                    if getattr(source, "id", "") != "mapping" or source is node:
                        self.report_at(value, path, "`<<` takes a mapping, or a list of them")
                        break
                    for name, pair in (self.pairs(source, path) or {}).items():
                        merged.setdefault(name, pair)
            elif key.value in found:
                line = found[key.value][0].start_mark.line + 1
                self.report_at(key, _join(path, key.value), f"is there twice, first in line {line}")
            else:
                found[key.value] = key, value
        found = {**merged, **found}
        self._names[path] = list(found)
        return found

    def _struct(self, node: Node, kind: type[msgspec.Struct], path: str, depth: int) -> Any:
        pairs = self.pairs(node, path)
        if pairs is None:
            return _BAD
        hints = _hints(kind)
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        config = kind.__struct_config__
        values: dict[str, Any] = {}
        is_bad = False
        for name, (key, value) in pairs.items():
            where = _join(path, name)
            if name == config.tag_field or (not path and name.startswith("x-")):
                continue
            if name not in fields:
                hint = _did_you_mean(name, fields)
                known = hint or f"; known are {', '.join(fields)}"
                self.report_at(key, where, f"there is no such field{known}")
                is_bad = True
                continue
            field = fields[name]
            if _is_null(value) and value.value == "" and not field.required:
                continue  # `name:` with nothing after it, all below commented out
            read = self.read(value, hints[field.name], where, depth + 1)
            if read is _BAD:
                is_bad = True
            else:
                values[field.name] = read
        for name, field in fields.items():
            if field.required and name not in pairs:
                self.report_at(node, path, f"needs `{name}`")
                is_bad = True
        if is_bad:
            return _BAD
        try:
            made = kind(**values)
        except (ValueError, ConfigError) as error:
            # What a section says of itself begins with the field that it is about.
            message = str(error)
            name, _, rest = message.partition(" ")
            if name.rstrip(":") in fields:
                path, message = _join(path, name.rstrip(":")), rest
            self.report(path, message)
            return _BAD
        self._values[path] = made
        return made

    def _dict(self, node: Node, args: tuple[Any, ...], path: str, depth: int) -> Any:
        pairs = self.pairs(node, path)
        if pairs is None:
            return _BAD
        result: dict[Any, Any] = {}
        is_bad = False
        for name, (key, value) in pairs.items():
            where = _join(path, name)
            read_name = self.read(key, args[0], where, depth + 1)
            read = self.read(value, args[1], where, depth + 1)
            if read_name is _BAD or read is _BAD:
                is_bad = True
            else:
                result[read_name] = read
        return _BAD if is_bad else result

    def _items(
        self, node: Node, kind: Any, make: Callable[[Any], Any], path: str, depth: int
    ) -> Any:
        if node.id != "sequence":
            self.report_at(node, path, "must be a list: `[a, b]`, or a line `- a` for each")
            return _BAD
        items = [
            self.read(item, kind, f"{path}[{index}]", depth + 1)
            for index, item in enumerate(node.value)
        ]
        return _BAD if any(item is _BAD for item in items) else make(items)

    def _plain(self, node: Node, path: str, depth: int) -> Any:
        """A value of any kind, as JSON would have it."""
        if node.id == "mapping":
            return self._dict(node, (str, Any), path, depth)
        if node.id == "sequence":
            return self._items(node, Any, list, path, depth)
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            return None
        typed = {"bool": bool, "int": int, "float": float}.get(kind, str)
        return self._scalar(node, typed, path)

    def _scalar(self, node: Node, kind: Any, path: str) -> Any:
        if node.id != "scalar":
            what = "a word" if kind in (str, Secret) or _is_literal(kind) else _name(kind)
            self.report_at(node, path, f"must be {what}, not a {_shape_name(node)}")
            return _BAD
        text: str = node.value
        if kind is Secret:
            try:
                return Secret.read(text)
            except ValueError as error:
                self.report_at(node, path, str(error))
                return _BAD
        if _VARIABLE.fullmatch(text.strip()):
            self.report_at(node, path, "takes no variable of the environment: only secrets do")
            return _BAD
        if _is_literal(kind):
            allowed = typing.get_args(kind)
            if text in allowed:
                return text
            hint = _did_you_mean(text, allowed)
            self.report_at(node, path, f"must be one of {', '.join(allowed)}{hint}")
            return _BAD
        try:
            return _parse(node, text, kind)
        except (ValueError, InvalidOperation):
            self.report_at(node, path, f"must be {_name(kind)}, got {text[:50]!r}")
            return _BAD


def is_bad(value: object) -> bool:
    """Whether `Lines.read` made nothing of a node."""
    return value is _BAD


def _parse(node: Node, text: str, kind: Any) -> Any:
    """A scalar's text as a `kind`.

    Raises:
        ValueError, InvalidOperation: it is none.
    """
    if kind is str:
        if _is_null(node):
            raise ValueError("nothing")
        return text
    is_plain = node.style is None
    if kind is bool and is_plain and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if kind is int and is_plain and re.fullmatch(r"[-+]?[0-9](_?[0-9])*", text) and len(text) < 20:
        return int(text)
    if kind in (float, Decimal) and is_plain and _NUMBER.fullmatch(text):
        value = kind(text)
        if len(text) < 50 and abs(value) < 1e300:
            return value
    if kind is datetime:
        return msgspec.convert(text, datetime)
    raise ValueError(text)


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_null(node: Node) -> bool:
    return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null")


def _is_struct(kind: Any) -> bool:
    base = _bare(kind)[0]
    return isinstance(base, type) and issubclass(base, msgspec.Struct)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _shape(kind: Any) -> str:
    origin = typing.get_origin(_bare(kind)[0])
    if origin is dict:
        return "mapping"
    return "sequence" if origin in (tuple, list, frozenset, set) else "scalar"


def _shape_name(node: Node) -> str:
    return {"sequence": "list", "mapping": "mapping"}.get(node.id, "scalar")


def _name(kind: Any) -> str:
    if kind is Decimal:
        return "a number"
    if kind is datetime:
        return "a time with its zone, as 2027-01-31T00:00:00Z"
    return _WORDS.get(getattr(kind, "__name__", ""), str(kind))


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _reason(message: str) -> str:
    """What msgspec says of a value out of bounds, in our words."""
    for pattern, ours in _REASONS:
        message = re.sub(pattern, ours, message)
    return message.replace("`", "")


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without `Annotated`, and what that says."""
    limits: tuple[Any, ...] = ()
    while typing.get_origin(kind) is typing.Annotated:
        limits += tuple(m for m in kind.__metadata__ if isinstance(m, msgspec.Meta))
        kind = kind.__origin__
    return kind, limits


@cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
