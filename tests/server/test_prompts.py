"""Prompts by templates that requests bring, and the reasoning effort that templates look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from octavo.server.prompts import MAX_TEMPLATE_CHARS
from octavo.text.chat import ChatTemplate
from octavo.text.tokenizer import load_folder
from tests.server.fake_engine import NUM_SPECIAL, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.server.conftest import RunningServer

SHOUTING = (
    "{{ eos_token }}{% for m in messages %}{{ m.content | upper }};{% endfor %}"
    "{% if add_generation_prompt %}GO{% endif %}{{ extra }}"
)
MESSAGES = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]


class TemplateTokenizer(FakeTokenizer):
    """With real templates: the model's is `source`."""

    def __init__(self, source: str | None = None) -> None:
        super().__init__()
        self.chat_template = self.compile_chat_template(source) if source else None  # type: ignore[assignment]

    def compile_chat_template(self, source: str) -> Any:
        return ChatTemplate(source, eos_token="</s>")


def prompt_text(server: RunningServer) -> str:
    ((ids, _),) = server.engine.requests.values()
    server.engine.requests.clear()
    return bytes(i - NUM_SPECIAL for i in ids).decode()


def refusal(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = server.chat(**fields)
    assert response.status_code == 400, response.text
    assert not server.engine.requests
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_template_of_the_request(serve: Callable[..., RunningServer]) -> None:
    server = serve(
        tokenizer=TemplateTokenizer("{{ messages[0].content }}"), trust_request_chat_template=True
    )
    asked: dict[str, Any] = {"messages": MESSAGES}
    for _ in range(2):  # compiled, and kept
        assert server.chat(**asked, chat_template=SHOUTING).status_code == 200
        assert prompt_text(server) == "</s>ONE;TWO;GO"
    more = {"chat_template_kwargs": {"extra": "!"}, "add_generation_prompt": False}
    assert server.chat(**asked, chat_template=SHOUTING, **more).status_code == 200
    assert prompt_text(server) == "</s>ONE;TWO;!"
    assert server.chat(**asked).status_code == 200
    assert prompt_text(server) == "one"


def test_a_model_without_a_template_may_be_given_one(serve: Callable[..., RunningServer]) -> None:
    server = serve(tokenizer=TemplateTokenizer(), trust_request_chat_template=True)
    assert refusal(server)["param"] == "messages"
    assert server.chat(messages=MESSAGES, chat_template=SHOUTING).status_code == 200
    assert prompt_text(server) == "</s>ONE;TWO;GO"


def test_templates_are_refused_unless_trusted(server: RunningServer) -> None:
    error = refusal(server, chat_template=SHOUTING)
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "does not compile"),
        ("{{ messages | nonsense }}", "does not compile"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), str(MAX_TEMPLATE_CHARS)),
    ],
)
def test_templates_that_are_none(
    serve: Callable[..., RunningServer], tiny_tokenizer: Path, template: str, words: str
) -> None:
    server = serve(tokenizer=load_folder(tiny_tokenizer), trust_request_chat_template=True)
    error = refusal(server, chat_template=template)
    assert error["param"] == "chat_template"
    assert words in error["message"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for i in range(10000000000) %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 'a' | center(1000000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_stranger_s_template_stays_in_its_sandbox(
    serve: Callable[..., RunningServer], template: str
) -> None:
    server = serve(tokenizer=TemplateTokenizer(SHOUTING), trust_request_chat_template=True)
    assert refusal(server, chat_template=template)["message"]
    server.assert_serves()


def test_reasoning_effort(serve: Callable[..., RunningServer]) -> None:
    server = serve(tokenizer=TemplateTokenizer("[{{ reasoning_effort or 'usual' }}]"))
    assert server.chat(reasoning_effort="low").status_code == 200
    assert prompt_text(server) == "[low]"
    assert server.chat().status_code == 200
    assert prompt_text(server) == "[usual]"
    kwargs = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    assert server.chat(reasoning_effort="high", **kwargs).status_code == 200
    assert prompt_text(server) == "[high]"
    error = refusal(server, reasoning_effort="low", **kwargs)
    assert error["param"] == "reasoning_effort"
    assert "contradict" in error["message"]
    error = refusal(server, reasoning_effort="extreme")
    assert error["param"] == "reasoning_effort"
    assert "'minimal'" in error["message"]


def test_an_effort_that_the_template_does_not_know(server: RunningServer) -> None:
    assert refusal(server, reasoning_effort="low")["param"] == "reasoning_effort"
