"""A price list of one's own in YAML or JSON, read so that an error names the line.

    currency: USD              # of all prices; default USD
    date: 2026-11-01           # of the list, shown in reports; may be left out
    models:
      our-contract:
        input: 0.25            # per million tokens
        cached_input: 0.025    # per million tokens read from a cache; default: as input
        output: 2.00           # per million tokens
        per_request: 0.0001    # default: nothing
        above:                 # prices of longer requests, for all their tokens
          - tokens: 200000     # more input tokens than this
            input: 0.5
            output: 3.00

Numbers are read as they are written, as decimals: 0.1 is a tenth.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.planning.cost_prices import ListPrice, PriceBand

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from yaml.nodes import Node

MAX_BYTES = 4 * 1024**2
MAX_PRICE = Decimal(10**9)
MAX_DECIMALS = 12
_TOP = {"currency", "date", "models"}
_PRICES = {"input", "cached_input", "output"}
_MODEL = _PRICES | {"per_request", "above"}
_BAND = _PRICES | {"tokens"}


def read_price_file(path: Path) -> dict[str, ListPrice]:
    """The models of a price list, by name.

    Raises:
        ConfigError: it cannot be read, or says something that is no price; with the line.
    """
    import yaml

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the prices in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read the prices in {path}: not UTF-8") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is longer than the {MAX_BYTES} bytes that a price list may have")
    try:
        # Nodes and not values: they have lines, and numbers in them are still text.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
    return _Reader(path).read(node)


class _Reader:
    """Walks a price list's nodes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, node: Node | None) -> dict[str, ListPrice]:
        if node is None:
            raise ConfigError(f"{self._path} is empty: it needs `models:`")
        top = self._mapping(node, "the price list", _TOP)
        if "models" not in top:
            raise self._error(node, "the price list needs `models:`")
        currency = self._text(top["currency"], "currency") if "currency" in top else "USD"
        if not re.fullmatch(r"[A-Z]{3}", currency):
            raise self._error(top["currency"], "currency must be three capital letters: USD")
        date = self._text(top["date"], "date") if "date" in top else ""
        if date and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
            raise self._error(top["date"], "date must be written as 2026-11-01")
        models = self._mapping(top["models"], "models")
        if not models:
            raise self._error(top["models"], "models has no model")
        source = self._path.name + (f" of {date}" if date else "")
        return {name: self._model(name, model, source, currency) for name, model in models.items()}

    def _model(self, name: str, node: Node, source: str, currency: str) -> ListPrice:
        what = f"models.{name}"
        fields = self._mapping(node, what, _MODEL)
        bands = [self._band(node, what, fields, above=0)]
        if "above" in fields:
            for index, item in enumerate(self._sequence(fields["above"], f"{what}.above")):
                where = f"{what}.above[{index}]"
                more = self._mapping(item, where, _BAND)
                if "tokens" not in more:
                    raise self._error(item, f"{where} needs `tokens`")
                above = self._number(more["tokens"], f"{where}.tokens")
                if above != int(above) or above <= bands[-1].above:
                    raise self._error(
                        more["tokens"],
                        f"{where}.tokens must be a whole number above {bands[-1].above}",
                    )
                bands.append(self._band(item, where, more, above=int(above)))
        return ListPrice(
            name=name,
            model=name,
            source=source,
            currency=currency,
            bands=tuple(bands),
            per_request=self._number(fields["per_request"], f"{what}.per_request")
            if "per_request" in fields
            else Decimal(0),
        )

    def _band(self, node: Node, what: str, fields: dict[str, Node], *, above: int) -> PriceBand:
        for name in ("input", "output"):
            if name not in fields:
                raise self._error(node, f"{what} needs `{name}`: a price per million tokens")
        cached = fields.get("cached_input")
        return PriceBand(
            above=above,
            input=self._number(fields["input"], f"{what}.input"),
            cached_input=None if cached is None else self._number(cached, f"{what}.cached_input"),
            output=self._number(fields["output"], f"{what}.output"),
        )

    def _mapping(
        self, node: Node, what: str, known: Collection[str] | None = None
    ) -> dict[str, Node]:
        if node.id != "mapping":
            raise self._error(node, f"{what} must be a mapping, `name: value`")
        fields: dict[str, Node] = {}
        for key, value in node.value:
            name = self._text(key, f"a name in {what}")
            if known is not None and name not in known:
                raise self._error(key, f"{what} knows no `{name}`, only {', '.join(sorted(known))}")
            if name in fields:
                raise self._error(key, f"{what} has `{name}` twice")
            fields[name] = value
        return fields

    def _sequence(self, node: Node, what: str) -> list[Node]:
        if node.id != "sequence":
            raise self._error(node, f"{what} must be a list")
        items: list[Node] = node.value
        return items

    def _text(self, node: Node, what: str) -> str:
        if node.id != "scalar" or not node.value:
            raise self._error(node, f"{what} must be a word")
        text: str = node.value
        return text

    def _number(self, node: Node, what: str) -> Decimal:
        text = self._text(node, what)
        try:
            number = Decimal(text) if re.fullmatch(r"[0-9.eE+-]+", text) else Decimal("NaN")
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            raise self._error(node, f"{what} must be a number, got {text[:50]!r}")
        if not 0 <= number <= MAX_PRICE or int(number.as_tuple().exponent) < -MAX_DECIMALS:
            raise self._error(
                node, f"{what} must be in 0..{MAX_PRICE}, with {MAX_DECIMALS} decimals at most"
            )
        return number

    def _error(self, node: Node, message: str) -> ConfigError:
        mark = node.start_mark
        line = 1 if mark is None else mark.line + 1
        return ConfigError(f"{self._path}:{line}: {message}")
