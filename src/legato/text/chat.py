"""`encode_chat`: messages to prompt ids, where only the template may write control tokens.

Knows: how to tell the template's control tokens from the same letters in a user's message.
Does not know: Jinja, vocabularies' files, the engine.

A template prints `<|im_end|>` to end a turn. A user who writes `<|im_end|>` must not end it. So the control tokens in
what the caller gives are broken by a character that occurs nowhere else, the conversation is rendered, and stretches
of it that hold that character are encoded as plain text, without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from legato.errors import CapacityError, RequestError
from legato.text.template import ChatTemplate
from legato.text.tokenizer import Tokenizer

_MARKS = range(0xF0000, 0x10FFFE)  # private use: no vocabulary's token holds one


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    lap: Callable[[str], None] = lambda name: None,
    most_chars: int | None = None,
    **kwargs: Any,
) -> list[int]:
    """The prompt's ids. Never a second start token: the template writes its own, or none.

    most_chars  a rendered text that is longer is refused: cutting it into tokens would take seconds
    lap  called with "template" once that has rendered, with "tokenise" when the ids are there
    Raises what `ChatTemplate.render` raises, and `CapacityError` beyond `most_chars`.
    """
    given = [messages, tools, kwargs]
    control = tokenizer.control_pattern
    written = "\0".join(_strings(given))
    mark = ""
    if control.search(written):
        mark = next((c for c in map(chr, _MARKS) if c not in written), "")
        if not mark:
            raise RequestError("messages", "", "text that leaves one private-use character unused")
        messages, tools, kwargs = _broken(given, control, mark)
    text = template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)
    lap("template")
    if most_chars is not None:
        check_chars(text, most_chars)
    if not mark or mark not in text:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        lap("tokenise")
        return ids
    ids = []
    for own, plain in _stretches(text, control, mark):
        ids += tokenizer.encode(own, add_special=False, parse_special=True)
        ids += tokenizer.encode(plain.replace(mark, ""), add_special=False)
    lap("tokenise")
    return ids


def check_chars(text: str, most: int) -> None:
    """Raises for a text that no context will hold, whatever its tokens are."""
    if len(text) > most:
        allowed = "characters, for its context"
        raise CapacityError("prompt characters", len(text), most, allowed, "shorten the prompt")


def _stretches(text: str, control: re.Pattern[str], mark: str) -> list[tuple[str, str]]:
    """Pairs (text to encode with control tokens, the stretch after it that holds a mark and has none)."""
    pairs: list[tuple[str, str]] = []
    own, at = "", 0
    ends = [(m.start(), m.end()) for m in control.finditer(text)] + [(len(text), len(text))]
    for start, end in ends:
        stretch = text[at:start]
        if mark in stretch:
            pairs.append((own, stretch))
            own = text[start:end]
        else:
            own += text[at:end]
        at = end
    return [*pairs, (own, "")]


def _strings(value: object) -> list[str]:
    """Every string inside, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [s for pair in value.items() for item in pair for s in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [s for item in value for s in _strings(item)]
    return []


def _broken(value: Any, control: re.Pattern[str], mark: str) -> Any:
    """A copy in which each control token's text has `mark` after its first character."""
    if isinstance(value, str):
        return control.sub(lambda m: m[0][:1] + mark + m[0][1:], value)
    if isinstance(value, Mapping):
        return {_broken(k, control, mark): _broken(v, control, mark) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_broken(item, control, mark) for item in value]
    return value
