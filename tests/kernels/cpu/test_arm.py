"""The kernels for 64-bit Arm, cross-compiled and run under emulation, against float64 and, bit for
bit, against those of this processor.
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.kernels.cpu.build import ARM, FLAGS, HERE, build
from octavo.kernels.cpu.matmul import TYPES
from octavo.weights.block_formats import FORMATS_BY_NAME
from tests.kernels.cpu.helper import bound, decode, pack, random_blocks, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DRIVERS = sorted(path.stem for path in Path(__file__).parent.glob("*driver.cpp"))
PROCESSORS = {"max": "neondot,neon,portable", "cortex-a53": "neon,portable"}
"""Emulated processors, the second one without the dot-product extension; what each has."""

SETS = [("max", "neondot"), ("max", "neon"), ("cortex-a53", "neon"), ("max", "portable")]
FORMATS = sorted(TYPES)

needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"needs {COMPILER} (Debian: g++-aarch64-linux-gnu)"
)
needs_emulator = pytest.mark.skipif(
    shutil.which(EMULATOR) is None, reason=f"needs {EMULATOR} (Debian: qemu-user)"
)


@dataclass(frozen=True)
class Case:
    """One product: x [t, k] float32, or bfloat16 as uint16, with stored blocks of n rows."""

    name: str
    num_rows: int
    stored: NDArray[np.uint8]
    x: NDArray[np.float32] | NDArray[np.uint16]

    def request(self) -> bytes:
        """As products_driver.cpp reads it."""
        tokens, cols = self.x.shape
        numbers = (TYPES[self.name], self.num_rows, cols, tokens, self.x.itemsize == 2)
        sizes = (self.stored.nbytes, self.x.nbytes)
        return struct.pack("<7q", *numbers, *sizes) + self.stored.tobytes() + self.x.tobytes()

    def weights(self) -> NDArray[np.float64]:
        return decode(self.stored, self.name, (self.num_rows, self.x.shape[1]))


@dataclass(frozen=True)
class Emulated:
    """The library and its drivers for Arm."""

    folder: Path

    def run(self, processor: str, driver: str, *args: str, stdin: bytes = b"") -> bytes:
        """What a driver printed; fails where it did."""
        # Where the system keeps libraries for Arm: beside the cross-compiler's C library.
        library = subprocess.run(
            [COMPILER, "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True
        )
        root = Path(library.stdout.strip()).resolve().parents[1]
        command = [EMULATOR, "-L", str(root), "-cpu", processor, str(self.folder / driver), *args]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def multiply(self, processor: str, isa: str, cases: list[Case]) -> list[NDArray[Any]]:
        """Each case's product [t, n]."""
        stdin = b"".join(case.request() for case in cases)
        out = self.run(processor, "products_driver", isa, stdin=stdin)
        results: list[NDArray[Any]] = []
        for case in cases:
            shape = (len(case.x), case.num_rows)
            size = shape[0] * shape[1] * case.x.itemsize
            results.append(np.frombuffer(out[:size], case.x.dtype).reshape(shape))
            out = out[size:]
        assert not out
        return results


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    folder = tmp_path_factory.mktemp("arm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", COMPILER)
        patch.setenv("CXXFLAGS", "-Werror")
        library = build(folder / cpu.LIBRARY_NAME)
    for name in DRIVERS:
        source = Path(__file__).parent / f"{name}.cpp"
        command = [COMPILER, "-std=c++17", "-O1", str(source), str(library)]
        subprocess.run([*command, f"-Wl,-rpath,{folder}", "-o", str(folder / name)], check=True)
    return Emulated(folder)


