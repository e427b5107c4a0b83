"""How the gateway's parts see one another: protocols, so that each is made and tested alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from octavo.gateway.model import Amount, Attempt, Call, KeyInfo, Plan, Target, Tier, Tokens


class KeyBook(Protocol):
    """Knows the keys (`keys`)."""

    async def find(self, presented: bytes) -> KeyInfo:
        """Whom a presented key belongs to. In constant time for wrong keys, and from memory for
        those seen lately.

        Raises:
            AuthenticationError: no such key, revoked or expired.
        """
        ...


class Permit(Protocol):
    """One request is let in; its tokens are reserved by the estimate."""

    @property
    def headers(self) -> Mapping[str, str]:
        """OpenAI's `x-ratelimit-*`, as they stand after this request."""
        ...

    async def settle(self, num_tokens: int) -> None:
        """The request has ended and used this many; must be called once, whatever happened."""
        ...


class Limits(Protocol):
    """Requests and tokens per minute, and requests at a time (`limits`)."""

    async def admit(self, call: Call) -> Permit:
        """Let a call in, after waiting its turn where the limit says to queue.

        Raises:
            RateLimitedError: 429; says which limit, and when to come again.
        """
        ...


class Reservation(Protocol):
    """An amount that budgets hold for a call."""

    @property
    def left_nano(self) -> int | None:
        """What the call may cost in all, nano-units: its reserve, or more where budgets have no
        ceiling in money; None: no bound.
        """
        ...

    async def settle(self, used: Amount) -> None:
        """Give back what was not used. Called once, whatever happened."""
        ...


class Budgets(Protocol):
    """Ceilings in money, tokens and device time (`budgets`)."""

    async def reserve(self, call: Call, worst: Amount | None) -> Reservation:
        """Hold the worst case in every budget that the call counts to, or in none.

        Args:
            call: who asks, and what for.
            worst: the most that it can use; None: nobody knows.

        Raises:
            BudgetExceededError: 429; says which budget, and when its period ends. Also where a hard
                budget holds and nobody knows what the call can use.
        """
        ...


class HealthView(Protocol):
    """What is known of backends, read without waiting (`health`)."""

    def is_usable(self, target: Target) -> bool:
        """Whether a request may be sent there now: its breaker is not open, its probe was well."""
        ...


class LoadView(Protocol):
    """How busy backends are, read without waiting (`health`)."""

    def load(self, target: Target) -> float:
        """Requests running and waiting there: by the backend's own word where it gives one, with
        ours that it cannot have counted yet; else ours alone.
        """
        ...


class Routing(Protocol):
    """Where calls go (`policy.Router`); one for each configuration in force."""

    @property
    def model_names(self) -> Sequence[str]:
        """Names that callers may ask for, besides those that only patterns take."""
        ...

    def names_for(self, key: KeyInfo) -> Sequence[str]:
        """Those of them that a caller with this key may ask for and can be served."""
        ...

    def route(self, call: Call, health: HealthView, load: LoadView) -> Plan:
        """Where a call goes.

        Raises:
            ModelNotServedError: nothing has the model's name.
        """
        ...


class Reply(Protocol):
    """An answer of a backend, begun: status and headers are here, the body comes.

    Its attempt is told of when it is closed: `close` must be called once.
    """

    @property
    def target(self) -> Target:
        """Who answers."""
        ...

    @property
    def status(self) -> int:
        """The HTTP status: 2xx, or an error that is the caller's."""
        ...

    @property
    def content_type(self) -> str:
        """Of the body; `text/event-stream` for streams."""
        ...

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: it breaks off, is too long, or takes longer than the deadline.
        """
        ...

    def events(self) -> AsyncIterator[bytes]:
        """A stream's events as they came, each whole with its empty line at the end.

        Raises:
            UpstreamError: it breaks off, or stands still for longer than the time allowed.
        """
        ...

    @property
    def tokens(self) -> Tokens:
        """What it used until now: the backend's word where that has come, else an estimate that is
        rather too high.
        """
        ...

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, as its route spells it; empty: it has not, or does not tell."""
        ...

    async def close(
        self,
        *,
        tokens: Tokens,
        status: str = "ok",
        reason: str = "",
        answer_sha256: str = "",
        judge: str = "",
        score: float | None = None,
    ) -> Attempt:
        """What became of it, for the breaker, the load and the ledger; frees the connection, and
        where the answer has not ended, cancels it at the backend.
        """
        ...


