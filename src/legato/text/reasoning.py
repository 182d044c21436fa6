"""`ReasoningSplit`: what a model thinks aloud, apart from what it answers.

Knows: the tags that thoughts stand between, and when a prompt has opened them already.
Does not know: tokens, what templates are made of, protocols.

Models of the DeepSeek-R1 and Qwen3 kind write `<think>` ... `</think>` before their answer; some templates write the
first tag themselves, so that an answer begins in the middle of a thought.
"""

from __future__ import annotations

from dataclasses import dataclass

OPENER, CLOSER = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Split:
    """New text: of the thought, and of the answer."""

    reasoning: str = ""
    content: str = ""


def thinks(template: str | None) -> bool:
    """Whether a chat template belongs to a model that thinks aloud."""
    return template is not None and CLOSER in template


def opened_by(prompt: str) -> bool:
    """Whether a rendered prompt's end leaves a thought open."""
    end = prompt[-256:]
    return end.rfind(OPENER) > end.rfind(CLOSER) and not end[end.rfind(OPENER) + len(OPENER) :].strip()


def held_back(text: str, tag: str) -> int:
    """How many of the last characters may be the beginning of `tag`."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


class ReasoningSplit:
    """Takes an answer's text piece by piece. Where it is cut makes no difference to what comes out in all.

    opened  the prompt has opened the thought already
    Blanks next to a tag belong to neither part. Only a tag at the very beginning opens a thought.
    """

    def __init__(self, opened: bool) -> None:
        self._place = "thought" if opened else "start"
        self._trim = True
        self._held = ""  # may be the beginning of a tag
        self._blanks: list[str] = []  # belong to the text only if more of it comes
        self.num_tokens = 0

    @property
    def thinking(self) -> bool:
        """Whether the next text belongs to a thought."""
        return self._place == "thought"

    def feed(self, text: str, num_tokens: int = 0) -> Split:
        """What `text` adds. Its tokens are counted as thought if the thought was not over before it."""
        if self._place == "start":
            text = self._begin(self._held + text)
        if self._place != "answer":
            self.num_tokens += num_tokens
        if self._place == "thought":
            return self._think(self._held + text)
        return Split(content=self._trimmed(text))

    def finish(self) -> Split:
        """Gives out what was held back: there is no more to come."""
        held, self._held = self._held, ""
        if self._place == "thought":
            return Split("".join([*self._blanks, held]) if held else "")
        return Split(content="".join([*self._blanks, held]))

    def _begin(self, text: str) -> str:
        """Finds out what an answer begins with; returns what of it is for the place that was found."""
        self._held = ""
        bare = text.lstrip()
        if not bare:
            self._blanks.append(text)
            return ""
        if bare.startswith(OPENER):
            self._place, self._blanks = "thought", []
            return bare[len(OPENER) :]
        if OPENER.startswith(bare):
            self._held = text
            return ""
        self._place, self._trim = "answer", False
        text, self._blanks = "".join([*self._blanks, text]), []
        return text

    def _think(self, text: str) -> Split:
        """A thought up to its end; blanks, and what may be a tag, wait for what comes after them."""
        self._held = ""
        at = text.find(CLOSER)
        end = at if at >= 0 else len(text) - held_back(text, CLOSER)
        thought = self._trimmed(text[:end])
        core = thought.rstrip()
        out = "".join([*self._blanks, core]) if core else ""
        if core:
            self._blanks = []
        if at < 0:
            self._blanks.append(thought[len(core) :])
            self._held = text[end:]
            return Split(out)
        self._place, self._trim, self._blanks = "answer", True, []
        return Split(out, self._trimmed(text[at + len(CLOSER) :]))

    def _trimmed(self, text: str) -> str:
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        return text
