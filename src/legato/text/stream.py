"""`TextStream`: token ids in, text out as soon as it is certain, stop strings honoured.

Knows: bytes, characters and stop strings. Does not know: which vocabulary, the engine, why an answer ends otherwise.

    bytes of tokens  ->  UTF-8 decoder (holds an unfinished character)
                     ->  stop matcher  (holds what may yet become a stop string)  ->  text

Every byte is decoded once and every character is matched once, so a stream costs time linear in its length.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from legato.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Delta:
    """What a push brought.

    text         new text, whole characters, no part of a stop string
    stop         the stop string that ended the text, which holds neither it nor anything after it
    tokens_used  tokens taken so far, up to and with the one that completed the stop string
    """

    text: str
    stop: str | None = None
    tokens_used: int = 0


class _StopMatcher:
    """Finds the stop string that is completed first; of several completed by one character, the longest.

    For each stop string `_matched` says how many of its characters the text ends with (Knuth, Morris and Pratt's
    automaton), so nothing is looked at twice and the most that must be held back is the largest of them.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._first = frozenset(stop[0] for stop in self._stops)

    @property
    def held(self) -> int:
        """How many of the last characters may be the start of a stop string."""
        return max(self._matched, default=0)

    def feed(self, text: str, heed: bool) -> tuple[int, str] | None:
        """(characters of `text` up to the end of the stop string, the stop string), or None: all was taken in.

        Unless `heed`, stop strings that are completed here are no stops.
        """
        if not self.held and self._first.isdisjoint(text):
            return None
        matched = self._matched
        for at, char in enumerate(text):
            for i, stop in enumerate(self._stops):
                n, fallback = matched[i], self._fallbacks[i]
                while n and stop[n] != char:
                    n = fallback[n]
                matched[i] = n = n + (stop[n] == char)
                if n == len(stop):
                    if heed:
                        return at + 1, stop
                    matched[i] = fallback[n]
        return None


def _fallbacks(stop: str) -> list[int]:
    """fallback[n]: after n matched characters and a wrong one, how many are still matched."""
    table, n = [0, 0], 0
    for char in stop[1:]:
        while n and stop[n] != char:
            n = table[n]
        n += stop[n] == char
        table.append(n)
    return table


class TextStream:
    """The text of one answer as its tokens come.

    All deltas together are `tokenizer.decode` of all tokens, cut before the first stop string that is completed.

    stop        strings that end the text and are not part of it; none may be empty
    min_tokens  stop strings that are completed by one of the first so many tokens are no stops
    prompt_ids  what came before: when it ends in ordinary text the answer goes on from it, and a SentencePiece
                vocabulary's leading space is kept; otherwise that space is dropped, as `decode` does
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special: bool = True,
        min_tokens: int = 0,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        assert all(stop), "a stop string is empty"
        self._tokenizer = tokenizer
        self._skip_special, self._min_tokens = skip_special, min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = _StopMatcher(stop) if stop else None
        continues = bool(prompt_ids) and not tokenizer.is_special(prompt_ids[-1])
        self._strip = 0 if continues else tokenizer.strip
        self._held = ""
        self._stop: str | None = None
        self._tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stop is not None

    def push(self, token_ids: Iterable[int]) -> Delta:
        """Takes tokens in order; those after the one that completes a stop string are left alone."""
        out: list[str] = []
        for token_id in token_ids:
            if self._stop is not None:
                break
            self._tokens += 1
            if self._skip_special and self._tokenizer.is_special(token_id):
                continue
            out.append(self._take(self._decoder.decode(self._tokenizer.token_bytes(token_id))))
        return Delta("".join(out), self._stop, self._tokens)

    def finish(self) -> Delta:
        """Gives out what was held back: there is no more to come."""
        if self._stop is not None:
            return Delta("", self._stop, self._tokens)
        text = self._take(self._decoder.decode(b"", True))
        if self._stop is None:
            text, self._held = text + self._held, ""
        return Delta(text, self._stop, self._tokens)

    def _take(self, text: str) -> str:
        """The part of held + text that is certain; keeps the rest."""
        if self._strip and text:
            bare = text[min(self._strip, len(text) - len(text.lstrip(" "))) :]
            self._strip = 0 if bare else self._strip - len(text)
            text = bare
        if self._matcher is None or not text:
            return text
        found = self._matcher.feed(text, self._tokens > self._min_tokens)
        whole = self._held + text
        if found is not None:
            end, self._stop = found
            self._held = ""
            return whole[: len(whole) - len(text) + end - len(self._stop)]
        cut = len(whole) - self._matcher.held
        self._held = whole[cut:]
        return whole[:cut]
