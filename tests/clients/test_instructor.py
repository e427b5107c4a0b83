"""Instructor, in the modes that ask for JSON, for a schema, and for a tool call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.clients.shapes import ADA, INVENT, Person, is_ada

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.conftest import Scripted, Served

pytestmark = [pytest.mark.model]

MODES = ["JSON", "JSON_SCHEMA", "TOOLS"]


@pytest.fixture
def client(octavo: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=octavo.v1, api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_the_real_model(client: openai.OpenAI, mode: str) -> None:
    import instructor

    patched: Any = instructor.from_openai(client, mode=instructor.Mode[mode])
    person = patched.chat.completions.create(
        model="smollm2",
        messages=INVENT,
        response_model=Person,
        max_tokens=64,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(person, Person)


@pytest.mark.parametrize("mode", MODES)
def test_what_reaches_the_engine(scripted: Scripted, mode: str) -> None:
    import instructor

    call = f'<tool_call>\n{{"name": "Person", "arguments": {ADA}}}\n</tool_call>'
    scripted.says(call if mode == "TOOLS" else ADA)
    with openai.OpenAI(base_url=scripted.v1, api_key="unused", max_retries=0) as client:
        patched: Any = instructor.from_openai(client, mode=instructor.Mode[mode])
        person = patched.chat.completions.create(
            model="fake", messages=INVENT, response_model=Person, max_retries=0
        )
        assert is_ada(person)
        *_, last = patched.chat.completions.create_partial(
            model="fake", messages=INVENT, response_model=Person, max_retries=0
        )
        assert is_ada(last)
    assert len(scripted.params) == 2
    assert scripted.is_bound


def test_a_wrong_answer_is_asked_again(scripted: Scripted) -> None:
    """The second question holds the first answer and what was wrong with it."""
    import instructor

    scripted.says(ADA.replace("36", "-1"), ADA)
    with openai.OpenAI(base_url=scripted.v1, api_key="unused", max_retries=0) as client:
        patched: Any = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
        person = patched.chat.completions.create(
            model="fake", messages=INVENT, response_model=Person, max_retries=1
        )
    assert is_ada(person)
    assert len(scripted.params) == 2
