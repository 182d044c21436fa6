"""How long a step takes, learnt from the steps that were taken.

Knows: what a step carries in five counts, measured seconds. Does not know: models, sequences, what a prediction is for.

    seconds = pace x (step + row x rows + dense_row x (rows past DENSE) + kv_token x kv_tokens + visit x visited
                      + logit_row x logit_rows)

A few rows cost little, because weights are read once for all of them; from DENSE rows on arithmetic is what counts,
hence two slopes. The six costs start from an expectation of the model and the machine, are never negative, and are
fitted to relative errors by least squares with forgetting, apart for each kind of step: a long while of streaming
does not wash out what was learnt of prompts. `pace` follows the machine as a whole: when a neighbour takes half of it,
what was learnt of each cost stays true. The fit is two passes of coordinate descent a step over the normal equations,
started from the last answer. A step far off is taken in only up to a few usual errors, so that a machine that stood
still for a moment teaches little, and one that has become slower teaches fast.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from legato.core.plan import Plan, Slice
from legato.core.spec import ArchSpec
from legato.errors import UsageError
from legato.measure.cost import Role
from legato.measure.ledger import StepRecord
from legato.measure.machine import Machine

DENSE = 16  # rows from which on arithmetic, not reading weights, sets the pace
FORGET = 0.98  # of what earlier steps of the same kind weigh, each step
PACE_GAIN = 0.05  # of a step's relative error, into the pace
PRIOR_WEIGHT = 0.003  # of the expectation, in steps
USUAL_ERRORS = 3.0  # a step is taken in up to this many mean errors
QUANTILE = 0.97  # of measured / predicted: what `Prediction.high` covers
WINDOW = 128  # steps of a kind that the band is taken from
UNSURE = 1.2  # the least band until FEW steps of a kind were seen
FEW = 16
WIDEST = 1.5  # a machine that stands still now and then does so in short steps too


@dataclass(slots=True)
class Load:
    """What a step carries; the counts of `StepRecord` (kv_tokens, visited and logit_rows mean the same there).

    prompt_rows  those that are no stream's next token (and no guess after it)
    """

    rows: int = 0
    prompt_rows: int = 0
    kv_tokens: int = 0
    visited: int = 0
    logit_rows: int = 0

    def add(self, piece: Slice, sign: int = 1) -> None:
        """One slice more; with sign -1 one less."""
        start, length, num_logits = piece.start, piece.length, piece.num_logits
        self.rows += sign * length
        if num_logits != length or start < len(piece.seq.request.prompt_ids):
            self.prompt_rows += sign * length
        self.kv_tokens += sign * (start + length)
        self.visited += sign * (length * (2 * start + length + 1) // 2)
        self.logit_rows += sign * num_logits

    @classmethod
    def of_plan(cls, plan: Plan) -> Load:
        load = cls()
        for piece in plan.slices:
            load.add(piece)
        return load

    @classmethod
    def of_record(cls, record: StepRecord) -> Load:
        return cls(record.num_tokens, record.prompt_tokens, record.kv_tokens, record.visited, record.logit_rows)

    @classmethod
    def of_rows(cls, start: int, end: int) -> Load:
        """A step with positions [start, end) of one prompt and nothing else."""
        rows = end - start
        return cls(rows, rows, end, rows * (start + end + 1) // 2, 0)

    @classmethod
    def of_streams(cls, count: int, depth: int) -> Load:
        """A step of `count` streams that have `depth` tokens each."""
        return cls(count, 0, count * depth, count * depth, count)

    @property
    def kind(self) -> int:
        """0: streams only, 1: streams and prompts, 2: prompts only."""
        return 0 if not self.prompt_rows else 1 if self.prompt_rows < self.rows else 2


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds for each thing that a step carries (see the formula above). `UsageError` for what is not positive."""

    step: float = 6e-3
    row: float = 5e-5
    dense_row: float = 5e-4
    kv_token: float = 1e-6
    visit: float = 3e-7
    logit_row: float = 1e-4

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not (isinstance(value, float) and math.isfinite(value) and value > 0):
                raise UsageError(f"step cost {f.name}={value!r} is not allowed: give seconds, more than 0")

    @classmethod
    def expected(
        cls, spec: ArchSpec, bits: Mapping[Role, float], kv_format: str, machine: Machine | None = None, cores: int = 1
    ) -> StepCost:
        """Of a model with so many bits a weight, by role: on this machine as calibrated, or else on an ordinary one of
        so many cores, which is right within a few times.
        """
        from legato.measure.predict import Predictor  # only here: it reads this module

        return Predictor(spec, bits, kv_format, machine or Machine.ordinary(cores)).step_cost()


