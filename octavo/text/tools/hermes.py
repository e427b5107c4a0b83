"""Hermes' format, which Qwen 2.5 and 3 and many others speak.

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

Source: https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.text.tools.json_call import JSONCallParser

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps


class HermesParser(JSONCallParser):
    """Calls between tags, each of its own or several in one. A missing end tag is forgiven."""

    markers = ("<tool_call>", "</tool_call>")

    def _starts(self) -> tuple[str, ...]:
        return ("<tool_call>",)

    def _read_calls(self, start: str) -> Steps[None]:
        yield from self._read_json_calls()
        yield from self._ending("</tool_call>")
