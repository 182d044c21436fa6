"""How many prompt rows a step may carry, so that streams keep their pace and prompts still get on.

Knows: predicted seconds of a step, the user's limit on the time between two tokens. Does not know: who is running,
pages, order.

    nobody streams       the whole step
    with itl_slo_s       as long a step as keeps 97 of 100 within it: itl_slo_s / band
    without              at most STRETCH times as long as the streams alone would take
    in any case          for the first prompt that asks, at least one row, and rows for MIN_SHARE of the streams' own
                         time beside what it takes to read its keys and values again
"""

from __future__ import annotations

import math
from typing import Protocol

from legato.errors import UsageError
from legato.measure.step_time import Load, StepTimeModel

STRETCH = 4.0  # without an SLO a stream keeps at least this part of its pace while prompts are read: 1 / STRETCH
MIN_SHARE = 0.125  # of the streams' time, for a prompt, when the streams alone take longer than the SLO
MAX_ITL_SLO_S = 600.0


class Budget(Protocol):
    """Asked while a step is filled: once with its streams, then for each prompt in turn."""

    def begin(self, streams: Load) -> None:
        """The step carries `streams` in any case."""

    def rows(self, load: Load, start: int, most: int, logits: bool = False) -> int:
        """How many rows of a prompt with `start` computed may join `load`, the step so far. At most `most` are used.

        logits  whether each of these rows wants logits
        """


class WholeSteps:
    """As much as a step has room for: the most tokens a second, whatever it means for streams."""

    def begin(self, streams: Load) -> None:
        pass

    def rows(self, load: Load, start: int, most: int, logits: bool = False) -> int:
        return most


class Pace:
    """The budget of the table above; its times come from `model`. `UsageError` for an impossible SLO."""

    __slots__ = ("_alone", "_first", "_limit", "itl_slo_s", "model")

    def __init__(self, model: StepTimeModel, itl_slo_s: float | None = None) -> None:
        if itl_slo_s is not None and not 0 < itl_slo_s <= MAX_ITL_SLO_S:
            allowed = f"more than 0, at most {1000 * MAX_ITL_SLO_S:g}"
            raise UsageError(f"itl_slo_ms={1000 * itl_slo_s:g} is not allowed: give milliseconds, {allowed}")
        self.model, self.itl_slo_s = model, itl_slo_s
        self._alone, self._limit, self._first = 0.0, math.inf, True

    def begin(self, streams: Load) -> None:
        self._alone, self._first = self.model.seconds(streams), True
        if streams.rows == streams.prompt_rows:
            self._limit = math.inf
        elif self.itl_slo_s is None:
            self._limit = STRETCH * self._alone
        else:
            self._limit = self.itl_slo_s / self.model.band(1)

    def rows(self, load: Load, start: int, most: int, logits: bool = False) -> int:
        if self._limit == math.inf:
            return most
        limit = self._limit
        if self._first:
            least = self.model.seconds(load) + self.model.read_seconds(start) + MIN_SHARE * self._alone
            limit = max(limit, least)
        rows = self.model.rows_within(load, start, limit, most, logits)
        first, self._first = self._first, False
        return max(1, rows) if first else rows
