"""What a backend's section may say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from octavo.errors import ConfigError
from octavo.gateway.config_backends import Backend, PriceSection, check_backends
from octavo.gateway.model import (
    Amount,
    Call,
    DevicePrice,
    TokenPrice,
    Tokens,
    actual,
    worst_case,
)
from octavo.gateway.secret import decode_hook

GOOD = {"url": "http://a:8000", "models": {"m": {}}}


def read(**more: Any) -> Backend:
    """A section as the configuration has it."""
    return msgspec.convert(GOOD | more, Backend, dec_hook=decode_hook)


def price(**fields: Any) -> Any:
    """As the gateway computes with it."""
    return msgspec.convert(fields, PriceSection).price


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "http://169.254.169.254/latest"),
        ("url", "ftp://a"),
        ("kind", "other"),
        ("models", {}),
        ("models", {"m": {"context_length": 0}}),
        ("models", {"m": {"price": {}}}),
        ("models", {"m": {"price": {"input": "1"}}}),
        ("models", {"m": {"price": {"input": "1", "output": "-1"}}}),
        ("models", {"m": {"price": {"input": "NaN", "output": "1"}}}),
        ("models", {"m": {"price": {"input": "1", "output": "1", "device_hour": "2"}}}),
        ("models", {"m": {"price": {"input": "1", "cached_input": "2", "output": "1"}}}),
        ("models", {"m": {"price": {"input": "1", "output": "0.0000000001"}}}),
        ("models", {"m": {"price": {"device_hour": "2", "currency": "usd"}}}),
        ("models", {"m": {"price": {"device_hour": "2", "worst_input_us": "0"}}}),
        ("timeouts", {"connect": 0}),
        ("timeouts", {"idle": -1}),
        ("timeouts", {"first": 1}),
        ("probe", {"interval": -1}),
        ("probe", {"path": "health"}),
        ("probe", {"failures": 0}),
        ("breaker", {"failures": 0}),
        ("breaker", {"ratio": 1.5}),
        ("breaker", {"open": 9, "max_open": 8}),
        ("max_connections", 0),
        ("ca_file", "/x.pem"),
        ("auth_header", "Host"),
        ("auth_header", "a b"),
        ("headers", {"Content-Length": "1"}),
        ("headers", {"X\r\nY": "1"}),
        ("headers", {"X": "a\r\nY: b"}),
        ("api_key", "${NO_SUCH_VARIABLE_HERE}"),
        ("api_key", "file:/no/such/file"),
        ("unknown", 1),
    ],
)
def test_bad_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        read(**{field: value})
    assert field in str(caught.value) or "`$" in str(caught.value)


def test_a_section_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-1")
    section = read(
        kind="vllm",
        api_key="${THE_KEY}",
        headers={"X-Org": "o1"},
        probe={"interval": 0},
        models={"m": {"context_length": 8192, "price": {"input": "0.0375", "output": "0.15"}}},
    )
    assert section.api_key is not None
    assert section.api_key.reveal() == "sk-1"
    assert "sk-1" not in repr(section)
    assert section.probe_interval_s == 0
    assert (read().probe_interval_s, read(kind="octavo").probe_interval_s) == (60, 5)
    assert section.price("m") == TokenPrice(input=37_500_000, output=150_000_000, per=1_000_000)
    assert section.price("other") is None
    assert read(url="http://169.254.1.1", allow_link_local=True).address.host == "169.254.1.1"


def test_prices_per_million_are_exact() -> None:
    cheap = price(input="0.0375", cached_input="0.01", output="0.15", per_request="0.001")
    used = actual(Tokens(input=1_000_001, cached=1, output=3), cheap)
    assert used == Amount(37_500_000 + 10 + 450 + 1_000_000, 1_000_004, 0)
    call = Call(
        request_id="r",
        arrived=0.0,
        path="/v1/completions",
        route="completions",
        model="m",
        body={},
        num_prompt_tokens=1,
    )
    assert worst_case(call, cheap, max_tokens=0).cost_nano == 1_000_038  # rounded up
    free = price(input="0", output="0")
    assert actual(Tokens(input=5, output=5), free).cost_nano == 0
    device = price(device_hour="2.5", worst_input_us="0.5", worst_output_us="20000")
    assert device == DevicePrice(
        hourly_nano=2_500_000_000, worst_input_ns=500, worst_output_ns=20_000_000
    )


def test_one_currency() -> None:
    euros = {"m": {"price": {"input": "1", "output": "1", "currency": "EUR"}}}
    dollars = {"m": {"price": {"input": "1", "output": "1"}}}
    check_backends({"a": read(models=euros), "b": read()})
    with pytest.raises(ConfigError, match=r"backends\.b\.models\.m is priced in USD"):
        check_backends({"a": read(models=euros), "b": read(models=dollars)})


def test_the_pages_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "k")
    (tmp_path / "gemini").write_text("g\n")
    page = (Path(__file__).parents[2] / "docs" / "gateway-backends.md").read_text("utf-8")
    found = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert found is not None
    text = found[1].replace("/run/secrets", str(tmp_path))
    sections = yaml.safe_load(text)["backends"]
    made = {
        name: msgspec.convert(section, Backend, dec_hook=decode_hook)
        for name, section in sections.items()
    }
    check_backends(made)
    assert made["gemini"].api_key is not None
    assert made["gemini"].api_key.reveal() == "g"
    assert all(one.price(model) for one in made.values() for model in one.models)
