"""Tools of a chat body: the one place where they are understood, or refused by name.

Knows: tools, tool_choice, parallel_tool_calls. Does not know: grammars, templates.
"""

from __future__ import annotations

from collections.abc import Mapping

from legato.errors import RequestError
from legato.server.protocols.openai.fields import ChatBody
from legato.text.tools import ToolUse, checked_tools

NAMED = '{"type": "function", "function": {"name": one of tools}}'
"""How a chat names the function to call, in messages."""

_CHOICES = ("auto", "none", "required")


def tools_of(body: ChatBody) -> ToolUse | None:
    """What may be called, and whether it must be; None without tools."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice", choice, "left out without tools", "send tools")
        return None
    tools = tuple(checked_tools(body.tools))
    parallel = body.parallel_tool_calls is not False
    if choice is None or isinstance(choice, str):
        if choice not in (None, *_CHOICES):
            raise RequestError("tool_choice", choice, f"{', '.join(_CHOICES)}, or an object that names a function")
        return ToolUse(tools, choice or "auto", parallel)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    named = tuple(tool for tool in tools if tool.name == name)
    if choice.get("type", "function") != "function" or not named:
        raise RequestError("tool_choice", choice, NAMED)
    return ToolUse(named, "named", parallel=False)
