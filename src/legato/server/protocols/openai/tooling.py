"""Tools of a chat body: the one place where they are understood, or refused by name.

Knows: tools, tool_choice. Does not know: grammars, templates.
"""

from __future__ import annotations

from legato.server.problems import Problem
from legato.server.protocols.openai.fields import ChatBody


def check_tools(body: ChatBody) -> None:
    """Refuses tools; without any, `tool_choice` has nothing to choose from."""
    if body.tools:
        raise Problem(400, "tools are not supported; leave them out", param="tools", code="unsupported_parameter")
    if body.tool_choice not in (None, "none", "auto"):
        text = "tool_choice needs tools; leave it out"
        raise Problem(400, text, param="tool_choice", code="unsupported_parameter")
