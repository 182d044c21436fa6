"""`ToolParser`: calls in an answer's text, found as the text comes.

Knows: the forms of `tools`. Does not know: grammars, tokens, protocols.

Text goes through as content until an opener; then a JSON object is followed, character by character, to its end. What
turns out to be no call is content after all. Every character is looked at a bounded number of times, nothing is
evaluated, and where the text was cut makes no difference to what comes out in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from legato.text.reasoning import held_back
from legato.text.tools import ToolForm

_MAX_NAME = 160
_MAX_DEPTH = 64
_KEYS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class Content:
    """Text for a person."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call's name is known; its arguments follow."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, as they are written."""

    index: int
    text: str


Piece = Content | CallBegun | CallArguments


class _Place(Enum):
    TEXT = auto()
    OPEN = auto()  # after an opener, or a comma of a list: a call has to come
    NAME = auto()
    OBJECT = auto()
    CLOSE = auto()  # after a call


class _CallObject:
    """Follows one JSON object. `pieces` holds new text of the arguments.

    bare  the object is the arguments themselves
    """

    def __init__(self, bare: bool) -> None:
        self._bare = bare
        self._depth = 0
        self._in_string = self._escaped = self._in_value = self._in_arguments = False
        self._string: list[str] = []
        self._key = ""
        self.name = ""
        self.raw: list[str] = []
        self.pieces: list[str] = []
        self.num_arguments = 0
        self.done = self.broken = False

    def feed(self, text: str) -> int:
        """Takes text up to the object's end; how many characters that were."""
        begin = 0
        for at, char in enumerate(text):
            if self._in_string:
                self._follow_string(char)
            elif char == '"':
                self._in_string, self._string = True, []
            elif char in "{[":
                if char == "{" and self._begins_arguments():
                    self._in_arguments, begin = True, at
                    self.num_arguments += 1
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._in_arguments and self._depth == (not self._bare):
                    self._in_arguments = False
                    self.pieces.append(text[begin : at + 1])
                self.done = self._depth == 0
            elif self._depth == 1 and char in ":,":
                self._in_value = char == ":"
            self.broken = self._depth > _MAX_DEPTH
            if self.done or self.broken:
                self.raw.append(text[: at + 1])
                return at + 1
        if self._in_arguments:
            self.pieces.append(text[begin:])
        self.raw.append(text)
        return len(text)

    def _begins_arguments(self) -> bool:
        if self._in_arguments:
            return False
        return self._depth == 0 if self._bare else self._depth == 1 and self._in_value and self._key in _KEYS

    def _follow_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1 and not self._in_arguments:
                self._end_string("".join(self._string))
            return
        if self._depth == 1:
            self._string.append(char)

    def _end_string(self, text: str) -> None:
        if not self._in_value:
            self._key = text
        elif self._key == "name":
            self.name = text


