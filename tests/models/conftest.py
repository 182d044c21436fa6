"""What the model tests share: transformers, imported once, and the built-in model where it was fetched before."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from legato.config import Config
from legato.weights import hub


@pytest.fixture(scope="session")
def hf() -> ModuleType:
    """transformers, the independent oracle; tests that need it are skipped aloud where it is not installed."""
    torch = pytest.importorskip("torch", reason="the `test` extra brings torch and transformers, the oracle")
    torch.set_num_threads(2)
    transformers = pytest.importorskip("transformers", reason="the `test` extra brings torch and transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def builtin_path() -> Path:
    """The built-in model in this machine's own cache; the test is skipped aloud where nobody fetched it."""
    found = hub.cached(hub.BUILT_INS[0], Config.resolve().cache_dir)
    if found is None:
        pytest.skip("the built-in model is not in the cache: run `legato generate hello` once")
    return found
