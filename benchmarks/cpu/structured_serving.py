"""Structured outputs in service: whether they validate, what they cost, what hostile ones do.

    python benchmarks/cpu/structured_serving.py smollm2

Three parts, each printed as a table and with `--json` as JSON:

    schemas  `--schemas` random schemas, each answered once by the model at temperature 1 with at
             most `--max-tokens` tokens; every output that ended by itself must validate
    cost     a batch of `--batch` outputs of `--cost-tokens` tokens with a grammar and without,
             taking turns `--repeats` times; seconds per token, medians, and their ratio
    hostile  a server with `--streams` running streams gets schemas, expressions and grammars that
             are made to hurt; each must be refused with a 400 (or run bounded), and the longest
             silence of the streams meanwhile is told, beside their longest without

The machine should be idle: on a busy one, compiling takes longer and the third part tells that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx
import jsonschema
from rich.console import Console
from rich.table import Table

from octavo import LLM, SamplingParams
from octavo.types import StructuredOutputs

NAMES = ("name", "age", "city", "tags", "price", "when", "kind", "notes", "items", "ok")


def random_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of the kind that programs send: objects of scalars, lists, choices, references."""
    kinds = ["string", "short", "pattern", "enum", "integer", "number", "boolean", "const", "date"]
    if depth < 3:
        kinds += ["object", "object", "array", "any_of", "nullable"]
    if depth == 0:
        kinds = ["object", "object", "object", "array", "ref"]
    kind = chance.choice(kinds)
    if kind == "object":
        names = chance.sample(NAMES, chance.randint(1, 4))
        properties = {name: random_schema(chance, depth + 1) for name in names}
        required = [name for name in names if chance.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if kind == "array":
        least = chance.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(chance, depth + 1),
            "minItems": least,
            "maxItems": least + chance.randint(0, 3),
        }
    if kind == "any_of":
        return {"anyOf": [random_schema(chance, depth + 1) for _ in range(2)]}
    if kind == "nullable":
        return {"anyOf": [random_schema(chance, depth + 1), {"type": "null"}]}
    if kind == "ref":
        node = {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        return {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    scalars: dict[str, dict[str, Any]] = {
        "string": {"type": "string"},
        "short": {"type": "string", "minLength": 1, "maxLength": chance.randint(3, 20)},
        "pattern": {"type": "string", "pattern": "^[A-Z][a-z]{1,6}-[0-9]{2,4}$"},
        "enum": {"enum": chance.sample(["red", "green", 3, None, "blau", True, 2.5], 3)},
        "integer": {"type": "integer", "minimum": -5, "maximum": chance.randint(5, 5000)},
        "number": {"type": "number", "exclusiveMinimum": 0, "maximum": 99.5},
        "boolean": {"type": "boolean"},
        "const": {"const": chance.choice(["v1", 7, {"a": [1, 2]}])},
        "date": {"type": "string", "format": chance.choice(["date", "date-time", "uuid", "ipv4"])},
    }
    return scalars[kind]


def validate_outputs(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    """The first part."""
    chance = random.Random(args.seed)
    schemas = [random_schema(chance) for _ in range(args.schemas)]
    prompts = [
        f"Write a JSON document for this schema: {json.dumps(schema)}\n" for schema in schemas
    ]
    params = [
        SamplingParams(
            max_tokens=args.max_tokens,
            temperature=1.0,
            seed=index,
            structured_outputs=StructuredOutputs(json=schema),
        )
        for index, schema in enumerate(schemas)
    ]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params)
    took = time.perf_counter() - begin
    invalid: list[str] = []
    num_finished = 0
    for schema, output in zip(schemas, outputs, strict=True):
        answer = output.outputs[0]
        if answer.finish_reason != "stop":
            continue
        num_finished += 1
        try:
            jsonschema.validate(
                json.loads(answer.text),
                schema,
                format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
            )
        except (ValueError, jsonschema.ValidationError) as error:
            invalid.append(f"{json.dumps(schema)}: {answer.text!r}: {error}")
    for line in invalid[:5]:
        print(line, file=sys.stderr)
    return {
        "schemas": len(schemas),
        "finished": num_finished,
        "valid": num_finished - len(invalid),
        "cut_at_max_tokens": len(schemas) - num_finished,
        "tokens": sum(len(o.outputs[0].token_ids) for o in outputs),
        "seconds": took,
    }


def measure_cost(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    """The second part. The schema is a long list of objects, so that no output ends early."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    schema = {"type": "array", "items": person, "minItems": 200}
    prompts = ["Write a JSON list of people with their names, ages and tags.\n"] * args.batch
    ways = {
        "free": None,
        "bound": StructuredOutputs(json=schema),
    }
    per_token: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, bound in ways.items():
            params = [
                SamplingParams(
                    max_tokens=args.cost_tokens,
                    temperature=1.0,
                    seed=turn * args.batch + index,
                    ignore_eos=True,
                    structured_outputs=bound,
                )
                for index in range(args.batch)
            ]
            begin = time.perf_counter()
            outputs = llm.generate(prompts, params)
            took = time.perf_counter() - begin
            num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            if turn:  # the first round warms up
                per_token[name].append(took / num_tokens)
    medians = {name: statistics.median(values) for name, values in per_token.items()}
    return {
        "batch": args.batch,
        "free_ms_per_token": medians["free"] * 1e3,
        "bound_ms_per_token": medians["bound"] * 1e3,
        "ratio": medians["bound"] / medians["free"],
        "ratios": [b / f for b, f in zip(per_token["bound"], per_token["free"], strict=True)],
    }


def hostile() -> dict[str, dict[str, Any]]:
    """By name: fields of a completion request that are made to hurt."""
    chain = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    deep: Any = {"type": "string"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}

    def schema(value: Any) -> dict[str, Any]:
        return {"structured_outputs": {"json": value}}

    def regex(text: str) -> dict[str, Any]:
        return {"structured_outputs": {"regex": text}}

    def lark(text: str) -> dict[str, Any]:
        return {"structured_outputs": {"grammar": text}}

    patterns = [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]
    rules = "\n".join(f'r{i}: "x{i}" r{(i + 1) % 4000}' for i in range(4000))
    return {
        "regex: unclosed": regex("("),
        "regex: nested repetitions": regex("(((a+)+)+)+b"),
        "regex: a{1000000000}": regex("a{1000000000}"),
        "regex: 100,000 parentheses": regex("(" * 100_000 + "a" + ")" * 100_000),
        "regex: 1 MB": regex("a" * 1_000_000),
        "regex: subset explosion": regex("(a|b)*a(a|b){200}(a|b)*b(a|b){200}"),
        "schema: 20 patterns in allOf": schema({"allOf": patterns}),
        "schema: multipleOf a large prime": schema({"type": "integer", "multipleOf": 99_999_989}),
        "schema: 400 levels": schema(deep),
        "schema: refers to itself alone": schema({"$ref": "#"}),
        "schema: 2^40 by references": schema(
            {"$defs": {**chain, "d40": {"type": "null"}}, "$ref": "#/$defs/d0"}
        ),
        "schema: 1 MB of enum": schema({"enum": [f"value {i} " * 10 for i in range(9000)]}),
        "schema: remote reference": schema({"$ref": "https://example.com/schema.json"}),
        "schema: not JSON": schema("{"),
        "grammar: 4,000 rules in a ring": lark(f"start: r0\n{rules}"),
        "grammar: cycle": lark("start: a\na: start"),
        "grammar: 5,000 parentheses": lark("start: " + "(" * 5000 + '"a"' + ")" * 5000),
    }


async def measure_hostile(url: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """The third part, against the server at the URL."""
    gaps: list[float] = []
    is_over = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def stream(seed: int) -> None:
            body = {
                "model": model,
                "prompt": "Once upon a time",
                "max_tokens": 2000,
                "ignore_eos": True,
                "temperature": 1.0,
                "seed": seed,
                "stream": True,
            }
            while not is_over.is_set():
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    last = time.perf_counter()
                    async for _ in response.aiter_lines():
                        now = time.perf_counter()
                        gaps.append(now - last)
                        last = now
                        if is_over.is_set():
                            return

        streams = [asyncio.create_task(stream(seed)) for seed in range(args.streams)]
        await asyncio.sleep(5)
        gaps.clear()
        await asyncio.sleep(10)
        quiet = max(gaps)
        gaps.clear()
        rows = []
        for name, fields in hostile().items():
            begin = time.perf_counter()
            response = await client.post(
                "/v1/completions",
                json={"model": model, "prompt": "x", "max_tokens": 8, **fields},
            )
            took = time.perf_counter() - begin
            error = response.json().get("error") or {}
            rows.append(
                {
                    "what": name,
                    "status": response.status_code,
                    "seconds": took,
                    "says": error.get("message", "ran")[:90],
                }
            )
        hurt = max(gaps)
        is_over.set()
        await asyncio.gather(*streams)
        alive = await client.post(
            "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 4}
        )
        assert alive.status_code == 200
    return {"rows": rows, "longest_gap_s": hurt, "longest_gap_without_s": quiet}


def serve_hostile(args: argparse.Namespace) -> dict[str, Any]:
    """Start a server for the third part."""
    port = args.port
    server = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli.main", "serve", args.model, "--port", str(port),
         "--kv-cache-memory", args.kv_cache_memory],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        return asyncio.run(measure_hostile(url, args.model, args))
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cost-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--port", type=int, default=8077)
    parser.add_argument("--kv-cache-memory", default="512MiB")
    parser.add_argument("--only", nargs="+", default=("schemas", "cost", "hostile"), metavar="PART")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    results: dict[str, Any] = {}
    if {"schemas", "cost"} & set(args.only):
        from octavo.config import parse_bytes

        llm = LLM(args.model, kv_cache_memory=parse_bytes(args.kv_cache_memory))
        try:
            if "schemas" in args.only:
                results["schemas"] = validate_outputs(llm, args)
            if "cost" in args.only:
                results["cost"] = measure_cost(llm, args)
        finally:
            llm.close()
    if "hostile" in args.only:
        results["hostile"] = serve_hostile(args)
    if args.json:
        print(json.dumps(results, indent=1))
        return
    console = Console()
    for part in ("schemas", "cost"):
        if part in results:
            table = Table(title=part)
            for name in results[part]:
                table.add_column(name)
            table.add_row(
                *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in results[part].values())
            )
            console.print(table)
    if "hostile" in results:
        table = Table("what", "status", "seconds", "says", title="hostile")
        for row in results["hostile"]["rows"]:
            table.add_row(
                row["what"], str(row["status"]), f"{row['seconds']:.2f}", row["says"].strip()
            )
        console.print(table)
        console.print(
            f"longest silence of {args.streams} streams: "
            f"{results['hostile']['longest_gap_s']:.2f} s, without "
            f"{results['hostile']['longest_gap_without_s']:.2f} s"
        )


if __name__ == "__main__":
    main()
