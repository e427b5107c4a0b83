"""YAML's nodes into typed values, so that every error has its line, column and path. Knows no
section: what the structs' annotations say is all that it checks.

The type says how a scalar is read: `no` is a word where a word is asked for, and a truth where a
truth is. Errors are collected, not raised, so that one reading shows them all.
"""

from __future__ import annotations

import re
import types
import typing
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from octavo.errors import ConfigError
from octavo.gateway.config_values import (
    check_limits,
    did_you_mean,
    is_null,
    read_scalar,
    without_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from yaml.nodes import Node

MAX_DEPTH = 40
MAX_NODES = 50_000
"""Visited, those of an anchor as often as it is used."""

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
        base, limits = without_limits(kind)
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
            try:
                check_limits(value, kind)
            except ValueError as error:
                self.report_at(node, path, str(error))
                return _BAD
        return value

    def _union(self, node: Node, args: tuple[Any, ...], path: str, depth: int) -> Any:
        members = [arg for arg in args if arg is not type(None)]
        if len(members) < len(args) and is_null(node):
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
        pairs = self.pairs(node, path) or {}
        if field not in pairs:
            self.report_at(node, path, f"needs `{field}`: one of {known}")
            return _BAD
        value = pairs[field][1]
        if value.id == "scalar" and value.value in tags:
            return self.read(node, tags[value.value], path, depth)
        hint = did_you_mean(str(value.value), map(str, tags))
        self.report_at(value, _join(path, field), f"must be one of {known}{hint}")
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
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        num_problems = len(self.problems)
        for name, field in fields.items():
            if name not in pairs:
                if field.required:
                    self.report_at(node, path, f"needs `{name}`")
                continue
            value = pairs[name][1]
            if is_null(value) and value.value == "" and not field.required:
                continue  # `name:` with nothing after it: all below is commented out
            where = _join(path, name)
            values[field.name] = self.read(value, _hints(kind)[field.name], where, depth + 1)
        made = _BAD
        if len(self.problems) == num_problems:
            made = self._make(kind, values, fields, path)
        for name in pairs.keys() - fields.keys() - {kind.__struct_config__.tag_field}:
            if path or not name.startswith("x-"):
                hint = did_you_mean(name, fields) or f"; known are {', '.join(fields)}"
                self.report_at(pairs[name][0], _join(path, name), f"there is no such field{hint}")
                made = _BAD
        if made is not _BAD:
            self._values[path] = made
        return made

    def _make(
        self, kind: type[msgspec.Struct], values: dict[str, Any], fields: Iterable[str], path: str
    ) -> Any:
        """A struct of values that are good each by itself."""
        try:
            return kind(**values)
        except (ValueError, ConfigError) as error:
            # What a section says of itself begins with the field that it is about.
            message = str(error)
            word, _, rest = message.partition(" ")
            if re.split(r"[.:\[]", word)[0] in fields:
                path, message = _join(path, word.rstrip(":")), rest
            self.report(path, message)
            return _BAD

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
        try:
            return read_scalar(node, kind)
        except ValueError as error:
            self.report_at(node, path, str(error))
            return _BAD


def is_bad(value: object) -> bool:
    """Whether `Lines.read` made nothing of a node."""
    return value is _BAD


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_struct(kind: Any) -> bool:
    base = without_limits(kind)[0]
    return isinstance(base, type) and issubclass(base, msgspec.Struct)


def _shape(kind: Any) -> str:
    origin = typing.get_origin(without_limits(kind)[0])
    if origin is dict:
        return "mapping"
    return "sequence" if origin in (tuple, list, frozenset, set) else "scalar"


@cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
