"""The fields of the routes under `/api`, which are Ollama's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.server.fake_engine import FakeTemplate, FakeTokenizer
from tests.server.probes import Probe, Table, changes, harmless, refused

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

_USER: dict[str, Any] = {"role": "user", "content": "hello"}
_LOADED = "the model is loaded when the server starts, and how never changes an answer"
_OFF = "it is about a way of sampling that must be off"


def _serves() -> dict[str, Any]:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate("{{ tools }}{{ enable_thinking }}{{ reasoning_effort }}")
    return {"tokenizer": tokenizer, "tool_call_parser": "hermes", "reasoning_parser": "qwen3"}


def _answers(server: RunningServer) -> None:
    server.engine.pieces = ["<think>Hm.</think>", "Yes.", '<tool_call>{"name": "f"}</tool_call>']


def _options(**fields: Any) -> dict[str, Any]:
    return {"options": fields}


_LOADING: dict[str, Probe] = {
    f"options.{name}": harmless(_options(**{name: value}), _LOADED)
    for name, value in {
        "numa": True,
        "num_batch": 8,
        "num_gpu": 1,
        "main_gpu": 1,
        "num_thread": 2,
        "low_vram": True,
        "f16_kv": False,
        "use_mmap": False,
        "use_mlock": True,
        "num_ctx": 64,
    }.items()
} | {
    "options.mirostat_tau": harmless(_options(mirostat_tau=1.0), _OFF),
    "options.mirostat_eta": harmless(_options(mirostat_eta=1.0), _OFF),
}
_REFUSED: dict[str, Probe] = {
    f"options.{name}": refused(_options(**{name: bad}), neutral=(_options(**{name: good}),))
    for name, (bad, good) in {
        "num_keep": (7, 4),
        "mirostat": (1, 0),
        "tfs_z": (0.5, 1),
        "typical_p": (0.5, 1),
        "penalize_newline": (False, True),
        "vocab_only": (True, False),
        "embedding_only": (True, False),
        "logits_all": (True, False),
    }.items()
}
_KEEP_ALIVE = {"keep_alive": harmless({"keep_alive": "5m"}, _LOADED)}
_MODEL = refused({"model": "org/other"}, status=404)

_FIELDS: dict[str, Probe] = {
    **_LOADING,
    **_REFUSED,
    **_KEEP_ALIVE,
    "model": _MODEL,
    "stream": changes({"stream": False}, neutral=({"stream": True},)),
    "format": changes({"format": "json"}, neutral=({"format": ""},)),
    "think": changes({"think": True}),
    "logprobs": changes({"logprobs": True}, neutral=({"logprobs": False},)),
    "top_logprobs": changes({"logprobs": True, "top_logprobs": 2}, {"logprobs": True}),
    "truncate": refused({"truncate": True}, neutral=({"truncate": False},)),
    "shift": refused({"shift": True}, neutral=({"shift": False},)),
    "options": changes(_options(seed=3), neutral=(_options(),)),
    "options.num_predict": changes(_options(num_predict=5), neutral=(_options(num_predict=-1),)),
    "options.temperature": changes(_options(temperature=0.25)),
    "options.top_k": changes(_options(top_k=7)),
    "options.top_p": changes(_options(top_p=0.5)),
    "options.min_p": changes(_options(min_p=0.125)),
    "options.seed": changes(_options(seed=3), neutral=(_options(seed=-1),)),
    "options.stop": changes(_options(stop=["q"]), neutral=(_options(stop=[]),)),
    "options.repeat_penalty": changes(
        _options(repeat_penalty=1.5), neutral=(_options(repeat_penalty=1),)
    ),
    "options.presence_penalty": changes(_options(presence_penalty=1)),
    "options.frequency_penalty": changes(_options(frequency_penalty=1)),
    "options.repeat_last_n": refused(
        _options(repeat_penalty=1.5, repeat_last_n=64),
        _options(repeat_penalty=1.5),
        neutral=(_options(repeat_penalty=1.5, repeat_last_n=-1),),
    ),
}


def _says(role: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [_USER, {"role": role, "content": "hi", **fields}, _USER]}


def _calls(*calls: dict[str, Any], **function: Any) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": {}, **function}}
    return _says("assistant", tool_calls=[{**call, **fields} for fields in calls or ({},)])


def _tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def _result(**fields: Any) -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": {}}} for name in "fg"]
    made = {"role": "assistant", "content": "", "tool_calls": calls}
    return {"messages": [_USER, made, {"role": "tool", "content": "12", **fields}]}


_IN_ORDER = "the list says in which order calls are"
CHAT = Table(
    path="/api/chat",
    body={"model": "fake", "messages": [_USER]},
    serves=_serves,
    prepare=_answers,
    probes={
        **_FIELDS,
        "messages": changes({"messages": [{"role": "user", "content": "other"}]}),
        "messages[].role": changes(_says("system"), _says("user")),
        "messages[].content": changes(_says("user", content="other"), _says("user")),
        "messages[].thinking": changes(_says("assistant", thinking="hm"), _says("assistant")),
        "messages[].images": refused(
            _says("user", images=["aGk="]),
            _says("user"),
            name="messages[1].images",
            neutral=(_says("user", images=[]),),
        ),
        "messages[].tool_calls": changes(_calls(), _says("assistant")),
        "messages[].tool_calls[].function": changes(_calls(name="g"), _calls()),
        "messages[].tool_calls[].function.name": changes(_calls(name="g"), _calls()),
        "messages[].tool_calls[].function.arguments": changes(_calls(arguments={"a": 1}), _calls()),
        "messages[].tool_calls[].function.index": harmless(_calls(index=3), _IN_ORDER, _calls()),
        "messages[].tool_calls[].id": changes(_calls({"id": "x"}), _calls()),
        "messages[].tool_calls[].type": refused(
            _calls({"type": "custom"}),
            _calls(),
            name="messages[1].tool_calls[0].type",
            neutral=(_calls({"type": "function"}),),
        ),
        "messages[].tool_name": changes(_result(tool_name="g"), _result()),
        "messages[].tool_call_id": changes(_result(tool_call_id="x"), _result()),
        "tools": changes(_tool(), neutral=({"tools": []},)),
        "tools[].type": refused(
            {"tools": [{"type": "x", "function": {"name": "f"}}]}, name="tools[0].type"
        ),
        "tools[].function": changes(_tool(name="g"), _tool()),
        "tools[].function.name": changes(_tool(name="g"), _tool()),
        "tools[].function.description": changes(_tool(description="d"), _tool()),
        "tools[].function.parameters": changes(_tool(parameters={"type": "object"}), _tool()),
        "tools[].function.strict": changes(_tool(strict=True), _tool()),
    },
)
GENERATE = Table(
    path="/api/generate",
    body={"model": "fake", "prompt": "hello"},
    serves=_serves,
    prepare=_answers,
    probes={
        **_FIELDS,
        "prompt": changes({"prompt": "other"}),
        "system": changes({"system": "Be brief."}, neutral=({"system": ""},)),
        "raw": changes({"raw": True}, neutral=({"raw": False},)),
        "context": changes({"context": [5, 6]}, neutral=({"context": []},)),
        "suffix": refused({"suffix": "end"}, neutral=({"suffix": ""},)),
        "template": refused({"template": "{{ .Prompt }}"}, neutral=({"template": ""},)),
        "images": refused({"images": ["aGk="]}, neutral=({"images": []},)),
    },
)

_NOT_SAMPLED: dict[str, Probe] = {
    f"options.{name}": harmless(_options(**{name: value}), "nothing is sampled for a vector")
    for name, value in {
        "num_predict": 5,
        "temperature": 0.25,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["q"],
        "repeat_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "repeat_last_n": 64,
    }.items()
}
_VECTORS: dict[str, Probe] = {
    **_LOADING,
    **_REFUSED,
    **_NOT_SAMPLED,
    **_KEEP_ALIVE,
    "model": _MODEL,
    "options": refused(_options(mirostat=1), name="options.mirostat"),
}
EMBED = Table(
    path="/api/embed",
    body={"model": "fake", "input": "hello"},
    probes={
        **_VECTORS,
        "input": changes({"input": "other"}),
        "truncate": refused(
            {"input": "x" * 3000, "truncate": False}, name="input", neutral=({"truncate": True},)
        ),
        "dimensions": changes({"dimensions": 2}),
    },
)
EMBEDDINGS = Table(
    path="/api/embeddings",
    body={"model": "fake", "prompt": "hello"},
    probes={**_VECTORS, "prompt": changes({"prompt": "other"})},
)
SHOW = Table(
    path="/api/show",
    body={"model": "fake"},
    probes={
        "model": _MODEL,
        "name": refused({"name": "org/alias"}, name="model", neutral=({"name": "fake"},)),
        "verbose": harmless({"verbose": True}, "all that is known is told anyway"),
    },
)

TABLE = (CHAT, GENERATE, EMBED, EMBEDDINGS, SHOW)
