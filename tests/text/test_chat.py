"""Chat templates against transformers. The templates here are ours; each uses the features that
one family's published template uses.
"""
# ruff: noqa: E501

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from octavo.errors import InvalidRequestError
from octavo.text.chat import ChatTemplate
from tests.gguf_reader import read_once

CHATML = """{% for message in messages %}
{%- if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Llama 3.1: bos, a system message taken out, tools in JSON with an indent, a date, tool calls.
TOOLS = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\n\nToday: " ~ date_string ~ "\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model makes one tool call at a time, not <two> & more!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start|>ipython<|end|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot|>" }}
    {%- else %}
        {{- '<|start|>' + message['role'] + '<|end|>\n\n'+ message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}
"""

# Qwen3: a reversed walk with a namespace, string methods, reasoning, a switch.
THINKING = """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '[' + message.role + ']<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- '[' + message.role + ']' + content }}{%- endif %}
    {%- else %}{{- '[' + message.role + ']' + content + '\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

# Gemma 3: parts or a string, alternation, a macro, a role renamed, the first system message.
PARTS = """{{ bos_token }}
{%- macro text_of(content) -%}
    {%- if content is string -%}{{ content | trim }}
    {%- elif content is iterable -%}
        {%- for item in content -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = text_of(messages[0]['content']) + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\n' + (prefix if loop.first else "") }}{{ text_of(message['content']) }}{{ '</turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}
"""

# Mistral and others: loop controls, whitespace of plain blocks, filters, eos, generation blocks.
CONTROLS = """{{ bos_token }}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% if loop.index > 6 %}
        {% break %}
    {% endif %}
    {% if message.role == 'user' %}
