"""`Progress`: how far a model's loading has come, for whoever asks `/ready`; and the ways to it and from it.

Knows: what is being done, and how many of how many bytes. Does not know: models, bars, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from legato.weights.catalog import Report

FETCHING = "fetching the model"


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of `what`; total 0: nobody knows how much it is."""

    what: str
    done: int = 0
    total: int = 0

    @property
    def fraction(self) -> float | None:
        """From 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else None


Hear = Callable[[Progress], None]


class Heard:
    """A `Report` that tells `hear` each change, and passes all on to another.

    public  what `hear` is told instead of texts that name places of this machine
    """

    def __init__(self, hear: Hear, onto: Report, public: str = "") -> None:
        self._hear, self._onto, self._public = hear, onto, public
        self._what, self._done, self._total = "", 0, 0

    def start(self, total: int, text: str) -> None:
        self._what, self._done, self._total = self._public or text, 0, total
        self._hear(Progress(self._what, 0, total))
        self._onto.start(total, text)

    def advance(self, n: int) -> None:
        self._done += n
        self._hear(Progress(self._what, self._done, self._total))
        self._onto.advance(n)

    def done(self) -> None:
        self._onto.done()


class Shown:
    """The other way: progress as it comes, onto a `Report`."""

    def __init__(self, onto: Report) -> None:
        self._onto = onto
        self._last = Progress("")

    def hear(self, progress: Progress) -> None:
        last = self._last
        if (progress.what, progress.total) != (last.what, last.total):
            self._onto.start(progress.total, progress.what)
            last = Progress(progress.what, 0, progress.total)
        self._onto.advance(progress.done - last.done)
        self._last = progress