class ToolParser:
    """Reads one answer.

    names   tools that may be called; a call of any other is content
    new_id  makes a call's id
    stream  arguments go out as they come, since a grammar makes sure that they are right; otherwise when they are whole
    """

    def __init__(self, form: ToolForm, names: Collection[str], new_id: Callable[[], str], *, stream: bool) -> None:
        self._form, self._names, self._new_id, self._streams = form, frozenset(names), new_id, stream
        self._place = _Place.TEXT
        self._held = ""  # may be the beginning of an opener or closer
        self._blank: list[str] = []  # blanks that belong to no text yet
        self._silent = True  # no content since the beginning, or since a call
        self._bare = form.bare
        self._raw: list[str] = []  # what becomes content if no call comes of it
        self._name: list[str] = []
        self._in_list = self._begun = False
        self._object: _CallObject | None = None
        self._out: list[Piece] = []
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """What `text` brought."""
        steps = {
            _Place.TEXT: self._text,
            _Place.OPEN: self._open,
            _Place.NAME: self._read_name,
            _Place.OBJECT: self._follow,
            _Place.CLOSE: self._close,
        }
        while text:
            text = steps[self._place](text)
        return self._take()

    def finish(self) -> list[Piece]:
        """Gives out what was held back: there is no more to come."""
        if self._place in (_Place.OPEN, _Place.NAME, _Place.OBJECT) and not self._begun:
            self._spill()
        if self._place is _Place.TEXT:
            held, self._held = self._held, ""
            self._say(held)
            if self._silent and not self.num_calls and self._blank:
                self._out.append(Content("".join(self._blank)))
        return self._take()

    def _take(self) -> list[Piece]:
        taken, self._out = self._out, []
        return taken

    # -- text -----------------------------------------------------------------------------------------------------

    def _text(self, text: str) -> str:
        """Content up to an opener; what may be the beginning of one is kept."""
        if self._bare:
            bare = text.lstrip()
            if bare.startswith("{"):
                self._raw, self._blank = [*self._blank, text[: len(text) - len(bare)]], []
                self._place = _Place.OPEN
                return bare
            if not bare:
                self._blank.append(text)
                return ""
            self._bare = False
        whole, self._held = self._held + text, ""
        at = whole.find(self._form.opener)
        if at >= 0:
            self._say(whole[:at])
            self._raw, self._place = [self._form.opener], _Place.OPEN
            return whole[at + len(self._form.opener) :]
        keep = held_back(whole, self._form.opener)
        self._held = whole[len(whole) - keep :]
        self._say(whole[: len(whole) - keep])
        return ""

    def _say(self, text: str) -> None:
        """Content; blanks before a first call, and next to calls, are none."""
        if not text:
            return
        if self._silent:
            bare = text.lstrip()
            if not bare:
                self._blank.append(text)
                return
            text = bare if self.num_calls else "".join(self._blank) + text
            self._blank, self._silent = [], False
        self._out.append(Content(text))

    def _spill(self) -> None:
        """No call came of it: it is content."""
        raw = "".join([*self._raw, *self._name, *(self._object.raw if self._object else ())])
        self._name, self._object, self._in_list = [], None, False
        self._raw, self._place = [], _Place.TEXT
        self._bare = False
        self._say(raw)

    # -- a call ---------------------------------------------------------------------------------------------------

    def _open(self, text: str) -> str:
        rest = text.lstrip()
        self._raw.append(text[: len(text) - len(rest)])
        if not rest:
            return ""
        if rest[0] == "{":
            self._object, self._begun = _CallObject(bare=False), False
            self._place = _Place.OBJECT
            return rest
        if rest[0] == "[" and self._form.listed and not self._in_list:
            self._in_list = True
            self._raw.append("[")
            return rest[1:]
        if self._form.named and not self._in_list and (rest[0].isalnum() or rest[0] == "_"):
            self._place = _Place.NAME
            return rest
        self._spill()
        return rest

    def _read_name(self, text: str) -> str:
        """A name up to the arguments; longer ones than any tool's are none."""
        for at, char in enumerate(text):
            if char == "{":
                self._object, self._begun = _CallObject(bare=True), False
                self._object.name = "".join(self._name).split("[", 1)[0].strip()
                self._place = _Place.OBJECT
                return text[at:]
            self._name.append(char)
            if len(self._name) > _MAX_NAME or char in "\n<}":
                self._spill()
                return text[at + 1 :]
        return ""

    def _follow(self, text: str) -> str:
        found = self._object
        assert found is not None
        count = found.feed(text)
        if found.broken:
            self._spill()
        elif found.done:
            self._end_call(found)
        elif self._streams:
            self._flow(found)
        return text[count:]

    def _flow(self, found: _CallObject) -> None:
        """Arguments as they come, once the name is known."""
        if not self._begun and found.pieces and found.name in self._names:
            self._begin(found.name)
        if self._begun and found.pieces:
            self._out.append(CallArguments(self.num_calls - 1, "".join(found.pieces)))
            found.pieces = []

    def _begin(self, name: str) -> None:
        self._begun = True
        self._out.append(CallBegun(self.num_calls, self._new_id(), name))
        self.num_calls += 1
        self._silent, self._blank = True, []

    def _end_call(self, found: _CallObject) -> None:
        if not self._begun:
            read = _read(found, bool(self._name))
            if read is None or read[0] not in self._names:
                self._spill()
                return
            self._begin(read[0])
            found.pieces = [read[1]]
        if found.pieces:
            self._out.append(CallArguments(self.num_calls - 1, "".join(found.pieces)))
        self._raw, self._name, self._object = [], [], None
        self._begun = False
        self._place = _Place.CLOSE

    def _close(self, text: str) -> str:
        """What follows a call: another one of its list, the closer, or text again."""
        text, self._held = self._held + text, ""
        rest = text.lstrip()
        if not rest:
            return ""
        if self._in_list:
            self._in_list = rest[0] == ","
            self._place = _Place.OPEN if self._in_list else _Place.CLOSE if rest[0] == "]" else _Place.TEXT
            return rest[1:] if rest[0] in ",]" else rest
        if self._form.bare and rest[0] in ";,{":
            self._place = _Place.OPEN
            return rest.lstrip(";,") if rest[0] != "{" else rest
        closer = self._form.closer
        if closer and closer.startswith(rest) and closer != rest:
            self._held = rest
            return ""
        self._place = _Place.TEXT
        return rest[len(closer) :] if closer and rest.startswith(closer) else rest


def _read(found: _CallObject, bare: bool) -> tuple[str, str] | None:
    """(name, arguments) of a whole object; None if it is no call."""
    try:
        value = json.loads("".join(found.raw), parse_constant=_refuse)
        if bare:
            return found.name, "".join(found.pieces)
        name: Any = value.get("name")
        arguments: Any = next((value[key] for key in _KEYS if key in value), {})
        if isinstance(arguments, str):
            arguments, found.num_arguments = json.loads(arguments, parse_constant=_refuse), 0
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        written = "".join(found.pieces)
        return name, written if found.num_arguments == 1 else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> float:
    raise ValueError(name)
