"""A Jinja environment for chat templates, which come from strangers: sandboxed, and bounded.

Dialect: what `transformers` gives its templates (trimmed blocks, loop controls, `tojson` without
HTML escapes, `raise_exception`, `strftime_now`, `generation` blocks).

Bounds: every turn of a loop and every call of a macro counts, every operation that can make a
long string is checked before it runs, and a clock is read in between. So a template that loops,
recurses or doubles strings ends with an error within seconds and a bounded memory.

Knows nothing of messages.
"""

from __future__ import annotations

import json
import re
import string
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jinja2.parser import Parser
    from jinja2.runtime import Context, Macro

MAX_CHARS = 2**24
"""Longest string, longest list and longest output, in characters or entries."""
MAX_TOTAL_CHARS = 2**28
"""All strings together that one rendering may build."""
MAX_TURNS = 2_000_000
"""Turns of loops and calls of macros in one rendering."""
MAX_SECONDS = 5.0
MAX_WIDTH = 10_000
"""Largest width, indent or count that a string operation may be given."""
_MAX_INT_BITS = 4096

_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{5,})")
_WIDE_BRACES = re.compile(r"\{|\d{5,}")
_PADDING_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})


class RefusedByTemplateError(TemplateError):
    """The template called `raise_exception`; the message is the template's own."""


class BoundExceededError(TemplateRuntimeError):
    """A rendering went on too long or grew too large."""


