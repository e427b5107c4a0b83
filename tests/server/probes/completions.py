"""The fields of `/v1/completions`."""

from __future__ import annotations

from tests.server.probes import Table, changes, refused
from tests.server.probes.common import COMMON

_BEAMS = {"use_beam_search": True, "n": 2}

TABLE = Table(
    path="/v1/completions",
    body={"model": "fake", "prompt": "hello", "max_tokens": 8},
    probes={
        **COMMON,
        "prompt": changes({"prompt": "other"}),
        "add_special_tokens": changes({"add_special_tokens": False}),
        "logprobs": changes({"logprobs": 2}),
        "prompt_logprobs": changes({"prompt_logprobs": 2}),
        "truncate_prompt_tokens": changes({"truncate_prompt_tokens": 3}),
        "echo": changes({"echo": True}, neutral=({"echo": False},)),
        "best_of": changes({"n": 2, "best_of": 3}, {"n": 2}, neutral=({"n": 2, "best_of": 2},)),
        "use_beam_search": changes(_BEAMS, {"n": 2}, neutral=({"n": 2, "use_beam_search": False},)),
        "length_penalty": changes({**_BEAMS, "length_penalty": -3.0, "max_tokens": 64}, _BEAMS),
        "suffix": refused({"suffix": "s"}, neutral=({"suffix": ""},)),
    },
)
