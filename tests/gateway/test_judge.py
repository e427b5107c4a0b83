"""Each kind of judge on answers of each shape; what fails; combinations."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from octavo.errors import ConfigError, UpstreamError
from octavo.gateway import judge_worker
from octavo.gateway.config_judges import JudgeSection
from octavo.gateway.judge_build import build_judges
from octavo.gateway.judge_model import render_prompt, shortened
from octavo.gateway.judge_process import JudgeProcesses
from octavo.gateway.model import PATHS, Call, Target, Tier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from octavo.gateway.seams import Judge, Verdict


@pytest.fixture
async def processes() -> AsyncIterator[JudgeProcesses]:
    processes = JudgeProcesses(1)
    yield processes
    await processes.aclose()


class Asked:
    """A grader that says what it is told to."""

    def __init__(self, says: str | Exception = "Score: 8") -> None:
        self.says = says
        self.calls: list[tuple[Call, Tier, bytes]] = []

    async def __call__(self, call: Call, tier: Tier, body: bytes) -> Mapping[str, object]:
        self.calls.append((call, tier, body))
        if isinstance(self.says, Exception):
            raise self.says
        return chat(self.says)


def call_of(route: str = "chat", **body: Any) -> Call:
    path = next(path for path, name in PATHS.items() if name == route)
    return Call(
        request_id="r1",
        arrived=time.perf_counter(),
        route=route,  # type: ignore[arg-type]
        path=path,
        model="m",
        body=body or {"messages": [{"role": "user", "content": "Hi"}]},
    )


def built(sections: dict[str, Any], processes: JudgeProcesses | None = None) -> dict[str, Judge]:
    return build_judges(
        msgspec.convert(sections, dict[str, JudgeSection]),
        tier_of=lambda name: Tier(name=name, targets=(Target("b", "m"),)),
        processes=processes or JudgeProcesses(1),
    )


async def judged(
    section: dict[str, Any],
    answer: dict[str, Any],
    call: Call | None = None,
    *,
    processes: JudgeProcesses | None = None,
    ask: Asked | None = None,
) -> Verdict:
    judge = built({"it": section}, processes)["it"]
    try:
        return await judge.judge(
            call or call_of(), answer, deadline=time.perf_counter() + 20, ask=ask or Asked()
        )
    finally:
        await judge.aclose()  # type: ignore[attr-defined]


def chat(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text} | more.pop("message", {})
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish, **more}]}


def called(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def logprobs(*tokens: tuple[str, float]) -> dict[str, Any]:
    made = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in tokens]
    return {"content": made}


ANSWERS = {
    "chat": chat("Yes.", logprobs=logprobs(("Yes", -0.2), (".", -0.4))),
    "completions": {
        "choices": [
            {"text": "Yes.", "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.2, -0.4]}}
        ]
    },
    "responses": {
        "status": "completed",
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {
                "type": "message",
                "content": [
                    {
                        "type": "output_text",
                        "text": "Yes.",
                        "logprobs": [
                            {"token": "Yes", "logprob": -0.2},
                            {"token": ".", "logprob": -0.4},
                        ],
                    }
                ],
            },
        ],
    },
    "messages": {"content": [{"type": "text", "text": "Yes."}], "stop_reason": "end_turn"},
}


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
async def test_logprobs(route: str) -> None:
    call = call_of(route, input="x")
    found = await judged({"kind": "logprob", "mean": -0.31}, ANSWERS[route], call)
    assert found.passes
    assert found.score == pytest.approx(-0.3)
    found = await judged({"kind": "logprob", "mean": -0.29}, ANSWERS[route], call)
    assert not found.passes
    found = await judged({"kind": "logprob", "minimum": -0.39}, ANSWERS[route], call)
    assert (found.passes, found.score) == (False, -0.4)
    assert found.reason == "least logprob -0.400 is below -0.39"
    found = await judged({"kind": "logprob", "mean": -0.5, "minimum": -0.41}, ANSWERS[route], call)
    assert found.passes


async def test_logprobs_of_reasoning_and_marks_do_not_count() -> None:
    tokens = logprobs(
        ("<think>", -9.0),
        ("Yes", -5.0),
        ("?", -5.0),
        ("</think>", -9.0),
        ("\n", -3.0),
        ("Y", -0.1),
        ("es", -0.3),
        ("<|im_end|>", -7.0),
    )
    answer = chat("Yes", logprobs=tokens, message={"reasoning": "Yes?"})
    found = await judged({"kind": "logprob", "mean": -1}, answer)
    assert found.score == pytest.approx(-0.2)


async def test_logprobs_of_calls_and_of_pieces_of_characters() -> None:
    tokens = logprobs(("<think>", -9.0), ("so", -5.0), ("</think>", -1.0), ("{}", -0.5))
    calls = {"reasoning": "so", "tool_calls": [called("f", "{ }")], "content": None}
    found = await judged(
        {"kind": "logprob", "mean": -1}, chat(None, logprobs=tokens, message=calls)
    )
    assert found.score == pytest.approx(-0.75)
    halves = [
        {"token": "\ufffd", "logprob": p, "bytes": [b]} for b, p in ((195, -1.0), (164, -2.0))
    ]
    found = await judged({"kind": "logprob", "mean": -3}, chat("ä", logprobs={"content": halves}))
    assert found.score == -1.5


async def test_logprobs_of_an_echoed_prompt_do_not_count() -> None:
    told = {"token_logprobs": [None, -8.0, -0.25], "text_offset": [0, 3, 6]}
    choice = {"text": "one two three", "finish_reason": "stop", "logprobs": told}
    call = call_of("completions", prompt="one tw", echo=True)
    found = await judged({"kind": "logprob", "mean": -1}, {"choices": [choice]}, call)
    assert found.score == -0.25


@pytest.mark.parametrize("policy", ["pass", "escalate"])
@pytest.mark.parametrize("route", ["chat", "messages"])
async def test_without_logprobs_the_policy_decides(route: str, policy: str) -> None:
    answer = chat("Yes.") if route == "chat" else ANSWERS["messages"]
    section = {"kind": "logprob", "mean": -1, "on_error": policy}
    found = await judged(section, answer, call_of(route, messages=[]))
    assert found.passes is (policy == "pass")
    assert found.reason == "judge it failed: the answer has no log-probabilities"


async def test_the_worst_choice_decides() -> None:
    good, bad = chat("fine"), chat("I cannot help with that")
    answer = {"choices": good["choices"] + bad["choices"]}
    assert not (await judged({"kind": "refusal"}, answer)).passes
    assert (await judged({"kind": "refusal"}, good)).passes


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (chat("I\u2019m sorry,  but I CANNOT say."), False),
        (chat("As an AI language model, no."), False),
        (chat("Lo siento, pero no puedo."), False),
        (chat(None, message={"refusal": "No."}), False),
        (chat("Well", "content_filter"), False),
        (chat("x" * 400 + " I cannot help with that"), True),
        (chat("The clerk said: sorry."), True),
    ],
)
async def test_refusals(answer: dict[str, Any], passes: bool) -> None:
    assert (await judged({"kind": "refusal"}, answer)).passes is passes


async def test_refusals_by_phrases_of_ones_own() -> None:
    section = {"kind": "refusal", "phrases": ["Nö"], "within": 5}
    assert not (await judged(section, chat("nö!"))).passes
    assert (await judged(section, chat("abcde nö!"))).passes
    assert (await judged(section, chat("I cannot help with"))).passes


@pytest.mark.parametrize(
    ("section", "answer", "reason"),
    [
        ({}, chat(" \n"), "0 characters, fewer than 1"),
        ({}, chat("x", "length"), "finish reason length"),
        ({"min_chars": 3}, chat("ab"), "2 characters, fewer than 3"),
        ({"max_chars": 3}, chat("abcd"), "4 characters, more than 3"),
        ({"bad_finish": []}, chat("x", "length"), ""),
        ({}, chat(None, "tool_calls", message={"tool_calls": [called("f", "{}")]}), ""),
        ({"bad_finish": ["content_filter"]}, chat("x", "content_filter"), "finish reason content_"),
    ],
)
async def test_length(section: dict[str, Any], answer: dict[str, Any], reason: str) -> None:
    found = await judged({"kind": "length", **section}, answer)
    assert found.passes is not bool(reason)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("messages", {"content": [], "stop_reason": "max_tokens"}),
        (
            "responses",
            {
                "output": [],
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
        ),
    ],
)
async def test_other_routes_reasons_in_the_words_of_chats(
    route: str, answer: dict[str, Any]
) -> None:
    found = await judged({"kind": "length"}, answer, call_of(route, input="x"))
    assert found.reason == "finish reason length"


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORMATS = {
    "chat": {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "responses": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    "messages": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "completions": {"guided_json": SCHEMA},
}


def says(route: str, text: str) -> dict[str, Any]:
    if route == "chat":
        return chat(text)
    if route == "completions":
        return {"choices": [{"text": text, "finish_reason": "stop"}]}
    if route == "messages":
        return {"content": [{"type": "text", "text": text}]}
    parts = [{"type": "output_text", "text": text}]
    return {"output": [{"type": "message", "content": parts}], "status": "completed"}


@pytest.mark.parametrize("route", ["chat", "completions", "messages", "responses"])
async def test_schemas_that_requests_ask_for(route: str, processes: JudgeProcesses) -> None:
    call = call_of(route, **FORMATS[route])
    section = {"kind": "json_schema"}
    assert (await judged(section, says(route, '{"n": 1}'), call, processes=processes)).passes
    found = await judged(section, says(route, '{"n": "1"}'), call, processes=processes)
    assert not found.passes
    assert found.reason == "the answer does not fit its schema at $.n: '1' is not of type 'integer'"
    found = await judged(section, says(route, "n = 1"), call, processes=processes)
    assert found.reason == "the answer is no JSON"
    plain = call_of(route, input="x")
    assert (await judged(section, says(route, "n = 1"), plain, processes=processes)).passes
    own = section | {"schema": {"type": "string"}}
    assert not (await judged(own, says(route, '{"n": 1}'), call, processes=processes)).passes
    chat_call = call_of("chat", response_format={"type": "json_object"})
    assert not (await judged(section, chat("[1]"), chat_call, processes=processes)).passes


async def test_calls_fit_the_tools_schemas(processes: JudgeProcesses) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    call = call_of("chat", tools=tools)
    section = {"kind": "json_schema"}

    async def reason(name: str, arguments: str) -> str:
        answer = chat(None, "tool_calls", message={"tool_calls": [called(name, arguments)]})
        return (await judged(section, answer, call, processes=processes)).reason

    assert await reason("f", '{"n": 3}') == ""
    assert await reason("f", "{}") == (
        "the call of f does not fit its schema at $: 'n' is a required property"
    )
    assert await reason("f", '{"n": ') == "the call of f is no JSON"
    assert await reason("g", "{}") == "calls 'g', which there is not"
    block = {"type": "tool_use", "name": "f", "input": {"n": "x"}, "id": "1"}
    tools = [{"name": "f", "input_schema": SCHEMA}]
    found = await judged(
        section,
        {"content": [block], "stop_reason": "tool_use"},
        call_of("messages", tools=tools),
        processes=processes,
    )
    assert not found.passes


@settings(max_examples=25, deadline=None)
@given(
    schema=st.sampled_from(
        [
            SCHEMA,
            {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2},
            {"anyOf": [{"type": "null"}, {"minimum": 3}]},
            {"$ref": "#/$defs/x", "$defs": {"x": {"const": {"n": 1}}}},
        ]
    ),
    value=st.recursive(
        st.none() | st.integers(-5, 5) | st.sampled_from("an"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("n"), inner),
    ),
)
def test_schemas_are_judged_as_the_library_does(schema: dict[str, Any], value: object) -> None:
    from octavo.gateway.judge_worker import run_job

    job = {"kind": "schema", "checks": [["it", schema, json.dumps(value)]], "limit": 1}
    is_valid = Draft202012Validator(schema).is_valid(value)
    assert (run_job(job)["fault"] == "") is is_valid


async def test_schemas_that_harm(processes: JudgeProcesses) -> None:
    """A schema comes from the client: it may not fetch, and may not hold up the gateway."""
    doubling: dict[str, Any] = {"$defs": {"a0": {"type": "integer"}}, "$ref": "#/$defs/a40"}
    for n in range(1, 41):
        both = [{"$ref": f"#/$defs/a{n - 1}"}] * 2
        doubling["$defs"][f"a{n}"] = {"allOf": both}
    section = {"kind": "json_schema", "time_limit": 0.5}

    async def reason(schema: object, text: str = "1") -> str:
        given_ = {"type": "json_schema", "json_schema": {"schema": schema}}
        begin = time.perf_counter()
        call = call_of("chat", response_format=given_)
        found = await judged(section, chat(text), call, processes=processes)
        assert not found.passes
        assert time.perf_counter() - begin < 12
        return found.reason

    assert await reason(doubling) == "judge it failed: it takes longer than 0.5 s"
    slow = {"type": "string", "pattern": "^(a+)+$"}
    assert "takes longer" in await reason(slow, json.dumps("a" * 40 + "!"))
    remote = {"$ref": "http://127.0.0.1:1/schema.json"}
    assert "it refers to http://127.0.0.1:1/schema.json" in await reason(remote)
    local = {"$ref": "file:///etc/passwd"}
    assert "it refers to file:///etc/passwd" in await reason(local)
    assert "no JSON schema" in await reason({"type": "nothing"})
    assert await reason({"type": "string"}) == (
        "the answer does not fit its schema at $: 1 is not of type 'string'"
    )


async def test_regex(processes: JudgeProcesses) -> None:
    section = {"kind": "regex", "must": ["(?i)total: \\d+"], "must_not": ["TODO", "^\\s*$"]}

    async def reason(text: str) -> str:
        return (await judged(section, chat(text), processes=processes)).reason

    assert await reason("The TOTAL: 12") == ""
    assert await reason("The total") == "must have '(?i)total: \\\\d+'"
    assert await reason("total: 1 TODO") == "must not have 'TODO'"


async def test_a_regex_that_backtracks_for_ever_is_ended(processes: JudgeProcesses) -> None:
    section = {"kind": "regex", "must": ["^(a|a)*$"], "time_limit": 0.3}
    evil, ticks = chat("a" * 50 + "!"), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    await judged(section, chat("aa"), processes=processes)  # the process has started
    ticking = asyncio.create_task(tick())
    begin = time.perf_counter()
    found = await judged(section, evil, processes=processes)
    assert time.perf_counter() - begin < 5
    ticking.cancel()
    assert ticks > 3  # the event loop went on
    assert found.reason == "judge it failed: it takes longer than 0.3 s"
    assert (await judged(section, chat("aaa"), processes=processes)).passes


async def test_processes_are_gone_when_closed() -> None:
    processes = JudgeProcesses(1)
    await processes.run({"kind": "find", "pattern": "(a)", "text": "a"}, time_limit=1)
    process = processes._all[0]._process
    assert process is not None
    await processes.aclose()
    assert process.returncode is not None


async def test_a_process_has_bounded_memory(processes: JudgeProcesses) -> None:
    await processes.run({"kind": "find", "pattern": "(a)", "text": "a"}, time_limit=1)
    process = processes._all[0]._process
    assert process is not None
    try:
        with open(f"/proc/{process.pid}/limits", "rb") as file:  # noqa: ASYNC230, PTH123
            limits = file.read().decode()
    except FileNotFoundError:
        pytest.skip("no /proc")
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert str(judge_worker.MAX_BYTES) in line


async def test_a_turn_that_does_not_come(
    processes: JudgeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.gateway.judge_process.WAIT_S", 0.1)
    section = {"kind": "regex", "must": ["^(a|a)*$"], "time_limit": 1}
    await judged(section, chat("aa"), processes=processes)
    slow = asyncio.create_task(judged(section, chat("a" * 50 + "!"), processes=processes))
    await asyncio.sleep(0.05)
    found = await judged(section, chat("aa"), processes=processes)
    assert found.reason == "judge it failed: too many judgements wait for a process"
    assert "takes longer" in (await slow).reason
    assert (await judged(section, chat("aa"), processes=processes)).passes


async def test_a_process_that_nobody_watches_ends_itself() -> None:
    """A gateway that is killed leaves no process behind, not even one that never ends a search."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        judge_worker.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdout.readline()
    evil = {"kind": "regex", "must": ["^(a|a)*$"], "must_not": [], "texts": ["a" * 50 + "!"]}
    process.stdin.write(json.dumps(evil | {"limit": -0.9}).encode() + b"\n")
    await process.stdin.drain()
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) != 0


