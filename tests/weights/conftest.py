"""What the weight tests share: a guard on time and memory, and the built-in model where it was fetched before."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@contextmanager
def _cheap(seconds: float = 0.5, megabytes: float = 2.0) -> Iterator[None]:
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert took < seconds, f"took {took:.2f} s"
    assert peak < megabytes * 2**20, f"allocated {peak / 2**20:.1f} MB"


@pytest.fixture
def cheap() -> Callable[..., AbstractContextManager[None]]:
    """A context manager: what happens inside takes little time and little memory."""
    return _cheap
