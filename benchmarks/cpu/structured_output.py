"""llguidance against xgrammar: what grammars of JSON schemas cost, and which keywords they keep.

    python benchmarks/cpu/structured_output.py --model smollm2 --xgrammar-python /path/to/bin/python

xgrammar lives in an environment of its own (it needs torch): `pip install torch xgrammar`. Each
library compiles every schema of `structured_output_cases.py` in a fresh process, one thread, no
cache, and follows the allowed values token by token, with the mask of each token timed. A schema
that compiles keeps its word if all allowed values are taken and all forbidden ones refused.
llguidance is set as the engine sets it; xgrammar as its documentation shows, with `strict_mode`
off, without which objects have no properties beyond those listed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from structured_output_cases import cases

if TYPE_CHECKING:
    from collections.abc import Sequence

LIBRARIES = ("llguidance", "xgrammar")
WHITESPACE = r" {1,4}|\r?\n[ \t]{0,64}"
"""As in `octavo.text.grammar.source`; the workers' environments may lack this package."""

PACKAGES = {"llguidance": ("llguidance",), "xgrammar": ("xgrammar", "tvm_ffi", "torch")}
"""What importing each takes with it, beyond numpy."""


class Matcher(Protocol):
    """One output's place in a grammar."""

    def fill(self) -> None: ...

    def accept(self, token_id: int) -> bool: ...

    def may_end(self) -> bool: ...


class Llguidance:
    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_id: int) -> None:
        import llguidance
        import llguidance.numpy

        self.library, self.numpy = llguidance, llguidance.numpy
        self.tokenizer = llguidance.LLTokenizer(
            tokenizer_json, n_vocab=vocab_size, eos_token=eos_token_id
        )
        self.bits = llguidance.numpy.allocate_token_bitmask(1, vocab_size)

    def compile(self, schema: Any) -> Any:
        make = self.library.LLMatcher
        schema = {} if schema is True else schema
        grammar = make.grammar_from_json_schema(schema, {"whitespace_pattern": WHITESPACE})
        compiled = make(self.tokenizer, grammar, log_level=0)
        if compiled.is_error():
            raise ValueError(compiled.get_error())
        return compiled

    def matcher(self, compiled: Any) -> Matcher:
        owner, inner = self, compiled.deep_copy()

        class Following:
            def fill(self) -> None:
                owner.numpy.fill_next_token_bitmask(inner, owner.bits, 0)

            def accept(self, token_id: int) -> bool:
                return bool(inner.consume_token(token_id))

            def may_end(self) -> bool:
                return bool(inner.is_accepting())

        return Following()


