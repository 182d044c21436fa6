"""What the model tests share: transformers, imported once."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def hf() -> ModuleType:
    """transformers, the independent oracle; tests that need it are skipped aloud where it is not installed."""
    torch = pytest.importorskip("torch", reason="the `test` extra brings torch and transformers, the oracle")
    torch.set_num_threads(2)
    transformers = pytest.importorskip("transformers", reason="the `test` extra brings torch and transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
