"""Lines through points, and how well they follow them.

Knows: least squares. Does not know: what the points are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Fit:
    """y = costs[0] + costs[1] x + costs[2] x^2 + ...; r2: the share of the points' variance that it explains."""

    costs: tuple[float, ...]
    r2: float

    def __call__(self, x: float) -> float:
        return sum(cost * x**power for power, cost in enumerate(self.costs))

    def over(self, xs: Sequence[float]) -> list[float]:
        return [self(x) for x in xs]


def fit(x: Sequence[float], y: Sequence[float], degree: int) -> Fit:
    """Least squares of a polynomial; fewer different points than it takes lower the degree."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    degree = min(degree, len(set(x)) - 1)
    scale = float(np.abs(xs).max()) or 1.0  # so that powers of 10,000 do not drown the constant
    powers = (xs / scale)[:, None] ** np.arange(degree + 1)
    costs = np.linalg.lstsq(powers, ys, rcond=None)[0]
    return Fit(tuple(float(c) / scale**power for power, c in enumerate(costs)), _explained(ys, powers @ costs))


def fit_rising(x: Sequence[float], y: Sequence[float], degree: int, relative: bool = False) -> Fit:
    """The same with no cost below zero, as times have none; `relative`: an error counts as a part of its y."""
    degree = min(degree, len(set(x)) - 1)
    costs = costs_of([[float(at) ** power for power in range(degree + 1)] for at in x], y, relative)
    found = Fit(tuple(costs), 1.0)
    return Fit(found.costs, _explained(np.asarray(y, float), np.asarray(found.over(x))))


def _explained(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    left, all_of_it = wanted - found, wanted - wanted.mean()
    spread = float(all_of_it @ all_of_it)
    return 1.0 - float(left @ left) / spread if spread > 0 else 1.0


def costs_of(counts: Sequence[Sequence[float]], seconds: Sequence[float], relative: bool = False) -> list[float]:
    """What one of each count costs, none below zero: least squares of seconds = sum of costs x counts.

    counts    a row of counts for each of `seconds`; few columns, because all subsets of them are tried
    relative  an error counts as a part of its seconds
    """
    table, wanted = np.asarray(counts, float), np.asarray(seconds, float)
    if relative:
        table, wanted = table / wanted[:, None], np.ones_like(wanted)
    columns = table.shape[1]
    scale = np.abs(table).max(axis=0)
    scale[scale == 0] = 1.0
    best, answer = float("inf"), np.zeros(columns)
    for chosen in product((False, True), repeat=columns):
        places = np.flatnonzero(chosen)
        found = np.zeros(columns)
        found[places] = np.linalg.lstsq(table[:, places] / scale[places], wanted, rcond=None)[0]
        left = (table / scale) @ found - wanted
        if float(left @ left) < best and bool((found >= 0).all()):
            best, answer = float(left @ left), found
    return [float(cost) for cost in answer / scale]


def along(low: float, high: float, points: int = 60) -> list[float]:
    """Even places from low to high, for drawing a formula."""
    return [float(x) for x in np.linspace(low, high, points)]
