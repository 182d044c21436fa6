"""What the text tests share: awkward strings, one vocabulary of each kind, and the built-in model's metadata.

Knows: where they come from. Does not know: what is tested with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from awkward import awkward
from vocabularies import ByteLevelKind, SentencePieceKind

from legato.weights.gguf import read_gguf


@pytest.fixture(scope="session")
def awkward_strings() -> list[str]:
    strings = awkward()
    assert len(strings) >= 300
    return strings


@pytest.fixture(scope="session")
def byte_level() -> Callable[[str], ByteLevelKind]:
    made: dict[str, ByteLevelKind] = {}
    return lambda pre: made[pre] if pre in made else made.setdefault(pre, ByteLevelKind(pre))


@pytest.fixture(scope="session")
def llama_spm() -> SentencePieceKind:
    return SentencePieceKind(user_defined_symbols=["<think>", "</think>"])


@pytest.fixture(scope="session")
def gemma_spm() -> SentencePieceKind:
    blanks = ["\u2581" * n for n in range(2, 9)] + ["\n\n", "\n\n\n"]
    return SentencePieceKind(
        "gemma3", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, vocab_size=1150,
        control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=blanks,
    )  # fmt: skip


@pytest.fixture(scope="session")
def builtin(builtin_path: Path) -> tuple[Path, Mapping[str, object]]:
    """The built-in model's file and metadata."""
    return builtin_path, read_gguf(builtin_path).metadata
