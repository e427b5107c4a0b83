"""Probes of messages, for the routes that take OpenAI's; no table of its own."""

from __future__ import annotations

from typing import Any

from tests.server.probes import Probe, changes, refused

MESSAGES = [{"role": "user", "content": "hello"}]
_NAMED_ROLES = ("system", "developer", "user", "assistant", "tool")


def message_probes(base: dict[str, Any]) -> dict[str, Probe]:
    """Probes of everything in a message.

    Args:
        base: the fields of a request with messages.
    """

    def asks(role: str, **fields: Any) -> dict[str, Any]:
        least = {"tool_call_id": "c"} if role == "tool" else {}
        message = {"role": role, "content": "hi", **least, **fields}
        return {**base, "messages": [*MESSAGES, message]}

    def calls(**fields: Any) -> dict[str, Any]:
        call = {"id": "c", "type": "function", "function": _function(), **fields}
        return asks("assistant", tool_calls=[call])

    probes: dict[str, Probe] = {}
    for role in _NAMED_ROLES:
        path = f"messages[{role}]"
        probes[f"{path}.content"] = changes(asks(role, content="other"), asks(role))
        probes[f"{path}.content[text].text"] = changes(
            asks(role, content=[{"type": "text", "text": "other"}]),
            asks(role, content=[{"type": "text", "text": "hi"}]),
        )
        probes[f"{path}.name"] = changes(asks(role, name="x"), asks(role))
    path = "messages[assistant]"
    for name in ("refusal", "audio", "function_call"):
        value = "x" if name == "refusal" else {"id": "x"}
        probes[f"{path}.{name}"] = refused(
            asks("assistant", **{name: value}), asks("assistant"), name=f"messages[1].{name}"
        )
    probes |= {
        f"{path}.reasoning": changes(asks("assistant", reasoning="r"), asks("assistant")),
        f"{path}.reasoning_content": changes(
            asks("assistant", reasoning_content="r"), asks("assistant")
        ),
        f"{path}.annotations": refused(
            asks("assistant", annotations=[1]),
            asks("assistant"),
            name="messages[1].annotations",
            neutral=(asks("assistant", annotations=[]),),
        ),
        f"{path}.tool_calls": changes(calls(), asks("assistant")),
        f"{path}.tool_calls[].id": changes(calls(id="d"), calls()),
        f"{path}.tool_calls[].type": refused(
            calls(type="custom"), calls(), name="messages[1].tool_calls[0].type"
        ),
        f"{path}.tool_calls[].function": changes(calls(function=_function(name="g")), calls()),
        f"{path}.tool_calls[].function.name": changes(calls(function=_function(name="g")), calls()),
        f"{path}.tool_calls[].function.arguments": changes(
            calls(function=_function(arguments='{"a": 1}')), calls()
        ),
        "messages[tool].tool_call_id": changes(asks("tool", tool_call_id="d"), asks("tool")),
    }
    return probes


def _function(**fields: Any) -> dict[str, Any]:
    return {"name": "f", "arguments": "{}", **fields}
