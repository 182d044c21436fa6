"""What all tests share: the built-in model, and a Ctrl-C that arrives even where the runner began in the background."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from pydoc_data.topics import topics

import pytest

import legato.core.request
from legato.config import Config
from legato.kernels.cpu import load_library
from legato.weights.catalog import BUILT_INS, cached

# A shell starts background jobs with SIGINT ignored, and children inherit that: the Ctrl-C tests would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seeds that no request gives are drawn from the test's name: what is red is red again.
_seeds = random.Random()
legato.core.request.fresh_seed = lambda: _seeds.getrandbits(53)


def pytest_runtest_setup(item: pytest.Item) -> None:
    _seeds.seed(item.nodeid)


@pytest.fixture(scope="session")
def builtin_path() -> Path:
    """The built-in model in this machine's own cache; the test is skipped aloud where nobody fetched it."""
    found = cached(BUILT_INS[0], Config.resolve().cache_dir)
    if found is None:
        pytest.skip("the built-in model is not in the cache: run `legato generate hello` once")
    return found


@pytest.fixture(scope="session")
def builtin_native(builtin_path: Path) -> Path:
    """The same, where the native kernels can run it."""
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    return builtin_path


@pytest.fixture(scope="session")
def english() -> str:
    """English that every Python carries: its own language reference."""
    return "\n".join(topics[name] for name in sorted(topics) if len(topics[name]) > 2000)
