"""Judges whose work may take for ever, JSON schemas and regular expressions: it is done in a
process of its own, see `judge_worker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.gateway.answer_text import read_answer
from octavo.gateway.judge import JudgeError, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.gateway.config_judge_rules import RegexJudge, SchemaJudge
    from octavo.gateway.judge_process import JudgeProcesses
    from octavo.gateway.model import Call
    from octavo.gateway.seams import Ask

MAX_TEXT_CHARS = 1 << 20


class SchemaRule:
    """See `config_judge_rules.SchemaJudge`."""

    def __init__(self, section: SchemaJudge, processes: JudgeProcesses) -> None:
        self._section = section
        self._processes = processes

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where every text and every call's arguments fit their schema.

        Raises:
            JudgeError: a schema cannot be read, or takes too long.
        """
        section = self._section
        schema = section.schema if section.schema is not None else _asked_schema(call.body)
        tools = _tool_schemas(call.body) if section.calls else {}
        checks: list[tuple[str, Any, str]] = []
        for said in read_answer(call.route, answer, call.body):
            if schema is not None and (said.text.strip() or not said.calls):
                checks.append(("the answer", schema, _bounded(said.text)))
            for called in said.calls:
                if section.calls and tools and called.name not in tools:
                    return Verdict(False, None, f"calls {called.name!r}, which there is not")
                if called.name in tools:
                    arguments = _bounded(called.arguments or "{}")
                    checks.append((f"the call of {called.name}", tools[called.name], arguments))
        if not checks:
            return Verdict(True)
        job = {"kind": "schema", "checks": checks}
        return await _run(self._processes, job, section.time_limit)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _asked_schema(body: Mapping[str, Any]) -> dict[str, Any] | bool | None:
    """The schema that a request asks its answer to fit; True: any JSON object would; None: none.

    Chats and completions have `response_format`, responses `text.format`, messages
    `output_config.format`, vLLM's servers also `structured_outputs.json` and `guided_json`.
    """
    format_ = (
        _dict(body.get("response_format"))
        or _dict(_dict(body.get("text")).get("format"))
        or _dict(_dict(body.get("output_config")).get("format"))
    )
    if format_.get("type") == "json_object":
        return {"type": "object"}
    if format_.get("type") == "json_schema":
        inner = format_.get("json_schema")
        schema = _dict(inner).get("schema") if inner is not None else format_.get("schema")
        return schema if isinstance(schema, dict | bool) else {}
    given = _dict(body.get("structured_outputs")).get("json", body.get("guided_json"))
    return given if isinstance(given, dict) else None


def _tool_schemas(body: Mapping[str, Any]) -> dict[str, Any]:
    """Schemas of the offered tools by name, in all routes' shapes; `{}` where one has none."""
    result: dict[str, Any] = {}
    tools = body.get("tools")
    for tool in map(_dict, tools if isinstance(tools, list) else ()):
        function = _dict(tool.get("function")) or tool
        name = function.get("name")
        if isinstance(name, str):
            schema = function.get("parameters", function.get("input_schema"))
            result[name] = schema if isinstance(schema, dict | bool) else {}
    return result


class RegexRule:
    """See `config_judge_rules.RegexJudge`."""

    def __init__(self, section: RegexJudge, processes: JudgeProcesses) -> None:
        self._section = section
        self._processes = processes

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where every choice has what it must, and nothing that it must not.

        Raises:
            JudgeError: it takes too long.
        """
        choices = read_answer(call.route, answer, call.body)
        job = {
            "kind": "regex",
            "must": self._section.must,
            "must_not": self._section.must_not,
            "texts": [_bounded(said.text) for said in choices],
        }
        return await _run(self._processes, job, self._section.time_limit)


async def _run(processes: JudgeProcesses, job: dict[str, Any], time_limit: float) -> Verdict:
    """What the worker says of an answer: it passes where there is no fault.

    Raises:
        JudgeError: it cannot say, or takes too long.
    """
    result = await processes.run(job, time_limit=time_limit)
    return Verdict(not result["fault"], None, result["fault"])


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        raise JudgeError(f"the answer has more than {MAX_TEXT_CHARS} characters")
    return text
