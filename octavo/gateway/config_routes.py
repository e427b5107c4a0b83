"""The sections `routing`, `tiers`, `models` and `rules` of the configuration: what is asked for
under which name, and where it goes. Values only; `policy` decides with them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.gateway.language import LANGUAGES
from octavo.gateway.model import Route, Target

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}\Z")]
"""Of tiers, rules and backends: they stand in records and metrics."""

Pattern = Annotated[str, Meta(min_length=1, max_length=256)]
"""A shell pattern (`*`, `?`, `[abc]`), matched whole, capitals told from small letters."""

Count = Annotated[int, Meta(ge=0, le=10**9)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+\-.^_`|~]{1,64}")
_CREDENTIALS = frozenset(("authorization", "cookie", "proxy-authorization", "x-api-key", "api-key"))


class RoutingSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests are read and spread, for all routes.

    Attributes:
        serve_backend_models: a model of a backend may be asked for by the backend's name for it,
            without an entry in `models`; all backends that have it are then one tier.
        deadline_s: for a request with all its attempts, seconds, where its route names none.
        block_bytes: of a prompt in UTF-8, hashed together; prompts that begin alike are
            known to, in whole blocks.
        max_blocks: more of a prompt is not looked at.
        memory_blocks: blocks whose replica is remembered; 0: none, and rendezvous hashing alone
            decides.
        min_shared: part of a prompt that a replica must have had already so that it is preferred
            for that, above 0, at most 1. Below it, as with a system prompt that all share, prompts
            are spread.
        prompt_tokens: how a prompt's tokens are estimated before the backend counts them. `text`:
            by kinds of characters, above the count for texts that people and programs write, about
            twice it for English; `bytes`: one per byte, which no tokenizer exceeds.
        tokens_per_image: what an image counts for, and every other medium at the least.
        trust_tenant: a caller may name its tenant in `X-Octavo-Tenant` where its key has none.
            Tenants part the backends' prefix caches, limits and budgets: leave it off unless all
            callers are trusted.
    """

    serve_backend_models: bool = True
    deadline_s: Seconds = 600.0
    block_bytes: Annotated[int, Meta(ge=64, le=65_536)] = 1024
    max_blocks: Annotated[int, Meta(ge=1, le=1024)] = 32
    memory_blocks: Annotated[int, Meta(ge=0, le=10_000_000)] = 200_000
    min_shared: Annotated[float, Meta(gt=0, le=1)] = 0.5
    prompt_tokens: Literal["text", "bytes"] = "text"
    tokens_per_image: Count = 2048
    trust_tenant: bool = False


class TargetSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model at one backend, with its share. Where the share is 1, `backend/model` is enough.

    Attributes:
        backend: its name in `backends`.
        model: as the backend calls it.
        weight: share of the requests that it gets, in proportion to the others'.
    """

    backend: str
    model: str
    weight: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0

    @property
    def target(self) -> Target:
        """As plans have it."""
        return Target(self.backend, self.model)


TargetSpec = str | TargetSection


def target_of(spec: TargetSpec) -> TargetSection:
    """A target in its long form. What is before the first `/` is the backend; models may have more.

    Raises:
        ValueError: the short form has no `/`.
    """
    if isinstance(spec, TargetSection):
        return spec
    backend, slash, model = spec.partition("/")
    if not (backend and slash and model):
        raise ValueError(f"{spec[:100]!r} is no target: write backend/model")
    return TargetSection(backend=backend, model=model)


class TierSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Targets that are as good as one another.

    Attributes:
        targets: `backend/model`, or a mapping with a `weight`.
        fallbacks: likewise, tried in this order when none of `targets` answers.
        balance: which of `targets` comes first. `affinity`: the one that has had the session or the
            prompt's beginning, as long as it is not much busier than the others; `load`: the least
            busy; `random`: any; `order`: as they are written.
        load_bound: with `affinity`: how many times the mean load a target may have.
        min_load: with `affinity`: requests that a target may have whatever the others have.
        sticky_sessions: requests of one session (`X-Octavo-Session`) go to one target.
        judge: what decides whether an answer is good enough, a name in `judges`; left out: it is.
    """

    targets: Annotated[tuple[TargetSpec, ...], Meta(min_length=1, max_length=1000)]
    fallbacks: Annotated[tuple[TargetSpec, ...], Meta(max_length=1000)] = ()
    balance: Literal["affinity", "load", "random", "order"] = "affinity"
    load_bound: Annotated[float, Meta(ge=1, le=1000)] = 1.25
    min_load: Annotated[int, Meta(ge=0, le=100_000)] = 4
    sticky_sessions: bool = True
    judge: str = ""


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Other tiers for a share of the requests.

    Attributes:
        name: in records.
        percent: of the requests, from 0 to 100.
        tiers: names in `tiers`, instead of the route's.
        by: what is counted: each `request` by itself; or all of a `session`, `key` or `tenant` to
            the same side (requests that have none are taken one by one).
    """

    name: Name
    percent: Decimal
    tiers: Annotated[tuple[str, ...], Meta(min_length=1)]
    by: Literal["request", "session", "key", "tenant"] = "request"

    def __post_init__(self) -> None:
        _check_percent(self.percent)


class Shadow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A copy of a share of the requests, whose answers are recorded and seen by nobody.

    Attributes:
        target: `backend/model`.
        percent: of the requests, from 0 to 100.
    """

    target: TargetSpec
    percent: Decimal = Decimal(100)

    def __post_init__(self) -> None:
        _check_percent(self.percent)


