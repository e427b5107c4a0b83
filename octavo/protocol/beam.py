"""Beam search on the wire: which fields it takes, and which mean nothing in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.protocol.structured import TextFormat
from octavo.types import MAX_LOGPROBS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.protocol.generation import GenerationRequest

MAX_BEAM_WIDTH = MAX_LOGPROBS // 2
"""Each beam needs twice as many candidates as there are beams: half of them may end it."""

ONLY_IN_BEAM_SEARCH: Mapping[str, tuple[Any, ...]] = {
    "length_penalty": (None, 1),
    "early_stopping": (None, False),
}
"""Fields that ask for nothing without it, unless they have one of these values."""

NEUTRAL_IN_BEAM_SEARCH: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 0),
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "stop": (None, []),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}
"""Fields of sampling. Beams are ranked by the model's own log-probabilities, which these leave as
they are, so that they would do nothing."""


def check_beam_search(request: GenerationRequest) -> None:
    """Refuse what a beam search cannot do, and its fields without one.

    Raises:
        InvalidRequestError: names the field.
    """
    if not request.use_beam_search:
        for name, values in ONLY_IN_BEAM_SEARCH.items():
            if getattr(request, name) not in values:
                raise InvalidRequestError(
                    f"{name} is only allowed when use_beam_search is true", param=name
                )
        return
    width = request.num_choices
    if width > MAX_BEAM_WIDTH:
        raise InvalidRequestError(
            f"n is the width of the beam search, at most {MAX_BEAM_WIDTH}, got {width}", param="n"
        )
    if request.num_sampled != width:
        raise InvalidRequestError(
            f"best_of has no meaning in a beam search: leave it out, or set it to n, {width}",
            param="best_of",
        )
    if request.stream:
        raise InvalidRequestError(
            "use_beam_search is not available when stream is true: its answers come at its end",
            param="use_beam_search",
        )
    given = {name: getattr(request, name) for name in NEUTRAL_IN_BEAM_SEARCH}
    for name, value in given.items():
        if value not in NEUTRAL_IN_BEAM_SEARCH[name]:
            raise InvalidRequestError(
                f"{name} has no meaning in a beam search: leave it out", param=name
            )
    if not isinstance(request.response_format, TextFormat | None):
        raise InvalidRequestError(
            "response_format has no meaning in a beam search: leave it out", param="response_format"
        )
