# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Answers as the model families' own documents, templates and public test suites show them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Example(NamedTuple):
    """An answer's text and what it says."""

    format: str
    text: str
    calls: list[tuple[str, Any]]
    content: str = ""
    reasoning: str = ""


SF = {"city": "San Francisco", "metric": "celsius"}
DALLAS = {"city": "Dallas", "state": "TX", "unit": "fahrenheit"}
TOKYO = {"city": "Tokyo", "unit": "celsius"}

# Hermes: https://github.com/NousResearch/Hermes-Function-Calling (README), and the chat template of
# https://huggingface.co/Qwen/Qwen3-0.6B.
HERMES = [
    Example(
        "hermes",
        '<tool_call>\n{"arguments": {"symbol": "TSLA"}, "name": "get_stock_fundamentals"}\n'
        "</tool_call>",
        [("get_stock_fundamentals", {"symbol": "TSLA"})],
    ),
    Example(
        "hermes",
        'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
        [("get_weather", {"city": "Oslo"}), ("get_time", {})],
        "Let me look.",
    ),
    Example("hermes", '<tool_call>{"name": "get_time"}</tool_call>', [("get_time", {})]),
]

# Meta: https://github.com/meta-llama/llama-models, models/llama3_3/prompt_format.md; the others are
# of vLLM's tests/tool_parsers/test_llama3_json_tool_parser.py.
LLAMA3 = [
    Example(
        "llama3_json",
        '<|python_tag|>{\n    "type": "function",\n    "name": "trending_songs",\n'
        '    "parameters": {\n        "n": "10",\n        "genre": "all"\n    }\n}',
        [("trending_songs", {"n": "10", "genre": "all"})],
    ),
    Example(
        "llama3_json",
        '{"name": "searchTool", "parameters": {"query": "test1"}} ; '
        '{"name": "getOpenIncidentsTool", "parameters": {}};\n'
        '{"name": "searchTool", "arguments": {"query": "a {b} [c]", "n": {"i": "}"}}}',
        [
            ("searchTool", {"query": "test1"}),
            ("getOpenIncidentsTool", {}),
            ("searchTool", {"query": "a {b} [c]", "n": {"i": "}"}}),
        ],
    ),
    Example(
        "llama3_json",
        'Here is the result: {"name": "getOpenIncidentsTool", "parameters": {}} I used {it}.',
        [("getOpenIncidentsTool", {})],
        "Here is the result:  I used {it}.",
    ),
    Example("llama3_json", '{"parameters": {}}', [], '{"parameters": {}}'),
    Example("llama3_json", '{"name": "searchTool"}', [], '{"name": "searchTool"}'),
]

# Meta: models/llama3_2/text_prompt_format.md and models/llama3_3/prompt_format.md of the same.
PYTHONIC = [
    Example(
        "pythonic",
        "[get_weather(city='San Francisco', metric='celsius'), "
        "get_weather(city='Seattle', metric='celsius')]",
        [("get_weather", SF), ("get_weather", {**SF, "city": "Seattle"})],
    ),
    Example(
        "pythonic",
        "[get_user_info(user_id=7890, special='black')]",
        [("get_user_info", {"user_id": 7890, "special": "black"})],
    ),
    Example(
        "pythonic",
        "<|python_start|>[register_user(name='John', address={'city': 'San Francisco'}, role=None, "
        "passed=True, aliases=['J', 'K']), get_time()]<|python_end|>",
        [
            (
                "register_user",
                {
                    "name": "John",
                    "address": {"city": "San Francisco"},
                    "role": None,
                    "passed": True,
                    "aliases": ["J", "K"],
                },
            ),
            ("get_time", {}),
        ],
    ),
    Example(
        "pythonic",
        r"[get_weather(city='Martha\'s Vineyard', metric='\"cool units\"')]",
        [("get_weather", {"city": "Martha's Vineyard", "metric": '"cool units"'})],
    ),
]

# Mistral: https://github.com/mistralai/mistral-common, the templates v3 and v13 among its tests'
# data, that of Mistral-Small-3.2-24B-Instruct-2506, and vLLM's test_mistral_tool_parser.py.
MISTRAL = [
    Example(
        "mistral",
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 3.5, "b": 4}, "id": "VvvODy9mT"}, '
        '{"name": "get_time", "arguments": {}, "id": "abcdefghi"}]',
        [("add", {"a": 3.5, "b": 4}), ("get_time", {})],
    ),
    Example(
        "mistral",
        'Hello[TOOL_CALLS] [{"arguments":{"name": "John Doe"}, "name": "get_age"}]',
        [("get_age", {"name": "John Doe"})],
        "Hello",
    ),
    Example(
        "mistral",
        '[TOOL_CALLS]add[ARGS]{"a": 3.5, "b": 4}[TOOL_CALLS]multiply[ARGS]{"a": 3, "b": 6}',
        [("add", {"a": 3.5, "b": 4}), ("multiply", {"a": 3, "b": 6})],
    ),
    Example(
        "mistral",
        '[TOOL_CALLS]add[CALL_ID]VvvODy9mT[ARGS]{"a": 1}',
        [("add", {"a": 1})],
    ),
    Example(
        "mistral", '[TOOL_CALLS]add_this_and_that{"a": 3.5}', [("add_this_and_that", {"a": 3.5})]
    ),
    Example("mistral", "[TOOL_CALLS] not json", [], "[TOOL_CALLS] not json"),
]

