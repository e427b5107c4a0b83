"""The library, compiled if this source tree does not have it yet, in every instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from octavo.kernels import cpu
from octavo.kernels.cpu.build import BuildError, build
from tests.kernels.cpu.helper import ISAS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def native() -> None:
    if cpu.why_not() is None:
        return
    try:
        build()
    except BuildError as error:
        pytest.skip(str(error))
    cpu.forget()
    assert cpu.why_not() is None


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native: None) -> Iterator[str]:
    """Every instruction set in turn that this processor has."""
    usual = cpu.isa()
    if request.param not in cpu.available_isas():
        pytest.skip(f"this processor has no {request.param}")
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(usual)
