"""What the grammars' tests share: both grammars, compiled once a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bytes_vocabulary import SIZE, BytesTokenizer
from dice import DIGITS, JSON

from legato.text.grammar import Grammars


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(BytesTokenizer(), SIZE)  # type: ignore[arg-type]
    for grammar in (JSON, DIGITS):
        made.admit(grammar)
    yield made
    made.close()