class Dispatch(Protocol):
    """Sends calls (`dispatch`)."""

    async def open(
        self,
        call: Call,
        tier: Tier,
        body: bytes,
        *,
        deadline: float,
        failed: Callable[[Attempt], None],
        number: int = 0,
    ) -> Reply:
        """Send to the tier's targets in turn until one begins to answer.

        A stream has begun when its first event is here: until then another target may be tried, as
        nothing has reached the client.

        Args:
            call: what is asked.
            tier: whom to ask, in this order.
            body: JSON; the model's name is put in per target, and what is a backend's own.
            deadline: reading of `time.perf_counter()`.
            failed: told of each attempt that failed.
            number: of the first attempt.

        Raises:
            UpstreamError: none answered; carries the status for the client. An answer that says the
                caller is at fault (4xx but 408, 425, 429) is a `Reply` like any other.
        """
        ...


class Verdict(Protocol):
    """What a judge says."""

    @property
    def passes(self) -> bool:
        """Whether the answer is good enough."""
        ...

    @property
    def score(self) -> float | None:
        """What the judgement rests on; None: not a number."""
        ...

    @property
    def reason(self) -> str:
        """One line, for the record."""
        ...


class Ask(Protocol):
    """Asks a model for a judge; the attempts are the judged call's."""

    async def __call__(self, call: Call, tier: Tier, body: bytes) -> Mapping[str, object]:
        """Send a call, not streamed, and read its answer.

        Raises:
            UpstreamError: no answer, an error, or none that can be read.
            BudgetExceededError: the judged call may not cost that.
        """
        ...


class Judge(Protocol):
    """Decides whether an answer is good enough (`judge`)."""

    @property
    def holds(self) -> bool:
        """Whether an answer is held back until it is judged; else only the record tells."""
        ...

    @property
    def needs_logprobs(self) -> bool:
        """Whether the backend must be asked for log-probabilities of the tokens."""
        ...

    def asks(self, call: Call) -> Sequence[tuple[Call, Tier]]:
        """What it asks of models to judge an answer to a call, at the most: for reserving."""
        ...

    async def judge(
        self, call: Call, answer: Mapping[str, object], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Judge a whole answer, in the shape that the route gives without streaming. What fails
        ends in a verdict, as the configuration says; nothing is raised.
        """
        ...


class Outcome(Reply, Protocol):
    """The answer that the client gets, whichever tier it is from.

    `close` is called once, when the client has everything or has gone. What `close` is told of
    tokens counts only where the whole answer was not read before.
    """

    @property
    def tier(self) -> Tier:
        """Whose answer it is."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here and its attempt on the list: it costs nothing more, so that
        nothing is saved by cutting it.
        """
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """For the client: `x-octavo-escalation`, `escalated` or `failed`; none where the first
        tier's answer was good enough.
        """
        ...


class Escalator(Protocol):
    """Asks a plan's tiers in turn until an answer is good enough (`escalate`)."""

    def worst_case(self, call: Call, plan: Plan) -> Amount | None:
        """The most that a run can use: every tier's dearest target, and the judges' models. None:
        the price of one of them is not known.
        """
        ...

    async def run(self, call: Call, plan: Plan, body: bytes, *, attempts: list[Attempt]) -> Outcome:
        """The answer for the client. Waits until it is judged, where a judge holds it back.

        Args:
            call: what is asked.
            plan: whom to ask.
            body: JSON, as it is to be sent; the model's name is put in per target.
            attempts: each attempt is appended as it ends, also where this raises or is cancelled:
                those of judges too. It is whole when the outcome is closed.

        Raises:
            UpstreamError: nobody answered.
            BudgetExceededError: the plan does not allow what the first tier may cost.
        """
        ...


class Records(Protocol):
    """Where the ledger's entries go; never waits (`octavo.ledger.writer`)."""

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """Keep what a call's attempts used, and its escalations."""
        ...