def _check_percent(percent: Decimal) -> None:
    if not 0 <= percent <= 100:
        raise ValueError("percent must be from 0 to 100")


class Way(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where requests go.

    Attributes:
        tiers: names in `tiers`: the first answers, and the next where its judge says that the
            answer is not good enough.
        canaries: other tiers for a share of the requests.
        shadows: targets that get a copy.
        deadline_s: for a request with all its attempts, seconds; left out: that of `routing`.
        max_cost: for a request with all its attempts, in the backends' currency; left out: only
            budgets bound it.
    """

    tiers: Annotated[tuple[str, ...], Meta(min_length=1, max_length=10)]
    canaries: tuple[Canary, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    deadline_s: Seconds | None = None
    max_cost: Decimal | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a tier is named twice, the canaries' shares make more than the whole, or the
                cost is no amount of money.
        """
        cost = self.max_cost
        if cost is not None and not (0 <= cost <= 10**6 and cost.scaleb(9) % 1 == 0):
            raise ValueError("max_cost must be from 0 to 1000000, with nine decimals at most")
        for name, tiers in (("tiers", self.tiers), *((c.name, c.tiers) for c in self.canaries)):
            if len(set(tiers)) != len(tiers):
                raise ValueError(f"{name} names a tier twice")
        if sum(canary.percent for canary in self.canaries) > 100:
            raise ValueError("canaries take more than 100 percent together")
        if len({canary.name for canary in self.canaries}) != len(self.canaries):
            raise ValueError("canaries must have different names")


class Alias(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's name for callers, where no rule decides.

    Attributes:
        tiers: names in `tiers`: the first answers, and the next where its judge says that the
            answer is not good enough.
        canaries: other tiers for a share of the requests.
        shadows: targets that get a copy.
        deadline_s: for a request with all its attempts, seconds; left out: that of `routing`.
        max_cost: for a request with all its attempts, in the backends' currency; left out: only
            budgets bound it.
        description: for people; told by `/v1/models`.
    """

    description: Annotated[str, Meta(max_length=1000)] = ""


class When(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must be like; all that is given must hold, and of a list one.

    Attributes:
        models: as asked for, shell patterns. Left out: every name that `models` or a backend has;
            a name that nothing has is served only by rules that name it.
        routes: chat, completions, embeddings, messages, responses, score, rerank.
        features: of the request, shell patterns.
        tenants: likewise.
        teams: of the key, shell patterns.
        keys: ids of keys, shell patterns.
        headers: by name in any spelling; shell patterns. A header that is not there is empty.
        tags: by name; shell patterns. A tag that is not there is empty.
        min_prompt_chars: characters of text in the prompt or messages, at least.
        max_prompt_chars: likewise, at most.
        min_prompt_tokens: by the estimate (`routing.prompt_tokens`), at least.
        max_prompt_tokens: likewise, at most.
        has_tools: whether the request offers tools.
        has_schema: whether the answer must be JSON by a schema, or JSON at all.
        has_images: whether there are images in it.
        stream: whether the answer is to be streamed.
        languages: ISO 639-1, of the last thing that the user says. What cannot be told, as with a
            few words or with code, is none of them.
    """

    models: tuple[Pattern, ...] | None = None
    routes: tuple[Route, ...] | None = None
    features: tuple[Pattern, ...] | None = None
    tenants: tuple[Pattern, ...] | None = None
    teams: tuple[Pattern, ...] | None = None
    keys: tuple[Pattern, ...] | None = None
    headers: dict[str, str] = {}
    tags: dict[str, str] = {}
    min_prompt_chars: Count | None = None
    max_prompt_chars: Count | None = None
    min_prompt_tokens: Count | None = None
    max_prompt_tokens: Count | None = None
    has_tools: bool | None = None
    has_schema: bool | None = None
    has_images: bool | None = None
    stream: bool | None = None
    languages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no request can be like.

        Raises:
            ValueError: an empty list, a least above the most, an unknown language, or a header
                that holds credentials.
        """
        for name in ("models", "routes", "features", "tenants", "teams", "keys", "languages"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must name at least one, or be left out")
        for unit in ("chars", "tokens"):
            least, most = getattr(self, f"min_prompt_{unit}"), getattr(self, f"max_prompt_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_prompt_{unit} must not be above max_prompt_{unit}")
        for language in self.languages or ():
            if language not in LANGUAGES:
                raise ValueError(
                    f"languages: {language[:20]!r} is none that can be told; these can: "
                    f"{', '.join(sorted(LANGUAGES))}"
                )
        for name in self.headers:
            if not _HEADER_NAME.fullmatch(name.lower()):
                raise ValueError(f"headers: {name[:64]!r} is no header's name")
            if name.lower() in _CREDENTIALS:
                raise ValueError(f"headers: {name} holds credentials: use keys")
        if len({name.lower() for name in self.headers}) != len(self.headers):
            raise ValueError("headers has a name twice")


class Rule(Way, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where requests of a kind go. Rules are tried as they are written; the first that holds
    decides, before the entries of `models`.

    Attributes:
        name: in records.
        when: what a request must be like; left out: any, as long as its model's name is known.
        tiers: names in `tiers`: the first answers, and the next where its judge says that the
            answer is not good enough.
        canaries: other tiers for a share of the requests.
        shadows: targets that get a copy.
        deadline_s: for a request with all its attempts, seconds; left out: that of `routing`.
        max_cost: for a request with all its attempts, in the backends' currency; left out: only
            budgets bound it.
    """

    name: Name
    when: When = When()
