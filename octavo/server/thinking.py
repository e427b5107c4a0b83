"""Whether a model shall reason: what clients ask, as the variable that its chat template reads."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo.server.context import ServerContext

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn reasoning on and off: Qwen's and most others'; DeepSeek's and
Granite's."""


@lru_cache(16)
def _variables(source: str) -> frozenset[str]:
    """Names that the template looks up; none where it does not compile."""
    from jinja2 import TemplateSyntaxError, meta  # the server starts without a template engine

    from octavo.text.sandbox import ChatEnvironment

    try:
        return frozenset(meta.find_undeclared_variables(ChatEnvironment().parse(source)))
    except TemplateSyntaxError:
        return frozenset()


def thinking_switch(context: ServerContext) -> str | None:
    """The variable that turns the model's reasoning on and off; None: there is none."""
    template = context.tokenizer.chat_template
    sources = template.sources if template is not None else ()
    for switch in SWITCHES:
        if any(switch in source and switch in _variables(source) for source in sources):
            return switch
    return None


def can_think(context: ServerContext) -> bool:
    """Whether the model reasons, by its template's switch or by how its answers are read."""
    return thinking_switch(context) is not None or context.reading.formats.reasoning is not None


def thinking_kwargs(context: ServerContext, wanted: bool, *, param: str) -> dict[str, bool]:
    """Variables of the template for a model that shall reason, or shall not.

    Args:
        context: the server's.
        wanted: whether it shall.
        param: the caller's name for the field.

    Raises:
        InvalidRequestError: the model cannot reason, or cannot but reason.
    """
    switch = thinking_switch(context)
    if switch is not None:
        return {switch: wanted}
    if can_think(context) == wanted:
        return {}
    what = (
        "this model does not reason: leave it out"
        if wanted
        else "this model always reasons, there is no way to turn it off: leave it out"
    )
    raise InvalidRequestError(f"{param}: {what}", param=param)
