"""What the server's tests share: one alphabet server and one page-echo server, ready and reused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alphabet import write_alphabet
from live import Live, alphabet_assembly, echo_assembly, running


@pytest.fixture(scope="session")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alphabet(tmp_path_factory.mktemp("served") / "alphabet.gguf")


@pytest.fixture(scope="session")
def letters(alphabet: Path) -> Iterator[Live]:
    """After each letter comes the next one."""
    with running(alphabet_assembly(alphabet)) as live:
        yield live


@pytest.fixture(scope="session")
def echo(alphabet: Path) -> Iterator[Live]:
    """Any paging fault is a wrong token."""
    with running(echo_assembly(alphabet)) as live:
        yield live
        live.wait(live.idle, 2.0, "everything given back")
