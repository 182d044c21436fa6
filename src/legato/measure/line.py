"""A straight line through points, a few of which may be far off.

Knows: numbers. Does not know: what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

_ROUNDS = 12
_MOST = 512
_TUNING = 1.345  # Huber's: 95 % as good as least squares where no point is off
_MAD = 1.4826  # from a median deviation to a standard one


@dataclass(frozen=True, slots=True)
class Line:
    """y = c0 + c1 x.

    error   the standard error of c1; 0 where two points fix the line
    off     the median distance of the points from it
    points  how many it was laid through: those there were, or the means of so many neighbours each
    """

    c0: float
    c1: float
    error: float
    off: float
    points: int

    def at(self, x: float) -> float:
        return self.c0 + self.c1 * x


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Least squares by Huber's rule: points further off than usual count for less. None for fewer than two x.

    Source of the rule: Huber, Robust Estimation of a Location Parameter (1964), by reweighting.
    """
    if len(set(x)) < 2:
        return None
    x, y = _fewer(x), _fewer(y)
    weights = [1.0] * len(x)
    c0 = c1 = 0.0
    for _ in range(_ROUNDS):
        c0, c1 = _weighted(x, y, weights)
        distances = [abs(b - c0 - c1 * a) for a, b in zip(x, y, strict=True)]
        usual = _TUNING * _MAD * median(distances)
        if usual <= 1e-12 * max(map(abs, y)):
            break
        weights = [1.0 if d <= usual else usual / d for d in distances]
    return Line(c0, c1, _slope_error(x, y, c0, c1, weights), median(distances), len(x))


def _fewer(values: Sequence[float]) -> Sequence[float]:
    """At most _MOST values: means of neighbours."""
    size = -(-len(values) // _MOST)
    if size == 1:
        return values
    return [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]


def _weighted(x: Sequence[float], y: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    across = sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    slope = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True)) / across
    return mean_y - slope * mean_x, slope


def _slope_error(x: Sequence[float], y: Sequence[float], c0: float, c1: float, weights: Sequence[float]) -> float:
    total = sum(weights)
    if len(x) <= 2:
        return 0.0
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    across = sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    left = sum(w * (b - c0 - c1 * a) ** 2 for w, a, b in zip(weights, x, y, strict=True))
    return sqrt(left / total * len(x) / (len(x) - 2) / across)
