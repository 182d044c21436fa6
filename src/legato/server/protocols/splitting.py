"""Which splitter an answer needs. The one place where other protocols meet tools and thoughts.

Knows: what the request allowed and what the model can do. Does not know: bytes.
"""

from __future__ import annotations

from legato.completion import Delta
from legato.errors import RequestError
from legato.server import reading
from legato.server.protocols.turns import CallBegin, CallInput, Piece, Said, Splitter, TextOnly, Thought
from legato.server.service import AnswerStream, Model
from legato.text.reasoning import thinks
from legato.text.tools import tool_form
from legato.text.tools_parser import CallArguments, CallBegun, Content


class _Parts:
    """An answer with thoughts or calls."""

    def __init__(self, reader: reading.AnswerReader) -> None:
        self._reader = reader

    def feed(self, delta: Delta) -> list[Piece]:
        return [_piece(part) for part in self._reader.feed(delta)]


def _piece(part: reading.Part) -> Piece:
    match part:
        case reading.Thought(text):
            return Thought(text)
        case Content(text):
            return Said(text)
        case CallBegun(_, call_id, name):
            return CallBegin(call_id, name)
        case CallArguments(_, text):
            return CallInput(text)


def splitter_of(stream: AnswerStream) -> Splitter:
    """For the one answer of `stream`."""
    reader = stream.reader()
    return _Parts(reader) if reader.needed else TextOnly()


def capabilities(model: Model) -> list[str]:
    """In Ollama's words."""
    source = model.template.source if model.template else None
    found = ["completion"]
    try:
        tool_form(source)
        found.append("tools")
    except RequestError:
        pass
    return [*found, "thinking"] if thinks(source) else found