class Prediction(NamedTuple):
    """Seconds, and the band that all but three in a hundred steps of this kind keep on each side."""

    seconds: float
    low: float
    high: float


class _Ratios:
    """measured / predicted of the last WINDOW steps of one kind, in order of time and of size."""

    __slots__ = ("_recent", "_sorted")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(ratio)
        insort(self._sorted, ratio)

    def __len__(self) -> int:
        return len(self._recent)

    def quantile(self, q: float) -> float:
        """1 where nothing was seen."""
        count = len(self._sorted)
        return self._sorted[min(count - 1, int(q * count))] if count else 1.0


class StepTimeModel:
    """Predicts steps and learns from them; about 15 us a step learnt, 1 us a prediction."""

    __slots__ = ("_error", "_errors", "_pace", "_prior", "_ratios", "_sums", "_weights", "num_steps")

    def __init__(self, prior: StepCost | None = None) -> None:
        expected = prior or StepCost()
        self._prior: tuple[float, ...] = tuple(getattr(expected, f.name) for f in fields(StepCost))
        self._weights = [1.0] * 6  # each cost as a multiple of the expected one
        # Of each kind: the 6 x 6 products of features, row by row, then the 6 of features and measured.
        self._sums = [[0.0] * 42 for _ in range(3)]
        self._ratios = [_Ratios() for _ in range(3)]
        self._pace = 1.0
        self._errors = [0.0] * 3  # the same as `error` of each kind
        self._error = 0.0
        self.num_steps = 0

    @property
    def cost(self) -> StepCost:
        """The six costs as they are believed now."""
        tiny = 1e-12
        return StepCost(*(max(tiny, self._pace * p * w) for p, w in zip(self._prior, self._weights, strict=True)))

    @property
    def costs(self) -> tuple[float, ...]:
        """The same in the order of `StepCost`, for every step: without its checks."""
        pace = self._pace
        return tuple([max(1e-12, pace * p * w) for p, w in zip(self._prior, self._weights, strict=True)])

    @property
    def error(self) -> float:
        """The mean of |measured - predicted| / predicted, of late."""
        return self._error

    def seconds(self, load: Load) -> float:
        """The expected time of a step that carries `load`."""
        p, w, rows = self._prior, self._weights, load.rows
        dense = rows - DENSE if rows > DENSE else 0
        return self._pace * (
            p[0] * w[0] + p[1] * w[1] * rows + p[2] * w[2] * dense + p[3] * w[3] * load.kv_tokens
            + p[4] * w[4] * load.visited + p[5] * w[5] * load.logit_rows
        )  # fmt: skip

    def foreseen(self, load: Load) -> float:
        """The same by the costs it started from, before any step was taken."""
        p, rows = self._prior, load.rows
        dense = rows - DENSE if rows > DENSE else 0
        return p[0] + p[1] * rows + p[2] * dense + p[3] * load.kv_tokens + p[4] * load.visited + p[5] * load.logit_rows

    def read_seconds(self, tokens: int) -> float:
        """The part of a step's time that reads keys and values of so many tokens."""
        return self._pace * self._prior[3] * self._weights[3] * tokens

    def predict(self, load: Load) -> Prediction:
        seconds, ratios = self.seconds(load), self._ratios[load.kind]
        return Prediction(seconds, seconds * min(1.0, ratios.quantile(1 - QUANTILE)), seconds * self.band(load.kind))

    def band(self, kind: int) -> float:
        """What to multiply a prediction by so that 97 in 100 steps of the kind take no longer."""
        ratios = self._ratios[kind]
        least = 1.0 if len(ratios) >= FEW else UNSURE
        return min(WIDEST, max(least, ratios.quantile(QUANTILE)))

    def rows_within(self, load: Load, start: int, limit: float, most: int, logits: bool = False) -> int:
        """How many rows of a sequence that has `start` computed may join `load` within `limit` seconds, 0 to most.

        logits  whether each of these rows wants logits
        """
        p, w = self._prior, self._weights
        dense_row, visit = p[2] * w[2], p[4] * w[4]
        flat = p[1] * w[1] + p[3] * w[3] + visit * (start + 0.5) + (p[5] * w[5] if logits else 0.0)
        spare = (limit - self.seconds(load)) / self._pace - p[3] * w[3] * start
        free = max(0, DENSE - load.rows)
        low, high = 0, most
        while low < high:
            n = (low + high + 1) // 2
            if flat * n + 0.5 * visit * n * n + dense_row * max(0, n - free) <= spare:
                low = n
            else:
                high = n - 1
        return low

    def observe(self, load: Load, seconds: float, interval: float | None = None) -> None:
        """A step took `seconds`, and `interval` from the end of the one before (the band covers that, where given)."""
        if not (load.rows > 0 and 0 < seconds < math.inf):
            return
        predicted, kind = max(1e-9, self.seconds(load)), load.kind
        ratio = seconds / predicted
        self.num_steps += 1
        self._ratios[kind].add((interval if interval is not None else seconds) / predicted)
        seen, usual = len(self._ratios[kind]), self._errors[kind]
        most = USUAL_ERRORS * max(0.005, usual) if seen > FEW else math.inf
        error = max(-most, min(most, ratio - 1.0))
        self._errors[kind] += max(1.0 / seen, 0.2) * (min(abs(ratio - 1.0), 3.0 * most) - usual)
        self._error += max(1.0 / self.num_steps, 0.05) * (min(abs(ratio - 1.0), 1.0) - self._error)
        change = (1.0 + error) ** max(1.0 / self.num_steps, PACE_GAIN)
        self._learn(load, (1.0 + error) / change, predicted / self._pace, kind)
        self._pace *= change

    def _learn(self, load: Load, ratio: float, unit: float, kind: int) -> None:
        """Takes in a step that was to take `unit` at a pace of 1 and took `ratio` times as long."""
        p, rows = self._prior, load.rows
        dense = rows - DENSE if rows > DENSE else 0
        unit *= max(1.0, ratio)  # what takes too long weighs less
        y = min(1.0, ratio)
        x = [
            p[0] / unit, p[1] * rows / unit, p[2] * dense / unit, p[3] * load.kv_tokens / unit,
            p[4] * load.visited / unit, p[5] * load.logit_rows / unit,
        ]  # fmt: skip
        products = [a * b for a in x for b in x] + [a * y for a in x]
        sums = self._sums
        sums[kind] = [FORGET * s + z for s, z in zip(sums[kind], products, strict=True)]
        self._descend([a + b + c for a, b, c in zip(*sums, strict=True)])

    def _descend(self, total: list[float]) -> None:
        """Each weight in turn becomes the best one, the others as they are: downhill all the time, never below 0."""
        w = self._weights
        for _ in range(2):
            for j in range(6):
                r = 6 * j
                slope = (
                    total[36 + j] - total[r] * w[0] - total[r + 1] * w[1] - total[r + 2] * w[2]
                    - total[r + 3] * w[3] - total[r + 4] * w[4] - total[r + 5] * w[5] + PRIOR_WEIGHT * (1.0 - w[j])
                )  # fmt: skip
                w[j] = max(0.0, w[j] + slope / (total[r + j] + PRIOR_WEIGHT))
