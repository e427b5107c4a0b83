"""Scores of evaluations made elsewhere: by registered Python code, or by a service."""

from __future__ import annotations

import importlib
import inspect
import math
import socket
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ConfigError
from octavo.gateway.backend_url import is_link_local
from octavo.gateway.judge import JudgeError, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import aiohttp
    import aiohttp.abc

    from octavo.gateway.config_judge_scores import EvalJudge, ServiceJudge
    from octavo.gateway.model import Call
    from octavo.gateway.seams import Ask

GROUP = "octavo.judges"
MAX_REPLY_BYTES = 64 * 1024


class EvalRule:
    """See `config_judge_scores.EvalJudge`.

    Raises:
        ConfigError: there is no such function, or it is not async.
    """

    def __init__(self, section: EvalJudge) -> None:
        self._passes_at = section.passes_at
        self._function = load_function(section.function)

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where the score is high enough.

        Raises:
            JudgeError: the function gives no number.
        """
        return _verdict(await self._function(call.body, answer), "", self._passes_at)


def load_function(name: str) -> Callable[[Any, Any], Awaitable[object]]:
    """An async function by `module:function`, or by an entry point's name.

    Raises:
        ConfigError: says what is missing.
    """
    module, _, path = name.partition(":")
    try:
        if path:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        else:
            points = entry_points(group=GROUP, name=name)
            if not points:
                known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
                raise ConfigError(
                    f"no entry point {name!r} in the group {GROUP!r} (there are: {known}): install "
                    "the package that has it, or write module:function"
                )
            found = next(iter(points)).load()
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"the judging function {name!r} cannot be loaded: {exc}") from exc
    is_async = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
        getattr(found, "__call__", None)  # noqa: B004
    )
    if not is_async:
        raise ConfigError(
            f"the judging function {name!r} must be `async def`: others would block the gateway"
        )
    function: Callable[[Any, Any], Awaitable[object]] = found
    return function


class ServiceRule:
    """See `config_judge_scores.ServiceJudge`. Its connections are kept until `aclose`."""

    def __init__(self, section: ServiceJudge) -> None:
        self._section = section
        self._session: aiohttp.ClientSession | None = None

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where the score is high enough.

        Raises:
            JudgeError: the service does not answer, or not with a score.
        """
        section = self._section
        question = {
            "request_id": call.request_id,
            "route": call.route,
            "model": call.model,
            "request": call.body,
            "answer": answer,
        }
        reply = await self._post(msgspec.json.encode(question))
        try:
            told = msgspec.json.decode(reply, type=_Scored)
        except msgspec.DecodeError as exc:
            raise JudgeError(f"the score service's answer has no score: {exc}") from None
        return _verdict(told.score, told.reason or "", section.passes_at)

    async def _post(self, question: bytes) -> bytes:
        import aiohttp  # heavy, and few gateways need it

        section = self._section
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=_resolver(section)),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        headers = {name: value.reveal() for name, value in section.headers.items()}
        headers["Content-Type"] = "application/json"
        try:
            async with self._session.post(
                section.url,
                data=question,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=section.time_limit),
            ) as response:
                if response.status != 200:
                    raise JudgeError(f"the score service answers {response.status}")
                reply = bytearray()
                async for piece in response.content.iter_any():
                    reply += piece
                    if len(reply) > MAX_REPLY_BYTES:
                        raise JudgeError("the score service's answer is too long")
                return bytes(reply)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Its text may show the headers: the kind of error does not.
            raise JudgeError(f"the score service fails: {type(exc).__name__}") from None

    async def aclose(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Scored(msgspec.Struct):
    score: float | bool
    reason: str | None = None


def _resolver(section: ServiceJudge) -> aiohttp.abc.AbstractResolver:
    """Names lead to no address that the URL itself may not have, however often they change."""
    from aiohttp import ThreadedResolver, abc

    class Resolver(abc.AbstractResolver):
        def __init__(self) -> None:
            self._inner = ThreadedResolver()

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[abc.ResolveResult]:
            found = await self._inner.resolve(host, port, family)
            if not section.allow_link_local and any(is_link_local(one["host"]) for one in found):
                raise OSError("the service's name leads to a link-local address")
            return found

        async def close(self) -> None:
            await self._inner.close()

    return Resolver()


def _verdict(score: object, reason: str, passes_at: float) -> Verdict:
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise JudgeError(f"the score is {type(score).__name__}, not a finite number")
    value = float(score)
    passes = value >= passes_at
    why = "" if passes else reason or f"score {value:g} is below {passes_at:g}"
    return Verdict(passes, value, why)
