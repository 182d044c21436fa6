"""What the server and its engine's process say to each other: typed MessagePack in frames of bounded size.

Knows: messages, frames, how errors cross. Does not know: processes, who sends when.

A frame is 4 bytes of length, highest first, then one message. The first of either side is its `Hello` or `Start`, which
names the package's version: a package that was changed under a running server would speak another language. Anything
that is no frame, or no message of that direction, is a `WireError`, and the other side is not listened to any more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from legato import errors
from legato.core.events import Event
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import EngineError, LegatoError
from legato.server.bridge import Snapshot
from legato.server.model import Card, Wall

MAX_FRAME = 64 << 20  # the longest body of HTTP as token ids takes a third of it
LENGTH = struct.Struct(">I")
Setting = str | int | float | bool | None


class WireError(Exception):
    """The other side does not speak as agreed."""


class Fault(msgspec.Struct, frozen=True):
    """An error of `legato.errors`: its class, its line, and what else it carries."""

    kind: str
    message: str
    facts: dict[str, Setting] = msgspec.field(default_factory=dict)


# -- to the engine's process ------------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First of all: what to load. `settings` are those of `Config`, all resolved."""

    version: str
    settings: dict[str, Setting]
    log_format: str = "auto"


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    ref: int
    requests: list[Request]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    request_id: str
    index: int | None
    reason: FinishReason


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """Makes ready what sampling needs, beside the steps."""

    ref: int
    params: SamplingParams


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    ref: int


ToEngine = Start | Submit | Abort | Admit | Measure

# -- from it ----------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    version: str


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    what: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    card: Card


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model cannot be loaded, and why."""

    fault: Fault


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """To the message with that `ref`; `wall` is what `Measure` asked for."""

    ref: int
    fault: Fault | None = None
    wall: Wall | None = None


class Step(msgspec.Struct, frozen=True, tag="step"):
    events: list[Event]


class Told(msgspec.Struct, frozen=True, tag="told"):
    snapshot: Snapshot


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A few times a second, whatever the engine does; figures as of `EngineLoop.busy`."""

    busy_s: float
    limit_s: float


FromEngine = Hello | Loading | Ready | Refused | Reply | Step | Told | Beat

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """`message` with its length before it. `WireError` if it is too long, or holds what no message may."""
    try:
        body = _encoder.encode(message)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise WireError(f"cannot be sent: {error}") from None
    if len(body) > MAX_FRAME:
        raise WireError(f"{len(body)} bytes are more than the {MAX_FRAME} of a frame")
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Bytes that follow the first four."""
    size: int = LENGTH.unpack(head)[0]
    if not 0 < size <= MAX_FRAME:
        raise WireError(f"a frame of {size} bytes")
    return size


def to_engine(body: bytes) -> ToEngine:
    message: ToEngine = _decoded(_to_engine, body)
    return message


def from_engine(body: bytes) -> FromEngine:
    message: FromEngine = _decoded(_from_engine, body)
    return message


def _decoded(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, LegatoError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"no message: {str(error)[:200]}") from None


class Frames:
    """Cuts what comes in pieces into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Bodies that are whole now. Raises `WireError` at a length that cannot be."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= LENGTH.size:
                end = at + LENGTH.size + length_of(bytes(buffer[at : at + LENGTH.size]))
                if len(buffer) < end:
                    break
                body = bytes(buffer[at + LENGTH.size : end])
                at = end
                yield body
        finally:
            del buffer[:at]


# -- errors -----------------------------------------------------------------------------------------------------------

_FACTS: dict[type[Exception], tuple[str, ...]] = {
    errors.RequestError: ("field", "value", "allowed", "fix"),
    errors.CapacityError: ("field", "value", "allowed", "fix", "needed", "available"),
    errors.OverloadedError: ("retry_after_s", "reason"),
    errors.UsageError: (),
    errors.ModelFileError: ("path", "field", "problem"),
    errors.UnsupportedModelError: ("path", "field", "problem"),
    errors.DownloadError: (),
    errors.SessionError: (),
    errors.EngineError: (),
}
_KINDS = {kind.__name__: kind for kind in _FACTS if issubclass(kind, LegatoError)}


def fault_of(error: Exception) -> Fault:
    """`error` as it crosses. What is none of `legato.errors` keeps its words to itself: they may name addresses."""
    names = _FACTS.get(type(error))
    if names is None:
        return Fault("EngineError", f"the engine failed: {type(error).__name__}")
    return Fault(type(error).__name__, str(error), {name: _plain(getattr(error, name)) for name in names})


def error_of(fault: Fault) -> LegatoError:
    """The error again, with the same line."""
    kind = _KINDS.get(fault.kind, EngineError)
    error: LegatoError = kind.__new__(kind, fault.message)
    for name in _FACTS[kind]:
        setattr(error, name, fault.facts.get(name))
    return error


def _plain(value: object) -> Setting:
    """What a message can hold; other values are told by their first letters."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    return str(value)[:200] if not isinstance(value, int) else "a large number"