async def test_a_process_sees_no_secrets(
    processes: JudgeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    await processes.run({"kind": "find", "pattern": "(a)", "text": "a"}, time_limit=1)
    process = processes._all[0]._process
    assert process is not None
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as file:  # noqa: ASYNC230, PTH123
            assert b"secret" not in file.read()
    except FileNotFoundError:
        pytest.skip("no /proc")


async def test_a_model_grades(processes: JudgeProcesses) -> None:
    section = {"kind": "model", "tier": "big", "passes_at": 7, "max_tokens": 16}
    ask = Asked("It is good: score 8.5")
    call = call_of(messages=[{"role": "system", "content": "Be {answer}"}])
    found = await judged(section, chat("{prompt} __class__"), call, ask=ask, processes=processes)
    assert (found.passes, found.score, found.reason) == (True, 8.5, "")
    asked, tier, body = ask.calls[0]
    assert (asked.route, asked.path, asked.stream) == ("chat", "/v1/chat/completions", False)
    assert (tier.name, asked.max_tokens, asked.request_id) == ("big", 16, "r1")
    told = msgspec.json.decode(body)
    assert (told["max_tokens"], told["temperature"]) == (16, 0)
    prompt = told["messages"][0]["content"]
    assert "system: Be {answer}\n" in prompt  # what is put in is not searched again
    assert "<answer>\n{prompt} __class__\n</answer>" in prompt
    found = await judged(section, chat("x"), ask=Asked("Score: 3/10"), processes=processes)
    assert (found.passes, found.score, found.reason) == (False, 3.0, "graded 3, below 7")
    found = await judged(
        section, chat("x"), ask=Asked("score 2, no: score: 9"), processes=processes
    )
    assert found.score == 9.0
    for says_ in ("I will not", "score: none", UpstreamError("down")):
        found = await judged(section, chat("x"), ask=Asked(says_), processes=processes)
        assert not found.passes
        assert found.reason.startswith("judge it failed: ")


def test_prompts_are_filled_in_once() -> None:
    template = "{prompt}|{answer}|{other}|{answer.__class__}|{{answer}}|{0}"
    values = {"prompt": "{answer}", "answer": "{prompt}"}
    assert render_prompt(template, values) == (
        "{answer}|{prompt}|{other}|{answer.__class__}|{{prompt}}|{0}"
    )
    assert shortened("abcdefghij", 4) == "ab\n[... 6 characters left out ...]\nij"
    assert shortened("abcd", 4) == "abcd"


async def good_score(request: dict[str, Any], answer: dict[str, Any]) -> float:
    return len(answer["choices"][0]["message"]["content"]) / 10


async def bad_score(request: dict[str, Any], answer: dict[str, Any]) -> float:
    raise RuntimeError(f"broken\nby {request['messages'][0]['role']}")


async def slow_score(request: dict[str, Any], answer: dict[str, Any]) -> float:
    await asyncio.sleep(60)
    return 1.0


async def no_score(request: dict[str, Any], answer: dict[str, Any]) -> str:
    return "good"


async def nan_score(request: dict[str, Any], answer: dict[str, Any]) -> float:
    return math.nan


def not_async(request: dict[str, Any], answer: dict[str, Any]) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("name", "passes", "score", "reason"),
    [
        ("good_score", True, 0.5, ""),
        ("bad_score", False, None, "judge it failed: RuntimeError: broken by user"),
        ("slow_score", False, None, "judge it failed: it takes too long"),
        ("no_score", False, None, "judge it failed: the score is str, not a finite number"),
        ("nan_score", False, None, "judge it failed: the score is float, not a finite number"),
    ],
)
async def test_code_gives_a_score(
    name: str, passes: bool, score: float | None, reason: str
) -> None:
    function = f"{__name__}:{name}"
    section = {"kind": "eval", "function": function, "passes_at": 0.5, "time_limit": 0.2}
    found = await judged(section, chat("12345"))
    assert (found.passes, found.score, found.reason) == (passes, score, reason)
    found = await judged(section | {"passes_at": 0.6}, chat("12345"))
    assert not found.passes


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (f"{__name__}:not_async", "must be `async def`"),
        (f"{__name__}:missing", "cannot be loaded"),
        ("no_such_module:f", "cannot be loaded"),
        ("no-such-entry", "no entry point 'no-such-entry' in the group 'octavo.judges'"),
    ],
)
def test_code_that_cannot_be_had(function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built({"it": {"kind": "eval", "function": function, "passes_at": 1}})


def test_code_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    point = EntryPoint("mine", f"{__name__}:good_score", "octavo.judges")
    monkeypatch.setattr(
        "octavo.gateway.judge_score.entry_points", lambda **by: EntryPoints([point]).select(**by)
    )
    built({"it": {"kind": "eval", "function": "mine", "passes_at": 1}})
    with pytest.raises(ConfigError, match="there are: mine"):
        built({"it": {"kind": "eval", "function": "other", "passes_at": 1}})


@pytest.fixture
async def service() -> AsyncIterator[str]:
    seen: list[Any] = []

    async def score(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer s3cret"
        told = await request.json()
        seen.append(told)
        match told["answer"]["choices"][0]["message"]["content"]:
            case "redirect":
                raise web.HTTPFound("/elsewhere")
            case "down":
                return web.Response(status=500)
            case "garbage":
                return web.Response(text="{")
            case "text":
                return web.json_response({"score": "high"})
            case "long":
                return web.Response(body=b"x" * 100_000)
            case "slow":
                await asyncio.sleep(5)
        return web.json_response({"score": 0.25, "reason": "too\nshort"})

    app = web.Application()
    app.router.add_post("/score", score)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}/score"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("fine", 0.25, "too short"),
        ("redirect", None, "judge it failed: the score service answers 302"),
        ("down", None, "judge it failed: the score service answers 500"),
        ("garbage", None, "judge it failed: the score service's answer has no score: "),
        ("text", None, "judge it failed: the score service's answer has no score: "),
        ("long", None, "judge it failed: the score service's answer is too long"),
        ("slow", None, "judge it failed: "),
    ],
)
async def test_a_service_gives_a_score(
    service: str, text: str, score: float | None, reason: str
) -> None:
    section = {
        "kind": "service",
        "url": service,
        "passes_at": 0.5,
        "time_limit": 0.3,
        "headers": {"Authorization": "Bearer s3cret"},
    }
    judge = _with_secrets(section)
    try:
        found = await judge.judge(
            call_of(), chat(text), deadline=time.perf_counter() + 5, ask=Asked()
        )
    finally:
        await judge.aclose()
    assert not found.passes
    assert found.score == score
    assert found.reason.startswith(reason)
    assert "s3cret" not in found.reason


