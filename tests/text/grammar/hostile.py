"""Grammars that cost far more than they look: what a server must survive."""

from __future__ import annotations

from typing import Any


def _nested(levels: int, text: bool = False) -> Any:
    if text:
        return '{"type":"array","items":' * levels + "{}" + "}" * levels
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _ladder(word: str, levels: int) -> dict[str, Any]:
    """Each definition names the next one twice: 2^levels paths."""
    parts: dict[str, Any] = {
        f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)
    }
    return {"$defs": {**parts, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


_RULES = 3000

HOSTILE: dict[str, dict[str, Any]] = {
    "regex alternation bomb": {"regex": "(a|a)*" * 50 + "b"},
    "regex nested stars": {"regex": "(((a+)+)+)+$"},
    "regex nested counts": {"regex": "(a{1,1000}){1,1000}"},
    "regex thrice nested counts": {"regex": "((a{1,100}){1,100}){1,100}b"},
    "regex huge count": {"regex": "a{1000000000}"},
    "regex count beyond integers": {"regex": "a{99999999999999999999}"},
    "regex unicode classes": {"regex": r"(\p{L}|\w|\d){500}x"},
    "regex automaton blow-up": {"regex": "(a|b)*a(a|b){60}"},
    "regex deep groups": {"regex": "(" * 60000 + "a" + ")" * 60000},
    "regex fairly deep groups": {"regex": "(" * 2000 + "a" + ")" * 2000},
    "regex of a megabyte": {"regex": "a" * 10**6},
    "regex of many options": {"regex": "ab?" * 33000},
    "regex back-reference": {"regex": r"(a)\1"},
    "regex look-around": {"regex": "(?<=a)b(?!c)"},
    "regex unclosed": {"regex": "(((("},
    "regex empty class": {"regex": r"[^\x00-\x{10FFFF}]"},
    "regex of no text": {"regex": "\u202e\ud83d\ude00\x00"},
    "choices, a megabyte": {"choice": ["x" * 1000 + str(i) for i in range(1000)]},
    "choices, control characters": {"choice": ["\x00", "\u202e", "\U0010ffff", '"\\', "\n"]},
    "choices, half a surrogate": {"choice": ["\ud800"]},
    "schema deep": {"json": _nested(900)},
    "schema text deep": {"json": _nested(20000, text=True)},
    "schema text with 10^5 levels": {"json": "[" * 10**5},
    "schema no JSON": {"json": '{"type": '},
    "schema with NaN": {"json": '{"type": "number", "minimum": NaN}'},
    "schema a list": {"json": "[1]"},
    "schema false": {"json": False},
    "schema of a megabyte": {"json": {"enum": ["x" * 100 + str(i) for i in range(10**4)]}},
    "schema huge enumeration": {"json": {"enum": [f"v{i}" for i in range(12000)]}},
    "schema remote reference": {"json": {"$ref": "https://example.com/schema.json"}},
    "schema file reference": {"json": {"$ref": "file:///etc/passwd"}},
    "schema dangling reference": {"json": {"$ref": "#/$defs/none"}},
    "schema is itself": {"json": {"$ref": "#"}},
    "schema reference circle": {
        "json": {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        }
    },
    "schema anyOf ladder": {"json": _ladder("anyOf", 30)},
    "schema allOf ladder": {"json": _ladder("allOf", 25)},
    "schema oneOf ladder": {"json": _ladder("oneOf", 25)},
    "schema products": {
        "json": {
            "allOf": [
                {
                    "anyOf": [
                        {"type": "object", "properties": {f"k{i}": {"type": "string"}}},
                        {"type": "object", "properties": {f"m{i}": {"type": "integer"}}},
                    ]
                }
                for i in range(18)
            ]
        }
    },
    "schema meeting patterns": {
        "json": {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]}
    },
    "schema pattern bomb": {"json": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}},
    "schema long string": {"json": {"type": "string", "minLength": 10**5, "maxLength": 10**6}},
    "schema long list": {"json": {"type": "array", "items": {"type": "string"}, "minItems": 10**6}},
    "schema wide numbers": {"json": {"type": "number", "minimum": -1.2345e200, "maximum": 1e300}},
    "schema prime multiples": {"json": {"type": "integer", "multipleOf": 999983}},
    "schema many properties": {
        "json": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(3000)},
            "required": [f"p{i}" for i in range(0, 3000, 2)],
        }
    },
    "schema odd options": {
        "json": {"type": "object", "x-guidance": {"whitespace_pattern": "(a{1,1000}){1,1000}"}}
    },
    "schema unicode names": {
        "json": {"type": "object", "properties": {"\u202e\x00\U0010ffff": {"type": "null"}}}
    },
    "lark left recursion": {"grammar": 'start: start start | "a" | '},
    "lark ambiguity": {"grammar": 'start: a a a a a a\na: a a | "x"?'},
    "lark only itself": {"grammar": "start: b\nb: start"},
    "lark long circle": {
        "grammar": "start: "
        + " | ".join(f"r{i}" for i in range(_RULES))
        + "\n"
        + "\n".join(f'r{i}: "x{i}" r{(i + 1) % _RULES}' for i in range(_RULES))
    },
    "lark deep groups": {"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000},
    "lark huge count": {"grammar": 'start: ("a" | "b"){1000000000}'},
    "lark nested counts": {"grammar": 'start: a{1000}\na: b{1000}\nb: "x"{1000}'},
    "lark deep schema": {"grammar": f"start: %json {_nested(5000, text=True)}"},
    "lark negations": {"grammar": "start: T\nT: ~(~(~(/.*a.{20}/) & /.*b.{20}/) & /.*c.{20}/)"},
    "lark import": {"grammar": '%import common.NUMBER\n%import "/etc/passwd"\nstart: NUMBER'},
    "lark unknown token": {"grammar": "start: <no-such-token> <[99999999]>"},
    "lark no start": {"grammar": 'a: "b"'},
    "lark garbage": {"grammar": "\x00\ufffd {{{ %%% ::="},
    "gbnf garbage": {"grammar": "root ::= [[[ (((\n::= | | |"},
    "gbnf deep groups": {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    "gbnf left recursion": {"grammar": 'root ::= root root | "a" | ""'},
}
