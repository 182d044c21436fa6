"""What one streamed answer of an OpenAI-compatible server says: when text came, how many tokens, how it ended.

Knows: server-sent events, the two chunk shapes and their odd relatives. Does not know: connections, statistics.

Tolerated: role chunks, empty chunks, several tokens a chunk, usage in any chunk or in none, no `[DONE]`, CRLF,
comments, chunks cut anywhere, a whole JSON object instead of a stream. A chunk counts when it carries text, reasoning
or a call.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from legato.bench.link import DROPPED, LinkError

MAX_BODY = 1 << 20  # of an answer that is no stream
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")


class Reading:
    """Receives one answer. Times are the link's clock.

    stamps      when each chunk with text came; several in one packet came at once
    tokens      the server's own count; None: it told none
    finished    it said why the answer ended, or that it is done
    ended       when its last event came
    """

    __slots__ = (
        "_buffer",
        "_data",
        "_plain",
        "_status",
        "ended",
        "finished",
        "prompt_tokens",
        "stamps",
        "streamed",
        "tokens",
    )

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.finished = self.streamed = False
        self.ended: float | None = None
        self._status = 0
        self._plain: list[bytes] | None = None
        self._buffer = b""
        self._data: list[bytes] = []

    def head(self, status: int, content_type: str) -> None:
        self._status = status
        self.streamed = status == 200 and content_type != "application/json"
        self._plain = None if self.streamed else []

    def body(self, data: bytes, at: float) -> None:
        if self._plain is not None:
            if sum(map(len, self._plain)) < MAX_BODY:
                self._plain.append(data)
            self.ended = at
            return
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            self._line(line, at)

    def close(self) -> None:
        """The answer's last byte was seen. Raises `LinkError` unless it was a whole answer with text."""
        if self._plain is not None:
            self._whole(b"".join(self._plain))
        else:
            for line in (self._buffer, b""):
                self._line(line, self.ended or 0.0)
        if not self.finished:
            raise LinkError(DROPPED, f"the stream ended without a finish reason after {len(self.stamps)} chunks")
        if not self.stamps and not self.tokens:
            raise LinkError("empty", "the answer has no text")

    def _line(self, line: bytes, at: float) -> None:
        """Events end with an empty line; their data may stand on several."""
        line = line.rstrip(b"\r")
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            self._event(data, at)

    def _event(self, data: bytes, at: float) -> None:
        self.ended = at
        if data.strip() == b"[DONE]":
            self.finished = True
            return
        event = _object(data)
        if event is None:
            raise LinkError("not JSON", f"an event is not a JSON object: {data[:60]!r}")
        self._take(event, at)

    def _take(self, event: dict[str, Any], at: float) -> None:
        if event.get("error"):
            raise LinkError("error event", _message(event))
        self._usage(event.get("usage"))
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if _has_text(choice):
                self.stamps.append(at)
            if choice.get("finish_reason"):
                self.finished = True

    def _usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        made, read = usage.get("completion_tokens"), usage.get("prompt_tokens")
        if isinstance(made, int) and made > 0:
            self.tokens = made
        if isinstance(read, int) and read > 0:
            self.prompt_tokens = read

    def _whole(self, body: bytes) -> None:
        """An error, or an answer that did not come as a stream."""
        told = _object(body)
        if self._status != 200:
            text = _message(told) if told is not None else body[:120].decode("utf-8", "replace")
            raise LinkError(f"http {self._status}", " ".join(text.split())[:200] or "no reason given")
        if told is None:
            raise LinkError("not JSON", f"the answer is not a JSON object: {body[:60]!r}")
        self._take(told, self.ended or 0.0)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:  # a lone surrogate or NaN is no JSON, but no reason to lose a measurement
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _has_text(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    for name in ("delta", "message"):
        part = choice.get(name)
        if isinstance(part, dict) and any(part.get(key) for key in _TEXTS):
            return True
    return False


def _message(told: dict[str, Any]) -> str:
    """The words of an error, in whichever shape it comes."""
    error = told.get("error") or told.get("detail") or told.get("message") or told
    if isinstance(error, dict):
        error = error.get("message") or error
    return " ".join(str(error).split())[:200]