def _with_secrets(section: dict[str, Any]) -> Any:
    from octavo.gateway.secret import decode_hook

    sections = msgspec.convert({"it": section}, dict[str, JudgeSection], dec_hook=decode_hook)
    processes = JudgeProcesses(1)
    return build_judges(sections, tier_of=lambda _: Tier(name="", targets=()), processes=processes)[
        "it"
    ]


async def test_a_services_name_may_not_lead_to_link_local_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aiohttp import ThreadedResolver

    async def resolve(self: object, host: str, port: int, family: object) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": "169.254.169.254", "port": port}]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    judge = _with_secrets({"kind": "service", "url": "http://scores.example/", "passes_at": 1})
    found = await judge.judge(call_of(), chat("x"), deadline=time.perf_counter() + 5, ask=Asked())
    await judge.aclose()
    assert found.reason.startswith("judge it failed: the score service fails: ")


JUDGES: dict[str, Any] = {
    "short": {"kind": "length", "max_chars": 5},
    "polite": {"kind": "refusal"},
    "sure": {"kind": "logprob", "mean": -1},
    "both": {"kind": "all", "of": ["short", "polite"]},
    "either": {"kind": "any", "of": ["short", "polite"]},
    "deep": {"kind": "any", "of": ["sure", "both"]},
}


