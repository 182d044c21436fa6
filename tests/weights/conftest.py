"""What the weight tests share: a guard on time and memory, and the built-in model where it was fetched before."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from legato.config import Config
from legato.weights import hub


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


@pytest.fixture
def builtin_path() -> Path:
    """The built-in model in this machine's own cache; the test is skipped aloud where nobody fetched it."""
    found = hub.cached(hub.BUILT_INS[0], Config.resolve().cache_dir)
    if found is None:
        pytest.skip("the built-in model is not in the cache: run `legato generate hello` once")
    return found
