"""The session file: what is written is read, and no damage of any kind is ever taken for data."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from legato.errors import SessionError
from legato.runtime.session_file import (
    Disk,
    Fingerprint,
    Header,
    SessionFile,
    digest_pages,
    file_bytes,
    open_session,
    write_session,
)

PAGE_BYTES, SIZE = 96, 4
PRINT = Fingerprint("m" * 32, "s" * 32, "auto", "int8", "avx2", SIZE, PAGE_BYTES, 1, "0.1.0")


class Memory(Disk):
    """A file that is a piece of memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, path: Path) -> int:
        return 3

    def read(self, handle: int, into: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    def size(self, handle: int) -> int:
        return len(self.data)

    def close(self, handle: int) -> None:
        pass


def pages(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)


def header(data: np.ndarray, **changes: object) -> Header:
    ids = list(range(len(data) * SIZE + 2))
    made = Header(7, 1.0, 2.0, "tiny", PRINT, "salt", ids, [{"role": "user", "content": "hé"}], digest_pages(data))
    return msgspec.structs.replace(made, **changes)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Header, np.ndarray]:
    path, data = tmp_path_factory.mktemp("s") / "a", pages(6)
    write_session(Disk(), path, header(data), data)
    return path.read_bytes(), header(data), data


def read(data: bytes) -> tuple[SessionFile, np.ndarray]:
    """All that comes out of it."""
    with open_session(Memory(data), Path("memory")) as file:
        rows = [(first, part.copy()) for first, part in file.pages()]
    assert [first for first, _ in rows] == list(np.cumsum([0, *(len(part) for _, part in rows)]))[: len(rows)]
    return file, np.concatenate([np.zeros((0, PAGE_BYTES), np.uint8), *(part for _, part in rows)])


@pytest.mark.parametrize("count", [0, 1, 9])
def test_what_is_written_is_read(tmp_path: Path, count: int) -> None:
    data = pages(count)
    write_session(Disk(), tmp_path / "a", header(data), data)
    assert (tmp_path / "a").stat().st_size == file_bytes(header(data))
    file, found = read((tmp_path / "a").read_bytes())
    assert (file.header, file.problem) == (header(data), None)
    assert found.tobytes() == data.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "nothing is left beside it"
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0, "others cannot read a conversation"


def test_pages_can_be_read_from_the_middle(sound: tuple[bytes, Header, np.ndarray]) -> None:
    with open_session(Memory(sound[0]), Path("memory")) as file:
        [(first, rows)] = file.pages(2)
    assert first == 2 and rows.tobytes() == sound[2][2:].tobytes()


def is_harmless(data: bytes, sound: tuple[bytes, Header, np.ndarray]) -> bool:
    """Whether the damage was noticed, and nothing came out that had not been put in."""
    try:
        file, found = read(data)
    except SessionError:
        return True
    same = file.header == sound[1] and found.tobytes() == sound[2][: len(found)].tobytes()
    return same and file.problem is not None


def test_every_single_bit_flip_is_noticed(sound: tuple[bytes, Header, np.ndarray]) -> None:
    whole = sound[0]
    assert 8 * len(whole) >= 10_000
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        assert is_harmless(bytes(data), sound), f"bit {bit}"


def test_one_damaged_place_never_costs_the_conversation(sound: tuple[bytes, Header, np.ndarray]) -> None:
    whole, rng = sound[0], random.Random(1)
    for _ in range(500):
        data = bytearray(whole)
        at = rng.randrange(len(whole))
        data[at] ^= rng.randrange(1, 256)
        file, _ = read(bytes(data))
        assert file.header == sound[1]


def test_pages_before_a_damaged_one_are_kept(sound: tuple[bytes, Header, np.ndarray]) -> None:
    whole, _, data = sound
    damaged = bytearray(whole)
    damaged[whole.index(data[2].tobytes()) + 5] ^= 1
    file, found = read(bytes(damaged))
    assert len(found) == 2 and file.problem == "page 2 is damaged"


def test_every_truncation_is_noticed(sound: tuple[bytes, Header, np.ndarray]) -> None:
    for length in range(len(sound[0])):
        assert is_harmless(sound[0][:length], sound), length


def test_random_bytes_insertions_and_swapped_pages_are_noticed(sound: tuple[bytes, Header, np.ndarray]) -> None:
    whole, _, data = sound
    rng = random.Random(2)
    for _ in range(500):
        at, length = rng.randrange(len(whole)), rng.randrange(1, 60)
        noise = rng.randbytes(length)
        assert is_harmless(whole[:at] + noise + whole[at:], sound)
        if whole[at : at + length] != noise[: len(whole) - at]:
            assert is_harmless(whole[:at] + noise + whole[at + length :], sound)
        assert is_harmless(rng.randbytes(rng.randrange(400)), sound)
    first, second = data[0].tobytes(), data[1].tobytes()
    swapped = whole.replace(first, b"\0" * PAGE_BYTES).replace(second, first).replace(b"\0" * PAGE_BYTES, second)
    assert swapped != whole and is_harmless(swapped, sound)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    data = pages(3)
    for lie in (
        {"token_ids": [1, 2, 3]},
        {"page_digests": b"x" * 17},
        {"token_ids": [2**31] * 12},
        {"fingerprint": msgspec.structs.replace(PRINT, page_bytes=0)},
    ):
        write_session(Disk(), tmp_path / "a", header(data, **lie), data)
        with pytest.raises(SessionError, match="nonsense"), open_session(Disk(), tmp_path / "a"):
            pass


def test_a_page_size_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    data = pages(3)
    huge = msgspec.structs.replace(PRINT, page_bytes=2**39)
    write_session(Disk(), tmp_path / "a", header(data, fingerprint=huge), data)
    with open_session(Disk(), tmp_path / "a") as file:
        assert list(file.pages()) == [] and file.problem is not None


def test_another_version_is_named(sound: tuple[bytes, Header, np.ndarray]) -> None:
    import hashlib
    import struct

    whole = sound[0]
    _, _, length = struct.unpack_from("<8sII", whole)
    body = struct.pack("<8sII", b"LEGATOKV", 2, length) + whole[16 : 16 + length]
    block = body + hashlib.sha256(body).digest()[:16]
    later = block + whole[len(block) : -len(block) - 8] + block + whole[-8:]
    assert len(later) == len(whole)
    with pytest.raises(SessionError, match="version 2, and this Legato reads version 1"):
        read(later)


def test_the_fingerprint_names_what_differs() -> None:
    assert PRINT.difference(PRINT) is None
    other = msgspec.structs.replace(PRINT, kv="bf16")
    assert PRINT.difference(other) == "kv was int8, here it is bf16"