[INST] {{ message.content | replace('[', '(') }} [/INST]
    {% else %}
{% generation %}{{ message.content | upper }}{{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}
{{ messages | map(attribute='role') | unique | list | tojson }}
{{ dict(a=1, **{'b': [1, 2.5, none, true]}) | tojson(sort_keys=true, separators=(',', ':')) }}
{{ '%s-%03d' % ('x', 7) }} {{ '{:>5}|{}'.format('ab', 3) }} {{ 7 // 2 * 'ab' + 2 ** 3 * '.' }}"""

# Takes parts only: over a string it would walk the letters.
PARTS_ONLY = """{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.text }}{% endfor %}
{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML,
    "tools": TOOLS,
    "thinking": THINKING,
    "parts": PARTS,
    "controls": CONTROLS,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says <what> & 'how' it is in Zürich",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SYSTEM = {"role": "system", "content": " Answer as a printer. "}
USER = {"role": "user", "content": 'What is an <octavo> & "quarto"?\n'}
ASSISTANT = {"role": "assistant", "content": "<think>\nfold it\n</think>\n\nA sheet, folded."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ur"}}}
    ],
}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT],
    [SYSTEM, USER, ASSISTANT, USER],
    [USER, USER],
    [USER, CALL, {"role": "tool", "content": "12 °C", "tool_call_id": "1"}],
    [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}],
    [USER, {**ASSISTANT, "content": "So.", "reasoning_content": "It is\nthis."}],
    [USER, {**ASSISTANT, "content": "So.", "reasoning": "or that"}, USER],
    [{"role": "user"}],
    [SYSTEM],
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Backend(models.BPE()), bos_token="<s>", eos_token="</s>", unk_token="<u>"
    )


def ours(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", special_tokens={"unk_token": "<u>"})


def reference(theirs: Any, source: str, chat: Any, **settings: Any) -> str | None:
    """What transformers renders, or None where it raises."""
    try:
        text = theirs.apply_chat_template(chat, chat_template=source, tokenize=False, **settings)
    except Exception:
        return None
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("chat", CHATS)
def test_equals_transformers(
    name: str, add_generation_prompt: bool, tools: Any, chat: Any, theirs: Any
) -> None:
    settings: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "tools": tools}
    template = ours(TEMPLATES[name])
    expected = reference(theirs, TEMPLATES[name], chat, **settings)
    if expected is None:
        with pytest.raises(InvalidRequestError) as caught:
            template.render(chat, **settings)
        assert caught.value.param == "messages"
    else:
        assert template.render(chat, **settings) == expected


def test_the_references_are_not_all_errors(theirs: Any) -> None:
    for source in TEMPLATES.values():
        rendered = [reference(theirs, source, chat) for chat in CHATS]
        assert sum(text is not None for text in rendered) >= 5


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_messages_equal_transformers(name: str, theirs: Any) -> None:
    template = ours(TEMPLATES[name])
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": text}
    )

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(message, min_size=1, max_size=6), st.booleans())
    def check(chat: list[dict[str, str]], add: bool) -> None:
        expected = reference(theirs, TEMPLATES[name], chat, add_generation_prompt=add)
        try:
            assert template.render(chat, add_generation_prompt=add) == expected
        except InvalidRequestError:
            assert expected is None

    check()


@pytest.mark.parametrize(("variable", "value"), [("enable_thinking", False), ("bos_token", "<x>")])
def test_further_variables_equal_transformers(variable: str, value: Any, theirs: Any) -> None:
    for source in (THINKING, TOOLS):
        expected = reference(
            theirs, source, [USER], add_generation_prompt=True, **{variable: value}
        )
        assert ours(source).render([USER], **{variable: value}) == expected is not None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "content", ["It is a ", "  It is\n", "x", [{"type": "text", "text": "It "}]]
)
def test_continuing_equals_transformers(name: str, content: Any, theirs: Any) -> None:
    chat = [USER, {"role": "assistant", "content": content}]
    flags: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    if isinstance(content, list) and name != "parts":
        flat = [USER, {"role": "assistant", "content": content[0]["text"]}]
    else:
        flat = chat
    expected = reference(theirs, TEMPLATES[name], flat, **flags)
    if expected is None:
        with pytest.raises(InvalidRequestError):
            ours(TEMPLATES[name]).render(chat, **flags)
    else:
        assert ours(TEMPLATES[name]).render(chat, **flags) == expected


def test_any_name_may_be_a_variable() -> None:
    template = ours("{{ a }}{{ messages | length }}{{ bos_token }}")
    assert template.render([USER], self=1, a=2, context=3) == "21<s>"


def test_messages_are_left_unchanged() -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": None}]
    ours(PARTS).render(chat, add_generation_prompt=False, continue_final_message=True)
    assert chat == [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": None}]


@pytest.mark.parametrize(
    ("source", "parts", "strings"),
    [
        (CHATML, False, True),
        (TOOLS, False, True),
        (THINKING, False, True),
        (PARTS, True, True),
        (PARTS_ONLY, True, False),
        ("{{ messages[0].content }}", False, True),
        ("{{ messages[0].content | tojson }}", False, True),
        ("nothing", False, True),
        ("{{ raise_exception('no') }}", False, True),
    ],
)
def test_finds_the_shape_of_content(source: str, parts: bool, strings: bool) -> None:
    template = ours(source)
    assert (template.takes_parts, template.takes_strings) == (parts, strings)


def test_parts_and_strings_reach_a_template_in_its_own_shape() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "three"}]
    assert "user\none\ntwo<" in ours(CHATML).render(chat)
    assert ours(PARTS_ONLY).render(chat) == "<user>onetwo<assistant>three"
    assert "<turn>user\nonetwo</turn>" in ours(PARTS).render(chat)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], "messages[1].content[1]"),
        ([{"text": "a"}], "messages[1].content[0]"),
        (["a"], "messages[1].content[0]"),
        ([{"type": "text"}], "messages[1].content[0].text"),
        ([{"type": "text", "text": 3}], "messages[1].content[0].text"),
        (7, "messages[1].content"),
    ],
)
@pytest.mark.parametrize("source", [CHATML, PARTS])
def test_wrong_parts_are_named(content: Any, param: str, source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ours(source).render([USER, {"role": "assistant", "content": content}])
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PARTS, "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("{{ messages[0].nothing.at_all }}", "cannot render these messages: 'dict object' has no"),
        ("{{ messages[0].content + 1 }}", "cannot render these messages"),
        ("{% for x in %}", "does not compile"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set n = namespace(__init__=1) %}", "'__init__'"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "bounds"),
    ],
)
def test_the_templates_own_words(source: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        ours(source).render([USER, USER])
    assert caught.value.param == "messages"


def test_no_messages_and_both_ends_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        ours(CHATML).render([])
    with pytest.raises(InvalidRequestError, match="exclude") as caught:
        ours(CHATML).render([USER], continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_deeply_nested_messages_are_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="nested"):
        ours(CHATML).render([{**USER, "extra": deep}])


def test_tools_take_the_template_made_for_them() -> None:
    template = ChatTemplate("plain", tool_source="{{ tools[0].function.name }}")
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[WEATHER]) == "weather"


HEAD = "{% for m in messages %}{{ m.role }}:"
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "f", "arguments": {"a": "é", "n": None}},
        }
    ],
}


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        # Qwen, Llama, Mistral: an object in JSON.
        (
            "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
            "{% endfor %}",
            '{"a": "é", "n": null}',
        ),
        # Qwen3: either.
        (
            "{{ m.content }}{% for c in m.tool_calls %}{% set a = c.function.arguments %}"
            "{% if a is string %}{{ a }}!{% else %}{{ a | tojson }}{% endif %}{% endfor %}",
            '{"a": "é", "n": null}',
        ),
        # Qwen3-Coder: an object's items.
        (
            "{% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};"
            "{% endfor %}{% endfor %}",
            "a=é;n=None;",
        ),
        # DeepSeek-V3.1: a text.
        (
            "{% for c in m.tool_calls %}{{ m.content + c.function.name + c.function.arguments }}"
            "{% endfor %}",
            'f{"a": "é", "n": null}',
        ),
        # A text too, or the object would come out as Python spells it.
        (
            "{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}",
            '{"a": "é", "n": null}',
        ),
        # DeepSeek-R1: a text, and calls only where content is null.
        (
            "{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
            "{{ 'function' + c.function.arguments }}{% endfor %}{% else %}{{ m.content + '' }}"
            "{% endif %}",
            'function{"a": "é", "n": null}',
        ),
        # An object, and null content.
        (
            "{% if m.content is none %}{% for c in m.tool_calls %}"
            "{{ c.function | tojson }}{% endfor %}{% endif %}",
            '{"name": "f", "arguments": {"a": "é", "n": null}}',
        ),
        # Calls are not written at all: nothing changes.
        ("{{ m.content }}", ""),
    ],
)
def test_calls_reach_a_template_in_its_own_shape(source: str, rendered: str) -> None:
    template = ChatTemplate(HEAD + source + "{% endfor %}")
    before = json.dumps(CALLED)
    assert template.render([CALLED]) == f"assistant:{rendered}"
    assert json.dumps(CALLED) == before


def test_many_threads_render_at_once() -> None:
    template = ours(TOOLS)
    expected = template.render([SYSTEM, USER], tools=[WEATHER])
    results: list[str] = []

    def work() -> None:
        results.extend(template.render([SYSTEM, USER], tools=[WEATHER]) for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 1600


@pytest.mark.model
def test_the_real_template_equals_transformers() -> None:
    from transformers import AutoTokenizer

    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.open import open_checkpoint
    from octavo.weights.store import resolve

    path = resolve("smollm2")
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config)
    checkpoint.close()
    with read_once():
        real = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for chat in ([USER], [SYSTEM, USER], [USER, ASSISTANT, USER]):
        for add in (True, False):
            text = tokenizer.require_chat_template().render(chat, add_generation_prompt=add)
            assert text == real.apply_chat_template(chat, tokenize=False, add_generation_prompt=add)
            assert tokenizer.encode(text, add_special_tokens=False) == real.apply_chat_template(
                chat, add_generation_prompt=add, return_dict=False
            )
