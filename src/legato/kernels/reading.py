"""How fast numpy reads memory, for the backend that has no probe of its own.

Knows: arrays, threads, the clock. Does not know: what is made of it.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray


def read_seconds(nbytes: int, threads: int, passes: int) -> list[float]:
    """Seconds of each of `passes` readings of `nbytes`, cut evenly between threads, by numpy."""
    data = np.ones(nbytes // 8, np.int64)
    parts = np.array_split(data, threads)
    return [_pass_seconds(parts) for _ in range(passes)]


def _pass_seconds(parts: list[NDArray[np.int64]]) -> float:
    """One pass; numpy sums without holding Python's lock, so threads really read at once."""
    workers = [threading.Thread(target=part.sum) for part in parts[1:]]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    parts[0].sum()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start