class Xgrammar:
    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_id: int) -> None:
        import torch
        import xgrammar
        from transformers import PreTrainedTokenizerFast

        torch.set_num_threads(1)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(tokenizer_json)
            file.flush()
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=file.name)
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=[eos_token_id]
        )
        self.library = xgrammar
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bits = xgrammar.allocate_token_bitmask(1, vocab_size)
        self.end = eos_token_id

    def compile(self, schema: Any) -> Any:
        return self.compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=True, strict_mode=False
        )

    def matcher(self, compiled: Any) -> Matcher:
        owner, inner = self, self.library.GrammarMatcher(compiled)

        class Following:
            def fill(self) -> None:
                inner.fill_next_token_bitmask(owner.bits, 0)

            def accept(self, token_id: int) -> bool:
                return bool(inner.accept_token(token_id))

            def may_end(self) -> bool:
                inner.fill_next_token_bitmask(owner.bits, 0)
                word = int(owner.bits[0, owner.end // 32])
                return bool(word >> owner.end % 32 & 1)

        return Following()


def spellings(value: Any) -> list[str]:
    """JSON as models write it, and as tightly as it can be."""
    return [
        json.dumps(value, ensure_ascii=False, separators=separators)
        for separators in (None, (",", ":"))
    ]


def follows(matcher: Matcher, token_ids: Sequence[int], times: list[float]) -> bool:
    """Whether a text is one of the grammar's; adds the microseconds of each token's mask."""
    for token_id in token_ids:
        begin = time.perf_counter()
        matcher.fill()
        times.append((time.perf_counter() - begin) * 1e6)
        if not matcher.accept(token_id):
            return False
    return matcher.may_end()


def measure(library: str, tokenizer_json: str, vocab_size: int, eos_token_id: int) -> list[Any]:
    """In the worker: what becomes of each case."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    make = {"llguidance": Llguidance, "xgrammar": Xgrammar}[library]
    made = make(tokenizer_json, vocab_size, eos_token_id)
    made.matcher(made.compile({"type": "object"})).fill()  # what is done once is done
    rows = []
    for family, case in cases():
        row: dict[str, Any] = {"family": family, "name": case.name}
        rows.append(row)
        begin = time.perf_counter()
        try:
            compiled = made.compile(case.schema)
        except Exception as error:
            row["refused"] = str(error)[:160]
            continue
        row["compile_ms"] = (time.perf_counter() - begin) * 1e3
        begin = time.perf_counter()
        made.matcher(compiled).fill()
        row["first_mask_ms"] = (time.perf_counter() - begin) * 1e3
        row["mask_us"] = []

        def takes(
            value: Any, compiled: Any = compiled, times: list[float] = row["mask_us"]
        ) -> bool:
            """With the spaces that models write, or without any."""
            return any(
                follows(made.matcher(compiled), tokenizer.encode(text).ids, times)
                for text in spellings(value)
            )

        row["lost"] = sum(not takes(value) for value in case.valid)
        row["let_in"] = sum(takes(value) for value in case.invalid)
    return rows


def import_ms(python: str, library: str) -> float:
    """Milliseconds that importing the library adds to an empty process: the least of five."""

    def once(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([python, "-c", code], check=True)
        return (time.perf_counter() - begin) * 1e3

    return min(once(f"import {library}") for _ in range(5)) - min(once("") for _ in range(5))


def size_mb(python: str, names: Sequence[str]) -> dict[str, float]:
    """Megabytes on disk of each package, as installed."""
    code = (
        "import importlib.util as u; "
        f"print(*[u.find_spec(name).submodule_search_locations[0] for name in {list(names)!r}])"
    )
    told = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return {
        name: sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
        for name, folder in zip(names, told.stdout.split(), strict=True)
    }


def summary(rows: list[Any]) -> dict[str, Any]:
    """One library's figures."""
    compiled = [row for row in rows if "refused" not in row]
    masks = sorted(us for row in compiled for us in row["mask_us"])
    compiles = sorted(row["compile_ms"] for row in compiled)
    firsts = sorted(row["first_mask_ms"] for row in compiled)

    def share(values: list[float], part: float) -> float:
        return values[min(int(len(values) * part), len(values) - 1)]

    return {
        "schemas": len(rows),
        "refused": len(rows) - len(compiled),
        "kept": sum(not row["lost"] and not row["let_in"] for row in compiled),
        "forbidden_let_in": sum(bool(row["let_in"]) for row in compiled),
        "allowed_lost": sum(bool(row["lost"]) for row in compiled),
        "compile_ms": {"median": statistics.median(compiles), "p99": share(compiles, 0.99)},
        "first_mask_ms": {"median": statistics.median(firsts), "p99": share(firsts, 0.99)},
        "mask_us": {
            "median": statistics.median(masks),
            "p99": share(masks, 0.99),
            "worst": masks[-1],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer is used")
    parser.add_argument("--xgrammar-python", help="without it, llguidance alone is measured")
    parser.add_argument("--json", type=Path, help="write every case's figures here")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        given = json.load(sys.stdin)
        json.dump(measure(args.worker, **given), sys.stdout)
        return

    from rich.console import Console
    from rich.table import Table

    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.open import open_checkpoint
    from octavo.weights.store import resolve

    path = resolve(args.model)
    config = open_checkpoint(path).config
    tokenizer = load_tokenizer(path, config)
    given = {
        "tokenizer_json": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": min(tokenizer.eos_token_ids),
    }
    pythons = {"llguidance": sys.executable, "xgrammar": args.xgrammar_python}
    report: dict[str, Any] = {"model": args.model, "vocab_size": given["vocab_size"]}
    for library, python in pythons.items():
        if python is None:
            continue
        worker = [python, __file__, "--worker", library]
        told = subprocess.run(
            worker, input=json.dumps(given), capture_output=True, text=True, check=True
        )
        rows = json.loads(told.stdout)
        report[library] = summary(rows) | {
            "import_ms": import_ms(python, library),
            "size_mb": size_mb(python, PACKAGES[library]),
            "cases": rows,
        }
    libraries = [library for library in LIBRARIES if library in report]
    table = Table("", *libraries)
    figures = {
        "schemas": "schemas",
        "kept in full": "kept",
        "refused": "refused",
        "forbidden values let in": "forbidden_let_in",
        "allowed values lost": "allowed_lost",
    }
    for label, key in figures.items():
        table.add_row(label, *(str(report[library][key]) for library in libraries))
    for key in ("compile_ms", "first_mask_ms", "mask_us"):
        for part in report[libraries[0]][key]:
            values = (f"{report[library][key][part]:.3g}" for library in libraries)
            table.add_row(f"{key}, {part}", *values)
    table.add_row("import, ms", *(f"{report[library]['import_ms']:.0f}" for library in libraries))
    sizes = (report[library]["size_mb"].items() for library in libraries)
    table.add_row("on disk, MB", *(", ".join(f"{n} {mb:.0f}" for n, mb in one) for one in sizes))
    console = Console()
    console.print(table)
    families = Table("let in or lost or refused", *libraries)
    for family in dict.fromkeys(family for family, _ in cases()):
        families.add_row(family, *(_of_family(report[library], family) for library in libraries))
    console.print(families)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def _of_family(figures: dict[str, Any], family: str) -> str:
    rows = [row for row in figures["cases"] if row["family"] == family]
    let_in = sum(bool(row.get("let_in")) for row in rows)
    lost = sum(bool(row.get("lost")) for row in rows)
    return f"{let_in} / {lost} / {sum('refused' in row for row in rows)} of {len(rows)}"


if __name__ == "__main__":
    main()
