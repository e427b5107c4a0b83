# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Formats chosen by what stands in a chat template: the lines here are in the families' manner."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError
from octavo.text.answers import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    AnswerFormats,
    choose_formats,
)

QWEN3 = """
within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>,
{%- if '</think>' in message.content %}
"""
QWEN3_CODER = "<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>"
LLAMA3 = """
'<|start_header_id|>' + message['role']
{"name": function name, "parameters": dictionary of argument name and its value}
"""
DEEPSEEK = (
    "'<｜Assistant｜></think>' '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' '<｜tool▁sep｜>'"
)
GRANITE = "'<|start_of_role|>' 'respond only with <|tool_call|> followed by a JSON list'"


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (QWEN3, "hermes", "qwen3"),
        (QWEN3.partition("{%-")[0], "hermes", None),
        (QWEN3_CODER, "qwen3_coder", None),
        (QWEN3_CODER + "</think>", "qwen3_coder", "qwen3"),
        (LLAMA3, "llama3_json", None),
        (LLAMA3 + "[func_name1(params_name1=params_value1, ...)]", "pythonic", None),
        (DEEPSEEK, "deepseek_v31", "deepseek_r1"),
        (DEEPSEEK + "'\\n' + '```json'", "deepseek_v3", "deepseek_r1"),
        ("'[TOOL_CALLS]' + name + '[ARGS]'", "mistral", None),
        ("'[THINK]' + thinking '[TOOL_CALLS]'", "mistral", "mistral"),
        (GRANITE, "granite", None),
        (GRANITE + "between <think></think> and <response></response>", "granite", "granite"),
        ("'<|start_of_role|>' <tool_call></tool_call>", "granite", None),
        (
            "<|start|>assistant<|channel|>analysis<|message|> functions.",
            "gpt_oss",
            "gpt_oss",
        ),
        # Others' formats that look alike.
        ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", None, None),
        ("<seed:tool_call>\n<function=x>\n<parameter=y>", None, None),
        ("'<|tool_call|>' of Phi, '<tool_calls>[', <TOOLCALL>[", None, None),
        ("{{ bos_token }}{{ messages }}", None, None),
        ("", None, None),
    ],
)
def test_auto(template: str, tools: str | None, reasoning: str | None) -> None:
    assert choose_formats("auto", "auto", [template]) == AnswerFormats(tools, reasoning)
    assert choose_formats("auto", "auto", ["plain", template]) == AnswerFormats(tools, reasoning)
    assert choose_formats("none", "none", [template]) == AnswerFormats()


def test_names() -> None:
    for name in TOOL_FORMATS:
        assert choose_formats(name, "none", [QWEN3]) == AnswerFormats(name, None)
    for name in REASONING_FORMATS:
        assert choose_formats("none", name, [QWEN3]) == AnswerFormats(None, name)
    with pytest.raises(ConfigError, match="--tool-call-parser must be auto, none or one of deep"):
        choose_formats("gpt4", "auto", [])
    with pytest.raises(ConfigError, match=r"--reasoning-parser .* not 'hermes'"):
        choose_formats("auto", "hermes", [])


def test_markers() -> None:
    both = AnswerFormats("hermes", "qwen3")
    assert set(both.markers(has_tools=False)) == {"<think>", "</think>"}
    assert "<tool_call>" in both.markers(has_tools=True)
    assert AnswerFormats().markers(has_tools=True) == ()
    assert "<|channel|>" in AnswerFormats(None, "gpt_oss").markers(has_tools=False)
    assert AnswerFormats("hermes").parser(()) is None
