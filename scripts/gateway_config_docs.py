"""Write `docs/gateway-config.md` and its JSON schema out of the structs that are read. `make docs`
runs it.
"""

from __future__ import annotations

import json
import typing
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec

from octavo.gateway.config_schema import about, field_texts, json_schema, structs
from octavo.gateway.config_values import without_limits
from octavo.gateway.language import LANGUAGES

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGET = DOCS / "gateway-config.md"
SCHEMA = DOCS / "gateway-config.schema.json"
EXAMPLE = """\
backends:
  own-a:
    url: http://10.0.0.1:8000
    kind: octavo
    models:
      smollm2: {context_length: 8192, price: {device_hour: 2.50}}
  own-b:
    url: http://10.0.0.2:8000
    kind: octavo
    models:
      smollm2: {context_length: 8192, price: {device_hour: 2.50}}
  cloud:
    url: https://api.openai.com/v1
    api_key: ${OPENAI_API_KEY}
    models:
      gpt-4.1: {context_length: 1000000, price: {input: 2.00, cached_input: 0.50, output: 8.00}}

judges:
  sure: {kind: logprob, mean: -0.8}
  answers: {kind: refusal}
  good: {kind: all, of: [answers, sure]}

tiers:
  small: {targets: [own-a/smollm2, own-b/smollm2], judge: good}
  large: {targets: [cloud/gpt-4.1]}

models:
  assistant: {tiers: [small, large], max_cost: 0.05, description: small first}
  classify-intent: {tiers: [small]}

rules:
  - name: images
    when: {models: [assistant], has_images: true}
    tiers: [large]
  - name: long
    when: {models: [assistant], min_prompt_chars: 20000}
    tiers: [large]
    canaries: [{name: small-on-trial, percent: 5, tiers: [small, large]}]

limits:
  rules:
    per-key: {requests_per_minute: 600, tokens_per_minute: 400000}

budgets:
  rules:
    per-key: {cost: 20, period: day}
    support: {cost: 500, gpu_hours: 40, period: month, per: [], features: ["support-*"]}
"""
HEADER = """\
# The gateway's configuration

Written by `scripts/gateway_config_docs.py` out of the structs that are read; `make docs` renews it.

One YAML file. `octavo gateway --config gateway.yaml --check` reads it as a whole and tells all that
is wrong, each with file, line, column, field and what to do. Editors check it while it is written,
by [a JSON schema](gateway-config.schema.json):

    # yaml-language-server: $schema=gateway-config.schema.json

- A name that is not known is an error, as is one that is meant to be in another section and is not.
- Secrets are `${NAME}`, from the environment, or `file:/path`. They are shown nowhere. No other
  field takes variables.
- Anchors (`&name`, `*name`, `<<`) work; top-level names that begin with `x-` are left for them.
- Sizes are in bytes, times in seconds, prices per million tokens, unless a field says otherwise.
- Names for people and patterns: `*`, `?` and `[abc]` as in a shell, matched whole.

Requests go where the first rule says whose conditions hold; else where `models` says for the name
that was asked for; else, unless `routing.serve_backend_models` is off, to the backends that have a
model of this name. Keys, limits and budgets are checked before, by the name that was asked for.

Languages that rules can tell, by the last thing that the user says: {LANGUAGES}.

```yaml
{EXAMPLE}```
"""


def type_name(kind: Any) -> str:
    """A type in words."""
    base, limits = without_limits(kind)
    args = typing.get_args(base)
    origin = typing.get_origin(base)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in args)
    if origin is dict:
        return f"mapping: {type_name(args[0])} to {type_name(args[1])}"
    if origin in (tuple, list):
        return f"list of {type_name(args[0])}"
    if args:
        members = [arg for arg in args if arg is not type(None)]
        if len(members) > 3 and all(_is_struct(member) for member in members):
            return "one of the kinds below"
        return " or ".join(map(type_name, members))
    if _is_struct(base):
        return f"[{base.__name__}](#{base.__name__.lower()})"
    names = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "Decimal": "number",
        "bool": "true, false",
        "datetime": "time",
        "Any": "anything",
        "Secret": "secret",
    }
    return names[base.__name__] + bounds(limits)


def bounds(limits: tuple[msgspec.Meta, ...]) -> str:
    """The bounds of a number, in words."""
    found = []
    for meta in limits:
        found += [
            f"{sign} {value:,}"
            for sign, value in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt))
            if value is not None
        ]
    return f" {' and '.join(found)}" if found else ""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def default(field: msgspec.structs.FieldInfo) -> str:
    """What a field is where it is left out."""
    if field.required:
        return "**needed**"
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    if value in (None, "", (), {}):
        return ""
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, tuple) and len(value) < 4:
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, str):
        return f"`{value}`" if len(value) < 40 and "\n" not in value else "a text of its own"
    return f"{len(value)} texts"


def section(kind: type[msgspec.Struct]) -> str:
    """One struct in Markdown."""
    tag = kind.__struct_config__.tag
    lines = [f"## {kind.__name__}", "", about(kind)]
    if tag is not None:
        lines += ["", f"`{kind.__struct_config__.tag_field}: {tag}`"]
    texts = field_texts(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(kind):
        cells = (type_name(hints[field.name]), default(field), texts[field.name])
        rows.append(f"| `{field.encode_name}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "| field | is | left out | |", "|---|---|---|---|", *rows]) + "\n"


def render() -> str:
    """The whole page."""
    header = HEADER.replace("{EXAMPLE}", EXAMPLE)
    header = header.replace("{LANGUAGES}", ", ".join(sorted(LANGUAGES)))
    return "\n".join([header, *(section(kind) for kind in structs())])


def render_schema() -> str:
    """The JSON schema, as a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
    SCHEMA.write_text(render_schema())
