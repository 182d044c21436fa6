"""`Visit`: the clock of what happens to a request outside the engine.

Knows: laps of a clock. Does not know: what is made of them (`measure.explain`), models, so that whoever only answers
loads nothing of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Visit:
    """What happens to a request outside the engine. Call it at the end of each thing that is done before.

    begun  clock reading when it was handed in; ended: when its answer was whole
    laps   seconds of template, tokenise and grammar, before the engine had it
    text   seconds in which its tokens were made text, between steps or beside them
    """

    __slots__ = ("_last", "begun", "clock", "ended", "laps", "text")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.begun = self.ended = self._last = clock()
        self.laps: dict[str, float] = {}
        self.text = 0.0

    def __call__(self, name: str) -> None:
        """The time since the last lap was spent on `name`; "" for what nobody asks about."""
        now = self.clock()
        if name:
            self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
