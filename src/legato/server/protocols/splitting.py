"""Which splitter an answer needs. The one place where other protocols meet tools and thoughts.

Knows: what the request allowed and what the model can do. Does not know: bytes.
"""

from __future__ import annotations

from legato.server.protocols.turns import Splitter, TextOnly
from legato.server.service import AnswerStream, Model


def splitter_of(stream: AnswerStream) -> Splitter:
    """For the one answer of `stream`."""
    return TextOnly()


def capabilities(model: Model) -> list[str]:
    """In Ollama's words."""
    return ["completion"]
