"""IBM Granite's format: a JSON list behind a token (3.x), or Hermes' tags (4).

    <|tool_call|>[{"name": "f", "arguments": {"a": 1}}]

Source: https://www.ibm.com/granite/docs/models/granite, and the models' chat templates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.text.tools.json_call import JSONCallParser

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps


class GraniteParser(JSONCallParser):
    """A list or objects behind `<|tool_call|>` (3.0) or `<tool_call>` (3.1 and later)."""

    markers = ("<|tool_call|>", "<tool_call>", "</tool_call>")

    def _starts(self) -> tuple[str, ...]:
        return ("<|tool_call|>", "<tool_call>")

    def _read_calls(self, start: str) -> Steps[None]:
        yield from self._read_json_calls()
        yield from self._ending("</tool_call>")