@pytest.mark.parametrize(
    ("name", "text", "passes", "reason"),
    [
        ("both", "fine", True, ""),
        ("both", "too long", False, "8 characters, more than 5"),
        ("either", "too long", True, ""),
        (
            "either",
            "I cannot help with",
            False,
            "18 characters, more than 5; refusal: 'i cannot help with'",
        ),
        ("deep", "fine", True, ""),
    ],
)
async def test_combinations(name: str, text: str, passes: bool, reason: str) -> None:
    judge = built(JUDGES)[name]
    found = await judge.judge(call_of(), chat(text), deadline=time.perf_counter() + 5, ask=Asked())
    assert (found.passes, found.reason) == (passes, reason)
    assert judge.needs_logprobs is (name == "deep")


async def test_the_calls_deadline_ends_a_judgement() -> None:
    function = f"{__name__}:slow_score"
    judge = built({"it": {"kind": "eval", "function": function, "passes_at": 1}})["it"]
    begin = time.perf_counter()
    found = await judge.judge(call_of(), chat("x"), deadline=begin + 0.1, ask=Asked())
    assert time.perf_counter() - begin < 5
    assert found.reason == "judge it failed: it takes too long"


@pytest.mark.parametrize("kind", ["refusal", "length", "logprob"])
@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"error": {"message": "oh"}}])
async def test_an_answer_that_is_none_is_a_failure(kind: str, answer: dict[str, Any]) -> None:
    found = await judged({"kind": kind, **({"mean": -1} if kind == "logprob" else {})}, answer)
    assert not found.passes
    assert found.reason.startswith("judge it failed: the answer ")
