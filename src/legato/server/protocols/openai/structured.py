"""Constraints and tools of a chat body: the one place where they are understood, or refused by name.

Knows: response_format, tools, tool_choice. Does not know: grammars, templates.
"""

from __future__ import annotations

from legato.core.request import Grammar
from legato.server.problems import Problem
from legato.server.protocols.openai.fields import ChatBody, Common


def grammar_of(body: Common) -> Grammar | None:
    """What the answer must match; refuses what cannot be promised."""
    if body.response_format is None or body.response_format.get("type") == "text":
        return None
    shown = str(body.response_format.get("type"))[:40]
    text = f"response_format of type {shown!r} is not supported; only text is"
    raise Problem(400, text, param="response_format", code="unsupported_parameter")


def check_tools(body: ChatBody) -> None:
    """Refuses tools; without any, `tool_choice` has nothing to choose from."""
    if body.tools:
        raise Problem(400, "tools are not supported; leave them out", param="tools", code="unsupported_parameter")
    if body.tool_choice not in (None, "none", "auto"):
        text = "tool_choice needs tools; leave it out"
        raise Problem(400, text, param="tool_choice", code="unsupported_parameter")
