"""The fields of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from tests.server.probes import Table, changes, refused
from tests.server.probes.messages import MESSAGES, message_probes

_CHAT = {"prompt": None, "messages": MESSAGES}

TABLE = (
    Table(
        path="/tokenize",
        body={"prompt": "hello"},
        probes={
            **message_probes(_CHAT),
            "model": refused({"model": "org/other"}, status=404),
            "prompt": changes({"prompt": "other"}),
            "messages": changes(_CHAT),
            "add_special_tokens": changes({"add_special_tokens": False}),
            "add_generation_prompt": changes({**_CHAT, "add_generation_prompt": False}, _CHAT),
            "continue_final_message": changes({**_CHAT, "continue_final_message": True}, _CHAT),
            "chat_template_kwargs": changes({**_CHAT, "chat_template_kwargs": {"x": 1}}, _CHAT),
            "return_token_strs": changes({"return_token_strs": True}),
        },
    ),
    Table(
        path="/detokenize",
        body={"tokens": [70, 71]},
        probes={
            "model": refused({"model": "org/other"}, status=404),
            "tokens": changes({"tokens": [72]}),
        },
    ),
)
