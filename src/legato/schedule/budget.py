"""How many prompt rows a step may carry, so that streams keep their pace and prompts still get on.

Knows: predicted seconds of a step, the user's limit on the time between two tokens. Does not know: who is running,
pages, order.

    nobody streams       the whole step
    with itl_slo_s       as long a step as keeps 97 of 100 within it: itl_slo_s / band
    without              at most STRETCH times as long as the streams alone would take
    in any case          MIN_SHARE of the streams' own time, and at least one row, for the first prompt that asks
"""

from __future__ import annotations

import math
from typing import Protocol

from legato.errors import UsageError
from legato.measure.step_time import Load, StepTimeModel

STRETCH = 4.0  # without an SLO a stream keeps at least this part of its pace while prompts are read: 1 / STRETCH
MIN_SHARE = 0.125  # of the streams' time, for prompts, when the streams alone take longer than the SLO
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

    __slots__ = ("_first", "_limit", "itl_slo_s", "model")

    def __init__(self, model: StepTimeModel, itl_slo_s: float | None = None) -> None:
        if itl_slo_s is not None and not 0 < itl_slo_s <= MAX_ITL_SLO_S:
            allowed = f"more than 0, at most {1000 * MAX_ITL_SLO_S:g}"
            raise UsageError(f"itl_slo_ms={1000 * itl_slo_s:g} is not allowed: give milliseconds, {allowed}")
        self.model, self.itl_slo_s = model, itl_slo_s
        self._limit, self._first = math.inf, True

    def limit(self, streams: Load) -> float:
        """Seconds that a step with these streams may take by prediction, prompts included."""
        if streams.rows == streams.prompt_rows:
            return math.inf
        alone = self.model.seconds(streams)
        if self.itl_slo_s is None:
            return STRETCH * alone
        return max(self.itl_slo_s / self.model.band(1), (1.0 + MIN_SHARE) * alone)

    def begin(self, streams: Load) -> None:
        self._limit, self._first = self.limit(streams), True

    def rows(self, load: Load, start: int, most: int, logits: bool = False) -> int:
        rows = most
        if self._limit < math.inf:
            rows = self.model.rows_within(load, start, self._limit, most, logits)
        if self._first:
            rows = max(1, rows)
        self._first = False
        return rows
