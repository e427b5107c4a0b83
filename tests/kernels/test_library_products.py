"""Tables of measured products, and on a GPU the products that they choose, against float64."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.kernels.cublaslt import ALGORITHM_BYTES, Library
from octavo.kernels.library_products import (
    Card,
    LibraryProducts,
    Measured,
    Table,
    card_of,
    find_table,
    library_products,
    read_table,
    shipped,
    write_table,
)

if TYPE_CHECKING:
    from pathlib import Path

CARD = Card((9, 0), 132, 130100)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

algorithms = st.one_of(
    st.none(), st.binary(min_size=ALGORITHM_BYTES, max_size=ALGORITHM_BYTES)
)  # fmt: skip
measured = st.dictionaries(st.integers(1, 10_000), algorithms, min_size=1, max_size=6).map(
    lambda found: Measured(tuple(sorted(found)), tuple(found[m] for m in sorted(found)))
)
dtypes = st.sampled_from([torch.bfloat16, torch.float16])
tables = st.dictionaries(
    st.tuples(dtypes, st.integers(1, 10**6), st.integers(1, 10**5)), measured, max_size=4
)


@given(tables)
def test_a_table_is_read_as_it_was_written(table: Table) -> None:
    assert read_table(write_table(CARD, table, measured_on="a card")) == (CARD, table)


@given(measured, st.integers(1, 20_000))
def test_the_next_measured_number_of_rows_decides(measured: Measured, m: int) -> None:
    above = [rows for rows in measured.rows if rows >= m]
    decides = min(above) if above else max(measured.rows)
    assert measured.choose(m) == measured.algorithms[measured.rows.index(decides)]


@pytest.mark.parametrize(
    "changed",
    [
        {"capability": None}, {"algorithms": ["zz"]}, {"algorithms": ["00"]}, {"products": 3},
        {"products": [{"dtype": "bfloat16", "n": 1, "k": 1, "rows": []}]},
        {"products": [{"dtype": "bfloat16", "n": 1, "k": 1, "rows": [[2, None], [1, None]]}]},
        {"products": [{"dtype": "bfloat16", "n": 1, "k": 1, "rows": [[1, 7]]}]},
        {"products": [{"dtype": "no such", "n": 1, "k": 1, "rows": [[1, None]]}]},
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(changed: dict[str, object]) -> None:
    content = json.loads(write_table(CARD, {})) | changed
    with pytest.raises(ValueError, match=r"table|hex|bytes|ascending"):
        read_table(json.dumps(content))


def test_tables_of_other_cards_and_versions_do_not_count(tmp_path: Path) -> None:
    algorithm = bytes(range(ALGORITHM_BYTES))
    key = (torch.bfloat16, 4096, 4096)
    cards = [CARD, Card((9, 0), 114, 130100), Card((9, 0), 132, 120900), Card((10, 0), 132, 130100)]
    for number, card in enumerate(cards):
        table: Table = {key: Measured((number + 1,), (algorithm,))}
        (tmp_path / f"{number}.json").write_text(write_table(card, table))
    files = sorted(tmp_path.iterdir())
    for number, card in enumerate(cards):
        assert find_table(card, files)[key].rows == (number + 1,)
    assert find_table(Card((8, 0), 108, 130100), files) == {}


def test_shipped_tables_can_be_read_and_say_something() -> None:
    files = shipped()
    assert files
    for file in files:
        card, table = read_table(file.read_text())
        assert card.capability >= (8, 0)
        assert any(algorithm for each in table.values() for algorithm in each.algorithms)


def test_without_a_gpu_there_are_none() -> None:
    assert library_products(torch.device("cpu")) is None


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n", "k"), [(72, 6144, 4096), (300, 512, 1024), (1, 256, 64)])
def test_every_algorithm_gives_the_product(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda:0")
    product = Library(device).product(m, n, k, dtype)
    x, weight = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (n, k)))
    exact = x.double() @ weight.double().T
    bound = exact.abs() * 2**-8 + (x.double().abs() @ weight.double().abs().T) * 2**-18 + 1e-6
    names = product.candidates(8)
    assert names
    for name in names:
        algorithm = product.load(name)
        assert algorithm is not None
        out = product.multiply(x, weight, algorithm)
        assert ((out.double() - exact).abs() <= bound).all()


@needs_gpu
def test_a_table_chooses_and_addresses_that_do_not_fit_go_to_torch() -> None:
    device = torch.device("cuda:0")
    library = Library(device)
    n, k, dtype = 512, 256, torch.bfloat16
    name = library.product(96, n, k, dtype).candidates(1)[0]
    products = LibraryProducts(library, {(dtype, n, k): Measured((80, 96), (None, name))})
    weight = torch.randn(n, k, device=device, dtype=dtype)
    x = torch.randn(96, k, device=device, dtype=dtype)
    assert products.apply(x[:80], weight) is None  # torch's is as good there
    y = products.apply(x[:81], weight)
    assert y is not None
    torch.testing.assert_close(y, x[:81] @ weight.T, rtol=2e-2, atol=2e-1)
    assert products.apply(x, weight[:256]) is None  # not measured
    shifted = torch.randn(96 * k + 1, device=device, dtype=dtype)[1:].view(96, k)
    assert products.apply(shifted, weight) is None


@needs_gpu
def test_the_version_is_torchs_library() -> None:
    card = card_of(Library(torch.device("cuda:0")))
    assert str(card.version).startswith((torch.version.cuda or "").partition(".")[0])
