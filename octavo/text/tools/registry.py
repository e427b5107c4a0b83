"""The formats of tool calls by name. A format is one file, and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.text.tools.deepseek import DeepSeekParser
from octavo.text.tools.granite import GraniteParser
from octavo.text.tools.harmony import HarmonyParser
from octavo.text.tools.hermes import HermesParser
from octavo.text.tools.llama3_json import Llama3JSONParser
from octavo.text.tools.mistral import MistralParser
from octavo.text.tools.pythonic import PythonicParser
from octavo.text.tools.qwen3_coder import Qwen3CoderParser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.text.tools.parser import ToolParser

GPT_OSS = "gpt_oss"
"""The one format that is both: its parser tells reasoning from content, and reads calls."""

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "deepseek_v3": DeepSeekParser,
    "deepseek_v31": DeepSeekParser,
    GPT_OSS: HarmonyParser,
    "granite": GraniteParser,
    "hermes": HermesParser,
    "llama3_json": Llama3JSONParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen3_coder": Qwen3CoderParser,
}
