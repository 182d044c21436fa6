"""Percentiles by one definition, for the load generator and for the server's own log.

Knows: numbers in order. Does not know: what they are.
"""

from __future__ import annotations

from collections.abc import Sequence


def percentile(ranked: Sequence[float], q: float) -> float:
    """The q-th percentile of values in ascending order, between the two nearest ranks."""
    place = (len(ranked) - 1) * q / 100
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)
