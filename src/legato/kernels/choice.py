"""Choosing a token from a row of logits, plainly: what `Executor.choose` promises, with a sort of everything.

Knows: one row. Does not know: requests, penalties, where draws come from.
"""

from __future__ import annotations

import numpy as np

from legato.kernels.ops import FloatArray


def choose(logits_V: FloatArray, temperature: float, top_k: int, top_p: float, min_p: float, draw: float) -> int:
    """See `Executor.choose`."""
    top = logits_V.max()
    if not np.isfinite(top):
        return -1
    inverse = min(1.0 / max(temperature, 1e-38), 1e30)
    weights = np.exp((logits_V - top).astype(np.float64) * inverse).astype(np.float32)
    order = np.lexsort((np.arange(len(weights)), -weights))
    total = weights.sum(dtype=np.float64)
    if min_p > 0:
        order = order[weights[order] >= np.float32(min_p)]
    if 0 < top_k < len(order):
        order = order[:top_k]
    if min_p > 0 or 0 < top_k < len(weights):
        total = weights[order].sum(dtype=np.float64)
    if top_p < 1.0:
        reached = np.cumsum(weights[order], dtype=np.float64)
        order = order[: int(np.searchsorted(reached, np.float32(top_p) * total)) + 1]
    ids = np.sort(order[weights[order] > 0])
    passed = np.cumsum(weights[ids], dtype=np.float64)
    return int(ids[min(int(np.searchsorted(passed, draw * passed[-1], side="right")), len(ids) - 1)])