class _Budget:
    """What one rendering has left."""

    def __init__(self, max_seconds: float) -> None:
        self.num_turns = MAX_TURNS
        self.num_chars = MAX_TOTAL_CHARS
        self.max_seconds = max_seconds
        self.deadline = time.monotonic() + max_seconds

    def check_clock(self) -> None:
        if time.monotonic() > self.deadline:
            raise BoundExceededError(
                f"rendering the chat took more than {self.max_seconds:g} seconds"
            )


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment; one may serve many threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        self._local = threading.local()
        self.filters = {name: self._bounded(name, f) for name, f in self.filters.items()}
        self.filters["tojson"] = self._bounded("tojson", _tojson)
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _DictMaker(),
            "namespace": _SafeNamespace,
        }
        del self.globals["lipsum"]  # makes text without turns of a loop

    def compile_template(self, source: str) -> Template:
        """A template whose loops and macros count their turns.

        Raises:
            TemplateSyntaxError: the source is not a template.
        """
        tree = self.parse(source)
        return self.from_string(_Counting(self).visit(tree))

    def render(
        self, template: Template, variables: Mapping[str, Any], max_seconds: float | None = None
    ) -> str:
        """The template's output.

        Raises:
            RefusedByTemplateError: in the template's words.
            BoundExceededError: too long or too large.
            Exception: whatever else a template or an operation in it raises.
        """
        with self._budget(MAX_SECONDS if max_seconds is None else max_seconds) as budget:
            pieces = []
            num_chars = 0
            for piece in template.generate(variables):
                num_chars += len(piece)
                if num_chars > MAX_CHARS:
                    raise BoundExceededError(f"the rendered chat exceeds {MAX_CHARS} characters")
                budget.check_clock()
                pieces.append(piece)
            return "".join(pieces)

    @contextmanager
    def _budget(self, max_seconds: float) -> Iterator[_Budget]:
        budget = self._local.budget = _Budget(max_seconds)
        try:
            yield budget
        finally:
            del self._local.budget

    @property
    def next_turn(self) -> None:
        """Read by every turn of a loop and every call of a macro, and counts them.

        A property, for templates call functions through the sandbox, which costs ten times more.
        """
        budget: _Budget = self._local.budget
        budget.num_turns -= 1
        if budget.num_turns < 0:
            raise BoundExceededError(f"the chat template takes more than {MAX_TURNS} turns")
        if budget.num_turns % 256 == 0:
            budget.check_clock()

    def concat_bounded(self, *values: object) -> str:
        """The operator `~`."""
        texts = [str(value) for value in values]
        self._spend(sum(map(len, texts)))
        return "".join(texts)

    def _spend(self, num_chars: int) -> None:
        if num_chars > MAX_CHARS:
            raise BoundExceededError(f"a string in the chat exceeds {MAX_CHARS} characters")
        budget: _Budget | None = getattr(self._local, "budget", None)
        if budget is None:  # constants are folded when a template is compiled
            return
        budget.num_chars -= num_chars
        if budget.num_chars < 0:
            raise BoundExceededError(f"the chat builds more than {MAX_TOTAL_CHARS} characters")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, when the result is known to be small enough."""
        if isinstance(left, int) and isinstance(right, int):
            bits = max(left.bit_length(), right.bit_length())
            if operator == "**":
                bits = left.bit_length() * max(right, 1)
            elif operator == "*":
                bits = left.bit_length() + right.bit_length()
            if bits > _MAX_INT_BITS:
                raise BoundExceededError("a number in the chat template is too large")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._spend(len(left) + len(right))
        elif operator == "*":
            for sized, count in ((left, right), (right, left)):
                if hasattr(sized, "__len__") and isinstance(count, int):
                    self._spend(len(sized) * max(count, 0))
        elif operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise BoundExceededError("a format in the chat template is too wide")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls from a template; those of strings' methods are checked for the length they make."""
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            self._check_string_call(getattr(method, "__name__", ""), owner, args)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str | list):
            self._spend(len(result))
        return result

    def _check_string_call(self, name: str, text: str, args: tuple[Any, ...]) -> None:
        if name in _PADDING_METHODS:
            _check_widths(args)
        elif name == "translate":
            raise SecurityError("chat templates may not use str.translate")
        elif name in {"format", "format_map"}:
            fields = string.Formatter().parse(text)
            if any(_WIDE_BRACES.search(spec or "") for _, _, spec, _ in fields):
                raise BoundExceededError("a format in the chat template is too wide")
        elif name == "replace" and len(args) > 1:
            self._spend_replace(text, args[0], args[1])
        elif name == "join" and args:
            self._spend_join(text, args[0])

    def _spend_replace(self, text: str, old: object, new: object) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self._spend(len(text) + text.count(old) * max(len(new) - len(old), 0))

    def _spend_join(self, separator: object, values: object) -> None:
        if isinstance(values, list | tuple):
            width = len(separator) if isinstance(separator, str) else 0
            self._spend(sum(len(v) + width for v in values if isinstance(v, str)))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter with bounded arguments and a bounded result."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, *rest = args[first:] or (None,)
            _check_widths((*rest, *kwargs.values()))
            if name == "replace" and len(rest) > 1:
                self._spend_replace(str(value), rest[0], rest[1])
            elif name == "join":
                self._spend_join(rest[0] if rest else kwargs.get("d"), value)
            elif name == "format" and isinstance(value, str) and _WIDE_PERCENT.search(value):
                raise BoundExceededError("a format in the chat template is too wide")
            result = function(*args, **kwargs)
            if isinstance(result, str | list):
                self._spend(len(result))
            return result

        return bounded


class _GenerationBlock(Extension):
    """`{% generation %}`: marks what the assistant said, for training; here only its body counts.

    A call block, as in transformers, so that assignments in it stay in it.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(lineno)

    def _render_body(self, caller: Macro) -> str:
        return caller()


class _Counting(NodeTransformer):
    """Puts `next_turn` into every loop and macro, and `concat_bounded` in place of `~`."""

    def __init__(self, environment: ChatEnvironment) -> None:
        self._environment = environment

    def _count(self, node: Any, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        turn = nodes.ExprStmt(nodes.EnvironmentAttribute("next_turn"))
        node.body.insert(0, turn.set_lineno(node.lineno).set_environment(self._environment))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = _count  # noqa: N815

    def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        target = nodes.EnvironmentAttribute("concat_bounded")
        call = nodes.Call(target, node.nodes, [], None, None)
        return call.set_lineno(node.lineno).set_environment(self._environment)


class _DictMaker:
    """`dict(...)` without the class `dict`, whose attributes would lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """`namespace(...)` that takes no names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace in a chat template may not hold {name!r}")


def _check_widths(values: tuple[Any, ...]) -> None:
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise BoundExceededError(f"a width in the chat template exceeds {MAX_WIDTH}")


def _raise_exception(message: object) -> NoReturn:
    raise RefusedByTemplateError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002  templates may name it
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