@needs_compiler
@pytest.mark.parametrize("isa", ARM)
@pytest.mark.parametrize("file", ["matmul.cpp", "attend.cpp"])
def test_the_compiler_has_no_complaint(isa: str, file: str) -> None:
    flags = [*FLAGS, *ARM[isa], f"-DOCTAVO_ISA={isa}", "-Werror", "-fsyntax-only"]
    done = subprocess.run(
        [COMPILER, *flags, str(HERE / "src" / file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@needs_compiler
@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
class TestDrivers:
    def test_what_the_processor_has_is_found(self, emulated: Emulated, processor: str) -> None:
        found = emulated.run(processor, "products_driver").decode().strip()
        assert found == PROCESSORS[processor]

    @pytest.mark.parametrize("driver", [name for name in DRIVERS if name != "products_driver"])
    def test_all_sets_agree(self, emulated: Emulated, processor: str, driver: str) -> None:
        lines = emulated.run(processor, driver).decode().splitlines()
        assert len(lines) >= 7
        assert all(": good" in line for line in lines)
        sets = {line.partition(":")[0].replace(",", " ").split()[0] for line in lines}
        if driver != "pieces_driver":  # what it tries exists once for all
            assert sets == set(PROCESSORS[processor].split(","))


@needs_compiler
@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize(("processor", "isa"), SETS)
class TestProducts:
    def test_products(self, emulated: Emulated, processor: str, isa: str, native: None) -> None:
        rng = np.random.default_rng(1)
        cases = []
        for name, tokens in itertools.product(FORMATS, range(1, 14)):
            num_rows = int(rng.integers(1, 40))
            num_cols = int(rng.integers(1, 6)) * FORMATS_BY_NAME[name].block_size
            x = rng.standard_normal((tokens, num_cols)) * 10.0 ** rng.integers(-3, 4, (tokens, 1))
            stored = random_blocks(name, num_rows, num_cols, rng)
            cases.append(Case(name, num_rows, stored, x.astype(np.float32)))
        for case, y in zip(cases, emulated.multiply(processor, isa, cases), strict=True):
            exact, w = case.x.astype(np.float64), case.weights()
            size = np.abs(exact).sum(axis=1, keepdims=True) * np.abs(w).max() * 4
            packed = pack(case.stored, case.name, (case.num_rows, case.x.shape[1]))
            here = matmul.linear(torch.from_numpy(case.x), packed, case.num_rows, None)
            assert y.tobytes() == here.numpy().tobytes(), case.name
            assert np.all(np.abs(y - rounded(exact) @ w.T) <= 2e-6 * size + 1e-7), case.name
            assert np.all(np.abs(y - exact @ w.T) <= bound(exact, w) + 2e-6 * size), case.name

    def test_extreme_codes(self, emulated: Emulated, processor: str, isa: str) -> None:
        """Largest codes on both sides: where sums in 16 bits would overflow."""
        cases = []
        for name in FORMATS:
            fmt = FORMATS_BY_NAME[name]
            num_cols = 2 * max(fmt.block_size, 256)
            usual = random_blocks(name, 9, num_cols, np.random.default_rng(1))
            scales = slice(208, None) if name == "Q6_K" else slice(4)
            for fill in (0x00, 0x7F, 0x80, 0xFF):
                blocks = np.full_like(usual.reshape(-1, fmt.block_bytes), fill)
                blocks[:, scales] = usual.reshape(blocks.shape)[:, scales]
                x = np.ones((3, num_cols), np.float32)
                x[1], x[2, ::2] = -1, -1
                cases.append(Case(name, 9, blocks.reshape(9, -1), x))
        for case, y in zip(cases, emulated.multiply(processor, isa, cases), strict=True):
            w = case.weights()
            size = 4 * case.x.shape[1] * np.abs(w).max()
            assert np.all(np.abs(y - case.x @ w.T) <= 2e-6 * size + 1e-7), case.name

    def test_a_row_does_not_depend_on_its_neighbours(
        self, emulated: Emulated, processor: str, isa: str
    ) -> None:
        rng = np.random.default_rng(10)
        x = rng.standard_normal((25, 768)).astype(np.float32)
        cases = []
        for name in FORMATS:
            stored = random_blocks(name, 20, 768, rng)
            cases += [Case(name, 20, stored, x[:tokens]) for tokens in (25, *range(1, 14))]
        results = emulated.multiply(processor, isa, cases)
        together = {case.name: y for case, y in zip(cases, results, strict=True) if len(y) == 25}
        for case, y in zip(cases, results, strict=True):
            assert y.tobytes() == together[case.name][: len(y)].tobytes(), case.name

    def test_bfloat16(self, emulated: Emulated, processor: str, isa: str) -> None:
        """Widened exactly, and the result rounded once."""
        rng = np.random.default_rng(6)
        stored = random_blocks("Q4_1", 24, 128, rng)
        x = torch.from_numpy(rng.standard_normal((5, 128))).bfloat16()
        halves = Case("Q4_1", 24, stored, x.view(torch.uint16).numpy())
        wide = Case("Q4_1", 24, stored, x.float().numpy())
        got, want = emulated.multiply(processor, isa, [halves, wide])
        assert torch.equal(
            torch.from_numpy(got.copy()).view(torch.bfloat16),
            torch.from_numpy(want.copy()).bfloat16(),
        )

    def test_what_is_no_number_stays_none(
        self, emulated: Emulated, processor: str, isa: str
    ) -> None:
        stored = random_blocks("Q4_1", 8, 64, np.random.default_rng(7))
        x = np.ones((4, 64), np.float32)
        x[1, 40], x[2, 3], x[3] = np.nan, np.inf, 0
        (y,) = emulated.multiply(processor, isa, [Case("Q4_1", 8, stored, x)])
        numbers = y.astype(np.float64)
        assert np.isfinite(numbers[0]).all()
        assert np.isnan(numbers[1:3]).all()
        assert (numbers[3] == 0).all()
