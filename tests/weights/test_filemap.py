"""Mapped files: what they take of memory, and that letting go loses nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from legato.weights.filemap import let_go, map_file


def mapped_bytes() -> int:
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see memory")
def test_letting_go_gives_memory_back_and_loses_nothing(tmp_path: Path) -> None:
    size = 32 << 20
    path = tmp_path / "file"
    path.write_bytes(np.arange(size // 8, dtype=np.uint64).tobytes())
    whole = np.frombuffer(map_file(str(path))[0], np.uint8)
    part = whole[12_345 : size - 777].reshape(-1)
    before = mapped_bytes()
    total = int(part.sum(dtype=np.uint64))
    touched = mapped_bytes()
    let_go(part)
    assert touched - before > size // 2 and mapped_bytes() - before < size // 8
    assert int(part.sum(dtype=np.uint64)) == total


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000])
def test_what_is_no_mapped_file_is_left_alone(size: int) -> None:
    data = np.full(size, 7, np.uint8)
    let_go(data)
    let_go(data[1:])
    let_go(np.frombuffer(bytes(data), np.uint8))
    assert (data == 7).all()
