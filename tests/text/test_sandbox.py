"""Templates that would take the server's time or memory."""
# ruff: noqa: E501

from __future__ import annotations

import time

import pytest

from octavo.errors import InvalidRequestError
from octavo.text import sandbox
from octavo.text.chat import ChatTemplate

USER = {"role": "user", "content": "a" * 1000}
LOOP = "{% for i in range(99999) %}"

HOSTILE = {
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "much output": LOOP + "{{ messages[0].content }}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='aa') %}"
    + LOOP
    + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='aa') %}"
    + LOOP
    + "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[1]) %}"
    + LOOP
    + "{% set n.x = n.x + n.x %}{% endfor %}",
    "multiplying": "{{ 'a' * 10 ** 10 }}",
    "multiplying a list": "{{ ([1] * 10 ** 10) | length }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "squaring": "{% set n = namespace(x=3) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 10, 1) }}",
    "brace width": "{{ '{:10000000000}'.format(1) }}",
    "brace width from a value": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "center filter": "{{ 'a' | center(10 ** 10) }}",
    "indent filter": "{{ 'a\nb' | indent(10 ** 10) }}",
    "json indent": "{{ [1] | tojson(indent=10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "replace": "{% set x = 'a' * 10 ** 6 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 10 ** 6 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 10 ** 6 %}{{ x.join(['b'] * 10 ** 6) }}",
    "join filter": "{% set x = 'a' * 10 ** 6 %}{{ (['b'] * 10 ** 6) | join(x) }}",
    "translate": "{% set x = 'a' * 10 ** 6 %}{{ x.translate({97: x}) }}",
    "growing text": "{% set n = namespace(x='') %}"
    + LOOP
    + "{% set n.x = n.x ~ 'a' * 9999 %}{% endfor %}",
    "branching macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [[1, 2], [3]] recursive %}{{ loop([[1, 2], [3]]) }}{% endfor %}",
    "call blocks": "{% macro m(n) %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 30
    + "x"
    + "{% endcall %}" * 30,
    "slices": "{{ range(9) | slice(10 ** 9) | list }}",
    "batches": "{{ range(9) | batch(10 ** 9, 'x') | list }}",
    "lipsum": "{{ lipsum(n=10 ** 6) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.0)
    start = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(HOSTILE[name]).render([USER])
    assert caught.value.param == "messages"
    assert time.perf_counter() - start < 3 + 5  # two probes, one rendering, and a slow machine


def test_the_clock_ends_slow_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(sandbox, "MAX_TURNS", 10**9)
    with pytest.raises(InvalidRequestError, match=r"more than 0\.05 seconds"):
        ChatTemplate(HOSTILE["nested loops"]).render([USER])


def test_a_long_honest_chat_renders() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ '<' ~ m.role + '>' + m['content'] | trim }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "word " * 1000}] * 2000  # ten million characters
    start = time.perf_counter()
    assert len(template.render(chat)) == 2000 * (6 + 4999)
    assert time.perf_counter() - start < sandbox.MAX_SECONDS