# IBM: the chat template of granite-3.3-2b-instruct ("only with <|tool_call|> followed by a JSON
# list of tools used"), and vLLM's tests of Granite 3 and 4.
GRANITE = [
    Example(
        "granite",
        '<|tool_call|> [\n  {"name": "get_weather", "arguments": {"city": "Tokyo"}},\n'
        '  {"arguments": {"timezone": "Asia/Tokyo"}, "name": "get_time"}\n]',
        [("get_weather", {"city": "Tokyo"}), ("get_time", {"timezone": "Asia/Tokyo"})],
    ),
    Example("granite", '<tool_call>[{"name": "refresh", "arguments": {}}]', [("refresh", {})]),
    Example(
        "granite",
        'Here goes the call: \n<tool_call> {"name": "find", "arguments": '
        '"{\\"at\\": [[23.54, 43.1]], \\"kind\\": \\"latlong\\"}"} </tool_call> See?',
        [("find", {"at": [[23.54, 43.1]], "kind": "latlong"})],
        "Here goes the call: \n See?",
    ),
]

# DeepSeek: the chat templates of DeepSeek-R1, -V3 and -V3.1; vLLM's tests of V3 and V3.1.
DEEPSEEK = [
    Example(
        "deepseek_v3",
        "Let me check.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather"
        '\n```json\n{"city": "Tokyo", "unit": "celsius"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        [("get_weather", TOKYO), ("get_time", {})],
        "Let me check.",
    ),
    Example(
        "deepseek_v31",
        'normal text<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>foo<｜tool▁sep｜>{"x":1}'
        '<｜tool▁call▁end｜><｜tool▁call▁begin｜>bar<｜tool▁sep｜>{"y":2}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        [("foo", {"x": 1}), ("bar", {"y": 2})],
        "normal text",
    ),
    *[
        Example("deepseek_v31", text, [], text)
        for text in (
            "Let me look that up.<｜tool▁calls▁begin｜>get_weather",
            '<｜tool▁calls▁begin｜>foo<｜tool▁sep｜>{"x":1}<｜tool▁calls▁end｜>',
        )
    ],
]

# Qwen: the chat template of Qwen3-Coder-30B-A3B-Instruct, and vLLM's tests of it.
_ORLANDO = "<parameter=city>\nOrlando\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
QWEN3_CODER = [
    Example(
        "qwen3_coder",
        "Sure! Let me check.<tool_call>\n<function=get_current_weather>\n<parameter=city>\nDallas\n"
        "</parameter>\n<parameter=state>\nTX\n</parameter>\n<parameter=unit>\nfahrenheit\n"
        f"</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n{_ORLANDO}"
        "</function>\n</tool_call>",
        [("get_current_weather", DALLAS), ("get_weather", {"city": "Orlando", "days": 2})],
        "Sure! Let me check.",
    ),
    Example(
        "qwen3_coder",
        f"<function=get_weather>\n{_ORLANDO}</function>",
        [("get_weather", {"city": "Orlando", "days": 2})],
    ),
    Example(
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nThis is the value\nthat can <span>"
        "\n\nmultiple lines\n</parameter>\n</function>\n</tool_call>",
        [("get_weather", {"city": "This is the value\nthat can <span>\n\nmultiple lines"})],
    ),
    Example(
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n"
        "</function>\n</tool_call>",
        [("get_weather", {"city": "Oslo", "days": 3})],
    ),
]

# OpenAI: https://github.com/openai/harmony/blob/main/docs/format.md, and (recipient in the role)
# the chat template of gpt-oss-120b.
GPT_OSS = [
    Example(
        "gpt_oss",
        '<|channel|>analysis<|message|>User asks: "What is 2 + 2?" Simple arithmetic. Provide '
        "answer.<|end|>\n<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>",
        [],
        "2 + 2 = 4.",
        'User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.',
    ),
    Example(
        "gpt_oss",
        "<|channel|>analysis<|message|>Need to use function get_weather.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"location":"San Francisco"}<|call|>',
        [("get_weather", {"location": "San Francisco"})],
        "",
        "Need to use function get_weather.",
    ),
    Example(
        "gpt_oss",
        "<|channel|>analysis<|message|>{long chain of thought}<|end|><|start|>assistant<|channel|>"
        "commentary<|message|>**Action plan**:\n1. Generate an HTML file\n---\nWill start "
        "executing the plan<|end|><|start|>assistant<|channel|>commentary to=functions.generate"
        '_file<|constrain|>json<|message|>{"template": "basic_html", "path": "index.html"}<|call|>',
        [("generate_file", {"template": "basic_html", "path": "index.html"})],
        "**Action plan**:\n1. Generate an HTML file\n---\nWill start executing the plan",
        "{long chain of thought}",
    ),
    Example(
        "gpt_oss",
        ' to=functions.get_time<|channel|>commentary json<|message|>{"zone": "UTC"}<|call|>',
        [("get_time", {"zone": "UTC"})],
    ),
    Example(
        "gpt_oss",
        "<|channel|>analysis to=browser.search<|message|>query<|call|>",
        [],
        "",
        "query",
    ),
    Example("gpt_oss", "No channels at all: 1 <|2 < 3", [], "No channels at all: 1 <|2 < 3"),
]

EXAMPLES = [
    *HERMES,
    *LLAMA3,
    *PYTHONIC,
    *MISTRAL,
    *GRANITE,
    *DEEPSEEK,
    *QWEN3_CODER,
    *GPT_OSS,
]
