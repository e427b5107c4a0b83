"""A request as the engine sees it: the one mutable record of scheduling.

Knows counts, ids and blocks. Knows nothing of text, of clients, of tensors, nor of the policy that
orders requests; the scheduler and the KV cache manager are the only ones that change it.
"""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import TYPE_CHECKING

from octavo.types import RowInit

if TYPE_CHECKING:
    from octavo.engine.messages import AddRequest
    from octavo.types import SamplingParams


class RequestStatus(IntEnum):
    """Where a request is. `WAITING` holds neither row nor blocks; `FINISHED` is final."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class Request:
    """Tokens, progress and resources of one request.

    There are no phases: a step computes some of the tokens between `num_computed_tokens` and
    `num_tokens`, and samples one when it reaches the latter.

    Invariants:
        len(token_ids) <= num_tokens: the difference is sampled on the device and not yet here.
        num_computed_tokens < num_tokens <= max_num_tokens.
        len(block_ids) * block_size >= num_computed_tokens.

    Attributes:
        request_id: unique among the requests in flight.
        num_prompt_tokens: length of the prompt.
        token_ids: the prompt, then the output, as far as the host knows it; an array, for a list
            of millions of ints is what the garbage collector would walk through.
        num_tokens: tokens that exist, those in flight on the device included.
        num_computed_tokens: tokens whose KV is in the cache once every planned step has run.
        max_num_tokens: the request ends when it has this many tokens.
        params, seed: how to sample; the seed is the caller's or one that the engine drew.
        eos_token_ids: the model's ids that end it; empty under `ignore_eos`.
        stop_token_ids: the caller's ids that end it.
        end_token_ids: both, for one look-up per token.
        priority, tenant, cache_salt, bad_words_token_ids: see `AddRequest`.
        arrival: rises with each request that the scheduler took; breaks every tie.
        status: see `RequestStatus`.
        row: place in the device's table, or -1.
        start_step: id of the step that put it into its row, -1 before that. A result of an
            earlier step belongs to a life before a preemption.
        block_ids: blocks of the KV cache, in order of position.
        block_hashes: chained hashes of its full blocks, as far as they were needed.
        num_cached_blocks: leading blocks that are entered in the prefix cache (or duplicate one).
        num_promised_blocks: leading blocks that others may wait for, see `KVCacheManager.admit`.
        num_cached_tokens: prompt tokens found in the prefix cache when it first ran.
        num_preemptions: times that it lost its blocks.
        queued_ns, started_ns: when it was queued, and when it first ran; monotonic, 0: not yet.
        num_prompt_logprobs: tokens of the prompt whose log-probabilities were told.
        num_lost_tokens: leading tokens that were computed before its last preemption, or will be by
            steps that were in flight then.
        account: where the meter keeps what it costs; the meter's own.
    """

    __slots__ = (
        "account",
        "arrival",
        "bad_words_token_ids",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "end_token_ids",
        "eos_token_ids",
        "max_num_tokens",
        "num_cached_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_lost_tokens",
        "num_preemptions",
        "num_promised_blocks",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_tokens",
        "params",
        "priority",
        "queued_ns",
        "request_id",
        "row",
        "seed",
        "start_step",
        "started_ns",
        "status",
        "stop_token_ids",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        eos_token_ids: list[int] | None = None,
        cache_salt: str = "",
        priority: int = 0,
        tenant: str = "",
        bad_words_token_ids: list[list[int]] | None = None,
    ) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = len(prompt_token_ids)
        self.token_ids = array("i", prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens
        self.num_computed_tokens = 0
        self.max_num_tokens = self.num_prompt_tokens + (params.max_tokens or 2**62)
        self.params = params
        self.seed = seed
        self.eos_token_ids = frozenset(() if params.ignore_eos else eos_token_ids or ())
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.end_token_ids = self.eos_token_ids | self.stop_token_ids
        self.cache_salt = cache_salt
        self.priority = priority
        self.tenant = tenant
        self.bad_words_token_ids = bad_words_token_ids or []
        self.arrival = -1
        self.status = RequestStatus.WAITING
        self.row = -1
        self.start_step = -1
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_cached_blocks = 0
        self.num_promised_blocks = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.queued_ns = 0
        self.started_ns = 0
        self.num_prompt_logprobs = 0
        self.num_lost_tokens = 0
        self.account = 0

    @classmethod
    def from_message(cls, message: AddRequest, *, seed: int) -> Request:
        """The request that a client's message asks for; `seed` counts if the message has none."""
        own = message.params.seed
        return cls(
            message.request_id,
            message.prompt_token_ids,
            message.params,
            seed=seed if own is None else own,
            eos_token_ids=message.eos_token_ids,
            cache_salt=message.cache_salt,
            priority=message.priority,
            tenant=message.tenant,
            bad_words_token_ids=message.bad_words_token_ids,
        )

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens that the host knows."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def owes_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are asked for and not all told."""
        wants = self.params.prompt_logprobs is not None
        return wants and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    def row_init(self) -> RowInit:
        """What the device must know before the request's next step; a copy."""
        return RowInit(
            row=self.row,
            token_ids=self.token_ids.tolist(),
            num_prompt_tokens=self.num_prompt_tokens,
            params=self.params,
            seed=self.seed,
            stop_token_ids=sorted(self.end_token_ids),
            bad_words_token_ids=self.bad_words_token_ids,
        )

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.name}, "
            f"{self.num_computed_tokens}/{self.num_tokens} tokens, {len(self.block_ids)} blocks)"
        )
