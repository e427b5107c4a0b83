"""The fields of `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.server.fake_engine import FakeTemplate, FakeTokenizer
from tests.server.probes import Probe, Table, changes, harmless, refused

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

_USER: dict[str, Any] = {"role": "user", "content": "hello"}
_BODY: dict[str, Any] = {"model": "fake", "messages": [_USER]}
_TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
_CACHED = {"cache_control": {"type": "ephemeral"}}
_HINT = "prefixes are found in the cache without hints"


def _serves() -> dict[str, Any]:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate("{{ tools }}{{ enable_thinking }}{{ reasoning_effort }}")
    return {"tokenizer": tokenizer, "tool_call_parser": "hermes", "reasoning_parser": "qwen3"}


def _answers(server: RunningServer) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    server.engine.pieces = ["<think>Hm.</think>", "Yes.", call, call]


def _says(role: str, content: Any) -> dict[str, Any]:
    return {"messages": [_USER, {"role": role, "content": content}, _USER]}


def _block(role: str, kind: str, **fields: Any) -> dict[str, Any]:
    least = {
        "text": {"text": "hi"},
        "tool_use": {"id": "c", "name": "f", "input": {}},
        "tool_result": {"tool_use_id": "c", "content": "hi"},
        "thinking": {"thinking": "hm", "signature": "s"},
    }[kind]
    return _says(role, [{"type": kind, **least, **fields}])


def _cache(
    path: str, asks: dict[str, Any], value: Any, without: dict[str, Any]
) -> dict[str, Probe]:
    """Probes of a place where a hint for the cache may be: `value`, which `asks` holds."""
    value.update(_CACHED)
    probes = {f"{path}.cache_control": harmless(asks, _HINT, without)}
    probes[f"{path}.cache_control.type"] = probes[f"{path}.cache_control"]
    probes[f"{path}.cache_control.ttl"] = harmless(asks, _HINT, without)
    return probes


def _cache_probes() -> dict[str, Probe]:
    probes: dict[str, Probe] = {}
    for role, kind in (
        ("user", "text"),
        ("user", "tool_result"),
        ("assistant", "text"),
        ("assistant", "tool_use"),
        ("system", "text"),
    ):
        asks = _block(role, kind)
        block = asks["messages"][1]["content"][0]
        probes |= _cache(f"messages[{role}].content[{kind}]", asks, block, _block(role, kind))
    result = {"type": "text", "text": "hi"}
    probes |= _cache(
        "messages[user].content[tool_result].content[text]",
        _block("user", "tool_result", content=[result]),
        result,
        _block("user", "tool_result", content=[dict(result)]),
    )
    system = {"type": "text", "text": "hi"}
    probes |= _cache("system[text]", {"system": [system]}, system, {"system": [dict(system)]})
    tool = dict(_TOOL)
    probes |= _cache("tools[]", {"tools": [tool]}, tool, {"tools": [_TOOL]})
    body: dict[str, Any] = {}
    return probes | {
        name.removeprefix("."): probe for name, probe in _cache("", body, body, {}).items()
    }


def _message_probes() -> dict[str, Probe]:
    probes: dict[str, Probe] = {}
    for role in ("user", "assistant", "system"):
        path = f"messages[{role}].content"
        cites = {"citations": [{"type": "char_location"}]}
        probes |= {
            path: changes(_says(role, "other"), _says(role, "hi")),
            f"{path}[text].text": changes(_block(role, "text", text="x"), _block(role, "text")),
            f"{path}[text].citations": refused(
                _block(role, "text", **cites),
                _block(role, "text"),
                name="messages[1].content[0].citations",
                neutral=(_block(role, "text", citations=[]),),
            ),
        }
    path = "messages[user].content[tool_result]"
    plain = _block("user", "tool_result")
    parts = _block("user", "tool_result", content=[{"type": "text", "text": "hi"}])
    cited = {"type": "text", "text": "hi", "citations": [{"type": "char_location"}]}
    probes |= {
        f"{path}.tool_use_id": changes(_block("user", "tool_result", tool_use_id="d"), plain),
        f"{path}.content": changes(_block("user", "tool_result", content="other"), plain),
        f"{path}.content[text].text": changes(
            _block("user", "tool_result", content=[{"type": "text", "text": "x"}]), parts
        ),
        f"{path}.content[text].citations": refused(
            _block("user", "tool_result", content=[cited]),
            parts,
            name="messages[1].content[0].content[0].citations",
        ),
        f"{path}.is_error": changes(
            _block("user", "tool_result", is_error=True),
            plain,
            neutral=(_block("user", "tool_result", is_error=False),),
        ),
        f"{path}.toolset_name": refused(
            _block("user", "tool_result", toolset_name="x"),
            plain,
            name="messages[1].content[0].toolset_name",
        ),
    }
    path = "messages[assistant].content[tool_use]"
    plain = _block("assistant", "tool_use")
    direct = _block("assistant", "tool_use", caller={"type": "direct"})
    caller = _block("assistant", "tool_use", caller={"type": "code_execution_20260120"})
    probes |= {
        f"{path}.id": changes(_block("assistant", "tool_use", id="d"), plain),
        f"{path}.name": changes(_block("assistant", "tool_use", name="g"), plain),
        f"{path}.input": changes(_block("assistant", "tool_use", input={"a": 1}), plain),
        f"{path}.caller": harmless(direct, "the model itself is the only caller", plain),
        f"{path}.caller.type": refused(caller, plain, name="messages[1].content[0].caller.type"),
        f"{path}.toolset_name": refused(
            _block("assistant", "tool_use", toolset_name="x"),
            plain,
            name="messages[1].content[0].toolset_name",
        ),
    }
    path = "messages[assistant].content[thinking]"
    plain = _block("assistant", "thinking")
    return probes | {
        f"{path}.thinking": changes(_block("assistant", "thinking", thinking="x"), plain),
        f"{path}.signature": harmless(
            _block("assistant", "thinking", signature="x"),
            "it vouches for Anthropic's own reasoning, which is not looked for here",
            plain,
        ),
    }


def _tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{**_TOOL, **fields}]}


def _choice(kind: str, **fields: Any) -> dict[str, Any]:
    return {**_tool(), "tool_choice": {"type": kind, **fields}}


def _thinks(kind: str = "enabled", **fields: Any) -> dict[str, Any]:
    least = {"budget_tokens": 1024} if kind == "enabled" else {}
    return {"thinking": {"type": kind, **least, **fields}}


def _formatted(**fields: Any) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": _SCHEMA, **fields}}}


_EDITS = {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
_DROPS = {
    "context_management": {
        "edits": [{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns"}}]
    }
}
_KEPT = "it asks to keep what is kept anyway"

_ONE_CALL = "tool_choice[auto].disable_parallel_tool_use"
_ONE_CALL_ASKS = _choice("auto", disable_parallel_tool_use=True)
_HIDDEN = _thinks(display="omitted")
_HIDDEN_ADAPTIVE = _thinks("adaptive", display="omitted")

_COMMON: dict[str, Probe] = {
    **_message_probes(),
    **_cache_probes(),
    "model": refused({"model": "org/other"}, status=404),
    "messages": changes({"messages": [{"role": "user", "content": "other"}]}),
    "system": changes({"system": "Be brief."}, neutral=({"system": ""}, {"system": []})),
    "system[text].text": changes({"system": [{"type": "text", "text": "Be brief."}]}),
    "system[text].citations": refused(
        {"system": [{"type": "text", "text": "x", "citations": [{"type": "char_location"}]}]},
        name="system[0].citations",
    ),
    "tools": changes(_tool(), neutral=({"tools": []},)),
    "tools[].name": changes(_tool(name="g"), _tool()),
    "tools[].description": changes(_tool(description="d"), _tool()),
    "tools[].input_schema": changes(_tool(input_schema=_SCHEMA), _tool()),
    "tools[].type": refused(
        _tool(type="bash_20250124"),
        _tool(),
        name="tools[0].type",
        neutral=(_tool(type="custom"),),
    ),
    "tools[].strict": changes(_tool(strict=True), _tool(), neutral=(_tool(strict=False),)),
    "tools[].eager_input_streaming": harmless(
        _tool(eager_input_streaming=True), "inputs are always streamed as they come", _tool()
    ),
    "tools[].allowed_callers": refused(
        _tool(allowed_callers=["code_execution_20260120"]),
        _tool(),
        name="tools[0].allowed_callers[0]",
        neutral=(_tool(allowed_callers=["direct"]),),
    ),
    "tools[].defer_loading": refused(
        _tool(defer_loading=True),
        _tool(),
        name="tools[0].defer_loading",
        neutral=(_tool(defer_loading=False),),
    ),
    "tools[].input_examples": refused(
        _tool(input_examples=[{}]),
        _tool(),
        name="tools[0].input_examples",
        neutral=(_tool(input_examples=[]),),
    ),
    "tool_choice": changes(_choice("none"), _tool(), neutral=(_choice("auto"),)),
    "tool_choice[tool].name": refused(
        _choice("tool", name="other"), _tool(), name="tool_choice.name"
    ),
    "tool_choice[tool].disable_parallel_tool_use": changes(
        _choice("tool", name="f", disable_parallel_tool_use=True), _choice("tool", name="f")
    ),
    "tool_choice[any].disable_parallel_tool_use": changes(
        _choice("any", disable_parallel_tool_use=True), _choice("any")
    ),
    "thinking": changes(_thinks(), _thinks("disabled")),
    "thinking[enabled].budget_tokens": refused(
        _thinks(budget_tokens=1023), _thinks(), name="thinking.budget_tokens"
    ),
    "output_config": changes(_formatted()),
    "output_config.effort": changes(
        {"output_config": {"effort": "low"}}, neutral=({"output_config": {"effort": "high"}},)
    ),
    "output_config.format": changes(_formatted()),
    "output_config.format.type": refused(_formatted(type="json")),
    "output_config.format.schema": changes(_formatted(schema={"type": "array"}), _formatted()),
    "context_management": harmless(_EDITS, _KEPT),
    "context_management.edits": harmless(_EDITS, _KEPT),
    "context_management.edits[clear_thinking_20251015].keep": refused(
        _DROPS, name="context_management.edits[0].keep"
    ),
    "thread": refused({"thread": {"type": "create"}}),
    "mcp_servers": refused({"mcp_servers": [{}]}, neutral=({"mcp_servers": []},)),
    "speed": refused({"speed": "fast"}, neutral=({"speed": "standard"},)),
}

MESSAGES = Table(
    path="/v1/messages",
    body={**_BODY, "max_tokens": 8},
    serves=_serves,
    prepare=_answers,
    probes={
        **_COMMON,
        "max_tokens": changes({"max_tokens": 5}),
        "temperature": changes({"temperature": 0.25}),
        "top_p": changes({"top_p": 0.5}),
        "top_k": changes({"top_k": 7}),
        "stop_sequences": changes({"stop_sequences": ["q"]}, neutral=({"stop_sequences": []},)),
        "stream": changes({"stream": True}, neutral=({"stream": False},)),
        "cache_salt": changes({"cache_salt": "salt"}),
        "metadata": harmless({"metadata": {"user_id": "u"}}, "it says who asks"),
        "metadata.user_id": harmless({"metadata": {"user_id": "u"}}, "it says who asks"),
        "service_tier": harmless({"service_tier": "standard_only"}, "there is one tier"),
        "billing_policy": refused({"billing_policy": {"type": "billing_policy"}}),
        "compaction": refused({"compaction": {"type": "summarize"}}),
        "container": refused({"container": "c"}),
        "fallback_credit_token": refused({"fallback_credit_token": "t"}),
        "fallbacks": refused({"fallbacks": "default"}, neutral=({"fallbacks": []},)),
        "diagnostics": refused({"diagnostics": {"previous_message_id": "m"}}),
        "inference_geo": refused({"inference_geo": "eu"}),
        "thinking[enabled].display": changes(_HIDDEN, _thinks()),
        "thinking[adaptive].display": changes(_HIDDEN_ADAPTIVE, _thinks("adaptive")),
        _ONE_CALL: changes(_ONE_CALL_ASKS, _tool()),
    },
)

_AFTER = "it is about the answer, and changes nothing in front of it"
_COUNTED = {path: probe for path, probe in _COMMON.items() if not path.startswith("output_config")}
COUNT_TOKENS = Table(
    path="/v1/messages/count_tokens",
    body=_BODY,
    serves=_serves,
    probes={
        **_COUNTED,
        "output_config": changes({"output_config": {"effort": "low"}}),
        "output_config.effort": _COMMON["output_config.effort"],
        "tools[].strict": harmless(_tool(strict=True), _AFTER, _tool()),
        "tool_choice[tool].disable_parallel_tool_use": harmless(
            _choice("tool", name="f", disable_parallel_tool_use=True), _AFTER, _tool()
        ),
        "tool_choice[any].disable_parallel_tool_use": harmless(
            _choice("any", disable_parallel_tool_use=True), _AFTER, _tool()
        ),
        "output_config.format": harmless(_formatted(), _AFTER),
        "output_config.format.type": _COMMON["output_config.format.type"],
        "output_config.format.schema": harmless(_formatted(), _AFTER),
        "thinking[enabled].display": harmless(_HIDDEN, _AFTER, _thinks()),
        "thinking[adaptive].display": harmless(_HIDDEN_ADAPTIVE, _AFTER, _thinks("adaptive")),
        _ONE_CALL: harmless(_ONE_CALL_ASKS, _AFTER, _tool()),
    },
)

TABLE = (MESSAGES, COUNT_TOKENS)
