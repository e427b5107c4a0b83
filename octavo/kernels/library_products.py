"""Which algorithm of cuBLASLt computes which product: what was measured, not what is guessed.

A table (`product_tables/*.json`, written by `benchmarks/gpu/products.py`) belongs to one kind of
card and one version of the library, and has for each weight [n, k] the numbers of rows that were
measured, with the algorithm that won there, or none where torch's product was as good. More rows
than one measured number, up to the next, take what the next one took. Where no table fits, torch's
product stays, and the log says so.
"""

from __future__ import annotations

import bisect
import functools
import json
import logging
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch

from octavo.kernels.cublaslt import ALGORITHM_BYTES, ALIGNMENT, Library, LibraryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.resources.abc import Traversable

logger = logging.getLogger("octavo")

_FOLDER = "product_tables"
_MOST_CHOSEN = 4096


@dataclass(frozen=True, slots=True)
class Card:
    """What a table belongs to.

    Attributes:
        capability: of compute, (9, 0) for Hopper.
        num_sms: multiprocessors: how many tiles are computed at once.
        version: of cuBLASLt.
    """

    capability: tuple[int, int]
    num_sms: int
    version: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one weight: numbers of rows, ascending, and the algorithm for each (None: torch's)."""

    rows: tuple[int, ...]
    algorithms: tuple[bytes | None, ...]

    def choose(self, m: int) -> bytes | None:
        """For m rows; None: torch's product. More than were measured take the last."""
        at = bisect.bisect_left(self.rows, m)
        return self.algorithms[min(at, len(self.rows) - 1)]


Table = dict[tuple[torch.dtype, int, int], Measured]
"""By type of numbers, n and k."""


def read_table(text: str) -> tuple[Card, Table]:
    """A table's file.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = json.loads(text)
        card = Card(tuple(content["capability"]), content["num_sms"], content["cublaslt"])
        algorithms = [bytes.fromhex(each) for each in content["algorithms"]]
        table = {
            (getattr(torch, entry["dtype"]), entry["n"], entry["k"]): _measured(entry, algorithms)
            for entry in content["products"]
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not a table of products: {error!r}") from error
    if any(len(each) != ALGORITHM_BYTES for each in algorithms):
        raise ValueError(f"an algorithm has {ALGORITHM_BYTES} bytes")
    return card, table


def _measured(entry: Mapping[str, Any], algorithms: list[bytes]) -> Measured:
    pairs = [(int(m), None if at is None else algorithms[at]) for m, at in entry["rows"]]
    rows = tuple(m for m, _ in pairs)
    if not rows or list(rows) != sorted(set(rows)) or rows[0] < 1:
        raise ValueError("rows are not ascending")
    return Measured(rows, tuple(algorithm for _, algorithm in pairs))


def write_table(card: Card, table: Table, **about: str) -> str:
    """The text that `read_table` reads. `about`: who measured it, and with what."""
    algorithms = sorted({a for each in table.values() for a in each.algorithms if a is not None})
    place = {None: None} | {algorithm: at for at, algorithm in enumerate(algorithms)}
    products = [
        json.dumps(
            {
                "dtype": str(dtype).removeprefix("torch."), "n": n, "k": k,
                "rows": [(m, place[a]) for m, a in zip(each.rows, each.algorithms, strict=True)],
            }
        )
        for (dtype, n, k), each in sorted(table.items(), key=lambda item: item[0][1:])
    ]  # fmt: skip
    head = about | {
        "capability": card.capability, "num_sms": card.num_sms, "cublaslt": card.version,
    }  # fmt: skip
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    lists = (
        ("algorithms", [json.dumps(algorithm.hex()) for algorithm in algorithms]),
        ("products", products),
    )
    written = [f' "{name}": [\n  ' + ",\n  ".join(items) + "\n ]" for name, items in lists]
    return "{\n" + "\n".join(lines) + "\n" + ",\n".join(written) + "\n}\n"


def find_table(card: Card, files: Iterable[Traversable]) -> Table:
    """What all tables of the card say; of the same weight, the last one's word."""
    found: Table = {}
    for file in files:
        other, table = read_table(file.read_text())
        if other == card:
            found |= table
    return found


def shipped() -> list[Traversable]:
    """The tables that come with Octavo, by name."""
    folder = resources.files("octavo.kernels") / _FOLDER
    if not folder.is_dir():
        return []
    return sorted(
        (file for file in folder.iterdir() if file.name.endswith(".json")),
        key=lambda file: file.name,
    )


class LibraryProducts:
    """The products of one device that have an algorithm of their own.

    Args:
        library: of the device.
        table: for it.
    """

    def __init__(self, library: Library, table: Table) -> None:
        self._library, self._table = library, table
        self._chosen: dict[tuple[int, torch.Size, torch.dtype], tuple[Any, Any] | None] = {}

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        """X [m, k] times weight [n, k] transposed; None: torch's product is as good.

        Args:
            x: contiguous, m >= 1.
            weight: contiguous, of x's type and device.
        """
        key = (len(x), weight.shape, weight.dtype)
        try:
            chosen = self._chosen[key]
        except KeyError:
            if len(self._chosen) >= _MOST_CHOSEN:
                self._chosen.clear()  # prompts are of any length
            chosen = self._chosen[key] = self._choose(*key)
        if chosen is None or x.data_ptr() % ALIGNMENT or weight.data_ptr() % ALIGNMENT:
            return None
        product, algorithm = chosen
        y: torch.Tensor = product.multiply(x, weight, algorithm)
        return y

    def _choose(self, m: int, shape: torch.Size, dtype: torch.dtype) -> tuple[Any, Any] | None:
        n, k = shape
        measured = self._table.get((dtype, n, k))
        algorithm = None if measured is None else measured.choose(m)
        if algorithm is None:
            return None
        product = self._library.product(m, n, k, dtype)
        loaded = product.load(algorithm)
        return None if loaded is None else (product, loaded)


@functools.cache
def library_products(device: torch.device) -> LibraryProducts | None:
    """Of a device; None: nothing was measured on such a card with its cuBLASLt."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    try:
        library = Library(device)
    except (OSError, LibraryError, AttributeError):
        return None
    table = find_table(card_of(library), shipped())
    if table:
        logger.info("products: algorithms were measured for %d shapes of weights", len(table))
        return LibraryProducts(library, table)
    logger.info(
        "products are torch's: none were measured on such a card with cuBLASLt %d "
        "(benchmarks/gpu/products.py does that)",
        library.version,
    )
    return None


def card_of(library: Library) -> Card:
    """The kind of card that a library is for."""
    about = torch.cuda.get_device_properties(library.device)
    return Card((about.major, about.minor), about.multi_processor_count, library.version)
