"""Nothing that a request says is ignored: every field of every route has an effect, gets an error
that names it, or is listed with the reason why it may do nothing. See `probes`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.server.routes import ENDPOINTS
from tests.server.probes import Probe, Table, fields_of, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from octavo.server.routes import Endpoint
    from tests.server.conftest import RunningServer

TABLES = tables()
WITH_BODY = [endpoint for endpoint in ENDPOINTS if endpoint.request is not None]
VOLATILE = frozenset(
    {"id", "item_id", "call_id", "request_id", "response_id", "created", "created_at", "expires_at"}
    | {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
)
"""Keys of answers whose values are new each time."""


def steady(value: Any) -> Any:
    """An answer without what is new each time."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def content_of(response: httpx.Response) -> Any:
    """An answer's JSON, or that of each event of its stream."""
    kind = response.headers["content-type"].partition(";")[0]
    if kind == "application/json":
        return steady(response.json())
    lines = [line.removeprefix("data:").strip() for line in response.text.splitlines()]
    return kind, [steady(json.loads(line)) for line in lines if line.startswith("{")]


class Asker:
    """Sends a table's requests, and sees all that they do."""

    def __init__(self, table: Table, server: RunningServer) -> None:
        self._table = table
        self._server = server
        table.prepare(server)
        self._known: dict[str, Any] = {}

    def response(self, fields: dict[str, Any]) -> httpx.Response:
        self._server.engine.requests.clear()
        self._server.engine.pooled.clear()
        self._server.tokenizer.chat_template.calls.clear()
        response = self._server.client.post(self._table.path, json={**self._table.body, **fields})
        self._server.wait_until_idle()
        return response

    def effect(self, fields: dict[str, Any]) -> Any:
        """What the engine and the template were asked for, and what the answer says."""
        response = self.response(fields)
        assert response.status_code == 200, (fields, response.text)
        engine = self._server.engine
        asked = [
            (msgspec.to_builtins(job), engine.options[request_id])
            for request_id, job in engine.requests.items()
        ]
        pooled = [msgspec.to_builtins(one) for one in engine.pooled.values()]
        return asked, pooled, list(self._server.tokenizer.chat_template.calls), content_of(response)

    def baseline(self, fields: dict[str, Any]) -> Any:
        """The effect of a request that others are held against: the same each time."""
        key = json.dumps(fields, sort_keys=True)
        if key not in self._known:
            self._known[key] = self.effect(fields)
            assert self.effect(fields) == self._known[key], "the answer itself is not steady"
        return self._known[key]

    def check(self, path: str, probe: Probe) -> None:
        """Hold a field to what its probe says."""
        baseline = self.baseline(probe.without)
        if probe.gives == "refusal":
            response = self.response(probe.asks)
            assert response.status_code == probe.status, (path, response.text)
            error = response.json()["error"]
            error = {"message": error} if isinstance(error, str) else error
            name = probe.name or path
            if isinstance(error, dict) and "param" in error:
                assert error["param"] == name, path
            else:  # a dialect that has the name in the message only
                assert name in str(error), (path, error)
        elif probe.gives == "nothing":
            assert probe.why, f"{path} does nothing: say why it may"
            assert self.effect(probe.asks) == baseline, path
        else:
            assert self.effect(probe.asks) != baseline, f"{path} is accepted and does nothing"
        for quiet in probe.neutral:
            assert self.effect({**probe.without, **quiet}) == baseline, (path, quiet)


def test_every_route_has_a_table() -> None:
    assert set(TABLES) == {endpoint.path for endpoint in WITH_BODY}


@pytest.mark.parametrize("endpoint", WITH_BODY, ids=lambda endpoint: endpoint.path)
def test_every_field(serve: Callable[..., RunningServer], endpoint: Endpoint) -> None:
    table = TABLES[endpoint.path]
    walked = {
        path
        for path in fields_of(endpoint.request)
        if not any(path.startswith((f"{above}.", f"{above}[")) for above in table.elsewhere)
    }
    assert walked - set(table.probes) == set(), "fields that nobody listed"
    assert set(table.probes) - walked == set(), "probes of fields that are gone"
    usual = Asker(table, serve(**table.serves()))
    for path, probe in table.probes.items():
        started = {**table.serves(), **probe.serves}
        asker = Asker(table, serve(**started)) if probe.serves else usual
        asker.check(path, probe)


@pytest.mark.parametrize("endpoint", WITH_BODY, ids=lambda endpoint: endpoint.path)
def test_null_is_the_same_as_absent(
    serve: Callable[..., RunningServer], endpoint: Endpoint
) -> None:
    table = TABLES[endpoint.path]
    asker = Asker(table, serve(**table.serves()))
    given = set(table.body)
    assert endpoint.request is not None
    for field in msgspec.structs.fields(endpoint.request):
        if field.encode_name not in given and not field.required and field.default is None:
            assert asker.effect({field.encode_name: None}) == asker.baseline({}), field


# The walk itself


class Inner(msgspec.Struct, tag="inner"):
    word: str = ""
    again: list[Outer] = []


class Outer(msgspec.Struct, tag="outer"):
    number: int = 0
    below: Inner | list[Inner | Outer] | None = None


def test_the_walk_finds_fields_at_every_depth() -> None:
    assert set(fields_of(Outer)) == {
        "[outer].number",
        "[outer].below",
        "[outer].below[inner].word",
        "[outer].below[inner].again",
    }


@pytest.mark.parametrize(
    ("probe", "complaint"),
    [
        (Probe({"user": "x"}), "accepted and does nothing"),
        (Probe({"user": "x"}, gives="nothing"), "say why"),
        (Probe({"seed": 4}, gives="nothing", why="?"), "seed"),
        (Probe({"seed": 4}, gives="refusal"), "seed"),
        (Probe({"seed": "x"}, gives="refusal", name="sead"), "seed"),
        (Probe({"seed": 4}, neutral=({"seed": 5},)), "seed"),
    ],
)
def test_a_false_probe_is_found(server: RunningServer, probe: Probe, complaint: str) -> None:
    asker = Asker(TABLES["/v1/completions"], server)
    with pytest.raises(AssertionError, match=complaint):
        asker.check("seed", probe)
