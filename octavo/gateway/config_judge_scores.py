"""Sections of judges whose score another gives: a model, code of the operator's, a service. Whether
there is such a tier, function or service is not known here.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from octavo.gateway.backend_url import is_link_local
from octavo.gateway.config_judge_base import (
    BaseJudge,
    check_finite,
    check_pattern,
    check_seconds,
)
from octavo.gateway.judge_defaults import DEFAULT_PROMPT, DEFAULT_SCORE
from octavo.gateway.secret import Secret


class ModelJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """A model that grades. What it costs is an attempt of the call.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a grader comes to that does not answer, or not with a score.
        tier: who grades.
        prompt: with `{prompt}`, the conversation, and `{answer}`; other braces are left as they
            are, and what is put in is not searched again.
        score: regular expression whose first group is the score; the last match counts.
        passes_at: least score that passes.
        max_tokens: of the grader's answer.
        max_chars: of the conversation, and of the answer; the midst of longer ones is left out.
        time_limit: seconds.
    """

    tier: str
    passes_at: float
    prompt: str = DEFAULT_PROMPT
    score: str = DEFAULT_SCORE
    max_tokens: int = 64
    max_chars: int = 24_000
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if "{answer}" not in self.prompt:
            raise ValueError("prompt must have {answer}: nothing would be judged")
        check_pattern("score", self.score)
        if re.compile(self.score).groups < 1:
            raise ValueError("score must have a group: (...) around the number")
        check_finite("passes_at", self.passes_at)
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        if self.max_chars < 100:
            raise ValueError("max_chars must be at least 100")
        check_seconds("time_limit", self.time_limit)


class EvalJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="eval"):
    """A score by Python code: `async def name(request: dict, answer: dict) -> float`. It runs in
    the gateway's own process, and must not block it.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what code comes to that raises, takes too long, or gives no number.
        function: `module:function`, or the name of an entry point in the group `octavo.judges`.
        passes_at: least score that passes; True counts as 1, False as 0.
        time_limit: seconds.
    """

    function: str
    passes_at: float
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*(:[A-Za-z_][\w.]*)?", self.function):
            raise ValueError("function must be `module:function`, or an entry point's name")
        check_finite("passes_at", self.passes_at)
        check_seconds("time_limit", self.time_limit)


class ServiceJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="service"):
    """A score by a service: it gets a POST of `{"request_id", "route", "model", "request",
    "answer"}` and answers `{"score": 0.7, "reason": "optional"}`. It sees prompts and answers.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a service comes to that does not answer, or not with a score.
        url: http or https; redirects are not followed.
        headers: sent along: `Authorization: Bearer ${SCORE_KEY}`.
        passes_at: least score that passes.
        time_limit: seconds.
        allow_link_local: its address may be in 169.254.0.0/16 or fe80::/10, where clouds keep their
            machines' credentials.
    """

    url: str
    passes_at: float
    headers: dict[str, Secret] = {}
    time_limit: float = 10.0
    allow_link_local: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_good = parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be http://host:port/path or https://...")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not have a user or password: use headers")
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError("url must be printable ASCII without spaces")
        if not self.allow_link_local and is_link_local(parts.hostname):
            raise ValueError(
                "url is a link-local address, where clouds keep credentials: "
                "set allow_link_local if the service is there"
            )
        for name in self.headers:
            if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
                raise ValueError(f"headers: {name[:64]!r} is no header's name")
        check_finite("passes_at", self.passes_at)
        check_seconds("time_limit", self.time_limit)
